"""The nnU-Net trainer: its loss, and the whole loop from ACDC to a report of what nnU-Net predicted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest
import torch

from mbls.data.acdc import PHASES, find_patients
from mbls.data.layout import read_dataset
from mbls.losses import MbLSLoss

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (pip install -e '.[peers]')")
# nnU-Net's own dependencies, as they are loaded.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning")


def make_trainer(labels, deep_supervision=True, **attributes):
    """A trainer as far as its loss needs one: two of three resolutions count, as nnU-Net leaves the lowest out."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from mbls.adapters.nnunet import nnUNetTrainerMbLS

    class Toy(nnUNetTrainerMbLS):
        def __init__(self):
            self.label_manager = LabelManager(labels, [1, 2] if "whole" in labels else None)
            self.configuration_manager = type("Plan", (), {"batch_dice": False})()
            self.enable_deep_supervision, self.is_ddp = deep_supervision, False
            self.device = torch.device("cpu")

        def _get_deep_supervision_scales(self):
            return [[1.0, 1.0], [0.5, 0.5], [0.25, 0.25]]

    for name, value in attributes.items():
        setattr(Toy, name, value)
    return Toy()


def make_outputs():
    generator = torch.Generator().manual_seed(0)
    sizes = (16, 8, 4)
    outputs = [8 * torch.randn(2, 3, size, size, generator=generator) for size in sizes]
    targets = [torch.randint(0, 3, (2, 1, size, size), generator=generator).to(torch.int16) for size in sizes]
    return [output.requires_grad_() for output in outputs], targets


def test_deep_supervision():
    loss = make_trainer({"background": 0, "a": 1, "b": 2})._build_loss()
    outputs, targets = make_outputs()
    value = loss(outputs, targets)
    value.backward()
    one = MbLSLoss(margin=5.0, alpha=0.1)
    expected = (2 * one(outputs[0], targets[0]) + one(outputs[1], targets[1])) / 3
    torch.testing.assert_close(value, expected)
    assert outputs[1].grad.abs().sum() > 0
    assert outputs[2].grad is None


def test_margin_and_weight_are_the_classs():
    trainer = make_trainer({"background": 0, "a": 1, "b": 2}, deep_supervision=False, margin=2.0, alpha=0.5)
    outputs, targets = make_outputs()
    assert trainer._build_loss()(outputs[0], targets[0]) == MbLSLoss(margin=2.0, alpha=0.5)(outputs[0], targets[0])


def test_ignored_voxels_do_not_count():
    loss = make_trainer({"background": 0, "a": 1, "b": 2, "ignore": 3})._build_loss()
    outputs, targets = make_outputs()
    with torch.no_grad():
        for target in targets:
            target[:, :, :2] = 3
        value = loss(outputs, targets)
        for output in outputs:
            output[:, :, :2] = 100.0
        assert loss(outputs, targets) == value
        for output, target in zip(outputs, targets, strict=True):
            output.copy_(output.roll(2, 2))
            target.copy_(target.roll(2, 2))
        torch.testing.assert_close(loss(outputs, targets), value)


def test_regions_are_refused():
    with pytest.raises(ValueError, match="got regions"):
        make_trainer({"background": 0, "whole": [1, 2], "core": 2})._build_loss()


#: The file that a user puts into the folder that nnUNet_extTrainer names.
SHORT_TRAINER = '''
import torch

from mbls.adapters.nnunet import nnUNetTrainerMbLS

torch.set_num_threads(1)  # nnU-Net takes one a core; on a busy machine they wait for each other


class nnUNetTrainerMbLSShort(nnUNetTrainerMbLS):
    margin = 3.0

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 5, 1

    def perform_actual_validation(self, save_probabilities=False):
        """Left out: predicting the training's own cases takes longer than the training."""
'''


def write_dataset(root, acdc_root):
    """Three patients to train with, two to test with, both their phases, in nnU-Net's layout."""
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (root / folder).mkdir(parents=True)
    patients = find_patients(acdc_root)[:5]
    for number, patient in enumerate(patients):
        part = "Tr" if number < 3 else "Ts"
        for phase in PHASES:
            case = f"{patient.id}_{phase}"
            nib.save(nib.load(patient.path(phase, "image")), root / f"images{part}" / f"{case}_0000.nii.gz")
            nib.save(nib.load(patient.path(phase, "labels")), root / f"labels{part}" / f"{case}.nii.gz")
    names = read_dataset(acdc_root).class_names
    labels = {name: label for label, name in enumerate(names)}
    description = {"channel_names": {"0": "cine MR"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description))
    return names


def make_small(plans_path):
    """Batches and a network that a CPU can train; nnU-Net plans for a GPU."""
    plans = json.loads(plans_path.read_text())
    plan = plans["configurations"]["2d"]
    plan |= {"batch_size": 2, "patch_size": [128, 128]}
    kept = plan["architecture"]["arch_kwargs"]
    stages = 5
    kept |= {"n_stages": stages, "features_per_stage": [8, 16, 32, 32, 32]}
    for name in ("kernel_sizes", "strides", "n_conv_per_stage"):
        kept[name] = kept[name][:stages]
    kept["n_conv_per_stage_decoder"] = kept["n_conv_per_stage_decoder"][: stages - 1]
    plans_path.write_text(json.dumps(plans))


# Slow: nnU-Net plans, preprocesses, trains and predicts.
@pytest.mark.slow
@pytest.mark.acdc
def test_from_acdc_to_a_report(acdc_root, tmp_path):
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    dataset = folders["nnUNet_raw"] / "Dataset027_ACDC"
    names = write_dataset(dataset, acdc_root)
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    (trainers / "mbls_trainers.py").write_text(SHORT_TRAINER)
    environment = os.environ | {name: str(path) for name, path in folders.items()}
    environment |= {"nnUNet_extTrainer": str(trainers), "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}

    def call(*words):
        finished = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
        return finished.stdout

    def nnunet(command, *words):
        return call(str(Path(sys.executable).parent / command), *words)

    planned = ("-npfp", "1", "-np", "1", "-c", "2d")
    nnunet("nnUNetv2_plan_and_preprocess", "-d", "27", "--verify_dataset_integrity", *planned)
    make_small(folders["nnUNet_preprocessed"] / "Dataset027_ACDC" / "nnUNetPlans.json")
    named = ("-tr", "nnUNetTrainerMbLSShort", "-device", "cpu")
    told = nnunet("nnUNetv2_train", "27", "2d", "all", *named)
    assert "Using trainer 'nnUNetTrainerMbLSShort'" in told
    assert "Epoch 1" in told
    options = ("-d", "27", "-c", "2d", "-f", "all", *named, "-npp", "1", "-nps", "1", "--disable_tta")
    nnunet("nnUNetv2_predict", "-i", str(dataset / "imagesTs"), "-o", "predicted", *options, "--save_probabilities")

    judged = ("judge", "predicted", str(dataset / "labelsTs"), "--subject", r"(patient\d+)", "--out", "report")
    call(sys.executable, "-m", "mbls", *judged)
    assert "<html" in (tmp_path / "report" / "report.html").read_text()
    cases, classes = (pd.read_csv(tmp_path / "report" / f"{table}.csv") for table in ("cases", "classes"))
    predicted = sorted(path.name.removesuffix(".npz") for path in (tmp_path / "predicted").glob("*.npz"))
    assert sorted(cases["case"]) == predicted
    assert len(predicted) == 4
    assert cases["subject"].nunique() == 2
    assert cases[["ece", "cece", "nll"]].gt(0).all(axis=None)
    assert set(classes["class"]) == set(names)
