"""Pictures of a finished study: curves over the epochs, reliability, differences from cross-entropy, few patients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mbls import plots
from mbls.engine.judge import reliability_over_subjects
from mbls.metrics import Region
from mbls.study.tables import label, rows_where

__all__ = ["curves_figure", "few_patients_figure", "forest_figure", "reliability_figure", "scaling_figure"]

#: What the pictures of the whole study show.
_SHOWN = {loss: label(loss) for loss in ("ce", "ls", "mbls:margin=5", "mbls:margin=8")}


def curves_figure(curves: pd.DataFrame, names: Mapping[str, str] | None = None, data: str = "ACDC") -> Figure:
    """DSC, ECE, NLL and the losers' distance on the validation patients over the epochs, in a band over the seeds.

    Args:
        curves: a row for each run and epoch, as ``curves.csv`` of a comparison; the runs of one network and one
            training set.
        names: the losses to draw -> their names; None takes CE, LS and MbLS with m = 5 and 8.
        data: name of the data set.
    """
    names = _SHOWN if names is None else names
    seeds = len(set(curves["seed"]))
    spread = "" if seeds == 1 else f", mean and range of {seeds} seeds"
    figure, axes = plots.new_figure(2, 3, height=5.4, data=f"{data}, validation patients{spread}")
    *panels, blank = axes.ravel()
    columns = {
        "val_dsc": "DSC",
        "val_ece": "ECE, all voxels",
        "val_ece_fg": "ECE, foreground",
        "val_nll": "NLL",
        "val_mean_distance": "mean distance of the losers",
    }
    # A network that has hardly begun would stretch the axis.
    late = rows_where(curves, curves["epoch"] >= 5)
    for ax, (column, title) in zip(panels, columns.items(), strict=True):
        plots.curves_with_band(ax, late, "epoch", column, names, "epoch", title)
    plots.legend_panel(blank, panels[0])
    return figure


def reliability_figure(
    bins: pd.DataFrame,
    region: Region = "foreground",
    names: Mapping[str, str] | None = None,
    data: str = "ACDC",
) -> Figure:
    """Reliability of some losses over a region: the bins of all seeds and patients together, each point with its 95 %
    interval over the patients.

    Args:
        bins: a row for each run, subject, region and bin, as ``subject_bins.csv`` of a comparison; one network, one
            training set, one kind of weights.
        region: "all", "foreground" or "boundary".
        names: the losses to draw -> their names; None takes CE, LS and MbLS with m = 5 and 8.
        data: name of the data set.
    """
    known = set(bins["loss"])
    names = {loss: name for loss, name in (names or _SHOWN).items() if loss in known}
    shown = f"{data}, {len(set(bins['subject']))} test patients, {len(set(bins['seed']))} seeds"
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    shown = f"{shown}; bars: 95 % intervals over patients"
    width, height = (3.0, 3.7) if columns == 3 else (3.6, 3.5)
    figure, pairs = plots.new_reliability_figure(columns, rows, width, height, data=shown)
    places = pairs.reshape(-1, 2)
    for axes in places[len(names) :].ravel():
        axes.set_visible(False)
    for (upper, lower), (loss, name) in zip(places, names.items(), strict=False):
        pooled, interval = reliability_over_subjects(rows_where(bins, bins["loss"] == loss), region)
        gaps = np.nan_to_num(np.abs(pooled.confidence - pooled.accuracy))
        ece = float((gaps * pooled.count).sum() / pooled.count.sum())
        title = f"{name}, {region}\npooled ECE {ece:.3f}"
        plots.reliability_diagram((upper, lower), pooled, interval, title, plots.loss_colour(loss))
    return figure


def forest_figure(tests: pd.DataFrame, names: Mapping[str, str] | None = None, data: str = "ACDC") -> Figure:
    """Differences from cross-entropy on the same patients, with their 95 % intervals.

    Args:
        tests: from :func:`mbls.study.tables.paired_tests`, with the metrics dsc, ece, ece_fg and nll.
        names: the losses to draw, from the top down -> their names; None takes all.
        data: name of the data set.
    """
    names = {loss: label(loss) for loss in dict.fromkeys(tests["loss"])} if names is None else names
    shown = f"{data}, test patients; bars: 95 % intervals over patients"
    figure, axes = plots.new_figure(2, 2, height=2 * (0.9 + 0.2 * len(names)), data=shown)
    titles = {"dsc": "DSC", "ece": "ECE, all voxels", "ece_fg": "ECE, foreground", "nll": "NLL"}
    for place, (ax, (metric, title)) in enumerate(zip(axes.ravel(), titles.items(), strict=True)):
        better = "right is better" if metric == "dsc" else "left is better"
        plots.forest(ax, rows_where(tests, tests["metric"] == metric), names, f"minus CE ({better})", title)
        if place % 2:
            ax.set_yticklabels([])
    return figure


def few_patients_figure(rows: pd.DataFrame, names: Mapping[str, str] | None = None, data: str = "ACDC") -> Figure:
    """DSC and ECE over the number of training patients, with the standard deviation over the seeds.

    Args:
        rows: the part "few_patients" of a study, from :func:`mbls.study.tables.part_of`, one kind of weights.
        names: the losses to draw -> their names; None takes CE, LS and MbLS with m = 5 and 8.
        data: name of the data set.
    """
    names = _SHOWN if names is None else names
    shown = f"{data}, test patients; bars: standard deviation over the seeds"
    figure, axes = plots.new_figure(2, 2, height=6.2, data=shown)
    *panels, blank = axes.ravel()
    titles = {"dsc": "DSC", "ece": "ECE, all voxels", "ece_fg": "ECE, foreground"}
    for ax, (column, title) in zip(panels, titles.items(), strict=True):
        plots.lines_with_spread(ax, rows, "train_patients", column, names, "training patients", title)
    plots.legend_panel(blank, panels[0])
    return figure


def scaling_figure(rows: pd.DataFrame, names: Mapping[str, str] | None = None, data: str = "ACDC") -> Figure:
    """ECE over the foreground and over all voxels, as trained (open) and after temperature scaling (full).

    Args:
        rows: runs of a study, of one network, one training set and one kind of weights; the seeds are averaged.
        names: the losses to draw, from the top down -> their names; None takes CE, LS and MbLS with m = 5 and 8.
        data: name of the data set.
    """
    names = _SHOWN if names is None else names
    shown = f"{data}, test patients, mean of {len(set(rows['seed']))} seeds"
    figure, (axes,) = plots.new_figure(1, 2, height=1.4 + 0.3 * len(names), data=shown)
    for ax, (column, title) in zip(axes, {"ece_fg": "ECE, foreground", "ece": "ECE, all voxels"}.items(), strict=True):
        label = "as trained (open), after one temperature (full)"
        plots.before_and_after(ax, rows, column, f"scaled_{column}", names, label, title)
    axes[1].set_yticklabels([])
    return figure
