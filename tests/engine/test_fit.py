"""fit: learning, resuming to the bit, other runs refused, real interruptions, two processes, damaged checkpoints."""

import copy
import fractions
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.transforms import Compose, RandGaussianNoised
from monai.utils import LossReduction
from torch import nn

from mbls.data.dataset import split
from mbls.data.layout import read_dataset
from mbls.data.slices import SliceDataset, augmentation
from mbls.engine.devices import make_fabric
from mbls.engine.fit import BEST, CHECKPOINT, FitSettings, fit, load_weights, weights_checksum
from mbls.engine.judge import Judgement, judge
from mbls.engine.predict import predict
from mbls.losses import AlphaSchedule, CrossEntropyLoss, MbLSLoss, SVLSLoss, WithDice
from mbls.networks.unet import UNet
from mbls.study.experiment import judge_run

fit_module = sys.modules["mbls.engine.fit"]  # the name in the package is the function
SETTINGS = FitSettings(epochs=3, batch_size=8, seed=5)


@pytest.fixture(scope="module")
def slices(phantom):
    return SliceDataset(phantom.first(2), size=32, crop=128, transform=augmentation())


@pytest.fixture(scope="module")
def val(phantom):
    return SliceDataset(phantom.of(["patient003"]), size=32, crop=128)


def make_model(seed=0):
    torch.manual_seed(seed)
    return UNet(4, base_channels=4, levels=3, norm="batch")


def run(slices, val, settings=SETTINGS, out=None, loss=None, **options):
    model = make_model()
    result = fit(model, loss or CrossEntropyLoss(), slices, val, settings, out=out, progress=False, **options)
    return model, result


def assert_same(model, other):
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def without_time(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def ctrl_c_in_step(steps, loss):
    """The loss, with a real Ctrl-C for this process during the n-th step."""
    left = [steps]

    def count(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    loss.register_forward_pre_hook(count)
    return loss


def test_learns_and_ends_with_the_best_epoch(slices, val):
    model, result = run(slices, val, FitSettings(epochs=8, batch_size=8, learning_rate=5e-3))
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    best = max(result.history, key=lambda row: row["val_dsc"])
    assert (result.best_epoch, result.best_dsc) == (best["epoch"], best["val_dsc"])
    assert judge(predict(model, val), val.class_names, ["dsc"]).summary()["dsc"] == pytest.approx(
        result.best_dsc, abs=1e-9
    )


def test_repeats_to_the_bit(slices, val):
    first, _ = run(slices, val)
    torch.manual_seed(99)  # what happened before must not matter
    second, _ = run(slices, val)
    assert_same(first, second)


@pytest.mark.parametrize("steps", [1, 3, 6, 9, 12], ids=lambda steps: f"step {steps}")
def test_resumes_to_the_bit_after_ctrl_c(slices, val, tmp_path, steps):
    whole, expected = run(slices, val)
    with pytest.raises(KeyboardInterrupt):
        run(slices, val, out=tmp_path, loss=ctrl_c_in_step(steps, CrossEntropyLoss()))
    assert (tmp_path / CHECKPOINT).is_file()
    assert not list(tmp_path.glob(".*.part"))
    resumed, result = run(slices, val, out=tmp_path)
    assert_same(whole, resumed)
    assert without_time(result.history) == without_time(expected.history)


def test_goes_on_to_more_epochs(slices, val, tmp_path):
    run(slices, val, FitSettings(epochs=2, batch_size=8, seed=5), out=tmp_path)
    longer, result = run(slices, val, out=tmp_path)
    whole, _ = run(slices, val)
    assert len(result.history) == 3
    assert_same(whole, longer)


def test_refuses_the_checkpoint_of_another_run(slices, val, tmp_path):
    run(slices, val, out=tmp_path)
    with pytest.raises(ValueError, match=r"last.pt: belongs to another run \(learning_rate=0.001 there, 0.1 here"):
        run(slices, val, FitSettings(epochs=3, batch_size=8, seed=5, learning_rate=0.1), out=tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", "half"], ids=["empty", "garbage", "truncated"])
def test_damaged_checkpoint(slices, val, tmp_path, content):
    run(slices, val, out=tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000] if content == "half" else content)
    with pytest.raises(ValueError, match=r"last.pt: cannot be read as a checkpoint"):
        run(slices, val, out=tmp_path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_weights(make_model(), path)


def test_load_weights(slices, val, tmp_path):
    model, _ = run(slices, val, out=tmp_path)
    assert_same(model, load_weights(make_model(seed=3), tmp_path / "best.pt"))
    with pytest.raises(ValueError, match="weights of another network"):
        load_weights(UNet(4, base_channels=5, levels=3), tmp_path / "best.pt")
    with pytest.raises(FileNotFoundError, match=r"nothing.pt: missing"):
        load_weights(make_model(), tmp_path / "nothing.pt")


def test_alpha_schedule_reaches_the_loss(slices):
    loss = WithDice(MbLSLoss(1.0, alpha=0.1))
    _, result = run(slices, None, loss=loss, alpha_schedule=AlphaSchedule(0.1, "add", 0.2))
    assert [row["alpha"] for row in result.history] == pytest.approx([0.1, 0.3, 0.5])
    assert loss.loss.alpha == pytest.approx(0.5)
    with pytest.raises(ValueError, match="expected a loss with a penalty weight alpha"):
        run(slices, None, alpha_schedule=AlphaSchedule(0.1))


def test_learning_rate_steps(slices):
    _, result = run(slices, None, FitSettings(epochs=3, batch_size=16, lr_step=2, lr_decay=0.1))
    assert [row["learning_rate"] for row in result.history] == pytest.approx([1e-3, 1e-3, 1e-4])


def test_mixed_precision(slices, val):
    model, result = run(slices, val, fabric=make_fabric("bf16-mixed", "cpu"))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: got 0, expected a whole number, at least 1"),
        ({"epochs": 2.0}, "epochs: got 2.0, expected a whole number"),
        ({"epochs": math.nan}, "epochs: got nan"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": "8"}, "batch_size: got '8'"),
        ({"lr_step": -1}, "lr_step: got -1"),
        ({"validate_every": 0}, "validate_every: got 0"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, expected a finite number > 0"),
        ({"learning_rate": math.nan}, "learning_rate: got nan"),
        ({"learning_rate": math.inf}, "learning_rate: got inf"),
        ({"learning_rate": "0.1"}, "learning_rate: got '0.1'"),
        ({"learning_rate": np.array([0.1, 0.2])}, "learning_rate: got array"),
        ({"lr_decay": 0.0}, "lr_decay: got 0.0, expected a number > 0, at most 1"),
        ({"lr_decay": 1.5}, "lr_decay: got 1.5"),
        ({"lr_decay": math.nan}, "lr_decay: got nan"),
        ({"seed": -1}, "seed: got -1, expected a whole number from 0"),
        ({"seed": 2**32}, "seed: got 4294967296"),
        ({"seed": None}, "seed: got None"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        FitSettings(**options)


def test_settings_become_plain_numbers():
    given = FitSettings(epochs=np.int64(3), batch_size=torch.tensor(4), learning_rate=np.float32(0.5), lr_decay=1)
    plain = FitSettings(epochs=3, batch_size=4, learning_rate=0.5, lr_decay=1.0)
    assert given == plain
    expected = [int, int, float, int, float, int, type(None), int]
    types = [type(value) for value in vars(given).values()]
    assert types == [type(value) for value in vars(plain).values()] == expected


# From here on tiny networks on tiny images, so that many runs take no time.


class Images:
    """A stand-in for a data set: what fit asks of one, and no more."""

    def __init__(self, *shape, transform=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(*shape, generator=generator)
        self.labels = torch.randint(0, 3, (shape[0], *shape[2:]), generator=generator)
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        item = {"image": self.images[index], "label": self.labels[index].unsqueeze(0)}
        item = item if self.transform is None else self.transform(item)
        return torch.as_tensor(item["image"]), torch.as_tensor(item["label"]).squeeze(0)


class Net(nn.Sequential):
    def __init__(self, width=4, dropout=0.5, seed=0):
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout(dropout), nn.Conv2d(width, 3, 1)
        )


class NoisyLoss(CrossEntropyLoss):
    def forward(self, logits, target):
        return super().forward(logits + 0.1 * torch.randn_like(logits), target)


def noise_of_each_generator(item):
    """A plain callable that draws from the three global generators."""
    factor = 1 + 0.1 * (random.random() + np.random.rand())  # noqa: NPY002
    return {**item, "image": item["image"] * factor + 0.1 * torch.randn(item["image"].shape)}


TINY = FitSettings(epochs=3, batch_size=2, seed=7)


def tiny_run(out=None, loss=None, settings=TINY, model=None, train=None, val=None, **options):
    model = model or Net()
    train = train or Images(5, 1, 8, 8)
    result = fit(model, loss or CrossEntropyLoss(), train, val, settings, out=out, progress=False, **options)
    return model, result


@pytest.fixture
def val_set(monkeypatch):
    """A validation set; the DSC that a network gets on it is made of its weights, and validating draws at random."""

    def validate(network, val, fabric, wanted):
        network.eval()
        draw_from_each_generator()
        return {**dict.fromkeys(fit_module.VALIDATED, 0.5), "dsc": int(weights_checksum(network)[:6], 16) / 2**24}

    monkeypatch.setattr(fit_module, "_validate", validate)
    return Images(2, 1, 8, 8, seed=1)


def validated_as(monkeypatch, *values):
    """Validations one after the other find these DSC."""
    left = iter(values)
    found = {"ece": 0.5, "ece_fg": 0.5, "nll": 0.5, "mean_distance": 0.5}
    monkeypatch.setattr(fit_module, "_validate", lambda *_: {**found, "dsc": next(left)})


def draw_from_each_generator():
    return torch.rand(3).tolist(), random.random(), np.random.rand()  # noqa: NPY002


RANDOM = {
    "dropout": {},
    "loss": {"loss": NoisyLoss},
    "transform of its own generators": {"transform": lambda: Compose([RandGaussianNoised("image", prob=0.5, std=1.0)])},
    "transform of the global generators": {"transform": lambda: noise_of_each_generator},
}


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8, 9])  # three steps an epoch
@pytest.mark.parametrize("parts", RANDOM.values(), ids=RANDOM)
def test_resumes_to_the_bit_whatever_is_random(parts, steps, tmp_path, val_set):
    def whole_or_part(out=None, stop=None):
        loss = parts.get("loss", CrossEntropyLoss)()
        loss = loss if stop is None else ctrl_c_in_step(stop, loss)
        train = Images(5, 1, 8, 8, transform=parts.get("transform", lambda: None)())
        draw_from_each_generator()  # what happened before must not matter
        return tiny_run(out, loss, train=train, val=val_set)

    whole, expected = whole_or_part()
    with pytest.raises(KeyboardInterrupt):
        whole_or_part(tmp_path, stop=steps)
    done = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert 3 * done["epoch"] + done["batches"] == steps
    resumed, result = whole_or_part(tmp_path)
    assert_same(whole, resumed)
    assert weights_checksum(result.last_weights) == weights_checksum(expected.last_weights)
    assert without_time(result.history) == without_time(expected.history)
    assert (result.best_epoch, result.best_dsc) == (expected.best_epoch, expected.best_dsc)


def test_resumes_to_the_bit_at_the_boundary_of_epochs(tmp_path, val_set):
    """Without an interruption too, where more epochs are asked for: an epoch's dropout is its own."""
    tiny_run(tmp_path, settings=replace(TINY, epochs=1), val=val_set)
    _, longer = tiny_run(tmp_path, val=val_set)
    _, whole = tiny_run(val=val_set)
    assert without_time(longer.history) == without_time(whole.history)
    assert weights_checksum(longer.last_weights) == weights_checksum(whole.last_weights)


def test_global_generators_are_left_as_they_were():
    def seed():
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002

    model, train = Net(), Images(5, 1, 8, 8)
    seed()
    expected = draw_from_each_generator()
    seed()
    tiny_run(model=model, train=train)
    assert draw_from_each_generator() == expected


def test_each_step_of_each_run_has_its_own_randomness():
    seeds = [fit_module._seed("step", *parts) for parts in np.ndindex(10, 50, 20, 20)]
    assert len(set(seeds)) == len(seeds)
    dropped = []

    class Watched(nn.Dropout):
        def forward(self, images):
            dropped.append(super().forward(torch.ones(64)).tolist())
            return images

    for seed in (0, 1):
        model = Net()
        model[2] = Watched()
        tiny_run(model=model, settings=replace(TINY, seed=seed))
    training = [mask for mask in dropped if 0 in mask]
    assert len(training) == 2 * 9
    assert len({tuple(mask) for mask in training}) == 2 * 9


def test_stops_at_the_end_of_an_epoch_after_ctrl_c_in_a_validation(tmp_path, val_set):
    def interrupt(epoch, model, figures):
        os.kill(os.getpid(), signal.SIGINT)

    for epoch in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt, match=f"stopped in epoch {epoch} of 3"):
            tiny_run(tmp_path, val=val_set, on_validation=interrupt)
        state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
        assert (state["epoch"], state["batches"]) == (epoch, 0)
    _, result = tiny_run(tmp_path, val=val_set, on_validation=interrupt)
    assert len(result.history) == 3


ANOTHER = {
    "settings": (lambda: {"settings": replace(TINY, batch_size=3)}, "batch_size=2 there, 3 here"),
    "seed": (lambda: {"settings": replace(TINY, seed=8)}, "seed=7 there, 8 here"),
    "class of the loss": (lambda: {"loss": nn.CrossEntropyLoss()}, "loss='WithDice' there, 'CrossEntropyLoss' here"),
    "loss in the loss": (
        lambda: {"loss": WithDice(CrossEntropyLoss())},
        "loss.loss='MbLSLoss' there, 'CrossEntropyLoss' here",
    ),
    "option": (lambda: {"loss": WithDice(MbLSLoss(margin=3.0))}, r"\(loss.loss.margin=2.0 there, 3.0 here\)"),
    "no schedule": (lambda: {"alpha_schedule": None}, r"alpha_schedule=\[0.25, 0.5, 0.75\] there, None here"),
    "schedule": (
        lambda: {"alpha_schedule": lambda epoch: [0.25, 0.3, 0.75][epoch]},
        r"\(alpha_schedule='0.5 in epoch 1' there, '0.3 in epoch 1' here\)",
    ),
    "class of the network": (
        lambda: {"model": nn.Sequential(nn.Conv2d(1, 3, 1))},
        "network='Net' there, 'Sequential' here",
    ),
    "width": (lambda: {"model": Net(width=5)}, r"\(network.layers='\w{16}' there, '\w{16}' here\)"),
    "dropout": (lambda: {"model": Net(dropout=0.1)}, "network.layers="),
    "images": (lambda: {"train": Images(5, 1, 8, 8, seed=3)}, r"\(train='\w{16}' there, '\w{16}' here\)"),
    "transform": (
        lambda: {"train": Images(5, 1, 8, 8, transform=noise_of_each_generator)},
        r"\(train.transform=False there, True here\)",
    ),
    "validation": (lambda: {"val": None}, r"\(val='\w{16}' there, None here\)"),
    "precision": (
        lambda: {"fabric": make_fabric("bf16-mixed", "cpu")},
        r"\(precision='32-true' there, 'bf16-mixed' here\)",
    ),
}


@pytest.mark.parametrize(("options", "message"), ANOTHER.values(), ids=ANOTHER)
def test_names_what_makes_it_another_run(options, message, tmp_path, val_set):
    def mine():
        loss = WithDice(MbLSLoss(margin=2.0))
        return {"loss": loss, "val": val_set, "alpha_schedule": AlphaSchedule(0.25, "add", 0.25)}

    _, first = tiny_run(tmp_path, **mine())
    before = (tmp_path / CHECKPOINT).read_bytes()
    options = options()
    if "loss" in options and not hasattr(getattr(options["loss"], "loss", None), "alpha"):
        options = {**options, "alpha_schedule": None}
    with pytest.raises(ValueError, match=rf"last.pt: belongs to another run .*{message}"):
        tiny_run(tmp_path, **{**mine(), **options})
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    _, again = tiny_run(tmp_path, **mine())
    assert again == first


def test_names_one_label_or_one_constant_of_the_loss_that_differs(tmp_path):
    tiny_run(tmp_path, SVLSLoss(3, sigma=1.0))
    with pytest.raises(ValueError, match=r"another run \(.*loss.tensors="):
        tiny_run(tmp_path, SVLSLoss(3, sigma=2.0))
    train = Images(5, 1, 8, 8)
    train.labels[4, 7, 7] = (train.labels[4, 7, 7] + 1) % 3
    with pytest.raises(ValueError, match=r"another run \(train="):
        tiny_run(tmp_path, SVLSLoss(3, sigma=1.0), train=train)


def test_goes_on_with_a_loss_whose_alpha_the_schedule_has_moved(tmp_path):
    schedule = AlphaSchedule(0.1, "add", 0.2)
    loss, broken = MbLSLoss(1.0, alpha=0.7), ctrl_c_in_step(5, MbLSLoss(1.0))
    whole, _ = tiny_run(loss=loss, alpha_schedule=schedule)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, broken, alpha_schedule=schedule)
    assert broken.alpha == pytest.approx(0.3)
    resumed, _ = tiny_run(tmp_path, broken, alpha_schedule=schedule)
    assert_same(whole, resumed)
    # A schedule may know no more epochs than it is asked for.
    weights = [*map(schedule, range(3)), 0.9]
    _, longer = tiny_run(tmp_path, broken, replace(TINY, epochs=4), alpha_schedule=weights.__getitem__)
    assert [row["alpha"] for row in longer.history] == pytest.approx([0.1, 0.3, 0.5, 0.9])


@pytest.mark.parametrize("bad", [math.nan, -0.1, math.inf, "0.1", None])
def test_a_bad_alpha_is_told_before_anything_is_trained(bad, tmp_path):
    with pytest.raises(ValueError, match=rf"alpha_schedule: got {bad!r} in epoch 2, expected a finite number >= 0"):
        tiny_run(tmp_path, MbLSLoss(), alpha_schedule=lambda epoch: [0.1, 0.1, bad][epoch])
    assert list(tmp_path.iterdir()) == []


def test_refuses_fewer_epochs_than_were_begun(tmp_path):
    tiny_run(tmp_path)
    with pytest.raises(ValueError, match=r"epochs: got 2, expected at least the 3 begun in .*last.pt"):
        tiny_run(tmp_path, settings=replace(TINY, epochs=2))
    shutil.rmtree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, ctrl_c_in_step(4, CrossEntropyLoss()))
    with pytest.raises(ValueError, match="got 1, expected at least the 2 begun"):
        tiny_run(tmp_path, settings=replace(TINY, epochs=1))
    _, result = tiny_run(tmp_path, settings=replace(TINY, epochs=2))
    assert len(result.history) == 2


def test_numbers_of_numpy_and_torch_do_not_spoil_the_checkpoint(tmp_path):
    settings = FitSettings(epochs=np.int64(2), learning_rate=np.logspace(-4, -2, 3)[1], seed=torch.tensor(3))
    loss = MbLSLoss(margin=np.float64(2.0))
    loss.mode = LossReduction.MEAN
    for epochs in (2, 3):
        _, result = tiny_run(
            tmp_path, loss, replace(settings, epochs=epochs), alpha_schedule=lambda e: np.linspace(0.1, 0.5, 10)[e]
        )
    assert len(result.history) == 3
    run = torch.load(tmp_path / CHECKPOINT, weights_only=True)["run"]
    assert (run["loss.margin"], run["loss.mode"]) == (2.0, "mean")


class Extra(Net):
    """A network that puts something into its state dict."""

    extra = 1.0

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        pass


def test_what_cannot_be_read_back_does_not_replace_the_file(tmp_path):
    tiny_run(tmp_path, model=Extra(), settings=replace(TINY, epochs=1))
    before = (tmp_path / CHECKPOINT).read_bytes()
    model = Extra()
    model.extra = fractions.Fraction(1, 2)
    with pytest.raises(ValueError, match=r"last.pt: cannot be read back as written .*; the file of before is kept"):
        tiny_run(tmp_path, model=model)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    _, result = tiny_run(tmp_path, model=Extra())
    assert len(result.history) == 3


def test_the_order_of_the_items_is_that_of_one_run_and_one_epoch():
    orders = set()
    for seed in (0, 1, 2):
        batches = fit_module._Batches(Images(9, 1, 8, 8), replace(TINY, seed=seed), make_fabric(accelerator="cpu"))
        for epoch in range(20):
            order = batches._order(epoch).tolist()
            assert sorted(order) == list(range(9))
            orders.add(tuple(order))
    assert len(orders) == 3 * 20


def test_keeps_the_best_and_the_last_weights(tmp_path, monkeypatch):
    validated_as(monkeypatch, 0.5, 0.7, 0.7)  # of equal ones the first
    val, seen = Images(2, 1, 8, 8), {}
    model, result = tiny_run(
        tmp_path, val=val, on_validation=lambda epoch, model, _: seen.update({epoch: weights_checksum(model)})
    )
    assert (result.best_epoch, result.best_dsc) == (2, 0.7)
    best, last = weights_checksum(result.best_weights), weights_checksum(result.last_weights)
    assert (best, last) == (seen[2], seen[3])
    assert len(set(seen.values())) == 3
    assert weights_checksum(model) == best
    assert weights_checksum(load_weights(Net(seed=1), tmp_path / BEST)) == best
    assert weights_checksum(load_weights(Net(seed=1), tmp_path / CHECKPOINT)) == last
    assert all(tensor.device.type == "cpu" for tensor in result.last_weights.values())
    _, again = tiny_run(tmp_path, val=val)  # a finished run is returned at once
    assert again == result
    assert (weights_checksum(again.best_weights), weights_checksum(again.last_weights)) == (best, last)
    assert "tensor" not in repr(result)


def test_without_validation_the_last_weights_count(tmp_path):
    model, result = tiny_run(tmp_path)
    assert (result.best_epoch, result.best_dsc, result.best_weights) == (None, None, None)
    assert weights_checksum(model) == weights_checksum(result.last_weights)
    assert not (tmp_path / BEST).exists()
    with torch.no_grad():
        model[0].weight.zero_()
    assert weights_checksum(model) != weights_checksum(result.last_weights)


@pytest.mark.parametrize(
    ("values", "best"), [((math.nan, 0.2, math.nan), 2), ((0.2, math.nan, 0.1), 1), ((math.nan,) * 3, None)]
)
def test_a_dsc_of_nan_is_never_the_best(values, best, tmp_path, monkeypatch):
    validated_as(monkeypatch, *values)
    model, result = tiny_run(tmp_path, val=Images(2, 1, 8, 8))
    assert result.best_epoch == best
    assert [row["val_dsc"] for row in result.history] == pytest.approx(values, nan_ok=True)
    assert weights_checksum(model) == weights_checksum(result.best_weights or result.last_weights)
    assert tiny_run(tmp_path, val=Images(2, 1, 8, 8))[1].best_epoch == best


def test_validation_labels_without_a_structure_do_not_crash(slices, val):
    empty = copy.copy(val)
    empty.labels = torch.zeros_like(val.labels)
    _, result = run(slices, empty, replace(SETTINGS, epochs=1))
    assert result.best_epoch is None
    assert math.isnan(result.history[0]["val_dsc"])


def test_refuses_the_best_weights_of_another_run(tmp_path, monkeypatch):
    val = Images(2, 1, 8, 8)
    for seed in (7, 8):
        validated_as(monkeypatch, 0.5, 0.7, 0.6)
        tiny_run(tmp_path / str(seed), val=val, settings=replace(TINY, seed=seed))
    shutil.copy(tmp_path / "8" / BEST, tmp_path / "7" / BEST)
    with pytest.raises(ValueError, match=r"best.pt: got other weights than those of epoch 2, which last.pt"):
        tiny_run(tmp_path / "7", val=val)


def test_a_kill_between_the_two_files_loses_nothing(tmp_path, monkeypatch):
    val = Images(2, 1, 8, 8)
    validated_as(monkeypatch, 0.5, 0.6, 0.7)
    _, whole = tiny_run(val=val)
    validated_as(monkeypatch, 0.5, 0.6, 0.7)
    tiny_run(tmp_path, val=val, settings=replace(TINY, epochs=1))
    older = (tmp_path / BEST).read_bytes()
    tiny_run(tmp_path, val=val, settings=replace(TINY, epochs=2))
    (tmp_path / BEST).write_bytes(older)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, ctrl_c_in_step(1, CrossEntropyLoss()), val=val)
    assert torch.load(tmp_path / BEST, weights_only=True)["epoch"] == 2
    _, result = tiny_run(tmp_path, val=val)
    assert weights_checksum(result.best_weights) == weights_checksum(whole.best_weights)


@pytest.mark.parametrize("name", [CHECKPOINT, BEST])
def test_changed_weights_in_a_file_are_found(name, tmp_path, val_set):
    tiny_run(tmp_path, val=val_set)
    state = torch.load(tmp_path / name, weights_only=True)
    state["model"]["0.weight"][0, 0, 0, 0] += 1e-6
    torch.save(state, tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: got weights of checksum \w+, expected \w+"):
        load_weights(Net(), tmp_path / name)


@pytest.mark.parametrize(
    "changes",
    [{"run": None}, {"run": {}}, {"epoch": "x"}, {"history": 5}, {"loss_sums": []}, {"optimizer": {}}, {"model": 3}],
    ids=str,
)
def test_fields_damaged_by_hand_are_told(changes, tmp_path):
    tiny_run(tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    torch.save({**state, **changes}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=r"last.pt: (cannot be read as a checkpoint|belongs to another run)"):
        tiny_run(tmp_path)


def test_spoilt_weights_are_told_and_not_kept(tmp_path):
    """The losses of torch say nothing about NaN."""
    train = Images(5, 1, 8, 8)
    train.images[3] = math.nan
    with pytest.raises(ValueError, match="loss: got nan in epoch 1, expected finite values"):
        tiny_run(tmp_path, nn.CrossEntropyLoss(), train=train)
    with pytest.raises(ValueError, match="loss: got nan in epoch 1"):
        tiny_run(tmp_path, ctrl_c_in_step(3, nn.CrossEntropyLoss()), train=train)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), MbLSLoss(margin=1.0), WithDice(CrossEntropyLoss())])
def test_spoilt_weights_are_told_where_the_loss_does_not_look_at_its_value(loss, tmp_path, monkeypatch):
    """As on a GPU, where the host would have to wait for it."""
    monkeypatch.setattr("mbls.losses._raise_if_not_finite", lambda loss, logits: None)
    train = Images(5, 1, 8, 8)
    train.images[3] = math.nan
    with pytest.raises(ValueError, match="loss: got nan in epoch 1, expected finite values"):
        tiny_run(tmp_path, loss, train=train)
    assert list(tmp_path.iterdir()) == []


def test_weights_spoilt_by_an_epochs_last_step_are_told_and_not_kept(tmp_path):
    """No loss shows it: its value is finite, its gradient is not, and no step follows."""

    class RootOfZero(CrossEntropyLoss):
        steps = 0

        def forward(self, logits, target):
            self.steps += 1
            spoilt = (0 * logits.sum()).sqrt() if self.steps == math.ceil(5 / TINY.batch_size) else 0.0
            return super().forward(logits, target) + spoilt

    with pytest.raises(ValueError, match="weights: got NaN or infinite ones in epoch 1, expected finite values"):
        tiny_run(tmp_path, RootOfZero())
    assert list(tmp_path.iterdir()) == []


def test_a_callback_sees_each_validation_and_disturbs_nothing(val_set):
    quiet, expected = tiny_run(val=val_set, settings=replace(TINY, epochs=5, validate_every=2))
    seen = []

    def watch(epoch, model, figures):
        seen.append((epoch, model.training, figures["dsc"], int(weights_checksum(model)[:6], 16) / 2**24))
        model.train()
        model[1].eval()
        figures.clear()
        draw_from_each_generator()
        torch.manual_seed(0)

    watched, result = tiny_run(val=val_set, settings=replace(TINY, epochs=5, validate_every=2), on_validation=watch)
    dsc = {row["epoch"]: row["val_dsc"] for row in expected.history if "val_dsc" in row}
    assert seen == [(epoch, False, dsc[epoch], dsc[epoch]) for epoch in (2, 4, 5)]
    assert_same(quiet, watched)
    assert without_time(result.history) == without_time(expected.history)


def test_networks_in_3d_with_several_channels(tmp_path):
    train = Images(3, 2, 8, 8, 12)
    settings = FitSettings(epochs=4, batch_size=2, learning_rate=1e-2)

    def volumetric():
        torch.manual_seed(0)
        return UNet(3, spatial_dims=3, in_channels=2, base_channels=2, levels=2)

    whole, result = tiny_run(settings=settings, model=volumetric(), train=train)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, ctrl_c_in_step(3, CrossEntropyLoss()), settings, volumetric(), train)
    resumed, _ = tiny_run(tmp_path, settings=settings, model=volumetric(), train=train)
    assert_same(whole, resumed)


def test_networks_of_mixed_and_single_dimensions():
    mixed = nn.Sequential(nn.Conv3d(1, 2, (1, 3, 3), padding=(0, 1, 1)), nn.Flatten(2, 3), nn.Conv2d(2, 3, 1))
    train = Images(3, 1, 2, 4, 4)
    train.labels = train.labels.flatten(1, 2)
    tiny_run(model=mixed, train=train)
    assert mixed[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert mixed[2].weight.is_contiguous(memory_format=torch.channels_last)
    tiny_run(model=nn.Conv1d(1, 3, 3, padding=1), train=Images(3, 1, 8))


def test_checksum_of_weights():
    model = Net()
    state = model.state_dict()
    checksum = weights_checksum(model)
    assert len(checksum) == 16
    assert checksum == weights_checksum(state) == weights_checksum(dict(reversed(state.items())))
    assert checksum == weights_checksum(copy.deepcopy(model).to(memory_format=torch.channels_last))

    def changed(**changes):
        return weights_checksum({**{name.replace(".", "_"): value for name, value in state.items()}, **changes})

    weight = state["0.weight"]
    others = [changed(), changed(new=weight), changed(**{"0_weight": weight + 1e-7}), changed(**{"0_bias": weight[0]})]
    others += [changed(**{"0_weight": weight.double()}), changed(**{"0_weight": weight.reshape(-1)}), checksum]
    assert len(set(others)) == len(others)
    assert weights_checksum({"empty": torch.zeros(0), "half": torch.ones(2, dtype=torch.bfloat16)})


PROCESSES = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_fit import Images, Net, NoisyLoss, TINY, noise_of_each_generator, tiny_run, without_time
from mbls.engine.devices import make_fabric
from mbls.engine.fit import weights_checksum
fit_module = sys.modules["mbls.engine.fit"]

fabric, out = make_fabric(accelerator="cpu"), Path(sys.argv[2])

def validate(network, val, fabric, wanted):
    network.eval()
    checksum = weights_checksum(network)
    assert len(set(fabric.all_gather(torch.tensor(int(checksum[:6], 16))).tolist())) == 1, "not one network"
    return {**dict.fromkeys(fit_module.VALIDATED, 0.5), "dsc": int(checksum[:6], 16) / 2**24}

fit_module._validate = validate

def run(out=None, stop=None):
    loss, left = NoisyLoss(), [stop]
    def count(*_):
        left[0] -= 1
        if left[0] == 0 and fabric.global_rank == 1:  # one of the two is told
            os.kill(os.getpid(), signal.SIGINT)
    if stop:
        loss.register_forward_pre_hook(count)
    train = Images(9, 1, 8, 8, transform=noise_of_each_generator)
    return tiny_run(out, loss, train=train, val=Images(2, 1, 8, 8), fabric=fabric)[1]

whole = run()
for stop in (2, 3, 7):
    part = out / str(stop)
    try:
        run(part, stop)
        raise AssertionError("was not stopped")
    except KeyboardInterrupt:
        pass
    resumed = run(part)
    assert without_time(resumed.history) == without_time(whole.history), (stop, resumed.history, whole.history)
    assert weights_checksum(resumed.last_weights) == weights_checksum(whole.last_weights), stop
    assert weights_checksum(resumed.best_weights) == weights_checksum(whole.best_weights), stop
fabric.barrier()
(out / f"done{fabric.global_rank}").touch()
"""


def test_two_processes_resume_to_the_bit(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, str(Path(__file__).parent), str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (tmp_path / "done0").exists()
    assert (tmp_path / "done1").exists()
    train = Images(9, 1, 8, 8, transform=noise_of_each_generator)
    with pytest.raises(ValueError, match=r"processes=2 there, 1 here"):
        tiny_run(tmp_path / "2", NoisyLoss(), train=train, val=Images(2, 1, 8, 8))


TRAIN = [
    "train",
    "--loss",
    "mbls",
    "--margin",
    "2",
    "--size",
    "32",
    "--crop",
    "128",
    "--base-channels",
    "4",
    "--levels",
    "3",
]
TRAIN += ["--patients", "3,1,1", "--batch-size", "8", "--accelerator", "cpu"]
BIN = Path(sys.executable).parent


def test_ctrl_c_of_a_real_process_leaves_a_checkpoint_that_goes_on(phantom_root, tmp_path):
    command = [
        sys.executable,
        "-m",
        "mbls",
        *TRAIN,
        "--epochs",
        "400",
        "--data",
        str(phantom_root),
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / CHECKPOINT).is_file():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command goes on from here" in errors
    assert "Traceback" not in errors
    done = torch.load(tmp_path / CHECKPOINT, weights_only=True)["epoch"]
    command[command.index("400")] = str(done + 1)
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "result.json").is_file()
    assert len((tmp_path / "history.csv").read_text().splitlines()) == done + 2


LAUNCHERS = {
    "fabric run": [f"{BIN}/fabric", "run", "--accelerator", "cpu", "--devices", "2", f"{BIN}/mbls"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mbls"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_two_processes_give_the_figures_of_one(phantom_root, tmp_path, launcher):
    """Two processes (gloo) with half the batch each take the steps of one process; each evaluates its share of the
    volumes."""
    options = [*TRAIN, "--patients", "2,1,1", "--epochs", "2", "--data", str(phantom_root), "--no-surface"]
    options += ["--keep-predictions"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rows = []
    for processes, command in ((1, [sys.executable, "-m", "mbls"]), (2, launcher)):
        out = tmp_path / str(processes)
        command = [*command, *options, "--batch-size", str(8 // processes), "--out", str(out)]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert finished.returncode == 0, finished.stderr[-3000:]
        rows += json.loads((out / "result.json").read_text())
        cases, bins = pd.read_csv(out / "cases-best.csv"), Judgement.load(out, "-best").histograms()
        assert [case[-2:] for case in cases["case"]] == ["ED", "ES"]
        (metrics, _) = judge_run(out, surface=False)["best"]
        assert metrics["nll"] == pytest.approx(rows[-1]["nll"], rel=1e-3)  # kept in float16
        assert metrics["temperature"] == pytest.approx(rows[-1]["temperature"], rel=1e-3)
        counts = bins.query("region == 'all'").groupby("kind")["count"].sum()
        assert counts["distance"] == 3 * counts["confidence"] > 0
    one, two = rows
    assert (one["provenance"]["processes"], two["provenance"]["processes"]) == (1, 2)
    assert one["steps"] == two["steps"]
    for name in ("dsc", "ece", "cece", "aece", "nll", "brier", "mean_distance", "ece_fg", "temperature", "scaled_ece"):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name


@pytest.mark.acdc
@pytest.mark.slow  # trains for about a minute on real volumes: the proof that the whole chain learns
def test_cross_entropy_learns_real_hearts(acdc_root):
    parts = split(read_dataset(acdc_root), 15, 5, 10)
    train, val, test = (SliceDataset(part, size=80, crop=128) for part in parts)
    torch.manual_seed(0)
    model = UNet(4, base_channels=12, levels=4, norm="batch")
    settings = FitSettings(epochs=24, batch_size=8, lr_step=16, validate_every=2)
    fit(model, CrossEntropyLoss(), train, val, settings, progress=False)
    assert judge(predict(model, test), test.class_names, ["dsc"]).summary()["dsc"] >= 0.75


def test_checkpoints_are_plain_tensors(slices, val, tmp_path):
    """So that a checkpoint from elsewhere cannot run code when it is loaded."""
    run(slices, val, out=tmp_path)
    assert isinstance(torch.load(tmp_path / CHECKPOINT, weights_only=True), dict)
