"""What judging costs beside reading, and that memory does not grow: ``python -m benchmarks.judge``.

Cases of 10 x 256 x 216 voxels and four classes, written as nnU-Net's ``--save_probabilities`` does (float32, packed),
with NIfTI labels. All in CPU seconds of one thread, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import markdown, peak_mebibytes
from benchmarks.surface_distances import SPACING, make_hearts
from mbls.engine.judge import columns, judge
from mbls.engine.predict import Prediction
from mbls.engine.read import read_predictions
from mbls.engine.structures import distance_shells, volumes
from mbls.report import judge_folder

SHAPE, QUICK_SHAPE = (10, 256, 216), (3, 32, 32)
CLASSES = ("background", "RV", "MYO", "LV")


def make_cases(folder: Path, number: int, shape: tuple[int, int, int]) -> tuple[Path, Path]:
    """Predictions and labels: hearts, and the softmax of logits that are blurred at the borders and a little noisy."""
    predictions, labels = folder / "predictions", folder / "labels"
    for place in (predictions, labels):
        place.mkdir(parents=True)
    classes = {name: value for value, name in enumerate(CLASSES)}
    (predictions / "dataset.json").write_text(json.dumps({"labels": classes, "file_ending": ".nii.gz"}))
    claimed, true = make_hearts(shape)
    affine = np.diag([*SPACING[::-1], 1.0])
    generator = torch.Generator().manual_seed(0)
    for case in range(number):
        logits = 16 * F.avg_pool2d(F.one_hot(claimed, 4).movedim(-1, 1).float(), 5, 1, 2, count_include_pad=False)
        logits += 0.5 * torch.randn(logits.shape, generator=generator)
        probs = logits.softmax(1).movedim(1, 0).numpy()
        np.savez_compressed(predictions / f"case_{case:03}.npz", probabilities=probs)
        nib.save(nib.Nifti1Image(true.numpy().astype(np.uint8).T, affine), labels / f"case_{case:03}.nii.gz")
    return predictions, labels


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def monai_surfaces(case: Prediction) -> None:
    """HD95 and ASD of every structure by MONAI's two metrics."""
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    maps = (case.logits.argmax(0), case.labels)
    one_hot = [F.one_hot(labels, len(CLASSES)).movedim(-1, 0).unsqueeze(0) for labels in maps]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecated arguments
        compute_hausdorff_distance(*one_hot, percentile=95, spacing=case.spacing)
        compute_average_surface_distance(*one_hot, symmetric=True, spacing=case.spacing)


def costs(predictions: Path, labels: Path, rounds: int) -> dict[str, float]:
    """Each part's CPU time as a multiple of reading, the median over the rounds."""
    found = read_predictions(predictions, labels)
    case = next(iter(found))
    names = found.class_names
    calibration = [column for column in columns(surface=False) if column != "dsc"]
    surfaces = [column for column in columns() if column in ("dsc", "hd95", "asd")]
    parts: dict[str, Callable[[], object]] = {
        "calibration figures: 13 figures of 3 regions, bins and distances": lambda: judge([case], names, calibration),
        "the same behind a temperature too": lambda: judge([case], names, calibration, lambda logits: logits / 2),
        "volumes": lambda: volumes(case, names),
        "DSC, HD95 and ASD": lambda: judge([case], names, surfaces, pool=False),
        "HD95 and ASD by MONAI's two metrics": lambda: monai_surfaces(case),
        "distances from the boundary": lambda: distance_shells(case),
    }
    ratios: dict[str, list[float]] = {name: [] for name in parts}
    for work in parts.values():
        work()  # warm up
    for _ in range(rounds):
        reading = cpu_seconds(lambda: found.read(case.id))
        for name, work in parts.items():
            ratios[name].append(cpu_seconds(work) / reading)
    return {name: statistics.median(values) for name, values in ratios.items()}


def peak_of(number: int, shape: tuple[int, int, int]) -> str:
    """How far memory rises, in MiB, in a process of its own that judges so many cases."""
    command = [sys.executable, "-m", "benchmarks.judge", "--peak", str(number), *map(str, shape)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def report(quick: bool = False) -> str:
    shape, rounds, few, many = (QUICK_SHAPE, 2, 2, 3) if quick else (SHAPE, 15, 10, 100)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            ratios = costs(*make_cases(Path(folder), 1, shape), rounds)
    finally:
        torch.set_num_threads(threads)
    peaks = [peak_of(number, shape) for number in (few, many)]
    return (
        f"Cases of {shape[0]} x {shape[1]} x {shape[2]} voxels, four classes. CPU time as a multiple of reading and "
        "unpacking a case:\n\n"
        + markdown(("part", "time / reading"), list(ratios.items()))
        + f"\n\n`judge_folder` raises the memory by {peaks[0]} MiB with {few} cases, by {peaks[1]} MiB with {many}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run, not how fast")
    parser.add_argument("--peak", nargs=4, type=int, metavar=("CASES", "D", "H", "W"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is None:
        print(report(options.quick))
        return
    number, *shape = options.peak
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        predictions, labels = make_cases(place / "made", number, (shape[0], shape[1], shape[2]))
        print(round(peak_mebibytes(lambda: judge_folder(predictions, labels, place / "out")) or math.nan))


if __name__ == "__main__":
    main()
