r"""Calibration after training: maps of the logits, fitted on validation voxels.

:class:`TemperatureScaling` (one number) keeps the winning class of every voxel. :class:`VectorScaling` (one scale and
one shift a class) and :class:`IsotonicCalibration` (one curve a class) can make another class win. Their attribute
``changes_segmentation`` says so, and :func:`segmentation_change` counts the voxels and compares the DSC.

Shapes: logits ``(B, K, *spatial)``, floating point, or log-probabilities, which give the same; target ``(B, *spatial)``
or ``(B, 1, *spatial)``, labels, integers or whole-numbered floats, or ``(B, K, *spatial)``, soft labels in floating
point; mask like the labels, boolean, True where a voxel counts. ``(N, K)`` with ``(N,)`` works too. All is fitted in
float64, on the CPU where the device has none (Apple's MPS), and without autograd, so that ``torch.inference_mode()``
changes nothing.

What is fitted on decides what becomes calibrated. Most voxels are background, and a fit on all of them looks after
these. Here a network is honest about the background; within an organ it triples the logits of an honest one:

    >>> import torch
    >>> from mbls.posthoc import TemperatureScaling
    >>> generator = torch.Generator().manual_seed(0)
    >>> organ = torch.zeros(1, 1, 100, 100, dtype=torch.bool)
    >>> organ[..., 30:80, 30:80] = True  # a quarter of the voxels, of class 1 or 2
    >>> honest = torch.randn(1, 3, 100, 100, generator=generator)
    >>> honest[:, :1] += torch.where(organ, -20, 3)
    >>> rows = honest.softmax(1).movedim(1, -1).flatten(0, -2)
    >>> target = torch.multinomial(rows, 1, generator=generator).view(1, 100, 100)
    >>> logits = torch.where(organ, 3 * honest, honest)
    >>> print(f"{TemperatureScaling().fit(logits, target).temperature:.1f}")
    1.3
    >>> print(f"{TemperatureScaling().fit(logits, target, mask=organ[:, 0]).temperature:.1f}")
    3.0

Masks that depend on the label select by the outcome, and even an honest network looks miscalibrated there:

    >>> print(f"{TemperatureScaling().fit(honest, target, mask=target > 0).temperature:.1f}")
    3.9
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import isotonic_regression, minimize, root_scalar

from mbls.losses import (
    _MASK_OUT,
    _check_scores,
    _checked_voxels,
    _number,
    _positive,
    _raise_if_label_outside,
    _raise_if_logits_not_finite,
    _raise_if_no_probabilities,
    _where_float64_is,
    _whole,
)
from mbls.metrics import segmentation_scores

__all__ = [
    "IsotonicCalibration",
    "SegmentationChange",
    "TemperatureScaling",
    "VectorScaling",
    "segmentation_change",
]

#: Temperatures and scales that a fit can find.
LEAST, MOST = 0.01, 100.0
#: The largest shift of a class that a fit can find, in logits.
MOST_SHIFT = 100.0
#: Bins of each class's probability that :class:`IsotonicCalibration` fits its curves to.
NUM_BINS = 4096
#: :class:`IsotonicCalibration` claims no less than this for a class, so that the logarithm is finite.
FLOOR = 1e-8

_BLOCK_VOXELS = 1 << 16


class TemperatureScaling:
    """Divide all logits by one number T > 0, fitted by the NLL on validation voxels. The predicted class never changes.

    Args:
        temperature: T before :meth:`fit`, > 0.

    Attributes:
        temperature: T. Above 1 the network was overconfident.
        changes_segmentation: False.

    Shape:
        logits (B, K, *spatial) floating point; what a call returns has the same shape.

    Raises:
        ValueError: a temperature that is not a finite number > 0.

    Example:
        >>> import torch
        >>> from mbls.posthoc import TemperatureScaling
        >>> logits, labels = torch.tensor([[4.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1])
        >>> scaling = TemperatureScaling().fit(logits, labels)
        >>> round(scaling.temperature, 3)
        3.641
        >>> scaling(logits).softmax(1)[0]
        tensor([0.7500, 0.2500])

    References:
        Guo et al., ICML 2017, section 4.2.
    """

    changes_segmentation = False

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = float(_positive("temperature", temperature))

    def fit(self, logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> TemperatureScaling:
        """Find T on validation voxels, within 0.01..100. At a bound a warning says why.

        Args:
            logits: (B, K, *spatial), floating point.
            target: (B, *spatial) or (B, 1, *spatial), labels; or soft labels, (B, K, *spatial).
            mask: like the labels, boolean, True where a voxel counts. None: all do.

        Returns:
            Itself.

        Raises:
            ValueError: shapes or devices that do not match; a mask that is not boolean; no voxel; NaN logits; labels
                outside 0..K-1; soft labels that do not sum to 1.
        """
        below, labels = _voxels(logits, target, mask)

        def slope(log_temperature: float) -> float:
            """Of the NLL, by 1 / T, in which it is convex: the minimum is where the slope is 0."""
            scale = math.exp(-log_temperature)
            total = 0.0
            for block, share in _blocks(below, labels):
                total += float((((scale * block).softmax(1) - share) * block).sum())
            return total / len(below)

        low, high = math.log(LEAST), math.log(MOST)
        if slope(high) >= 0:
            self.temperature = MOST
            _warn(f"temperature: the fit ends at its bound {MOST:g}: these logits are uninformative about the labels")
        elif slope(low) <= 0:
            self.temperature = LEAST
            _warn(
                f"temperature: the fit ends at its bound {LEAST:g}: these labels are separable, the logits have no "
                "error (or hardly one) among them; fit on more voxels"
            )
        else:
            self.temperature = math.exp(root_scalar(slope, bracket=(low, high), xtol=1e-10).root)
        return self

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The scaled logits.

        Args:
            logits: of any shape.
        """
        return logits / self.temperature

    def __repr__(self) -> str:
        return f"TemperatureScaling(temperature={self.temperature:.4g})"

    def state_dict(self) -> dict[str, float]:
        """T as a plain number, so that it can be written as JSON too."""
        return {"temperature": self.temperature}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what :meth:`state_dict` gave.

        Args:
            state: {"temperature": T}.

        Raises:
            ValueError: no temperature in it, or one that is not a finite number > 0.
        """
        self.temperature = float(_positive("temperature", _entry(state, "temperature")))


class VectorScaling:
    r"""One scale and one shift a class, :math:`a_k \log s_k + b_k`, fitted by the NLL. Another class can win.

    It takes the logarithm of the softmax, so that logits and the log-probabilities that are kept of them give the same.

    Args:
        num_classes: K >= 2.

    Attributes:
        scale: :math:`a`, K numbers, within 0.01..100 after a fit; 1 before.
        shift: :math:`b`, K numbers, within -100..100 after a fit, of mean 0; 0 before.
        changes_segmentation: True; :func:`segmentation_change` says by how much.

    Shape:
        logits (B, K, *spatial) floating point; what a call returns has the same shape.

    Raises:
        ValueError: a num_classes that is not a whole number >= 2; logits of another number of classes.

    Example:
        >>> import torch
        >>> from mbls.posthoc import VectorScaling
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).repeat(4, 1), torch.tensor([0, 1, 0, 0, 0, 1, 1, 0])
        >>> scaling = VectorScaling(2).fit(logits, labels)
        >>> scaling(logits).softmax(1)[:2].round(decimals=2)  # class 0 was right in 3 of 4, class 1 in 2 of 4
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])

    References:
        Guo et al., ICML 2017, section 4.2, on the logits; Kull et al., NeurIPS 2019, on the log-probabilities
        (Dirichlet calibration, whose diagonal form this is).
    """

    changes_segmentation = True

    def __init__(self, num_classes: int) -> None:
        self.num_classes = _whole("num_classes", num_classes, 2)
        self.scale, self.shift = [1.0] * self.num_classes, [0.0] * self.num_classes

    def fit(self, logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> VectorScaling:
        """Find scales and shifts on validation voxels. Where the NLL has no minimum a warning says why.

        Args:
            logits: (B, K, *spatial), floating point.
            target: (B, *spatial) or (B, 1, *spatial), labels; or soft labels, (B, K, *spatial).
            mask: like the labels, boolean, True where a voxel counts. None: all do.

        Returns:
            Itself.

        Raises:
            ValueError: as for :meth:`TemperatureScaling.fit`; another number of classes.
        """
        _check_classes(logits, self.num_classes)
        below, labels = _voxels(logits, target, mask)
        log_probs = below.log_softmax(1)

        def nll(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            """With its gradient."""
            scale, shift = torch.as_tensor(parameters, device=log_probs.device).chunk(2)
            value, gradient = 0.0, torch.zeros_like(torch.stack([scale, shift]))
            for block, share in _blocks(log_probs, labels):
                scaled = (scale * block + shift).log_softmax(1)
                value -= float((share * scaled).sum())
                surplus = scaled.exp() - share
                gradient += torch.stack([(surplus * block).sum(0), surplus.sum(0)])
            return value / len(log_probs), (gradient / len(log_probs)).flatten().cpu().numpy()

        bounds = [(LEAST, MOST)] * self.num_classes + [(-MOST_SHIFT, MOST_SHIFT)] * self.num_classes
        options = {"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-8}
        found = minimize(nll, self.scale + self.shift, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        scale, shift = np.split(found.x, 2)
        self.scale, self.shift = scale.tolist(), (shift - shift.mean()).tolist()
        without_minimum = self._without_minimum(log_probs, labels)
        if without_minimum:
            _warn(without_minimum)
        return self

    def _without_minimum(self, log_probs: torch.Tensor, labels: torch.Tensor) -> str | None:
        """Why the fit ended at a bound instead of a minimum, if it did."""
        voxels, errors = np.zeros(self.num_classes), 0
        for block, share in _blocks(log_probs, labels):
            voxels += share.sum(0).cpu().numpy()
            likely = share.gather(1, self(block).argmax(1, keepdim=True))
            errors += int((likely < 1).sum())
        absent = np.flatnonzero(voxels == 0).tolist()
        steep = any(scale >= MOST for scale in self.scale)
        flat = [k for k, scale in enumerate(self.scale) if scale <= LEAST]
        if absent:
            return f"target: got no voxel of class {_listed(absent)}, whose shift is only as low as the fit has gone"
        if errors == 0 or steep:
            return "scale: these labels are separable, no voxel (or hardly one) is left in error; fit on more voxels"
        if flat:
            return f"scale: ends at its bound {LEAST:g} for class {_listed(flat)}, whose logits are uninformative"
        return None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The scaled log-probabilities, which are logits again.

        Args:
            logits: (B, K, *spatial) or (N, K), floating point.
        """
        _check_classes(logits, self.num_classes)
        form = (1, -1, *[1] * (logits.dim() - 2))
        log_probs = _in_full(logits).log_softmax(1)
        scale, shift = (
            torch.tensor(numbers, dtype=log_probs.dtype).to(log_probs.device).view(form)
            for numbers in (self.scale, self.shift)
        )
        return (scale * log_probs + shift).to(logits.dtype)

    def __repr__(self) -> str:
        scale, shift = ([float(f"{number:.4g}") for number in numbers] for numbers in (self.scale, self.shift))
        return f"VectorScaling(num_classes={self.num_classes}, scale={scale}, shift={shift})"

    def state_dict(self) -> dict[str, list[float]]:
        """Scales and shifts as plain numbers, so that they can be written as JSON too."""
        return {"scale": list(self.scale), "shift": list(self.shift)}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take over what :meth:`state_dict` gave.

        Args:
            state: {"scale": K numbers, "shift": K numbers}.

        Raises:
            ValueError: an entry that is missing, or is not K finite numbers, the scales > 0.
        """
        scale = [_positive("scale", number) for number in _numbers(state, "scale", self.num_classes)]
        shift = [_finite("shift", number) for number in _numbers(state, "shift", self.num_classes)]
        self.scale, self.shift = scale, shift


class IsotonicCalibration:
    """A rising curve from each class's probability to its frequency; then all are renormalised to the sum 1. Another
    class can win.

    Each curve is fitted to 4096 bins of equal width of that class's probability: the mean label of a bin over its mean
    probability, weighted by its voxels.

    Args:
        num_classes: K >= 2.

    Attributes:
        curves: for each class the probabilities and the frequencies between which the curve is linear; the diagonal
            before a fit.
        changes_segmentation: True; :func:`segmentation_change` says by how much.

    Shape:
        logits (B, K, *spatial) floating point; what a call returns, log-probabilities, has the same shape.

    Raises:
        ValueError: a num_classes that is not a whole number >= 2; logits of another number of classes.

    Example:
        >>> import torch
        >>> from mbls.posthoc import IsotonicCalibration
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).repeat(4, 1), torch.tensor([0, 1, 0, 0, 0, 1, 1, 0])
        >>> calibration = IsotonicCalibration(2).fit(logits, labels)
        >>> calibration(logits).softmax(1)[:2].round(decimals=2)  # class 0 was right in 3 of 4, class 1 in 2 of 4
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])

    References:
        Zadrozny and Elkan, KDD 2002, with their renormalisation for several classes.
    """

    changes_segmentation = True

    def __init__(self, num_classes: int) -> None:
        self.num_classes = _whole("num_classes", num_classes, 2)
        self.curves: list[tuple[list[float], list[float]]] = [([0.0, 1.0], [0.0, 1.0])] * self.num_classes

    def fit(self, logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> IsotonicCalibration:
        """Find the curves on validation voxels. Where a class has none a warning says so.

        Args:
            logits: (B, K, *spatial), floating point.
            target: (B, *spatial) or (B, 1, *spatial), labels; or soft labels, (B, K, *spatial).
            mask: like the labels, boolean, True where a voxel counts. None: all do.

        Returns:
            Itself.

        Raises:
            ValueError: as for :meth:`TemperatureScaling.fit`; another number of classes.
        """
        _check_classes(logits, self.num_classes)
        below, labels = _voxels(logits, target, mask)
        # Voxels, sums of probabilities and of labels, of each class and bin.
        table = below.new_zeros(3, self.num_classes, NUM_BINS)
        for block, share in _blocks(below, labels):
            probs = block.softmax(1).T
            place = (probs * NUM_BINS).long().clamp_(max=NUM_BINS - 1)
            for sums, values in zip(table, (torch.ones_like(probs), probs, share.T), strict=True):
                sums.scatter_add_(1, place, values)
        absent = (table[2].sum(1) == 0).nonzero().flatten().tolist()
        if absent:
            _warn(f"target: got no voxel of class {_listed(absent)}, which the calibration will never claim")
        curves = []
        for voxels, prob_sum, label_sum in table.movedim(1, 0).cpu().numpy():
            filled = voxels > 0
            voxels, prob_sum, label_sum = voxels[filled], prob_sum[filled], label_sum[filled]
            fitted = isotonic_regression(label_sum / voxels, weights=voxels)
            # A flat piece is given by its two ends.
            ends = np.union1d(fitted.blocks[:-1], fitted.blocks[1:] - 1)
            curves.append(((prob_sum / voxels)[ends].tolist(), fitted.x[ends].clip(0, 1).tolist()))
        self.curves = curves
        return self

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The calibrated log-probabilities, which are logits again. They have no gradient.

        Args:
            logits: (B, K, *spatial) or (N, K), floating point.
        """
        _check_classes(logits, self.num_classes)
        probs = _in_full(logits.detach()).softmax(1).cpu()
        # numpy's interpolation is constant beyond the curve's ends, and at a step takes either side.
        frequencies = [
            np.interp(of_class.numpy(), *curve)
            for of_class, curve in zip(probs.movedim(1, 0), self.curves, strict=True)
        ]
        claimed = torch.from_numpy(np.stack(frequencies, 1)).clamp_(min=FLOOR)
        return (claimed / claimed.sum(1, keepdim=True)).log_().to(logits.dtype).to(logits.device)

    def __repr__(self) -> str:
        return f"IsotonicCalibration(num_classes={self.num_classes}, points={[len(x) for x, _ in self.curves]})"

    def state_dict(self) -> dict[str, list[list[float]]]:
        """The curves as plain numbers, so that they can be written as JSON too."""
        probs, frequencies = zip(*self.curves, strict=True)
        return {"probabilities": list(map(list, probs)), "frequencies": list(map(list, frequencies))}

    def load_state_dict(self, state: Mapping[str, Sequence[Sequence[float]]]) -> None:
        """Take over what :meth:`state_dict` gave.

        Args:
            state: {"probabilities": K lists, "frequencies": K lists}.

        Raises:
            ValueError: an entry that is missing; lists of other lengths; numbers outside 0..1 or that fall.
        """
        parts = []
        for name in ("probabilities", "frequencies"):
            parts.append([_rising(name, numbers) for numbers in _numbers(state, name, self.num_classes)])
        for probs, frequencies in zip(*parts, strict=True):
            if len(probs) != len(frequencies):
                raise ValueError(f"frequencies: got {len(frequencies)} of a class, expected {len(probs)}")
        self.curves = list(zip(*parts, strict=True))


class SegmentationChange(NamedTuple):
    """What a calibration does to the segmentation.

    Attributes:
        voxels: that count.
        flipped: those of them whose winning class is another one afterwards.
        dsc_before: of the classes 1..K-1, mean over the samples where the class is found; NaN where it never is.
        dsc_after: the same behind the calibration.
    """

    voxels: int
    flipped: int
    dsc_before: list[float]
    dsc_after: list[float]


def segmentation_change(
    calibration: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> SegmentationChange:
    """How many voxels a calibration flips to another class, and what the DSC does.

    Args:
        calibration: a fitted map of this module, or any other from logits to logits.
        logits: (B, K, *spatial), 2 or 3 spatial dimensions; each sample is a case of its own.
        target: (B, *spatial) or (B, 1, *spatial), labels.
        mask: like target, boolean, True where a voxel counts. None: all do.

    Raises:
        ValueError: shapes or devices that do not match; a mask that is not boolean; labels outside 0..K-1.

    Example:
        >>> import torch
        >>> from mbls.posthoc import TemperatureScaling, VectorScaling, segmentation_change
        >>> target = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1]]])
        >>> logits = torch.stack([torch.full((1, 2, 4), 0.3), 2.0 * target - 1], 1)
        >>> logits[0, 1, 0, 0] = 0.5  # one voxel too many
        >>> segmentation_change(TemperatureScaling(2.0), logits, target)
        SegmentationChange(voxels=8, flipped=0, dsc_before=[0.909...], dsc_after=[0.909...])
        >>> scaling = VectorScaling(2)
        >>> scaling.load_state_dict({"scale": [1.0, 1.0], "shift": [0.15, -0.15]})
        >>> segmentation_change(scaling, logits, target)
        SegmentationChange(voxels=8, flipped=1, dsc_before=[0.909...], dsc_after=[1.0])
    """
    target, mask = _checked_voxels("logits", logits, target, mask)
    counts = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    _raise_if_label_outside(target[counts], logits.shape[1], _MASK_OUT)
    before, after = (scores.argmax(1).masked_fill(~counts, 0) for scores in (logits, calibration(logits)))
    labels = target.long().masked_fill(~counts, 0)
    dsc = [_mean_dsc(winners, labels, logits.shape[1]) for winners in (before, after)]
    return SegmentationChange(int(counts.sum()), int((before != after).sum()), *dsc)


def _mean_dsc(winners: torch.Tensor, labels: torch.Tensor, num_classes: int) -> list[float]:
    cases = zip(winners, labels, strict=True)
    found = np.array([segmentation_scores(*case, num_classes, surface=False)["dsc"] for case in cases])
    return [
        float(np.mean(of_class[~np.isnan(of_class)])) if (~np.isnan(of_class)).any() else math.nan
        for of_class in found.T
    ]


def _voxels(logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The voxels to fit on: the logits below the largest of each, (N, K) float64, and labels, (N,) int64, or soft ones,
    (N, K) float64."""
    target, mask = _checked_voxels("logits", logits, target, mask, soft=True)
    logits, target, mask = _where_float64_is(logits.detach(), target.detach(), mask)
    soft = target.dim() == logits.dim()
    rows, labels = (
        logits.movedim(1, -1).flatten(0, -2),
        target.movedim(1, -1).flatten(0, -2) if soft else target.flatten(),
    )
    if mask is not None:
        rows, labels = rows[mask.flatten()], labels[mask.flatten()]
    if len(labels) == 0:
        raise ValueError("mask: got no voxel to fit on, expected at least one")
    _raise_if_logits_not_finite(rows)
    if soft:
        _raise_if_no_probabilities(labels)
        labels = labels.double()
    else:
        _raise_if_label_outside(labels, rows.shape[1], _MASK_OUT)
        labels = labels.long()
    rows = rows.double()
    return rows - rows.amax(1, keepdim=True), labels


def _blocks(rows: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Voxels in blocks, the labels as shares of the classes, (n, K) both."""
    for block, label in zip(rows.split(_BLOCK_VOXELS), labels.split(_BLOCK_VOXELS), strict=True):
        yield block, label if label.dim() == 2 else F.one_hot(label, rows.shape[1]).to(rows.dtype)


def _in_full(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_classes(logits: torch.Tensor, num_classes: int) -> None:
    _check_scores("logits", logits)
    if logits.shape[1] != num_classes:
        raise ValueError(f"logits: got {logits.shape[1]} classes, expected num_classes={num_classes}")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)  # at the line that calls fit


# What load_state_dict asks of a state.


def _entry(state: Mapping[str, Any], name: str) -> Any:
    if name not in state:
        raise ValueError(f"state: got {', '.join(state) or 'nothing'}, expected {name}")
    return state[name]


def _numbers(state: Mapping[str, Any], name: str, length: int) -> Sequence[Any]:
    values = _entry(state, name)
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != length:
        raise ValueError(f"{name}: got {values!r}, expected a list of {length}")
    return values


def _finite(name: str, value: Any) -> float:
    return float(_number(name, value, lambda number: True, "a finite number"))


def _rising(name: str, values: Any) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) == 0:
        raise ValueError(f"{name}: got {values!r}, expected a list of numbers")
    numbers = [_finite(name, value) for value in values]
    if numbers != sorted(numbers) or numbers[0] < 0 or numbers[-1] > 1:
        raise ValueError(f"{name}: got {numbers}, expected numbers in 0..1 that do not fall")
    return numbers
