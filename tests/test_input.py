"""One door for input: losses, metrics and post-hoc scaling take the same, refuse the same and say the same."""

import re
import shutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mbls.losses
from mbls.constraints import (
    calibration_map,
    confidence_at_margin,
    linear_penalty,
    logit_distances,
    margin_calibration_map,
    margin_penalty,
)
from mbls.losses import (
    LOSSES,
    AlphaSchedule,
    EntropyPenaltyLoss,
    FocalLoss,
    HardL1ACELoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SoftL1ACELoss,
    SVLSLoss,
    WithDice,
    WithL1ACE,
    build_loss,
)
from mbls.metrics import (
    CalibrationBins,
    adaptive_calibration_error,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    region_mask,
    segmentation_scores,
)
from mbls.posthoc import TemperatureScaling

K = 3
METRICS = {
    metric.__name__: metric
    for metric in (
        expected_calibration_error,
        classwise_calibration_error,
        adaptive_calibration_error,
        brier_score,
        negative_log_likelihood,
    )
}


def count(probs, target, mask=None):
    return CalibrationBins(K).update(probs, target, mask).cece()


def fit(logits, target, mask=None):
    return TemperatureScaling().fit(logits, target, mask).temperature


#: What takes a mask: name of the scores, and the function of scores, target and mask.
MASKED = {
    "bins": ("probs", count),
    "temperature": ("logits", fit),
    **{name: ("probs", lambda p, t, m=None, metric=metric: metric(p, t, mask=m)) for name, metric in METRICS.items()},
}
TAKERS = {name: ("logits", build_loss(name, K)) for name in LOSSES} | MASKED


def make_input(scores_name="logits", shape=(2, K, 8, 8)):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(shape, generator=generator)
    rows = logits.softmax(1).movedim(1, -1).flatten(0, -2)
    target = torch.multinomial(rows, 1, generator=generator).view(shape[0], *shape[2:])
    return logits if scores_name == "logits" else logits.softmax(1), target


def test_losses_alone_need_torch_only(tmp_path):
    shutil.copy(mbls.losses.__file__, tmp_path / "copied.py")
    code = "import sys, copied; copied.MbLSLoss(margin=5); print(sorted(n for n in sys.modules if 'mbls' in n))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "change",
    [
        lambda target: target.unsqueeze(1),
        lambda target: target.to(torch.uint8),
        lambda target: target.to(torch.uint16),
        lambda target: target.float(),
        lambda target: target.double().unsqueeze(1),
        lambda target: target.half(),
    ],
    ids=["channel", "uint8", "uint16", "float32", "float64_channel", "float16"],
)
@pytest.mark.parametrize("name", sorted(TAKERS))
def test_labels_of_every_form_are_the_same_labels(name, change):
    scores_name, take = TAKERS[name]
    scores, target = make_input(scores_name)
    assert float(take(scores, change(target))) == float(take(scores, target))


@pytest.mark.parametrize("name", sorted(set(TAKERS) - {"svls", "nacl"}))
def test_rows_slices_and_volumes(name):
    scores_name, take = TAKERS[name]
    for shape in [(30, K), (2, K, 15), (1, K, 5, 6), (1, K, 2, 3, 5)]:
        if "dice" in name and len(shape) == 2:  # MONAI's Dice has no value without spatial dimensions
            continue
        scores, target = make_input(scores_name, shape)
        assert float(take(scores, target.unsqueeze(1))) == float(take(scores, target))


@pytest.mark.parametrize("name", sorted(MASKED))
def test_masks_of_both_forms(name):
    scores_name, take = MASKED[name]
    scores, target = make_input(scores_name)
    mask = target != 1
    assert take(scores, target, mask) == take(scores, target, mask.unsqueeze(1)) != take(scores, target)
    rows = scores.movedim(1, -1)[mask]
    assert take(scores, target, mask) == pytest.approx(take(rows, target[mask]), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: (s.numpy(), t), "{name}: got a numpy.ndarray, expected a torch.Tensor"),
        (lambda s, t: ({"out": s}, t), "{name}: got a builtins.dict, expected a torch.Tensor"),
        (lambda s, t: ([s], t), "{name}: got a builtins.list, expected a torch.Tensor"),
        (lambda s, t: (s, t.numpy()), "target: got a numpy.ndarray, expected a torch.Tensor"),
        (lambda s, t: (s, None), "target: got a builtins.NoneType, expected a torch.Tensor"),
        (lambda s, t: (s.long(), t), "{name}: got shape (2, 3, 8, 8) of torch.int64, expected floating point (B, K,"),
        (lambda s, t: (s[:, 0], t), "target: got shape (2, 8, 8), expected (2, 8) or a channel of size 1 after the "),
        (lambda s, t: (s[:, :1], t), "{name}: got 1 class (dimension 1 of (2, 1, 8, 8)), expected at least 2"),
        (lambda s, t: (s, t[:, 1:]), "expected (2, 8, 8) or a channel of size 1 after the batch, for {name} of shape"),
        (lambda s, t: (s, F.one_hot(t, K).movedim(-1, 1)), "one-hot labels want an argmax over their channels"),
        (lambda s, t: (s, t > 0), "target: got torch.bool, expected class labels, integers or whole-numbered floats"),
        (lambda s, t: (s, t.cfloat()), "target: got torch.complex64, expected class labels"),
        (lambda s, t: (s, t.float() + 2**-20), "128 voxels with a fraction), expected whole numbers"),
        (lambda s, t: (s, t * torch.nan), "target: got label nan (128 voxels with a fraction), expected whole numbers"),
        (lambda s, t: (s, t - torch.inf), "target: got label -inf (128 voxels with a fraction), expected whole"),
        (lambda s, t: (s, t.masked_fill(t == 2, 7)), "target: got label 7"),
        (lambda s, t: (s, t.masked_fill(t == 2, 7)), ", expected 0..2"),
        (lambda s, t: (s, t.to("meta")), "target: got device meta, expected cpu like {name}"),
    ],
)
@pytest.mark.parametrize("name", sorted(TAKERS))
def test_wrong_input_is_told_in_the_same_words(name, change, message):
    scores_name, take = TAKERS[name]
    with pytest.raises(ValueError, match=re.escape(message.format(name=scores_name))):
        take(*change(*make_input(scores_name)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask.long(), "mask: got torch.int64, expected torch.bool, True where a voxel counts"),
        (lambda mask: mask.float(), "mask: got torch.float32, expected torch.bool"),
        (lambda mask: mask.numpy(), "mask: got a numpy.ndarray, expected a torch.Tensor"),
        (lambda mask: mask.transpose(0, 1), "mask: got shape (8, 2, 8), expected (2, 8, 8) or a channel of size 1"),
        (lambda mask: mask.unsqueeze(1).expand(2, K, 8, 8), "mask: got shape (2, 3, 8, 8), expected (2, 8, 8)"),
        (lambda mask: mask.to("meta"), "mask: got device meta, expected cpu like"),
    ],
)
@pytest.mark.parametrize("name", sorted(MASKED))
def test_a_wrong_mask_is_told_in_the_same_words(name, change, message):
    scores_name, take = MASKED[name]
    scores, target = make_input(scores_name)
    with pytest.raises(ValueError, match=re.escape(message)):
        take(scores, target, change(target != 1))


def test_labels_slightly_off_are_shown_in_full():
    logits, target = make_input()
    with pytest.raises(ValueError, match=r"target: got label 1\.0000001\d* \(1 voxels with a fraction\)"):
        MbLSLoss()(logits, torch.where(torch.arange(128).view(2, 8, 8) == 5, torch.tensor(1.0000001), target.float()))


def test_nacl_says_that_it_has_no_ignored_voxels():
    logits, target = make_input()
    target[0, 0] = -100
    for loss in (NACLLoss(K), WithDice(NACLLoss(K)), WithL1ACE(NACLLoss(K))):
        with pytest.raises(ValueError, match=r"target: got label -100 \(8 voxels .*, expected 0..2, and no ignored"):
            loss(logits, target)


# MONAI's tensors.


@pytest.mark.parametrize("name", sorted(TAKERS))
def test_monais_tensors_are_the_tensors_they_hold(name):
    from monai.data import MetaTensor

    scores_name, take = TAKERS[name]
    scores, target = make_input(scores_name)
    results = []
    for kind in (torch.as_tensor, MetaTensor):
        values = scores.clone().requires_grad_()
        if name in LOSSES:
            value = take(kind(values), kind(target))
            value.backward()
            assert float(value.detach()) == float(take(scores, target))
        with torch.no_grad():
            value = float(take(kind(values), kind(target)))
        results.append((value, values.grad))
    assert results[0][0] == results[1][0]
    if name in LOSSES:
        assert torch.equal(torch.as_tensor(results[1][1]), results[0][1])


def test_monais_tensors_as_masks_regions_and_in_what_is_kept():
    from monai.data import MetaTensor

    probs, target = make_input("probs")
    for region in ("all", "foreground", "dilated", "boundary"):
        mask = region_mask(MetaTensor(target), region)
        assert torch.equal(torch.as_tensor(mask), region_mask(target, region))
        bins = CalibrationBins(K).update(MetaTensor(probs), MetaTensor(target), mask)
        assert {type(part) for part in bins.state_dict().values()} == {torch.Tensor}
        assert bins.ece() == expected_calibration_error(probs, target, mask=region_mask(target, region))
    kept = TemperatureScaling().fit(MetaTensor(probs.log()), MetaTensor(target), MetaTensor(target) > 0).state_dict()
    assert type(kept["temperature"]) is float
    scores = segmentation_scores(MetaTensor(target[0]), MetaTensor(target[1]), K)
    assert scores == segmentation_scores(target[0], target[1], K)
    assert torch.equal(torch.as_tensor(logit_distances(MetaTensor(probs))), logit_distances(probs))


# Ignored voxels: whatever stands in them.


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"nacl"}))
def test_a_bad_logit_at_an_ignored_voxel_changes_nothing(name, bad):
    logits, target = make_input()
    target[0, :2] = -100
    loss = build_loss(name, K)
    results = []
    for change in (0.0, bad):
        values = logits.clone()
        values[0, 1, 0, :3] = change
        values.requires_grad_()
        value = loss(values, target)
        value.backward()
        results.append((float(value.detach()), values.grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert (results[1][1][0, :, :2] == 0).all()


@pytest.mark.parametrize("loss", [HardL1ACELoss(), SoftL1ACELoss()])
def test_l1_ace_of_rows_is_that_of_one_sample(loss):
    logits, target = make_input(shape=(30, K))
    target[::4] = -100
    assert loss(logits, target) == loss(logits.T.unsqueeze(0), target.unsqueeze(0))


@pytest.mark.parametrize("loss", [HardL1ACELoss(), SoftL1ACELoss()])
def test_l1_ace_alone_tells_of_nan(loss):
    logits, target = make_input()
    logits[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="logits: got 1 NaN or infinite values of 384, expected finite logits"):
        loss(logits, target)


@pytest.mark.parametrize("loss", [HardL1ACELoss(), SoftL1ACELoss()])
def test_a_bad_logit_at_an_ignored_voxel_changes_no_l1_ace(loss):
    logits, target = make_input()
    target[0, :2] = -100
    expected = float(loss(logits, target))
    logits[0, 1, 0, :3] = torch.nan
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert float(value.detach()) == expected
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [*(build_loss(name, K) for name in LOSSES), HardL1ACELoss(), SoftL1ACELoss()])
@pytest.mark.parametrize("places", [(0, 1, 0, 0), (1, slice(None), 3, 4), (slice(None), 2)])
def test_where_nobody_looks_a_nan_logit_still_makes_the_loss_nan(loss, places, monkeypatch):
    """As on a GPU, where the loss does not look at its value: the mean over the epoch is then NaN, and fit says so."""
    monkeypatch.setattr("mbls.losses._raise_if_not_finite", lambda loss, logits: None)
    logits, target = make_input()
    logits[places] = torch.nan
    assert loss(logits, target).isnan()


# Regions and overlap.


@pytest.mark.parametrize("shape", [(2, 9, 11), (2, 4, 9, 11)], ids=["slices", "volumes"])
@pytest.mark.parametrize("region", ["all", "foreground", "dilated", "boundary"])
def test_regions_take_a_channel_and_every_type_of_label(region, shape):
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(shape, generator=generator) > 0.97).long() * torch.randint(1, 3, shape, generator=generator)
    expected = region_mask(target, region)
    for kind in (torch.uint8, torch.uint16, torch.int16, torch.float32, torch.float64):
        assert torch.equal(region_mask(target.to(kind), region), expected)
    assert torch.equal(region_mask(target.unsqueeze(1), region), expected.unsqueeze(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: region_mask(t.numpy(), "boundary"), "target: got a numpy.ndarray, expected a torch.Tensor"),
        (lambda t: region_mask(t > 0, "boundary"), "target: got torch.bool, expected class labels"),
        (lambda t: region_mask(t + 0.5, "boundary"), "voxels with a fraction), expected whole numbers"),
        (lambda t: region_mask(t.view(2, 8, 1, 2, 4), "boundary"), "target: got shape (2, 8, 1, 2, 4), expected (B, H"),
        (lambda t: segmentation_scores(t[0].numpy(), t[0], K), "prediction: got a numpy.ndarray, expected a torch."),
        (lambda t: segmentation_scores(t[0], t[0] + 0.5, K), "voxels with a fraction), expected whole numbers"),
        (lambda t: segmentation_scores(t[0].to("meta"), t[0], K), "prediction: got device meta, expected cpu like"),
        (lambda t: segmentation_scores(t[0].byte() + 254, t[0], K), "prediction: got label 25"),
        (lambda t: segmentation_scores(t[0], t[0], K, (1.0, np.nan)), "spacing: got nan, expected a finite number > 0"),
        (lambda t: segmentation_scores(t[0], t[0], K, (1.0, 0.0)), "spacing: got 0.0, expected a finite number > 0"),
        (lambda t: logit_distances(t.numpy()), "logits: got a numpy.ndarray, expected a torch.Tensor"),
        (lambda t: margin_calibration_map(np.ones((1, 2)), 1.0, 0.1), "probs: got a numpy.ndarray, expected a torch."),
        (
            lambda t: CalibrationBins(K).load_state_dict({"count": np.zeros((4, 15))}),
            "state['count']: got a numpy.ndarray, expected a torch.Tensor",
        ),
    ],
)
def test_wrong_labels_beside_the_losses_and_metrics(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(make_input()[1])


# Options.

#: A function of one option; the name of the option; a good value; whether it is a whole number.
OPTIONS = [
    (lambda x: MbLSLoss(margin=x).margin, "margin", 5, False),
    (lambda x: MbLSLoss(alpha=x).alpha, "alpha", 0.5, False),
    (lambda x: LabelSmoothingLoss(x).alpha, "alpha", 0.5, False),
    (lambda x: FocalLoss(x).gamma, "gamma", 2, False),
    (lambda x: EntropyPenaltyLoss(x).alpha, "alpha", 0.5, False),
    (lambda x: NACLLoss(K, alpha=x).alpha, "alpha", 0.5, False),
    (lambda x: SVLSLoss(K, sigma=x).sigma, "sigma", 0.5, False),
    (lambda x: WithL1ACE(MbLSLoss(), weight=x).weight, "weight", 0.5, False),
    (lambda x: SoftL1ACELoss(empty_weight=x).empty_weight, "empty_weight", 0.5, False),
    (lambda x: AlphaSchedule(x).alpha, "alpha", 0.5, False),
    (lambda x: AlphaSchedule(0.1, step=x).step, "step", 0.5, False),
    (lambda x: AlphaSchedule(0.1, maximum=x).maximum, "maximum", 0.5, False),
    (lambda x: TemperatureScaling(x).temperature, "temperature", 0.5, False),
    (lambda x: build_loss("mbls", K, margin=x).margin, "margin", 5, False),
    (lambda x: confidence_at_margin(x, K), "margin", 5, False),
    (lambda x: margin_penalty(torch.zeros(1, 2), x).item(), "margin", 5, False),
    (lambda x: margin_calibration_map(torch.full((1, 2), 0.5), 1.0, x)[0, 0].item(), "alpha", 0.5, False),
    (lambda x: MbLSLoss(ignore_index=x).ignore_index, "ignore_index", 255, True),
    (lambda x: HardL1ACELoss(ignore_index=x).ignore_index, "ignore_index", 255, True),
    (lambda x: HardL1ACELoss(num_bins=x).num_bins, "num_bins", 15, True),
    (lambda x: SVLSLoss(x).num_classes, "num_classes", 4, True),
    (lambda x: NACLLoss(x).num_classes, "num_classes", 4, True),
    (lambda x: build_loss("svls", x).num_classes, "num_classes", 4, True),
    (lambda x: SVLSLoss(K, kernel_size=x).kernel_size, "kernel_size", 5, True),
    (lambda x: SVLSLoss(K, spatial_dims=x).spatial_dims, "spatial_dims", 3, True),
    (lambda x: AlphaSchedule(0.1, every=x).every, "every", 3, True),
    (lambda x: AlphaSchedule(0.1, "add", 1)(x), "epoch", 3, True),
    (lambda x: CalibrationBins(x).num_classes, "num_classes", 4, True),
    (lambda x: CalibrationBins(K, num_bins=x).num_bins, "num_bins", 15, True),
    (lambda x: CalibrationBins(K, ignore_index=x).ignore_index, "ignore_index", 255, True),
    (lambda x: adaptive_calibration_error(*make_input("probs"), num_bins=x), "num_bins", 15, True),
    (lambda x: expected_calibration_error(*make_input("probs"), num_bins=x), "num_bins", 15, True),
    (lambda x: int(region_mask(make_input()[1], "boundary", x).sum()), "radius", 2, True),
    (
        lambda x: CalibrationBins(K).update(*make_input("probs")).reliability(x).count.sum().item(),
        "class_index",
        1,
        True,
    ),
    (lambda x: segmentation_scores(*make_input()[1], x)["dsc"][0], "num_classes", K, True),
    (lambda x: confidence_at_margin(5.0, x), "num_classes", 4, True),
    (
        lambda x: calibration_map(MbLSLoss(reduction="none"), torch.full((1, 2), 0.5), x)[0, 0].item(),
        "iterations",
        3,
        True,
    ),
]
IDS = [f"{place}_{option[1]}" for place, option in enumerate(OPTIONS)]


@pytest.mark.parametrize(("use", "name", "value", "whole"), OPTIONS, ids=IDS)
def test_numbers_of_numpy_and_torch_become_pythons_own(use, name, value, whole):
    kinds = [np.int64, np.uint8, np.array, torch.tensor] if whole else [np.float32, np.float64, np.array, torch.tensor]
    for kind in kinds:
        kept = use(kind(value))
        assert kept == use(value)
        assert type(kept) in (int, float)


@pytest.mark.parametrize(("use", "name", "value", "whole"), OPTIONS, ids=IDS)
def test_what_is_no_such_number_is_refused_by_name(use, name, value, whole):
    parameter = torch.nn.Parameter(torch.tensor(0.5))
    bad = ["x", None, True, 1j, [value], np.array([value, value]), torch.tensor([value]), parameter, np.float32("nan")]
    if name in ("ignore_index", "radius", "class_index"):  # None is theirs
        bad.remove(None)
    for given in [*bad, *([float(value), np.float64(value), Fraction(1, 2)] if whole else [np.inf, 10**400])]:
        with pytest.raises(ValueError, match=rf"^{name}: got "):
            use(given)


def test_other_numbers_are_kept_as_floats_too():
    assert repr(MbLSLoss(margin=Fraction(5, 2), alpha=np.float64(0.1))) == "MbLSLoss(margin=2.5, alpha=0.1, norm='l1')"
    loss = MbLSLoss(margin=torch.tensor(5), norm=np.str_("l1"), reduction=np.str_("mean"), ignore_index=np.int8(-1))
    assert repr(loss) == "MbLSLoss(margin=5.0, alpha=0.1, norm='l1', ignore_index=-1)"
    assert {type(loss.norm), type(loss.reduction)} == {str}


@pytest.mark.parametrize("word", [None, 1, np.array(["l1", "l2"]), torch.tensor([1, 2])])
def test_what_is_no_word_is_refused_by_name(word):
    for use, name in [
        (lambda: MbLSLoss(norm=word), "norm"),
        (lambda: MbLSLoss(reduction=word), "reduction"),
        (lambda: WithL1ACE(MbLSLoss(), bins=word), "bins"),
        (lambda: AlphaSchedule(0.1, word), "mode"),
        (lambda: region_mask(torch.zeros(1, 2, 2, dtype=torch.long), word), "region"),
        (lambda: CalibrationBins(2).classwise(word), "name"),
    ]:
        with pytest.raises(ValueError, match=rf"^{name}: got "):
            use()


def test_linear_penalty_still_is_the_margin_penalty_at_zero():
    logits, _ = make_input()
    assert torch.equal(linear_penalty(logits), margin_penalty(logits, np.float32(0)))
