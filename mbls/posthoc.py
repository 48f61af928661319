"""Calibration after training: temperature scaling, the baseline that every calibration paper compares with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from mbls.losses import _MASK_OUT, _checked_voxels, _positive, _raise_if_label_outside, _raise_if_logits_not_finite

__all__ = ["TemperatureScaling"]


class TemperatureScaling:
    """Divide all logits by one number T > 0, fitted by the NLL on validation voxels. The predicted class never changes.

    Args:
        temperature: T before :meth:`fit`, > 0.

    Attributes:
        temperature: T. Above 1 the network was overconfident.

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

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = float(_positive("temperature", temperature))

    def fit(self, logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> TemperatureScaling:
        """Find T on validation voxels.

        Args:
            logits: (B, K, *spatial), floating point.
            target: (B, *spatial) or (B, 1, *spatial), labels, integers or whole-numbered floats.
            mask: like target, boolean, True where a voxel counts. None: all do.

        Returns:
            Itself.

        Raises:
            ValueError: shapes or devices that do not match; a mask that is not boolean; no voxel; NaN logits; labels
                outside 0..K-1.
        """
        target, mask = _checked_voxels("logits", logits, target, mask)
        rows = logits.detach().movedim(1, -1).flatten(0, -2).double()
        labels = target.flatten().long()
        if mask is not None:
            rows, labels = rows[mask.flatten()], labels[mask.flatten()]
        if labels.numel() == 0:
            raise ValueError("mask: got no voxel to fit on, expected at least one")
        _raise_if_logits_not_finite(rows)
        _raise_if_label_outside(labels, rows.shape[1], _MASK_OUT)
        # In log(1/T) the NLL has one minimum and T stays positive without a bound.
        log_scale = torch.zeros((), dtype=torch.float64, device=rows.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([log_scale], max_iter=60, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(rows * log_scale.exp(), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
        self.temperature = float(torch.exp(-log_scale.detach()))
        return self

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The scaled logits.

        Args:
            logits: of any shape.
        """
        return logits / self.temperature

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
        if "temperature" not in state:
            raise ValueError(f"state: got {', '.join(state) or 'nothing'}, expected temperature")
        self.temperature = float(_positive("temperature", state["temperature"]))
