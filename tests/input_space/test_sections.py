"""Sections and boundary distances against closed forms of affine models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import compiled

from halfway import attacks, input_space, landscapes, losses

NUM_MODELS, NUM_EXAMPLES, NUM_CLASSES, SHAPE = 3, 7, 4, (2, 3, 1)
SIZE = 6


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def apply_fn(params, x):
    weights, offset = params
    return x.reshape(x.shape[0], -1) @ weights + offset[None]


@pytest.fixture
def params():
    return draw(NUM_MODELS, SIZE, NUM_CLASSES, seed=1), draw(NUM_MODELS, NUM_CLASSES, seed=2)


@pytest.fixture
def x():
    return draw(NUM_EXAMPLES, *SHAPE, seed=3)


@pytest.fixture
def directions():
    return draw(NUM_EXAMPLES, *SHAPE, seed=4)


distance = functools.partial(compiled, input_space.boundary_distance)


def one_of(params, m=0):
    return functools.partial(apply_fn, jax.tree.map(lambda leaf: leaf[m], params))


def together(params):
    return attacks.ensemble(apply_fn, params, "loss").logits_fn


def affine_distance(params, x, directions):
    """The first class that catches up along unit d: min over k of (z_c − z_k) / ⟨w_k − w_c, d⟩."""
    x, directions = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (x, directions))
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    out = []
    for weights, offset in zip(*(np.asarray(p, np.float64) for p in params), strict=True):
        z, rate = x @ weights + offset, directions @ weights
        top = z.argmax(1)[:, None]
        lead = np.take_along_axis(z, top, 1) - z
        closing = rate - np.take_along_axis(rate, top, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            out.append(np.where(closing > 0, lead / closing, np.inf).min(1))
    return np.array(out)


# Distances and crossings


def test_distance_of_affine_models_has_a_closed_form(params, x, directions):
    expected = affine_distance(params, x, directions)
    far = 3.0
    assert 0.1 < (expected > far).mean() < 0.9  # both kinds are there
    distances = distance(together(params), x, directions, max_distance=far)
    expected = np.where(expected > far, np.inf, expected)
    np.testing.assert_allclose(distances, expected, atol=2 * far / 100 / 2**12)


@pytest.mark.quick
def test_a_grid_without_bisection_errs_by_half_a_cell(params, x, directions):
    expected = affine_distance(params, x, directions)
    coarse = distance(
        together(params), x, directions, max_distance=3.0, num_steps=10, num_halvings=0
    )
    inside = np.isfinite(coarse)
    errors = np.abs(np.asarray(coarse)[inside] - expected[inside])
    assert errors.max() <= 0.15 + 1e-5 and errors.max() > 0.01


def test_models_together_are_models_one_by_one(params, x, directions):
    @jax.jit
    def run(member):
        logits_fn = functools.partial(apply_fn, member)
        return input_space.boundary_distance(logits_fn, x, directions, max_distance=3.0)

    whole = distance(together(params), x, directions, max_distance=3.0)
    lifted = jax.jit(jax.vmap(run))(params)
    single = [run(jax.tree.map(lambda leaf: leaf[m], params)) for m in range(NUM_MODELS)]  # noqa: B023
    np.testing.assert_allclose(whole, lifted, rtol=1e-4)
    np.testing.assert_allclose(whole, np.stack(single), rtol=1e-4)


def test_length_of_a_direction_does_not_matter_and_none_is_no_direction(params, x, directions):
    run = jax.jit(
        functools.partial(input_space.boundary_distance, one_of(params), x, max_distance=3.0)
    )
    np.testing.assert_allclose(run(directions), run(7 * directions), rtol=1e-4)
    assert np.isinf(run(np.zeros_like(x))).all()


def test_search_ends_with_the_distance_of_each_example(params, x, directions):
    expected = affine_distance(params, x, directions)[0]
    far = np.where(np.isfinite(expected), expected, 5.0).astype(np.float32)
    run = jax.jit(functools.partial(input_space.boundary_distance, one_of(params), x, directions))
    short, long = (run(max_distance=np.float32(share) * far) for share in (0.9, 1.1))
    assert np.isinf(short).all()
    np.testing.assert_array_equal(np.isfinite(long), np.isfinite(expected))


def test_search_ends_where_the_box_does():
    def logits_fn(x):  # the boundary is at .9 of the first feature
        return jnp.stack([jnp.full(x.shape[0], 0.9), x[:, 0]], -1)

    x = jnp.array([[0.5, 0.5], [0.5, 0.9], [0.5, 0.5]])
    directions = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    run = functools.partial(distance, logits_fn, x, directions, max_distance=2.0)
    root = np.sqrt(2)
    np.testing.assert_allclose(run(), [0.4, 0.4 * root, np.inf], atol=1e-4)
    # The second leaves the box where its other feature is 1, before the first one is .9.
    np.testing.assert_allclose(run(bounds=(0.0, 1.0)), [0.4, np.inf, np.inf], atol=1e-4)


def test_the_first_of_several_crossings_counts():
    def logits_fn(x):  # class 1 between .3 and .6, and again beyond .8
        inside = jnp.sign(x[:, 0] - 0.3) * jnp.sign(x[:, 0] - 0.6) * jnp.sign(x[:, 0] - 0.8)
        return jnp.stack([jnp.zeros_like(inside), inside], -1)

    start, end = jnp.array([[0.0], [1.0], [0.4], [0.1]]), jnp.array([[1.0], [0.0], [0.5], [0.2]])
    shares = compiled(input_space.crossing, logits_fn, start, end)
    np.testing.assert_allclose(shares, [0.3, 0.2, np.inf, np.inf], atol=1e-5)


def test_crossing_is_a_share_of_the_segment(params, x):
    end = draw(NUM_EXAMPLES, *SHAPE, seed=5)
    length = np.linalg.norm((end - x).reshape(NUM_EXAMPLES, -1), axis=-1)
    share = compiled(input_space.crossing, together(params), x, end)
    expected = affine_distance(params, x, end - x) / length
    np.testing.assert_allclose(share, np.where(expected > 1, np.inf, expected), atol=1e-5)


def test_chunks_of_the_search_change_nothing(params, x, directions):
    run = functools.partial(distance, together(params), x, directions, max_distance=3.0)
    whole = run()
    for chunk_size in (1, 7, 1000):
        np.testing.assert_allclose(run(chunk_size=chunk_size), whole, rtol=1e-5)


def test_gradient_is_that_of_the_closed_form(params, x, directions):
    """dt = −dF/F': of an affine model the distance is a quotient, which JAX can differentiate."""
    reachable = np.isfinite(affine_distance(params, x, directions)[0])
    x, directions = x[reachable], directions[reachable]
    unit = input_space.directions_toward(x, x + directions)
    member = jax.tree.map(lambda leaf: leaf[0], params)

    def closed(member, x):
        weights, offset = member
        z, rate = apply_fn(member, x), apply_fn((weights, 0 * offset), unit)
        rows, top = jnp.arange(len(x)), z.argmax(-1)
        lead, closing = z[rows, top][:, None] - z, rate - rate[rows, top][:, None]
        return jnp.where(closing > 1e-6, lead / jnp.where(closing > 1e-6, closing, 1), 1e9).min(-1)

    def searched(member, x):
        return input_space.boundary_distance(
            functools.partial(apply_fn, member), x, unit, max_distance=20.0, num_steps=1000
        )

    for argument in (0, 1):
        expected, gradient = (
            jax.jit(jax.grad(lambda *a, fn=fn: fn(*a).sum(), argument))(member, x)
            for fn in (closed, searched)
        )
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
            assert np.abs(b).max() > 0.1
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_gradient_is_0_where_there_is_no_boundary(params, x):
    still = np.zeros_like(x)

    def total(x):
        distance = input_space.boundary_distance(one_of(params), x, still, max_distance=1.0)
        return jnp.where(jnp.isinf(distance), 0.0, distance).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(x), 0.0)


def test_distance_between_boundaries():
    distances = jnp.array([[1.0, 2.0, jnp.inf], [1.5, jnp.inf, jnp.inf]])
    gaps = jax.device_get(jax.jit(input_space.inter_boundary_distance)(distances))
    np.testing.assert_array_equal(gaps[0, 1], [0.5, np.inf, np.nan])
    np.testing.assert_array_equal(gaps[0, 1], gaps[1, 0])
    np.testing.assert_array_equal(gaps[0, 0, :2], 0.0)


@pytest.mark.parametrize("far", [0.0, -1.0, np.inf, np.nan])
def test_max_distance_is_positive_and_finite(params, x, directions, far):
    with pytest.raises(ValueError, match="max_distance must be positive and finite"):
        input_space.boundary_distance(one_of(params), x, directions, max_distance=far)


def test_a_search_has_steps(params, x):
    for options in ({"num_steps": 0}, {"num_halvings": -1}):
        with pytest.raises(ValueError, match="num_steps must be at least 1"):
            input_space.crossing(one_of(params), x, x, **options)


# Directions


def test_legitimate_directions_lead_to_the_nearest_of_another_class(x):
    examples, labels = draw(20, *SHAPE, seed=6), np.arange(20) % 3
    x_labels = np.arange(NUM_EXAMPLES) % 3
    find = jax.jit(functools.partial(input_space.legitimate_directions, chunk_size=3))
    directions = find(x, x_labels, examples, labels)
    points, flat = (v.reshape(len(v), -1) for v in (x, examples))
    for i, direction in enumerate(np.asarray(directions).reshape(NUM_EXAMPLES, -1)):
        others = flat[labels != x_labels[i]] - points[i]
        gaps = np.linalg.norm(others, axis=1)
        np.testing.assert_allclose(direction, others[gaps.argmin()] / gaps.min(), atol=1e-5)
    alone = find(x, x_labels * 0, examples, labels * 0)
    np.testing.assert_array_equal(alone, 0.0)


def test_adversarial_direction_of_two_classes_is_their_weights_difference(x):
    weights = draw(SIZE, 2, seed=7)
    labels = np.arange(NUM_EXAMPLES) % 2
    logits_fn = functools.partial(apply_fn, (weights, np.zeros(2, np.float32)))
    directions = np.asarray(compiled(input_space.adversarial_directions, logits_fn, x, labels))
    difference = weights[:, 1] - weights[:, 0]
    unit = difference / np.linalg.norm(difference)
    sign = np.where(labels == 0, 1.0, -1.0)[:, None]
    np.testing.assert_allclose(directions.reshape(NUM_EXAMPLES, -1), sign * unit[None], atol=1e-5)


def test_random_directions_are_unit_and_have_none_in_common():
    directions = jax.jit(input_space.random_directions)(
        jax.random.key(0), np.zeros((4000, *SHAPE), np.float32)
    )
    flat = np.asarray(directions).reshape(4000, -1)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(flat.mean(0), 0.0, atol=4 / np.sqrt(4000 * SIZE))
    np.testing.assert_allclose(flat.T @ flat / 4000, np.eye(SIZE) / SIZE, atol=0.02)


def test_toward_a_point_itself_is_no_direction(x):
    end = x.copy()
    end[0] += 2.0
    directions = np.asarray(jax.jit(input_space.directions_toward)(x, end))
    np.testing.assert_allclose(directions[0], 1 / np.sqrt(SIZE), rtol=1e-5)
    np.testing.assert_array_equal(directions[1:], 0.0)


# Segments and planes


def test_segments_hold_what_models_say_at_their_points(params, x):
    end, labels = draw(NUM_EXAMPLES, *SHAPE, seed=5), np.arange(NUM_EXAMPLES) % NUM_CLASSES
    segment = functools.partial(compiled, input_space.segment, num_points=5, chunk_size=2)
    section = jax.device_get(segment(together(params), x, end, labels))
    margin = jax.jit(losses.margin)
    assert section.decision.shape == section.loss.shape == (NUM_MODELS, NUM_EXAMPLES, 5)
    for m, i in np.ndindex(NUM_MODELS, 5):
        logits = one_of(params, m)(x + np.float32(i / 4) * (end - x))
        np.testing.assert_array_equal(section.decision[m, :, i], logits.argmax(-1))
        np.testing.assert_allclose(section.loss[m, :, i], margin(logits, labels), atol=1e-4)
    single = segment(one_of(params, 1), x, end, labels)
    np.testing.assert_allclose(single.loss, section.loss[1], atol=1e-5)


def test_loss_along_segments_has_a_gradient(params, x):
    labels = np.zeros(NUM_EXAMPLES, int)

    def total(end):
        section = input_space.segment(
            together(params), x, end, labels, num_points=3, loss_fn=losses.cross_entropy
        )
        return section.loss.sum()

    end = draw(NUM_EXAMPLES, *SHAPE, seed=5)
    by_hand = jax.grad(
        lambda end: sum(
            losses.cross_entropy(one_of(params, m)((1 - t) * x + t * end), labels).sum()
            for m in range(NUM_MODELS)
            for t in (0.0, 0.5, 1.0)
        )
    )
    expected = jax.jit(by_hand)(end)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(end), expected, rtol=1e-4, atol=1e-5)


def test_a_plane_of_three_examples_holds_them_and_every_model(params, x):
    plane = landscapes.plane(*x[:3])
    project = jax.jit(landscapes.project_onto_plane)
    places = np.stack([project(plane, point)[0] for point in x[:3]])
    np.testing.assert_allclose(places[0], 0.0, atol=1e-6)
    grid_x, grid_y = places[:2, 0], places[[0, 2], 1]

    def run(logits_fn, x):
        section = functools.partial(input_space.plane_section, logits_fn, label=2, chunk_size=4)
        return jax.device_get(jax.jit(section)(plane, x, grid_y))

    section = run(together(params), grid_x)
    assert section.decision.shape == section.loss.shape == (NUM_MODELS, 2, 2)
    for m in range(NUM_MODELS):
        logits = one_of(params, m)(x[:2])
        np.testing.assert_array_equal(section.decision[m, 0], logits.argmax(-1))
        np.testing.assert_allclose(
            section.loss[m, 0], losses.margin(logits, jnp.array([2, 2])), atol=1e-4
        )
    third = run(together(params), places[2:, 0])
    logits = [one_of(params, m)(x[2:3])[0] for m in range(NUM_MODELS)]
    np.testing.assert_array_equal(third.decision[:, 1, 0], np.argmax(logits, -1))
    single = run(one_of(params, 1), grid_x)
    np.testing.assert_array_equal(single.decision, section.decision[1])


def test_boundary_of_an_affine_model_in_a_plane_is_a_line():
    """In an orthonormal frame class 1 is where ⟨w, origin⟩ + u ⟨w, e₁⟩ + v ⟨w, e₂⟩ > 0."""
    w, points = draw(SIZE, seed=8), draw(3, SIZE, seed=9)
    plane = landscapes.plane(*points)
    u, v = np.linspace(-2, 2, 9, dtype=np.float32), np.linspace(-1, 3, 7, dtype=np.float32)
    section = compiled(
        functools.partial(input_space.plane_section, label=0),
        lambda x: jnp.stack([jnp.zeros(x.shape[0]), x @ w], -1),
        plane,
        u,
        v,
    )
    first, second = np.asarray(plane.axes) @ w
    score = points[0] @ w + u[None, :] * first + v[:, None] * second
    np.testing.assert_allclose(section.loss, score, atol=1e-4)
    np.testing.assert_array_equal(section.decision, score > 0)


def test_points_on_a_line_span_no_plane(x):
    with pytest.raises(ValueError, match="on a line"):
        landscapes.plane(x[0], x[1], 2 * x[1] - x[0])
    with pytest.raises(ValueError, match="on a line"):
        input_space.random_plane(jax.random.key(0), x[0], x[0])


def test_a_random_plane_holds_both_examples(x):
    plane = jax.jit(input_space.random_plane)(jax.random.key(0), x[0], x[1])
    place, rest = jax.jit(landscapes.project_onto_plane)(plane, x[1])
    np.testing.assert_allclose(place, [np.linalg.norm(x[1] - x[0]), 0.0], atol=1e-5)
    assert rest < 1e-5
    flat = np.asarray(plane.axes).reshape(2, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(2), atol=1e-5)


def test_a_window_has_room_around_its_points():
    places = jnp.array([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    x, y = input_space.window(places, num_points=5, margin=0.5)
    np.testing.assert_allclose(x, [-1, 0, 1, 2, 3])
    np.testing.assert_allclose(y, [-1, -0.25, 0.5, 1.25, 2])


# Directions of any length, and logits that are no numbers


def half_plane(x):
    """Returns logits whose boundary lies at .4 of the first feature."""
    return jnp.stack([x.reshape(len(x), -1)[:, 0], jnp.full(len(x), 0.4)], -1)


LENGTHS = [1e-35, 1e-25, 1e-10, 1.0, 1e10, 1e25, 1e35]


@pytest.mark.parametrize("length", LENGTHS)
def test_directions_of_any_length(length):
    x = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    directions = np.float32(length) * np.float32([[-3, 0], [4, 0], [0, 0]])
    for bounds in (None, (-1.0, 1.0)):
        distances = distance(half_plane, x, directions, max_distance=2.0, bounds=bounds)
        np.testing.assert_allclose(distances, [0.6, 0.4, np.inf], atol=1e-5)
    unit = np.float32([[-1, 0], [1, 0], [0, 0]])
    origin = jnp.zeros_like(x)
    np.testing.assert_allclose(compiled(input_space.directions_toward, origin, directions), unit)
    steep = lambda z: half_plane(np.float32(length) * z)  # noqa: E731
    labels = jnp.array([1, 1, 1])
    toward = compiled(input_space.adversarial_directions, steep, x, labels)
    np.testing.assert_allclose(toward, [[1, 0]] * 3)
    examples, example_labels = np.float32(length) * np.float32([[3, 4], [9, 9]]), np.array([0, 1])
    nearest = compiled(input_space.legitimate_directions, origin, labels, examples, example_labels)
    np.testing.assert_allclose(nearest, [[0.6, 0.8]] * 3, rtol=1e-6)
    plane = compiled(lambda a, b: landscapes.plane(a * 0, a, b), directions[0], examples[0])
    np.testing.assert_allclose(plane.axes, [[-1, 0], [0, 1]], atol=1e-6)


def broken(place):
    """Returns a model whose logits are NaN beyond a place of the first feature, going down."""
    return lambda x: jnp.where(x[:, :1] < place, jnp.nan, half_plane(x))


NAN = {
    "everywhere": (2.0, np.nan),
    "before the boundary": (0.7, np.nan),
    "from the boundary on": (0.399999, np.nan),
    "behind the boundary": (0.1, 0.6),
    "never": (-9.0, 0.6),
}


@pytest.mark.parametrize("where", NAN)
def test_nan_logits_are_no_decision(where):
    """Known elsewhere: argmax takes NaN for the largest, and the result says that all is one."""
    place, expected = NAN[where]
    start, end = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    share = compiled(input_space.crossing, broken(place), start, end)
    np.testing.assert_allclose(share, [expected], atol=1e-4)
    far = distance(broken(place), start, end - start, max_distance=1.0)
    np.testing.assert_allclose(far, [expected], atol=1e-4)
    members = lambda x: jnp.stack([broken(place)(x), half_plane(x)], 1)  # noqa: E731
    both = compiled(input_space.crossing, members, start, end)
    np.testing.assert_allclose(both, [[expected], [0.6]], atol=1e-4)


def test_nan_logits_in_sections():
    start, end, labels = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]]), jnp.array([0])
    section = compiled(
        lambda *args: input_space.segment(broken(0.7), *args, num_points=5), start, end, labels
    )
    np.testing.assert_array_equal(section.decision, [[0, 0, -1, -1, -1]])
    assert np.isnan(section.loss[0, 2:]).all()


def test_infinite_logits_have_a_crossing():
    model = lambda x: jnp.where(half_plane(x) >= 0.4, jnp.inf, half_plane(x))  # noqa: E731
    share = compiled(input_space.crossing, model, jnp.array([[0.3, 0.0]]), jnp.array([[0.5, 0.0]]))
    np.testing.assert_allclose(share, [0.5], atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_direction_that_is_not_finite_has_no_distance(value):
    direction = jnp.array([[value, 1.0]])
    kind = lambda x: jnp.nan_to_num(half_plane(x))  # noqa: E731
    assert np.isnan(distance(kind, jnp.zeros((1, 2)), direction, max_distance=1.0)).all()
    x, labels = jnp.zeros((1, 2)), jnp.array([0])
    toward = compiled(
        input_space.legitimate_directions, x, labels, np.float32([[value, 1]]), np.array([1])
    )
    assert np.isnan(toward).all()


def test_images_of_integers():
    """Known elsewhere: differences of bytes wrap around, and squares of them too."""
    start, end = np.array([[200, 0]], np.uint8), np.array([[0, 100]], np.uint8)
    toward = compiled(input_space.directions_toward, start, end)
    np.testing.assert_allclose(toward, [[-2 / np.sqrt(5), 1 / np.sqrt(5)]], rtol=1e-6)
    labels = np.array([0])
    nearest = compiled(
        input_space.legitimate_directions,
        start,
        labels,
        np.concatenate([end, 255 - end]),
        np.array([1, 1]),
    )
    np.testing.assert_allclose(
        nearest, [[55 / np.hypot(55, 155), 155 / np.hypot(55, 155)]], rtol=1e-6
    )
    model = lambda x: jnp.stack([x[:, 0], jnp.full(len(x), 50.0)], -1)  # noqa: E731
    np.testing.assert_allclose(compiled(input_space.crossing, model, start, end), [0.75], atol=1e-4)
    section = compiled(
        lambda *args: input_space.segment(model, *args, num_points=3), start, end, labels
    )
    np.testing.assert_array_equal(section.decision, [[0, 0, 1]])
    far = distance(model, start, np.array([[-1, 0]]), max_distance=200)
    np.testing.assert_allclose(far, [150], atol=0.1)
