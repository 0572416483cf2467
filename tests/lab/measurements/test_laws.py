"""The page of laws: what counts as agreement, and that the figures say it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from support import tiny_run

from halfway import meeting
from halfway.lab.measurements import laws
from halfway.lab.report import laws_page
from halfway.lab.study.conditions import condition


@pytest.mark.quick
def test_agreement_is_within_03_and_15_percent_where_little_is_predicted():
    ones = np.ones(16)
    noise = np.random.default_rng(0).normal(0, 1e-4, 16)
    assert laws.check(5, 0.5, 0.52 + noise, ones).p_value < 0.05
    assert laws.check(5, 0.5, 0.54 + noise, ones).p_value > 0.95
    assert laws.check(5, 0.1, 0.11 + noise, ones).p_value < 0.05
    assert laws.check(5, 0.1, 0.12 + noise, ones).p_value > 0.95
    assert laws.check(5, 0.1, 0.11 + noise, ones).measured[0] == pytest.approx(0.11, abs=1e-3)


@pytest.mark.quick
@pytest.mark.parametrize("measured, words", [(0.5, "agree everywhere"), (0.7, "do not agree")])
def test_the_figure_of_a_law_says_whether_it_holds(measured, words):
    noise = np.random.default_rng(0).normal(0, 1e-3, 16)
    checked = [laws.check(n, 0.5, measured + noise, np.ones(16)) for n in (5, 20)]
    law = laws.Law(20.0, checked)
    drawn = laws_page.law_figure("first_law", "n", {"mlp": law}, meeting.first_law)
    assert words in drawn.caption
    drawn.figure.canvas.draw()
    assert len(laws_page.law_table("First law", "n", {"mlp": law}).rows) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [{"kind": "mlp", "widths": (32, 32)}, {"kind": "cnn", "features": (8, 16), "widths": (32,)}],
    ids=["mlp", "cnn"],
)
def test_the_first_law_after_100_steps_on_independent_data(model):
    """The page's own check at half of its draws of θ, on a network of a quarter of its width."""
    trained = dataclasses.replace(condition(tiny_run.digits(), "mlp"), model=model)
    draw = functools.partial(laws.first_law_terms, jax.random.key(0), trained, (8, 8, 1))
    n_half, checks = laws.first_law(draw(num_steps=100, num_thetas=160))
    assert n_half > 20
    # It is training that was measured: with no step, the same draws give another n_half.
    early = [laws.first_law(draw(num_steps=steps, num_thetas=2))[0] for steps in (0, 1)]
    assert early[0] != early[1]
    assert [checked.size for checked in checks] == [5, 20, 80, 320]
    for checked in checks:
        assert checked.p_value < 0.05, checked
