"""Predictions: made a case at a time, kept without loss of what is studied, and judged again without the network."""

import json

import numpy as np
import pytest
import torch

from mbls.data.slices import SliceDataset
from mbls.engine.judge import judge
from mbls.engine.predict import Prediction, fit_temperature, keep, predict, read_kept, write_index
from mbls.networks.unet import UNet

NAMES = ("background", "organ", "tumour")


def make_prediction(name="a", scale=4.0, shape=(3, 24, 24), seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, shape, generator=generator)
    logits = scale * torch.randn(3, *shape, generator=generator)
    logits.scatter_add_(0, labels.unsqueeze(0), torch.full((1, *shape), scale))
    return Prediction(name, "someone", logits, labels, (2.0, 1.0, 1.0), "ill")


def test_predictions_are_the_networks_logits_case_by_case(phantom):
    data = SliceDataset(phantom.first(1), size=32, crop=128)
    torch.manual_seed(0)
    network = UNet(4, base_channels=4, levels=3, norm="batch").train()
    first, second = predict(network, data)
    assert not network.training
    assert (first.id, second.id, first.subject, first.group) == ("patient001_ED", "patient001_ES", "patient001", "NOR")
    with torch.inference_mode():
        expected = network(data.images[: data.volumes[0].stop])
    torch.testing.assert_close(first.logits, expected.movedim(1, 0))
    assert torch.equal(first.labels, data.labels[: data.volumes[0].stop].long())
    assert first.spacing == data.volumes[0].spacing


@pytest.mark.parametrize("scale", [0.1, 4.0, 16.0])
def test_kept_predictions_give_the_same_figures(tmp_path, scale):
    made = [make_prediction(name, scale, seed=seed) for seed, name in enumerate("ab")]
    assert list(keep(made, tmp_path)) == made
    write_index(tmp_path, "Belly", NAMES, ["a", "b"])
    kept = read_kept(tmp_path)
    assert (kept.name, kept.class_names, len(kept)) == ("Belly", NAMES, 2)
    (first, _), (again, _) = made, kept
    assert (again.id, again.subject, again.group, again.spacing) == (first.id, first.subject, "ill", first.spacing)
    before, after = judge(made, NAMES).summary(), judge(kept, NAMES).summary()
    for name in ("dsc", "hd95", "asd"):
        assert after[name] == before[name]
    for name in ("ece", "cece", "nll", "mean_distance", "ece_fg", "nll_fg"):
        assert after[name] == pytest.approx(before[name], rel=1e-3), name
    assert fit_temperature(kept).temperature == pytest.approx(fit_temperature(made).temperature, rel=1e-3)


def test_the_winner_is_the_first_of_equal_logits():
    logits = torch.tensor([[[1.0, 0.0, 2.0, -1.0]], [[1.0, 3.0, 2.0, -2.0]], [[0.0, 3.0, 2.0, -1.0]]])
    prediction = Prediction("a", "a", logits.requires_grad_(), torch.zeros(1, 4, dtype=torch.int64))
    assert prediction.winner.tolist() == [[0, 1, 0, 0]]
    assert prediction.winner.equal(logits.argmax(0))
    assert prediction.confidence.equal(logits.detach().softmax(0).amax(0))


def test_rounding_never_changes_the_winner(tmp_path):
    """Logits closer than float16 can tell apart, with the winner anywhere among the classes."""
    logits = torch.full((3, 1, 6, 6), 5.0)
    winner = torch.arange(36).reshape(1, 6, 6) % 3
    logits.scatter_add_(0, winner.unsqueeze(0), torch.full((1, 1, 6, 6), 1e-6))
    list(keep([Prediction("a", "a", logits, winner)], tmp_path))
    write_index(tmp_path, "Belly", NAMES, ["a"])
    (again,) = read_kept(tmp_path)
    assert torch.equal(again.logits.argmax(0), logits.argmax(0))
    assert torch.equal(logits.argmax(0), winner)


def test_ignored_voxels_are_kept_and_not_fitted(tmp_path):
    prediction = make_prediction()
    half = prediction.labels.clone()
    half[:, :12] = -100
    list(keep([Prediction("a", "a", prediction.logits, half)], tmp_path))
    write_index(tmp_path, "Belly", NAMES, ["a"])
    (again,) = read_kept(tmp_path)
    assert torch.equal(again.labels, half)
    cut = Prediction("a", "a", prediction.logits[:, :, 12:], prediction.labels[:, 12:])
    assert fit_temperature([again]).temperature == pytest.approx(fit_temperature([cut]).temperature, rel=1e-3)


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"predictions\.json: missing"):
        read_kept(tmp_path)
    list(keep([make_prediction()], tmp_path))
    write_index(tmp_path, "Belly", NAMES[:2], ["a"])
    with pytest.raises(ValueError, match=r"a\.npz: got log_probs \(3, 3, 24, 24\) of float16, expected float16 \(2,"):
        list(read_kept(tmp_path))
    write_index(tmp_path, "Belly", NAMES, ["a", "b"])
    with pytest.raises(FileNotFoundError, match=r"b\.npz: missing"):
        list(read_kept(tmp_path))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"a\.npz: cannot be read as npz"):
        next(iter(read_kept(tmp_path)))
    (tmp_path / "predictions.json").write_text(json.dumps({"data": "Belly"}))
    for damage in (r"predictions\.json: cannot be read \(KeyError", r"predictions\.json: cannot be read as JSON"):
        with pytest.raises(ValueError, match=damage) as error:
            read_kept(tmp_path)
        assert str(error.value).count("predictions.json") == 1
        (tmp_path / "predictions.json").write_text("{")


def test_nothing_is_written_in_halves(tmp_path, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(keep([make_prediction()], tmp_path))
    assert list(tmp_path.iterdir()) == []
