"""Margin-based label smoothing (MbLS) for calibrated segmentation: losses, calibration metrics and the course's helpers."""

__version__ = "0.1.0"
