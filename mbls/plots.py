"""Every figure of the course: each function draws into an Axes and returns what it drew.

Figures are made without pyplot (:func:`new_figure`) and shown as pictures with alt text (:func:`show`), so that a notebook
looks the same in every front end and under every matplotlib backend.

Colours are Okabe and Ito's, which readers with any colour vision tell apart; structures and losses keep theirs throughout.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from mbls.data.acdc import CLASS_NAMES
from mbls.metrics import Reliability

__all__ = [
    "LOSS_COLOURS",
    "STRUCTURE_COLOURS",
    "bars_by_loss",
    "blank_axes",
    "curves",
    "lines_with_spread",
    "loss_colour",
    "new_figure",
    "points_by_loss",
    "reliability_diagram",
    "show",
    "show_image",
    "show_labels",
    "show_scalar",
    "steps_colormap",
    "structure_legend",
]

#: RV, MYO, LV.
STRUCTURE_COLOURS = ("#56B4E9", "#009E73", "#F0E442")
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


def new_figure(rows: int = 1, columns: int = 1, width: float = 9.0, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches and its axes, an array of shape (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def show(figure: Figure, alt: str) -> Any:
    """The figure as a picture for a notebook, with a text for readers who cannot see it.

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
    """Colour of a loss, "mbls:margin=5" and "MbLS" included; grey for others."""
    return LOSS_COLOURS.get(name.lower().split(":")[0].split("_")[0].split()[0], "#999999")


def show_image(axes: Axes, image: np.ndarray, title: str = "") -> AxesImage:
    """A slice (x, y) in grey, x to the right and y down, as radiologists look at ACDC."""
    low, high = np.percentile(image, (1, 99))
    shown = axes.imshow(np.asarray(image).T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    axes.set(title=title, xticks=[], yticks=[])
    return shown


def blank_axes(axes: Axes, title: str = "") -> None:
    """Axes without frame and ticks, for pictures and triangles."""
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def show_labels(axes: Axes, labels: np.ndarray, alpha: float = 0.55) -> AxesImage:
    """Labels (x, y) over an image; the background stays clear."""
    labels = np.asarray(labels).T
    shown = np.ma.masked_equal(labels, 0)
    return axes.imshow(
        shown, cmap=ListedColormap(STRUCTURE_COLOURS), vmin=1, vmax=3, alpha=alpha, interpolation="nearest"
    )


def structure_legend(axes: Axes) -> Artist:
    """A legend of the three structures under the axes."""
    patches = [Patch(color=colour, label=name) for name, colour in zip(CLASS_NAMES[1:], STRUCTURE_COLOURS, strict=True)]
    return axes.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False)


def show_scalar(
    axes: Axes, values: np.ndarray, label: str, title: str = "", limits: tuple[float, float] = (0, 1)
) -> AxesImage:
    """A map (x, y) of one number a voxel, with a colour bar."""
    shown = axes.imshow(np.asarray(values).T, cmap="cividis", vmin=limits[0], vmax=limits[1])
    axes.set(title=title, xticks=[], yticks=[])
    axes.figure.colorbar(shown, ax=axes, label=label, shrink=0.8)
    return shown


def steps_colormap(steps: int) -> ListedColormap:
    """A colour for each of 0, 1, 2, ... steps, from near white to dark red."""
    return ListedColormap(colormaps["OrRd"](np.linspace(0.02, 0.95, steps)))


def reliability_diagram(axes: Axes, reliability: Reliability, title: str = "", colour: str = "#0072B2") -> list[Artist]:
    """Accuracy against confidence by bin; the gap between them is hatched, a bar from 5 % of the voxels up says its share."""
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
    return [bars, gap, diagonal]


def curves(
    axes: Axes, series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, title: str = ""
) -> list[Artist]:
    """One line a loss over 1, 2, 3, ...; values that are missing (NaN) are skipped."""
    lines = []
    for name, values in series.items():
        values = np.asarray(values, dtype=float)
        known = np.isfinite(values)
        steps = np.arange(1, len(values) + 1)
        lines += axes.plot(steps[known], values[known], marker="o", markersize=3, color=loss_colour(name), label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return lines


def bars_by_loss(axes: Axes, values: Mapping[str, float], ylabel: str, title: str = "") -> list[Artist]:
    """One bar a loss, its value above it."""
    bars = axes.bar(list(values), list(values.values()), color=[loss_colour(name) for name in values], width=0.6)
    axes.bar_label(bars, fmt="%.3f", fontsize=9)
    axes.set(ylabel=ylabel, title=title, ylim=(0, 1.15 * max(values.values())))
    axes.spines[["top", "right"]].set_visible(False)
    return list(bars)


def points_by_loss(
    axes: Axes, table: pd.DataFrame, x: str, y: str, names: Mapping[str, str], title: str = ""
) -> list[Artist]:
    """A cross a loss at the means of two figures over the seeds, its arms a standard deviation long; a point for a single seed.

    Args:
        table: a run a row, with columns loss, x and y. names: loss -> what is written beside it; others are pale points.
    """
    crosses = []
    halo = [withStroke(linewidth=3, foreground="white")]  # names stay legible over the arms
    for loss, rows in table.groupby("loss", sort=False):
        mean, spread, colour = rows[[x, y]].mean(), rows[[x, y]].std().fillna(0), loss_colour(loss)
        at, style = (mean[x], mean[y]), {"marker": "o", "markersize": 5, "color": colour}
        if loss in names:
            crosses.append(axes.errorbar(*at, spread[y], spread[x], zorder=3, **style))
            label = {"fontsize": 9, "color": colour, "path_effects": halo, "zorder": 4}
            axes.annotate(names[loss], at, (5, 5), textcoords="offset points", **label)
        else:
            crosses.append(axes.errorbar(*at, alpha=0.35, zorder=2, **style))
    axes.set(title=title)
    axes.margins(0.18, 0.12)  # room for the names on the right
    axes.grid(alpha=0.3)
    return crosses


def lines_with_spread(
    axes: Axes, table: pd.DataFrame, x: str, y: str, names: Mapping[str, str], xlabel: str, ylabel: str
) -> list[Artist]:
    """One line a loss through the means over the seeds, with bars of one standard deviation.

    Args:
        table: a run a row, with columns loss, x and y. names: the losses to be drawn -> their names in the legend.
    """
    lines = []
    for loss, name in names.items():
        groups = table[table["loss"] == loss].groupby(x)[y]
        mean, spread = groups.mean(), groups.std().fillna(0)
        lines.append(
            axes.errorbar(
                mean.index, mean, spread, marker="o", markersize=4, capsize=3, color=loss_colour(loss), label=name
            )
        )
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return lines
