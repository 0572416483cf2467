"""Subspaces of input space against closed forms, planted data and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import input_space

KEY = jax.random.key(5)
# Compiled once for each shape, where every operation on its own would be.
aligned = jax.jit(input_space.aligned_directions)
rescaled = jax.jit(input_space.rescale_parts)
split = jax.jit(input_space.split_on_subspace)
energy = jax.jit(input_space.subspace_energy)


def _gradients(number, size, seed=0):
    return np.random.default_rng(seed).normal(size=(number, size)).astype(np.float32)


def _basis(k, d, seed=1):
    return input_space.orthogonal_frames(jax.random.key(seed), k, d)


# Directions of equal cosine


@pytest.mark.parametrize(("k", "d"), [(1, 5), (4, 4), (16, 64), (3, 200)])
def test_aligned_directions_are_orthonormal_and_of_cosine_one_over_root_k(k, d):
    frame = jnp.asarray(_basis(k, d))
    for gradient in _gradients(4, d):
        directions = np.asarray(aligned(jnp.asarray(gradient), frame), np.float64)
        np.testing.assert_allclose(directions @ directions.T, np.eye(k), atol=2e-6)
        cosines = directions @ gradient / np.linalg.norm(gradient)
        np.testing.assert_allclose(cosines, 1 / np.sqrt(k), atol=2e-6)
        # Their sum is along the gradient: no component is left beside it.
        total = directions.sum(0) / np.sqrt(k)
        np.testing.assert_allclose(total, gradient / np.linalg.norm(gradient), atol=5e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_aligned_where_the_gradient_is_the_frame_s_mean_or_its_opposite(sign):
    frame = np.eye(6, dtype=np.float32)[:4]
    gradient = np.float32(sign * 3.0) * frame.sum(0)
    directions = np.asarray(aligned(gradient, frame))
    np.testing.assert_allclose(directions @ gradient, np.full(4, 3.0), atol=1e-5)
    np.testing.assert_allclose(directions @ directions.T, np.eye(4), atol=1e-6)


def test_aligned_does_not_care_how_long_the_gradient_is():
    frame, gradient = np.asarray(_basis(5, 9)), _gradients(1, 9)[0]
    expected = aligned(gradient, frame)
    for scale in np.float32([1e-25, 1e25]):
        np.testing.assert_allclose(aligned(scale * gradient, frame), expected, atol=1e-5)
    zero = np.asarray(aligned(np.zeros(9, np.float32), frame))
    np.testing.assert_allclose(zero @ zero.T, np.eye(5), atol=1e-6)


@pytest.mark.parametrize("num", [0, 1, 3, 8])
def test_only_the_first_directions_share_the_gradient(num):
    frame, gradient = np.asarray(_basis(8, 20)), _gradients(1, 20)[0]
    directions = np.asarray(aligned(gradient, frame, np.asarray(num)))  # a traced number
    cosines = directions @ gradient / np.linalg.norm(gradient)
    if num:
        expected = np.where(np.arange(8) < num, 1 / np.sqrt(num), 0.0)
        np.testing.assert_allclose(cosines, expected, atol=2e-6)
    np.testing.assert_allclose(directions @ directions.T, np.eye(8), atol=2e-6)


def test_one_direction_at_a_time_is_all_of_them_at_once():
    frame, gradients = np.asarray(_basis(4, 12)), _gradients(3, 12)
    together = jax.jit(jax.vmap(input_space.aligned_directions, (0, None)))(gradients, frame)
    mirrors = jax.jit(jax.vmap(input_space.mirror_onto, (0, None)))(gradients, frame)
    reflect = jax.jit(jax.vmap(input_space.reflect_directions, (0, None)))
    rows = [reflect(mirrors, row) for row in frame]
    np.testing.assert_allclose(np.stack(rows, 1), together, atol=1e-6)
    alone = np.stack([aligned(g, frame) for g in gradients])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_frames_are_orthonormal_and_uniform():
    frames = input_space.orthogonal_frames(KEY, 3, 7, shape=(2_000,)).astype(np.float64)
    products = frames @ np.swapaxes(frames, -1, -2)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-6)
    # Entries of a uniform unit vector have mean 0 and variance 1/d, whichever the row.
    error = np.sqrt(1 / 7 / 2_000)
    assert np.abs(frames.mean(0)).max() < 5 * error
    np.testing.assert_allclose((frames**2).mean(0), 1 / 7, atol=0.02)
    with pytest.raises(ValueError, match=r"num_directions must lie in \[1, 7\]"):
        input_space.orthogonal_frames(KEY, 8, 7)


@pytest.mark.quick
def test_most_directions_is_the_lemma():
    # ε‖g‖ = 3: nine directions of gain 1 at cosine 1/3, none of gain 3.1, all where none is needed.
    increase = jnp.array([1.0, 1.5, 3.0, 3.1, 0.0, -2.0, 1e-30])
    counts = input_space.most_directions(increase, jnp.full(7, 2.0), 1.5, size=12)
    assert counts.tolist() == [9, 4, 1, 0, 12, 12, 12]


def test_most_directions_reach_what_they_promise_and_one_more_would_not():
    rng, frame = np.random.default_rng(3), _basis(30, 30)
    for gradient in _gradients(20, 30, seed=4):
        norm = np.linalg.norm(gradient)
        increase = float(rng.uniform(0.25, 0.9) * norm)
        k = int(input_space.most_directions(jnp.float32(increase), jnp.float32(norm), 1.0, size=30))
        assert norm / np.sqrt(k) >= increase * (1 - 1e-5) and norm / np.sqrt(k + 1) < increase
        directions = np.asarray(aligned(gradient, frame, np.int32(k)))[:k]
        assert (directions @ gradient).min() >= increase * (1 - 1e-5)


def test_a_move_is_clipped_to_the_box_and_without_one_is_of_its_length():
    x = jnp.array([[[0.5], [0.9]], [[0.0], [0.2]]])
    directions = jnp.array([[0.6, 0.8], [-1.0, 0.0]])
    move = jax.jit(input_space.move_along, static_argnums=3)
    inside = np.asarray(move(x, directions, 0.5))
    np.testing.assert_allclose(inside[..., 0], [[0.8, 1.0], [0.0, 0.2]], atol=1e-6)
    free = np.asarray(move(x, directions, 0.5, (-np.inf, np.inf)))
    length = np.linalg.norm((free - np.asarray(x)).reshape(2, -1), axis=1)
    np.testing.assert_allclose(length, [0.5, 0.5], atol=1e-6)


def test_contrast_is_brute_force():
    rng = np.random.default_rng(6)
    surrogate, target = rng.random((2, 5, 40)) < rng.random((2, 1, 40))
    contrast = jax.device_get(jax.jit(input_space.fooling_contrast)(surrogate, target))
    for b in range(40):
        surrogate_b, other = surrogate[:, b], target[:, b]
        assert bool(contrast.mixed[b]) == (0 < surrogate_b.sum() < 5)
        expected = (
            (other[surrogate_b].mean(), other[~surrogate_b].mean())
            if 0 < surrogate_b.sum() < 5
            else (0, 0)
        )
        np.testing.assert_allclose((contrast.along[b], contrast.beside[b]), expected, atol=1e-6)
    assert 0 < np.asarray(contrast.mixed).sum() < 40


# Subspaces of data


@pytest.mark.parametrize(("number", "size"), [(300, 12), (9, 40)])  # by features, by examples
def test_principal_finds_planted_directions(number, size):
    rng = np.random.default_rng(7)
    planted = _basis(3, size).astype(np.float64)
    data = 5 + rng.normal(size=(number, 3)) * [9, 5, 2] @ planted
    data += 1e-6 * rng.normal(size=data.shape)
    subspace = input_space.principal_subspace(data, 3)
    np.testing.assert_allclose(subspace.basis @ subspace.basis.T, np.eye(3), atol=1e-9)
    # The same subspace: every planted direction is its own projection.
    np.testing.assert_allclose((planted @ subspace.basis.T) @ subspace.basis, planted, atol=1e-5)
    np.testing.assert_allclose(subspace.mean, data.mean(0))
    variances = ((data - data.mean(0)) @ subspace.basis.T).var(0)
    np.testing.assert_allclose(subspace.variance, variances, rtol=1e-8)
    assert (np.diff(subspace.variance) < 0).all()


@pytest.mark.quick
def test_principal_is_the_singular_value_decomposition_and_deterministic_in_sign():
    data = np.random.default_rng(8).normal(size=(30, 4, 5)) * np.linspace(1, 2, 5)
    subspace = input_space.principal_subspace(data, 6)
    flat = data.reshape(30, -1)
    _, singular, rows = np.linalg.svd(flat - flat.mean(0))
    np.testing.assert_allclose(subspace.variance, singular[:6] ** 2 / 30)
    np.testing.assert_allclose(np.abs((subspace.basis * rows[:6]).sum(1)), np.ones(6))
    assert (subspace.basis.max(1) >= -subspace.basis.min(1)).all()
    turned = input_space.principal_subspace(flat[::-1] + 3.0, 6)  # neither order nor mean matters
    np.testing.assert_allclose(turned.basis, subspace.basis, atol=1e-9)


def test_directions_without_variance_are_still_orthonormal():
    flat = np.zeros((6, 10))
    flat[:, 3] = np.arange(6)
    subspace = input_space.principal_subspace(flat, 4)
    np.testing.assert_allclose(subspace.basis @ subspace.basis.T, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(subspace.basis[0], np.eye(10)[3], atol=1e-12)
    assert subspace.variance[1:].max() < 1e-12


def test_local_directions_are_those_of_the_sheet_an_example_lies_on():
    rng = np.random.default_rng(9)
    # Two far sheets, each with a line of its own.
    first, second = np.zeros((2, 40, 3))
    first[:, 0] = rng.uniform(-1, 1, 40)
    second[:, 1] = rng.uniform(-1, 1, 40)
    second[:, 2] = 50.0
    data = rng.permutation(np.concatenate([first, second]))
    x = np.array([[0.1, 0.0, 0.0], [0.0, 0.1, 50.0]])
    local = input_space.local_subspace(x, data, num_neighbors=12, num_directions=1)
    np.testing.assert_allclose(local.basis[:, 0], np.eye(3)[:2], atol=1e-9)
    assert local.mean.shape == (2, 3)
    # With all as neighbours it is the global one.
    whole = input_space.local_subspace(x[:1], data, num_neighbors=80, num_directions=2)
    np.testing.assert_allclose(
        whole.basis[0], input_space.principal_subspace(data, 2).basis, atol=1e-9
    )


def test_mistakes_name_their_range():
    data = np.zeros((5, 8))
    with pytest.raises(ValueError, match=r"num_directions must lie in \[1, 4\] for 5 examples"):
        input_space.principal_subspace(data, 5)
    with pytest.raises(ValueError, match=r"num_neighbors must lie in \[2, 5\], got 6"):
        input_space.local_subspace(data, data, 6, 1)


def test_parts_obey_pythagoras_and_do_not_meet():
    basis, delta = np.asarray(_basis(4, 15)), _gradients(6, 15)
    parts = jax.device_get(split(delta, basis))
    np.testing.assert_allclose(parts.on + parts.off, delta, atol=1e-6)
    np.testing.assert_allclose((parts.on * parts.off).sum(-1), np.zeros(6), atol=1e-5)
    np.testing.assert_allclose(parts.off @ basis.T, np.zeros((6, 4)), atol=1e-5)
    on, total = jax.device_get(energy(delta, basis))
    np.testing.assert_allclose(on, (parts.on**2).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(on + (parts.off**2).sum(-1), total, rtol=1e-5)
    # Another basis of the same subspace gives the same parts.
    turn = np.asarray(_basis(4, 4, seed=2))
    np.testing.assert_allclose(split(delta, turn @ basis).on, parts.on, atol=1e-5)
    np.testing.assert_allclose(split(parts.on, basis).on, parts.on, atol=1e-5)


def test_the_energy_share_of_a_random_direction_is_k_over_d():
    directions = np.asarray(jax.random.normal(KEY, (20_000, 10)))
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    on, total = jax.device_get(energy(directions, _basis(3, 10)))
    # A Beta(3/2, 7/2): its standard deviation is √(.3 × .7/6) = .187.
    assert abs(float((on / total).mean()) - 0.3) < 4 * 0.187 / np.sqrt(20_000)


# Equal length within the box


def test_rescaled_moves_have_their_length_and_stay_in_the_box():
    rng = np.random.default_rng(10)
    x = rng.uniform(size=(50, 3, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.5] = 0.0
    direction = rng.normal(size=x.shape).astype(np.float32)
    length = np.full(50, 0.4, np.float32)
    result = rescaled(jnp.asarray(x), jnp.asarray(direction), jnp.asarray(length))
    points = np.asarray(result.points)
    assert points.min() >= 0 and points.max() <= 1
    np.testing.assert_allclose(result.length, length, atol=1e-5)
    moved = (points - x).reshape(50, -1)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), length, atol=1e-5)
    # Every pixel that the box lets move does so in the direction, by one scale.
    free = (points > 0) & (points < 1)
    scale = np.where(free, (points - x) / direction, np.nan).reshape(50, -1)
    largest, smallest = np.nanmax(scale, 1), np.nanmin(scale, 1)
    np.testing.assert_allclose(largest, smallest, rtol=1e-2, atol=1e-4)
    # However long the direction was.
    again = rescaled(jnp.asarray(x), jnp.asarray(np.float32(7) * direction), jnp.asarray(length))
    np.testing.assert_allclose(again.points, points, atol=1e-5)


def test_what_the_box_does_not_allow_is_as_long_as_it_can_be():
    x = jnp.array([[0.75, 0.5], [0.5, 0.5], [1.0, 0.0]])
    direction = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, -1.0]])
    moved = rescaled(x, direction, jnp.array([0.9, 0.3, 0.3]))
    np.testing.assert_allclose(moved.length, [0.25, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(moved.points, [[1.0, 0.5], [0.5, 0.5], [1.0, 0.0]], atol=1e-6)


# Small, large and no numbers


@pytest.mark.parametrize("scale", [1e-35, 1e-25, 1e25, 1e35])
def test_gradients_and_directions_of_any_length(scale):
    frame, gradient = jnp.eye(3)[:2], np.float32([0.0, 3.0, 4.0])
    directions = aligned(np.float32(scale) * gradient, frame)
    np.testing.assert_allclose(directions @ gradient / 5, 2 * [1 / np.sqrt(2)], rtol=1e-5)
    x, direction = jnp.array([[0.5, 0.875]]), np.float32(scale) * np.float32([[1.0, 1.0]])
    points = rescaled(x, direction, jnp.array([0.325])).points
    np.testing.assert_allclose(points, [[0.8, 1.0]], atol=1e-4)


@pytest.mark.quick
def test_what_is_no_number_is_not_taken_for_one():
    increase, norms = jnp.array([np.nan, 1.0, -1.0, 1.0]), jnp.array([1.0, np.nan, 1.0, 1e30])
    np.testing.assert_array_equal(
        input_space.most_directions(increase, norms, 2.0, size=10), [0, 0, 10, 10]
    )
    assert np.isnan(aligned(jnp.array([np.nan, 1.0, 1.0]), jnp.eye(3)[:2])).all()
    data = np.ones((4, 3))
    data[1, 1] = np.nan
    with pytest.raises(ValueError, match="x must be finite: 1 entries are not"):
        input_space.principal_subspace(data, 1)
    with pytest.raises(ValueError, match="data must be finite"):
        input_space.local_subspace(np.ones((2, 3)), data, 3, 1)


@pytest.mark.quick
def test_integers_say_what_is_fooled_as_booleans_do():
    """Known elsewhere: ~1 is −2."""
    surrogate, target = np.array([[1], [1], [0]]), np.array([[1], [0], [1]])
    contrast = input_space.fooling_contrast(jnp.asarray(surrogate), jnp.asarray(target))
    assert [float(v[0]) for v in contrast] == [0.5, 1.0, 1.0]
