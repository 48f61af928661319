"""Slices a second of whole training loops, and what more machines could add, on paper."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader

from benchmarks.losses import MARGIN, permuted_mbls
from benchmarks.measure import best_seconds, markdown, paired_ratios
from mbls.data.layout import read_dataset
from mbls.data.phantom import make_phantom
from mbls.data.slices import SliceDataset
from mbls.engine.devices import make_fabric
from mbls.engine.fit import FitSettings, fit
from mbls.losses import MbLSLoss
from mbls.networks.backbones import build_network

#: Name: side of the slice, filters of the first level, levels, normalisation. Batches of 4 slices, as the paper's.
NETWORKS = {"the reduced study's": (64, 8, 4, "batch"), "the paper's": (192, 32, 5, None)}
QUICK_NETWORKS = {"tiny": (32, 4, 3, "batch")}
OFFICIAL = "DataLoader, float32, loss as in the paper's code, its value read at every step"
FIT, FIT_BFLOAT16 = "**`fit`**", "**`fit`, `--precision bf16-mixed`**"
BATCH_SIZE = 4
MACHINES = (2, 4, 8, 16)
GIGABITS = (1, 10, 100)


def loops(network: tuple, train: SliceDataset) -> dict[str, Callable[[], object]]:
    """An epoch of each loop."""
    _, base_channels, levels, norm = network

    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return build_network("unet", 4, base_channels=base_channels, levels=levels, norm=norm)

    plain = model()
    optimizer = torch.optim.Adam(plain.parameters())

    def official() -> None:
        for images, labels in DataLoader(train, BATCH_SIZE, shuffle=True):
            optimizer.zero_grad()
            loss = permuted_mbls(plain(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()

    def fitted(precision: str) -> Callable[[], object]:
        fabric, ours = make_fabric(precision, "cpu"), model()
        settings = FitSettings(epochs=1, batch_size=BATCH_SIZE)
        return lambda: fit(ours, MbLSLoss(MARGIN), train, settings=settings, fabric=fabric, progress=False)

    return {OFFICIAL: official, FIT: fitted("32-true"), FIT_BFLOAT16: fitted("bf16-mixed")}


def efficiency(step_seconds: float, gradient_bytes: int, machines: int, gigabits: float) -> float:
    """Share of the machines' speed that is left when every step waits for a ring all-reduce that nothing hides, 0..1.

    A ring sends 2 (n - 1) / n times the gradient through each machine's link.
    """
    waiting = 2 * (machines - 1) / machines * gradient_bytes / (gigabits * 1e9 / 8)
    return step_seconds / (step_seconds + waiting)


def scaling(step_seconds: float, gradient_bytes: int) -> str:
    rows = [(n, *(f"{n * efficiency(step_seconds, gradient_bytes, n, g):.1f}" for g in GIGABITS)) for n in MACHINES]
    return markdown(("machines", *(f"{g} Gbit/s" for g in GIGABITS)), rows)


def report(quick: bool = False) -> str:
    networks = QUICK_NETWORKS if quick else NETWORKS
    speeds, steps = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        phantom = read_dataset(make_phantom(folder, num_patients=1))
        for name, network in networks.items():
            train = SliceDataset(phantom, size=network[0], crop=128 if network[0] < 128 else None)
            work = loops(network, train)
            ratios = paired_ratios(work, OFFICIAL, runs=2 if quick else 12 if network[0] < 100 else 3)
            seconds = best_seconds(work[OFFICIAL], 2)
            speeds[name] = {
                loop: f"{len(train) / (seconds * ratio):.1f} ({1 / ratio:.2f})" for loop, ratio in ratios.items()
            }
            steps[name] = seconds * ratios[FIT_BFLOAT16] / -(-len(train) // BATCH_SIZE)
    table = markdown(
        ("slices a second (as a multiple of the first row)", *networks),
        [(loop, *(speeds[name][loop] for name in networks)) for loop in speeds[name]],
    )
    _, base_channels, levels, norm = network
    parameters = sum(
        tensor.numel()
        for tensor in build_network("unet", 4, base_channels=base_channels, levels=levels, norm=norm).parameters()
    )
    gradient = 4 * parameters
    size = f"{parameters / 1e6:.1f} million weights, a gradient of {gradient / 1e6:.0f} MB"
    return (
        f"An epoch of a phantom patient, batches of {BATCH_SIZE}:\n\n{table}\n\n"
        f"Past one machine, on paper: how many times the speed of one, for {name} network ({size}). Every machine "
        f"takes batches of {BATCH_SIZE}, every step waits for a ring all-reduce. With the step measured here, "
        f"{steps[name]:.2f} s with `bf16-mixed`:\n\n{scaling(steps[name], gradient)}\n\n"
        f"With a step of 0.02 s, which is assumed of a GPU and not measured:\n\n{scaling(0.02, gradient)}\n\n"
        "DDP hides part of the waiting behind the backward pass; data, validation and checkpoints are left out. "
        "Independent runs "
        "(`--shard`) scale as the number of machines: a study is better spread over runs than a run over machines."
    )
