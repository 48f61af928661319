"""Is a difference more than chance? Intervals and paired tests over subjects, and ranks.

A subject (patient) is the unit everywhere: its cases are alike, and its voxels even more so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata, wilcoxon

__all__ = [
    "bootstrap_interval",
    "bootstrap_samples",
    "conformal_quantile",
    "holm",
    "paired_p_values",
    "rank",
    "risk_coverage",
]

#: With fewer subjects an interval is told to be rough, and a test has no p-value.
FEW_SUBJECTS, TOO_FEW_TO_TEST = 10, 6


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Any, Any]:
    """The interval of a statistic over subjects: percentiles of it over sets of subjects drawn with replacement.

    Args:
        values: (subjects, ...): what is known of each subject, such as its mean DSC, or its confidence bins, which the
            statistic then pools.
        statistic: (subjects, ...) -> a number or an array; None takes the mean over the subjects.
        resamples: how many sets are drawn, >= 1.
        level: share of the sets within the interval, in (0, 1).
        seed: of the draws.

    Returns:
        Its lower and its upper end: floats, or arrays of the statistic's shape. NaN of single sets is left out.

    Raises:
        ValueError: no subject; an option out of range.

    Warns:
        UserWarning: fewer than ten subjects.

    Example:
        >>> dsc = np.linspace(0.80, 0.90, 11)
        >>> [round(float(end), 3) for end in bootstrap_interval(dsc)]
        [0.831, 0.868]

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a number between 0 and 1")
    found = bootstrap_samples(values, statistic, resamples, seed)
    if len(values) < FEW_SUBJECTS:
        warnings.warn(f"an interval over {len(values)} subjects is rough; ten or more are wanted", stacklevel=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a place that is NaN in every set
        low, high = np.nanpercentile(found, [50 - 50 * level, 50 + 50 * level], axis=0)
    return (low, high) if np.ndim(low) else (float(low), float(high))


def bootstrap_samples(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], Any] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """A statistic of many sets of as many subjects, drawn from those at hand with replacement.

    Args:
        values: as for :func:`bootstrap_interval`, and so are statistic, resamples and seed.
        statistic: (subjects, ...) -> a number or an array; None takes the mean over the subjects.
        resamples: how many sets are drawn, >= 1.
        seed: of the draws.

    Returns:
        (resamples, ...), float64.

    Raises:
        ValueError: no subject; no set.

    Example:
        >>> bootstrap_samples(np.array([0.8, 0.9]), resamples=3)
        array([0.9 , 0.85, 0.8 ])
    """
    values = np.asarray(values)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"values: got shape {values.shape}, expected (subjects, ...) with at least one subject")
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, expected at least 1")
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    found = [np.mean(values[chosen], axis=0) if statistic is None else statistic(values[chosen]) for chosen in drawn]
    return np.asarray(found, dtype=float)


def paired_p_values(differences: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Wilcoxon's signed-rank test of each row of paired differences, two-sided, with Holm's correction for their
    number.

    Args:
        differences: name -> the differences of the same subjects, one a subject.

    Returns:
        Name -> corrected p; 1 where no subject differs, since there is nothing to rank; NaN with fewer than six
        subjects, of which no result could be called significant.

    Example:
        >>> shifted = np.arange(1.0, 13.0)
        >>> paired_p_values({"shifted": shifted, "same": np.zeros(12)})
        {'shifted': 0.0009765625, 'same': 1.0}

    References:
        Wilcoxon, Biometrics Bulletin 1945; Holm, Scandinavian Journal of Statistics 1979.
    """
    rows = {name: np.asarray(row) for name, row in differences.items()}
    if any(len(row) < TOO_FEW_TO_TEST for row in rows.values()):
        return dict.fromkeys(rows, float("nan"))
    p = [float(np.asarray(wilcoxon(row)[1])) if np.any(row) else 1.0 for row in rows.values()]
    return dict(zip(rows, holm(p), strict=True))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest p times n, the next times n - 1, ..., never falling, at most 1.

    Example:
        >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p)[order]))
    return corrected.tolist()


def rank(values: Sequence[float], better: Literal["high", "low"]) -> list[float]:
    """Ranks, 1 the best; equal values share the mean of their places.

    Args:
        values: one for each method.
        better: which of them is the best.

    Example:
        >>> rank([0.8, 0.9, 0.8], better="high")
        [2.5, 1.0, 2.5]
    """
    signed = np.asarray(values, dtype=float)
    return rankdata(-signed if better == "high" else signed).tolist()


def conformal_quantile(errors: Sequence[float] | np.ndarray, level: float = 0.95) -> float:
    """How far a prediction of a further case may lie off with this probability, from the errors of calibration cases.

    The further case and the calibration cases have to be alike (exchangeable); nothing else is supposed.

    Args:
        errors: absolute errors, one a case, of cases that nothing was fitted on.
        level: in (0, 1).

    Returns:
        The k-th smallest error, k = ceil((n + 1) level); infinite where n is too small for the level.

    Raises:
        ValueError: a level out of range; a NaN.

    Example:
        >>> conformal_quantile(range(1, 21), level=0.9)
        19.0
        >>> conformal_quantile(range(1, 11))
        inf

    References:
        Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Lei et al., JASA 2018.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a number between 0 and 1")
    sorted_errors = np.sort(np.asarray(errors, dtype=float))
    if np.isnan(sorted_errors).any():
        raise ValueError("errors: got NaN, expected numbers")
    k = int(np.ceil((len(sorted_errors) + 1) * level - 1e-9))
    return float(sorted_errors[k - 1]) if k <= len(sorted_errors) else float("inf")


def risk_coverage(risks: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Mean risk of the n cases of the highest score, for n = 1, 2, ...: what is left when the others go to a human.

    Args:
        risks: of the cases, such as 1 - DSC.
        scores: of the cases, higher where the network trusts itself more; equal ones share their mean risk.

    Returns:
        (cases,): entry n - 1 is over n cases. Their mean is the area under the risk-coverage curve.

    Raises:
        ValueError: lengths that differ.

    Example:
        >>> risk_coverage([0.2, 0.1, 0.3], scores=[0.8, 0.9, 0.1]).round(2)
        array([0.1 , 0.15, 0.2 ])

    References:
        El-Yaniv and Wiener, JMLR 2010; Geifman et al., ICLR 2019.
    """
    values, keys = np.asarray(risks, dtype=float), np.asarray(scores, dtype=float)
    if values.shape != keys.shape or values.ndim != 1:
        raise ValueError(f"scores: got shape {keys.shape}, expected one score for each of {values.shape} risks")
    _, block, count = np.unique(-keys, return_inverse=True, return_counts=True)
    shared = np.bincount(block, values, len(count)) / count if len(values) else values
    ordered = np.repeat(shared, count)
    return np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
