"""The grid of G3: a full factorial plan, and what is measured of each of its models."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support import tiny_run

from halfway import data, landscapes, losses, meeting, populations
from halfway.lab.measurements import grid
from halfway.lab.measurements.context import Context
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.study.records import Measured
from halfway.populations import program_of

CONFIG = tiny_run.digits()


@pytest.mark.quick
def test_every_combination_of_levels_is_there_once():
    cells = grid.cells(CONFIG)
    assert len(cells) == 2 ** len(grid.FACTORS) == 128
    assert {cell.levels for cell in cells} == set(itertools.product((0, 1), repeat=7))
    assert len({cell.condition.id for cell in cells}) == 128
    # Each factor is the one field, or the one part of the model, that it names.
    for place, factor in enumerate(grid.FACTORS):
        for cell in cells:
            twin = cells[_index(cells, cell.levels, place)].condition
            changed = {
                field.name
                for field in dataclasses.fields(twin)
                if getattr(twin, field.name) != getattr(cell.condition, field.name)
            }
            expected = {"depth": {"model", "architecture"}}.get(factor.name, {factor.name})
            assert changed == expected


def _index(cells, levels, place):
    other = tuple(1 - v if i == place else v for i, v in enumerate(levels))
    return [cell.levels for cell in cells].index(other)


@pytest.mark.quick
def test_depth_alone_is_another_program():
    cells = grid.cells(CONFIG)
    assert len({program_of(cell.condition) for cell in cells}) == 2
    assert all(cell.condition.stop_loss == grid.STOP_LOSS for cell in cells)
    assert all(cell.condition.num_pairs == 8 for cell in cells)


def test_a_run_without_evidence_has_a_quarter_of_the_grid():
    cells = grid.cells(tiny_run.digits("smoke"))
    assert len(cells) == 32 and {cell.condition.num_pairs for cell in cells} == {4}
    whole = {cell.levels for cell in grid.cells(CONFIG)}
    assert {cell.levels for cell in cells} == {c for c in whole if not (c[2] or c[5])}
    assert len({program_of(cell.condition) for cell in cells}) == 1


def test_a_config_without_an_mlp_has_no_grid():
    config = tiny_run.digits(models={"cnn": CONFIG.models["cnn"]}, architectures=("cnn",))
    with pytest.raises(ValueError, match="the grid of G3 is of MLPs"):
        grid.cells(config)


@pytest.fixture(scope="module")
def measured(digits):
    """The pool, a small condition of the grid's kind, trained, and what is measured of it."""
    pool = data.Split(digits.train.images[:300], digits.train.labels[:300])
    condition = dataclasses.replace(
        grid.cells(CONFIG)[-1].condition,
        model={"kind": "mlp", "widths": (12, 12)},
        width=9,
        num_examples=40,
        capacity=50,
        num_holdout=60,
        num_pairs=2,
        batch_size=8,
        batch_capacity=16,
        stop_loss=0.3,
        learning_rate=1e-2,
        probe_steps=(0, 20, 300),
    )
    population = populations.train(condition, pool)
    context = Context(jax.random.key(0), (population,), pool, CONFIG)
    return pool, population, Measured(grid.COMPLEXITY.measure(context))


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
    assert _value(complexity, "early_signal", 0, 0) == pytest.approx(float(scale.signal), rel=1e-3)
    final = jax.tree.map(lambda leaf: leaf[0, 0], population.params)
    expected = landscapes.parameter_distance(final, start)
    assert _value(complexity, "distance", 0, 0) == pytest.approx(float(expected), rel=1e-4)


def test_pairs_whose_models_both_stopped_before_the_last_step_came_to_the_loss(measured):
    pool, population, _ = measured
    learned = Measured(LEARNING.measure(Context(jax.random.key(0), (population,), pool, CONFIG)))
    early = (learned.read("num_steps", "pair", "model") < 300).all(1)
    assert early.tolist() == [True, False]
    np.testing.assert_array_equal(grid._reached(learned, population.condition.stop_loss), early)


def test_every_measure_is_there(measured):
    *_, complexity = measured
    dataset = complexity.dataset
    assert set(dataset.data_vars) == {"rivals", "early_signal", "early_noise", "finite"}
    assert dataset["measure"].values.tolist() == list(grid.RIVALS)
    assert dataset["rivals"].shape == (2, 2, len(grid.RIVALS)) and len(grid.RIVALS) >= 10
    assert all(np.isfinite(variable).all() for variable in dataset.data_vars.values())
