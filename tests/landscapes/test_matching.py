"""Permutations leave functions as they are; planted ones are found again."""

import functools
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
        lambda s: np.float32(rng.standard_normal(s.shape) / np.sqrt(s.size / s.shape[-1])), shapes
    )
    return module, params, landscapes.derive_permutations(module, params)


def compiled(specification):
    """Returns what draws permutations, and what applies them to parameters, both compiled."""
    draw = lambda key: landscapes.random_permutations(key, specification)  # noqa: E731
    apply = functools.partial(landscapes.apply_permutations, specification)
    return jax.jit(draw), jax.jit(apply)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", CONFIGS)
def test_permuted_units_compute_the_same(name):
    module, params, specification = setting(name)
    draw, apply = compiled(specification)
    moved = apply(draw(jax.random.key(1)), params)
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
    planted = compiled(specification)[0](jax.random.key(1))
    moved = compiled(landscapes.declare_permutations(wrong, params))[1](planted, params)
    logits = jax.jit(lambda p: module.apply({"params": p}, IMAGES))
    assert np.abs(np.asarray(logits(moved)) - np.asarray(logits(params))).max() > 1e-2


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_permutations_are_a_group(name):
    _, params, specification = setting(name)
    draw, apply = compiled(specification)
    first, second = draw(jax.random.key(1)), draw(jax.random.key(2))
    once = apply(first, params)
    inverse = jax.jit(landscapes.invert_permutations)(first)
    assert_equal(apply(inverse, once), params)
    both = apply(jax.jit(landscapes.compose_permutations)(first, second), params)
    assert_equal(apply(second, once), both)
    assert_equal(apply(landscapes.identity_permutations(specification), params), params)


def test_ensembles_are_permuted_by_vmap():
    _, params, specification = setting("cnn")
    members = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), params)
    draw, apply = compiled(specification)
    orders = jax.device_get(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 2)))
    together = jax.device_get(jax.jit(jax.vmap(apply))(orders, members))
    for i in range(2):
        pick = lambda leaf, i=i: leaf[i]  # noqa: E731
        alone = apply(jax.tree.map(pick, orders), jax.tree.map(pick, members))
        assert_equal(jax.tree.map(pick, together), alone)


@pytest.mark.parametrize("num_starts", [25, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
def test_planted_permutations_are_recovered_from_random_starts(name, num_starts):
    _, params, specification = setting(name)
    draw, apply = compiled(specification)
    recovered = 0
    for key in jax.random.split(jax.random.key(5), num_starts):
        planted = draw(key)
        moved = apply(planted, params)
        match = landscapes.weight_match(specification, params, moved, key)
        back = apply(match.permutations, moved)
        recovered += all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True)
        )
        inverse = {group: np.argsort(order) for group, order in planted.items()}
        assert all(np.array_equal(inverse[g], match.permutations[g]) for g in inverse)
    assert recovered == num_starts


def test_planted_permutations_of_a_transformer_with_a_few_restarts():
    _, params, specification = setting("transformer")
    draw, apply = compiled(specification)
    for key in jax.random.split(jax.random.key(6), 20):
        moved = apply(draw(key), params)
        match = landscapes.weight_match(specification, params, moved, key, num_restarts=8)
        assert_equal(apply(match.permutations, moved), params)


def test_noise_does_not_hide_a_planted_permutation():
    _, params, specification = setting("mlp")
    draw, apply = compiled(specification)
    planted, rng = draw(jax.random.key(1)), np.random.default_rng(0)
    near = jax.tree.map(
        lambda leaf: np.float32(leaf + 0.2 * leaf.std() * rng.standard_normal(leaf.shape)), params
    )
    match = landscapes.weight_match(specification, params, apply(planted, near), KEY)
    assert_equal(match.permutations, landscapes.invert_permutations(planted))


def test_one_group_is_matched_as_well_as_by_trying_all():
    module = models.build({"kind": "mlp", "widths": (5,)}, num_classes=3)
    draws = [jax.jit(module.init)(jax.random.key(i), IMAGES)["params"] for i in range(2)]
    specification = landscapes.derive_permutations(module, draws[0])
    match = landscapes.weight_match(specification, *draws, KEY)
    apply, similarity = compiled(specification)[1], jax.jit(landscapes.weight_similarity)
    best = max(
        float(similarity(draws[0], apply({"Dense_0": np.array(order)}, draws[1])))
        for order in itertools.permutations(range(5))
    )
    # The head's bias has no group: it is in the one and not in the other, and is 0.
    assert match.similarity == pytest.approx(best, rel=1e-5)


def test_matching_never_lowers_the_similarity_and_more_restarts_never_the_best():
    _, a, specification = setting("residual", 1)
    _, b, _ = setting("residual", 2)
    apply, similarity = compiled(specification)[1], jax.jit(landscapes.weight_similarity)
    raw = float(similarity(a, b))
    values = []
    for restarts in (1, 2, 6):
        match = landscapes.weight_match(specification, a, b, KEY, num_restarts=restarts)
        # The head's bias belongs to no group.
        rest = float(np.vdot(a["head"]["bias"], b["head"]["bias"]))
        assert float(similarity(a, apply(match.permutations, b))) == pytest.approx(
            match.similarity + rest, rel=1e-4
        )
        assert 1 <= match.num_found <= restarts
        values.append(match.similarity + rest)
    assert raw < values[0] <= values[1] <= values[2]


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "transformer"])
def test_activations_find_planted_permutations(name):
    module, params, specification = setting(name)
    draw, apply = compiled(specification)
    planted = draw(jax.random.key(1))
    moved = apply(planted, params)
    look = jax.jit(lambda params: landscapes.hidden_activations(module, params, IMAGES))
    activations = jax.device_get([look(params), look(moved)])
    for group, values in activations[0].items():  # they move with their units
        assert values.shape[1] == specification.sizes[group]
        np.testing.assert_allclose(
            np.take(values, planted[group], 1), activations[1][group], rtol=1e-3, atol=1e-4
        )
    assert activations[0].keys() == specification.sizes.keys()
    assert_equal(landscapes.activation_match(*activations), landscapes.invert_permutations(planted))


def test_activations_that_cannot_be_compared_are_refused():
    first, second = {"h": jnp.ones((4, 3))}, {"h": jnp.ones((5, 3))}
    with pytest.raises(ValueError, match=r"'h' has shapes \(4, 3\) and \(5, 3\)"):
        landscapes.activation_match(first, second)
    with pytest.raises(ValueError, match="groups differ"):
        landscapes.activation_match(first, {"g": jnp.ones((4, 3))})


@pytest.mark.quick
def test_dead_units_are_matched_to_what_is_left():
    values = jnp.asarray(np.random.default_rng(0).standard_normal((50, 3)), jnp.float32)
    dead = values.at[:, 1].set(0.0)
    permutations = landscapes.activation_match({"h": dead}, {"h": dead[:, jnp.array([1, 2, 0])]})
    assert permutations["h"].tolist() == [2, 0, 1]


def test_straight_through_descends_the_middle():
    module, a, specification = setting("mlp", 1)
    _, b, _ = setting("mlp", 2)
    labels = jnp.array([0, 1, 2, 0, 1])

    def loss_fn(params):
        return losses.cross_entropy(module.apply({"params": params}, IMAGES), labels).mean()

    match = landscapes.straight_through_match(
        specification, loss_fn, a, b, KEY, num_steps=40, learning_rate=0.05
    )
    assert match.history.shape == (41,)
    assert match.loss == match.history.min() < match.history[0]
    moved = jax.device_get(compiled(specification)[1](match.permutations, b))
    middle = jax.tree.map(lambda x, y: (x + y) / 2, a, moved)
    assert float(jax.jit(loss_fn)(middle)) == pytest.approx(match.loss, rel=1e-4)


def test_many_models_come_together():
    _, params, specification = setting("cnn")
    draw, apply = (jax.jit(jax.vmap(fn)) for fn in compiled(specification))
    planted = draw(jax.random.split(KEY, 4))
    same = jax.tree.map(lambda leaf: np.stack([leaf] * 4), params)
    members = apply(planted, same)
    permutations, passes = landscapes.match_many(specification, members, KEY)
    together = apply(permutations, members)
    for leaf in jax.tree.leaves(together):
        np.testing.assert_array_equal(leaf, np.stack([np.asarray(leaf)[0]] * 4))
    assert 2 <= passes < 100
    with pytest.raises(ValueError, match="two or more, got 1"):
        landscapes.match_many(specification, jax.tree.map(lambda leaf: leaf[:1], members), KEY)


# Specifications of somebody else's models

AXES = {"a/kernel": (None, "h"), "a/bias": ("h",), "b/kernel": (("h", 2), None)}
PARAMS = {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "b": {"kernel": jnp.ones((8, 2))}}


@pytest.mark.quick
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


# What does not fit


def nine_units():
    """Returns the specification of a layer of nine units, and parameters."""
    module = models.build({"kind": "mlp", "widths": (9,)}, num_classes=3)
    params = drawn_like(jax.eval_shape(module.init, KEY, IMAGES)["params"])
    return landscapes.derive_permutations(module, params), params


def drawn_like(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def with_entry(params, value):
    return params | {"Dense_0": params["Dense_0"] | {"bias": value}}


ORDERS = {
    "too short": (
        {"Dense_0": np.arange(8)},
        r"'Dense_0' has shape \(8,\), the group has 9 units, ax",
    ),
    "too long": ({"Dense_0": np.arange(10)}, r"'Dense_0' has shape \(10,\)"),
    "repeated": ({"Dense_0": np.array([0, 1, 2, 3, 4, 5, 6, 7, 7])}, "holds 7 more than once"),
    "too large": (
        {"Dense_0": np.arange(1, 10)},
        "holds 9, outside of 0 to 8, axis 1 of 'Dense_0/kernel",
    ),
    "negative": ({"Dense_0": np.arange(-1, 8)}, "holds -1, outside of 0 to 8"),
    "floats": ({"Dense_0": np.arange(9.0)}, "must hold integers, got float"),
    "an unknown group": ({"Dense_7": np.arange(9)}, "no group of units is called 'Dense_7'"),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", ORDERS)
def test_what_is_no_permutation_is_refused(name):
    """Known elsewhere: nine units were cut to eight, without a word."""
    specification, params = nine_units()
    orders, message = ORDERS[name]
    with pytest.raises(ValueError, match=message):
        landscapes.apply_permutations(specification, orders, params)
    if name not in ("an unknown group", "too short", "too long"):
        with pytest.raises(ValueError, match=message.partition(", axis")[0]):
            landscapes.invert_permutations(orders)
    identity = landscapes.identity_permutations(specification)
    with pytest.raises(ValueError, match="group"):
        landscapes.compose_permutations(identity, orders)


def test_what_is_no_permutation_is_nan_where_it_is_traced():
    specification, params = nine_units()
    apply = jax.jit(
        lambda order: landscapes.apply_permutations(specification, {"Dense_0": order}, params)
    )
    for name in ("repeated", "too large"):
        moved = apply(ORDERS[name][0]["Dense_0"])
        assert np.isnan(moved["Dense_0"]["kernel"]).all(), name
        assert np.isfinite(moved["Dense_1"]["bias"]).all(), name


TENSORS = {
    "the tree of linen": (
        lambda p: {"params": p},
        "'params/Dense_0/bias'.*the tree under 'params'",
    ),
    "a tensor missing": (
        lambda p: {"Dense_0": p["Dense_0"]},
        "'Dense_1/kernel', which the parameters",
    ),
    "fewer units": (
        lambda p: with_entry(p, p["Dense_0"]["bias"][:8]),
        "axis 0 of 'Dense_0/bias'.* has 8 entries, group 'Dense_0' of the specification needs 9",
    ),
    "another rank": (
        lambda p: with_entry(p, p["Dense_0"]["bias"][None]),
        r"'Dense_0/bias'.* has shape \(1, 9\), the specification 1 axes",
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_a_specification_does_not_describe_are_refused(name):
    specification, params = nine_units()
    change, message = TENSORS[name]
    identity = landscapes.identity_permutations(specification)
    for call in (
        lambda: landscapes.apply_permutations(specification, identity, change(params)),
        lambda: landscapes.weight_match(specification, change(params), params, KEY),
        lambda: landscapes.weight_match(specification, params, change(params), KEY),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.quick
def test_weights_that_cannot_be_compared_are_refused():
    specification, params = nine_units()
    bias = params["Dense_0"]["bias"].copy()
    bias[2:4] = np.nan, np.inf
    with pytest.raises(
        ValueError, match="2 of 9 entries of 'Dense_0/bias' of params are not finite"
    ):
        landscapes.weight_match(specification, params, with_entry(params, bias), KEY)
    kernel = params["Dense_1"]["kernel"]
    other = params | {"Dense_1": {"kernel": kernel[:, :2], "bias": params["Dense_1"]["bias"]}}
    message = "axis 1 of 'Dense_1/kernel' has 3 entries in target and 2 in params"
    with pytest.raises(ValueError, match=message):
        landscapes.weight_match(specification, params, other, KEY)
    values = {"Dense_0": np.ones((4, 9))}
    with pytest.raises(ValueError, match="activations of group 'Dense_0' must be finite"):
        landscapes.activation_match(values, {"Dense_0": np.full((4, 9), np.nan)})


@pytest.mark.quick
def test_parameters_of_another_module_are_named():
    module = models.build({"kind": "mlp", "widths": (9,)}, num_classes=3)
    with pytest.raises(
        ValueError, match="lack tensor 'Dense_0/kernel' of MLP; their first is 'params"
    ):
        landscapes.derive_permutations(module, {"params": nine_units()[1]})


def test_a_mask_of_units_moves_with_them_and_does_not_count():
    params = {"mask": np.array([True, True, False]), "w": np.float32([3, 2, 1])}
    axes = {"mask": ("units",), "w": ("units",)}
    specification = landscapes.declare_permutations(axes, params)
    target = params | {"w": np.float32([1, 2, 3])}
    match = landscapes.weight_match(specification, target, params, KEY)
    moved = landscapes.apply_permutations(specification, match.permutations, params)
    np.testing.assert_array_equal(moved["w"], target["w"])
    np.testing.assert_array_equal(moved["mask"], [False, True, True])
    assert match.similarity == 14
