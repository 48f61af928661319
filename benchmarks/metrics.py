"""Calibration figures of many voxels: ours, torchmetrics' and MONAI's against one float64 count; time and peak
memory."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import markdown, paired_ratios, peak_mebibytes
from mbls.metrics import CalibrationBins, adaptive_calibration_error, expected_calibration_error

SIZES = [10_000_000, 50_000_000]
QUICK_SIZES = [20_000]
CLASSES, BINS = 4, 15


def make_predictions(voxels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident probabilities (1, K, voxels / 100, 100) and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, CLASSES, voxels // 100, 100, generator=generator).mul_(1.5)
    truth = logits.softmax(1)
    chance = torch.rand(truth[:, 0].shape, generator=generator).unsqueeze(1)
    target = (chance >= truth.cumsum(1)[:, :-1]).sum(1)
    return logits.mul_(2).softmax(1), target


def float64_errors(probs: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """ECE and CECE by numpy with float64 sums, class after class."""
    rows, labels = probs[0].flatten(1).numpy(), target.flatten().numpy()
    edges = (np.arange(1, BINS) / BINS).astype(rows.dtype)

    def error(values: np.ndarray, hits: np.ndarray) -> float:
        bins = np.searchsorted(edges, values, side="left")
        gap = np.bincount(bins, values.astype(np.float64), BINS) - np.bincount(bins[hits], minlength=BINS)
        return float(np.abs(gap).sum() / len(values))

    ece = error(rows.max(0), rows.argmax(0) == labels)
    return ece, float(np.mean([error(rows[label], labels == label) for label in range(CLASSES)]))


def report(quick: bool = False) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of both peers, of their own imports
        from monai.metrics import CalibrationErrorMetric
        from torchmetrics.functional.classification import multiclass_calibration_error

    parts = []
    for voxels in QUICK_SIZES if quick else SIZES:
        probs, target = make_predictions(voxels)
        one_hot = F.one_hot(target, CLASSES).movedim(-1, 1)

        def monai(probs: torch.Tensor = probs, one_hot: torch.Tensor = one_hot) -> float:
            metric = CalibrationErrorMetric(BINS, calibration_reduction="expected", metric_reduction="mean")
            metric(y_pred=probs, y=one_hot)
            return float(torch.as_tensor(metric.aggregate()).mean())

        def torchmetrics(probs: torch.Tensor = probs, target: torch.Tensor = target) -> float:
            return multiclass_calibration_error(probs, target, CLASSES, n_bins=BINS, validate_args=False).item()

        ece, cece = float64_errors(probs, target)
        bins = CalibrationBins(CLASSES).update(probs, target)
        # name: (work, its error of the ECE or None, of the CECE or None)
        ours = "**mbls CalibrationBins.update** (ECE, CECE, ACE, MCE, diagrams)"
        contenders = {
            ours: (
                lambda p=probs, t=target: CalibrationBins(CLASSES).update(p, t),
                bins.ece() - ece,
                bins.cece() - cece,
            ),
            "mbls expected_calibration_error (ECE)": (
                lambda p=probs, t=target: expected_calibration_error(p, t),
                expected_calibration_error(probs, target) - ece,
                None,
            ),
            "torchmetrics multiclass_calibration_error (ECE)": (torchmetrics, torchmetrics() - ece, None),
            "MONAI CalibrationErrorMetric (CECE), one-hot labels given": (monai, None, monai() - cece),
            "mbls adaptive_calibration_error (AECE: one sort)": (
                lambda p=probs, t=target: adaptive_calibration_error(p, t),
                None,
                None,
            ),
        }
        ratios = paired_ratios({name: work for name, (work, *_) in contenders.items()}, ours, runs=2 if quick else 3)
        rows = []
        for name, (work, *errors) in contenders.items():
            peak = peak_mebibytes(work)
            shown = [None if error is None else f"{error:+.0e}" for error in errors]
            rows.append((name, ratios[name], *shown, None if peak is None else f"{peak:.0f}"))
        header = ("figure", "time", "error of ECE", "error of CECE", "peak extra memory, MiB")
        about = f"{voxels:,} voxels, {CLASSES} classes; ECE {ece:.5f}, CECE {cece:.5f}, counted in float64:"
        parts.append(f"{about}\n\n{markdown(header, rows)}")
    return "Time as a multiple of `CalibrationBins.update`'s.\n\n" + "\n\n".join(parts)
