r"""Calibration metrics that stay exact on volumes of real size, and segmentation scores by MONAI.

Shapes: probs ``(B, K, *spatial)``, floating point, the K values of a voxel summing to 1; target ``(B, *spatial)`` or
``(B, 1, *spatial)``, labels 0..K-1, integers or whole-numbered floats; mask like target, boolean, True where a voxel
counts. Without a mask all voxels count. ``(N, K)`` with ``(N,)`` works too. Figures are fractions in 0..1, NLL is in
nats.

Bins are right-closed, ``(lo, hi]``; a probability of exactly 0 falls in the first bin and one of exactly 1 in the last.
All sums are float64: float32 sums over 1e7 voxels are off by several percent. A device without float64 (Apple's MPS)
hands its tensors to the CPU.

Other libraries mean other things by the same words:

- torchmetrics' bins are left-closed, ``[lo, hi)``. The figures differ where probabilities lie on an edge.
- MONAI's CalibrationErrorMetric is class-wise throughout: its "expected", "average" and "maximum" are
  ``classwise("ece")``, ``classwise("ace")`` and ``classwise("mce")`` of one image, not :meth:`CalibrationBins.ece`,
  ``ace`` and ``mce``, which look at the winning class.
- ``asd`` is symmetric, the mean over both surfaces together: medpy calls it ``assd``, and its ``asd`` goes one way.
- The surface-distance package weights each surface element by its area; here, as in MONAI and medpy, each surface voxel
  counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from scipy.optimize import root_scalar

from mbls.losses import (
    _MASK_OUT,
    _check_scores,
    _check_tensor,
    _checked_labels,
    _checked_voxels,
    _choice,
    _not_negative,
    _number,
    _positive,
    _raise_if_label_outside,
    _where_float64_is,
    _whole,
)

__all__ = [
    "REGION_NAMES",
    "CalibrationBins",
    "Region",
    "Reliability",
    "adaptive_calibration_error",
    "average_over_volumes",
    "brier_decomposition",
    "brier_score",
    "classwise_calibration_error",
    "expected_calibration_error",
    "negative_log_likelihood",
    "region_mask",
    "segmentation_scores",
    "smooth_calibration_error",
]

#: A block has at most this many voxels and probabilities, so that its copies stay near the cache.
_BLOCK_VOXELS = 1 << 16
_BLOCK_VALUES = 1 << 19
#: Steps of confidence over which the smooth ECE keeps its residuals.
_SMOOTH_BINS = 8192


class Reliability(NamedTuple):
    """One reliability diagram. Confidence and accuracy are float64, NaN where a bin is empty.

    Attributes:
        edges: of the bins, (num_bins + 1,).
        count: voxels in each bin, (num_bins,), int64.
        confidence: mean predicted probability of these voxels, (num_bins,).
        accuracy: fraction of these voxels whose label is the predicted class, (num_bins,).
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


class CalibrationBins:
    """Equal-width confidence bins that are filled batch by batch and merged across volumes, processes or machines.

    Two tables are kept: one of the winning class (for ECE, ACE, MCE and the reliability diagram) and one of each
    class's own probability (for CECE and the other class-wise figures).

    Args:
        num_classes: K >= 2.
        num_bins: bins of equal width on [0, 1], >= 1.
        ignore_index: voxels with this label are not counted. None: all labels have to lie within 0..K-1.

    Shape:
        :meth:`update` takes probs (B, K, *spatial) or (N, K), target (B, *spatial) or (N,), and mask like target.

    Raises:
        ValueError: an option out of range; from :meth:`update` probs, target or mask not as the module docstring says;
            from the figures when no voxel has been counted.

    Example:
        >>> import torch
        >>> from mbls.metrics import CalibrationBins
        >>> bins = CalibrationBins(num_classes=2, ignore_index=255)
        >>> probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
        >>> bins.update(probs, torch.tensor([0, 1, 255]))
        CalibrationBins(num_classes=2, num_bins=15, ignore_index=255, voxels=2)
        >>> round(bins.ece(), 4)
        0.15

    References:
        Guo et al., ICML 2017 (ECE, MCE); Kull et al., NeurIPS 2019 (class-wise ECE); 15 bins as in Murugesan et al.,
        Medical Image Analysis 2023, arXiv 2209.09641.
    """

    _NAMES = ("count", "prob_sum", "hit_sum")

    def __init__(self, num_classes: int, num_bins: int = 15, ignore_index: int | None = None) -> None:
        self.num_classes = _whole("num_classes", num_classes, 2)
        self.num_bins = _checked_num_bins(num_bins)
        self.ignore_index = None if ignore_index is None else _whole("ignore_index", ignore_index)
        self.reset()

    def reset(self) -> CalibrationBins:
        """Forget all voxels. Returns itself."""
        # Counts, sums of probabilities and hits; row 0 is the winning class, rows 1..K the classes. Counts in float64
        # are exact up to 2^53 voxels.
        self._table = torch.zeros(3, self.num_classes + 1, self.num_bins, dtype=torch.float64)
        # Of all blocks counted on a GPU: see _limits. They are looked at when a figure is asked for.
        self._limits: torch.Tensor | None = None
        return self

    def update(self, probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> CalibrationBins:
        """Count the voxels of a batch.

        On a GPU nothing here waits for the device, unless labels are floats, and values out of range are reported when
        a figure is asked for.

        Args:
            probs: (B, K, *spatial), summing to 1 over the classes.
            target: (B, *spatial) or (B, 1, *spatial), labels.
            mask: like target, boolean, True where a voxel counts. A mask that selects none adds nothing.

        Returns:
            Itself.

        Raises:
            ValueError: as the class says.
        """
        return self._update(probs, target, mask, classwise=True)

    def _update(
        self, probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, classwise: bool
    ) -> CalibrationBins:
        probs, target, mask = _checked(probs, target, mask)
        if probs.shape[1] != self.num_classes:
            raise ValueError(f"probs: got {probs.shape[1]} classes, expected num_classes={self.num_classes}")
        # A table of its own, so that a block with bad values leaves the old one as it was.
        counter = _Counter(self.num_classes if classwise else 0, self.num_bins, probs.device)
        if probs.device.type == "cpu":
            for block_probs, label in _selected(probs, target, mask, self.ignore_index):
                counter.add(block_probs, label)
        else:
            self._count_without_waiting(counter, probs, target, mask)
        self._table = self._table.to(probs.device, copy=True)
        self._table[:, : counter.rows] += counter.table()
        return self

    def _count_without_waiting(
        self, counter: _Counter, probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
    ) -> None:
        """On a GPU selecting voxels, or looking at their values, would make the host wait for the device."""
        for block_probs, label, keep in _blocks(probs, target, mask, self.ignore_index):
            if keep is not None:
                block_probs = torch.where(keep, block_probs, 1 / self.num_classes)
                label = label.masked_fill(~keep, 0)
            limits = _limits(block_probs, label)
            self._limits = limits if self._limits is None else torch.maximum(self._limits.to(limits), limits)
            counter.add(block_probs, label.clamp(0, self.num_classes - 1), keep)

    def merge(self, other: CalibrationBins) -> CalibrationBins:
        """Add the counts of another set of bins.

        Args:
            other: bins of as many classes and bins.

        Returns:
            Itself.

        Raises:
            ValueError: another number of classes or bins.

        Example:
            >>> import torch
            >>> from mbls.metrics import CalibrationBins
            >>> probs, target = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1])
            >>> first, second = (CalibrationBins(num_classes=2).update(probs, target) for _ in range(2))
            >>> first.merge(second)
            CalibrationBins(num_classes=2, num_bins=15, voxels=4)
        """
        if (other.num_classes, other.num_bins) != (self.num_classes, self.num_bins):
            raise ValueError(
                f"other: got {other.num_classes} classes and {other.num_bins} bins, "
                f"expected {self.num_classes} and {self.num_bins}"
            )
        self._table = self._table + other._counted().to(self._table.device)
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Counts and sums, (K + 1, num_bins) float64 each (row 0: winning class); they add up across processes."""
        return {name: part.clone() for name, part in zip(self._NAMES, self._counted(), strict=True)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what :meth:`state_dict` gave.

        Args:
            state: of bins with as many classes and bins.

        Raises:
            ValueError: a part that is missing or of another shape.
        """
        expected = tuple(self._table.shape[1:])
        for name in self._NAMES:
            _check_tensor(f"state[{name!r}]", state.get(name, self._table[0]))
            if name not in state or state[name].shape != expected:
                got = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"state: got {got} for {name!r}, expected shape {expected}")
        self._table = torch.stack([state[name].double() for name in self._NAMES])
        self._limits = None

    @property
    def num_voxels(self) -> int:
        """Voxels counted so far."""
        return int(self._counted()[0, 0].sum())

    def __repr__(self) -> str:
        ignored = "" if self.ignore_index is None else f", ignore_index={self.ignore_index}"
        # Unlike num_voxels this does not look at the limits, and never raises.
        voxels = f"{float(self._table[0, 0].sum()):.0f}"
        return f"CalibrationBins(num_classes={self.num_classes}, num_bins={self.num_bins}{ignored}, voxels={voxels})"

    def _counted(self) -> torch.Tensor:
        """The table, once the values behind it are known to have been probabilities and labels."""
        if self._limits is not None:
            _raise_if_outside(self._limits, self.num_classes)
            self._limits = None
        return self._table

    def _gaps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """|mean probability - hit rate| and counts, (K + 1, num_bins) on the CPU; the gap of an empty bin is 0."""
        if self.num_voxels == 0:
            raise ValueError(
                "CalibrationBins: got no voxel (no update, or every voxel was masked or ignored), expected at least one"
            )
        count, prob_sum, hits = self._counted().cpu()
        return (prob_sum - hits).abs() / count.clamp(min=1), count

    def ece(self) -> float:
        """Expected calibration error: mean gap of the winning confidence, weighted by the voxels of a bin."""
        gap, count = self._gaps()
        return float((gap[0] * count[0]).sum() / count[0].sum())

    def cece(self) -> float:
        """Class-wise ECE: the ECE of each class's own probability, averaged over the classes."""
        gap, count = self._gaps()
        return float(_mean_gaps(gap[1:], count[1:]).mean())

    def ace(self) -> float:
        """Average calibration error: unweighted mean gap over the non-empty bins of the winning confidence."""
        gap, count = self._gaps()
        return float(gap[0][count[0] > 0].mean())

    def mce(self) -> float:
        """Maximum calibration error: largest gap over the non-empty bins of the winning confidence."""
        gap, _ = self._gaps()
        return float(gap[0].max())

    def classwise(self, name: Literal["ece", "ace", "mce"]) -> np.ndarray:
        """A figure of each class's own probability, whatever class wins.

        Args:
            name: "ece", the mean gap weighted by the voxels of a bin, which averages to :meth:`cece`; "ace", the
                unweighted mean gap over the non-empty bins; or "mce", the largest gap. MONAI's CalibrationErrorMetric
                calls them "expected", "average" and "maximum".

        Returns:
            (K,), float64.

        Raises:
            ValueError: another name; no voxel has been counted.

        Example:
            >>> import torch
            >>> from mbls.metrics import CalibrationBins
            >>> probs = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
            >>> CalibrationBins(num_classes=2).update(probs, torch.tensor([0, 1])).classwise("mce").round(4)
            array([0.2, 0.2])
        """
        _choice("name", name, Literal["ece", "ace", "mce"])
        gap, count = (part[1:] for part in self._gaps())
        if name == "ece":
            figures = _mean_gaps(gap, count)
        elif name == "ace":
            figures = gap.sum(1) / (count > 0).sum(1)
        else:
            figures = gap.amax(1)
        return figures.numpy()

    def brier_calibration(self) -> float:
        """The calibration part of the Brier score, which :func:`brier_decomposition` explains."""
        gap, count = (part[1:] for part in self._gaps())
        return float((gap.square() * count).sum() / count[0].sum())

    def reliability(self, class_index: int | None = None) -> Reliability:
        """The reliability diagram.

        Args:
            class_index: the class whose own probability is meant. None: the winning class.

        Raises:
            ValueError: class_index outside 0..K-1; no voxel has been counted.

        Example:
            >>> import torch
            >>> from mbls.metrics import CalibrationBins
            >>> bins = CalibrationBins(num_classes=2, num_bins=2)
            >>> diagram = bins.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])).reliability()
            >>> diagram.accuracy
            array([nan, 0.5])
        """
        row = 0
        if class_index is not None:
            expected = f"0..{self.num_classes - 1}"
            row = 1 + _number("class_index", class_index, lambda k: 0 <= k < self.num_classes, expected, Integral)
        self._gaps()  # raises when nothing was counted
        count, prob_sum, hits = self._counted()[:, row].cpu()
        voxels = torch.where(count > 0, count, torch.nan)
        edges = np.linspace(0, 1, self.num_bins + 1)
        return Reliability(edges, count.long().numpy(), (prob_sum / voxels).numpy(), (hits / voxels).numpy())


def _mean_gaps(gap: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Mean gap of each row, weighted by the voxels of a bin."""
    return (gap * count).sum(1) / count.sum(1)


class _Counter:
    """Fills bins block by block: row 0 for the winning class and, unless ``num_classes`` is 0, a row for each class.

    Its buffers live as long as it does: fresh ones for every block would cost more than the arithmetic.
    """

    def __init__(self, num_classes: int, num_bins: int, device: torch.device) -> None:
        self.rows = num_classes + 1
        self.num_bins = num_bins
        # Column 0 takes what is not to be counted; bins are numbered from 1.
        shape = (self.rows, num_bins + 1)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)
        self.hits = torch.zeros(shape, dtype=torch.int64, device=device)
        self.prob_sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.one = torch.ones((), dtype=torch.int64, device=device)
        self.buffers: list[torch.Tensor] = []

    def table(self) -> torch.Tensor:
        """Counts, sums of probabilities and hits, (3, rows, num_bins) float64."""
        return torch.stack([part[:, 1:].double() for part in (self.counts, self.prob_sums, self.hits)])

    def add(self, probs: torch.Tensor, label: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Count a block, probs (K, n) and label (n,) within 0..K-1, or the part of it where keep is True."""
        values, numbers, edges, bins, wide = self._buffers(probs)
        confidence = torch.amax(probs, 0, keepdim=True, out=values[:1])
        if self.rows > 1:
            values[1:] = probs
        self._number_bins(values, numbers, edges, bins)
        if keep is not None:
            bins.masked_fill_(~keep, 0)
        wide.copy_(values)
        self.counts.scatter_add_(1, bins, self.one.expand_as(bins))
        self.prob_sums.scatter_add_(1, bins, wide)
        wins = _label_wins(probs, label, confidence)
        if self.rows == 1:
            self.hits[0].scatter_add_(0, bins[0] * wins, self.one.expand_as(label))
            return
        # Of the classes only the labelled one can be a hit. Where it wins, its bin is the winner's too.
        label_bins = bins[1:].gather(0, label.unsqueeze(0)).squeeze(0)
        place = label_bins.add_(label, alpha=self.num_bins + 1).mul_(2).add_(wins)
        hits = torch.bincount(place, minlength=2 * self.hits[1:].numel()).view(self.rows - 1, -1, 2)
        self.hits[0] += hits[..., 1].sum(0)
        self.hits[1:] += hits.sum(2)

    def _buffers(self, probs: torch.Tensor) -> list[torch.Tensor]:
        voxels = probs.shape[1]
        if not self.buffers or self.buffers[0].shape[1] < voxels or self.buffers[0].dtype != probs.dtype:
            types = (probs.dtype, probs.dtype, probs.dtype, torch.int64, torch.float64)
            self.buffers = [torch.empty(self.rows, voxels, dtype=dtype, device=probs.device) for dtype in types]
        return [buffer[:, :voxels] for buffer in self.buffers]

    def _number_bins(
        self, values: torch.Tensor, numbers: torch.Tensor, edges: torch.Tensor, bins: torch.Tensor
    ) -> None:
        """The smallest b >= 1 with ``p <= b / num_bins``, to the last bit, ten times as fast as torch.bucketize."""
        # ceil(p * num_bins), with a factor a little smaller, is b or b - 1; p - edge, rounded up, adds 1 just where p
        # lies beyond.
        torch.mul(values, self.num_bins * (1 - 2**-21), out=numbers).ceil_()
        torch.div(numbers, self.num_bins, out=edges)
        numbers.add_(torch.sub(values, edges, out=edges).ceil_())
        bins.copy_(numbers.clamp_(1, self.num_bins))  # 0 and 1, and what rounding makes of 1, stay inside


def expected_calibration_error(
    probs: torch.Tensor, target: torch.Tensor, num_bins: int = 15, mask: torch.Tensor | None = None
) -> float:
    """ECE of one set of predictions. For more figures, or more data than fits in memory: :class:`CalibrationBins`.

    Args:
        probs: probabilities, summing to 1 over the classes.
        target: labels, 0..K-1.
        num_bins: bins of equal width on [0, 1], >= 1.
        mask: True where a voxel counts. None: all do.

    Shape:
        probs (B, K, *spatial) or (N, K); target (B, *spatial), (B, 1, *spatial) or (N,); mask like target.

    Raises:
        ValueError: input not as the module docstring says, or a mask that selects no voxel.

    Example:
        >>> import torch
        >>> from mbls.metrics import expected_calibration_error
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> round(expected_calibration_error(probs, torch.tensor([0, 1, 1, 0])), 4)
        0.4

    References:
        Guo et al., ICML 2017, Eq. 3.
    """
    return CalibrationBins(_num_classes(probs), num_bins)._update(probs, target, mask, classwise=False).ece()


def classwise_calibration_error(
    probs: torch.Tensor, target: torch.Tensor, num_bins: int = 15, mask: torch.Tensor | None = None
) -> float:
    """Class-wise ECE (CECE) of one set of predictions: the ECE of each class's own probability, averaged over classes.

    Args:
        probs: probabilities, summing to 1 over the classes.
        target: labels, 0..K-1.
        num_bins: bins of equal width on [0, 1], >= 1.
        mask: True where a voxel counts. None: all do.

    Shape:
        probs (B, K, *spatial) or (N, K); target (B, *spatial), (B, 1, *spatial) or (N,); mask like target.

    Raises:
        ValueError: input not as the module docstring says, or a mask that selects no voxel.

    Example:
        >>> import torch
        >>> from mbls.metrics import classwise_calibration_error
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> round(classwise_calibration_error(probs, torch.tensor([0, 1, 1, 0])), 4)
        0.4

    References:
        Kull et al., NeurIPS 2019, "Beyond temperature scaling".
    """
    return CalibrationBins(_num_classes(probs), num_bins).update(probs, target, mask).cece()


def adaptive_calibration_error(
    probs: torch.Tensor, target: torch.Tensor, num_bins: int = 15, mask: torch.Tensor | None = None
) -> float:
    """AECE: the ECE over bins of equal mass, exact, by one sort of the winning confidences.

    Bins hold the same number of voxels to within one. Voxels of equal confidence belong together: each counts with the
    hit rate of all of them, so that a bin that ends among them does not depend on the order of the voxels. It cannot be
    merged from parts.

    Args:
        probs: probabilities, summing to 1 over the classes.
        target: labels, 0..K-1.
        num_bins: bins of equal mass, >= 1.
        mask: True where a voxel counts. None: all do.

    Shape:
        probs (B, K, *spatial) or (N, K); target (B, *spatial), (B, 1, *spatial) or (N,); mask like target.

    Raises:
        ValueError: input not as the module docstring says, or a mask that selects no voxel.

    Example:
        >>> import torch
        >>> from mbls.metrics import adaptive_calibration_error
        >>> probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.75, 0.25], [0.75, 0.25]])
        >>> round(adaptive_calibration_error(probs, torch.tensor([0, 1, 0, 1]), num_bins=2), 4)
        0.2

    References:
        Ding et al., CVPR workshop 2020 (adaptive ECE); the treatment of equal confidences is this package's.
    """
    num_bins = _checked_num_bins(num_bins)
    return _adaptive_error(*_winners(probs, target, mask), num_bins)


def _winners(
    probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each voxel that counts: the probability of the class that wins, and whether it is the label's."""
    confidences, hits = [], []
    for block_probs, block_target in _selected(*_checked(probs, target, mask)):
        confidence = block_probs.amax(0, keepdim=True)
        confidences.append(confidence.squeeze(0))
        hits.append(_label_wins(block_probs, block_target, confidence))
    _require_voxels(sum(block.numel() for block in confidences))
    return torch.cat(confidences), torch.cat(hits)


def _adaptive_error(confidence: torch.Tensor, hit: torch.Tensor, num_bins: int = 15) -> float:
    confidence, hit = _sorted_with(confidence, hit)
    gap = confidence.double() - _tied_means(confidence, hit.double())
    return float(sum(part.sum().abs() for part in gap.tensor_split(num_bins)) / gap.numel())


def _sorted_with(keys: torch.Tensor, flags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys, which are not negative, in rising order, and the flags that belong to them."""
    if keys.dtype != torch.float32 or keys.device.type != "cpu":
        keys, order = keys.sort()
        return keys, flags[order]
    # The bits of such floats are in the order of the floats. With the flag in the last one numpy sorts plain integers,
    # four times as fast.
    both = np.sort(keys.numpy().view(np.int32) * np.int32(2) + flags.numpy())
    return torch.from_numpy((both >> 1).view(np.float32)), torch.from_numpy(both & 1)


def _tied_means(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The values, those with equal keys replaced by their mean; the keys are sorted."""
    last = torch.cat(
        [(keys[1:] != keys[:-1]).nonzero().squeeze(1), keys.new_tensor([len(keys) - 1], dtype=torch.int64)]
    )
    if len(last) == len(keys):
        return values
    total, count = (part.diff(prepend=part.new_zeros(1)) for part in (values.cumsum(0)[last], last + 1))
    return (total / count).repeat_interleave(count)


def negative_log_likelihood(probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Mean of ``-log p`` of the labelled class, in nats; p is held above the smallest normal number of its type.

    Args:
        probs: probabilities, summing to 1 over the classes.
        target: labels, 0..K-1.
        mask: True where a voxel counts. None: all do.

    Shape:
        probs (B, K, *spatial) or (N, K); target (B, *spatial), (B, 1, *spatial) or (N,); mask like target.

    Raises:
        ValueError: input not as the module docstring says, or a mask that selects no voxel.

    Example:
        >>> import torch
        >>> from mbls.metrics import negative_log_likelihood
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> round(negative_log_likelihood(probs, torch.tensor([0, 1, 1, 0])), 4)
        0.6456
    """
    total, voxels = 0.0, 0
    for block_probs, block_target in _selected(*_checked(probs, target, mask)):
        likelihood = block_probs.gather(0, block_target.unsqueeze(0)).clamp(min=torch.finfo(block_probs.dtype).tiny)
        total -= float(likelihood.double().log().sum())
        voxels += block_target.numel()
    _require_voxels(voxels)
    return total / voxels


def brier_score(probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Mean over the voxels of ``sum_k (p_k - y_k)^2``, in 0..2.

    Args:
        probs: probabilities, summing to 1 over the classes.
        target: labels, 0..K-1.
        mask: True where a voxel counts. None: all do.

    Shape:
        probs (B, K, *spatial) or (N, K); target (B, *spatial), (B, 1, *spatial) or (N,); mask like target.

    Raises:
        ValueError: input not as the module docstring says, or a mask that selects no voxel.

    Example:
        >>> import torch
        >>> from mbls.metrics import brier_score
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> round(brier_score(probs, torch.tensor([0, 1, 1, 0])), 4)
        0.45

    References:
        Brier, Monthly Weather Review 1950 (the sum over classes, not divided by K).
    """
    total, voxels = 0.0, 0
    for block_probs, block_target in _selected(*_checked(probs, target, mask)):
        off = block_probs.to(torch.float64, copy=True)
        off.scatter_add_(0, block_target.unsqueeze(0), off.new_full((1, off.shape[1]), -1))
        total += float(off.square_().sum())
        voxels += block_target.numel()
    _require_voxels(voxels)
    return total / voxels


def brier_decomposition(
    probs: torch.Tensor, target: torch.Tensor, num_bins: int = 15, mask: torch.Tensor | None = None
) -> tuple[float, float]:
    r"""The Brier score in two parts: how far the claims are from what comes true, and how little is known.

    .. math:: \sum_k \sum_b \tfrac{n_b}{N} (\bar p_b - \bar y_b)^2

    is the first, over the bins b of each class's own probability; the second is what is left of the Brier score.

    Args:
        probs: probabilities, summing to 1 over the classes.
        target: labels, 0..K-1.
        num_bins: bins of equal width. With few voxels the first part is too large.
        mask: True where a voxel counts. None: all do.

    Shape:
        As :func:`brier_score`.

    Returns:
        Calibration and refinement; their sum is the Brier score.

    Raises:
        ValueError: as :func:`brier_score`.

    Example:
        >>> import torch
        >>> from mbls.metrics import brier_decomposition
        >>> probs = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
        >>> [round(part, 2) for part in brier_decomposition(probs, torch.tensor([0, 1]))]
        [0.32, 0.5]

    References:
        Broecker, Quarterly Journal of the Royal Meteorological Society 2009.
    """
    whole = brier_score(probs, target, mask)
    calibration = CalibrationBins(probs.shape[1], num_bins).update(probs, target, mask).brier_calibration()
    return calibration, whole - calibration


def smooth_calibration_error(probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    r"""Smooth ECE: the calibration error of the winning class without bins.

    The residuals hit - confidence are smoothed over the confidence by a Gaussian that is reflected at 0 and 1, and the
    absolute value is integrated:

    .. math:: \mathrm{smECE}_\sigma = \int_0^1 \Bigl|\tfrac1N \sum_i (h_i - c_i) K_\sigma(t, c_i)\Bigr| dt

    The figure is the width that equals it, :math:`\sigma = \mathrm{smECE}_\sigma`.

    Args:
        probs: probabilities, summing to 1 over the classes.
        target: labels, 0..K-1.
        mask: True where a voxel counts. None: all do.

    Shape:
        As :func:`brier_score`.

    Raises:
        ValueError: as :func:`brier_score`.

    Example:
        >>> import torch
        >>> from mbls.metrics import smooth_calibration_error
        >>> probs = torch.tensor([[0.9, 0.1]] * 10)
        >>> round(smooth_calibration_error(probs, torch.tensor([0] * 5 + [1] * 5)), 2)  # right in half of them
        0.4

    References:
        Blasiok and Nakkiran, ICLR 2024.
    """
    return _smooth_error(*_winners(probs, target, mask))


def _smooth_error(confidence: torch.Tensor, hit: torch.Tensor) -> float:
    confidence = confidence.double()
    place = (confidence * _SMOOTH_BINS).long().clamp_(max=_SMOOTH_BINS - 1)
    residuals = torch.bincount(place, hit.double() - confidence, _SMOOTH_BINS).cpu().numpy() / len(hit)
    # A Gaussian reflected at both ends multiplies each cosine by a number.
    cosines, frequency = np.asarray(scipy.fft.dct(residuals)), np.pi * np.arange(_SMOOTH_BINS)

    def at(width: float) -> float:
        smooth = np.asarray(scipy.fft.idct(cosines * np.exp(-0.5 * (frequency * width) ** 2)))
        return float(np.abs(smooth).sum())

    # Wider kernels leave less: the difference falls.
    lowest, highest = 1e-9, 2.0  # no error is above 1, but rounding could make it so, and the bracket needs both signs
    if at(lowest) <= lowest:
        return lowest
    return min(root_scalar(lambda width: at(width) - width, bracket=(lowest, highest), xtol=1e-9).root, 1.0)


#: What a metric may be conditioned on; see :func:`region_mask`.
Region = Literal["all", "foreground", "dilated", "boundary"]
#: The names of the regions.
REGION_NAMES: tuple[Region, ...] = get_args(Region)

#: Radius of the regions that have one, in voxels, where the caller names none.
_RADIUS = {"dilated": 3, "boundary": 2}


def region_mask(target: torch.Tensor, region: Region, radius: int | None = None) -> torch.Tensor:
    """Voxels of a region, as a mask for the metrics.

    - "all": every voxel.
    - "foreground": the true label is not the background. This is what the official evaluation keeps.
    - "dilated": the foreground and what lies within ``radius`` voxels of it.
    - "boundary": within ``radius`` voxels of a change of the true label, between any two labels. The edge of the image
      is none.

    Distances are Chebyshev's: a square of 2 * radius + 1 voxels for slices, whose neighbours are not looked at, and a
    cube for volumes.

    Args:
        target: labels, 0 the background; voxels of a negative label belong to no region but "all", and make no
            border.
        region: one of :data:`REGION_NAMES`.
        radius: in voxels, >= 1. None: 2 for "boundary", 3 for "dilated".

    Shape:
        target (B, H, W) slices or (B, D, H, W) volumes, each with a channel of size 1 after the batch or without;
        returns a boolean mask of the same shape.

    Raises:
        ValueError: unknown region; radius < 1; target of another form.

    Example:
        >>> import torch
        >>> from mbls.metrics import region_mask
        >>> region_mask(torch.tensor([[[0, 0, 0, 0, 1, 1, 1]]]), "boundary").long()
        tensor([[[0, 0, 1, 1, 1, 1, 0]]])

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, and its official code, for "foreground".
    """
    _choice("region", region, Region)
    reach = _RADIUS.get(region, 0) if radius is None else _whole("radius", radius, 1)
    target = _checked_labels("target", target).long()
    if target.dim() == 5 and target.shape[1] == 1:  # (B, 1, H, W) is a volume of one slice, which comes to the same
        return region_mask(target.squeeze(1), region, radius).unsqueeze(1)
    if target.dim() not in (3, 4):
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, expected (B, H, W) or (B, D, H, W), or a channel of size 1 "
            "after the batch"
        )
    if region == "all":
        return torch.ones_like(target, dtype=torch.bool)
    if region == "foreground":
        return target > 0

    def widest(values: torch.Tensor) -> torch.Tensor:
        """The highest value within reach, one axis after the other."""
        for axis in range(1, values.dim()):
            narrow, size = values, values.shape[axis]
            values = narrow.clone()
            for step in range(1, min(reach + 1, size)):
                for here, there in ((0, step), (step, 0)):
                    part = values.narrow(axis, here, size - step)
                    torch.maximum(part, narrow.narrow(axis, there, size - step), out=part)
        return values

    values = target.int()
    if region == "dilated":
        return (widest(values) > 0) & (target >= 0)
    # Ignored voxels are neither the highest nor the lowest.
    lowest = -widest(torch.where(target < 0, torch.iinfo(values.dtype).min, -values))
    return (widest(values) != lowest) & (target >= 0)


def average_over_volumes(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Mean of a figure over volumes, NaNs left out.

    Args:
        values: the figure of each volume.
        weights: of the volumes, >= 0, such as the voxels counted. None: all count alike.

    Raises:
        ValueError: lengths that differ; weights that are negative or not finite; nothing left to average.

    Example:
        >>> from mbls.metrics import average_over_volumes
        >>> round(average_over_volumes([0.1, float("nan"), 0.3]), 4)
        0.2
    """
    figures = np.asarray(values, dtype=np.float64)
    shares = np.ones_like(figures) if weights is None else np.asarray(weights, dtype=np.float64)
    if figures.shape != shares.shape or figures.ndim != 1:
        raise ValueError(f"weights: got shape {shares.shape}, expected one weight for each of {figures.shape} values")
    for share in shares:
        _not_negative("weights", share)
    shares = np.where(np.isnan(figures), 0.0, shares)
    if shares.sum() == 0:
        raise ValueError(f"values: got {len(figures)} values without weight or NaN, expected at least one to average")
    return float((np.where(shares > 0, figures, 0.0) * shares).sum() / shares.sum())


def segmentation_scores(
    prediction: torch.Tensor,
    target: torch.Tensor,
    num_classes: int,
    spacing: Sequence[float] | None = None,
    surface: bool = True,
) -> dict[str, list[float]]:
    """DSC, HD95 and ASD of each structure of one volume, by MONAI.

    Args:
        prediction: labels, 0 the background.
        target: labels of the same shape.
        num_classes: K, with the background.
        spacing: voxel size along each dimension, in mm. None: distances come out in voxels.
        surface: False leaves out the two surface distances, which take most of the time.

    Shape:
        prediction and target (*spatial), 2 or 3 dimensions.

    Returns:
        {"dsc", "hd95", "asd"}, or {"dsc"} without surface, with K - 1 numbers each, of the classes 1..K-1. A structure
        in neither of the two has NaN. A structure in only one of them has DSC 0 and infinite distances: a mean over
        volumes has to say what it does with these.

    Raises:
        ValueError: shapes or devices that differ; labels outside 0..K-1; a spacing that does not fit.

    Example:
        >>> import torch
        >>> from mbls.metrics import segmentation_scores
        >>> target = torch.zeros(8, 8, dtype=torch.long)
        >>> target[2:6, 2:6] = 1
        >>> scores = segmentation_scores(target.roll(1, 0), target, num_classes=2, spacing=(1.5, 1.5))
        >>> {name: round(values[0], 3) for name, values in scores.items()}
        {'dsc': 0.75, 'hd95': 1.5, 'asd': 0.75}

    References:
        Dice, Ecology 1945. HD95 and ASD have the values of MONAI's ``compute_hausdorff_distance`` and of its symmetric
        ``compute_average_surface_distance``, by the parts of which they are computed.
    """
    from monai.metrics.meandice import compute_dice

    num_classes = _whole("num_classes", num_classes, 2)
    prediction, target = _checked_labels("prediction", prediction), _checked_labels("target", target)
    if prediction.shape != target.shape or prediction.dim() not in (2, 3):
        raise ValueError(
            f"prediction: got shape {tuple(prediction.shape)}, expected 2 or 3 dimensions like target "
            f"{tuple(target.shape)}"
        )
    if prediction.device != target.device:
        raise ValueError(f"prediction: got device {prediction.device}, expected {target.device} like target")
    if spacing is not None:
        spacing = [_positive("spacing", size) for size in spacing]
        if len(spacing) != target.dim():
            raise ValueError(f"spacing: got {tuple(spacing)}, expected {target.dim()} sizes in mm")
    one_hot = []
    for name, labels in (("prediction", prediction), ("target", target)):
        _raise_if_label_outside(labels, num_classes, "", name)
        one_hot.append(F.one_hot(labels.long(), num_classes).movedim(-1, 0).unsqueeze(0))
    # Which structures are there is decided here: MONAI warns at every absent one and mixes NaN with infinity.
    present = [labels.flatten(2).any(2)[0, 1:].bool() for labels in one_hot]
    both = (present[0] & present[1]).nonzero().flatten() + 1
    absent = (~present[0] & ~present[1]).tolist()
    dice = compute_dice(*one_hot, include_background=False, ignore_empty=False)[0].tolist()
    scores = {"dsc": [math.nan if missing else value for missing, value in zip(absent, dice, strict=True)]}
    if not surface:
        return scores
    for name in ("hd95", "asd"):
        scores[name] = [math.nan if missing else math.inf for missing in absent]
    for label in both.tolist():
        there, back = _surface_distances(prediction == label, target == label, spacing)
        scores["hd95"][label - 1] = float(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))
        scores["asd"][label - 1] = float(np.concatenate([there, back]).mean(dtype=np.float64))
    return scores


def _surface_distances(
    first: torch.Tensor, second: torch.Tensor, spacing: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """From each surface voxel of one structure to the nearest of the other, both ways; both structures are there."""
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    # What MONAI's two metrics do inside, but once for both of them and within the structure's box, in about a third of
    # their time.
    places = (first | second).nonzero()
    box = tuple(
        slice(low, high + 1) for low, high in zip(places.amin(0).tolist(), places.amax(0).tolist(), strict=True)
    )
    first_box, second_box = (
        F.pad(structure[box], (1, 1) * structure.dim()).cpu().numpy() for structure in (first, second)
    )
    edges = get_mask_edges(first_box, second_box, crop=False)
    there = get_surface_distance(*edges, spacing=spacing)
    back = get_surface_distance(*edges[::-1], spacing=spacing)
    return np.asarray(there), np.asarray(back)


def _checked_num_bins(num_bins: int) -> int:
    # _number_bins needs bins far wider than the spacing of float32.
    return _number("num_bins", num_bins, lambda n: 1 <= n <= 1 << 16, f"a whole number in 1..{1 << 16}", Integral)


def _num_classes(probs: torch.Tensor) -> int:
    _check_scores("probs", probs)
    return probs.shape[1]


def _require_voxels(voxels: int) -> None:
    if voxels == 0:
        raise ValueError("mask: got a mask that selects no voxel (or empty probs), expected at least one voxel")


def _checked(
    probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Shapes, types and devices, or a ValueError; the values are looked at block by block."""
    target, mask = _checked_voxels("probs", probs, target, mask)
    return _where_float64_is(probs.detach(), target, mask)


def _blocks(
    probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, ignore_index: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """The voxels in blocks: probs (K, n) float32 or float64, label (n,) int64, and which count, (n,) (None: all)."""
    if probs.dim() == 2:  # (N, K): one row a voxel
        probs, target = probs.T.unsqueeze(0), target.unsqueeze(0)
        mask = None if mask is None else mask.unsqueeze(0)
    step = max(1, min(_BLOCK_VOXELS, _BLOCK_VALUES // probs.shape[1]))
    for sample in range(probs.shape[0]):
        sample_probs, sample_target = probs[sample].flatten(1), target[sample].flatten()
        sample_mask = None if mask is None else mask[sample].flatten()
        for start in range(0, sample_target.numel(), step):
            part = slice(start, start + step)
            block = sample_probs[:, part]
            block = block.float() if block.dtype in (torch.float16, torch.bfloat16) else block
            label = sample_target[part].long()
            keep = None if sample_mask is None else sample_mask[part]
            if ignore_index is not None:  # compared in int64: uint8 takes 156 for -100
                counted = label != ignore_index
                keep = counted if keep is None else keep & counted
            yield block, label, keep


def _selected(
    probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, ignore_index: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The voxels that count in blocks, probs (K, n) and label (n,), their values checked."""
    for block_probs, label, keep in _blocks(probs, target, mask, ignore_index):
        if keep is not None:
            block_probs, label = block_probs[:, keep], label[keep]
        if label.numel():
            _raise_if_outside(_limits(block_probs, label), block_probs.shape[0])
            yield block_probs, label


def _limits(probs: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """What has to stay small: -lowest and highest probability, how far sums are off 1, -lowest and highest label."""
    low, high = probs.aminmax()
    low_label, high_label = label.aminmax()
    off = (probs.sum(0) - 1).abs_().max()
    return torch.stack([-low.double(), high.double(), off.double(), -low_label.double(), high_label.double()])


def _raise_if_outside(limits: torch.Tensor, num_classes: int) -> None:
    minus_low, high, off, minus_low_label, high_label = limits.tolist()
    # The tolerance lets probabilities of bfloat16 networks through and still catches logits.
    if not (minus_low <= 0 and high <= 1 + 1e-5 and off <= 2e-2):
        raise ValueError(
            f"probs: got values {-minus_low:.4g}..{high:.4g} with sums off 1 by up to {off:.4g}, "
            f"expected probabilities that sum to 1 over dimension 1 (a softmax of the logits, without NaN)"
        )
    if minus_low_label > 0 or high_label >= num_classes:
        wrong = int(-minus_low_label if minus_low_label > 0 else high_label)
        raise ValueError(f"target: got label {wrong}, expected 0..{num_classes - 1}{_MASK_OUT}")


def _label_wins(probs: torch.Tensor, label: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """Where the label is the arg-max, the first of several equal ones, (n,)."""
    if probs.device.type == "cpu":  # there a max with its index takes ten times as long as one without
        losers = (probs - confidence).sign_().sum()  # exact in a block
        if losers == label.numel() * (1 - probs.shape[0]):  # no voxel has two winners
            return (probs.gather(0, label.unsqueeze(0)) == confidence).squeeze(0)
    return probs.max(0).indices == label
