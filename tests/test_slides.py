"""``make slides``: every slide has its picture, and the deck asks no server."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("slides", ROOT / "notebooks" / "slides.py")
slides = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(slides)


def test_the_deck_has_every_slide_with_its_picture_and_note(tmp_path):
    wanted = slides.read_slides()
    html = slides.write_deck(tmp_path).read_text(encoding="utf-8")
    for slide in wanted:
        assert slide["title"].replace("'", "&#39;") in html or slide["title"] in html, slide["title"]
        assert slide["note"]
    assert html.count("<img") >= sum("cell" in slide for slide in wanted) > 15
    assert len(re.findall(r'<aside class="notes">', html)) == len(wanted)
    assert not re.findall(r'(?:src|href)="https?://', html)


def test_a_cell_that_is_gone_is_named():
    with pytest.raises(ValueError, match=r"slides.yaml: got cell 'gone', expected one of 04_.*ipynb with an output"):
        slides.picture("04", "gone")


@pytest.mark.slow  # fetches 25 MB from npm
def test_the_deck_asks_no_server(tmp_path):
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
    chromium = shutil.which("chromium")
    if chromium is None or shutil.which("npm") is None:
        pytest.skip("no Chromium or no npm here")
    page_path = slides.write_deck(tmp_path)
    slides.fetch(tmp_path)
    asked, problems = [], []
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(page_path.as_uri())
        page.wait_for_timeout(3000)
        for _ in range(6):
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(300)
        assert "A gradient that never vanishes" in page.locator("section.present section.present").inner_text()
        assert page.locator("section.present .MathJax, section.present .mjx-chtml").count() > 0
        browser.close()
    assert [url[:80] for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []
