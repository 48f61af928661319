"""One thread or two: where a second one pays, and what two trainings at once cost each other."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.measure import markdown, paired_ratios
from mbls.engine.devices import ONE_THREAD_FLOPS, forward_flops
from mbls.losses import MbLSLoss
from mbls.networks.backbones import build_network

#: Side of the slice, filters of the first level, levels, normalisation, batch; from the course's to the paper's.
NETWORKS = (
    (48, 12, 4, "batch", 8),
    (64, 8, 4, "batch", 4),
    (96, 12, 4, "batch", 8),
    (128, 16, 5, None, 4),
    (192, 32, 5, None, 4),
)
QUICK_NETWORKS = ((32, 4, 3, "batch", 4),)
COURSE = NETWORKS[0]


def training_step(network: tuple) -> tuple[torch.nn.Module, Callable[[], object]]:
    """A network, and one step of its training on noise."""
    size, base_channels, levels, norm, batch = network
    model = build_network("unet", 4, base_channels=base_channels, levels=levels, norm=norm).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images, labels, loss = torch.randn(batch, 1, size, size), torch.randint(4, (batch, size, size)), MbLSLoss(5)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

    return model, step


def on(threads: int, step: Callable[[], object]) -> Callable[[], object]:
    def work() -> None:
        torch.set_num_threads(threads)
        step()

    return work


def crossing(networks: tuple, runs: int) -> str:
    most, rows = torch.get_num_threads(), []
    for network in networks:
        model, step = training_step(network)
        size, base_channels, levels, norm, batch = network
        flops = forward_flops(model, (batch, 1, size, size))
        ratio = paired_ratios({"one": on(1, step), "all": on(most, step)}, "all", runs)["one"]
        chosen = 1 if flops < ONE_THREAD_FLOPS else most
        name = f"{batch} x {size} x {size}, {base_channels} filters, {levels} levels, {norm or 'no'} normalisation"
        rows.append((name, flops / 1e9, ratio, chosen))
    torch.set_num_threads(most)
    return markdown(("U-Net", "GFLOP forward", f"a step's time on 1 thread / on {most}", "`fit` takes"), rows)


def copies(number: int, steps: int) -> float:
    """Seconds until so many programs that train beside each other are through."""
    command = [sys.executable, "-m", "benchmarks.threads", str(steps)]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    return max(float(program.communicate()[0]) for program in programs)


def report(quick: bool = False) -> str:
    table = crossing(QUICK_NETWORKS if quick else NETWORKS, 2 if quick else 6)
    steps = 2 if quick else 150
    alone, together = copies(1, steps), copies(2, steps)
    return (
        f"`fit` and `predict` take one thread for a forward pass of less than {ONE_THREAD_FLOPS / 1e9:g} GFLOP:\n\n"
        f"{table}\n\nTwo programs that train the first of them at once each take {together / alone:.2f} "
        "times as long as one alone."
    )


def main() -> None:
    """The work of one program: so many steps on the threads that ``fit`` takes; prints its seconds, without the start
    of Python."""
    from mbls.engine.devices import threads_for

    size, *_, batch = COURSE
    model, step = training_step(COURSE)
    with threads_for(forward_flops(model, (batch, 1, size, size)), torch.device("cpu")):
        step()
        started = time.perf_counter()
        for _ in range(int(sys.argv[1])):
            step()
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
