"""Volumes by hand, distances against brute force, shells that lose no voxel."""

import numpy as np
import pytest
import torch

from mbls.engine.predict import Prediction
from mbls.engine.structures import SHELLS, boundary_distance, distance_shells, volumes

NAMES = ("background", "a", "b")


@pytest.fixture
def prediction():
    draw = torch.Generator().manual_seed(0)
    labels = torch.zeros(4, 12, 12, dtype=torch.long)
    labels[1:3, 3:8, 3:8] = 1
    labels[1:3, 5:7, 5:7] = 2
    logits = torch.randn(3, 4, 12, 12, generator=draw)
    return Prediction("a", "a", logits, labels, (8.0, 1.5, 1.25))


def test_volumes_are_sums_of_what_counts(prediction):
    half = prediction.labels.clone()
    half[2:] = -100
    rows = volumes(Prediction("a", "a", prediction.logits, half, prediction.spacing), NAMES)
    probs = prediction.logits[:, :2].softmax(0).double()
    won = prediction.logits[:, :2].argmax(0)
    for label, row in enumerate(rows, 1):
        assert (row["class"], row["true"]) == (NAMES[label], int((half == label).sum()))
        assert row["predicted"] == int((won == label).sum())
        assert row["expected"] == pytest.approx(float(probs[label].sum()))
        assert row["sd"] == pytest.approx(float((probs[label] * (1 - probs[label])).sum()) ** 0.5)
        assert row["voxel_ml"] == pytest.approx(8 * 1.5 * 1.25 / 1000)
        hit = probs[label][won == label].sum()
        assert row["expected_dsc"] == pytest.approx(float(2 * hit / (probs[label].sum() + (won == label).sum())))


def test_distances_are_those_of_the_nearest_face(prediction):
    labels = prediction.labels.numpy()
    spacing = (1.0, 1.0, 1.0)  # there the face of the nearest centre is the nearest face
    found = boundary_distance(labels, spacing)
    places = np.stack(np.meshgrid(*map(np.arange, labels.shape), indexing="ij"), -1).reshape(-1, 3)
    flat = labels.ravel()
    for place, label, distance in zip(places, flat, found.ravel(), strict=True):
        steps = np.maximum(np.abs(places[flat != label] - place) - 0.5, 0)
        assert distance == pytest.approx(np.sqrt((steps**2).sum(1)).min(), abs=0.25)
    assert np.isinf(boundary_distance(np.zeros((2, 2), int), (1.0, 1.0))).all()


def test_shells_hold_every_voxel_once(prediction):
    shells = distance_shells(prediction)
    assert shells.shape == (len(SHELLS) - 1, 3)
    assert shells[:, 0].sum() == prediction.labels.numel()
    assert shells[: len(SHELLS) // 2, 0].sum() == int((prediction.labels > 0).sum())
    confidence, winner = prediction.logits.softmax(0).max(0)
    assert shells[:, 1].sum() == pytest.approx(float(confidence.double().sum()))
    assert shells[:, 2].sum() == int((winner == prediction.labels).sum())
    assert not distance_shells(Prediction("a", "a", prediction.logits, prediction.labels)).any()
    half = prediction.labels.clone()
    half[:, :6] = -100
    ignored = distance_shells(Prediction("a", "a", prediction.logits, half, prediction.spacing))
    assert ignored[:, 0].sum() == int((half >= 0).sum())
