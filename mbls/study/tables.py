"""Tables of a finished study: mean and spread over seeds, ranks, paired tests over patients; as data frames and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from mbls import plots
from mbls.data.acdc import CLASS_NAMES
from mbls.files import write_table, write_text
from mbls.study.paper import PAPER, Protocol, parts
from mbls.study.results import KEYS

__all__ = [
    "PAPER_FIGURES",
    "RANKED",
    "TESTED",
    "few_patients_figure",
    "mean_and_spread",
    "paired_tests",
    "part_of",
    "per_patient",
    "ranks",
    "study_report",
    "write_report",
]

#: Figures that losses are ranked by. The paper's own four take calibration over the foreground.
PAPER_FIGURES = ("dsc", "hd95", "ece_fg", "cece_fg")
RANKED = (*PAPER_FIGURES, "ece", "cece", "nll")
#: Figures of which more is better; of all others less is.
HIGHER_IS_BETTER = ("dsc",)
#: Figures that are compared patient by patient.
TESTED = ("dsc", "ece", "ece_fg", "cece_fg", "nll")

_OVERLAP = ("dsc", "hd95", "asd", "mean_distance")
_FIGURES = ("ece", "cece", "aece", "nll", "brier")
#: The tables of a part that compares all losses, by caption; and the one of the other parts.
_FULL = {
    "Overlap, and how far the logits are apart": _OVERLAP,
    "Calibration over all voxels": _FIGURES,
    "Calibration over the foreground": tuple(f"{name}_fg" for name in _FIGURES),
    "After temperature scaling, all voxels": ("temperature", *(f"scaled_{name}" for name in _FIGURES)),
    "After temperature scaling, the foreground": tuple(f"scaled_{name}_fg" for name in _FIGURES),
}
_SHORT = {
    "Overlap and calibration": ("dsc", "hd95", "ece", "ece_fg", "cece_fg", "nll", "mean_distance", "temperature"),
    "After temperature scaling": ("scaled_ece", "scaled_ece_fg", "scaled_cece_fg", "scaled_nll"),
}
#: Part -> title, the columns that make a line, its tables.
_PARTS = {
    "losses": ("Losses", ("loss",), _FULL),
    "margins": ("Margins", ("loss",), _SHORT),
    "weights": ("Weight of the penalty", ("loss",), _SHORT),
    "few_patients": ("Few training patients, as many steps", ("train_patients", "loss"), _SHORT),
    "ten_patients": ("Losses and margins with ten training patients, as many steps", ("loss",), _FULL),
    "backbones": ("Backbones", ("model", "loss"), _SHORT),
}
_TITLES = {"dsc": "DSC", "hd95": "HD95", "asd": "ASD", "nll": "NLL", "brier": "Brier", "temperature": "T"}


def mean_and_spread(table: pd.DataFrame, figures: Sequence[str], by: Sequence[str] = ("loss",)) -> pd.DataFrame:
    """Mean and standard deviation (n - 1) over the seeds, in the order of the table.

    Args:
        table: a run a row. figures: its columns. by: the columns that make a line of the result.

    Returns:
        Columns (figure, "mean"), (figure, "std") and ("seeds", "count"), indexed by ``by``.
    """
    grouped = table.groupby(list(by), sort=False)
    return (
        grouped[list(figures)].agg(["mean", "std"]).join(pd.concat({"seeds": grouped.size().to_frame("count")}, axis=1))
    )


def ranks(table: pd.DataFrame, figures: Sequence[str] = RANKED) -> pd.DataFrame:
    """Rank of each loss by each figure's mean over seeds, 1 the best, ties shared; and the mean rank, best first.

    The paper ranks its methods so, and averages over metrics.
    """
    means = table.groupby("loss", sort=False)[list(figures)].mean()
    placed = pd.DataFrame({name: means[name].rank(ascending=name not in HIGHER_IS_BETTER) for name in figures})
    placed["mean rank"] = placed.mean(axis=1)
    return placed.sort_values("mean rank", kind="stable")


def per_patient(volumes: pd.DataFrame) -> pd.DataFrame:
    """A patient a row, for each run: the figures that are tested, before and after temperature scaling, as means over ED and ES.

    Args:
        volumes: a test volume a row, as ``volumes.csv`` of a comparison.
    """
    figures = [*TESTED, *(f"scaled_{name}" for name in TESTED if name != "dsc")]
    volumes = volumes.assign(dsc=volumes[[f"dsc_{name}" for name in CLASS_NAMES[1:]]].mean(axis=1))
    return volumes.groupby([*KEYS, "patient", "group"], sort=False)[figures].mean().reset_index()


def paired_tests(patients: pd.DataFrame, reference: str = "ce", figures: Sequence[str] = TESTED) -> pd.DataFrame:
    """Does a loss differ from the reference on the same patients? Wilcoxon's signed-rank test on the patients' differences.

    Each patient counts once, with the mean over the seeds of both losses. p is two-sided and corrected for the number of losses by
    Holm's method, figure by figure. It speaks about other patients with these networks, not about other training runs.

    Args:
        patients: from :func:`per_patient`, the runs of one network and one training set.

    Returns:
        A row a loss and figure: loss, figure, difference (loss - reference; mean over patients), p.

    Raises:
        ValueError: a reference that is not there; losses judged on different patients.
    """
    means = patients.groupby(["loss", "patient"], sort=False)[list(figures)].mean()
    names = list(dict.fromkeys(patients["loss"]))
    if reference not in names:
        raise ValueError(f"reference: got {reference!r}, expected one of {', '.join(names)}")
    others = [name for name in names if name != reference]
    rows = []
    for figure in figures:
        wide = means[figure].unstack("loss")
        if wide.isna().any().any():
            raise ValueError(
                f"patients: got losses that were judged on different patients ({figure}), expected the same for all"
            )
        differences = {name: wide[name] - wide[reference] for name in others}
        # Without any difference the test has nothing to rank.
        p = [float(wilcoxon(values).pvalue) if values.any() else 1.0 for values in differences.values()]
        for name, corrected in zip(others, _holm(p), strict=True):
            rows.append({"loss": name, "figure": figure, "difference": float(differences[name].mean()), "p": corrected})
    return pd.DataFrame(rows)


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest p times n, the next times n - 1, ..., never falling, at most 1."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p)[order]))
    return corrected.tolist()


def part_of(table: pd.DataFrame, protocol: Protocol, part: str) -> pd.DataFrame:
    """The rows of a table, of runs or of patients, that belong to a part of the study, in the study's order."""
    wanted = [
        (run.loss, run.model, run.train_patients or protocol.train_patients, run.fit.seed)
        for run in parts(protocol, sorted(set(table["seed"])))[part]
    ]
    place = {key: index for index, key in enumerate(wanted)}
    order = pd.Series(
        [place.get(key, -1) for key in zip(*(table[name] for name in KEYS), strict=True)], index=table.index
    )
    return table[order >= 0].loc[order[order >= 0].sort_values(kind="stable").index]


def study_report(table: pd.DataFrame, patients: pd.DataFrame, protocol: Protocol) -> str:
    """All tables of a study as Markdown.

    Args:
        table: a run a row, as ``results.csv`` of a comparison. patients: from :func:`per_patient`, the same runs.
    """
    text = [_about(table, protocol)]
    for part, (title, by, tables) in _PARTS.items():
        rows = part_of(table, protocol, part)
        if rows.empty:
            continue
        text.append(f"## {title}")
        for caption, figures in tables.items():
            text.append(f"{caption} ({protocol.label}):\n\n{_spread_table(rows, figures, by)}")
        if tables is _FULL:
            text.append(f"Ranks ({protocol.label}), 1 the best:\n\n{_rank_table(rows)}")
        tests = _test_table(part_of(patients, protocol, part), by)
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
    """What of a finished study is kept: ``OUT.csv`` (a run a row), ``OUT_patients.csv`` (each test patient of it), ``OUT.md`` and,
    where that part was run, ``OUT_few_patients.png``.

    Args:
        folder: where ``merge`` or ``compare`` wrote results.csv and volumes.csv. out: path and beginning of the names.

    Raises:
        FileNotFoundError: one of the two is missing.
        ValueError: no run of the protocol among them.
    """
    for name in ("results.csv", "volumes.csv"):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{Path(folder) / name}: missing, expected the output of `python -m mbls merge`")
    table, volumes = pd.read_csv(Path(folder) / "results.csv"), pd.read_csv(Path(folder) / "volumes.csv")
    kept = sorted({index for part in _PARTS for index in part_of(table, protocol, part).index})
    if not kept:
        raise ValueError(f"{folder}: got no run of the protocol {protocol.name!r} among {len(table)}")
    table = table.loc[kept]
    patients = per_patient(volumes.merge(table[list(KEYS)])).round(6)
    paths = [Path(f"{out}{ending}") for ending in (".csv", "_patients.csv", ".md")]
    write_table(table, paths[0])
    write_table(patients, paths[1])
    write_text(study_report(table, patients, protocol), paths[2])
    few = part_of(table, protocol, "few_patients")
    if not few.empty:
        paths.append(Path(f"{out}_few_patients.png"))
        few_patients_figure(few).savefig(paths[-1], dpi=80)
    return paths


def _about(table: pd.DataFrame, protocol: Protocol) -> str:
    base, paper = protocol.base, PAPER.base
    rows: dict[str, Callable] = {
        "slices": lambda e: f"{e.crop or e.size} x {e.crop or e.size} voxels, given as {e.size} x {e.size}",
        "U-Net": lambda e: f"{e.levels} levels, {e.base_channels} to {e.base_channels * 2 ** (e.levels - 1)} filters",
        "normalisation": lambda e: e.norm or "none",
        "Adam's rate": lambda e: f"{e.fit.learning_rate:g}, a tenth of it after {e.fit.lr_step} epochs",
        "epochs of batches": lambda e: f"{e.fit.epochs} of {e.fit.batch_size}",
    }
    settings = _markdown(["", "here", "the paper"], [[name, show(base), show(paper)] for name, show in rows.items()])
    seeds = ", ".join(map(str, sorted(set(table["seed"]))))
    columns = ("made_commit", "made_device", "made_precision", "made_torch", "config_data_fingerprint")
    commit, device, precision, torch, data = (" and ".join(sorted(set(table[name].astype(str)))) for name in columns)
    planned = len({run.name for runs in parts(protocol).values() for run in runs})
    one_seed = "; without ± there was one seed" if (table.groupby(list(KEYS[:-1])).size() == 1).any() else ""
    warning = "" if protocol is PAPER else " **Not the paper's protocol; every table below is of the reduced one.**"
    return f"""# The study on ACDC: {protocol.label}

Written by `python -m mbls report`; do not edit.{warning} What it says in words: [README.md](README.md).

{settings}

{len(table)} of {planned} runs; seeds {seeds}. {protocol.train_patients} training patients unless said otherwise, then the first
ones of `{base.split}`, which names the validation and test patients too. The best validation epoch is judged on the test
patients. Mean ± standard deviation over the seeds{one_seed}. The best mean of a column is bold. Made by

```
python -m mbls study --protocol {protocol.name} --data ROOT --out runs/acdc --precision {precision}
python -m mbls merge runs/acdc && python -m mbls report runs/acdc --protocol {protocol.name} --out data/results/acdc_study
```

on {device} (torch {torch}; commits {commit}; data {data}).
HD95 and ASD are in voxels of the slices given, since the data have no spacing. ECE and its kind are per volume, weighted by the
voxels counted, as in the official evaluation. T is the temperature fitted on the validation patients. Differences are tested by
Wilcoxon's signed-rank test over the test patients, with Holm's correction of p."""


def _spread_table(rows: pd.DataFrame, figures: Sequence[str], by: Sequence[str]) -> str:
    spread = mean_and_spread(rows, figures, by)
    lines = []
    best = {
        name: spread[name, "mean"].max() if name in HIGHER_IS_BETTER else spread[name, "mean"].min()
        for name in figures
        if name not in ("temperature", "mean_distance")
    }
    for key, line in spread.iterrows():
        cells = list(map(str, key)) if isinstance(key, tuple) else [str(key)]
        for name in figures:
            mean, std = (f"{line[name, part]:.{_digits(name)}f}" for part in ("mean", "std"))
            mean = f"**{mean}**" if line[name, "mean"] == best.get(name) and len(by) == 1 else mean
            cells.append(mean if line["seeds", "count"] == 1 else f"{mean} ± {std}")
        lines.append(cells)
    return _markdown([*by, *map(_title, figures)], lines)


def _rank_table(rows: pd.DataFrame) -> str:
    placed = ranks(rows)
    placed.insert(len(PAPER_FIGURES), "mean of these four", placed[list(PAPER_FIGURES)].mean(axis=1))
    placed = placed.rename(columns={"mean rank": "mean of all seven"})
    lines = [
        [loss, *(f"{value:.2f}" if "mean" in name else f"{value:g}" for name, value in row.items())]
        for loss, row in placed.iterrows()
    ]
    return _markdown(["loss", *map(_title, placed.columns)], lines)


def _test_table(patients: pd.DataFrame, by: Sequence[str]) -> str:
    """Every loss against CE of the same network and training set; CE after temperature scaling counts as one more loss."""
    groups, lines = list(by[:-1]), []
    for key, rows in patients.groupby(groups, sort=False) if groups else [((), patients)]:
        after = rows[rows["loss"] == "ce"].assign(loss="ce, temperature-scaled")
        if after.empty:  # not trained yet
            continue
        after = after.assign(**{name: after[f"scaled_{name}"] for name in TESTED if name != "dsc"})
        tests = paired_tests(pd.concat([rows, after]), figures=TESTED)
        for loss, tested in tests.groupby("loss", sort=False):
            by_figure = tested.set_index("figure")
            lines.append(
                [
                    *map(str, key),
                    loss,
                    *(_difference(name, *by_figure.loc[name, ["difference", "p"]]) for name in TESTED),
                ]
            )
    return _markdown([*by, *map(_title, TESTED)], lines)


def _difference(figure: str, difference: float, p: float) -> str:
    shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return "0" if difference == 0 else f"{difference:+.{_digits(figure)}f} (p {shown})"


def _digits(figure: str) -> int:
    if figure in ("hd95", "asd", "mean_distance", "temperature"):
        return 2
    return 3 if any(name in figure for name in ("dsc", "nll", "brier")) else 4


def _title(figure: str) -> str:
    words = figure.removeprefix("scaled_")
    name = words.removesuffix("_fg")
    return _TITLES.get(name, name.upper() if "ece" in name else name.replace("_", " ")) + (
        ", foreground" if words.endswith("_fg") else ""
    )


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])
