"""Paths, barriers, curves and planes against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from halfway import landscapes


def tree(vector):
    """Returns a `[5]` vector as a pytree of two leaves."""
    return {"a": vector[:2], "b": vector[2:].reshape(1, 3)}


def flat(params):
    return ravel_pytree(params)[0]


@pytest.fixture
def points():
    return [jnp.asarray(v, jnp.float32) for v in np.random.default_rng(0).standard_normal((3, 5))]


def test_interpolation_of_a_quadratic_is_p8(points):
    """L at the middle is the mean of the ends minus an eighth of ΔᵀHΔ."""
    a, b, _ = points
    hessian = jnp.diag(jnp.arange(1.0, 6))

    def loss_fn(params):
        z = flat(params)
        return {"loss": 0.5 * z @ hessian @ z, "first": z[0]}

    values = landscapes.interpolate(loss_fn, tree(a), tree(b), 5)
    ends = (loss_fn(tree(a))["loss"] + loss_fn(tree(b))["loss"]) / 2
    delta = a - b
    np.testing.assert_allclose(values["loss"][2], ends - delta @ hessian @ delta / 8, rtol=1e-5)
    np.testing.assert_allclose(values["first"], jnp.linspace(a[0], b[0], 5), rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 8])
def test_chunks_change_nothing(points, chunk_size):
    def loss_fn(params):
        return jnp.sin(flat(params)).sum()

    run = jax.jit(
        lambda a, b: landscapes.interpolate(loss_fn, tree(a), tree(b), 7, chunk_size=chunk_size)
    )
    values = run(*points[:2])
    expected = [loss_fn(tree((1 - t) * points[0] + t * points[1])) for t in np.linspace(0, 1, 7)]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "values, linear, endpoints",
    [
        ([0.0, 1.0, 1.0], 0.5, 0.5),
        ([0.0, 0.0, 0.0], 0.0, 0.0),
        ([1.0, 0.0, 3.0], 0.0, 1.0),  # unequal ends alone
        ([0.0, 5.0, 2.0, 2.0, 4.0], 4.0, 3.0),
        ([2.0, 0.0, 1.0], 0.0, 0.5),
    ],
)
@pytest.mark.quick
def test_barriers_by_hand(values, linear, endpoints):
    values = jnp.asarray(values)
    assert float(landscapes.barrier(values)) == pytest.approx(linear)
    assert float(landscapes.barrier(values, baseline="endpoints")) == pytest.approx(endpoints)
    stacked = jnp.stack([values, 2 * values])[:, None]
    both = landscapes.barrier(stacked)
    np.testing.assert_allclose(both, [[linear], [2 * linear]], rtol=1e-6)


def test_a_diverged_path_has_no_barrier():
    assert np.isnan(landscapes.barrier(jnp.array([0.0, jnp.nan, 0.0])))


def test_spherical_interpolation_moves_along_the_arc(points):
    a, b, _ = points
    b = b * jnp.linalg.norm(a) / jnp.linalg.norm(b)
    arc = jnp.stack(
        [flat(landscapes.spherical_path(tree(a), tree(b), t)) for t in (0.0, 0.25, 0.5, 1.0)]
    )
    np.testing.assert_allclose(jnp.linalg.norm(arc, axis=1), jnp.linalg.norm(a), rtol=1e-5)
    np.testing.assert_allclose(arc[0], a, rtol=1e-5)
    np.testing.assert_allclose(arc[-1], b, rtol=1e-5, atol=1e-6)

    def angle(u, v):
        return jnp.arccos(u @ v / (jnp.linalg.norm(u) * jnp.linalg.norm(v)))

    assert float(angle(a, arc[1])) == pytest.approx(float(angle(a, b)) / 4, rel=1e-4)


def test_spherical_interpolation_of_parallel_and_opposite(points):
    a = points[0]
    np.testing.assert_allclose(
        flat(landscapes.spherical_path(tree(a), tree(3 * a), 0.5)), 2 * a, rtol=1e-4
    )
    assert np.isnan(flat(landscapes.spherical_path(tree(a), tree(-a), 0.5))).all()
    gradient = jax.grad(lambda t: flat(landscapes.spherical_path(tree(a), tree(a), t)).sum())(0.5)
    assert np.isfinite(gradient)


def test_bezier_is_the_bernstein_polynomial(points):
    controls = jnp.stack([*points, points[0] - points[1]])
    for t in (0.0, 0.3, 1.0):
        weights = jnp.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
        point = landscapes.bezier_path(jax.vmap(tree)(controls), t)
        np.testing.assert_allclose(flat(point), weights @ controls, rtol=1e-5, atol=1e-6)


def test_a_trained_curve_goes_round_a_hill():
    def loss_fn(params, key):
        del key
        return jnp.exp(-4 * (params**2).sum()) + 0.01 * (params**2).sum()

    start, end = jnp.array([-1.5, 0.0]), jnp.array([1.5, 0.1])
    fit = jax.jit(
        lambda key: landscapes.fit_bezier(
            loss_fn, start, end, key, optimizer=optax.adam(0.05), num_steps=400, num_bends=2
        )
    )
    controls, losses = fit(jax.random.key(0))
    np.testing.assert_array_equal(controls[0], start)
    np.testing.assert_array_equal(controls[-1], end)

    def of(point):
        return loss_fn(point, None)

    straight = landscapes.barrier(landscapes.interpolate(of, start, end, 25))
    curved = landscapes.barrier(
        landscapes.along_path(of, lambda t: landscapes.bezier_path(controls, t), 25)
    )
    assert straight > 0.9
    assert curved < 0.1
    assert losses.shape == (400,)


def test_a_curve_gets_a_new_key_each_step():
    draws = []

    def loss_fn(params, key):
        jax.debug.callback(lambda draw: draws.append(float(draw)), jax.random.uniform(key))
        return (params**2).sum()

    landscapes.fit_bezier(
        loss_fn,
        jnp.ones(2),
        -jnp.ones(2),
        jax.random.key(0),
        optimizer=optax.sgd(0.1),
        num_steps=5,
    )
    jax.effects_barrier()
    assert len(set(draws)) == 5


def test_a_plane_goes_through_its_points_and_keeps_distances(points):
    a, b, c = map(tree, points)
    plane = landscapes.plane(a, b, c)
    axes = jax.vmap(flat)(plane.axes)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-6)
    (at_a, off_a), (at_b, off_b), (at_c, off_c) = (
        landscapes.project_onto_plane(plane, p) for p in (a, b, c)
    )
    np.testing.assert_allclose(at_a, [0, 0], atol=1e-6)
    np.testing.assert_allclose(at_b, [jnp.linalg.norm(points[1] - points[0]), 0], atol=1e-5)
    assert at_c[1] > 0
    assert max(off_a, off_b, off_c) < 1e-5
    between = jnp.linalg.norm(points[2] - points[1])
    assert float(jnp.linalg.norm(at_c - at_b)) == pytest.approx(float(between), rel=1e-5)
    np.testing.assert_allclose(flat(landscapes.plane_point(plane, at_c)), points[2], atol=1e-5)


def test_projection_gives_the_distance_from_the_plane(points):
    plane = landscapes.plane(*map(tree, points))
    axes = jax.vmap(flat)(plane.axes)
    away = jnp.ones(5) - axes.T @ (axes @ jnp.ones(5))
    coordinates, distance = landscapes.project_onto_plane(
        plane, tree(points[0] + 2 * axes[0] - axes[1] + away)
    )
    np.testing.assert_allclose(coordinates, [2, -1], atol=1e-5)
    assert float(distance) == pytest.approx(float(jnp.linalg.norm(away)), rel=1e-4)


def test_points_on_a_line_span_no_plane(points):
    a, b, _ = points
    with pytest.raises(ValueError, match="lie on a line"):
        landscapes.plane(tree(a), tree(b), tree(a + 0.3 * (b - a)))
    with pytest.raises(ValueError, match="lie on a line"):
        landscapes.plane(tree(a), tree(a), tree(b))
    traced = jax.jit(lambda a, b: landscapes.plane(tree(a), tree(b), tree(a)))(a, b)
    assert np.isnan(flat(jax.tree.map(lambda leaf: leaf[1], traced.axes))).all()


def test_a_surface_is_the_landscape_at_every_point(points):
    plane = landscapes.plane(*map(tree, points))
    x, y = jnp.linspace(-1.0, 2.0, 4), jnp.linspace(0.0, 1.0, 3)

    def loss_fn(params):
        return jnp.cos(flat(params)).sum(), flat(params)

    values, where = jax.jit(lambda: landscapes.surface(loss_fn, plane, x, y, chunk_size=5))()
    assert values.shape == (3, 4)
    assert where.shape == (3, 4, 5)
    point = landscapes.plane_point(plane, jnp.array([x[3], y[1]]))
    np.testing.assert_allclose(where[1, 3], flat(point), rtol=1e-5)
    np.testing.assert_allclose(values[1, 3], loss_fn(point)[0], rtol=1e-5)


def test_the_plane_of_a_planted_trajectory_is_recovered():
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.standard_normal((5, 3)))
    steps = np.linspace(1, 0, 20)
    planted = np.stack([4 * steps, np.sin(np.pi * steps), 0.01 * steps * (1 - steps)], 1)
    trajectory = jax.vmap(tree)(jnp.asarray(planted @ axes.T + 1.0, jnp.float32))
    fitted = landscapes.trajectory_plane(trajectory)
    inside = jax.vmap(flat)(fitted.plane.axes)
    np.testing.assert_allclose(inside @ inside.T, np.eye(2), atol=1e-4)
    assert np.linalg.norm(inside @ axes[:, 2]) < 0.01  # the planted plane, not its normal
    np.testing.assert_allclose(fitted.coordinates[-1], 0, atol=1e-6)
    assert (fitted.coordinates[0] >= 0).all()
    assert float(fitted.explained.sum()) == pytest.approx(1, abs=1e-4)
    powers = (np.asarray(fitted.coordinates) ** 2).sum(0) / ((planted - planted[-1]) ** 2).sum()
    np.testing.assert_allclose(fitted.explained, powers, rtol=1e-3)
    at, off = landscapes.project_onto_plane(
        fitted.plane, jax.tree.map(lambda leaf: leaf[4], trajectory)
    )
    np.testing.assert_allclose(at, fitted.coordinates[4], atol=1e-4)
    assert off < 0.02


def test_paths_are_vmapped_over_pairs(points):
    starts, ends = jax.vmap(tree)(jnp.stack(points)), jax.vmap(tree)(-2 * jnp.stack(points[::-1]))

    def loss_fn(params):
        return (flat(params) ** 4).sum()

    def walk(start, end):
        return landscapes.barrier(landscapes.interpolate(loss_fn, start, end, 6))

    together = jax.jit(jax.vmap(walk))(starts, ends)
    for i in range(3):
        alone = walk(tree(points[i]), tree(-2 * points[::-1][i]))
        assert float(together[i]) == pytest.approx(float(alone), rel=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a: landscapes.interpolate(jnp.sum, a, a, 1), "num_points must be at least 2"),
        (lambda a: landscapes.barrier(a, baseline="mean"), "unknown baseline 'mean'"),
        (lambda a: landscapes.trajectory_plane(a[:2, None]), "at least 3 points, got 2"),
        (
            lambda a: landscapes.fit_bezier(
                jnp.sum,
                a,
                a,
                jax.random.key(0),
                optimizer=optax.sgd(1.0),
                num_steps=1,
                num_bends=0,
            ),
            "num_bends must be at least 1, got 0",
        ),
    ],
)
def test_what_is_out_of_range_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones(4))
