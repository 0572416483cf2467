"""Attacks by decisions: closed forms of linear models, what they ask, what they count."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import attacks, losses
from halfway.attacks.minimum_norm import decision_based

KEY = jax.random.key(0)
ATTACKS = {
    "boundary l2": decision_based.boundary,
    "hop_skip_jump l2": functools.partial(decision_based.hop_skip_jump, norm="l2"),
    "hop_skip_jump linf": functools.partial(decision_based.hop_skip_jump, norm="linf"),
}
WIDE, NONE = (-5.0, 5.0), (-math.inf, math.inf)
each_attack = pytest.mark.parametrize("name", ATTACKS)


def affine(params, x):
    weights, bias, scale = params
    return (x / scale) @ weights + bias[None]


@functools.cache
def on_affine(name):
    """Returns a compiled attack on affine models: one program for many tests."""
    options = {"num_steps": 1000 if "boundary" in name else 10}
    attack = functools.partial(ATTACKS[name], num_start_draws=20, **options)

    @jax.jit
    def run(params, key, x, labels, bounds, options):
        return attack(functools.partial(affine, params), key, x, labels, bounds=bounds, **options)

    return lambda params, x, labels, bounds, key=KEY, **options: run(
        params, key, x, labels, bounds, options
    )


def affine_problem(num_classes):
    """Returns a model, inputs, labels and, by norm, the distance of each to each class."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(20, 4))
    x = rng.uniform(0.45, 0.55, (24, 20))
    bias = rng.normal(0, 2, 4) - 0.5 * weights.sum(0)
    bias[num_classes:] = -1e6
    logits = x @ weights + bias
    labels = logits.argmax(1)
    ahead = logits[np.arange(24), labels][:, None] - logits
    exact = {}
    for norm, dual in (("linf", 1), ("l2", 2)):
        lengths = np.linalg.norm(weights[:, labels, None] - weights[:, None, :], dual, 0)
        exact[norm] = np.where(lengths > 0, ahead / np.where(lengths > 0, lengths, 1), np.inf)
    params = jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32), jnp.ones((24, 1))
    return params, jnp.asarray(x, jnp.float32), jnp.asarray(labels), exact


@pytest.fixture(scope="module")
def binary():
    """Of two classes: one boundary, so that no other is in the way of the nearest point."""
    return affine_problem(2)


@pytest.fixture(scope="module")
def several():
    return affine_problem(4)


def starts(params, wanted):
    """Returns for each example a point of its own, of the class that is wanted."""
    weights, bias, _ = params
    drawn = np.random.default_rng(1).uniform(*WIDE, (2000, 20)).astype(np.float32)
    classes = (drawn @ np.asarray(weights) + np.asarray(bias)).argmax(1)
    rows = [np.flatnonzero(classes == want)[i] for i, want in enumerate(np.asarray(wanted))]
    return jnp.asarray(drawn[rows])


def network(params, x):
    w1, w2, form = params
    logits = jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ w1) @ w2
    # Three models of the same decisions.
    one_hot = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[1])
    return jnp.select([form == 0, form == 1], [logits, 7 * logits**3], one_hot)


@functools.cache
def on_network(name):
    """Returns a short attack on networks."""
    options = {"num_steps": 3, "first_evaluations": 20}
    if "boundary" in name:
        options = {"num_steps": 60}

    def run(params, x, labels):
        return ATTACKS[name](functools.partial(network, params), KEY, x, labels, **options)

    return jax.jit(run)


@pytest.fixture(scope="module")
def problem():
    """A network, images of which two are corners of the box, and labels of which one is wrong."""
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(0, 2, (12, 16)).astype(np.float32), rng.normal(size=(16, 5))
    x = rng.uniform(size=(24, 3, 4)).astype(np.float32)
    x[0], x[1] = 0, 1
    params = jnp.asarray(w1), jnp.asarray(w2, jnp.float32), jnp.int32(0)
    labels = np.array(jax.jit(network)(params, x).argmax(-1))
    labels[5] = (labels[5] + 1) % 5
    return params, jnp.asarray(x), jnp.asarray(labels)


def recorded(attack, logits_fn, x, labels):
    """Returns the result and, in order, the points that the model saw and its classes of them."""
    asked = []

    def watched(x):
        classes = jnp.argmax(logits_fn(x), -1)
        jax.debug.callback(lambda *now: asked.append(now), x, classes, ordered=True)
        return jax.nn.one_hot(classes, 4)

    result = jax.jit(functools.partial(attack, watched))(KEY, x, labels)
    jax.effects_barrier()
    points, classes = zip(*asked, strict=True)
    return result, np.concatenate(points), np.concatenate(classes)


@each_attack
@pytest.mark.parametrize("given", [False, True])
def test_the_distance_of_a_linear_model(name, given, binary):
    params, x, labels, exact = binary
    targets = 1 - labels
    options = {"targets": targets, "start": starts(params, targets)} if given else {}
    result = on_affine(name)(params, x, labels, NONE if given else WIDE, **options)
    norm = name.split()[1]
    ratio = np.asarray(attacks.distance(result.adversarial, x, norm)) / exact[norm].min(1)
    assert result.success.all()
    # No point can be nearer.
    assert ratio.min() > 1 - 1e-4 and ratio.max() < 1.08 and np.median(ratio) < 1.03


@each_attack
def test_no_point_of_a_class_is_nearer_than_its_boundary(name, several):
    params, x, labels, exact = several
    result = on_affine(name)(params, x, labels, WIDE)
    classes = np.asarray(jnp.argmax(affine(params, result.adversarial), -1))
    norm = name.split()[1]
    away = np.asarray(attacks.distance(result.adversarial, x, norm))
    assert result.success.all() and (away > 0.999 * exact[norm][np.arange(24), classes]).all()


@each_attack
def test_targets_are_reached_from_points_of_theirs(name, several):
    params, x, labels, exact = several
    targets = ((labels + 1 + jnp.arange(24) % 2) % 4).at[3].set(labels[3])
    result = on_affine(name)(
        params, x, labels, WIDE, targets=targets, start=starts(params, targets)
    )
    assert result.success.all()
    watched = jnp.argmax(affine(params, result.adversarial), -1)
    np.testing.assert_array_equal(watched, targets)
    # One is of its target already.
    np.testing.assert_array_equal(result.adversarial[3], x[3])
    assert result.queries[3] == 2
    norm = name.split()[1]
    away = np.asarray(attacks.distance(result.adversarial, x, norm))
    ratio = np.delete(away / exact[norm][np.arange(24), targets], 3)
    # A third class may be in between.
    assert ratio.min() > 0.999 and np.median(ratio) < 1.05


@each_attack
def test_scaling_an_example_scales_its_result_alone(name, several):
    (weights, bias, ones), x, labels, _ = several
    targets = (labels + 1) % 4
    start = starts((weights, bias, ones), targets)
    # Powers of 2, so that nothing rounds.
    scale = jnp.asarray(2.0 ** np.resize([0, 3, -4], 24), jnp.float32)[:, None]

    def run(scale):
        options = {"targets": targets, "start": scale * start}
        return on_affine(name)((weights, bias, scale), scale * x, labels, NONE, **options)

    plain, scaled = run(ones), run(scale)
    np.testing.assert_array_equal(scale * plain.adversarial, scaled.adversarial)
    np.testing.assert_array_equal(plain.queries, scaled.queries)
    assert plain.success.all()


@each_attack
def test_examples_draw_of_their_own(name, binary):
    params, x, labels, _ = binary
    run = functools.partial(on_affine(name), params, x[jnp.zeros(24, int)], labels)
    targets = 1 - labels
    start = starts(params, targets)[jnp.zeros(24, int)]
    # From draws, and then from one and the same start.
    for options in ({}, {"targets": targets, "start": start}):
        first, second = run(WIDE, **options).adversarial[:2]
        other = run(WIDE, key=jax.random.key(1), **options).adversarial[0]
        assert not np.array_equal(first, second) and not np.array_equal(first, other)


@each_attack
def test_no_start_no_result(name, binary):
    params, x, labels, _ = binary
    weights, bias, ones = params
    run, targets = on_affine(name), 1 - labels
    constant = 0 * weights, 0 * bias, ones
    sides = 0 * weights + jnp.array([[-1.0, 1, -1, -1]]), jnp.array([0.0, -100, 0, 0]), ones
    zero = jnp.zeros_like(labels)
    cases = {
        # Draws, then the other 23 examples, then blends of them.
        "one class": (run(constant, x, zero, WIDE), 22 + 2 * 23),
        "no logits": (run((weights, jnp.nan * bias, ones), x, labels, WIDE), 22 + 2 * 23),
        "no success": (run(params, x, labels, WIDE, targets=targets, start=x), 3),
        # Bounds that are traced are not checked: draws are NaN, or infinite and of another class.
        "no bounds": (run(params, x, labels, NONE), None),
        "one bound": (run(sides, x, zero, (0.0, math.inf)), None),
    }
    for case, (result, queries) in cases.items():
        np.testing.assert_array_equal(result.adversarial, x, err_msg=case)
        assert not result.success.any(), case
        assert queries is None or (result.queries == queries).all(), case
    # A start outside the bounds is moved to where it is none.
    tight = (float(x.min()), float(x.max()))
    result = run(params, x, labels, tight, targets=targets, start=starts(params, targets))
    inside = (result.adversarial >= tight[0]) & (result.adversarial <= tight[1])
    assert inside.all() and not result.success.any()


@each_attack
def test_results_are_feasible_successes_or_x(name, problem):
    params, x, labels = problem
    result = on_network(name)(params, x, labels)
    point = np.asarray(result.adversarial)
    assert ((point >= 0) & (point <= 1)).all()
    logits = jax.jit(network)(params, result.adversarial)
    np.testing.assert_array_equal(result.success, np.argmax(logits, -1) != labels)
    np.testing.assert_allclose(result.loss, losses.margin(logits, labels), rtol=1e-4, atol=1e-5)
    assert result.success.all()
    # What is misclassified already is its own nearest point.
    np.testing.assert_array_equal(point[5], x[5])
    assert result.queries[5] == 2 and result.queries.dtype == jnp.int32
    assert (np.delete(result.queries, 5) > 60).all()


@each_attack
def test_only_decisions_matter(name, problem):
    (w1, w2, _), x, labels = problem
    plain, cubed, decided = (on_network(name)((w1, w2, jnp.int32(i)), x, labels) for i in range(3))
    for other in (cubed, decided):
        for field in ("adversarial", "success", "queries"):
            np.testing.assert_array_equal(getattr(plain, field), getattr(other, field))
    assert not np.array_equal(plain.loss, decided.loss)


@pytest.mark.parametrize(
    "name", ["hop_skip_jump l2", pytest.param("boundary l2", marks=pytest.mark.slow)]
)
def test_a_batch_cut_short_and_models_mapped(name, problem):
    params, x, labels = problem
    attack = on_network(name)

    def assert_same(result, wanted):
        np.testing.assert_allclose(result.adversarial, wanted.adversarial, atol=1e-5)
        np.testing.assert_array_equal(result.queries, wanted.queries)
        np.testing.assert_array_equal(result.success, wanted.success)

    other = jax.tree.map(np.flip, params[:2]) + params[2:]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), params, other)
    mapped = jax.device_get(jax.jit(jax.vmap(attack, (0, None, None)))(stacked, x[:9], labels[:9]))
    for i, member in enumerate((params, other)):
        whole = jax.device_get(attack(member, x, labels))
        wanted = jax.tree.map(lambda leaf: leaf[:9], whole)
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), wanted)


def test_a_jump_too_far_is_halved_and_queries_are_evaluations():
    x, normal = jnp.zeros((1, 20)), jnp.eye(20)[0]

    def logits_fn(x):
        # Adversarial is a slab, from 1 to 1.25 of the first feature: jumps of 1/√t leave it.
        return jnp.stack([jnp.zeros(x.shape[0]), 0.125 - jnp.abs(x @ normal - 1.125)], 1)

    attack = functools.partial(
        decision_based.hop_skip_jump,
        bounds=(0.0, 2.0),
        num_steps=10,
        first_evaluations=100,
        start=(1.125 * normal + jnp.eye(20)[1])[None],
    )
    result, points, classes = recorded(attack, logits_fn, x, jnp.array([0]))
    away, won = np.linalg.norm(points, axis=1), classes == 1
    # The input is a corner of the box, and no point outside is asked for.
    assert points.min() == 0 and points.max() <= 2
    assert result.success[0] and result.queries[0] == len(points)
    assert 1 <= away[-1] < 1.05
    # The first is x, and the last what is returned: what was tried beyond a success seen before.
    np.testing.assert_array_equal(points[0], x[0])
    np.testing.assert_array_equal(points[-1], result.adversarial[0])
    np.testing.assert_array_equal(points[-2], points[-1])
    inner = points[-1] / np.float32(1 + decision_based.OVERSHOOT)
    assert won[:-2][np.isclose(points[:-2], inner, rtol=1e-6, atol=0).all(1)].any()
    # Points around, which are asked for their side alone, may be a little nearer.
    assert away[-1] <= away[won].min() * 1.02


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_step_looks_around_jumps_and_bisects(norm, binary):
    params, x, labels, _ = binary
    attack = functools.partial(
        decision_based.hop_skip_jump,
        norm=norm,
        bounds=NONE,
        start=starts(params, 1 - labels)[:1],
        num_steps=4,
        first_evaluations=100,
        most_evaluations=160,
    )
    logits_fn = functools.partial(affine, (*params[:2], jnp.ones((1, 1))))
    result, points, classes = recorded(attack, logits_fn, x[:1], labels[:1])
    won = classes != np.asarray(labels[0])
    assert result.queries[0] == len(points)
    order, halvings = {"l2": 2, "linf": np.inf}[norm], decision_based.num_halvings(x)
    first = 1
    for t, number in enumerate((100, 141, 160, 160), 1):
        # Bisection ends at its last success; then come looks around, and a jump which, with half
        # of a space to land in, is right at once.
        last = first + halvings
        point = points[first : last + 1][won[first : last + 1]][-1]
        around, jump = points[last + 1 : last + 1 + number], last + 1 + number
        radii = np.linalg.norm(around - point, axis=1)
        np.testing.assert_allclose(radii, np.linalg.norm(point - x[0]) / 100, rtol=0.01)
        leap = np.linalg.norm(points[jump] - point, order)
        wanted = np.linalg.norm(point - x[0], order) / math.sqrt(t)
        np.testing.assert_allclose(leap, wanted, rtol=1e-4)
        assert won[jump]
        first = jump
    assert len(points) == first + halvings + 3


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_the_estimate_is_as_near_to_the_normal_as_the_closed_form(offset):
    # With d features, at s/√d from the boundary: 2 φ(s)/√d along the normal, and across it the
    # noise of the draws, which is that of decisions about their mean.
    normal, number = np.ones(20) / math.sqrt(20), 400
    radius = jnp.asarray(np.geomspace(1e-2, 1e2, 200), jnp.float32)
    point = radius[:, None] * jnp.asarray(offset / math.sqrt(20) * normal, jnp.float32)[None]

    def decide(point):
        return point @ jnp.asarray(normal, jnp.float32) > 0

    keys = jax.random.split(KEY, 200)
    estimate = decision_based.estimate_normal(decide, keys, point, radius, number, NONE)
    cosines = unit(np.asarray(estimate)) @ normal
    share = 0.5 * (1 + math.erf(offset / math.sqrt(2)))
    signal = 4 * math.exp(-(offset**2)) / (2 * math.pi)
    noise = 4 * share * (1 - share) * 19 / number
    np.testing.assert_allclose(cosines.mean(), math.sqrt(signal / (signal + noise)), atol=0.01)


def test_the_estimate_is_the_sum_of_what_was_asked():
    normal = np.random.default_rng(0).normal(size=6)
    point = np.array([[0.05, 0.5, 1.0, 0.5, 0.0, 0.5]], np.float32)
    asked = []

    @jax.jit
    def estimate(level):
        def decide(point):
            success = point @ jnp.asarray(normal, jnp.float32) > level
            jax.debug.callback(lambda *now: asked.append(now), point, success)
            return success

        args = jnp.asarray(point), jnp.array([0.2]), 50, (0.0, 1.0)
        return decision_based.estimate_normal(decide, KEY[None], *args)

    def run(level):
        asked.clear()
        result = np.asarray(estimate(level))[0]
        jax.effects_barrier()
        assert len(asked) == 50
        points, success = zip(*asked, strict=True)
        return result, np.concatenate(points) - point, np.concatenate(success)

    result, moves, success = run((point @ normal).item())
    assert 5 < success.sum() < 45
    # On the sphere, or moved from there into the bounds, of which the point is in a corner.
    assert (np.linalg.norm(moves, axis=1) < 0.2001).all()
    assert (moves[:, 2] <= 0).all() and (moves[:, 4] >= 0).all()
    centred = 2.0 * success - np.mean(2.0 * success)
    np.testing.assert_allclose(result, centred @ moves, atol=1e-5)
    # Where all agree there is no mean to subtract.
    for level, sign in ((-100.0, 1), (100.0, -1)):
        result, moves, _ = run(level)
        np.testing.assert_allclose(result, sign * moves.sum(0), atol=1e-5)


def test_a_step_goes_along_the_sphere_and_then_towards_x():
    normal = unit(np.random.default_rng(0).normal(size=200)).astype(np.float32)

    def logits_fn(x):
        return jnp.stack([jnp.ones(x.shape[0]), x @ jnp.asarray(normal)], 1)

    attack = functools.partial(
        decision_based.boundary,
        bounds=NONE,
        start=jnp.asarray(20 * np.sign(normal))[None],
        num_steps=2000,
        orthogonal_step=0.2,
        inward_step=0.03,
    )
    result, points, classes = recorded(attack, logits_fn, jnp.zeros((1, 200)), jnp.array([0]))
    assert result.queries[0] == len(points)
    lengths, won = np.linalg.norm(points, axis=1), classes == 1
    begun = 2 + decision_based.num_halvings(jnp.zeros((1, 200)))
    # Every tenth step looks at its draw on the sphere too, after its end.
    blocks = np.arange(begun, len(points) - 2).reshape(-1, 11)
    ends, draws = np.delete(blocks, 1, 1).ravel(), blocks[:, 1]
    # In the first step all lengths are known.
    begin = np.flatnonzero(won[:begun])[-1]
    cosine = unit(points[begin]) @ unit(points[draws[0]])
    np.testing.assert_allclose(math.tan(math.acos(cosine)), 0.2, rtol=1e-3)
    np.testing.assert_allclose(points[ends[0]], 0.97 * points[draws[0]], rtol=1e-3, atol=1e-4)
    # The walk is at the nearest success of its steps so far, and draws are as far.
    nearest = np.minimum.accumulate(np.where(won, lengths, np.inf)[:-2])
    np.testing.assert_allclose(lengths[draws], nearest[blocks[:, 0] - 1], rtol=1e-5)
    # What is returned lies a little beyond it.
    np.testing.assert_allclose(lengths[-2:], 1.0001 * nearest[-1], rtol=1e-5)
    # Lengths keep up with the walk.
    assert abs(won[draws[50:]].mean() - 0.5) < 0.1 and abs(won[ends[500:]].mean() - 0.25) < 0.05


def test_lengths_adapt_from_anywhere(binary):
    params, x, labels, exact = binary

    @jax.jit
    def run(first):
        return decision_based.boundary(
            functools.partial(affine, params),
            KEY,
            x,
            labels,
            bounds=WIDE,
            num_steps=1500,
            orthogonal_step=first,
            inward_step=first,
        )

    for first in (0.01, 1.0):
        result = run(first)
        ratio = np.asarray(attacks.distance(result.adversarial, x)) / exact["l2"].min(1)
        assert result.success.all() and ratio.max() < 1.02


@pytest.mark.quick
def test_halvings_are_those_of_the_number_of_features():
    for shape, number in (((1, 2), 10), ((3, 100), 10), ((2, 28, 28), 15), ((1, 224, 224, 3), 18)):
        assert decision_based.num_halvings(np.empty(shape, np.float32)) == number


def test_bad_options_are_refused(binary):
    params, x, labels, _ = binary
    boundary, hop_skip_jump = (
        functools.partial(attack, functools.partial(affine, params), KEY, x, labels)
        for attack in (decision_based.boundary, decision_based.hop_skip_jump)
    )
    for attack in (boundary, hop_skip_jump):
        with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
            attack(num_steps=0)
        with pytest.raises(ValueError, match="num_start_draws must be at least 1, got 0"):
            attack(num_start_draws=0)
        for bounds in (NONE, (0.0, math.inf)):
            with pytest.raises(ValueError, match=r"^bounds must be finite .* inf\): pass start$"):
                attack(bounds=bounds)
        with pytest.raises(ValueError, match="lower < upper"):
            attack(bounds=(1.0, 0.0))
        with pytest.raises(AssertionError):
            attack(start=x[:3])
    for option in ("orthogonal_step", "inward_step"):
        for step in (0.0, 1.5):
            with pytest.raises(ValueError, match=rf"^{option} must lie in \(0, 1\], got {step}$"):
                boundary(**{option: step})
    with pytest.raises(ValueError, match="norm must be one of l2, linf, got 'l1'"):
        hop_skip_jump(norm="l1")
    for first in (0, 11):
        with pytest.raises(ValueError, match=rf"\[1, most_evaluations = 10\], got {first}$"):
            hop_skip_jump(first_evaluations=first, most_evaluations=10)
