"""Every figure of the course: each function draws into an Axes and returns what it drew.

Figures are made without pyplot (:func:`new_figure`) and shown as pictures with alt text (:func:`show`). So a notebook
looks the same in every front end and with every matplotlib backend.

The colours are Okabe and Ito's, which readers with any colour vision can tell apart. A structure or a loss has the same
colour in all figures.

Example:
    >>> figure, axes = new_figure(1, 2)
    >>> lines = curves(axes[0, 0], {"CE": [0.9, 0.5], "MbLS": [0.8, 0.4]}, "epoch", "loss")
    >>> [line.get_color() for line in lines]
    ['#000000', '#0072B2']

References:
    Okabe and Ito, Color Universal Design, 2008.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from mbls.metrics import Reliability

__all__ = [
    "LOSS_COLOURS",
    "STRUCTURE_COLOURS",
    "blank_axes",
    "curves",
    "curves_with_band",
    "forest",
    "lines_with_spread",
    "loss_colour",
    "new_figure",
    "points_by_loss",
    "reliability_diagram",
    "reliability_points",
    "show",
    "show_image",
    "show_labels",
    "show_scalar",
    "steps_colormap",
    "structure_legend",
]

#: By label, from 1 on; further structures start again with the first colour.
STRUCTURE_COLOURS = ("#56B4E9", "#009E73", "#F0E442", "#E69F00", "#CC79A7", "#0072B2", "#D55E00")
#: By the first part of a loss's name.
LOSS_COLOURS = {
    "ce": "#000000",
    "ls": "#E69F00",
    "fl": "#CC79A7",
    "ecp": "#D55E00",
    "svls": "#56B4E9",
    "mbls": "#0072B2",
    "nacl": "#009E73",
}
#: A bin with a smaller share of the voxels is drawn in grey.
SMALL_SHARE, SMALL_COLOUR = 0.01, "#BBBBBB"


def new_figure(rows: int = 1, columns: int = 1, width: float = 9.0, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """A figure and its axes.

    Args:
        rows: number of rows of axes.
        columns: number of columns of axes.
        width: of the figure, in inches.
        height: of the figure, in inches.

    Returns:
        The figure, and an array of axes of shape (rows, columns).
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def show(figure: Figure, alt: str) -> Any:
    """The figure as a picture for a notebook.

    Args:
        figure: the figure to show.
        alt: what it shows, in words, for readers who cannot see it.

    Raises:
        ImportError: no IPython.
    """
    try:
        from IPython.display import Image
    except ImportError as error:
        raise ImportError("pictures in a notebook need IPython: pip install 'mbls[course]'") from error

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    return Image(picture.getvalue(), format="png", alt=alt)


def loss_colour(name: str) -> str:
    """Colour of a loss by its name or spec; grey for an unknown one.

    Args:
        name: such as "mbls", "mbls:margin=5" or "MbLS, m = 5".

    Example:
        >>> loss_colour("mbls:margin=5") == loss_colour("MbLS") == LOSS_COLOURS["mbls"]
        True
    """
    return LOSS_COLOURS.get(name.lower().split(":")[0].split("_")[0].split()[0], "#999999")


def show_image(axes: Axes, image: np.ndarray, title: str = "") -> AxesImage:
    """A slice in grey, x to the right and y down, as radiologists look at ACDC.

    Args:
        axes: where to draw.
        image: (x, y).
        title: above the picture.
    """
    low, high = np.percentile(image, (1, 99))
    shown = axes.imshow(np.asarray(image).T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    axes.set(title=title, xticks=[], yticks=[])
    return shown


def blank_axes(axes: Axes, title: str = "") -> None:
    """Axes without frame and ticks, for pictures and triangles.

    Args:
        axes: the axes to change.
        title: above them.
    """
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def show_labels(axes: Axes, labels: np.ndarray, alpha: float = 0.55) -> AxesImage:
    """Labels over an image; the background and ignored voxels stay clear.

    Args:
        axes: where to draw.
        labels: (x, y) whole numbers, 0 the background, negative where ignored.
        alpha: opacity of the colours.
    """
    shown = np.ma.masked_less_equal(np.asarray(labels).T.astype(int), 0)
    colours = ListedColormap(STRUCTURE_COLOURS)
    shown = (shown - 1) % colours.N + 1
    return axes.imshow(shown, cmap=colours, vmin=1, vmax=colours.N, alpha=alpha, interpolation="nearest")


def structure_legend(axes: Axes, class_names: Sequence[str]) -> Legend:
    """A legend of the structures under the axes.

    Args:
        axes: where to draw.
        class_names: names by label, the background first; it is left out.
    """
    colours = itertools.cycle(STRUCTURE_COLOURS)
    patches = [Patch(color=colour, label=name) for name, colour in zip(class_names[1:], colours, strict=False)]
    return axes.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False)


def show_scalar(
    axes: Axes, values: np.ndarray, label: str, title: str = "", limits: tuple[float, float] = (0, 1)
) -> AxesImage:
    """A map of one number a voxel, with a colour bar.

    Args:
        axes: where to draw.
        values: (x, y).
        label: beside the colour bar.
        title: above the map.
        limits: the values at the two ends of the colour bar.
    """
    shown = axes.imshow(np.asarray(values).T, cmap="cividis", vmin=limits[0], vmax=limits[1])
    axes.set(title=title, xticks=[], yticks=[])
    axes.figure.colorbar(shown, ax=axes, label=label, shrink=0.8)
    return shown


def steps_colormap(steps: int) -> ListedColormap:
    """Colours from near white to dark red, for the whole numbers 0, 1, ..., steps - 1.

    Args:
        steps: number of colours.
    """
    return ListedColormap(colormaps["OrRd"](np.linspace(0.02, 0.95, steps)))


def reliability_diagram(
    axes: Axes, reliability: Reliability, title: str = "", colour: str = "#0072B2"
) -> tuple[BarContainer, BarContainer, Line2D]:
    """Accuracy against confidence by bin, with the gap between them hatched.

    Args:
        axes: where to draw.
        reliability: from :meth:`mbls.metrics.CalibrationBins.reliability`. A bin with 5 % of the voxels or more shows
            its share.
        title: above the diagram.
        colour: of the bars.

    Returns:
        The bars, the gaps and the diagonal.
    """
    edges, share = reliability.edges, reliability.count / max(reliability.count.sum(), 1)
    filled = reliability.count > 0
    lefts, widths = edges[:-1][filled], np.diff(edges)[filled]
    accuracy, confidence = reliability.accuracy[filled], reliability.confidence[filled]
    bars = axes.bar(lefts, accuracy, widths, align="edge", color=colour, edgecolor="white", label="accuracy")
    gap = axes.bar(
        lefts,
        confidence - accuracy,
        widths,
        bottom=accuracy,
        align="edge",
        fill=False,
        hatch="///",
        edgecolor="#D55E00",
        linewidth=0.8,
        label="gap to confidence",
    )
    (diagonal,) = axes.plot([0, 1], [0, 1], color="0.3", linestyle="--", linewidth=1, label="perfectly calibrated")
    for left, width, part in zip(lefts, widths, share[filled], strict=True):
        if part >= 0.05:
            text = f"{100 * part:.0f} %"
            axes.text(left + width / 2, 0.03, text, ha="center", va="bottom", fontsize=8, color="white", rotation=90)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=title, aspect="equal")
    return bars, gap, diagonal


def curves(
    axes: Axes, series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, title: str = ""
) -> list[Line2D]:
    """One line a loss, over 1, 2, 3, ...

    Args:
        axes: where to draw.
        series: loss -> its values; NaN is skipped.
        xlabel: below the axes.
        ylabel: beside the axes.
        title: above the axes.
    """
    lines: list[Line2D] = []
    for name, values in series.items():
        values = np.asarray(values, dtype=float)
        known = np.isfinite(values)
        steps = np.arange(1, len(values) + 1)
        lines += axes.plot(steps[known], values[known], marker="o", markersize=3, color=loss_colour(name), label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return lines


def points_by_loss(
    axes: Axes, table: pd.DataFrame, x: str, y: str, names: Mapping[str, str], title: str = ""
) -> list[ErrorbarContainer]:
    """One cross a loss: the means of two figures over the seeds, with arms of one standard deviation.

    A single seed gives a point.

    Args:
        axes: where to draw.
        table: a run a row, with columns loss, x and y.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        names: loss -> the text beside its cross; other losses are pale points.
        title: above the axes.
    """
    crosses = []
    halo = [withStroke(linewidth=3, foreground="white")]  # names stay legible over the arms
    for loss in table["loss"].unique():
        (at_x, spread_x), (at_y, spread_y) = (_mean_and_std(table.loc[table["loss"] == loss, name]) for name in (x, y))
        colour = loss_colour(loss)
        style = {"marker": "o", "markersize": 5, "color": colour}
        if loss in names:
            crosses.append(axes.errorbar(at_x, at_y, spread_y, spread_x, zorder=3, **style))
            label = {"fontsize": 9, "color": colour, "path_effects": halo, "zorder": 4}
            axes.annotate(names[loss], (at_x, at_y), (5, 5), textcoords="offset points", **label)
        else:
            crosses.append(axes.errorbar(at_x, at_y, alpha=0.35, zorder=2, **style))
    axes.set(title=title)
    axes.margins(0.18, 0.12)  # room for the names on the right
    axes.grid(alpha=0.3)
    return crosses


def lines_with_spread(
    axes: Axes, table: pd.DataFrame, x: str, y: str, names: Mapping[str, str], xlabel: str, ylabel: str
) -> list[ErrorbarContainer]:
    """One line a loss through the means over the seeds, with bars of one standard deviation.

    Args:
        axes: where to draw.
        table: a run a row, with columns loss, x and y.
        x: column of the horizontal axis; the runs that agree in it are averaged.
        y: column of the vertical axis.
        names: the losses to draw -> their names in the legend.
        xlabel: below the axes.
        ylabel: beside the axes.
    """
    lines = []
    for (loss, name), line in zip(names.items(), _line_styles(names), strict=True):
        groups = table[table["loss"] == loss].groupby(x)[y]
        means, deviations = groups.agg("mean"), groups.agg("std").fillna(0)
        style = {"marker": "o", "markersize": 4, "capsize": 3, "color": loss_colour(loss), "linestyle": line}
        lines.append(axes.errorbar(means.index, means, deviations, label=name, **style))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return lines


def curves_with_band(
    axes: Axes, table: pd.DataFrame, x: str, y: str, names: Mapping[str, str], xlabel: str, ylabel: str
) -> list[Line2D]:
    """One line a loss, the mean over its runs, in a band from the lowest to the highest of them.

    Args:
        axes: where to draw.
        table: a row for each run and x, with columns loss, x and y; NaN is left out.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        names: the losses to draw -> their names in the legend. Losses of one colour get different lines.
        xlabel: below the axes.
        ylabel: beside the axes.
    """
    lines: list[Line2D] = []
    for (loss, name), style in zip(names.items(), _line_styles(names), strict=True):
        runs = table.loc[(table["loss"] == loss) & table[y].notna()].groupby(x)[y]
        mean, low, high = (runs.agg(how) for how in ("mean", "min", "max"))
        colour = loss_colour(loss)
        (line,) = axes.plot(mean.index, mean, color=colour, linestyle=style, label=name)
        axes.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        lines.append(line)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return lines


def reliability_points(
    axes: Axes,
    below: Axes,
    reliability: Reliability,
    interval: tuple[np.ndarray, np.ndarray] | None = None,
    title: str = "",
    colour: str = LOSS_COLOURS["mbls"],
) -> list[Line2D]:
    """A reliability diagram: a point a bin, at its mean confidence and its accuracy, and below how many voxels it has.

    A point under the diagonal claims more than it keeps. Bins with less than a hundredth of the voxels are grey: they
    weigh next to nothing in the ECE.

    Args:
        axes: where to draw the points.
        below: where to draw the share of the voxels of each bin, under ``axes``.
        reliability: from :meth:`mbls.metrics.CalibrationBins.reliability`.
        interval: lower and upper end of each bin's accuracy, such as a bootstrap over subjects gives; drawn as a bar.
        title: above the diagram.
        colour: of the points.

    Returns:
        The points, a line a bin that is not empty.
    """
    share = reliability.count / max(reliability.count.sum(), 1)
    axes.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1)
    points: list[Line2D] = []
    for place in np.flatnonzero(share > 0):
        shown = colour if share[place] >= SMALL_SHARE else SMALL_COLOUR
        at, height = reliability.confidence[place], reliability.accuracy[place]
        if interval is not None and np.isfinite(interval[0][place]):
            axes.plot([at, at], [interval[0][place], interval[1][place]], color=shown, linewidth=2, alpha=0.5)
        points += axes.plot(at, height, marker="o", markersize=6, color=shown, linestyle="none")
    colours = [colour if part >= SMALL_SHARE else SMALL_COLOUR for part in share]
    below.bar(reliability.edges[:-1], share, np.diff(reliability.edges), align="edge", color=colours, edgecolor="white")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=title, xticklabels=[])
    below.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="voxels", yticks=[0, 1], yticklabels=["0", "all"])
    axes.grid(alpha=0.3)
    return points


def forest(axes: Axes, table: pd.DataFrame, names: Mapping[str, str], xlabel: str, title: str = "") -> list[Line2D]:
    """One line a loss from top to bottom: a difference as a point, its interval as a bar, and zero as a dashed line.

    Args:
        axes: where to draw.
        table: columns loss, difference, low and high, a row a loss.
        names: the losses to draw, from the top down -> their names.
        xlabel: below the axes: the difference of what, from what.
        title: above the axes.

    Returns:
        The points.
    """
    points: list[Line2D] = []
    rows = table.set_index("loss")
    for place, loss in enumerate(names):
        row, colour = rows.loc[loss], loss_colour(loss)
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=3, alpha=0.4)
        points += axes.plot(row["difference"], place, marker="o", markersize=6, color=colour, linestyle="none")
    axes.axvline(0, color="0.5", linestyle="--", linewidth=1)
    axes.set(yticks=range(len(names)), yticklabels=list(names.values()), xlabel=xlabel, title=title)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    return points


def _line_styles(losses: Iterable[str]) -> list[str]:
    """One a loss, so that losses of one colour can be told apart."""
    styles: dict[str, Iterator[str]] = {}
    return [next(styles.setdefault(loss_colour(loss), itertools.cycle(["-", "--", ":", "-."]))) for loss in losses]


def _mean_and_std(values: pd.Series) -> tuple[float, float]:
    """Mean and standard deviation (n - 1); the deviation of a single value is 0."""
    mean, deviation = values.agg(["mean", "std"]).to_numpy(float)
    return float(mean), float(np.nan_to_num(deviation))
