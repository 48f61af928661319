"""Results on disk: tidy tables with their provenance, and the runs of several jobs gathered into one table."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning_fabric
import monai
import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric

import mbls
from mbls.training import written_whole

__all__ = ["as_table", "merge", "provenance", "write_json", "write_table", "write_tables"]


def merge(folders: Iterable[str | Path], out: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Gather the finished runs of several jobs into the three files that ``compare`` writes, ordered by the runs' names.

    Args:
        folders: where the jobs' ``out`` were; the same folder once if they shared it.
        out: folder for ``results.csv``, ``results.json`` and ``histograms.csv``.

    Returns:
        The table, and the names of the runs that were begun and are not finished.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: no finished run; the same run in two folders; a file that cannot be read; runs on different data.
    """
    found: dict[str, Path] = {}
    unfinished = []
    for folder in dict.fromkeys(Path(folder) for folder in folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: missing, expected the --out of a comparison")
        for begun in sorted(folder.glob("*/experiment.json")):
            place = begun.parent
            if not (place / "result.json").is_file():
                unfinished.append(place.name)
            elif place.name in found:
                raise ValueError(f"{place}: got the run {place.name} a second time (first in {found[place.name].parent})")
            else:
                found[place.name] = place
    if not found:
        raise ValueError(f"folders: got no finished run ({len(unfinished)} begun), expected at least one result.json")
    runs = []
    for name in sorted(found):
        try:
            runs.append((json.loads((found[name] / "result.json").read_text()), pd.read_csv(found[name] / "histograms.csv")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{found[name]}: cannot be read as a finished run ({error})") from error
    data = {row["experiment"]["data_fingerprint"]: row["data"] for row, _ in runs}
    if len(data) > 1:
        raise ValueError(f"folders: got runs on different data ({', '.join(f'{name} {key}' for key, name in data.items())})")
    write_tables(runs, Path(out))
    return as_table([row for row, _ in runs]), [name for name in unfinished if name not in found]


def write_tables(runs: list[tuple[dict[str, Any], pd.DataFrame]], out: Path) -> None:
    """The rows and histograms of some runs as results.json, results.csv and histograms.csv."""
    rows = [row for row, _ in runs]
    names = ("loss", "model", "seed")
    histograms = [table.assign(**{name: row[name] for name in names}) for row, table in runs]
    write_json(rows, out / "results.json")
    write_table(as_table(rows), out / "results.csv")
    write_table(pd.concat(histograms), out / "histograms.csv")


def as_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One column a figure; configuration and provenance spread over columns that begin with their names."""
    table = []
    for row in rows:
        flat = {key: value for key, value in row.items() if key not in ("experiment", "provenance")}
        for key, value in row["experiment"].items():
            parts = value.items() if isinstance(value, dict) else [(None, value)]
            flat |= {f"config_{key}" if part is None else f"config_{key}_{part}": entry for part, entry in parts}
        flat |= {f"made_{key}": value for key, value in row["provenance"].items()}
        table.append(flat)
    return pd.DataFrame(table)


def provenance(fabric: Fabric) -> dict[str, Any]:
    device = fabric.device
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads"
    return {
        "device": named,
        "processes": fabric.world_size,
        "precision": str(fabric._precision.precision),
        "python": platform.python_version(),
        "mbls": mbls.__version__,
        "torch": torch.__version__,
        "monai": monai.__version__,
        "numpy": np.__version__,
        "lightning_fabric": lightning_fabric.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_table(table: pd.DataFrame, path: Path) -> None:
    _write_text(table.to_csv(index=False), path)


def write_json(value: Any, path: Path) -> None:
    _write_text(json.dumps(value, indent=1) + "\n", path)


def _write_text(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(text)
