"""The paper's comparison as a list of experiments: losses, margins, weights of the penalty, few patients, backbones.

There are two protocols. ``PAPER`` is the official one, for a GPU. ``REDUCED`` is small enough for two CPU cores; its
tables have to say so.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mbls.data.home import recorded
from mbls.engine.devices import Precision
from mbls.engine.fit import FitSettings
from mbls.study.experiment import Experiment, sweep

__all__ = ["PAPER", "PARTS", "PROTOCOLS", "REDUCED", "Part", "Protocol", "parts", "study"]

MARGINS = tuple(f"mbls:margin={margin}" for margin in (0, 1, 2, 3, 5, 6, 8, 10, 15, 20))
#: The weight 0.1 is the default, so its run is the one of the margin alone.
WEIGHTS = ("mbls:margin=5:alpha=0.01", "mbls:margin=5", "mbls:margin=5:alpha=1")
#: What is compared on other backbones, and with few patients.
BASELINES = ("ce", "ls", "mbls:margin=5")
FEW_PATIENTS_LOSSES = (*BASELINES, "mbls:margin=8")
COMPARED = (
    "ce",
    "ce_dice",
    "fl",
    "ecp",
    "ls",
    "svls:sigma=1",
    "svls:sigma=2",
    "mbls:margin=3",
    "mbls:margin=5",
    "mbls:margin=8",
    "mbls:margin=10",
    "mbls_dice:margin=5",
    "nacl",
    "ce_hard_l1ace",
    "ce_soft_l1ace",
    "ce_dice_hard_l1ace",
    "mbls_hard_l1ace:margin=5",
)
#: Sizes of the training set beside the whole one.
FEW_PATIENTS = (5, 10, 20, 40)
#: The parts of the study, in the order in which they are run.
Part = Literal["losses", "margins", "weights", "few_patients", "backbones"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Protocol:
    """How the networks of a study are trained.

    Attributes:
        name: its name on the command line.
        label: its name in the heading of every table.
        base: the experiment that all others vary.
        train_patients: training patients in the split of ``base``.
        backbones: (name, base_channels) of the networks beside the U-Net.
        precision: of the arithmetic.
    """

    name: str
    label: str
    base: Experiment
    train_patients: int
    backbones: tuple[tuple[str, int], ...]
    precision: Precision = "bf16-mixed"


#: 56, 8 and 16 of the 80 patients of ACDC.
SPLIT = str(recorded("acdc_split.json"))

PAPER = Protocol(
    name="paper",
    label="the paper's protocol",
    base=Experiment(split=SPLIT, judged=("best", "last"), fit=FitSettings(full_validation_every=5)),
    train_patients=56,
    backbones=(("attention_unet", 32), ("unet++", 32), ("swin_unetr", 24)),
)

#: As the paper's, but slices of 128 x 128 voxels at half the resolution, and 8 to 64 filters with batch normalisation.
REDUCED = Protocol(
    name="reduced",
    label="reduced protocol, two CPU cores",
    base=Experiment(
        split=SPLIT,
        size=64,
        crop=128,
        base_channels=8,
        levels=4,
        norm="batch",
        judged=("last", "best"),
        fit=FitSettings(full_validation_every=5),
    ),
    train_patients=56,
    backbones=(("attention_unet", 12), ("unet++", 12), ("swin_unetr", 12)),
)

#: Name -> protocol: the paper's, and its reduced form for two CPU cores.
PROTOCOLS = {protocol.name: protocol for protocol in (PAPER, REDUCED)}


def parts(protocol: Protocol, seeds: Iterable[int] = (0, 1, 2)) -> dict[Part, list[Experiment]]:
    """The experiments of each part of :data:`PARTS`. One that belongs to two parts has the same name in both.

    Args:
        protocol: how the networks are trained.
        seeds: one training a seed.

    Example:
        >>> {part: len(runs) for part, runs in parts(REDUCED, [0]).items() if part in ("losses", "weights")}
        {'losses': 17, 'weights': 4}
    """
    base, seeds = protocol.base, list(seeds)
    fewer = [replace(base, train_patients=number) for number in FEW_PATIENTS]
    # MONAI's networks have one depth and bring their own normalisation.
    others = [replace(base, model=name, base_channels=width, levels=5, norm=None) for name, width in protocol.backbones]
    return {
        "losses": sweep(base, COMPARED, seeds),
        "margins": sweep(base, ("ce", *MARGINS), seeds),
        "weights": sweep(base, ("ce", *WEIGHTS), seeds),
        "few_patients": [run for size in (*fewer, base) for run in sweep(size, FEW_PATIENTS_LOSSES, seeds)],
        "backbones": sweep(base, BASELINES, seeds)
        + [run for other in others for run in sweep(other, BASELINES, seeds)],
    }


def study(
    protocol: Protocol,
    seeds: Iterable[int] = (0, 1, 2),
    only: Iterable[str] = PARTS,
    runs: Iterable[str] | None = None,
) -> list[Experiment]:
    """Every experiment once, seed by seed and, with each seed, part by part. A study that is stopped has whole parts.

    Args:
        protocol: how the networks are trained.
        seeds: one training a seed.
        only: the parts that are wanted, some of :data:`PARTS`.
        runs: of these, only the experiments of some names; None takes all.

    Raises:
        ValueError: an unknown part, or a name that no experiment of these seeds and parts has.

    Example:
        >>> [run.loss for run in study(REDUCED, seeds=[0], only=["weights"])]
        ['ce', 'mbls:margin=5:alpha=0.01', 'mbls:margin=5', 'mbls:margin=5:alpha=1']
    """
    only = list(only)
    unknown = [part for part in only if part not in PARTS]
    if unknown:
        raise ValueError(f"parts: got {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    found: dict[str, Experiment] = {}
    for seed in seeds:
        for part, experiments in parts(protocol, [seed]).items():
            if part in only:
                found |= {experiment.name: experiment for experiment in experiments}
    return list(found.values()) if runs is None else _named(found, list(runs))


def _named(experiments: dict[str, Experiment], names: list[str]) -> list[Experiment]:
    """The experiments of some names, in the order of the study."""
    for name in names:
        if name not in experiments:
            near = difflib.get_close_matches(name, experiments, n=5, cutoff=0)
            raise ValueError(f"runs: got {name!r}, expected names of these parts and seeds, e.g. {', '.join(near)}")
    return [experiment for name, experiment in experiments.items() if name in names]
