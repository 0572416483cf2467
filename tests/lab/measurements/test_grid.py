"""The grid of G3: a full factorial plan, and what is measured of each of its models."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import data, landscapes, losses, meeting, populations
from halfway.lab.measurements import grid
from halfway.populations import program_of

CONFIG = tiny_run.digits()


def test_every_combination_of_levels_is_there_once():
    cells = grid.cells(CONFIG)
    assert len(cells) == 2 ** len(grid.FACTORS) == 128
    assert {cell.levels for cell in cells} == set(itertools.product((0, 1), repeat=7))
    assert len({cell.condition.key for cell in cells}) == 128
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
    """A small condition of the grid's kind, trained and measured."""
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
    found = grid.COMPLEXITY.measure(jax.random.key(0), [population], pool, CONFIG)
    return pool, population, found.table


def _value(table, quantity, pair, side):
    rows = table[(table.quantity == quantity) & (table.pair == pair)]
    return float(rows.loc[rows.surrogate == "AB"[side], "value"].iloc[0])


@pytest.mark.parametrize(("pair", "side"), [(0, 0), (1, 1)])
def test_measures_are_those_of_each_model_on_its_own_half(measured, pair, side):
    pool, population, table = measured
    images = jnp.asarray(pool.images, jnp.float32)
    half = population.halves[side]
    rows = np.asarray(half.indices[pair])[:40]
    labels = np.asarray(population.trained_labels[pair, side])[:40]
    params = jax.tree.map(lambda leaf: leaf[pair, side], population.params)
    x = images[rows]

    def loss_fn(params):
        return losses.cross_entropy(population.apply_fn(params, x), labels).mean()

    logits = population.apply_fn(params, x)
    expected = {
        "parameter_norm": landscapes.parameter_norm(params),
        "log_spectral_product": landscapes.log_spectral_product(params),
        "log_frobenius_product": landscapes.log_frobenius_product(params),
        "path_norm": landscapes.path_norm(population.apply_fn, params, jnp.ones((1, 8, 8, 1))),
        "margin": landscapes.margin_quantile(logits, jnp.asarray(labels)),
        "gradient_norm": landscapes.parameter_norm(jax.grad(loss_fn)(params)),
        "num_steps": population.num_steps[pair, side],
        "reached": 1.0,
    }
    for name, value in expected.items():
        assert _value(table, name, pair, side) == pytest.approx(float(value), rel=1e-3), name
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    values = np.linalg.eigvalsh(jax.jit(jax.hessian(lambda v: loss_fn(unravel(v))))(flat))
    top = values[np.argmax(np.abs(values))]
    # Twenty steps of power iteration, from below.
    assert 0.8 * top < _value(table, "sharpness", pair, side) < 1.001 * top
    assert _value(table, "worst_case", pair, side) > 0
    sigma = _value(table, "flatness", pair, side)
    draws = sigma * np.random.default_rng(0).normal(size=(400, flat.size))
    risen = jax.jit(jax.vmap(lambda u: loss_fn(unravel(flat + u))))(jnp.asarray(draws, jnp.float32))
    assert float(risen.mean() - loss_fn(params)) == pytest.approx(0.1, rel=0.5)


def test_early_coherence_is_that_of_step_twenty(measured):
    pool, population, table = measured
    walk = populations.retrace(population.condition, pool, steps=(0, 20), num_pairs=2)
    images = jnp.asarray(pool.images, jnp.float32)
    half, labels = population.halves.a, population.trained_labels
    early, start = (jax.tree.map(lambda leaf, t=t: leaf[0, 0, t], walk) for t in (1, 0))
    scale = meeting.noise_scale(
        population.apply_fn, early, images[half.indices[0]], labels[0, 0], half.mask[0]
    )
    assert _value(table, "early_noise", 0, 0) == pytest.approx(float(scale.noise), rel=1e-3)
    assert _value(table, "early_signal", 0, 0) == pytest.approx(float(scale.signal), rel=1e-3)
    final = jax.tree.map(lambda leaf: leaf[0, 0], population.params)
    expected = landscapes.parameter_distance(final, start)
    assert _value(table, "distance", 0, 0) == pytest.approx(float(expected), rel=1e-4)


def test_the_table_holds_every_measure(measured):
    *_, table = measured
    assert set(grid.RIVALS) | {"early_signal", "early_noise", "num_steps", "reached"} == set(
        table.quantity
    )
    assert len(grid.RIVALS) >= 10
    assert np.isfinite(table["value"]).all()
    assert len(table) == len(set(table.quantity)) * 4
    assert (table.subset == "own").all()
