"""Comparing losses: names, rows with provenance, resuming, kept predictions, other data sets, the command line."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import mbls
from mbls.__main__ import _experiment, _parser, main
from mbls.data import home
from mbls.data.acdc import PHANTOM_MARKER, PHASES, find_patients
from mbls.data.home import find_data
from mbls.data.layout import read_dataset
from mbls.engine.fit import FitSettings
from mbls.losses import LOSSES
from mbls.study import experiment as experiments
from mbls.study.experiment import Experiment, compare, judge_run, parse_shard, run_experiment, sweep
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


def test_names_of_runs_are_distinct_and_safe():
    names = [run.name for run in sweep(SMALL, ["ce", "mbls:margin=5", "mbls:margin=5:alpha=0.2"], [0, 1])]
    assert names[:3] == ["ce-seed0", "ce-seed1", "mbls-margin5-seed0"]
    assert len(set(names)) == 6
    assert all("/" not in name and ":" not in name for name in names)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_trains(loss, phantom_root):
    run = run_experiment(replace(SMALL, loss=loss, surface=False), phantom_root, progress=False)
    assert run.row["loss"] == loss
    assert 0 <= run.row["ece"] <= 1
    assert len(run.judgement.cases) == 2


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
    cases = pd.read_csv(tmp_path / "ce-seed0" / "cases-best.csv")
    assert len(cases) == 2
    assert len(pd.read_csv(tmp_path / "cases.csv")) == 4 * 2
    (row,) = written.query("loss == 'ce' and seed == 0").to_dict("records")
    assert np.mean(cases["scaled_nll"]) == pytest.approx(row["scaled_nll"])
    histograms = pd.read_csv(tmp_path / "histograms.csv")
    assert set(zip(histograms["loss"], histograms["seed"], strict=True)) == set(
        zip(table["loss"], table["seed"], strict=True)
    )
    voxels = histograms.query("loss == 'ce' and seed == 0 and region == 'all' and kind == 'confidence'")["count"].sum()
    assert voxels == cases["voxels"].sum()
    # Finished runs are not trained again: the rows come back as they were, wall time included.
    again = compare(sweep(SMALL, ["ce", "mbls:margin=2"], [0, 1]), phantom_root, tmp_path, progress=False)
    assert again["wall_seconds"].tolist() == table["wall_seconds"].tolist()


def test_shards_in_separate_processes_make_the_table_of_one(phantom_root, tmp_path):
    options = [
        "--losses",
        "ce",
        "mbls:margin=2",
        "--seeds",
        "0,1",
        "--data",
        str(phantom_root),
        *COMMON,
        "--no-surface",
    ]
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
    rows = json.loads((other / "result.json").read_text())
    rows[0]["experiment"]["data_fingerprint"] = "another"
    (other / "result.json").write_text(json.dumps(rows))
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
    (row,) = json.loads((tmp_path / "result.json").read_text())
    assert row["experiment"]["loss"] == "mbls:margin=5"


def test_compare_command(phantom_root, tmp_path, capsys):
    command = [
        "compare",
        "--losses",
        "ce",
        "mbls:margin=3",
        "--data",
        str(phantom_root),
        "--out",
        str(tmp_path),
        *COMMON,
    ]
    assert main([*command, "--no-surface"]) == 0
    assert "mbls:margin=3" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "results.csv")) == 2


def test_rows_say_which_command_and_commit_made_them(phantom_root, tmp_path, monkeypatch):
    run = run_experiment(replace(SMALL, surface=False), phantom_root, progress=False)
    assert run.row["provenance"]["command"] is None  # not started by one
    checkout = Path(experiments.__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        head = subprocess.run(
            ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        assert head.startswith(run.row["provenance"]["commit"].removesuffix("-changed"))
    else:  # the package is installed, not run from a checkout
        assert run.row["provenance"]["commit"] is None
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
    (row,) = json.loads((tmp_path / "result.json").read_text())
    made = row["provenance"]
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
        main(["study", "--protocol", "reduced", "--parts", "weights", "--seeds", "0", "--out", str(tmp_path), "--list"])
        == 0
    )
    names = ["ce-seed0", "mbls-margin5-alpha0.01-seed0", "mbls-margin5-seed0", "mbls-margin5-alpha1-seed0"]
    assert capsys.readouterr().out.splitlines() == names
    assert main(["study", "--parts", "margin", "--out", str(tmp_path), "--list"]) == 2
    assert "parts: got margin" in capsys.readouterr().err
    few = ["study", "--protocol", "reduced", "--seeds", "0,1", "--list", "--runs"]
    assert main([*few, "mbls-margin5-seed1,ce-seed0", "fl-unet++-seed0"]) == 2
    said = capsys.readouterr().err
    assert "--runs: got 'fl-unet++-seed0', expected names of these parts and seeds, e.g. " in said
    assert "ls-unet++-seed0" in said
    assert main([*few, "mbls-margin5-seed1,ce-seed0", "fl-seed0"]) == 0
    assert capsys.readouterr().out.splitlines() == ["ce-seed0", "fl-seed0", "mbls-margin5-seed1"]  # the study's order
    assert main([*few, "ce-seed0", "--parts", "weights", "--seeds", "2"]) == 2
    assert "--runs: got 'ce-seed0'" in capsys.readouterr().err
    # The split names patients of ACDC.
    assert main(["study", "--protocol", "reduced", "--data", str(phantom_root), "--out", str(tmp_path)]) == 2
    assert "acdc_split.json: got subjects that phantom does not have" in capsys.readouterr().err


def test_phantom_and_check_commands(tmp_path, capsys):
    root = tmp_path / "phantom"
    assert main(["phantom", "--out", str(root), "--patients", "1"]) == 0
    assert (root / PHANTOM_MARKER).is_file()
    assert main(["check", str(root)]) == 0
    assert "patient001  clean" in capsys.readouterr().out
    (root / "training" / "patient001" / "patient001_frame01.nii.gz").unlink()
    assert main(["check", str(root)]) == 1
    assert "patient001_frame01.nii.gz: missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "lms"], "--loss: got 'lms'"),
        (["--loss", "ce", "--margin", "3"], "--loss 'ce': got margin=3"),
        (["--margin", "-1"], "--margin: got -1"),
        (["--patients", "3"], "--patients: got '3'"),
        (["--patients", "30,1,1"], "--patients: got 30"),
        (["--batch-size", "0"], "--batch-size: got 0"),
        (["--learning-rate", "0"], "--learning-rate: got 0.0"),
        (["--model", "unet++", "--norm", "batch"], "--norm: got 'batch'"),
        (["--alpha-schedule", "add"], "--alpha-schedule: got 'add'"),
        (["--loss", "ce", "--alpha-schedule", "add:0.1:10"], "--alpha-schedule: got one for 'ce'"),
        (["--data", "nowhere"], "--data: got nowhere"),
    ],
)
def test_errors_of_the_command_line(phantom_root, tmp_path, capsys, options, message):
    command = ["train", "--data", str(phantom_root), "--out", str(tmp_path / "out"), *COMMON, *options]
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_a_finished_run_is_loaded_and_not_judged_again(phantom_root, tmp_path, monkeypatch):
    first = run_experiment(SMALL, phantom_root, tmp_path, progress=False)
    monkeypatch.setattr(experiments, "judge", lambda *arguments, **options: pytest.fail("judged"))
    monkeypatch.setattr(experiments, "fit", lambda *arguments, **options: pytest.fail("trained"))
    again = run_experiment(SMALL, phantom_root, tmp_path, progress=False)
    assert json.dumps(again.row) == json.dumps(first.row)  # as text, since NaN is not itself
    assert again.judgement.pooled() == first.judgement.pooled()
    pd.testing.assert_frame_equal(again.cases, first.cases, check_dtype=False)
    for ours, theirs in zip(again.model.state_dict().values(), first.model.state_dict().values(), strict=True):
        assert ours.equal(theirs)


def test_a_schedule_of_the_penalty_reaches_the_run(phantom_root, tmp_path, capsys):
    command = ["train", "--loss", "mbls:margin=2", "--alpha-schedule", "add:0.1:2", "--out", str(tmp_path), *COMMON]
    assert main([*command, "--data", str(phantom_root), "--epochs", "4", "--no-surface"]) == 0
    assert pd.read_csv(tmp_path / "history.csv")["alpha"].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    (row,) = json.loads((tmp_path / "result.json").read_text())
    assert row["experiment"]["alpha_schedule"] == "add:0.1:2"


def test_last_and_best_weights_are_judged_where_asked(phantom_root, tmp_path):
    longer = replace(
        SMALL, surface=False, judged=("last", "best"), fit=replace(SMALL.fit, epochs=4, learning_rate=0.03)
    )
    run = run_experiment(longer, phantom_root, tmp_path / "run", progress=False)
    assert list(run.rows) == ["last", "best"]
    assert run.row is run.rows["last"]
    assert run.rows["last"]["weights_checksum"] != run.rows["best"]["weights_checksum"] or run.row["best_epoch"] == 4
    table = compare([longer], phantom_root, tmp_path / "table", progress=False)
    assert table["weights"].tolist() == ["last", "best"]
    assert set(pd.read_csv(tmp_path / "table" / "cases.csv")["weights"]) == {"last", "best"}
    # Without validation there is no best epoch.
    alone = run_experiment(replace(longer, patients=(2, 0, 1)), phantom_root, progress=False)
    assert list(alone.rows) == ["last"]


def test_kept_predictions_are_judged_again_without_data_and_network(phantom_root, tmp_path, capsys):
    run = run_experiment(SMALL, phantom_root, tmp_path / "run", progress=False, keep_predictions=True)
    assert not list((tmp_path / "run").rglob("*.part"))
    for damaged in ("best.pt", "last.pt"):
        (tmp_path / "run" / damaged).unlink()
    found = judge_run(tmp_path / "run")
    assert list(found) == ["best", "last"]
    figures, judgement = found["best"]
    assert figures["dsc"] == run.row["dsc"]
    assert figures["hd95"] == pytest.approx(run.row["hd95"], nan_ok=True)
    assert [row["subject"] for row in judgement.cases] == run.cases["subject"].tolist()
    for name in ("ece", "cece", "nll", "temperature", "mean_distance", "ece_fg", "nll_fg", "scaled_nll", "scaled_ece"):
        assert figures[name] == pytest.approx(run.row[name], rel=1e-3), name
    assert main(["judge", str(tmp_path / "run"), "--out", str(tmp_path / "again")]) == 0
    assert f"dsc                  {run.row['dsc']:.4f}" in capsys.readouterr().out
    assert json.loads((tmp_path / "again" / "metrics-best.json").read_text())["dsc"] == run.row["dsc"]
    assert main(["judge", str(tmp_path / "again")]) == 2
    assert "expected the predictions of a run trained with --keep-predictions" in capsys.readouterr().err
    with pytest.raises(ValueError, match="keep_predictions: got True without out"):
        run_experiment(SMALL, phantom_root, keep_predictions=True)


def test_a_wrong_option_is_told_before_any_data_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MBLS_DATA", raising=False)
    monkeypatch.setattr(home, "make_phantom", lambda *arguments: pytest.fail("made a phantom"))
    monkeypatch.setattr(home, "data_home", lambda: tmp_path)
    for command in (["train", "--loss", "mbls:margn=5"], ["compare", "--losses", "ce", "lms"]):
        assert main([*command, "--out", str(tmp_path / "out"), *COMMON]) == 2
        assert "--loss" in capsys.readouterr().err


def test_version_and_quiet(phantom_root, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"mbls {mbls.__version__}\n"
    command = ["train", "--data", str(phantom_root), "--out", str(tmp_path), *COMMON, "--no-surface", "--quiet"]
    quiet = subprocess.run([sys.executable, "-m", "mbls", *command], capture_output=True, text=True)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_defaults_of_the_shell_are_those_of_the_dataclasses(tmp_path):
    options = _parser().parse_args(["train", "--out", str(tmp_path)])
    assert _experiment(options, options.loss, options.seed) == Experiment()


MADE = {"name": "Belly", "modality": {"0": "CT", "1": "MR"}, "labels": {"0": "background", "1": "organ", "2": "tumour"}}


@pytest.mark.parametrize("shape", [(40, 36), (40, 36, 4)])
def test_a_made_data_set_goes_through_check_train_compare_and_judge(tmp_path, capsys, shape):
    """Three classes, two channels, another name, two cases a subject; 2-D and 3-D."""
    random = np.random.default_rng(0)
    root = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(MADE))
    for subject, visit in itertools.product(range(6), "ab"):
        labels = np.zeros(shape, np.uint8)
        x = 6 + subject
        labels[x : x + 16, 8:26] = 1
        labels[x + 4 : x + 10, 12:18] = 2
        for channel in (0, 1):
            image = (100 * labels + random.normal(0, 30, shape)).astype(np.float32)
            nib.save(nib.Nifti1Image(image, np.eye(4)), root / "imagesTr" / f"s{subject}{visit}_000{channel}.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), root / "labelsTr" / f"s{subject}{visit}.nii.gz")
    assert main(["check", str(root), "--subject", r"s\d"]) == 0
    assert "6 subjects, 0 with problems" in capsys.readouterr().out
    common = ["--data", str(root), "--subject", r"s\d", "--size", "32", "--base-channels", "4", "--levels", "3"]
    common += ["--norm", "batch", "--patients", "3,1,2", "--epochs", "3", "--keep-predictions"]
    assert main(["compare", "--losses", "ce", "svls", "mbls:margin=5", *common, "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table["data"].tolist() == ["Belly"] * 3
    cases = pd.read_csv(tmp_path / "out" / "cases.csv")
    assert {"dsc_organ", "dsc_tumour"} < set(cases)
    assert cases.groupby("loss")["subject"].nunique().tolist() == [2] * 3
    assert len(cases) == 3 * 4
    capsys.readouterr()
    assert main(["judge", str(tmp_path / "out" / "ce-seed0"), "--no-surface"]) == 0
    assert f"dsc                  {table['dsc'][0]:.4f}" in capsys.readouterr().out


@pytest.mark.acdc
def test_acdc_in_the_layout_of_nnunet_gives_the_same_numbers(acdc_root, tmp_path):
    """Real volumes, written anew in the other layout: the same run, from the fingerprint of the data to the last
    figure."""
    acdc = read_dataset(acdc_root)
    split = {"train": ["patient001", "patient041"], "val": ["patient021"], "test": ["patient061"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    root = tmp_path / "Dataset027"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for patient in (find_patients(acdc_root)[number] for number in (0, 16, 32, 48)):
        for phase in PHASES:
            for kind, place in (("image", "imagesTr/{}_0000"), ("labels", "labelsTr/{}")):
                target = root / f"{place.format(f'{patient.id}_{phase}')}.nii.gz"
                nib.save(nib.load(patient.path(phase, kind)), target)
    labels = {name: number for number, name in enumerate(acdc.class_names)}
    description = {"name": "ACDC", "channel_names": {"0": "cine MR"}, "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description))
    experiment = replace(SMALL, split=str(tmp_path / "split.json"))
    one = run_experiment(experiment, acdc_root, progress=False)
    two = run_experiment(replace(experiment, subject=r"patient\d+"), root, progress=False)
    changing = ("wall_seconds", "train_seconds", "provenance", "experiment")
    rows = [{name: value for name, value in run.row.items() if name not in changing} for run in (one, two)]
    assert json.dumps(rows[0]) == json.dumps(rows[1])  # as text, since NaN is not itself
    assert one.row["experiment"]["data_fingerprint"] == two.row["experiment"]["data_fingerprint"]
    assert one.cases.drop(columns="group").equals(two.cases.drop(columns="group"))
