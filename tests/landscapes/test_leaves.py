"""Integers, half precision and complex numbers: one table over all that takes parameters."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from halfway import landscapes

KEY = jax.random.key(0)
INPUTS = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
INTEGERS = {"mask": np.array([True, False, True]), "steps": np.array([3, 1, 4, 1], np.int32)}
AXES = {"w": (None, "units"), "b": ("units",), "mask": (None,), "steps": ("units",)}


def parameters(kind, seed=0):
    """Returns two tensors of a dtype; "mixed" has integers and booleans beside them."""
    rng = np.random.default_rng(seed)
    dtype = {"alone": "float32", "mixed": "float32"}.get(kind, kind)
    tensors = {name: rng.standard_normal(shape) for name, shape in (("w", (3, 4)), ("b", (4,)))}
    tensors = {name: jnp.asarray(value, jnp.dtype(dtype)) for name, value in tensors.items()}
    return tensors | (jax.tree.map(jnp.asarray, INTEGERS) if kind == "mixed" else {})


def apply_fn(params, x):
    """Returns logits; a change of the integers changes them."""
    params = {**INTEGERS, **params}
    assert params["mask"].dtype == bool and params["steps"].dtype == np.int32
    hidden = jnp.tanh(x @ (params["w"] * params["mask"][:, None]) + params["b"][None])
    return hidden * params["steps"][None]


def loss_fn(params):
    return (apply_fn(params, INPUTS) ** 2).mean()


def members(params, others):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), params, others, params)


def specification(params):
    return landscapes.declare_permutations({name: AXES[name] for name in params}, params)


def plane_of(p, q):
    return landscapes.plane(p, q, jax.tree.map(lambda a, b: 2 * a - b * b, p, q))


def spread(p, key):
    return landscapes.filter_directions(p, key)


L = landscapes
TICKS = jnp.array([-0.5, 0.0, 0.5])
WEIGHTS = jnp.ones((5, 2, 4))
TABLE = {
    "along_path": lambda p, q: L.along_path(loss_fn, lambda t: L.linear_path(p, q, t), 3),
    "apply_permutations": lambda p, q: L.apply_permutations(
        specification(p), {"units": jnp.array([1, 0, 3, 2])}, p
    ),
    "bezier_path": lambda p, q: loss_fn(L.bezier_path(members(p, q), 0.3)),
    "empirical_ntk": lambda p, q: L.empirical_ntk(apply_fn, p, INPUTS, INPUTS),
    "filter_direction": lambda p, q: L.filter_direction(p, KEY, vectors="whole"),
    "filter_directions": lambda p, q: L.filter_directions(p, KEY),
    "fit_bezier": lambda p, q: L.fit_bezier(
        lambda params, key: loss_fn(params), p, q, KEY, optimizer=optax.sgd(0.1), num_steps=2
    ),
    "flatness": lambda p, q: L.flatness(loss_fn, p, KEY),
    "gauss_newton_product": lambda p, q: L.gauss_newton_product(
        lambda params: apply_fn(params, INPUTS), lambda z: (z**2).mean(), p, q
    ),
    "grouped_ntk": lambda p, q: L.grouped_ntk(apply_fn, p, INPUTS, INPUTS, WEIGHTS, WEIGHTS),
    "hessian_product": lambda p, q: L.hessian_product(loss_fn, p, q),
    "hessian_trace": lambda p, q: L.hessian_trace(loss_fn, p, KEY, num_samples=6, method="hutch++"),
    "interpolate": lambda p, q: L.interpolate(loss_fn, p, q, 3),
    "linear_path": lambda p, q: loss_fn(L.linear_path(p, q, 0.3)),
    "log_frobenius_product": lambda p, q: L.log_frobenius_product(p),
    "log_spectral_product": lambda p, q: L.log_spectral_product(p),
    "mean_landscape": lambda p, q: L.mean_landscape(
        apply_fn, INPUTS, jnp.zeros(5, int), loss_fns={"first": lambda z, y: z[:, 0]}
    )(p),
    "parameter_distance": lambda p, q: L.parameter_distance(p, q),
    "parameter_norm": lambda p, q: L.parameter_norm(p),
    "path_norm": lambda p, q: L.path_norm(
        lambda w, x: x @ w["w"] + w["b"][None], p, INPUTS[:1] * 0
    ),
    "plane": lambda p, q: loss_fn(L.plane_point(plane_of(p, q), jnp.array([0.1, 0.2]))),
    "plane_point": lambda p, q: loss_fn(L.plane_point(plane_of(p, q), jnp.array([1.0, 2.0]))),
    "project_onto_plane": lambda p, q: L.project_onto_plane(
        plane_of(p, q), jax.tree.map(lambda a, b: a * b, p, q)
    ),
    "sam_sharpness": lambda p, q: L.sam_sharpness(loss_fn, p, radius=0.5),
    "sharpness": lambda p, q: L.sharpness(loss_fn, p, KEY),
    "slice_curves": lambda p, q: L.slice_curves(loss_fn, p, spread(p, KEY), TICKS),
    "slice_grid": lambda p, q: L.slice_grid(loss_fn, p, spread(p, KEY), [TICKS, TICKS]),
    "spectral_density": lambda p, q: L.spectral_density(
        loss_fn, p, KEY, num_steps=3, num_samples=2
    ),
    "spherical_path": lambda p, q: loss_fn(L.spherical_path(p, q, 0.3)),
    "surface": lambda p, q: L.surface(loss_fn, plane_of(p, q), TICKS, TICKS),
    "top_eigenvalues": lambda p, q: L.top_eigenvalues(loss_fn, p, KEY, num_eigenvalues=2).values,
    "trace_ntk": lambda p, q: L.trace_ntk(apply_fn, p, INPUTS, INPUTS),
    "trajectory_plane": lambda p, q: L.trajectory_plane(members(p, q)).explained[:1],
    "weight_matrices": lambda p, q: L.weight_matrices(p),
    "weight_similarity": lambda p, q: L.weight_similarity(p, q),
    "worst_case_sharpness": lambda p, q: L.worst_case_sharpness(loss_fn, p, KEY, radius=0.5),
}
ON_HOST = {
    "match_many": lambda p, q: L.match_many(specification(p), members(p, q), KEY),
    "straight_through_match": lambda p, q: L.straight_through_match(
        specification(p), loss_fn, p, q, KEY, num_steps=1
    ),
    "weight_match": lambda p, q: L.weight_match(specification(p), p, q, KEY).permutations,
}
OF_NO_PARAMETERS = {
    "activation_match",
    "barrier",
    "compose_permutations",
    "identity_permutations",
    "invert_permutations",
    "kernel_alignment",
    "lanczos",
    "margin_quantile",
    "output_axes",
    "power_iteration",
    "random_permutations",
    "smooth_density",
}
OF_A_MODULE_OR_SHAPES = {"declare_permutations", "derive_permutations", "hidden_activations"}


def floating(result):
    """Returns the floating-point numbers of a result, in single precision."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(result)]
    return [np.asarray(v, np.float32) for v in leaves if jnp.issubdtype(v.dtype, jnp.floating)]


@functools.cache
def results(kind):
    """Returns what every function gives for parameters of a kind, as one program."""
    both = parameters(kind, 0), parameters(kind, 1)
    run = jax.jit(lambda p, q: {name: call(p, q) for name, call in TABLE.items()})
    return jax.device_get(run(*both))


def test_the_table_has_every_function():
    functions = {name for name in L.__all__ if inspect.isfunction(getattr(L, name))}
    assert functions == {*TABLE, *ON_HOST} | OF_NO_PARAMETERS | OF_A_MODULE_OR_SHAPES


@pytest.mark.parametrize("name", TABLE)
def test_integers_and_booleans_are_no_parameters(name):
    expected, result = floating(results("alone")[name]), floating(results("mixed")[name])
    assert expected
    for a, b in zip(expected, result, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TABLE)
def test_half_precision_is_taken(name):
    both = parameters("bfloat16", 0), parameters("bfloat16", 1)
    result, expected = (jax.eval_shape(TABLE[name], *args) for args in (both, map_single(both)))
    shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (result, expected)]
    assert shapes[0] == shapes[1]


def map_single(trees):
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), trees)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, rtol", [("bfloat16", 0.1), ("float16", 0.02)])
@pytest.mark.parametrize("name", TABLE)
def test_half_precision_works(name, dtype, rtol):
    expected, result = floating(results("alone")[name]), floating(results(dtype)[name])
    for a, b in zip(expected, result, strict=True):
        np.testing.assert_allclose(a, b, rtol=2 * rtol, atol=rtol * np.abs(a).max())


@pytest.mark.quick
@pytest.mark.parametrize("name", [*TABLE, *ON_HOST])
def test_complex_parameters_are_refused_by_name(name):
    p, q = parameters("complex64", 0), parameters("complex64", 1)
    call = (TABLE | ON_HOST)[name]
    run = (lambda: call(p, q)) if name in ON_HOST else lambda: jax.eval_shape(call, p, q)
    with pytest.raises(ValueError, match=r"'(b|w)' is complex64"):
        run()


@pytest.mark.parametrize("name", ON_HOST)
def test_what_is_computed_on_the_host_does_the_same(name):
    alone, mixed, half = (
        ON_HOST[name](parameters(kind, 0), parameters(kind, 1))
        for kind in ("alone", "mixed", "bfloat16")
    )
    for result in (mixed, half):
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(result), strict=True):
            np.testing.assert_allclose(a, b, rtol=0.1)


def test_integers_come_back_as_they_were():
    mixed, others = parameters("mixed", 0), parameters("mixed", 1)
    points = {
        "linear": L.linear_path(mixed, others, 0.5),
        "bezier": L.bezier_path(members(mixed, others), 0.5),
    }
    for name, point in points.items():
        for leaf, value in INTEGERS.items():
            assert point[leaf].dtype == value.dtype, name
            np.testing.assert_array_equal(point[leaf], value)
    product = results("mixed")["hessian_product"]
    assert not product["mask"].any() and not product["steps"].any()


@pytest.mark.quick
@pytest.mark.parametrize("params", [{}, {"steps": jnp.arange(3)}])
def test_nothing_to_move_is_said(params):
    with pytest.raises(ValueError, match="no tensor holds floating-point numbers"):
        L.linear_path(params, params, 0.5)
