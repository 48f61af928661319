"""Two and four processes (gloo) fit, predict and judge as one does; one that is killed ends the job.

The file is also the program that each process runs: see ``PROGRAMS``.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mbls.data.layout import read_dataset
from mbls.data.slices import SliceDataset
from mbls.engine.devices import make_fabric, threads_for
from mbls.engine.fit import CHECKPOINT, FitSettings, fit, weights_checksum
from mbls.engine.judge import columns, judge
from mbls.engine.predict import fit_temperature, predict
from mbls.losses import MbLSLoss
from mbls.networks.unet import UNet

CPU = torch.device("cpu")
#: Cases that are judged: fewer than the processes, and a number that neither two nor four divide.
CASES = (1, 7)
#: Seconds after which a job has ended of which a process was killed. The launcher gives the others 30 to end by
#: themselves.
ENDED = 40


class Items:
    """A training set of small images."""

    transform = None

    def __init__(self, number):
        generator = torch.Generator().manual_seed(number)
        self.images = torch.randn(number, 1, 8, 8, generator=generator)
        self.labels = torch.randint(0, 4, (number, 8, 8), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def train(items, fabric, val=None, out=None, loss=None):
    """Together the processes take eight items a step; what is left are the weights of the last epoch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    settings = FitSettings(epochs=3, batch_size=8 // fabric.world_size)
    return fit(network, loss or MbLSLoss(margin=0.1), Items(items), val, settings, fabric, out, progress=False)


def judge_and_fit(out, root):
    """What the processes find, each in files of its own."""
    fabric, data = make_fabric(accelerator="cpu"), SliceDataset(read_dataset(root), size=32, crop=128)
    rank, world_size = fabric.global_rank, fabric.world_size
    torch.manual_seed(0)
    network = UNet(4, base_channels=4, levels=3, norm="batch")
    scaling = fit_temperature(predict(network, data, fabric, data.volumes[:2]))
    for number in CASES:
        mine = predict(network, data, fabric, data.volumes[:number][rank::world_size])
        judgement = judge(mine, data.class_names, columns(), scaling, fabric=fabric)
        judgement.save(out, f"-{number}-{rank}")
        (out / f"metrics-{number}-{rank}").write_text(f"{judgement.summary()} {judgement.pooled()}")
    exact = make_fabric("64-true", "cpu")
    val = SliceDataset(read_dataset(root).first(3), size=32, crop=128)
    val.volumes.pop()  # five cases
    together, uneven = train(24, exact, val), [train(items, exact) for items in (3, 9)]
    torch.save([together.last_weights, *(result.last_weights for result in uneven)], out / f"weights-{rank}.pt")
    torch.save([together.history, together.best_epoch], out / f"history-{rank}.pt")


def train_until_killed(out, rank):
    """Fit; the process of this rank is killed in the second epoch, the first time."""
    fabric, loss, steps = make_fabric(accelerator="cpu"), MbLSLoss(margin=0.1), []
    (out / f"number-{fabric.global_rank}").write_text(str(os.getpid()))

    def count(*_):
        steps.append(1)
        if len(steps) == 5 and fabric.global_rank == int(rank) and not (out / "killed").exists():
            (out / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    loss.register_forward_pre_hook(count)
    result = train(24, fabric, out=out, loss=loss)
    (out / f"checksum-{fabric.global_rank}").write_text(weights_checksum(result.last_weights))


PROGRAMS = {program.__name__: program for program in (judge_and_fit, train_until_killed)}
LAUNCHERS = {
    "fabric run": [str(Path(sys.executable).parent / "fabric"), "run", "--accelerator", "cpu", "--devices"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"],
}


def launched(launcher, processes, program, *arguments):
    command = [*LAUNCHERS[launcher], str(processes), __file__, program.__name__, *map(str, arguments)]
    job = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = job.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)  # processes that wait for each other would keep the pipe open
        raise
    return job.returncode, said


@pytest.fixture(scope="module")
def alone(phantom_root, tmp_path_factory):
    """What one process finds."""
    out = tmp_path_factory.mktemp("alone")
    with threads_for(0, CPU):
        judge_and_fit(out, phantom_root)
    return out


@pytest.fixture(
    scope="module",
    # slow: four processes that load every heavy library, on two cores
    params=[2, pytest.param(4, marks=pytest.mark.slow)],
)
def together(request, phantom_root, tmp_path_factory):
    """What several find: the folder, and how many they are."""
    out = tmp_path_factory.mktemp("together")
    status, said = launched("torchrun", request.param, judge_and_fit, out, phantom_root)
    assert status == 0, said[-3000:]
    return out, request.param


@pytest.mark.parametrize("cases", CASES)
def test_every_process_gets_the_judgement_of_one_to_the_bit(cases, alone, together):
    """No sum runs over cases of several processes: what is gathered are the rows and bins of each case."""
    out, processes = together
    for rank in range(processes):
        for name in ("cases-{}-{}.csv", "metrics-{}-{}"):
            expected = (alone / name.format(cases, 0)).read_text()
            assert expected.count("patient") == (cases * 2 if name.startswith("cases") else 0)
            assert (out / name.format(cases, rank)).read_text() == expected
        with np.load(alone / f"bins-{cases}-0.npz") as expected, np.load(out / f"bins-{cases}-{rank}.npz") as found:
            assert found.files == expected.files
            for name in found.files:
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_every_process_has_the_weights_of_one_to_rounding(alone, together):
    """In float64: the gradient is the mean over as many items, added up in another order."""
    out, processes = together
    (expected, *_), (history, best_epoch) = (torch.load(alone / f"{name}-0.pt") for name in ("weights", "history"))
    checksums = set()
    for rank in range(processes):
        every = torch.load(out / f"weights-{rank}.pt")
        checksums.add(tuple(map(weights_checksum, every)))
        for name, value in every[0].items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-15, msg=name)
        found, best = torch.load(out / f"history-{rank}.pt")
        assert best == best_epoch
        for row, other in zip(found, history, strict=True):
            for name in row.keys() - {"seconds"}:
                assert row[name] == pytest.approx(other[name], rel=1e-6), name
    assert len(checksums) == 1  # of the uneven sets too, where an item is taken twice


@pytest.mark.slow  # three jobs of two processes
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(launcher, rank, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
    (whole / "killed").touch()
    assert launched(launcher, 2, train_until_killed, whole, rank)[0] == 0
    assert launched(launcher, 2, train_until_killed, killed, rank)[0] != 0
    assert time.time() - float((killed / "killed").read_text()) < ENDED
    for path in killed.glob("number-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    assert torch.load(killed / CHECKPOINT, weights_only=True)["epoch"] == 1
    assert launched(launcher, 2, train_until_killed, killed, rank)[0] == 0
    for name in ("checksum-0", "checksum-1"):
        assert (killed / name).read_text() == (whole / name).read_text() != ""


if __name__ == "__main__":
    program, folder, *rest = sys.argv[1:]
    PROGRAMS[program](Path(folder), *rest)
