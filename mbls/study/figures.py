"""Pictures of a finished study: curves over the epochs, reliability, differences from cross-entropy, few patients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mbls import plots
from mbls.metrics import Reliability
from mbls.statistics import bootstrap_interval
from mbls.study.tables import label, rows_where

__all__ = ["curves_figure", "few_patients_figure", "forest_figure", "reliability_figure"]

#: What the pictures of the whole study show.
_SHOWN = {loss: label(loss) for loss in ("ce", "ls", "mbls:margin=5", "mbls:margin=8")}


def curves_figure(curves: pd.DataFrame, names: Mapping[str, str] | None = None) -> Figure:
    """DSC, ECE, NLL and the losers' distance on the validation patients over the epochs, in a band over the seeds.

    Args:
        curves: a row for each run and epoch, as ``curves.csv`` of a comparison; the runs of one network and one
            training set.
        names: the losses to draw -> their names; None takes CE, LS and MbLS with m = 5 and 8.
    """
    names = _SHOWN if names is None else names
    figure, (axes,) = plots.new_figure(1, 5, width=15, height=3.3)
    columns = {
        "val_dsc": "DSC",
        "val_ece": "ECE, all voxels",
        "val_ece_fg": "ECE, foreground",
        "val_nll": "NLL",
        "val_mean_distance": "mean distance of the losers",
    }
    # A network that has hardly begun would stretch the axis.
    late = rows_where(curves, curves["epoch"] >= 5)
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        plots.curves_with_band(ax, late, "epoch", column, names, "epoch", title)
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    seeds = len(set(curves["seed"]))
    figure.suptitle(f"ACDC, validation patients; {seeds} seed{'s' if seeds > 1 else ''}", fontsize=10)
    return figure


def reliability_figure(
    bins: pd.DataFrame, region: str = "foreground", names: Mapping[str, str] | None = None
) -> Figure:
    """Reliability of some losses over a region: the bins of all seeds and patients together, each point with its 95 %
    interval over the patients.

    Args:
        bins: a row for each run, subject, region and bin, as ``subject_bins.csv`` of a comparison; one network, one
            training set, one kind of weights.
        region: "all", "foreground" or "boundary".
        names: the losses to draw -> their names; None takes CE, LS and MbLS with m = 5 and 8.
    """
    known = set(bins["loss"])
    names = {loss: name for loss, name in (names or _SHOWN).items() if loss in known}
    figure = Figure(figsize=(3 * len(names), 3.8), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, height_ratios=(4, 1))
    rows = rows_where(bins, bins["region"] == region)
    for (upper, lower), (loss, name) in zip(axes.T, names.items(), strict=True):
        counts = _by_subject(rows_where(rows, rows["loss"] == loss))
        pooled = _reliability(counts)
        interval = bootstrap_interval(counts, lambda chosen: _reliability(chosen).accuracy)
        gaps = np.nan_to_num(np.abs(pooled.confidence - pooled.accuracy))
        ece = float((gaps * pooled.count).sum() / pooled.count.sum())
        title = f"{name}, {region}\npooled ECE {ece:.3f}"
        plots.reliability_points(upper, lower, pooled, interval, title, plots.loss_colour(loss))
    return figure


def _by_subject(rows: pd.DataFrame, num_bins: int = 15) -> np.ndarray:
    """Counts, sums of confidence and of hits: (subjects, 3, bins), the runs added up."""
    subjects = list(dict.fromkeys(rows["subject"]))
    table = np.zeros((len(subjects), 3, num_bins))
    place = np.array([subjects.index(subject) for subject in rows["subject"]], dtype=int)
    number = np.asarray(rows["bin"], dtype=int)
    for column, name in enumerate(("count", "prob_sum", "hit_sum")):
        np.add.at(table[:, column], (place, number), np.asarray(rows[name], dtype=float))
    return table


def _reliability(table: np.ndarray) -> Reliability:
    count, confidence, hits = table.sum(0)
    known = np.where(count > 0, count, np.nan)
    return Reliability(np.linspace(0, 1, len(count) + 1), count.astype(int), confidence / known, hits / known)


def forest_figure(tests: pd.DataFrame, names: Mapping[str, str] | None = None) -> Figure:
    """Differences from cross-entropy on the same patients, with their 95 % intervals.

    Args:
        tests: from :func:`mbls.study.tables.paired_tests`, with the metrics dsc, ece, ece_fg and nll.
        names: the losses to draw, from the top down -> their names; None takes all.
    """
    names = {loss: label(loss) for loss in dict.fromkeys(tests["loss"])} if names is None else names
    figure, (axes,) = plots.new_figure(1, 4, width=13, height=1.2 + 0.27 * len(names))
    titles = {"dsc": "DSC", "ece": "ECE, all voxels", "ece_fg": "ECE, foreground", "nll": "NLL"}
    for place, (ax, (metric, title)) in enumerate(zip(axes, titles.items(), strict=True)):
        better = "right is better" if metric == "dsc" else "left is better"
        plots.forest(ax, rows_where(tests, tests["metric"] == metric), names, f"minus CE ({better})", title)
        if place:
            ax.set_yticklabels([])
    return figure


def few_patients_figure(rows: pd.DataFrame, names: Mapping[str, str] | None = None) -> Figure:
    """DSC and ECE over the number of training patients, with the standard deviation over the seeds.

    Args:
        rows: the part "few_patients" of a study, from :func:`mbls.study.tables.part_of`, one kind of weights.
        names: the losses to draw -> their names; None takes CE, LS and MbLS with m = 5 and 8.
    """
    names = _SHOWN if names is None else names
    figure, (axes,) = plots.new_figure(1, 3, width=12, height=3.6)
    titles = {"dsc": "DSC", "ece": "ECE, all voxels", "ece_fg": "ECE, foreground"}
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        plots.lines_with_spread(ax, rows, "train_patients", column, names, "training patients", title)
    return figure
