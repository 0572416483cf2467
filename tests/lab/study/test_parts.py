"""Parts of rules: which side of its threshold a gate is met on."""

import numpy as np
import pytest

from halfway.lab.study import rules

VALUES = 0.2 + 0.05 * np.random.default_rng(0).normal(size=16)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("alternative", "threshold", "passed"),
    [("greater", 0.1, True), ("greater", 0.9, False), ("less", 0.9, True), ("less", 0.1, False)],
)
def test_a_gate_is_met_on_the_side_that_it_is_asked_for(alternative, threshold, passed):
    gate = rules.gate(VALUES, "fitted", "accuracy", threshold, alternative=alternative)
    assert gate.passed == passed == (gate.clearance > 0)
    assert gate.direction == alternative
    assert gate.p_reverse is None


def test_a_gate_that_is_not_clear_of_its_threshold_is_not_met():
    for alternative in ("greater", "less"):
        mean = float(VALUES.mean())
        assert not rules.gate(VALUES, "fitted", "accuracy", mean, alternative=alternative).passed


@pytest.mark.quick
def test_the_least_of_some_estimates_is_a_gate_without_a_test():
    like = rules.gate(np.array([0.5, 0.6, np.nan]), "a", "mean", 0.0)
    met = rules.least_above([[0.3, 0.1], [0.2, 0.4]], "b", "least lead", like)
    assert met.passed and met.estimate == 0.1 and met.p_value is None
    assert (met.num_pairs, met.num_excluded) == (2, 1)
    assert not rules.least_above([0.3, -0.1], "b", "least lead", like).passed
    assert not rules.least_above([0.3, np.nan], "b", "least lead", like).passed
