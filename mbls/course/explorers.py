"""The explorers of the course. Each lets the reader try out one idea; :mod:`mbls.course.explorer` has their base class.

Example:
    >>> explorer = VoxelExplorer(margin=5.0)
    >>> round(explorer.numbers.end_distance, 2)
    5.0
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

try:
    from traitlets import Float, Int, TraitError, Unicode, validate
except ImportError as error:
    raise ImportError("the explorers need ipywidgets and traitlets: pip install 'mbls[course]'") from error

from mbls import plots
from mbls.constraints import (
    calibration_map,
    confidence_at_margin,
    logit_distances,
    margin_calibration_map,
    margin_penalty,
    margin_penalty_gradient,
)
from mbls.course.explorer import Explorer
from mbls.data.acdc import CLASS_NAMES
from mbls.engine.judge import DISTANCE_EDGES, distance_counts
from mbls.losses import (
    CrossEntropyLoss,
    EntropyPenaltyLoss,
    FocalLoss,
    LabelSmoothingLoss,
    MbLSLoss,
    build_loss,
)
from mbls.metrics import CalibrationBins, Reliability
from mbls.statistics import bootstrap_samples

__all__ = [
    "BootstrapExplorer",
    "CalibrationMapExplorer",
    "LogitExplorer",
    "MarginExplorer",
    "NeighbourExplorer",
    "ReliabilityExplorer",
    "SliceExplorer",
    "VoxelExplorer",
]

_MEANS = ("confidence", "accuracy")  # columns of a table of histograms
_COLOURS, _MBLS = plots.COLOURS, plots.LOSS_COLOURS["mbls"]


class ReliabilityNumbers(NamedTuple):
    """One diagram, and how large its ECE would be by chance alone.

    Attributes:
        reliability: the diagram.
        ece: its ECE.
        chance: the ECE to expect from so few voxels if every confidence were right.
        standard_error: of the accuracy of each bin, if the confidence were right.
    """

    reliability: Reliability
    ece: float
    chance: float
    standard_error: np.ndarray


class ReliabilityExplorer(Explorer):
    """How many voxels does a reliability diagram need? A forecaster who knows the truth is judged on a sample.

    Args:
        probs: true label distributions of voxels, (N, K), N >= 100; labels are drawn from them once.
        seed: of the labels and of the order in which voxels enter the sample.
        data: what the voxels are from, for the figure.
        state: num_bins, num_voxels, temperature (1: the truth; below 1 the forecaster exaggerates).

    Raises:
        ValueError: probs of another shape.

    Example:
        >>> probs = torch.rand(500, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
        >>> ReliabilityExplorer(probs, num_voxels=300, num_bins=10)
        ReliabilityExplorer(num_bins=10, num_voxels=300, temperature=1.0): ECE ...
    """

    SAMPLES: ClassVar[tuple[int, ...]] = (30, 100, 300, 1000, 3000, 10_000, 30_000)
    size = (5.4, 5.6)
    static = ("num_voxels", "temperature")
    alt = "A reliability diagram, the range that chance explains, and the number of voxels in each bin."

    num_bins = Int(15, min=2, max=50).tag(label="bins")
    num_voxels = Int(1000).tag(label="voxels in the sample")
    temperature = Float(1.0, min=0.3, max=2.0).tag(label="temperature (1: the truth)", step=0.1)

    def __init__(self, probs: torch.Tensor, seed: int = 0, data: str | None = None, **state: Any) -> None:
        if probs.dim() != 2 or len(probs) < 100:
            raise ValueError(f"probs: got shape {tuple(probs.shape)}, expected (N, K) with N >= 100")
        self.data = data
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(probs), generator=generator)[: self.SAMPLES[-1]]
        self._probs = probs[order].double()
        chance = torch.rand(len(self._probs), 1, generator=generator, dtype=torch.float64)
        self._labels = (chance >= self._probs.cumsum(1)[:, :-1]).sum(1)
        state.setdefault("num_voxels", max(n for n in self.SAMPLES if n <= min(1000, len(probs))))
        super().__init__(**state)

    def choices(self, name: str) -> list[tuple[str, Any]]:
        return [(f"{n:,}", n) for n in self.SAMPLES if n <= len(self._probs)] if name == "num_voxels" else []

    def compute(self) -> ReliabilityNumbers:
        n = self.num_voxels
        forecast = self._probs[:n].pow(1 / self.temperature)
        forecast = forecast / forecast.sum(1, keepdim=True)
        bins = CalibrationBins(forecast.shape[1], self.num_bins).update(forecast, self._labels[:n])
        reliability = bins.reliability()
        error = np.sqrt(reliability.confidence * (1 - reliability.confidence) / np.maximum(reliability.count, 1))
        # The mean of |x| for a normal x is sqrt(2 / pi) standard deviations.
        chance = math.sqrt(2 / math.pi) * np.nansum(error * reliability.count) / n
        return ReliabilityNumbers(reliability, bins.ece(), float(chance), error)

    def draw(self, axes: np.ndarray) -> list[Artist]:
        diagram, counts = axes
        diagram.plot([0, 1], [0, 1], color=_COLOURS["guide"], linestyle="--", linewidth=1, label="perfectly calibrated")
        chance = {"color": _COLOURS["chance"], "linewidth": 9, "zorder": 1}
        self._errors = diagram.vlines([0], 0, 0, label="± 2 standard errors by chance", **chance)
        points = {"marker": "o", "markersize": 7, "linestyle": "none", "color": _COLOURS["claimed"]}
        (self._accuracy,) = diagram.plot([0], [0], label="what came true", **points)
        diagram.set(xlim=(0, 1.01), ylim=(-0.02, 1.02), ylabel="accuracy", xticklabels=[])
        diagram.legend(loc="upper left", frameon=False, fontsize=8)
        self._told = diagram.text(0.99, 0.03, "", ha="right", fontsize=10, color=_COLOURS["truth"])
        self._counts = counts.stairs([1.0], [0, 1], fill=True, color=_COLOURS["claimed"])
        counts.set(xlim=(0, 1.01), ylim=(0.8, self.SAMPLES[-1]), yscale="log", xlabel="confidence", ylabel="voxels")
        return [self._accuracy, self._errors, self._told, self._counts]

    def new_figure(self) -> tuple[Figure, np.ndarray]:
        width, height = self.size
        figure, pairs = plots.new_reliability_figure(width=width, height=height, data=self.data)
        return figure, pairs.ravel()

    def update(self, numbers: ReliabilityNumbers) -> None:
        reliability = numbers.reliability
        self._counts.set_data(reliability.count.astype(float), reliability.edges)
        filled = reliability.count > 0
        self._accuracy.set_data(reliability.confidence[filled], reliability.accuracy[filled])
        centre, error = reliability.confidence[filled], 2 * numbers.standard_error[filled]
        segments = [[(x, max(x - e, 0)), (x, min(x + e, 1))] for x, e in zip(centre, error, strict=True)]
        self._errors.set_segments(segments)
        self._told.set_text(f"ECE {numbers.ece:.3f}\nby chance alone: about {numbers.chance:.3f}")

    def describe(self, numbers: ReliabilityNumbers) -> str:
        empty = int((numbers.reliability.count == 0).sum())
        chance = f"chance alone would make about {numbers.chance:.3f}"
        return f"ECE {numbers.ece:.3f}; {chance}; {empty} of {self.num_bins} bins are empty"

    @validate("num_voxels")
    def _known_sample(self, proposal: Any) -> int:
        return _one_of("num_voxels", proposal["value"], [n for _, n in self.choices("num_voxels")])


class NeighbourNumbers(NamedTuple):
    """What repeated images of a network that keeps its word show.

    Attributes:
        right: of one image, (side, side) boolean.
        accuracy: measured in each image, (images,).
        spread: standard deviation of the accuracy over the images.
        independent_spread: the same, if no voxel knew of its neighbours.
        effective: how many independent voxels would spread as much.
        ece: mean over the images of |accuracy - confidence|: all voxels lie in one bin.
    """

    right: np.ndarray
    accuracy: np.ndarray
    spread: float
    independent_spread: float
    effective: float
    ece: float


class NeighbourExplorer(Explorer):
    """Neighbours are wrong together: how much does an image of so many voxels tell?

    A network says 0.9 at every voxel and is right in 90 % of all voxels, so it is perfectly calibrated. Where it is
    right is a smooth random field, cut at its 90 % quantile. Each image is another draw.

    Args:
        state: length (over how many voxels an error reaches: the width of the Gaussian that smooths the field; 0:
            every voxel for itself), side (of the square image, in voxels).

    Example:
        >>> NeighbourExplorer(length=0.0, side=24)
        NeighbourExplorer(length=0.0, side=24): 576 voxels, accuracy 0.900 ± 0.013 ...
    """

    CONFIDENCE: ClassVar[float] = 0.9
    IMAGES: ClassVar[int] = 300
    SIDES: ClassVar[tuple[int, ...]] = (12, 24, 48)
    EDGES: ClassVar[np.ndarray] = np.linspace(0.6, 1, 41)
    data = "simulated errors, no patients"
    size = (9.0, 3.6)
    static = ("length", "side")
    alt = (
        "A map of the voxels where a network is right and wrong, and a histogram of the accuracy over 300 such images "
        "beside the one that independent voxels would have."
    )

    length = Float(2.0, min=0, max=6).tag(label="reach of an error (voxels)", step=0.5)
    side = Int(48).tag(label="side of the image (voxels)")

    def __init__(self, **state: Any) -> None:
        random = np.random.default_rng(0)
        self._white = np.fft.rfft2(random.normal(size=(self.IMAGES, self.SIDES[-1], self.SIDES[-1])))
        super().__init__(**state)

    def choices(self, name: str) -> list[tuple[str, Any]]:
        return [(f"{side} x {side} = {side**2:,}", side) for side in self.SIDES] if name == "side" else []

    def compute(self) -> NeighbourNumbers:
        largest = self.SIDES[-1]
        along, across = np.fft.fftfreq(largest)[:, None], np.fft.rfftfreq(largest)
        gain = np.exp(-2 * (np.pi * self.length) ** 2 * (along**2 + across**2))
        field = np.fft.irfft2(self._white * gain, s=(largest, largest))
        # The mean square over all frequencies, of which rfft2 holds one half.
        whole = np.exp(-2 * (np.pi * self.length) ** 2 * (along**2 + np.fft.fftfreq(largest) ** 2))
        right = field[:, : self.side, : self.side] < NormalDist().inv_cdf(self.CONFIDENCE) * np.sqrt((whole**2).mean())
        accuracy = right.mean((1, 2))
        variance = self.CONFIDENCE * (1 - self.CONFIDENCE)
        spread = float(np.sqrt(((accuracy - self.CONFIDENCE) ** 2).mean()))
        ece = float(np.abs(accuracy - self.CONFIDENCE).mean())
        independent = math.sqrt(variance) / self.side
        return NeighbourNumbers(right[0], accuracy, spread, independent, variance / spread**2, ece)

    def draw(self, axes: np.ndarray) -> list[Artist]:
        picture, histogram = axes
        largest = self.SIDES[-1]
        colours = ListedColormap([_COLOURS["claimed"], _COLOURS["chance"]])
        self._picture = picture.imshow(np.ones((largest, largest)), cmap=colours, vmin=0, vmax=1)
        picture.set(xlim=(-0.5, largest - 0.5), ylim=(largest - 0.5, -0.5))
        plots.blank_axes(picture, "one image: where it is wrong (dark)")
        style = {"color": _COLOURS["guide"], "facecolor": "none", "label": "if voxels were independent"}
        self._chance = histogram.stairs(np.zeros(40), self.EDGES, linewidth=1.5, **style)
        counts = {"fill": True, "color": _COLOURS["claimed"], "alpha": 0.6, "label": "300 images"}
        self._counts = histogram.stairs(np.zeros(40), self.EDGES, **counts)
        histogram.axvline(self.CONFIDENCE, color=_COLOURS["truth"], linestyle="--", linewidth=1, label="what it claims")
        histogram.set(xlim=(self.EDGES[0], 1), ylim=(0, 0.75), xlabel="accuracy measured in an image")
        histogram.set(ylabel="share of the images", title="the same network, measured again and again")
        histogram.legend(loc="upper left", frameon=False, fontsize=8)
        return [self._picture, self._chance, self._counts]

    def update(self, numbers: NeighbourNumbers) -> None:
        self._picture.set_data(numbers.right.T)
        self._picture.set_extent((-0.5, self.side - 0.5, self.side - 0.5, -0.5))
        self._counts.set_data(np.histogram(numbers.accuracy, self.EDGES)[0] / self.IMAGES)
        # Counts of right voxels are binomial; their normal approximation is drawn.
        chance = NormalDist(self.CONFIDENCE, numbers.independent_spread)
        self._chance.set_data(np.diff([chance.cdf(edge) for edge in self.EDGES]))

    def describe(self, numbers: NeighbourNumbers) -> str:
        return (
            f"{self.side**2:,} voxels, accuracy {numbers.accuracy.mean():.3f} ± {numbers.spread:.3f} from image to "
            f"image (independent voxels: ± {numbers.independent_spread:.3f}); they tell as much as "
            f"{float(f'{numbers.effective:.2g}'):,.0f} independent ones; mean ECE {numbers.ece:.3f}"
        )

    @validate("side")
    def _known_side(self, proposal: Any) -> int:
        return _one_of("side", proposal["value"], list(self.SIDES))


class BootstrapNumbers(NamedTuple):
    """A figure and what it would have been with other patients, or with other voxels.

    Attributes:
        each: the ECE of each patient alone.
        ece: of all patients' voxels together.
        samples: the ECE of each drawn set.
        interval: of 95 % of them.
    """

    each: np.ndarray
    ece: float
    samples: np.ndarray
    interval: tuple[float, float]


class BootstrapExplorer(Explorer):
    """How sure is an ECE? Patients, or voxels, are drawn with replacement, and the ECE is taken again and again.

    Args:
        bins: from :meth:`mbls.engine.judge.Judgement.subject_bins`.
        region: whose voxels.
        data: what the patients are from, for the figure.
        state: num_patients (the first so many), drawn ("patients" or "voxels").

    Raises:
        ValueError: bins of fewer than three patients.

    Example:
        >>> bins = pd.DataFrame({"subject": ["a", "b", "c"], "region": "all", "bin": 9, "count": 100})
        >>> BootstrapExplorer(bins.assign(prob_sum=95.0, hit_sum=[70, 90, 95]), "all")
        BootstrapExplorer(num_patients=3, drawn='patients'): ECE 0.100 of 3 patients, 95 % of the sets ...
    """

    SETS: ClassVar[int] = 1000
    DRAWN: ClassVar[tuple[str, ...]] = ("patients", "voxels")
    size = (9.0, 3.6)
    static = ("num_patients", "drawn")
    alt = "The ECE of each patient, and a histogram of the ECE over 1000 sets drawn with replacement."

    num_patients = Int(3).tag(label="patients in the test set")
    drawn = Unicode("patients").tag(label="drawn with replacement")

    def __init__(self, bins: pd.DataFrame, region: str = "foreground", data: str | None = None, **state: Any) -> None:
        rows = bins.loc[bins["region"] == region]
        subjects = list(dict.fromkeys(rows["subject"]))
        if len(subjects) < 3:
            raise ValueError(f"bins: got {len(subjects)} subjects with voxels of {region!r}, expected at least 3")
        self.data = data
        self._tables = np.zeros((len(subjects), 3, 1 + int(rows["bin"].max())))
        place = [subjects.index(subject) for subject in rows["subject"]]
        for column, name in enumerate(("count", "prob_sum", "hit_sum")):
            np.add.at(self._tables[:, column], (place, rows["bin"].to_numpy(int)), rows[name].to_numpy(float))
        state.setdefault("num_patients", len(subjects))
        super().__init__(**state)

    def choices(self, name: str) -> list[tuple[str, Any]]:
        numbers = range(3, len(self._tables) + 1)
        return [(str(value), value) for value in (numbers if name == "num_patients" else self.DRAWN)]

    def compute(self) -> BootstrapNumbers:
        tables = self._tables[: self.num_patients]
        if self.drawn == "patients":
            samples = bootstrap_samples(tables, _pooled_ece, self.SETS)
        else:
            samples = self._of_voxels(tables.sum(0))
        low, high = np.percentile(samples, [2.5, 97.5])
        each = np.array([_pooled_ece(table[None]) for table in tables])
        return BootstrapNumbers(each, _pooled_ece(tables), samples, (float(low), float(high)))

    def _of_voxels(self, table: np.ndarray) -> np.ndarray:
        """What drawing single voxels makes of the bins; a bin's voxels all count with its mean confidence."""
        count, confidences, hits = table
        number = int(count.sum())
        random = np.random.default_rng(0)
        drawn = random.multinomial(number, count / number, size=self.SETS)
        known = np.maximum(count, 1)
        right = random.binomial(drawn, hits / known)
        return np.abs(drawn * confidences / known - right).sum(1) / number

    def draw(self, axes: np.ndarray) -> list[Artist]:
        patients, histogram = axes
        everyone = self._tables
        each = [_pooled_ece(table[None]) for table in everyone]
        # A set of one patient alone may be drawn; what lies beyond is not shown.
        top = 1.05 * max(each)
        self._edges = np.linspace(0, top, 61)
        dots = {"marker": "o", "markersize": 6, "linestyle": "none", "color": _COLOURS["claimed"]}
        (self._each,) = patients.plot([0], [0], label="a patient alone", **dots)
        self._ece = patients.axhline(0, color=_COLOURS["now"], label="all of them together")
        patients.set(xlim=(0.5, len(everyone) + 0.5), ylim=(0, 1.2 * top), xlabel="patient", ylabel="ECE")
        patients.set(title="each patient", xticks=range(1, len(everyone) + 1))
        patients.legend(loc="upper left", frameon=False, fontsize=8, ncols=2)
        bars = {"fill": True, "color": _COLOURS["claimed"], "alpha": 0.6, "label": f"{self.SETS:,} sets"}
        self._samples = histogram.stairs(np.zeros(60), self._edges, **bars)
        (self._interval,) = histogram.plot([0, 0], [0, 0], color=_COLOURS["now"], linewidth=4, label="95 % of them")
        histogram.set(xlim=(0, top), ylim=(-0.06, 1.05), yticks=[], xlabel="ECE of a set", ylabel="how often")
        histogram.set(title="what other sets would have shown")
        histogram.legend(loc="upper right", frameon=False, fontsize=8)
        return [self._each, self._ece, self._samples, self._interval]

    def update(self, numbers: BootstrapNumbers) -> None:
        self._each.set_data(np.arange(1, len(numbers.each) + 1), numbers.each)
        self._ece.set_ydata([numbers.ece, numbers.ece])
        counts = np.histogram(numbers.samples, self._edges)[0]
        self._samples.set_data(counts / max(counts.max(), 1))
        self._interval.set_data(numbers.interval, [-0.03, -0.03])

    def describe(self, numbers: BootstrapNumbers) -> str:
        low, high = numbers.interval
        return (
            f"ECE {numbers.ece:.3f} of {self.num_patients} patients, 95 % of the sets of {self.drawn} "
            f"between {low:.3f} and {high:.3f}: a width of {high - low:.3f}"
        )

    @validate("num_patients", "drawn")
    def _known(self, proposal: Any) -> Any:
        name = proposal["trait"].name
        return _one_of(name, proposal["value"], [value for _, value in self.choices(name)])


def _pooled_ece(tables: np.ndarray) -> float:
    """ECE of the patients' counts, sums of confidence and of hits (patients, 3, bins), added up."""
    count, confidences, hits = tables.sum(0)
    return float(np.abs(confidences - hits).sum() / count.sum())


class LogitNumbers(NamedTuple):
    """Three logits, their distances and probabilities, and the point in the triangle.

    Attributes:
        logits: (3,).
        distances: (3,).
        probs: (3,).
        point: (x, y).
    """

    logits: np.ndarray
    distances: np.ndarray
    probs: np.ndarray
    point: np.ndarray


class LogitExplorer(Explorer):
    """From logits to distances to probabilities, for three classes.

    Args:
        state: background, myocardium, cavity: the three logits.

    Example:
        >>> LogitExplorer(cavity=2.0).numbers.distances
        array([2., 1., 0.])
    """

    panels = (1, 3)
    size = (9.6, 3.4)
    static = ("cavity", "myocardium")
    alt = (
        "Bars of three logits and their distances, bars of the probabilities, "
        "and a point in the triangle of all distributions."
    )
    CLASSES: ClassVar[tuple[str, str, str]] = ("background", "MYO", "LV")
    #: Corners of the triangle, one for each class.
    CORNERS: ClassVar[np.ndarray] = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])

    background = Float(0.0, min=-8, max=8).tag(label="logit of background", step=0.5)
    myocardium = Float(1.0, min=-8, max=8).tag(label="logit of MYO", step=0.5)
    cavity = Float(3.0, min=-8, max=8).tag(label="logit of LV", step=0.5)

    def compute(self) -> LogitNumbers:
        logits = torch.tensor([[self.background, self.myocardium, self.cavity]], dtype=torch.float64)
        probs = logits.softmax(1)[0].numpy()
        return LogitNumbers(logits[0].numpy(), logit_distances(logits)[0].numpy(), probs, probs @ self.CORNERS)

    def draw(self, axes: np.ndarray) -> list[Artist]:
        bars, shares, triangle = axes
        colours = (_COLOURS["background"], plots.STRUCTURE_COLOURS[1], plots.STRUCTURE_COLOURS[2])
        self._ceiling = bars.axhline(0, color=_COLOURS["guide"], linestyle="--", linewidth=1)
        self._logits = bars.bar(self.CLASSES, [0.0] * 3, color=colours, width=0.5)
        self._arrows = bars.vlines([0, 1, 2], 0, 0, color=_COLOURS["now"], linewidth=2)
        text = {"color": _COLOURS["now"], "va": "center", "fontsize": 9}
        self._distances = [bars.text(i + 0.06, 0, "", **text) for i in range(3)]
        bars.axhline(0, color=_COLOURS["guide"], linewidth=0.8)
        bars.set(ylim=(-9, 9), ylabel="logit", title="logits; the line is the distance d")
        self._probs = shares.bar(self.CLASSES, [0.0] * 3, color=colours, width=0.5)
        self._shares = [shares.text(i, 0, "", ha="center", va="bottom", fontsize=9) for i in range(3)]
        shares.set(ylim=(0, 1.1), ylabel="probability", title="softmax")
        corners = np.vstack([self.CORNERS, self.CORNERS[:1]])
        triangle.plot(*corners.T, color=_COLOURS["guide"], linewidth=1)
        triangle.plot(*self.CORNERS.mean(0), marker="+", color=_COLOURS["guide"])
        triangle.annotate(
            "all d = 0", self.CORNERS.mean(0), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
        )
        for name, (x, y), where in zip(self.CLASSES, self.CORNERS, ("top", "top", "bottom"), strict=True):
            triangle.text(x, y + (0.03 if where == "bottom" else -0.03), name, ha="center", va=where, fontsize=9)
        (self._point,) = triangle.plot([0], [0], marker="o", markersize=9, color=_COLOURS["now"])
        triangle.set(xlim=(-0.15, 1.15), ylim=(-0.15, 1.02), aspect="equal")
        plots.blank_axes(triangle, "all distributions")
        return [self._ceiling, *self._logits, self._arrows, *self._distances, *self._probs, *self._shares, self._point]

    def update(self, numbers: LogitNumbers) -> None:
        top = numbers.logits.max()
        self._ceiling.set_ydata([top, top])
        self._arrows.set_segments([[(i, logit), (i, top)] for i, logit in enumerate(numbers.logits)])
        for i, (logit, distance, prob) in enumerate(zip(numbers.logits, numbers.distances, numbers.probs, strict=True)):
            self._logits[i].set_height(logit)
            self._distances[i].set(y=(logit + top) / 2, text=f"{distance:.1f}" if distance else "")
            self._probs[i].set_height(prob)
            self._shares[i].set(y=prob + 0.01, text=f"{prob:.3f}")
        self._point.set_data(*numbers.point[:, None])

    def describe(self, numbers: LogitNumbers) -> str:
        distances = ", ".join(f"{d:.1f}" for d in numbers.distances)
        winner = self.CLASSES[int(numbers.probs.argmax())]
        return f"d = ({distances}); winner {winner} with probability {numbers.probs.max():.3f}"


class VoxelNumbers(NamedTuple):
    """One voxel under MbLS. Arrays over classes have the winning class first.

    Attributes:
        penalty: alpha times the margin penalty.
        violated: whether the distance is beyond the margin.
        gradient_ce: of the expected cross-entropy in the logits, (K,).
        gradient_penalty: of the penalty in the logits, (K,).
        now: probabilities at the present distance, (K,).
        end: probabilities where descent ends, (K,).
        end_distance: the distance where descent ends; infinite if it never ends.
        curves: expected CE, penalty and their sum along the distance, (3, n).
    """

    penalty: float
    violated: bool
    gradient_ce: np.ndarray
    gradient_penalty: np.ndarray
    now: np.ndarray
    end: np.ndarray
    end_distance: float
    curves: np.ndarray


class VoxelExplorer(Explorer):
    """One voxel of four classes: the penalty, the two gradients, and where descent ends.

    The voxel has the label LV with probability ``certainty``; the other three labels share the rest. Its logits are
    (distance, 0, 0, 0).

    Args:
        state: margin, alpha, certainty, distance.

    Example:
        >>> VoxelExplorer(margin=5.0, distance=6.0).numbers.violated
        True
    """

    panels = (1, 3)
    size = (9.6, 3.6)
    static = ("margin", "certainty")
    alt = (
        "Cross-entropy, penalty and their sum along the logit distance; their gradients as bars; "
        "the voxel's probabilities."
    )
    NUM_CLASSES = len(CLASS_NAMES)
    #: Distances at which the curves are drawn.
    GRID: ClassVar[np.ndarray] = np.linspace(0, 12, 121)

    margin = Float(3.0, min=0, max=10).tag(label="margin m", step=0.5)
    alpha = Float(0.1, min=0, max=1).tag(label="weight λ", step=0.05)
    certainty = Float(1.0, min=0.3, max=1).tag(label="label is LV with probability", step=0.05)
    distance = Float(6.0, min=0, max=12).tag(label="the voxel's distance d", step=0.5)

    def compute(self) -> VoxelNumbers:
        k = self.NUM_CLASSES
        truth = torch.full((1, k), (1 - self.certainty) / (k - 1), dtype=torch.float64)
        truth[0, 0] = self.certainty
        logits = torch.zeros(1, k, dtype=torch.float64)
        logits[0, 0] = self.distance
        end = margin_calibration_map(truth, self.margin, self.alpha)[0].numpy()
        grid = torch.zeros(len(self.GRID), k, dtype=torch.float64)
        grid[:, 0] = torch.from_numpy(self.GRID)
        ce = -(truth * grid.log_softmax(1)).sum(1)
        penalty = self.alpha * margin_penalty(grid, self.margin)
        return VoxelNumbers(
            penalty=float(self.alpha * margin_penalty(logits, self.margin)),
            violated=self.distance > self.margin,
            gradient_ce=(logits.softmax(1) - truth)[0].numpy(),
            gradient_penalty=(self.alpha * margin_penalty_gradient(logits, self.margin))[0].numpy(),
            now=logits.softmax(1)[0].numpy(),
            end=end,
            end_distance=math.log(end[0] / end[1]) if end[1] > 0 else math.inf,
            curves=torch.stack([ce, penalty, ce + penalty]).numpy(),
        )

    def draw(self, axes: np.ndarray) -> list[Artist]:
        loss, gradient, probability = axes
        names = ("cross-entropy", "penalty", "sum")
        colours = (plots.LOSS_COLOURS["ce"], _COLOURS["penalised"], _MBLS)
        styles = [{"color": colour, "linewidth": width} for colour, width in zip(colours, (1.5, 1.5, 2.5), strict=True)]
        self._curves = [
            loss.plot(self.GRID, self.GRID, label=name, **style)[0] for name, style in zip(names, styles, strict=True)
        ]
        self._margin = loss.axvline(0, color=_COLOURS["margin"], linestyle="--", label="margin m")
        marks = {"linestyle": "none", "markeredgecolor": "white"}
        now, end = ({"color": _COLOURS[name], **marks} for name in ("now", "end"))
        (self._voxel,) = loss.plot([0], [0], marker="o", markersize=8, label="the voxel now", **now)
        (self._end,) = loss.plot([0], [0], marker="*", markersize=15, label="descent ends", **end)
        loss.set(xlim=(0, 12), ylim=(0, 2), xlabel="logit distance d", ylabel="expected loss", title="loss")
        loss.legend(fontsize=8, frameon=False, loc="upper right")
        places = np.arange(2)
        self._ce = gradient.bar(places - 0.2, [0, 0], 0.36, color=plots.LOSS_COLOURS["ce"], label="cross-entropy")
        self._push = gradient.bar(places + 0.2, [0, 0], 0.36, color=_COLOURS["penalised"], label="penalty")
        gradient.axhline(0, color=_COLOURS["guide"], linewidth=0.8)
        gradient.set(xticks=places, xticklabels=["LV", "each other class"], ylabel="gradient in the logit")
        gradient.set(ylim=(-0.2, 0.2), title="who pushes where")
        gradient.legend(fontsize=8, frameon=False, loc="upper right")
        labels = ["truth", "now", "descent\nends"]
        of_each = [_COLOURS[name] for name in ("truth", "now", "end")]
        self._probs = probability.bar(labels, [0, 0, 0], color=of_each, width=0.6)
        self._texts = [probability.text(i, 0, "", ha="center", va="bottom", fontsize=9) for i in range(3)]
        self._ceiling = probability.axhline(
            0, color=_COLOURS["margin"], linestyle="--", label="confidence on the margin"
        )
        probability.set(
            ylim=(0, 1.25), yticks=np.linspace(0, 1, 6), ylabel="probability of LV", title="what it makes of the truth"
        )
        probability.legend(fontsize=8, frameon=False, loc="upper right")
        return [
            *self._curves,
            self._margin,
            self._voxel,
            self._end,
            *self._ce,
            *self._push,
            *self._probs,
            *self._texts,
            self._ceiling,
        ]

    def update(self, numbers: VoxelNumbers) -> None:
        for curve, values in zip(self._curves, numbers.curves, strict=True):
            curve.set_ydata(values)
        self._margin.set_xdata([self.margin, self.margin])
        total = numbers.curves[2]
        self._voxel.set_data([self.distance], [np.interp(self.distance, self.GRID, total)])
        place = min(numbers.end_distance, self.GRID[-1])
        self._end.set_data([place], [np.interp(place, self.GRID, total)])
        # The axes end at 0.2, so longer bars are cut; the readout has the number.
        for bars, values in ((self._ce, numbers.gradient_ce), (self._push, numbers.gradient_penalty)):
            for bar, value in zip(bars, values[:2], strict=True):
                bar.set_height(float(np.clip(value, -0.2, 0.2)))
        for bar, text, value in zip(
            self._probs, self._texts, (self.certainty, numbers.now[0], numbers.end[0]), strict=True
        ):
            bar.set_height(value)
            text.set(y=value + 0.01, text=f"{value:.3f}")
        ceiling = confidence_at_margin(self.margin, self.NUM_CLASSES)
        self._ceiling.set_ydata([ceiling, ceiling])

    def describe(self, numbers: VoxelNumbers) -> str:
        pull = numbers.gradient_ce[0] + numbers.gradient_penalty[0]
        end = f"d = {numbers.end_distance:.2f}" if math.isfinite(numbers.end_distance) else "no finite distance: never"
        return (
            f"penalty {numbers.penalty:.3f}; gradient in LV's logit {pull:+.4f}; "
            f"descent ends at {end}, p = {numbers.end[0]:.3f}"
        )


class CalibrationMapNumbers(NamedTuple):
    """A loss's calibration map, over voxels whose likeliest class has the probabilities ``probs``.

    Attributes:
        probs: true probabilities of the likeliest class, (n,).
        made: what the loss makes of them, (n,).
        distances: of the losing classes under what the loss makes, (n,).
        linear: what the linear penalty of the same weight makes, (n,).
        point: what the loss makes of the voxel under the hand.
        distance: of the losing classes of that voxel.
    """

    probs: np.ndarray
    made: np.ndarray
    distances: np.ndarray
    linear: np.ndarray
    point: float
    distance: float


class CalibrationMapExplorer(Explorer):
    """What each loss makes of the truth: the calibration map from q to s*, for four classes.

    The likeliest class of a voxel has the probability q, the other three share the rest.

    Args:
        state: loss, weight (alpha of LS and ECP, lambda of MbLS and of the linear penalty), gamma (FL), margin (MbLS),
            q.

    Example:
        >>> explorer = CalibrationMapExplorer(loss="mbls", margin=3.0, q=0.7)
        >>> explorer
        CalibrationMapExplorer(loss='mbls', margin=3.0, weight=0.1, gamma=3.0, q=0.7): q = 0.700 ... the truth is told
        >>> explorer.loss = "ls"
        >>> round(explorer.numbers.point, 3)
        0.655
    """

    static = ("loss", "margin")
    panels = (2, 2)
    size = (9.0, 6.2)
    alt = (
        "The probability that a loss leaves the likeliest class against its true probability, their difference, "
        "and the distances of the losing classes."
    )
    NUM_CLASSES = len(CLASS_NAMES)
    #: Values of q at which the curves are drawn.
    GRID: ClassVar[np.ndarray] = np.linspace(1 / len(CLASS_NAMES), 0.995, 76)
    #: Label -> loss, with the traits that it depends on.
    LOSSES: ClassVar[dict[str, tuple[str, tuple[str, ...]]]] = {
        "cross-entropy": ("ce", ()),
        "LS": ("ls", ("weight",)),
        "ECP": ("ecp", ("weight",)),
        "FL": ("fl", ("gamma",)),
        "linear penalty": ("linear", ("weight",)),
        "MbLS": ("mbls", ("weight", "margin")),
    }
    #: Steps of the numerical solution: it is then within 1e-5 of the truth, and quick enough to drag.
    ITERATIONS = 60

    loss = Unicode("mbls").tag(label="loss")
    margin = Float(3.0, min=0, max=10).tag(label="margin m (MbLS)", step=0.1)
    weight = Float(0.1, min=0, max=1).tag(label="weight α or λ", step=0.05)
    gamma = Float(3.0, min=0, max=5).tag(label="γ (FL)", step=0.5)
    q = Float(0.7, min=0.25, max=0.995).tag(label="true probability q", step=0.005)

    def choices(self, name: str) -> list[tuple[str, Any]]:
        return [(label, loss) for label, (loss, _) in self.LOSSES.items()] if name == "loss" else []

    @validate("loss")
    def _known_loss(self, proposal: Any) -> str:
        return _one_of("loss", proposal["value"], [loss for loss, _ in self.LOSSES.values()])

    def without_effect(self) -> set[str]:
        (used,) = (used for loss, used in self.LOSSES.values() if loss == self.loss)
        # The linear penalty is drawn for comparison beside every loss, so that its weight always shows.
        return {"gamma", "margin"} - set(used)

    def compute(self) -> CalibrationMapNumbers:
        likeliest = torch.from_numpy(np.append(self.GRID, self.q))[:, None]
        others = self.NUM_CLASSES - 1
        truth = torch.cat([likeliest, ((1 - likeliest) / others).expand(-1, others)], dim=1)
        made = self._made_of(truth).numpy()
        distances = np.log(made[:, 0] / made[:, 1])
        return CalibrationMapNumbers(
            probs=self.GRID,
            made=made[:-1, 0],
            distances=distances[:-1],
            linear=margin_calibration_map(truth[:-1], 0.0, self.weight)[:, 0].numpy(),
            point=float(made[-1, 0]),
            distance=float(distances[-1]),
        )

    def _made_of(self, truth: torch.Tensor) -> torch.Tensor:
        if self.loss in ("mbls", "linear"):
            return margin_calibration_map(truth, self.margin if self.loss == "mbls" else 0.0, self.weight)
        losses = {
            "ce": lambda: CrossEntropyLoss(reduction="none"),
            "ls": lambda: LabelSmoothingLoss(self.weight, reduction="none"),
            "ecp": lambda: EntropyPenaltyLoss(self.weight, reduction="none"),
            "fl": lambda: FocalLoss(self.gamma, reduction="none"),
        }
        return calibration_map(losses[self.loss](), truth, self.ITERATIONS)

    def draw(self, axes: np.ndarray) -> list[Artist]:
        q, other = self.GRID, (1 - self.GRID) / (self.NUM_CLASSES - 1)
        thin = {"color": _COLOURS["guide"], "linestyle": "--", "linewidth": 1.2}
        self._curves, self._linear, self._points = [], [], []
        *panels, blank = axes
        for ax, truth in zip(panels, (q, 0 * q, np.log(q / other)), strict=True):
            ax.plot(q, truth, color=_COLOURS["chance"], linewidth=6, label="the truth, and cross-entropy")
            self._linear += ax.plot(q, q, label="linear penalty, same weight", **thin)
            self._curves += ax.plot(q, q, linewidth=2, label="this loss")
            self._points += ax.plot([0], [0], "o", color=_COLOURS["now"], markersize=8, label="the voxel")
            ax.set(xlim=(0.25, 1), xlabel="true probability q of the likeliest class")
            ax.grid(alpha=0.3)
        self._line = panels[2].axhline(0, color=_COLOURS["margin"], linestyle=":", label="margin m")
        axes[0].set(ylim=(0.25, 1.01), ylabel="s*", title="what the loss makes of q")
        axes[1].set(ylim=(-0.45, 0.05), ylabel="s* - q", title="how far from the truth")
        axes[2].set(ylim=(0, 7), ylabel="distance of the three losers", title="logit distances of s*")
        self._legend = plots.legend_panel(blank, panels[2])
        return [*self._linear, *self._curves, *self._points, self._line, self._legend]

    def update(self, numbers: CalibrationMapNumbers) -> None:
        q, linear = numbers.probs, numbers.linear
        of_linear = np.log((self.NUM_CLASSES - 1) * linear / (1 - linear))
        for line, values in zip(self._linear, (linear, linear - q, of_linear), strict=True):
            line.set_ydata(values)
        for line, values in zip(self._curves, (numbers.made, numbers.made - q, numbers.distances), strict=True):
            line.set(ydata=values, color=plots.loss_colour(self.loss))
        _, _, this_loss, _, margin = self._legend.get_lines()
        this_loss.set_color(plots.loss_colour(self.loss))
        for part in (margin, self._legend.get_texts()[-1]):
            part.set_visible(self.loss == "mbls")
        for dot, value in zip(self._points, (numbers.point, numbers.point - self.q, numbers.distance), strict=True):
            dot.set_data([self.q], [value])
        self._line.set(ydata=[self.margin] * 2, visible=self.loss == "mbls")

    def describe(self, numbers: CalibrationMapNumbers) -> str:
        off = numbers.point - self.q
        verdict = "the truth is told" if abs(off) < 5e-4 else f"{off:+.3f} off the truth"
        # Adding 0 turns -0 into 0.
        return f"q = {self.q:.3f} becomes s* = {numbers.point:.3f}, d = {numbers.distance + 0:.2f}: {verdict}"


class SliceNumbers(NamedTuple):
    """A slice compared with a margin.

    Attributes:
        violations: the number of classes beyond the margin, (H, W).
        share: of the voxels with any class beyond the margin.
        ceiling: the confidence on the margin.
        counts: histogram of the distances of the losing classes.
    """

    violations: np.ndarray
    share: float
    ceiling: float
    counts: np.ndarray


class SliceExplorer(Explorer):
    """Which voxels of a trained network's slice violate a margin?

    Args:
        images: (N, H, W).
        labels: (N, H, W).
        logits: (N, K, H, W).
        data: what the slices are from, for the figure.
        state: margin, slice_index.

    Raises:
        ValueError: shapes that do not match.

    Example:
        >>> logits = 4 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> explorer = SliceExplorer(torch.rand(2, 8, 8), logits.argmax(1), logits, margin=3.0)
        >>> bool(explorer.numbers.share == (explorer.numbers.violations > 0).mean())
        True
    """

    panels = (1, 3)
    size = (9.6, 3.6)
    static = ("margin", "slice_index")
    alt = (
        "A slice, the number of classes beyond the margin at each voxel, "
        "and the histogram of logit distances with the margin."
    )
    #: Bins of the histogram; the last one also holds everything above it.
    EDGES: ClassVar[np.ndarray] = DISTANCE_EDGES[DISTANCE_EDGES <= 15]

    margin = Float(3.0, min=0, max=12).tag(label="margin m", step=0.25)
    slice_index = Int(0, min=0).tag(label="slice")

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, data: str | None = None, **state: Any
    ) -> None:
        self.data = data
        grid = tuple(images.shape)
        if images.dim() != 3 or labels.shape != images.shape or (len(logits), *logits.shape[2:]) != grid:
            shapes = ", ".join(str(tuple(part.shape)) for part in (images, labels, logits))
            raise ValueError(f"images, labels, logits: got {shapes}, expected (N, H, W), (N, H, W) and (N, K, H, W)")
        self._images, self._labels = images.numpy(), labels.numpy()
        self._distances = logit_distances(logits)
        super().__init__(**state)

    def limits(self, name: str) -> tuple[float, float]:
        return (0, len(self._images) - 1) if name == "slice_index" else super().limits(name)

    @validate("slice_index")
    def _known_slice(self, proposal: Any) -> int:
        if not 0 <= proposal["value"] < len(self._images):
            raise TraitError(f"slice_index: got {proposal['value']}, expected 0..{len(self._images) - 1}")
        return proposal["value"]

    def compute(self) -> SliceNumbers:
        distances = self._distances[self.slice_index]
        violations = (distances > self.margin).sum(0).numpy()
        counts = distance_counts(distances[None])
        last = len(self.EDGES) - 2
        counts = np.append(counts[:last], counts[last:].sum())
        ceiling = confidence_at_margin(self.margin, len(distances))
        return SliceNumbers(violations, float((violations > 0).mean()), ceiling, counts)

    def draw(self, axes: np.ndarray) -> list[Artist]:
        picture, overlay, histogram = axes
        blank = np.zeros(self._images.shape[1:])
        most = len(self._distances[0]) - 1
        low, high = np.percentile(self._images, (1, 99))
        self._image = picture.imshow(blank.T, cmap="gray", vmin=low, vmax=high)
        self._outline = plots.show_labels(picture, blank)
        plots.blank_axes(picture, "slice and labels")
        self._violations = overlay.imshow(blank.T, cmap=plots.steps_colormap(most + 1), vmin=-0.5, vmax=most + 0.5)
        plots.blank_axes(overlay, "classes beyond the margin")
        self._figure.colorbar(self._violations, ax=overlay, ticks=range(most + 1), shrink=0.8)
        self._free = histogram.stairs(np.ones(60), self.EDGES, fill=True, color=_COLOURS["free"], label="free")
        beyond = {"fill": True, "color": _COLOURS["penalised"], "label": "penalised"}
        self._beyond = histogram.stairs(np.ones(60), self.EDGES, **beyond)
        self._margin = histogram.axvline(0, color=_COLOURS["margin"], linestyle="--", label="margin m")
        histogram.set(
            xlim=(0, 15), ylim=(0.8, 3 * blank.size), yscale="log", xlabel="logit distance d", ylabel="voxels × classes"
        )
        histogram.legend(fontsize=8, frameon=False, loc="upper right")
        return [self._image, self._outline, self._violations, self._free, self._beyond, self._margin]

    def update(self, numbers: SliceNumbers) -> None:
        self._image.set_data(self._images[self.slice_index].T)
        self._outline.set_data(np.ma.masked_equal(self._labels[self.slice_index].T, 0))
        self._violations.set_data(numbers.violations.T)
        beyond = self.EDGES[:-1] >= self.margin
        self._free.set_data(np.where(beyond, np.nan, numbers.counts), self.EDGES)
        self._beyond.set_data(np.where(beyond, numbers.counts, np.nan), self.EDGES)
        self._margin.set_xdata([self.margin, self.margin])

    def describe(self, numbers: SliceNumbers) -> str:
        return (
            f"{100 * numbers.share:.0f} % of the voxels have a class beyond m = {self.margin:g}; "
            f"on the margin the confidence is {numbers.ceiling:.4f}"
        )


class MarginNumbers(NamedTuple):
    """The networks trained at one margin: mean figures over the seeds, pooled histograms.

    Attributes:
        figures: means of dsc, ece and ece_fg, by name.
        seeds: number of networks.
        distance_share: share of the logit distances in each bin.
        reliability: of all their test voxels together.
    """

    figures: dict[str, float]
    seeds: int
    distance_share: np.ndarray
    reliability: Reliability


class MarginExplorer(Explorer):
    """Networks trained at different margins, side by side.

    Args:
        results: the table results.csv of ``python -m mbls compare``, with rows of CE and of MbLS at several margins;
            seeds are averaged.
        histograms: histograms.csv of the same comparison.
        region: of the histogram and the reliability diagram.
        data: what the networks were judged on, for the figure.
        state: margin; infinity is cross-entropy, which has no margin.

    Raises:
        ValueError: a table without MbLS or without CE; a region that was not recorded.

    Example:
        >>> from mbls.data.home import recorded
        >>> results = pd.read_csv(recorded("phantom_margins.csv"))
        >>> histograms = pd.read_csv(recorded("phantom_margins_histograms.csv"))
        >>> MarginExplorer(results, histograms, margin=5.0).numbers.seeds
        3
    """

    size = (9.0, 6.4)
    static = ("margin",)
    alt = (
        "Logit distances and reliability diagram of the network trained at the margin, and DSC and ECE of all networks."
    )

    margin = Float(math.inf).tag(label="networks trained with margin m")

    def __init__(
        self,
        results: pd.DataFrame,
        histograms: pd.DataFrame,
        region: Literal["all", "foreground"] = "foreground",
        data: str | None = None,
        **state: Any,
    ) -> None:
        self.data = data
        self._results = _with_margin(results)
        self._margins = sorted(self._results["margin"].unique().tolist())
        if len(self._margins) < 2 or self._margins[-1] < math.inf:
            raise ValueError(
                f"results: got losses {', '.join(results['loss'].unique())}, expected ce and mbls at some margins"
            )
        self._region = region
        self._histograms = _with_margin(histograms.query("region == @region"))
        if self._histograms.empty:
            raise ValueError(
                f"region: got {region!r}, expected one of {', '.join(sorted(histograms['region'].unique()))}"
            )
        super().__init__(**state)

    def choices(self, name: str) -> list[tuple[str, Any]]:
        return [("none (CE)" if margin == math.inf else f"{margin:g}", margin) for margin in self._margins]

    @validate("margin")
    def _known_margin(self, proposal: Any) -> float:
        return _one_of("margin", proposal["value"], self._margins)

    def compute(self) -> MarginNumbers:
        rows = _at_margin(self._results, self.margin)
        bins = _at_margin(self._histograms, self.margin)
        return MarginNumbers(
            figures=rows[["dsc", "ece", "ece_fg"]].agg("mean").to_dict(),
            seeds=len(rows),
            distance_share=self._distance_share(bins),
            reliability=self._reliability(bins),
        )

    @staticmethod
    def _reliability(bins: pd.DataFrame) -> Reliability:
        """The confidence bins of all seeds together."""
        rows = bins.loc[bins["kind"] == "confidence"]
        count = _sums(rows["count"], rows["low"])
        known = np.where(count > 0, count, np.nan)
        confidence, accuracy = (_sums(rows[name] * rows["count"], rows["low"]) / known for name in _MEANS)
        return Reliability(np.append(np.unique(rows["low"]), 1.0), count.astype(int), confidence, accuracy)

    @staticmethod
    def _distance_share(bins: pd.DataFrame) -> np.ndarray:
        distances = bins.loc[bins["kind"] == "distance"]
        counts = _sums(distances["count"], distances["low"])
        return counts / counts.sum()

    def new_figure(self) -> tuple[Figure, np.ndarray]:
        figure, axes = plots.new_figure(1, 1, *self.size, data=self.data)
        axes[0, 0].remove()
        panels = figure.subplot_mosaic(
            [["distances", "reliability"], ["distances", "voxels"], ["dsc", "ece"]], height_ratios=(4, 1, 4)
        )
        return figure, np.array([panels[name] for name in ("distances", "reliability", "dsc", "ece", "voxels")])

    def draw(self, axes: np.ndarray) -> list[Artist]:
        histogram, diagram, dsc, ece, counts = axes
        edges = DISTANCE_EDGES[np.isfinite(DISTANCE_EDGES)]
        self._edges = np.append(edges, edges[-1] + edges[1])
        shares = [self._distance_share(_at_margin(self._histograms, margin)) for margin in self._margins]
        self._distances = histogram.stairs(
            shares[0], self._edges, fill=True, color=_MBLS, alpha=0.6, label="at this margin"
        )
        histogram.stairs(shares[-1], self._edges, color=plots.LOSS_COLOURS["ce"], label="CE")
        self._line = histogram.axvline(0, color=_COLOURS["margin"], linestyle="--", label="margin m")
        histogram.set(xlim=(0, 15), ylim=(0, 1.05 * max(share.max() for share in shares)))
        histogram.set(xlabel="logit distance d", ylabel="share", title=f"distances, {self._region}")
        histogram.legend(fontsize=8, frameon=False)
        diagram.plot([0, 1], [0, 1], color=_COLOURS["guide"], linestyle="--", linewidth=1)
        ce = self._reliability(_at_margin(self._histograms, math.inf))
        colours = {"CE": plots.LOSS_COLOURS["ce"], "at this margin": _MBLS, "fewer than 1 %": _COLOURS["small"]}
        style = {"marker": "o", "linestyle": "none", "markersize": 6}
        known, self._curve, self._small = (
            diagram.plot([0], [0], color=colour, label=label, **style)[0] for label, colour in colours.items()
        )
        known.set(markerfacecolor="none", zorder=3)
        known.set_data(*_points(ce, ce.count > 0))
        diagram.set(xlim=(0.2, 1.01), ylim=(0.2, 1.01), ylabel="accuracy", xticklabels=[])
        diagram.set(title=f"reliability, {self._region}")
        diagram.legend(fontsize=8, frameon=False, loc="upper left")
        self._counts = counts.stairs(np.zeros(len(ce.count)), ce.edges, fill=True, color=_MBLS)
        counts.set(xlim=(0.2, 1.01), ylim=(0, 1), xlabel="confidence", yticks=[0, 1], yticklabels=["0", "all"])
        counts.set(ylabel="voxels")
        self._draw_figure(dsc, {"dsc": ("", "-")}, "DSC")
        dsc.set_ylim(0, 1)
        self._draw_figure(ece, {"ece_fg": ("foreground", "-"), "ece": ("all voxels", ":")}, "ECE")
        ece.set_ylim(bottom=0)
        ece.legend(fontsize=8, frameon=False)
        self._markers = [ax.axvline(0, color=_COLOURS["now"], linewidth=8, alpha=0.25) for ax in (dsc, ece)]
        return [self._distances, self._line, self._curve, self._small, self._counts, *self._markers]

    def _draw_figure(self, axes: Axes, columns: dict[str, tuple[str, str]], title: str) -> None:
        """Means over the seeds as a line over the margins, the seeds as dots; CE, which has no margin, stands apart."""
        names = ["CE" if margin == math.inf else f"{margin:g}" for margin in self._margins]
        groups = [_at_margin(self._results, margin) for margin in self._margins]
        for column, (label, line) in columns.items():
            means = [rows[column].mean() for rows in groups[:-1]]
            axes.plot(range(len(means)), means, color=_MBLS, linestyle=line, label=label)
            for place, rows in enumerate(groups):
                colour = _MBLS if place < len(means) else plots.LOSS_COLOURS["ce"]
                axes.plot([place] * len(rows), rows[column], "o", color=colour, markersize=4, alpha=0.6)
        axes.set(xticks=range(len(names)), xticklabels=names, xlabel="margin m", title=title)

    def update(self, numbers: MarginNumbers) -> None:
        self._distances.set_data(numbers.distance_share, self._edges)
        self._line.set_xdata([self.margin] * 2)
        share = numbers.reliability.count / numbers.reliability.count.sum()
        self._curve.set_data(*_points(numbers.reliability, share >= plots.SMALL_SHARE))
        self._small.set_data(*_points(numbers.reliability, (share > 0) & (share < plots.SMALL_SHARE)))
        self._counts.set_data(share, numbers.reliability.edges)
        for marker in self._markers:
            marker.set_xdata([self._margins.index(self.margin)] * 2)

    def describe(self, numbers: MarginNumbers) -> str:
        name = "cross-entropy" if self.margin == math.inf else f"m = {self.margin:g}"
        figures = numbers.figures
        return (
            f"{name}, {numbers.seeds} seeds: DSC {figures['dsc']:.3f}, ECE {figures['ece']:.3f} over all voxels, "
            f"{figures['ece_fg']:.3f} over the foreground"
        )


def _with_margin(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of MbLS and CE with a column "margin": infinity for CE."""
    margins = {loss: _margin_of(loss) for loss in table["loss"].unique() if loss.split(":")[0] in ("mbls", "ce")}
    rows = table.loc[table["loss"].isin(margins)]
    return rows.assign(margin=[margins[loss] for loss in rows["loss"]])


def _at_margin(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    return table.loc[table["margin"] == margin]


def _points(reliability: Reliability, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return reliability.confidence[which], reliability.accuracy[which]


def _sums(values: pd.Series, by: pd.Series) -> np.ndarray:
    """The sum of the values of each group, in ascending order of the groups."""
    return values.groupby(by).agg("sum").to_numpy()


def _margin_of(loss: str) -> float:
    """The margin of a loss, "ce" or MbLS with its options; infinity for "ce"."""
    if loss.split(":")[0] == "ce":
        return math.inf
    return cast(MbLSLoss, build_loss(loss, len(CLASS_NAMES))).margin


def _one_of(name: str, value: Any, choices: list[Any]) -> Any:
    if value not in choices:
        raise TraitError(f"{name}: got {value!r}, expected one of {', '.join(map(str, choices))}")
    return value
