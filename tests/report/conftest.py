"""Folders as nnU-Net writes them, of small volumes with two structures."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

NAMES = ("background", "a", "b")


def write_cohort(folder, cases, seed=0):
    """Predictions that are too sure, and labels, of cases p00_0, p00_1, p01_0, ...: two a subject."""
    draw = np.random.default_rng(seed)
    predictions, labels = folder / "predictions", folder / "labels"
    for place in (predictions, labels):
        place.mkdir(parents=True)
    named = {name: number for number, name in enumerate(NAMES)}
    (predictions / "dataset.json").write_text(json.dumps({"name": "Belly", "labels": named}))
    for number in range(cases):
        case = f"p{number // 2:02d}_{number % 2}"
        label = np.zeros((4, 24, 24), int)
        low, high = draw.integers(3, 8), draw.integers(14, 20)
        label[1:, low:high, low:high] = 1
        label[1:, low + 2 : high - 3, low + 2 : high - 3] = 2
        logits = 2.5 * np.eye(3)[label] + draw.normal(scale=1.5, size=(*label.shape, 3))
        probs = torch.from_numpy(2 * logits).softmax(-1).numpy().transpose(3, 0, 1, 2)
        np.savez_compressed(predictions / f"{case}.npz", probabilities=probs.astype(np.float32))
        image = nib.Nifti1Image(label.T.astype(np.uint8), np.diag([1.5, 1.5, 8.0, 1.0]))
        image.header.set_xyzt_units("mm")
        nib.save(image, labels / f"{case}.nii.gz")
    return predictions, labels


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 12)


@pytest.fixture(scope="session")
def validation(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("validation"), 20, seed=1)
