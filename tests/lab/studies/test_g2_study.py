"""Where models stop early, what is summed over rates, and what the gates of G2 ask for."""

import numpy as np
import pytest
from lab.studies.plants import g2 as planted
from support import plants

from halfway.lab.measurements.learning import LEARNING, SAMPLES
from halfway.lab.studies.g2 import study
from halfway.lab.study.records import Measured, Records

pytestmark = pytest.mark.quick
MLP = plants.CONFIG.architectures[0]


def _records():
    return planted.plant(np.random.default_rng(0), 1.0)


def _changed(rate, change):
    """Records with the learning of the MLP at one rate changed in place."""
    records = _records()
    place = LEARNING.name, study.conditions(plants.CONFIG, MLP)[rate].id
    made = records.datasets[place].copy(deep=True)
    change(made)
    return Records(records.config, records.datasets | {place: made})


def _gates(records):
    return {part.name: part for part in study.decide(records).parts if part.kind == "gate"}


def test_a_model_stops_at_the_first_probe_at_which_the_third_sample_errs_least():
    trained = study.conditions(plants.CONFIG, MLP)[0.4]
    num_steps = len(trained.probe_steps)
    walk = np.full((trained.num_pairs, 2, 3, num_steps), 0.5)
    own, other, holdout = (walk[:, :, SAMPLES.index(name)] for name in SAMPLES)
    own[..., -1], other[..., -1] = 0.1, 0.4
    holdout[0, 0, [3, 6]] = 0.2  # a tie: the first
    holdout[0, 1, 5] = 0.3  # the other model of the pair stops elsewhere
    other[0, 0, [3, 6]], other[0, 1, 5] = [0.25, 0.0], 0.35
    starts = np.full((trained.num_pairs, 2, 3), 0.9)
    made = plants.learned(trained, walk[..., -1], starts)[-1].copy(deep=True)
    made["error"].values[:] = walk
    early, end, of_own = study.progress(Measured(made))
    assert early[0] == pytest.approx((0.9 - 0.25) + (0.9 - 0.35))
    assert end[0] == pytest.approx(2 * (0.9 - 0.4)) and of_own[0] == pytest.approx(2 * 0.8)
    # S never errs less than before training: a model stops before its first step.
    assert early[1] == pytest.approx(2 * (0.9 - 0.5))


def test_statistics_are_sums_over_rates_of_ratios_of_sums_over_pairs():
    records = _records()
    shares = {}
    for rate, trained in study.conditions(plants.CONFIG, MLP).items():
        if rate < 1:
            early, end, own = study.progress(records.get(LEARNING, trained))
            shares[rate] = [v.sum() / own.sum() / (1 - rate) for v in (early, end)]
    lost = sum(shares[0.0][1] - end for rate, (_, end) in shares.items() if rate > 0)
    regained = sum(early - end for rate, (early, end) in shares.items() if rate > 0)
    (test, *_) = study.decide(records).tests
    assert test.name == MLP and test.estimate == pytest.approx(regained - lost / 2)
    assert _gates(records)[f"{MLP}, cost of noise"].estimate == pytest.approx(lost)
    headline = study.decide(records).headlines[0]
    assert headline.estimate == pytest.approx(regained / lost)


def test_gates_hold_on_what_is_planted_and_each_can_fail():
    assert all(gate.passed for gate in _gates(_records()).values())

    def unfitted(made):
        made["error"][{"sample": SAMPLES.index("own"), "step": -1}] = 0.06

    failed = {name for name, gate in _gates(_changed(0.8, unfitted)).items() if not gate.passed}
    assert failed == {f"{MLP}, trained at ρ = 0.8"}

    def no_better(made):  # M_θ without noise as low as with it
        made["error"][{"sample": SAMPLES.index("other"), "step": -1}] = 0.45

    failed = {name for name, gate in _gates(_changed(0.0, no_better)).items() if not gate.passed}
    assert failed == {f"{MLP}, cost of noise"}


@pytest.mark.parametrize(("leak", "passes"), [(0.0, True), (0.024, False), (0.05, False)])
def test_leakage_is_an_equivalence_and_not_a_point(leak, passes):
    rng = np.random.default_rng(1)
    leaks = np.repeat(leak + rng.normal(0, 0.018, (16, 1)), 2, 1)

    def leaking(made):
        made["error"][{"sample": SAMPLES.index("other"), "step": -1}] = 0.9 - 0.883 * leaks

    assert _gates(_changed(1.0, leaking))[f"{MLP}, ρ = 1"].passed is passes
