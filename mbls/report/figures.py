"""Pictures of a report, each from its :class:`mbls.report.tables.Tables`, drawn by :mod:`mbls.plots`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mbls import plots
from mbls.engine.judge import ENDINGS, SCALED, reliability_over_subjects
from mbls.metrics import Region
from mbls.report.cases import IGNORED_PIXEL, JudgedCase
from mbls.report.tables import WINNER, Tables

__all__ = [
    "class_reliability_figure",
    "distance_figure",
    "heat_map_figure",
    "reliability_figure",
    "risk_figure",
    "scaling_figure",
    "volume_figure",
    "worst_case_figure",
]

#: A heat map has at most so many rows; of more cases, evenly spaced ones.
_MOST_ROWS = 40
#: Bins of a case with fewer voxels say too little to be drawn.
_FEW_VOXELS = 10


def _shown(tables: Tables, data: str, also: str = "") -> str:
    number = len(tables.cases)
    return f"{data}, {number} case{'' if number == 1 else 's'}{also}"


def _bins_of(tables: Tables, key: str, label: str = WINNER) -> pd.DataFrame:
    return tables.bins.loc[(tables.bins["region"] == key) & (tables.bins["class"] == label)]


def _regions(tables: Tables) -> list[Region]:
    return [region for region in ENDINGS if len(_bins_of(tables, region))]


def _draw_reliability(pair: Any, bins: pd.DataFrame, title: str, colour: str = plots.COLOURS["claimed"]) -> None:
    """The diagram of all cases together, with its pooled error in the title."""
    region = "all"  # the rows were chosen already
    found, interval = reliability_over_subjects(bins.assign(region=region), region)
    gaps = np.nan_to_num(np.abs(found.confidence - found.accuracy))
    error = float((gaps * found.count).sum() / found.count.sum())
    plots.reliability_diagram(pair, found, interval, f"{title}\npooled ECE {error:.3f}", colour)


def reliability_figure(tables: Tables, data: str) -> Figure:
    """Reliability of the winning class in each region, with 95 % intervals over the subjects.

    Args:
        tables: of the judged cases.
        data: name of the data.
    """
    regions = _regions(tables)
    shown = _shown(tables, data, "; bars: 95 % intervals over subjects")
    figure, (pairs,) = plots.new_reliability_figure(len(regions), data=shown)
    for pair, region in zip(pairs, regions, strict=True):
        _draw_reliability(pair, _bins_of(tables, region), region)
    plots.reading_key(pairs[0][0])
    return figure


def class_reliability_figure(tables: Tables, data: str, class_names: Sequence[str]) -> Figure:
    """Reliability of each class's own probability over all voxels.

    Args:
        tables: of the judged cases.
        data: name of the data.
        class_names: K names, index 0 the background.
    """
    columns = min(len(class_names), 4)
    rows = -(-len(class_names) // columns)
    figure, pairs = plots.new_reliability_figure(columns, rows, width=2.7, height=3.5, data=_shown(tables, data))
    places = pairs.reshape(-1, 2)
    for number, name in enumerate(class_names):
        colours = plots.STRUCTURE_COLOURS
        colour = plots.COLOURS["background"] if number == 0 else colours[(number - 1) % len(colours)]
        _draw_reliability(places[number], _bins_of(tables, "all", name), name, colour)
        places[number][0].set_ylabel("share of the class")
        places[number][1].set_xlabel("probability")
    for axes in places[len(class_names) :].ravel():
        axes.set_visible(False)
    return figure


def heat_map_figure(tables: Tables, data: str, region: Region) -> Figure:
    """Confidence minus accuracy of each case and bin; cases from the most to the least overconfident.

    Args:
        tables: of the judged cases.
        data: name of the data.
        region: whose voxels.
    """
    bins = _bins_of(tables, region)
    number = round(1 / float((tables.bins["high"] - tables.bins["low"]).iloc[0]))
    over = tables.cases.loc[tables.cases[f"voxels{ENDINGS[region]}"] > 0]
    over = over.sort_values(f"overconfidence{ENDINGS[region]}", ascending=False, kind="stable")
    names = over["case"].tolist()
    note = ""
    if len(names) > _MOST_ROWS:
        names = [names[place] for place in np.linspace(0, len(names) - 1, _MOST_ROWS).round().astype(int)]
        note = f", {_MOST_ROWS} of them shown"
    gaps = np.full((len(names), number), np.nan)
    enough = bins.loc[(bins["count"] >= _FEW_VOXELS) & bins["case"].isin(names)]
    rows = [names.index(case) for case in enough["case"]]
    gaps[rows, enough["bin"].to_numpy(int)] = (enough["prob_sum"] - enough["hit_sum"]) / enough["count"]
    height = 1.4 + 0.19 * len(names)
    figure, ((axes,),) = plots.new_figure(width=8.0, height=height, data=_shown(tables, data, note))
    plots.gap_heat_map(axes, gaps, names, "confidence of the winning class", "confidence - accuracy")
    axes.set_title(f"region: {region}")
    return figure


def distance_figure(tables: Tables, data: str) -> Figure:
    """Mean confidence and accuracy by distance from the true boundary.

    Args:
        tables: of the judged cases, with distances.
        data: name of the data.
    """
    grouped: Any = tables.distances.groupby(["low_mm", "high_mm"])[["count", "confidence_sum", "hit_sum"]]
    sums = grouped.sum().reset_index()
    names = [_layer(low, high) for low, high in zip(sums["low_mm"], sums["high_mm"], strict=True)]
    series = {
        "confidence": ("claimed", (sums["confidence_sum"] / sums["count"]).tolist()),
        "accuracy": ("truth", (sums["hit_sum"] / sums["count"]).tolist()),
    }
    figure, ((axes,),) = plots.new_figure(width=8.0, height=3.4, data=_shown(tables, data))
    plots.layers(axes, names, series, "distance to the true boundary, mm (below 0: inside a structure)")
    axes.set_ylabel("mean of the voxels")
    return figure


def _layer(low: float, high: float) -> str:
    if np.isinf(low):
        return f"< {high:g}"
    return f"> {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"


def risk_figure(tables: Tables, data: str) -> Figure:
    """Risk against coverage, beside a random order and the best one.

    Args:
        tables: of the judged cases.
        data: name of the data.
    """
    risk = tables.risk
    figure, ((axes,),) = plots.new_figure(width=7.0, height=3.4, data=_shown(tables, data))
    series = {"the network's order": risk["risk"].to_numpy(), "best order (true DSC)": risk["best"].to_numpy()}
    plots.risk_curves(axes, risk["share"].to_numpy(), series, float(risk["random"].iloc[0]))
    return figure


def volume_figure(tables: Tables, data: str, class_names: Sequence[str]) -> Figure:
    """Expected against true volume of each structure, with the naive and the conformal interval.

    Args:
        tables: of the judged cases.
        data: name of the data.
        class_names: K names, index 0 the background.
    """
    names = class_names[1:]
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure, axes = plots.new_figure(rows, columns, 3.2 * columns, 3.5 * rows, data=_shown(tables, data))
    for number, (one, name) in enumerate(zip(axes.ravel(), names, strict=False)):
        own = tables.classes.loc[tables.classes["class"] == name]
        truth, mean, sd = (own[f"volume_{part}"].to_numpy(float) for part in ("true", "expected", "sd"))
        high = own["conformal_high"].to_numpy(float) if "conformal_high" in own else np.full(len(own), np.nan)
        reach = float((high - mean)[0])
        colour = plots.STRUCTURE_COLOURS[number % len(plots.STRUCTURE_COLOURS)]
        plots.agreement(one, truth, mean, 1.96 * sd, reach, colour, f"volume, {own['volume_unit'].iloc[0]}", name)
    for one in axes.ravel()[len(names) :]:
        one.set_visible(False)
    return figure


def worst_case_figure(case: JudgedCase, data: str, class_names: Sequence[str]) -> Figure:
    """One slice of a case: labels, prediction, and how sure the network was where it is wrong.

    Args:
        case: the judged case.
        data: name of the data.
        class_names: K names, index 0 the background.
    """
    labels, winner, confidence = case.picture
    figure, (axes,) = plots.new_figure(1, 3, width=7.5, height=2.9, data=f"{data}, {case.row['case']}")
    known = np.where(labels == IGNORED_PIXEL, 0, labels)
    for one, shown, title in zip(axes, (known, winner), ("labels", "prediction"), strict=False):
        plots.show_labels(one, shown.T, alpha=1.0)
        one.set(xticks=[], yticks=[], title=title)
    wrong = (labels != winner) & (labels != IGNORED_PIXEL)
    title = "wrong, and how sure of it"
    plots.show_scalar(axes[2], np.where(wrong, confidence / 255, np.nan).T, "confidence", title)
    for one in axes:
        one.set_aspect(case.aspect)
    plots.structure_legend(axes[0], class_names)
    return figure


def scaling_figure(tables: Tables, data: str, temperature: float) -> Figure:
    """Reliability in each region as given, and below it after the fitted temperature.

    Args:
        tables: of the judged cases, with what was scaled.
        data: name of the data.
        temperature: the fitted one.
    """
    regions = _regions(tables)
    figure, pairs = plots.new_reliability_figure(len(regions), 2, data=_shown(tables, data))
    for row, (prefix, title) in enumerate((("", "as given"), (SCALED, f"T = {temperature:.2f}"))):
        for pair, region in zip(pairs[row], regions, strict=True):
            _draw_reliability(pair, _bins_of(tables, f"{prefix}{region}"), f"{region}, {title}")
    return figure
