"""Maps of the logits after training: temperature, vector scaling, isotonic regression."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from no_float64 import device_without_float64

from mbls.metrics import classwise_calibration_error, expected_calibration_error
from mbls.posthoc import IsotonicCalibration, TemperatureScaling, VectorScaling, segmentation_change


def make_overconfident(temperature=2.5):
    generator = torch.Generator().manual_seed(0)
    honest = 1.5 * torch.randn(4, 4, 60, 60, generator=generator)
    target = torch.multinomial(honest.softmax(1).movedim(1, -1).flatten(0, -2), 1, generator=generator).view(4, 60, 60)
    return temperature * honest, target


def test_finds_the_temperature_and_calibrates():
    logits, target = make_overconfident()
    scaling = TemperatureScaling().fit(logits, target)
    assert scaling.temperature == pytest.approx(2.5, rel=0.05)
    before = expected_calibration_error(logits.softmax(1), target)
    after = expected_calibration_error(scaling(logits).softmax(1), target)
    assert after < 0.02 < before
    assert (scaling(logits).argmax(1) == logits.argmax(1)).all()


def test_is_a_minimum_of_the_nll():
    logits, target = make_overconfident()
    temperature = TemperatureScaling().fit(logits, target).temperature

    def nll(value):
        return F.cross_entropy(logits.double() / value, target)

    assert nll(temperature) < nll(0.98 * temperature)
    assert nll(temperature) < nll(1.02 * temperature)


def test_mask_selects_what_is_fitted():
    logits, target = make_overconfident()
    mask = torch.zeros_like(target, dtype=torch.bool)
    mask[:2] = True
    part = TemperatureScaling().fit(logits[:2], target[:2]).temperature
    assert TemperatureScaling().fit(logits, target, mask).temperature == pytest.approx(part)


def test_state_is_a_plain_number_and_comes_back():
    logits, target = make_overconfident()
    scaling = TemperatureScaling().fit(logits, target)
    state = json.loads(json.dumps(scaling.state_dict()))
    assert {name: type(value) for name, value in TemperatureScaling(2).state_dict().items()} == {"temperature": float}
    restored = TemperatureScaling()
    restored.load_state_dict(state)
    assert torch.equal(restored(logits), scaling(logits))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "state: got nothing, expected temperature"),
        ({"scale": 2.0}, "state: got scale, expected temperature"),
        ({"temperature": 0.0}, "temperature: got 0.0, expected a finite number > 0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"temperature": "2"}, "temperature: got '2'"),
    ],
)
def test_a_bad_state_is_refused_and_changes_nothing(state, message):
    scaling = TemperatureScaling(1.5)
    with pytest.raises(ValueError, match=message):
        scaling.load_state_dict(state)
    assert scaling.temperature == 1.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: TemperatureScaling(0), "temperature: got 0"),
        (lambda x, y: TemperatureScaling().fit(x, y[:, 1:]), "target: got shape"),
        (lambda x, y: TemperatureScaling().fit(x * torch.nan, y), "logits: got 57600 NaN"),
        (lambda x, y: TemperatureScaling().fit(x, y + 1), "target: got label 4 "),
        (lambda x, y: TemperatureScaling().fit(x, y, torch.zeros_like(y, dtype=torch.bool)), "mask: got no voxel"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(*make_overconfident())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([[0, 1, 1]]), "mask: got torch.int64, expected torch.bool"),
        (torch.tensor([[False], [True], [True]]), r"mask: got shape \(3, 1\), expected \(1, 3\)"),
    ],
)
def test_a_mask_of_numbers_or_of_another_shape_is_refused(mask, message):
    """Numbers would be taken for indices, and a transposed mask for the right one, without a word."""
    logits, labels = torch.randn(1, 2, 3), torch.tensor([[0, 1, 1]])
    with pytest.raises(ValueError, match=message):
        TemperatureScaling().fit(logits, labels, mask)


# What every map does.

MAPS = {
    "temperature": TemperatureScaling,
    "vector": lambda: VectorScaling(4),
    "isotonic": lambda: IsotonicCalibration(4),
}


@pytest.mark.parametrize("name", sorted(MAPS))
def test_it_calibrates_and_its_state_comes_back(name):
    logits, target = make_overconfident()
    fitted = MAPS[name]().fit(logits[:2], target[:2])
    held_out, labels = logits[2:], target[2:]
    before = classwise_calibration_error(held_out.softmax(1), labels)
    assert classwise_calibration_error(fitted(held_out).softmax(1), labels) < 0.02 < before
    restored = MAPS[name]()
    restored.load_state_dict(json.loads(json.dumps(fitted.state_dict())))
    assert torch.equal(restored(logits), fitted(logits))
    assert repr(restored) == repr(fitted)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_before_a_fit_it_changes_no_probability(name):
    logits, _ = make_overconfident()
    torch.testing.assert_close(MAPS[name]()(logits).softmax(1), logits.softmax(1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_log_probabilities_are_as_good_as_logits(name):
    logits, target = make_overconfident()
    log_probs = logits.double().log_softmax(1)
    fitted = MAPS[name]().fit(logits.double(), target)
    of_log_probs = MAPS[name]().fit(log_probs, target)
    expected = fitted(logits.double()).softmax(1)
    torch.testing.assert_close(of_log_probs(log_probs).softmax(1), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_soft_labels(name):
    logits, target = make_overconfident()
    hard = MAPS[name]().fit(logits, target)
    one_hot = F.one_hot(target, 4).movedim(-1, 1).float()
    assert MAPS[name]().fit(logits, one_hot).state_dict() == hard.state_dict()
    truth = (logits / 2.5).softmax(1)
    if name == "temperature":
        assert MAPS[name]().fit(logits, truth).temperature == pytest.approx(2.5, rel=1e-5)
    off = (MAPS[name]().fit(logits, truth)(logits).softmax(1) - truth).abs()
    # The truth is a temperature's; curves of one class at a time only come near it (0.10 before).
    assert off.mean() < 0.02 if name == "isotonic" else off.max() < 0.02
    mask = target != 1
    rows = [part.movedim(1, -1)[mask] for part in (logits, truth)]
    assert repr(MAPS[name]().fit(logits, truth, mask)) == repr(MAPS[name]().fit(*rows))


@pytest.mark.parametrize("name", sorted(MAPS))
def test_inference_mode_changes_nothing(name):
    logits, target = make_overconfident()
    expected = MAPS[name]().fit(logits, target).state_dict()
    with torch.inference_mode():
        frozen = logits.clone(), target.clone()
        assert MAPS[name]().fit(*frozen).state_dict() == expected
    fitted = MAPS[name]().fit(*frozen)
    assert fitted.state_dict() == expected
    assert fitted(frozen[0]).shape == logits.shape


@pytest.mark.parametrize("name", sorted(MAPS))
def test_a_device_without_float64(name):
    logits, target = make_overconfident()
    expected = MAPS[name]().fit(logits, target)
    with device_without_float64() as device:
        fitted = MAPS[name]().fit(logits.to(device), target.to(device), (target >= 0).to(device))
        scaled = fitted(logits.to(device))
        assert scaled.device == device
        scaled = scaled.cpu()
    assert fitted.state_dict() == expected.state_dict()
    torch.testing.assert_close(scaled, expected(logits), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", sorted(MAPS))
def test_the_type_of_the_logits_is_kept(name, dtype):
    logits, target = make_overconfident()
    fitted = MAPS[name]().fit(logits.to(dtype), target)
    assert fitted(logits.to(dtype)).dtype == dtype
    assert fitted(logits.to(dtype)).isfinite().all()


@pytest.mark.parametrize("name", ["vector", "isotonic"])
def test_another_number_of_classes_is_refused(name):
    logits, target = make_overconfident()
    for call in (lambda: MAPS[name]().fit(logits[:, :3], target.clamp(max=2)), lambda: MAPS[name]()(logits[:, :3])):
        with pytest.raises(ValueError, match="logits: got 3 classes, expected num_classes=4"):
            call()


# A fit that has no minimum.


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_separable_labels_end_at_the_lower_bound_and_say_so(scale):
    logits, _ = make_overconfident()
    with pytest.warns(UserWarning, match="temperature: the fit ends at its bound 0.01: these labels are separable"):
        assert TemperatureScaling().fit(scale * logits, logits.argmax(1)).temperature == 0.01


@pytest.mark.parametrize(
    "make",
    [lambda x: torch.zeros_like(x), lambda x: -x, lambda x: x.roll(7, 2) * 1e4],
    ids=["even", "wrong", "shuffled"],
)
def test_uninformative_logits_end_at_the_upper_bound_and_say_so(make):
    logits, target = make_overconfident()
    with pytest.warns(UserWarning, match="temperature: the fit ends at its bound 100: these logits are uninformative"):
        assert TemperatureScaling().fit(make(logits), target).temperature == 100


def test_vector_scaling_says_where_it_has_no_minimum():
    logits, target = make_overconfident()
    with pytest.warns(UserWarning, match="scale: these labels are separable"):
        separable = VectorScaling(4).fit(logits, logits.argmax(1))
    with pytest.warns(UserWarning, match="target: got no voxel of class 1, 3, whose shift"):
        absent = VectorScaling(4).fit(logits, target, mask=target % 2 == 0)
    with pytest.warns(UserWarning, match="scale: ends at its bound 0.01 for class 0, 1, 2, 3, whose logits are uninf"):
        wrong = VectorScaling(4).fit(-logits, target)
    for scaling in (separable, absent, wrong):
        assert all(0.01 <= scale <= 100 for scale in scaling.scale)
        assert all(abs(shift) <= 200 for shift in scaling.shift)


# Vector scaling and isotonic regression alone.


def test_vector_scaling_undoes_what_was_done_to_the_log_probabilities():
    honest = (1.5 * torch.randn(1, 3, 300, 300, generator=torch.Generator().manual_seed(0))).log_softmax(1)
    scale, shift = torch.tensor([0.5, 2.0, 1.0]).view(1, 3, 1, 1), torch.tensor([1.0, -1.5, 0.5]).view(1, 3, 1, 1)
    truth = (scale * honest + shift).softmax(1)
    fitted = VectorScaling(3).fit(honest, truth)
    assert fitted.scale == pytest.approx([0.5, 2.0, 1.0], rel=1e-3)
    assert fitted.shift == pytest.approx([1.0, -1.5, 0.5], rel=1e-3)


def test_vector_scaling_is_at_least_as_likely_as_a_temperature():
    logits, target = make_overconfident()
    nll = [
        F.cross_entropy(map_(logits).double(), target)
        for map_ in (TemperatureScaling().fit(logits, target), VectorScaling(4).fit(logits, target))
    ]
    assert nll[1] < nll[0]


def test_isotonic_curves_are_scikit_learns():
    isotonic = pytest.importorskip("sklearn.isotonic", reason="scikit-learn is not installed (extra peers)")
    logits, target = make_overconfident()
    probs = logits.double().softmax(1)
    fitted = IsotonicCalibration(4).fit(logits, target)
    for k, (x, y) in enumerate(fitted.curves):
        p, hit = probs[:, k].flatten().numpy(), (target == k).flatten().double().numpy()
        place = np.minimum((p * 4096).astype(int), 4095)
        weight = np.bincount(place, minlength=4096)
        filled = weight > 0
        mean_p, mean_hit = (np.bincount(place, v, 4096)[filled] / weight[filled] for v in (p, hit))
        expected = isotonic.IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        expected.fit(mean_p, mean_hit, sample_weight=weight[filled])
        grid = np.linspace(0, 1, 1001)
        np.testing.assert_allclose(np.interp(grid, x, y), expected.predict(grid), atol=1e-9)


def test_isotonic_says_which_class_it_has_never_seen():
    logits, target = make_overconfident()
    with pytest.warns(UserWarning, match="target: got no voxel of class 0, which the calibration will never claim"):
        fitted = IsotonicCalibration(4).fit(logits, target, mask=target > 0)
    change = segmentation_change(fitted, logits, target)
    assert (fitted(logits).argmax(1) > 0).all()
    assert change.flipped >= int((logits.argmax(1) == 0).sum())


def test_isotonic_curves_rise_and_probabilities_sum_to_one():
    logits, target = make_overconfident()
    fitted = IsotonicCalibration(4).fit(logits, target)
    assert all(np.all(np.diff(x) > 0) and np.all(np.diff(y) >= 0) for x, y in fitted.curves)
    extreme = torch.tensor([[1e4, 0, 0, 0], [-1e4, -1e4, -1e4, 0], [0, 0, 0, 0]])
    log_probs = fitted(extreme)
    assert log_probs.isfinite().all()
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(3))


# What the segmentation loses or gains.


def test_only_some_maps_change_the_segmentation():
    logits, target = make_overconfident()
    logits[:, 1] += 1.5  # too much of class 1
    for name, make in MAPS.items():
        fitted = make().fit(logits, target)
        change = segmentation_change(fitted, logits, target)
        flips = fitted(logits).argmax(1) != logits.argmax(1)
        assert change.voxels == target.numel()
        assert change.flipped == int(flips.sum())
        assert (change.flipped > 0) == fitted.changes_segmentation == (name != "temperature")
        assert (change.dsc_before == change.dsc_after) == (name == "temperature")


def test_dsc_of_the_change_is_the_mean_over_samples_and_leaves_masked_voxels_out():
    logits, target = make_overconfident()
    mask = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    change = segmentation_change(lambda values: values.flip(1), logits, target, mask)
    assert change.voxels == int(mask.sum())
    for dsc, values in ((change.dsc_before, logits), (change.dsc_after, logits.flip(1))):
        for k in (1, 2, 3):
            of_sample = []
            for winner, labels, counts in zip(values.argmax(1), target, mask, strict=True):
                hit, said, there = (
                    (a & counts).sum() for a in ((winner == k) & (labels == k), winner == k, labels == k)
                )
                of_sample.append(float(2 * hit / (said + there)))
            assert dsc[k - 1] == pytest.approx(sum(of_sample) / 4)
    background = segmentation_change(TemperatureScaling(), logits, target, torch.zeros_like(mask))
    assert (background.voxels, background.flipped) == (0, 0)
    assert np.isnan(background.dsc_before).all()


@pytest.mark.parametrize(
    ("map_", "state", "message"),
    [
        (VectorScaling(2), {"scale": [1.0, 1.0]}, "state: got scale, expected shift"),
        (VectorScaling(2), {"scale": [1.0], "shift": [0.0, 0.0]}, r"scale: got \[1.0\], expected a list of 2"),
        (VectorScaling(2), {"scale": [1.0, -1], "shift": [0.0, 0.0]}, "scale: got -1, expected a finite number > 0"),
        (VectorScaling(2), {"scale": [1.0, 1.0], "shift": [0.0, np.nan]}, "shift: got nan, expected a finite number"),
        (VectorScaling(2), {"scale": "ab", "shift": [0.0, 0.0]}, "scale: got 'ab', expected a list of 2"),
        (IsotonicCalibration(2), {}, "state: got nothing, expected probabilities"),
        (
            IsotonicCalibration(2),
            {"probabilities": [[0.0, 1.0], [0.0]], "frequencies": [[0.0, 1.0], [0.0, 0.5]]},
            "frequencies: got 2 of a class, expected 1",
        ),
        (
            IsotonicCalibration(2),
            {"probabilities": [[0.0, 1.0], [0.0]], "frequencies": [[1.0, 0.0], [0.0]]},
            r"frequencies: got \[1.0, 0.0\], expected numbers in 0..1 that do not fall",
        ),
        (IsotonicCalibration(2), {"probabilities": [3, 4]}, "probabilities: got 3, expected a list of numbers"),
    ],
)
def test_a_bad_state_of_the_others_is_refused_and_changes_nothing(map_, state, message):
    before = map_.state_dict()
    with pytest.raises(ValueError, match=message):
        map_.load_state_dict(state)
    assert map_.state_dict() == before
