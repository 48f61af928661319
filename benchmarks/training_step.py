"""Where a training step spends its time on a CPU, and what layout, optimiser and precision change."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import markdown, paired_ratios
from mbls.losses import MbLSLoss
from mbls.networks.backbones import build_network

#: Name: side of the slice, filters of the first level, levels, normalisation, batch.
NETWORKS = {
    "notebook 06": (48, 8, 4, "batch", 8),
    "the paper's": (192, 32, 5, None, 4),
}
QUICK_NETWORKS = {"tiny": (32, 4, 3, "batch", 2)}
FIT = "**channels last, fused Adam: what `fit` does**"
#: Name: channels last, fused Adam, bfloat16.
VARIANTS = {
    "float32, contiguous, Adam as it comes": (False, False, False),
    "channels last": (True, False, False),
    FIT: (True, True, False),
    "the same with `--precision bf16-mixed`": (True, True, True),
}
#: Operations of the profile -> the row that they are added up in; what is not named here is "everything else".
GROUPS = {
    "convolution": ("convolution",),
    "batch normalisation": ("batch_norm",),
    "loss": ("_Fused",),
    "Adam": ("adam", "Optimizer"),
    "pooling, up-sampling, concatenation, ReLU": (
        "max_pool",
        "upsample",
        "aten::cat",
        "threshold",
        "clamp_min",
        "relu",
    ),
}


def make_step(network: tuple, channels_last: bool, fused: bool, bfloat16: bool) -> Callable[[], None]:
    size, base_channels, levels, norm, batch = network
    torch.manual_seed(0)
    model, loss = build_network("unet", 4, base_channels=base_channels, levels=levels, norm=norm), MbLSLoss(3.0)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    images, labels = torch.randn(batch, 1, size, size), torch.randint(4, (batch, size, size))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        loss(logits, labels).backward()
        optimizer.step()

    return step


def shares(step: Callable[[], None], steps: int) -> dict[str, float]:
    """Per cent of the time spent in each group of operations."""
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step()
    totals = dict.fromkeys([*GROUPS, "everything else"], 0.0)
    for event in recorded.key_averages():
        group = next(
            (name for name, parts in GROUPS.items() if any(part in event.key for part in parts)), "everything else"
        )
        totals[group] += event.self_cpu_time_total
    whole = sum(totals.values())
    return {name: 100 * total / whole for name, total in totals.items()}


def report(quick: bool = False) -> str:
    networks = QUICK_NETWORKS if quick else NETWORKS
    first = next(iter(VARIANTS))
    times, profiles = {}, {}
    for name, network in networks.items():
        steps = {variant: make_step(network, *options) for variant, options in VARIANTS.items()}
        runs = 2 if quick else 40 if network[0] < 100 else 4
        times[name] = paired_ratios(steps, first, runs)
        profiles[name] = shares(steps[FIT], 2 if quick else 20 if network[0] < 100 else 3)
    table = markdown(
        ("step", *networks), [(variant, *(times[name][variant] for name in networks)) for variant in VARIANTS]
    )
    groups = [*GROUPS, "everything else"]
    where = markdown(
        ("per cent of the step", *networks),
        [(group, *(f"{profiles[name][group]:.0f}" for name in networks)) for group in groups],
    )
    about = "; ".join(
        f"{name}: {batch} slices of {size} x {size}, {base} filters, {levels} levels, norm {norm}"
        for name, (size, base, levels, norm, batch) in networks.items()
    )
    ratios = f"{about}. Time of a step as a multiple of the first row's:\n\n{table}"
    return f"{ratios}\n\nWhere the step of `fit` goes:\n\n{where}"
