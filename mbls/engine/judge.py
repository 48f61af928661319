"""Judge a network on volumes: overlap and calibration of each, bins and logit distances pooled over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import is_wrapped
from torch import nn
from tqdm.auto import tqdm

from mbls.constraints import logit_distances
from mbls.data.acdc import CLASS_NAMES, SliceDataset, VolumeSlices
from mbls.engine.devices import forward_flops, make_fabric, set_memory_format, threads_for
from mbls.metrics import (
    CalibrationBins,
    adaptive_calibration_error,
    average_over_volumes,
    brier_score,
    negative_log_likelihood,
    region_mask,
    segmentation_scores,
)
from mbls.posthoc import TemperatureScaling

__all__ = [
    "CALIBRATION",
    "DISTANCE_EDGES",
    "REGIONS",
    "Evaluation",
    "distance_counts",
    "evaluate",
    "fit_temperature",
    "predict_volumes",
]

#: Regions that calibration is judged over, with the ending of their columns.
REGIONS = {"all": "", "foreground": "_fg"}
#: The figures taken in each region.
CALIBRATION = ("ece", "cece", "aece", "nll", "brier", "mean_distance")

#: Bins of the histogram of logit distances, in logits; the last one holds everything above.
DISTANCE_EDGES = np.append(np.arange(0, 20, 0.25), np.inf)


@dataclass
class Evaluation:
    """Figures of a network on some volumes.

    Attributes:
        volumes: one row a volume; see :func:`evaluate`.
        bins: confidence bins pooled over all voxels of a region, "all" and "foreground".
        distances: :func:`distance_counts` of the same voxels.
    """

    volumes: list[dict[str, Any]]
    bins: dict[str, CalibrationBins]
    distances: dict[str, np.ndarray]

    def summary(self) -> dict[str, float]:
        """Means over volumes, as the official evaluation takes them: calibration weighted by the voxels counted, DSC unweighted.

        ``hd95`` and ``asd`` are means over the structures found; ``missed`` counts the structures in the labels that were not, or
        the other way round.
        """
        figures: dict[str, float] = {}
        for score in ("dsc", "hd95", "asd"):
            values = np.array(
                [[row[f"{score}_{name}"] for name in CLASS_NAMES[1:]] for row in self.volumes if f"{score}_RV" in row]
            )
            if values.size:
                found = values[np.isfinite(values)]
                figures[score] = float(found.mean()) if found.size else float("nan")
                if score == "hd95":
                    figures["missed"] = int(np.isinf(values).sum())
        for region, suffix in REGIONS.items():
            weights = [row[f"voxels{suffix}"] for row in self.volumes]
            if sum(weights) == 0:
                raise ValueError(f"volumes: got no {region} voxel in {len(self.volumes)} volumes, expected some")
            for score in CALIBRATION:
                name = f"{score}{suffix}"
                figures[name] = average_over_volumes([row[name] for row in self.volumes], weights)
        return figures

    def pooled(self) -> dict[str, float]:
        """ECE, CECE, ACE and MCE over all voxels of a region at once, as if they were one volume."""
        figures = {}
        for region, suffix in REGIONS.items():
            bins = self.bins[region]
            figures |= {f"{name}{suffix}": getattr(bins, name)() for name in ("ece", "cece", "ace", "mce")}
        return figures

    def histograms(self) -> pd.DataFrame:
        """The pooled histograms, a bin a row: region, kind ("confidence" or "distance"), low, high, count, and for confidence
        the bin's mean confidence and accuracy."""
        tables = []
        for region in REGIONS:
            confidence = self.bins[region].reliability()
            columns = {"low": confidence.edges[:-1], "high": confidence.edges[1:], "count": confidence.count}
            columns |= {"confidence": confidence.confidence, "accuracy": confidence.accuracy}
            tables.append(pd.DataFrame({"region": region, "kind": "confidence", **columns}))
            columns = {"low": DISTANCE_EDGES[:-1], "high": DISTANCE_EDGES[1:], "count": self.distances[region]}
            tables.append(pd.DataFrame({"region": region, "kind": "distance", **columns}))
        return pd.concat(tables, ignore_index=True)


def distance_counts(distances: torch.Tensor, mask: torch.Tensor, edges: np.ndarray = DISTANCE_EDGES) -> np.ndarray:
    """Histogram of the distances of the losing classes: K - 1 a voxel, without the winner's own zero.

    Args:
        distances: :func:`mbls.constraints.logit_distances`, (B, K, *spatial).
        mask: (B, *spatial) boolean, the voxels to count.
        edges: of the bins; the first is 0.
    """
    counted = distances.movedim(1, -1)[mask]
    counts, _ = np.histogram(counted.numpy(), edges)
    counts[0] -= len(counted)  # the winner of each voxel
    return counts


def evaluate(
    model: nn.Module,
    dataset: SliceDataset,
    fabric: Fabric | None = None,
    surface: bool = True,
    scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Segment every volume and judge overlap and calibration; each process takes its share, all get all rows.

    Args:
        surface: False leaves out HD95 and ASD. Distances are in mm where the files know their spacing, else in voxels.
        scale: applied to the logits first, e.g. a fitted :class:`mbls.posthoc.TemperatureScaling`.

    Returns:
        An :class:`Evaluation`; its rows hold patient, group, phase, voxels, voxels_fg, dsc/hd95/asd of RV, MYO and LV, and
        ece, cece, aece, nll, brier, mean_distance over all voxels and (``_fg``) over those whose label is a structure.
    """
    fabric = fabric or make_fabric()
    share = dataset.volumes[fabric.global_rank :: fabric.world_size]
    rows = []
    bins = {region: CalibrationBins(len(CLASS_NAMES)) for region in REGIONS}
    counts = {region: np.zeros(len(DISTANCE_EDGES) - 1, dtype=np.int64) for region in REGIONS}
    volumes = predict_volumes(model, dataset, fabric, share)
    for volume, logits, labels in tqdm(
        volumes, total=len(share), desc="evaluate", unit="volume", leave=False, disable=not progress
    ):
        logits = logits if scale is None else scale(logits)
        probs = logits.softmax(1)
        row: dict[str, Any] = {"patient": volume.patient, "group": volume.group, "phase": volume.phase}
        scores = segmentation_scores(logits.argmax(1), labels, len(CLASS_NAMES), volume.spacing, surface)
        for score, values in scores.items():
            row |= {f"{score}_{name}": value for name, value in zip(CLASS_NAMES[1:], values, strict=True)}
        distances = logit_distances(logits)
        mean_distance = distances.mean(1)
        for region, suffix in REGIONS.items():
            mask = region_mask(labels, region)
            row[f"voxels{suffix}"] = int(mask.sum())
            if not mask.any():
                row |= {f"{name}{suffix}": float("nan") for name in CALIBRATION}
                continue
            volume_bins = CalibrationBins(len(CLASS_NAMES)).update(probs, labels, mask)
            bins[region].merge(volume_bins)
            counts[region] += distance_counts(distances, mask)
            row |= {
                f"ece{suffix}": volume_bins.ece(),
                f"cece{suffix}": volume_bins.cece(),
                f"aece{suffix}": adaptive_calibration_error(probs, labels, mask=mask),
                f"nll{suffix}": negative_log_likelihood(probs, labels, mask),
                f"brier{suffix}": brier_score(probs, labels, mask),
                f"mean_distance{suffix}": float(mean_distance[mask].double().mean()),
            }
        rows.append(row)
    evaluation = Evaluation(rows, bins, counts)
    if fabric.world_size > 1:
        evaluation = _gathered(evaluation, fabric.world_size)
        order = {(volume.patient, volume.phase): place for place, volume in enumerate(dataset.volumes)}
        evaluation.volumes.sort(key=lambda row: order[row["patient"], row["phase"]])
    return evaluation


def fit_temperature(model: nn.Module, dataset: SliceDataset, fabric: Fabric | None = None) -> TemperatureScaling:
    """Temperature scaling fitted on all voxels of some volumes, normally the validation set; every process fits the same."""
    parts = [(logits, labels) for _, logits, labels in predict_volumes(model, dataset, fabric)]
    return TemperatureScaling().fit(
        torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts])
    )


def predict_volumes(
    model: nn.Module, dataset: SliceDataset, fabric: Fabric | None = None, volumes: list[VolumeSlices] | None = None
) -> Iterator[tuple[VolumeSlices, torch.Tensor, torch.Tensor]]:
    """Each volume with its logits (N, K, H, W) float32 and labels (N, H, W) int64, on the CPU; the model is left in eval mode."""
    fabric = fabric or make_fabric()
    set_memory_format(model, fabric)
    network = model if is_wrapped(model) else fabric.setup_module(model)
    network.eval()
    slice_flops = forward_flops(network.module, (1, *dataset.images.shape[1:]))
    for volume in dataset.volumes if volumes is None else volumes:
        images = dataset.images[volume.start : volume.stop]
        with torch.inference_mode(), threads_for(len(images) * slice_flops, fabric.device):
            logits = network(fabric.to_device(images)).float().cpu()
        yield volume, logits, dataset.labels[volume.start : volume.stop].long()


def _gathered(evaluation: Evaluation, world_size: int) -> Evaluation:
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, evaluation)
    whole, *others = parts
    for other in others:
        whole.volumes += other.volumes
        for region in REGIONS:
            whole.bins[region].merge(other.bins[region])
            whole.distances[region] += other.distances[region]
    return whole
