"""Conformal intervals cover what they promise; risk-coverage against its definition."""

import numpy as np
import pytest

from mbls.statistics import conformal_quantile, risk_coverage


def test_a_conformal_interval_covers_further_cases_as_often_as_promised():
    draw = np.random.default_rng(0)
    covered = [draw.exponential() <= conformal_quantile(draw.exponential(size=20), level=0.9) for _ in range(5000)]
    assert np.mean(covered) == pytest.approx(19 / 21, abs=0.012)  # k = 19 of 20: the rank of a further one is uniform


def test_conformal_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match="errors: got NaN"):
        conformal_quantile([1.0, float("nan")])
    with pytest.raises(ValueError, match="level: got 1"):
        conformal_quantile([1.0], level=1)


def test_risk_coverage_of_the_oracle_of_ties_and_of_all():
    risks = np.random.default_rng(0).random(50)
    oracle = risk_coverage(risks, -risks)
    assert np.all(np.diff(oracle) >= 0)
    np.testing.assert_allclose(risk_coverage(risks, np.zeros(50)), risks.mean())  # no order at all: chance
    some = risk_coverage(risks, np.random.default_rng(1).random(50))
    assert some[-1] == pytest.approx(risks.mean())
    assert np.all(some >= oracle - 1e-12)
    with pytest.raises(ValueError, match="scores: got shape"):
        risk_coverage([0.1], [0.1, 0.2])
