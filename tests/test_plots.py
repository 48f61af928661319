"""Figures: they draw what they are given, in colours that stay with a structure or loss."""

import numpy as np
import pandas as pd
import pytest
import torch

from mbls import plots
from mbls.metrics import CalibrationBins


def test_reliability_diagram_draws_accuracy_and_gap_of_the_filled_bins():
    probs = torch.tensor([[0.95, 0.05], [0.55, 0.45], [0.95, 0.05], [0.55, 0.45]])
    diagram = CalibrationBins(2, 10).update(probs, torch.tensor([0, 1, 1, 0])).reliability()
    figure, axes = plots.new_figure()
    bars, gap, _ = plots.reliability_diagram(axes[0, 0], diagram)
    np.testing.assert_allclose([bar.get_height() for bar in bars], [0.5, 0.5])
    np.testing.assert_allclose([bar.get_height() for bar in gap], [0.05, 0.45], atol=1e-6)
    np.testing.assert_allclose([bar.get_x() for bar in bars], [0.5, 0.9])
    picture = plots.show(figure, "two bars")
    assert picture.data.startswith(b"\x89PNG")
    assert picture.alt == "two bars"


def test_images_are_drawn_x_to_the_right_and_background_stays_clear():
    _, axes = plots.new_figure()
    shown = plots.show_image(axes[0, 0], np.arange(12.0).reshape(4, 3))
    assert shown.get_array().shape == (3, 4)
    labels = plots.show_labels(axes[0, 0], np.array([[0, 1], [2, 3]]))
    assert labels.get_array().mask.tolist() == [[True, False], [False, False]]
    plots.structure_legend(axes[0, 0], ("background", "RV", "MYO", "LV"))
    assert [text.get_text() for text in axes[0, 0].get_legend().get_texts()] == ["RV", "MYO", "LV"]


def test_losses_keep_their_colours():
    assert plots.loss_colour("mbls:margin=5") == plots.loss_colour("MbLS m = 3") == plots.LOSS_COLOURS["mbls"]
    assert len(set(plots.LOSS_COLOURS.values())) == len(plots.LOSS_COLOURS)
    _, axes = plots.new_figure()
    lines = plots.curves(axes[0, 0], {"CE": [1.0, np.nan, 0.5]}, "epoch", "loss")
    assert lines[0].get_xdata().tolist() == [1, 3]


def test_a_map_of_numbers_has_a_colour_bar():
    figure, axes = plots.new_figure()
    plots.show_scalar(axes[0, 0], np.zeros((4, 3)), "confidence")
    assert len(figure.axes) == 2
    assert figure.axes[1].get_ylabel() == "confidence"


def test_means_and_spreads_of_runs():
    table = pd.DataFrame({"loss": ["ce", "ce", "ls"], "n": [5, 5, 10], "ece": [0.1, 0.3, 0.4], "dsc": [0.8, 0.8, 0.9]})
    _, axes = plots.new_figure(1, 2)
    cross, point = plots.points_by_loss(axes[0, 0], table, "ece", "dsc", {"ce": "CE"})
    (line, _, (horizontal, _)) = cross.lines
    assert line.get_xydata().tolist() == [[pytest.approx(0.2), pytest.approx(0.8)]]
    left, right = horizontal.get_segments()[0][:, 0]
    assert (right - left) / 2 == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert [text.get_text() for text in axes[0, 0].texts] == ["CE"]
    assert np.isfinite(point.lines[0].get_xydata()).all()
    ce, ls = plots.lines_with_spread(axes[0, 1], table, "n", "ece", {"ce": "CE", "ls": "LS"}, "patients", "ECE")
    assert (ce.lines[0].get_xdata().tolist(), ls.lines[0].get_xdata().tolist()) == ([5], [10])
    assert [text.get_text() for text in axes[0, 1].get_legend().get_texts()] == ["CE", "LS"]
