r"""The theory in small pure functions: logit distances, penalties with their closed-form gradients, calibration maps.

All functions take logits with the classes on dimension ``dim`` and work for any number of other dimensions.
Notation: ``s = softmax(l)``, ``u = (1/K, ..., 1/K)``, ``d_k = max_i l_i - l_k``.

References:
    Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, and Liu et al., CVPR 2022, "The Devil is in the
    Margin", for the view of losses as constraints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from mbls.losses import _check_scores, _check_tensor, _not_negative, _raise_if_logits_not_finite, _whole

__all__ = [
    "PENALTIES",
    "Penalty",
    "calibration_map",
    "confidence_at_margin",
    "kl_softmax_to_uniform",
    "kl_softmax_to_uniform_gradient",
    "kl_uniform_to_softmax",
    "kl_uniform_to_softmax_gradient",
    "linear_penalty",
    "linear_penalty_gradient",
    "logit_distances",
    "margin_calibration_map",
    "margin_penalty",
    "margin_penalty_gradient",
    "mean_loser_distance",
]


def _check_logits(logits: torch.Tensor, dim: int) -> None:
    _check_tensor("logits", logits)
    if not logits.is_floating_point():
        raise ValueError(f"logits: got {logits.dtype}, expected floating point")
    if not -logits.dim() <= dim < logits.dim():
        raise ValueError(f"dim: got {dim}, expected a dimension of logits of shape {tuple(logits.shape)}")
    if logits.shape[dim] < 2:
        raise ValueError(
            f"logits: got {logits.shape[dim]} class in dimension {dim} of {tuple(logits.shape)}, expected at least 2"
        )
    _raise_if_logits_not_finite(logits)


def logit_distances(logits: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Distances of the logits to the largest one, ``d_k = max_i l_i - l_k >= 0``.

    Args:
        logits: floating point, finite.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the same shape.

    Raises:
        ValueError: logits that are not finite floating point with at least 2 classes; a dim that they do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import logit_distances
        >>> logit_distances(torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([[0., 1., 2.]])

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, the vector d(l).
    """
    _check_logits(logits, dim)
    return logits.amax(dim=dim, keepdim=True) - logits


def mean_loser_distance(logits: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Mean logit distance of the K - 1 losing classes, ``sum_k d_k / (K - 1)``.

    The winner's own distance is always 0 and says nothing; a margin is compared with the losers. Of several classes
    that share the maximum one is the winner, the others are losers at distance 0.

    Args:
        logits: floating point, finite.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the other dimensions, (B, *spatial) for (B, K, *spatial).

    Raises:
        ValueError: logits that are not finite floating point with at least 2 classes; a dim that they do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import mean_loser_distance
        >>> mean_loser_distance(torch.tensor([[4.0, 1.0, 0.0]]))
        tensor([3.5000])
    """
    return logit_distances(logits, dim).sum(dim) / (logits.shape[dim] - 1)


def kl_uniform_to_softmax(logits: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """``KL(u || s) = logsumexp(l) - mean(l) - log K``: the penalty hidden in label smoothing.

    It lies between ``mean_k d_k - log K`` and ``mean_k d_k``, so it acts like a linear penalty for d = 0.

    Args:
        logits: floating point, finite.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the other dimensions, (B, *spatial) for (B, K, *spatial).

    Raises:
        ValueError: logits that are not finite floating point with at least 2 classes; a dim that they do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import kl_uniform_to_softmax
        >>> kl_uniform_to_softmax(torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([0.3090])

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, on label smoothing.
    """
    _check_logits(logits, dim)
    return logits.logsumexp(dim) - logits.mean(dim) - math.log(logits.shape[dim])


def kl_uniform_to_softmax_gradient(logits: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Gradient of :func:`kl_uniform_to_softmax` in the logits: ``s - u``.

    Args:
        logits: floating point, finite.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the same shape.

    Raises:
        ValueError: logits that are not finite floating point with at least 2 classes; a dim that they do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import kl_uniform_to_softmax_gradient
        >>> kl_uniform_to_softmax_gradient(torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([[ 0.3319, -0.0886, -0.2433]])
    """
    _check_logits(logits, dim)
    return logits.softmax(dim) - 1 / logits.shape[dim]


def kl_softmax_to_uniform(logits: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """``KL(s || u) = log K - H(s)``: the penalty of ECP and, as a bound, of the focal loss.

    It is at most ``mean_k d_k``.

    Args:
        logits: floating point, finite.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the other dimensions, (B, *spatial) for (B, K, *spatial).

    Raises:
        ValueError: logits that are not finite floating point with at least 2 classes; a dim that they do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import kl_softmax_to_uniform
        >>> kl_softmax_to_uniform(torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([0.2662])

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, on ECP and the focal loss.
    """
    _check_logits(logits, dim)
    log_probs = logits.log_softmax(dim)
    return math.log(logits.shape[dim]) + (log_probs.exp() * log_probs).sum(dim)


def kl_softmax_to_uniform_gradient(logits: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Gradient of :func:`kl_softmax_to_uniform` in the logits: ``s_k (log s_k + H(s))``.

    Args:
        logits: floating point, finite.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the same shape.

    Raises:
        ValueError: logits that are not finite floating point with at least 2 classes; a dim that they do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import kl_softmax_to_uniform_gradient
        >>> kl_softmax_to_uniform_gradient(torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([[ 0.2826, -0.1408, -0.1418]])
    """
    _check_logits(logits, dim)
    log_probs = logits.log_softmax(dim)
    probs = log_probs.exp()
    return probs * (log_probs - (probs * log_probs).sum(dim, keepdim=True))


def linear_penalty(logits: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """``mean_k d_k``: the linear penalty for the equality d = 0 (MbLS with margin 0).

    Args:
        logits: floating point, finite.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the other dimensions, (B, *spatial) for (B, K, *spatial).

    Raises:
        ValueError: logits that are not finite floating point with at least 2 classes; a dim that they do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import linear_penalty
        >>> linear_penalty(torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([1.])

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, the linear penalty for d(l) = 0.
    """
    return margin_penalty(logits, 0.0, dim)


def linear_penalty_gradient(logits: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Gradient of :func:`linear_penalty`: ``-1/K``, and ``(K-1)/K`` at the arg-max, however small the distances are.

    Args:
        logits: floating point, finite.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the same shape.

    Raises:
        ValueError: logits that are not finite floating point with at least 2 classes; a dim that they do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import linear_penalty_gradient
        >>> linear_penalty_gradient(torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([[ 0.6667, -0.3333, -0.3333]])
    """
    return _arg_max_gradient(logits, torch.ones_like(logits, dtype=torch.bool), dim)


def margin_penalty(logits: torch.Tensor, margin: float, dim: int = 1) -> torch.Tensor:
    """``mean_k max(0, d_k - m)``: the hinge of MbLS for the inequality d <= m.

    Args:
        logits: floating point, finite.
        margin: m >= 0, in logits.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the other dimensions, (B, *spatial) for (B, K, *spatial).

    Raises:
        ValueError: negative margin; logits that are not finite floating point with at least 2 classes; a dim that they
            do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import margin_penalty
        >>> margin_penalty(torch.tensor([[2.0, 1.0, 0.0]]), margin=1.5)
        tensor([0.1667])

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, the penalty of MbLS.
    """
    return F.relu(logit_distances(logits, dim) - _not_negative("margin", margin)).mean(dim)


def margin_penalty_gradient(logits: torch.Tensor, margin: float, dim: int = 1) -> torch.Tensor:
    """Gradient of :func:`margin_penalty`: ``-[d_k > m] / K``, plus the number of violations over K at the arg-max.

    Args:
        logits: floating point, finite.
        margin: m >= 0, in logits.
        dim: dimension of the classes.

    Shape:
        logits with K classes on dimension ``dim``; returns the same shape.

    Raises:
        ValueError: negative margin; logits that are not finite floating point with at least 2 classes; a dim that they
            do not have.

    Example:
        >>> import torch
        >>> from mbls.constraints import margin_penalty_gradient
        >>> margin_penalty_gradient(torch.tensor([[2.0, 1.0, 0.0]]), margin=1.5)
        tensor([[ 0.3333,  0.0000, -0.3333]])
    """
    return _arg_max_gradient(logits, logit_distances(logits, dim) > _not_negative("margin", margin), dim)


def _arg_max_gradient(logits: torch.Tensor, violated: torch.Tensor, dim: int) -> torch.Tensor:
    _check_logits(logits, dim)
    num_classes = logits.shape[dim]
    violated = violated.to(logits.dtype)
    at_max = (logits == logits.amax(dim, keepdim=True)).to(logits.dtype)
    at_max = at_max / at_max.sum(dim, keepdim=True)  # tied classes share evenly, as in torch.amax
    return (at_max * violated.sum(dim, keepdim=True) - violated) / num_classes


def confidence_at_margin(margin: float, num_classes: int) -> float:
    """The winning probability where every other logit lies exactly m below: ``1 / (1 + (K-1) exp(-m))``.

    No prediction with d <= m is more confident.

    Args:
        margin: m >= 0, in logits.
        num_classes: K >= 2.

    Raises:
        ValueError: negative margin; fewer than 2 classes.

    Example:
        >>> from mbls.constraints import confidence_at_margin
        >>> round(confidence_at_margin(margin=5.0, num_classes=4), 3)
        0.98
    """
    margin, losers = _not_negative("margin", margin), _whole("num_classes", num_classes, 2) - 1
    return 1 / (1 + losers * math.exp(-margin))


class Penalty(NamedTuple):
    """A penalty of the course and its gradient, as functions of ``(logits, dim)``.

    Attributes:
        label: for figures.
        value: the penalty.
        gradient: its derivative in the logits.
    """

    label: str
    value: Callable[..., torch.Tensor]
    gradient: Callable[..., torch.Tensor]


def _hinge(margin: float) -> Penalty:
    return Penalty(
        f"hinge, m = {margin:g}",
        lambda logits, dim=1: margin_penalty(logits, margin, dim),
        lambda logits, dim=1: margin_penalty_gradient(logits, margin, dim),
    )


#: The penalties side by side, for figures and tests. ``hinge`` is MbLS's at the margin used on ACDC.
PENALTIES: dict[str, Penalty] = {
    "ls": Penalty("KL(u || s), in LS", kl_uniform_to_softmax, kl_uniform_to_softmax_gradient),
    "ecp": Penalty("KL(s || u), in ECP and FL", kl_softmax_to_uniform, kl_softmax_to_uniform_gradient),
    "linear": Penalty("mean of d, for d = 0", linear_penalty, linear_penalty_gradient),
    "hinge": _hinge(5.0),
}


def calibration_map(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], probs: torch.Tensor, iterations: int = 400
) -> torch.Tensor:
    """What a loss makes of a voxel whose labels are drawn from q: the minimiser s* of its expected value.

    It is found numerically, so that any loss will do.

    Args:
        loss: maps logits (B, K) and labels (B,) to values (B,), such as a loss of mbls.losses with
            ``reduction="none"``.
        probs: label distributions q, (N, K), rows summing to 1.
        iterations: steps of Rprop; the default reaches about 1e-6 for the losses of this package.

    Returns:
        s*, (N, K), float64. A loss without a finite minimiser (CE where some q_k is 0) is followed as far as the steps
        reach. A hinge strong enough to tie the winner with another class has kinks that no coordinate follows, and may
        be left up to 0.1 short: see :func:`margin_calibration_map`.

    Raises:
        ValueError: probs not (N, K) with rows on the simplex; a loss that does not return a value for each row.

    Example:
        >>> import torch
        >>> from mbls.constraints import calibration_map
        >>> from mbls.losses import LabelSmoothingLoss
        >>> calibration_map(LabelSmoothingLoss(0.1, reduction="none"), torch.tensor([[0.8, 0.2]])).round(decimals=3)
        tensor([[0.7700, 0.2300]], dtype=torch.float64)

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, for the constraints; the map is this package's.
    """
    probs = _checked_distributions(probs)
    n, num_classes = probs.shape
    labels = torch.arange(num_classes).repeat(n)
    # The winner's logit is pinned at 0. That fixes the free constant of the softmax, and every kink of a hinge on the
    # distances then lies along one coordinate, where a method that adapts a step per coordinate (Rprop) converges;
    # plain gradient steps would rattle on it.
    pinned = F.one_hot(probs.argmax(1), num_classes).bool()
    free = torch.zeros(n, num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Rprop([free], lr=0.1, step_sizes=(1e-12, 1.0))
    for _ in range(_whole("iterations", iterations, 0)):
        optimizer.zero_grad()
        logits = free.masked_fill(pinned, 0.0)
        values = loss(logits.repeat_interleave(num_classes, dim=0), labels)
        if values.shape != (n * num_classes,):
            raise ValueError(
                f'loss: got values of shape {tuple(values.shape)}, expected one per row; use reduction="none"'
            )
        (values.view(n, num_classes) * probs).sum().backward()
        optimizer.step()
    return free.detach().masked_fill(pinned, 0.0).softmax(1)


def margin_calibration_map(probs: torch.Tensor, margin: float, alpha: float) -> torch.Tensor:
    """:func:`calibration_map` of MbLS, solved by hand up to one number: exact, and fast enough for a slider.

    Where the gradient of the expected loss vanishes, a losing class is in one of three states: inside the margin and
    untouched (``s_k = q_k``); held exactly on the margin (``s_k = t exp(-m)``, t the winning probability); or beyond
    it, where the data pull as hard as the penalty can push (``s_k = q_k + alpha / K``). So s_k is
    ``clip(t exp(-m), q_k, q_k + alpha / K)``, at most t, and t is the number that makes them sum to 1. The sum grows
    with t, so bisection finds it.

    Args:
        probs: label distributions q, (N, K), rows summing to 1.
        margin: of :class:`mbls.losses.MbLSLoss` with ``norm="l1"``, >= 0.
        alpha: of the same loss, >= 0.

    Returns:
        s*, (N, K), float64. With alpha = 0 it is q.

    Raises:
        ValueError: probs not (N, K) with rows on the simplex; negative margin or alpha.

    Example:
        >>> import torch
        >>> from mbls.constraints import margin_calibration_map
        >>> probs = torch.tensor([[0.6, 0.4], [0.99, 0.01]])
        >>> margin_calibration_map(probs, margin=3.0, alpha=0.1).round(decimals=3)
        tensor([[0.6000, 0.4000],
                [0.9530, 0.0470]], dtype=torch.float64)

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, for the loss; the closed form is this
        package's.
    """
    probs = _checked_distributions(probs)
    margin, alpha = _not_negative("margin", margin), _not_negative("alpha", alpha)
    most = probs + alpha / probs.shape[1]

    def distribution(top: torch.Tensor) -> torch.Tensor:
        return torch.minimum(top, (top * math.exp(-margin)).clamp(min=probs, max=most))

    low, high = torch.zeros(len(probs), 1, dtype=torch.float64), torch.ones(len(probs), 1, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        too_much = distribution(middle).sum(1, keepdim=True) > 1
        low, high = torch.where(too_much, low, middle), torch.where(too_much, middle, high)
    return distribution(high)


def _checked_distributions(probs: torch.Tensor) -> torch.Tensor:
    """Rows on the simplex as float64, or a ValueError."""
    _check_scores("probs", probs)
    if probs.dim() != 2:
        raise ValueError(f"probs: got shape {tuple(probs.shape)}, expected (N, K), one distribution a row")
    probs = probs.double()
    if not ((probs >= 0).all() and ((probs.sum(1) - 1).abs() < 1e-4).all()):
        raise ValueError("probs: got rows off the simplex, expected non-negative entries that sum to 1")
    return probs
