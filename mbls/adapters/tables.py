"""What the adapters share: one figure of CalibrationBins, as a table of counts that can be added and its value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from mbls.losses import _checked_voxels, _choice
from mbls.metrics import CalibrationBins, Region, region_mask

__all__ = ["BinnedFigure", "FigureName"]

FigureName = Literal["ece", "cece", "ace", "mce"]


@dataclass(frozen=True)
class BinnedFigure:
    """Which figure is meant. The adapters' docstrings say what each option is.

    Raises:
        ValueError: an option out of range, by its name.

    Example:
        >>> import torch
        >>> from mbls.adapters.tables import BinnedFigure
        >>> ece = BinnedFigure(num_classes=2)
        >>> table = ece.table(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]))
        >>> round(ece.value(table + table), 4)
        0.15
    """

    num_classes: int
    figure: FigureName = "ece"
    region: Region = "all"
    num_bins: int = 15
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        _choice("figure", self.figure, FigureName)
        _choice("region", self.region, Region)
        self._bins()

    def empty_table(self) -> torch.Tensor:
        """The table of no voxel, (3, K + 1, num_bins) float64: counts, sums of probabilities, hits."""
        return torch.stack(list(self._bins().state_dict().values()))

    def table(self, probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The table of these voxels. Shapes and errors are those of :meth:`CalibrationBins.update`."""
        if self.region != "all":
            target, mask = _checked_voxels("probs", probs, target, mask)
            # A negative label belongs to no region and makes no boundary.
            known = target if self.ignore_index is None else target.long().masked_fill(target == self.ignore_index, -1)
            inside = region_mask(known, self.region)
            mask = inside if mask is None else inside & mask
        return torch.stack(list(self._bins().update(probs, target, mask).state_dict().values()))

    def value(self, table: torch.Tensor) -> float:
        """The figure of a sum of tables; NaN where no voxel was counted."""
        bins = self._bins()
        bins.load_state_dict(dict(zip(bins.state_dict(), table, strict=True)))
        return math.nan if bins.num_voxels == 0 else getattr(bins, self.figure)()

    def _bins(self) -> CalibrationBins:
        return CalibrationBins(self.num_classes, self.num_bins, self.ignore_index)
