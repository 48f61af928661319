"""A trainer of nnU-Net, version 2, with the MbLS loss. docs/integrations.md says how nnU-Net finds it."""

from __future__ import annotations

try:
    from nnunetv2.training.loss.deep_supervision import (  # pyright: ignore[reportMissingImports]
        DeepSupervisionWrapper,
    )
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError("mbls.adapters.nnunet needs nnU-Net: pip install 'mbls[peers]'") from error

from mbls.losses import MbLSLoss

__all__ = ["nnUNetTrainerMbLS"]


class nnUNetTrainerMbLS(nnUNetTrainer):
    """nnU-Net's trainer with :class:`mbls.losses.MbLSLoss` in the place of its Dice and cross-entropy.

    All else is nnU-Net's: deep supervision with its weights, the ignore label, the augmentation, the schedule. Another
    margin is a subclass of a line.

    Attributes:
        margin: largest logit distance that goes unpenalised, in logits.
        alpha: weight of the penalty.

    Raises:
        ValueError: from ``initialize``, a data set with regions, whose classes overlap.

    References:
        Isensee et al., Nature Methods 2021 (nnU-Net); Murugesan et al., Medical Image Analysis 2023, arXiv 2209.09641.
    """

    margin = 5.0
    alpha = 0.1

    def _build_loss(self) -> MbLSLoss | DeepSupervisionWrapper:
        if self.label_manager.has_regions:
            raise ValueError("dataset.json: got regions, whose classes overlap; expected labels, one a voxel")
        ignored = self.label_manager.ignore_label
        loss = MbLSLoss(self.margin, self.alpha, ignore_index=-100 if ignored is None else ignored)
        if not self.enable_deep_supervision:
            return loss
        return DeepSupervisionWrapper(loss, super()._build_loss().weight_factors)
