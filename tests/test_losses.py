import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from halfway import losses, sharding
from halfway.attacks import base

# Compiled once for each shape, where every operation on its own would be.
CROSS_ENTROPY, BRIER, ERROR, MARGIN, LOGIT, PROBABILITY_MARGIN = ALL = [
    jax.jit(loss_fn)
    for loss_fn in (
        losses.cross_entropy,
        losses.brier,
        losses.error,
        losses.margin,
        losses.logit,
        losses.probability_margin,
    )
]
DIFFERENTIABLE = [CROSS_ENTROPY, BRIER, MARGIN, LOGIT, PROBABILITY_MARGIN]
each_loss = pytest.mark.parametrize("loss_fn", ALL, ids=lambda fn: fn.__name__)
each_differentiable = pytest.mark.parametrize("loss_fn", DIFFERENTIABLE, ids=lambda fn: fn.__name__)


@functools.cache
def slope_of(loss_fn):
    """Returns value and gradient of the sum of a loss, compiled."""
    return jax.jit(jax.value_and_grad(lambda logits, labels: loss_fn(logits, labels).sum()))


def draw(num_examples=64, num_classes=5, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((num_examples, num_classes))
    return logits.astype(np.float32), rng.integers(num_classes, size=num_examples)


def softmax_and_onehot(logits, labels):
    return scipy.special.softmax(logits.astype(np.float64), axis=1), np.eye(logits.shape[1])[labels]


@pytest.mark.quick
def test_hand_computed():
    # Probabilities 1/2, 1/3, 1/6.
    logits = jnp.asarray(np.log([[3.0, 2.0, 1.0]] * 3), jnp.float32)
    labels = jnp.array([0, 1, 2])
    np.testing.assert_allclose(CROSS_ENTROPY(logits, labels), np.log([2.0, 3.0, 6.0]), rtol=1e-6)
    np.testing.assert_allclose(
        BRIER(logits, labels), [14 / 36, 9 / 36 + 16 / 36 + 1 / 36, 38 / 36], rtol=1e-6
    )
    np.testing.assert_array_equal(ERROR(logits, labels), [0, 1, 1])
    np.testing.assert_allclose(MARGIN(logits, labels), np.log([2 / 3, 3 / 2, 3.0]), rtol=1e-6)
    np.testing.assert_allclose(LOGIT(logits, labels), -np.log([3.0, 2.0, 1.0]), rtol=1e-6)
    margins = PROBABILITY_MARGIN(logits, labels)
    np.testing.assert_allclose(margins, [-1 / 6, 1 / 6, 1 / 3], rtol=1e-6)


def test_limits_of_the_brier_score():
    logits = jnp.array([[100.0, -100.0, -100.0], [-100.0, 100.0, -100.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(BRIER(logits, jnp.zeros(3, int)), [0, 2, 1 - 1 / 3], atol=1e-6)


@each_loss
def test_against_numpy_in_double_precision(loss_fn):
    logits, labels = draw()
    p, onehot = softmax_and_onehot(logits, labels)
    others = np.where(onehot == 1, -np.inf, logits).max(axis=1)
    expected = {
        "cross_entropy": -np.log((p * onehot).sum(axis=1)),
        "brier": ((p - onehot) ** 2).sum(axis=1),
        "error": (logits.argmax(axis=1) != labels).astype(float),
        "margin": others - (logits * onehot).sum(axis=1),
        "logit": -(logits * onehot).sum(axis=1),
        "probability_margin": np.where(onehot == 1, 0, p).max(axis=1) - (p * onehot).sum(axis=1),
    }[loss_fn.__name__]
    result = loss_fn(jnp.asarray(logits), jnp.asarray(labels))
    assert result.shape == labels.shape
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


@each_differentiable
def test_gradients_have_their_closed_form(loss_fn):
    logits, labels = draw()
    p, onehot = softmax_and_onehot(logits, labels)
    runner_up = np.where(onehot == 1, -np.inf, logits).argmax(axis=1)
    ahead = np.eye(logits.shape[1])[runner_up] - onehot
    r = p - onehot
    expected = {
        "cross_entropy": r,
        "brier": 2 * p * (r - (r * p).sum(axis=1, keepdims=True)),
        "margin": ahead,
        "logit": -onehot,
        "probability_margin": p * (ahead - (p * ahead).sum(axis=1, keepdims=True)),
    }[loss_fn.__name__]
    _, gradient = slope_of(loss_fn)(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@each_differentiable
def test_gradients_against_finite_differences(loss_fn):
    logits, labels = draw(num_examples=6, scale=1.0, seed=1)
    direction = draw(num_examples=6, scale=1.0, seed=2)[0]
    labels = jnp.asarray(labels)
    along = jax.jit(lambda z, v: jax.jvp(lambda z: loss_fn(z, labels), (z,), (v,)))
    _, slope = along(logits, direction)
    h = 1e-2
    finite = (loss_fn(logits + h * direction, labels) - loss_fn(logits - h * direction, labels)) / (
        2 * h
    )
    np.testing.assert_allclose(slope, finite, rtol=2e-3, atol=2e-4)


def test_ties_go_to_the_first_class():
    logits = jnp.zeros((3, 3))
    labels = jnp.arange(3)
    np.testing.assert_array_equal(ERROR(logits, labels), [0, 1, 1])
    np.testing.assert_array_equal(MARGIN(logits, labels), [0, 0, 0])
    _, gradient = slope_of(MARGIN)(logits, labels)
    np.testing.assert_array_equal(gradient, [[-1, 1, 0], [1, -1, 0], [1, 0, -1]])


@pytest.mark.parametrize("margin_fn", [MARGIN, PROBABILITY_MARGIN], ids=lambda fn: fn.__name__)
def test_margins_are_positive_exactly_where_error_is_one(margin_fn):
    logits, labels = draw(num_examples=2000)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    error = np.asarray(ERROR(logits, labels))
    assert 0 < error.mean() < 1
    np.testing.assert_array_equal(error == 1, margin_fn(logits, labels) > 0)


@each_differentiable
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_logits_stay_finite(loss_fn, scale):
    rows = np.float32([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    logits = jnp.asarray(np.float32(scale) * rows)
    labels = jnp.array([1, 0, 2])
    value, gradient = slope_of(loss_fn)(logits, labels)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_a_diverged_model_shows_in_every_loss():
    logits = jnp.array([[jnp.nan, 1.0, 0.0], [0.0, 1.0, jnp.nan], [0.0, 1.0, 0.0]])
    for loss_fn in ALL:
        finite = np.isfinite(loss_fn(logits, jnp.array([1, 1, 1])))
        np.testing.assert_array_equal(finite, [False, False, True], err_msg=loss_fn.__name__)


@each_loss
def test_examples_do_not_couple(loss_fn):
    logits, labels = draw(num_examples=5)
    whole = loss_fn(logits, labels)
    alone = [loss_fn(logits[i : i + 1], labels[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(whole, np.stack(alone), rtol=1e-6)
    stacked = np.stack([logits, logits[::-1]])
    mapped = jax.jit(jax.vmap(loss_fn, in_axes=(0, None)))(stacked, labels)
    looped = np.stack([loss_fn(z, labels) for z in stacked])
    np.testing.assert_allclose(mapped, looped, rtol=1e-6)


@each_loss
def test_wrong_shapes_and_types_are_refused(loss_fn):
    logits, labels = jnp.zeros((4, 3)), jnp.zeros(4, int)
    for bad_logits, bad_labels in [
        (logits, labels[:3]),
        (logits[0], labels),
        (logits, jnp.zeros((4, 3), int)),
        (logits, jnp.zeros(4)),
    ]:
        with pytest.raises(AssertionError):
            loss_fn(bad_logits, bad_labels)


def test_margins_need_two_classes():
    for loss_fn in (losses.margin, losses.probability_margin):
        with pytest.raises(AssertionError):
            loss_fn(jnp.zeros((4, 1)), jnp.zeros(4, int))


def test_the_logit_of_a_target_is_what_an_attack_with_targets_raises():
    logits, targets = draw()
    goal = base.objective(lambda x: x, jnp.asarray(targets), losses.logit, jnp.asarray(targets))
    value, seen = goal.value(jnp.asarray(logits))
    np.testing.assert_array_equal(value, logits[np.arange(len(logits)), targets])
    np.testing.assert_array_equal(seen, logits)


def test_a_probability_margin_ends_where_a_model_is_certain():
    logits = jnp.array([[1e4, 0.0, -1e4], [0.0, 1e4, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(PROBABILITY_MARGIN(logits, jnp.zeros(3, int)), [-1, 1, 0])
    _, gradient = slope_of(PROBABILITY_MARGIN)(logits, jnp.zeros(3, int))
    np.testing.assert_allclose(gradient, [[0] * 3, [0] * 3, [-1 / 3, 1 / 3, 0]], atol=1e-6)


def test_masked_mean_hand_computed():
    values = jnp.array([[1.0, 2.0, 6.0], [4.0, jnp.nan, jnp.inf]])
    mask = jnp.array([[True, False, True], [True, False, False]])
    np.testing.assert_allclose(losses.masked_mean(values, mask), 11 / 3)
    np.testing.assert_allclose(losses.masked_mean(values, mask, axis=1), [3.5, 4.0])
    np.testing.assert_allclose(
        losses.masked_mean(values, mask.astype(float), axis=0), [2.5, np.nan, 6.0]
    )


def test_masked_mean_broadcasts_its_mask_and_counts_each_value():
    values = jnp.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    mask = jnp.array([1, 0, 1])
    np.testing.assert_allclose(losses.masked_mean(values, mask), 4.0)
    np.testing.assert_allclose(losses.masked_mean(values, mask, axis=-1), [2.0, 6.0])


def test_masked_mean_of_nothing_is_nan():
    assert np.isnan(losses.masked_mean(jnp.ones(3), jnp.zeros(3, bool)))


def test_masked_mean_has_no_gradient_outside_the_mask():
    mask = jnp.array([1, 1, 0])
    gradient = jax.grad(lambda v: losses.masked_mean(v, mask))(jnp.array([1.0, 2.0, jnp.inf]))
    np.testing.assert_array_equal(gradient, [0.5, 0.5, 0.0])


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 5, 9])
def test_sums_over_chunks_are_the_sum_and_padding_counts_nothing(chunk_size):
    values = jnp.array([1.0, jnp.nan, 3.0, 4.0, 5.0])
    mask = jnp.array([True, False, True, True, True])

    def sums(values, mask):
        return {"sum": jnp.where(mask, values, 0).sum(), "count": mask.sum()}

    def total(scale):
        return losses.chunked_sum(sums, [scale * values], mask, chunk_size=chunk_size)

    totals = jax.jit(jax.vmap(total))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(totals["sum"], [13.0, 26.0])
    np.testing.assert_array_equal(totals["count"], [4, 4])
    finite = jnp.array([1.0, 0.0, 3.0, 4.0, 5.0])
    gradient = jax.jit(
        jax.grad(
            lambda scale: losses.chunked_sum(sums, [scale * finite], mask, chunk_size=chunk_size)[
                "sum"
            ]
        )
    )(jnp.float32(2))
    assert float(gradient) == 13.0


def test_chunks_hold_an_example_at_least():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        losses.chunked_sum(lambda mask: mask.sum(), [], jnp.ones(3, bool), chunk_size=0)


@pytest.mark.parametrize(
    ("limit", "number", "expected"),
    [
        (None, 64, None),
        (25_200, 64, None),
        (25_199, 64, 32),
        (8_400, 64, 16),  # 3 turns would be padded, 4 are not
        (8_200, 62, 21),  # neither 3, 4 nor 5 turns divide
        (1, 4, 1),
        (1, 1, None),
    ],
)
@pytest.mark.quick
def test_as_many_examples_pass_at_once_as_a_cache_holds(limit, number, expected, monkeypatch):
    """A layer of one output keeps its inputs, 400 bytes each; those of weights are taken off."""
    monkeypatch.setattr(losses, "CACHE", {} if limit is None else {"cpu": limit})
    params, x = jnp.ones((100, 1)), jax.ShapeDtypeStruct((number, 100), jnp.float32)

    def apply_fn(params, x):
        return x @ params

    assert losses.fitting_chunk(apply_fn, params, x) == expected
    traced = jax.jit(lambda *args: jnp.int32(losses.fitting_chunk(apply_fn, *args) or -1))
    assert int(traced(params, jnp.zeros(x.shape))) == (expected or -1)
    monkeypatch.setattr(sharding, "backend", lambda: "gpu")
    assert losses.fitting_chunk(apply_fn, params, x) is None


# Difference of logits ratio

DLR = jax.jit(losses.dlr)


def test_dlr_by_hand():
    logits = jnp.array([[5.0, 3.0, 1.0, 0.0], [3.0, 5.0, 1.0, 0.0], [0.0, 1.0, 3.0, 5.0]])
    labels = jnp.array([0, 0, 0])
    np.testing.assert_allclose(DLR(logits, labels), [-2 / 4, 2 / 4, 5 / 4])
    targets = jnp.array([1, 1, 2])
    expected = [2 / (5 - 0.5), -2 / (5 - 0.5), -3 / (5 - 0.5)]
    targeted = jax.jit(losses.targeted_dlr(labels))
    np.testing.assert_allclose(targeted(logits, targets), expected, rtol=1e-6)


def test_dlr_does_not_see_a_shift_or_a_positive_scale():
    logits, labels = draw()
    targets = (labels + 1) % 5
    targeted = jax.jit(losses.targeted_dlr(jnp.asarray(labels)))
    for loss_fn, aims in ((DLR, labels), (targeted, targets)):
        values = loss_fn(logits, aims)
        np.testing.assert_allclose(loss_fn(7 * logits - 3, aims), values, rtol=1e-4)
    positive = np.asarray(DLR(logits, labels)) > 0
    np.testing.assert_array_equal(positive, logits.argmax(1) != labels)


def test_the_gradient_of_dlr_flows_through_its_denominator():
    labels, targets = jnp.array([0]), jnp.array([2])
    logits = np.float32([[5.0, 3.0, 1.5, 0.5, -1.0]])
    moves = 0.05 * np.eye(5, dtype=np.float32)
    for loss_fn, aims in ((DLR, labels), (jax.jit(losses.targeted_dlr(labels)), targets)):
        gradient = np.asarray(slope_of(loss_fn)(logits, aims)[1])
        steps = [
            (loss_fn(logits + move, aims) - loss_fn(logits - move, aims)) / 0.1
            for move in moves[:, None]
        ]
        np.testing.assert_allclose(gradient[0], np.concatenate(steps), rtol=1e-2, atol=1e-4)
        # Of degree 0: along the logits themselves nothing changes.
        assert abs((gradient * logits).sum()) < 1e-5
    assert abs(float(slope_of(DLR)(logits, labels)[1][0, 2])) > 0.1


def test_dlr_of_equal_logits_is_0_and_of_nan_is_nan():
    equal, first = np.ones((1, 4), np.float32), jnp.array([1])
    assert DLR(equal, first)[0] == 0
    assert jax.jit(losses.targeted_dlr(first))(equal, jnp.array([0]))[0] == 0
    assert np.isfinite(slope_of(DLR)(equal, first)[1]).all()
    broken = equal.copy()
    broken[0, 2] = np.nan
    assert np.isnan(DLR(broken, first)[0])


def test_dlr_needs_enough_classes():
    with pytest.raises(ValueError, match="dlr compares the 3 largest logits, got 2 classes"):
        losses.dlr(jnp.ones((2, 2)), jnp.array([0, 1]))
    with pytest.raises(ValueError, match="targeted_dlr compares the 4 largest logits, got 3"):
        losses.targeted_dlr(jnp.array([0]))(jnp.ones((1, 3)), jnp.array([0]))


def test_the_squared_loss_and_its_gradient():
    """It grows with the logits themselves, and so is no member of the list above."""
    logits, labels = draw()
    onehot = np.eye(logits.shape[1])[labels]
    value_and_slope = jax.jit(jax.value_and_grad(lambda z, y: losses.squared(z, y).sum()))
    total, slope = value_and_slope(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(total, ((logits - onehot) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(slope, 2 * (logits - onehot), rtol=1e-5, atol=1e-6)
    stacked = jax.vmap(losses.squared)(jnp.stack([logits] * 2), jnp.stack([labels] * 2))
    np.testing.assert_allclose(stacked[1], ((logits - onehot) ** 2).sum(1), rtol=1e-5)
