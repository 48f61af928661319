"""judge: rows, means over cases, pooled histograms, scaling, regions and ignored voxels, and the table of metrics."""

import numpy as np
import pandas as pd
import pytest
import torch

from mbls.constraints import logit_distances
from mbls.data.slices import SliceDataset
from mbls.engine.judge import DISTANCE_EDGES, METRICS, Judgement, columns, distance_counts, judge, metric_of
from mbls.engine.predict import Prediction, fit_temperature, predict
from mbls.metrics import (
    brier_decomposition,
    expected_calibration_error,
    segmentation_scores,
    smooth_calibration_error,
)
from mbls.networks.unet import UNet

NAMES = ("background", "RV", "MYO", "LV")


@pytest.fixture(scope="module")
def predictions(phantom):
    """Of an untrained network, which errs everywhere."""
    torch.manual_seed(0)
    model = UNet(4, base_channels=4, levels=3, norm="batch")
    return list(predict(model, SliceDataset(phantom.first(2), size=32, crop=128)))


def test_rows_and_summary(predictions, phantom):
    judgement = judge(predictions, NAMES)
    rows = judgement.cases
    assert [row["case"] for row in rows] == [case.id for case in phantom.cases[:4]]
    assert [row["subject"] for row in rows[:2]] == ["patient001"] * 2
    assert sum(row["voxels"] for row in rows) == sum(p.labels.numel() for p in predictions)
    assert judgement.bins["all"].num_voxels == sum(row["voxels"] for row in rows)
    assert sum(row["voxels_fg"] for row in rows) == sum(int((p.labels > 0).sum()) for p in predictions)
    summary = judgement.summary()
    assert list(summary) == ["dsc", "hd95", "missed", "asd", *columns()[3:]]
    assert summary["ece_fg"] == pytest.approx(np.mean([row["ece_fg"] for row in rows]))  # a case counts once
    scores = np.array([[row[f"dsc_{name}"] for name in NAMES[1:]] for row in rows])
    assert summary["dsc"] == pytest.approx(np.nanmean(scores))
    assert rows[0]["dsc"] == pytest.approx(scores[0].mean())
    assert set(judgement.pooled()) >= {"ece", "cece_fg", "mce"}


def test_figures_are_those_of_the_metrics(predictions):
    (row,) = judge(predictions[:1], NAMES).cases
    one = predictions[0]
    probs = one.logits.softmax(0).unsqueeze(0)
    labels = one.labels.unsqueeze(0)
    assert row["ece"] == pytest.approx(expected_calibration_error(probs, labels), rel=1e-12)
    assert row["ece_fg"] == pytest.approx(expected_calibration_error(probs, labels, mask=labels > 0), rel=1e-12)
    assert row["smece_fg"] == pytest.approx(smooth_calibration_error(probs, labels, labels > 0), rel=1e-12)
    parts = row["brier_calibration_fg"], row["brier_refinement_fg"]
    assert parts == pytest.approx(brier_decomposition(probs, labels, mask=labels > 0), rel=1e-12)
    assert sum(parts) == pytest.approx(row["brier_fg"], rel=1e-12)
    expected = segmentation_scores(one.logits.argmax(0), one.labels, 4, one.spacing)
    assert [row[f"hd95_{name}"] for name in NAMES[1:]] == expected["hd95"]
    losers = logit_distances(one.logits.unsqueeze(0)).sum(1) / 3
    assert row["mean_distance"] == pytest.approx(float(losers.double().mean()), rel=1e-6)
    assert row["mean_distance_fg"] == pytest.approx(float(losers[labels > 0].double().mean()), rel=1e-6)


def test_only_what_is_wanted_is_taken(predictions):
    wanted = ["dsc", "ece_fg", "nll"]
    judgement = judge(predictions, NAMES, wanted, pool=False)
    assert list(judgement.summary()) == ["dsc", "nll", "ece_fg"]
    assert judgement.bins["all"].num_voxels == 0
    whole = judge(predictions, NAMES).summary()
    assert judgement.summary() == {name: whole[name] for name in judgement.summary()}
    with pytest.raises(ValueError, match="metric: got 'ecce', expected one of dsc, hd95"):
        judge(predictions, NAMES, ["ecce"])


def test_one_pass_gives_the_figures_after_scaling_too(predictions):
    scaling = fit_temperature(predictions)
    passes = []

    def counted():
        for prediction in predictions:
            passes.append(prediction.id)
            yield prediction

    both = judge(counted(), NAMES, scale=scaling)
    assert len(passes) == len(predictions)
    scaled = [Prediction(p.id, p.subject, scaling(p.logits), p.labels, p.spacing, p.group) for p in predictions]
    alone = judge(scaled, NAMES).summary()
    figures = both.summary()
    for name in columns(scaled=True):
        assert figures[name] == pytest.approx(alone[name.removeprefix("scaled_")], rel=1e-6), name
    assert figures["scaled_nll"] < figures["nll"]
    assert both.bins["scaled_all"].ece() == pytest.approx(judge(scaled, NAMES).bins["all"].ece(), rel=1e-6)


def test_ignored_voxels_count_nowhere(predictions):
    """The upper half ignored: everything but the surfaces is as if only the lower half were there."""
    one = predictions[0]
    half = one.labels.clone()
    half[:, :16] = -100
    ignored = Prediction(one.id, one.subject, one.logits, half)
    cut = Prediction(one.id, one.subject, one.logits[:, :, 16:], one.labels[:, 16:])
    wanted = columns(surface=False)
    (row,), (expected,) = (judge([case], NAMES, wanted).cases for case in (ignored, cut))
    assert list(row) == list(expected)
    for name in (key for key, value in row.items() if isinstance(value, (int, float))):
        assert row[name] == pytest.approx(expected[name], rel=1e-6, nan_ok=True), name
    nothing = Prediction("a", "a", one.logits, torch.full_like(one.labels, -100))
    judgement = judge([nothing], NAMES)
    assert judgement.cases[0]["voxels"] == 0
    assert np.isnan(judgement.summary()["ece"])
    assert np.isnan(judgement.pooled()["ece"])


def test_another_number_of_classes_is_told(predictions):
    with pytest.raises(
        ValueError, match=r"patient001_ED: got logits \(4, .*expected \(3, .*3 classes \(background, a, b\)"
    ):
        judge(predictions, ("background", "a", "b"))


@pytest.mark.parametrize("column", columns() + columns(scaled=True))
def test_every_column_has_its_row_in_the_table(column):
    region, metric = metric_of(column)
    assert region == {"_fg": "foreground", "_boundary": "boundary"}.get(column[column.rfind("_") :], "all")
    assert metric.title
    assert metric in METRICS.values()


def test_a_judgement_is_saved_and_loaded_whole(predictions, tmp_path):
    judgement = judge(predictions, NAMES, scale=fit_temperature(predictions))
    judgement.cases[0]["group"] = "NA"  # a name, not a missing one
    judgement.cases[1]["group"] = None
    judgement.cases[2]["hd95_RV"] = float("inf")
    judgement.cases[3]["dsc_LV"] = float("nan")
    judgement.save(tmp_path, "-best")
    loaded = Judgement.load(tmp_path, "-best")
    assert loaded.class_names == NAMES
    pd.testing.assert_frame_equal(pd.DataFrame(loaded.cases), pd.DataFrame(judgement.cases), check_dtype=False)
    assert loaded.cases[1]["group"] is None
    assert loaded.summary() == pytest.approx(judgement.summary(), rel=1e-12, nan_ok=True)
    assert loaded.pooled() == judgement.pooled()
    pd.testing.assert_frame_equal(loaded.histograms(), judgement.histograms())


def test_distances_are_counted_without_the_winner():
    logits = torch.tensor([[0.0, 0.0, 3.0, 100.0], [5.0, 4.9, 0.0, 5.0]])  # two voxels, the second with a tie
    distances = logit_distances(logits)
    counts = distance_counts(distances)
    assert counts.sum() == 2 * 3
    where = {float(DISTANCE_EDGES[bin]): int(n) for bin, n in enumerate(counts) if n}
    assert where == {0.0: 2, 5.0: 1, 19.75: 3}
    assert distance_counts(distances[1:]).sum() == 3


def test_histograms_hold_what_was_counted(predictions):
    judgement = judge(predictions, NAMES, columns(surface=False))
    table = judgement.histograms()
    logits = torch.cat([p.logits.flatten(1) for p in predictions], 1).T
    labels = torch.cat([p.labels.flatten() for p in predictions])
    values = logit_distances(logits)[labels > 0].sort(1)[0][:, 1:]
    expected, _ = np.histogram(values.numpy(), DISTANCE_EDGES)
    rows = table[(table["region"] == "foreground") & (table["kind"] == "distance")]
    np.testing.assert_array_equal(rows["count"], expected)
    confidence = table[(table["region"] == "all") & (table["kind"] == "confidence")]
    assert confidence["count"].sum() == labels.numel()
    gap = (confidence["confidence"] - confidence["accuracy"]).abs() * confidence["count"]
    assert gap.sum() / labels.numel() == pytest.approx(judgement.pooled()["ece"])
