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
