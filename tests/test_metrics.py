"""Calibration metrics against hand-computed cases, peers and float64 truth; regions; segmentation scores."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from mbls.metrics import (
    REGION_NAMES,
    CalibrationBins,
    adaptive_calibration_error,
    average_over_volumes,
    brier_decomposition,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    region_mask,
    segmentation_scores,
    smooth_calibration_error,
)


def make_predictions(voxels=10_000, classes=4, seed=0, sharpen=2.0, dtype=torch.float32):
    """Overconfident predictions (1, K, voxels) and labels (1, voxels), drawn from a softmax that is less sharp."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(1, classes, voxels, generator=generator)
    truth = logits.softmax(1)[0].T
    target = torch.multinomial(truth, 1, generator=generator).T
    return (sharpen * logits).softmax(1).to(dtype), target


def truth_in_float64(probs, target, num_bins=15):
    """ECE and class-wise ECE by numpy in float64, all at once; edges are compared in the type of the probabilities."""
    probs, target = probs.movedim(1, 0).flatten(1).numpy(), target.flatten().numpy()
    edges = np.linspace(0, 1, num_bins + 1)[1:-1].astype(probs.dtype)

    def error(values, hits):
        bins = np.searchsorted(edges, values, side="left")
        gaps = np.bincount(bins, values.astype(np.float64), num_bins) - np.bincount(
            bins, hits.astype(np.float64), num_bins
        )
        return np.abs(gaps).sum() / len(values)

    ece = error(probs.max(0), probs.argmax(0) == target)
    return ece, np.mean([error(probs[label], target == label) for label in range(len(probs))])


HAND_PROBS = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
HAND_TARGET = torch.tensor([0, 1, 1, 0])


def test_hand_computed():
    # Two bins; all winning confidences (0.9, 0.8, 0.7, 0.6: mean 0.75) lie in the upper one and 3 of 4 are right.
    bins = CalibrationBins(2, num_bins=2).update(HAND_PROBS, HAND_TARGET)
    assert bins.ece() == pytest.approx(0.0, abs=1e-7)
    # Five bins of 0.2: (0.4, 0.6] one at 0.6, right; (0.6, 0.8] two, 0.75 on average, half right; (0.8, 1] one at
    # 0.9, right.
    bins = CalibrationBins(2, num_bins=5).update(HAND_PROBS, HAND_TARGET)
    assert bins.ece() == pytest.approx((0.4 * 1 + 0.25 * 2 + 0.1 * 1) / 4, abs=1e-7)
    assert bins.ace() == pytest.approx((0.4 + 0.25 + 0.1) / 3, abs=1e-7)
    assert bins.mce() == pytest.approx(0.4, abs=1e-7)
    diagram = bins.reliability()
    np.testing.assert_array_equal(diagram.count, [0, 0, 1, 2, 1])
    np.testing.assert_allclose(diagram.confidence, [np.nan, np.nan, 0.6, 0.75, 0.9], atol=1e-7)
    np.testing.assert_allclose(diagram.accuracy, [np.nan, np.nan, 1.0, 0.5, 1.0])
    # Class 0 has 0.9, 0.8, 0.3, 0.6 with hits 1, 0, 0, 1, each in a bin of its own; class 1 has 0.1 and 0.2 (one hit)
    # in the first bin, 0.7 (hit) and 0.4 (none) alone.
    assert bins.cece() == pytest.approx(((0.1 + 0.8 + 0.3 + 0.4) / 4 + (0.7 + 0.3 + 0.4) / 4) / 2, abs=1e-7)
    assert bins.reliability(class_index=0).count.tolist() == [0, 1, 1, 1, 1]


def test_hand_computed_scores():
    assert negative_log_likelihood(HAND_PROBS, HAND_TARGET) == pytest.approx(
        -(math.log(0.9) + math.log(0.2) + math.log(0.7) + math.log(0.6)) / 4, abs=1e-6
    )
    assert brier_score(HAND_PROBS, HAND_TARGET) == pytest.approx(2 * (0.01 + 0.64 + 0.09 + 0.16) / 4, abs=1e-6)
    # Two bins of equal mass: (0.6, 0.7), both right; (0.8, 0.9), one right.
    assert adaptive_calibration_error(HAND_PROBS, HAND_TARGET, num_bins=2) == pytest.approx((0.7 + 0.7) / 4, abs=1e-6)


@pytest.mark.parametrize("digits", [1, 2, 7])
def test_adaptive_error_does_not_depend_on_the_order_of_the_voxels(digits):
    """With few digits most confidences are tied; with 7 few are."""
    probs, target = make_predictions(20_000, classes=2, dtype=torch.float64)
    probs = probs[:, :1].round(decimals=digits)
    probs = torch.cat([probs, 1 - probs], 1)
    generator = torch.Generator().manual_seed(1)
    orders = [
        torch.arange(20_000),
        target[0].argsort(),
        *(torch.randperm(20_000, generator=generator) for _ in range(3)),
    ]
    errors = {adaptive_calibration_error(probs[..., order], target[:, order]) for order in orders}
    assert max(errors) - min(errors) < 1e-12


def test_adaptive_error_of_one_confidence_is_its_gap():
    """1000 voxels at 0.9, all hits first: cut in their order they made bins of hits and bins of misses."""
    probs = torch.tensor([[0.9, 0.1]], dtype=torch.float64).repeat(1000, 1)
    target = (torch.arange(1000) >= 900).long()
    assert adaptive_calibration_error(probs, target) == pytest.approx(0, abs=1e-12)
    assert adaptive_calibration_error(probs, 1 - target) == pytest.approx(0.8, abs=1e-12)


def test_adaptive_error_without_ties_is_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(1, 4, 10_000, generator=generator, dtype=torch.float64)
    probs, target = probs / probs.sum(1, keepdim=True), torch.randint(4, (1, 10_000), generator=generator)
    confidence, winner = probs[0].max(0)
    assert confidence.unique().numel() == 10_000
    order = confidence.argsort()
    gaps = confidence[order] - (winner == target[0]).double()[order]
    expected = sum(part.sum().abs() for part in gaps.tensor_split(15)).item() / 10_000
    assert adaptive_calibration_error(probs, target) == pytest.approx(expected, abs=1e-12)


def test_bins_are_right_closed_and_hold_their_ends():
    values = torch.tensor([0.0, 0.2, 0.2 + 1e-6, 0.4, 1.0], dtype=torch.float64)
    probs = torch.stack([values, 1 - values], dim=1)
    count = (
        CalibrationBins(2, num_bins=5).update(probs, torch.zeros(5, dtype=torch.long)).reliability(class_index=0).count
    )
    assert count.tolist() == [2, 2, 0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_bins", [1, 2, 3, 7, 10, 15, 49, 100, 1000])
def test_bins_are_exact_at_every_edge(num_bins, dtype):
    edges = (torch.arange(num_bins + 1, dtype=torch.float64) / num_bins).to(dtype)
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    around = torch.cat(
        [edges, torch.nextafter(edges, ends[:1]), torch.nextafter(edges, ends[1:]), torch.rand(1000).to(dtype)]
    )
    probs = torch.stack([around, 1 - around], dim=1)
    counted = CalibrationBins(2, num_bins).update(probs, torch.zeros(len(around), dtype=torch.long))
    expected = torch.bincount(torch.bucketize(around, edges[1:-1]), minlength=num_bins)
    assert counted.reliability(class_index=0).count.tolist() == expected.tolist()


def test_of_equal_probabilities_the_first_class_is_the_prediction():
    probs = torch.full((1, 4, 400), 0.25)
    target = torch.arange(400).view(1, 400) % 4
    diagram = CalibrationBins(4).update(probs, target).reliability()
    assert diagram.accuracy[3] == 0.25  # a quarter of the labels is class 0
    probs[0, :, 0] = torch.tensor([0.1, 0.4, 0.4, 0.1])  # one tie among others
    target[0, 0] = 2
    assert CalibrationBins(4).update(probs[..., :1], target[..., :1]).reliability().accuracy[5] == 0


def test_bad_values_leave_the_bins_as_they_were():
    probs, target = make_predictions(200_000)  # several blocks
    bins = CalibrationBins(4).update(probs, target)
    before = bins.state_dict()
    target[0, -1] = 7
    with pytest.raises(ValueError, match="target: got label 7"):
        bins.update(probs, target)
    assert all(torch.equal(bins.state_dict()[name], before[name]) for name in before)


def test_counting_as_on_a_gpu():
    """There masked voxels stay in the block, and bad values are reported only when a figure is asked for."""
    from mbls.metrics import _Counter, _limits

    probs, target = make_predictions(10_000)
    keep = torch.arange(10_000) % 3 > 0
    counter = _Counter(4, 15, probs.device)
    counter.add(probs[0], target[0], keep)
    expected = CalibrationBins(4).update(probs, target, keep.unsqueeze(0)).state_dict()
    torch.testing.assert_close(counter.table(), torch.stack(list(expected.values())), rtol=1e-14, atol=0)
    bins = CalibrationBins(4).update(probs, target)
    bins._limits = torch.maximum(_limits(probs[0], target[0]), _limits(3 * probs[0], target[0]))
    with pytest.raises(ValueError, match="probs: got values"):
        bins.ece()


def test_perfect_forecaster_has_no_error_and_a_sharper_one_has():
    perfect, target = make_predictions(400_000, sharpen=1.0)
    sharp, _ = make_predictions(400_000, sharpen=2.0)
    assert expected_calibration_error(perfect, target) < 0.005
    assert classwise_calibration_error(perfect, target) < 0.005
    assert adaptive_calibration_error(perfect, target) < 0.005
    assert expected_calibration_error(sharp, target) > 0.1
    assert brier_score(perfect, target) < brier_score(sharp, target)
    assert negative_log_likelihood(perfect, target) < negative_log_likelihood(sharp, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_float64_truth(dtype):
    probs, target = make_predictions(300_000, dtype=dtype)  # more than one block
    ece, cece = truth_in_float64(probs, target)
    assert expected_calibration_error(probs, target) == pytest.approx(ece, abs=1e-12)
    assert classwise_calibration_error(probs, target) == pytest.approx(cece, abs=1e-12)


@pytest.mark.slow  # 3e7 voxels take about half a minute to draw, judge and count once more in float64
def test_equals_float64_truth_at_3e7_voxels():
    probs, target = make_predictions(30_000_000)
    ece, cece = truth_in_float64(probs, target)
    bins = CalibrationBins(4).update(probs, target)
    assert bins.ece() == pytest.approx(ece, abs=1e-9)
    assert bins.cece() == pytest.approx(cece, abs=1e-9)


def test_against_torchmetrics():
    from torchmetrics.functional.classification import multiclass_calibration_error

    probs, target = make_predictions(100_000)
    for norm, ours in (("l1", CalibrationBins.ece), ("max", CalibrationBins.mce)):
        theirs = multiclass_calibration_error(probs, target, num_classes=4, n_bins=15, norm=norm).item()
        assert ours(CalibrationBins(4).update(probs, target)) == pytest.approx(theirs, abs=2e-4)


def test_against_monai():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CalibrationErrorMetric = pytest.importorskip("monai.metrics.calibration").CalibrationErrorMetric  # 1.6

    probs, target = make_predictions(100_000)
    metric = CalibrationErrorMetric(
        num_bins=15, include_background=True, calibration_reduction="expected", metric_reduction="mean"
    )
    one_hot = torch.nn.functional.one_hot(target, 4).movedim(-1, 1)
    metric(y_pred=probs.view(1, 4, 100, 1000), y=one_hot.view(1, 4, 100, 1000))
    theirs = torch.as_tensor(metric.aggregate()).mean().item()
    assert classwise_calibration_error(probs, target) == pytest.approx(theirs, abs=2e-4)


def test_merge_equals_all_at_once():
    probs, target = make_predictions(50_000)
    whole = CalibrationBins(4).update(probs, target)
    first = CalibrationBins(4).update(probs[..., :12_345], target[..., :12_345])
    second = CalibrationBins(4).update(probs[..., 12_345:], target[..., 12_345:])
    restored = CalibrationBins(4)
    restored.load_state_dict(first.merge(second).state_dict())
    for figure in (CalibrationBins.ece, CalibrationBins.cece, CalibrationBins.ace, CalibrationBins.mce):
        assert figure(restored) == pytest.approx(figure(whole), abs=1e-12)
    assert restored.num_voxels == 50_000


class CountedAsOnAGpu(CalibrationBins):
    """Takes the path of a GPU on the CPU: masked voxels stay in the block, and nothing is looked at before a figure."""

    def update(self, probs, target, mask=None):
        from mbls.metrics import _checked, _Counter

        counter = _Counter(self.num_classes, self.num_bins, probs.device)
        self._count_without_waiting(counter, *_checked(probs, target, mask))
        self._table = self._table + counter.table()
        return self


@pytest.mark.parametrize("ignore_index", [255, -100, 2])
@pytest.mark.parametrize("bins", [CalibrationBins, CountedAsOnAGpu])
def test_ignored_voxels_are_not_counted(bins, ignore_index):
    probs, target = make_predictions(100_000)  # more than one block
    target[0, ::3] = ignore_index
    probs[:, :, ::6] = torch.nan  # some of the ignored ones, where no probability need be
    mask = torch.arange(100_000).view(1, -1) % 5 > 0
    for chosen in (None, mask):
        keep = target != ignore_index if chosen is None else chosen & (target != ignore_index)
        expected = CalibrationBins(4).update(probs, target, keep)
        counted = bins(4, 15, ignore_index).update(probs, target, chosen)
        assert counted.num_voxels == int(keep.sum())
        for name, part in expected.state_dict().items():
            torch.testing.assert_close(counted.state_dict()[name], part, rtol=1e-14, atol=0)


@pytest.mark.parametrize("bins", [CalibrationBins, CountedAsOnAGpu])
def test_ignore_index_is_compared_as_a_number(bins):
    """As uint8, 156 would equal -100, and be ignored without a word."""
    probs, target = make_predictions(100)
    target = target.to(torch.uint8)
    assert bins(4, ignore_index=-100).update(probs, target).num_voxels == 100
    target[0, 0] = 156
    with pytest.raises(ValueError, match="target: got label 156"):
        bins(4, ignore_index=-100).update(probs, target).ece()
    assert bins(4, ignore_index=156).update(probs, target).num_voxels == 99


def test_all_voxels_ignored_adds_nothing():
    probs, target = make_predictions(100)
    bins = CalibrationBins(4, ignore_index=255).update(probs, torch.full_like(target, 255))
    assert bins.num_voxels == 0
    with pytest.raises(ValueError, match="masked or ignored"):
        bins.ece()


def test_reset_and_counting_again():
    probs, target = make_predictions(1000)
    bins = CalibrationBins(4, 10, 255).update(probs, target)
    before = bins.state_dict()
    bins._limits = torch.full((5,), torch.inf, dtype=torch.float64)  # something bad had been counted on a GPU
    assert bins.reset() is bins
    assert (bins.num_voxels, bins.num_bins, bins.ignore_index) == (0, 10, 255)
    assert before["count"].sum() == 5000
    bins.update(probs, target)
    assert all(torch.equal(bins.state_dict()[name], before[name]) for name in before)


def test_merge_of_bins_that_ignore_different_labels():
    probs, target = make_predictions(1000)
    merged = CalibrationBins(4, ignore_index=255).update(probs, target).merge(CalibrationBins(4).update(probs, target))
    assert merged.num_voxels == 2000
    assert merged.ece() == pytest.approx(expected_calibration_error(probs, target), abs=1e-12)


def test_classwise_by_hand():
    # Of the bins in test_hand_computed: class 0 has gaps 0.1, 0.8, 0.3, 0.4 in four bins; class 1 has 0.15 - 0.5 over
    # two voxels, 0.3 and 0.4 in three.
    bins = CalibrationBins(2, num_bins=5).update(HAND_PROBS, HAND_TARGET)
    np.testing.assert_allclose(bins.classwise("ece"), [1.6 / 4, (2 * 0.35 + 0.3 + 0.4) / 4], atol=1e-7)
    np.testing.assert_allclose(bins.classwise("ace"), [1.6 / 4, (0.35 + 0.3 + 0.4) / 3], atol=1e-7)
    np.testing.assert_allclose(bins.classwise("mce"), [0.8, 0.4], atol=1e-7)


def test_classwise_ece_averages_to_cece_and_has_the_form_it_should():
    bins = CalibrationBins(4).update(*make_predictions(1000))
    for name in ("ece", "ace", "mce"):
        assert bins.classwise(name).shape == (4,)
        assert bins.classwise(name).dtype == np.float64
    assert bins.classwise("ece").mean() == pytest.approx(bins.cece(), abs=1e-15)


@pytest.mark.parametrize(("name", "theirs"), [("ece", "expected"), ("ace", "average"), ("mce", "maximum")])
def test_classwise_figures_are_monais(name, theirs):
    CalibrationErrorMetric = pytest.importorskip("monai.metrics.calibration").CalibrationErrorMetric  # 1.6

    probs, target = make_predictions(10_000)
    metric = CalibrationErrorMetric(num_bins=15, include_background=True, calibration_reduction=theirs)
    one_hot = torch.nn.functional.one_hot(target, 4).movedim(-1, 1)
    values = metric(y_pred=probs.view(1, 4, 100, 100), y=one_hot.view(1, 4, 100, 100))
    np.testing.assert_allclose(CalibrationBins(4).update(probs, target).classwise(name), values[0], atol=1e-5)


def test_repr_of_bins_never_raises():
    probs, target = make_predictions(1234)
    bins = CalibrationBins(4)
    assert repr(bins) == "CalibrationBins(num_classes=4, num_bins=15, voxels=0)"
    assert repr(bins.update(probs, target)) == "CalibrationBins(num_classes=4, num_bins=15, voxels=1234)"
    bad = CountedAsOnAGpu(4, ignore_index=255).update(3 * probs, target)
    assert repr(bad) == "CalibrationBins(num_classes=4, num_bins=15, ignore_index=255, voxels=1234)"
    with pytest.raises(ValueError, match="probs: got values"):
        bad.ece()
    bins.load_state_dict({name: torch.full((5, 15), torch.nan) for name in ("count", "prob_sum", "hit_sum")})
    assert repr(bins) == "CalibrationBins(num_classes=4, num_bins=15, voxels=nan)"


def test_layouts_and_masks_agree():
    probs, target = make_predictions(6 * 7 * 8)
    rows = expected_calibration_error(probs[0].T, target[0])
    volume = expected_calibration_error(probs.view(1, 4, 6, 7, 8), target.view(1, 1, 6, 7, 8).to(torch.uint8))
    assert rows == pytest.approx(volume, abs=1e-12)
    mask = torch.zeros_like(target, dtype=torch.bool)
    mask[:, :100] = True
    part = expected_calibration_error(probs[..., :100], target[:, :100])
    assert expected_calibration_error(probs, target, mask=mask) == pytest.approx(part, abs=1e-12)
    assert adaptive_calibration_error(probs, target, mask=mask) == pytest.approx(
        adaptive_calibration_error(probs[..., :100], target[:, :100]), abs=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.long, torch.uint8])
def test_regions(dtype):
    target = torch.zeros(1, 15, 15, dtype=dtype)
    target[0, 5:10, 5:10] = 2
    count = {region: int(region_mask(target, region, radius=1).sum()) for region in REGION_NAMES}
    # Within one voxel of the border: the ring outside (49 - 25) and the ring inside (25 - 9).
    assert count == {"all": 225, "foreground": 25, "dilated": 49, "boundary": 24 + 16}
    volume = target.unsqueeze(1).expand(1, 5, 15, 15)
    assert int(region_mask(volume, "foreground").sum()) == 125


def within(close, radius):
    """Voxels of a slice or volume with one of ``close`` within a Chebyshev distance, by trying all pairs."""
    places = torch.stack(torch.meshgrid(*[torch.arange(size) for size in close.shape], indexing="ij"), -1).flatten(
        0, -2
    )
    distances = (places[:, None] - places[None, close.flatten()]).abs().amax(-1)
    return (distances <= radius).any(1).view(close.shape)


@pytest.mark.parametrize("shape", [(2, 9, 11), (2, 4, 5, 6)], ids=["slices", "volumes"])
def test_boundary_is_within_two_voxels_of_a_change_and_dilated_within_three_of_the_foreground(shape):
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(shape, generator=generator) > 0.97).long() * torch.randint(1, 4, shape, generator=generator)
    boundary, dilated = region_mask(target, "boundary"), region_mask(target, "dilated")
    for labels, near, wide in zip(target, boundary, dilated, strict=True):
        other = [
            within(labels != label, 2) & (labels == label) for label in range(4)
        ]  # some other label within 2 voxels
        assert torch.equal(near, torch.stack(other).any(0))
        assert torch.equal(wide, within(labels != 0, 3))
    assert not boundary.all()
    assert torch.equal(boundary, region_mask(target, "boundary", radius=2))
    assert not torch.equal(boundary, region_mask(target, "boundary", radius=3))


def test_slices_of_a_batch_do_not_see_each_other():
    target = torch.zeros(3, 8, 8, dtype=torch.long)
    target[1] = 1
    assert not region_mask(target, "boundary").any()
    assert region_mask(target.unsqueeze(0), "boundary").all()  # as one volume they do


def test_foreground_ece_of_an_oracle_is_not_zero():
    """Conditioning on the true label is not innocent: the perfect forecaster looks miscalibrated there."""
    generator = torch.Generator().manual_seed(0)
    foreground = 0.4 * torch.rand(200_000, generator=generator)
    probs = torch.stack([1 - foreground, foreground], dim=1)
    target = (torch.rand(200_000, generator=generator) < foreground).long()
    assert expected_calibration_error(probs, target) < 0.005
    assert expected_calibration_error(probs, target, mask=target != 0) > 0.5


def test_average_over_volumes():
    assert average_over_volumes([0.1, 0.3], [3, 1]) == pytest.approx(0.15)
    assert average_over_volumes([0.1, math.nan, 0.3]) == pytest.approx(0.2)


def test_segmentation_scores():
    target = torch.zeros(4, 20, 20, dtype=torch.long)
    target[:, 5:15, 5:15] = 1
    prediction = torch.zeros_like(target)
    prediction[:, 5:15, 6:16] = 1
    prediction[0, 0, 0] = 3
    scores = segmentation_scores(prediction, target, 4, spacing=(10.0, 1.5, 1.5))
    assert scores["dsc"][0] == pytest.approx(0.9)
    assert scores["hd95"][0] == pytest.approx(1.5)
    assert 0 < scores["asd"][0] < 1.5
    assert all(math.isnan(scores[name][1]) for name in scores)  # MYO in neither
    assert scores["dsc"][2] == 0
    assert scores["hd95"][2] == math.inf  # LV in the prediction only
    assert set(segmentation_scores(prediction, target, 4, surface=False)) == {"dsc"}


@pytest.mark.parametrize("spacing", [None, (10.0, 1.4, 1.7)])
def test_surface_distances_are_monais(phantom, spacing):
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    labels = torch.as_tensor(phantom.cases[0].labels.astype(np.int64)).movedim(2, 0)
    prediction = labels.roll((2, 1), (1, 2))
    prediction[:, ::7] = labels[:, ::7]
    scores = segmentation_scores(prediction, labels, 4, spacing)
    one_hot = [torch.nn.functional.one_hot(volume, 4).movedim(-1, 0).unsqueeze(0) for volume in (prediction, labels)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's, of its own deprecated arguments
        hd95 = compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing)[0]
        asd = compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing)[0]
    assert scores["hd95"] == pytest.approx(hd95.tolist(), rel=1e-6)
    assert scores["asd"] == pytest.approx(asd.tolist(), rel=1e-6)


PROBS, TARGET = make_predictions(60)


@pytest.mark.parametrize(
    "metric",
    [
        expected_calibration_error,
        classwise_calibration_error,
        adaptive_calibration_error,
        brier_score,
        negative_log_likelihood,
    ],
)
@pytest.mark.parametrize(
    ("probs", "target", "mask", "message"),
    [
        (5 * PROBS, TARGET, None, "probs: got values"),
        (PROBS * torch.nan, TARGET, None, "probs: got values nan"),
        (PROBS.clone().index_fill_(1, torch.tensor([0]), 0.0), TARGET, None, "sums off 1"),
        (PROBS[:, :1], TARGET, None, "probs: got 1 class"),
        (PROBS.long(), TARGET, None, r"probs: got shape \(1, 4, 60\) of torch.int64"),
        (PROBS, TARGET[:, :-1], None, "target: got shape"),
        (PROBS, TARGET + 0.25, None, r"target: got label \d.25 \(60 voxels with a fraction\)"),
        (PROBS, TARGET + 7, None, "target: got label"),
        (PROBS, TARGET - 7, None, "target: got label -"),
        (PROBS, TARGET, torch.zeros_like(TARGET), "mask: got torch.int64"),
        (PROBS, TARGET, torch.zeros(1, 59, dtype=torch.bool), "mask: got shape"),
        (PROBS, TARGET, torch.zeros_like(TARGET, dtype=torch.bool), "no voxel"),
    ],
)
def test_bad_input(metric, probs, target, mask, message):
    with pytest.raises(ValueError, match=message):
        metric(probs, target, mask=mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CalibrationBins(1), "num_classes: got 1"),
        (lambda: CalibrationBins(4, 0), "num_bins: got 0"),
        (lambda: CalibrationBins(4, ignore_index=0.5), "ignore_index: got 0.5"),
        (lambda: CalibrationBins(4).ece(), "no voxel"),
        (lambda: CalibrationBins(4).classwise("ace"), "no voxel"),
        (lambda: CalibrationBins(4).update(PROBS, TARGET).classwise("cece"), "name: got 'cece'"),
        (lambda: CalibrationBins(4).reliability(), "no voxel"),
        (lambda: CalibrationBins(4).update(PROBS, TARGET).reliability(4), "class_index: got 4"),
        (lambda: CalibrationBins(3).update(PROBS, TARGET), "probs: got 4 classes"),
        (lambda: CalibrationBins(3).merge(CalibrationBins(4)), "other: got 4 classes"),
        (lambda: CalibrationBins(3).load_state_dict({}), "state: got nothing"),
        (lambda: region_mask(TARGET.view(1, 6, 10), "edge"), "region: got 'edge'"),
        (lambda: region_mask(TARGET.view(1, 6, 10), "all", 0), "radius: got 0"),
        (lambda: region_mask(TARGET, "dilated"), "target: got shape"),
        (lambda: average_over_volumes([math.nan], [1.0]), "values: got 1 values"),
        (lambda: average_over_volumes([0.1], [1.0, 2.0]), "weights: got shape"),
        (lambda: average_over_volumes([0.1], [-1.0]), "weights: got -1"),
        (lambda: segmentation_scores(TARGET.view(6, 10), TARGET.view(10, 6), 4), "prediction: got shape"),
        (lambda: segmentation_scores(TARGET.view(6, 10), TARGET.view(6, 10), 2), "prediction: got label"),
        (lambda: segmentation_scores(TARGET.view(6, 10), TARGET.view(6, 10), 4, (1.0,)), "spacing: got"),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_brier_is_calibration_and_refinement():
    (probs,), (target,) = make_predictions(20_000)
    probs = probs.T.contiguous()
    calibration, refinement = brier_decomposition(probs, target)
    assert calibration + refinement == pytest.approx(brier_score(probs, target))
    truth = probs.double() / probs.double().sum(1, keepdim=True)
    drawn = torch.multinomial(truth, 1, generator=torch.Generator().manual_seed(1))[:, 0]
    assert brier_decomposition(truth, drawn)[0] < 0.003 < calibration  # a forecaster who knows the chances
    frequencies = torch.bincount(target, minlength=4) / len(target)
    blind = frequencies.double().expand(len(target), 4)
    assert brier_decomposition(blind, target)[0] == pytest.approx(0, abs=1e-9)


def test_smooth_ece_against_its_definition():
    """The integral by brute force over a fine grid, each residual at its own confidence; the root by scipy."""
    (probs,), (target,) = make_predictions(2000)
    probs = probs.T.contiguous()
    confidence, winner = probs.double().max(1)
    residual, at = (winner == target).double().numpy() - confidence.numpy(), confidence.numpy()
    grid = (np.arange(2000) + 0.5) / 2000

    def error(width):
        kernel = sum(
            np.exp(-0.5 * ((grid[:, None] - image) / width) ** 2)
            for shift in (-2, 0, 2)
            for image in (shift + at[None], shift - at[None])
        )
        return np.abs((kernel * residual).mean(1)).mean() / (width * np.sqrt(2 * np.pi))

    expected = brentq(lambda width: error(width) - width, 1e-3, 0.9)
    assert smooth_calibration_error(probs, target) == pytest.approx(expected, abs=1e-4)


def test_smooth_ece_of_certain_and_wrong_is_large_and_of_right_is_zero():
    sure = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    assert smooth_calibration_error(sure, torch.zeros(100, dtype=torch.long)) < 1e-6
    assert smooth_calibration_error(sure, torch.ones(100, dtype=torch.long)) > 0.9


@pytest.mark.parametrize("voxels", [1, 3, 7, 333, 4097])
def test_smooth_ece_is_at_most_one(voxels):
    """It is 1 here, and rounding must not put it beyond."""
    sure = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(voxels, 1)
    assert 1 - 1e-6 < smooth_calibration_error(sure, torch.ones(voxels, dtype=torch.long)) <= 1
