"""Run all benchmarks and write RESULTS.md and scaling.png: ``python -m benchmarks [--quick] [--out FOLDER]``."""

from __future__ import annotations

import argparse
import functools
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import losses, metrics, scaling, surface_distances, threads, training_step, whole_training

HERE = Path(__file__).resolve().parent


def machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "torchmetrics", "numpy", "scipy"))
    return (
        f"{torch.get_num_threads()} CPU threads, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}; "
        f"Python {platform.python_version()}, {packages}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run, not how fast")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for RESULTS.md and scaling.png (default: %(default)s)"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sections = {
        "Losses": losses.report,
        "Calibration metrics": metrics.report,
        "Threads": threads.report,
        "Training step": training_step.report,
        "Whole training": whole_training.report,
        "Overlap and surface distances": surface_distances.report,
        "How cost grows": functools.partial(scaling.report, options.out),
    }
    text = f"# Benchmarks\n\nWritten by `make bench`: {machine()}\n\n"
    text += "Ratios of runs in pairs in one process; absolute times drift.\n"
    for title, report in sections.items():
        section = f"\n## {title}\n\n{report(quick=options.quick)}\n"
        print(section, flush=True)
        text += section
    (options.out / "RESULTS.md").write_text(text)


if __name__ == "__main__":
    main()
