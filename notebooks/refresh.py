"""Run notebooks again and keep their outputs: ``python notebooks/refresh.py [PATH ...]``.

Without an argument it runs them all. A live widget means nothing on a page without its
kernel, so what is stored of it is its picture and its text.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent
_WIDGET = "application/vnd.jupyter.widget-view+json"


def refresh(path: Path) -> None:
    """Execute one notebook in its own folder, with nobody's predictions.

    One that fails is left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as empty:
        os.environ["MBLS_PREDICTIONS"] = f"{empty}/none.json"
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            coalesce_streams=True,
        ).execute()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day, different at each run
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(_WIDGET, None)
    nbformat.write(notebook, path)


def main(names: list[str]) -> None:
    everything = sorted(ROOT.glob("0*.ipynb")) + sorted(ROOT.glob("solutions/*.ipynb"))
    for path in [Path(name) for name in names] or everything:
        started = time.perf_counter()
        refresh(path.resolve())
        print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
