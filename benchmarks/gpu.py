"""What losses, a training step and judging cost on an NVIDIA GPU; by hand: ``python -m benchmarks.gpu``."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.losses import SHAPES, contenders, make_batch, step
from benchmarks.measure import markdown
from mbls.engine.judge import columns, judge
from mbls.engine.predict import Prediction
from mbls.losses import MbLSLoss
from mbls.networks.backbones import build_network

RUNS = 30
#: Name: precision, channels last.
STEPS = {
    "float32, contiguous": (torch.float32, False),
    "float32, channels last": (torch.float32, True),
    "bf16-mixed, contiguous": (torch.bfloat16, False),
    "bf16-mixed, channels last": (torch.bfloat16, True),
}


def milliseconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """Median over runs, between two events on the device, after a warm-up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def peak_bytes(work: Callable[[], object]) -> int:
    """How far the memory allocated on the device rises above its level before."""
    work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def losses() -> str:
    parts = []
    for shape in SHAPES:
        logits, target = make_batch(shape)
        logits, target = logits.detach().cuda().requires_grad_(), target.cuda()
        size = logits.numel() * logits.element_size()
        rows, reference = [], 0.0
        for name, loss in contenders(shape[1], len(shape) - 2).items():
            loss = loss.cuda() if isinstance(loss, torch.nn.Module) else loss
            work = functools.partial(step, loss, logits, target)
            time = milliseconds(work)
            reference = reference or time
            logits.grad = None
            rows.append((name, time, time / reference, peak_bytes(work) / size))
        parts.append(f"Logits {shape}:\n\n" + markdown(("loss", "ms", "time", "peak memory"), rows))
    return (
        "Forward and backward; time as a multiple of eager `F.cross_entropy`'s, memory of the logits'.\n\n"
        + "\n\n".join(parts)
    )


def training_step() -> str:
    rows = []
    images, labels = torch.randn(4, 1, 192, 192).cuda(), torch.randint(4, (4, 192, 192)).cuda()
    for name, (dtype, channels_last) in STEPS.items():
        for kind in ("F.cross_entropy", "MbLSLoss"):
            loss = F.cross_entropy if kind == "F.cross_entropy" else MbLSLoss(5.0)
            model = build_network("unet", 4, base_channels=32, levels=5).cuda()
            if channels_last:
                model.to(memory_format=torch.channels_last)
            optimizer = torch.optim.Adam(model.parameters(), fused=True)

            def work(model=model, loss=loss, optimizer=optimizer, dtype=dtype) -> None:
                optimizer.zero_grad()
                with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                    logits = model(images)
                loss(logits.float(), labels).backward()
                optimizer.step()

            rows.append((name, kind, milliseconds(work)))
    return "The paper's U-Net, 4 slices of 192 x 192:\n\n" + markdown(("step", "loss", "ms"), rows)


def judging() -> str:
    rows = []
    generator = torch.Generator().manual_seed(0)
    for shape in ((10, 192, 192), (96, 96, 96)):
        labels = torch.zeros(shape, dtype=torch.long)
        middle = tuple(slice(side // 4, 3 * side // 4) for side in shape)
        labels[middle] = torch.randint(1, 4, labels[middle].shape, generator=generator)
        logits = torch.randn(4, *shape, generator=generator) + 3 * F.one_hot(labels, 4).movedim(-1, 0)
        times = {}
        for device in ("cpu", "cuda"):
            made = [Prediction("case", "case", logits.to(device), labels.to(device))]
            names = ["background", "a", "b", "c"]
            times[device] = milliseconds(functools.partial(judge, made, names, columns(surface=False)), runs=5)
        rows.append((str(shape), times["cpu"], times["cuda"], times["cpu"] / times["cuda"]))
    return "All metrics but the surface distances, one case, three regions:\n\n" + markdown(
        ("voxels", "ms on the CPU", "ms on the GPU", "times faster"), rows
    )


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads.\n")
    for title, report in (("Losses", losses), ("Training step", training_step), ("Judging", judging)):
        print(f"## {title}\n\n{report()}\n", flush=True)


if __name__ == "__main__":
    main()
