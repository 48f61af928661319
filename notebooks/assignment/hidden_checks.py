"""The hidden checks of the assignment: what is asked of each function, and what known wrong
answers show. grade.py calls them; nothing here runs a student's code.

A question is a :class:`Call` with what is right; an :class:`Answer` is what came back; a
:class:`Mark` says how many points an item gets, and why. All numbers hang on a seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import norm

from mbls.constraints import logit_distances
from mbls.course.exercises import Feedback, _equal, _misformed
from mbls.metrics import CalibrationBins, classwise_calibration_error
from mbls.statistics import bootstrap_interval

#: How far an end of an interval may lie off, in halves of its width: resampling is chance.
SLACK = 0.12
#: How many sets of patients the students' bootstraps draw; ours draws more.
RESAMPLES, OUR_RESAMPLES = 3000, 10_000

PENALTY, GRADIENT = "soft_margin_penalty", "soft_margin_gradient"
SUMS, VOXELS = "classwise_error", "classwise_error_of_voxels"
INTERVAL, DECIDE = "interval", "decide"


class Call(NamedTuple):
    """A call of a student's function.

    Attributes:
        function: its name.
        what: what is particular about the arguments.
        arguments: in the function's order.
        expected: what is right.
    """

    function: str
    what: str
    arguments: tuple[Any, ...]
    expected: Any


class Answer(NamedTuple):
    """What came back: numbers as a tensor, a text, or None where nothing was answered."""

    value: Any = None
    error: str = ""


class Mistake(NamedTuple):
    """A known wrong answer.

    Attributes:
        thought: the sentence that names what was wrong in the head.
        value: what it leads to; in task 1's tables a function of the arguments.
        keeps: the share of the points that it keeps.
    """

    thought: str
    value: Any
    keeps: float = 0.5


class Mark(NamedTuple):
    """The points of one item.

    Attributes:
        item: its number and name.
        points: what is given.
        most: what there is to have.
        feedback: why.
    """

    item: str
    points: int
    most: int
    feedback: Feedback


#: A function's calls and their answers.
Answered = Sequence[tuple[Call, Answer]]


def failed(answer: Answer) -> Feedback | None:
    """The feedback to a call that gave nothing to judge; None if it did."""
    if answer.error:
        by_autograd = "does not require grad" in answer.error
        return Feedback(
            False,
            "This is autograd, which is switched off here: work the gradient out by hand."
            if by_autograd
            else f"No result: {answer.error}",
        )
    return Feedback(None, "Not answered.") if answer.value is None else None


class Verdict(NamedTuple):
    """What is said to an answer.

    Attributes:
        feedback: in words.
        share: of the points, 0 to 1.
        mistake: the known one that it is, if any.
    """

    feedback: Feedback
    share: float
    mistake: Mistake | None = None


def judged(
    answer: Answer,
    expected: torch.Tensor,
    mistakes: Sequence[Mistake],
    praise: str,
    hint: str,
) -> Verdict:
    """Compare numbers with what is right and with known mistakes."""
    if (nothing := failed(answer)) is not None:
        return Verdict(nothing, 0)
    if _equal(answer.value, expected):
        return Verdict(Feedback(True, praise), 1)
    for mistake in mistakes:
        if _equal(answer.value, mistake.value):
            return Verdict(Feedback(False, mistake.thought), mistake.keeps, mistake)
    return Verdict(Feedback(False, _misformed(answer.value, expected) or hint), 0)


# 1. The soft margin


def soft_hinge(x: torch.Tensor, width: float) -> torch.Tensor:
    """h(x) of the assignment: torch's Huber loss of the positive part, over the width."""
    x = F.relu(x)
    return F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=width) / width


def right_penalty(logits: torch.Tensor, margin: float, width: float) -> torch.Tensor:
    """What soft_margin_penalty should return."""
    return soft_hinge(logit_distances(logits) - margin, width).mean(1)


def gradient_of(penalty: Callable, logits: torch.Tensor, margin: float, width: float) -> torch.Tensor:
    """The gradient of a penalty by autograd, where equal maxima share evenly."""
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(logits, margin, width).sum(), logits)
    return gradient


def right_gradient(logits: torch.Tensor, margin: float, width: float) -> torch.Tensor:
    """What soft_margin_gradient should return."""
    return gradient_of(right_penalty, logits, margin, width)


def _of_excess(h: Callable[[torch.Tensor, float], torch.Tensor]) -> Callable:
    """A penalty as the mean over the classes of h(d - m, w)."""
    return lambda logits, m, w: h(logit_distances(logits) - m, w).mean(1)


def _pieces(x: torch.Tensor, at: float, first: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    return torch.where(x <= 0, 0.0, torch.where(x <= at, first, then))


def _of_whole_batch(logits: torch.Tensor, m: float, w: float) -> torch.Tensor:
    return soft_hinge(logits.max() - logits - m, w).mean(1)


#: Known wrong penalties; one that keeps nothing is another penalty altogether.
WRONG_PENALTIES = (
    Mistake(
        "You sum over the classes; their mean is asked for (a factor K).",
        lambda logits, m, w: logits.shape[1] * right_penalty(logits, m, w),
    ),
    Mistake(
        "The two pieces do not meet at m + w: the line is x - w / 2, not x.",
        _of_excess(lambda x, w: _pieces(x, w, x**2 / (2 * w), x)),
    ),
    Mistake(
        "The parabola lacks its 1/2: with x² / w it has slope 2 where the line has 1.",
        _of_excess(lambda x, w: _pieces(x, w, x**2 / w, x - w / 2)),
    ),
    Mistake(
        "The parabola is not divided by the width: x² / 2 meets the line for w = 1 only.",
        _of_excess(lambda x, w: _pieces(x, w, x**2 / 2, x - w / 2)),
    ),
    Mistake(
        "This is w times the penalty (torch's huber_loss as it is): the line has slope 1.",
        lambda logits, m, w: w * right_penalty(logits, m, w),
    ),
    Mistake(
        "The line begins at d = w in yours. The width counts from the margin: d = m + w.",
        lambda logits, m, w: _pieces(
            logit_distances(logits) - m,
            w - m,
            F.relu(logit_distances(logits) - m) ** 2 / (2 * w),
            logit_distances(logits) - m - w / 2,
        ).mean(1),
    ),
    Mistake(
        "Distances are measured from the largest logit of the whole batch; each voxel has its own.",
        _of_whole_batch,
    ),
    Mistake(
        "This is the plain hinge of MbLS: the soft start, with slope 0 at m, is missing.",
        _of_excess(lambda x, w: F.relu(x)),
        0,
    ),
    Mistake(
        "The parabola goes on for ever: beyond m + w it has to become a line, or one wild logit outweighs all others.",
        _of_excess(lambda x, w: F.relu(x) ** 2 / (2 * w)),
        0,
    ),
    Mistake(
        "Distances below the margin are punished too: that is the equality d = m. The positive part is missing.",
        _of_excess(lambda x, w: soft_hinge(x.abs(), w)),
        0,
    ),
    Mistake(
        "The margin is missing: this is the penalty for m = 0.",
        lambda logits, m, w: right_penalty(logits, 0.0, w),
        0,
    ),
    Mistake(
        "It is 0 everywhere: the distance is max - l, and l - max is never positive.",
        lambda logits, m, w: 0 * right_penalty(logits, m, w),
        0,
    ),
)


def _slope(logits: torch.Tensor, m: float, w: float) -> torch.Tensor:
    """h'(d - m)."""
    return ((logit_distances(logits) - m) / w).clamp(0, 1)


def _gradient_of_slopes(slope: Callable) -> Callable:
    """The gradient that other slopes would lead to."""

    def gradient(logits: torch.Tensor, m: float, w: float) -> torch.Tensor:
        slopes = slope(logit_distances(logits) - m, w)
        at_max = (logits == logits.amax(1, keepdim=True)).to(slopes)
        at_max = at_max / at_max.sum(1, keepdim=True)
        return (at_max * slopes.sum(1, keepdim=True) - slopes) / logits.shape[1]

    return gradient


#: Known wrong gradients.
WRONG_GRADIENTS = (
    Mistake(
        "The sign is turned: raising the largest logit raises distances, so its gradient is positive.",
        lambda logits, m, w: -right_gradient(logits, m, w),
    ),
    Mistake(
        "The winner's part is missing: the largest logit stands in every distance. As all "
        "logits plus 1 change nothing, a voxel's gradient sums to 0.",
        lambda logits, m, w: -_slope(logits, m, w) / logits.shape[1],
    ),
    Mistake(
        "The losers' part is missing: a distance has two logits, and a voxel's gradient sums to 0.",
        lambda logits, m, w: right_gradient(logits, m, w).clamp(min=0),
    ),
    Mistake(
        "The factor 1/K of the mean over the classes is missing.",
        lambda logits, m, w: logits.shape[1] * right_gradient(logits, m, w),
    ),
    Mistake(
        "This is the gradient of the mean over the voxels; each voxel's own is asked for.",
        lambda logits, m, w: right_gradient(logits, m, w) * logits.shape[1] / logits.numel(),
    ),
    Mistake(
        "The slope goes on rising beyond m + w; the line there has slope 1.",
        _gradient_of_slopes(lambda x, w: F.relu(x) / w),
    ),
    Mistake(
        "The slope of x² / (2 w) is x / w: the division by the width is missing.",
        _gradient_of_slopes(lambda x, w: _pieces(x, w, x, torch.ones_like(x))),
    ),
    Mistake(
        "The slope jumps from 0 to 1 at the margin: this is the gradient of the plain hinge.",
        _gradient_of_slopes(lambda x, w: (x > 0).to(x)),
        0,
    ),
)

#: What is particular about some logits -> what is probably wrong if only this fails.
EDGES = {
    "distances of exactly m and m + w": "The pieces meet there: h is 0 with slope 0 at m, w / 2 with slope 1 at m + w.",
    "distances just below and above m and m + w": "A jump: the pieces meet at m and at m + w.",
    "two equal largest logits": "Both have distance 0, and each takes half of the winner's part of the gradient.",
    "300 added to all logits": "Adding a number to all logits changes no distance.",
    "2 classes": "Two classes are enough: K is the size of dimension 1.",
    "7 classes and no spatial dimension": "The classes are dimension 1, whatever follows.",
    "a 3-D volume": "The classes are dimension 1, whatever follows.",
    "m = 0": "With m = 0 the winner's own distance lies on the margin, and is free.",
}


def penalty_questions(
    random: np.random.Generator,
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What is particular about it, and the arguments: one batch first, then the edges."""

    def logits(*shape: int) -> torch.Tensor:
        return torch.from_numpy(3 * random.standard_normal(shape))

    yield "a batch", (logits(2, 4, 5, 6), 2.25, 1.5)
    edges = iter(EDGES)
    exact = torch.tensor([0.0, 2.0, 5.0, 4.0, 9.0, 1.0]).double()[random.permutation(6)]
    yield next(edges), (exact.view(1, 6, 1), 2.0, 3.0)
    beside = torch.tensor([0, 2 - 1e-3, 2 + 1e-3, 5 - 1e-3, 5 + 1e-3]).double()
    yield next(edges), (beside[random.permutation(5)].view(1, 5, 1), 2.0, 3.0)
    tied = logits(2, 4, 3)
    tied[:, 3] = tied[:, 1] = tied.amax(1) + 2.0
    yield next(edges), (tied, 1.0, 2.0)
    yield next(edges), (logits(1, 4, 3, 2) + 300, 1.5, 2.0)
    yield next(edges), (logits(3, 2, 4), 1.0, 2.5)
    yield next(edges), (logits(6, 7), 1.75, 0.5)
    yield next(edges), (logits(2, 5, 3, 4, 2), 1.25, 2.0)
    yield next(edges), (logits(2, 3, 4), 0.0, 1.5)


def soft_margin_calls(random: np.random.Generator) -> Iterator[Call]:
    """The calls of task 1."""
    questions = list(penalty_questions(random))
    for function, right in ((PENALTY, right_penalty), (GRADIENT, right_gradient)):
        for what, arguments in questions:
            yield Call(function, what, arguments, right(*arguments))


def soft_margin_marks(of: Mapping[str, Answered]) -> Iterator[Mark]:
    """The marks of task 1."""
    marks, own = _two_marks(
        ("1.1 penalty", "1.2 penalty at edges"),
        of[PENALTY],
        right_penalty,
        WRONG_PENALTIES,
        "Yes: free up to m, a parabola up to m + w, a line beyond.",
        "None of the three pieces can be told: compare with h(x) = 0, x² / (2 w), x - w / 2 of x = d - m, and its "
        "mean over the classes.",
    )
    yield from marks
    of_own = Mistake(
        "This is the gradient of your penalty, and right as such: mend the penalty.",
        lambda *arguments: gradient_of(own, *arguments),
    )
    marks, _ = _two_marks(
        ("1.3 gradient", "1.4 gradient at edges"),
        of[GRADIENT],
        right_gradient,
        (of_own, *WRONG_GRADIENTS),
        "Yes: -h'(d - m) / K for each class, and the sum of them, turned, for the winner.",
        "Differs from the differences of the penalty, (P(l + e) - P(l - e)) / 2e: take h' of each distance, and ask in "
        "which distances a logit stands.",
    )
    yield from marks


def _two_marks(
    items: tuple[str, str], answered: Answered, right: Callable, mistakes: Sequence[Mistake], praise: str, hint: str
) -> tuple[list[Mark], Callable]:
    """The marks of a batch and of the edges, and the function that the student seems to have written. A mistake that
    keeps points is followed through: the edges are held to what it makes of them."""
    (call, answer), *edges = answered
    values = [mistake._replace(value=mistake.value(*call.arguments)) for mistake in mistakes]
    verdict = judged(answer, call.expected, values, praise, hint)
    first = Mark(items[0], round(2 * verdict.share), 2, verdict.feedback)
    own = right
    if verdict.mistake is not None and verdict.share:
        own = mistakes[values.index(verdict.mistake)].value
    feedback = Feedback(True, "Yes: at the kinks, with ties, for any K and shape.")
    if not verdict.share and failed(answer) is None:
        feedback = Feedback(False, f"Mend {items[0]} first.")
        edges = []
    for call, answer in edges:
        verdict = judged(answer, own(*call.arguments), (), "", EDGES[call.what])
        if not verdict.feedback.passed:
            told = Feedback(False, f"With {call.what}: {verdict.feedback.message}")
            feedback = verdict.feedback if answer.value is None else told
            break
    return [first, Mark(items[1], int(feedback.passed is True), 1, feedback)], own


# 2. The class-wise calibration error


def forecasts(random: np.random.Generator, voxels: int, classes: int) -> tuple[Any, Any]:
    """Probabilities (N, K) that claim too much, by class and size, and labels (N,)."""
    probs = random.dirichlet(np.full(classes, 0.8), voxels)
    truth = probs**0.5 * np.linspace(0.5, 1.5, classes)
    truth /= truth.sum(1, keepdims=True)
    labels = (truth.cumsum(1) < random.random((voxels, 1))).sum(1).clip(max=classes - 1)
    return probs, labels


def sums_of(probs: np.ndarray, labels: np.ndarray, num_bins: int) -> tuple[Any, ...]:
    """Counts, sums of probabilities and of labels by class and bin, and each class's error."""
    classes = probs.shape[1]
    bins = CalibrationBins(classes, num_bins)
    bins.update(torch.from_numpy(probs), torch.from_numpy(labels))
    rows = [bins.reliability(k) for k in range(classes)]
    count = np.stack([row.count for row in rows])
    sums = [
        count * np.nan_to_num(np.stack([getattr(row, name) for row in rows])) for name in ("confidence", "accuracy")
    ]
    return count, *sums, bins.classwise("ece")


def sums_calls(random: np.random.Generator) -> Iterator[Call]:
    """The calls of task 2's first function."""
    *full, errors = sums_of(*forecasts(random, 4000, 4), 4)
    yield Call(SUMS, "full bins", (*full,), torch.tensor(errors.mean()))
    *sparse, of_few = sums_of(*forecasts(random, 25, 4), 30)
    yield Call(SUMS, "empty bins", (*sparse,), torch.tensor(of_few.mean()))
    weights = np.array([1.0, 4.0, 0.0, 2.0])
    mean = np.average(errors, weights=weights)
    yield Call(SUMS, "weights", (*full, weights), torch.tensor(mean))


def sums_marks(answered: Answered) -> Iterator[Mark]:
    """The marks of task 2's first function. A known mistake is followed through: empty bins
    and weights are held to what it makes of them."""
    (full, answer), (sparse, of_sparse), (weighted, of_weighted) = answered
    wrong = [Mistake(name, torch.tensor(e.mean()), 0) for name, e in wrong_errors(*full.arguments)]
    verdict = judged(
        answer,
        full.expected,
        wrong,
        "Yes: each gap by its bin's share of the voxels.",
        "Per class: the sum of |prob_sum - label_sum| over the number of voxels; then the mean over the classes.",
    )
    yield Mark("2.1 error from sums", int(verdict.share), 1, verdict.feedback)
    thought = verdict.mistake.thought if verdict.mistake else ""

    def own(call: Call) -> np.ndarray:
        return dict([("", right_errors(*call.arguments[:3])), *wrong_errors(*call.arguments[:3])])[thought]

    if isinstance(of_sparse.value, torch.Tensor) and of_sparse.value.isnan().any():
        told = "An empty bin is 0 / 0 in yours, and the NaN spreads. It has no share."
        verdict = Verdict(Feedback(False, told), 0)
    else:
        verdict = judged(
            of_sparse,
            torch.tensor(own(sparse).mean()),
            (),
            "Yes: an empty bin adds nothing.",
            "An empty bin has no mean and no share: it adds nothing, and changes nothing else.",
        )
    yield Mark("2.2 empty bins", int(verdict.share), 1, verdict.feedback)
    weights, errors = weighted.arguments[3], own(weighted)
    verdict = judged(
        of_weighted,
        torch.tensor(np.average(errors, weights=weights)),
        wrong_weights(errors, weights),
        "Yes: the weighted mean over the classes.",
        "Weights make a weighted mean of the classes' errors: sum of w e over sum of w.",
    )
    yield Mark("2.3 weights", int(verdict.share), 1, verdict.feedback)


def right_errors(count: np.ndarray, prob_sum: np.ndarray, label_sum: np.ndarray) -> np.ndarray:
    """Each class's error, (K,)."""
    return np.abs(prob_sum - label_sum).sum(1) / count.sum(1)


def wrong_errors(count: np.ndarray, prob_sum: np.ndarray, label_sum: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Known wrong thoughts, and the classes' errors (K,) that they lead to."""
    gap = _gaps(count, prob_sum, label_sum)
    errors, (classes, _) = right_errors(count, prob_sum, label_sum), gap.shape
    return [
        (
            "Every bin counts the same in yours (that is ACE). Weigh each gap by its bin's share of the voxels.",
            gap.sum(1) / (count > 0).sum(1),
        ),
        ("The gaps are added up without the bins' shares of the voxels.", gap.sum(1)),
        (
            "The absolute value comes too late: too much in one bin cancels too little in another.",
            np.abs((prob_sum - label_sum).sum(1)) / count.sum(1),
        ),
        ("You add the classes up; their mean is asked for.", classes * errors),
        (
            "The background is left out. It is a class like the others here.",
            errors * (np.arange(classes) > 0) * classes / (classes - 1),
        ),
        (
            "The largest gap of each class is its MCE. Take the mean, by shares.",
            gap.max(1),
        ),
        (
            "The gaps are weighed by the label's voxels. That conditions on the truth; weigh by all voxels of the bin.",
            (gap * label_sum).sum(1) / label_sum.sum(1).clip(min=1),
        ),
        ("Divide by the number of voxels.", np.abs(prob_sum - label_sum).sum(1)),
    ]


def wrong_weights(errors: np.ndarray, weights: np.ndarray) -> list[Mistake]:
    """Known wrong ways to weigh the classes."""
    found = {
        "The weights are not divided by their sum, so the result hangs on their unit.": (weights * errors).sum(),
        "The weighted errors are divided by K; divide by the sum of the weights.": (weights * errors).mean(),
        "The weights change nothing in yours.": errors.mean(),
    }
    return [Mistake(thought, torch.tensor(value), 0) for thought, value in found.items()]


def _gaps(count: np.ndarray, prob_sum: np.ndarray, label_sum: np.ndarray) -> np.ndarray:
    """|mean probability - share of the label| of each bin, 0 where it is empty."""
    return np.abs(prob_sum - label_sum) / np.maximum(count, 1)


#: Faults of classwise_error_of_voxels: what is in the code -> the sentence; "" is right.
EDGE_FAULTS = {
    "all": "",
    "no 1": "Bins open at the right end lose every probability of exactly 1, the surest ones.",
    "no 0": "Bins open at the left end lose every probability of exactly 0.",
    "no 0, no 1": "Probabilities of exactly 0 and 1 fall into no bin.",
}
MEAN_FAULTS = {
    "shares": "",
    "shares of the binned": "",
    "plain": "All bins count the same. Weigh each gap by its bin's share of the voxels.",
}
VOXEL_FAULTS = {
    ("all", "all"): "",
    ("labelled", "all"): "Voxels of the background are thrown away by their label: that "
    "conditions on the truth, which nobody knows when a probability is read.",
    (
        "claimed",
        "all",
    ): "Voxels are chosen by the predicted class. All voxels were asked for.",
    ("all", "foreground"): "The background is left out of the mean over the classes.",
    (
        "labelled",
        "foreground",
    ): "Voxels of the background are thrown away, and its class too.",
}


def with_faults(
    probs: np.ndarray,
    labels: np.ndarray,
    num_bins: int,
    edges: str,
    mean: str,
    kept: Sequence,
) -> float:
    """The error that classwise_error_of_voxels gives with some of the faults in."""
    voxels, classes = kept
    chosen = {"labelled": labels > 0, "claimed": probs.argmax(1) > 0}.get(voxels)
    if chosen is not None:
        probs, labels = probs[chosen], labels[chosen]
    errors = []
    for k in range(probs.shape[1])[classes == "foreground" :]:
        p = probs[:, k]
        lost = (("no 0" in edges) & (p == 0)) | (("no 1" in edges) & (p == 1))
        bins = np.ceil(p * num_bins).clip(min=1).astype(int)[~lost] - 1
        sums = [np.bincount(bins, values[~lost], num_bins) for values in (np.ones(len(p)), p, labels == k)]
        count = sums[0]
        share = {"shares": count / len(p), "plain": (count > 0) / (count > 0).sum()}
        errors.append((_gaps(*sums) * share.get(mean, count / count.sum())).sum())
    return float(np.mean(errors))


def repairs(probs: np.ndarray, labels: np.ndarray, num_bins: int) -> list[tuple[Any, float]]:
    """The faults still in -> the error, those with the fewest first."""
    combinations = list(itertools.product(EDGE_FAULTS, MEAN_FAULTS, VOXEL_FAULTS))
    combinations.sort(key=lambda faults: sum(map(bool, sentences(faults))))
    return [(found, with_faults(probs, labels, num_bins, *found)) for found in combinations]


def sentences(faults: Any) -> tuple[str, str, str]:
    """What is wrong with edges, mean and voxels; "" for what is right."""
    edges, mean, kept = faults
    return EDGE_FAULTS[edges], MEAN_FAULTS[mean], VOXEL_FAULTS[kept]


def voxels_calls(random: np.random.Generator) -> Iterator[Call]:
    """The calls of task 2's second function, with probabilities of exactly 1 and 0, which err now and then."""
    probs, labels = forecasts(random, 900, 4)
    certain = np.arange(300) % 4
    probs[:300] = np.eye(4)[certain]
    labels[:300] = np.where(random.random(300) < 0.7, certain, random.integers(0, 4, 300))
    without = np.arange(300, 500) % 4
    probs[np.arange(300, 500), without] = 0
    probs /= probs.sum(1, keepdims=True)
    labels[300:500] = np.where(random.random(200) < 0.3, without, labels[300:500])
    order = random.permutation(900)
    probs, labels = probs[order], labels[order]
    tensors = torch.from_numpy(probs), torch.from_numpy(labels)
    right = torch.tensor(classwise_calibration_error(*tensors, 8), dtype=torch.float64)
    yield Call(VOXELS, "voxels", (probs, labels, 8), right)


def voxels_marks(answered: Answered) -> Iterator[Mark]:
    """The marks of task 2's second function: a point for each fault repaired."""
    ((call, answer),) = answered
    feedback, told = failed(answer), ("", "", "")
    if feedback is None and (misformed := _misformed(answer.value, call.expected)):
        feedback = Feedback(False, misformed)
    if feedback is None:
        # Closer than elsewhere: dozens of combinations have to be told apart.
        errors = repairs(*call.arguments)
        still_in = [faults for faults, error in errors if abs(float(answer.value) - error) < 1e-7]
        if still_in:
            told = sentences(still_in[0])
        else:
            feedback = Feedback(False, "No repair of some of the faults gives this result: a new fault came in.")
    praises = ("no probability is lost", "weighed by shares", "all voxels are counted")
    for place, wrong, praise in zip(("edges", "mean", "voxels"), told, praises, strict=True):
        shown = feedback or Feedback(not wrong, wrong or f"Yes: {praise}.")
        number = ("edges", "mean", "voxels").index(place) + 4
        yield Mark(f"2.{number} repair of {place}", int(shown.passed is True), 1, shown)


# 3. Which network is better?


class Cases(NamedTuple):
    """Figures of two networks, (cases,), and whose case each is."""

    a: np.ndarray
    b: np.ndarray
    patients: np.ndarray


def cases_of(
    random: np.random.Generator,
    effect: float,
    sizes: Sequence[int] = (2,) * 20,
    large: float = 0.0,
) -> Cases:
    """Cases in a random order. B minus A differs by patient, and hardly within one.

    Args:
        random: of the order, and of what the networks share.
        effect: the mean of A - B over the patients, in standard errors.
        sizes: cases of each patient.
        large: what is added to A - B of a patient with more than two cases.
    """
    patients = len(sizes)
    # Quantiles instead of draws: the interval is then known for every seed.
    spread = norm.ppf((np.arange(patients) + 0.5) / patients)
    spread = random.permutation(spread / spread.std())
    difference = 0.005 * (spread + effect / np.sqrt(patients))
    difference = difference + large * (np.array(sizes) > 2)
    of = np.repeat(np.arange(patients), sizes)
    level = 0.15 + 0.1 * random.random(patients)[random.permutation(patients)]
    noise = np.concatenate([0.0002 * (np.arange(n) - (n - 1) / 2) for n in sizes])
    a = level[of] + difference[of] / 2 + noise
    b = level[of] - difference[of] / 2 - noise
    order = random.permutation(len(of))
    names = np.array([f"patient{number:03d}" for number in random.permutation(200)[:patients]])
    return Cases(a[order], b[order], names[of[order]])


def mean_of_patients(values: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """(patients,): each patient's mean over its cases."""
    return np.array([values[patients == name].mean() for name in np.unique(patients)])


def right_interval(cases: Cases) -> np.ndarray:
    """The interval asked for, both ends."""
    return _interval(mean_of_patients(cases.a - cases.b, cases.patients))


def _interval(values: np.ndarray, statistic: Callable | None = None) -> np.ndarray:
    return np.array(bootstrap_interval(values, statistic, OUR_RESAMPLES, seed=1))


def wrong_intervals(cases: Cases) -> list[Mistake]:
    """Known wrong intervals."""
    a, b, patients = cases
    difference = mean_of_patients(a - b, patients)
    of_a, of_b = (mean_of_patients(values, patients) for values in (a, b))
    far = np.hypot(*(np.diff(_interval(values))[0] / 2 for values in (of_a, of_b)))
    names = np.unique(patients)
    counts = np.array([(patients == name).sum() for name in names])
    sums = np.stack([difference * counts, counts], 1)
    right = _interval(difference)
    thoughts = [
        ("The sign is turned: A - B is asked for.", -right[::-1], 0.5),
        (
            "Cases are drawn as if they were independent. ED and ES of a patient are alike: "
            "draw patients, each with all its cases, which come in any order.",
            _interval(a - b),
            0.5,
        ),
        (
            "A and B are drawn apart. Both networks saw the same patients: take the difference of each patient first.",
            difference.mean() + far * np.array([-1, 1]),
            0.5,
        ),
        (
            "Patients with more cases count more: average each patient's cases first.",
            _interval(sums, lambda drawn: drawn[:, 0].sum() / drawn[:, 1].sum()),
            0.5,
        ),
        (
            "This is how far patients lie apart, not how far their mean may lie off.",
            np.percentile(difference, [2.5, 97.5]),
            0,
        ),
        (
            "This is a 90 % interval: 95 % leave 2.5 % at each end.",
            right.mean() + np.diff(right)[0] / 2 * np.array([-1, 1]) * 1.645 / 1.96,
            0.5,
        ),
    ]
    return [Mistake(thought, torch.from_numpy(ends), keeps) for thought, ends, keeps in thoughts]


def interval_calls(random: np.random.Generator) -> Iterator[Call]:
    """The calls of task 3's first function."""
    for what, sizes, large in (
        ("two cases each", (2,) * 20, 0.0),
        ("cases of different number", (2,) * 16 + (10,) * 4, 0.01),
    ):
        cases = cases_of(random, -1.0, sizes, large)
        arguments = (cases.a, cases.b, cases.patients.tolist(), RESAMPLES, 3)
        yield Call(INTERVAL, what, arguments, torch.from_numpy(right_interval(cases)))


def interval_marks(answered: Answered) -> Iterator[Mark]:
    """The marks of task 3's first function."""
    (equal, of_equal), (unequal, of_unequal) = answered
    verdict = judged_interval(of_equal, equal, "Yes: patients are drawn, with all their cases and both networks.")
    yield Mark("3.1 interval", round(2 * verdict.share), 2, verdict.feedback)
    verdict = judged_interval(of_unequal, unequal, "Yes: each patient counts the same.")
    yield Mark("3.2 unequal patients", int(verdict.share == 1), 1, verdict.feedback)


def judged_interval(answer: Answer, call: Call, praise: str) -> Verdict:
    """Compare an interval with the right one, then with the known wrong ones."""
    if (nothing := failed(answer)) is not None:
        return Verdict(nothing, 0)
    if misformed := _misformed(answer.value, call.expected):
        return Verdict(Feedback(False, f"{misformed} Return the lower and the upper end."), 0)
    if not answer.value[0] <= answer.value[1]:
        return Verdict(Feedback(False, "The lower end comes first, and both are numbers."), 0)

    def near(ends: torch.Tensor) -> bool:
        return float((answer.value - ends).abs().max()) <= SLACK * float(ends[1] - ends[0]) / 2

    if near(call.expected):
        return Verdict(Feedback(True, praise), 1)
    a, b, patients = call.arguments[:3]
    for mistake in wrong_intervals(Cases(a, b, np.array(patients))):
        if near(mistake.value):
            return Verdict(Feedback(False, mistake.thought), mistake.keeps, mistake)
    ends, right = ("[" + ", ".join(f"{end:.4f}" for end in x) + "]" for x in (answer.value, call.expected))
    told = f"{ends} instead of {right}: one mean difference a patient, draw patients, take the 2.5 % and 97.5 % points."
    return Verdict(Feedback(False, told), 0)


#: What is particular about the cases -> effect in standard errors, what is better, the answer.
DECISIONS = {
    "A below B": (-4.0, "low", "A"),
    "A above B, high is good": (4.0, "high", "A"),
    "A above B": (4.0, "low", "B"),
    "no difference": (-0.3, "low", "undecided"),
    "a difference of cases only": (-1.6, "low", "undecided"),
}


def decide_calls(random: np.random.Generator) -> Iterator[Call]:
    """The calls of task 3's second function."""
    for what, (effect, better, right) in DECISIONS.items():
        cases = cases_of(random, effect)
        yield Call(DECIDE, what, (cases.a, cases.b, cases.patients.tolist(), better), right)


def decide_marks(answered: Answered) -> Iterator[Mark]:
    """The mark of task 3's second function: all decisions have to be right."""
    feedback = next((f for _, answer in answered if (f := failed(answer)) is not None), None)
    if feedback is None:
        given = {call.what: answer.value for call, answer in answered}
        right = {call.what: call.expected for call, _ in answered}
        told = wrong_thought(given, right)
        feedback = Feedback(not told, told or "Yes: 0 outside the interval decides, and only that.")
    yield Mark("3.3 decision", int(feedback.passed is True), 1, feedback)


def wrong_thought(given: Mapping[str, Any], right: Mapping[str, str]) -> str:
    """What the decisions show; "" if all are right."""
    strange = [value for value in given.values() if value not in ("A", "B", "undecided")]
    sure = [what for what in right if right[what] != "undecided"]
    other = {"A": "B", "B": "A"}
    if strange:
        return f"It returns {strange[0]!r}; 'A', 'B' or 'undecided' is asked for."
    if given == right:
        return ""
    if "undecided" not in given.values() and given["no difference"] != "undecided":
        clear = all(given[what] == right[what] for what in sure)
        return "The means alone decide here: chance never gets a say. Ask whether 0 lies in the interval." + (
            "" if clear else " And mind what is better."
        )
    if all(given[what] == "undecided" for what in sure):
        return (
            "Nothing is decided, not even a clear case: are A and B compared unpaired, or 0 "
            "looked for at the wrong place?"
        )
    if all(given[what] == other.get(right[what]) for what in sure):
        return "The winner is turned round: with 'low' the smaller figure is the better one."
    if given["A above B, high is good"] == "B" and given["A below B"] == "A":
        return "`better` is not looked at: with 'high' (DSC) the larger figure wins."
    if all(given[what] == right[what] for what in right if what != "a difference of cases only"):
        return "A difference that only holds if ED and ES were independent is taken for one: draw patients."
    wrong = next(what for what in right if given[what] != right[what])
    return f"With {wrong}: {given[wrong]!r} instead of {right[wrong]!r}."


#: Function -> its number among the seeds and its calls. Task 1 makes those of two functions.
_CALLS = (soft_margin_calls, sums_calls, voxels_calls, interval_calls, decide_calls)


def questions(seed: int) -> list[Call]:
    """All calls, in the order of the tasks."""
    return [call for number, calls in enumerate(_CALLS) for call in calls(np.random.default_rng([seed, number]))]


def marks(calls: Sequence[Call], answers: Sequence[Answer]) -> list[Mark]:
    """The marks of all items.

    Args:
        calls: of :func:`questions`.
        answers: one for each call.
    """
    of: dict[str, list[tuple[Call, Answer]]] = {}
    for call, answer in zip(calls, answers, strict=True):
        of.setdefault(call.function, []).append((call, answer))
    return [
        *soft_margin_marks(of),
        *sums_marks(of[SUMS]),
        *voxels_marks(of[VOXELS]),
        *interval_marks(of[INTERVAL]),
        *decide_marks(of[DECIDE]),
    ]
