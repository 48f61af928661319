"""The checks of the exercises: each says whether an answer is right and, if it is not, which thought was wrong.

``exercise_2_1`` belongs to exercise 2.1 of notebook 02. An answer left as ``...`` is "not answered yet" and never an
error, so a notebook with unsolved exercises runs from top to bottom. Worked answers are in ``notebooks/solutions``.

Example:
    >>> exercise_0_1(2)
    ✓ Yes: the largest logit is 5 (LV), MYO has 3, so d = 5 - 3 = 2.
    >>> exercise_0_1(3)
    ✗ 3: that is the logit itself. The distance is measured from the largest logit.
    >>> exercise_0_1(...)
    … Not answered yet: put your answer in place of the three dots and run the cell again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from mbls.constraints import confidence_at_margin, logit_distances, margin_calibration_map
from mbls.data.home import recorded
from mbls.losses import MbLSLoss
from mbls.metrics import average_over_volumes, expected_calibration_error
from mbls.statistics import conformal_quantile

__all__ = [
    "Feedback",
    "exercise_0_1",
    "exercise_0_2",
    "exercise_0_3",
    "exercise_1_1",
    "exercise_1_2",
    "exercise_1_3",
    "exercise_1_4",
    "exercise_2_1",
    "exercise_2_2",
    "exercise_2_3",
    "exercise_2_4",
    "exercise_3_1",
    "exercise_3_2",
    "exercise_3_3",
    "exercise_3_4",
    "exercise_4_1",
    "exercise_4_2",
    "exercise_4_3",
    "exercise_4_4",
    "exercise_5_1",
    "exercise_5_2",
    "exercise_5_3",
    "exercise_6_1",
    "exercise_6_2",
    "exercise_6_3",
    "exercise_7_1",
    "exercise_7_2",
    "exercise_7_3",
    "exercise_8_1",
    "exercise_8_2",
]


@dataclass(frozen=True)
class Feedback:
    """What a check answers.

    Attributes:
        passed: whether the answer is right; None for an exercise that was not answered.
        message: why, in a sentence or two.
    """

    passed: bool | None
    message: str

    def __repr__(self) -> str:
        mark = {True: "✓", False: "✗", None: "…"}[self.passed]
        return f"{mark} {self.message}"


_UNANSWERED = Feedback(None, "Not answered yet: put your answer in place of the three dots and run the cell again.")


def _right(message: str) -> Feedback:
    return Feedback(True, message)


def _wrong(message: str) -> Feedback:
    return Feedback(False, message)


def _open(answer: Any) -> bool:
    return answer is None or answer is ...


def _number(
    answer: Any, expected: float, tolerance: float, praise: str, hints: Mapping[float, str], hint: str
) -> Feedback:
    """Judge a number; ``hints`` explain well-known wrong ones, ``hint`` all others."""
    if _open(answer):
        return _UNANSWERED
    try:
        value = float(answer)
    except (TypeError, ValueError):
        return _wrong(f"A number is wanted here, this is {type(answer).__name__} {answer!r}.")
    if abs(value - expected) <= tolerance:
        return _right(praise)
    for wrong, explanation in hints.items():
        if abs(value - wrong) <= tolerance:
            return _wrong(f"{value:g}: {explanation}")
    return _wrong(f"{value:g} is too {'large' if value > expected else 'small'}. {hint}")


def _choice(answer: Any, options: Mapping[str, str], right: str) -> Feedback:
    """Judge one word out of a few; ``options`` says of each what it means."""
    if _open(answer):
        return _UNANSWERED
    if not isinstance(answer, str) or answer.strip().lower() not in options:
        return _wrong(f"{answer!r} is none of the choices: {', '.join(repr(option) for option in options)}.")
    chosen = answer.strip().lower()
    return Feedback(chosen == right, options[chosen])


def _code(answer: Any, judge: Callable[[Any], Feedback], *arguments: Any) -> Feedback:
    """Judge what a function returns for the arguments; an exception becomes feedback and is not raised."""
    if _open(answer):
        return _UNANSWERED
    if not callable(answer):
        return _wrong(f"Give the function itself, without calling it; this is {type(answer).__name__} {answer!r}.")
    try:
        got = answer(*arguments)
        return _UNANSWERED if _open(got) else judge(got)
    except Exception as error:
        return _wrong(f"Your function raised {type(error).__name__}: {error}")


def _misformed(got: Any, expected: torch.Tensor) -> str:
    """What is wrong with the type or shape of a result; "" if nothing is."""
    if not isinstance(got, (torch.Tensor, np.ndarray, float, int)):
        return f"It returns {type(got).__name__}, a tensor or a number is wanted."
    shape = tuple(torch.as_tensor(got).shape)
    return "" if shape == expected.shape else f"It returns shape {shape}, expected {tuple(expected.shape)}."


def _equal(got: Any, expected: torch.Tensor) -> bool:
    """Whether a result has the expected shape and values."""
    return not _misformed(got, expected) and torch.allclose(
        torch.as_tensor(got).double(), expected.double(), atol=1e-5, rtol=1e-5
    )


def _logits() -> torch.Tensor:
    """A batch whose channel, height and width differ, so that a wrong dimension shows."""
    return 3 * torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))


# 00 Start here


def exercise_0_1(answer: Any) -> Feedback:
    """Distance of MYO in a voxel with logits (1, -2, 3, 5) of background, RV, MYO, LV."""
    hints = {
        3.0: "that is the logit itself. The distance is measured from the largest logit.",
        -2.0: "right size, wrong sign: d = max - logit is never negative.",
        7.0: "that is RV's distance; MYO is the third of the four.",
    }
    return _number(
        answer, 2.0, 1e-6, "Yes: the largest logit is 5 (LV), MYO has 3, so d = 5 - 3 = 2.", hints, "Take max - logit."
    )


def exercise_0_2(answer: Any) -> Feedback:
    """How many times as many errors as announced: confidence 0.99, 3400 of 4000 right."""
    hints = {
        600.0: "that is how many errors it makes. How many did it announce?",
        40.0: "that is how many errors it announced, 1 % of 4,000. How many did it make?",
        0.14: "that is the gap of confidence and accuracy. Count errors: those made over those announced.",
        560.0: "that is how many more. How many times as many?",
        40 / 600: "that is the announced over the made; turn it over.",
    }
    return _number(
        answer,
        15,
        0.02,
        "Yes: it announced 1 % of 4,000, which is 40, and made 600. 99 against 85 % sounds close; in errors it is 15 "
        "times.",
        hints,
        "Announced: 1 % of 4,000. Made: 4,000 - 3,400.",
    )


def exercise_0_3(answer: Any) -> Feedback:
    """A function confidence(logits) of one voxel's logits (K,)."""
    logits = torch.tensor([1.0, -2.0, 3.0, 0.5])

    def judge(got: Any) -> Feedback:
        expected = logits.softmax(0).max()
        if _equal(got, expected):
            return _right(f"Yes: {float(expected):.3f} for a test voxel, the largest of its probabilities.")
        if isinstance(got, torch.Tensor) and got.shape == logits.shape:
            return _wrong(
                "These are all K probabilities (or logits); the confidence is the largest probability, one number."
            )
        return _wrong(
            _misformed(got, expected)
            or f"{float(got):.3f} instead of {float(expected):.3f}: softmax over the classes, then its maximum."
        )

    return _code(answer, judge, logits)


# 01 What is calibration


def exercise_1_1(answer: Any) -> Feedback:
    """Gap of a bin: 1000 voxels with mean confidence 0.8, 600 of them right."""
    hints = {
        0.6: "that is the accuracy. The gap is how far the confidence is from it.",
        -0.2: "right size; ECE takes the absolute value, or errors of two bins would cancel.",
        0.8: "that is the confidence. How often was it right?",
    }
    return _number(
        answer, 0.2, 1e-6, "Yes: 0.8 claimed, 0.6 kept, a gap of 0.2.", hints, "The gap is |confidence - accuracy|."
    )


def exercise_1_2(answer: Any) -> Feedback:
    """A function ece(confidence, correct, num_bins) of two arrays of n voxels."""
    random = np.random.RandomState(0)
    confidence = random.uniform(0.5, 1, 4000)
    correct = random.uniform(size=4000) < np.clip(
        1.5 * confidence - 0.35, 0, 1
    )  # too sure at 0.5, not sure enough at 0.9

    def judge(got: Any) -> Feedback:
        probs = torch.tensor(np.stack([confidence, 1 - confidence], 1))
        expected = expected_calibration_error(probs, torch.from_numpy(1 - correct.astype(np.int64)), 10)
        bins = np.ceil(confidence * 10)
        parts = [(confidence[bins == b], correct[bins == b]) for b in np.unique(bins)]
        unweighted = float(np.mean([abs(c.mean() - h.mean()) for c, h in parts]))
        signed = float(sum((c - h).sum() for c, h in parts) / 4000)
        overall = float(abs(confidence.mean() - correct.mean()))
        hints = {
            unweighted: "every bin counts the same in yours (that is ACE). "
            "Weight each gap by the bin's share of the voxels.",
            signed: "take the absolute value of each bin's gap before adding them up.",
            overall: "this is |mean confidence - accuracy| over all voxels at once. "
            "The gap has to be taken bin by bin.",
        }
        hint = "Per bin: its share of the voxels times |mean confidence - mean of correct|; then the sum."
        return _number(got, expected, 1e-6, f"Yes: {expected:.4f} on a test set, as mbls.metrics has it.", hints, hint)

    return _code(answer, judge, confidence, correct, 10)


def exercise_1_3(answer: Any) -> Feedback:
    """Voxels that a bin with accuracy 0.9 needs for a standard error of 0.01."""
    hints = {
        9.0: "that is a standard error of 0.1. Ten times less error takes a hundred times the voxels.",
        90.0: "check the square: the error is sqrt(p (1 - p) / n), so n = p (1 - p) / error².",
        8100.0: "the variance of a hit is p (1 - p), not p².",
    }
    praise = (
        "Yes: 0.9 · 0.1 / 0.01² = 900. "
        "And this for every bin, if neighbouring voxels were independent, which they are not."
    )
    return _number(answer, 900, 1, praise, hints, "Solve sqrt(p (1 - p) / n) = 0.01 for n.")


def exercise_1_4(answer: Any) -> Feedback:
    """Standard error of the accuracy of 40,000 voxels, 0.9 of them right, in patches of 25 that err together."""
    independent = math.sqrt(0.9 * 0.1 / 40_000)
    hints = {
        independent: "that is for 40,000 independent voxels. Here 25 of them count as one.",
        25 * independent: "the error grows with the root of the patch: sqrt(25) times, not 25 times.",
        0.3: "that is the deviation of a single voxel; an average over n of them has 1 / sqrt(n) of it.",
    }
    praise = (
        "Yes: 40,000 / 25 = 1,600 patches, and sqrt(0.9 · 0.1 / 1600) = 0.0075, five times what independent voxels "
        "would give."
    )
    return _number(answer, 0.0075, 2e-4, praise, hints, "How many patches are there? Each counts as one voxel.")


# 02 Cross-entropy is overconfident


def exercise_2_1(answer: Any) -> Feedback:
    """A function gradient(logits, label, temperature): the gradient of CE(l / T) in the logits l, (K,), of a voxel."""
    logits, label, temperature = torch.tensor([1.0, -0.5, 2.0, 0.0]), 0, 2.0
    one_hot = F.one_hot(torch.tensor(label), 4)

    def judge(got: Any) -> Feedback:
        softened = (logits / temperature).softmax(0)
        expected = (softened - one_hot) / temperature
        if _equal(got, expected):
            return _right("Yes: (s(l / T) - y) / T. A large T softens the claim and weakens the pull as well.")
        if _equal(got, -expected):
            return _wrong(
                "The sign is turned: that is the direction in which descent moves, the gradient is its opposite."
            )
        if _equal(got, softened - one_hot):
            return _wrong("That is the gradient in l / T. The chain rule has one more factor for the gradient in l.")
        if _equal(got, logits.softmax(0) - one_hot) or _equal(got, (logits.softmax(0) - one_hot) / temperature):
            return _wrong("The softmax is still that of l; in this loss it sees l / T.")
        if _equal(got, softened / temperature) or _equal(got, softened):
            return _wrong("The one-hot vector of the label still has to be taken off.")
        return _wrong(_misformed(got, expected) or "Take u = l / T: the gradient in u first, then du/dl.")

    return _code(answer, judge, logits, label, temperature)


def exercise_2_2(answer: Any) -> Feedback:
    """How many nats more than an honest 0.8 a claim of 0.99 costs on average, where 0.8 is true."""
    pays = -(0.8 * math.log(0.99) + 0.2 * math.log(0.01))
    honest = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    hints = {
        pays: "that is all it pays; 0.500 of it the honest forecaster pays too.",
        -math.log(0.99): "that is what it pays where it is right, in 8 of 10 cases; the other two cost more.",
        -math.log(0.99) - honest: "where it is wrong, in 2 of 10 cases, it pays -ln 0.01.",
        0.19: "the price is not the gap between the claims: it is the mean of -ln of what it gave to the label.",
    }
    praise = "Yes: it saves a little 8 times and pays 4.6 twice. No figure of the contour sees that."
    return _number(answer, pays - honest, 0.005, praise, hints, "Average -ln over both outcomes, with 0.8 and 0.2.")


def exercise_2_3(answer: Any) -> Feedback:
    """What a network of two classes that says 0.99 says after a temperature of 2."""
    odds = math.sqrt(99)
    hints = {
        0.495: "a temperature divides the logits, and with them the distance, not the probability.",
        0.9999: "a temperature above 1 makes the claim weaker; you have multiplied.",
        odds: "these are the odds afterwards; a probability is odds / (1 + odds).",
    }
    praise = "Yes: odds of 99 to 1 become those of its square root, about 10 to 1."
    return _number(answer, odds / (1 + odds), 0.003, praise, hints, "0.99 are odds of 99 to 1: which distance is that?")


def exercise_2_4(answer: Any) -> Feedback:
    """A function overclaim(logits, labels): mean confidence minus the share of voxels that are right."""
    logits = _logits() / 4  # claims too little
    winner = logits.argmax(1)
    labels = torch.where(torch.arange(6) > 0, winner, (winner + 1) % logits.shape[1])

    def judge(got: Any) -> Feedback:
        probs = logits.softmax(1)
        expected = probs.amax(1).mean() - (winner == labels).float().mean()
        if _equal(got, expected):
            return _right("Yes. Below 0 it claims too little, above 0 too much; ECE has thrown the sign away.")
        if _equal(got, -expected):
            return _wrong("The sign is turned, or abs took it: what it claims minus what comes true, below 0 here.")
        at_label = probs.gather(1, labels.unsqueeze(1)).mean()
        if _equal(got, at_label - (winner == labels).float().mean()):
            return _wrong("You took the probability of the label; the confidence is that of the winner.")
        if isinstance(got, torch.Tensor) and got.shape == labels.shape:
            return _wrong("One number is wanted: the mean over all voxels.")
        return _wrong(_misformed(got, expected) or "Claimed is the largest probability; right is winner = label.")

    return _code(answer, judge, logits.clone(), labels)


# 03 Logit distances


def exercise_3_1(answer: Any) -> Feedback:
    """A function distances(logits) for logits (B, K, H, W)."""
    logits = _logits()

    def judge(got: Any) -> Feedback:
        if _equal(got, logit_distances(logits)):
            return _right("Yes. One of the K distances of every voxel is 0: the winner's own.")
        if _equal(got, -logit_distances(logits)):
            return _wrong("The sign is turned: d = max - logit, so that distances are never negative.")
        if _equal(got, logits.max() - logits):
            return _wrong(
                "You took the largest logit of the whole batch. Each voxel has its own: amax over dimension 1, keepdim."
            )
        if isinstance(got, torch.Tensor) and got.shape == (2, 5, 6):
            return _wrong(
                "One number a voxel, where K are wanted: keepdim=True lets the maximum be subtracted from all classes."
            )
        return _wrong(
            _misformed(got, logits) or "The maximum has to run over the classes, which are dimension 1 of (B, K, H, W)."
        )

    return _code(answer, judge, logits.clone())


def exercise_3_2(answer: Any) -> Feedback:
    """How many times likelier the winner is than a class at distance 4."""
    hints = {
        4.0: "distances live in the logarithm: the ratio of two probabilities is exp(d).",
        math.exp(-4): "that is the loser over the winner; turn it over.",
        16.0: "the base is e, not 2.",
    }
    return _number(answer, math.exp(4), 0.5, "Yes: exp(4) is about 54.6.", hints, "s_i / s_k = exp(l_i - l_k).")


def exercise_3_3(answer: Any) -> Feedback:
    """A function distances(probs) for probabilities (B, K, H, W), without any logits."""
    logits = _logits()
    probs = logits.softmax(1)

    def judge(got: Any) -> Feedback:
        expected, log_probs = logit_distances(logits), probs.log()
        if _equal(got, expected):
            return _right("Yes: the log-sum-exp drops out of the difference. The probabilities hold all the distances.")
        if _equal(got, -expected):
            return _wrong("The sign is turned: the largest minus each, so that distances are never negative.")
        if _equal(got, probs.amax(1, keepdim=True) - probs):
            return _wrong("Differences of probabilities lie within 0..1. Distances are those of their logarithms.")
        if _equal(got, -log_probs):
            return _wrong("That is each class's own -log s. The winner's distance has to be 0.")
        if _equal(got, log_probs.max() - log_probs):
            return _wrong("You took the largest of the whole batch. Each voxel has its own.")
        return _wrong(_misformed(got, expected) or "log s_k = l_k - LSE(l): what is left of LSE in a difference?")

    return _code(answer, judge, probs.clone())


def exercise_3_4(answer: Any) -> Feedback:
    """The temperature that brings a runner-up at distance 2 to odds of 3 to 1."""
    hints = {
        2 / 3: "odds are not distances: 3 to 1 is the distance ln 3.",
        math.log(3) / 2: "turn it over: the distance is divided by T.",
        2 - math.log(3): "a temperature divides the distance, it does not subtract from it.",
        5 / math.log(3): "the runner-up is the nearer of the two losers.",
    }
    praise = "Yes: 2 / T = ln 3. The third class goes from 5 to 2.7 whether one likes it or not."
    return _number(answer, 2 / math.log(3), 0.03, praise, hints, "Odds of 3 to 1 are which distance?")


# 04 One constraint, many losses


def exercise_4_1(answer: Any) -> Feedback:
    """A function mbls(logits, target, margin, alpha) for logits (B, K, H, W), target (B, H, W)."""
    logits = _logits()
    target = torch.arange(60).view(2, 5, 6) % 4

    def judge(got: Any) -> Feedback:
        expected = MbLSLoss(2.0, 0.3)(logits, target)
        if _equal(got, expected):
            return _right(f"Yes: {float(expected):.4f} on a test batch, as MbLSLoss has it.")
        if misformed := _misformed(got, expected):
            return _wrong(misformed)
        ce, hinge = F.cross_entropy(logits, target), F.relu(logit_distances(logits) - 2.0)
        mistakes = {
            float(
                ce + 0.3 * hinge.sum(1).mean()
            ): "you sum over the classes; the official form takes the mean (a factor K).",
            float(ce + hinge.mean()): "the weight alpha is missing.",
            float(
                ce + 0.3 * (logit_distances(logits) - 2.0).mean()
            ): "max(0, ...) is missing: distances below the margin are free.",
            float(ce + 0.3 * logit_distances(logits).mean()): "the margin is missing: this is MbLS with m = 0.",
            float(0.3 * hinge.mean()): "the cross-entropy is missing.",
        }
        for value, explanation in mistakes.items():
            if abs(float(got) - value) < 1e-5:
                return _wrong(f"{float(got):.4f} instead of {float(expected):.4f}: {explanation}")
        return _wrong(
            f"{float(got):.4f} instead of {float(expected):.4f}. CE plus alpha times the mean of max(0, d - m)."
        )

    return _code(answer, judge, logits, target, 2.0, 0.3)


def exercise_4_2(answer: Any) -> Feedback:
    """Gradient of the linear penalty mean_k d_k in the winner's logit, K = 10, all other distances 0.01."""
    hints = {
        0.01: "the penalty is linear: its slope is the same at 0.01 as at 10.",
        0.009: "that is the penalty's value. Its slope does not depend on how small d is.",
        9.0: "the sum over classes has slope K - 1 = 9; the mean divides by K.",
        -0.9: "the sign: raising the winner's logit raises all other distances.",
        0.1: "the winner's logit stands in K - 1 distances, not in one.",
        0.75: "that is for K = 4.",
    }
    praise = "Yes: (K - 1) / K = 0.9, at any distance. An equality constraint never says 'good enough'."
    return _number(answer, 0.9, 5e-4, praise, hints, "The winner's logit stands in all K - 1 other distances.")


def exercise_4_3(answer: Any) -> Feedback:
    """Distance at which LS with alpha = 0.3 ends for a voxel whose label is certain, K = 10."""
    expected = math.log(0.73 / 0.03)
    hints = {
        math.inf: "that is cross-entropy. The smoothed target gives every class at least alpha / K.",
        math.log(
            0.7 / 0.3
        ): "alpha is shared by all K classes, the labelled one included: the target is 0.73, and nine times 0.03.",
        math.log(
            0.7 / (0.3 / 9)
        ): "here alpha is shared by all K classes, the labelled one included: it keeps 0.73, not 0.7.",
        math.log(0.925 / 0.025): "that is for alpha = 0.1 and K = 4.",
        0.0: "d = 0 is where the penalty alone would end; cross-entropy pulls the other way.",
    }
    praise = "Yes: s is the target, 0.73 and nine times 0.03, so d = log(0.73 / 0.03) = 3.19."
    return _number(
        answer,
        expected,
        0.02,
        praise,
        hints,
        "LS is cross-entropy with smoothed labels: it ends where s is that label.",
    )


def exercise_4_4(answer: Any) -> Feedback:
    """The smallest margin that leaves a voxel with q = (0.9, 0.05, 0.05) as it is."""
    hints = {
        math.log(9): "that is log(0.9 / 0.1). Each of the two losers has 0.05.",
        math.log(27): "that is for three losers that share 0.1; here there are two.",
        math.log(28): "that is where a certain voxel ends (for lambda = 0.1), whatever the margin. This one is not.",
        18.0: "that is the ratio of the probabilities; a distance is its logarithm.",
        0.9: "that is the probability. A margin is a distance of logits.",
    }
    praise = "Yes: d = log(0.9 / 0.05) = log 18 = 2.89. With this margin or a larger one no class is beyond it."
    hint = "Cross-entropy alone would end at s = q. How far are the logits apart there?"
    return _number(answer, math.log(18), 0.02, praise, hints, hint)


# 05 Margin explorer


def exercise_5_1(answer: Any) -> Feedback:
    """Confidence at the margin m = 3 with K = 10 classes."""
    hints = {
        confidence_at_margin(3, 4): "that is for K = 4. More classes share what the winner leaves.",
        confidence_at_margin(3, 2): "that is for K = 2.",
    }
    expected = confidence_at_margin(3, 10)
    praise = f"Yes, {expected:.2f}: the same margin is a lower ceiling when there are more classes."
    return _number(answer, expected, 6e-3, praise, hints, "Use 1 / (1 + (K - 1) exp(-m)).")


def exercise_5_2(answer: Any) -> Feedback:
    """A function violations(logits, margin): share of voxels of (B, K, H, W) with a class beyond the margin."""
    logits = _logits()

    def judge(got: Any) -> Feedback:
        beyond = logit_distances(logits) > 6.0
        expected = beyond.any(1).double().mean()
        if _equal(got, expected):
            return _right(f"Yes: {float(expected):.3f} of the voxels of a test batch.")
        if _equal(got, beyond.double().mean()):
            return _wrong(
                "That is the share of all distances. "
                "A voxel counts once, however many of its classes lie beyond: any(1)."
            )
        if _equal(got, beyond.all(1).double().mean()):
            return _wrong(
                "No voxel has all its classes beyond the margin, since the winner's distance is 0: any, not all."
            )
        return _wrong(
            _misformed(got, expected)
            or f"{float(got):.3f} instead of {float(expected):.3f}. Distances, compare, any over the classes, mean."
        )

    return _code(answer, judge, logits.clone(), 6.0)


def exercise_5_3(answer: Any) -> Feedback:
    """The smallest margin that no voxel with a certain label passes, for alpha = 0.3, K = 4."""
    certain = torch.tensor([[1.0, 0, 0, 0]])
    ends = {alpha: margin_calibration_map(certain, 0.0, alpha)[0].log() for alpha in (0.1, 0.3)}
    expected, of_tenth = (float(ends[alpha][0] - ends[alpha][1]) for alpha in (0.3, 0.1))
    hints = {
        0.0: "with m = 0 descent does not end at d = 0: cross-entropy pulls until the forces balance.",
        of_tenth: "that is for a weight of 0.1. Does a stronger hand need a larger or a smaller margin?",
        3.0: "try margin 3 and weight 0.3 in the first explorer: does the star move if the margin is smaller?",
        math.log(10 / 3): "a loser ends at lambda / K = 0.075, with K = 4.",
        math.log(1 / 0.075): "the winner's probability is not 1 there: the three losers hold 0.225 of it.",
    }
    praise = (
        f"Yes, about {expected:.2f}: there cross-entropy's pull has fallen to alpha / K = 0.075, "
        "the most that the penalty can hold."
    )
    return _number(
        answer, expected, 0.1, praise, hints, "Look for the margin from which on the star sits on the dashed line."
    )


# 06 Train on ACDC


def exercise_6_1(answer: Any) -> Feedback:
    """ECE of two volumes, weighted by their voxels as in the official validation: 0.10 of 3000 and 0.04 of 1000."""
    hints = {0.07: "that is the plain mean. The official validation weighs each volume by the voxels it counted."}
    expected = average_over_volumes([0.10, 0.04], [3000, 1000])
    return _number(
        answer, expected, 1e-4, "Yes: (0.10 · 3000 + 0.04 · 1000) / 4000 = 0.085.", hints, "Weigh by the voxels."
    )


def exercise_6_2(answer: Any) -> Feedback:
    """The loss with the smallest mean foreground ECE, with all patients, whose mean DSC is at most 0.01 below CE's."""
    # Here, since it takes Lightning and MONAI along, which no other exercise needs.
    from mbls.study.paper import REDUCED
    from mbls.study.tables import part_of

    if _open(answer):
        return _UNANSWERED
    study = pd.read_csv(recorded("acdc_reduced.csv"))
    rows = part_of(study, REDUCED, "losses", "last")
    dsc, ece = (_mean_by_loss(rows, column) for column in ("dsc", "ece_fg"))
    if not isinstance(answer, str) or answer not in dsc:
        return _wrong(f"{answer!r} is none of the recorded losses: {', '.join(dsc)}.")
    least = dsc["ce"] - 0.01
    if dsc[answer] < least:
        return _wrong(
            f"{answer} has a mean DSC of {dsc[answer]:.3f}, below {least:.3f}: "
            "calibration bought with overlap does not count."
        )
    best, second, *_ = sorted((loss for loss in dsc if dsc[loss] >= least), key=lambda loss: ece[loss])
    if answer == best:
        return _right(
            f"Yes: {best}, with {ece[best]:.3f}. The next is {second}, {ece[second] - ece[best]:.3f} behind: "
            "do seeds differ by less than that?"
        )
    return _wrong(
        f"{answer} has {ece[answer]:.3f}; there is a smaller one among those with a mean DSC of at least {least:.3f}."
    )


def _mean_by_loss(table: pd.DataFrame, column: str) -> dict[str, float]:
    """The mean of a column over each loss's runs, in the table's order."""
    return table.groupby("loss", sort=False)[column].agg("mean").to_dict()


def exercise_6_3(answer: Any) -> Feedback:
    """The margin to begin with, of 3, 6 and 25, where CE ends at distances from 5 to 24, 16 on average."""
    hints = {
        3.0: "below 3.6 the penalty cannot hold a certain voxel: it acts as label smoothing does (notebook 04).",
        25.0: "no distance gets there, so the penalty is zero everywhere: that is cross-entropy.",
        16.0: "at the mean distance half of the penalty's work is gone; and it is none of the three.",
    }
    praise = "Yes: well below where CE ends, and above 3.6, from where on a margin is a wall."
    return _number(answer, 6.0, 1e-3, praise, hints, "It has to lie below CE's distances, and above 3.6.")


# 07 Judging calibration


def exercise_7_1(answer: Any) -> Feedback:
    """Two patients whose voxels all claim 0.8; right in 90 % and in 70 %. Mean of their ECEs minus the pooled ECE."""
    hints = {
        0.0: "pooled they are right in 80 %, as claimed. But how far off is each of the two for itself?",
        -0.1: "right size, wrong sign: pooling makes the error smaller.",
        0.2: "that is the sum of the two errors; take their mean.",
    }
    praise = "Yes: each is off by 0.1, and pooled they are right in 80 %, as claimed: 0.1 - 0 = 0.1."
    return _number(answer, 0.1, 1e-6, praise, hints, "Compare 0.8 with 0.9, with 0.7, and with their mean.")


def exercise_7_2(answer: Any) -> Feedback:
    """A function pooled_ece(count, confidence, hits) of sums by patient and bin, each (patients, bins)."""
    generator = np.random.default_rng(3)
    count = generator.integers(1, 100, (3, 4)) * np.array([[1], [1], [50]])
    confidence = count * generator.random((3, 4))
    hits = np.floor(count * generator.random((3, 4)))
    pooled = float(np.abs(confidence.sum(0) - hits.sum(0)).sum() / count.sum())
    of_each = np.abs(confidence - hits).sum(1) / count.sum(1)

    def judge(got: Any) -> Feedback:
        expected = torch.tensor(pooled, dtype=torch.float64)
        if _equal(got, expected):
            return _right(f"Yes: {pooled:.3f}; the mean of the patients' own is {of_each.mean():.3f}.")
        if _equal(got, torch.tensor(of_each.mean())):
            return _wrong(
                "That is the mean of the patients' own ECEs. Pooled means: add the patients up, then compare."
            )
        if _equal(got, torch.tensor(np.abs(confidence - hits).sum() / count.sum())):
            return _wrong("The absolute value is taken before the patients are added up, so that nothing can cancel.")
        if _equal(got, torch.tensor(np.abs(confidence.sum(0) - hits.sum(0)).sum())):
            return _wrong("Divide by the number of all voxels.")
        return _wrong(
            _misformed(got, expected)
            or f"{float(got):.3f} instead of {pooled:.3f}: add the patients up, then the gap of each bin by its share."
        )

    return _code(answer, judge, count, confidence, hits)


def exercise_7_3(answer: Any) -> Feedback:
    """Voxels, in millions, that a float32 counter loses of the 95 % of 512 x 512 x 400 that lie in one bin."""
    held, voxels = 2**24 / 1e6, 0.95 * 512 * 512 * 400 / 1e6
    hints = {
        held: "that is where the counter stops. How many does it lose?",
        voxels: "that is how many there are in the bin. The counter keeps the first 16.8 million of them.",
        voxels / 0.95 - held: "only 95 % of the voxels lie in that bin.",
    }
    praise = f"Yes: {voxels:.1f} million are in the bin, and the counter stops at {held:.1f} million."
    return _number(answer, voxels - held, 0.5, praise, hints, "The counter stops at 2^24.")


# 08 Your own predictions


def exercise_8_1(answer: Any) -> Feedback:
    """Half the width of the naive 95 % interval of a volume: 2000 independent voxels of probability 0.9."""
    expected = 1.96 * math.sqrt(2000 * 0.9 * 0.1)
    hints = {
        math.sqrt(180): "that is one standard deviation; a 95 % interval reaches 1.96 of them.",
        180.0: "that is the variance, sum of p (1 - p). Take the root.",
        2 * expected: "that is the whole width.",
        200.0: "that is the expected number of voxels that are no structure, not how much it scatters.",
    }
    praise = "Yes: 1.96 · sqrt(2000 · 0.9 · 0.1) = 26 voxels of an expected 1800. No contour is that good."
    return _number(answer, expected, 0.5, praise, hints, "The variance of a voxel is p (1 - p), and variances add up.")


def exercise_8_2(answer: Any) -> Feedback:
    """A function of absolute errors and a level: the ceil((n + 1) level)-th smallest error."""
    errors = [3.0, 1.0, 6.0, 2.0, 9.0, 2.0, 4.0, 3.0, 5.0]
    expected = conformal_quantile(errors, 0.8)

    def judge(got: Any) -> Feedback:
        if _equal(got, torch.tensor(expected, dtype=torch.float64)):
            return _right(f"Yes: of nine errors the 8th smallest, {expected:g}.")
        if _equal(got, torch.tensor(5.0)):
            return _wrong("That is the seventh: the formula has n + 1, which allows for the new case.")
        if _equal(got, torch.tensor(9.0)):
            return _wrong("That is the largest: Python counts places from 0.")
        if _equal(got, torch.tensor(3.0)):
            return _wrong("The errors have to be sorted first.")
        return _wrong(
            _misformed(got, torch.tensor(expected)) or f"{float(got):g} instead of {expected:g} for {errors}."
        )

    return _code(answer, judge, errors, 0.8)
