"""What docs/integrations.md says of other libraries, by running them: equal where the definitions agree, and different
where they do not."""

import inspect
import pkgutil

import numpy as np
import pytest
import torch

from mbls.metrics import (
    CalibrationBins,
    average_over_volumes,
    segmentation_scores,
    smooth_calibration_error,
)

K, VOXELS = 4, 100_000


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed (pip install -e '.[peers]')")


@pytest.fixture(scope="module")
def predictions():
    """Overconfident probabilities (N, K) and labels (N,). They are 128ths, whose sums are exact in float32 too, and
    none of 15 bins ends at one; there is no tie for the highest, and none is 1."""
    generator = torch.Generator().manual_seed(11)
    logits = 2 * torch.randn(2 * VOXELS, K, generator=generator, dtype=torch.float64)
    target = (logits / 2).softmax(1).multinomial(1, generator=generator).squeeze(1)
    probs = (128 * logits.softmax(1)).floor()
    probs[:, 0] += 128 - probs.sum(1)
    highest = probs.topk(2).values
    clear = (highest[:, 0] > highest[:, 1]) & (highest[:, 0] < 128)
    return probs[clear][:VOXELS] / 128, target[clear][:VOXELS]


#: Four bins. One voxel is right with the confidence 0.5, an edge, one wrong with 0.6875, and one right with 0.9375.
AT_AN_EDGE = torch.tensor(
    [[0.5, 0.25, 0.25, 0.0], [0.6875, 0.3125, 0.0, 0.0], [0.0, 0.0625, 0.9375, 0.0]], dtype=torch.float64
)
LABELS = torch.tensor([0, 1, 2])
#: Bins (lo, hi] keep the first two apart; in bins [lo, hi) they are together and make up for each other.
RIGHT_CLOSED, LEFT_CLOSED = (0.5 + 0.6875 + 0.0625) / 3, (0.1875 + 0.0625) / 3
#: One voxel claims 1 and is wrong, fifteen claim 15/16 and are right.
CERTAIN = torch.tensor([[1.0, 0.0]] + [[0.9375, 0.0625]] * 15, dtype=torch.float64)
CERTAIN_LABELS = torch.tensor([1] + [0] * 15)
#: With 1 in the last bin, and with a bin of its own for it.
ONE_IN_THE_LAST_BIN, ONE_APART = 1 / 256, (1 + 15 / 16) / 16


def bins(probs, target, num_bins=15):
    return CalibrationBins(probs.shape[1], num_bins).update(probs, target)


def as_image(probs, target):
    """(N, K) and (N,) as one image of MONAI, with one-hot labels."""
    return probs.T[None], torch.nn.functional.one_hot(target, probs.shape[1]).T[None]


def test_ours_at_an_edge():
    assert bins(AT_AN_EDGE, LABELS, 4).ece() == pytest.approx(RIGHT_CLOSED)
    assert bins(CERTAIN, CERTAIN_LABELS, 4).ece() == pytest.approx(ONE_IN_THE_LAST_BIN)


@pytest.mark.parametrize(
    ("path", "option", "number"),
    [
        ("torchmetrics.functional.classification.multiclass_calibration_error", "n_bins", 15),
        ("monai.metrics.calibration.CalibrationErrorMetric", "num_bins", 20),
        ("netcal.metrics.ECE", "bins", 10),
        ("sklearn.calibration.calibration_curve", "n_bins", 5),
    ],
)
def test_bins_unless_told_otherwise(path, option, number):
    library(path.rpartition(".")[0])
    assert inspect.signature(pkgutil.resolve_name(path)).parameters[option].default == number
    assert CalibrationBins(K).num_bins == 15


# torchmetrics


def test_torchmetrics_agrees_away_from_edges(predictions):
    library("torchmetrics")
    from torchmetrics.functional.classification import multiclass_calibration_error

    for norm, figure in (("l1", "ece"), ("max", "mce")):
        theirs = multiclass_calibration_error(*predictions, num_classes=K, n_bins=15, norm=norm).item()
        assert getattr(bins(*predictions), figure)() == pytest.approx(theirs, abs=1e-6)


def test_torchmetrics_has_left_closed_bins_and_one_more_for_1():
    library("torchmetrics")
    from torchmetrics.functional.classification import multiclass_calibration_error

    assert multiclass_calibration_error(AT_AN_EDGE, LABELS, num_classes=K, n_bins=4).item() == pytest.approx(
        LEFT_CLOSED
    )
    theirs = multiclass_calibration_error(CERTAIN, CERTAIN_LABELS, num_classes=2, n_bins=4).item()
    assert theirs == pytest.approx(ONE_APART)


def test_torchmetrics_adds_up_in_float32():
    library("torchmetrics")
    from torchmetrics.functional.classification import multiclass_calibration_error

    probs = torch.tensor([[0.93, 0.07]]).expand(1_000_000, 2)
    target = torch.zeros(len(probs), dtype=torch.long)
    target[::10] = 1
    theirs = multiclass_calibration_error(probs, target, num_classes=2, n_bins=15).item()
    assert bins(probs, target).ece() == pytest.approx(0.03, abs=1e-6)
    assert abs(theirs - 0.03) > 1e-3


# MONAI


def monais(probs, target, num_bins=15, **options):
    module = pytest.importorskip("monai.metrics.calibration", reason="this MONAI has no CalibrationErrorMetric (1.6)")
    metric = module.CalibrationErrorMetric(num_bins=num_bins, **options)
    metric(*as_image(probs, target))
    return metric.aggregate().item()


@pytest.mark.parametrize(("name", "theirs"), [("ece", "expected"), ("ace", "average"), ("mce", "maximum")])
def test_monai_is_classwise(predictions, name, theirs):
    ours = bins(*predictions)
    assert ours.classwise(name).mean() == pytest.approx(monais(*predictions, calibration_reduction=theirs), abs=1e-6)
    assert abs(getattr(ours, name)() - ours.classwise(name).mean()) > 0.01


def test_monai_has_right_closed_bins_whatever_right_says():
    ours = bins(AT_AN_EDGE, LABELS, 4).cece()
    assert monais(AT_AN_EDGE, LABELS, 4) == pytest.approx(ours, abs=1e-7)
    assert monais(AT_AN_EDGE, LABELS, 4, right=True) == pytest.approx(ours, abs=1e-7)
    # Two of the bins of each class are empty: left out of its mean.
    average = bins(AT_AN_EDGE, LABELS, 4).classwise("ace").mean()
    assert monais(AT_AN_EDGE, LABELS, 4, calibration_reduction="average") == pytest.approx(average, abs=1e-7)
    assert monais(CERTAIN, CERTAIN_LABELS, 4) == pytest.approx(bins(CERTAIN, CERTAIN_LABELS, 4).cece(), abs=1e-7)


def test_monai_averages_images_first(predictions):
    module = pytest.importorskip("monai.metrics.calibration", reason="this MONAI has no CalibrationErrorMetric (1.6)")
    from mbls.adapters.monai import CalibrationMetric

    theirs = module.CalibrationErrorMetric(num_bins=15)
    each, pooled = CalibrationMetric(K, "cece"), CalibrationMetric(K, "cece", reduction="pooled")
    for part in (slice(0, 200), slice(200, 1000)):
        image = as_image(predictions[0][part], predictions[1][part])
        for metric in (theirs, each, pooled):
            metric(*image)
    assert each.aggregate().item() == pytest.approx(theirs.aggregate().item(), abs=1e-6)
    assert pooled.aggregate().item() < each.aggregate().item() - 0.003


# netcal


@pytest.mark.parametrize("name", ["ece", "ace", "mce"])
def test_netcal_agrees_away_from_edges(predictions, name):
    metrics = library("netcal.metrics")
    theirs = getattr(metrics, name.upper())(15).measure(predictions[0].numpy(), predictions[1].numpy())
    assert getattr(bins(*predictions), name)() == pytest.approx(theirs, abs=1e-6)


def test_netcal_has_left_closed_bins_but_the_last():
    metrics = library("netcal.metrics")
    assert metrics.ECE(4).measure(AT_AN_EDGE.numpy(), LABELS.numpy()) == pytest.approx(LEFT_CLOSED)
    assert metrics.ECE(4).measure(CERTAIN.numpy(), CERTAIN_LABELS.numpy()) == pytest.approx(ONE_IN_THE_LAST_BIN)


# scikit-learn


def test_sklearns_curve_is_the_diagram_of_a_class_without_its_empty_bins(predictions):
    calibration = library("sklearn.calibration")
    probs, target = predictions
    for label in range(K):
        hit, claimed = calibration.calibration_curve(target == label, probs[:, label], n_bins=15)
        ours = bins(probs, target).reliability(label)
        np.testing.assert_allclose(ours.accuracy, hit, atol=1e-6)
        np.testing.assert_allclose(ours.confidence, claimed, atol=1e-6)


def test_sklearn_has_right_closed_bins_and_drops_empty_ones():
    calibration = library("sklearn.calibration")
    hit, claimed = calibration.calibration_curve(LABELS == 0, AT_AN_EDGE[:, 0].numpy(), n_bins=4)
    assert (hit.tolist(), claimed.tolist()) == ([0, 1, 0], [0, 0.5, 0.6875])
    ours = bins(AT_AN_EDGE, LABELS, 4).reliability(0)
    np.testing.assert_array_equal(ours.confidence, [0, 0.5, 0.6875, np.nan])


# relplot


def winners(relplot, probs, target):
    return relplot.multiclass_logits_to_confidences(probs.numpy(), target.numpy(), probs=True)


def test_relplot_agrees_away_from_edges(predictions):
    relplot = library("relplot")
    theirs = relplot.metrics.binnedECE(*winners(relplot, *predictions), 15)
    assert bins(*predictions).ece() == pytest.approx(theirs, abs=1e-6)


def test_relplots_smooth_ece(predictions):
    relplot = library("relplot")
    theirs = relplot.smECE(*winners(relplot, *predictions))
    assert smooth_calibration_error(*predictions) == pytest.approx(theirs, abs=1e-3)


def test_relplot_has_left_closed_bins_and_one_more_for_1():
    relplot = library("relplot")
    at_edge, certain = winners(relplot, AT_AN_EDGE, LABELS), winners(relplot, CERTAIN, CERTAIN_LABELS)
    assert relplot.metrics.binnedECE(*at_edge, 4) == pytest.approx(LEFT_CLOSED)
    assert relplot.metrics.binnedECE(*certain, 4) == pytest.approx(ONE_APART)


# Surface distances


def two_shapes():
    """A ball, and the same with a tip that only one way of measuring sees."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij"))
    ball = ((grid - 11) ** 2).sum(0) <= 36
    tipped = ball.clone()
    tipped[9:14, 9:14, 11:22] = True
    return tipped, ball


SPACING = (3.0, 1.0, 1.0)


def ours_asd():
    prediction, target = two_shapes()
    return segmentation_scores(prediction.long(), target.long(), 2, SPACING)["asd"][0]


def test_asd_is_symmetric_as_medpys_assd_and_monais_symmetric_one():
    from monai.metrics import compute_average_surface_distance

    prediction, target = two_shapes()
    maps = [torch.stack([~shape, shape])[None] for shape in (prediction, target)]
    symmetric = compute_average_surface_distance(*maps, symmetric=True, spacing=SPACING).item()
    one_way = compute_average_surface_distance(*maps, spacing=SPACING).item()  # MONAI's default
    assert ours_asd() == pytest.approx(symmetric, abs=1e-6)
    assert abs(one_way - symmetric) > 0.05


def test_medpys_asd_goes_one_way_and_its_assd_both():
    binary = library("medpy.metric.binary")
    prediction, target = (shape.numpy() for shape in two_shapes())
    there, back = binary.asd(prediction, target, SPACING), binary.asd(target, prediction, SPACING)
    assert abs(there - back) > 0.05
    assert binary.assd(prediction, target, SPACING) == pytest.approx(ours_asd())


@pytest.mark.filterwarnings("ignore:.*scipy.ndimage:DeprecationWarning")  # surface-distance 0.1 with SciPy 1.17
def test_surface_distance_weights_by_area():
    package = library("surface_distance")
    prediction, target = (shape.numpy() for shape in two_shapes())
    distances = package.compute_surface_distances(target, prediction, SPACING)
    back, there = package.compute_average_surface_distance(distances)
    areas = distances["surfel_areas_pred"]
    assert there == pytest.approx((distances["distances_pred_to_gt"] * areas).sum() / areas.sum())
    assert areas.max() > 2 * areas.min()
    assert abs((there + back) / 2 - ours_asd()) > 0.01


# The authors' code is no package: what its evaluation does is said here in this package's terms.


def test_the_authors_averages(predictions):
    """Foreground by the true label; a mean over volumes, in their validation weighted by the voxels counted."""
    probs, target = predictions
    volumes = [CalibrationBins(K), CalibrationBins(K)]
    for one, part in zip(volumes, (slice(0, 100), slice(100, 5000)), strict=True):
        one.update(probs[part], target[part], target[part] > 0)
    values, voxels = [one.ece() for one in volumes], [one.num_voxels for one in volumes]
    test_script, validation = average_over_volumes(values), average_over_volumes(values, voxels)
    pooled = volumes[0].merge(volumes[1]).ece()
    assert len({round(figure, 4) for figure in (test_script, validation, pooled)}) == 3
    assert abs(pooled - bins(probs[:5000], target[:5000]).ece()) > 0.003


def test_an_absent_structure_is_no_perfect_one():
    """Their test script counts DSC 1 and HD 0 for it."""
    nothing = torch.zeros(8, 8, dtype=torch.long)
    scores = segmentation_scores(nothing, nothing, 2)
    assert np.isnan([scores["dsc"], scores["hd95"]]).all()
    one_lacks_it = segmentation_scores(nothing, 1 - nothing, 2)
    assert (one_lacks_it["dsc"], one_lacks_it["hd95"]) == ([0], [np.inf])
