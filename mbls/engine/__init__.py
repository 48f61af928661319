"""Fit a network, predict with it, and judge predictions, whoever made them."""

from mbls.engine.devices import make_fabric
from mbls.engine.fit import Fit, FitSettings, fit, load_weights, weights_checksum
from mbls.engine.judge import METRICS, Judgement, Metric, judge
from mbls.engine.predict import Prediction, fit_temperature, predict
from mbls.engine.read import read_predictions

__all__ = [
    "METRICS",
    "Fit",
    "FitSettings",
    "Judgement",
    "Metric",
    "Prediction",
    "fit",
    "fit_temperature",
    "judge",
    "load_weights",
    "make_fabric",
    "predict",
    "read_predictions",
    "weights_checksum",
]
