"""Every figure of the course: each function draws into an Axes and returns what it drew.

Figures are made without pyplot (:func:`new_figure`), name the data that they show, and are shown as pictures with alt
text (:func:`show`). So a notebook looks the same in every front end and with every matplotlib backend.

A structure, a loss, or a meaning such as "penalised" has one colour in all figures. The losses' colours are Okabe and
Ito's, the others Paul Tol's: readers with any colour vision can tell those of one figure apart.

Example:
    >>> figure, axes = new_figure(1, 2, data="phantom, 8 patients")
    >>> lines = curves(axes[0, 0], {"CE": [0.9, 0.5], "MbLS": [0.8, 0.4]}, "epoch", "loss")
    >>> [line.get_color() for line in lines]
    ['#000000', '#0072B2']

References:
    Okabe and Ito, Color Universal Design, 2008. Tol, Colour Schemes, SRON 2021.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_hex, to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from mbls.metrics import Reliability

__all__ = [
    "COLOURS",
    "LOSS_COLOURS",
    "STRUCTURE_COLOURS",
    "Picture",
    "agreement",
    "before_and_after",
    "blank_axes",
    "curves",
    "curves_with_band",
    "film_strip",
    "forest",
    "gap_heat_map",
    "layers",
    "legend_panel",
    "lines_with_spread",
    "loss_colour",
    "new_figure",
    "new_reliability_figure",
    "points_by_loss",
    "reading_key",
    "reliability_diagram",
    "risk_curves",
    "shades",
    "show",
    "show_difference",
    "show_image",
    "show_labels",
    "show_pairs",
    "show_scalar",
    "steps_colormap",
    "structure_legend",
]

#: Colours of structures by label, from 1 on; further structures start again with the first colour.
STRUCTURE_COLOURS = ("#33BBEE", "#009988", "#EE3377", "#BBCC33", "#AA4499", "#4477AA", "#EE8866")
#: Colours of losses, by the first part of the name.
LOSS_COLOURS = {
    "ce": "#000000",
    "ls": "#E69F00",
    "fl": "#CC79A7",
    "ecp": "#8C510A",
    "svls": "#56B4E9",
    "mbls": "#0072B2",
    "nacl": "#009E73",
    "l1ace": "#999933",
}
#: Colours of everything else that has a meaning.
COLOURS = {
    "truth": "#4D4D4D",  # what is so: the true probability
    "claimed": "#882255",  # what a network says
    "penalised": "#CC3311",  # beyond the margin, and the force that acts there
    "free": "#9FCC9F",  # within the margin
    "margin": "#117733",  # the margin itself
    "now": "#332288",  # what is under the reader's hand
    "end": "#DDAA33",  # where descent ends
    "background": "#8C8C8C",  # the class
    "guide": "#707070",  # diagonals, zeros, bounds
    "chance": "#D5D5D5",  # what chance alone would make
    "small": "#BBBBBB",  # bins that hold next to no voxels
}
#: A bin with a smaller share of the voxels is drawn in the colour "small".
SMALL_SHARE = 0.01
#: Pictures are this many pixels an inch, and shown at a smaller size: sharp on a projector.
DPI, SHOWN_DPI = 150, 90
#: A drawing up to this many bytes is kept as one (SVG), a larger one as an image (WebP).
SVG_BYTES = 60_000


def new_figure(
    rows: int = 1, columns: int = 1, width: float = 9.0, height: float = 3.4, *, data: str | None
) -> tuple[Figure, np.ndarray]:
    """A figure that names its data, and its axes.

    Args:
        rows: number of rows of axes.
        columns: number of columns of axes.
        width: of the figure, in inches.
        height: of the figure, in inches.
        data: what is shown, such as "phantom, 8 unseen patients"; stands below the figure. None: a formula, no data.

    Returns:
        The figure, and an array of axes of shape (rows, columns).
    """
    figure = _figure_of(width, height, data)
    return figure, figure.subplots(rows, columns, squeeze=False)


def new_reliability_figure(
    columns: int = 1, rows: int = 1, width: float = 3.2, height: float = 3.9, *, data: str | None
) -> tuple[Figure, np.ndarray]:
    """A figure for reliability diagrams side by side.

    Args:
        columns: number of diagrams in a row.
        rows: number of rows.
        width: of one diagram, in inches.
        height: of one diagram, in inches.
        data: as for :func:`new_figure`.

    Returns:
        The figure, and an array of axes of shape (rows, columns, 2): the last axis holds the pair that
        :func:`reliability_diagram` draws into.
    """
    figure = _figure_of(width * columns, height * rows, data)
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=(4, 1) * rows)
    return figure, axes.reshape(rows, 2, columns).swapaxes(1, 2)


def _figure_of(width: float, height: float, data: str | None) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    if data is not None:
        figure.supxlabel(f"data: {data}", x=0.995, ha="right", fontsize=8, color=COLOURS["guide"])
    return figure


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it: an ``img`` of HTML, whose alt text reaches the page in every front end.

    Attributes:
        alt: what it shows, in words.
        kind: "image/svg+xml" or "image/webp".
        content: the drawing or image.
        width: at which it is shown, in pixels.
    """

    alt: str
    kind: str
    content: bytes
    width: int

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": repr(self)}

    @property
    def html(self) -> str:
        """The ``img``, with the picture in it."""
        source = f"data:{self.kind};base64,{base64.b64encode(self.content).decode()}"
        style = "max-width:100%;height:auto;background:white"
        return f'<img src="{source}" alt="{html.escape(self.alt)}" width="{self.width}" style="{style}">'

    def __repr__(self) -> str:
        return f"Picture: {self.alt}"


def show(figure: Figure, alt: str) -> Picture:
    """The figure as a picture for a notebook: a drawing where that is small, else an image.

    Args:
        figure: the figure to show.
        alt: what it shows, in words, for readers who cannot see it.

    Example:
        >>> figure, axes = new_figure(data=None)
        >>> show(figure, "an empty frame")
        Picture: an empty frame
    """
    kind, content = "image/svg+xml", io.BytesIO()
    # Without a date and with a fixed salt the same figure gives the same bytes.
    with rc_context({"svg.hashsalt": "mbls"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    if len(content.getvalue()) > SVG_BYTES:
        kind, content = "image/webp", io.BytesIO()
        figure.savefig(content, format="webp", dpi=DPI, pil_kwargs={"quality": 90})
    return Picture(alt, kind, content.getvalue(), round(figure.get_figwidth() * SHOWN_DPI))


def loss_colour(name: str) -> str:
    """Colour of a loss by its name or spec; grey for an unknown one.

    Args:
        name: such as "mbls", "mbls:margin=5" or "MbLS, m = 5".

    Example:
        >>> loss_colour("mbls:margin=5") == loss_colour("MbLS") == LOSS_COLOURS["mbls"]
        True
    """
    return LOSS_COLOURS.get(name.lower().split(":")[0].split("_")[0].split()[0], COLOURS["guide"])


def shades(colour: str, count: int) -> list[str]:
    """One colour from pale to full, for stages of the same thing.

    Args:
        colour: the last of them.
        count: how many.

    Example:
        >>> shades("#000000", 2)
        ['#b2b2b2', '#000000']
    """
    full = np.array(to_rgb(colour))
    return [to_hex(tuple(1 - part * (1 - full))) for part in np.linspace(0.3, 1, count)]


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


def legend_panel(blank: Axes, axes: Axes) -> Legend:
    """The legend of some axes in a panel of its own, where it lies over no data.

    Args:
        blank: an empty panel.
        axes: what the legend is of.
    """
    blank.set_axis_off()
    return blank.legend(*axes.get_legend_handles_labels(), loc="center", frameon=False)


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


def film_strip(
    films: Mapping[str, Mapping[int, np.ndarray]],
    when: str,
    label: str,
    limits: tuple[float, float] = (0, 1),
    data: str | None = None,
) -> Figure:
    """Maps of one number a voxel, a row for each network and a column for each time, with one colour bar.

    Args:
        films: name -> time -> map (x, y); all rows have the same times.
        when: what the times count, "epoch".
        label: beside the colour bar.
        limits: the values at the two ends of the colour bar.
        data: as for :func:`new_figure`.
    """
    times = list(next(iter(films.values())))
    figure, rows = new_figure(len(films), len(times), 2.2 * len(times), 2.2 * len(films), data=data)
    for row, (name, film) in zip(rows, films.items(), strict=True):
        row[0].set_ylabel(name)
        for axes, time in zip(row, times, strict=True):
            shown = axes.imshow(np.asarray(film[time]).T, cmap="cividis", vmin=limits[0], vmax=limits[1])
            axes.set(xticks=[], yticks=[])
    for axes, time in zip(rows[0], times, strict=True):
        axes.set_title(f"{when} {time}")
    figure.colorbar(shown, ax=rows, label=label, shrink=0.8)
    return figure


def show_difference(axes: Axes, values: np.ndarray, label: str, title: str = "", limit: float = 1) -> AxesImage:
    """A map of what is claimed minus what is so, white at zero, with a colour bar.

    Args:
        axes: where to draw.
        values: (x, y).
        label: beside the colour bar.
        title: above the map.
        limit: the value at the upper end of the colour bar; its negative is at the lower.
    """
    shown = show_scalar(axes, values, label, title, (-limit, limit))
    shown.set_cmap(LinearSegmentedColormap.from_list("difference", [COLOURS["truth"], "white", COLOURS["claimed"]]))
    return shown


def show_pairs(axes: Axes, x: np.ndarray, y: np.ndarray, xlabel: str, ylabel: str, title: str = "") -> QuadMesh:
    """How many voxels have which pair of two probabilities, with a colour bar over the logarithm and the diagonal.

    Args:
        axes: where to draw.
        x: a probability a voxel, along the horizontal axis.
        y: another one, along the vertical axis.
        xlabel: below the axes.
        ylabel: beside the axes.
        title: above the axes.
    """
    edges = np.linspace(0, 1, 41)
    counts = np.histogram2d(np.ravel(x), np.ravel(y), (edges, edges))[0]
    shown = axes.pcolormesh(edges, edges, np.log10(1 + counts.T), cmap="Greys")
    axes.plot([0, 1], [0, 1], color=COLOURS["guide"], linestyle="--", linewidth=1)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, aspect="equal")
    axes.figure.colorbar(shown, ax=axes, label="voxels, log10(1 + n)", shrink=0.8)
    return shown


def steps_colormap(steps: int) -> ListedColormap:
    """Colours from near white to that of "penalised", for the whole numbers 0, 1, ..., steps - 1.

    Args:
        steps: number of colours.
    """
    return ListedColormap(["#FFFFFF", *shades(COLOURS["penalised"], steps - 1)])


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


def reliability_diagram(
    pair: Sequence[Axes],
    reliability: Reliability,
    interval: tuple[np.ndarray, np.ndarray] | None = None,
    title: str = "",
    colour: str = COLOURS["claimed"],
) -> list[Line2D]:
    """A point a bin, at its mean confidence and its accuracy, and below how many voxels it has.

    A point under the diagonal claims more than comes true. Bins with less than a hundredth of the voxels are grey: they
    weigh next to nothing in the ECE.

    Args:
        pair: where to draw the points, and under it the share of the voxels of each bin; from
            :func:`new_reliability_figure`.
        reliability: from :meth:`mbls.metrics.CalibrationBins.reliability`.
        interval: lower and upper end of each bin's accuracy, such as a bootstrap over subjects gives; drawn as a bar.
        title: above the diagram.
        colour: of the points.

    Returns:
        The points, a line a bin that is not empty.
    """
    axes, below = pair
    share = reliability.count / max(reliability.count.sum(), 1)
    axes.plot([0, 1], [0, 1], color=COLOURS["guide"], linestyle="--", linewidth=1)
    points: list[Line2D] = []
    for place in np.flatnonzero(share > 0):
        shown = colour if share[place] >= SMALL_SHARE else COLOURS["small"]
        at, height = reliability.confidence[place], reliability.accuracy[place]
        if interval is not None and np.isfinite(interval[0][place]):
            axes.plot([at, at], [interval[0][place], interval[1][place]], color=shown, linewidth=2, alpha=0.5)
        # A point at confidence 1 lies on the frame, and is drawn whole.
        points += axes.plot(at, height, marker="o", markersize=6, color=shown, linestyle="none", clip_on=False)
    colours = [colour if part >= SMALL_SHARE else COLOURS["small"] for part in share]
    below.bar(reliability.edges[:-1], share, np.diff(reliability.edges), align="edge", color=colours, edgecolor="white")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=title, xticklabels=[])
    below.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="voxels", yticks=[0, 1], yticklabels=["0", "all"])
    axes.grid(alpha=0.3)
    return points


def reading_key(axes: Axes) -> None:
    """Write into a reliability diagram what its two halves mean; for the first one that a reader meets.

    Args:
        axes: the upper axes of a diagram.
    """
    style = {"transform": axes.transAxes, "fontsize": 9, "style": "italic", "color": COLOURS["guide"]}
    axes.text(0.05, 0.95, "claims less\nthan comes true", va="top", **style)
    axes.text(0.95, 0.05, "claims more\nthan comes true", ha="right", **style)


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
    axes.axvline(0, color=COLOURS["guide"], linestyle="--", linewidth=1)
    axes.set(yticks=range(len(names)), yticklabels=list(names.values()), xlabel=xlabel, title=title)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    return points


def before_and_after(
    axes: Axes, table: pd.DataFrame, before: str, after: str, names: Mapping[str, str], xlabel: str, title: str = ""
) -> list[Line2D]:
    """One line a loss from top to bottom: an open point before, a full one after, and an arrow between them.

    Args:
        axes: where to draw.
        table: a run a row, with columns loss, before and after; the runs of a loss are averaged.
        before: column of the open point.
        after: column of the full point.
        names: the losses to draw, from the top down -> their names.
        xlabel: below the axes.
        title: above the axes.

    Returns:
        The full points.
    """
    points: list[Line2D] = []
    for place, loss in enumerate(names):
        runs, colour = table[table["loss"] == loss], loss_colour(loss)
        start, end = runs[before].mean(), runs[after].mean()
        arrow = {"arrowstyle": "->", "color": colour, "shrinkA": 5, "shrinkB": 5}
        axes.annotate("", (end, place), (start, place), arrowprops=arrow)
        axes.plot(start, place, marker="o", markersize=7, color=colour, markerfacecolor="white", linestyle="none")
        points += axes.plot(end, place, marker="o", markersize=7, color=colour, linestyle="none")
    axes.set(yticks=range(len(names)), yticklabels=list(names.values()), xlabel=xlabel, title=title)
    axes.set_xlim(left=0)
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


def gap_heat_map(axes: Axes, gaps: np.ndarray, names: Sequence[str], xlabel: str, label: str) -> AxesImage:
    """Confidence minus accuracy, a row a case and a column a bin of confidence; bins without a number are grey.

    Args:
        axes: where to draw.
        gaps: (cases, bins) in -1..1, NaN where a bin holds next to nothing.
        names: of the cases.
        xlabel: below the axes.
        label: beside the colour bar.
    """
    ends = [COLOURS["truth"], "white", COLOURS["claimed"]]
    colours = LinearSegmentedColormap.from_list("difference", ends).with_extremes(bad="#EEEEEE")
    limit = float(np.nanmax(np.abs(gaps))) if np.isfinite(gaps).any() else 1.0
    extent = (0, 1, len(names) - 0.5, -0.5)
    shown = axes.imshow(gaps, cmap=colours, vmin=-limit, vmax=limit, extent=extent, aspect="auto", interpolation="none")
    axes.set(xlabel=xlabel, yticks=range(len(names)))
    axes.set_yticklabels(names, fontsize=7)
    axes.figure.colorbar(shown, ax=axes, label=label)
    return shown


def layers(
    axes: Axes, names: Sequence[str], series: Mapping[str, tuple[str, Sequence[float]]], xlabel: str
) -> list[Line2D]:
    """One line a series over layers that follow each other.

    Args:
        axes: where to draw.
        names: of the layers.
        series: name -> its colour in :data:`COLOURS`, and a number a layer.
        xlabel: below the axes.
    """
    lines: list[Line2D] = []
    for name, (colour, values) in series.items():
        lines += axes.plot(range(len(names)), values, marker="o", color=COLOURS[colour], label=name)
    axes.set(xticks=range(len(names)), xlabel=xlabel, ylim=(None, 1.01))
    axes.set_xticklabels(names, fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return lines


def risk_curves(axes: Axes, coverage: np.ndarray, series: Mapping[str, np.ndarray], random: float) -> list[Line2D]:
    """Risk of the cases that are kept, against their share; a random order is a dashed line.

    Args:
        axes: where to draw.
        coverage: share of the cases that is kept.
        series: order of the cases -> risk at each coverage; the first is the network's, the second the best.
        random: risk in a random order.
    """
    lines: list[Line2D] = []
    for (name, values), colour in zip(series.items(), (COLOURS["claimed"], COLOURS["truth"]), strict=True):
        lines += axes.plot(coverage, values, color=colour, marker=".", label=name)
    axes.axhline(random, color=COLOURS["guide"], linestyle="--", linewidth=1, label="random order")
    axes.set(xlim=(0, 1.02), xlabel="share of the cases kept", ylabel="mean 1 - DSC of these")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    return lines


def agreement(
    axes: Axes,
    truth: np.ndarray,
    predicted: np.ndarray,
    naive: np.ndarray,
    conformal: float,
    colour: str,
    label: str,
    title: str,
) -> list[Line2D]:
    """Predicted against true amounts, a point a case, with the interval that each case claims and one for all.

    Args:
        axes: where to draw.
        truth: of the cases.
        predicted: of the cases.
        naive: half the width of each case's own interval, drawn as a bar.
        conformal: half the width of an interval that holds for all, drawn as a band around the diagonal; NaN: none.
        colour: of the points.
        label: what is measured, with its unit.
        title: above the axes.
    """
    top = 1.05 * float(max(truth.max(initial=0), (predicted + naive).max(initial=0), 1e-6))
    ends = np.array([0, top])
    if np.isfinite(conformal):
        band = {"color": COLOURS["chance"], "alpha": 0.6, "linewidth": 0, "label": "conformal 95 %"}
        axes.fill_between(ends, ends - conformal, ends + conformal, **band)
    axes.plot(ends, ends, color=COLOURS["guide"], linestyle="--", linewidth=1)
    bars = {"color": colour, "linestyle": "none", "linewidth": 2, "alpha": 0.6}
    axes.errorbar(truth, predicted, naive, label="naive 95 % (bars)", **bars)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    points = axes.plot(truth, predicted, marker="o", markersize=4, color=colour, linestyle="none")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel=f"true {label}", ylabel=f"expected {label}", title=title)
    axes.grid(alpha=0.3)
    return points
