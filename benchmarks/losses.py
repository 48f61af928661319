"""What a loss costs, forward and backward, against F.cross_entropy: time, memory kept for the backward pass, peak."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.measure import markdown, paired_ratios, peak_mebibytes, saved_bytes
from mbls.losses import (
    CrossEntropyLoss,
    EntropyPenaltyLoss,
    FocalLoss,
    LabelSmoothingLoss,
    MbLSLoss,
    SVLSLoss,
    WithDice,
)

SHAPES = [(16, 4, 224, 224), (2, 4, 96, 96, 96), (1, 14, 96, 96, 96)]
QUICK_SHAPES = [(2, 4, 16, 16), (1, 4, 8, 8, 8)]
MARGIN, ALPHA = 5.0, 0.1


def permuted_mbls(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """MbLS with the steps of the paper's implementation: classes moved last, voxels as rows, the maximum repeated K
    times."""
    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    largest = rows.max(dim=1).values.unsqueeze(1).repeat(1, rows.shape[1])
    return F.cross_entropy(rows, target.reshape(-1)) + ALPHA * F.relu(largest - rows - MARGIN).mean()


def contenders(num_classes: int, spatial_dims: int) -> dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    from monai.losses import DiceCELoss, NACLLoss

    mbls = MbLSLoss(MARGIN, ALPHA)
    dice_ce = DiceCELoss(to_onehot_y=True, softmax=True)
    return {
        "F.cross_entropy": F.cross_entropy,
        "mbls CrossEntropyLoss": CrossEntropyLoss(),
        "mbls LabelSmoothingLoss": LabelSmoothingLoss(),
        "mbls FocalLoss": FocalLoss(),
        "mbls EntropyPenaltyLoss": EntropyPenaltyLoss(),
        "**mbls MbLSLoss**": mbls,
        "MbLS, its definition (autograd)": lambda logits, target: mbls.voxel_loss(logits, target).mean(),
        "MbLS, permuted as in the paper's code": permuted_mbls,
        "mbls SVLSLoss": SVLSLoss(num_classes, spatial_dims=spatial_dims),
        "MONAI NACLLoss": NACLLoss(num_classes, spatial_dims, alpha=ALPHA),
        "MONAI DiceCELoss": lambda logits, target: dice_ce(logits, target.unsqueeze(1)),
        "mbls WithDice(MbLSLoss)": WithDice(mbls),
    }


def make_batch(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that ask for a gradient, as wide as a trained network's, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).mul_(3).requires_grad_()
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)


def step(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], logits: torch.Tensor, target: torch.Tensor
) -> None:
    logits.grad = None
    loss(logits, target).backward()


def report(quick: bool = False) -> str:
    parts = []
    for shape in QUICK_SHAPES if quick else SHAPES:
        logits, target = make_batch(shape)
        losses = contenders(shape[1], len(shape) - 2)
        work = {name: (lambda loss=loss, x=logits, y=target: step(loss, x, y)) for name, loss in losses.items()}
        ratios = paired_ratios(work, "F.cross_entropy", runs=2 if quick else 15)
        size = logits.numel() * logits.element_size()
        rows = []
        for name, loss in losses.items():
            saved = saved_bytes(lambda loss=loss, x=logits, y=target: loss(x, y)) / size
            logits.grad = None
            peak = peak_mebibytes(work[name])
            rows.append((name, ratios[name], saved, None if peak is None else peak * 2**20 / size))
        parts.append(f"Logits {shape}:\n\n" + markdown(("loss", "time", "kept for backward", "peak memory"), rows))
    return (
        "Forward and backward; time as a multiple of `F.cross_entropy`'s, memory as a multiple of the logits' (the "
        "gradient itself is 1.0 of the peak). On a busy machine the time of ours rises more than that of "
        "`F.cross_entropy`: two dozen short steps a block wait for each other more often than four long ones.\n\n"
        + "\n\n".join(parts)
    )
