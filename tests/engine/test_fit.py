"""fit and evaluate: learning, resuming to the bit, interruption of a real process, two processes, and damaged checkpoints."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mbls.data.acdc import SliceDataset, augmentation, find_patients, split_patients
from mbls.engine.devices import make_fabric
from mbls.engine.fit import CHECKPOINT, FitSettings, fit, load_weights
from mbls.engine.judge import evaluate
from mbls.losses import AlphaSchedule, CrossEntropyLoss, MbLSLoss, WithDice
from mbls.networks.unet import UNet

SETTINGS = FitSettings(epochs=3, batch_size=8, seed=5)


@pytest.fixture(scope="module")
def slices(phantom_patients):
    return SliceDataset(phantom_patients[:2], size=32, crop=128, transform=augmentation())


@pytest.fixture(scope="module")
def val(phantom_patients):
    return SliceDataset(phantom_patients[2:3], size=32, crop=128)


def make_model(seed=0):
    torch.manual_seed(seed)
    return UNet(base_channels=4, levels=3, norm="batch")


def run(slices, val, settings=SETTINGS, out=None, loss=None, **options):
    model = make_model()
    result = fit(model, loss or CrossEntropyLoss(), slices, val, settings, out=out, progress=False, **options)
    return model, result


def assert_same(model, other):
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


class StopAfter(CrossEntropyLoss):
    """Sends this process a real Ctrl-C during the n-th step."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def forward(self, logits, target):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(logits, target)


def test_learns_and_ends_with_the_best_epoch(slices, val):
    model, result = run(slices, val, FitSettings(epochs=8, batch_size=8, learning_rate=5e-3))
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    best = max(result.history, key=lambda row: row["val_dsc"])
    assert (result.best_epoch, result.best_dsc) == (best["epoch"], best["val_dsc"])
    assert evaluate(model, val, surface=False, progress=False).summary()["dsc"] == pytest.approx(
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
        run(slices, val, out=tmp_path, loss=StopAfter(steps))
    assert (tmp_path / CHECKPOINT).is_file()
    assert not list(tmp_path.glob(".*.part"))
    resumed, result = run(slices, val, out=tmp_path)
    assert_same(whole, resumed)

    def without_time(history):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in history]

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
        load_weights(UNet(base_channels=5, levels=3), tmp_path / "best.pt")
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
    types = [type(value) for value in vars(given).values()]
    assert types == [type(value) for value in vars(plain).values()] == [int, int, float, int, float, int, int]


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
    """Two processes (gloo) with half the batch each take the steps of one process; each evaluates its share of the volumes."""
    options = [*TRAIN, "--patients", "2,1,1", "--epochs", "2", "--data", str(phantom_root), "--no-surface"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rows = []
    for processes, command in ((1, [sys.executable, "-m", "mbls"]), (2, launcher)):
        out = tmp_path / str(processes)
        command = [*command, *options, "--batch-size", str(8 // processes), "--out", str(out)]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert finished.returncode == 0, finished.stderr[-3000:]
        rows.append(json.loads((out / "result.json").read_text()))
        volumes, bins = pd.read_csv(out / "volumes.csv"), pd.read_csv(out / "histograms.csv")
        assert volumes["phase"].tolist() == ["ED", "ES"]
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
    split = split_patients(find_patients(acdc_root), 15, 5, 10)
    train, val, test = (SliceDataset(part, size=80, crop=128) for part in split)
    torch.manual_seed(0)
    model = UNet(base_channels=12, levels=4, norm="batch")
    settings = FitSettings(epochs=16, batch_size=8, lr_step=10, validate_every=2)
    fit(model, CrossEntropyLoss(), train, val, settings, progress=False)
    assert evaluate(model, test, surface=False, progress=False).summary()["dsc"] >= 0.75


def test_checkpoints_are_plain_tensors(slices, val, tmp_path):
    """So that a checkpoint from elsewhere cannot run code when it is loaded."""
    run(slices, val, out=tmp_path)
    assert isinstance(torch.load(tmp_path / CHECKPOINT, weights_only=True), dict)
