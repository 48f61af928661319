"""Tables of a finished study, as data frames and as Markdown: mean and spread over seeds, ranks, paired tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mbls import plots
from mbls.engine.judge import metric_of
from mbls.files import write_table, write_text
from mbls.statistics import paired_p_values
from mbls.study.experiment import Experiment
from mbls.study.paper import PAPER, Part, Protocol, parts
from mbls.study.results import KEYS

__all__ = [
    "PAPER_METRICS",
    "RANKED",
    "TESTED",
    "few_patients_figure",
    "mean_and_spread",
    "paired_tests",
    "part_of",
    "per_subject",
    "ranks",
    "study_report",
    "write_report",
]

#: The paper's four metrics; it takes calibration over the foreground.
PAPER_METRICS = ("dsc", "hd95", "ece_fg", "cece_fg")
#: Figures that losses are ranked by.
RANKED = (*PAPER_METRICS, "ece", "cece", "nll")
#: Figures that are compared patient by patient.
TESTED = ("dsc", "ece", "ece_fg", "cece_fg", "nll")

_OVERLAP = ("dsc", "hd95", "asd", "mean_distance")
_CALIBRATION = ("ece", "cece", "aece", "nll", "brier")
#: Caption -> columns, of the tables of a part that compares all losses.
_FULL = {
    "Overlap, and how far the logits are apart": _OVERLAP,
    "Calibration over all voxels": _CALIBRATION,
    "Calibration over the foreground": tuple(f"{name}_fg" for name in _CALIBRATION),
    "After temperature scaling, all voxels": ("temperature", *(f"scaled_{name}" for name in _CALIBRATION)),
    "After temperature scaling, the foreground": tuple(f"scaled_{name}_fg" for name in _CALIBRATION),
}
#: The same of the other parts.
_SHORT = {
    "Overlap and calibration": ("dsc", "hd95", "ece", "ece_fg", "cece_fg", "nll", "mean_distance", "temperature"),
    "After temperature scaling": ("scaled_ece", "scaled_ece_fg", "scaled_cece_fg", "scaled_nll"),
}
#: Part -> title, the columns that identify a line, its tables.
_PARTS: dict[Part, tuple[str, tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "losses": ("Losses", ("loss",), _FULL),
    "margins": ("Margins", ("loss",), _SHORT),
    "weights": ("Weight of the penalty", ("loss",), _SHORT),
    "few_patients": ("Few training patients, as many epochs", ("train_patients", "loss"), _SHORT),
    "backbones": ("Backbones", ("model", "loss"), _SHORT),
}


def mean_and_spread(table: pd.DataFrame, metrics: Sequence[str], by: Sequence[str] = ("loss",)) -> pd.DataFrame:
    """Mean and standard deviation (n - 1) over the seeds, in the order of the table.

    Args:
        table: a run a row.
        metrics: columns of the table.
        by: the columns that identify a line of the result.

    Returns:
        Columns (metric, "mean"), (metric, "std") and ("seeds", "count"), indexed by ``by``.

    Example:
        >>> runs = pd.DataFrame({"loss": ["ce", "ce", "ls"], "seed": [0, 1, 0], "dsc": [0.7, 0.9, 0.75]})
        >>> spread = mean_and_spread(runs, ["dsc"])
        >>> spread["dsc", "mean"].to_dict(), spread["seeds", "count"].to_dict()
        ({'ce': 0.8, 'ls': 0.75}, {'ce': 2, 'ls': 1})
    """
    grouped = table.groupby(list(by), sort=False)
    return (
        grouped[list(metrics)].agg(["mean", "std"]).join(pd.concat({"seeds": grouped.size().to_frame("count")}, axis=1))
    )


def ranks(table: pd.DataFrame, metrics: Sequence[str] = RANKED) -> pd.DataFrame:
    """Rank of each loss by each metric's mean over seeds, and the mean rank. 1 is the best; ties share their rank.

    Args:
        table: a run a row.
        metrics: columns of the table.

    Returns:
        A loss a row, the best mean rank first: one column a metric, and "mean rank".

    Example:
        >>> runs = pd.DataFrame({"loss": ["ce", "ls"], "dsc": [0.8, 0.9], "ece": [0.3, 0.3]})
        >>> ranks(runs, ["dsc", "ece"]).to_dict("index")["ls"]
        {'dsc': 1.0, 'ece': 1.5, 'mean rank': 1.25}

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, rank their methods in this way.
    """
    runs = table.groupby("loss", sort=False)
    placed = pd.DataFrame({name: runs[name].agg("mean").rank(ascending=_better(name) != "high") for name in metrics})
    placed["mean rank"] = placed.mean(axis=1)
    return placed.sort_values("mean rank", kind="stable")


def per_subject(cases: pd.DataFrame) -> pd.DataFrame:
    """A subject a row, for each run: the means of the tested metrics over its cases, before and after scaling.

    Args:
        cases: a test case a row, as ``cases.csv`` of a comparison.

    Returns:
        Columns :data:`~mbls.study.results.KEYS`, subject, group, :data:`TESTED` and, but for DSC, "scaled_" + metric.
    """
    metrics = [*TESTED, *(f"scaled_{name}" for name in TESTED if name != "dsc")]
    # Data without groups have none in any row.
    return cases.groupby([*KEYS, "subject", "group"], sort=False, dropna=False)[metrics].agg("mean").reset_index()


def paired_tests(subjects: pd.DataFrame, reference: str = "ce", metrics: Sequence[str] = TESTED) -> pd.DataFrame:
    """Does a loss differ from the reference on the same subjects? Wilcoxon's signed-rank test on their differences.

    Each subject counts once, with its mean over the seeds of each loss. p is two-sided and corrected for the number of
    losses by Holm's method, separately for each metric. The test generalises to other subjects with these networks, not
    to other training runs.

    Args:
        subjects: from :func:`per_subject`, the runs of one network and one training set.
        reference: the loss that all others are compared with.
        metrics: columns of ``subjects``.

    Returns:
        A row for each loss and metric: loss, metric, difference (loss - reference; mean over subjects), p.

    Raises:
        ValueError: a reference that is not in the table; losses judged on different subjects.

    Example:
        >>> rows = [
        ...     {"loss": loss, "subject": subject, "ece": 0.1 + shift * subject}
        ...     for loss, shift in {"ce": 0.0, "ls": 0.02}.items()
        ...     for subject in range(1, 7)
        ... ]
        >>> paired_tests(pd.DataFrame(rows), metrics=["ece"]).round(5).to_dict("records")
        [{'loss': 'ls', 'metric': 'ece', 'difference': 0.07, 'p': 0.03125}]

    References:
        Wilcoxon, Biometrics Bulletin 1945; Holm, Scandinavian Journal of Statistics 1979.
    """
    means: pd.DataFrame = subjects.groupby(["loss", "subject"], sort=False)[list(metrics)].agg("mean").reset_index()
    names = list(dict.fromkeys(subjects["loss"]))
    if reference not in names:
        raise ValueError(f"reference: got {reference!r}, expected one of {', '.join(names)}")
    others = [name for name in names if name != reference]
    in_order = list(dict.fromkeys(subjects["subject"]))
    rows = []
    for metric in metrics:
        wide = means.pivot(index="subject", columns="loss", values=metric).reindex(in_order)
        if wide.isna().to_numpy().any():
            raise ValueError(
                f"subjects: got losses that were judged on different subjects ({metric}), expected the same for all"
            )
        differences = {name: (wide[name] - wide[reference]).to_numpy(float) for name in others}
        for name, p in paired_p_values(differences).items():
            rows.append({"loss": name, "metric": metric, "difference": float(differences[name].mean()), "p": p})
    return pd.DataFrame(rows)


def part_of(table: pd.DataFrame, protocol: Protocol, part: Part) -> pd.DataFrame:
    """The rows that belong to a part of the study, in the study's order.

    Args:
        table: a row for each run, or for each run and subject.
        protocol: how the networks were trained.
        part: one of :data:`~mbls.study.paper.PARTS`.
    """
    wanted = [
        (run.loss, run.model, run.train_patients or protocol.train_patients, run.fit.seed)
        for run in parts(protocol, sorted(set(table["seed"])))[part]
    ]
    place = {key: index for index, key in enumerate(wanted)}
    order = np.array([place.get(key, len(wanted)) for key in zip(*(table[name] for name in KEYS), strict=True)])
    rows = np.argsort(order, kind="stable")
    return table.iloc[rows[order[rows] < len(wanted)]]


def study_report(table: pd.DataFrame, subjects: pd.DataFrame, protocol: Protocol) -> str:
    """All tables of a study as Markdown.

    Args:
        table: a run a row, as ``results.csv`` of a comparison.
        subjects: from :func:`per_subject`, of the same runs.
        protocol: how the networks were trained.
    """
    text = [_about(table, protocol)]
    for part, (title, by, tables) in _PARTS.items():
        rows = part_of(table, protocol, part)
        if rows.empty:
            continue
        text.append(f"## {title}")
        for caption, metrics in tables.items():
            text.append(f"{caption} ({protocol.label}):\n\n{_spread_table(rows, metrics, by)}")
        if tables is _FULL:
            text.append(f"Ranks ({protocol.label}), 1 the best:\n\n{_rank_table(rows)}")
        tests = _test_table(part_of(subjects, protocol, part), by)
        text.append(f"Difference from CE on the same patients ({protocol.label}):\n\n{tests}")
    return "\n\n".join(text) + "\n"


def few_patients_figure(rows: pd.DataFrame) -> Figure:
    """DSC and ECE of CE, LS and MbLS over the number of training patients.

    Args:
        rows: the part "few_patients" of a study, from :func:`part_of`.
    """
    figure, (axes,) = plots.new_figure(1, 3, width=12, height=3.6)
    names = {"ce": "CE", "ls": "LS", "mbls:margin=5": "MbLS, m = 5"}
    for ax, (column, label) in zip(
        axes, {"dsc": "DSC", "ece": "ECE", "ece_fg": "ECE, foreground"}.items(), strict=True
    ):
        plots.lines_with_spread(ax, rows, "train_patients", column, names, "training patients", label)
    return figure


def write_report(folder: str | Path, out: str | Path, protocol: Protocol) -> list[Path]:
    """Write the files of a finished study that are kept.

    These are ``OUT.csv`` (a run a row), ``OUT_subjects.csv`` (a row for each run and test subject), ``OUT.md`` and, if
    that part was run, ``OUT_few_patients.png``.

    Args:
        folder: where ``merge`` or ``compare`` wrote results.csv and cases.csv.
        out: path and beginning of the names.
        protocol: how the networks were trained; rows of other runs are left out.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: results.csv or cases.csv is missing.
        ValueError: no run of the protocol among them.
    """
    for name in ("results.csv", "cases.csv"):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{Path(folder) / name}: missing, expected the output of `python -m mbls merge`")
    table, cases = (pd.read_csv(Path(folder) / f"{name}.csv") for name in ("results", "cases"))
    kept = sorted({index for part in _PARTS for index in part_of(table, protocol, part).index})
    if not kept:
        raise ValueError(f"{folder}: got no run of the protocol {protocol.name!r} among {len(table)}")
    table = table.loc[kept]
    subjects = per_subject(cases.merge(table[list(KEYS)])).round(6)
    paths = [Path(f"{out}{ending}") for ending in (".csv", "_subjects.csv", ".md")]
    write_table(table, paths[0])
    write_table(subjects, paths[1])
    write_text(study_report(table, subjects, protocol), paths[2])
    few = part_of(table, protocol, "few_patients")
    if not few.empty:
        paths.append(Path(f"{out}_few_patients.png"))
        few_patients_figure(few).savefig(paths[-1], dpi=80)
    return paths


def _about(table: pd.DataFrame, protocol: Protocol) -> str:
    base, paper = protocol.base, PAPER.base
    rows: dict[str, Callable[[Experiment], str]] = {
        "slices": lambda e: f"{e.crop or e.size} x {e.crop or e.size} voxels, given as {e.size} x {e.size}",
        "U-Net": lambda e: f"{e.levels} levels, {e.base_channels} to {e.base_channels * 2 ** (e.levels - 1)} filters",
        "normalisation": lambda e: e.norm or "none",
        "Adam's rate": lambda e: f"{e.fit.learning_rate:g}, times {e.fit.lr_decay:g} after {e.fit.lr_step} epochs",
        "epochs of batches": lambda e: f"{e.fit.epochs} of {e.fit.batch_size}",
    }
    settings = _markdown(["", "here", "the paper"], [[name, show(base), show(paper)] for name, show in rows.items()])
    seeds = ", ".join(map(str, sorted(set(table["seed"]))))
    columns = ("made_commit", "made_device", "made_precision", "made_torch", "config_data_fingerprint")
    commit, device, precision, torch, data = (" and ".join(sorted(set(table[name].astype(str)))) for name in columns)
    split = Path(str(base.split)).name
    units = " and ".join(sorted(set(table["distance_unit"]))) if "distance_unit" in table else "voxels"
    # Up to 0.1.0 as the official validation script averages.
    weighted = "0.1.0" in set(table["made_mbls"].astype(str))
    averaged = "with the voxels counted as weights" if weighted else "without weights"
    planned = len({run.name for runs in parts(protocol).values() for run in runs})
    one_seed = "; without ± there was one seed" if 1 in set(table.groupby(list(KEYS[:-1])).size()) else ""
    warning = "" if protocol is PAPER else " **Not the paper's protocol; every table below is of the reduced one.**"
    return f"""# The study on ACDC: {protocol.label}

Written by `python -m mbls report`; do not edit.{warning} What it says in words: [README.md](README.md).

{settings}

{len(table)} of {planned} runs; seeds {seeds}. {protocol.train_patients} training patients unless said otherwise, then
the first ones of `{split}`, which names the validation and test patients too. The best validation epoch is judged on
the test patients. Mean ± standard deviation over the seeds{one_seed}. The best mean of a column is bold. Made by

```
python -m mbls study --protocol {protocol.name} --data ROOT --out runs/acdc --precision {precision}
python -m mbls merge runs/acdc
python -m mbls report runs/acdc --protocol {protocol.name} --out data/results/acdc_study
```

on {device} (torch {torch}; commits {commit}; data {data}).
HD95 and ASD are in {units}. Calibration is taken per volume and averaged {averaged}. T is the temperature fitted on the
validation patients. Differences are tested by Wilcoxon's signed-rank test over the test patients, with Holm's
correction of p."""


def _spread_table(rows: pd.DataFrame, metrics: Sequence[str], by: Sequence[str]) -> str:
    spread = mean_and_spread(rows, metrics, by)
    means = {name: spread[name, "mean"].to_numpy(float) for name in metrics}
    stds = {name: spread[name, "std"].to_numpy(float) for name in metrics}
    best = {name: _best(name, means[name]) for name in metrics} if len(by) == 1 else {}
    lines = []
    for place, (key, seeds) in enumerate(zip(spread.index, spread["seeds", "count"], strict=True)):
        cells = list(map(str, key)) if isinstance(key, tuple) else [str(key)]
        for name in metrics:
            mean, std = (f"{values[name][place]:.{_digits(name)}f}" for values in (means, stds))
            mean = f"**{mean}**" if means[name][place] == best.get(name) else mean
            cells.append(mean if seeds == 1 else f"{mean} ± {std}")
        lines.append(cells)
    return _markdown([*by, *map(_title, metrics)], lines)


def _best(column: str, values: np.ndarray) -> float | None:
    """The best of the values that are known; None for a metric of which neither more nor less is better."""
    better = _better(column)
    if better is None:
        return None
    return float(np.nanmax(values) if better == "high" else np.nanmin(values))


def _rank_table(rows: pd.DataFrame) -> str:
    placed = ranks(rows)
    placed.insert(len(PAPER_METRICS), "mean of these four", placed[list(PAPER_METRICS)].mean(axis=1))
    placed = placed.rename(columns={"mean rank": "mean of all seven"})
    names = list(placed.columns)
    lines = [
        [
            str(loss),
            *(f"{value:.2f}" if "mean" in name else f"{value:g}" for name, value in zip(names, row, strict=True)),
        ]
        for loss, row in zip(placed.index, placed.to_numpy(float), strict=True)
    ]
    return _markdown(["loss", *map(_title, names)], lines)


def _test_table(subjects: pd.DataFrame, by: Sequence[str]) -> str:
    """Every loss against CE of the same network and training set. CE after temperature scaling is one more loss."""
    *columns, _ = by
    lines = []
    for key, rows in _groups(subjects, columns):
        after = rows[rows["loss"] == "ce"].assign(loss="ce, temperature-scaled")
        if after.empty:  # not trained yet
            continue
        after = after.assign(**{name: after[f"scaled_{name}"] for name in TESTED if name != "dsc"})
        tests = paired_tests(pd.concat([rows, after]), metrics=TESTED).to_dict("records")
        shown = {(row["loss"], row["metric"]): _difference(row["metric"], row["difference"], row["p"]) for row in tests}
        losses = dict.fromkeys(row["loss"] for row in tests)
        lines += [[*key, loss, *(shown[loss, name] for name in TESTED)] for loss in losses]
    return _markdown([*by, *map(_title, TESTED)], lines)


def _groups(table: pd.DataFrame, columns: Sequence[str]) -> list[tuple[list[str], pd.DataFrame]]:
    """The rows that agree in some columns, with the values there as text; without columns, the whole table."""
    if not columns:
        return [([], table)]
    groups = table.groupby(list(columns), sort=False)
    return [(list(map(str, cast(tuple, key))), rows) for key, rows in groups]


def _difference(column: str, difference: float, p: float) -> str:
    shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return "0" if difference == 0 else f"{difference:+.{_digits(column)}f} (p {shown})"


def _better(column: str) -> str | None:
    return None if column == "temperature" else metric_of(column)[1].better


def _digits(column: str) -> int:
    return 2 if column == "temperature" else metric_of(column)[1].digits


def _title(column: str) -> str:
    if column == "temperature":
        return "T"
    try:
        region, metric = metric_of(column)
    except ValueError:  # a column of the table that is no metric
        return column.replace("_", " ")
    return metric.title + (", foreground" if region == "foreground" else "")


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])
