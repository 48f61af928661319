"""HD95 and ASD of whole volumes: DSC, HD95 and ASD by segmentation_scores against MONAI's three metrics, one after the
other."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from benchmarks.measure import markdown, paired_ratios
from mbls.metrics import segmentation_scores

SHAPE, QUICK_SHAPE = (10, 256, 256), (4, 32, 32)
SPACING = (10.0, 1.5, 1.5)


def make_hearts(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two label maps of a cavity in its ring with another cavity beside it, one a little off the other."""
    depth, height, width = shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")

    def labels(shift: float) -> torch.Tensor:
        slices = []
        for index in range(depth):
            radius = height / 10 * (1 - 0.5 * index / depth) + shift / 3
            centre = torch.hypot(rows - height / 2 - shift, columns - width / 2.0)
            beside = torch.hypot((rows - height / 2.0) / 1.5, columns - width / 2 + 2.6 * radius + shift)
            plane = torch.where(beside < 1.2 * radius, 1, 0)
            plane = torch.where(centre < 1.5 * radius, 2, plane)
            slices.append(torch.where(centre < radius, 3, plane))
        return torch.stack(slices)

    return labels(2.0), labels(0.0)


def report(quick: bool = False) -> str:
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance

    prediction, target = make_hearts(QUICK_SHAPE if quick else SHAPE)

    def monai() -> torch.Tensor:
        one_hot = [F.one_hot(labels, 4).movedim(-1, 0).unsqueeze(0) for labels in (prediction, target)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecated arguments
            return torch.stack(
                [
                    compute_dice(*one_hot, include_background=False)[0],
                    compute_hausdorff_distance(*one_hot, percentile=95, spacing=SPACING)[0],
                    compute_average_surface_distance(*one_hot, symmetric=True, spacing=SPACING)[0],
                ]
            )

    contenders = {
        "MONAI, three metrics": monai,
        "**mbls segmentation_scores**": lambda: segmentation_scores(prediction, target, 4, SPACING),
        "of it without surfaces": lambda: segmentation_scores(prediction, target, 4, SPACING, surface=False),
    }
    ratios = paired_ratios(contenders, "MONAI, three metrics", runs=2 if quick else 11)
    ours = torch.tensor(list(segmentation_scores(prediction, target, 4, SPACING).values()))
    difference = ((ours - monai()).abs() / monai()).max().item()
    return (
        f"Three structures on {tuple(prediction.shape)} voxels; "
        f"largest relative difference of a figure: {difference:.0e}.\n\n"
        + markdown(("DSC, HD95 and ASD", "time"), list(ratios.items()))
    )
