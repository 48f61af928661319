"""Copies of the notebooks for students, without outputs.

``python notebooks/student.py [--solutions]`` fills ``build/student``: the lessons, the
assignment, whatever their texts link to, the package as a wheel, and a README that says
how to start. What is the teacher's stays out: a link to it leads to a page that says so.
``build/answers.md`` is for the teacher: each prediction with its answer.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
_ASSIGNMENT = [NOTEBOOKS / "assignment" / name for name in ("README.md", "submission.py")]
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
_HELD_BACK = "# Not in this copy\n\nThis page is in your teacher's copy of the course."
_README = """# Can you believe your segmentation network?

A course in notebooks. Install once (Python 3.11 or later; no GPU needed), then start:

```
python3 -m venv .venv && . .venv/bin/activate
pip install -c constraints.txt torch
pip install -c constraints.txt '{wheel}[course]'
jupyter lab notebooks/00_start_here.ipynb
```

On Linux without an NVIDIA card take the CPU build of torch, as the selector on
[pytorch.org](https://pytorch.org/get-started/locally/) shows; the plain package brings
several gigabytes of CUDA.

Each notebook asks for predictions before it shows: run the cell, answer, say how sure you
are, go on. Your answers stay on your machine, in `notebooks/my_predictions.json`.

The assignment, where your teacher sets it, is in `notebooks/assignment/README.md`.
"""


def lessons() -> list[Path]:
    """The notebooks in reading order."""
    return sorted(NOTEBOOKS.glob("0*.ipynb"))


def links(path: Path) -> list[Path]:
    """The files that a notebook or a Markdown file links to."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, 4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = path.read_text(encoding="utf-8") if path.suffix == ".md" else ""
    return [(path.parent / target).resolve() for target in _LINK.findall(text)]


def is_teachers(path: Path, solutions: bool) -> bool:
    """Whether a file stays with the teacher."""
    if path.parent == NOTEBOOKS / "solutions":
        return not solutions
    return path.is_relative_to(NOTEBOOKS) and path not in [*lessons(), *_ASSIGNMENT]


def build(out: Path, solutions: bool = False) -> None:
    """Make the folder for the students anew, whole or not at all.

    Args:
        out: the folder; what is there is replaced.
        solutions: whether the worked answers go with it.

    Raises:
        FileNotFoundError: a text links to a file that does not exist.
    """
    waiting = [*lessons(), *(path for path in _ASSIGNMENT if path.exists())]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        folder, done = Path(temporary) / out.name, set()
        while waiting:
            path = waiting.pop()
            if path in done:
                continue
            done.add(path)
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_teachers(path, solutions):
                _write_held_back(target)
                continue
            _copy(path, target)
            waiting += links(path)
        shutil.copy(ROOT / "constraints.txt", folder)
        _build_wheel(folder)
        (wheel,) = folder.glob("*.whl")
        readme = _README.format(wheel=wheel.name)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)


def _copy(path: Path, target: Path) -> None:
    if path.suffix != ".ipynb":
        shutil.copy(path, target)
        return
    notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, 4), {})
    nbformat.write(notebook, target)


def _write_held_back(target: Path) -> None:
    if target.suffix != ".ipynb":
        target.write_text(_HELD_BACK + "\n", encoding="utf-8")
        return
    cell = nbformat.v4.new_markdown_cell(_HELD_BACK, id="held-back")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), target)


def _build_wheel(folder: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    command += ["--directory", str(folder.resolve())]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(f"the wheel cannot be built:\n{finished.stderr}")


def answers() -> str:
    """Each prediction with its answer, in Markdown, from the lessons' stored outputs."""
    text = "# Expected answers to the predictions\n\n"
    text += "From the notebooks' stored outputs; do not edit.\n"
    for path in lessons():
        shown = [
            output["data"].get("text/plain", "")
            for cell in nbformat.read(path, 4).cells
            for output in cell.get("outputs", [])
            if "data" in output
        ]
        told = _numbered(shown, "Answer to ")
        text += (
            f"\n## {path.stem}\n\n| | question | answer and why |\n| --- | --- | --- |\n"
        )
        for id, question in _numbered(shown, "Predict first ").items():
            text += f"| {id} | {_cell(question)} | {_cell(told[id])} |\n"
    return text


def _numbered(shown: list[str], start: str) -> dict[str, str]:
    """Question's id -> text, of the outputs that begin so."""
    found = [
        text.removeprefix(start).partition(": ")
        for text in shown
        if text.startswith(start)
    ]
    return {id: text for id, _, text in found}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def main() -> None:
    parser = argparse.ArgumentParser(description="Copies of the notebooks for students.")
    default = ROOT / "build" / "student"
    parser.add_argument("--out", type=Path, default=default, help="(build/student)")
    parser.add_argument("--solutions", action="store_true", help="with worked answers")
    options = parser.parse_args()
    build(options.out, options.solutions)
    table = options.out.with_name("answers.md")
    table.write_text(answers(), encoding="utf-8")
    print(f"{options.out}: {len(lessons())} notebooks without outputs")
    print(f"{table}: for the teacher")


if __name__ == "__main__":
    main()
