"""The mathematics: each bound and reduction as a property, closed-form gradients, calibration maps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbls.constraints import (
    PENALTIES,
    calibration_map,
    confidence_at_margin,
    kl_softmax_to_uniform,
    kl_uniform_to_softmax,
    linear_penalty,
    linear_penalty_gradient,
    logit_distances,
    margin_calibration_map,
    margin_penalty,
    mean_loser_distance,
)
from mbls.losses import CrossEntropyLoss, EntropyPenaltyLoss, FocalLoss, LabelSmoothingLoss, MbLSLoss

TINY = 1e-9


@st.composite
def voxels(draw):
    """Logits (1, K) in float64 and a label."""
    row = draw(st.lists(st.floats(-15, 15, allow_subnormal=False), min_size=2, max_size=8))
    label = draw(st.integers(0, len(row) - 1))
    return torch.tensor([row], dtype=torch.float64), torch.tensor([label])


@given(voxels())
def test_distances_are_shift_invariant_and_zero_at_the_winner(voxel):
    logits, _ = voxel
    d = logit_distances(logits)
    assert (d >= 0).all()
    assert d.min() == 0
    torch.testing.assert_close(logit_distances(logits + 3.7), d)


@given(voxels())
def test_mean_loser_distance_is_over_all_but_the_first_of_the_sorted_logits(voxel):
    logits, _ = voxel
    top, *losers = sorted(logits[0].tolist(), reverse=True)
    expected = sum(top - loser for loser in losers) / len(losers)
    assert mean_loser_distance(logits).item() == pytest.approx(expected, abs=1e-12)


def test_mean_loser_distance_of_volumes_along_any_dimension():
    logits = torch.randn(2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    logits[0, 1] = logits[0, 2] = logits[0].amax(0)  # ties
    ordered = logits.sort(dim=1, descending=True).values
    expected = (ordered[:, :1] - ordered[:, 1:]).mean(1)
    torch.testing.assert_close(mean_loser_distance(logits), expected)
    torch.testing.assert_close(mean_loser_distance(logits.movedim(1, -1), dim=-1), expected)


@given(voxels())
def test_point_1_cross_entropy_falls_along_the_label_and_its_gradient_never_vanishes(voxel):
    logits, label = voxel
    logits.requires_grad_()
    loss = CrossEntropyLoss()
    loss(logits, label).backward()
    assert logits.grad[0, label] < 0
    further = logits.detach().clone()
    further[0, label] += 1
    assert loss(further, label) < loss(logits.detach(), label)


@given(voxels(), st.floats(0.01, 0.9))
def test_point_2_label_smoothing_is_ce_plus_kl(voxel, alpha):
    logits, label = voxel
    classes = logits.shape[1]
    ce = CrossEntropyLoss()(logits, label)
    kl = kl_uniform_to_softmax(logits)[0]
    rebuilt = (1 - alpha) * (ce + alpha / (1 - alpha) * kl) + alpha * math.log(classes)
    torch.testing.assert_close(LabelSmoothingLoss(alpha)(logits, label), rebuilt)


@given(voxels())
def test_point_2_kl_is_linear_in_the_distances_up_to_log_k(voxel):
    logits, _ = voxel
    mean_distance = logit_distances(logits).mean()
    kl = kl_uniform_to_softmax(logits)[0]
    assert mean_distance - math.log(logits.shape[1]) - TINY <= kl <= mean_distance + TINY


@given(voxels(), st.floats(1, 5))
def test_point_3_focal_loss_is_bounded_below_by_ce_minus_entropy(voxel, gamma):
    logits, label = voxel
    log_probs = logits.log_softmax(1)
    entropy = -(log_probs.exp() * log_probs).sum()
    focal = FocalLoss(gamma)(logits, label)
    assert focal >= CrossEntropyLoss()(logits, label) - gamma * entropy - TINY
    torch.testing.assert_close(entropy, math.log(logits.shape[1]) - kl_softmax_to_uniform(logits)[0])


@given(voxels(), st.floats(0, 2))
def test_point_4_ecp_is_ce_plus_kl(voxel, alpha):
    logits, label = voxel
    rebuilt = CrossEntropyLoss()(logits, label) + alpha * (kl_softmax_to_uniform(logits)[0] - math.log(logits.shape[1]))
    torch.testing.assert_close(EntropyPenaltyLoss(alpha)(logits, label), rebuilt)


@given(voxels())
def test_point_4_the_two_kls_add_up_to_the_distances(voxel):
    logits, _ = voxel
    d = logit_distances(logits)
    expected = d.mean() - (logits.softmax(1) * d).sum()
    torch.testing.assert_close((kl_uniform_to_softmax(logits) + kl_softmax_to_uniform(logits))[0], expected)
    assert kl_softmax_to_uniform(logits)[0] <= d.mean() + TINY


@given(voxels())
def test_point_5_kls_vanish_only_at_zero_distances(voxel):
    logits, _ = voxel
    spread = logit_distances(logits).max()
    for kl in (kl_uniform_to_softmax(logits)[0], kl_softmax_to_uniform(logits)[0]):
        assert kl >= -TINY
        if spread > 0.1:
            assert kl > 1e-9
    flat = torch.zeros_like(logits)
    assert abs(kl_uniform_to_softmax(flat)[0]) < TINY
    assert abs(kl_softmax_to_uniform(flat)[0]) < TINY


@given(voxels(), st.floats(1e-6, 1))
def test_point_5_the_linear_penalty_pushes_as_hard_however_small_the_distances(voxel, shrink):
    logits, _ = voxel
    small = shrink * logits
    at_max = (small == small.max()).double()
    expected = at_max / at_max.sum() - 1 / logits.shape[1]
    torch.testing.assert_close(linear_penalty_gradient(small), expected)


@given(voxels(), st.floats(0, 12))
def test_point_6_the_hinge_is_free_inside_the_margin_and_linear_beyond(voxel, margin):
    logits, label = voxel
    d = logit_distances(logits)
    expected = (d - margin).clamp(min=0).mean()
    torch.testing.assert_close(margin_penalty(logits, margin)[0], expected)
    torch.testing.assert_close(MbLSLoss(margin, 0.3)(logits, label), CrossEntropyLoss()(logits, label) + 0.3 * expected)
    if (d <= margin).all():
        assert margin_penalty(logits, margin) == 0


@given(voxels())
def test_point_6_margin_zero_is_the_linear_penalty(voxel):
    logits, _ = voxel
    torch.testing.assert_close(margin_penalty(logits, 0.0), linear_penalty(logits))
    torch.testing.assert_close(linear_penalty(logits)[0], logit_distances(logits).mean())


@pytest.mark.parametrize(("margin", "confidence"), [(3, 0.870), (5, 0.980), (8, 0.9990), (10, 0.99986)])
def test_point_6_confidence_at_the_feasible_boundary(margin, confidence):
    digits = len(str(confidence)) - 2
    assert round(confidence_at_margin(margin, 4), digits) == confidence
    logits = torch.tensor([[margin, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert logits.softmax(1).max().item() == pytest.approx(confidence_at_margin(margin, 4))
    penalty = margin_penalty(logits, float(margin)).sum()
    penalty.backward()
    assert penalty == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", sorted(PENALTIES))
@given(voxel=voxels())
@settings(max_examples=50)
def test_gradients_in_closed_form(name, voxel):
    logits, _ = voxel
    d = logit_distances(logits)[0]
    if ((d - 5).abs() < 1e-9).any():  # at its kink the hinge has no gradient to compare
        return
    logits.requires_grad_()
    PENALTIES[name].value(logits).sum().backward()
    torch.testing.assert_close(PENALTIES[name].gradient(logits.detach()), logits.grad, atol=1e-12, rtol=1e-9)


def test_penalties_work_along_any_dimension():
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    for penalty in PENALTIES.values():
        assert penalty.value(logits).shape == (2, 3, 5)
        torch.testing.assert_close(penalty.value(logits.movedim(1, -1), dim=-1), penalty.value(logits))
        torch.testing.assert_close(
            penalty.gradient(logits.movedim(1, -1), dim=-1).movedim(-1, 1), penalty.gradient(logits)
        )


Q = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.9, 0.07, 0.03], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)


def test_point_7_cross_entropy_converges_to_q():
    torch.testing.assert_close(calibration_map(CrossEntropyLoss(reduction="none"), Q), Q, atol=1e-6, rtol=0)


def test_point_7_label_smoothing_converges_to_smoothed_q():
    expected = 0.9 * Q + 0.1 / 3
    torch.testing.assert_close(
        calibration_map(LabelSmoothingLoss(0.1, reduction="none"), Q), expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("loss", [EntropyPenaltyLoss(0.1, reduction="none"), FocalLoss(3, reduction="none")])
def test_point_7_ecp_and_focal_loss_distort_every_q_but_the_uniform(loss):
    found = calibration_map(loss, Q)
    assert ((found[:3] - Q[:3]).abs().amax(1) > 1e-3).all()
    assert (found[:3].amax(1) < Q[:3].amax(1)).all()
    torch.testing.assert_close(found[3], Q[3], atol=1e-6, rtol=0)


def test_point_7_mbls_leaves_feasible_q_alone_and_holds_back_the_rest():
    margin = 2.5
    feasible = (logit_distances(Q.log()) <= margin).all(1)
    assert feasible.tolist() == [True, True, False, True]
    found = calibration_map(MbLSLoss(margin, reduction="none"), Q)
    torch.testing.assert_close(found[feasible], Q[feasible], atol=1e-6, rtol=0)
    # Beyond the margin a class may gain up to alpha / K over its q, and stops at the margin where that is enough.
    held = found[2]
    assert held[0] < Q[2, 0]
    assert (held[1:] - Q[2, 1:] <= 0.1 / 3 + 1e-6).all()
    assert (held[1:] > Q[2, 1:]).all()


@pytest.mark.parametrize(
    "loss", [MbLSLoss(1.0, 0.5, reduction="none"), FocalLoss(2, reduction="none"), MbLSLoss(0, reduction="none")]
)
def test_calibration_map_is_a_minimum_of_the_expected_loss(loss):
    """Not only stationary: no random neighbour has a lower expected loss, kinks included."""

    def expected(probs, q):
        values = torch.stack([loss(probs.log(), torch.full((len(probs),), label)) for label in range(3)], 1)
        return (values * q).sum(1)

    generator = torch.Generator().manual_seed(1)
    found = calibration_map(loss, Q)
    for row, q in zip(found, Q, strict=True):
        lowest = expected(row[None], q)[0]
        for radius in (1e-3, 1e-1, 1.0):
            step = radius * torch.randn(200, 3, generator=generator, dtype=torch.float64)
            neighbours = (row.log() + step).softmax(1)
            assert (expected(neighbours, q) >= lowest - 1e-9).all()


@pytest.mark.parametrize("margin", [0, 0.5, 2.5, 5])
def test_closed_form_of_mbls_is_the_numerical_map(margin):
    found = margin_calibration_map(Q, margin, 0.1)
    torch.testing.assert_close(found, calibration_map(MbLSLoss(margin, 0.1, reduction="none"), Q), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("margin", [0, 1, 3])
def test_closed_form_of_mbls_is_lowest_where_ties_stop_the_numerical_search(margin, alpha):
    """Random distributions, ties and certain labels; a strong penalty may tie the winner with others."""
    generator = torch.Generator().manual_seed(2)
    q = torch.softmax(3 * torch.randn(40, 4, generator=generator, dtype=torch.float64), 1)
    ties = [[0.45, 0.45, 0.05, 0.05], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]]
    q = torch.cat([q, torch.tensor(ties, dtype=torch.float64)])
    loss = MbLSLoss(margin, alpha, reduction="none")

    def expected(probs):
        logits = probs.clamp(min=1e-300).log().repeat_interleave(4, 0)
        return (loss(logits, torch.arange(4).repeat(len(q))).view(-1, 4) * q).sum(1)

    found = margin_calibration_map(q, margin, alpha)
    assert (expected(found) <= expected(calibration_map(loss, q)) + 1e-9).all()


def test_margins_below_3_61_end_alike_on_a_certain_voxel():
    """The force alpha / K is all there is: it balances cross-entropy at s_k = alpha / K for each smaller margin."""
    certain = torch.tensor([[1.0, 0, 0, 0]])
    ends = {margin: margin_calibration_map(certain, margin, 0.1)[0] for margin in (0, 1, 3, 3.6, 5)}
    distances = {margin: float((end[0] / end[1]).log()) for margin, end in ends.items()}
    for margin in (0, 1, 3, 3.6):
        assert distances[margin] == pytest.approx(math.log(37), abs=1e-9)
    assert distances[5] == pytest.approx(5, abs=1e-9)
    torch.testing.assert_close(margin_calibration_map(certain, 5, 0.0), certain.double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: margin_calibration_map(Q, -1, 0.1), "margin: got -1"),
        (lambda: margin_calibration_map(Q, 1, -0.1), "alpha: got -0.1"),
        (lambda: margin_calibration_map(2 * Q, 1, 0.1), "probs: got rows off"),
        (lambda: logit_distances(torch.tensor([[1, 2]])), "logits: got torch.int64"),
        (lambda: logit_distances(torch.tensor([[1.0, torch.nan]])), "logits: got 1 NaN"),
        (lambda: logit_distances(torch.ones(3, 1)), "logits: got 1 class"),
        (lambda: logit_distances(torch.ones(3, 2), dim=2), "dim: got 2"),
        (lambda: mean_loser_distance(torch.ones(3, 1)), "logits: got 1 class"),
        (lambda: margin_penalty(torch.ones(3, 2), -1), "margin: got -1"),
        (lambda: confidence_at_margin(-1, 4), "margin: got -1"),
        (lambda: confidence_at_margin(1, 1), "num_classes: got 1"),
        (
            lambda: calibration_map(CrossEntropyLoss(reduction="none"), torch.ones(2, 3)),
            "probs: got rows off the simplex",
        ),
        (lambda: calibration_map(CrossEntropyLoss(reduction="none"), torch.ones(3)), "probs: got shape"),
        (lambda: calibration_map(CrossEntropyLoss(), Q), "loss: got values of shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
