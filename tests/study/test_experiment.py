"""Comparing losses: names, backbones, rows with provenance, resuming, the command line."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mbls.__main__ import main
from mbls.data import home
from mbls.data.home import data_name, find_data
from mbls.data.phantom import is_phantom
from mbls.engine.fit import FitSettings
from mbls.losses import LOSSES, parse_loss
from mbls.networks.backbones import MODELS, build_model
from mbls.study import experiment as experiments
from mbls.study.experiment import Experiment, compare, parse_shard, run_experiment, sweep
from mbls.study.results import merge

SMALL = Experiment(
    loss="ce",
    base_channels=4,
    levels=3,
    size=32,
    crop=128,
    patients=(2, 1, 1),
    fit=FitSettings(epochs=1, batch_size=16),
)
COMMON = [
    "--size",
    "32",
    "--crop",
    "128",
    "--base-channels",
    "4",
    "--levels",
    "3",
    "--patients",
    "2,1,1",
    "--epochs",
    "1",
]


@pytest.mark.parametrize(("name", "channels"), [("unet", 4), ("attention_unet", 4), ("unet++", 4), ("swin_unetr", 12)])
def test_backbones(name, channels):
    model = build_model(name, channels)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 4, 64, 64)
    assert set(MODELS) == {"unet", "attention_unet", "unet++", "swin_unetr"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vnet",), "model: got 'vnet'"),
        (("unet++", 32, 4), "levels: got 4"),
        (("swin_unetr", 32), "base_channels, levels: got 32"),
        (("attention_unet", 32, 5, "batch"), "norm: got 'batch'"),
    ],
)
def test_bad_backbones(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(*arguments)


def test_parse_loss():
    assert parse_loss("mbls:margin=5:alpha=0.1:norm=l2") == ("mbls", {"margin": 5, "alpha": 0.1, "norm": "l2"})
    assert parse_loss("ce") == ("ce", {})
    with pytest.raises(ValueError, match="loss: got 'margin' in"):
        parse_loss("mbls:margin")


def test_names_of_runs_are_distinct_and_safe():
    names = [run.name for run in sweep(SMALL, ["ce", "mbls:margin=5", "mbls:margin=5:alpha=0.2"], [0, 1])]
    assert names[:3] == ["ce-seed0", "ce-seed1", "mbls-margin5-seed0"]
    assert len(set(names)) == 6
    assert all("/" not in name and ":" not in name for name in names)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_trains(loss, phantom_root):
    row, _, evaluation, *_ = run_experiment(replace(SMALL, loss=loss, surface=False), phantom_root, progress=False)
    assert row["loss"] == loss
    assert 0 <= row["ece"] <= 1
    assert len(evaluation.volumes) == 2


def test_compare_writes_tidy_rows_with_provenance(phantom_root, tmp_path):
    table = compare(sweep(SMALL, ["ce", "mbls:margin=2"], [0, 1]), phantom_root, tmp_path, progress=False)
    written = pd.read_csv(tmp_path / "results.csv")
    assert list(written.columns) == list(table.columns)
    assert written["loss"].tolist() == ["ce", "ce", "mbls:margin=2", "mbls:margin=2"]
    wanted = {
        "seed",
        "dsc",
        "hd95",
        "ece",
        "cece",
        "ece_fg",
        "data",
        "train_seconds",
        "wall_seconds",
        "config_data_fingerprint",
    }
    wanted |= {"config_fit_learning_rate", "config_size", "made_torch", "made_device", "made_finished"}
    wanted |= {"train_patients", "temperature", "scaled_ece", "scaled_nll_fg", "made_command", "made_commit"}
    assert wanted <= set(written.columns)
    assert (written["data"] == "phantom").all()
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["dsc"] for row in rows] == pytest.approx(written["dsc"].tolist())
    volumes = pd.read_csv(tmp_path / "ce-seed0" / "volumes.csv")
    assert len(volumes) == 2
    assert len(pd.read_csv(tmp_path / "volumes.csv")) == 4 * 2
    # Scaling by one number for all voxels: the volumes' NLL, weighted by voxels, is the row's.
    (row,) = written.query("loss == 'ce' and seed == 0").to_dict("records")
    assert np.average(volumes["scaled_nll"], weights=volumes["voxels"]) == pytest.approx(row["scaled_nll"])
    histograms = pd.read_csv(tmp_path / "histograms.csv")
    assert set(zip(histograms["loss"], histograms["seed"], strict=True)) == set(
        zip(table["loss"], table["seed"], strict=True)
    )
    single = pd.read_csv(tmp_path / "ce-seed0" / "histograms.csv")
    assert single["count"].tolist() == histograms.query("loss == 'ce' and seed == 0")["count"].tolist()
    # Finished runs are not trained again: the rows come back as they were, wall time included.
    again = compare(sweep(SMALL, ["ce", "mbls:margin=2"], [0, 1]), phantom_root, tmp_path, progress=False)
    assert again["wall_seconds"].tolist() == table["wall_seconds"].tolist()


def test_shards_in_separate_processes_make_the_table_of_one(phantom_root, tmp_path):
    options = ["--losses", "ce,mbls:margin=2", "--seeds", "0,1", "--data", str(phantom_root), *COMMON, "--no-surface"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
    }  # two processes with two threads each would wait for each other

    def start(out, *shard):
        command = [sys.executable, "-m", "mbls", "compare", *options, "--out", str(out), *shard]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    jobs = [start(tmp_path / "shared", "--shard", f"{index}/2") for index in (1, 2)]
    for job in jobs:
        shown, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors
        assert f"python -m mbls merge {tmp_path / 'shared'}" in shown
    assert not (tmp_path / "shared" / "results.csv").exists()
    one = start(tmp_path / "one")
    one.communicate(timeout=300)
    assert one.returncode == 0
    assert main(["merge", str(tmp_path / "shared"), "--out", str(tmp_path / "merged")]) == 0
    for file in ("results.csv", "histograms.csv"):
        merged, expected = (pd.read_csv(tmp_path / folder / file) for folder in ("merged", "one"))
        timed = [name for name in expected if "seconds" in name or name in ("made_finished", "made_command")]
        pd.testing.assert_frame_equal(merged.drop(columns=timed), expected.drop(columns=timed))


def test_merge_says_what_is_missing_or_does_not_fit(phantom_root, tmp_path, capsys):
    compare(sweep(SMALL, ["ce"]), phantom_root, tmp_path / "first", progress=False, shard=(1, 1))
    begun = tmp_path / "first" / "ls-seed0"
    begun.mkdir()
    (begun / "experiment.json").write_text("{}")
    assert main(["merge", str(tmp_path / "first")]) == 1
    assert "unfinished: ls-seed0" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "first" / "results.csv")["loss"].tolist() == ["ce"]
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    with pytest.raises(ValueError, match=r"second.ce-seed0: got the run ce-seed0 a second time \(first in .*first\)"):
        merge([tmp_path / "first", tmp_path / "second"], tmp_path)
    other = tmp_path / "second" / "ce-seed0"
    row = json.loads((other / "result.json").read_text())
    row["experiment"]["data_fingerprint"] = "another"
    (other / "result.json").write_text(json.dumps(row))
    other.rename(tmp_path / "second" / "ce-seed1")
    with pytest.raises(ValueError, match="runs on different data"):
        merge([tmp_path / "first", tmp_path / "second"], tmp_path)
    (tmp_path / "second" / "ce-seed1" / "result.json").write_text("{")
    with pytest.raises(ValueError, match="ce-seed1: cannot be read as a finished run"):
        merge([tmp_path / "second"], tmp_path)
    shutil.rmtree(tmp_path / "second" / "ce-seed1")
    with pytest.raises(ValueError, match=r"no finished run \(1 begun\)"):
        merge([tmp_path / "second"], tmp_path)
    with pytest.raises(FileNotFoundError, match="third: missing"):
        merge([tmp_path / "third"], tmp_path)
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_bad_shards(text):
    with pytest.raises(ValueError, match="shard: got"):
        parse_shard(text)


def test_compare_stops_at_a_misspelt_loss_before_training(phantom_root, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "run_experiment", lambda *arguments: pytest.fail("trained"))
    with pytest.raises(ValueError, match="name: got 'mbsl'"):
        compare(sweep(SMALL, ["ce", "mbsl"]), phantom_root, tmp_path / "out")
    with pytest.raises(ValueError, match="ce-seed0 more than once"):
        compare([SMALL, SMALL], phantom_root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_the_folder_of_another_experiment(phantom_root, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiments, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(SMALL, phantom_root, tmp_path, progress=False)
    # Neither an unfinished run nor a finished one is mistaken for another.
    for _ in range(2):
        with pytest.raises(ValueError, match=r"experiment.json: is of another experiment \(loss, size differ\)"):
            run_experiment(replace(SMALL, loss="ls", size=48), phantom_root, tmp_path, progress=False)
        run_experiment(SMALL, phantom_root, tmp_path, progress=False)
    longer = replace(SMALL, fit=replace(SMALL.fit, epochs=2))
    with pytest.raises(ValueError, match=r"result.json: has another number of epochs, 1"):
        run_experiment(longer, phantom_root, tmp_path, progress=False)


def test_find_data_prefers_what_is_given(phantom_root, tmp_path, monkeypatch):
    monkeypatch.setenv("MBLS_DATA", str(phantom_root))
    assert find_data() == phantom_root
    assert find_data(tmp_path) == tmp_path
    assert data_name(phantom_root) == "phantom"
    with pytest.raises(FileNotFoundError, match="root: got"):
        find_data(tmp_path / "nowhere")
    monkeypatch.setenv("MBLS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="MBLS_DATA: got"):
        find_data()


def test_find_data_takes_acdc_and_else_makes_the_phantom_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MBLS_DATA", raising=False)
    monkeypatch.setattr(home, "data_home", lambda: tmp_path)
    made = []

    def make(root):
        made.append(root)
        return root

    monkeypatch.setattr(home, "make_phantom", make)
    assert find_data() == tmp_path / "phantom"
    assert made == [tmp_path / "phantom"]
    (tmp_path / "acdc").mkdir()
    assert find_data() == tmp_path / "acdc"


def test_train_command(phantom_root, tmp_path, capsys):
    command = ["train", "--loss", "mbls", "--margin", "5", "--data", str(phantom_root), "--out", str(tmp_path), *COMMON]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "mbls:margin=5" in shown
    assert json.loads((tmp_path / "result.json").read_text())["experiment"]["loss"] == "mbls:margin=5"


def test_compare_command(phantom_root, tmp_path, capsys):
    command = ["compare", "--losses", "ce,mbls:margin=3", "--data", str(phantom_root), "--out", str(tmp_path), *COMMON]
    assert main([*command, "--no-surface"]) == 0
    assert "mbls:margin=3" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "results.csv")) == 2


def test_rows_say_which_command_and_commit_made_them(phantom_root, tmp_path, monkeypatch):
    run = run_experiment(replace(SMALL, surface=False), phantom_root, progress=False)
    assert run.row["provenance"]["command"] is None  # not started by one
    checkout = Path(experiments.__file__).resolve().parents[2]
    head = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    assert head.startswith(run.row["provenance"]["commit"].removesuffix("-changed"))
    command = [
        sys.executable,
        "-m",
        "mbls",
        "train",
        "--loss",
        "ce",
        "--data",
        str(phantom_root),
        "--out",
        str(tmp_path),
        *COMMON,
    ]
    subprocess.run([*command, "--no-surface"], check=True, capture_output=True)
    made = json.loads((tmp_path / "result.json").read_text())["provenance"]
    assert made["command"].startswith("python -m mbls train --loss ce --data ")


def test_a_fixed_split_counts_by_its_content_not_its_place(phantom_root, tmp_path):
    split = {"train": ["patient001"], "val": ["patient002"], "test": ["patient003"]}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "split.json").write_text(json.dumps(split))
    first, same = (replace(SMALL, split=str(tmp_path / folder / "split.json"), surface=False) for folder in "ab")
    row = run_experiment(first, phantom_root, tmp_path / "out", progress=False).row
    assert row["train_patients"] == 1
    assert row["experiment"]["split"].startswith("split.json ")
    assert run_experiment(same, phantom_root, tmp_path / "out", progress=False).row == row
    (tmp_path / "b" / "split.json").write_text(json.dumps({**split, "val": ["patient004"]}))
    with pytest.raises(ValueError, match=r"another experiment \(split, data_fingerprint differ\)"):
        run_experiment(same, phantom_root, tmp_path / "out")


def test_study_command(phantom_root, tmp_path, capsys):
    assert (
        main(["study", "--protocol", "cpu", "--parts", "weights", "--seeds", "0", "--out", str(tmp_path), "--list"])
        == 0
    )
    names = ["ce-seed0", "mbls-margin5-alpha0.01-seed0", "mbls-margin5-seed0", "mbls-margin5-alpha1-seed0"]
    assert capsys.readouterr().out.splitlines() == names
    assert main(["study", "--parts", "margin", "--out", str(tmp_path), "--list"]) == 2
    assert "parts: got margin" in capsys.readouterr().err
    # The split names patients of ACDC.
    assert main(["study", "--protocol", "cpu", "--data", str(phantom_root), "--out", str(tmp_path)]) == 2
    assert "acdc_split.json: got patients that the data does not have" in capsys.readouterr().err


def test_phantom_and_check_commands(tmp_path, capsys):
    root = tmp_path / "phantom"
    assert main(["phantom", "--out", str(root), "--patients", "1"]) == 0
    assert is_phantom(root)
    assert main(["check", str(root)]) == 0
    assert "patient001  clean" in capsys.readouterr().out
    (root / "training" / "patient001" / "patient001_frame01.nii.gz").unlink()
    assert main(["check", str(root)]) == 1
    assert "patient001_frame01.nii.gz: missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "lms"], "name: got 'lms'"),
        (["--loss", "ce", "--margin", "3"], "options of loss 'ce'"),
        (["--margin", "-1"], "margin: got -1"),
        (["--patients", "3"], "--patients: got '3'"),
        (["--patients", "30,1,1"], "train, val, test: got 30"),
        (["--data", "nowhere"], "root: got nowhere"),
    ],
)
def test_errors_of_the_command_line(phantom_root, tmp_path, capsys, options, message):
    command = ["train", "--data", str(phantom_root), "--out", str(tmp_path / "out"), *COMMON, *options]
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
