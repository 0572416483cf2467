"""Random directions, grids and chunked landscapes against closed forms and plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from halfway import landscapes, losses, models, populations

KEY = jax.random.key(0)


def gaussian(shapes, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda s: rng.standard_normal(s.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module", params=["mlp", "cnn", "residual", "transformer"])
def params(request):
    fields = {
        "mlp": {"widths": (6,)},
        "cnn": {"features": (4, 3), "widths": (6,)},
        "residual": {"features": (4, 6)},
        "transformer": {"width": 8, "heads": 2, "hidden": 5},
    }
    module = models.build({"kind": request.param, **fields[request.param]}, num_classes=3)
    return gaussian(jax.eval_shape(module.init, KEY, jnp.zeros((1, 4, 4, 2)))["params"])


def _compiled(fn):
    program = jax.jit(fn, static_argnames="vectors")
    return lambda *args, **options: jax.device_get(program(*args, **options))


one_direction = _compiled(landscapes.filter_direction)
two_directions = _compiled(landscapes.filter_directions)


def norms_by_hand(path, leaf):
    """Norms of each filter, written out: output features are last."""
    name = "/".join(str(entry.key) for entry in path)
    if leaf.ndim < 2 or name.endswith("bias"):
        return None
    if "attention" in name and "out" not in name:
        return np.sqrt((leaf**2).sum(0)).ravel()  # [D, heads, features]
    return np.sqrt((leaf**2).sum(tuple(range(leaf.ndim - 1))))


def test_filters_of_a_direction_have_the_norms_of_the_weights(params):
    direction = one_direction(params, KEY)
    for (path, w), d in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(direction), strict=True
    ):
        norms = norms_by_hand(path, w)
        if norms is None:
            assert not d.any()
        else:
            np.testing.assert_allclose(norms_by_hand(path, d), norms, rtol=1e-5)
            assert np.unique(np.abs(d / w)).size > 1


def test_biases_as_a_whole_are_normalized_once(params):
    """Known elsewhere: entry by entry a bias' direction is ± the bias itself."""
    direction = one_direction(params, KEY, vectors="whole")
    num_checked = 0
    for (path, w), d in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(direction), strict=True
    ):
        if norms_by_hand(path, w) is None:
            num_checked += 1
            assert np.linalg.norm(d) == pytest.approx(np.linalg.norm(w), rel=1e-5)
            assert not np.allclose(np.abs(d), np.abs(w), rtol=1e-3)
    assert num_checked >= 2


def test_directions_are_centred_and_gaussian():
    """Known elsewhere: uniform draws in [0, 1], whose filters all point the same way."""
    params = {"kernel": jnp.ones((50, 400))}
    direction = one_direction(params, KEY)["kernel"]
    scaled = np.asarray(direction)  # each filter has norm √50: entries of variance 1
    assert abs(scaled.mean()) < 4 / np.sqrt(scaled.size)
    # Uniform on a sphere of dimension n: E x⁴ = 3 n/(n + 2).
    fourth = (scaled**4).mean()
    assert fourth == pytest.approx(3 * 50 / 52, rel=0.05)


@pytest.mark.parametrize("vectors", ["zero", "whole"])
def test_two_directions_are_normalized_and_orthogonal_at_once(params, vectors):
    both = two_directions(params, KEY, vectors=vectors)
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
    u, v = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(d)]) for d in (first, second))
    assert abs(u @ v) < 1e-5 * np.linalg.norm(u) * np.linalg.norm(v)
    for direction in (first, second):
        for (path, w), d in zip(
            jax.tree.leaves_with_path(params), jax.tree.leaves(direction), strict=True
        ):
            norms = norms_by_hand(path, w)
            if norms is not None:
                np.testing.assert_allclose(norms_by_hand(path, d), norms, rtol=1e-4)


@pytest.mark.quick
def test_a_filter_of_one_weight_has_no_second_direction():
    both = two_directions({"kernel": np.float32([[2.0, -3.0]])}, KEY)["kernel"]
    np.testing.assert_allclose(np.abs(both[0]), [[2.0, 3.0]])
    np.testing.assert_array_equal(both[1], [[0.0, 0.0]])


@pytest.mark.parametrize("index", [None, 0, 1])
def test_expected_curvature_along_a_direction(index):
    """E[dᵀHd] = Σ_f ‖w_f‖² tr(H_ff)/n_f, for one direction and for each of two."""
    rng = np.random.default_rng(0)
    params = gaussian({"a": {"kernel": np.zeros((4, 3))}, "b": {"kernel": np.zeros((3, 2))}})
    flat, _ = ravel_pytree(params)
    root = rng.standard_normal((flat.size, flat.size))
    hessian = root @ np.diag(rng.uniform(-1, 4, flat.size)) @ root.T

    def curvature(key):
        if index is None:
            direction = landscapes.filter_direction(params, key)
        else:
            both = landscapes.filter_directions(params, key)
            direction = jax.tree.map(lambda leaf: leaf[index], both)
        d = ravel_pytree(direction)[0]
        return d @ jnp.asarray(hessian, jnp.float32) @ d

    samples = np.asarray(jax.jit(jax.vmap(curvature))(jax.random.split(KEY, 20_000)))
    expected, offset = 0.0, 0
    for name, (inputs, outputs) in {"a": (4, 3), "b": (3, 2)}.items():
        kernel = np.asarray(params[name]["kernel"])
        diagonal = np.diag(hessian)[offset : offset + inputs * outputs].reshape(inputs, outputs)
        expected += ((kernel**2).sum(0) * diagonal.sum(0) / inputs).sum()
        offset += inputs * outputs
    z = (samples.mean() - expected) / (samples.std() / np.sqrt(samples.size))
    assert abs(z) < 4
    unnormalized = np.trace(hessian)
    assert abs(samples.mean() - unnormalized) > 0.1 * abs(unnormalized)


@pytest.mark.parametrize("chunk_size", [None, 4, 100])
def test_a_grid_is_the_landscape_point_by_point(chunk_size):
    params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    both = two_directions(params, KEY)
    loss_fn = lambda p: {"loss": jnp.sin(p["kernel"]).sum(), "raw": p["kernel"]}  # noqa: E731
    x, y = jnp.linspace(-1, 1, 3), jnp.linspace(0, 2, 5)
    values = jax.jit(
        lambda p: landscapes.slice_grid(loss_fn, p, both, [x, y], chunk_size=chunk_size)
    )(params)
    assert values["loss"].shape == (3, 5)
    for i in range(3):
        for j in range(5):
            moved = params["kernel"] + x[i] * both["kernel"][0] + y[j] * both["kernel"][1]
            np.testing.assert_allclose(values["raw"][i, j], moved, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(values["loss"][i, j], jnp.sin(moved).sum(), rtol=1e-4)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_curves_are_grids_of_one_direction_each(chunk_size):
    params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    draw = functools.partial(landscapes.filter_direction, params)
    directions = jax.vmap(draw)(jax.random.split(KEY, 3))
    loss_fn = lambda p: (p["kernel"] ** 2).sum()  # noqa: E731
    x = jnp.linspace(-1, 1, 4)
    values = landscapes.slice_curves(loss_fn, params, directions, x, chunk_size=chunk_size)
    assert values.shape == (3, 4)
    for i in range(3):
        lone = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], directions)
        np.testing.assert_allclose(
            values[i], landscapes.slice_grid(loss_fn, params, lone, [x]), rtol=1e-5
        )


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 50])
def test_chunks_of_examples_change_nothing(chunk_size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(7, 4)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, 7))
    kernel = jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)
    landscape = landscapes.mean_landscape(
        lambda p, x: x @ p, x, labels, loss_fns=populations.LOSSES, chunk_size=chunk_size
    )
    means = jax.jit(landscape)(kernel)
    for name, loss_fn in populations.LOSSES.items():
        assert float(means[name]) == pytest.approx(float(loss_fn(x @ kernel, labels).mean()))
    gradient = jax.grad(lambda p: landscape(p)["cross_entropy"])(kernel)
    expected = jax.grad(lambda p: losses.cross_entropy(x @ p, labels).mean())(kernel)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_ensembles_are_vmapped():
    members = {"kernel": jnp.stack([jnp.ones((3, 2)), 2 * jnp.ones((3, 2))])}
    keys = jax.random.split(KEY, 2)
    together = jax.vmap(landscapes.filter_directions)(members, keys)["kernel"]
    for i in range(2):
        alone = landscapes.filter_directions({"kernel": members["kernel"][i]}, keys[i])["kernel"]
        np.testing.assert_allclose(together[i], alone, rtol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: landscapes.filter_direction(p, KEY, vectors="one"), "unknown vectors 'one'"),
        (lambda p: landscapes.filter_directions(p, KEY, vectors="one"), "unknown vectors 'one'"),
        (
            lambda p: landscapes.slice_grid(jnp.sum, jnp.ones(2), jnp.eye(2), [jnp.ones(3)]),
            "2 directions and 1 arrays of coordinates",
        ),
    ],
)
def test_what_is_out_of_range_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call({"kernel": jnp.ones((2, 2))})
