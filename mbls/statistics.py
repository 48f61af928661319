"""Is a difference more than chance? Paired tests over subjects, corrected for how many are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import wilcoxon

__all__ = ["holm", "paired_p_values"]


def paired_p_values(differences: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Wilcoxon's signed-rank test of each row of paired differences, two-sided, with Holm's correction for their
    number.

    Args:
        differences: name -> the differences of the same subjects, one a subject.

    Returns:
        Name -> corrected p; 1 where no subject differs, since there is nothing to rank.

    Example:
        >>> shifted = np.arange(1.0, 13.0)
        >>> paired_p_values({"shifted": shifted, "same": np.zeros(12)})
        {'shifted': 0.0009765625, 'same': 1.0}

    References:
        Wilcoxon, Biometrics Bulletin 1945; Holm, Scandinavian Journal of Statistics 1979.
    """
    p = [float(np.asarray(wilcoxon(row)[1])) if np.any(row) else 1.0 for row in map(np.asarray, differences.values())]
    return dict(zip(differences, holm(p), strict=True))


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
