"""Gradients at random changes of the inputs, and at neighbours: each against what it must equal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.stats

from halfway import attacks, losses
from halfway.attacks import estimators, image_changes
from halfway.attacks.base import Estimator, GradientEstimate

KEY = jax.random.key(0)
SHAPE = (3, 7, 5, 2)
X = jax.random.uniform(jax.random.key(1), SHAPE)
IMAGES = jax.random.uniform(jax.random.key(2), (99, *SHAPE[1:]))
WEIGHTS = jax.random.normal(jax.random.key(3), (2, 4))
LABELS = jnp.array([0, 1, 2])
THREAT = attacks.linf(0.1)


def given(gradient_fn):
    """An estimator of this gradient, with a loss and logits, and a state that counts its calls."""

    def estimate(key, state, x):
        return GradientEstimate(gradient_fn(x), jnp.ones(len(x)), jnp.ones((len(x), 4)), state + 1)

    return Estimator(lambda x: jnp.zeros((), int), estimate, 1)


POINT = given(lambda x: jnp.where(x > 5, jnp.nan, x))
"""Of half the sum of squares, whose gradient is the point that it is taken at; none beyond 5."""


def linear(weights):
    """Of a loss that is linear in an image, with the same weights `[H, W, D]` everywhere."""
    return given(lambda x: jnp.broadcast_to(weights, x.shape))


def gradient_of(estimator, x=X, key=KEY):
    estimate = jax.jit(lambda key, x: estimator.estimate(key, estimator.init(x), x).gradient)
    return np.asarray(estimate(key, x), float)


WRAPPERS = {
    "transformed": lambda inner: estimators.transformed(
        inner, lambda key, x: x * jax.random.uniform(key, x.shape), num_copies=3
    ),
    "diverse_inputs": lambda inner: estimators.diverse_inputs(inner, probability=1.0, smallest=0.5),
    "admixed": lambda inner: estimators.admixed(inner, IMAGES),
    "varied_spectra": lambda inner: estimators.varied_spectra(inner, num_copies=3),
    "shuffled_blocks": lambda inner: estimators.shuffled_blocks(inner, num_copies=3),
    "flat_maxima": lambda inner: estimators.flat_maxima(
        inner, num_neighbours=3, radius=0.3, step=0.01
    ),
}
QUERIES = dict(zip(WRAPPERS, (3, 1, 3, 3, 3, 6), strict=True))
each_wrapper = pytest.mark.parametrize("name", WRAPPERS)


@functools.cache
def estimate_fn(name):
    """The program of a wrapper around POINT, compiled once for each size of a batch."""
    wrapped = WRAPPERS[name](POINT)
    return jax.jit(lambda key, x: wrapped.estimate(key, wrapped.init(x), x))


# What all of them share


@each_wrapper
def test_draws_belong_to_the_place_of_an_example_and_to_the_key(name):
    def look(x, key=KEY):
        return np.asarray(estimate_fn(name)(key, x).gradient, float)

    whole = look(X)
    np.testing.assert_allclose(look(X[:1]), whole[:1], atol=1e-6)
    np.testing.assert_array_equal(look(X.at[1:].set(0.5))[:1], whole[:1])
    # The same image in another place, and with another key, is changed in another way.
    same = look(X.at[1].set(X[0]))
    assert np.abs(same[1] - same[0]).max() > 1e-3
    assert np.abs(look(X, jax.random.key(9)) - whole).max() > 1e-3


@each_wrapper
def test_nothing_is_said_of_the_point_itself_and_queries_count(name):
    result = estimate_fn(name)(KEY, X)
    assert np.isnan(result.loss).all() and np.isnan(result.logits).all()
    assert result.loss.shape == (3,) and result.logits.shape == (3, 4)
    assert WRAPPERS[name](POINT).num_queries == QUERIES[name]
    assert result.state == 1  # of what is inside, however many copies there are
    broken = estimate_fn(name)(KEY, X.at[0, 3, 2, 0].set(100.0)).gradient
    assert np.isfinite(broken).all() and np.abs(broken).max() < 20


@each_wrapper
def test_each_goes_into_a_walk_with_momentum(name):
    logits_fn = lambda x: x.mean((1, 2)) @ WEIGHTS  # noqa: E731
    goal = attacks.objective(logits_fn, LABELS, losses.margin)
    gradient = WRAPPERS[name](attacks.exact_gradient(goal))
    rule = attacks.momentum(THREAT, 0.3, decay=1.0)
    walk = functools.partial(
        attacks.ascend, goal, gradient, rule, threat=THREAT, num_steps=4, best=False
    )
    result = jax.jit(walk)(KEY, X)
    assert (result.loss > goal.value(X)[0]).all()
    assert np.abs(result.adversarial - X).max() <= 0.1 + 1e-6
    assert (result.queries == 4 * QUERIES[name] + 1).all()


# Transformed


def test_the_gradient_at_a_linear_change_is_its_transpose():
    matrix = jax.random.normal(KEY, (7, 7))
    change = lambda key, x: jnp.einsum("ij,jwd->iwd", matrix, x)  # noqa: E731
    slope = gradient_of(estimators.transformed(linear(X[0]), change))
    expected = np.einsum("ij,iwd->jwd", np.asarray(matrix, float), np.asarray(X[0], float))
    np.testing.assert_allclose(slope, [expected] * 3, rtol=1e-4, atol=1e-5)
    # Of the squares it is the transpose at the image of the point.
    bent = gradient_of(estimators.transformed(POINT, change, num_copies=2))
    twice = np.asarray(matrix.T @ matrix, float)
    np.testing.assert_allclose(bent, np.einsum("ij,bjwd->biwd", twice, X), rtol=1e-4, atol=1e-4)


def test_the_mean_over_copies_is_without_bias():
    def change(key, x):
        """Times 3 a quarter of the time, else upside down."""
        return jnp.where(jax.random.bernoulli(key, 0.25), 3 * x, x[::-1])

    weights = np.asarray(X[0], float)
    each = gradient_of(
        estimators.transformed(linear(X[0]), change), jnp.broadcast_to(X[0], (400, *SHAPE[1:]))
    )
    is_first = np.abs(each - 3 * weights).max((1, 2, 3)) < 1e-5
    np.testing.assert_allclose(each[~is_first], [weights[::-1]] * (~is_first).sum(), atol=1e-6)
    assert 0.18 < is_first.mean() < 0.32
    mean = gradient_of(estimators.transformed(linear(X[0]), change, num_copies=4000))
    expected = 0.25 * 3 * weights + 0.75 * weights[::-1]
    np.testing.assert_allclose(mean, [expected] * 3, atol=0.06)


def test_what_is_inside_draws_apart_from_the_change():
    """Both draw from their keys: were these the same, the sum would have twice the deviation."""

    def estimate(key, state, x):
        noise = jax.random.normal(key, x.shape)
        return GradientEstimate(x + noise, x[:, 0], x[:, :2], state)

    inner = Estimator(lambda x: (), estimate, 1)
    change = lambda key, x: x + jax.random.normal(key, x.shape)  # noqa: E731
    x = jnp.zeros((1, 20_000))
    one = gradient_of(estimators.transformed(inner, change), x)
    four = gradient_of(estimators.transformed(inner, change, num_copies=4), x)
    assert abs(one.std() - np.sqrt(2)) < 0.03 and abs(four.std() - np.sqrt(2) / 2) < 0.02


# Admixed


def test_nothing_admixed_is_the_gradient_itself():
    plain = gradient_of(estimators.admixed(POINT, IMAGES, portion=0.0))
    np.testing.assert_allclose(plain, X, rtol=1e-6)


def test_a_portion_of_any_of_the_others_is_added():
    levels = np.array([1.0, 4.0, 16.0, 64.0], np.float32)
    images = np.broadcast_to(levels[:, None, None, None] / 16, (4, *SHAPE[1:]))
    many = jnp.broadcast_to(X[0], (400, *SHAPE[1:]))
    once = estimators.admixed(POINT, images, num_images=1, portion=0.25)
    added = (gradient_of(once, many) - np.asarray(many)) * 64
    assert np.ptp(added, (1, 2, 3)).max() < 1e-3  # one image, all of it
    values, counts = np.unique(added.mean((1, 2, 3)).round(2), return_counts=True)
    np.testing.assert_array_equal(values, levels)
    assert counts.min() > 70
    added = gradient_of(estimators.admixed(POINT, images, portion=0.25), many) - np.asarray(many)
    # Means of three draws, each by itself.
    assert len(np.unique((3 * 64 * added.mean((1, 2, 3))).round(2))) == 20


def test_scales_inside_scale_what_is_admixed():
    levels = jnp.full((1, *SHAPE[1:]), 2.0)
    wrapped = estimators.admixed(estimators.scaled_copies(POINT, num_scales=2), levels)
    # The gradient at x + .2 · 2 and at half of it, which counts half.
    np.testing.assert_allclose(gradient_of(wrapped), (X + 0.4) * (1 + 0.25) / 2, rtol=1e-5)
    assert wrapped.num_queries == 6


# Varied spectra


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.quick
def test_cosines_are_orthonormal_and_those_of_scipy(length):
    matrix = image_changes.cosines(length)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(length), atol=1e-12)
    expected = scipy.fft.dct(np.eye(length), axis=0, norm="ortho")
    np.testing.assert_allclose(matrix, expected, atol=1e-12)


def vary(image, number=200, **options):
    """Copies of an image, in float64."""
    change = jax.vmap(functools.partial(image_changes.vary_spectrum, **options), (0, None))
    return np.asarray(jax.jit(change)(jax.random.split(KEY, number), image), float)


def test_a_spectrum_that_does_not_vary_is_the_gradient_itself():
    plain = estimators.varied_spectra(POINT, num_copies=2, deviation=0.0, spread=0.0)
    np.testing.assert_allclose(gradient_of(plain), X, atol=1e-5)


def test_coefficients_are_multiplied_and_noise_is_added():
    spectrum = scipy.fft.dctn(np.asarray(X[0], float), axes=(0, 1), norm="ortho")
    varied = scipy.fft.dctn(vary(X[0], deviation=0.0, spread=0.3), axes=(1, 2), norm="ortho")
    factors = (varied / spectrum)[:, np.abs(spectrum) > 0.05]
    assert factors.min() > 0.69 and factors.max() < 1.31
    assert scipy.stats.kstest((factors.ravel() - 0.7) / 0.6, "uniform").pvalue > 1e-4
    noise = vary(X[0], deviation=0.5, spread=0.0) - np.asarray(X[0], float)
    assert scipy.stats.kstest(noise.ravel() / 0.5, "norm").pvalue > 1e-4
    apart = np.corrcoef(noise.reshape(200, -1), rowvar=False) - np.eye(70)
    assert np.abs(apart).max() < 0.4


def test_the_gradient_goes_through_the_spectrum():
    """A change without noise is symmetric: of the squares it is the change of the changed image."""
    change = functools.partial(image_changes.vary_spectrum, deviation=0.0, spread=0.5)
    wrapped = estimators.transformed(POINT, lambda key, x: change(KEY, x))
    twice = jax.jit(lambda x: change(KEY, change(KEY, x)))
    np.testing.assert_allclose(gradient_of(wrapped)[0], twice(X[0]), atol=1e-5)
    assert np.abs(twice(X[0]) - X[0]).max() > 0.05


# Shuffled blocks


def shuffle(image, number=300, **options):
    change = jax.vmap(functools.partial(image_changes.shuffle_blocks, **options), (0, None))
    return np.asarray(jax.jit(change)(jax.random.split(KEY, number), image), float)


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_the_gradient_goes_back_to_where_blocks_came_from(num_blocks):
    """Without turns a change is a permutation, which the gradient of the squares undoes."""
    options = {"num_copies": 2, "num_blocks": num_blocks, "degrees": 0}
    np.testing.assert_allclose(
        gradient_of(estimators.shuffled_blocks(POINT, **options)), X, rtol=1e-6
    )
    slope = gradient_of(estimators.shuffled_blocks(linear(X[0]), **options | {"num_copies": 1}))
    if num_blocks == 1:
        np.testing.assert_array_equal(slope, [X[0]] * 3)
    else:
        order = np.sort(np.asarray(X[0], float).reshape(35, 2), 0)
        np.testing.assert_array_equal(np.sort(slope.reshape(3, 35, 2), 1), [order] * 3)
        assert np.abs(slope - np.asarray(X[:1])).max() > 0.1


@pytest.mark.parametrize("num_blocks", [2, 9])
def test_blocks_that_do_not_turn_are_rows_and_columns_in_another_order(num_blocks):
    rows, columns = (np.arange(side, dtype=np.float32) for side in SHAPE[1:3])
    image = np.stack(np.broadcast_arrays(rows[:, None], columns[None, :]), -1)
    moved = shuffle(image, num_blocks=num_blocks, degrees=0)
    for axis, side in ((0, 7), (1, 5)):
        places = np.moveaxis(moved[..., axis], 1 + axis, 1)
        assert (places == places[:, :, :1]).all()
        order = places[:, :, 0]
        np.testing.assert_array_equal(np.sort(order, 1), [np.arange(side)] * len(order))
        # Cuts are few, and lie elsewhere each time: every place comes first sometimes.
        cuts = (np.diff(order, axis=1) != 1).sum(1)
        assert cuts.max() == min(num_blocks - 1, side - 1)
        assert set(order[:, 0]) == set(range(side))


def test_a_block_turns_about_its_middle_as_scipy_turns_it():
    # Channels 0 and 1 are coordinates from the middle, which tell the angle; the third is random.
    rows, columns = np.arange(7) - 3.0, np.arange(5) - 2.0
    image = np.stack([*np.broadcast_arrays(rows[:, None], columns[None, :]), X[0, ..., 0]], -1)
    turned = shuffle(image.astype(np.float32), num_blocks=1, degrees=40)
    # One place below the middle: (cos, sin) in coordinates.
    angles = np.arctan2(turned[:, 4, 2, 1], turned[:, 4, 2, 0])
    most = np.deg2rad(40)
    assert scipy.stats.kstest(angles / most / 2 + 0.5, "uniform").pvalue > 1e-4
    middle = np.array([3.0, 2.0])
    for angle, result in zip(angles[:10], turned[:10, ..., 2], strict=True):
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        expected = scipy.ndimage.affine_transform(
            np.asarray(X[0, ..., 0], float),
            matrix,
            middle - matrix @ middle,
            order=1,
            mode="grid-constant",
        )
        np.testing.assert_allclose(result, expected, atol=1e-4)


def test_each_block_turns_by_itself_within_its_borders():
    """Every pixel is a channel: what comes from where is read off."""
    side = 12
    image = np.eye(side**2, dtype=np.float32).reshape(side, side, -1)
    still, turned = (shuffle(image, 12, num_blocks=2, degrees=d) for d in (0, 24))
    source = still.argmax(-1)  # [key, row, column]
    assert np.allclose(turned.sum(-1).max((1, 2)), 1) and (turned.sum(-1) < 1 - 1e-3).any()
    num_angles = []
    for origin, weights in zip(source, turned, strict=True):
        row, column = origin[:, 0] // side, origin[0] % side
        # Blocks are where neighbours stay neighbours, on both axes.
        blocks = [np.cumsum(np.diff(axis, prepend=axis[0] - 1) != 1) for axis in (row, column)]
        block = blocks[0][:, None] * 9 + blocks[1][None, :]
        of_source = np.zeros(side**2, int)
        of_source[origin] = block
        used = weights > 1e-6
        assert (of_source[None, None] == block[..., None])[used].all()
        # The shift of the places along one axis is that of an angle of each block.
        where = (weights * np.arange(side**2) // side).sum(-1)
        whole = weights.sum(-1) > 1 - 1e-4
        angles = set()
        for b in np.unique(block):
            r, c = np.nonzero((block == b) & whole)
            if len(r) > 6 and np.ptp(r) > 1 and np.ptp(c) > 1:
                design = np.stack([r, c, np.ones_like(r)], 1)
                cos, minus_sin, _ = np.linalg.lstsq(design, where[r, c], rcond=None)[0]
                angles.add(round(float(np.rad2deg(np.arctan2(-minus_sin, cos))), 1))
        num_angles.append((len(angles), len(np.unique(block))))
    assert max(n for n, _ in num_angles) >= 3


# Flat maxima

SCALES = jax.random.uniform(jax.random.key(4), SHAPE[1:], minval=0.5, maxval=2.0)


def test_without_balance_it_is_the_mean_over_neighbours_in_a_cube():
    radius = jnp.array([0.0, 0.1, 0.4]).reshape(3, 1, 1, 1)
    once = estimators.flat_maxima(POINT, num_neighbours=1, radius=radius, step=0.1, balance=0.0)
    wide = jnp.full((3, 40, 40, 1), 0.5)
    moves = gradient_of(once, wide) - 0.5
    np.testing.assert_allclose(moves[0], 0, atol=1e-7)
    for size, move in zip((0.1, 0.4), moves[1:], strict=True):
        assert scipy.stats.kstest(move.ravel() / size / 2 + 0.5, "uniform").pvalue > 1e-4
    many = estimators.flat_maxima(POINT, num_neighbours=400, radius=radius, step=0.1, balance=0.0)
    moves = gradient_of(many) - np.asarray(X, float)
    assert np.abs(moves).max() < 0.06
    deviation = moves.std((1, 2, 3)) / (np.array([1, 0.1, 0.4]) / np.sqrt(3 * 400))
    np.testing.assert_allclose(deviation[1:], 1, atol=0.3)


def quadratic(balance, key=KEY, **options):
    inner = given(lambda x: SCALES[None] * x)
    options = {"num_neighbours": 1, "radius": 0.3, "step": 0.2} | options
    return gradient_of(estimators.flat_maxima(inner, balance=balance, **options), key=key)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_of_a_quadratic_it_is_the_closed_form(balance):
    scales, step = np.asarray(SCALES, float), np.array([0.1, 0.2, 0.0]).reshape(3, 1, 1, 1)
    at_neighbour = quadratic(0.0)  # the same draws
    unit = at_neighbour / np.abs(at_neighbour).mean((1, 2, 3), keepdims=True)
    expected = at_neighbour - balance * step * scales * unit
    result = quadratic(balance, step=jnp.asarray(step, jnp.float32))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    # Without a neighbourhood all neighbours are the point.
    slope = scales * np.asarray(X, float)
    unit = slope / np.abs(slope).mean((1, 2, 3), keepdims=True)
    result = quadratic(balance, num_neighbours=3, radius=0.0)
    np.testing.assert_allclose(result, slope - balance * 0.2 * scales * unit, rtol=1e-4, atol=1e-5)


def test_it_leads_down_the_norm_of_the_gradient():
    """To first order it is J less a multiple of the length of its gradient, on any function."""

    def value(x):
        return jnp.sin(3 * x).sum() + (x**3).sum()

    slope = jax.grad(value)
    inner = given(jax.vmap(slope))
    step = 1e-2
    result = gradient_of(estimators.flat_maxima(inner, radius=0.0, step=step, num_neighbours=1))
    at_point = np.asarray(jax.vmap(slope)(X), float)
    length = jax.vmap(jax.grad(lambda x: jnp.linalg.norm(slope(x).ravel())))(X)
    size = np.linalg.norm(at_point.reshape(3, -1), axis=1) / np.abs(at_point).mean((1, 2, 3))
    expected = -0.5 * step * size[:, None, None, None] * np.asarray(length, float)
    error = np.linalg.norm(result - at_point - expected) / np.linalg.norm(expected)
    assert error < 0.1


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformed", {"change": lambda key, x: x, "num_copies": 0}, "num_copies must be at"),
        ("admixed", {"images": IMAGES, "num_images": 0}, "num_images must be at least 1, got 0"),
        ("admixed", {"images": IMAGES, "portion": -0.1}, r"portion must lie in \[0, 1\], got -0.1"),
        ("admixed", {"images": IMAGES[0]}, r"images must be .* \[N, H, W, D\], got \(7, 5, 2\)"),
        ("admixed", {"images": IMAGES[:0]}, r"at least one image .*, got \(0, 7, 5, 2\)"),
        ("admixed", {"images": IMAGES.astype(int)}, "images must be floats, .* got int32"),
        ("varied_spectra", {"num_copies": 0}, "num_copies must be at least 1, got 0"),
        ("varied_spectra", {"deviation": -1.0}, "deviation must be finite and at least 0, got -1"),
        ("varied_spectra", {"spread": np.inf}, "spread must be finite and at least 0, got inf"),
        ("shuffled_blocks", {"num_copies": 0}, "num_copies must be at least 1, got 0"),
        ("shuffled_blocks", {"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ("shuffled_blocks", {"degrees": np.nan}, "degrees must be finite and at least 0, got nan"),
        (
            "flat_maxima",
            {"radius": 0.1, "step": 0.1, "num_neighbours": 0},
            "num_neighbours must be at least 1, got 0",
        ),
        ("flat_maxima", {"radius": -0.1, "step": 0.1}, "radius must be finite and at least 0"),
        ("flat_maxima", {"radius": 0.1, "step": np.array([0.1, np.nan])}, "step must be finite"),
        (
            "flat_maxima",
            {"radius": 0.1, "step": 0.1, "balance": 1.5},
            r"balance must lie in \[0, 1\], got 1.5",
        ),
    ],
)
@pytest.mark.quick
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(estimators, name)(POINT, **options)
