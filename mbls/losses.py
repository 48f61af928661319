r"""Losses of the MbLS paper as modules that read like MONAI's. They need torch only: the file may be copied as it is.

All losses take the same shapes: logits ``(B, K, *spatial)``, floating point, and target ``(B, *spatial)`` or
``(B, 1, *spatial)``, class labels, integers or whole-numbered floats, or ``(B, K, *spatial)``, soft labels in floating
point, which sum to 1 over the classes; with these all voxels count. ``reduction="none"`` returns ``(B, *spatial)``;
"sum" adds the voxels up; "mean" divides the sum by the number of voxels whose label is not ``ignore_index``. Where
there is no such voxel the mean is 0, with zero gradient. Half-precision logits are computed in float32.

``weight`` gives each class a weight, as in torch: with labels the mean is ``sum_i w_yi CE_i / sum_i w_yi``, with soft
labels ``sum_i sum_k w_k q_ik CE_ik / N``. Penalties (the margin, the entropy) do not see it.

For lists of outputs (deep supervision) put a loss into MONAI's ``DeepSupervisionLoss`` or nnU-Net's
``DeepSupervisionWrapper``.

Notation: ``s = softmax(l)``, ``y`` the one-hot label, ``j`` the labelled class; ``d_k = max_i l_i - l_k`` are the logit
distances.

Each loss is written down twice. ``voxel_loss`` is its definition: a few lines that autograd can differentiate as often
as needed. ``fused`` gives the same values and their gradient at once, which takes a fraction of the time and of the
memory. A module calls ``fused`` wherever the two are interchangeable: for labels without weights, and not where
:func:`_plain_form_needed` says so. The tests compare one with the other.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch.nn.modules.loss import _Loss

__all__ = [
    "LOSSES",
    "AlphaSchedule",
    "CrossEntropyLoss",
    "EntropyPenaltyLoss",
    "FocalLoss",
    "HardL1ACELoss",
    "LabelSmoothingLoss",
    "MbLSLoss",
    "NACLLoss",
    "SVLSLoss",
    "SoftL1ACELoss",
    "VoxelLoss",
    "WithDice",
    "WithL1ACE",
    "build_loss",
    "loss_name",
    "parse_loss",
]

Reduction = Literal["mean", "sum", "none"]
Norm = Literal["l1", "l2"]
L1ACEBins = Literal["hard", "soft"]
ScheduleMode = Literal["constant", "add", "multiply"]

#: K numbers.
ClassWeights = Sequence[float] | torch.Tensor

#: ``fused(below, label, grad) -> values``; see :class:`VoxelLoss`.
FusedForm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _block_voxels(device: torch.device, num_classes: int) -> int:
    """Voxels that the fused forms work on at once."""
    if device.type != "cpu":  # every block costs launches, and is there only to bound the memory
        return 1 << 24
    # 2 MiB a thread and intermediate result, which a cache holds; smaller blocks cost more in starting the threads than
    # they save.
    threads = max(2, torch.get_num_threads())
    return max(1, min(threads << 16, (threads << 19) // num_classes))


def _shown_options(module: object, hidden: tuple[str, ...] = ()) -> str:
    """The options of an object's constructor as ``name=value``; those in ``hidden`` only where not at the default."""
    shown = []
    for name, parameter in inspect.signature(type(module)).parameters.items():
        value = getattr(module, name, None)
        if value is None or isinstance(value, torch.nn.Module) or (name in hidden and value == parameter.default):
            continue
        if isinstance(value, torch.Tensor):
            value = [float(f"{number:.6g}") for number in value.tolist()]
        if isinstance(parameter.default, float) and isinstance(value, int):
            value = float(value)  # margin=5 and margin=5.0 are one loss
        shown.append(f"{name}={value!r}")
    return ", ".join(shown)


class VoxelLoss(_Loss):
    """The base class of the losses that have a value for each voxel. Subclass it for a loss of your own.

    It checks shapes, types and labels, computes half precision in float32, leaves ignored voxels out and reduces. A
    subclass defines ``voxel_loss``, a few lines that autograd can differentiate. Options of its own go into its
    ``__init__``, which hands ``ignore_index`` and ``reduction`` on.

    It may also define ``fused(below, label, grad) -> values``, which gives the same values and their gradient at once,
    in less time and memory. It works on a block of n voxels of b samples:

    - ``below``, (b, K, n): the logits minus the largest one of the voxel, which is -d; it may be overwritten;
    - ``label``, (b, 1, n): int64 labels, all of them within 0..K-1;
    - ``grad``, (b, K, n): to be filled with the derivative of the values in the logits;
    - the values that it returns: (b, 1, n).

    Without ``fused``, autograd differentiates ``voxel_loss``. A class that changes ``voxel_loss`` alone does not
    inherit the ``fused`` of its parent, since the two would no longer agree.

    Args:
        ignore_index: voxels with this label do not count.
        reduction: "mean" over the voxels that count, "sum" over them, or "none" for the value of each voxel.
        weight: of each class, K numbers >= 0, as in torch. It works through ``at_label``. None: 1 for all.

    Shape:
        logits (B, K, *spatial) floating point; target (B, *spatial) or (B, 1, *spatial) labels, or (B, K, *spatial)
        soft labels. Returns a scalar, or (B, *spatial) where the reduction is "none".

    Raises:
        ValueError: unknown reduction; weights that are no numbers >= 0 or not K; logits or target not as the module
            docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import VoxelLoss
        >>> class LinearLoss(VoxelLoss):
        ...     def voxel_loss(self, logits, target):
        ...         return 1 - self.at_label(logits.softmax(1), target)
        >>> LinearLoss()(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)).item()
        0.75
    """

    fused: FusedForm | None = None

    def __init__(
        self, ignore_index: int = -100, reduction: Reduction = "mean", weight: ClassWeights | None = None
    ) -> None:
        super().__init__()
        self.reduction = _choice("reduction", reduction, Reduction)
        self.ignore_index = _whole("ignore_index", ignore_index)
        self.weight: torch.Tensor | None
        self.register_buffer("weight", None if weight is None else _class_weights(weight), persistent=False)

    def extra_repr(self) -> str:
        """The options for repr; ``ignore_index``, ``reduction`` and ``sigmoid`` only where they are not the default."""
        return _shown_options(self, hidden=("ignore_index", "reduction", "sigmoid"))

    def voxel_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The definition: the loss of each voxel.

        Args:
            logits: (B, K, *spatial), float32 or float64, already checked; 0 where a voxel is ignored.
            target: (B, *spatial), int64. Voxels with ``ignore_index`` are still in it; what comes out there is dropped.
                Or soft labels, (B, K, *spatial), floating point.

        Returns:
            (B, *spatial). Where the reduction is the mean, the mean of these is the loss.
        """
        raise NotImplementedError(f"{type(self).__name__}: expected a definition of voxel_loss(logits, target)")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A closed form belongs to the definition beside it. It is dropped where a later class changes the definition.
        definition, closed_form = (
            next(place for place, parent in enumerate(cls.__mro__) if name in vars(parent))
            for name in ("voxel_loss", "fused")
        )
        if definition < closed_form:
            cls.fused = None

    def at_label(self, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The value of the labelled class at each voxel, times the weight of that class, for use in ``voxel_loss``.
        With soft labels it is the sum over the classes of label, weight and value.

        Args:
            values: one for each class, (B, K, *spatial), such as log-probabilities.
            target: (B, *spatial), int64. A voxel with ``ignore_index`` gets the value of class 0. Or soft labels.

        Returns:
            (B, *spatial).
        """
        values = self.weighted(values, target)
        if target.is_floating_point():
            return (target * values).sum(1)
        inside = target.masked_fill(target == self.ignore_index, 0)
        return values.gather(1, inside.unsqueeze(1)).squeeze(1)

    def weighted(self, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Values times the weight of their class, for use in ``voxel_loss`` where a term is no ``at_label``. Where the
        reduction is the mean over labels, the weights are divided by the mean weight of these labels, as in torch.

        Args:
            values: one for each class, (B, K, *spatial).
            target: as for ``at_label``.

        Returns:
            Like values.
        """
        if self.weight is None:
            return values
        weight = self.weight.to(values)
        if self.reduction == "mean" and not target.is_floating_point():
            keep = target != self.ignore_index
            total = torch.where(keep, weight[target.masked_fill(~keep, 0)], 0).sum()
            weight = weight * torch.where(total > 0, keep.sum() / total, 0)
        return values * weight.view(-1, *[1] * (values.dim() - 2))

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of a batch; shapes and errors as the class says."""
        target, keep = self._checked(logits, target)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        with _autocast_off(logits.device):
            if self.fused is None or not self._fusible(target) or _plain_form_needed():
                values = self.voxel_loss(_without_ignored(logits, keep), target)
                values = values if keep is None else torch.where(keep, values, values.new_zeros(()))
            else:
                values = _Fused.apply(logits, target, keep, self.fused)
        if self.reduction == "none":
            loss = values
        elif self.reduction == "sum":
            loss = values.sum()
        else:
            loss = values.sum() / (max(1, values.numel()) if keep is None else keep.sum().clamp(min=1))
        _raise_if_not_finite(loss, logits)
        return loss

    def _checked(self, logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The target and where it counts, as ``voxel_loss`` takes them."""
        checked = _checked_target(logits, target, self.ignore_index, soft=True)
        if self.weight is not None and len(self.weight) != logits.shape[1]:
            raise ValueError(
                f"weight: got {len(self.weight)} numbers, expected one for each of {logits.shape[1]} classes"
            )
        return checked

    def _fusible(self, target: torch.Tensor) -> bool:
        """``fused`` knows labels without weights only."""
        return self.weight is None and not target.is_floating_point()


def _autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def _plain_form_needed() -> bool:
    """Under torch.compile, which fuses the definition itself, and under torch.func (vmap, jvp, hessian, ...)."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


class _Fused(torch.autograd.Function):
    """Values of the voxels by a loss's ``fused``, 0 where a voxel is ignored. The gradient is all that is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        target: torch.Tensor,
        keep: torch.Tensor | None,
        fused: FusedForm,
    ) -> torch.Tensor:
        ctx.shape = logits.shape
        batch, classes, voxels = logits.shape[0], logits.shape[1], target.shape[1:].numel()
        logits, label = logits.contiguous().view(batch, classes, voxels), target.reshape(batch, 1, voxels)
        ignored = None if keep is None else ~keep.reshape(batch, 1, voxels)
        values = logits.new_empty(tuple(label.shape))  # a tuple: MONAI's MetaTensor takes nothing else
        needed = ctx.needs_input_grad[0]
        step = _block_voxels(logits.device, classes)
        samples = max(1, step // max(1, voxels))  # small images share a block
        grad = (
            torch.empty_like(logits) if needed else logits.new_empty((min(samples, batch), classes, min(step, voxels)))
        )
        for row in range(0, batch, samples):
            for start in range(0, voxels, step):
                block = (slice(row, row + samples), slice(None), slice(start, start + step))
                part = label[block]
                below = logits[block] - logits[block].amax(1, keepdim=True)
                block_grad = grad[block] if needed else grad[: part.shape[0], :, : part.shape[2]]
                if ignored is None:
                    values[block] = fused(below, part, block_grad)
                else:
                    skip = ignored[block]
                    values[block] = fused(below, part.masked_fill(skip, 0), block_grad).masked_fill_(skip, 0)
                    block_grad.masked_fill_(skip, 0)
        if needed:
            ctx.save_for_backward(grad)
        return values.view(target.shape)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: what follows would be taken for a constant, silently
            raise RuntimeError(
                "create_graph: the losses of mbls.losses compute their gradient in closed form and can be "
                "differentiated once; for a second derivative use loss.voxel_loss(logits, target), the plain form, "
                "or torch.func"
            )
        (grad,) = ctx.saved_tensors
        grad = grad * grad_output.reshape(grad.shape[0], 1, grad.shape[2])
        return grad.view(ctx.shape), None, None, None


# The one door for input. mbls.metrics, mbls.posthoc and mbls.constraints come through it too, so that all of them take
# the same and say the same. It stands here, since this file has to work where it is copied alone.


def _check_tensor(name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        return
    if hasattr(value, "logits"):
        hint = "; a model's output holds one in .logits"
    elif isinstance(value, dict):
        hint = f"; take one of its entries, such as [{next(iter(value), 'out')!r}]"
    elif isinstance(value, (list, tuple)) and any(isinstance(one, torch.Tensor) for one in value):
        hint = (
            "; for deep supervision put the loss into MONAI's DeepSupervisionLoss or nnU-Net's DeepSupervisionWrapper"
        )
    elif hasattr(value, "__array__"):
        hint = "; torch.as_tensor makes one"
    else:
        hint = ""
    raise ValueError(
        f"{name}: got a {type(value).__module__}.{type(value).__qualname__}, expected a torch.Tensor{hint}"
    )


def _check_scores(name: str, scores: torch.Tensor) -> None:
    """Logits or probabilities."""
    _check_tensor(name, scores)
    if scores.dim() < 2 or not scores.is_floating_point():
        raise ValueError(
            f"{name}: got shape {tuple(scores.shape)} of {scores.dtype}, expected floating point (B, K, *spatial)"
        )
    if scores.shape[1] < 2:
        hint = "for one-channel logits there is MbLSLoss(sigmoid=True)"
        if name == "probs":
            hint = "the two classes of one channel p are torch.cat([1 - p, p], 1)"
        raise ValueError(
            f"{name}: got {scores.shape[1]} class (dimension 1 of {tuple(scores.shape)}), expected at least 2; {hint}"
        )


def _checked_labels(name: str, labels: torch.Tensor) -> torch.Tensor:
    """Class labels as integers. Loaders of images give them as floats, which become int64 where they are whole."""
    _check_tensor(name, labels)
    if labels.dtype == torch.bool or labels.is_complex():
        raise ValueError(f"{name}: got {labels.dtype}, expected class labels, integers or whole-numbered floats")
    if not labels.is_floating_point():
        return labels
    if not _plain_form_needed():  # on a GPU the host waits here, as it does not for integers
        broken = labels[labels.frac() != 0]  # NaN and infinity too
        if broken.numel():
            raise ValueError(
                f"{name}: got label {broken[0].item()!r} ({broken.numel()} voxels with a fraction), "
                "expected whole numbers"
            )
    return labels.long()


def _checked_voxels(
    name: str, scores: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, soft: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels and mask, (B, *spatial), of the voxels of ``name``, logits or probabilities. A wrong one is a ValueError;
    whether labels lie within 0..K-1 is left to the caller. Where ``soft``, the target may be soft labels as well, like
    the scores in shape; these come back in floating point."""
    _check_scores(name, scores)
    if soft and isinstance(target, torch.Tensor) and target.shape == scores.shape and target.is_floating_point():
        target = _checked_soft_labels(name, scores, target)
    else:
        target = _checked_labels("target", _of_voxels("target", target, name, scores, soft))
    if mask is not None:
        mask = _of_voxels("mask", mask, name, scores)
        if mask.dtype != torch.bool:
            raise ValueError(f"mask: got {mask.dtype}, expected torch.bool, True where a voxel counts")
    return target, mask


def _checked_soft_labels(scores_name: str, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Class probabilities in floating point. Their values are looked at on the CPU only, as those of labels are."""
    _check_device("target", target, scores_name, scores)
    target = target.to(torch.promote_types(scores.dtype, torch.float32))
    if target.device.type == "cpu" and target.numel() and not _plain_form_needed():
        _raise_if_no_probabilities(target)
    return target


def _raise_if_no_probabilities(target: torch.Tensor) -> None:
    low, off = float(target.min()), float((target.sum(1) - 1).abs().max())
    if not (low >= 0 and off <= 2e-2):  # sums in bfloat16 are off by less
        raise ValueError(
            f"target: got soft labels down to {low:.4g} with sums off 1 by up to {off:.4g}, "
            "expected probabilities that sum to 1 over dimension 1"
        )


def _check_device(name: str, values: torch.Tensor, scores_name: str, scores: torch.Tensor) -> None:
    if values.device != scores.device:
        raise ValueError(f"{name}: got device {values.device}, expected {scores.device} like {scores_name}")


def _of_voxels(
    name: str, values: torch.Tensor, scores_name: str, scores: torch.Tensor, soft: bool = False
) -> torch.Tensor:
    """Labels or mask without the channel of size 1 that they may have."""
    _check_tensor(name, values)
    expected = scores.shape[:1] + scores.shape[2:]
    if values.shape not in (expected, (*scores.shape[:1], 1, *scores.shape[2:])):
        hint = ""
        if values.shape == scores.shape:
            hint = "; one-hot labels want an argmax over their channels" + (", or .float()" if soft else "")
        elif scores.dim() > 2 and values.dim() in (scores.dim() - 1, scores.dim()) and len(values) == len(scores):
            here, there = tuple(scores.shape[2:]), tuple(values.shape[2 - scores.dim() :])
            if here != there:
                hint = (
                    f"; {scores_name} have another resolution, {here} instead of {there}: bring one to that of the "
                    "other with torch.nn.functional.interpolate (labels with mode='nearest')"
                )
        or_soft = ", or soft labels in floating point of that shape" if soft else ""
        raise ValueError(
            f"{name}: got shape {tuple(values.shape)}, expected {tuple(expected)} or a channel of size 1 after the "
            f"batch, for {scores_name} of shape {tuple(scores.shape)}{or_soft}{hint}"
        )
    _check_device(name, values, scores_name, scores)
    return values if values.shape == expected else values.squeeze(1)


@functools.cache
def _has_float64(device: torch.device) -> bool:
    try:
        torch.ones(1, dtype=torch.float64, device=device).add(1)
    except (TypeError, RuntimeError):  # Apple's MPS; some of Intel's GPUs
        return False
    return True


def _where_float64_is(*tensors: Any) -> tuple[Any, ...]:
    """The tensors, on the CPU if their device has no float64; None stays None."""
    return tuple(one if one is None or _has_float64(one.device) else one.cpu() for one in tensors)


#: What metrics and post-hoc scaling say of voxels whose label is not within 0..K-1.
_MASK_OUT = "; mask out the voxels that do not count"


def _raise_if_label_outside(
    labels: torch.Tensor, num_classes: int, otherwise: str, name: str = "target", ignore_index: int | None = None
) -> None:
    labels = labels.long()  # uint8 would take 256 for 0
    outside = (labels < 0) | (labels >= num_classes)
    wrong = labels[outside if ignore_index is None else outside & (labels != ignore_index)]
    if wrong.numel():
        raise ValueError(
            f"{name}: got label {wrong[0].item()} ({wrong.numel()} voxels out of range), "
            f"expected 0..{num_classes - 1}{otherwise}"
        )


def _raise_if_logits_not_finite(logits: torch.Tensor) -> None:
    logits = logits.detach()
    if logits.numel() and not all(bound.isfinite() for bound in logits.aminmax()):  # NaN is lowest and highest
        bad = int((~torch.isfinite(logits)).sum())
        raise ValueError(f"logits: got {bad} NaN or infinite values of {logits.numel()}, expected finite logits")


# Options may come from a text ("mbls:margin=x") or from numpy and torch; what is kept is Python's own.


def _number(name: str, value: Any, allowed: Callable[[Any], bool], expected: str, kind: type = Real) -> Any:
    """The option as an int or a float, or a ValueError that names it."""
    if getattr(value, "ndim", None) == 0 and not getattr(value, "requires_grad", False):  # of numpy or torch
        value = value.item()
    good = isinstance(value, kind) and not isinstance(value, bool) and abs(value) <= torch.finfo(torch.float64).max
    if not (good and allowed(value)):
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
    return int(value) if isinstance(value, Integral) else float(value)


def _positive(name: str, value: Any) -> float:
    return _number(name, value, lambda number: number > 0, "a finite number > 0")


def _not_negative(name: str, value: Any) -> float:
    return _number(name, value, lambda number: number >= 0, "a finite number >= 0")


def _whole(name: str, value: Any, least: int | None = None) -> int:
    expected = "a whole number" if least is None else f"a whole number >= {least}"
    return _number(name, value, lambda number: least is None or number >= least, expected, Integral)


def _spatial_dims(value: Any) -> int:
    return _number("spatial_dims", value, lambda number: number in (2, 3), "2 or 3", Integral)


def _class_weights(values: Any) -> torch.Tensor:
    flat = values.detach().tolist() if isinstance(values, torch.Tensor) else values
    if isinstance(flat, str) or not isinstance(flat, Sequence) or len(flat) < 2:
        raise ValueError(f"weight: got {values!r}, expected a number >= 0 for each class")
    return torch.tensor([float(_not_negative("weight", number)) for number in flat])


def _choice(name: str, value: Any, kind: Any) -> Any:
    """The option as one of the words of a Literal."""
    *words, last = (f'"{word}"' for word in get_args(kind))
    if not (isinstance(value, str) and value in get_args(kind)):
        raise ValueError(f"{name}: got {value!r}, expected {', '.join(words)} or {last}")
    return str(value)


# What only the losses ask of their input.


def _checked_target(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int | None, soft: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Target as int64 (B, *spatial), and where it counts (None: everywhere). A wrong one is a ValueError. Where
    ``soft``, soft labels pass as well, (B, K, *spatial) in floating point; they count everywhere."""
    target = _checked_voxels("logits", logits, target, soft=soft)[0]
    if target.is_floating_point():
        return target, None
    target = target.long()
    # On a GPU reading the range would make the host wait at every step; there the indexing kernels check it themselves.
    if target.device.type == "cpu" and target.numel() and not _plain_form_needed():
        lowest, highest = (int(bound) for bound in target.aminmax())
        if lowest < 0 or highest >= logits.shape[1]:
            otherwise = ", and no ignored voxel" if ignore_index is None else f" or ignore_index={ignore_index}"
            _raise_if_label_outside(target, logits.shape[1], otherwise, ignore_index=ignore_index)
        if ignore_index is None or not lowest <= ignore_index <= highest:
            return target, None
    return target, None if ignore_index is None else target != ignore_index


def _checked_binary_target(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """For logits whose channels are yes-or-no questions of their own: the answers in floating point, (B, C, *spatial)
    like the logits, and which of them count (None: all)."""
    _check_tensor("logits", logits)
    _check_tensor("target", target)
    if logits.dim() < 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)} of {logits.dtype}, expected floating point (B, C, *spatial)"
        )
    without_channel = logits.shape[:1] + logits.shape[2:]
    if target.shape != logits.shape and not (logits.shape[1] == 1 and target.shape == without_channel):
        or_without = f" or {tuple(without_channel)}" if logits.shape[1] == 1 else ", one channel of 0 and 1 a class"
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, expected {tuple(logits.shape)}{or_without} for sigmoid=True"
        )
    _check_device("target", target, "logits", logits)
    if target.is_complex():
        raise ValueError(f"target: got {target.dtype}, expected 0 and 1, or probabilities")
    target = target.reshape(logits.shape).to(torch.promote_types(logits.dtype, torch.float32))
    keep = target != ignore_index
    if target.device.type == "cpu" and not _plain_form_needed():  # as for labels
        wrong = target[keep & ~((target >= 0) & (target <= 1))]
        if wrong.numel():
            raise ValueError(
                f"target: got {wrong[0].item():.6g} ({wrong.numel()} values out of range), "
                f"expected 0..1 or ignore_index={ignore_index} for sigmoid=True"
            )
        if keep.all():
            return target, None
    return target, keep


def _without_ignored(logits: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Logits that are 0 where a voxel is ignored: a product with 0 would let a NaN through, and so would a gradient."""
    if keep is None:
        return logits
    return logits.masked_fill(~(keep if keep.dim() == logits.dim() else keep.unsqueeze(1)), 0)


def _one_hot(probs: torch.Tensor, target: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Labels as probabilities like ``probs``; soft ones are that already. An ignored voxel is one of class 0."""
    if target.is_floating_point():
        return target.to(probs.dtype)
    inside = target if keep is None else target.masked_fill(~keep, 0)
    return torch.zeros_like(probs).scatter_(1, inside.unsqueeze(1), 1)


def _softmax_of_counted(logits: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    return _without_ignored(logits, keep).softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _check_form(logits: torch.Tensor, num_classes: int, spatial_dims: int) -> None:
    """For the losses that are built for one number of classes and dimensions."""
    if logits.dim() != spatial_dims + 2 or logits.shape[1] != num_classes:
        expected = f"(B, {num_classes}, *spatial) with {spatial_dims} spatial dimensions"
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected {expected}")


def _raise_if_not_finite(loss: torch.Tensor, logits: torch.Tensor) -> None:
    # Only on the CPU, since on a GPU the host would wait for the value; and only where the loss shows it, so that a
    # healthy step pays nothing.
    if loss.device.type == "cpu" and not _plain_form_needed() and not torch.isfinite(loss.detach()).all():
        _raise_if_logits_not_finite(logits)


# Parts of the fused forms. Their tensors are blocks: below and grad (b, K, n), one value a voxel (b, 1, n).


def _softmax(below: torch.Tensor, softmax: torch.Tensor) -> torch.Tensor:
    """Writes ``s`` into ``softmax`` and returns ``log sum_k exp(-d_k)``, from ``below = l - max(l) = -d``."""
    total = torch.exp(below, out=softmax).sum(1, keepdim=True)
    softmax.div_(total)
    return total.log_()


def _subtract_label(grad: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | float = 1.0) -> None:
    """``grad -= weight * y``."""
    minus = -weight if isinstance(weight, torch.Tensor) else grad.new_full((), -weight).expand(label.shape)
    grad.scatter_add_(1, label, minus)


class CrossEntropyLoss(VoxelLoss):
    r"""Cross-entropy, ``-log s_j``: torch's value, with the targets and the checks of the other losses here.

    Args:
        ignore_index: voxels with this label do not count.
        reduction: "mean", "sum" or "none"; see the module docstring.
        weight: of each class, K numbers >= 0, as in torch; see the module docstring.

    Shape:
        logits (B, K, *spatial) floating point; target (B, *spatial) or (B, 1, *spatial) labels, or (B, K, *spatial)
        soft labels. Returns a scalar, or (B, *spatial) where the reduction is "none".

    Raises:
        ValueError: an option out of range; logits or target not as the module docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import CrossEntropyLoss
        >>> logits, target = torch.tensor([[1.0, 0.0, -6.0]]), torch.tensor([0])
        >>> round(CrossEntropyLoss()(logits, target).item(), 4)
        0.3139

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, the baseline CE.
    """

    def voxel_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -self.at_label(F.log_softmax(logits, dim=1), target)

    def fused(self, below: torch.Tensor, label: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Gradient ``s - y``."""
        values = _softmax(below, grad) - below.gather(1, label)
        _subtract_label(grad, label)
        return values


class LabelSmoothingLoss(VoxelLoss):
    r"""Cross-entropy against smoothed labels (LS).

    .. math:: (1-\alpha)\,(-\log s_j) + \frac{\alpha}{K} \sum_k -\log s_k

    Args:
        alpha: weight of the uniform distribution in the label, 0 <= alpha <= 1.
        ignore_index: voxels with this label do not count.
        reduction: "mean", "sum" or "none"; see the module docstring.
        weight: of each class, K numbers >= 0, as in torch; see the module docstring.

    Shape:
        logits (B, K, *spatial) floating point; target (B, *spatial) or (B, 1, *spatial) labels, or (B, K, *spatial)
        soft labels. Returns a scalar, or (B, *spatial) where the reduction is "none".

    Raises:
        ValueError: alpha outside [0, 1]; logits or target not as the module docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import LabelSmoothingLoss
        >>> logits, target = torch.tensor([[1.0, 0.0, -6.0]]), torch.tensor([0])
        >>> round(LabelSmoothingLoss(alpha=0.1)(logits, target).item(), 4)
        0.5806

    References:
        Szegedy et al., CVPR 2016, section 7; Murugesan et al., arXiv 2209.09641, the baseline LS.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        *,
        weight: ClassWeights | None = None,
    ) -> None:
        super().__init__(ignore_index, reduction, weight)
        self.alpha = _number("alpha", alpha, lambda number: 0 <= number <= 1, "0 <= alpha <= 1")

    def voxel_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_probs = F.log_softmax(logits, dim=1)
        of_all = self.weighted(log_probs, target).mean(dim=1)
        return -(1 - self.alpha) * self.at_label(log_probs, target) - self.alpha * of_all

    def fused(self, below: torch.Tensor, label: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        r"""Gradient :math:`s - (1-\alpha)\,y - \alpha/K`."""
        values = _softmax(below, grad)
        values.sub_(below.gather(1, label), alpha=1 - self.alpha).sub_(below.mean(1, keepdim=True), alpha=self.alpha)
        _subtract_label(grad, label, 1 - self.alpha)
        grad.sub_(self.alpha / below.shape[1])
        return values


class FocalLoss(VoxelLoss):
    r"""Multi-class focal loss (FL) on the softmax, ``-(1 - s_j)^gamma log s_j``.

    Args:
        gamma: focusing parameter, >= 0; 0 gives cross-entropy.
        ignore_index: voxels with this label do not count.
        reduction: "mean", "sum" or "none"; see the module docstring.
        weight: of each class, K numbers >= 0, as in torch; see the module docstring.

    Shape:
        logits (B, K, *spatial) floating point; target (B, *spatial) or (B, 1, *spatial) labels, or (B, K, *spatial)
        soft labels. Returns a scalar, or (B, *spatial) where the reduction is "none".

    Raises:
        ValueError: negative gamma; logits or target not as the module docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import FocalLoss
        >>> logits, target = torch.tensor([[1.0, 0.0, -6.0]]), torch.tensor([0])
        >>> round(FocalLoss(gamma=3.0)(logits, target).item(), 4)
        0.0061

    References:
        Lin et al., ICCV 2017, Eq. 4; for calibration Mukhoti et al., NeurIPS 2020; Murugesan et al., arXiv 2209.09641,
        the baseline FL.
    """

    def __init__(
        self,
        gamma: float = 3.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        *,
        weight: ClassWeights | None = None,
    ) -> None:
        super().__init__(ignore_index, reduction, weight)
        self.gamma = _not_negative("gamma", gamma)

    def voxel_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_probs = F.log_softmax(logits, dim=1)
        # The clamp keeps the gradient of pow finite where s_k rounds to 1 and gamma < 1.
        miss = (-torch.expm1(log_probs)).clamp(min=torch.finfo(logits.dtype).tiny)
        return -self.at_label(miss**self.gamma * log_probs, target)

    def fused(self, below: torch.Tensor, label: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        r"""Gradient :math:`c\,(s - y)` with :math:`c = (1-s_j)^\gamma - \gamma (1-s_j)^{\gamma-1} s_j \log s_j`."""
        nll = _softmax(below, grad) - below.gather(1, label)
        miss = (-torch.expm1(-nll)).clamp_(min=torch.finfo(below.dtype).tiny)
        factor = miss**self.gamma
        weight = factor + self.gamma * miss ** (self.gamma - 1) * (1 - miss) * nll
        grad.mul_(weight)
        _subtract_label(grad, label, weight)
        return factor.mul_(nll)


class EntropyPenaltyLoss(VoxelLoss):
    r"""Cross-entropy minus the entropy of the prediction (ECP, explicit confidence penalty).

    .. math:: -\log s_j - \alpha H(s), \qquad H(s) = -\sum_k s_k \log s_k \text{ in nats}

    Args:
        alpha: weight of the entropy, >= 0. The official code also divides H by K: its alpha is K times this one.
        ignore_index: voxels with this label do not count.
        reduction: "mean", "sum" or "none"; see the module docstring.
        weight: of each class, K numbers >= 0, as in torch; see the module docstring.

    Shape:
        logits (B, K, *spatial) floating point; target (B, *spatial) or (B, 1, *spatial) labels, or (B, K, *spatial)
        soft labels. Returns a scalar, or (B, *spatial) where the reduction is "none".

    Raises:
        ValueError: negative alpha; logits or target not as the module docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import EntropyPenaltyLoss
        >>> logits, target = torch.tensor([[1.0, 0.0, -6.0]]), torch.tensor([0])
        >>> round(EntropyPenaltyLoss(alpha=0.1)(logits, target).item(), 4)
        0.2552

    References:
        Pereyra et al., ICLR workshop 2017; Murugesan et al., arXiv 2209.09641, the baseline ECP.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        *,
        weight: ClassWeights | None = None,
    ) -> None:
        super().__init__(ignore_index, reduction, weight)
        self.alpha = _not_negative("alpha", alpha)

    def voxel_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_probs = F.log_softmax(logits, dim=1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1)
        return -self.at_label(log_probs, target) - self.alpha * entropy

    def fused(self, below: torch.Tensor, label: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        r"""Gradient :math:`s - y - \alpha\,s\,(d - \sum_k s_k d_k)`.

        The entropy is :math:`H(s) = \sum_k s_k d_k + \log \sum_k e^{-d_k}`.
        """
        log_total = _softmax(below, grad)
        values = log_total - below.gather(1, label)
        weighted = below.mul_(grad)  # -s d
        expected = weighted.sum(1, keepdim=True)
        grad.mul_(1 - self.alpha * expected).add_(weighted, alpha=self.alpha)
        _subtract_label(grad, label)
        return values.sub_(log_total.sub_(expected), alpha=self.alpha)


class MbLSLoss(VoxelLoss):
    r"""Cross-entropy with a margin on the logit distances (MbLS).

    .. math:: -\log s_j + \frac{\alpha}{K} \sum_k \max(0, \max_i l_i - l_k - m)

    Logits that share the maximum share its sub-gradient evenly (as in ``torch.amax``), so that the order of the classes
    never matters.

    With ``sigmoid=True`` each channel is a yes-or-no question of its own, one channel or many (multi-label):

    .. math:: \mathrm{BCE}(l, y) + \frac{\alpha}{2} \max(0, |l| - m)

    One such channel is exactly the softmax loss of the two logits (0, l).

    Args:
        margin: largest logit distance that goes unpenalised, m >= 0, in logits.
        alpha: weight of the penalty, lambda in the paper, >= 0.
        norm: "l1" for the hinge above, "l2" for its square, ``max(0, d - m) ** 2``, which is zero inside the margin as
            well. The official 'L2' code squares before the hinge and so penalises distances on both sides of m.
        ignore_index: voxels with this label do not count.
        reduction: "mean", "sum" or "none"; see the module docstring.
        weight: of each class, K numbers >= 0, as in torch; see the module docstring. Not with ``sigmoid``.
        sigmoid: logits are (B, C, *spatial), C >= 1; target is like them, 0 and 1 or probabilities, or ``ignore_index``
            where an answer does not count; for one channel (B, *spatial) too. "none" returns (B, C, *spatial). The mean
            is over all answers that count.

    Shape:
        logits (B, K, *spatial) floating point; target (B, *spatial) or (B, 1, *spatial) labels, or (B, K, *spatial)
        soft labels. Returns a scalar, or (B, *spatial) where the reduction is "none".

    Raises:
        ValueError: negative margin or alpha; unknown norm; weight beside sigmoid; logits or target not as the module
            docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import MbLSLoss
        >>> logits, target = torch.tensor([[1.0, 0.0, -6.0]]), torch.tensor([0])
        >>> round(MbLSLoss(margin=5.0)(logits, target).item(), 4)
        0.3806
        >>> one_channel = MbLSLoss(margin=5.0, sigmoid=True)(torch.tensor([[-7.0]]), torch.tensor([1]))
        >>> two_classes = MbLSLoss(margin=5.0)(torch.tensor([[0.0, -7.0]]), torch.tensor([1]))
        >>> round(one_channel.item(), 4), round(two_classes.item(), 4)
        (7.1009, 7.1009)

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, the penalty form of the margin constraint; Liu
        et al., CVPR 2022, "The Devil is in the Margin".
    """

    def __init__(
        self,
        margin: float = 10.0,
        alpha: float = 0.1,
        norm: Norm = "l1",
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        *,
        weight: ClassWeights | None = None,
        sigmoid: bool = False,
    ) -> None:
        super().__init__(ignore_index, reduction, weight)
        if not isinstance(sigmoid, bool):
            raise ValueError(f"sigmoid: got {sigmoid!r}, expected True or False")
        if sigmoid and weight is not None:
            raise ValueError("weight: got class weights beside sigmoid=True, expected None, since it has no classes")
        self.sigmoid = sigmoid
        self.margin = _not_negative("margin", margin)
        self.alpha = _not_negative("alpha", alpha)
        self.norm = _choice("norm", norm, Norm)

    def voxel_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        distances = logits.abs() if self.sigmoid else logits.amax(dim=1, keepdim=True) - logits
        excess = F.relu(distances - self.margin)
        penalty = excess if self.norm == "l1" else excess.square()
        if self.sigmoid:
            answers = target.to(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, answers, reduction="none") + self.alpha / 2 * penalty
        return -self.at_label(F.log_softmax(logits, dim=1), target) + self.alpha * penalty.mean(dim=1)

    def _checked(self, logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return (
            _checked_binary_target(logits, target, self.ignore_index)
            if self.sigmoid
            else super()._checked(logits, target)
        )

    def fused(self, below: torch.Tensor, label: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        r"""Gradient :math:`s - y + \frac{\alpha}{K} p`.

        A violating class has :math:`p_k = -1` ("l2": :math:`-2\,(d_k - m)`). The classes at the maximum share what
        makes the :math:`p_k` of a voxel sum to 0.
        """
        weight = self.alpha / below.shape[1]
        values = _softmax(below, grad) - below.gather(1, label)
        _subtract_label(grad, label)
        pull = F.softshrink(below, self.margin)  # -max(0, d - m): soft-shrinkage is the hinge, since -d <= 0
        if self.norm == "l1":
            values.sub_(pull.sum(1, keepdim=True), alpha=weight)
            pull.sign_()
        else:
            values.add_(pull.square().sum(1, keepdim=True), alpha=weight)
            pull.mul_(2)
        at_top = below.sign_().add_(1)  # 1 where d = 0, else 0
        grad.add_(pull, alpha=weight)
        share = pull.sum(1, keepdim=True).div_(at_top.sum(1, keepdim=True))
        grad.addcmul_(at_top, share, value=-weight)
        return values


class SVLSLoss(VoxelLoss):
    r"""Cross-entropy against labels smoothed over the neighbouring voxels (SVLS).

    The one-hot labels are filtered with a Gaussian whose centre carries as much weight as all its neighbours together,
    with replicate padding. A voxel with ``ignore_index`` takes no part: the labels of its neighbours are renormalised
    without it.

    Args:
        num_classes: K.
        sigma: standard deviation of the Gaussian, > 0, in voxels.
        kernel_size: odd, >= 3, in voxels.
        spatial_dims: 2 or 3.
        ignore_index: voxels with this label do not count.
        reduction: "mean", "sum" or "none"; see the module docstring.
        weight: of each class, K numbers >= 0, as in torch; see the module docstring.

    Shape:
        logits (B, num_classes, *spatial) floating point, with spatial_dims spatial dimensions; target (B, *spatial) or
        (B, 1, *spatial) labels. Returns a scalar, or (B, *spatial) where the reduction is "none".

    Raises:
        ValueError: an option out of range; logits with another number of classes or dimensions; logits or target not as
            the module docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import SVLSLoss
        >>> target = torch.tensor([[[0, 0, 0], [0, 1, 0], [0, 0, 0]]])
        >>> loss = SVLSLoss(num_classes=2)
        >>> loss.smooth_labels(target)[0, 1].round(decimals=2)
        tensor([[0.0500, 0.0800, 0.0500],
                [0.0800, 0.5000, 0.0800],
                [0.0500, 0.0800, 0.0500]])
        >>> round(loss(torch.zeros(1, 2, 3, 3), target).item(), 4)
        0.6931

    References:
        Islam and Glocker, IPMI 2021; Murugesan et al., arXiv 2209.09641, the baseline SVLS.
    """

    def __init__(
        self,
        num_classes: int,
        sigma: float = 1.0,
        kernel_size: int = 3,
        spatial_dims: int = 2,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        *,
        weight: ClassWeights | None = None,
    ) -> None:
        super().__init__(ignore_index, reduction, weight)
        self.num_classes = _whole("num_classes", num_classes, 2)
        self.sigma = _positive("sigma", sigma)
        self.kernel_size: int = _number(
            "kernel_size", kernel_size, lambda size: size >= 3 and size % 2 == 1, "an odd number >= 3", Integral
        )
        self.spatial_dims = _spatial_dims(spatial_dims)
        self.padding = self.kernel_size // 2
        self.kernel: torch.Tensor
        kernel = _svls_kernel(self.sigma, self.kernel_size, self.spatial_dims)
        self.register_buffer("kernel", kernel.expand(self.num_classes, 1, *kernel.shape).contiguous(), persistent=False)

    def smooth_labels(self, target: torch.Tensor) -> torch.Tensor:
        """The soft labels that the logits are compared with.

        Args:
            target: (B, *spatial), int64, within 0..K-1 or ``ignore_index``; or soft labels, (B, K, *spatial).

        Returns:
            (B, K, *spatial), float32; they sum to 1 at each voxel.
        """
        if target.is_floating_point():
            one_hot = target.to(self.kernel.dtype)
        else:
            keep = target != self.ignore_index
            one_hot = F.one_hot(torch.where(keep, target, 0), self.num_classes).movedim(-1, 1).to(self.kernel.dtype)
            one_hot = one_hot * keep.unsqueeze(1)
        padded = F.pad(one_hot, (self.padding, self.padding) * self.spatial_dims, mode="replicate")
        convolve = F.conv2d if self.spatial_dims == 2 else F.conv3d
        smooth = convolve(padded, self.kernel, groups=self.num_classes)
        return smooth / smooth.sum(dim=1, keepdim=True).clamp(min=torch.finfo(smooth.dtype).tiny)

    def voxel_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _check_form(logits, self.num_classes, self.spatial_dims)
        log_probs = self.weighted(F.log_softmax(logits, dim=1), target)
        return -(self.smooth_labels(target) * log_probs).sum(dim=1)


def _svls_kernel(sigma: float, size: int, spatial_dims: int) -> torch.Tensor:
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = line
    for _ in range(spatial_dims - 1):
        kernel = kernel.unsqueeze(-1) * line
    kernel = kernel / kernel.sum()
    centre = (size // 2,) * spatial_dims
    neighbours = 1 - kernel[centre]
    kernel[centre] = neighbours
    return (kernel / kernel.sum()).float()


class NACLLoss(VoxelLoss):
    r"""MONAI's NACLLoss (the follow-up of MbLS) with the targets and the checks of the other losses here.

    It has neither ``ignore_index`` nor a value for each voxel, so the reduction is always the mean. Needs MONAI.

    Args:
        num_classes: K.
        alpha: weight of the neighbour-aware penalty, >= 0.
        spatial_dims: 2 or 3.

    Shape:
        logits (B, num_classes, *spatial) floating point, with spatial_dims spatial dimensions; target (B, *spatial) or
        (B, 1, *spatial) labels. Returns a scalar.

    Raises:
        ValueError: an option out of range; logits with another number of classes or dimensions; logits or target not as
            the module docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import NACLLoss
        >>> loss = NACLLoss(num_classes=2, alpha=0.1)
        >>> round(loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)).item(), 4)
        0.7279

    References:
        Murugesan et al., MICCAI 2023, arXiv 2303.06268.
    """

    def __init__(self, num_classes: int, alpha: float = 0.1, spatial_dims: int = 2) -> None:
        super().__init__()
        self.num_classes = _whole("num_classes", num_classes, 2)
        alpha = _not_negative("alpha", alpha)
        self.spatial_dims = _spatial_dims(spatial_dims)
        from monai.losses.nacl_loss import NACLLoss as MonaiNACLLoss

        self.nacl = MonaiNACLLoss(classes=self.num_classes, dim=self.spatial_dims, alpha=alpha)

    @property
    def alpha(self) -> float:
        """Weight of the neighbour-aware penalty."""
        return self.nacl.alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self.nacl.alpha = value

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        target, _ = _checked_target(logits, target, ignore_index=None)
        _check_form(logits, self.num_classes, self.spatial_dims)
        with _autocast_off(logits.device):
            loss = self.nacl(logits.float(), target)
        _raise_if_not_finite(loss, logits)
        return loss


class _L1ACELoss(_Loss):
    """What the two L1-ACE losses share; a subclass says how a probability is shared between bins."""

    #: A bin of less weight than this is empty.
    empty_weight: float

    def __init__(self, num_bins: int, ignore_index: int) -> None:
        super().__init__()
        self.num_bins = _whole("num_bins", num_bins, 1)
        self.ignore_index = _whole("ignore_index", ignore_index)

    def extra_repr(self) -> str:
        """The options for repr; ``ignore_index`` only where it is not the default."""
        return _shown_options(self, hidden=("ignore_index",))

    def shares(self, probs: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | float]]:
        """The bins that each probability belongs to, int64 like ``probs``, and the share that each of them gets."""
        raise NotImplementedError

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of a batch; shapes and errors as the class says."""
        target, keep = _checked_target(logits, target, self.ignore_index, soft=True)
        if logits.dim() == 2:  # rows are the voxels of one sample, as in mbls.metrics
            logits, target = logits.T.unsqueeze(0), target.movedim(0, -1).unsqueeze(0)
            keep = None if keep is None else keep.unsqueeze(0)
        with _autocast_off(logits.device):
            probs = _softmax_of_counted(logits, keep).flatten(2)
            hits = _one_hot(probs.view(logits.shape), target, keep).flatten(2)
            counted = torch.ones_like(probs[:, :1]) if keep is None else keep.flatten(1).unsqueeze(1).to(probs.dtype)
            hits = hits * counted
            weight = probs.new_zeros(*probs.shape[:2], self.num_bins)
            gap = torch.zeros_like(weight)  # of the sums of probabilities and of hits
            for place, share in self.shares(probs):
                part = counted.expand_as(probs) * share
                weight = weight.scatter_add(2, place, part)
                gap = gap.scatter_add(2, place, part * (probs - hits))
            filled = ~(weight < self.empty_weight)  # a NaN does not pass for an empty bin
            gaps = torch.where(filled, gap.abs() / torch.where(filled, weight, 1), 0)
            of_class = gaps.sum(2) / filled.sum(2).clamp(min=1)
            loss = torch.where(hits.sum(2) > 0, of_class, 0).mean()
        _raise_if_not_finite(loss, logits)
        return loss


class HardL1ACELoss(_L1ACELoss):
    r"""The average calibration error of each class as a loss, over bins of equal width.

    For each sample and class: the mean over the non-empty bins of ``abs(e - o)``, with e the mean probability of the
    class in the bin and o the share of voxels with that label. Only e has a gradient. A class that is absent from a
    sample's labels adds 0; the result is the mean over samples and classes. A bin holds its left edge, and the last one
    both. Meant to be added to another loss: :class:`WithL1ACE`.

    Args:
        num_bins: bins of equal width on [0, 1], >= 1.
        ignore_index: voxels with this label do not count.

    Shape:
        logits (B, K, *spatial) floating point; target (B, *spatial) or (B, 1, *spatial) labels. Returns a scalar.
        (N, K) with (N,) is one sample of N voxels.

    Raises:
        ValueError: an option out of range; logits or target not as the module docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import HardL1ACELoss
        >>> loss = HardL1ACELoss()(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))
        >>> round(loss.item(), 4)
        0.25

    References:
        Barfoot et al., "Average Calibration Losses for Reliable Uncertainty in Medical Image Segmentation", IEEE TMI
        2026, the hard-binned loss, as its official code reduces it.
    """

    empty_weight = 1.0

    def __init__(self, num_bins: int = 20, ignore_index: int = -100) -> None:
        super().__init__(num_bins, ignore_index)

    def shares(self, probs: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | float]]:
        return [((probs.detach() * self.num_bins).long().clamp_(0, self.num_bins - 1), 1.0)]


class SoftL1ACELoss(_L1ACELoss):
    r"""As :class:`HardL1ACELoss`, with each probability shared linearly between the two nearest bin centres.

    The gradient therefore also moves weight between bins. A probability beyond the first or last centre belongs wholly
    to that bin.

    Args:
        num_bins: bins of equal width on [0, 1], >= 1.
        empty_weight: a bin of less weight than this is empty, > 0, in voxels.
        ignore_index: voxels with this label do not count.

    Shape:
        logits (B, K, *spatial) floating point; target (B, *spatial) or (B, 1, *spatial) labels. Returns a scalar.
        (N, K) with (N,) is one sample of N voxels.

    Raises:
        ValueError: an option out of range; logits or target not as the module docstring says.

    Example:
        >>> import torch
        >>> from mbls.losses import SoftL1ACELoss
        >>> loss = SoftL1ACELoss()(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))
        >>> round(loss.item(), 4)
        0.25

    References:
        Barfoot et al., "Average Calibration Losses for Reliable Uncertainty in Medical Image Segmentation", IEEE TMI
        2026, the soft-binned loss, as its official code reduces it.
    """

    def __init__(self, num_bins: int = 20, empty_weight: float = 0.01, ignore_index: int = -100) -> None:
        super().__init__(num_bins, ignore_index)
        self.empty_weight = _positive("empty_weight", empty_weight)

    def shares(self, probs: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | float]]:
        position = (probs * self.num_bins - 0.5).clamp(0, self.num_bins - 1)
        left = position.detach().floor()
        right = (left + 1).clamp(max=self.num_bins - 1)
        towards_right = position - left
        # The clamp is for NaN, which long() makes an index of its own that no bin has.
        places = (side.long().clamp_(0, self.num_bins - 1) for side in (left, right))
        return list(zip(places, (1 - towards_right, towards_right), strict=True))


class _WithInner(_Loss):
    """A loss added to another one, whose options ``alpha`` and ``ignore_index`` are those of the sum."""

    def __init__(self, loss: _Loss, because: str) -> None:
        super().__init__()
        if loss.reduction != "mean":
            raise ValueError(f'loss: got reduction={loss.reduction!r}, expected "mean", since {because}')
        self.loss = loss

    @property
    def ignore_index(self) -> int:
        """The label of the voxels that do not count."""
        inner: Any = self.loss
        return inner.ignore_index

    @property
    def alpha(self) -> float:
        """Weight of the inner loss's penalty. Reading or setting it is an AttributeError where that loss has none."""
        inner: Any = self.loss
        return inner.alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        inner: Any = self.loss
        if not hasattr(inner, "alpha"):
            raise self._no_alpha()
        inner.alpha = value

    def _no_alpha(self) -> AttributeError:
        return AttributeError(
            f"alpha: got the inner loss {type(self.loss).__name__} without one, expected one with alpha"
        )

    def __getattr__(self, name: str) -> Any:
        if name == "alpha":  # the property has failed; torch's message would not name the inner loss
            raise self._no_alpha()
        return super().__getattr__(name)


class WithDice(_WithInner):
    """A loss plus MONAI's soft Dice loss, 1 : 1 (CE+DSC and MbLS+DSC of the paper). Needs MONAI.

    Args:
        loss: a loss of this module with ``reduction="mean"``; its ignored voxels are left out of the Dice as well.

    Shape:
        As for the inner loss. Returns a scalar.

    Raises:
        ValueError: another reduction than the mean; else what the inner loss raises.

    Example:
        >>> import torch
        >>> from mbls.losses import MbLSLoss, WithDice
        >>> loss = WithDice(MbLSLoss(margin=5.0))
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
        >>> round((loss(logits, target) - loss.loss(logits, target)).item(), 4)
        0.6667
        >>> loss.alpha
        0.1

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641, the rows "+DSC"; Milletari et al., 3DV 2016.
    """

    def __init__(self, loss: VoxelLoss) -> None:
        from monai.losses.dice import DiceLoss

        super().__init__(loss, "Dice has no value for each voxel")
        self.dice = DiceLoss()

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        first = self.loss(logits, target)
        if getattr(self.loss, "sigmoid", False):
            target, keep = _checked_binary_target(logits, target, self.ignore_index)
        else:
            target, keep = _checked_target(logits, target, self.ignore_index, soft=True)
        with _autocast_off(logits.device):
            if getattr(self.loss, "sigmoid", False):
                probs, labels = _without_ignored(logits, keep).to(target.dtype).sigmoid(), target
            else:
                probs = _softmax_of_counted(logits, keep)
                labels = _one_hot(probs, target, keep)
                keep = None if keep is None else keep.unsqueeze(1)
            if keep is not None:
                probs, labels = probs * keep, labels * keep
            return first + self.dice(probs, labels)


class WithL1ACE(_WithInner):
    """A loss plus an L1-ACE loss.

    Args:
        loss: a loss of this module with ``reduction="mean"``, :class:`WithDice` too; its ignored voxels are left out of
            the calibration error as well.
        weight: of the L1-ACE loss, >= 0.
        bins: "hard" for :class:`HardL1ACELoss`, "soft" for :class:`SoftL1ACELoss`.

    Shape:
        As for the inner loss. Returns a scalar.

    Raises:
        ValueError: another reduction than the mean; an option out of range; else what the inner loss raises.

    Example:
        >>> import torch
        >>> from mbls.losses import CrossEntropyLoss, WithL1ACE
        >>> loss = WithL1ACE(CrossEntropyLoss(), bins="soft")
        >>> round(loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]])).item(), 4)
        0.9431

    References:
        Barfoot et al., "Average Calibration Losses for Reliable Uncertainty in Medical Image Segmentation", IEEE TMI
        2026, who add it to Dice and cross-entropy.
    """

    def __init__(self, loss: _Loss, weight: float = 1.0, bins: L1ACEBins = "hard") -> None:
        super().__init__(loss, "L1-ACE has no value for each voxel")
        if getattr(loss, "sigmoid", False) or getattr(getattr(loss, "loss", None), "sigmoid", False):
            raise ValueError("loss: got one with sigmoid=True, expected a softmax loss, since L1-ACE compares classes")
        self.weight = _not_negative("weight", weight)
        kind = HardL1ACELoss if _choice("bins", bins, L1ACEBins) == "hard" else SoftL1ACELoss
        self.l1_ace = kind(ignore_index=self.ignore_index)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.loss(logits, target) + self.weight * self.l1_ace(logits, target)


class AlphaSchedule:
    """The penalty's weight as a function of the epoch, up to a maximum, as the official code schedules it.

    Args:
        alpha: weight in epoch 0, >= 0.
        mode: "constant"; "add" (``alpha + step * n``); or "multiply" (``alpha * step ** n``).
        step: what is added or what the weight is multiplied by, >= 0.
        every: n counts blocks of this many epochs, >= 1.
        maximum: the weight stops growing here, >= 0.

    Raises:
        ValueError: unknown mode; alpha, step or maximum that is not a finite number >= 0; every < 1; a negative epoch.

    Example:
        >>> from mbls.losses import AlphaSchedule
        >>> schedule = AlphaSchedule(0.1, "multiply", step=2, every=10, maximum=0.3)
        >>> [schedule(epoch) for epoch in (0, 9, 10, 20)]
        [0.1, 0.1, 0.2, 0.3]

    References:
        Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641; ``schedule_alpha`` of its official
        implementation.
    """

    def __init__(
        self, alpha: float, mode: ScheduleMode = "constant", step: float = 0.0, every: int = 1, maximum: float = 100.0
    ) -> None:
        self.mode: ScheduleMode = _choice("mode", mode, ScheduleMode)
        self.alpha, self.step = _not_negative("alpha", alpha), _not_negative("step", step)
        self.every, self.maximum = _whole("every", every, 1), _not_negative("maximum", maximum)

    @classmethod
    def parse(cls, spec: str, alpha: float) -> AlphaSchedule:
        """A schedule from a text.

        Args:
            spec: "constant", "add:STEP:EVERY" or "multiply:STEP:EVERY", the last two also with ":MAXIMUM".
            alpha: weight in epoch 0.

        Raises:
            ValueError: another form; else as for the class.

        Example:
            >>> from mbls.losses import AlphaSchedule
            >>> AlphaSchedule.parse("add:0.1:10", alpha=0.1)
            AlphaSchedule(alpha=0.1, mode='add', step=0.1, every=10, maximum=100.0)
        """
        mode, *parts = spec.split(":")
        numbers = [_parsed(part) for part in parts]
        if mode == "constant" and not parts:
            return cls(alpha)
        if mode not in ("add", "multiply") or len(parts) not in (2, 3) or any(isinstance(n, str) for n in numbers):
            raise ValueError(
                f"schedule: got {spec!r}, expected constant, add:STEP:EVERY or multiply:STEP:EVERY, "
                "with :MAXIMUM or without, e.g. add:0.1:10"
            )
        options: dict[str, Any] = dict(zip(("step", "every", "maximum"), numbers, strict=False))
        return cls(alpha, mode, **options)

    def __call__(self, epoch: int) -> float:
        """The weight in an epoch. It depends on nothing else, so that a resumed run needs no state of the schedule.

        Args:
            epoch: counted from 0.

        Raises:
            ValueError: a negative epoch.
        """
        epoch = _whole("epoch", epoch, 0)
        if self.mode == "constant":
            return self.alpha
        blocks = epoch // self.every
        value = self.alpha + self.step * blocks if self.mode == "add" else self.alpha * self.step**blocks
        return min(value, self.maximum)

    def __repr__(self) -> str:
        return f"AlphaSchedule({_shown_options(self)})"


def _without_classes(loss: Callable[..., VoxelLoss]) -> Callable[..., _Loss]:
    """Builder of a loss that does not depend on the number of classes."""

    @functools.wraps(loss, updated=())  # its signature names the options
    def build(num_classes: int, **options: Any) -> _Loss:
        return loss(**options)

    return build


def _with_dice(loss: Callable[..., VoxelLoss]) -> Callable[..., _Loss]:
    """Builder of such a loss and Dice."""

    @functools.wraps(loss, updated=())
    def build(num_classes: int, **options: Any) -> _Loss:
        return WithDice(loss(**options))

    return build


def _with_l1ace(build_inner: Callable[..., _Loss], bins: L1ACEBins) -> Callable[..., _Loss]:
    """Builder of the loss that another builder makes, and L1-ACE."""

    @functools.wraps(build_inner, updated=())
    def build(num_classes: int, **options: Any) -> _Loss:
        return WithL1ACE(build_inner(num_classes, **options), bins=bins)

    return build


#: Name -> ``builder(num_classes, **options)``; see :func:`build_loss`. Its signature names its options.
LOSSES: dict[str, Callable[..., _Loss]] = {
    "ce": _without_classes(CrossEntropyLoss),
    "ce_dice": _with_dice(CrossEntropyLoss),
    "ls": _without_classes(LabelSmoothingLoss),
    "fl": _without_classes(FocalLoss),
    "ecp": _without_classes(EntropyPenaltyLoss),
    "svls": SVLSLoss,
    "mbls": _without_classes(MbLSLoss),
    "mbls_dice": _with_dice(MbLSLoss),
    "nacl": NACLLoss,
    "ce_hard_l1ace": _with_l1ace(_without_classes(CrossEntropyLoss), "hard"),
    "ce_soft_l1ace": _with_l1ace(_without_classes(CrossEntropyLoss), "soft"),
    "ce_dice_hard_l1ace": _with_l1ace(_with_dice(CrossEntropyLoss), "hard"),
    "mbls_hard_l1ace": _with_l1ace(_without_classes(MbLSLoss), "hard"),
}


def build_loss(spec: str, /, num_classes: int, **options: Any) -> _Loss:
    """A loss by its name in :data:`LOSSES`, with options in the text, as keywords, or both.

    Args:
        spec: a name, or a name with options, "mbls:margin=5:alpha=0.1".
        num_classes: K >= 2.
        options: further options of the loss, by name.

    Raises:
        ValueError: unknown name; an option that the loss does not have or that is given twice; a value of another type
            or out of range.

    Example:
        >>> from mbls.losses import build_loss
        >>> build_loss("mbls:margin=5", num_classes=4)
        MbLSLoss(margin=5.0, alpha=0.1, norm='l1')
        >>> build_loss("mbls", num_classes=4, margin=5.0)
        MbLSLoss(margin=5.0, alpha=0.1, norm='l1')
    """
    name, parsed = parse_loss(spec)
    given: dict[str, Any] = dict(parsed)
    if name not in LOSSES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(LOSSES)}")
    num_classes = _whole("num_classes", num_classes, 2)
    for option, value in options.items():
        if option in given:
            raise ValueError(f"{option}: got {given[option]!r} in {spec!r} and {value!r} beside it, expected it once")
    given |= options
    _check_option_names(name, given)
    try:
        return LOSSES[name](num_classes, **given)
    except TypeError as error:
        raise ValueError(f"options of loss {name!r}: got {given}: {error}") from error


def _check_option_names(name: str, options: dict[str, Any]) -> None:
    parameters = inspect.signature(LOSSES[name]).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # a builder that does not say which options it has
    known = [option for option in parameters if option != "num_classes"]
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"options of loss {name!r}: got {option}={value}, expected one of {', '.join(known)}")


def parse_loss(spec: str) -> tuple[str, dict[str, float | str]]:
    """Split "mbls:margin=5:alpha=0.1" into the name and the options of :func:`build_loss`.

    Names and values are not checked here. A whole number is an int, however it is written: "5.0" is 5.

    Args:
        spec: ``name:key=value:...``.

    Returns:
        The name, and the options in their order.

    Raises:
        ValueError: a part that is not key=value; an option that is given twice.

    Example:
        >>> from mbls.losses import parse_loss
        >>> parse_loss("mbls:margin=5.0:alpha=0.1:norm=l2")
        ('mbls', {'margin': 5, 'alpha': 0.1, 'norm': 'l2'})
    """
    name, *parts = spec.split(":")
    options: dict[str, float | str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ValueError(f"loss: got {part!r} in {spec!r}, expected name:key=value, e.g. mbls:margin=5")
        if key in options:
            raise ValueError(f"{key}: got it twice in {spec!r}, expected it once")
        options[key] = _parsed(value)
    return name, options


def loss_name(spec: str) -> str:
    """The one spelling of a loss, by which folders and rows are named: "mbls:margin=5" for "mbls:margin=5.0".

    Args:
        spec: as for :func:`build_loss`. The loss is built once, for two classes, to know that it is one.

    Returns:
        The name and its options in the order given; whole numbers without ".0".

    Raises:
        ValueError: as for :func:`build_loss`.

    Example:
        >>> from mbls.losses import loss_name
        >>> loss_name("mbls:margin=5.0:alpha=0.10")
        'mbls:margin=5:alpha=0.1'
    """
    build_loss(spec, num_classes=2)
    name, options = parse_loss(spec)
    return ":".join([name, *(f"{option}={value}" for option, value in options.items())])


def _parsed(text: str) -> float | str:
    """The number that the text spells, an int where it is whole (and exact as one), or else the text itself."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if abs(number) < 2**53 and number.is_integer() else number
