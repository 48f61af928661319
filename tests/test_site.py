"""The site: what its pages are made from, that its links hold. Its pages in a browser: browser/test_site_pages.py."""

import html.parser
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import nbformat
import pytest
from PIL import Image

import mbls
from mbls.course.explorers import LogitExplorer, VoxelExplorer
from mbls.course.static import positions, write_static

ROOT = Path(__file__).resolve().parents[1]


def test_positions_are_spread_evenly_and_hold_the_present_one():
    explorer = VoxelExplorer(margin=0.5, certainty=0.85)
    assert positions(explorer, "margin", 11) == [0, 0.5, *range(1, 11)]
    assert positions(explorer, "certainty", 3) == [0.3, 0.65, 0.85, 1.0]


def test_a_page_gets_a_picture_and_a_sentence_for_every_position(tmp_path, monkeypatch):
    monkeypatch.setattr("mbls.course.static.MOST", {2: 3})
    explorer = LogitExplorer(cavity=2.0)
    write_static(explorer, tmp_path, "logit")
    assert explorer.cavity == 2.0
    key, page = re.fullmatch(r'mblsExplorer\("(\w+)", (.*)\);\n', (tmp_path / "logit.js").read_text()).groups()
    page = json.loads(page)
    assert key == "logit"
    assert [slider["name"] for slider in page["sliders"]] == list(LogitExplorer.static)
    first, second = page["sliders"]
    assert first["texts"] == ["-8", "0", "2", "8"]
    assert first["texts"][first["start"]] == "2"
    assert len(page["told"]) == len(first["texts"]) * len(second["texts"])
    at = LogitExplorer(cavity=8.0, myocardium=-8.0)
    assert page["told"]["3-0"] == at.describe(at.numbers)
    for where in (*page["told"], "start"):
        with Image.open(tmp_path / "logit" / f"{where}.webp") as picture:
            assert picture.size == (page["width"], page["height"])


def test_an_explorer_is_drawn_whatever_a_notebook_assigns_before(tmp_path, monkeypatch):
    """IPython leaves `_` alone once a cell has assigned it."""
    pytest.importorskip("sphinx", reason="Sphinx is not installed (pip install -e '.[site]')")
    monkeypatch.syspath_prepend(ROOT / "site")
    build = importlib.import_module("build")
    monkeypatch.setattr(build, "EXPLORERS", tmp_path)
    monkeypatch.setenv("MBLS_PREDICTIONS", "")  # _run sets it
    told = (
        "import mbls.course.static as s\ns.write_static = lambda shown, folder, key: (folder / key).write_text(shown)"
    )
    shown = nbformat.v4.new_code_cell("'the explorer'")
    html = {"text/html": '<img class="mbls-explorer">'}
    shown.outputs = [nbformat.v4.new_output("display_data", html)]
    cells = [nbformat.v4.new_code_cell(f"{told}\n_ = 'no output'"), shown]
    build._run(nbformat.v4.new_notebook(cells=cells), tmp_path / "lesson.ipynb")
    assert (tmp_path / "lesson-1").read_text() == "the explorer"


def pages_of(site):
    return [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]  # the theme's templates


class Links(html.parser.HTMLParser):
    """Addresses and anchors of a page, and its pictures without a text."""

    def __init__(self, path):
        super().__init__()
        self.addresses, self.anchors, self.dumb = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        self.addresses += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        if tag == "img" and not attributes.get("alt"):
            self.dumb.append(attributes)


def test_every_link_within_the_site_holds(site):
    """Addresses, and the anchors in them; outside it only https is linked."""
    pages = {path: Links(path) for path in pages_of(site)}
    assert len(pages) > 20
    broken = []
    for path, page in pages.items():
        for address in page.addresses:
            parts = urllib.parse.urlsplit(address)
            if parts.scheme or address.startswith("//"):
                if parts.scheme not in ("https", "http", "mailto", "data"):
                    broken.append((path.name, address))
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or (
                parts.fragment and target in pages and parts.fragment not in pages[target].anchors
            ):
                broken.append((str(path.relative_to(site)), address))
    assert broken == []


def test_every_picture_has_a_text(site):
    assert {str(path): page.dumb for path in pages_of(site) if (page := Links(path)).dumb} == {}


def test_nothing_is_loaded_from_elsewhere(site):
    """Of the pages: scripts, styles, pictures, fonts. (Links may lead out.)"""
    loaded = re.compile(
        r'<(?:script|img|iframe|link rel="(?:stylesheet|preload)")[^>]*(?:src|href)="((?:https?:)?//[^"]+)"'
    )
    found = {path.name: loaded.findall(path.read_text()) for path in pages_of(site)}
    assert {name: addresses for name, addresses in found.items() if addresses} == {}
    styles = "".join(path.read_text(errors="ignore") for path in site.rglob("*.css"))
    assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]+\)|@import (?:url\()?[\"'](?:https?:)?//", styles) == []


def test_the_policy_names_every_script_within_a_page(site):
    policy = (site / "_headers").read_text()
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe-eval" not in policy
    handlers = {path.name: re.findall(r"<[^>]+\son[a-z]+=[^>]*>", path.read_text()) for path in pages_of(site)}
    assert {name: found for name, found in handlers.items() if found} == {}, "none is allowed within a page"


@pytest.mark.parametrize("name", ["notebooks/02_cross_entropy_is_overconfident", "notebooks/06_train_on_acdc"])
def test_answers_are_folded_and_questions_are_there(site, name):
    page = (site / f"{name}.html").read_text()
    assert page.count('class="mbls-ask"') >= 4
    folds = re.findall(r"<details.*?</details>", page, re.DOTALL)
    assert page.count('class="mbls-reveal"') == sum(fold.count('class="mbls-reveal"') for fold in folds)


def notebooks_of(site):
    return sorted(path.relative_to(site) for path in site.glob("notebooks/**/0*.html"))


def test_without_an_address_no_page_leads_to_colab(site):
    """The address of the repository is one setting, and not set."""
    assert len(notebooks_of(site)) == 18
    assert [path.name for path in pages_of(site) if "colab.research" in path.read_text()] == []


def test_with_an_address_each_notebook_opens_in_colab_and_binder(site, tmp_path):
    """The site's own settings beside a pyproject.toml that has an address."""
    shutil.copytree(ROOT / "site", tmp_path / "site", ignore=shutil.ignore_patterns("_build"))
    (tmp_path / "site" / "_build" / "static").mkdir(parents=True)
    address = "\n[project.urls]\nRepository = 'https://github.com/owner/course'\n"
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + address)
    pages = tmp_path / "pages"
    shutil.copytree(site.parent / "source" / "notebooks", pages / "notebooks")
    (pages / "index.md").write_text("# Pages\n")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--quiet",
        "-c",
        str(tmp_path / "site"),
        str(pages),
        str(tmp_path / "out"),
    ]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for path in notebooks_of(site):
        addresses = Links(tmp_path / "out" / path).addresses
        name = path.with_suffix(".ipynb")
        assert f"https://colab.research.google.com/github/owner/course/blob/main/{name}" in addresses
        assert f"https://mybinder.org/v2/gh/owner/course/main?urlpath=lab/tree/{name}" in addresses
    assert "colab.research" not in (tmp_path / "out" / "index.html").read_text()


#: Parts of the package that the site has no page of: the shell, what only the package itself uses, and the folder of
#: the adapters, which have pages of their own.
INTERNAL = {"mbls.__main__", "mbls.files", "mbls.progress", "mbls.adapters"}
#: Modules within a part that have a page.
WITHIN = {"mbls.adapters.monai", "mbls.adapters.torchmetrics", "mbls.course.exercises"}


def test_every_public_name_is_in_the_table_and_on_its_page(site):
    modules = {f"mbls.{part.name}" for part in pkgutil.iter_modules(mbls.__path__)} - INTERNAL
    assert len(modules) == 12
    table = Links(site / "api.html").addresses
    for name in sorted(modules | WITHIN):
        anchors = Links(site / "api" / f"{name}.html").anchors
        for public in importlib.import_module(name).__all__:
            full = f"{name}.{public}"
            if full in modules | WITHIN:
                assert f"api/{full}.html#module-{full}" in table
            else:
                assert full in anchors
                assert f"api/{name}.html#{full}" in table, full


def test_every_name_in_the_table_has_a_line(site):
    rows = re.findall(r"<tr.*?</tr>", (site / "api.html").read_text(), re.DOTALL)
    assert len(rows) > 150
    assert [row for row in rows if not re.search(r"</td>\s*<td><p>\S", row)] == []


def test_no_page_shows_the_cell_that_installs(site):
    assert [path for path in notebooks_of(site) if "find_spec" in (site / path).read_text()] == []
