"""Build the site into site/_build/html: ``python site/build.py`` (or ``make site``).

1. The pages are copied to site/_build/source, in the folders that they have in the repository. Pictures are taken out
   of the notebooks, so that a browser loads them when they are needed; what only a kernel can use is left out. The
   package's pages are made (api.py).
2. Explorers are drawn over all positions of their sliders. Those of notebooks are made by running the notebook up to
   them; this is kept in site/_build/explorers until the notebook's code or the explorers change.
   With --quick they keep the picture that is stored in the notebook.
3. Sphinx makes the pages. A warning is an error. Icons that no page shows are dropped.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from api import write_api
from nbclient import NotebookClient

from mbls.course.explorers import LogitExplorer, VoxelExplorer
from mbls.course.static import write_static

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "site" / "_build"
SOURCE, STATIC, EXPLORERS = BUILD / "source", BUILD / "static", BUILD / "explorers"
PAGES = ("notebooks/*.ipynb", "notebooks/*.md", "notebooks/solutions/*.ipynb", "data/**/*.md", "docs/*.md", "*.md")
PAGES += (
    "notebooks/*.yaml",
    # Not the folder: its rubric and its hidden checks are the teacher's.
    "notebooks/assignment/README.md",
    "notebooks/assignment/submission.py",
    "benchmarks/*.md",
    "tests/*.md",
    "data/results/*.png",
    "data/*.json",
    "CITATION.cff",
    "benchmarks/*.png",
)
#: A picture inside an output, and what it is.
PICTURE = re.compile(r'src="data:image/(webp|svg\+xml);base64,([^"]+)"')


def stage() -> None:
    """Copy the sources of the pages, the notebooks as pages need them."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.rmtree(STATIC, ignore_errors=True)
    (STATIC / "pictures").mkdir(parents=True)
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            target = SOURCE / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".ipynb":
                notebook = nbformat.read(path, as_version=4)
                for cell in notebook.cells:
                    _prepare(cell, path.stem)
                _number_explorers(notebook, path.stem)
                nbformat.write(notebook, target)
            else:
                shutil.copy(path, target)
    for path in sorted((ROOT / "site").glob("*.md")):
        shutil.copy(path, SOURCE / path.name)
    write_api(SOURCE)


def _prepare(cell: nbformat.NotebookNode, name: str) -> None:
    """Mark what a page leaves out, and put pictures into files."""
    if cell.cell_type != "code":
        return
    tags = cell.metadata.setdefault("tags", [])
    if re.match(r"(ask|reveal|my_predictions)\(", cell.source):
        tags.append("remove-input")
    if "check" in tags:
        tags.append("remove-cell")
    if re.search(r"^exercises\.", cell.source, re.MULTILINE):
        tags.append("remove-output")  # it says that nothing has been answered
    for output in cell.outputs:
        data = output.get("data", {})
        if "text/html" in data:
            data["text/html"] = PICTURE.sub(_to_file, data["text/html"])


def _to_file(match: re.Match) -> str:
    kind, content = match[1].partition("+")[0], base64.b64decode(match[2])
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.{kind}"
    (STATIC / "pictures" / name).write_bytes(content)
    return f'loading="lazy" src="../_static/pictures/{name}"'


def _explorers_in(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The outputs that show an explorer."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if 'class="mbls-explorer"' in output.get("data", {}).get("text/html", "")]


def _number_explorers(notebook: nbformat.NotebookNode, name: str) -> None:
    for number, output in enumerate(_explorers_in(notebook), start=1):
        marked = f'class="mbls-explorer" data-explorer="{name}-{number}"'
        output.data["text/html"] = output.data["text/html"].replace('class="mbls-explorer"', marked)


def draw_explorers(of_notebooks: bool = True) -> None:
    """The pictures of all explorers: those of the first page, and those of the notebooks, which takes minutes."""
    EXPLORERS.mkdir(parents=True, exist_ok=True)
    code = "".join(path.read_text() for path in sorted((ROOT / "mbls" / "course").glob("*.py")))
    for key, make in {"voxel": VoxelExplorer, "logit": LogitExplorer}.items():
        if _changed(key, code):
            write_static(make(), EXPLORERS, key)
            _remember(key, code)
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")) if of_notebooks else ():
        notebook = nbformat.read(path, as_version=4)
        if not _explorers_in(notebook):
            continue
        shown = code + "".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        if _changed(path.stem, shown):
            _run(notebook, path)
            _remember(path.stem, shown)
    shutil.copytree(EXPLORERS, STATIC / "explorers", ignore=shutil.ignore_patterns("*.sha256"))


def _run(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Run a notebook as far as its last explorer; each is drawn right behind the cell that shows it. The tests run the
    checks, which another machine's training may not pass."""
    cells, number, last = [], 0, 0
    for cell in notebook.cells:
        if cell.cell_type != "code" or "check" in cell.metadata.get("tags", []):
            continue
        cells.append(cell)
        for _ in [output for output in cell.outputs if output in _explorers_in(notebook)]:
            number += 1
            code = "from pathlib import Path; from mbls.course.static import write_static\n"
            # Out, and not _, which a cell may have assigned: IPython then leaves it alone.
            code += f"write_static(Out[max(Out)], Path({str(EXPLORERS)!r}), {f'{path.stem}-{number}'!r})"
            cells.append(nbformat.v4.new_code_cell(code))
            last = len(cells)
    notebook.cells = cells[:last]
    resources = {"metadata": {"path": str(path.parent)}}
    os.environ["MBLS_PREDICTIONS"] = str(BUILD / "none.json")
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()


def _changed(key: str, text: str) -> bool:
    stamp = EXPLORERS / f"{key}.sha256"
    return not stamp.is_file() or stamp.read_text() != hashlib.sha256(text.encode()).hexdigest()


def _remember(key: str, text: str) -> None:
    (EXPLORERS / f"{key}.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())


def take_out_handlers() -> None:
    """The theme's print button has its handler in the page, where the policy allows none; print.js gives it back."""
    for page in (BUILD / "html").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace('onclick="window.print()"', "data-print"), encoding="utf-8")


def write_headers() -> None:
    """The policy under which the site works, in the file that static hosts read: nothing but the site's own files, and
    of scripts within pages only those that the theme wrote. (Styles within pages: MathJax and tables have them.)"""
    inline = set()
    for page in sorted((BUILD / "html").rglob("*.html")):
        inline |= set(re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", page.read_text(), re.DOTALL))
    hashes = sorted(base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline if text)
    scripts = " ".join(f"'sha256-{value}'" for value in hashes)
    policy = f"default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
    (BUILD / "html" / "_headers").write_text(f"/*\n  Content-Security-Policy: {policy}\n")


#: An icon in the theme's script: name, size, [other names], character, one path or two.
ICON = re.compile(r'("?)([a-z0-9-]+)\1:\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?')


def drop_unused_icons() -> None:
    """Leave the icons that the pages show: the theme brings two thousand, more than half of what a page would load."""
    scripts = BUILD / "html" / "_static" / "scripts"
    pages = [*(BUILD / "html").rglob("*.html"), scripts / "pydata-sphinx-theme.js", scripts / "sphinx-book-theme.js"]
    shown = {name for page in pages for name in re.findall(r"\bfa-([a-z0-9-]+)", page.read_text(encoding="utf-8"))}

    def kept(match: re.Match) -> str:
        names = {match[2], *re.findall(r'"([^"]+)"', match[3])}
        return match[0] if names & shown else ""

    icons = scripts / "fontawesome.js"
    icons.write_text(ICON.sub(kept, icons.read_text(encoding="utf-8")), encoding="utf-8")
    for unread in scripts.glob("*.map"):
        unread.unlink()


def main(arguments: list[str]) -> int:
    stage()
    draw_explorers(of_notebooks="--quick" not in arguments)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "-c", str(ROOT / "site")]
    finished = subprocess.run([*command, str(SOURCE), str(BUILD / "html")], check=False)
    if finished.returncode == 0:
        drop_unused_icons()
        take_out_handlers()
    write_headers()
    return finished.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
