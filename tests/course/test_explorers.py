"""Explorers without a browser: state, numbers, picture. In a real browser: tests/browser."""

import base64
import io
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from traitlets import TraitError

from mbls.constraints import calibration_map, confidence_at_margin, logit_distances
from mbls.course.explorers import (
    BootstrapExplorer,
    CalibrationMapExplorer,
    LogitExplorer,
    MarginExplorer,
    NeighbourExplorer,
    ReliabilityExplorer,
    SliceExplorer,
    VoxelExplorer,
)
from mbls.data.home import data_home
from mbls.losses import EntropyPenaltyLoss, FocalLoss
from mbls.metrics import expected_calibration_error
from mbls.plots import LOSS_COLOURS


def chances(n=2000):
    random = torch.Generator().manual_seed(0)
    return torch.softmax(2 * torch.randn(n, 4, generator=random), dim=1)


def slices():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (3, 16, 20), generator=random)
    return torch.rand(3, 16, 20, generator=random), labels, 4 * torch.randn(3, 4, 16, 20, generator=random)


@pytest.fixture(scope="module")
def sweep():
    folder = data_home() / "results"
    return pd.read_csv(folder / "phantom_margins.csv"), pd.read_csv(folder / "phantom_margins_histograms.csv")


def patients(number=12):
    """Confidence bins of patients, each of whom is more or less overconfident."""
    random = np.random.default_rng(0)
    confidence, count = np.linspace(0.5, 1, 16)[1:], random.integers(50, 200, (number, 15))
    accuracy = np.clip(confidence - random.uniform(0, 0.2, (number, 1)), 0, 1)
    columns = {"count": count, "prob_sum": count * confidence, "hit_sum": np.round(count * accuracy)}
    table = {"subject": np.repeat(np.arange(number), 15), "bin": np.tile(np.arange(15), number)}
    return pd.DataFrame({**table, "region": "all", **{name: part.ravel() for name, part in columns.items()}})


MAKERS = {
    "reliability": (
        lambda sweep: ReliabilityExplorer(chances()),
        {"num_bins": 30, "num_voxels": 300, "temperature": 0.5},
    ),
    "neighbour": (lambda sweep: NeighbourExplorer(), {"length": 4.5, "side": 24}),
    "bootstrap": (lambda sweep: BootstrapExplorer(patients(), "all"), {"num_patients": 5, "drawn": "voxels"}),
    "logit": (lambda sweep: LogitExplorer(), {"background": 4.0, "myocardium": -2.0, "cavity": 1.5}),
    "voxel": (lambda sweep: VoxelExplorer(), {"margin": 6.0, "alpha": 0.5, "certainty": 0.6, "distance": 2.0}),
    "map": (
        lambda sweep: CalibrationMapExplorer(loss="fl"),
        {"gamma": 2.0, "loss": "mbls", "margin": 1.5, "weight": 0.3, "q": 0.95},
    ),
    "slice": (lambda sweep: SliceExplorer(*slices()), {"margin": 7.0, "slice_index": 2}),
    "margin": (lambda sweep: MarginExplorer(*sweep), {"margin": 5.0}),
}


@pytest.fixture(params=MAKERS)
def explorer_and_moves(request, sweep):
    make, moves = MAKERS[request.param]
    return make(sweep), moves


def test_each_part_of_the_state_moves_numbers_picture_and_readout(explorer_and_moves):
    explorer, moves = explorer_and_moves
    assert set(moves) == set(explorer.state_names)
    for name, value in moves.items():
        before = explorer.png, explorer.readout.value
        setattr(explorer, name, value)
        assert explorer.controls[name].value == value
        assert explorer.png != before[0], name
        assert explorer.state[name] == value
    assert explorer.readout.value != before[1] or len(moves) > 1


def test_a_static_form_varies_one_or_two_traits(explorer_and_moves):
    explorer, _ = explorer_and_moves
    assert 1 <= len(explorer.static) <= 2
    assert set(explorer.static) <= set(explorer.state_names)


def test_slider_moves_the_state(explorer_and_moves):
    explorer, moves = explorer_and_moves
    for name, value in moves.items():
        explorer.controls[name].value = value
        assert getattr(explorer, name) == value


def test_picture_depends_on_the_state_alone(explorer_and_moves, sweep):
    """What a drag left behind must not show: there and back again gives the same pixels, as does a new explorer."""
    explorer, moves = explorer_and_moves
    start, first = explorer.state, explorer.png
    for name, value in moves.items():
        setattr(explorer, name, value)
    moved = explorer.png
    for name, value in start.items():
        setattr(explorer, name, value)
    assert explorer.png == first
    for name, value in moves.items():
        setattr(explorer, name, value)
    assert explorer.png == moved


def test_computing_changes_nothing(explorer_and_moves):
    explorer, _ = explorer_and_moves
    state, picture = explorer.state, explorer.png
    explorer.compute()
    assert (explorer.state, explorer.png) == (state, picture)


def test_shown_with_a_picture_and_text_for_readers_without_a_kernel(explorer_and_moves):
    explorer, _ = explorer_and_moves
    data = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    source, alt, width = re.fullmatch(
        r'<img class="mbls-explorer" src="data:image/webp;base64,([^"]+)" alt="([^"]+)" width="(\d+)" .*>',
        data["text/html"],
    ).groups()
    assert Image.open(io.BytesIO(base64.b64decode(source))).width > 1.5 * int(width)
    assert explorer.describe(explorer.numbers) in data["text/plain"]
    assert len(alt) > 60
    assert 'role="status"' in explorer.readout.value
    assert all(control.description for control in explorer.controls.values())


def test_state_out_of_range_is_refused_and_leaves_the_state(explorer_and_moves):
    explorer, moves = explorer_and_moves
    state = explorer.state
    for name in moves:
        with pytest.raises(TraitError, match=name):
            setattr(explorer, name, -1000)
    assert explorer.state == state


def test_unknown_state_is_refused():
    with pytest.raises(ValueError, match="colour"):
        VoxelExplorer(colour="red")


def test_reliability_explorer_agrees_with_the_metrics():
    probs = chances()
    explorer = ReliabilityExplorer(probs, num_voxels=1000, num_bins=10)
    chosen, labels = explorer._probs[:1000], explorer._labels[:1000]
    assert explorer.numbers.ece == pytest.approx(expected_calibration_error(chosen, labels, 10))
    # The forecaster knows the truth: its ECE is chance, an exaggerator's is more.
    assert explorer.numbers.ece < 3 * explorer.numbers.chance
    explorer.temperature = 0.4
    assert explorer.numbers.ece > 3 * explorer.numbers.chance


def test_reliability_explorer_with_few_voxels():
    explorer = ReliabilityExplorer(chances(200))
    assert explorer.num_voxels == 100
    with pytest.raises(TraitError, match="num_voxels"):
        explorer.num_voxels = 300
    with pytest.raises(ValueError, match=r"probs: got shape \(20, 4\)"):
        ReliabilityExplorer(chances(20))


def test_fewer_voxels_make_a_larger_error():
    explorer = ReliabilityExplorer(chances(30_000))
    found = []
    for n in (100, 1000, 30_000):
        explorer.num_voxels = n
        found.append(explorer.numbers.ece)
    assert found == sorted(found, reverse=True)


def test_independent_voxels_spread_as_their_number_says():
    for side in NeighbourExplorer.SIDES:
        numbers = NeighbourExplorer(length=0, side=side).numbers
        assert numbers.spread == pytest.approx(numbers.independent_spread, rel=0.15)
        assert numbers.effective == pytest.approx(side**2, rel=0.3)


def test_neighbours_that_err_together_count_for_fewer():
    """Whatever the length, nine in ten voxels are right; the longer it is, the more an image is off by chance."""
    explorer, effective = NeighbourExplorer(side=48), []
    for length in (0, 1, 2, 4):
        explorer.length = length
        assert explorer.numbers.accuracy.mean() == pytest.approx(0.9, abs=0.02)
        effective.append(explorer.numbers.effective)
    assert effective == sorted(effective, reverse=True)
    assert effective[-1] < 60
    # A field smoothed over s voxels has correlation exp(-h^2 / 4 s^2), and an area of 4 pi s^2; cut into right and
    # wrong it keeps less of it.
    assert 48**2 / (4 * np.pi * 2**2) < effective[2] < 4 * 48**2 / (4 * np.pi * 2**2)


def test_bootstrap_explorer_agrees_with_the_statistics():
    bins = patients()
    numbers = BootstrapExplorer(bins, "all").numbers
    assert numbers.ece == pytest.approx(
        (bins["prob_sum"] - bins["hit_sum"]).groupby(bins["bin"]).sum().abs().sum() / bins["count"].sum()
    )
    assert numbers.interval[0] < numbers.ece < numbers.interval[1]
    assert min(numbers.each) < numbers.ece < max(numbers.each)


def test_voxels_pretend_to_know_more_than_patients():
    explorer = BootstrapExplorer(patients(), "all")
    widths = {}
    for drawn in ("patients", "voxels"):
        explorer.drawn = drawn
        widths[drawn] = np.diff(explorer.numbers.interval)
    assert widths["patients"] > 3 * widths["voxels"]


def test_bootstrap_explorer_refuses_two_patients():
    with pytest.raises(ValueError, match="got 2 subjects"):
        BootstrapExplorer(patients(2), "all")
    with pytest.raises(TraitError, match="drawn"):
        BootstrapExplorer(patients(), "all", drawn="slices")


def test_logit_explorer_ignores_a_constant():
    explorer = LogitExplorer(background=-1, myocardium=0, cavity=2)
    shifted = LogitExplorer(background=1, myocardium=2, cavity=4)
    np.testing.assert_allclose(explorer.numbers.probs, shifted.numbers.probs)
    np.testing.assert_allclose(explorer.numbers.point, shifted.numbers.point)
    np.testing.assert_allclose(explorer.numbers.distances, [3, 2, 0])
    equal = LogitExplorer(background=1, myocardium=1, cavity=1)
    np.testing.assert_allclose(equal.numbers.point, LogitExplorer.CORNERS.mean(0))


def test_voxel_explorer_ends_where_the_loss_is_smallest():
    for margin, alpha, certainty in ((3, 0.1, 1), (5, 0.1, 1), (3, 0.1, 0.7), (0, 0.5, 0.7), (2, 0.5, 0.9)):
        explorer = VoxelExplorer(margin=margin, alpha=alpha, certainty=certainty)
        best = VoxelExplorer.GRID[explorer.numbers.curves[2].argmin()]
        assert explorer.numbers.end_distance == pytest.approx(best, abs=0.06)


def test_voxel_explorer_gradient_points_to_the_end():
    explorer = VoxelExplorer(margin=5, distance=6)
    total = explorer.numbers.gradient_ce + explorer.numbers.gradient_penalty
    assert explorer.numbers.violated
    assert total[0] > 0 > total[1]
    explorer.distance = 4
    assert not explorer.numbers.violated
    assert explorer.numbers.penalty == 0
    np.testing.assert_array_equal(explorer.numbers.gradient_penalty, 0)


def test_cross_entropy_alone_never_ends():
    explorer = VoxelExplorer(alpha=0)
    assert explorer.numbers.end_distance == math.inf
    assert "never" in explorer.readout.value


def test_map_explorer_draws_the_calibration_map():
    """As many steps as a drag allows are near enough to the many of the default."""
    for loss, exact in (("ecp", EntropyPenaltyLoss(0.5, reduction="none")), ("fl", FocalLoss(5.0, reduction="none"))):
        explorer = CalibrationMapExplorer(loss=loss, weight=0.5, gamma=5.0, q=0.9)
        probs = torch.from_numpy(explorer.numbers.probs)[:, None]
        truth = torch.cat([probs, ((1 - probs) / 3).expand(-1, 3)], dim=1)
        np.testing.assert_allclose(explorer.numbers.made, calibration_map(exact, truth)[:, 0], atol=2e-5)
    explorer = CalibrationMapExplorer(loss="ls", weight=0.2, q=0.9)
    assert explorer.numbers.point == pytest.approx(0.8 * 0.9 + 0.2 / 4, abs=1e-5)
    np.testing.assert_allclose(CalibrationMapExplorer(loss="ce").numbers.made, CalibrationMapExplorer.GRID, atol=1e-5)


def test_map_explorer_margin_goes_from_the_linear_penalty_to_cross_entropy():
    explorer = CalibrationMapExplorer(loss="mbls", margin=0.0, weight=0.2)
    np.testing.assert_allclose(explorer.numbers.made, explorer.numbers.linear)
    off = []
    for margin in (0.0, 2.0, 4.0, 7.0):
        explorer.margin = margin
        off.append(np.abs(explorer.numbers.made - explorer.numbers.probs).max())
    assert off == sorted(off, reverse=True)
    assert off[-1] < 1e-12
    assert "truth is told" in explorer.readout.value


def test_map_explorer_has_a_legend_in_the_colour_of_the_loss():
    explorer = CalibrationMapExplorer(loss="mbls")
    _, _, this_loss, _, margin = explorer._legend.get_lines()
    assert (this_loss.get_color(), margin.get_visible()) == (LOSS_COLOURS["mbls"], True)
    explorer.loss = "ls"
    assert (this_loss.get_color(), margin.get_visible()) == (LOSS_COLOURS["ls"], False)


def test_map_explorer_greys_out_what_a_loss_does_not_have():
    explorer = CalibrationMapExplorer(loss="mbls")
    assert [name for name, control in explorer.controls.items() if control.disabled] == ["gamma"]
    explorer.loss = "ls"
    assert [name for name, control in explorer.controls.items() if control.disabled] == ["margin", "gamma"]


def test_slice_explorer_counts_violations():
    images, labels, logits = slices()
    explorer = SliceExplorer(images, labels, logits, margin=3, slice_index=1)
    beyond = logit_distances(logits[1:2])[0] > 3
    np.testing.assert_array_equal(explorer.numbers.violations, beyond.sum(0))
    assert explorer.numbers.share == pytest.approx(beyond.any(0).float().mean().item())
    assert explorer.numbers.ceiling == confidence_at_margin(3, 4)
    assert explorer.numbers.counts.sum() == 3 * 16 * 20


def test_slice_explorer_refuses_shapes_that_do_not_match():
    images, labels, logits = slices()
    with pytest.raises(ValueError, match="images, labels, logits"):
        SliceExplorer(images, labels[:2], logits)
    with pytest.raises(ValueError, match="images, labels, logits"):
        SliceExplorer(images, labels, logits[:, :, :5])


def test_margin_explorer_means_over_seeds(sweep):
    results, histograms = sweep
    explorer = MarginExplorer(results, histograms, margin=5.0)
    rows = results[results["loss"] == "mbls:margin=5"]
    assert explorer.numbers.seeds == len(rows) == 3
    assert explorer.numbers.figures["ece_fg"] == pytest.approx(rows["ece_fg"].mean())
    assert explorer.numbers.distance_share.sum() == pytest.approx(1)
    explorer.margin = math.inf
    assert explorer.numbers.figures["dsc"] == pytest.approx(results[results["loss"] == "ce"]["dsc"].mean())
    assert "cross-entropy" in explorer.readout.value


def test_margin_explorer_pools_the_diagram(sweep):
    """Pooled confidence and accuracy come from sums over the seeds, not from means of means."""
    results, histograms = sweep
    explorer = MarginExplorer(results, histograms, margin=3.0)
    bins = histograms[(histograms["loss"] == "mbls:margin=3") & (histograms["region"] == "foreground")]
    last = bins[(bins["kind"] == "confidence") & (bins["high"] == 1)]
    expected = (last["accuracy"] * last["count"]).sum() / last["count"].sum()
    assert explorer.numbers.reliability.accuracy[-1] == pytest.approx(expected)


def test_margin_explorer_refuses_other_tables(sweep):
    results, histograms = sweep
    with pytest.raises(ValueError, match="expected ce and mbls"):
        MarginExplorer(results[results["loss"] != "ce"], histograms)
    with pytest.raises(ValueError, match="region"):
        MarginExplorer(results, histograms, region="liver")
    with pytest.raises(TraitError, match="margin"):
        MarginExplorer(results, histograms, margin=4.0)
