"""Calibration as MONAI's ``CumulativeIterationMetric`` and as a handler of ignite engines, for bundles too."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics.metric import CumulativeIterationMetric

from mbls.adapters.tables import BinnedFigure, FigureName
from mbls.losses import _choice
from mbls.metrics import Region

__all__ = ["CalibrationHandler", "CalibrationMetric"]

Reduction = Literal["mean", "none", "pooled"]


class CalibrationMetric(CumulativeIterationMetric):
    """A figure of :class:`mbls.metrics.CalibrationBins`, image by image, or of all their voxels together.

    Buffered are tables of counts, one an image, which are gathered over the processes; a call returns those of its
    batch. MONAI's own CalibrationErrorMetric looks at each class by itself; docs/integrations.md says how they differ.

    Args:
        num_classes: K >= 2.
        figure: "ece", "cece" (class-wise), "ace" or "mce", as :class:`mbls.metrics.CalibrationBins` defines them.
        region: "all", "foreground", "dilated" or "boundary", as :func:`mbls.metrics.region_mask` defines them.
        num_bins: bins of equal width on [0, 1], >= 1.
        ignore_index: voxels with this label are not counted. None: all labels have to lie within 0..K-1.
        reduction: "mean" over the images, all alike, those left out of which no voxel is counted; "none", the figure of
            each image; or "pooled", the figure of all voxels of all images, as suits slices and patches.

    Shape:
        A call takes y_pred (B, K, *spatial), probabilities that sum to 1 over K, and y, labels (B, 1, *spatial) or
        (B, *spatial), or one-hot (B, K, *spatial); or lists of these without B. ``mask=`` is like the labels,
        and goes with tensors only. :meth:`aggregate` returns float64, a scalar or, with "none", (images, 1); NaN where
        no voxel was counted.

    Raises:
        ValueError: an option out of range; y one-hot with voxels of no class or several; from a call what
            ``CalibrationBins.update`` refuses; :meth:`aggregate` before any call.

    Example:
        >>> import torch
        >>> from mbls.adapters.monai import CalibrationMetric
        >>> metric = CalibrationMetric(num_classes=2)
        >>> table = metric(torch.tensor([[[0.9, 0.2], [0.1, 0.8]]]), torch.tensor([[[0, 1]]]))
        >>> metric.aggregate()
        tensor(0.1500, dtype=torch.float64)

    References:
        As :class:`mbls.metrics.CalibrationBins`.
    """

    def __init__(
        self,
        num_classes: int,
        figure: FigureName = "ece",
        region: Region = "all",
        num_bins: int = 15,
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.options = BinnedFigure(num_classes, figure, region, num_bins, ignore_index)
        self.reduction = _choice("reduction", reduction, Reduction)

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, mask: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        if y is None:
            raise ValueError("y: got None, expected labels")
        for name, values in (("y", y), ("mask", mask)):
            if values is not None and len(values) != len(y_pred):
                raise ValueError(f"{name}: got {len(values)} images, expected {len(y_pred)} like y_pred")
        labels = _labels(y) if y.shape == y_pred.shape else y
        masks = [None] * len(y_pred) if mask is None else mask.split(1)
        images = zip(y_pred.split(1), labels.split(1), masks, strict=True)
        return torch.stack([self.options.table(*image) for image in images])

    def get_buffer(self) -> torch.Tensor:
        """The figure of each image so far, (images, 1), as MetricsSaver writes it."""
        return torch.tensor([[self.options.value(table)] for table in self._tables()], dtype=torch.float64)

    def aggregate(self, reduction: Reduction | None = None) -> torch.Tensor:
        """The figure of all images so far.

        Args:
            reduction: in place of the one that the metric was made with.
        """
        reduction = self.reduction if reduction is None else _choice("reduction", reduction, Reduction)
        if reduction == "pooled":
            return torch.tensor(self.options.value(self._tables().sum(0)), dtype=torch.float64)
        figures = self.get_buffer()
        return figures if reduction == "none" else figures.nanmean()

    def _tables(self) -> torch.Tensor:
        """Of all images and processes, (images, 3, K + 1, num_bins)."""
        tables = super().get_buffer()
        if not isinstance(tables, torch.Tensor):
            raise ValueError("CalibrationMetric: got no image, expected at least one call before")
        return tables


def _labels(one_hot: torch.Tensor) -> torch.Tensor:
    if not (torch.all((one_hot == 0) | (one_hot == 1)) and torch.all(one_hot.sum(1) == 1)):
        raise ValueError(
            f"y: got one-hot labels {tuple(one_hot.shape)} with voxels of no class or several, expected one class each "
            "(to ignore voxels hand over labels and ignore_index, or a mask)"
        )
    return one_hot.argmax(1)


class CalibrationHandler(IgniteMetricHandler):
    """:class:`CalibrationMetric` as a handler, as MONAI's MeanDice is of DiceMetric.

    Args:
        num_classes: as the metric's, and so are ``figure``, ``region``, ``num_bins``, ``ignore_index`` and
            ``reduction``.
        output_transform: makes (y_pred, y) of the engine's output, such as ``from_engine(["pred", "label"])``.
        save_details: whether the figure of each image is kept in ``engine.state.metric_details``, for MetricsSaver.

    Raises:
        ImportError: pytorch-ignite is missing.
        ValueError: as the metric.

    Example:
        >>> from monai.handlers import from_engine
        >>> from mbls.adapters.monai import CalibrationHandler
        >>> options = dict(num_classes=4, figure="cece", output_transform=from_engine(["pred", "label"]))
        >>> CalibrationHandler(**options).attach(evaluator, "val_cece")  # doctest: +SKIP

    References:
        As :class:`mbls.metrics.CalibrationBins`.
    """

    def __init__(
        self,
        num_classes: int,
        figure: FigureName = "ece",
        region: Region = "all",
        num_bins: int = 15,
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
        output_transform: Callable = lambda output: output,
        save_details: bool = True,
    ) -> None:
        if importlib.util.find_spec("ignite") is None:
            raise ImportError("mbls.adapters.monai.CalibrationHandler needs pytorch-ignite: pip install 'mbls[peers]'")
        metric = CalibrationMetric(num_classes, figure, region, num_bins, ignore_index, reduction)
        super().__init__(metric_fn=metric, output_transform=output_transform, save_details=save_details)
