"""Calibration after training, fitted on all voxels and on the foreground: ``python -m benchmarks.posthoc RUN``.

RUN is a folder that ``mbls train --keep-predictions`` wrote. Each map is fitted on the validation cases and judged on
the test cases, over all voxels (ECE, class-wise ECE, NLL) and over those whose label is not background (ECE).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import markdown
from mbls.engine.predict import KeptPredictions, read_kept
from mbls.metrics import (
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
)
from mbls.posthoc import IsotonicCalibration, TemperatureScaling, VectorScaling, segmentation_change


def voxels(folder: KeptPredictions) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, K) and labels (N,) of all voxels of all cases."""
    logits, labels = [], []
    for prediction in folder:
        assert prediction.logits is not None
        logits.append(prediction.logits.flatten(1).T)
        labels.append(prediction.labels.flatten())
    return torch.cat(logits), torch.cat(labels)


def row(
    name: str,
    calibration: Callable[[torch.Tensor], torch.Tensor],
    test: KeptPredictions,
    rows: tuple[torch.Tensor, ...],
) -> tuple[object, ...]:
    logits, labels = rows
    probs = calibration(logits).softmax(1)
    changes = [segmentation_change(calibration, case.logits.unsqueeze(0), case.labels.unsqueeze(0)) for case in test]
    flipped = sum(change.flipped for change in changes) / sum(change.voxels for change in changes)
    gain = torch.tensor([change.dsc_after for change in changes]) - torch.tensor(
        [change.dsc_before for change in changes]
    )
    figures = (
        expected_calibration_error(probs, labels),
        classwise_calibration_error(probs, labels),
        negative_log_likelihood(probs, labels),
        expected_calibration_error(probs, labels, mask=labels > 0),
    )
    return (name, *(f"{figure:.4f}" for figure in figures), f"{100 * flipped:.3f} %", f"{float(gain.nanmean()):+.4f}")


def report(run: Path) -> str:
    kept = next(folder for folder in (run / "predictions" / "last", run / "predictions" / "best") if folder.is_dir())
    validation, test = read_kept(kept / "val"), read_kept(kept / "test")
    logits, labels = voxels(validation)
    judged = voxels(test)
    classes = logits.shape[1]
    rows = [row("none", lambda values: values, test, judged)]
    for make in (TemperatureScaling, lambda: VectorScaling(classes), lambda: IsotonicCalibration(classes)):
        for where, mask in (("all voxels", None), ("foreground", labels > 0)):
            fitted = make().fit(logits, labels, mask)
            note = f" (T = {fitted.temperature:.2f})" if isinstance(fitted, TemperatureScaling) else ""
            rows.append(row(f"{type(fitted).__name__}, {where}{note}", fitted, test, judged))
    header = ("fitted", "ECE", "class-wise ECE", "NLL", "ECE, foreground", "voxels flipped", "DSC")
    return f"{len(validation)} validation and {len(test)} test cases of {test.name}.\n\n" + markdown(header, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posthoc", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    print(report(parser.parse_args().run))
