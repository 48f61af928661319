"""Results on disk: tidy tables with their provenance, and the runs of several jobs gathered into one table."""

from __future__ import annotations

import functools
import json
import platform
import shlex
import subprocess
import sys
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
from mbls.engine.judge import Judgement
from mbls.files import write_json, write_table

__all__ = ["KEYS", "WEIGHTS", "as_table", "merge", "provenance", "write_tables"]

#: The columns that tell runs on the same data apart, and the weights of a run.
KEYS = ("loss", "model", "train_patients", "seed")
WEIGHTS = "weights"


def merge(folders: Iterable[str | Path], out: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Gather the finished runs of several jobs into the four files that ``compare`` writes, ordered by the runs' names.

    Args:
        folders: where the jobs' ``out`` were; the same folder once if they shared it.
        out: folder for ``results.csv``, ``results.json``, ``cases.csv`` and ``histograms.csv``.

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
                raise ValueError(
                    f"{place}: got the run {place.name} a second time (first in {found[place.name].parent})"
                )
            else:
                found[place.name] = place
    if not found:
        raise ValueError(f"folders: got no finished run ({len(unfinished)} begun), expected at least one result.json")
    runs = []
    for name in sorted(found):
        try:
            for row in json.loads((found[name] / "result.json").read_text(encoding="utf-8")):
                runs.append((row, Judgement.load(found[name], f"-{row[WEIGHTS]}")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{found[name]}: cannot be read as a finished run ({error!r})") from error
    data = {row["experiment"]["data_fingerprint"]: row["data"] for row, _ in runs}
    if len(data) > 1:
        raise ValueError(
            f"folders: got runs on different data ({', '.join(f'{name} {key}' for key, name in data.items())})"
        )
    write_tables(runs, Path(out))
    return as_table([row for row, _ in runs]), [name for name in unfinished if name not in found]


def write_tables(runs: list[tuple[dict[str, Any], Judgement]], out: Path) -> None:
    """The rows, histograms and cases of some runs as results.json, results.csv, histograms.csv and cases.csv."""
    rows = [row for row, _ in runs]
    write_json(rows, out / "results.json")
    write_table(as_table(rows), out / "results.csv")
    for name, table in {"histograms": Judgement.histograms, "cases": Judgement.table}.items():
        parts = [table(judgement).assign(**{key: row[key] for key in (*KEYS, WEIGHTS)}) for row, judgement in runs]
        write_table(pd.concat(parts), out / f"{name}.csv")


def as_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One column a metric; configuration and provenance spread over columns that begin with their names."""
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
    """Where a row comes from: the command (None in a notebook), the commit of the checkout, device, precision,
    versions."""
    device = fabric.device
    named = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )
    started = Path(sys.argv[0])
    command = "python -m mbls" if started.name == "__main__.py" and started.parent.name == "mbls" else started.name
    return {
        "command": shlex.join([*command.split(), *sys.argv[1:]]) if command in ("python -m mbls", "mbls") else None,
        "commit": _commit(),
        "device": named,
        "processes": fabric.world_size,
        "precision": str(fabric._precision.precision),
        "python": platform.python_version(),
        "mbls": mbls.__version__,
        "torch": torch.__version__,
        "monai": monai.__version__,
        "numpy": np.__version__,
        "lightning_fabric": lightning_fabric.__version__,
    }


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout that the package runs from, with "-changed" where its files differ; None outside a
    checkout."""
    checkout = Path(mbls.__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "mbls"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):  # no git here, or no commit yet
        return None
    return commit.stdout.strip() + ("-changed" if changed.returncode else "")
