"""Judge predictions: overlap and calibration of each case and class, bins and logit distances pooled over all of them.

Everything is taken in one pass over the predictions, also what would be there after post-hoc scaling. A new metric is
one function and one row of :data:`METRICS`.
"""

from __future__ import annotations

import csv
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric

from mbls.constraints import logit_distances
from mbls.data.slices import IGNORED
from mbls.engine.predict import Prediction
from mbls.files import atomic_write, read_npz, write_table
from mbls.metrics import (
    CalibrationBins,
    Region,
    Reliability,
    _adaptive_error,
    _smooth_error,
    _winners,
    brier_score,
    negative_log_likelihood,
    region_mask,
    segmentation_scores,
)
from mbls.progress import progress_bar
from mbls.statistics import bootstrap_interval

__all__ = [
    "DISTANCE_EDGES",
    "ENDINGS",
    "METRICS",
    "SCALED",
    "Judgement",
    "Metric",
    "columns",
    "distance_counts",
    "judge",
    "metric_of",
    "reliability_over_subjects",
]

#: Regions that calibration is judged over, with the ending of their columns.
ENDINGS: dict[Region, str] = {"all": "", "foreground": "_fg", "boundary": "_boundary"}
#: What the columns of metrics taken after post-hoc scaling begin with.
SCALED = "scaled_"
#: Bins of the histogram of logit distances, in logits; the last one holds everything above.
DISTANCE_EDGES = np.append(np.arange(0, 20, 0.25), np.inf)


class _Case:
    """One case's logits and labels as a batch of one, and what is computed from them once."""

    def __init__(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.logits, self.labels = logits.unsqueeze(0), labels.unsqueeze(0)

    @functools.cached_property
    def probs(self) -> torch.Tensor:
        return self.logits.softmax(1)

    @functools.cached_property
    def distances(self) -> torch.Tensor:
        return logit_distances(self.logits)


class _Voxels:
    """The voxels of a case that count in a region, taken out once for all metrics."""

    def __init__(self, case: _Case, region: Region) -> None:
        # The region is taken slice by slice: the first spatial axis stands for the batch.
        mask = (region_mask(case.labels[0], region) & (case.labels[0] != IGNORED)).flatten()
        self.number = int(mask.sum())
        self.case, self.chosen = case, None if self.number == mask.numel() else mask.nonzero().squeeze(1)
        self.labels = self._of(case.labels.unsqueeze(1)).squeeze(1)

    def _of(self, values: torch.Tensor) -> torch.Tensor:
        """(1, K, *spatial) -> (1, K, number)."""
        flat = values.flatten(2)
        return flat if self.chosen is None else flat.index_select(2, self.chosen)

    @functools.cached_property
    def probs(self) -> torch.Tensor:
        return self._of(self.case.probs)

    @functools.cached_property
    def distances(self) -> torch.Tensor:
        return self._of(self.case.distances)

    @functools.cached_property
    def bins(self) -> CalibrationBins:
        return CalibrationBins(self.probs.shape[1]).update(self.probs, self.labels)

    @functools.cached_property
    def winners(self) -> tuple[torch.Tensor, torch.Tensor]:
        return _winners(self.probs, self.labels)

    @functools.cached_property
    def brier(self) -> float:
        return brier_score(self.probs, self.labels)


def _mean_distance(voxels: _Voxels) -> float:
    """Of the losing classes, over the voxels."""
    return float((voxels.distances.sum(1) / (voxels.distances.shape[1] - 1)).double().mean())


def _overconfidence(bins: CalibrationBins) -> float:
    """Mean confidence minus the share of hits: below zero where the network claims too little."""
    _, confidence, hits = (part[0].sum() for part in bins.state_dict().values())
    return float(confidence - hits) / bins.num_voxels


def _share_above(voxels: _Voxels, confidence: float) -> float:
    """The voxels whose winning class has more than this probability, as a share of all."""
    return int((voxels.winners[0] > confidence).sum()) / voxels.number


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics.

    Attributes:
        title: for tables and axes.
        digits: after the point.
        better: which direction is good, None for a description.
        function: of a case's voxels in a region: a number, or one a class, of which a row then holds the mean too.
            None: overlap and surface scores, one a structure, which come together from
            :func:`mbls.metrics.segmentation_scores`.
    """

    title: str
    digits: int
    better: Literal["high", "low"] | None
    function: Callable[[_Voxels], float | np.ndarray] | None = None


#: Name -> metric, in the order of the tables; one that is added here is judged everywhere.
METRICS = {
    "dsc": Metric("DSC", 3, "high"),
    "hd95": Metric("HD95", 2, "low"),
    "asd": Metric("ASD", 2, "low"),
    "ece": Metric("ECE", 4, "low", lambda voxels: voxels.bins.ece()),
    "cece": Metric("CECE", 4, "low", lambda voxels: voxels.bins.classwise("ece")),
    "cace": Metric("class-wise ACE", 4, "low", lambda voxels: voxels.bins.classwise("ace")),
    "cmce": Metric("class-wise MCE", 4, "low", lambda voxels: voxels.bins.classwise("mce")),
    "aece": Metric("AECE", 4, "low", lambda voxels: _adaptive_error(*voxels.winners)),
    "smece": Metric("smooth ECE", 4, "low", lambda voxels: _smooth_error(*voxels.winners)),
    "nll": Metric("NLL", 3, "low", lambda voxels: negative_log_likelihood(voxels.probs, voxels.labels)),
    "brier": Metric("Brier", 3, "low", lambda voxels: voxels.brier),
    "brier_calibration": Metric("Brier, calibration", 4, "low", lambda voxels: voxels.bins.brier_calibration()),
    "brier_refinement": Metric("Brier, refinement", 4, "low", lambda v: v.brier - v.bins.brier_calibration()),
    "overconfidence": Metric("confidence - accuracy", 4, None, lambda voxels: _overconfidence(voxels.bins)),
    "certain": Metric("share above 0.999", 3, None, lambda voxels: _share_above(voxels, 0.999)),
    "mean_distance": Metric("mean distance", 2, None, _mean_distance),
}


def columns(surface: bool = True, scaled: bool = False) -> list[str]:
    """The columns that :func:`judge` fills: each metric, in each region where it has regions.

    Args:
        surface: False leaves out HD95 and ASD, which take most of the time.
        scaled: the columns after post-hoc scaling instead.
    """
    overlap = [name for name, metric in METRICS.items() if metric.function is None and (surface or name == "dsc")]
    by_region = [f"{name}{end}" for end in ENDINGS.values() for name, metric in METRICS.items() if metric.function]
    return [f"{SCALED}{name}" for name in by_region] if scaled else overlap + by_region


def metric_of(column: str) -> tuple[Region, Metric]:
    """The region ("all", "foreground", "boundary") and the row of :data:`METRICS` that a column belongs to.

    Raises:
        ValueError: no such metric.

    Example:
        >>> region, metric = metric_of("scaled_ece_fg")
        >>> region, metric.title, metric.digits
        ('foreground', 'ECE', 4)
    """
    name = column.removeprefix(SCALED)
    found: list[Region] = [region for region, end in ENDINGS.items() if end and name.endswith(end)]
    region: Region = found[0] if found else "all"
    name = name.removesuffix(ENDINGS[region])
    if name not in METRICS:
        raise ValueError(f"metric: got {column!r}, expected one of {', '.join(columns())}")
    return region, METRICS[name]


@dataclass
class Judgement:
    """Metrics of some predictions.

    Attributes:
        class_names: K names, index 0 the background.
        cases: one row a case; see :func:`judge`.
        case_bins: the confidence bins of each case over the voxels of "all", "foreground" and "boundary"; after
            post-hoc scaling "scaled_all" and so on. Empty where nothing was pooled.
        distances: :func:`distance_counts` of all cases' voxels of each region, before scaling.
    """

    class_names: tuple[str, ...]
    cases: list[dict[str, Any]]
    case_bins: dict[str, list[CalibrationBins]]
    distances: dict[str, np.ndarray]

    @property
    def bins(self) -> dict[str, CalibrationBins]:
        """The bins of all cases together, as if they were one volume."""
        return {
            key: functools.reduce(CalibrationBins.merge, parts, CalibrationBins(len(self.class_names)))
            for key, parts in self.case_bins.items()
        }

    def summary(self) -> dict[str, float]:
        """Unweighted means: of calibration over the cases, of overlap over the structures found in all of them.

        ``missed`` counts the structures in the labels that were not found, or the other way round. NaN where nothing
        was to be judged.
        """
        metrics: dict[str, float] = {}
        there = list(self.cases[0]) if self.cases else []
        for name, metric in METRICS.items():
            if metric.function is None and name in there:
                keys = [f"{name}_{structure}" for structure in self.class_names[1:]]
                values = np.array([[row[key] for key in keys] for row in self.cases])
                metrics[name] = _mean(values[np.isfinite(values)])
                if name == "hd95":
                    metrics["missed"] = int(np.isinf(values).sum())
        for column in (*columns(), *columns(scaled=True)):
            if column in there and metric_of(column)[1].function is not None:
                values = np.array([row[column] for row in self.cases])
                metrics[column] = _mean(values[~np.isnan(values)])
        return metrics

    def pooled(self) -> dict[str, float]:
        """ECE, CECE, ACE and MCE over all voxels of a region at once, as if they were one volume, and the same after
        post-hoc scaling; NaN without any."""
        names = ("ece", "cece", "ace", "mce")
        metrics = {}
        for key, bins in self.bins.items():
            prefix, region = _stage_and_region(key)
            known = bins.num_voxels > 0
            metrics |= {
                f"{prefix}{name}{ENDINGS[region]}": getattr(bins, name)() if known else float("nan") for name in names
            }
        return metrics

    def table(self) -> pd.DataFrame:
        """The cases, one a row."""
        return pd.DataFrame(self.cases)

    def subject_bins(self) -> pd.DataFrame:
        """The confidence bins of each subject, all its cases together and empty bins left out, a bin a row: subject,
        region, bin (from 0), count, prob_sum, hit_sum; of the winning class, before post-hoc scaling."""
        subjects = [row["subject"] for row in self.cases]
        tables = []
        for region in ENDINGS:
            for subject in dict.fromkeys(subjects):
                parts = [b for b, owner in zip(self.case_bins[region], subjects, strict=True) if owner == subject]
                bins = functools.reduce(CalibrationBins.merge, parts, CalibrationBins(len(self.class_names)))
                columns = {name: part[0].cpu().numpy() for name, part in bins.state_dict().items()}
                table = pd.DataFrame({"subject": subject, "region": region, "bin": range(bins.num_bins), **columns})
                tables.append(table[table["count"] > 0].astype({"count": int, "hit_sum": int}))
        return pd.concat(tables, ignore_index=True)

    def histograms(self) -> pd.DataFrame:
        """The pooled histograms, a bin a row: region, kind ("confidence" or "distance"), low, high, count, and for
        confidence the bin's mean confidence and accuracy."""
        tables, bins = [], self.bins
        for region in ENDINGS:
            if bins[region].num_voxels == 0:
                continue
            confidence = bins[region].reliability()
            parts = {"low": confidence.edges[:-1], "high": confidence.edges[1:], "count": confidence.count}
            parts |= {"confidence": confidence.confidence, "accuracy": confidence.accuracy}
            tables.append(pd.DataFrame({"region": region, "kind": "confidence", **parts}))
            parts = {"low": DISTANCE_EDGES[:-1], "high": DISTANCE_EDGES[1:], "count": self.distances[region]}
            tables.append(pd.DataFrame({"region": region, "kind": "distance", **parts}))
        return pd.concat(tables, ignore_index=True)

    def save(self, folder: Path, name: str = "") -> None:
        """Write ``cases{name}.csv``, and bins and distances as ``bins{name}.npz``."""
        write_table(self.table(), folder / f"cases{name}.csv")
        arrays: dict[str, Any] = {f"distances {region}": counts for region, counts in self.distances.items()}
        for key, parts in self.case_bins.items():
            states = [bins.state_dict() for bins in parts]
            arrays |= {
                f"{name} {key}": np.stack([state[name].cpu().numpy() for state in states])
                for name in (states[0] if states else ())
            }
        with atomic_write(folder / f"bins{name}.npz") as part, part.open("wb") as file:
            np.savez_compressed(file, class_names=np.array(self.class_names), **arrays)

    @classmethod
    def load(cls, folder: Path, name: str = "") -> Judgement:
        """What :meth:`save` wrote.

        Raises:
            OSError: a file is missing.
            ValueError: a file that cannot be read, or that has no case.
        """
        # Not by pandas: a group may be called "NA", a subject "007".
        with (folder / f"cases{name}.csv").open(encoding="utf-8", newline="") as file:
            cases = [{column: _value(column, text) for column, text in row.items()} for row in csv.DictReader(file)]
        if not cases or "case" not in cases[0]:
            raise ValueError(f"{folder / f'cases{name}.csv'}: got no case, expected a row for each")
        arrays = read_npz(folder / f"bins{name}.npz")
        class_names = tuple(arrays["class_names"].tolist())
        case_bins: dict[str, list[CalibrationBins]] = {}
        distances = {}
        for name, value in arrays.items():
            part, _, key = name.partition(" ")
            if part == "distances":
                distances[key] = value
            elif part == "count":
                case_bins[key] = []
                for number, counts in enumerate(value):
                    bins = CalibrationBins(len(class_names), counts.shape[1])
                    parts = {part: torch.from_numpy(arrays[f"{part} {key}"][number]) for part in bins.state_dict()}
                    bins.load_state_dict(parts)
                    case_bins[key].append(bins)
        return cls(class_names, cases, case_bins, distances)


def _value(column: str, text: str) -> Any:
    """A cell of a table of cases; an empty one is no group, or not a number."""
    if column in ("case", "subject", "group"):
        return text or None
    return int(text) if text.isdigit() else float(text or "nan")


def _stage_and_region(key: str) -> tuple[str, Region]:
    """The two parts of a key of :attr:`Judgement.case_bins`: ("scaled_", "all") of "scaled_all"."""
    prefix = SCALED if key.startswith(SCALED) else ""
    region: Any = key.removeprefix(SCALED)
    return prefix, region


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def distance_counts(distances: torch.Tensor) -> np.ndarray:
    """Histogram of the distances of the losing classes over :data:`DISTANCE_EDGES`: K - 1 a voxel, without the winner's
    zero.

    Args:
        distances: :func:`mbls.constraints.logit_distances`, (B, K, *spatial).
    """
    width, highest = float(DISTANCE_EDGES[1]), float(DISTANCE_EDGES[-2])
    counts = torch.zeros(len(DISTANCE_EDGES) - 1, dtype=torch.int64, device=distances.device)
    for block in distances.flatten().split(1 << 16):  # stays near the cache
        # A division by 1/4 is exact; torch.bucketize takes ten times as long.
        counts += torch.bincount((block.clamp(max=highest) / width).long(), minlength=len(counts))
    counts[0] -= distances.numel() // distances.shape[1]  # the winner of each voxel
    return counts.cpu().numpy()


def judge(
    predictions: Iterable[Prediction],
    class_names: Sequence[str],
    wanted: Sequence[str] | None = None,
    scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
    pool: bool = True,
    fabric: Fabric | None = None,
    progress: bool = False,
) -> Judgement:
    """All metrics of some predictions, in one pass over them.

    Args:
        predictions: from :func:`mbls.engine.predict.predict` or :func:`mbls.engine.read.read_predictions`.
        class_names: K names, index 0 the background.
        wanted: which of :func:`columns`; None takes all. HD95 and ASD are in mm where the spacing is known, else in
            voxels.
        scale: applied to logits (B, K, *spatial), e.g. a fitted :class:`mbls.posthoc.TemperatureScaling`; everything
            but the overlap is then taken a second time behind it, in columns that begin with ``scaled_``.
        pool: False leaves out the bins, and the distances of all voxels together.
        fabric: with n processes, each judges every n-th case, and all get all rows.
        progress: whether a bar is shown.

    Returns:
        A :class:`Judgement`; its rows hold case, subject, group, voxels, voxels_fg (those whose label is a structure)
        and voxels_boundary (those near a change of the label, :func:`mbls.metrics.region_mask`), the overlap as
        ``dsc_NAME`` of each structure and ``dsc`` as the mean over those found, and each other metric over all voxels
        and (``_fg``, ``_boundary``) over the two regions. NaN: the structure, or the region, is not there; infinite: a
        structure is only in one of prediction and labels.

    Raises:
        ValueError: an unknown column; predictions of another number of classes or shape; values as in mbls.metrics.
    """
    wanted = columns() if wanted is None else list(wanted)
    by_region = {region: [] for region in ENDINGS}
    overlap = []
    for column in wanted:
        if column not in columns():
            raise ValueError(f"metric: got {column!r}, expected one of {', '.join(columns())}")
        region, metric = metric_of(column)
        if metric.function is None:
            overlap.append(column)
        else:
            by_region[region].append((column, metric.function))
    keys = [f"{prefix}{region}" for prefix in ("", *([SCALED] if scale else [])) for region in ENDINGS]
    whole = Judgement(
        tuple(class_names),
        [],
        {key: [] for key in keys},
        {region: np.zeros(len(DISTANCE_EDGES) - 1, dtype=np.int64) for region in ENDINGS},
    )
    for prediction in progress_bar(predictions, desc="judge", unit="case", leave=False, disable=not progress):
        _check(prediction, class_names)
        row: dict[str, Any] = {"case": prediction.id, "subject": prediction.subject, "group": prediction.group}
        row |= _overlap(prediction, overlap, class_names)
        with torch.inference_mode():
            for prefix, logits in _stages(prediction.logits, scale):
                case = _Case(logits, prediction.labels)
                for region, end in ENDINGS.items():
                    voxels = _Voxels(case, region)
                    row.setdefault(f"voxels{end}", voxels.number)
                    for column, function in by_region[region]:
                        value = function(voxels) if voxels.number else float("nan")
                        row[f"{prefix}{column}"] = float(np.mean(value))
                        if isinstance(value, np.ndarray):
                            row |= {
                                f"{prefix}{column}_{name}": float(v) for name, v in zip(class_names, value, strict=True)
                            }
                    if pool:
                        whole.case_bins[f"{prefix}{region}"].append(voxels.bins)
                        if not prefix and voxels.number:
                            whole.distances[region] += distance_counts(voxels.distances)
        whole.cases.append(row)
    if fabric is not None and fabric.world_size > 1:
        whole = _gathered(whole, fabric.world_size)
    return whole


def _stages(
    logits: torch.Tensor, scale: Callable[[torch.Tensor], torch.Tensor] | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The logits as they are, and once more behind the scaling."""
    yield "", logits
    if scale is not None:
        yield SCALED, scale(logits.unsqueeze(0)).squeeze(0)


def _check(prediction: Prediction, class_names: Sequence[str]) -> None:
    expected = (len(class_names), *prediction.labels.shape)
    if tuple(prediction.logits.shape) != expected:
        raise ValueError(
            f"{prediction.id}: got logits {tuple(prediction.logits.shape)}, expected {expected}: "
            f"{len(class_names)} classes ({', '.join(class_names)}) over the labels"
        )


def _overlap(prediction: Prediction, wanted: Sequence[str], class_names: Sequence[str]) -> dict[str, float]:
    """The scores of each structure, and their mean over those found."""
    if not wanted:
        return {}
    ignored = prediction.labels == IGNORED  # background in both: neither a hit nor a miss
    winner = prediction.winner.masked_fill(ignored, 0)
    labels = prediction.labels.masked_fill(ignored, 0)
    surface = any(name != "dsc" for name in wanted)
    scores = segmentation_scores(winner, labels, len(class_names), prediction.spacing, surface)
    row = {}
    for name in wanted:
        values = np.asarray(scores[name])
        row[name] = _mean(values[np.isfinite(values)])
        row |= {f"{name}_{structure}": float(v) for structure, v in zip(class_names[1:], values, strict=True)}
    return row


def reliability_over_subjects(
    bins: pd.DataFrame, region: Region = "all", num_bins: int = 15
) -> tuple[Reliability, tuple[np.ndarray, np.ndarray]]:
    """The reliability of all subjects together, and how far each bin's accuracy may lie off.

    Args:
        bins: from :meth:`Judgement.subject_bins`, of one run or of several (which are added up).
        region: whose voxels.
        num_bins: number of bins.

    Returns:
        The diagram, and lower and upper end of the 95 % interval of each bin's accuracy over the subjects.
    """
    rows = bins.loc[bins["region"] == region]
    subjects = list(dict.fromkeys(rows["subject"]))
    counts = np.zeros((len(subjects), 3, num_bins))
    place = np.array([subjects.index(subject) for subject in rows["subject"]], dtype=int)
    for column, name in enumerate(("count", "prob_sum", "hit_sum")):
        np.add.at(counts[:, column], (place, rows["bin"].to_numpy(int)), rows[name].to_numpy(float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few subjects: whoever draws the intervals says how many
        interval = bootstrap_interval(counts, lambda chosen: _reliability_of(chosen).accuracy)
    return _reliability_of(counts), interval


def _reliability_of(counts: np.ndarray) -> Reliability:
    """The subjects' counts, sums of confidence and of hits (subjects, 3, bins), added up."""
    count, confidence, hits = counts.sum(0)
    known = np.where(count > 0, count, np.nan)
    return Reliability(np.linspace(0, 1, len(count) + 1), count.astype(int), confidence / known, hits / known)


def _gathered(mine: Judgement, world_size: int) -> Judgement:
    """All processes' metrics, as one process would have them."""
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, mine)
    whole, *others = parts
    whole.cases = _in_turn([part.cases for part in parts])
    whole.case_bins = {key: _in_turn([part.case_bins[key] for part in parts]) for key in whole.case_bins}
    for other in others:
        for region in ENDINGS:
            whole.distances[region] += other.distances[region]
    return whole


def _in_turn(dealt: Sequence[list]) -> list:
    """What was dealt out in turn, in the order of before."""
    together = itertools.chain.from_iterable(itertools.zip_longest(*dealt))
    return [one for one in together if one is not None]
