"""The checks teach: right answers pass, open ones are no errors, and known mistakes are named."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mbls.constraints import logit_distances
from mbls.course import exercises

NUMBERS = {
    exercises.exercise_0_1: 2,
    exercises.exercise_0_2: 15,
    exercises.exercise_1_1: 0.2,
    exercises.exercise_1_3: 900,
    exercises.exercise_1_4: 0.0075,
    exercises.exercise_2_3: 0.909,
    exercises.exercise_2_2: 0.429,
    exercises.exercise_3_2: 54.6,
    exercises.exercise_3_4: 1.82,
    exercises.exercise_4_2: 0.9,
    exercises.exercise_4_3: 3.19,
    exercises.exercise_4_4: 2.89,
    exercises.exercise_5_1: 0.69,
    exercises.exercise_5_3: 2.3,
    exercises.exercise_6_1: 0.085,
    exercises.exercise_6_3: 6,
    exercises.exercise_8_1: 26.3,
    exercises.exercise_7_1: 0.1,
    exercises.exercise_7_3: 82.8,
}


def ece(confidence, correct, num_bins):
    bins = np.ceil(confidence * num_bins)
    return sum(
        abs(confidence[bins == b].mean() - correct[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)
    )


def hinge(logits, margin):
    return F.relu(logit_distances(logits) - margin)


def mbls(logits, target, margin, alpha):
    return F.cross_entropy(logits, target) + alpha * hinge(logits, margin).mean()


def one_hot(label):
    return F.one_hot(torch.tensor(label), 4)


def overclaim(logits, labels):
    return logits.softmax(1).amax(1).mean() - (logits.argmax(1) == labels).float().mean()


FUNCTIONS = {
    exercises.exercise_0_3: lambda logits: logits.softmax(0).max(),
    exercises.exercise_1_2: ece,
    exercises.exercise_2_1: lambda logits, label, T: ((logits / T).softmax(0) - one_hot(label)) / T,
    exercises.exercise_2_4: overclaim,
    exercises.exercise_3_1: logit_distances,
    exercises.exercise_3_3: lambda probs: logit_distances(probs.log()),
    exercises.exercise_4_1: mbls,
    exercises.exercise_5_2: lambda logits, margin: (logit_distances(logits) > margin).any(1).float().mean(),
    exercises.exercise_8_2: lambda errors, level: sorted(errors)[math.ceil((len(errors) + 1) * level) - 1],
    exercises.exercise_7_2: lambda count, claims, hits: abs(claims.sum(0) - hits.sum(0)).sum() / count.sum(),
}
WORDS = {exercises.exercise_6_2: "svls:sigma=2"}
ALL = {**NUMBERS, **FUNCTIONS, **WORDS}


def named(mapping):
    return pytest.mark.parametrize(("check", "answer"), mapping.items(), ids=[check.__name__ for check in mapping])


def test_every_check_is_tried_here():
    assert {check.__name__ for check in ALL} == {name for name in exercises.__all__ if name.startswith("exercise_")}


@named(ALL)
def test_right_answer_passes(check, answer):
    feedback = check(answer)
    assert feedback.passed is True
    assert repr(feedback).startswith("✓ Yes")


@named(ALL)
def test_open_answer_is_no_error(check, answer):
    for nothing in (..., None):
        assert check(nothing).passed is None
    assert repr(check(...)).startswith("… Not answered yet")


@named(FUNCTIONS)
def test_function_without_a_result_is_open(check, answer):
    def unsolved(*arguments):
        result = ...
        return result

    assert check(unsolved).passed is None


@named(ALL)
def test_nonsense_is_told_and_not_raised(check, answer):
    for nonsense in ("nonsense", [], {}, 10**9, torch.ones(2, 2)):
        feedback = check(nonsense)
        assert feedback.passed is False
        assert len(feedback.message) > 20


@named(FUNCTIONS)
def test_a_function_that_raises_is_told(check, answer):
    def broken(*arguments):
        raise KeyError("oops")

    assert "KeyError" in check(broken).message
    assert check(lambda *arguments: "text").passed is False
    assert check(lambda *arguments: torch.zeros(7, 7)).passed is False


@pytest.mark.parametrize(
    ("check", "answer", "hint"),
    [
        (exercises.exercise_0_1, 3, "the logit itself"),
        (exercises.exercise_0_1, -2, "sign"),
        (exercises.exercise_0_2, 600, "announce"),
        (exercises.exercise_0_2, 0.14, "gap"),
        (exercises.exercise_1_1, 0.6, "accuracy"),
        (exercises.exercise_1_3, 90, "square"),
        (exercises.exercise_1_4, 0.0015, "independent"),
        (exercises.exercise_1_4, 0.0375, "root"),
        (exercises.exercise_2_3, 0.495, "not the probability"),
        (exercises.exercise_2_3, 0.9999, "multiplied"),
        (exercises.exercise_2_3, 9.95, "the odds"),
        (exercises.exercise_2_2, 0.929, "all it pays"),
        (exercises.exercise_2_2, 0.01, "where it is right"),
        (exercises.exercise_2_2, -0.49, "where it is wrong"),
        (exercises.exercise_2_2, 0.19, "not the gap"),
        (exercises.exercise_3_4, 0.667, "odds are not distances"),
        (exercises.exercise_3_4, 0.549, "turn it over"),
        (exercises.exercise_3_4, 0.9, "subtract"),
        (exercises.exercise_3_4, 4.55, "nearer"),
        (exercises.exercise_3_2, 4, "exp(d)"),
        (exercises.exercise_4_2, 0.01, "slope"),
        (exercises.exercise_4_2, 100, "too large"),
        (exercises.exercise_4_2, 0.75, "K = 4"),
        (exercises.exercise_4_3, math.log(7 / 3), "shared"),
        (exercises.exercise_4_3, 3.61, "K = 4"),
        (exercises.exercise_4_4, math.log(9), "two losers"),
        (exercises.exercise_4_4, 18, "logarithm"),
        (exercises.exercise_4_4, 3.33, "certain voxel"),
        (exercises.exercise_5_1, 0.87, "K = 4"),
        (exercises.exercise_5_3, 3, "star"),
        (exercises.exercise_5_3, 3.61, "weight of 0.1"),
        (exercises.exercise_6_1, 0.07, "plain mean"),
        (exercises.exercise_6_2, "ce_soft_l1ace", "DSC"),
        (exercises.exercise_6_3, 3, "label smoothing"),
        (exercises.exercise_8_1, 180, "variance"),
        (exercises.exercise_8_2, lambda e, level: sorted(e)[int(len(e) * level) - 1], "n + 1"),
        (exercises.exercise_6_3, 25, "zero everywhere"),
        (exercises.exercise_6_2, "ce", "smaller"),
        (exercises.exercise_7_1, 0.0, "for itself"),
        (exercises.exercise_7_1, -0.1, "sign"),
        (exercises.exercise_7_2, lambda n, c, h: (abs(c - h).sum(1) / n.sum(1)).mean(), "add the patients up"),
        (exercises.exercise_7_2, lambda n, c, h: abs(c - h).sum() / n.sum(), "cancel"),
        (exercises.exercise_7_2, lambda n, c, h: abs(c.sum(0) - h.sum(0)).sum(), "all voxels"),
        (exercises.exercise_7_3, 16.8, "lose"),
        (exercises.exercise_7_3, 99.6, "first 16.8"),
        (exercises.exercise_0_3, lambda logits: logits.softmax(0), "one number"),
        (exercises.exercise_1_2, lambda c, h, n: abs(c.mean() - h.mean()), "bin by bin"),
        (exercises.exercise_2_1, lambda logits, label, T: (logits / T).softmax(0) / T, "one-hot"),
        (exercises.exercise_2_1, lambda logits, label, T: (one_hot(label) - (logits / T).softmax(0)) / T, "sign"),
        (exercises.exercise_2_1, lambda logits, label, T: (logits / T).softmax(0) - one_hot(label), "chain rule"),
        (exercises.exercise_2_1, lambda logits, label, T: logits.softmax(0) - one_hot(label), "that of l"),
        (exercises.exercise_2_4, lambda x, y: (x.argmax(1) == y).float().mean() - x.softmax(1).amax(1).mean(), "sign"),
        (exercises.exercise_2_4, lambda x, y: abs(overclaim(x, y)), "abs"),
        (
            exercises.exercise_2_4,
            lambda x, y: x.softmax(1).gather(1, y[:, None]).mean() - (x.argmax(1) == y).float().mean(),
            "probability of the label",
        ),
        (exercises.exercise_2_4, lambda x, y: x.softmax(1).amax(1) - (x.argmax(1) == y).float(), "One number"),
        (exercises.exercise_3_1, lambda logits: logits - logits.amax(1, keepdim=True), "sign"),
        (exercises.exercise_3_1, lambda logits: logits.max() - logits, "whole batch"),
        (exercises.exercise_3_1, lambda logits: logits.amax(1), "keepdim"),
        (exercises.exercise_3_3, lambda probs: -logit_distances(probs.log()), "sign"),
        (exercises.exercise_3_3, lambda probs: probs.amax(1, keepdim=True) - probs, "logarithms"),
        (exercises.exercise_3_3, lambda probs: -probs.log(), "own"),
        (exercises.exercise_3_3, lambda probs: probs.log().max() - probs.log(), "whole batch"),
        (
            exercises.exercise_4_1,
            lambda x, y, m, a: F.cross_entropy(x, y) + a * hinge(x, m).sum(1).mean(),
            "factor K",
        ),
        (exercises.exercise_4_1, lambda x, y, m, a: F.cross_entropy(x, y) + hinge(x, m).mean(), "alpha"),
        (exercises.exercise_4_1, lambda x, y, m, a: F.cross_entropy(x, y) + a * logit_distances(x).mean(), "margin"),
        (
            exercises.exercise_4_1,
            lambda x, y, m, a: F.cross_entropy(x, y) + a * (logit_distances(x) - m).mean(),
            "max(0",
        ),
        (exercises.exercise_5_2, lambda logits, m: (logit_distances(logits) > m).float().mean(), "any(1)"),
        (exercises.exercise_5_2, lambda logits, m: (logit_distances(logits) > m).all(1).float().mean(), "any, not all"),
    ],
)
def test_known_mistakes_are_named(check, answer, hint):
    feedback = check(answer)
    assert feedback.passed is False
    assert hint in feedback.message
