"""The assignment: README.md beside this file says what is asked.

Put code in place of each ``raise NotImplementedError``, keep the names and the arguments,
and try ``python -m doctest submission.py``: it says nothing when all examples hold.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

# 1. A margin with a soft start


def soft_margin_penalty(logits: torch.Tensor, margin: float, width: float) -> torch.Tensor:
    """The mean over the classes of h(d_k - m), where d_k = max_i l_i - l_k are the logit distances.

    h(x) is 0 up to x = 0, x² / (2 w) up to x = w, and x - w / 2 beyond. ``mbls.constraints.logit_distances`` has d.

    Args:
        logits: (B, K, *spatial), K >= 2, with any number of spatial dimensions, or none.
        margin: m >= 0.
        width: w > 0.

    Returns:
        (B, *spatial): a value for each voxel.

    Example:
        >>> voxel = torch.tensor([[6.0, 5.0, 3.0, 0.0]])  # distances 0, 1, 3, 6
        >>> soft_margin_penalty(voxel, margin=2.0, width=2.0)  # (0 + 0 + 1/4 + 3) / 4
        tensor([0.8125])
    """
    raise NotImplementedError


def soft_margin_gradient(logits: torch.Tensor, margin: float, width: float) -> torch.Tensor:
    """The gradient of each voxel's penalty in its own logits, worked out by hand.

    Where several logits are the largest they share their part evenly. No autograd here:
    it is switched off while this function is graded.

    Args:
        logits: as for soft_margin_penalty, and so are margin and width.

    Returns:
        Like logits.

    Example:
        >>> voxel = torch.tensor([[6.0, 5.0, 3.0, 0.0]])
        >>> soft_margin_gradient(voxel, margin=2.0, width=2.0)
        tensor([[ 0.3750,  0.0000, -0.1250, -0.2500]])
    """
    raise NotImplementedError


# 2. The class-wise calibration error


def classwise_error(
    count: np.ndarray,
    prob_sum: np.ndarray,
    label_sum: np.ndarray,
    weights: np.ndarray | None = None,
) -> float:
    """The class-wise calibration error from sums over bins of each class's probability.

    For one class it is the sum over the bins of: the bin's share of the voxels, times
    |mean probability - share of voxels with this label|.

    Args:
        count: (K, num_bins): voxels whose probability of class k lies in the bin. May be 0.
        prob_sum: (K, num_bins): the sum of these probabilities.
        label_sum: (K, num_bins): how many of these voxels have the label k.
        weights: (K,): of the classes, >= 0, in any unit; None weighs them equally.

    Returns:
        The mean over the classes, weighted by ``weights``.

    Example:
        >>> count = np.array([[8, 2], [2, 8]])
        >>> prob_sum, label_sum = np.array([[2, 1.5], [0.5, 6]]), np.array([[3, 2], [0, 5]])
        >>> print(f"{classwise_error(count, prob_sum, label_sum):.4f}")  # (1.5/10 + 1.5/10) / 2
        0.1500
    """
    raise NotImplementedError


def classwise_error_of_voxels(probs: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """The same error from all voxels, over all K classes. Three faults: repair them.

    In which of two neighbouring bins a probability on their common edge is counted is
    free, but each voxel has to be counted in one of them.

    Args:
        probs: (N, K): each voxel's probabilities.
        labels: (N,): integers in [0, K); 0 is the background.
        num_bins: bins of equal width on [0, 1].
    """
    foreground = labels > 0
    probs, labels = probs[foreground], labels[foreground]
    edges = np.linspace(0, 1, num_bins + 1)
    errors = []
    for k in range(probs.shape[1]):
        p, is_k = probs[:, k], labels == k
        gaps = []
        for low, high in itertools.pairwise(edges):
            inside = (p >= low) & (p < high)
            if inside.any():
                gaps.append(abs(p[inside].mean() - is_k[inside].mean()))
        errors.append(np.mean(gaps))
    return float(np.mean(errors))


# 3. Which network is better?


def interval(
    figures_a: np.ndarray,
    figures_b: np.ndarray,
    patients: list[str],
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean difference A - B, by paired bootstrap.

    A patient is what is drawn: its cases (ED and ES, say) stay together. Each patient
    counts the same, however many cases it has.

    Args:
        figures_a: (cases,): a figure of network A for each case, such as its ECE.
        figures_b: (cases,): the same of network B, for the same cases in the same order.
        patients: whose case it is, one name a case, in any order.
        resamples: how many sets of patients are drawn.
        seed: of the draws.

    Returns:
        The lower and the upper end.

    Example:
        >>> a, b = np.array([0.10, 0.15, 0.30]), np.array([0.12, 0.17, 0.32])
        >>> low, high = interval(a, b, ["eva", "tom", "eva"])
        >>> print(f"{low:.4f} to {high:.4f}")
        -0.0200 to -0.0200
    """
    raise NotImplementedError


def decide(figures_a: np.ndarray, figures_b: np.ndarray, patients: list[str], better: str) -> str:
    """Which network is better, if 95 % are enough to say so.

    Args:
        figures_a: as for interval, and so are figures_b and patients.
        better: "low" if a low figure is good (ECE), "high" if a high one is (DSC).

    Returns:
        "A", "B" or "undecided".

    Example:
        >>> a, b = np.array([0.10, 0.15, 0.30]), np.array([0.12, 0.17, 0.32])
        >>> decide(a, b, ["eva", "tom", "eva"], better="low")
        'A'
    """
    raise NotImplementedError


# 4. Which would you use, and why? At most 200 words.

ANSWER = """
"""
