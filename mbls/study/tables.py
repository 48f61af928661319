"""Tables of a finished study, as data frames and as Markdown: mean and spread over seeds, ranks, paired tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from mbls.data.home import recorded
from mbls.engine.judge import ENDINGS, SCALED, metric_of
from mbls.losses import parse_loss
from mbls.statistics import bootstrap_interval, paired_p_values, rank
from mbls.study.experiment import Experiment, Weights
from mbls.study.paper import PAPER, Part, Protocol, parts
from mbls.study.results import KEYS, WEIGHTS

__all__ = [
    "PAPER_METRICS",
    "RANKED",
    "TESTED",
    "in_words",
    "label",
    "mean_and_spread",
    "paired_tests",
    "part_of",
    "per_subject",
    "ranks",
    "short_table",
    "spread_in_words",
    "study_report",
]

#: The paper's four metrics; it takes calibration over the foreground.
PAPER_METRICS = ("dsc", "hd95", "ece_fg", "cece_fg")
#: Figures that losses are ranked by.
RANKED = (*PAPER_METRICS, "ece", "cece", "nll")
#: Figures that are compared patient by patient.
TESTED = ("dsc", "ece", "ece_fg", "ece_boundary", "cece_fg", "nll")

_OVERLAP = ("dsc", "hd95", "asd", "mean_distance", "certain", "overconfidence", "overconfidence_fg")
_CALIBRATION = ("ece", "cece", "aece", "cace", "cmce", "nll", "brier")
_POOLED = tuple(f"pooled_{name}{end}" for end in ENDINGS.values() for name in ("ece", "cece"))
#: Caption -> columns, of the tables of a part that compares all losses.
_FULL = {
    "Overlap, how far the logits are apart, and how sure the network is": _OVERLAP,
    "Calibration over all voxels": _CALIBRATION,
    "Calibration over the foreground": tuple(f"{name}_fg" for name in _CALIBRATION),
    "Calibration within two voxels of a border": tuple(f"{name}_boundary" for name in _CALIBRATION),
    "After temperature scaling, all voxels": ("temperature", *(f"scaled_{name}" for name in _CALIBRATION)),
    "After temperature scaling, the foreground": tuple(f"scaled_{name}_fg" for name in _CALIBRATION),
    "All test volumes pooled, as if they were one": _POOLED,
}
#: The same of the other parts, and of the weights that the protocol does not name first.
_SHORT = {
    "Overlap and calibration": (
        *("dsc", "hd95", "ece", "ece_fg", "ece_boundary", "cece_fg", "nll", "mean_distance"),
        *("temperature", "scaled_ece", "scaled_ece_fg", "scaled_nll"),
    ),
}
#: Part -> title, the columns that identify a line, its tables.
_PARTS: dict[Part, tuple[str, tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "losses": ("Losses", ("loss",), _FULL),
    "margins": ("Margins", ("loss",), _SHORT),
    "weights": ("Weight of the penalty", ("loss",), _SHORT),
    "few_patients": ("Few training patients, as many epochs", ("train_patients", "steps", "loss"), _SHORT),
    "backbones": ("Backbones", ("model", "loss"), _SHORT),
}
#: CE after temperature scaling is one more loss.
_SCALED_CE, _SCALED_CE_NAME = "ce, temperature-scaled", "CE, temperature-scaled"
_SHORT_LOSSES = ("ce", "ce_dice", "ls", "fl", "svls:sigma=1", "mbls:margin=5", "mbls:margin=8")
_WEIGHTS = {"last": "weights of the last epoch", "best": "weights of the epoch of the best validation DSC"}
_NAMES = {"ce": "CE", "ls": "LS", "fl": "FL", "ecp": "ECP", "svls": "SVLS", "mbls": "MbLS", "nacl": "NACL"}
_ADDED = {"dice": "Dice", "hard": "hard L1-ACE", "soft": "soft L1-ACE"}
_MODELS = {"unet": "U-Net", "attention_unet": "attention U-Net", "unet++": "U-Net++", "swin_unetr": "Swin UNETR"}


def label(loss: str) -> str:
    """A loss as tables and pictures name it.

    Example:
        >>> label("mbls:margin=5"), label("ce_dice_hard_l1ace"), label("mbls:margin=5:alpha=1")
        ('MbLS m = 5', 'CE + Dice + hard L1-ACE', 'MbLS m = 5, λ = 1')
    """
    name, options = parse_loss(loss)
    first, *added = name.removesuffix("_l1ace").split("_")
    shown = {"margin": "m", "alpha": "λ", "sigma": "σ"}
    values = ", ".join(f"{shown.get(option, option)} = {value}" for option, value in options.items())
    return " + ".join([f"{_NAMES[first]} {values}".rstrip(), *(_ADDED[part] for part in added)])


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
    means = table.groupby("loss", sort=False)[list(metrics)].agg("mean")
    placed = pd.DataFrame(
        {name: rank(means[name].tolist(), _better(name) or "low") for name in metrics}, index=means.index
    )
    placed["mean rank"] = placed.mean(axis=1)
    return placed.sort_values("mean rank", kind="stable")


def rows_where(table: pd.DataFrame, keep: Any) -> pd.DataFrame:
    """The rows of a table where a mask is True."""
    return table.iloc[np.flatnonzero(keep)]


def per_subject(cases: pd.DataFrame) -> pd.DataFrame:
    """A subject a row, for each run and kind of weights: the means of the tested metrics over its cases, before and
    after scaling.

    Args:
        cases: a test case a row, as ``cases.csv`` of a comparison.

    Returns:
        Columns :data:`~mbls.study.results.KEYS`, weights, subject, group, :data:`TESTED` and, but for DSC, "scaled_" +
        metric.
    """
    metrics = [*TESTED, *(f"scaled_{name}" for name in TESTED if name != "dsc")]
    # Data without groups have none in any row.
    return (
        cases.groupby([*KEYS, WEIGHTS, "subject", "group"], sort=False, dropna=False)[metrics].agg("mean").reset_index()
    )


def paired_tests(subjects: pd.DataFrame, reference: str = "ce", metrics: Sequence[str] = TESTED) -> pd.DataFrame:
    """Does a loss differ from the reference on the same subjects? Wilcoxon's signed-rank test on their differences.

    Each subject counts once, with its mean over the seeds of each loss. p is two-sided and corrected for the number of
    losses by Holm's method, separately for each metric. The test generalises to other subjects with these networks, not
    to other training runs. The interval is a bootstrap's, over the subjects.

    Args:
        subjects: from :func:`per_subject`, the runs of one network, one training set and one kind of weights.
        reference: the loss that all others are compared with.
        metrics: columns of ``subjects``.

    Returns:
        A row for each loss and metric: loss, metric, difference (loss - reference; mean over subjects), low, high (its
        95 % interval), p.

    Raises:
        ValueError: a reference that is not in the table; losses judged on different subjects.

    Example:
        >>> rows = [
        ...     {"loss": loss, "subject": subject, "ece": 0.1 + shift * subject}
        ...     for loss, shift in {"ce": 0.0, "ls": 0.02}.items()
        ...     for subject in range(1, 11)
        ... ]
        >>> paired_tests(pd.DataFrame(rows), metrics=["ece"]).round(3).to_dict("records")
        [{'loss': 'ls', 'metric': 'ece', 'difference': 0.11, 'low': 0.074, 'high': 0.146, 'p': 0.002}]

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
            low, high = bootstrap_interval(differences[name])
            difference = float(differences[name].mean())
            rows.append({"loss": name, "metric": metric, "difference": difference, "low": low, "high": high, "p": p})
    return pd.DataFrame(rows)


def part_of(table: pd.DataFrame, protocol: Protocol, part: Part, weights: Weights | None = None) -> pd.DataFrame:
    """The rows that belong to a part of the study, in the study's order.

    Args:
        table: a row for each run, or several, such as for each run and subject.
        protocol: how the networks were trained.
        part: one of :data:`~mbls.study.paper.PARTS`.
        weights: only the rows of these weights; None takes all.
    """
    if weights is not None:
        table = rows_where(table, table[WEIGHTS] == weights)
    wanted = [
        (run.loss, run.model, run.train_patients or protocol.train_patients, run.fit.seed)
        for run in parts(protocol, sorted(set(table["seed"])))[part]
    ]
    place = {key: index for index, key in enumerate(wanted)}
    order = np.array([place.get(key, len(wanted)) for key in zip(*(table[name] for name in KEYS), strict=True)])
    rows = np.argsort(order, kind="stable")
    return table.iloc[rows[order[rows] < len(wanted)]]


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table for readers: metrics by their titles and with their digits, losses by their names.

    Args:
        table: columns are metrics, as training names them ("val_ece_fg") or judging ("ece_fg"). Where a level of the
            index is called "loss", its entries are losses.

    Returns:
        Texts, in the order of the table.

    Raises:
        ValueError: a column that is no metric.

    Example:
        >>> means = pd.DataFrame({"dsc": [0.81234], "ece_fg": [0.1]}, index=pd.Index(["mbls:margin=5"], name="loss"))
        >>> in_words(means).to_dict("index")
        {'MbLS m = 5': {'DSC': '0.812', 'ECE, foreground': '0.1000'}}
    """
    metrics = [str(name).removeprefix("val_") for name in table.columns]
    cells = {
        _title(metric): [f"{value:.{_digits(metric)}f}" for value in table[name]]
        for name, metric in zip(table.columns, metrics, strict=True)
    }
    shown = pd.DataFrame(cells, index=table.index)
    return shown.rename(index=label, level="loss") if "loss" in table.index.names else shown


def spread_in_words(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation over the seeds, as texts such as "0.866 ± 0.003".

    Args:
        runs: a run a row.
        metrics: columns of the table.

    Returns:
        A row a loss, in the order of the table, with its name and the titles of the metrics.

    Example:
        >>> runs = pd.DataFrame({"loss": ["ce", "ce"], "dsc": [0.7, 0.9]})
        >>> spread_in_words(runs, ["dsc"]).to_dict("index")
        {'CE': {'DSC': '0.800 ± 0.141'}}
    """
    spread = mean_and_spread(runs, metrics)
    cells = _cells(spread, metrics)
    shown = pd.DataFrame({_title(name): cells[name] for name in metrics}, index=spread.index)
    return shown.rename(index=lambda loss: _SCALED_CE_NAME if loss == _SCALED_CE else label(loss))


def short_table(table: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """The study in a few rows: mean and spread over the seeds of the weights that the protocol judges first, of the
    losses that say most, and of CE after temperature scaling. The README and notebook 06 show it.

    Args:
        table: a row for each run and kind of weights.
        protocol: how the networks were trained.

    Returns:
        Texts such as "0.866 ± 0.003", a row a loss, with the columns DSC, ECE, ECE, foreground, NLL and mean distance.
    """
    rows = part_of(table, protocol, "losses", protocol.base.judged[0])
    metrics = ("dsc", "ece", "ece_fg", "nll", "mean_distance")
    scaled = rows[rows["loss"] == "ce"].assign(loss=_SCALED_CE)
    scaled = scaled.assign(**{name: scaled[f"{SCALED}{name}"] for name in metrics if name != "dsc"})
    shown = spread_in_words(pd.concat([rows, scaled]), metrics)
    names = [*map(label, _SHORT_LOSSES), _SCALED_CE_NAME]
    return shown.loc[[name for name in names if name in shown.index]]


def _cells(spread: pd.DataFrame, metrics: Sequence[str], bold: bool = False) -> dict[str, list[str]]:
    """Metric -> "mean ± deviation" of each row of :func:`mean_and_spread`, just the mean where there was one seed."""
    seeds = spread["seeds", "count"].tolist()
    cells = {}
    for name in metrics:
        means, stds = (spread[name, how].to_numpy(float) for how in ("mean", "std"))
        best, digits = _best(name, means) if bold else None, _digits(name)
        shown = [f"**{mean:.{digits}f}**" if mean == best else f"{mean:.{digits}f}" for mean in means]
        spreads = ["" if number == 1 else f" ± {std:.{digits}f}" for std, number in zip(stds, seeds, strict=True)]
        cells[name] = [f"{mean}{std}" for mean, std in zip(shown, spreads, strict=True)]
    return cells


def study_report(table: pd.DataFrame, subjects: pd.DataFrame, protocol: Protocol) -> str:
    """All tables of a study as Markdown.

    Args:
        table: a row for each run and kind of weights, as ``results.csv`` of a comparison.
        subjects: from :func:`per_subject`, of the same runs.
        protocol: how the networks were trained.
    """
    first, *others = protocol.base.judged
    about = f"{protocol.label}, {_WEIGHTS[first]}"
    short = short_table(table, protocol)
    lines = [[str(loss), *map(str, cells)] for loss, cells in zip(short.index, short.to_numpy(), strict=True)]
    in_short = _markdown(["loss", *short.columns], lines)
    text = [_about(table, protocol), f"## In short\n\nTest patients ({about}):\n\n{in_short}"]
    written = set()
    for part, (title, by, tables) in _PARTS.items():
        rows = part_of(table, protocol, part, first)
        runs = set(zip(*(rows[name] for name in KEYS), strict=True))
        if runs <= written:  # of this part only what it shares with another
            continue
        written |= runs
        text.append(f"## {title}")
        for caption, metrics in tables.items():
            text.append(f"{caption} ({about}):\n\n{_spread_table(rows, metrics, by)}")
        for weights in others:
            other = _spread_table(part_of(table, protocol, part, weights), _SHORT["Overlap and calibration"], by)
            text.append(f"Overlap and calibration ({protocol.label}, **{_WEIGHTS[weights]}**):\n\n{other}")
        if tables is _FULL:
            text.append(f"Ranks ({about}), 1 the best:\n\n{_rank_table(rows)}")
            text.append(_beside_the_authors(rows, about, protocol))
        tests = _test_table(part_of(subjects, protocol, part, first), [name for name in by if name != "steps"])
        text.append(f"Difference from CE on the same patients ({about}):\n\n{tests}")
    return "\n\n".join(text) + "\n"


def authors_figures(data: str = "ACDC") -> pd.DataFrame:
    """The authors' own figures: DSC and foreground ECE per volume of six losses, indexed by "CE", "FL", ...

    Args:
        data: "ACDC", "MRBrainS", "FLARE", "BraTS" or "PROMISE".

    References:
        The official repository Bala93/MarginLoss, commit 877d7b9, misc/save_qualitative_figures.ipynb, cell 10.
    """
    table = pd.read_csv(recorded("authors_figures.csv"))
    return table[table["data"] == data].set_index("loss")


#: The authors' losses -> ours with their options.
_SIX = {"CE": "ce", "FL": "fl", "ECP": "ecp", "LS": "ls", "SVLS": "svls:sigma=1", "MbLS": "mbls:margin=5"}


def _beside_the_authors(rows: pd.DataFrame, about: str, protocol: Protocol) -> str:
    theirs, ours = authors_figures(), mean_and_spread(rows, ("dsc", "ece_fg"))
    there = {name: loss for name, loss in _SIX.items() if loss in ours.index}
    means = ours.loc[list(there.values())]
    columns: dict[str, Sequence[float]] = {
        "their DSC": theirs.loc[list(there), "dsc"].tolist(),
        "our DSC": means["dsc", "mean"].tolist(),
        "their ECE, foreground": theirs.loc[list(there), "ece_foreground_per_volume"].tolist(),
        "our ECE, foreground": means["ece_fg", "mean"].tolist(),
    }
    placed = {name: rank(values, "high" if "DSC" in name else "low") for name, values in columns.items()}
    lines = [
        [label(loss), *(f"{values[i]:.3f} ({placed[name][i]:g})" for name, values in columns.items())]
        for i, loss in enumerate(there.values())
    ]
    same = protocol.name == PAPER.name
    differs = "Patients and split" if same else "Resolution, width, normalisation, patients and split"
    return f"""Beside the authors' notebook (ours: {about}; in brackets the rank):

{_markdown(["loss", *columns], lines)}

Theirs: Bala93/MarginLoss, commit 877d7b9, misc/save_qualitative_figures.ipynb, cell 10 (July 2022). They judge the best
validation epoch of slices of 192 x 192. {differs} differ from ours."""


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
    units = " and ".join(sorted(set(table["distance_unit"])))
    planned = len({run.name for runs in parts(protocol).values() for run in runs})
    made = len(table[list(KEYS)].drop_duplicates())
    seeds_of = table[table[WEIGHTS] == base.judged[0]].groupby(list(KEYS[:-1])).size()
    one_seed = "; without ± there was one seed" if 1 in set(seeds_of) else ""
    warning = "" if protocol is PAPER else " **Not the paper's protocol; every table below is of the reduced one.**"
    return f"""# The study on ACDC: {protocol.label}

Written by `python -m mbls report`; do not edit.{warning} What it says in words: [README.md](README.md).

{settings}

{made} of {planned} runs; seeds {seeds}. {protocol.train_patients} training patients unless said otherwise, then
the first ones of `{split}`, which names the validation and test patients too. Each run is judged on the test patients
with the weights of the last epoch and with those of the epoch of the best validation DSC (the first of several); each
table says which. Mean ± standard deviation over the seeds{one_seed}. The best mean of a column is bold. Made by

```
python -m mbls study --protocol {protocol.name} --data ROOT --out runs/{protocol.name} --keep-predictions
python -m mbls merge runs/{protocol.name}
python -m mbls report runs/{protocol.name} --protocol {protocol.name} --out data/results/acdc_{protocol.name}
```

on {device} ({precision}; torch {torch}; commits {commit}; data {data}).
HD95 and ASD are in {units}. Calibration is taken per volume and averaged over the volumes without weights, as the
official test script does; pooled figures count all voxels of all volumes in one set of bins. "Share above 0.999": of
the voxels, by the winning probability. "Confidence - accuracy": above zero the network claims too much. T is the
temperature fitted on the validation patients. Differences: mean over the test patients with its 95 % bootstrap interval
over them, and Wilcoxon's signed-rank test with Holm's correction of p."""


def _spread_table(rows: pd.DataFrame, metrics: Sequence[str], by: Sequence[str]) -> str:
    spread = mean_and_spread(rows, metrics, by)
    cells = _cells(spread, metrics, bold=len(by) == 1)
    keys = [
        [label(str(part)) if name == "loss" else _text(part) for name, part in zip(by, _as_tuple(key), strict=True)]
        for key in spread.index
    ]
    lines = [[*key, *(cells[name][place] for name in metrics)] for place, key in enumerate(keys)]
    return _markdown([*by, *map(_title, metrics)], lines)


def _as_tuple(key: object) -> tuple:
    return key if isinstance(key, tuple) else (key,)


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
            label(str(loss)),
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
        after = rows[rows["loss"] == "ce"].assign(loss=_SCALED_CE)
        if after.empty:  # not trained yet
            continue
        after = after.assign(**{name: after[f"scaled_{name}"] for name in TESTED if name != "dsc"})
        tests = paired_tests(pd.concat([rows, after]), metrics=TESTED).to_dict("records")
        shown = {(row["loss"], row["metric"]): _difference(row) for row in tests}
        losses = dict.fromkeys(row["loss"] for row in tests)
        names = {loss: _SCALED_CE_NAME if loss == _SCALED_CE else label(loss) for loss in losses}
        lines += [[*key, names[loss], *(shown[loss, name] for name in TESTED)] for loss in losses]
    return _markdown([*by, *map(_title, TESTED)], lines)


def _groups(table: pd.DataFrame, columns: Sequence[str]) -> list[tuple[list[str], pd.DataFrame]]:
    """The rows that agree in some columns, with the values there as text; without columns, the whole table."""
    if not columns:
        return [([], table)]
    groups = table.groupby(list(columns), sort=False)
    return [(list(map(_text, cast(tuple, key))), rows) for key, rows in groups]


def _text(value: object) -> str:
    return _MODELS.get(str(value), str(value))


def _difference(test: dict) -> str:
    if test["difference"] == 0:
        return "0"
    difference, low, high = (f"{test[name]:+.{_digits(test['metric'])}f}" for name in ("difference", "low", "high"))
    p = "" if np.isnan(test["p"]) else ", p < 0.001" if test["p"] < 0.001 else f", p {test['p']:.3f}"
    return f"{difference} [{low}, {high}]{p}"


def _better(column: str) -> Literal["high", "low"] | None:
    return None if column == "temperature" else metric_of(column.removeprefix("pooled_"))[1].better


def _digits(column: str) -> int:
    return 2 if column == "temperature" else metric_of(column.removeprefix("pooled_"))[1].digits


def _title(column: str) -> str:
    if column == "temperature":
        return "T"
    name = column.removeprefix("pooled_")
    try:
        region, metric = metric_of(name)
    except ValueError:  # a column of the table that is no metric
        return column.replace("_", " ")
    scaled = ", scaled" if name.startswith(SCALED) else ""
    return metric.title + ("" if region == "all" else f", {region}") + scaled


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])
