"""The identities and laws that V1 looks at hold, and a wrong formula is noticed."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import v1 as plants
from support import tiny_run
from support.drawings import assert_drawn_on_the_axes_given

from halfway import data, meeting
from halfway.lab.measurements.context import Context
from halfway.lab.studies.v1 import linear_gaussian, measure, study
from halfway.lab.studies.v1.figures import residuals
from halfway.lab.study.records import Records

CONFIG = tiny_run.config(num_pairs=16)


def _measured():
    condition = study.measured_on(CONFIG)
    population = types.SimpleNamespace(condition=condition, finite=np.ones(16, bool))
    pool = data.load("digits").train
    datasets = {}
    for index, measurement in enumerate((measure.IDENTITIES, linear_gaussian.LINEAR_GAUSSIAN)):
        context = Context(jax.random.key(index), (population,), pool, CONFIG)
        datasets[measurement.name, condition.id] = measurement.measure(context)
    return Records(CONFIG, datasets)


@pytest.fixture(scope="module")
def records():
    with pytest.MonkeyPatch.context() as patch:
        # Half as many draws as in a run: enough, and faster.
        patch.setattr(measure, "NUM_REGRESSIONS", 128)
        return _measured()


@pytest.fixture(scope="module")
def parts(records):
    return {part.name: part for part in study.decide(records).parts}


def test_every_residual_is_within_its_margin(parts):
    assert set(parts) == set(plants.MARGINS)
    off = {name: part.estimate for name, part in parts.items() if not part.passed}
    assert not off
    assert all(part.num_pairs == 16 for part in parts.values())
    # What is exact is known to rounding, not to its margin only.
    for name in ("P1 path", "P5 first order", "P6 classes", "P8 midpoint", "P9 roughness"):
        assert abs(parts[name].estimate) < 1e-5, name


def test_laws_are_looked_at_on_both_sides_of_halfway(records):
    condition = study.measured_on(CONFIG)
    identities = records.get(measure.IDENTITIES, condition)
    spectral = identities.read("spectral_law", "setting", "space")
    first = identities.read("first_law", "block_size")
    for predicted in (spectral, first):
        assert predicted.min() < 0.3 and predicted.max() > 0.6
    assert (spectral[:, 1] < spectral[:, 0]).all()  # gradients meet less than values


def _changed(records, name, factor):
    """Records with one variable of the identities off by a factor."""
    (place, dataset), *rest = records.datasets.items()
    changed = dataset.copy(deep=True)
    changed[name] = changed[name] * factor
    return Records(CONFIG, {place: changed, **dict(rest)})


@pytest.mark.parametrize(("law", "number"), [("first_law", "P3"), ("spectral_law", "P10")])
def test_a_law_that_is_a_tenth_off_is_noticed(records, law, number):
    outcome = study.decide(_changed(records, law, 1.1))
    off = {part.name.split()[0] for part in outcome.parts if not part.passed}
    assert off == {number}
    assert outcome.p_value > 0.05 and outcome.effect.name.startswith(number)


def test_a_wrong_formula_of_the_spectral_law_is_noticed(records, monkeypatch):
    right = meeting.spectral_law

    def wrong(*arguments, **options):
        # As if the error were that of noiseless labels.
        return right(*arguments, **{**options, "noise": 0.0})

    monkeypatch.setattr(meeting, "spectral_law", wrong)
    monkeypatch.setattr(measure, "NUM_REGRESSIONS", 128)
    variables = measure._spectral_law(jax.random.key(0), 16)
    (place, dataset), *rest = records.datasets.items()
    outcome = study.decide(Records(CONFIG, {place: dataset.assign(variables), **dict(rest)}))
    off = {part.name for part in outcome.parts if not part.passed}
    assert off and all(name.startswith("P10") for name in off)


def _replicate(size=measure.HALF_SIZE):
    condition = measure.smooth(study.measured_on(CONFIG))
    pool = data.load("digits").train
    images = jnp.asarray(pool.images[: 2 * size], jnp.float32)
    a, b = (
        measure.Sample(rows, jnp.asarray(pool.labels, jnp.int32)[rows], jnp.ones(size, bool))
        for rows in (jnp.arange(size), jnp.arange(size, 2 * size))
    )
    params, other = (
        condition.module.init(key, images[:1])["params"]
        for key in jax.random.split(jax.random.key(0))
    )
    return measure.Replicate(a, b, params, other, jnp.array([2e-3, 0.0])), images, condition


def test_a_wrong_midpoint_is_noticed(monkeypatch):
    residual, scale = measure.midpoint_terms(jax.random.key(0))
    assert residual < 1e-5 * scale
    right = meeting.quadratic_midpoint
    monkeypatch.setattr(meeting, "quadratic_midpoint", lambda a, b, c: right(a, b, 2 * c))
    residual, scale = measure.midpoint_terms(jax.random.key(0))
    assert residual > study.ROUNDING_MARGIN * scale


def test_halves_of_other_sizes_than_the_matrix_counts_are_noticed(monkeypatch):
    replicate, images, condition = _replicate()
    right = meeting.meeting_matrix
    wrong_share = measure.HALF_SIZE / measure.OTHER_SIZE
    monkeypatch.setattr(
        meeting, "meeting_matrix", lambda *arguments: wrong_share * right(*arguments)
    )
    residual, scale = jax.jit(lambda r: measure.class_terms(r, images, condition))(replicate)
    assert residual > study.ROUNDING_MARGIN * scale


def test_a_residual_of_exactly_zero_is_verified(records):
    zero = study.decide(_changed(records, "residual", 0.0))
    for part in zero.parts:
        if part.name.startswith(("P1 ", "P2", "P6", "P8", "P9")):
            assert (part.estimate, part.low, part.high, part.p_value) == (0, 0, 0, 0)
            assert part.passed and part.p_reverse == 1


def test_the_effect_is_farthest_in_units_of_its_margin():
    records = plants.plant(np.random.default_rng(0), 1.0, "P8 midpoint, above")
    outcome = study.decide(records)
    # Its margin is a thousandth: others are farther from 0 and nearer in units of theirs.
    assert outcome.effect.name == "P8 midpoint"
    assert any(part.estimate > outcome.effect.estimate for part in outcome.parts)


def test_the_figure_has_a_row_for_each_residual():
    values = [[0.1, 0.0, 0.2], [1.3, -np.inf, 5.0], [0.0, 0.0, 0.0]]
    options = {"held": [True, False, True]}
    names = ["P1 path (± 0.001)", "P10 μ_f, ridge (± 0.03)", "P8 midpoint (± 0.001)"]
    ax = residuals(names, values, **options)
    assert len(ax.get_yticks()) == 3 and ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlim()[1] > 1.3
    assert ax.get_xlabel() == "residual, in units of its margin"
    assert_drawn_on_the_axes_given(lambda ax: residuals(names, values, **options, ax=ax))
