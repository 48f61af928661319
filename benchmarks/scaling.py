"""How cost grows with the voxels and with the classes: one picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch.nn.functional as F

from benchmarks.losses import ALPHA, MARGIN, make_batch, step
from benchmarks.measure import best_seconds
from mbls.losses import MbLSLoss
from mbls.metrics import CalibrationBins

VOXELS = [10**5, 10**6, 10**7, 10**8]
CLASSES = [2, 4, 8, 16, 32, 64, 128]
QUICK_VOXELS, QUICK_CLASSES = [10**3, 10**4], [2, 4]
#: Voxels of the panel over classes, classes of the panel over voxels.
FIXED_VOXELS, QUICK_FIXED_VOXELS, FIXED_CLASSES = 10**6, 10**3, 4


def nanoseconds_a_voxel(voxels: int, classes: int) -> dict[str, float]:
    logits, target = make_batch((1, classes, voxels // 100, 100))
    mbls = MbLSLoss(MARGIN, ALPHA)
    runs = 9 if voxels * classes <= 10**7 else 3
    losses: dict[str, Callable] = {
        "F.cross_entropy, forward and backward": F.cross_entropy,
        "MbLSLoss, forward and backward": mbls,
        "MbLS, its definition, forward and backward": lambda logits, target: mbls.voxel_loss(logits, target).mean(),
    }
    times = {name: best_seconds(lambda loss=loss: step(loss, logits, target), runs) for name, loss in losses.items()}
    logits.grad = None
    probs = logits.detach().softmax(1)
    times["CalibrationBins.update"] = best_seconds(lambda: CalibrationBins(classes).update(probs, target), runs)
    return {name: 1e9 * value / voxels for name, value in times.items()}


def report(folder: Path, quick: bool = False) -> str:
    many, few = (QUICK_VOXELS, QUICK_CLASSES) if quick else (VOXELS, CLASSES)
    fixed_voxels = QUICK_FIXED_VOXELS if quick else FIXED_VOXELS
    panels = (
        (f"voxels, {FIXED_CLASSES} classes", {voxels: nanoseconds_a_voxel(voxels, FIXED_CLASSES) for voxels in many}),
        (f"classes, {fixed_voxels:,} voxels", {classes: nanoseconds_a_voxel(fixed_voxels, classes) for classes in few}),
    )
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    colours, markers = ("#000000", "#0072B2", "#56B4E9", "#D55E00"), "osd^"
    for ax, (label, points) in zip(axes, panels, strict=True):
        for index, name in enumerate(next(iter(points.values()))):
            values = [times[name] for times in points.values()]
            ax.plot(list(points), values, marker=markers[index], color=colours[index], label=name)
        ax.set(xscale="log", yscale="log", xlabel=label, ylabel="nanoseconds a voxel")
        ax.grid(alpha=0.3, which="both")
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(list(panels[1][1]), [str(k) for k in panels[1][1]])
    axes[0].legend(fontsize=8)
    figure.savefig(folder / "scaling.png", dpi=110)
    plt.close(figure)
    return "![Nanoseconds a voxel over the number of voxels and over the number of classes](scaling.png)"
