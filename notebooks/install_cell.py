"""Write the notebooks' first code cell: ``python notebooks/install_cell.py``.

Colab opens a notebook without the package; this cell installs it there, and does nothing
where it is installed. The repository's address is read from ``[project.urls]`` in
pyproject.toml (``Repository``, on GitHub); run this again after a change of it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
ID = "install"
_METADATA = {"jupyter": {"source_hidden": True}, "tags": ["remove-cell"]}
_SOURCE = """\
# {comment}
import importlib.util

if importlib.util.find_spec("mbls") is None:
    {command}"""


def repository(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """The repository's address, or "" where none is set."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "")


def source(address: str) -> str:
    """The cell's code."""
    if address:
        return _SOURCE.format(
            comment="Installs the package where it is missing, as in Colab.",
            # Of the course's libraries only this one is older in Colab than it must be.
            command=f'%pip install --quiet "ipywidgets>=8.1" git+{address}',
        )
    told = "mbls is missing: README.md says how to install it."
    return _SOURCE.format(
        comment="Says what to do where the package is missing.",
        command=f'raise ModuleNotFoundError("{told}")',
    )


def write(path: Path, address: str) -> None:
    """Put the cell behind the title of a notebook, and number the cells anew."""
    notebook = nbformat.read(path, as_version=4)
    cell = nbformat.v4.new_code_cell(source(address), id=ID, metadata=_METADATA)
    cells = [cell for cell in notebook.cells if cell.id != ID]
    notebook.cells = [cells[0], cell, *cells[1:]]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    nbformat.write(notebook, path)


def notebooks() -> list[Path]:
    """The lessons and their solutions."""
    folder = ROOT / "notebooks"
    return sorted(folder.glob("0*.ipynb")) + sorted(folder.glob("solutions/*.ipynb"))


if __name__ == "__main__":
    for path in notebooks():
        write(path, repository())
