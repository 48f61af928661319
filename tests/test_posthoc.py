"""Temperature scaling."""

import json

import pytest
import torch
import torch.nn.functional as F

from mbls.metrics import expected_calibration_error
from mbls.posthoc import TemperatureScaling


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
