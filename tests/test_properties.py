"""What holds for every input: properties of the losses, the metrics and post-hoc scaling, tried on drawn examples."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mbls.constraints import linear_penalty
from mbls.losses import (
    LOSSES,
    CrossEntropyLoss,
    HardL1ACELoss,
    MbLSLoss,
    SoftL1ACELoss,
    WithDice,
    WithL1ACE,
    build_loss,
)
from mbls.metrics import (
    CalibrationBins,
    adaptive_calibration_error,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
)
from mbls.posthoc import TemperatureScaling

tried = settings(max_examples=25, deadline=None, derandomize=True, database=None)

L1_ACE = {"hard_l1ace": HardL1ACELoss, "soft_l1ace": SoftL1ACELoss}
NAMES = [*LOSSES, *L1_ACE]
POINTWISE = [name for name in NAMES if name not in ("svls", "nacl")]  # the others look at a voxel's neighbours
#: Losses with a margin, as functions of it.
MARGIN = {
    "mbls": lambda margin: MbLSLoss(margin),
    "mbls_l2": lambda margin: MbLSLoss(margin, norm="l2"),
    "mbls_dice": lambda margin: WithDice(MbLSLoss(margin)),
    "mbls_soft_l1ace": lambda margin: WithL1ACE(MbLSLoss(margin), bins="soft"),
}


def loss_of(name, logits):
    if name in L1_ACE:
        return L1_ACE[name]()
    return build_loss(name, logits.shape[1], **({"spatial_dims": logits.dim() - 2} if name in ("svls", "nacl") else {}))


@st.composite
def batches(draw, neighbours=False, ignoring=True, dtype=torch.float64):
    """Logits and labels: K in 2..20, 1-D to 3-D, batch 1..4, logits of 1e-8..1e4, with ties and ignored voxels or
    without."""
    dims = draw(st.integers(2 if neighbours else 1, 3))
    shape = (
        draw(st.integers(1, 4)),
        draw(st.integers(2, 20)),
        *draw(st.lists(st.integers(2 if neighbours else 1, 5), min_size=dims, max_size=dims)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        logits = logits.round(decimals=1)  # ties
    logits = (logits * 10 ** draw(st.floats(-8, 4))).clamp(-1e4, 1e4)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    if ignoring and draw(st.booleans()):
        target[torch.rand(target.shape, generator=generator) < 0.3] = -100
    return logits.to(dtype), target


def batches_for(name, dtype=torch.float64):
    return batches(neighbours=name in ("svls", "nacl"), ignoring=name != "nacl", dtype=dtype)


@st.composite
def forecasts(draw, sharpness=10.0):
    """Probabilities (N, K) and labels (N,), from even to certain, with ties or without."""
    voxels, classes = draw(st.integers(1, 300)), draw(st.integers(2, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    probs = (draw(st.floats(0, sharpness)) * torch.randn(voxels, classes, generator=generator)).softmax(1)
    if draw(st.booleans()):
        probs = probs[torch.randint(max(1, voxels // 5), (voxels,), generator=generator)]  # ties
    probs = probs.to(draw(st.sampled_from([torch.float32, torch.float64])))
    return probs, torch.randint(classes, (voxels,), generator=generator)


def order_of(data, size):
    return torch.randperm(size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 2**31))))


def assume_off_the_edges(name, logits, num_bins=20):
    """Hard bins jump at their edges, where a rounding decides."""
    if "hard" in name:
        place = logits.softmax(1) * num_bins
        assume(bool(((place - place.round()).abs() > 1e-9).all()))


def assert_equal_up_to_rounding(name, value, expected, logits):
    """Sums in another order. A loss is at most of the size of the logits; labels of svls and nacl are float32."""
    rtol = 1e-6 if name in ("svls", "nacl") else 1e-11
    torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol * float(logits.abs().max()) + 1e-11)


# Losses.


@pytest.mark.parametrize("name", NAMES)
@tried
@given(st.data())
def test_a_loss_and_its_gradient_are_finite(name, data):
    logits, target = data.draw(batches_for(name, data.draw(st.sampled_from([torch.float32, torch.float64]))))
    logits.requires_grad_()
    loss = loss_of(name, logits)(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@tried
@given(st.data())
def test_the_order_of_the_classes_does_not_matter(name, data):
    logits, target = data.draw(batches_for(name))
    assume_off_the_edges(name, logits)
    order, loss = order_of(data, logits.shape[1]), loss_of(name, logits)
    renamed = torch.where(target < 0, target, order.argsort()[target.clamp(min=0)])
    assert_equal_up_to_rounding(name, loss(logits[:, order], renamed), loss(logits, target), logits)


@pytest.mark.parametrize("name", POINTWISE)
@tried
@given(st.data())
def test_the_order_of_the_voxels_does_not_matter(name, data):
    logits, target = data.draw(batches())
    assume_off_the_edges(name, logits)
    loss, expected = loss_of(name, logits), loss_of(name, logits)(logits, target)
    logits, target = logits.flatten(2), target.flatten(1)
    order = order_of(data, target.shape[1])
    assert_equal_up_to_rounding(name, loss(logits[:, :, order], target[:, order]), expected, logits)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nacl"])  # its penalty is on the logits themselves
@tried
@given(st.data())
def test_a_number_added_to_all_logits_of_a_voxel_does_not_matter(name, data):
    logits, target = data.draw(batches_for(name))
    assume_off_the_edges(name, logits)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    shift = 10 * torch.randn((logits.shape[0], 1, *logits.shape[2:]), generator=generator, dtype=torch.float64)
    loss = loss_of(name, logits)
    # The sum with the shift loses the logits' last digits.
    torch.testing.assert_close(loss(logits + shift, target), loss(logits, target), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(MARGIN))
@tried
@given(batches(), st.floats(0, 50), st.floats(0, 50))
def test_a_wider_margin_never_costs_more(name, batch, first, second):
    narrow, wide = (MARGIN[name](margin)(*batch) for margin in sorted((first, second)))
    assert wide <= narrow * (1 + 1e-12)


@pytest.mark.parametrize("name", sorted(MARGIN))
@tried
@given(batches())
def test_a_margin_beyond_all_distances_is_cross_entropy(name, batch):
    loss = MARGIN[name](1e5)
    around = {"mbls_dice": WithDice, "mbls_soft_l1ace": lambda inner: WithL1ACE(inner, bins="soft")}
    expected = around.get(name, lambda inner: inner)(CrossEntropyLoss())
    torch.testing.assert_close(loss(*batch), expected(*batch), rtol=1e-12, atol=0)


@tried
@given(batches(), st.floats(0, 10))
def test_a_margin_of_zero_is_cross_entropy_and_the_linear_penalty(batch, alpha):
    logits, target = batch
    expected = CrossEntropyLoss(reduction="none")(logits, target) + alpha * linear_penalty(logits) * (target >= 0)
    loss = MbLSLoss(margin=0, alpha=alpha, reduction="none")
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-12, atol=1e-12)


# Metrics.


def figures(probs, target):
    bins = CalibrationBins(probs.shape[1]).update(probs, target)
    return [
        bins.ece(),
        bins.cece(),
        bins.ace(),
        bins.mce(),
        *(value for name in ("ece", "ace", "mce") for value in bins.classwise(name)),
        expected_calibration_error(probs, target),
        classwise_calibration_error(probs, target),
        adaptive_calibration_error(probs, target),
        brier_score(probs, target),
        negative_log_likelihood(probs, target),
    ]


@tried
@given(forecasts(sharpness=1e3))
def test_figures_stay_in_their_range(forecast):
    *errors, brier, nll = figures(*forecast)
    assert all(0 <= error <= 1 for error in errors)
    assert 0 <= brier <= 2
    assert 0 <= nll < math.inf


@tried
@given(forecasts(), st.data())
def test_the_order_of_the_voxels_changes_no_figure(forecast, data):
    probs, target = forecast
    order = order_of(data, len(target))
    assert figures(probs[order], target[order]) == pytest.approx(figures(probs, target), rel=1e-12, abs=1e-15)


@tried
@given(forecasts(), st.data())
def test_batches_split_and_merged_in_any_way_are_counted_alike(forecast, data):
    probs, target = forecast
    whole = CalibrationBins(probs.shape[1]).update(probs, target).state_dict()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(target)), max_size=4)))
    one_by_one, merged = CalibrationBins(probs.shape[1]), CalibrationBins(probs.shape[1])
    for start, stop in zip([0, *cuts], [*cuts, len(target)], strict=True):
        part = probs[start:stop], target[start:stop]
        one_by_one.update(*part)
        merged.merge(CalibrationBins(probs.shape[1]).update(*part))
    for bins in (one_by_one, merged):
        for name, expected in whole.items():
            torch.testing.assert_close(bins.state_dict()[name], expected, rtol=1e-12, atol=0)


@tried
@given(st.integers(2, 20), st.integers(1, 20_000), st.integers(1, 50), st.floats(0, 5), st.integers(0, 2**31))
def test_labels_drawn_from_the_forecast_itself_look_calibrated(classes, voxels, num_bins, sharpness, seed):
    """The expected ECE is at most sqrt(B / 4N) by Cauchy-Schwarz, and one label moves it by 1 / N: by McDiarmid's
    inequality it lies further above by the second term once in 1e9 draws."""
    generator = torch.Generator().manual_seed(seed)
    probs = (sharpness * torch.randn(voxels, classes, generator=generator)).softmax(1)
    target = torch.multinomial(probs, 1, generator=generator).flatten()
    bound = math.sqrt(num_bins / (4 * voxels)) + math.sqrt(math.log(1e9) / (2 * voxels))
    assert expected_calibration_error(probs, target, num_bins) <= bound


# Post-hoc.


@tried
@given(batches(dtype=torch.float32))
def test_a_temperature_of_one_is_the_identity(batch):
    assert torch.equal(TemperatureScaling(1)(batch[0]), batch[0])
    assert torch.equal(TemperatureScaling()(batch[0].double()), batch[0].double())
