"""evaluate: rows, means over volumes, pooled histograms."""

import numpy as np
import pytest
import torch

from mbls.constraints import logit_distances
from mbls.data.acdc import PHASES, SliceDataset
from mbls.engine.judge import DISTANCE_EDGES, distance_counts, evaluate, fit_temperature, predict_volumes
from mbls.networks.unet import UNet
from mbls.posthoc import TemperatureScaling


@pytest.fixture(scope="module")
def data(phantom_patients):
    return SliceDataset(phantom_patients[:2], size=32, crop=128)


def make_model():
    torch.manual_seed(0)
    return UNet(base_channels=4, levels=3, norm="batch")


def test_rows_and_summary(data, phantom_patients):
    evaluation = evaluate(make_model(), data, progress=False)
    assert [(row["patient"], row["phase"]) for row in evaluation.volumes] == [
        (patient.id, phase) for patient in phantom_patients[:2] for phase in PHASES
    ]
    assert sum(row["voxels"] for row in evaluation.volumes) == data.labels.numel() == evaluation.bins["all"].num_voxels
    assert sum(row["voxels_fg"] for row in evaluation.volumes) == int((data.labels > 0).sum())
    summary = evaluation.summary()
    weights = [row["voxels_fg"] for row in evaluation.volumes]
    expected = sum(w * row["ece_fg"] for w, row in zip(weights, evaluation.volumes, strict=True)) / sum(weights)
    assert summary["ece_fg"] == pytest.approx(expected)
    assert set(evaluation.pooled()) >= {"ece", "cece_fg", "mce"}


def test_a_fitted_temperature_lowers_the_nll(data):
    model = make_model()
    _, logits, labels = zip(*predict_volumes(model, data), strict=True)
    scaling = fit_temperature(model, data)
    assert scaling.temperature == TemperatureScaling().fit(torch.cat(logits), torch.cat(labels)).temperature
    before = evaluate(model, data, surface=False, progress=False).summary()
    after = evaluate(model, data, surface=False, scale=scaling, progress=False).summary()
    assert after["nll"] < before["nll"]
    assert after["dsc"] == before["dsc"]


def test_distances_are_counted_without_the_winner():
    logits = torch.tensor([[0.0, 0.0, 3.0, 100.0], [5.0, 4.9, 0.0, 5.0]])  # two voxels, the second with a tie
    distances = logit_distances(logits)
    counts = distance_counts(distances, torch.tensor([True, True]))
    assert counts.sum() == 2 * 3
    where = {float(DISTANCE_EDGES[bin]): int(n) for bin, n in enumerate(counts) if n}
    assert where == {0.0: 2, 5.0: 1, 19.75: 3}
    assert distance_counts(distances, torch.tensor([False, True])).sum() == 3


def test_histograms_hold_what_was_counted(data):
    model = make_model()
    evaluation = evaluate(model, data, surface=False, progress=False)
    table = evaluation.histograms()
    _, logits, labels = (
        torch.cat(part) if index else part for index, part in enumerate(zip(*predict_volumes(model, data), strict=True))
    )
    foreground = labels > 0
    values = logit_distances(logits).movedim(1, -1)[foreground].sort(1)[0][:, 1:]
    expected, _ = np.histogram(values.numpy(), DISTANCE_EDGES)
    rows = table[(table["region"] == "foreground") & (table["kind"] == "distance")]
    np.testing.assert_array_equal(rows["count"], expected)
    confidence = table[(table["region"] == "all") & (table["kind"] == "confidence")]
    assert confidence["count"].sum() == labels.numel()
    gap = (confidence["confidence"] - confidence["accuracy"]).abs() * confidence["count"]
    assert gap.sum() / labels.numel() == pytest.approx(evaluation.pooled()["ece"])
