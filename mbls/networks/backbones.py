"""The networks of the comparison by name: the paper's U-Net and three of MONAI's, all 2-D, for ACDC's four classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mbls.data.acdc import NUM_CLASSES
from mbls.networks.unet import UNet

__all__ = ["MODELS", "build_model"]


class _FirstOutput(nn.Module):
    """MONAI's U-Net++ returns a list (deep supervision); the losses and metrics want its main output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)[0]


def _attention_unet(base_channels: int, levels: int, norm: str | None) -> nn.Module:
    _require_no_norm_option(norm)
    from monai.networks.nets import AttentionUnet

    channels = [base_channels * 2**level for level in range(levels)]
    return AttentionUnet(2, 1, NUM_CLASSES, channels=channels, strides=[2] * (levels - 1))


def _unet_plus_plus(base_channels: int, levels: int, norm: str | None) -> nn.Module:
    _require_no_norm_option(norm)
    from monai.networks.nets import BasicUNetPlusPlus

    if levels != 5:
        raise ValueError(f"levels: got {levels}, expected 5, the only depth of MONAI's BasicUNetPlusPlus")
    features = [base_channels * factor for factor in (1, 1, 2, 4, 8, 1)]
    return _FirstOutput(BasicUNetPlusPlus(2, 1, NUM_CLASSES, features=features))


def _swin_unetr(base_channels: int, levels: int, norm: str | None) -> nn.Module:
    _require_no_norm_option(norm)
    from monai.networks.nets import SwinUNETR

    if levels != 5 or base_channels % 12:
        raise ValueError(
            f"base_channels, levels: got {base_channels}, {levels}, expected a multiple of 12 and 5 for SwinUNETR"
        )
    return SwinUNETR(in_channels=1, out_channels=NUM_CLASSES, feature_size=base_channels, spatial_dims=2)


def _require_no_norm_option(norm: str | None) -> None:
    if norm is not None:
        raise ValueError(f"norm: got {norm!r}, expected None: MONAI's networks bring their own normalisation")


#: Backbones by name; each is built from (base_channels, levels, norm).
MODELS: dict[str, Callable[[int, int, str | None], nn.Module]] = {
    "unet": lambda base_channels, levels, norm: UNet(base_channels=base_channels, levels=levels, norm=norm),
    "attention_unet": _attention_unet,
    "unet++": _unet_plus_plus,
    "swin_unetr": _swin_unetr,
}


def build_model(name: str, base_channels: int = 32, levels: int = 5, norm: str | None = None) -> nn.Module:
    """2-D network for ACDC by its name in :data:`MODELS`.

    Raises:
        ValueError: unknown name, or a size that the network does not come in.
    """
    if name not in MODELS:
        raise ValueError(f"model: got {name!r}, expected one of {', '.join(MODELS)}")
    return MODELS[name](base_channels, levels, norm)
