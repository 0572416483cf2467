"""Transfer against plain loops, closed forms on affine models, and controls checked by geometry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import attacks, losses, transfer
from halfway.transfer import controls

SHAPE = (4, 4, 1)
SIZE = 16
NUM_CLASSES = 3


def _rng(seed=0):
    return np.random.default_rng(seed)


def _linear(params, x):
    return x.reshape(x.shape[0], -1) @ params["w"] + params["b"][None]


def _mlp(params, x):
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ params["v"])
    return hidden @ params["w"] + params["b"][None]


def _linear_params(seed, *lead, num_classes=NUM_CLASSES):
    rng = _rng(seed)
    weights = rng.normal(size=(*lead, SIZE, num_classes))
    return jax.tree.map(np.float32, {"w": weights, "b": rng.normal(0, 0.1, (*lead, num_classes))})


def _mlp_params(seed, *lead):
    rng = _rng(seed)
    first, last = rng.normal(size=(*lead, SIZE, 8)), rng.normal(size=(*lead, 8, NUM_CLASSES))
    bias = rng.normal(0, 0.1, (*lead, NUM_CLASSES))
    return jax.tree.map(np.float32, {"v": 0.5 * first, "w": last, "b": bias})


def _examples(seed=0, num_examples=24, low=0.0, high=1.0):
    rng = _rng(seed)
    x = rng.uniform(low, high, (num_examples, *SHAPE)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.integers(0, NUM_CLASSES, num_examples), jnp.int32)


def _attack(epsilon=0.1, num_steps=4):
    return functools.partial(
        attacks.pgd, threat=attacks.linf(epsilon), loss_fn=losses.margin, num_steps=num_steps
    )


@functools.partial(jax.jit, static_argnames="fns")
def _matrix(surrogates, targets, key, x, labels, *, fns=(_mlp, _mlp)):
    return transfer.transfer_matrix(
        fns[0], surrogates, fns[1], targets, key, x, labels, attack=_attack()
    )


@jax.jit
def _adversarial(params, x, labels):
    logits_fn = functools.partial(_mlp, params)
    return _attack()(logits_fn, jax.random.key(9), x, labels).adversarial


def _select(params, k):
    return jax.tree.map(lambda leaf: leaf[k], params)


def _flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _norms(delta):
    return np.linalg.norm(delta, axis=-1), np.abs(delta).max(-1)


# Matched noise

_noise = jax.jit(transfer.matched_noise, static_argnames="bounds")
_other = jax.jit(transfer.other_example, static_argnames="bounds")


def _perturbed(kind, seed, num_examples=200, epsilon=0.3):
    """Clean points with many pixels on the bounds, and perturbations of one kind within the box."""
    rng = _rng(seed)
    x = np.clip(rng.normal(0.5, 0.6, (num_examples, SIZE)), 0, 1)
    delta = {
        "signs": epsilon * rng.choice([-1, 1], x.shape),
        "sparse": epsilon * rng.normal(size=x.shape) * (rng.random(x.shape) < 0.2),
        "dense": np.clip(rng.normal(0, epsilon / 2, x.shape), -epsilon, epsilon),
    }[kind]
    adversarial = np.clip(x + delta, 0, 1)
    return tuple(jnp.asarray(z.reshape(-1, *SHAPE).astype(np.float32)) for z in (x, adversarial))


@pytest.mark.parametrize("kind", ["signs", "sparse", "dense"])
def test_matched_noise_has_both_norms_within_the_box(kind):
    x, adversarial = _perturbed(kind, 1)
    noise = _noise(jax.random.key(0), x, adversarial)
    assert noise.points.shape == x.shape
    assert noise.matched.shape == (len(x),)
    assert bool(noise.matched.all())
    assert float(noise.points.min()) >= 0 and float(noise.points.max()) <= 1
    attack_norms, noise_norms = (
        _norms(_flat(adversarial) - _flat(x)),
        _norms(_flat(noise.points) - _flat(x)),
    )
    np.testing.assert_allclose(noise_norms[0], attack_norms[0], rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(noise_norms[1], attack_norms[1], rtol=2e-6, atol=1e-7)
    moved = attack_norms[0] > 0
    assert moved.mean() > 0.9
    assert (np.abs(_flat(noise.points) - _flat(adversarial)).max(-1) > 0)[moved].mean() > 0.9


def test_matched_noise_respects_other_bounds():
    rng = _rng(2)
    x = jnp.asarray(rng.uniform(-1, 2, (50, SIZE)), jnp.float32)
    adversarial = jnp.clip(x + 0.4 * jnp.sign(jnp.asarray(rng.normal(size=x.shape))), -1, 2)
    noise = _noise(jax.random.key(0), x, adversarial, bounds=(-1.0, 2.0))
    points = np.asarray(noise.points)
    assert points.min() >= -1 and points.max() <= 2
    assert (points < 0).any() and (points > 1).any()
    np.testing.assert_allclose(_norms(points - x), _norms(np.asarray(adversarial) - x), rtol=1e-5)


def test_matched_noise_draws_signs_and_pixels_at_random():
    # Seven of sixteen pixels move, clear of the bounds, so that nothing forces sign or place.
    x = jnp.full((8, SIZE), 0.5)
    delta = np.zeros((8, SIZE), np.float32)
    delta[:, :7] = 0.1
    keys = jax.random.split(jax.random.key(1), 500)
    points = jax.vmap(lambda key: _noise(key, x, x + delta).points)(keys)
    moves = np.asarray(points) - 0.5
    cosines = (moves * delta).sum(-1) / 0.07  # the square of both norms
    # A cosine is 7 pixels of 16 met with random signs: variance 7 · 7/16 / 49 = 1/16.
    num_draws = cosines.size
    assert abs(cosines.mean()) < 4 * 0.25 / np.sqrt(num_draws)
    assert cosines.std() == pytest.approx(0.25, rel=0.1)
    frequency = (np.abs(moves) > 0.05).mean((0, 1))
    np.testing.assert_allclose(frequency, 7 / 16, atol=5 * 0.5 / np.sqrt(num_draws))
    # Examples of one batch do not share their draws.
    assert abs((moves[:, 0] * moves[:, 1]).sum(-1).mean() / 0.07) < 4 * 0.25 / np.sqrt(500)


def test_matched_noise_of_one_key_repeats_and_of_another_differs():
    x, adversarial = _perturbed("signs", 3)
    first, again, other = (_noise(jax.random.key(k), x, adversarial).points for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 0.1


def test_matched_noise_reports_what_the_box_makes_impossible():
    # One pixel moves by .6; the others, at .5, cannot: what they need of the l2 norm has no place.
    x = np.full((2, SIZE), 0.5, np.float32)
    x[:, 0] = 0.0
    adversarial = x.copy()
    adversarial[:, 0] = 0.6
    adversarial[0, 1:] = 1.0
    noise = _noise(jax.random.key(0), jnp.asarray(x), jnp.asarray(adversarial))
    assert noise.matched.tolist() == [False, True]
    points = np.asarray(noise.points)
    assert points.min() >= 0 and points.max() <= 1
    assert _norms(points - x)[0][0] < 0.9 * _norms(adversarial - x)[0][0]
    np.testing.assert_allclose(points[1], adversarial[1], rtol=1e-6)


@pytest.mark.quick
def test_no_perturbation_has_no_noise():
    x, _ = _perturbed("signs", 4)
    for control in (_noise, _other):
        perturbed = control(jax.random.key(0), x, x)
        np.testing.assert_array_equal(perturbed.points, x)
        assert bool(perturbed.matched.all())


# Another example's perturbation


@pytest.mark.parametrize("kind", ["signs", "dense"])
def test_other_example_has_the_own_l2_norm_within_the_box(kind):
    x, adversarial = _perturbed(kind, 5)
    perturbed = _other(jax.random.key(0), x, adversarial)
    points, wanted = np.asarray(perturbed.points), _norms(_flat(adversarial) - _flat(x))[0]
    assert points.min() >= 0 and points.max() <= 1
    reached = _norms(_flat(points) - _flat(x))[0]
    matched = np.asarray(perturbed.matched)
    np.testing.assert_array_equal(matched, reached >= 0.99 * wanted)
    assert matched.mean() > 0.9
    np.testing.assert_allclose(reached[matched], wanted[matched], rtol=0.01)
    assert (reached <= wanted * (1 + 1e-5)).all()


def test_other_example_is_never_the_own_perturbation():
    # Example i is perturbed along pixel i alone, so that every perturbation can be told.
    num_examples = 5
    sizes = 0.05 * (1 + np.arange(num_examples))
    x = jnp.full((num_examples, SIZE), 0.5)
    delta = np.zeros((num_examples, SIZE), np.float32)
    delta[np.arange(num_examples), np.arange(num_examples)] = sizes
    keys = jax.random.split(jax.random.key(0), 100)
    points = jax.vmap(lambda key: _other(key, x, x + delta).points)(keys)
    moves = np.asarray(points) - 0.5
    origin = moves.argmax(-1)
    assert set(origin[:, 0]) == {1, 2, 3, 4}
    assert not (origin == np.arange(num_examples)).any()
    # The other's direction at the own length, and each perturbation used once.
    np.testing.assert_allclose(moves.max(-1), np.broadcast_to(sizes, origin.shape), rtol=1e-4)
    np.testing.assert_allclose(np.abs(moves).sum(-1), moves.max(-1), rtol=1e-5)
    assert (np.sort(origin, -1) == np.arange(num_examples)).all()


def test_other_example_scales_until_the_clipped_rest_has_the_norm():
    # The other's perturbation moves pixels 0 and 1 alike; pixel 0 stops at its bound after .05.
    x = np.full((2, SIZE), 0.5, np.float32)
    x[0, 0] = 0.95
    adversarial = x.copy()
    adversarial[0, 2:6] += 0.1  # own norm .2
    adversarial[1, :2] += 0.1
    perturbed = _other(jax.random.key(0), jnp.asarray(x), jnp.asarray(adversarial))
    moved = np.asarray(perturbed.points)[0] - x[0]
    np.testing.assert_allclose(moved[:2], [0.05, np.sqrt(0.04 - 0.0025)], rtol=1e-4)
    np.testing.assert_array_equal(moved[2:], 0)
    assert perturbed.matched.tolist() == [True, True]


def test_other_example_reports_what_the_box_makes_impossible():
    x = np.full((3, SIZE), 0.95, np.float32)
    adversarial = x.copy()
    adversarial[0, :4] -= 0.5  # the others' room of .05 in one pixel is less
    adversarial[1, 0] += 0.05
    adversarial[2, 0] += 0.05
    perturbed = _other(jax.random.key(0), jnp.asarray(x), jnp.asarray(adversarial))
    assert perturbed.matched.tolist() == [False, True, True]
    assert float(perturbed.points.max()) <= 1
    # Another example that the attack did not move has nothing to lend.
    still = _other(jax.random.key(0), jnp.asarray(x[:2]), jnp.asarray([x[0], adversarial[1]]))
    assert still.matched.tolist() == [True, False]
    np.testing.assert_array_equal(still.points[1], x[1])


def test_other_example_needs_two_examples():
    x, adversarial = _perturbed("signs", 6, 1)
    with pytest.raises(ValueError, match="two examples, got 1"):
        transfer.other_example(jax.random.key(0), x, adversarial)


# The matrix


def _numpy_margin(logits, labels):
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    rows = np.arange(len(labels))
    rest = logits.copy()
    rest[rows, labels] = -np.inf
    return rest.max(-1) - logits[rows, labels]


def _numpy_correct(logits, labels):
    return np.asarray(logits).argmax(-1) == np.asarray(labels)


@pytest.fixture(scope="module")
def crossed():
    """Two surrogates against three targets, on 24 examples."""
    x, labels = _examples(0)
    surrogates, targets = _mlp_params(1, 2), _mlp_params(2, 3)
    key = jax.random.key(0)
    matrix = jax.device_get(_matrix(surrogates, targets, key, x, labels))
    return surrogates, targets, x, labels, matrix


def test_matrix_against_a_loop(crossed):
    surrogates, targets, x, labels, matrix = crossed
    coefficients, increases = transfer.coefficient(matrix), transfer.increase(matrix)
    coefficients, increases = np.asarray(coefficients), np.asarray(increases)
    rate = jax.device_get(transfer.success(matrix, "all", "clean"))
    mlp = jax.jit(_mlp)
    for k in range(2):
        logits_fn = functools.partial(mlp, _select(surrogates, k))
        adversarial = _adversarial(_select(surrogates, k), x, labels)
        for name, points in (("clean", x), ("attack", adversarial)):
            own_logits = logits_fn(points)
            np.testing.assert_allclose(
                matrix.surrogate[name].loss[k], _numpy_margin(own_logits, labels), atol=1e-5
            )
            np.testing.assert_array_equal(
                matrix.surrogate[name].correct[k], _numpy_correct(own_logits, labels)
            )
        np.testing.assert_allclose(
            matrix.norm[k], _norms(_flat(adversarial) - _flat(x))[0], rtol=1e-5
        )
        for m in range(3):
            target = functools.partial(mlp, _select(targets, m))
            logits = target(adversarial)
            loss, correct = _numpy_margin(logits, labels), _numpy_correct(logits, labels)
            np.testing.assert_allclose(matrix.target["attack"].loss[k, m], loss, atol=1e-5)
            np.testing.assert_array_equal(matrix.target["attack"].correct[k, m], correct)
            clean = _numpy_margin(target(x), labels)
            np.testing.assert_allclose(matrix.target["clean"].loss[m], clean, atol=1e-5)
            np.testing.assert_allclose(increases[k, m], loss - clean, atol=2e-5)
            # A ratio of sums over examples, not a mean of ratios.
            own_increase = _numpy_margin(logits_fn(adversarial), labels) - _numpy_margin(
                logits_fn(x), labels
            )
            assert coefficients[k, m] == pytest.approx(
                (loss - clean).sum() / own_increase.sum(), abs=1e-4
            )
            wrong = int((~_numpy_correct(target(x), labels)).sum())
            assert (int(rate.num_fooled[k, m]), int(rate.num_examples[k, m])) == (wrong, 24)


def test_matrix_shapes(crossed):
    matrix = crossed[-1]
    assert {name: e.loss.shape for name, e in matrix.target.items()} == {
        "clean": (3, 24),
        "attack": (2, 3, 24),
        "noise": (2, 3, 24),
        "other_example": (2, 3, 24),
    }
    assert {name: e.correct.shape for name, e in matrix.surrogate.items()} == {
        "clean": (2, 24),
        "attack": (2, 24),
        "noise": (2, 24),
        "other_example": (2, 24),
    }
    assert {name: m.shape for name, m in matrix.matched.items()} == {
        "noise": (2, 24),
        "other_example": (2, 24),
    }
    assert transfer.coefficient(matrix).shape == (2, 3)


def test_matrix_second_call_compiles_nothing(crossed):
    *_, x, labels, _ = crossed
    before = _matrix._cache_size()
    _matrix(_mlp_params(7, 2), _mlp_params(8, 3), jax.random.key(5), x, labels)
    assert _matrix._cache_size() == before


def test_attack_outcomes_do_not_depend_on_the_order_of_examples(crossed):
    surrogates, targets, x, labels, matrix = crossed
    order = _rng(3).permutation(len(labels))
    shuffled = _matrix(surrogates, targets, jax.random.key(0), x[order], labels[order])
    for name in ("clean", "attack"):
        for part in ("surrogate", "target"):
            ordered, other = getattr(matrix, part)[name], getattr(shuffled, part)[name]
            np.testing.assert_allclose(other.loss, ordered.loss[..., order], atol=1e-5)
            np.testing.assert_array_equal(other.correct, ordered.correct[..., order])


def test_controls_in_the_matrix_are_those_of_each_surrogates_own_attack():
    # Target j has pixel j as the loss of class 1: the losses of all targets spell out the points.
    x, _ = _examples(4, 12)
    labels = jnp.ones(12, jnp.int32)
    both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), _mlp_params(5))
    pixels = jnp.eye(SIZE)

    def read_pixel(pixel, z):
        value = z.reshape(z.shape[0], -1) @ pixel
        return jnp.stack([value, jnp.zeros_like(value)], -1)

    matrix = _matrix(both, pixels, jax.random.key(0), x, labels, fns=(_mlp, read_pixel))
    points = {name: np.moveaxis(np.asarray(e.loss), -2, -1) for name, e in matrix.target.items()}
    np.testing.assert_allclose(points["clean"], _flat(x), atol=1e-6)
    delta = {name: z - _flat(x)[None] for name, z in points.items() if name != "clean"}
    np.testing.assert_allclose(matrix.norm, np.linalg.norm(delta["attack"], axis=-1), rtol=1e-5)
    for name in ("noise", "other_example"):
        assert points[name].min() >= 0 and points[name].max() <= 1
        matched = np.asarray(matrix.matched[name])
        assert matched.mean() > 0.9
        norm = np.linalg.norm(delta[name], axis=-1)
        np.testing.assert_allclose(norm[matched], np.asarray(matrix.norm)[matched], rtol=0.01)
        assert (np.abs(delta[name] - delta["attack"]).max(-1) > 0.01).mean() > 0.9
    # The same model twice: the same attack, but noise from keys of its own.
    np.testing.assert_array_equal(points["attack"][0], points["attack"][1])
    assert np.abs(points["noise"][0] - points["noise"][1]).max() > 0.05


def test_matrix_over_pairs_is_a_loop_over_pairs(crossed):
    *_, x, labels, _ = crossed
    surrogates, targets = _mlp_params(6, 3, 2), _mlp_params(7, 3, 3)
    keys = jax.random.split(jax.random.key(2), 3)
    run = jax.vmap(lambda s, t, key: _matrix(s, t, key, x, labels))
    lifted = jax.device_get(jax.jit(run)(surrogates, targets, keys))
    for p in range(3):
        alone = _matrix(_select(surrogates, p), _select(targets, p), keys[p], x, labels)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, _select(lifted, p)
        )


def test_a_copy_meets_all_the_way_and_a_stranger_like_noise(crossed):
    surrogates, _, x, labels, _ = crossed
    copy = jax.tree.map(lambda leaf: leaf[:1], surrogates)
    differences = []
    for seed in range(60):
        strangers = _mlp_params(100 + seed, 2)
        targets = jax.tree.map(lambda a, b: np.concatenate([a, b]), copy, strangers)
        matrix = _matrix(surrogates, targets, jax.random.key(seed), x, labels)
        own_increase = matrix.surrogate["attack"].loss - matrix.surrogate["clean"].loss
        noise = transfer.increase(matrix, "noise").sum(-1) / own_increase.sum(-1)[:, None]
        differences.append(np.asarray(transfer.coefficient(matrix) - noise)[:, 1:])
    assert float(transfer.coefficient(matrix)[0, 0]) == pytest.approx(1.0, abs=1e-5)
    assert float(noise[0, 0]) < 0.3
    own_fooled = ~np.asarray(matrix.surrogate["attack"].correct[0])
    np.testing.assert_array_equal(~np.asarray(matrix.target["attack"].correct)[0, 0], own_fooled)
    assert int(transfer.success(matrix, "all").num_fooled[0, 0]) == own_fooled.sum() > 12
    # Two strangers a draw, against two surrogates.
    mean, error = np.mean(differences), np.std(differences) / np.sqrt(np.size(differences))
    assert abs(mean) < 4 * error < 0.2


def _by_hand():
    """Two surrogates, one target more, four examples; losses are chosen for their ratios."""
    clean = jnp.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]], bool)
    own_correct = jnp.array([[1, 0, 1, 1], [1, 1, 1, 1]], bool)
    attacked = jnp.array(
        [
            [[0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]],
            [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]],
        ],
        bool,
    )
    zeros = jnp.zeros((2, 3, 4))
    target_loss = zeros.at[0, 0].set(jnp.array([1.0, 2.0, 3.0, 4.0]))

    def evaluation(loss, correct, wrong=1):
        # Labels are 0; what is wrong is taken for a class that may differ from point to point.
        return transfer.Evaluation(loss, correct, jnp.where(correct, 0, wrong).astype(jnp.int16))

    own_loss = jnp.array([[4.0, 1.0, 10.0, 5.0]] * 2)
    surrogate = {
        "clean": evaluation(jnp.zeros((2, 4)), own_correct),
        "attack": evaluation(own_loss, jnp.array([[0, 0, 0, 1], [0, 0, 0, 0]], bool)),
        "noise": evaluation(own_loss, own_correct),
    }
    target = {
        "clean": evaluation(jnp.zeros((3, 4)), clean, 2),
        "attack": evaluation(target_loss, attacked, jnp.array([1, 2, 1, 1])),
        "noise": evaluation(zeros, jnp.broadcast_to(clean, (2, 3, 4)), 2),
    }
    return transfer.TransferMatrix(surrogate, target, {}, jnp.ones((2, 4)))


@pytest.mark.parametrize(
    ("denominator", "points", "num_fooled", "num_examples"),
    [
        ("all", "attack", [[3, 2, 4], [0, 4, 2]], [[4, 4, 4], [4, 4, 4]]),
        ("target_correct", "attack", [[2, 1, 0], [0, 2, 0]], [[3, 2, 0], [3, 2, 0]]),
        ("both_correct", "attack", [[1, 1, 0], [0, 2, 0]], [[2, 2, 0], [3, 2, 0]]),
        ("all", "clean", [[1, 2, 4], [1, 2, 4]], [[4, 4, 4], [4, 4, 4]]),
        ("target_correct", "noise", [[0, 0, 0], [0, 0, 0]], [[3, 2, 0], [3, 2, 0]]),
    ],
)
def test_success_counted_by_hand(denominator, points, num_fooled, num_examples):
    matrix = _by_hand()
    rate = transfer.success(matrix, denominator, points)
    assert rate.num_fooled.tolist() == num_fooled
    assert rate.num_examples.tolist() == num_examples
    sums = transfer.summarize(matrix, points)
    assert sums[f"num_fooled.{denominator}"].tolist() == num_fooled
    assert sums[f"num_examples.{denominator}"].tolist() == num_examples


@pytest.mark.parametrize(
    ("denominator", "points", "same", "different"),
    [
        ("all", "attack", [[2, 0, 2], [0, 3, 2]], [[1, 2, 2], [0, 1, 0]]),
        ("target_correct", "attack", [[1, 0, 0], [0, 2, 0]], [[1, 1, 0], [0, 0, 0]]),
        ("all", "clean", [[0, 0, 0], [0, 0, 0]], [[1, 2, 4], [1, 2, 4]]),
    ],
)
def test_mistakes_counted_by_hand(denominator, points, same, different):
    # Targets take the second example for class 2, all else for 1; the surrogates say 1 throughout.
    mistakes = transfer.mistakes(_by_hand(), denominator, points)
    assert mistakes.same.tolist() == same
    assert mistakes.different.tolist() == different
    rate = transfer.success(_by_hand(), denominator, points)
    np.testing.assert_array_equal(sum(mistakes), rate.num_examples)


@pytest.mark.quick
def test_clean_error_of_each_target():
    np.testing.assert_allclose(transfer.clean_error(_by_hand()), [0.25, 0.5, 1.0])


def test_coefficient_is_a_ratio_of_sums():
    # (1 + 2 + 3 + 4) / (4 + 1 + 10 + 5); the mean of ratios would be .84.
    coefficients = transfer.coefficient(_by_hand())
    np.testing.assert_allclose(coefficients, [[0.5, 0, 0], [0, 0, 0]], atol=1e-7)
    sums = transfer.summarize(_by_hand())
    np.testing.assert_allclose(sums["increase"], [[10, 0, 0], [0, 0, 0]])
    assert "increase" not in transfer.summarize(_by_hand(), "clean")


def test_unknown_denominator():
    with pytest.raises(ValueError, match=r"both_correct.*'correct'"):
        transfer.success(_by_hand(), "correct")


# First order (P5)


def _difference(logits, labels):
    """A logit difference with fixed classes: affine in x for an affine model."""
    del labels
    return logits[:, 1] - logits[:, 0]


@functools.partial(jax.jit, static_argnames=("surrogate", "target", "loss_fn"))
def _first_order(surrogate, target, x, labels, epsilon, *, loss_fn=_difference):
    threat = attacks.linf(epsilon)
    return transfer.first_order(surrogate, target, x, labels, threat=threat, loss_fn=loss_fn)


def _pair(seed, fn=_linear, make=_linear_params):
    return [functools.partial(fn, make(seed + i)) for i in range(2)]


def test_first_order_is_exact_for_an_affine_loss():
    surrogate, target = _pair(10)
    x, labels = _examples(7, low=0.3, high=0.7)
    out = _first_order(surrogate, target, x, labels, 0.25)
    w_a, w_b = (np.asarray(fn.args[0]["w"], np.float64) for fn in (surrogate, target))
    h_a, h_b = (w[:, 1] - w[:, 0] for w in (w_a, w_b))
    score = h_b @ np.sign(h_a)
    np.testing.assert_allclose(out.score, np.full(24, score), rtol=1e-5)
    np.testing.assert_allclose(out.tau, np.full(24, score / np.abs(h_b).sum()), rtol=1e-5)
    np.testing.assert_allclose(out.predicted, np.full(24, 0.25 * score), rtol=1e-5)
    np.testing.assert_allclose(out.actual, out.predicted, rtol=1e-4, atol=1e-5)


def test_first_order_is_exact_for_the_margin_of_two_classes():
    surrogate, target = _pair(12, make=functools.partial(_linear_params, num_classes=2))
    x, labels = _examples(8, low=0.3, high=0.7)
    out = _first_order(surrogate, target, x, labels % 2, 0.2, loss_fn=losses.margin)
    np.testing.assert_allclose(out.actual, out.predicted, rtol=1e-4, atol=1e-5)
    assert set(np.sign(out.score).tolist()) <= {-1.0, 1.0}


def test_first_order_predicts_the_displacement_that_the_box_leaves():
    surrogate, target = _pair(14)
    x, labels = _examples(9, low=-0.5, high=1.5)
    x = jnp.clip(x, 0, 1)  # a third of the pixels lie on the bounds
    out = _first_order(surrogate, target, x, labels, 0.3)
    h_a, h_b = (
        np.asarray(fn.args[0]["w"][:, 1] - fn.args[0]["w"][:, 0], np.float64)
        for fn in (surrogate, target)
    )
    displacement = np.clip(_flat(x) + 0.3 * np.sign(h_a), 0, 1) - _flat(x)
    np.testing.assert_allclose(out.predicted, displacement @ h_b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.actual, out.predicted, rtol=1e-4, atol=2e-5)
    assert np.abs(out.predicted - 0.3 * out.score).min() > 1e-3


def test_first_order_errs_by_the_square_of_the_budget():
    surrogate, target = _pair(16, _mlp, _mlp_params)
    x, labels = _examples(10, low=0.4, high=0.6)
    errors = []
    for epsilon in (0.08, 0.04, 0.02):
        out = _first_order(surrogate, target, x, labels, epsilon)
        np.testing.assert_allclose(out.predicted, epsilon * out.score, rtol=1e-4, atol=1e-6)
        errors.append(float(jnp.abs(out.actual - out.predicted).sum()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    assert errors[0] > 1e-3


def test_tau_lies_between_minus_one_and_one():
    x, labels = _examples(11, 50)
    surrogate, target = _pair(18, _mlp, _mlp_params)

    def opposite(z):
        return -surrogate(z)

    tau = _first_order(surrogate, target, x, labels, 0.1, loss_fn=losses.cross_entropy).tau
    assert float(jnp.abs(tau).max()) <= 1 + 1e-6
    assert float(tau.min()) < 0 < float(tau.max())
    np.testing.assert_allclose(
        _first_order(surrogate, surrogate, x, labels, 0.1).tau, 1.0, rtol=1e-5
    )
    np.testing.assert_allclose(
        _first_order(surrogate, opposite, x, labels, 0.1).tau, -1.0, rtol=1e-5
    )


def test_tau_is_undefined_where_the_target_has_no_gradient():
    surrogate, _ = _pair(20)
    x, labels = _examples(12)
    x = x.at[:12, 0, 0, 0].set(0.2).at[12:, 0, 0, 0].set(0.8)

    def half_blind(z):
        # Flat for the first pixel below one half.
        value = jax.nn.relu(z[:, 0, 0, 0] - 0.5)
        return jnp.stack([jnp.zeros_like(value), value], -1)

    out = _first_order(surrogate, half_blind, x, labels, 0.1)
    np.testing.assert_array_equal(jnp.isnan(out.tau), np.arange(24) < 12)
    np.testing.assert_allclose(jnp.abs(out.tau[12:]), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(out.score[:12], 0)
    np.testing.assert_array_equal(out.predicted[:12], 0)


@pytest.mark.quick
def test_evaluate_by_hand():
    logits = jnp.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    out = transfer.evaluate(lambda x: logits, jnp.zeros((2, 1)), jnp.array([0, 2]))
    np.testing.assert_allclose(out.loss, [-1.0, 2.0])
    assert out.correct.tolist() == [True, False]
    assert out.predicted.tolist() == [0, 0] and out.predicted.dtype == jnp.int16


def test_a_logit_that_is_nan_is_no_prediction():
    logits = jnp.array([[jnp.nan, 1.0], [2.0, 1.0]])
    out = transfer.evaluate(lambda x: logits, jnp.zeros((2, 1)), jnp.array([0, 0]))
    assert out.predicted.tolist() == [-1, 0] and out.correct.tolist() == [False, True]


# Choosing pixels


def test_selection_is_that_of_a_stable_sort():
    key_draws, key_count = jax.random.split(jax.random.key(0))
    for levels in (3, 50, controls._LEVELS):  # with many ties, some, and almost none
        draws = jax.random.randint(key_draws, (200, 40), 0, levels + 1)
        count = jax.random.randint(key_count, (200, 1), 0, 44)  # beyond all 40, too
        first, following = controls._select(draws, count)
        rank = np.argsort(np.argsort(draws, -1, kind="stable"), -1)
        np.testing.assert_array_equal(first, rank < np.asarray(count))
        np.testing.assert_array_equal(following, rank == np.asarray(count))


@pytest.mark.quick
def test_controls_keep_the_bounds_of_the_attack():
    wide = attacks.linf(0.1, bounds=(-1.0, 2.0))
    attack = functools.partial(attacks.pgd, threat=wide)
    np.testing.assert_array_equal(transfer.matrix.bounds_of(attack), (-1, 2))
    np.testing.assert_array_equal(transfer.matrix.bounds_of(attack, (-1.0, 2.0)), (-1, 2))
    with pytest.raises(ValueError, match=r"the attack keeps the bounds \(-1.0, 2.0\)"):
        transfer.matrix.bounds_of(attack, (0.0, 1.0))
    nearest = functools.partial(attacks.ddn, bounds=(0.0, 255.0))
    assert transfer.matrix.bounds_of(nearest) == (0.0, 255.0)
    # What an attack does not show is given, or that of images.
    assert transfer.matrix.bounds_of(attacks.ddn) == (0.0, 1.0)
    assert transfer.matrix.bounds_of(attacks.ddn, (-3.0, 3.0)) == (-3.0, 3.0)
