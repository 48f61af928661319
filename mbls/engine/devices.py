"""Where a network runs: Lightning Fabric for one device or for the processes of a launcher, and on how many threads."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["ONE_THREAD_FLOPS", "Precision", "forward_flops", "make_fabric", "set_memory_format", "threads_for"]

#: A forward pass of less work than this runs on one thread. Measured (benchmarks/threads.py): below it a second thread
#: takes a tenth to a third off a step; but two programs with two threads each, on two cores, slow each other a
#: hundredfold.
ONE_THREAD_FLOPS = 4e9


#: As Fabric names them.
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def make_fabric(precision: Precision = "32-true", accelerator: str = "auto") -> Fabric:
    """Fabric for this process: one device when started plainly, the launcher's devices under ``fabric run`` or
    ``torchrun``.

    Args:
        precision: "32-true", "bf16-mixed" or "16-mixed".
        accelerator: "auto", "cpu" or "cuda". Under ``fabric run`` its own two options count instead.

    Raises:
        ValueError: an accelerator that is not here.
    """
    if "LT_CLI_USED" in os.environ:
        # `fabric run` has set accelerator, devices and precision, and started the processes: launching again is an
        # error.
        return Fabric()
    if "LOCAL_WORLD_SIZE" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // local
        fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=nodes, strategy="ddp", precision=precision)
    else:
        try:
            fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"accelerator: got {accelerator!r}, expected one that is here ({reason})") from error
    fabric.launch()
    return fabric


def set_memory_format(model: nn.Module, fabric: Fabric) -> None:
    """Lay a network's weights out as the device's convolutions work fastest; values and shapes stay as they are.

    On a CPU that is channels last, which takes about a sixth off a training step (benchmarks/RESULTS.md); so it is on
    an NVIDIA GPU in 16-bit precision, whose matrix units want the channels of a voxel side by side.
    """
    sixteen_bits = "16" in str(getattr(fabric.strategy.precision, "precision", ""))
    if fabric.device.type == "cpu" or (fabric.device.type == "cuda" and sixteen_bits):
        # Weight by weight, since a network may have convolutions of both kinds.
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        for weight in model.parameters():
            if weight.dim() in formats:
                weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])


def forward_flops(model: nn.Module, shape: Sequence[int]) -> float:
    """Floating point operations of a forward pass over images of a shape, (B, C, *spatial), counted on tensors without
    data.

    Infinite where torch cannot run the network so.
    """
    try:
        shadow = copy.deepcopy(model).to("meta").eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            shadow(torch.empty(tuple(shape), device="meta"))
    except (
        Exception
    ):  # each operation that asks for data has its own error; the real pass tells what is wrong with the network
        return math.inf
    return counter.get_total_flops()


@contextmanager
def threads_for(flops: float, device: torch.device) -> Iterator[None]:
    """Run a network on as many threads as its work is worth; the number of before is back afterwards.

    On a CPU one thread, where a forward pass takes less than :data:`ONE_THREAD_FLOPS`, else as many as torch has. The
    work decides, never time or load, so that a resumed run adds up in the same order as the uninterrupted one.

    Args:
        flops: of the forward pass of a batch, from :func:`forward_flops`.
        device: where the network runs; on any but the CPU nothing is changed.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and flops < ONE_THREAD_FLOPS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
