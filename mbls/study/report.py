"""What is kept of a finished study: small tidy tables, Markdown and pictures, made from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mbls.files import atomic_write, write_table, write_text
from mbls.study.figures import curves_figure, few_patients_figure, forest_figure, reliability_figure
from mbls.study.paper import PARTS, Part, Protocol
from mbls.study.results import KEYS, WEIGHTS
from mbls.study.tables import paired_tests, part_of, per_subject, rows_where, study_report

__all__ = ["write_report"]

#: Of these losses the bins of each test patient are kept.
BINS_OF = ("ce", "ls", "mbls:margin=3", "mbls:margin=5", "mbls:margin=8", "mbls:margin=10")


def write_report(folder: str | Path, out: str | Path, protocol: Protocol) -> list[Path]:
    """Write the files of a study that are kept. Runs that an earlier report wrote there, and that are not in
    ``folder``, stay.

    These are ``OUT.csv`` (a row for each run and kind of weights), ``OUT_subjects.csv`` (for each run and test
    subject), ``OUT_curves.csv`` (for each run of the parts with all training patients, and epoch of a full validation),
    ``OUT_bins.csv`` (the confidence bins of each test subject, of a few losses), ``OUT.md`` with all tables, and the
    pictures of the parts that were run: ``OUT_curves.png``, ``OUT_reliability.png`` and ``OUT_forest.png`` of the
    losses, ``OUT_few_patients.png``. Subjects and bins are of the weights that the protocol judges first.

    Args:
        folder: where ``merge`` or ``compare`` wrote its tables.
        out: path and beginning of the names.
        protocol: how the networks were trained; rows of other runs are left out.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: no run of the protocol among them; runs on other data than those recorded.
    """
    first = protocol.base.judged[0]
    runs, cases, curves, bins = (
        _kept(_read(Path(folder), name), protocol) for name in ("results", "cases", "curves", "subject_bins")
    )
    if runs.empty:
        raise ValueError(f"{folder}: got no run of the protocol {protocol.name!r}")
    whole = _kept(curves, protocol, ("losses", "margins", "weights"))
    new = {
        "": runs,
        "_subjects": per_subject(rows_where(cases, cases[WEIGHTS] == first)),
        "_curves": rows_where(whole, whole["val_cece"].notna()),
        "_bins": _bins_kept(bins, first, protocol),
    }
    paths = [Path(f"{out}{ending}.csv") for ending in new]
    tables = [_with_recorded(table, path, protocol) for table, path in zip(new.values(), paths, strict=True)]
    if len(set(tables[0]["config_data_fingerprint"])) > 1:
        raise ValueError(f"{folder}: got runs on other data than those recorded in {paths[0]}")
    for table, path in zip(tables, paths, strict=True):
        write_table(table, path)
    return paths + write_pictures(out, protocol)


def write_pictures(out: str | Path, protocol: Protocol) -> list[Path]:
    """Write ``OUT.md`` and the pictures from the recorded tables.

    Args:
        out: path and beginning of the names of the tables.
        protocol: how the networks were trained.

    Returns:
        The files that were written.
    """
    runs, subjects, curves, bins = (
        pd.read_csv(f"{out}{ending}.csv") for ending in ("", "_subjects", "_curves", "_bins")
    )
    text = Path(f"{out}.md")
    write_text(study_report(runs, subjects, protocol), text)
    figures = {}
    if not part_of(runs, protocol, "losses").empty:
        figures["curves"] = curves_figure(part_of(curves, protocol, "losses"))
        figures["reliability"] = reliability_figure(bins)
        tests = paired_tests(part_of(subjects, protocol, "losses"))
        if not tests.empty:  # CE alone has nothing to be compared with
            figures["forest"] = forest_figure(tests)
    few = part_of(runs, protocol, "few_patients", protocol.base.judged[0])
    if len(set(few["train_patients"])) > 1:
        figures["few_patients"] = few_patients_figure(few)
    paths = [text]
    for name, figure in figures.items():
        paths.append(Path(f"{out}_{name}.png"))
        with atomic_write(paths[-1]) as part:
            figure.savefig(part, dpi=80, format="png")
    return paths


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected the output of `python -m mbls merge`")
    return pd.read_csv(path)


def _kept(table: pd.DataFrame, protocol: Protocol, parts: Sequence[Part] = PARTS) -> pd.DataFrame:
    """The rows of some parts of the study, in its order, without repetition."""
    together = pd.concat([part_of(table, protocol, part) for part in parts])
    return rows_where(together, ~together.index.duplicated())


def _bins_kept(bins: pd.DataFrame, weights: str, protocol: Protocol) -> pd.DataFrame:
    whole = (bins["model"] == "unet") & (bins["train_patients"] == protocol.train_patients)
    return rows_where(bins, (bins[WEIGHTS] == weights) & bins["loss"].isin(BINS_OF) & whole)


def _with_recorded(new: pd.DataFrame, path: Path, protocol: Protocol) -> pd.DataFrame:
    """The rows of a report, with six digits, and those of other runs that were recorded before."""
    numbers = new.select_dtypes("float").columns
    new = new.assign(**{name: [float(f"{value:.6g}") for value in new[name]] for name in numbers})
    if not path.is_file():
        return new
    old = pd.read_csv(path)
    if new.empty:  # its columns, of another version perhaps, would be empty too
        return old
    known = set(zip(*(new[name] for name in KEYS), strict=True))
    other = np.array([key not in known for key in zip(*(old[name] for name in KEYS), strict=True)], dtype=bool)
    return _kept(pd.concat([rows_where(old, other), new], ignore_index=True), protocol)
