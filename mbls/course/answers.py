"""The reader's predictions: kept in one JSON file of their own, and judged as any forecaster is.

The file is ``my_predictions.json`` in the working folder, which for a notebook is its own folder; ``$MBLS_PREDICTIONS``
names another. It is never sent anywhere. Delete it to start the course again.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from matplotlib.figure import Figure

from mbls import plots
from mbls.files import read_json, write_json
from mbls.metrics import CalibrationBins, Reliability
from mbls.statistics import bootstrap_interval

__all__ = [
    "BIN_EDGES",
    "Answer",
    "Calibration",
    "Question",
    "change_answer",
    "draw",
    "judge_answers",
    "own_answers",
    "read_answers",
]

#: Of the bins of a reader's diagram.
BIN_EDGES = np.linspace(0, 1, 6)
_READERS = 4000  # drawn to see what chance does
_WAIT = 20  # s for another notebook to finish writing


@dataclass(frozen=True)
class Question:
    """A question with choices, or one that wants a number.

    Attributes:
        id: number of the notebook and of the question in it, as "2.1".
        text: the question.
        options: the choices, at least two; none for a number.
        unit: of the number.
        tolerance: how far from the truth the number may lie and still be right, > 0.

    Raises:
        ValueError: neither choices nor a tolerance, or both; choices that repeat.
    """

    id: str
    text: str
    options: tuple[str, ...] = ()
    unit: str = ""
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.options and (len(self.options) < 2 or len(set(self.options)) < len(self.options)):
            raise ValueError(f"options: got {list(self.options)}, expected two or more different ones")
        if bool(self.options) == (self.tolerance is not None):
            raise ValueError(f"options, tolerance: got {list(self.options)} and {self.tolerance}, expected one of them")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance: got {self.tolerance}, expected a number > 0")

    @property
    def wording(self) -> str:
        """The question and what answers it; with another wording it is another question."""
        if self.options:
            return f"{self.text} ({' / '.join(self.options)})"
        return f"{self.text} (a number{f' in {self.unit}' if self.unit else ''}, within {self.tolerance:g})"

    @property
    def lowest_confidence(self) -> float:
        """Of a blind guess: 1/n for n choices, 0 for a number."""
        return 1 / len(self.options) if self.options else 0.0

    def checked(self, name: str, value: Any) -> str | float:
        """An answer as it is kept.

        Raises:
            ValueError: no choice, or no number.
        """
        if self.options:
            if value not in self.options:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(self.options)}")
            return str(value)
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{name}: got {value!r}, expected a number")
        return float(value)

    def checked_confidence(self, confidence: Any) -> float:
        """A confidence as it is kept.

        Raises:
            ValueError: below a blind guess, or above 1.
        """
        lowest = self.lowest_confidence
        sure = float(confidence) if isinstance(confidence, Real) else math.nan
        if not lowest - 1e-9 <= sure <= 1:
            raise ValueError(f"confidence: got {confidence!r}, expected a number from {lowest:.3g} to 1")
        return sure

    def is_right(self, answer: str | float, truth: str | float) -> bool:
        """Whether an answer is the truth, or near enough."""
        if self.options:
            return answer == truth
        return abs(float(answer) - float(truth)) <= (self.tolerance or 0)

    def said(self, value: str | float) -> str:
        """An answer with its unit."""
        return value if isinstance(value, str) else f"{value:.4g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Answer:
    """What a reader said to a question.

    Attributes:
        question: its wording.
        answer: a choice or a number; None where none was given.
        confidence: that it is right, 0..1.
        truth: what was revealed; None before.
        right: whether the answer was; None before, and without an answer.
    """

    question: str
    answer: str | float | None = None
    confidence: float | None = None
    truth: str | float | None = None
    right: bool | None = None

    @property
    def revealed(self) -> bool:
        """Whether the answer is locked."""
        return self.truth is not None


def answers_file() -> Path:
    """Where the reader's answers are: ``$MBLS_PREDICTIONS``, or ``my_predictions.json`` in the working folder."""
    return Path(os.environ.get("MBLS_PREDICTIONS") or "my_predictions.json").absolute()


def read_answers(path: Path) -> dict[str, Answer]:
    """The answers in a file, by the questions' ids; none where there is no file.

    Raises:
        ValueError: a damaged file.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    try:
        answers = {str(id): Answer(**entry) for id, entry in content.items()}
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}), expected a file of predictions") from error
    for answer in answers.values():
        sure = answer.confidence
        fits = sure is None if answer.answer is None else isinstance(sure, (int, float)) and 0 <= sure <= 1
        if not fits or answer.right not in (None, True, False) or not isinstance(answer.question, str):
            raise ValueError(f"{path}: got {answer}, expected a prediction with its confidence")
    return answers


def own_answers() -> dict[str, Answer]:
    """The reader's answers. A damaged file is set aside, which one line says, and a new one begins."""
    path = answers_file()
    try:
        return read_answers(path)
    except ValueError:
        number = 1
        while (aside := path.with_name(f"{path.stem}.damaged{number}{path.suffix}")).exists():
            number += 1
        path.rename(aside)
        print(f"{path.name} cannot be read. It is now called {aside.name}, and a new file begins.")
        return {}


def change_answer(id: str, change: Callable[[Answer | None], Answer]) -> Answer:
    """Change one answer in the reader's file, whatever other notebooks write there meanwhile.

    Where nothing can be written, one line says so and the notebook goes on.

    Args:
        id: of the question.
        change: from the answer in the file, if there is one, to the new one.
    """
    path = answers_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), _WAIT):
            answers = own_answers()
            answers[id] = change(answers.get(id))
            write_json({id: dataclasses.asdict(answer) for id, answer in answers.items()}, path)
        return answers[id]
    except OSError as error:
        print(f"Your predictions cannot be kept in {path.name}: {error.strerror or error}")
        return change(None)


@dataclass(frozen=True)
class Calibration:
    """How well confidences came true.

    Attributes:
        count: answers that were revealed.
        reliability: P(right) in five bins.
        brier: mean squared distance of the confidence from 0 (wrong) or 1 (right).
        confidence: mean.
        hit_rate: share of right answers.
        interval: 95 % bootstrap interval of mean confidence minus hit rate; NaN for a single answer.
        chance: 95 % of perfectly calibrated readers with these confidences have a smaller distance between their mean
            confidence and their hit rate.
        chance_bins: the hit rates between which 90 % of them lie, bin by bin, (2, 5); NaN where a bin is empty.
    """

    count: int
    reliability: Reliability
    brier: float
    confidence: float
    hit_rate: float
    interval: tuple[float, float]
    chance: float
    chance_bins: np.ndarray

    @property
    def gap(self) -> float:
        """Mean confidence minus hit rate; above 0 overconfident."""
        return self.confidence - self.hit_rate

    def describe(self, who: str) -> str:
        """What it comes to, in words; ``who`` with a verb, such as "You were"."""
        points, low, high = (f"{100 * value:.0f}" for value in (abs(self.gap), *self.interval))
        if points == "0":
            verdict = f"{who} neither over- nor underconfident"
        else:
            verdict = f"{who} {'over' if self.gap > 0 else 'under'}confident by {points} points"
        beyond = "more" if abs(self.gap) > self.chance else "no more"
        return (
            f"{self.count} predictions: {100 * self.confidence:.0f} % sure on average, right in "
            f"{100 * self.hit_rate:.0f} %. {verdict} (95 % interval of confidence minus hit rate: {low} to {high} "
            f"points). Brier score {self.brier:.2f}. A perfectly calibrated reader is off by up to "
            f"{100 * self.chance:.0f} points by chance, with so few questions: this is {beyond} than that."
        )


def judge_answers(readers: Sequence[dict[str, Answer]]) -> Calibration:
    """Pool the answers of one or more readers; those that were not given or not revealed do not count.

    The bootstrap draws readers, since one reader's answers hang together; of a single reader it draws answers.

    Args:
        readers: the answers of each.

    Raises:
        ValueError: no revealed answer.

    Example:
        >>> mine = {str(n): Answer("?", "yes", 0.9, "yes", right=n < 6) for n in range(10)}
        >>> print(judge_answers([mine]).describe("You were").partition(" (")[0])
        10 predictions: 90 % sure on average, right in 60 %. You were overconfident by 30 points
    """
    counted = [[answer for answer in answers.values() if answer.right is not None] for answers in readers]
    counted = [answers for answers in counted if answers]
    if not counted:
        raise ValueError("readers: got no prediction that was revealed, expected at least one")
    sure = [np.array([answer.confidence for answer in answers], float) for answers in counted]
    right = [np.array([answer.right for answer in answers], float) for answers in counted]
    confidence, hits = np.concatenate(sure), np.concatenate(right)
    of_readers = [float((a - b).mean()) for a, b in zip(sure, right, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they are few is said below
        interval = bootstrap_interval(np.array(of_readers) if len(counted) > 1 else confidence - hits)

    perfect = np.random.default_rng(0).random((_READERS, len(confidence))) < confidence
    chance = float(np.quantile(np.abs(confidence.mean() - perfect.mean(1)), 0.95))
    # P(right) is the probability of class 0.
    probs = torch.from_numpy(np.stack([confidence, 1 - confidence], axis=1))
    reliability = CalibrationBins(2, len(BIN_EDGES) - 1).update(probs, torch.from_numpy(1 - hits).long()).reliability(0)
    place = np.searchsorted(BIN_EDGES[1:-1], confidence)
    chance_bins = np.full((2, len(BIN_EDGES) - 1), np.nan)
    for number in np.unique(place):
        chance_bins[:, number] = np.quantile(perfect[:, place == number].mean(1), (0.05, 0.95))
    brier = float(np.mean((confidence - hits) ** 2))
    means = float(confidence.mean()), float(hits.mean())
    return Calibration(len(hits), reliability, brier, *means, interval, chance, chance_bins)


def draw(calibration: Calibration, title: str, data: str) -> Figure:
    """The reliability diagram of a reader or a class, with what perfect calibration shows by chance.

    Args:
        calibration: from :func:`judge_answers`.
        title: above the diagram.
        data: whose answers these are.
    """
    figure, ((axes,),) = plots.new_figure(1, 1, width=5.2, height=4.8, data=data)
    reliability = calibration.reliability
    filled = reliability.count > 0
    low, high = calibration.chance_bins[:, filled]
    where = reliability.confidence[filled]
    colours = plots.COLOURS
    axes.plot([0, 1], [0, 1], color=colours["guide"], linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.vlines(where, low, high, color=colours["chance"], linewidth=14, label="90 % of perfectly calibrated readers")
    axes.plot(where, reliability.accuracy[filled], "o", color=colours["claimed"], markersize=8, label="you")
    for x, y, count in zip(where, reliability.accuracy[filled], reliability.count[filled], strict=True):
        axes.annotate(f"{count}", (x, y), textcoords="offset points", xytext=(9, -4), fontsize=9)
    axes.set(xlim=(0, 1.02), ylim=(-0.03, 1.03), aspect="equal", title=title)
    axes.set(xlabel="how sure (beside a point: how many answers)", ylabel="how often right")
    axes.legend(loc="upper left", fontsize=8)
    return figure
