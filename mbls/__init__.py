"""Margin-based label smoothing (MbLS) for calibrated segmentation: losses, calibration metrics and a course."""

from mbls.losses import MbLSLoss
from mbls.metrics import CalibrationBins

__all__ = ["CalibrationBins", "MbLSLoss"]
__version__ = "0.2.0"
