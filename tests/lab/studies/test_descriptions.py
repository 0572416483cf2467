"""Descriptions: what they measure against loops and hand counts, and that they decide nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import plants, tiny_run

from halfway import attacks, meeting
from halfway.lab import studies
from halfway.lab.measurements import grid
from halfway.lab.measurements.context import Context
from halfway.lab.studies.d1 import study as d1
from halfway.lab.studies.d1.measure import PREDICTIONS
from halfway.lab.studies.d2 import study as d2
from halfway.lab.studies.d2.measure import NOISE, steps_of
from halfway.lab.studies.d3 import measure as published
from halfway.lab.studies.d3 import study as d3
from halfway.lab.studies.g4 import measure as g4_measure
from halfway.lab.study import family, registration, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured, Records

KEY = jax.random.key(3)
CONFIG = tiny_run.config(training={"probe_steps": (0, 20, 40)}, num_pairs=4)
CONDITION = condition(CONFIG, "mlp")
DESCRIPTIONS = [name for name, study in studies.available().items() if study.kind == "description"]


def _context(population, pool, config=CONFIG):
    return Context(KEY, (population,), pool, config)


def _model(population, pair, side):
    return jax.tree.map(lambda leaf: leaf[pair, side], population.params)


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


# D1


@pytest.mark.quick
def test_disagreement_minus_error_by_hand():
    # One example whose three voters say 0, 0, 1, and one whose two voters say 1, 1.
    predicted = np.array([[0, 1], [0, 1], [1, 0]])
    may_vote = np.array([[True, True], [True, True], [True, False]])
    ballot = d1.Ballot(predicted, may_vote, np.array([0, 0]))
    disagreement, error = (2 / 3 + 0) / 2, (1 / 3 + 1) / 2
    assert d1.difference(ballot, 2) == pytest.approx(disagreement - error)
    equal = d1.equal_numbers(ballot, 2)
    assert equal.may_vote.sum(0).tolist() == [2, 2]
    assert d1.difference(equal, 2) == pytest.approx((0 + 0) / 2 - (0 + 1) / 2)
    assert d1.equal_numbers(ballot, 3).labels.tolist() == [0]


@pytest.mark.quick
def test_a_calibrated_vote_disagrees_as_often_as_it_errs():
    """Voters and the label are draws of one law at each example."""
    rng, number = np.random.default_rng(0), 20_000
    chances = rng.dirichlet(np.ones(3), number)
    draws = (chances.cumsum(1)[None] < rng.uniform(size=(9, number, 1))).sum(-1)
    ballot = d1.Ballot(draws[:8], np.ones((8, number), bool), draws[8])
    assert abs(d1.difference(ballot, 3)) < 0.01
    shares = meeting.votes(ballot.predicted, 3)
    assert meeting.class_aggregated_calibration_error(shares, ballot.labels) > 0.1  # eight voters
    certain = d1.Ballot(np.zeros((8, number), int), ballot.may_vote, draws[8])
    assert d1.difference(certain, 3) == pytest.approx(-(draws[8] != 0).mean())


def test_predictions_are_those_of_each_model(trained, pool):
    measured = Measured(PREDICTIONS.measure(_context(trained, pool)))
    rows = grid.examined_rows(CONFIG, len(pool.images))
    images, apply_fn = jnp.asarray(pool.images)[rows], jax.jit(CONDITION.apply_fn)
    predicted, unseen = (
        measured.read(name, "pair", "model", "example") for name in ("predicted", "unseen")
    )
    for pair in range(CONFIG.num_pairs):
        for side, half in enumerate((trained.halves.a, trained.halves.b)):
            logits = apply_fn(_model(trained, pair, side), images)
            assert predicted[pair, side].tolist() == logits.argmax(-1).tolist()
            kept = np.asarray(half.indices[pair])[np.asarray(half.mask[pair])]
            assert unseen[pair, side].tolist() == [row not in kept for row in rows]
    np.testing.assert_array_equal(measured.read("label", "example"), np.asarray(pool.labels)[rows])
    test, bound = d1.described(measured, CONFIG.num_classes)
    assert test.num_pairs == CONFIG.num_pairs and test.low < test.estimate < test.high
    assert abs(test.estimate) < bound < 2


@pytest.mark.quick
def test_every_condition_of_the_grid_is_asked_for_once():
    config = tiny_run.digits()
    *asked, last = d1.needs(config)
    assert len(asked) == len(d1.conditions(config)) == 1 + len(grid.design(config).interventions)
    assert len({request.id for request in asked}) == len(asked)
    (other_data,) = last.conditions
    assert (other_data.overlap, other_data.num_examples) == (0, 150)
    assert other_data.shared_start and other_data.shared_order


# D2


def test_signal_and_noise_are_those_of_the_models_along_the_walk(trained, pool):
    measured = Measured(NOISE.measure(_context(trained, pool)))
    assert steps_of(CONDITION) == (0, 40)
    images = jnp.asarray(pool.images)
    for side, (own, other) in enumerate((("a", "b"), ("b", "a"))):
        labels = {"own": trained.trained_labels[1, side], "other": None}
        for name, half in (("own", own), ("other", other)):
            sample = getattr(trained.halves, half)
            rows = sample.indices[1]
            truth = jnp.asarray(pool.labels)[rows] if labels[name] is None else labels[name]
            scale = meeting.noise_scale(
                CONDITION.apply_fn, _model(trained, 1, side), images[rows], truth, sample.mask[1]
            )
            for quantity in ("signal", "noise"):
                values = measured.read(quantity, "pair", "model", half=name, step=40)
                expected = getattr(scale, quantity)
                np.testing.assert_allclose(values[1, side], expected, rtol=2e-3, atol=1e-6)


@pytest.mark.quick
def test_n_half_is_a_ratio_of_sums_at_each_step():
    rng = np.random.default_rng(0)
    trained = condition(plants.CONFIG, "mlp")
    steps = steps_of(trained)
    assert steps[0] == 0 and steps[-1] == trained.probe_steps[-1]
    shape = trained.num_pairs, 2, 2, len(steps)
    signal = rng.uniform(0.9, 1.1, shape)
    noise = 50 * np.arange(1, 1 + len(steps)) * rng.uniform(0.9, 1.1, shape)
    dims = "pair", "model", "half", "step"
    planted = [
        (
            NOISE,
            condition(plants.CONFIG, name),
            plants.dataset(
                trained,
                {"signal": (dims, signal), "noise": (dims, noise)},
                half=("own", "other"),
                step=steps,
            ),
        )
        for name in plants.CONFIG.architectures
    ]
    curves = d2.curves(d2.decide(plants.records(*planted)).headlines)
    assert set(curves) == {
        (name, half) for name in ("mlp", "cnn") for half in d2.HALF_WORDS.values()
    }
    for (_, half), curve in curves.items():
        side = list(d2.HALF_WORDS.values()).index(half)
        for place, step in enumerate(steps):
            estimate, low, high = curve[step]
            sums = [values[:, :, side, place].sum() for values in (noise, signal)]
            assert estimate == pytest.approx(sums[0] / sums[1])
            assert low < estimate < high < 1.1 * estimate
    mean = d2.mean_over_training(curves["mlp", d2.HALF_WORDS["other"]])
    assert mean == pytest.approx(50 * np.arange(2, 1 + len(steps)).mean(), rel=0.1)


# D3


def _attacked(predicted, joint, clean, label, goal):
    """What is measured of two ways alone and one together, targets of one architecture."""
    first = published.compared_on(CONFIG)["mlp"]
    outcomes = {
        "predicted": (("alone", "pair", "architecture", "target", "example"), predicted),
        "predicted_joint": (("joint", "block", "architecture", "target", "example"), joint),
        "clean": (("architecture", "target", "example"), clean),
        "label": (("example",), label),
        "goal": (("example",), goal),
        "target_finite": (("architecture", "target"), np.array([[True, True, True, False]])),
    }
    dataset = plants.dataset(
        first,
        {},
        outcomes,
        alone=published.ALONE,
        joint=published.JOINT,
        architecture=["mlp"],
        target=range(4),
    )
    return Measured(dataset)


@pytest.mark.quick
def test_success_by_hand_and_who_is_left_out():
    label, goal = np.array([0, 1, 2]), np.array([1, 2, 0])
    clean = np.broadcast_to(label, (1, 4, 3)).copy()
    clean[0, 2, 0] = 5  # the third target has the first image wrong: no trial
    predicted = np.broadcast_to(label, (len(published.ALONE), 4, 1, 4, 3)).copy()
    predicted[:, 0, 0, 1] = [1, 2, 2]  # of the first surrogate two images fool the second target
    joint = np.broadcast_to(goal, (len(published.JOINT), 2, 1, 4, 3)).copy()
    attacked = _attacked(predicted, joint, clean, label, goal)
    succeeded, trials = d3.hits(attacked, "FGSM", "mlp")
    assert np.isnan(trials[np.arange(4), np.arange(4)]).all()  # of one pair
    assert np.isnan(trials[:, 3]).all()  # diverged
    assert succeeded[0, 1].tolist() == [1, 1, 0] and succeeded[2, 1].sum() == 0
    assert trials[0, 2].tolist() == [0, 1, 1]
    targeted, _ = d3.hits(attacked, "MI-FGSM, targeted", "mlp")
    assert targeted[0, 1].tolist() == [1, 1, 0]  # 1 and 2 are where it steers to
    succeeded, trials = d3.hits(attacked, "ensemble, targeted", "mlp")
    assert np.isnan(trials[0, :2]).all() and np.isnan(trials[1, 2:]).all()  # blocks of two pairs
    assert succeeded[1, 0].tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def ways():
    """One of each kind: the others are public attacks, tested where they are."""
    return ("FGSM", "MI-FGSM, targeted", "ensemble, SVRE")


def test_points_are_those_of_the_attacks_themselves(train, pool, ways, monkeypatch):
    population = train(published.compared_on(CONFIG)["mlp"])
    context = _context(population, pool)
    monkeypatch.setattr(published, "WAYS", {name: published.WAYS[name] for name in ways})
    monkeypatch.setattr(published, "ALONE", ways[:2])
    monkeypatch.setattr(published, "JOINT", ways[2:])
    measured = Measured(published.ATTACKS.measure(context))
    rows = population.halves.s.indices[0]
    x, labels = jnp.asarray(pool.images)[rows], jnp.asarray(pool.labels)[rows]
    goal = measured.read("goal", "example")
    assert (goal != np.asarray(labels)).all() and set(goal) <= set(range(CONFIG.num_classes))
    threat = attacks.linf(CONFIG.attack.epsilon)
    logits_fn = functools.partial(CONDITION.apply_fn, _model(population, 2, 0))
    found = {
        "FGSM": attacks.fgsm(logits_fn, KEY, x, labels, threat=threat),
        "MI-FGSM, targeted": attacks.mi_fgsm(
            logits_fn, KEY, x, labels, threat=threat, targets=jnp.asarray(goal, jnp.int32)
        ),
    }
    target = functools.partial(CONDITION.apply_fn, _model(population, 1, 1))
    for name, result in found.items():
        predicted = measured.read(
            "predicted", "pair", "target", "example", alone=name, architecture="mlp"
        )
        expected = np.asarray(target(result.adversarial).argmax(-1))
        assert (predicted[2, 1] == expected).mean() > 0.97  # rounding at a boundary
    clean = measured.read("clean", "target", "example", architecture="mlp")
    np.testing.assert_array_equal(clean[1], np.asarray(target(x).argmax(-1)))
    joint = measured.read(
        "predicted_joint", "block", "target", "example", joint=ways[2], architecture="mlp"
    )
    assert joint.shape == (2, 4, CONFIG.num_holdout)
    assert (joint != clean).mean() > 0.1


# What they are not


@pytest.mark.quick
def test_descriptions_decide_nothing():
    assert DESCRIPTIONS == ["D1", "D2", "D3"]
    assert not set(DESCRIPTIONS) & {study.id for study in studies.choose(["all"])}
    assert [study.id for study in studies.choose(["D2", "all"])][-1] == "D2"
    assert not set(DESCRIPTIONS) & set(registration.read()["rules"])
    listed = studies.listed()
    assert not set(DESCRIPTIONS) & {tile.id for tile in wording.tiles([], listed)}


def _described():
    rng = np.random.default_rng(0)
    rows = np.stack([np.arange(30) % 10] * 8).reshape(4, 2, 30)
    wrong = np.where(rng.uniform(size=rows.shape) < 0.2, (rows + 1) % 10, rows)
    outcomes = {
        "predicted": (("pair", "model", "example"), wrong),
        "unseen": (("pair", "model", "example"), np.ones(rows.shape, bool)),
        "label": (("example",), rows[0, 0]),
    }
    planted = {
        (PREDICTIONS.name, each.id): plants.dataset(condition(CONFIG, "mlp"), {}, outcomes)
        for each in d1.conditions(CONFIG).values()
    }
    small = d1.other_data(CONFIG)
    counts = {"num_compared": 100.0, "num_disagree": 30.0, "num_largest": 15.0}
    numbers = {
        name: (("pair",), value + rng.normal(size=small.num_pairs))
        for name, value in counts.items()
    }
    numbers["num_wrong"] = ("pair", "model"), 20 + rng.normal(size=(small.num_pairs, 2))
    planted[g4_measure.AGREEMENT.name, small.id] = plants.dataset(small, numbers)
    return Records(CONFIG, planted)


@pytest.mark.quick
def test_a_description_has_no_verdict_and_does_not_enter_the_family():
    study = d1.STUDY
    outcome = study.decide(_described())
    verdict = family.conclude([(study, outcome)], family_size=19, evidence="exploratory")[0]
    assert (verdict.verdict, verdict.parts, verdict.p_adjusted) == ("described", (), None)
    assert verdict.num_pairs == 4 and verdict.effect == outcome.headlines[0].estimate
    assert outcome.headlines[-1].estimate == pytest.approx(1.5, abs=0.1)
    words = study.explain(verdict)
    assert "bounds the first" in words and "{" not in words
    lines = wording.terminal_map([verdict], studies.listed())
    assert "D1  described" in lines and "disagreement minus error, base" in lines
    (figure,) = study.figures(_described(), verdict)
    assert figure.table is not None and len(figure.table.rows) == len(outcome.headlines) - 1
