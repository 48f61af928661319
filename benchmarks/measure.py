"""Timing in pairs and peak memory, for the other files here."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Work = Callable[[], object]


def paired_ratios(contenders: dict[str, Work], reference: str, runs: int) -> dict[str, float]:
    """Median of (time of the contender / time of the reference right after it), each pair in a row.

    Absolute times drift by half on a shared machine; the two halves of a pair drift together.
    """
    others = [name for name in contenders if name != reference]
    for work in contenders.values():
        work()  # warm up
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(runs):
        for name in others:
            ratios[name].append(seconds(contenders[name]) / seconds(contenders[reference]))
    return {name: 1.0 if name == reference else statistics.median(ratios[name]) for name in contenders}


def seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def best_seconds(work: Work, runs: int) -> float:
    work()
    return min(seconds(work) for _ in range(runs))


def peak_mebibytes(work: Work) -> float | None:
    """How far the resident memory rises above its level before, at most; None where the system does not tell (not
    Linux)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator still holds would hide what the work takes
    reset.write_text("5")

    def kibibytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    before = kibibytes("VmRSS:")
    result = work()
    rise = kibibytes("VmHWM:") - before
    del result
    return rise / 1024


def saved_bytes(work: Work) -> int:
    """Bytes of the distinct tensors that autograd keeps from the forward pass to the backward pass."""
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = work()
    del result
    return sum(saved.values())


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; floats with two digits, None as a dash."""

    def cell(value: object) -> str:
        return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
