"""Calibration as a ``torchmetrics.Metric``: for Lightning's ``self.log`` and for ``MetricCollection``."""

from __future__ import annotations

from typing import Any

import torch

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError("mbls.adapters.torchmetrics needs torchmetrics: pip install 'mbls[peers]'") from error

from mbls.adapters.tables import BinnedFigure, FigureName
from mbls.metrics import Region

__all__ = ["CalibrationMetric"]


class CalibrationMetric(Metric):
    """A figure of :class:`mbls.metrics.CalibrationBins` over all voxels of all batches and processes.

    The state is the table of counts in float64, which processes add up: two give what one gives. ``forward`` returns
    the figure of its batch. A device without float64 (Apple's MPS) cannot hold the state: leave the metric on the CPU.

    Args:
        num_classes: K >= 2.
        figure: "ece", "cece" (class-wise), "ace" or "mce", as :class:`mbls.metrics.CalibrationBins` defines them.
        region: "all", "foreground", "dilated" or "boundary", as :func:`mbls.metrics.region_mask` defines them.
        num_bins: bins of equal width on [0, 1], >= 1.
        ignore_index: voxels with this label are not counted. None: all labels have to lie within 0..K-1.
        kwargs: torchmetrics' own options, such as ``sync_on_compute``.

    Shape:
        :meth:`update` takes probs (B, K, *spatial) that sum to 1 over K, target (B, *spatial) or (B, 1, *spatial), and
        mask like target. Regions other than "all" need 2 or 3 spatial dimensions. :meth:`compute` returns a float64
        scalar, NaN where no voxel was counted.

    Raises:
        ValueError: an option out of range; from :meth:`update` what ``CalibrationBins.update`` refuses.

    Example:
        >>> import torch
        >>> from mbls.adapters.torchmetrics import CalibrationMetric
        >>> metric = CalibrationMetric(num_classes=2, ignore_index=255)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), torch.tensor([0, 1, 255]))
        >>> metric.compute()
        tensor(0.1500, dtype=torch.float64)

    References:
        As :class:`mbls.metrics.CalibrationBins`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    table: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        figure: FigureName = "ece",
        region: Region = "all",
        num_bins: int = 15,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = BinnedFigure(num_classes, figure, region, num_bins, ignore_index)
        self.add_state("table", self.options.empty_table(), dist_reduce_fx="sum")

    def update(self, probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Count the voxels of a batch.

        Args:
            probs: (B, K, *spatial), summing to 1 over the classes.
            target: (B, *spatial) or (B, 1, *spatial), labels.
            mask: like target, boolean, True where a voxel counts.
        """
        self.table = self.table + self.options.table(probs, target, mask).to(self.table.device)

    def compute(self) -> torch.Tensor:
        """The figure of all voxels so far, a float64 scalar."""
        return torch.tensor(self.options.value(self.table), dtype=torch.float64, device=self.table.device)
