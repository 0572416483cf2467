import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from halfway import losses

ALL = [losses.cross_entropy, losses.brier, losses.error, losses.margin]
DIFFERENTIABLE = [losses.cross_entropy, losses.brier, losses.margin]


def draw(num_examples=64, num_classes=5, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((num_examples, num_classes))
    return logits.astype(np.float32), rng.integers(num_classes, size=num_examples)


def softmax_and_onehot(logits, labels):
    return scipy.special.softmax(logits.astype(np.float64), axis=1), np.eye(logits.shape[1])[labels]


def test_hand_computed():
    # Probabilities 1/2, 1/3, 1/6.
    logits = jnp.log(jnp.array([[3.0, 2.0, 1.0]] * 3))
    labels = jnp.array([0, 1, 2])
    np.testing.assert_allclose(
        losses.cross_entropy(logits, labels), np.log([2.0, 3.0, 6.0]), rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.brier(logits, labels), [14 / 36, 9 / 36 + 16 / 36 + 1 / 36, 38 / 36], rtol=1e-6
    )
    np.testing.assert_array_equal(losses.error(logits, labels), [0, 1, 1])
    np.testing.assert_allclose(
        losses.margin(logits, labels), np.log([2 / 3, 3 / 2, 3.0]), rtol=1e-6
    )


def test_limits_of_the_brier_score():
    logits = jnp.array([[100.0, -100.0, -100.0], [-100.0, 100.0, -100.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(
        losses.brier(logits, jnp.zeros(3, int)), [0, 2, 1 - 1 / 3], atol=1e-6
    )


@pytest.mark.parametrize("loss_fn", ALL)
def test_against_numpy_in_double_precision(loss_fn):
    logits, labels = draw()
    p, onehot = softmax_and_onehot(logits, labels)
    others = np.where(onehot == 1, -np.inf, logits).max(axis=1)
    expected = {
        "cross_entropy": -np.log((p * onehot).sum(axis=1)),
        "brier": ((p - onehot) ** 2).sum(axis=1),
        "error": (logits.argmax(axis=1) != labels).astype(float),
        "margin": others - (logits * onehot).sum(axis=1),
    }[loss_fn.__name__]
    result = loss_fn(jnp.asarray(logits), jnp.asarray(labels))
    assert result.shape == labels.shape
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("loss_fn", DIFFERENTIABLE)
def test_gradients_have_their_closed_form(loss_fn):
    logits, labels = draw()
    p, onehot = softmax_and_onehot(logits, labels)
    runner_up = np.where(onehot == 1, -np.inf, logits).argmax(axis=1)
    r = p - onehot
    expected = {
        "cross_entropy": r,
        "brier": 2 * p * (r - (r * p).sum(axis=1, keepdims=True)),
        "margin": np.eye(logits.shape[1])[runner_up] - onehot,
    }[loss_fn.__name__]
    gradient = jax.grad(lambda z: loss_fn(z, jnp.asarray(labels)).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_fn", DIFFERENTIABLE)
def test_gradients_against_finite_differences(loss_fn):
    logits, labels = draw(num_examples=6, scale=1.0, seed=1)
    direction = draw(num_examples=6, scale=1.0, seed=2)[0]
    labels = jnp.asarray(labels)
    _, slope = jax.jvp(lambda z: loss_fn(z, labels), (logits,), (direction,))
    h = 1e-2
    finite = (loss_fn(logits + h * direction, labels) - loss_fn(logits - h * direction, labels)) / (
        2 * h
    )
    np.testing.assert_allclose(slope, finite, rtol=2e-3, atol=2e-4)


def test_ties_go_to_the_first_class():
    logits = jnp.zeros((3, 3))
    labels = jnp.arange(3)
    np.testing.assert_array_equal(losses.error(logits, labels), [0, 1, 1])
    np.testing.assert_array_equal(losses.margin(logits, labels), [0, 0, 0])
    gradient = jax.grad(lambda z: losses.margin(z, labels).sum())(logits)
    np.testing.assert_array_equal(gradient, [[-1, 1, 0], [1, -1, 0], [1, 0, -1]])


def test_margin_is_positive_exactly_where_error_is_one():
    logits, labels = draw(num_examples=2000)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    error = np.asarray(losses.error(logits, labels))
    assert 0 < error.mean() < 1
    np.testing.assert_array_equal(error == 1, losses.margin(logits, labels) > 0)


@pytest.mark.parametrize("loss_fn", DIFFERENTIABLE)
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_logits_stay_finite(loss_fn, scale):
    logits = scale * jnp.array([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    labels = jnp.array([1, 0, 2])
    value, gradient = jax.value_and_grad(lambda z: loss_fn(z, labels).sum())(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_a_diverged_model_shows_in_every_loss():
    logits = jnp.array([[jnp.nan, 1.0, 0.0], [0.0, 1.0, jnp.nan], [0.0, 1.0, 0.0]])
    for loss_fn in ALL:
        finite = np.isfinite(loss_fn(logits, jnp.array([1, 1, 1])))
        np.testing.assert_array_equal(finite, [False, False, True], err_msg=loss_fn.__name__)


@pytest.mark.parametrize("loss_fn", ALL)
def test_examples_do_not_couple(loss_fn):
    logits, labels = draw(num_examples=5)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    whole = loss_fn(logits, labels)
    alone = [loss_fn(logits[i : i + 1], labels[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(whole, jnp.stack(alone), rtol=1e-6)
    stacked = jnp.stack([logits, logits[::-1]])
    mapped = jax.jit(jax.vmap(loss_fn, in_axes=(0, None)))(stacked, labels)
    looped = jnp.stack([loss_fn(z, labels) for z in stacked])
    np.testing.assert_allclose(mapped, looped, rtol=1e-6)


@pytest.mark.parametrize("loss_fn", ALL)
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


def test_margin_needs_two_classes():
    with pytest.raises(AssertionError):
        losses.margin(jnp.zeros((4, 1)), jnp.zeros(4, int))


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

    found = jax.jit(total)(jnp.float32(2))
    assert (float(found["sum"]), int(found["count"])) == (26.0, 4)
    np.testing.assert_array_equal(jax.vmap(total)(jnp.array([1.0, 2.0]))["sum"], [13.0, 26.0])
    finite = jnp.nan_to_num(values)
    gradient = jax.grad(
        lambda scale: losses.chunked_sum(sums, [scale * finite], mask, chunk_size=chunk_size)["sum"]
    )(jnp.float32(2))
    assert float(gradient) == 13.0


def test_chunks_hold_an_example_at_least():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        losses.chunked_sum(lambda mask: mask.sum(), [], jnp.ones(3, bool), chunk_size=0)


# Difference of logits ratio


def test_dlr_by_hand():
    logits = jnp.array([[5.0, 3.0, 1.0, 0.0], [3.0, 5.0, 1.0, 0.0], [0.0, 1.0, 3.0, 5.0]])
    labels = jnp.array([0, 0, 0])
    np.testing.assert_allclose(losses.dlr(logits, labels), [-2 / 4, 2 / 4, 5 / 4])
    targets = jnp.array([1, 1, 2])
    expected = [2 / (5 - 0.5), -2 / (5 - 0.5), -3 / (5 - 0.5)]
    np.testing.assert_allclose(losses.targeted_dlr(labels)(logits, targets), expected, rtol=1e-6)


def test_dlr_does_not_see_a_shift_or_a_positive_scale():
    logits, labels = draw()
    targets = (labels + 1) % 5
    targeted = losses.targeted_dlr(jnp.asarray(labels))
    for loss_fn, aims in ((losses.dlr, labels), (targeted, targets)):
        seen = loss_fn(jnp.asarray(logits), jnp.asarray(aims))
        np.testing.assert_allclose(
            loss_fn(jnp.asarray(7 * logits - 3), jnp.asarray(aims)), seen, rtol=1e-4
        )
    positive = np.asarray(losses.dlr(jnp.asarray(logits), jnp.asarray(labels))) > 0
    np.testing.assert_array_equal(positive, logits.argmax(1) != labels)


def test_the_gradient_of_dlr_flows_through_its_denominator():
    labels, targets = jnp.array([0]), jnp.array([2])
    logits = jnp.array([[5.0, 3.0, 1.5, 0.5, -1.0]])
    for loss_fn, aims in ((losses.dlr, labels), (losses.targeted_dlr(labels), targets)):
        found = jax.grad(lambda z: loss_fn(z, aims).sum())(logits)  # noqa: B023
        steps = [
            (loss_fn(logits.at[0, c].add(0.05), aims) - loss_fn(logits.at[0, c].add(-0.05), aims))
            / 0.1
            for c in range(5)
        ]
        np.testing.assert_allclose(found[0], np.concatenate(steps), rtol=1e-2, atol=1e-4)
        # Of degree 0: along the logits themselves nothing changes.
        assert abs(float((found * logits).sum())) < 1e-5
    assert abs(float(jax.grad(lambda z: losses.dlr(z, labels).sum())(logits)[0, 2])) > 0.1


def test_dlr_of_equal_logits_is_0_and_of_nan_is_nan():
    equal = jnp.ones((1, 4))
    assert losses.dlr(equal, jnp.array([1]))[0] == 0
    assert losses.targeted_dlr(jnp.array([1]))(equal, jnp.array([0]))[0] == 0
    slope = jax.grad(lambda z: losses.dlr(z, jnp.array([1])).sum())(equal)
    assert np.isfinite(slope).all()
    assert np.isnan(losses.dlr(equal.at[0, 2].set(jnp.nan), jnp.array([1]))[0])


def test_dlr_needs_enough_classes():
    with pytest.raises(ValueError, match="dlr compares the 3 largest logits, got 2 classes"):
        losses.dlr(jnp.ones((2, 2)), jnp.array([0, 1]))
    with pytest.raises(ValueError, match="targeted_dlr compares the 4 largest logits, got 3"):
        losses.targeted_dlr(jnp.array([0]))(jnp.ones((1, 3)), jnp.array([0]))
