"""Faults by force: processes killed at any moment, full disks, folders that may not be written."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data.test_download import Girder
from report.conftest import write_cohort

from mbls.__main__ import main
from mbls.data.phantom import make_phantom
from mbls.engine.fit import weights_checksum

#: Kills of each command; the table in tests/README.md says how many were tried by hand.
KILLS = int(os.environ.get("MBLS_KILLS", "5"))
#: What differs between two runs of the same: times, and the moment.
TIMES = ("seconds", "train_seconds", "wall_seconds", "made_finished", "made_command", "finished", "command")
TRAINING = ["--size", "32", "--crop", "96", "--base-channels", "4", "--levels", "3", "--no-surface", "--quiet"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("force")
    root = make_phantom(folder / "phantom", num_patients=5, seed=0)
    names = [f"patient{number:03d}" for number in range(1, 6)]
    split = folder / "split.json"
    split.write_text(json.dumps({"train": names[:3], "val": names[3:4], "test": names[4:]}))
    girder = Girder(root / "training")
    yield root, split, girder, write_cohort(folder / "cohort", 3)
    girder.server.shutdown()
    girder.server.server_close()


def command(name, data, out):
    root, split, girder, (predictions, labels) = data
    train = ["--data", str(root), "--patients", "3,1,1", "--epochs", "3", *TRAINING]
    study = ["--protocol", "reduced", "--parts", "weights", "--seeds", "0", "--epochs", "1", "--quiet"]
    arguments = {
        "phantom": ["--out", str(out / "phantom"), "--patients", "3"],
        "pack": ["--data", str(root), "--out", str(out / "small.tar.xz"), "--size", "64"],
        "download": ["--out", str(out), "--server", girder.url, "--folder", "ROOT", "--patients", "3"],
        "train": ["--out", str(out), "--keep-predictions", *train],
        "compare": ["--out", str(out), "--losses", "ce", "mbls:margin=3", *train],
        "judge": [str(predictions), str(labels), "--out", str(out)],
        "study": ["--data", str(root), "--split", str(split), "--out", str(out), *study],
    }[name]
    return [sys.executable, "-m", "mbls", name, *arguments]


def content(folder: Path) -> dict[str, str]:
    """What a command left: file -> a fingerprint of what it says."""
    return {str(path.relative_to(folder)): _fingerprint(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _fingerprint(path: Path) -> str:
    if path.suffix == ".pt":
        return weights_checksum(torch.load(path, weights_only=True)["model"])
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return repr({name: hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in arrays.files})
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in TIMES if name in table]).to_csv()
    if path.name in ("result.json", "results.json"):
        return repr(json.loads(path.read_text(), object_hook=_without_times))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in TIMES}


@pytest.mark.slow  # kills each command several times
@pytest.mark.parametrize("name", ["phantom", "pack", "download", "train", "compare", "study", "judge"])
def test_killed_at_any_moment_the_next_run_ends_the_same(name, data, tmp_path):
    generator = random.Random(name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(out, kill_after=None):
        out.mkdir(exist_ok=True)
        process = subprocess.Popen(
            command(name, data, out), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            said, _ = process.communicate(timeout=kill_after or 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return False
        assert process.returncode == 0, said
        return True

    started = time.perf_counter()
    run(tmp_path / "whole")
    takes = time.perf_counter() - started
    expected = content(tmp_path / "whole")
    assert expected
    killed = 0
    while killed < KILLS:
        out = tmp_path / f"killed{killed}"
        for _ in range(3):  # three kills on the way to one result
            killed += not run(out, kill_after=generator.uniform(0.2, 1) * takes)
        run(out)
        assert content(out) == expected
        assert not [path.name for path in out.rglob(".*")]


def test_two_phantoms_at_once_are_one(tmp_path):
    """Both end well, and what is there is whole."""
    arguments = [
        sys.executable,
        "-m",
        "mbls",
        "phantom",
        "--out",
        str(tmp_path / "phantom"),
        "--patients",
        "1",
        "--quiet",
    ]
    processes = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]


def test_what_killed_phantoms_left_is_removed(tmp_path):
    """Of a process that is gone, and of one that had our number."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number in (ended.pid, os.getpid()):
        (tmp_path / f".phantom.{number}.part" / "training" / "patient001").mkdir(parents=True)
    running = tmp_path / f".phantom.{os.getppid()}.part"
    running.mkdir()
    make_phantom(tmp_path / "phantom", num_patients=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [running.name, "phantom"]


def _one_line(said: str, name: str) -> None:
    assert said.startswith(f"mbls {name}: ")
    assert said.count("\n") == 1


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here (it takes root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a file may still be open on a busy machine


@pytest.mark.parametrize("name", ["phantom", "pack", "download", "train", "compare", "judge"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(name, data, small_disk, capfd):
    filler = small_disk / "filler"
    filler.write_bytes(bytes((1 << 20) - (1 << 14)))
    arguments = command(name, data, small_disk / "out")[3:]
    (small_disk / "out").mkdir()
    assert main([*arguments, *([] if "--quiet" in arguments else ["--quiet"])]) == 2
    _one_line(capfd.readouterr().err, name)
    left = [path for path in small_disk.rglob(".*.part") if name != "download"]  # what it resumes from
    assert left == []
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert main(arguments) == 0


@pytest.mark.parametrize("name", ["phantom", "pack", "download", "train", "compare", "study", "judge"])
def test_a_file_in_the_place_of_the_folder_is_one_line(name, data, tmp_path, capfd):
    (tmp_path / "out").write_text("mine")
    arguments = command(name, data, tmp_path / "out")[3:]
    assert main([*arguments, *([] if "--quiet" in arguments else ["--quiet"])]) == 2
    _one_line(capfd.readouterr().err, name)
    assert (tmp_path / "out").read_text() == "mine"


ANSWERS = """
import contextlib, io, json, sys
from mbls.__main__ import main
answers = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        answers.append((main(arguments), said))
print(json.dumps([(status, said.getvalue()) for status, said in answers]))
"""


def without_rights(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Status and words of commands in a process that obeys the modes of files; root's gives up the right to pass
    them."""
    drop = []
    if os.geteuid() == 0:
        drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
        if shutil.which("setpriv") is None or subprocess.run([*drop, "true"], capture_output=True).returncode:
            pytest.skip("root cannot give up its rights here (it takes setpriv)")
    process = [*drop, sys.executable, "-c", ANSWERS, json.dumps(commands)]
    finished = subprocess.run(process, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_no_permission_to_write_is_one_line(data, tmp_path):
    names = ["phantom", "pack", "download", "train", "compare", "study", "judge"]
    (tmp_path / "out").mkdir(mode=0o500)
    for name, (status, said) in zip(
        names, without_rights([command(name, data, tmp_path / "out")[3:] for name in names]), strict=True
    ):
        assert status == 2, name
        assert f"mbls {name}: [Errno 13] Permission denied: '{tmp_path / 'out'}" in said
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
@pytest.mark.parametrize("unreadable", ["patient002", "patient002/patient002_frame01.nii.gz"])
def test_no_permission_to_read_is_one_line_or_a_problem_named(unreadable, data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data[0], root)
    path = root / "training" / unreadable
    path.chmod(0)
    asked = [
        ["check", str(root)],
        *(command(name, (root, *data[1:]), tmp_path / "out")[3:] for name in ("pack", "train")),
    ]
    answers = without_rights(asked)
    path.chmod(0o700)  # so that pytest can remove it
    assert [status for status, _ in answers] == [1, 2, 2]
    for _, said in answers:
        assert "Permission denied" in said
        assert str(path) in said
    assert "5 subjects, 1 with problems" in answers[0][1]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(data, tmp_path, monkeypatch, capfd):
    """The disk fills up in the second epoch; afterwards the same command ends as if nothing had been."""
    root, *_ = data
    train = ["--data", str(root), "--patients", "3,1,1", "--epochs", "3", *TRAINING]
    assert main(["train", "--out", str(tmp_path / "whole"), *train]) == 0
    save, saved = torch.save, []

    def full_later(state, path):
        saved.append(path)
        if len(saved) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full_later)
        assert main(["train", "--out", str(tmp_path / "out"), *train]) == 2
    assert "No space left on device" in capfd.readouterr().err
    assert main(["train", "--out", str(tmp_path / "out"), *train]) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


ODD = {
    "no such accelerator": (["--accelerator", "nope"], "--accelerator: got 'nope'"),
    "an accelerator that is not here": (["--accelerator", "mps"], "--accelerator: got 'mps'"),
    "more levels than memory": (["--levels", "40"], "expected at most 8192 filters"),
    "more filters than memory": (["--base-channels", "1000000000"], "expected at most 8192 filters"),
    "larger slices than memory": (["--size", "1000000"], "expected 1 to 4096 voxels"),
    "a loss without a name": (["--loss", ":"], "--loss: got ''"),
    "an option that is Python's": (["--loss", "mbls:self=3"], "got self=3, expected one of margin"),
    "classes by hand": (["--loss", "mbls:num_classes=3"], "got num_classes=3, expected one of margin"),
    "a split that is a folder": (["--split", "."], "--split: got ., expected a JSON file"),
    "patients that are NaN": (["--patients", "nan,0.1,0.1"], "--patients: got 'nan,0.1,0.1'"),
    "a seed of 21 digits": (["--seed", "9" * 21], "--seed: got 999"),
    "a name of 300 letters": (["--out", "a" * 300], "File name too long"),
    "a device for a folder": (["--out", "/dev/null/x"], "Not a directory"),
}


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="one of the lines asks for what is here")
@pytest.mark.parametrize("name", ODD)
def test_an_odd_command_is_one_line(name, data, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    arguments, message = ODD[name]
    assert main([*command("train", data, tmp_path / "out")[3:], *arguments]) == 2
    said = capfd.readouterr().err
    _one_line(said, "train")
    assert message in said


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A comparison of one run."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert main([*command("compare", data, out)[3:], "--losses", "ce"]) == 0
    return out


@pytest.mark.parametrize("file", ["result.json", "experiment.json", "history.csv", "cases-best.csv", "bins-best.npz"])
@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"[{}]", b'{"fit": 3}', b"[" * 50_000, b"\xff\xfe"],
    ids=lambda content: content[:6],
)
def test_a_damaged_run_is_named_and_never_believed(file, content, data, finished, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (path,) = out.rglob(file)
    path.write_bytes(content)
    assert main([*command("compare", data, out)[3:], "--losses", "ce"]) in (0, 2)  # what is not read is written again
    said = capfd.readouterr().err
    assert said == "" or (said.startswith("mbls compare: ") and str(path.parent) in said)
    if file == "result.json":
        assert said
        assert main(["merge", str(out)]) == 2
    assert path.read_bytes() == content or not said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("epoch", 2), ("history", []), ("history", [3]), ("best_epoch", "x"), ("best_dsc", "x"), ("best_dsc", [])],
        *[("optimizer", None), ("model", {}), ("run", None), ("loss_sums", "x"), ("batches", None)],
    ],
)
def test_a_checkpoint_with_a_wrong_field_is_named(field, value, data, finished, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (path,) = out.rglob("last.pt")
    (path.parent / "result.json").unlink()
    torch.save(torch.load(path, weights_only=True) | {field: value}, path)
    assert main([*command("compare", data, out)[3:], "--losses", "ce", "--epochs", "4"]) == 2
    assert f"{path}: " in capfd.readouterr().err
