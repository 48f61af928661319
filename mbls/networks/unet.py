"""The paper's U-Net, 2-D and 3-D."""

from __future__ import annotations

import itertools
import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Norm", "UNet", "check_width"]

Norm = Literal["batch", "instance"]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
_NORM = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}
#: Filters of the coarsest level: four levels more than the paper's network has.
_MAX_FILTERS = 8192


def check_width(base_channels: int, levels: int) -> None:
    """Refuse a network whose weights no machine holds; each level has twice the filters of the one above.

    Raises:
        ValueError: more than 8192 filters on the coarsest level.
    """
    # The logarithm, since 2**levels may itself fill the memory.
    if base_channels > _MAX_FILTERS or levels - 1 > math.log2(_MAX_FILTERS / max(base_channels, 1)):
        raise ValueError(
            f"base_channels, levels: got {base_channels}, {levels}, expected at most {_MAX_FILTERS} filters on the "
            "coarsest level, base_channels * 2^(levels - 1)"
        )


class UNet(nn.Module):
    """U-Net of two 3x3 convolutions a level, max-pooling, nearest up-sampling and skip concatenation, with a 1x1 head.

    The filters double from level to level; every pooling halves the grid but the last, which divides it by 4.

    Args:
        out_channels: classes K.
        spatial_dims: 2 or 3.
        in_channels: image channels.
        base_channels: filters of the first level.
        levels: resolutions, >= 2.
        norm: None (the paper), "batch" or "instance".

    Shape:
        images (B, in_channels, *spatial) float -> logits (B, out_channels, *spatial). Any size from ``2^levels``
        up works (twice that with "instance"); a multiple of it keeps all grids aligned.

    Raises:
        ValueError: an option out of range; images of another number of dimensions or channels, or too small for the
            levels.

    Example:
        >>> UNet(2, spatial_dims=3, base_channels=2, levels=2)(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 2, 8, 8, 8])

    References:
        Ronneberger et al., MICCAI 2015, in the variant of the official implementation of arXiv 2209.09641.
    """

    def __init__(
        self,
        out_channels: int,
        *,
        spatial_dims: int = 2,
        in_channels: int = 1,
        base_channels: int = 32,
        levels: int = 5,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims: got {spatial_dims}, expected 2 or 3")
        for name, value, least in (
            ("in_channels", in_channels, 1),
            ("out_channels", out_channels, 2),
            ("base_channels", base_channels, 1),
            ("levels", levels, 2),
        ):
            if value < least:
                raise ValueError(f"{name}: got {value}, expected at least {least}")
        check_width(base_channels, levels)
        if norm is not None and norm not in get_args(Norm):
            raise ValueError(f'norm: got {norm!r}, expected None, "batch" or "instance"')
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.pool_sizes = [2] * (levels - 2) + [4]
        # Instance normalisation needs more than one voxel on the coarsest grid.
        self.smallest = 2**levels * (2 if norm == "instance" else 1)
        widths = [base_channels * 2**level for level in range(levels)]
        self.encoder = nn.ModuleList(
            _double_conv(spatial_dims, before, width, norm)
            for before, width in zip([in_channels, *widths], widths, strict=False)
        )
        self.decoder = nn.ModuleList(
            _double_conv(spatial_dims, width + below, width, norm) for width, below in itertools.pairwise(widths)
        )
        self.head = _CONV[spatial_dims](base_channels, out_channels, kernel_size=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.dim() != self.spatial_dims + 2 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, expected (B, {self.in_channels}, *spatial) "
                f"with {self.spatial_dims} spatial dimensions"
            )
        smallest = self.smallest
        if min(images.shape[2:]) < smallest:
            raise ValueError(
                f"images: got size {tuple(images.shape[2:])}, expected at least {smallest} along each dimension"
            )
        features = self.encoder[0](images)
        skips = []
        for pool_size, block in zip(self.pool_sizes, self.encoder[1:], strict=True):
            skips.append(features)
            features = block(_MAX_POOL[self.spatial_dims](features, pool_size))
        for skip, block in zip(reversed(skips), reversed(self.decoder), strict=True):
            features = F.interpolate(features, size=skip.shape[2:], mode="nearest")
            features = block(torch.cat([features, skip], dim=1))
        return self.head(features)


def _double_conv(spatial_dims: int, in_channels: int, out_channels: int, norm: Norm | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers.append(_CONV[spatial_dims](channels, out_channels, kernel_size=3, padding=1))
        if norm is not None:
            layers.append(_NORM[norm][spatial_dims](out_channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
