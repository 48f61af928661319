"""Where a network runs: Lightning Fabric for one device or for the processes of a launcher."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric
from torch import nn

__all__ = ["make_fabric", "set_memory_format"]


def make_fabric(precision: str = "32-true", accelerator: str = "auto") -> Fabric:
    """Fabric for this process: one device when started plainly, the launcher's devices under ``fabric run`` or ``torchrun``.

    Args:
        precision: "32-true", "bf16-mixed" or "16-mixed", as Fabric names them.
        accelerator: "auto", "cpu" or "cuda". Under ``fabric run`` its own two options count instead.
    """
    if "LT_CLI_USED" in os.environ:
        # `fabric run` has set accelerator, devices and precision, and started the processes: launching again is an error.
        return Fabric()
    if "LOCAL_WORLD_SIZE" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // local
        fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=nodes, strategy="ddp", precision=precision)
    else:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    fabric.launch()
    return fabric


def set_memory_format(model: nn.Module, fabric: Fabric) -> None:
    """Lay a network's weights out as the device's convolutions work fastest; values and shapes stay as they are.

    On a CPU that is channels last, which takes about a sixth off a training step (benchmarks/RESULTS.md).
    """
    if fabric.device.type == "cpu":
        volumetric = any(weight.dim() == 5 for weight in model.parameters())
        model.to(memory_format=torch.channels_last_3d if volumetric else torch.channels_last)
