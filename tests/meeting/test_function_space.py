"""Coefficients in function space against dense Jacobians, closed forms and independent draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import meeting, models

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


@functools.cache
def network(num_classes=3, shape=(2, 3, 1)):
    """An MLP as a function of parameters, and parameters of several members `[M]`."""
    config = {"kind": "mlp", "widths": (7,), "activation": "tanh"}
    module = models.build(config, num_classes=num_classes)
    init = lambda key: module.init(key, jnp.zeros((1, *shape)))["params"]  # noqa: E731
    params = jax.jit(jax.vmap(init))(jax.random.split(KEY, 4))

    def apply_fn(params, x):
        return jnp.asarray(module.apply({"params": params}, x))

    return apply_fn, params


def logits_fns(num_classes=3, shape=(2, 3, 1)):
    apply_fn, params = network(num_classes, shape)
    return [
        functools.partial(apply_fn, jax.tree.map(lambda leaf, i=i: leaf[i], params)) for i in (0, 1)
    ]


def inputs(size=11, shape=(2, 3, 1)):
    return jnp.asarray(np.random.default_rng(1).normal(size=(size, *shape)), jnp.float32)


def centred_jacobians(fn, x):
    """`[B, C, D]` by differentiating each example alone."""
    single = jax.vmap(jax.jacobian(lambda image: fn(image[None])[0]))(x)
    single = np.asarray(single, np.float64).reshape(x.shape[0], single.shape[1], -1)
    return single - single.mean(1, keepdims=True)


def dense(x, num_classes=3):
    shape = x.shape[1:]
    a, b = (centred_jacobians(fn, x) for fn in logits_fns(num_classes, shape))
    return (a * b).sum((1, 2)), (a * a).sum((1, 2)), (b * b).sum((1, 2))


# Values


def test_the_coefficient_of_values_by_hand():
    a, b = RNG.normal(size=(2, 5, 6, 4))  # five members
    centred = [z - z.mean(-1, keepdims=True) for z in (a, b)]
    expected = (centred[0] * centred[1]).sum() / (centred[0] ** 2).sum()
    a, b = jnp.float32(a), jnp.float32(b)
    assert meeting.function_coefficient(a, b) == pytest.approx(expected, rel=1e-5)
    terms = meeting.function_terms(a, b)
    assert terms.product.shape == (5,)
    assert terms.product.sum() / terms.followed.sum() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(terms.other, (centred[1] ** 2).sum((1, 2)), rtol=1e-5)


@pytest.mark.quick
def test_what_values_do_not_depend_on():
    a, b = jnp.float32(RNG.normal(size=(2, 6, 4)))
    value = meeting.function_coefficient(a, b)
    shift = jnp.float32(RNG.normal(size=(6, 1)) * 10)
    assert meeting.function_coefficient(a + shift, b - shift) == pytest.approx(
        float(value), abs=1e-5
    )
    assert meeting.function_coefficient(2 * a, 2 * b) == pytest.approx(float(value), rel=1e-5)
    assert meeting.function_coefficient(a, 3 * a) == pytest.approx(3, rel=1e-5)
    assert meeting.function_coefficient(a, a) == pytest.approx(1, rel=1e-6)


def test_both_directions_weigh_as_their_lengths():
    a, b = jnp.float32(RNG.normal(size=(2, 3, 6, 4)))
    terms = meeting.function_terms(a, 2 * b)
    directions = meeting.function_coefficient(a, 2 * b), meeting.function_coefficient(2 * b, a)
    weights = terms.followed.sum(), terms.other.sum()
    mean = np.average(directions, weights=weights)
    assert meeting.mutual_coefficient(terms) == pytest.approx(mean, rel=1e-5)


def test_examples_outside_the_mask_do_not_count():
    a, b = jnp.float32(RNG.normal(size=(2, 6, 4)))
    spoilt = a.at[4:].set(jnp.nan)
    mask = jnp.arange(6) < 4
    for x, y in zip(
        meeting.function_terms(spoilt, b, mask), meeting.function_terms(a[:4], b[:4]), strict=True
    ):
        assert x == pytest.approx(float(y), rel=1e-6)


# Jacobians


@pytest.mark.parametrize(
    ("num_classes", "shape"), [(3, (2, 3, 1)), (9, (2, 2, 1))], ids=["classes", "inputs"]
)
def test_exact_terms_are_those_of_dense_jacobians(num_classes, shape):
    """The shorter side is walked: three classes, or four inputs of nine classes."""
    x = inputs(shape=shape)
    result = meeting.jacobian_coefficient(*logits_fns(num_classes, shape), x, chunk_size=4)
    product, followed, other = (values.sum() for values in dense(x, num_classes))
    np.testing.assert_allclose(result.terms, [product, followed, other], rtol=1e-4)
    assert result.estimate == pytest.approx(product / followed, rel=1e-4)
    assert result.standard_error == 0


def test_linear_models_have_the_coefficient_of_their_weights():
    weights = RNG.normal(size=(2, 6, 4))
    a, b = (lambda x, w=w: x.reshape(len(x), -1) @ w for w in jnp.float32(weights))
    centred = weights - weights.mean(-1, keepdims=True)
    expected = (centred[0] * centred[1]).sum() / (centred[0] ** 2).sum()
    result = meeting.jacobian_coefficient(a, b, inputs())
    assert result.estimate == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("num_classes", "shape"), [(9, (3, 5, 1)), (9, (2, 3, 1))], ids=["classes", "inputs"]
)
def test_probes_are_unbiased_and_their_error_is_right(num_classes, shape):
    x = inputs(6, shape)
    fns = logits_fns(num_classes, shape)
    measure = lambda key: meeting.jacobian_coefficient(  # noqa: E731
        *fns, x, key, num_probes=3, chunk_size=4
    )
    results = jax.jit(jax.vmap(measure))(jax.random.split(KEY, 600))
    sums = np.stack(results.terms, -1).astype(np.float64)
    exact = [values.sum() for values in dense(x, num_classes)]
    z = (sums.mean(0) - exact) / (sums.std(0) / np.sqrt(len(sums)))
    assert np.abs(z).max() < 4
    error = np.sqrt((np.asarray(results.standard_error) ** 2).mean())
    assert error == pytest.approx(float(np.std(results.estimate)), rel=0.15)
    assert error > 0


def test_few_classes_are_exact_with_a_key_too():
    x = inputs()
    with_key = meeting.jacobian_coefficient(*logits_fns(), x, KEY)
    without = meeting.jacobian_coefficient(*logits_fns(), x)
    assert with_key.standard_error == 0
    assert with_key.estimate == without.estimate


@pytest.mark.parametrize("key", [None, KEY], ids=["exact", "probed"])
def test_chunks_masks_jit_and_vmap_change_nothing(key):
    apply_fn, params = network()
    x, mask = inputs(), jnp.arange(11) < 8

    def measure(chunk_size, x=x, mask=mask, members=(0, 1)):
        fns = [
            functools.partial(apply_fn, jax.tree.map(lambda leaf, i=i: leaf[i], params))
            for i in members
        ]
        options = {"num_probes": 2, "mask": mask, "chunk_size": chunk_size}
        return meeting.jacobian_coefficient(*fns, x, key, **options).terms

    whole = measure(None)
    rounding = 1e-6 * float(whole.followed)  # products may cancel
    spoilt = x.at[8:].set(jnp.nan)
    for other in (measure(3), jax.jit(lambda x: measure(4, x))(x), measure(None, spoilt)):
        np.testing.assert_allclose(other, whole, rtol=1e-5, atol=rounding)

    def pair(a, b):
        fns = (functools.partial(apply_fn, p) for p in (a, b))
        options = {"num_probes": 2, "mask": mask, "chunk_size": 3}
        return meeting.jacobian_coefficient(*fns, x, key, **options).terms

    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i : i + 2], params) for i in (0, 2))
    mapped = jax.jit(jax.vmap(pair))(first, second)
    alone = [measure(None, members=members) for members in ((0, 2), (1, 3))]
    np.testing.assert_allclose(
        mapped, np.stack([np.stack(terms) for terms in alone], 1), rtol=1e-5, atol=rounding
    )


def test_gradients_flow():
    a, _ = logits_fns()
    x = inputs()

    def scaled(scale):
        both = a, lambda x: scale * a(x)
        return meeting.jacobian_coefficient(*both, x).estimate + meeting.function_coefficient(
            both[0](x), both[1](x)
        )

    value, slope = jax.value_and_grad(scaled)(jnp.float32(0.7))
    assert value == pytest.approx(1.4, rel=1e-5)
    assert slope == pytest.approx(2, rel=1e-5)


def test_memory_does_not_grow_with_the_number_of_examples():
    fns = logits_fns()

    def memory(size):
        x = jax.ShapeDtypeStruct((size, 2, 3, 1), jnp.float32)
        program = jax.jit(lambda x: meeting.jacobian_coefficient(*fns, x, chunk_size=32).terms)
        return program.lower(x).compile().memory_analysis().temp_size_in_bytes

    # Beyond the inputs, which are laid out by chunks, and their mask.
    assert memory(4096) - memory(512) < 2 * (4096 - 512) * (6 * 4 + 8)


# Roughness


def test_the_roughness_identity():
    """P9: odds(μ_J) = odds(μ_f) Ω_s/Ω_v."""
    x = inputs(30)
    a, b = logits_fns()
    near = lambda x: a(x) + 0.3 * b(x)  # noqa: E731
    function = meeting.function_terms(a(x), near(x))
    jacobian = meeting.jacobian_coefficient(a, near, x).terms
    rough = meeting.roughness(function, jacobian)
    left = meeting.odds(meeting.mutual_coefficient(jacobian))
    right = meeting.odds(meeting.mutual_coefficient(function)) * rough.ratio
    assert left == pytest.approx(float(right), rel=1e-3)
    assert rough.ratio == pytest.approx(float(rough.signal / rough.noise), rel=1e-6)


def test_roughness_is_the_squared_frequency():
    """Of cos kx shared and cos mx not: k² and m², over full periods."""
    x = jnp.linspace(0, 2 * jnp.pi, 257)[:-1, None]
    k, m = 2, 5
    shared = lambda x: jnp.cos(k * x[:, 0])  # noqa: E731
    apart = lambda x: 0.5 * jnp.cos(m * x[:, 0])  # noqa: E731
    a, b = (
        lambda x, sign=sign: jnp.stack([shared(x) + sign * apart(x), jnp.zeros(len(x))], 1)
        for sign in (1, -1)
    )
    jacobian = meeting.jacobian_coefficient(a, b, x).terms
    rough = meeting.roughness(meeting.function_terms(a(x), b(x)), jacobian)
    # Half of the difference is noise: s = 1 − ¼, v = ¼ + ¼ of squared amplitudes.
    signal = (k**2 - 0.25 * m**2) / (1 - 0.25)
    assert rough.signal == pytest.approx(signal, rel=1e-3)
    assert rough.noise == pytest.approx(m**2, rel=1e-3)


def test_what_has_no_signal_has_no_roughness():
    opposed = meeting.FunctionTerms(*map(jnp.float32, (-1.0, 2.0, 2.0)))
    agreed = meeting.FunctionTerms(*map(jnp.float32, (1.0, 2.0, 2.0)))
    assert jnp.isnan(meeting.roughness(opposed, agreed).signal)
    same = meeting.FunctionTerms(*map(jnp.float32, (2.0, 2.0, 2.0)))
    assert jnp.isnan(meeting.roughness(same, agreed).noise)
    np.testing.assert_array_equal(
        meeting.odds(jnp.array([-0.1, 1.0, 1.1])), [np.nan, np.inf, np.nan]
    )


# Mistakes


@pytest.mark.quick
@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda a, b, x: meeting.function_coefficient(a(x), b(x)[:, :2]), "one shape"),
        (lambda a, b, x: meeting.function_coefficient(a(x)[:, :1], b(x)[:, :1]), "single logit"),
        (lambda a, b, x: meeting.jacobian_coefficient(a, b, x.astype(int)), "floats, got int"),
        (lambda a, b, x: meeting.jacobian_coefficient(a, lambda x: b(x)[:, :2], x), "one shape"),
        (
            lambda a, b, x: meeting.jacobian_coefficient(
                lambda x: a(x)[:, :1], lambda x: b(x)[:, :1], x
            ),
            "single logit",
        ),
        (lambda a, b, x: meeting.jacobian_coefficient(a, b, x, KEY, num_probes=1), "at least 2"),
    ],
)
def test_mistakes_are_named(measure, message):
    with pytest.raises(ValueError, match=message):
        measure(*logits_fns(), inputs())
