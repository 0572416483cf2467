"""The grid of interventions, and what is measured of each of its models."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support import tiny_run

from halfway import data, landscapes, losses, meeting, populations
from halfway.lab.measurements import grid
from halfway.lab.measurements.context import Context
from halfway.lab.studies.g6 import study as g6
from halfway.lab.studies.t5 import study as t5
from halfway.lab.study import conditions
from halfway.lab.study.records import Measured
from halfway.populations import program_of

CONFIG = tiny_run.digits()


@pytest.mark.quick
def test_the_grid_is_that_of_the_framework():
    plan = grid.design(CONFIG)
    changed = plan.interventions
    assert len(changed) == 28 and len({c.name for c in changed}) == 28
    assert len({condition.id for condition in plan.conditions}) == 29
    counts = collections.Counter(plan.factors.tolist())
    assert counts == {
        "n": 3,
        "ρ": 6,
        "training length": 4,
        "width": 2,
        "depth": 1,
        "weight decay": 2,
        "learning rate": 1,
        "batch": 1,
        "optimizer": 1,
        "activation": 1,
        "architecture": 2,
        "shared data": 3,
        "start": 1,
    }
    assert list(counts) == list(grid.FACTORS)
    assert [c.name for c in changed if not c.is_fitted] == ["n ÷4, ρ = 0.4"]


FIELDS = {
    "n": {"num_examples"},
    "ρ": {"noise_rate"},
    "training length": {"probe_steps"},
    "width": {"model", "architecture"},
    "depth": {"model", "architecture"},
    "weight decay": {"weight_decay"},
    "learning rate": {"learning_rate"},
    "batch": {"batch_size"},
    "optimizer": {"optimizer", "learning_rate"},
    "activation": {"model", "architecture"},
    "architecture": {"model", "architecture"},
    "shared data": {"overlap"},
    "start": {"shared_start"},
}
"""The fields of a condition that stand for each factor."""


@pytest.mark.quick
def test_an_intervention_changes_its_factor_alone():
    plan = grid.design(CONFIG)
    for changed in plan.interventions:
        base = plan.bases[changed.base]
        differing = {
            field.name
            for field in dataclasses.fields(base)
            if getattr(base, field.name) != getattr(changed.condition, field.name)
        }
        expected = FIELDS[changed.factor]
        if changed.name in ("n ÷4, ρ = 0.4", "n ÷4, overlap 1"):
            expected = expected | {"num_examples"}
        assert differing == expected, changed.name


@pytest.mark.quick
def test_the_grid_shares_conditions_with_other_studies():
    ids = {condition.id for condition in grid.design(CONFIG).conditions}
    assert conditions.condition(CONFIG, "mlp").id in ids
    for rate in (0.2, 0.4, 0.8):
        assert conditions.condition(CONFIG, "mlp", noise_rate=rate).id in ids
    assert conditions.condition(CONFIG, "cnn", noise_rate=0.4).id in ids
    assert {t5.setting(CONFIG, 0.5).id, t5.setting(CONFIG, 1.0).id} < ids
    assert any(c.shared_start and c.id in ids for c in g6.compared(CONFIG, "mlp"))


@pytest.mark.quick
def test_what_n_and_data_are_changed_with_is_one_program():
    plan = grid.design(CONFIG)
    alike = ("n", "ρ", "shared data", "start", "weight decay", "learning rate")
    programs = {
        program_of(changed.condition)
        for changed in plan.interventions
        if changed.factor in alike and changed.base == grid.MLP
    }
    assert programs == {program_of(plan.bases[grid.MLP])}


def test_a_config_without_an_mlp_has_no_grid():
    config = tiny_run.digits(models={"cnn": CONFIG.models["cnn"]}, architectures=("cnn",))
    with pytest.raises(ValueError, match="is of MLPs"):
        grid.design(config)


@pytest.fixture(scope="module")
def measured(digits):
    """The pool, a small condition of the grid's kind, trained, and what is measured of it."""
    pool = data.Split(digits.train.images[:300], digits.train.labels[:300])
    condition = dataclasses.replace(
        grid.design(CONFIG).bases[grid.MLP],
        model={"kind": "mlp", "widths": (12, 12)},
        num_examples=40,
        capacity=50,
        num_holdout=60,
        num_pairs=2,
        batch_size=8,
        noise_rate=0.2,
        learning_rate=1e-2,
        probe_steps=(0, 20, 300),
    )
    population = populations.train(condition, pool)
    context = Context(jax.random.key(0), (population,), pool, CONFIG)
    return pool, population, Measured(grid.COMPLEXITY.measure(context))


@pytest.fixture(scope="module")
def agreement(measured):
    pool, population, _ = measured
    context = Context(jax.random.key(0), (population,), pool, CONFIG)
    return Measured(grid.AGREEMENT.measure(context))


def _value(measured, name, pair, side):
    """One number of the model A (side 0) or B of a pair."""
    if name in grid.RIVALS:
        return measured.read("rivals", "pair", "model", measure=name)[pair, side]
    return measured.read(name, "pair", "model")[pair, side]


@functools.partial(jax.jit, static_argnums=0)
def _of_one_model(apply_fn, params, x, labels, draws):
    """What the library says of one model alone, the Hessian, and the loss after each draw."""
    flat, unravel = ravel_pytree(params)

    def loss_fn(flat):
        return losses.cross_entropy(apply_fn(unravel(flat), x), labels).mean()

    measures = {
        "parameter_norm": landscapes.parameter_norm(params),
        "log_spectral_product": landscapes.log_spectral_product(params),
        "log_frobenius_product": landscapes.log_frobenius_product(params),
        "path_norm": landscapes.path_norm(apply_fn, params, jnp.ones((1, 8, 8, 1))),
        "margin": landscapes.margin_quantile(apply_fn(params, x), labels),
        "gradient_norm": jnp.linalg.norm(jax.grad(loss_fn)(flat)),
    }
    risen = jax.vmap(lambda draw: loss_fn(flat + draw))(draws) - loss_fn(flat)
    return measures, jax.hessian(loss_fn)(flat), risen.mean()


@pytest.mark.parametrize(("pair", "side"), [(0, 0), (1, 1)])
def test_measures_are_those_of_each_model_on_its_own_half(measured, pair, side):
    pool, population, complexity = measured
    rows = np.asarray(population.halves[side].indices[pair])[:40]
    labels = jnp.asarray(population.trained_labels[pair, side])[:40]
    params = jax.tree.map(lambda leaf: leaf[pair, side], population.params)
    sigma = _value(complexity, "flatness", pair, side)
    draws = sigma * np.random.default_rng(0).normal(size=(400, ravel_pytree(params)[0].size))
    expected, hessian, risen = _of_one_model(
        population.apply_fn,
        params,
        jnp.asarray(pool.images[rows], jnp.float32),
        labels,
        jnp.asarray(draws, jnp.float32),
    )
    for name, value in expected.items():
        assert _value(complexity, name, pair, side) == pytest.approx(float(value), rel=1e-3), name
    values = np.linalg.eigvalsh(hessian)
    top = values[np.argmax(np.abs(values))]
    # Twenty steps of power iteration, from below.
    assert 0.8 * top < _value(complexity, "sharpness", pair, side) < 1.001 * top
    assert _value(complexity, "worst_case", pair, side) > 0
    # A rise of .1, of five draws that differ much.
    assert 0.05 < float(risen) < 0.2


def test_early_coherence_is_that_of_step_twenty(measured):
    pool, population, complexity = measured
    walk = populations.retrace(population.condition, pool, steps=(0, 20), num_pairs=2)
    images = jnp.asarray(pool.images, jnp.float32)
    half, labels = population.halves.a, population.trained_labels
    early, start = (jax.tree.map(lambda leaf, t=t: leaf[0, 0, t], walk) for t in (1, 0))
    scale = jax.jit(functools.partial(meeting.noise_scale, population.apply_fn))(
        early, images[half.indices[0]], labels[0, 0], half.mask[0]
    )
    assert _value(complexity, "early_noise", 0, 0) == pytest.approx(float(scale.noise), rel=1e-3)
    x, y = images[half.indices[0]], labels[0, 0]

    def loss_fn(params):
        values = losses.cross_entropy(population.apply_fn(params, x), y)
        return losses.masked_mean(values, half.mask[0])

    square = ravel_pytree(jax.grad(loss_fn)(early))[0] @ ravel_pytree(jax.grad(loss_fn)(early))[0]
    assert _value(complexity, "early_square", 0, 0) == pytest.approx(float(square), rel=1e-3)
    final = jax.tree.map(lambda leaf: leaf[0, 0], population.params)
    expected = landscapes.parameter_distance(final, start)
    assert _value(complexity, "distance", 0, 0) == pytest.approx(float(expected), rel=1e-4)


def test_every_measure_is_there(measured):
    *_, complexity = measured
    dataset = complexity.dataset
    assert set(dataset.data_vars) == {"rivals", "early_square", "early_noise", "finite"}
    assert dataset["measure"].values.tolist() == list(grid.RIVALS)
    assert dataset["rivals"].shape == (2, 2, len(grid.RIVALS)) and len(grid.RIVALS) >= 10
    assert all(np.isfinite(variable).all() for variable in dataset.data_vars.values())


# Agreement


def _of_pair(population, pair):
    params = jax.tree.map(lambda leaf: leaf[pair], population.params)
    return [
        functools.partial(population.apply_fn, jax.tree.map(lambda leaf, i=i: leaf[i], params))
        for i in (0, 1)
    ]


def test_terms_are_those_of_the_library(measured, agreement):
    pool, population, _ = measured
    for pair in range(2):
        a, b = _of_pair(population, pair)
        rows = np.asarray(population.halves.s.indices[pair])
        x, y = jnp.asarray(pool.images[rows], jnp.float32), jnp.asarray(pool.labels[rows], int)
        terms = agreement.read("terms", "pair", "space", "term")[pair]
        spaces = dict(zip(grid.SPACES, terms, strict=True))
        np.testing.assert_allclose(spaces["values"], meeting.function_terms(a(x), b(x)), rtol=1e-3)
        np.testing.assert_allclose(
            spaces["jacobians"], meeting.jacobian_coefficient(a, b, x).terms, rtol=1e-3
        )
        slopes = [
            np.asarray(jax.grad(lambda x, fn=fn, y=y: losses.margin(fn(x), y).sum())(x)).ravel()
            for fn in (a, b)
        ]
        products = slopes[0] @ slopes[1], slopes[0] @ slopes[0], slopes[1] @ slopes[1]
        np.testing.assert_allclose(spaces["input gradients"], products, rtol=1e-3)
        np.testing.assert_allclose(
            agreement.read("accuracy", "pair", "model")[pair],
            [(fn(x).argmax(-1) == y).mean() for fn in (a, b)],
            rtol=1e-6,
        )
        equal = (a(x).argmax(-1) == b(x).argmax(-1)).mean()
        assert agreement.read("agreement")[pair] == pytest.approx(float(equal), rel=1e-6)
        # τ of A's direction on B: ⟨h_B, sign h_A⟩/‖h_B‖₁.
        h_a, h_b = (slope.reshape(len(x), -1) for slope in slopes)
        tau = (h_b * np.sign(h_a)).sum(1) / np.abs(h_b).sum(1)
        assert agreement.read("tau", "pair", "surrogate")[pair, 0] == pytest.approx(
            float(tau.mean()), rel=1e-3
        )


def test_rows_that_a_model_trained_on_are_marked(measured, agreement):
    pool, population, _ = measured
    rows = grid.examined_rows(CONFIG, len(pool.images))
    assert len(set(rows.tolist())) == len(rows) == len(pool.images)  # no more than there are
    unseen = agreement.read("unseen", "pair", "model", "example")
    for pair in range(2):
        for side, half in enumerate((population.halves.a, population.halves.b)):
            trained_on = set(np.asarray(half.indices[pair])[np.asarray(half.mask[pair])].tolist())
            expected = [row not in trained_on for row in rows.tolist()]
            assert unseen[pair, side].tolist() == expected
        a, _ = _of_pair(population, pair)
        x = jnp.asarray(pool.images[rows], jnp.float32)
        margin = -losses.margin(a(x), jnp.asarray(pool.labels[rows], int))
        np.testing.assert_allclose(
            agreement.read("margin", "pair", "model", "example")[pair, 0], margin, atol=1e-3
        )


def test_a_model_agrees_with_itself_wholly(measured):
    pool, population, _ = measured
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[:, 0]] * 2, 1), population.params)
    twin = population.replace(params=same)
    context = Context(jax.random.key(0), (twin,), pool, CONFIG)
    measured = Measured(grid.AGREEMENT.measure(context))
    for name in ("cka", "cosine", "agreement"):
        np.testing.assert_allclose(measured.read(name), 1, rtol=1e-5)
    terms = measured.read("terms", "pair", "space", "term")
    np.testing.assert_allclose(terms, terms[..., :1] * np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(measured.read("tau", "pair", "surrogate"), 1, rtol=1e-5)
