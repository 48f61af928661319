"""The networks of the comparison by name: the paper's U-Net, 2-D or 3-D, and three of MONAI's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mbls.networks.unet import Norm, UNet, check_width

__all__ = ["NETWORKS", "Size", "build_network"]


@dataclass(frozen=True)
class Size:
    """What a network is built for, and how large.

    Attributes:
        num_classes: K, with the background.
        in_channels: of the images.
        spatial_dims: 2 or 3.
        base_channels: filters of the first level.
        levels: resolutions.
        norm: None, "batch" or "instance".
    """

    num_classes: int
    in_channels: int = 1
    spatial_dims: int = 2
    base_channels: int = 32
    levels: int = 5
    norm: Norm | None = None


class _FirstOutput(nn.Module):
    """MONAI's U-Net++ returns a list (deep supervision); the losses and metrics want its main output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)[0]


def _unet(size: Size) -> nn.Module:
    return UNet(
        size.num_classes,
        spatial_dims=size.spatial_dims,
        in_channels=size.in_channels,
        base_channels=size.base_channels,
        levels=size.levels,
        norm=size.norm,
    )


def _attention_unet(size: Size) -> nn.Module:
    _require_no_norm_option(size)
    from monai.networks.nets import AttentionUnet

    channels = [size.base_channels * 2**level for level in range(size.levels)]
    strides = [2] * (size.levels - 1)
    return AttentionUnet(size.spatial_dims, size.in_channels, size.num_classes, channels=channels, strides=strides)


def _unet_plus_plus(size: Size) -> nn.Module:
    _require_no_norm_option(size)
    from monai.networks.nets import BasicUNetPlusPlus

    if size.levels != 5:
        raise ValueError(f"levels: got {size.levels}, expected 5, the only depth of MONAI's BasicUNetPlusPlus")
    features = [size.base_channels * factor for factor in (1, 1, 2, 4, 8, 1)]
    return _FirstOutput(BasicUNetPlusPlus(size.spatial_dims, size.in_channels, size.num_classes, features=features))


def _swin_unetr(size: Size) -> nn.Module:
    _require_no_norm_option(size)
    from monai.networks.nets import SwinUNETR

    if size.levels != 5 or size.base_channels % 12:
        raise ValueError(
            f"base_channels, levels: got {size.base_channels}, {size.levels}, "
            f"expected a multiple of 12 and 5 for SwinUNETR"
        )
    return SwinUNETR(
        in_channels=size.in_channels,
        out_channels=size.num_classes,
        feature_size=size.base_channels,
        spatial_dims=size.spatial_dims,
    )


def _require_no_norm_option(size: Size) -> None:
    if size.norm is not None:
        raise ValueError(f"norm: got {size.norm!r}, expected None: MONAI's networks bring their own normalisation")


#: Networks by name.
NETWORKS: dict[str, Callable[[Size], nn.Module]] = {
    "unet": _unet,
    "attention_unet": _attention_unet,
    "unet++": _unet_plus_plus,
    "swin_unetr": _swin_unetr,
}


def build_network(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 1,
    spatial_dims: int = 2,
    base_channels: int = 32,
    levels: int = 5,
    norm: Norm | None = None,
) -> nn.Module:
    """A network by its name in :data:`NETWORKS`.

    Args:
        name: "unet", "attention_unet", "unet++" or "swin_unetr".
        num_classes: K, with the background.
        in_channels: of the images.
        spatial_dims: 2 or 3.
        base_channels: filters of the first level.
        levels: resolutions; the last two networks come with 5 only.
        norm: of the U-Net: None (the paper), "batch" or "instance".

    Raises:
        ValueError: unknown name, or a size that the network does not come in.

    Example:
        >>> network = build_network("unet", 3, base_channels=4, levels=3)
        >>> network(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 3, 32, 32])
    """
    if name not in NETWORKS:
        raise ValueError(f"model: got {name!r}, expected one of {', '.join(NETWORKS)}")
    check_width(base_channels, levels)
    return NETWORKS[name](Size(num_classes, in_channels, spatial_dims, base_channels, levels, norm))
