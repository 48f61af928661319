"""What is fitted on validation cases: one temperature, and how far volumes lie off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from mbls.engine.predict import Prediction, PredictionFolder, fit_temperature
from mbls.engine.structures import volumes
from mbls.progress import progress_bar

__all__ = ["SAMPLED", "Fitted", "fit_on", "sampled"]

#: Voxels of a validation case that a temperature is fitted on.
SAMPLED = 100_000


@dataclass(frozen=True)
class Fitted:
    """What validation cases taught.

    Attributes:
        temperature: fitted by the NLL.
        cases: number of the validation cases.
        structures: :func:`mbls.engine.structures.volumes` of each of them, with case and subject.
    """

    temperature: float
    cases: int
    structures: list[dict[str, Any]]


def sampled(prediction: Prediction, voxels: int = SAMPLED, seed: int = 0) -> Prediction:
    """Some voxels of a case that count, drawn without replacement: logits (K, n), labels (n,).

    Args:
        prediction: of the case.
        voxels: how many; all where there are fewer.
        seed: of the draw.
    """
    places = (prediction.labels.flatten() >= 0).nonzero().flatten()
    if len(places) > voxels:
        draw = torch.Generator().manual_seed(seed)
        places = places[torch.randperm(len(places), generator=draw)[:voxels]]
    return replace(
        prediction, logits=prediction.logits.flatten(1)[:, places], labels=prediction.labels.flatten()[places]
    )


def fit_on(validation: PredictionFolder, progress: bool = False) -> tuple[Fitted, list[tuple[str, str]]]:
    """Fit on the cases of a folder that can be read, one in memory at a time.

    Returns:
        What was fitted, and (case, what was wrong) for the others.

    Raises:
        ValueError: no case could be read.
    """
    problems: list[tuple[str, str]] = []
    structures: list[dict[str, Any]] = []

    def samples() -> Iterator[Prediction]:
        for case in progress_bar(validation.cases, desc="fit", unit="case", disable=not progress):
            try:
                prediction = validation.read(case)
            except (OSError, ValueError) as error:
                problems.append((f"{case} (validation)", str(error)))
                continue
            who = {"case": case, "subject": prediction.subject}
            structures.extend(who | row for row in volumes(prediction, validation.class_names))
            yield sampled(prediction)

    # One thread, as for the figures: the same temperature to the bit on any number of cores.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = list(samples())
        if not found:
            raise ValueError(f"fit: got no case that can be read, expected at least one; {problems[0][1]}")
        temperature = fit_temperature(found).temperature
    finally:
        torch.set_num_threads(before)
    return Fitted(temperature, len(found), structures), problems
