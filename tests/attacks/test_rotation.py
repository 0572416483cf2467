"""Rotations and translations: geometry by hand, and the worst of them by exhaustion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import attacks

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (6, 5, 5, 2))
move = jax.jit(attacks.rotate_and_shift, static_argnames=("degrees", "shift"))


@pytest.mark.quick
def test_no_move_and_quarters_of_a_turn_are_exact():
    still = move(IMAGES, jnp.zeros((6, 3)))
    np.testing.assert_allclose(still, IMAGES, atol=1e-6)
    for share, quarters in ((1.0, 1), (-1.0, -1)):
        turned = move(IMAGES, jnp.tile(jnp.array([share, 0, 0]), (6, 1)), degrees=90.0)
        np.testing.assert_allclose(turned, np.rot90(IMAGES, quarters, (1, 2)), atol=1e-5)


@pytest.mark.quick
def test_shifts_of_whole_pixels_bring_in_black():
    shifted = move(IMAGES, jnp.tile(jnp.array([0.0, 1.0, -1.0]), (6, 1)), shift=0.2)
    expected = np.zeros_like(IMAGES)
    expected[:, 1:, :-1] = IMAGES[:, :-1, 1:]
    np.testing.assert_allclose(shifted, expected, atol=1e-6)


def test_moves_have_gradients():
    """Of a smooth image, against differences."""
    rows, columns = np.mgrid[:9, :9] / 8 - 0.5
    image = jnp.asarray(np.exp(-8 * (rows**2 + (columns - 0.1) ** 2)), jnp.float32)[None, ..., None]
    weight = jax.random.normal(KEY, (9, 9, 1))

    def value(moves):
        return (attacks.rotate_and_shift(image, moves[None], shift=0.3)[0] * weight).sum()

    at = jnp.array([0.21, 0.13, -0.17])
    slope = jax.grad(value)(at)
    for axis in range(3):
        step = jnp.zeros(3).at[axis].set(1e-3)
        difference = (value(at + step) - value(at - step)) / 2e-3
        assert abs(float(slope[axis] - difference)) < 0.02 * (1 + abs(float(difference)))


WEIGHTS = jax.random.normal(jax.random.key(2), (50, 3))


def model(x):
    return (x - 0.5).reshape(len(x), -1) @ WEIGHTS


LABELS = model(IMAGES).argmax(-1)


def test_the_grid_finds_what_looking_at_each_of_it_finds():
    options = {"degrees": 20.0, "shift": 0.2}
    attack = functools.partial(attacks.spatial, model, KEY, IMAGES, LABELS, grid=(7, 3), **options)
    result = jax.jit(attack)()
    best = np.asarray(jax.vmap(margin)(model(IMAGES), LABELS))
    for angle in np.linspace(-1, 1, 7):
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                shares = jnp.tile(jnp.array([angle, down, across]), (6, 1))
                moved = jnp.clip(move(IMAGES, shares, **options), 0, 1)
                best = np.maximum(best, jax.vmap(margin)(model(moved), LABELS))
    np.testing.assert_allclose(result.loss, best, atol=1e-4)
    np.testing.assert_array_equal(result.success, best > 0)
    np.testing.assert_array_equal(model(result.adversarial).argmax(-1) != LABELS, result.success)
    assert result.success.sum() > 0 and (result.queries == 1 + 7 * 9).all()


def margin(logits, label):
    return jnp.max(jnp.where(jnp.arange(3) == label, -jnp.inf, logits)) - logits[label]


def test_random_moves_belong_to_a_place_and_follow_the_box():
    attack = functools.partial(attacks.spatial, model, KEY, num_draws=30, degrees=40.0)
    whole, part = attack(IMAGES, LABELS), attack(IMAGES[:2], LABELS[:2])
    np.testing.assert_allclose(part.adversarial, whole.adversarial[:2], atol=1e-6)
    other = attacks.spatial(model, jax.random.key(9), IMAGES, LABELS, num_draws=30, degrees=40.0)
    assert (other.adversarial != whole.adversarial).any()
    still = attacks.spatial(model, KEY, IMAGES, LABELS, num_draws=5, degrees=0.0, shift=0.0)
    np.testing.assert_allclose(still.adversarial, IMAGES, atol=1e-6)


def test_moves_are_a_box_for_any_attack():
    """Gradients in the box of moves are at least as good as as many random draws, on average."""

    def of_moves(moves):
        return model(attacks.rotate_and_shift(IMAGES, moves))

    ours = jax.jit(
        lambda: attacks.pgd(
            of_moves,
            KEY,
            jnp.zeros((6, 3)),
            LABELS,
            threat=attacks.linf(1.0, bounds=(-1.0, 1.0)),
            num_steps=40,
            num_restarts=5,
            random_start=True,
        )
    )()
    clean = jax.vmap(margin)(model(IMAGES), LABELS)
    assert (ours.loss >= clean - 1e-5).all() and (ours.loss > clean).any()
    assert (jnp.abs(ours.adversarial) <= 1).all()


@pytest.mark.quick
def test_what_are_no_images_is_refused():
    flat = IMAGES.reshape(6, -1)
    with pytest.raises(ValueError, match=r"spatial needs images \[B, H, W, D\]"):
        attacks.spatial(lambda x: x[:, :3], KEY, flat, LABELS)
    with pytest.raises(ValueError, match="grid, angles, must be at least 1, got 0"):
        attacks.spatial(model, KEY, IMAGES, LABELS, grid=(0, 1))
