"""Figures: they draw what they are given, in colours that stay with a structure or loss."""

import ast
import io
import re
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mbls import plots
from mbls.course.explorers import LogitExplorer, NeighbourExplorer, ReliabilityExplorer, VoxelExplorer
from mbls.metrics import CalibrationBins

HEX = "#[0-9A-Fa-f]{6}"
#: "gray" is how radiologists look at images.
NAMED = {"white", "none", "gray", *plots.COLOURS, *plots.LOSS_COLOURS}
COLOURED = ("color", "colors", "c", "facecolor", "edgecolor", "ecolor", "cmap")


def test_a_reliability_diagram_draws_the_filled_bins_with_their_intervals_and_shares():
    probs = torch.tensor([[0.95, 0.05]] * 99 + [[0.95, 0.05]] * 99 + [[0.55, 0.45]])
    labels = torch.tensor([0] * 99 + [1] * 99 + [0])
    diagram = CalibrationBins(2, 10).update(probs, labels).reliability()
    low, high = diagram.accuracy - 0.1, diagram.accuracy + 0.2
    _, pairs = plots.new_reliability_figure(2, data="two bins")
    points = plots.reliability_diagram(pairs[0, 0], diagram, (low, high))
    np.testing.assert_allclose([point.get_xydata()[0] for point in points], [[0.55, 1], [0.95, 0.5]], atol=1e-6)
    assert [point.get_color() for point in points] == [plots.COLOURS["small"], plots.COLOURS["claimed"]]
    bars = [line.get_ydata().tolist() for line in pairs[0, 0, 0].lines if line.get_linewidth() == 2]
    np.testing.assert_allclose(bars, [[0.9, 1.2], [0.4, 0.7]])
    np.testing.assert_allclose([bar.get_height() for bar in pairs[0, 0, 1].patches][-1], 198 / 199)
    plots.reading_key(pairs[0, 1, 0])
    assert len(pairs[0, 1, 0].texts) == 2


def test_pictures_carry_their_alt_text_and_the_name_of_their_data():
    figure, axes = plots.new_figure(data="phantom, 8 patients")
    drawing = plots.show(figure, 'a "frame" < nothing')
    assert b"<svg" in drawing.content
    assert plots.show(figure, 'a "frame" < nothing') == drawing  # to the byte
    assert 'alt="a &quot;frame&quot; &lt; nothing"' in drawing._repr_mimebundle_()["text/html"]
    assert repr(drawing) == 'Picture: a "frame" < nothing'
    plots.show_image(axes[0, 0], np.random.default_rng(0).random((200, 200)))
    image = plots.show(figure, "many voxels")
    assert image.kind == "image/webp"
    assert Image.open(io.BytesIO(image.content)).width > 1.5 * image.width
    assert figure.get_supxlabel() == "data: phantom, 8 patients"
    assert plots.new_figure(data=None)[0].get_supxlabel() == ""


def test_every_colour_has_one_meaning():
    colours = [*plots.LOSS_COLOURS.values(), *plots.STRUCTURE_COLOURS, *plots.COLOURS.values()]
    assert len({colour.lower() for colour in colours}) == len(colours)
    assert all(matplotlib.colors.to_hex(colour) == colour.lower() for colour in colours)


def sources():
    """Code that draws: path and text of each module, and of each notebook's code."""
    root = Path(plots.__file__).resolve().parents[1]
    for path in sorted((root / "mbls").rglob("*.py")):
        if path.name != "plots.py":
            yield path.relative_to(root), path.read_text(encoding="utf-8")
    for path in sorted((root / "notebooks").rglob("[0-9]*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        yield path.relative_to(root), "\n".join(code)


def test_no_colour_outside_the_palette():
    """Colours are taken from mbls.plots by their meaning; only white and black need none."""
    found = []
    for path, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(HEX, node.value):
                found.append((path, node.value))
            keywords = node.keywords if isinstance(node, ast.Call) else []
            for keyword in keywords:
                constants = [part.value for part in ast.walk(keyword.value) if isinstance(part, ast.Constant)]
                if keyword.arg in COLOURED:
                    named = [value for value in constants if isinstance(value, str)]
                    found += [(path, value) for value in named if value not in NAMED]
    assert found == []


def test_explorers_draw_in_the_palette():
    palette = [*plots.LOSS_COLOURS.values(), *plots.STRUCTURE_COLOURS, *plots.COLOURS.values(), "#000000", "#ffffff"]
    known = {matplotlib.colors.to_rgb(colour) for colour in palette}
    reliability = ReliabilityExplorer(torch.rand(200, 4).softmax(1))
    for explorer in (VoxelExplorer(), LogitExplorer(), NeighbourExplorer(), reliability):
        for artist in explorer._moving:
            for name in ("get_color", "get_facecolor"):
                if hasattr(artist, name):
                    shown = np.atleast_2d(matplotlib.colors.to_rgba_array(getattr(artist, name)()))
                    assert all(tuple(row[:3]) in known for row in shown), artist


def test_images_are_drawn_x_to_the_right_and_background_stays_clear():
    _, axes = plots.new_figure(data=None)
    shown = plots.show_image(axes[0, 0], np.arange(12.0).reshape(4, 3))
    assert shown.get_array().shape == (3, 4)
    labels = plots.show_labels(axes[0, 0], np.array([[0, 1], [2, 3]]))
    assert labels.get_array().mask.tolist() == [[True, False], [False, False]]
    plots.structure_legend(axes[0, 0], ("background", "RV", "MYO", "LV"))
    assert [text.get_text() for text in axes[0, 0].get_legend().get_texts()] == ["RV", "MYO", "LV"]


def test_losses_keep_their_colours():
    assert plots.loss_colour("mbls:margin=5") == plots.loss_colour("MbLS m = 3") == plots.LOSS_COLOURS["mbls"]
    assert len(set(plots.LOSS_COLOURS.values())) == len(plots.LOSS_COLOURS)
    _, axes = plots.new_figure(data=None)
    lines = plots.curves(axes[0, 0], {"CE": [1.0, np.nan, 0.5]}, "epoch", "loss")
    assert lines[0].get_xdata().tolist() == [1, 3]


def test_a_map_of_numbers_has_a_colour_bar():
    figure, axes = plots.new_figure(data=None)
    plots.show_scalar(axes[0, 0], np.zeros((4, 3)), "confidence")
    assert len(figure.axes) == 2
    assert figure.axes[1].get_ylabel() == "confidence"


def test_means_and_spreads_of_runs():
    table = pd.DataFrame({"loss": ["ce", "ce", "ls"], "n": [5, 5, 10], "ece": [0.1, 0.3, 0.4], "dsc": [0.8, 0.8, 0.9]})
    _, axes = plots.new_figure(1, 2, data=None)
    cross, point = plots.points_by_loss(axes[0, 0], table, "ece", "dsc", {"ce": "CE"})
    (line, _, (horizontal, _)) = cross.lines
    assert line.get_xydata().tolist() == [[pytest.approx(0.2), pytest.approx(0.8)]]
    left, right = horizontal.get_segments()[0][:, 0]
    assert (right - left) / 2 == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert [text.get_text() for text in axes[0, 0].texts] == ["CE"]
    assert np.isfinite(point.lines[0].get_xydata()).all()
    ce, ls = plots.lines_with_spread(axes[0, 1], table, "n", "ece", {"ce": "CE", "ls": "LS"}, "patients", "ECE")
    assert (ce.lines[0].get_xdata().tolist(), ls.lines[0].get_xdata().tolist()) == ([5], [10])
    legend = plots.legend_panel(axes[0, 0], axes[0, 1])
    assert [text.get_text() for text in legend.get_texts()] == ["CE", "LS"]
    assert not axes[0, 0].axison


def test_a_film_strip_has_a_row_for_each_network_and_its_times_above():
    maps = {time: np.full((4, 3), time / 100) for time in (10, 100)}
    figure = plots.film_strip({"CE": maps, "MbLS": maps}, "epoch", "winning probability", (0.5, 1), "phantom")
    panels = figure.axes[:4]
    assert [axes.get_title() for axes in panels] == ["epoch 10", "epoch 100", "", ""]
    assert [panels[0].get_ylabel(), panels[2].get_ylabel()] == ["CE", "MbLS"]
    assert panels[1].images[0].get_array().shape == (3, 4)
    assert figure.axes[4].get_ylabel() == "winning probability"
