"""Losses: values against their formulas, gradients, reductions, precision, and what bad input is told."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from no_float64 import device_without_float64

from mbls.losses import (
    LOSSES,
    AlphaSchedule,
    CrossEntropyLoss,
    EntropyPenaltyLoss,
    FocalLoss,
    HardL1ACELoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SoftL1ACELoss,
    SVLSLoss,
    VoxelLoss,
    WithDice,
    WithL1ACE,
    build_loss,
    loss_name,
    parse_loss,
)

K = 4
PER_VOXEL = {
    "ce": CrossEntropyLoss,
    "ls": LabelSmoothingLoss,
    "fl": FocalLoss,
    "ecp": EntropyPenaltyLoss,
    "mbls": lambda **options: MbLSLoss(margin=1.5, **options),
    "mbls_l2": lambda **options: MbLSLoss(margin=1.5, norm="l2", **options),
    "svls": lambda **options: SVLSLoss(K, **options),
}


def make_batch(shape=(2, K, 6, 5), dtype=torch.float32, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits.to(dtype), target


def by_hand(name, row, label):
    """One voxel, straight from the formulas, in plain Python."""
    total = sum(math.exp(value) for value in row)
    s = [math.exp(value) / total for value in row]
    excess = [max(0.0, max(row) - value - 1.5) for value in row]
    ce = -math.log(s[label])
    return {
        "ce": ce,
        "ls": 0.9 * ce + 0.1 * sum(-math.log(p) for p in s) / len(s),
        "fl": (1 - s[label]) ** 3 * ce,
        "ecp": ce - 0.1 * sum(-p * math.log(p) for p in s),
        "mbls": ce + 0.1 * sum(excess) / len(s),
        "mbls_l2": ce + 0.1 * sum(value**2 for value in excess) / len(s),
    }[name]


@pytest.mark.parametrize("name", ["ce", "ls", "fl", "ecp", "mbls", "mbls_l2"])
def test_value_is_the_formula(name):
    logits, target = make_batch(dtype=torch.float64)
    values = PER_VOXEL[name](reduction="none")(logits, target)
    rows = logits.movedim(1, -1).flatten(0, -2).tolist()
    expected = [by_hand(name, row, label) for row, label in zip(rows, target.flatten().tolist(), strict=True)]
    torch.testing.assert_close(values.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_cross_entropy_and_label_smoothing_are_torchs():
    logits, target = make_batch()
    torch.testing.assert_close(CrossEntropyLoss()(logits, target), F.cross_entropy(logits, target))
    torch.testing.assert_close(
        LabelSmoothingLoss(0.2)(logits, target), F.cross_entropy(logits, target, label_smoothing=0.2)
    )


def test_special_cases_reduce_to_cross_entropy():
    logits, target = make_batch(dtype=torch.float64)
    expected = F.cross_entropy(logits, target)
    same = (LabelSmoothingLoss(0), FocalLoss(0), EntropyPenaltyLoss(0), MbLSLoss(alpha=0), MbLSLoss(margin=1e6))
    for loss in same:
        torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize("shape", [(2, K, 3, 2), (1, K, 2, 2, 2)], ids=["2d", "3d"])
@pytest.mark.parametrize("name", sorted(PER_VOXEL))
def test_gradcheck(name, shape):
    logits, target = make_batch(shape, torch.float64)
    loss = SVLSLoss(K, spatial_dims=len(shape) - 2) if name == "svls" else PER_VOXEL[name]()
    assert torch.autograd.gradcheck(lambda values: loss(values, target), logits.requires_grad_())


@pytest.mark.parametrize("loss", [WithDice(CrossEntropyLoss()), WithDice(MbLSLoss(1.0))], ids=["ce_dice", "mbls_dice"])
def test_gradcheck_with_dice(loss):
    logits, target = make_batch((2, K, 3, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda values: loss(values, target), logits.requires_grad_())


def test_gradient_of_nacl_in_a_random_direction():
    # NACLLoss computes in float32 here, where gradcheck does not apply: one directional difference instead.
    logits, target = make_batch((1, K, 4, 4))
    loss = NACLLoss(K)
    logits.requires_grad_()
    loss(logits, target).backward()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (loss(logits + 1e-2 * direction, target) - loss(logits - 1e-2 * direction, target)) / 2e-2
    assert (logits.grad * direction).sum().item() == pytest.approx(difference.item(), rel=1e-2)


@pytest.mark.parametrize("name", sorted(PER_VOXEL))
def test_reductions_and_ignore_index(name):
    logits, target = make_batch((3, K, 8, 8))
    target[:, :2] = 255
    options = {"ignore_index": 255}
    values = PER_VOXEL[name](reduction="none", **options)(logits, target)
    assert values.shape == target.shape
    assert (values[:, :2] == 0).all()
    assert (values[:, 2:] != 0).any()
    torch.testing.assert_close(PER_VOXEL[name](reduction="sum", **options)(logits, target), values.sum())
    torch.testing.assert_close(PER_VOXEL[name](**options)(logits, target), values.sum() / (target != 255).sum())


@pytest.mark.parametrize("name", sorted(PER_VOXEL))
def test_ignored_voxels_have_no_gradient_and_do_not_matter(name):
    logits, target = make_batch((1, K, 6, 6))
    target[:, 0] = -100
    logits.requires_grad_()
    loss = PER_VOXEL[name]()
    loss(logits, target).backward()
    assert (logits.grad[:, :, 0] == 0).all()
    changed = logits.detach().clone()
    changed[:, :, 0] += 7
    torch.testing.assert_close(loss(changed, target), loss(logits, target).detach())


@pytest.mark.parametrize("name", sorted(PER_VOXEL))
def test_all_ignored_is_zero_with_zero_gradient(name):
    logits, _ = make_batch()
    logits.requires_grad_()
    value = PER_VOXEL[name]()(logits, torch.full((2, 6, 5), -100))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_target_may_carry_a_channel(name):
    logits, target = make_batch()
    loss = build_loss(name, K)
    torch.testing.assert_close(loss(logits, target.unsqueeze(1).to(torch.uint8)), loss(logits, target))


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_reduced_in_float32(name, dtype):
    logits, target = make_batch((2, K, 16, 16), dtype)
    value = build_loss(name, K)(logits, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, build_loss(name, K)(logits.float(), target))


def test_autocast_does_not_lower_the_precision():
    logits, target = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = MbLSLoss(1.0)(logits, target)
    torch.testing.assert_close(value, MbLSLoss(1.0)(logits, target))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_svls_labels(spatial_dims):
    loss = SVLSLoss(2, spatial_dims=spatial_dims)
    target = torch.zeros((1, *[5] * spatial_dims), dtype=torch.long)
    centre = (0, *[2] * spatial_dims)
    target[centre] = 1
    soft = loss.smooth_labels(target)
    torch.testing.assert_close(soft.sum(1), torch.ones(target.shape))
    # The centre weighs as much as its neighbours together: half its label is kept, the other half goes to them.
    assert soft[(0, 1, *[2] * spatial_dims)].item() == pytest.approx(0.5)
    assert soft[0, 1].sum().item() == pytest.approx(1.0)
    assert soft[(0, 1, *[0] * spatial_dims)] == 0


def test_svls_on_a_constant_label_is_cross_entropy():
    logits, _ = make_batch()
    target = torch.full((2, 6, 5), 3)
    torch.testing.assert_close(SVLSLoss(K)(logits, target), F.cross_entropy(logits, target))


def test_svls_neighbours_of_ignored_voxels_are_renormalised():
    target = torch.tensor([[[0, -100, 1], [0, 0, 1], [0, 0, 1]]])
    soft = SVLSLoss(2).smooth_labels(target)
    torch.testing.assert_close(soft.sum(1), torch.ones(1, 3, 3))


def test_dice_is_monais():
    from monai.losses import DiceCELoss

    logits, target = make_batch()
    expected = DiceCELoss(softmax=True, to_onehot_y=True)(logits, target.unsqueeze(1))
    torch.testing.assert_close(WithDice(CrossEntropyLoss())(logits, target), expected)


@pytest.mark.parametrize("inner", [MbLSLoss(1.0, alpha=0.1), LabelSmoothingLoss(0.1), NACLLoss(K, alpha=0.1)])
def test_alpha_of_the_inner_loss_is_read_and_set_through_dice(inner):
    loss = WithDice(inner)
    logits, target = make_batch()
    dice = loss(logits, target) - inner(logits, target)
    assert loss.alpha == 0.1
    loss.alpha = 0.7
    assert loss.alpha == inner.alpha == 0.7
    torch.testing.assert_close(loss(logits, target), inner(logits, target) + dice)


def test_dice_with_a_loss_without_alpha_says_whose_it_would_be():
    loss = WithDice(CrossEntropyLoss())
    assert not hasattr(loss, "alpha")
    with pytest.raises(AttributeError, match="alpha: got the inner loss CrossEntropyLoss without one"):
        loss.alpha = 0.1
    with pytest.raises(AttributeError, match="alpha: got the inner loss CrossEntropyLoss without one"):
        _ = loss.alpha
    assert not hasattr(loss.loss, "alpha")
    with pytest.raises(AttributeError, match="no attribute 'beta'"):
        _ = loss.beta
    assert copy.deepcopy(WithDice(MbLSLoss(alpha=0.3))).alpha == 0.3


def test_dice_leaves_ignored_voxels_out():
    logits, target = make_batch((1, K, 8, 8))
    cut = WithDice(CrossEntropyLoss())(logits[:, :, 2:], target[:, 2:])
    target[:, :2] = -100
    torch.testing.assert_close(WithDice(CrossEntropyLoss())(logits, target), cut)


def l1_ace_by_hand(logits, target, num_bins=20, soft=False):
    """In plain loops: the gap of every sample, class and bin."""
    probs, total = logits.softmax(1).flatten(2), 0.0
    samples, classes, _ = probs.shape
    centres = [(b + 0.5) / num_bins for b in range(num_bins)]
    for sample in range(samples):
        labels = target[sample].flatten().tolist()
        for k in range(classes):
            bins = [[] for _ in range(num_bins)]  # (share, probability, hit)
            for p, label in zip(probs[sample, k].tolist(), labels, strict=True):
                hit = float(label == k)
                if not soft:
                    bins[min(int(p * num_bins), num_bins - 1)].append((1.0, p, hit))
                    continue
                for b, centre in enumerate(centres):
                    edge = (b == 0 and p < centre) or (b == num_bins - 1 and p > centre)
                    share = 1.0 if edge else max(0.0, 1 - abs(p - centre) * num_bins)
                    if share > 0:
                        bins[b].append((share, p, hit))
            weights = [sum(share for share, _, _ in found) for found in bins]
            gaps = [
                abs(sum(share * (p - hit) for share, p, hit in found)) / weight
                for found, weight in zip(bins, weights, strict=True)
                if weight >= (0.01 if soft else 1)
            ]
            total += sum(gaps) / len(gaps) if k in labels else 0.0
    return total / (samples * classes)


@pytest.mark.parametrize("shape", [(2, K, 12), (3, K, 6, 5), (1, K, 4, 3, 5)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("loss", [HardL1ACELoss(), SoftL1ACELoss()], ids=["hard", "soft"])
def test_l1_ace_is_the_gap_of_every_class_and_bin(loss, shape):
    logits, target = make_batch(shape, dtype=torch.float64)
    target[0][target[0] == 1] = 0  # a class that the first sample lacks
    expected = l1_ace_by_hand(logits, target, soft=isinstance(loss, SoftL1ACELoss))
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [HardL1ACELoss(), SoftL1ACELoss()], ids=["hard", "soft"])
def test_gradcheck_of_l1_ace(loss):
    logits, target = make_batch((2, K, 3, 2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())


@pytest.mark.parametrize("loss", [HardL1ACELoss(), SoftL1ACELoss()], ids=["hard", "soft"])
def test_l1_ace_of_saturated_and_of_perfect_predictions(loss):
    target = torch.tensor([[0, 1, 2, 3]])
    logits = F.one_hot(target, K).movedim(-1, 1) * 1e4
    assert loss(logits, target).item() == 0
    wrong = logits.roll(1, dims=2).requires_grad_()
    value = loss(wrong, target)
    value.backward()
    assert value.item() == pytest.approx((1 + 1 / 3) / 2)  # the voxel claimed, and one in three of the others
    assert wrong.grad.isfinite().all()


@pytest.mark.parametrize("bins", ["hard", "soft"])
def test_l1_ace_leaves_ignored_voxels_out(bins):
    loss = WithL1ACE(CrossEntropyLoss(ignore_index=7), bins=bins)
    logits, target = make_batch((1, K, 30))
    target[0, 20:] = 7
    cut = WithL1ACE(CrossEntropyLoss(), bins=bins)(logits[..., :20], target[:, :20])
    assert loss(logits, target).item() == pytest.approx(cut.item(), rel=1e-6)


def test_l1_ace_is_added_with_its_weight():
    logits, target = make_batch()
    inner = WithDice(MbLSLoss(1.0))
    loss = WithL1ACE(inner, weight=0.5, bins="soft")
    expected = inner(logits, target) + 0.5 * SoftL1ACELoss()(logits, target)
    assert loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)
    loss.alpha = 0.3
    assert inner.loss.alpha == 0.3
    assert build_loss("mbls_hard_l1ace:margin=5", K).loss.margin == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HardL1ACELoss(num_bins=0), "num_bins: got 0, expected a whole number >= 1"),
        (lambda: SoftL1ACELoss(empty_weight=0), "empty_weight: got 0, expected a finite number > 0"),
        (lambda: WithL1ACE(CrossEntropyLoss(), weight=-1), "weight: got -1, expected a finite number >= 0"),
        (lambda: WithL1ACE(CrossEntropyLoss(), bins="x"), 'bins: got \'x\', expected "hard" or "soft"'),
        (lambda: WithL1ACE(CrossEntropyLoss(reduction="sum")), "loss: got reduction='sum', expected \"mean\""),
    ],
)
def test_bad_options_of_l1_ace(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_nacl_is_monais():
    from monai.losses import NACLLoss as MonaiNACLLoss

    logits, target = make_batch()
    torch.testing.assert_close(build_loss("nacl", K)(logits, target), MonaiNACLLoss(K, 2)(logits, target))


def test_tied_logits_share_the_margins_gradient():
    logits = torch.tensor([[3.0, 3.0, 0.0]], requires_grad=True)
    (MbLSLoss(1.0, alpha=1.0)(logits, torch.tensor([0])) - CrossEntropyLoss()(logits, torch.tensor([0]))).backward()
    assert logits.grad[0].tolist() == pytest.approx([1 / 6, 1 / 6, -1 / 3], abs=1e-6)


# Soft labels.


def make_soft(shape=(2, K, 6, 5), dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(1).to(dtype)


def as_soft(target, dtype=torch.float32):
    return F.one_hot(target, K).movedim(-1, 1).to(dtype)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"nacl"}))
def test_one_hot_labels_are_labels(name):
    logits, target = make_batch(dtype=torch.float64)
    loss = build_loss(name, K)
    values, gradients = [], []
    for labels in (target, as_soft(target), as_soft(target, torch.float16)):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, labels)
        value.backward()
        values.append(value.detach())
        gradients.append(leaf.grad)
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        torch.testing.assert_close(value, values[0], rtol=1e-6, atol=1e-8)  # SVLS's labels and Dice are in float32
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-5, atol=1e-8)


def test_soft_labels_by_their_formulas():
    logits, _ = make_batch(dtype=torch.float64)
    q = make_soft(dtype=torch.float64)
    s, log_s = logits.softmax(1), logits.log_softmax(1)
    ce = -(q * log_s).sum(1)
    distances = logits.amax(1, keepdim=True) - logits
    expected = {
        "ce": ce,
        "ls": -((0.9 * q + 0.1 / K) * log_s).sum(1),
        "fl": -(q * (1 - s) ** 3 * log_s).sum(1),
        "ecp": ce + 0.1 * (s * log_s).sum(1),
        "mbls": ce + 0.1 * (distances - 1.5).clamp(min=0).mean(1),
        "mbls_l2": ce + 0.1 * (distances - 1.5).clamp(min=0).square().mean(1),
    }
    for name, values in expected.items():
        loss = PER_VOXEL[name](reduction="none")
        torch.testing.assert_close(loss(logits, q), values, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(PER_VOXEL[name]()(logits, q), values.mean(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(PER_VOXEL[name](reduction="sum")(logits, q), values.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(CrossEntropyLoss()(logits, q), F.cross_entropy(logits, q))
    torch.testing.assert_close(LabelSmoothingLoss(0.2)(logits, q), F.cross_entropy(logits, q, label_smoothing=0.2))


def test_soft_labels_are_smoothed_by_svls_as_labels_are():
    _, target = make_batch()
    loss = SVLSLoss(K)
    torch.testing.assert_close(loss.smooth_labels(as_soft(target)), loss.smooth_labels(target))
    mixed = 0.3 * as_soft(target) + 0.7 * as_soft(target.flip(1))
    parts = 0.3 * loss.smooth_labels(target) + 0.7 * loss.smooth_labels(target.flip(1))
    torch.testing.assert_close(loss.smooth_labels(mixed), parts)


@pytest.mark.parametrize("name", sorted(PER_VOXEL))
def test_gradcheck_of_soft_labels_and_weights(name):
    logits, target = make_batch((2, K, 3, 3), torch.float64)
    loss = PER_VOXEL[name](weight=[0.5, 1.0, 2.0, 0.0])
    for labels in (target, make_soft((2, K, 3, 3), torch.float64)):
        assert torch.autograd.gradcheck(lambda values, y=labels: loss(values, y), logits.clone().requires_grad_())


def test_rows_of_soft_labels():
    rows, q = make_batch((700, K))[0], make_soft((700, K))
    torch.testing.assert_close(MbLSLoss(alpha=0)(rows, q), F.cross_entropy(rows, q))
    hits = WithL1ACE(CrossEntropyLoss(), bins="soft")
    volume = hits(rows.T.unsqueeze(0), q.T.unsqueeze(0))
    torch.testing.assert_close(hits(rows, q), volume)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q * 2, r"target: got soft labels down to .* with sums off 1 by up to 1"),
        (lambda q: q - 0.5, "target: got soft labels down to -0"),
        (lambda q: q * torch.nan, "target: got soft labels down to nan"),
        (lambda q: q[:, :, :, :4], "target: got shape"),
    ],
)
def test_bad_soft_labels(change, message):
    with pytest.raises(ValueError, match=message):
        MbLSLoss()(make_batch()[0], change(make_soft()))


def test_nacl_takes_no_soft_labels():
    with pytest.raises(ValueError, match="one-hot labels want an argmax"):
        NACLLoss(K)(make_batch()[0], make_soft())


# Class weights.

WEIGHTS = [0.2, 1.0, 3.0, 0.5]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("labels", ["hard", "ignoring", "soft"])
def test_weights_are_torchs(labels, reduction):
    logits, target = make_batch(dtype=torch.float64)
    if labels == "ignoring":
        target[:, :2] = 255
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    options = {"weight": weight, "reduction": reduction, "ignore_index": 255}
    if labels == "soft":
        target = make_soft(dtype=torch.float64)
        del options["ignore_index"]  # torch has none there
    expected = F.cross_entropy(logits, target, **options)
    torch.testing.assert_close(CrossEntropyLoss(**options)(logits, target), expected, rtol=1e-6, atol=0)
    expected = F.cross_entropy(logits, target, label_smoothing=0.2, **options)
    torch.testing.assert_close(LabelSmoothingLoss(0.2, **options)(logits, target), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("labels", ["hard", "ignoring", "soft"])
@pytest.mark.parametrize("name", ["mbls", "mbls_l2", "ecp"])
def test_penalties_do_not_see_the_weights(name, labels):
    logits, target = make_batch(dtype=torch.float64)
    if labels == "ignoring":
        target[:, :2] = -100
    if labels == "soft":
        target = make_soft(dtype=torch.float64)
    penalty = PER_VOXEL[name]()(logits, target) - CrossEntropyLoss()(logits, target)
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    expected = F.cross_entropy(logits, target, weight=weight) + penalty
    torch.testing.assert_close(PER_VOXEL[name](weight=WEIGHTS)(logits, target), expected, rtol=1e-6, atol=0)


def test_weights_of_focal_loss():
    logits, target = make_batch(dtype=torch.float64)
    values, weight = FocalLoss(reduction="none")(logits, target), torch.tensor(WEIGHTS, dtype=torch.float64)[target]
    expected = (weight * values).sum() / weight.sum()
    torch.testing.assert_close(FocalLoss(weight=WEIGHTS)(logits, target), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", sorted(PER_VOXEL))
def test_weights_of_one_change_nothing_and_zero_ones_give_zero(name):
    logits, target = make_batch(dtype=torch.float64)
    loss = PER_VOXEL[name]()
    torch.testing.assert_close(PER_VOXEL[name](weight=torch.ones(K))(logits, target), loss(logits, target))
    logits.requires_grad_()
    value = PER_VOXEL[name](weight=[1.0, 0.0, 0.0, 0.0])(logits, torch.ones_like(target))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    if name in ("ce", "ls", "fl"):
        assert value == 0


def test_weights_are_shown_and_belong_to_no_checkpoint():
    loss = MbLSLoss(weight=torch.tensor([0.1, 1, 2]))
    assert repr(loss) == "MbLSLoss(margin=10.0, alpha=0.1, norm='l1', weight=[0.1, 1.0, 2.0])"
    assert loss.state_dict() == {}
    assert repr(WithDice(CrossEntropyLoss(weight=[1, 2]))).count("weight=[1.0, 2.0]") == 1


# One channel, and many that do not exclude each other.


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_channel_is_two_classes(norm, reduction):
    logits, _ = make_batch((2, 1, 6, 5), torch.float64, scale=6.0)
    target = torch.randint(2, (2, 6, 5), generator=torch.Generator().manual_seed(0))
    target[:, 0] = -100
    options = {"margin": 2.0, "alpha": 0.7, "norm": norm, "reduction": reduction}
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    expected = MbLSLoss(**options)(both, target)
    loss = MbLSLoss(sigmoid=True, **options)
    for form in (target, target.unsqueeze(1), target.float(), target.to(torch.int16).unsqueeze(1)):
        value = loss(logits, form)
        torch.testing.assert_close(value.squeeze(1) if reduction == "none" else value, expected)


def test_many_labels_at_once():
    logits, _ = make_batch((2, 3, 6, 5), torch.float64, scale=6.0)
    target = torch.rand((2, 3, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bce = F.binary_cross_entropy_with_logits(logits, target)
    penalty = 0.1 / 2 * (logits.abs() - 2).clamp(min=0).mean()
    torch.testing.assert_close(MbLSLoss(2.0, sigmoid=True)(logits, target), bce + penalty)
    hard = target > 0.5
    assert MbLSLoss(sigmoid=True)(logits, hard) == MbLSLoss(sigmoid=True)(logits, hard.long())
    gradients = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: MbLSLoss(2.0, sigmoid=True)(values, target), gradients)


@pytest.mark.parametrize("channels", [1, 3])
def test_ignored_answers_do_not_matter(channels):
    logits, _ = make_batch((2, channels, 4, 3))
    target = torch.randint(2, logits.shape, generator=torch.Generator().manual_seed(0))
    target[:, 0, 0] = 255
    for loss in (
        MbLSLoss(1.0, sigmoid=True, ignore_index=255),
        WithDice(MbLSLoss(1.0, sigmoid=True, ignore_index=255)),
    ):
        values = []
        for broken in (5.0, math.nan):
            leaf = logits.clone()
            leaf[:, 0, 0] = broken
            leaf.requires_grad_()
            values.append(loss(leaf, target))
            values[-1].backward()
            assert leaf.grad.isfinite().all()
            assert (leaf.grad[:, 0, 0] == 0).all()
        assert values[0] == values[1]


def test_dice_of_one_channel_is_monais():
    from monai.losses import DiceLoss

    logits, _ = make_batch((2, 1, 8, 8))
    target = torch.randint(2, logits.shape, generator=torch.Generator().manual_seed(0))
    inner = MbLSLoss(1.0, sigmoid=True)
    expected = inner(logits, target) + DiceLoss(sigmoid=True)(logits, target)
    torch.testing.assert_close(WithDice(inner)(logits, target), expected)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (
            torch.zeros(2, 3, 4),
            torch.zeros(2, 4),
            r"target: got shape \(2, 4\), expected \(2, 3, 4\), one channel of 0",
        ),
        (torch.zeros(2, 1, 4), torch.zeros(2, 5), r"target: got shape \(2, 5\), expected \(2, 1, 4\) or \(2, 4\)"),
        (
            torch.zeros(2, 1, 4),
            torch.full((2, 4), 2),
            r"target: got 2 \(8 values out of range\), expected 0..1 or ignore",
        ),
        (torch.zeros(2, 1, 4), torch.full((2, 4), torch.nan), r"target: got nan \(8 values"),
        (torch.zeros(2, 1, 4).long(), torch.zeros(2, 4), "logits: got shape"),
        (torch.full((2, 1, 4), torch.nan), torch.zeros(2, 4), "logits: got 8 NaN"),
    ],
)
def test_bad_input_of_sigmoid(logits, target, message):
    with pytest.raises(ValueError, match=message):
        MbLSLoss(sigmoid=True)(logits, target)


# What other people's data come in.

FORMS = {
    "labels": (lambda: MbLSLoss(1.0), lambda: make_batch()[1]),
    "float labels": (lambda: MbLSLoss(1.0), lambda: make_batch()[1].float()),
    "soft": (lambda: MbLSLoss(1.0), make_soft),
    "weighted": (lambda: MbLSLoss(1.0, weight=WEIGHTS), lambda: make_batch()[1]),
    "weighted soft": (lambda: LabelSmoothingLoss(weight=WEIGHTS), make_soft),
    "sigmoid": (lambda: MbLSLoss(1.0, sigmoid=True), lambda: (make_soft() > 0.3).long()),
    "dice": (lambda: WithDice(MbLSLoss(1.0)), make_soft),
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_monais_tensors_with_and_without_gradients(form):
    from monai.data import MetaTensor

    make, labels = FORMS[form]
    loss, target = make(), labels()
    logits = make_batch()[0].requires_grad_()
    value = loss(logits, target)
    (expected,) = torch.autograd.grad(value, logits)
    wrapped = MetaTensor(make_batch()[0]).requires_grad_()
    found = loss(wrapped, MetaTensor(target))
    (gradient,) = torch.autograd.grad(found, wrapped)
    assert float(found.detach()) == float(value.detach())
    assert torch.equal(torch.as_tensor(gradient), expected)
    with torch.no_grad():
        assert float(loss(MetaTensor(make_batch()[0]), MetaTensor(target))) == float(value.detach())


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_device_without_float64(form):
    make, labels = FORMS[form]
    loss, target, logits = make(), labels(), make_batch()[0]
    with torch.no_grad():
        expected = loss(logits, target)
        with device_without_float64() as device:
            found = loss(logits.to(device), target.to(device))
            assert found.device == device
            found = found.cpu()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"dice"}))
def test_deep_supervision_of_monai(form):
    """Outputs of several resolutions; MONAI brings the target, in floats, to each of them."""
    from monai.losses import DeepSupervisionLoss

    make, labels = FORMS[form]
    loss, target = make(), labels()
    if target.dim() == 3:
        target = target.unsqueeze(1)
    target = target.float()
    logits = make_batch()[0].requires_grad_()
    small = logits[:, :, ::2, ::2].detach().clone().requires_grad_()
    value = DeepSupervisionLoss(loss, weight_mode="exp")([logits, small], target)
    value.backward()
    nearest = F.interpolate(target, size=small.shape[2:], mode="nearest-exact")
    torch.testing.assert_close(value, loss(logits, target) + 0.5 * loss(small, nearest))
    assert small.grad.abs().sum() > 0


@pytest.mark.parametrize("form", ["soft", "weighted", "weighted soft", "sigmoid"])
def test_other_forms_have_second_derivatives(form):
    make, labels = FORMS[form]
    loss, target = make(), labels()
    logits = make_batch()[0].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, target), logits, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), logits)[0].isfinite().all()


# The closed-form path (fused) against the definition (voxel_loss).

FUSED = ["ce", "ls", "fl", "ecp", "mbls", "mbls_l2"]
LAYOUTS = {
    "rows": (700, K),
    "small_images": (9, K, 5, 4),
    "several_blocks_an_image": (2, K, 40, 30),
    "volume": (1, 14, 7, 8, 9),
}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("mbls.losses._block_voxels", lambda device, num_classes: 500)


def plain_mean(loss, logits, target):
    keep = target != loss.ignore_index
    return torch.where(keep, loss.voxel_loss(logits, target), 0.0).sum() / keep.sum()


@pytest.mark.parametrize("ignoring", [False, True], ids=["all", "ignoring"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("name", FUSED)
def test_fused_equals_the_definition(name, layout, ignoring, small_blocks):
    logits, target = make_batch(LAYOUTS[layout])
    if ignoring:
        target.view(-1)[::3] = -100
    logits.requires_grad_()
    loss = PER_VOXEL[name]()
    (expected,) = torch.autograd.grad(plain_mean(loss, logits, target), logits)
    value = loss(logits, target)
    (grad,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(value, plain_mean(loss, logits, target), rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6 / target.numel())
    with torch.no_grad():
        torch.testing.assert_close(loss(logits, target), value, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
@pytest.mark.parametrize("name", FUSED)
def test_fused_is_as_exact_as_the_definition(name, scale):
    """Both in float32 against the definition in float64; logits close together and far apart, around a large value."""
    logits, target = make_batch((2, K, 50, 50), torch.float64, scale)
    logits = (logits + 100).float().requires_grad_()
    loss = PER_VOXEL[name]()
    truth = plain_mean(loss, logits.double(), target)
    assert loss(logits, target).item() == pytest.approx(truth.item(), rel=1e-6)
    (expected,) = torch.autograd.grad(truth, logits)
    errors = {}
    for form, value in (("fused", loss(logits, target)), ("definition", plain_mean(loss, logits, target))):
        errors[form] = (torch.autograd.grad(value, logits)[0] - expected).abs().max().item() * target.numel()
    assert errors["fused"] < max(1e-6, 1.5 * errors["definition"])


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name", FUSED)
def test_gradient_of_the_other_reductions(name, reduction):
    logits, target = make_batch(dtype=torch.float64)
    target[0, :2] = -100
    loss = PER_VOXEL[name](reduction=reduction)
    assert torch.autograd.gradcheck(lambda values: loss(values, target), logits.requires_grad_())


@pytest.mark.parametrize("name", FUSED)
def test_second_derivative_is_refused_and_the_definition_has_it(name):
    logits, target = make_batch((1, K, 2, 2), torch.float64)
    logits.requires_grad_()
    loss = PER_VOXEL[name]()
    with pytest.raises(RuntimeError, match=r"create_graph: .* loss\.voxel_loss"):
        torch.autograd.grad(loss(logits, target), logits, create_graph=True)
    assert torch.autograd.gradgradcheck(lambda values: loss.voxel_loss(values, target), logits)


@pytest.mark.parametrize("name", FUSED)
def test_torch_func_takes_the_definition(name):
    logits, target = make_batch(dtype=torch.float64)
    loss = PER_VOXEL[name]()

    def sample_loss(values, label):
        return loss(values.unsqueeze(0), label.unsqueeze(0))

    grads = torch.func.vmap(torch.func.grad(sample_loss))(logits, target)
    for values, label, grad in zip(logits, target, grads, strict=True):
        values.requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(sample_loss(values, label), values)[0], grad)
    voxel, label = logits[:1, :, :1, :1].detach(), target[:1, :1, :1]
    hessian = torch.func.jacrev(torch.func.jacrev(lambda values: loss(values, label)))(voxel).view(K, K)
    expected = torch.autograd.functional.hessian(lambda values: loss.voxel_loss(values, label).mean(), voxel).view(K, K)
    torch.testing.assert_close(hessian, expected)


@pytest.mark.parametrize("name", FUSED)
def test_compiles_without_a_graph_break(name):
    logits, target = make_batch()
    head, loss = torch.nn.Conv2d(K, K, 1), PER_VOXEL[name]()
    step = torch.compile(lambda values, labels: loss(head(values), labels), backend="aot_eager", fullgraph=True)
    value = step(logits, target)
    torch.testing.assert_close(value, loss(head(logits), target))
    value.backward()
    compiled = head.weight.grad.clone()
    head.zero_grad()
    loss(head(logits), target).backward()
    torch.testing.assert_close(compiled, head.weight.grad)


@pytest.mark.parametrize("name", FUSED)
def test_one_tensor_of_the_size_of_the_logits_is_saved(name):
    logits, target = make_batch((2, K, 20, 20))
    saved = {}

    def count(tensor):
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        PER_VOXEL[name]()(logits.requires_grad_(), target)
    assert sum(saved.values()) == logits.numel() * logits.element_size()


def test_layouts_of_memory_and_subclasses_agree():
    from monai.data import MetaTensor

    logits, target = make_batch((2, K, 8, 8))
    expected = None
    target[0, :2] = -100
    turned = target.transpose(1, 2).contiguous().transpose(1, 2)  # the same labels, another layout
    for values in (logits, logits.contiguous(memory_format=torch.channels_last), MetaTensor(logits)):
        values = values.clone().requires_grad_()
        loss = MbLSLoss(1.0)(values, target if expected is None else turned)
        loss.backward()
        expected = (loss, values.grad) if expected is None else expected
        torch.testing.assert_close(torch.as_tensor(loss), expected[0])
        torch.testing.assert_close(torch.as_tensor(values.grad), expected[1])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_and_a_second_backward(use_reentrant):
    images, target = make_batch((2, K, 8, 8))
    images.requires_grad_()
    head, loss = torch.nn.Conv2d(K, K, 1), MbLSLoss(1.0)
    (expected,) = torch.autograd.grad(loss(head(images), target), images)
    value = torch.utils.checkpoint.checkpoint(
        lambda values: loss(head(values), target), images, use_reentrant=use_reentrant
    )
    value.backward()
    torch.testing.assert_close(images.grad, expected)
    value = loss(images, target)
    first, second = (torch.autograd.grad(value, images, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_changed_definition_is_what_is_computed():
    class HalfMargin(MbLSLoss):
        def voxel_loss(self, logits, target):
            return 0.5 * super().voxel_loss(logits, target)

    logits, target = make_batch()
    torch.testing.assert_close(HalfMargin(1.0)(logits, target), 0.5 * MbLSLoss(1.0)(logits, target))


def test_definition_changed_by_a_mixin_is_what_is_computed():
    class Half:
        def voxel_loss(self, logits, target):
            return 0.5 * super().voxel_loss(logits, target)

    class HalfMargin(Half, MbLSLoss):
        pass

    class Renamed(HalfMargin):
        pass

    logits, target = make_batch()
    for loss in (HalfMargin(1.0), Renamed(1.0)):
        torch.testing.assert_close(loss(logits, target), 0.5 * MbLSLoss(1.0)(logits, target))


def test_closed_form_beside_a_new_definition_is_kept():
    class Twice(CrossEntropyLoss):
        def voxel_loss(self, logits, target):
            return 2 * super().voxel_loss(logits, target)

        def fused(self, below, label, grad):
            calls.append(below.shape)
            values = 2 * super().fused(below, label, grad)
            grad.mul_(2)
            return values

    calls = []
    logits, target = make_batch()
    torch.testing.assert_close(Twice()(logits, target), 2 * CrossEntropyLoss()(logits, target))
    assert calls


def test_a_loss_of_ones_own_needs_its_definition_only():
    class LinearLoss(VoxelLoss):
        def voxel_loss(self, logits, target):
            return 1 - self.at_label(logits.softmax(1), target)

    logits, target = make_batch(dtype=torch.float64)
    target[0, :2] = 255
    loss = LinearLoss(ignore_index=255)
    kept = logits.softmax(1).movedim(1, -1)[target != 255].gather(1, target[target != 255].unsqueeze(1))
    torch.testing.assert_close(loss(logits, target), 1 - kept.mean())
    assert torch.autograd.gradcheck(lambda values: loss(values, target), logits.requires_grad_())
    with pytest.raises(NotImplementedError, match="VoxelLoss: expected a definition"):
        VoxelLoss()(*make_batch())


def test_empty_batch():
    logits = torch.zeros((0, K, 8, 8), requires_grad=True)
    MbLSLoss()(logits, torch.zeros((0, 8, 8), dtype=torch.long)).backward()
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (AlphaSchedule(0.1), [0.1, 0.1, 0.1, 0.1]),
        (AlphaSchedule(0.1, "add", 0.2, maximum=0.4), [0.1, 0.3, 0.4, 0.4]),
        (AlphaSchedule(0.1, "multiply", 2), [0.1, 0.2, 0.4, 0.8]),
        (AlphaSchedule(0.1, "multiply", 10, every=2, maximum=5), [0.1, 0.1, 1.0, 1.0]),
    ],
)
def test_alpha_schedule(schedule, expected):
    assert [schedule(epoch) for epoch in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("constant", AlphaSchedule(0.1)),
        ("add:0.1:10", AlphaSchedule(0.1, "add", 0.1, every=10)),
        ("add:0.1:10.0:0.5", AlphaSchedule(0.1, "add", 0.1, 10, 0.5)),
        ("multiply:2:10", AlphaSchedule(0.1, "multiply", 2, every=10)),
    ],
)
def test_alpha_schedule_from_a_text(spec, expected):
    schedule = AlphaSchedule.parse(spec, 0.1)
    assert repr(schedule) == repr(expected)
    assert repr(eval(repr(schedule), {"AlphaSchedule": AlphaSchedule})) == repr(expected)
    assert [schedule(epoch) for epoch in range(100)] == [expected(epoch) for epoch in range(100)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        *(
            (bad, f"schedule: got '{bad}', expected constant, add:STEP:EVERY")
            for bad in ("", "add", "add:0.1", "add:x:1")
        ),
        *(
            (bad, f"schedule: got '{bad}'")
            for bad in ("constant:1", "double:2:1", "add:0.1:1:2:3", "add::1", "ADD:1:1")
        ),
        ("add:-1:10", "step: got -1, expected a finite number >= 0"),
        ("add:nan:10", "step: got nan"),
        ("add:0.1:0", "every: got 0, expected a whole number >= 1"),
        ("add:0.1:1.5", "every: got 1.5, expected a whole number >= 1"),
        ("add:0.1:1:inf", "maximum: got inf"),
    ],
)
def test_bad_text_of_a_schedule(spec, message):
    with pytest.raises(ValueError, match=message):
        AlphaSchedule.parse(spec, 0.1)


class Renamed(MbLSLoss):
    """Its constructor is the parent's."""


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (CrossEntropyLoss(), "CrossEntropyLoss()"),
        (MbLSLoss(margin=5), "MbLSLoss(margin=5.0, alpha=0.1, norm='l1')"),
        (MbLSLoss(5.0, norm="l2", reduction="sum"), "MbLSLoss(margin=5.0, alpha=0.1, norm='l2', reduction='sum')"),
        (CrossEntropyLoss(ignore_index=255), "CrossEntropyLoss(ignore_index=255)"),
        (LabelSmoothingLoss(1), "LabelSmoothingLoss(alpha=1.0)"),
        (FocalLoss(), "FocalLoss(gamma=3.0)"),
        (EntropyPenaltyLoss(), "EntropyPenaltyLoss(alpha=0.1)"),
        (SVLSLoss(4), "SVLSLoss(num_classes=4, sigma=1.0, kernel_size=3, spatial_dims=2)"),
        (Renamed(2), "Renamed(margin=2.0, alpha=0.1, norm='l1')"),
        (VoxelLoss(), "VoxelLoss()"),
    ],
)
def test_repr_shows_the_options(loss, expected):
    assert repr(loss) == expected
    assert repr(torch.nn.Sequential(loss)) == f"Sequential(\n  (0): {expected}\n)"


def test_repr_of_losses_around_others():
    loss = WithDice(MbLSLoss(5.0))
    loss.alpha = 0.3
    assert repr(loss) == "WithDice(\n  (loss): MbLSLoss(margin=5.0, alpha=0.3, norm='l1')\n  (dice): DiceLoss()\n)"
    assert repr(NACLLoss(4)).startswith("NACLLoss(\n  num_classes=4, alpha=0.1, spatial_dims=2\n  (nacl): NACLLoss(")


@pytest.mark.parametrize(
    ("spec", "name", "options", "canonical"),
    [
        ("ce", "ce", {}, "ce"),
        ("mbls:margin=5.0", "mbls", {"margin": 5}, "mbls:margin=5"),
        ("mbls:alpha=0.10:margin=05", "mbls", {"alpha": 0.1, "margin": 5}, "mbls:alpha=0.1:margin=5"),
        ("mbls:norm=l2:margin=5e0", "mbls", {"norm": "l2", "margin": 5}, "mbls:norm=l2:margin=5"),
        ("mbls_dice:alpha=1e-5", "mbls_dice", {"alpha": 1e-5}, "mbls_dice:alpha=1e-05"),
        ("mbls:margin=1e30", "mbls", {"margin": 1e30}, "mbls:margin=1e+30"),
        ("mbls:margin=-0.0", "mbls", {"margin": 0}, "mbls:margin=0"),
        ("ls:ignore_index=255.0", "ls", {"ignore_index": 255}, "ls:ignore_index=255"),
        ("svls:sigma=2:kernel_size=5.0", "svls", {"sigma": 2, "kernel_size": 5}, "svls:sigma=2:kernel_size=5"),
        ("nacl:alpha=0.50", "nacl", {"alpha": 0.5}, "nacl:alpha=0.5"),
    ],
)
def test_specs_and_their_one_spelling(spec, name, options, canonical):
    assert parse_loss(spec) == (name, options)
    assert loss_name(spec) == loss_name(canonical) == canonical
    logits, target = make_batch()
    from_spec, from_options = build_loss(spec, K), build_loss(name, num_classes=K, **options)
    assert repr(from_spec) == repr(from_options)
    assert from_spec(logits, target).equal(from_options(logits, target))


@pytest.mark.parametrize(
    "first", ["mbls:margin=5", "fl:gamma=2", "fl:gamma=3", "ls:alpha=1", "ecp:alpha=1", "svls:sigma=1"]
)
def test_whole_numbers_give_the_same_loss_to_the_bit(first):
    logits, target = make_batch()
    name, options = parse_loss(first)
    second = build_loss(name, K, **{option: float(value) for option, value in options.items()})
    results = []
    for loss in (build_loss(first, K), second):
        values = logits.clone().requires_grad_()
        loss(values, target).backward()
        results.append(values.grad)
    assert torch.equal(*results)


def test_a_loss_that_a_project_registers_is_built_by_its_name(monkeypatch):
    monkeypatch.setitem(LOSSES, "lambda", lambda num_classes, **options: MbLSLoss(num_classes, **options))
    monkeypatch.setitem(LOSSES, "needs_beta", lambda num_classes, beta: LabelSmoothingLoss(beta))
    assert build_loss("lambda:alpha=0.2", K).margin == K
    assert build_loss("needs_beta:beta=0.3", K).alpha == 0.3
    with pytest.raises(ValueError, match=r"expected one of .*, lambda, needs_beta$"):
        build_loss("lamda", K)
    with pytest.raises(ValueError, match=r"options of loss 'lambda': got .*betta"):
        build_loss("lambda:betta=1", K)
    with pytest.raises(ValueError, match=r"options of loss 'needs_beta': got .*beta"):
        build_loss("needs_beta", K)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lms:alpha=1", f"name: got 'lms', expected one of {', '.join(LOSSES)}$"),
        ("", "name: got ''"),
        ("mbls:margin", "loss: got 'margin' in 'mbls:margin', expected name:key=value"),
        ("mbls:margin=5:", "loss: got '' in"),
        (
            "mbls:margn=5",
            "options of loss 'mbls': got margn=5, expected one of margin, alpha, norm, ignore_index, reduction, weight",
        ),
        ("mbls_dice:gamma=5", "options of loss 'mbls_dice': got gamma=5, expected one of margin"),
        ("ce:margin=3", "options of loss 'ce': got margin=3, expected one of ignore_index, reduction, weight$"),
        ("mbls:num_classes=3", "options of loss 'mbls': got num_classes=3, expected one of margin"),
        ("svls:num_classes=3", "options of loss 'svls': got num_classes=3, expected one of sigma, kernel_size"),
        ("nacl:ignore_index=0", "options of loss 'nacl': got ignore_index=0, expected one of alpha, spatial_dims"),
        ("mbls:margin=5:margin=5", "margin: got it twice"),
        ("mbls:margin=x", "margin: got 'x', expected a finite number >= 0"),
        ("mbls:margin=nan", "margin: got nan, expected a finite number"),
        ("mbls:margin=1e999", "margin: got inf, expected a finite number"),
        ("mbls:margin=" + "9" * 5000, "margin: got inf, expected a finite number"),
        ("mbls:alpha=l1", "alpha: got 'l1'"),
        ("mbls:norm=3", "norm: got 3"),
        ("ls:alpha=x", "alpha: got 'x', expected 0 <= alpha <= 1"),
        ("ls:alpha=nan", "alpha: got nan"),
        ("fl:gamma=x", "gamma: got 'x'"),
        ("svls:sigma=x", "sigma: got 'x'"),
        ("svls:kernel_size=3.5", "kernel_size: got 3.5, expected an odd number"),
        ("svls:kernel_size=x", "kernel_size: got 'x'"),
        ("svls:spatial_dims=x", "spatial_dims: got 'x'"),
        ("nacl:spatial_dims=4", "spatial_dims: got 4"),
        ("nacl:alpha=x", "alpha: got 'x'"),
        ("ce:ignore_index=0.5", "ignore_index: got 0.5, expected a whole number"),
        ("ce:weight=3", "weight: got 3, expected a number >= 0 for each class"),
        ("mbls:sigmoid=1", "sigmoid: got 1, expected True or False"),
        ("ce:reduction=average", "reduction: got 'average'"),
    ],
)
@pytest.mark.parametrize("use", [lambda spec: build_loss(spec, K), loss_name], ids=["build_loss", "loss_name"])
def test_bad_spec(use, spec, message):
    with pytest.raises(ValueError, match=message):
        use(spec)


def test_an_option_in_the_spec_and_beside_it_is_refused():
    with pytest.raises(ValueError, match=r"margin: got 5 in 'mbls:margin=5' and 6.0 beside it, expected it once"):
        build_loss("mbls:margin=5", K, margin=6.0)
    assert build_loss("mbls:margin=5", K, alpha=0.3).alpha == 0.3


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, target: (logits[:, :, 0], target), "target: got shape"),
        (lambda logits, target: (logits, target + 0.25), r"target: got label \d.25 \(60 voxels with a fraction\)"),
        (lambda logits, target: (logits, target + 4), "target: got label"),
        (lambda logits, target: (logits, target - 1), "target: got label -1"),
        (lambda logits, target: (logits.long(), target), "logits: got shape"),
        (lambda logits, target: (logits[:, :1], target * 0), "logits: got 1 class"),
        (lambda logits, target: (logits * torch.nan, target), "logits: got 240 NaN"),
        (lambda logits, target: (logits, F.one_hot(target, K).movedim(-1, 1)), "one-hot"),
    ],
)
def test_bad_input(name, change, message):
    with pytest.raises(ValueError, match=message):
        build_loss(name, K)(*change(*make_batch()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MbLSLoss(margin=-1), "margin: got -1"),
        (lambda: MbLSLoss(alpha=-0.1), "alpha: got -0.1"),
        (lambda: MbLSLoss(margin=math.nan), "margin: got nan"),
        (lambda: MbLSLoss(norm="linf"), "norm: got 'linf'"),
        (lambda: LabelSmoothingLoss(1.5), "alpha: got 1.5"),
        (lambda: FocalLoss(-1), "gamma: got -1"),
        (lambda: EntropyPenaltyLoss(-1), "alpha: got -1"),
        (lambda: SVLSLoss(1), "num_classes: got 1"),
        (lambda: SVLSLoss(4, sigma=0), "sigma: got 0"),
        (lambda: SVLSLoss(4, kernel_size=4), "kernel_size: got 4"),
        (lambda: SVLSLoss(4, spatial_dims=4), "spatial_dims: got 4"),
        (lambda: CrossEntropyLoss(reduction="average"), "reduction: got 'average'"),
        (lambda: CrossEntropyLoss(weight=[1.0, -1.0]), "weight: got -1.0, expected a finite number >= 0"),
        (lambda: CrossEntropyLoss(weight=[1.0, math.nan]), "weight: got nan"),
        (lambda: CrossEntropyLoss(weight=torch.ones(2, 2)), r"weight: got \[1.0, 1.0\], expected a finite number"),
        (
            lambda: CrossEntropyLoss(weight=[1.0, 2.0])(*make_batch()),
            "weight: got 2 numbers, expected one for each of 4",
        ),
        (lambda: MbLSLoss(sigmoid="yes"), "sigmoid: got 'yes', expected True or False"),
        (lambda: MbLSLoss(sigmoid=True, weight=[1.0, 2.0]), "weight: got class weights beside sigmoid=True"),
        (lambda: WithL1ACE(MbLSLoss(sigmoid=True)), "loss: got one with sigmoid=True"),
        (lambda: WithL1ACE(WithDice(MbLSLoss(sigmoid=True))), "loss: got one with sigmoid=True"),
        (lambda: MbLSLoss()(torch.zeros(2, 1, 3), torch.zeros(2, 3)), r"for one-channel .* MbLSLoss\(sigmoid=True\)"),
        (lambda: WithDice(CrossEntropyLoss(reduction="none")), "loss: got reduction='none'"),
        (lambda: build_loss("lms", 4), "name: got 'lms'"),
        (lambda: build_loss("ce", 1), "num_classes: got 1"),
        (lambda: build_loss("ce", "4"), "num_classes: got '4'"),
        (lambda: NACLLoss(1), "num_classes: got 1"),
        (lambda: build_loss("ce", 4, margin=3), "options of loss 'ce'"),
        (lambda: AlphaSchedule(0.1, "double"), "mode: got 'double'"),
        (lambda: AlphaSchedule(-0.1), "alpha: got -0.1"),
        (lambda: AlphaSchedule(0.1, every=0), "every: got 0"),
        (lambda: AlphaSchedule(0.1)(-1), "epoch: got -1"),
        (lambda: SVLSLoss(3)(*make_batch()), "logits: got shape"),
        (lambda: NACLLoss(3)(*make_batch()), "logits: got shape"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
