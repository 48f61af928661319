"""The two-hour deck: ``python notebooks/slides.py`` fills ``build/slides``.

``slides.yaml`` says what is on the slides; pictures are the stored outputs of the
notebooks. reveal.js and what else the deck loads come from npm once, and lie beside it
afterwards: the deck needs no network. Key S opens the speaker's notes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbconvert import SlidesExporter
from traitlets.config import Config

from mbls.files import write_text

ROOT = Path(__file__).resolve().parents[1]
#: npm package, of the version that nbconvert's template takes -> what is loaded of it.
PACKAGES = {
    "reveal.js@4.6.1": ("dist/", "plugin/notes/"),
    "requirejs@2.3.7": ("require.js",),
    "jquery@3.7.1": ("dist/jquery.min.js",),
    "mathjax@2.7.9": (
        "MathJax.js",
        "config/",
        "extensions/",
        "jax/",
        "fonts/HTML-CSS/TeX/woff/",
    ),
}
STYLE = ".reveal h2 { text-transform: none; font-size: 1.5em; }"
LOADED = {
    "reveal_url_prefix": "reveal.js",
    "require_js_url": "requirejs/require.js",
    "jquery_url": "jquery/dist/jquery.min.js",
    "mathjax_url": "mathjax/MathJax.js?config=TeX-AMS_CHTML-full,Safe",
}


def read_slides(path: Path = ROOT / "notebooks" / "slides.yaml") -> list[dict[str, Any]]:
    """The slides, in order."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def picture(number: str, cell_id: str) -> nbformat.NotebookNode:
    """The cell of a notebook, with its stored output and without its code.

    Raises:
        ValueError: no such cell, or one without output.
    """
    (path,) = sorted((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    for cell in nbformat.read(path, 4).cells:
        if cell.id == cell_id and cell.get("outputs"):
            return nbformat.v4.new_code_cell("", outputs=cell.outputs)
    raise ValueError(
        f"slides.yaml: got cell {cell_id!r}, expected one of {path.name} with an output"
    )


def deck(slides: list[dict[str, Any]]) -> nbformat.NotebookNode:
    """A notebook of which nbconvert makes the deck."""
    cells = []
    for slide in slides:
        title = nbformat.v4.new_markdown_cell(
            f"## {slide['title']}\n\n{slide.get('text', '')}"
        )
        parts = [(title, "slide")]
        if "cell" in slide:
            parts.append((picture(slide["notebook"], slide["cell"]), "-"))
        parts.append((nbformat.v4.new_markdown_cell(slide["note"]), "notes"))
        for cell, kind in parts:
            cell.metadata["slideshow"] = {"slide_type": kind}
            cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells)


def fetch(out: Path) -> None:
    """The scripts that the deck loads, from npm; what is there already stays."""
    for package, wanted in PACKAGES.items():
        name = package.split("@")[0]
        if (out / name).is_dir():
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--silent", package, "--pack-destination", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (packed,) = Path(folder).glob("*.tgz")
            with tarfile.open(packed) as archive:
                members = []
                for member in archive.getmembers():
                    member.name = member.name.removeprefix("package/")
                    if member.name.startswith(wanted):
                        members.append(member)
                archive.extractall(out / name, members, filter="data")


def write_deck(out: Path) -> Path:
    """Write ``index.html``; :func:`fetch` brings what it loads."""
    config = Config(
        {
            "SlidesExporter": {
                **LOADED,
                "reveal_theme": "white",
                "reveal_transition": "none",
                "reveal_number": "c/t",
            }
        }
    )
    config.TemplateExporter.exclude_input = True
    config.TemplateExporter.exclude_output_prompt = True
    html, _ = SlidesExporter(config=config).from_notebook_node(deck(read_slides()))
    # For diagrams that no slide has, the template would ask a server.
    html = re.sub(
        r"<script type=\"module\">(?:(?!</script>).)*mermaid.*?</script>",
        "",
        html,
        flags=re.DOTALL,
    )
    html = html.replace("</head>", f"<style>{STYLE}</style></head>", 1)
    out.mkdir(parents=True, exist_ok=True)
    write_text(html, out / "index.html")
    return out / "index.html"


def main() -> int:
    parser = argparse.ArgumentParser(description="The two-hour deck.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "slides")
    out = parser.parse_args().out
    path = write_deck(out)
    try:
        fetch(out)
    except (OSError, subprocess.CalledProcessError) as error:
        print(
            f"slides: npm is needed once, to bring reveal.js ({error})", file=sys.stderr
        )
        return 1
    print(
        f"{path.name}: {len(read_slides())} slides; open it in a browser, S for the notes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
