"""The built site in a real Chromium, served under its own policy: nothing leaves it, explorers and predictions work."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mbls.course.answers import BIN_EDGES, Answer, judge_answers
from mbls.course.explorers import VoxelExplorer
from mbls.course.static import MOST, positions

ROOT = Path(__file__).resolve().parents[2]
WEIGHT = 4_000_000  # bytes of a page, all that it loads


class Page:
    """A page of the browser, with what went wrong on it and how much it loaded."""

    def __init__(self, browser, served, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self.page = self.context.new_page()
        self.served, self.problems, self.weight = served, [], 0
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda told: told.type == "error" and self.problems.append(told.text))
        self.page.on("request", self._left)
        self.page.on("response", self._loaded)

    def _left(self, request):
        if not request.url.startswith((self.served, "data:", "blob:")):
            self.problems.append(f"asks {request.url}")

    def _loaded(self, response):
        self.weight += int(response.headers.get("content-length", 0))

    def open(self, name):
        self.page.goto(f"{self.served}/{name}", wait_until="load")
        self.page.wait_for_timeout(500)
        return self.page


@pytest.fixture
def visit(browser, served):
    opened = []

    def make(name, **options):
        opened.append(Page(browser, served, **options))
        opened[-1].open(name)
        return opened[-1]

    yield make
    for one in opened:
        one.context.close()
    assert [problem for one in opened for problem in one.problems] == []


def wait_until(page, condition, timeout=20):
    """Ask again and again; Playwright's own waiting needs animation frames, which a headless page may not get."""
    for _ in range(timeout * 10):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not within {timeout} s: {condition}")


def test_an_explorer_moves_by_keyboard_and_shows_what_python_computed(visit):
    """Ten random positions, each reached by arrow keys: sentence and picture are the explorer's in that state."""
    page = visit("index.html").page
    wait_until(page, "document.querySelector('.mbls-live input') !== null")
    sliders = page.locator(".mbls-live input")
    explorer = VoxelExplorer()
    values = {name: positions(explorer, name, MOST[2]) for name in VoxelExplorer.static}
    pictures = set()
    chooser = random.Random(0)
    for _ in range(10):
        for number, (name, choices) in enumerate(values.items()):
            wanted = chooser.randrange(len(choices))
            setattr(explorer, name, choices[wanted])
            slider = sliders.nth(number)
            slider.focus()
            page.keyboard.press("Home")
            for _ in range(wanted):
                page.keyboard.press("ArrowRight")
        assert page.locator(".mbls-readout").inner_text() == explorer.describe(explorer.numbers)
        image = page.locator(".mbls-live img")
        wait_until(
            page, "(image => image.complete && image.naturalWidth > 0)(document.querySelector('.mbls-live img'))"
        )
        assert explorer.describe(explorer.numbers) in image.get_attribute("alt")
        pictures.add(image.get_attribute("src"))
    assert len(pictures) > 5
    assert sliders.first.get_attribute("aria-valuetext")


def test_an_explorer_moves_by_touch_on_a_phone(visit):
    phone = visit("index.html", has_touch=True, is_mobile=True)
    phone.page.set_viewport_size({"width": 390, "height": 800})
    page = phone.page
    wait_until(page, "document.querySelector('.mbls-live input') !== null")
    slider = page.locator(".mbls-live input").first
    slider.scroll_into_view_if_needed()
    before = page.locator(".mbls-readout").inner_text()
    box = slider.bounding_box()
    page.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    wait_until(page, f"document.querySelector('.mbls-readout').innerText !== {json.dumps(before)}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), "nothing sticks out"


def test_a_prediction_is_kept_locked_and_judged(visit):
    """As a reader does it: answer, change, open the fold; the next visit finds it locked."""
    visited = visit("notebooks/02_cross_entropy_is_overconfident.html")
    page = visited.page
    form = page.locator(".mbls-ask").first
    question = json.loads(form.get_attribute("data-mbls"))
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = false; })")
    form.locator("input[type=radio]").first.check()
    form.locator("button").click()
    assert "You can change it" in form.locator(".mbls-message").inner_text()
    form.locator("input[type=radio]").last.check()
    form.locator("input[type=range]").fill("90")
    form.locator("button").click()
    reveal = page.locator(".mbls-reveal").first
    truth = json.loads(reveal.get_attribute("data-mbls"))["truth"]
    reveal.evaluate("box => { box.closest('details').open = true; }")
    wait_until(page, "document.querySelector('.mbls-compared').innerText !== ''")
    right = truth == question["options"][-1]
    assert ("right." if right else "not this time.") in reveal.inner_text()
    kept = json.loads(page.evaluate("localStorage.getItem('mbls-predictions')"))
    expected = Answer(question["wording"], question["options"][-1], 0.9, truth, right)
    assert Answer(**kept[question["id"]]) == expected
    page.reload()
    form = page.locator(".mbls-ask").first
    assert "Locked" in form.locator(".mbls-message").inner_text()
    assert form.locator("button").is_disabled()


def test_the_readers_diagram_counts_as_python_does(visit):
    page = visit("index.html").page
    chooser = random.Random(1)
    for _ in range(5):
        sure = [chooser.choice([0.2, 0.4, 0.6, 0.8, 1.0, chooser.random()]) for _ in range(40)]
        answers = {str(n): Answer("?", "a", c, "a", chooser.random() < c) for n, c in enumerate(sure)}
        raw = {id: vars(answer) for id, answer in answers.items()}
        found = page.evaluate("([answers, edges]) => mblsCalibration(answers, edges)", [raw, BIN_EDGES.tolist()])
        wanted = judge_answers([answers])
        assert found["count"] == wanted.count
        for name in ("confidence", "hit_rate", "brier"):
            assert found[name] == pytest.approx(getattr(wanted, name))
        assert [part["count"] for part in found["bins"]] == wanted.reliability.count.tolist()
        for part, confidence, accuracy in zip(
            found["bins"], wanted.reliability.confidence, wanted.reliability.accuracy, strict=True
        ):
            if part["count"]:
                assert (part["confidence"], part["accuracy"]) == pytest.approx((confidence, accuracy))


def test_the_print_view_has_pictures_and_no_sliders(visit):
    page = visit("index.html").page
    wait_until(page, "document.querySelector('.mbls-live input') !== null")
    page.emulate_media(media="print")
    assert not page.locator(".mbls-live input").first.is_visible()
    assert page.locator(".mbls-live img").is_visible()
    assert len(page.pdf()) > 10_000


def test_the_site_works_from_a_disk(browser, site):
    """Opened as a file, as from a USB stick: an explorer moves, a prediction is kept, nothing else is asked."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda told: told.type == "error" and problems.append(told.text))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or problems.append(asked.url))
    page.goto((site / "index.html").as_uri())
    wait_until(page, "document.querySelector('.mbls-live input') !== null")
    explorer = VoxelExplorer()
    name = next(iter(VoxelExplorer.static))
    setattr(explorer, name, positions(explorer, name, MOST[2])[0])
    page.locator(".mbls-live input").first.focus()
    page.keyboard.press("Home")
    assert page.locator(".mbls-readout").inner_text() == explorer.describe(explorer.numbers)
    wait_until(page, "document.querySelector('.mbls-live img').naturalWidth > 0")
    page.goto((site / "notebooks" / "02_cross_entropy_is_overconfident.html").as_uri())
    form = page.locator(".mbls-ask").first
    form.locator("input[type=radio]").first.check()
    form.locator("button").click()
    page.reload()
    assert "Kept" in page.locator(".mbls-ask .mbls-message").first.inner_text()
    context.close()
    assert problems == []


def test_nothing_moves_for_readers_who_ask_for_less_motion(visit):
    moving = """[...document.querySelectorAll('*')].filter(part => {
        const style = getComputedStyle(part);
        return style.scrollBehavior === 'smooth' || style.animationName !== 'none'
            || style.transitionDuration.split(', ').some(duration => parseFloat(duration) > 0);
    }).length"""
    name = "notebooks/02_cross_entropy_is_overconfident.html"
    assert visit(name).page.evaluate(moving) > 0
    assert visit(name, reduced_motion="reduce").page.evaluate(moving) == 0


def test_no_page_is_wider_than_a_phone(visit, site):
    """What is wider, such as a table, scrolls within its own box."""
    visited = visit("index.html")
    visited.page.set_viewport_size({"width": 390, "height": 844})
    found = {}
    for name in pages(site):
        visited.page.goto(f"{visited.served}/{name}")
        width = visited.page.evaluate("document.documentElement.scrollWidth")
        if width > 390:
            found[name] = width
    assert found == {}


def test_the_print_button_prints(visit):
    page = visit("notebooks/03_logit_distances.html").page
    page.evaluate("window.print = () => { window.printed = true; }")
    page.locator("[data-print]").first.evaluate("button => button.click()")
    assert page.evaluate("window.printed") is True


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "notebooks/02_cross_entropy_is_overconfident", "api", "api/mbls.losses"])
def test_no_serious_accessibility_fault(visit, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (.[site])")
    visited = visit(f"{name}.html", color_scheme=scheme, bypass_csp=True)
    found = axe.Axe().run(visited.page).response["violations"]
    visited.problems.clear()  # axe asks for files of its own
    serious = [
        (fault["id"], [node["html"][:150] for node in fault["nodes"][:3]])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


def pages(site):
    return sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if "_static" not in path.parts)


@pytest.fixture(scope="session")
def explorers(served, site):
    """The whole site in the place of the quick one: pages -> the explorers on them, as the build wrote them."""
    finished = subprocess.run([sys.executable, str(ROOT / "site" / "build.py")], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    told = {}
    for path in sorted((site / "_static" / "explorers").glob("*.js")):
        key, page = re.fullmatch(r'mblsExplorer\("([\w-]+)", (.*)\);\n', path.read_text()).groups()
        told[key] = json.loads(page)
    found = {}
    for name in pages(site):
        keys = re.findall(r'data-explorer="([\w-]+)"', (site / name).read_text())
        if keys:
            found[name] = {key: told[key] for key in keys}
    return found


def opened(page, key):
    """An explorer, once it lives. What answers a question is folded; as a reader does, open it first."""
    page.evaluate(
        f"""const image = document.querySelector('[data-explorer="{key}"]');
        if (image.closest('details')) image.closest('details').open = true;
        image.scrollIntoView();"""
    )
    wait_until(page, f"document.querySelector('.mbls-live [data-explorer=\"{key}\"]') !== null")
    return page.locator(f'.mbls-live:has([data-explorer="{key}"])')


@pytest.mark.slow  # builds the whole site, which draws a thousand pictures in two minutes
def test_every_explorer_of_every_page_moves_and_shows_its_own(visit, explorers, site):
    assert sum(map(len, explorers.values())) >= 9
    chooser = random.Random(2)
    for name, keys in explorers.items():
        page = visit(name).page
        for key, told in keys.items():
            weight = sum(path.stat().st_size for path in (site / "_static" / "explorers" / key).iterdir())
            assert weight < 3_000_000, key
            live = opened(page, key)
            for _ in range(10):
                place = [chooser.randrange(len(slider["texts"])) for slider in told["sliders"]]
                for number, wanted in enumerate(place):
                    slider = live.locator("input").nth(number)
                    slider.focus()
                    page.keyboard.press("Home")
                    for _ in range(wanted):
                        page.keyboard.press("ArrowRight")
                    assert slider.get_attribute("aria-valuetext") == told["sliders"][number]["texts"][wanted]
                where = "-".join(map(str, place))
                assert live.locator(".mbls-readout").inner_text() == told["told"][where]
                assert live.locator("img").get_attribute("src").endswith(f"/{key}/{where}.webp")
            shown = f"document.querySelector('.mbls-live [data-explorer=\"{key}\"]')"
            wait_until(page, f"{shown}.complete && {shown}.naturalWidth > 0")


@pytest.mark.slow  # needs the whole site, as the one above
def test_every_explorer_moves_by_touch_on_a_phone(visit, explorers):
    for name, keys in explorers.items():
        page = visit(name, has_touch=True, is_mobile=True).page
        page.set_viewport_size({"width": 390, "height": 800})
        for key, told in keys.items():
            live = opened(page, key)
            inputs = live.locator("input")
            for number, one in enumerate(told["sliders"]):
                for part, wanted in ((0.99, one["texts"][-1]), (0.01, one["texts"][0])):
                    inputs.nth(number).scroll_into_view_if_needed()
                    box = inputs.nth(number).bounding_box()
                    page.touchscreen.tap(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
                    assert inputs.nth(number).get_attribute("aria-valuetext") == wanted, (key, number)
                    texts = [inputs.nth(i).get_attribute("aria-valuetext") for i in range(len(told["sliders"]))]
                    place = [each["texts"].index(text) for each, text in zip(told["sliders"], texts, strict=True)]
                    assert live.locator(".mbls-readout").inner_text() == told["told"]["-".join(map(str, place))]


@pytest.mark.slow  # every page: about a second each
def test_every_page_opens_without_an_error_and_is_light(visit, explorers, site):
    heavy = {}
    for name in pages(site):
        visited = visit(name)
        if re.match("notebooks/0|index", name):
            # As a reader does: from top to bottom, so that everything is loaded.
            height = visited.page.evaluate("document.body.scrollHeight")
            for place in range(0, height, 700):
                visited.page.evaluate(f"scrollTo(0, {place})")
                visited.page.wait_for_timeout(20)
            visited.page.wait_for_timeout(500)
        if visited.weight > WEIGHT:
            heavy[name] = visited.weight
    assert heavy == {}
