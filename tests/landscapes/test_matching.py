"""Permutations leave functions as they are; planted ones are found again."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import landscapes, losses, models
from halfway.landscapes import permutations

CONFIGS = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "widths": (16, 12)},
    "cnn": {"kind": "cnn", "features": (6, 8), "stride": 2, "widths": (10,)},
    "residual": {"kind": "residual", "features": (6, 8), "blocks": 2},
    "transformer": {"kind": "transformer", "width": 16, "depth": 2, "heads": 4, "hidden": 12},
}
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 8, 8, 2)), jnp.float32)
KEY = jax.random.key(0)


def setting(name, seed=0):
    """Returns a module, parameters without a zero or one among them, and the specification."""
    module = models.build(CONFIGS[name], num_classes=3)
    shapes = jax.eval_shape(module.init, KEY, IMAGES)["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda s: jnp.asarray(
            rng.standard_normal(s.shape) / np.sqrt(s.size / s.shape[-1]), jnp.float32
        ),
        shapes,
    )
    return module, params, landscapes.derive_permutations(module, params)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", CONFIGS)
def test_permuted_units_compute_the_same(name):
    module, params, specification = setting(name)
    planted = landscapes.random_permutations(jax.random.key(1), specification)
    moved = landscapes.apply_permutations(specification, planted, params)
    logits = jax.jit(lambda p: module.apply({"params": p}, IMAGES))
    np.testing.assert_allclose(logits(moved), logits(params), rtol=1e-4, atol=1e-4)
    for group, places in specification.places().items():  # no group moves nothing
        tensors = permutations.to_dict(moved), permutations.to_dict(params)
        assert any(np.any(tensors[0][t] != tensors[1][t]) for t, *_ in places), group


def test_groups_of_every_kind():
    sizes = {name: setting(name)[2].sizes for name in CONFIGS}
    assert sizes["linear"] == {}
    assert sizes["mlp"] == {"Dense_0": 16, "Dense_1": 12}
    assert sizes["cnn"] == {"Conv_0": 6, "Conv_1": 8, "Dense_0": 10}
    assert sizes["residual"] == {"stream0": 6, "stream1": 8} | {
        f"stage{s}_block{b}_hidden": (6, 8)[s] for s in (0, 1) for b in (0, 1)
    }
    blocks = {f"block{b}_{part}": n for b in (0, 1) for part, n in (("heads", 4), ("hidden", 12))}
    assert sizes["transformer"] == {"stream": 16} | blocks


@pytest.mark.parametrize("name", ["cnn", "residual", "transformer"])
def test_a_tensor_left_out_changes_the_function(name):
    """What a wrong specification would do: the check above can fail."""
    module, params, specification = setting(name)
    wrong = dict(specification.axes)
    tensor = next(t for t in wrong if t.endswith("bias") and wrong[t][0] is not None)
    wrong[tensor] = (None,) * len(wrong[tensor])
    planted = landscapes.random_permutations(jax.random.key(1), specification)
    moved = landscapes.apply_permutations(
        landscapes.declare_permutations(wrong, params), planted, params
    )
    logits = jax.jit(lambda p: module.apply({"params": p}, IMAGES))
    assert np.abs(logits(moved) - logits(params)).max() > 1e-2


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_permutations_are_a_group(name):
    _, params, specification = setting(name)
    first, second = (
        landscapes.random_permutations(jax.random.key(i), specification) for i in (1, 2)
    )
    once = landscapes.apply_permutations(specification, first, params)
    assert_equal(
        landscapes.apply_permutations(specification, landscapes.invert_permutations(first), once),
        params,
    )
    both = landscapes.apply_permutations(
        specification, landscapes.compose_permutations(first, second), params
    )
    assert_equal(landscapes.apply_permutations(specification, second, once), both)
    assert_equal(
        landscapes.apply_permutations(
            specification, landscapes.identity_permutations(specification), params
        ),
        params,
    )


def test_ensembles_are_permuted_by_vmap():
    _, params, specification = setting("cnn")
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    draw = lambda key: landscapes.random_permutations(key, specification)  # noqa: E731
    orders = jax.vmap(draw)(jax.random.split(KEY, 2))
    apply = lambda orders, params: landscapes.apply_permutations(specification, orders, params)  # noqa: E731
    together = jax.jit(jax.vmap(apply))(orders, members)
    for i in range(2):
        pick = lambda leaf, i=i: leaf[i]  # noqa: E731
        alone = apply(jax.tree.map(pick, orders), jax.tree.map(pick, members))
        assert_equal(jax.tree.map(pick, together), alone)


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
def test_planted_permutations_are_recovered_from_100_random_starts(name):
    _, params, specification = setting(name)
    recovered = 0
    for key in jax.random.split(jax.random.key(5), 100):
        planted = landscapes.random_permutations(key, specification)
        moved = landscapes.apply_permutations(specification, planted, params)
        found = landscapes.weight_match(specification, params, moved, key)
        back = landscapes.apply_permutations(specification, found.permutations, moved)
        recovered += all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True)
        )
        inverse = landscapes.invert_permutations(planted)
        assert all(np.array_equal(inverse[g], found.permutations[g]) for g in inverse)
    assert recovered == 100


def test_planted_permutations_of_a_transformer_with_a_few_restarts():
    _, params, specification = setting("transformer")
    for key in jax.random.split(jax.random.key(6), 20):
        planted = landscapes.random_permutations(key, specification)
        moved = landscapes.apply_permutations(specification, planted, params)
        found = landscapes.weight_match(specification, params, moved, key, num_restarts=8)
        assert_equal(
            landscapes.apply_permutations(specification, found.permutations, moved), params
        )


def test_noise_does_not_hide_a_planted_permutation():
    _, params, specification = setting("mlp")
    planted = landscapes.random_permutations(jax.random.key(1), specification)
    noise = jax.tree.map(lambda leaf: 0.2 * leaf.std() * jax.random.normal(KEY, leaf.shape), params)
    near = jax.tree.map(jnp.add, params, noise)
    found = landscapes.weight_match(
        specification, params, landscapes.apply_permutations(specification, planted, near), KEY
    )
    assert_equal(found.permutations, landscapes.invert_permutations(planted))


def test_one_group_is_matched_as_well_as_by_trying_all():
    module = models.build({"kind": "mlp", "widths": (5,)}, num_classes=3)
    draws = [module.init(jax.random.key(i), IMAGES)["params"] for i in range(2)]
    specification = landscapes.derive_permutations(module, draws[0])
    found = landscapes.weight_match(specification, *draws, KEY)
    best = max(
        float(
            landscapes.weight_similarity(
                draws[0],
                landscapes.apply_permutations(
                    specification, {"Dense_0": jnp.array(order)}, draws[1]
                ),
            )
        )
        for order in itertools.permutations(range(5))
    )
    # The head's bias has no group: it is in the one and not in the other, and is 0.
    assert found.similarity == pytest.approx(best, rel=1e-5)


def test_matching_never_lowers_the_similarity_and_more_restarts_never_the_best():
    _, a, specification = setting("residual", 1)
    _, b, _ = setting("residual", 2)
    raw = float(landscapes.weight_similarity(a, b))
    values = []
    for restarts in (1, 2, 6):
        found = landscapes.weight_match(specification, a, b, KEY, num_restarts=restarts)
        moved = landscapes.apply_permutations(specification, found.permutations, b)
        # The head's bias belongs to no group.
        rest = float(jnp.vdot(a["head"]["bias"], b["head"]["bias"]))
        assert float(landscapes.weight_similarity(a, moved)) == pytest.approx(
            found.similarity + rest, rel=1e-4
        )
        assert 1 <= found.num_found <= restarts
        values.append(found.similarity + rest)
    assert raw < values[0] <= values[1] <= values[2]


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "transformer"])
def test_activations_find_planted_permutations(name):
    module, params, specification = setting(name)
    planted = landscapes.random_permutations(jax.random.key(1), specification)
    moved = landscapes.apply_permutations(specification, planted, params)
    seen = [landscapes.hidden_activations(module, p, IMAGES) for p in (params, moved)]
    for group, values in seen[0].items():  # they move with their units
        assert values.shape[1] == specification.sizes[group]
        np.testing.assert_allclose(
            jnp.take(values, planted[group], 1), seen[1][group], rtol=1e-3, atol=1e-4
        )
    assert seen[0].keys() == specification.sizes.keys()
    assert_equal(landscapes.activation_match(*seen), landscapes.invert_permutations(planted))


def test_activations_that_cannot_be_compared_are_refused():
    one, two = {"h": jnp.ones((4, 3))}, {"h": jnp.ones((5, 3))}
    with pytest.raises(ValueError, match=r"'h' has shapes \(4, 3\) and \(5, 3\)"):
        landscapes.activation_match(one, two)
    with pytest.raises(ValueError, match="groups differ"):
        landscapes.activation_match(one, {"g": jnp.ones((4, 3))})


def test_dead_units_are_matched_to_what_is_left():
    values = jnp.asarray(np.random.default_rng(0).standard_normal((50, 3)), jnp.float32)
    dead = values.at[:, 1].set(0.0)
    found = landscapes.activation_match({"h": dead}, {"h": dead[:, jnp.array([1, 2, 0])]})
    assert found["h"].tolist() == [2, 0, 1]


def test_straight_through_descends_the_middle():
    module, a, specification = setting("mlp", 1)
    _, b, _ = setting("mlp", 2)
    labels = jnp.array([0, 1, 2, 0, 1])

    def loss_fn(params):
        return losses.cross_entropy(module.apply({"params": params}, IMAGES), labels).mean()

    found = landscapes.straight_through_match(
        specification, loss_fn, a, b, KEY, num_steps=40, learning_rate=0.05
    )
    assert found.history.shape == (41,)
    assert found.loss == found.history.min() < found.history[0]
    moved = landscapes.apply_permutations(specification, found.permutations, b)
    middle = jax.tree.map(lambda x, y: (x + y) / 2, a, moved)
    assert float(loss_fn(middle)) == pytest.approx(found.loss, rel=1e-4)


def test_many_models_come_together():
    _, params, specification = setting("cnn")
    keys = jax.random.split(KEY, 4)
    planted = jax.vmap(lambda k: landscapes.random_permutations(k, specification))(keys)
    apply = lambda orders, trees: jax.vmap(  # noqa: E731
        lambda o, t: landscapes.apply_permutations(specification, o, t)
    )(orders, trees)
    same = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), params)
    members = apply(planted, same)
    found, passes = landscapes.match_many(specification, members, KEY)
    together = apply(found, members)
    for leaf in jax.tree.leaves(together):
        np.testing.assert_array_equal(leaf, jnp.stack([leaf[0]] * 4))
    assert 2 <= passes < 100
    with pytest.raises(ValueError, match="two or more, got 1"):
        landscapes.match_many(specification, jax.tree.map(lambda leaf: leaf[:1], members), KEY)


# Specifications of somebody else's models

AXES = {"a/kernel": (None, "h"), "a/bias": ("h",), "b/kernel": (("h", 2), None)}
PARAMS = {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "b": {"kernel": jnp.ones((8, 2))}}


def test_a_declared_specification():
    specification = landscapes.declare_permutations(AXES, PARAMS)
    assert specification.sizes == {"h": 4}
    assert specification.places() == {
        "h": [("a/kernel", 1, 1), ("a/bias", 0, 1), ("b/kernel", 0, 2)]
    }
    params = dict(PARAMS, b={"kernel": jnp.arange(16.0).reshape(8, 2)})
    moved = landscapes.apply_permutations(specification, {"h": jnp.array([3, 2, 1, 0])}, params)
    np.testing.assert_array_equal(moved["b"]["kernel"][:, 0], [6, 4, 2, 0, 14, 12, 10, 8])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"c": (None,)}, "names 'c', which the parameters lack"),
        ({"a/bias": None}, "lacks 'a/bias' of shape \\(4,\\)"),
        ({"a/bias": ("h", None)}, "2 axes for 'a/bias', whose shape is \\(4,\\)"),
        (
            {"a/kernel": ("h", None)},
            "axis 0 of 'a/kernel' has 3 entries, but group 'h' needs 1 x 4",
        ),
        ({"b/kernel": (("h", 3), None)}, "axis 0 of 'b/kernel' has 8 entries"),
        ({"b/kernel": ("h", None)}, "axis 0 of 'b/kernel' has 8 entries, .* as in 'a/bias'"),
    ],
)
def test_a_wrong_specification_names_tensor_and_axis(change, message):
    axes = {name: entry for name, entry in (AXES | change).items() if entry is not None}
    with pytest.raises(ValueError, match=message):
        landscapes.declare_permutations(axes, PARAMS)


def test_what_cannot_be_derived_or_started_is_said():
    with pytest.raises(ValueError, match="derived for Dense: declare one"):
        landscapes.derive_permutations(models.nn.Dense(3), PARAMS)
    with pytest.raises(ValueError, match="num_restarts must be at least 1, got 0"):
        specification = landscapes.declare_permutations(AXES, PARAMS)
        landscapes.weight_match(specification, PARAMS, PARAMS, KEY, num_restarts=0)
