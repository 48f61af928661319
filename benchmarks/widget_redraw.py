"""From a slider's new value to the new picture, for every explorer: ``python benchmarks/widget_redraw.py``.

Absolute milliseconds, since what counts is what a hand feels: a move should be drawn in under 100 ms. Measured in the
kernel; the way to the browser and back comes on top.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import pandas as pd
import torch

from mbls.course.explorers import (
    BootstrapExplorer,
    CalibrationMapExplorer,
    LogitExplorer,
    MarginExplorer,
    NeighbourExplorer,
    ReliabilityExplorer,
    SliceExplorer,
    VoxelExplorer,
)
from mbls.data.home import data_home

MOVES = 40


def explorers() -> dict:
    random = torch.Generator().manual_seed(0)
    probs = torch.softmax(2 * torch.randn(30_000, 4, generator=random), dim=1)
    images, labels = torch.rand(10, 192, 192, generator=random), torch.randint(0, 4, (10, 192, 192), generator=random)
    logits = 4 * torch.randn(10, 4, 192, 192, generator=random)
    # Twelve patients of fifteen bins.
    table = {"subject": np.repeat(range(12), 15), "bin": np.tile(range(15), 12), "region": "all", "count": 100}
    patients = pd.DataFrame({**table, "prob_sum": 90.0, "hit_sum": np.arange(180) % 100})
    folder = data_home() / "results"
    tables = [pd.read_csv(folder / f"phantom_margins{ending}.csv") for ending in ("", "_histograms")]
    return {
        "ReliabilityExplorer, 30,000 voxels": (
            ReliabilityExplorer(probs, num_voxels=30_000),
            "num_bins",
            (10, 20, 30, 40),
        ),
        "NeighbourExplorer": (NeighbourExplorer(), "length", (0.0, 2.0, 4.0, 6.0)),
        "BootstrapExplorer, 12 patients": (BootstrapExplorer(patients, "all"), "num_patients", (3, 6, 9, 12)),
        "LogitExplorer": (LogitExplorer(), "cavity", (-2.0, 0.0, 2.0, 4.0)),
        "VoxelExplorer": (VoxelExplorer(), "margin", (0.0, 2.0, 4.0, 6.0)),
        "CalibrationMapExplorer, MbLS": (CalibrationMapExplorer(), "margin", (0.0, 2.0, 4.0, 6.0)),
        "CalibrationMapExplorer, FL": (CalibrationMapExplorer(loss="fl"), "gamma", (0.5, 2.0, 3.0, 5.0)),
        "SliceExplorer, 192 x 192": (SliceExplorer(images, labels, logits), "margin", (0.0, 2.0, 4.0, 6.0)),
        "MarginExplorer": (MarginExplorer(*tables), "margin", (0.0, 2.0, 5.0, 10.0)),
    }


def main() -> None:
    print(f"{'explorer':36s} {'median ms':>9s} {'95 % ms':>9s}   picture kB")
    for name, (explorer, state, values) in explorers().items():
        times = []
        for value in itertools.islice(itertools.cycle(values), MOVES):
            started = time.perf_counter()
            explorer.controls[state].value = value  # what the browser's message does
            times.append(1000 * (time.perf_counter() - started))
        print(f"{name:36s} {np.median(times):9.1f} {np.percentile(times, 95):9.1f} {len(explorer.png) / 1000:10.0f}")


if __name__ == "__main__":
    main()
