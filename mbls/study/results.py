"""Results on disk: tidy tables with their provenance, and the runs of several jobs gathered into one table."""

from __future__ import annotations

import functools
import itertools
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning_fabric
import monai
import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric

import mbls
from mbls.engine.judge import Judgement
from mbls.files import read_json, write_json, write_table

__all__ = ["HISTORY", "KEYS", "RESULT", "WEIGHTS", "Result", "as_table", "merge", "provenance", "write_tables"]

#: The columns that tell runs on the same data apart, and the weights of a run.
KEYS = ("loss", "model", "train_patients", "seed")
WEIGHTS = "weights"
#: In the folder of a finished run: its rows, and its epochs.
RESULT = "result.json"
HISTORY = "history.csv"


class Result(NamedTuple):
    """A finished run as tables are made of it.

    Attributes:
        rows: one for each kind of weights judged.
        judgements: of the same weights.
        history: an epoch a row.
    """

    rows: list[dict[str, Any]]
    judgements: list[Judgement]
    history: pd.DataFrame

    @classmethod
    def load(cls, folder: Path) -> Result:
        """From a run's folder.

        Raises:
            ValueError: files that cannot be read.
        """
        try:
            rows = read_json(folder / RESULT)
            if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
                raise ValueError(f"{folder / RESULT}: got {str(rows)[:40]}, expected a row for each kind of weights")
            judgements = [Judgement.load(folder, f"-{row[WEIGHTS]}") for row in rows]
            return cls(rows, judgements, pd.read_csv(folder / HISTORY))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder}: cannot be read as a finished run ({error!r})") from error


def merge(folders: Iterable[str | Path], out: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Gather the finished runs of several jobs into the files that ``compare`` writes, ordered by the runs' names.

    Args:
        folders: where the jobs' ``out`` were; the same folder once if they shared it.
        out: folder for the files; see :func:`write_tables`.

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
            if not (place / RESULT).is_file():
                unfinished.append(place.name)
            elif place.name in found:
                raise ValueError(
                    f"{place}: got the run {place.name} a second time (first in {found[place.name].parent})"
                )
            else:
                found[place.name] = place
    if not found:
        raise ValueError(f"folders: got no finished run ({len(unfinished)} begun), expected at least one result.json")
    runs = [Result.load(found[name]) for name in sorted(found)]
    data = {run.rows[0]["experiment"]["data_fingerprint"]: run.rows[0]["data"] for run in runs}
    if len(data) > 1:
        raise ValueError(
            f"folders: got runs on different data ({', '.join(f'{name} {key}' for key, name in data.items())})"
        )
    write_tables(runs, Path(out))
    return as_table([row for run in runs for row in run.rows]), [name for name in unfinished if name not in found]


def write_tables(runs: Sequence[Result], out: Path) -> None:
    """The tables of some runs.

    Args:
        runs: finished ones.
        out: folder for ``results.json`` and ``results.csv`` (a row for each run and kind of weights), ``cases.csv``
            (for each of these and test case), ``histograms.csv`` and ``subject_bins.csv`` (as :class:`Judgement` makes
            them), and ``curves.csv`` (a row for each run and epoch).
    """
    rows = [row for run in runs for row in run.rows]
    write_json(rows, out / "results.json")
    write_table(as_table(rows), out / "results.csv")
    judged = [(row, judgement) for run in runs for row, judgement in zip(run.rows, run.judgements, strict=True)]
    tables = {
        "cases": Judgement.table,
        "histograms": Judgement.histograms,
        "subject_bins": Judgement.subject_bins,
    }
    for name, table in tables.items():
        parts = [table(judgement).assign(**{key: row[key] for key in (*KEYS, WEIGHTS)}) for row, judgement in judged]
        write_table(pd.concat(parts), out / f"{name}.csv")
    curves = [run.history.assign(**{key: run.rows[0][key] for key in KEYS}) for run in runs]
    write_table(pd.concat(curves), out / "curves.csv")


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
    """Where a row comes from: the command (None in a notebook; with ROOT for where the data lie), the commit of the
    checkout, device, precision, versions."""
    device = fabric.device
    named = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )
    started = Path(sys.argv[0])
    pairs = itertools.pairwise(sys.argv)
    arguments = ["ROOT" if before == "--data" else word for before, word in pairs]
    command = "python -m mbls" if started.name == "__main__.py" and started.parent.name == "mbls" else started.name
    return {
        "command": shlex.join([*command.split(), *arguments]) if command in ("python -m mbls", "mbls") else None,
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
