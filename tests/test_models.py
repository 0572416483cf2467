import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from halfway import models, populations, sharding

NUM_CLASSES = 3
CONFIGS = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "widths": (7, 5), "activation": "tanh"},
    "cnn": {"kind": "cnn", "features": (4, 3), "stride": 1, "pool": 2, "widths": (6,)},
    "strided": {"kind": "cnn", "features": (4, 3), "stride": 2, "widths": (6,)},
    "residual": {"kind": "residual", "features": (4, 6), "blocks": 2},
    "transformer": {
        "kind": "transformer",
        "patch": 3,
        "width": 8,
        "depth": 2,
        "heads": 2,
        "hidden": 5,
    },
}
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 9, 6, 2)), jnp.float32)


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# Convolution and pooling


@pytest.mark.parametrize(
    "size, kernel_size, strides, padding",
    [
        ((8, 8), (3, 3), (1, 1), "SAME"),  # two outputs side by side as one
        ((8, 8), (3, 3), (2, 2), "SAME"),
        ((8, 9), (3, 3), (1, 1), "SAME"),
        ((6, 12), (3, 5), (1, 1), "SAME"),
        ((6, 12), (2, 3), (1, 3), "VALID"),
        ((7, 10), (3, 2), (2, 3), "SAME"),
        ((7, 10), (3, 2), (2, 3), "VALID"),
        ((9, 5), (1, 4), (1, 2), ((0, 1), (2, 3))),
        ((2, 3), (3, 3), (2, 2), "SAME"),  # smaller than the kernel
        ((5, 5), (1, 1), (3, 3), "VALID"),  # rows and columns left over
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_convolution_and_both_gradients_against_xla(
    size, kernel_size, strides, padding, backend, monkeypatch
):
    monkeypatch.setattr(sharding, "backend", lambda: backend)
    inputs, kernel = draw((2, *size, 3), 0), draw((*kernel_size, 3, 4), 1)

    def reference(inputs, kernel):
        return lax.conv_general_dilated(
            inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    cotangent = draw(jax.eval_shape(reference, inputs, kernel).shape, 2)

    def results(fn):
        output, vjp = jax.vjp(fn, inputs, kernel)
        return output, *vjp(cotangent)

    def product(inputs, kernel):
        return models.convolve(inputs, kernel, strides, padding)

    result, expected = jax.jit(lambda: (results(product), results(reference)))()
    is_xlas = "conv_general_dilated" in str(jax.make_jaxpr(product)(inputs, kernel))
    assert is_xlas == (backend == "tpu")
    for name, a, b in zip(("output", "inputs", "kernel"), result, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("depth", "features", "turned"), [(12, 3, True), (11, 3, False)])
@pytest.mark.quick
def test_a_layer_of_few_outputs_turns_its_kernel_on_a_cpu(
    depth, features, turned, backend, monkeypatch
):
    """Values, both gradients and tangents are those of JAX's product; only the order differs."""
    monkeypatch.setattr(sharding, "backend", lambda: backend)
    inputs, kernel = draw((2, 5, depth), 0), draw((depth, features), 1)
    axes = (((2,), (0,)), ((), ()))

    def product(inputs, kernel):
        return models.contract(inputs, kernel, axes)

    def results(fn):
        output, pullback = jax.vjp(fn, inputs, kernel)
        _, tangent = jax.jvp(fn, (inputs, kernel), (2 * inputs, 3 * kernel))
        over = jax.vmap(fn, (None, 0))(inputs, jnp.stack([kernel, -kernel]))
        return output, *pullback(output), tangent, over

    result = jax.jit(lambda: results(product))()
    for a, b in zip(result, results(lambda x, k: lax.dot_general(x, k, axes)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    slope = jax.jit(jax.grad(lambda kernel: (product(inputs, kernel) ** 2).sum()))
    compiled = slope.lower(kernel).compile().as_text()
    rows, columns = (features, depth) if turned and backend == "cpu" else (depth, features)
    assert re.search(rf"f32\[{rows},{columns}\]\S* dot\(", compiled), compiled


@pytest.mark.parametrize(
    ("size", "kernel_size", "axes"),
    [
        ((3, 4, 5), (4, 5, 2), (((1, 2), (0, 1)), ((), ()))),  # the kernel is no matrix
        ((3, 12), (12, 12), (((1,), (1,)), ((), ()))),  # its other axis
        ((2, 3), (12, 3), (((1,), (1,)), ((), ()))),
        ((3, 12), (12, 3), (((0,), (1,)), ((), ()))),
        ((12, 5), (12, 3), (((), ()), ((0,), (0,)))),  # an axis of both
    ],
)
@pytest.mark.quick
def test_contraction_of_other_axes_is_that_of_jax(size, kernel_size, axes):
    inputs, kernel = draw(size, 0), draw(kernel_size, 1)
    np.testing.assert_allclose(
        models.contract(inputs, kernel, axes), lax.dot_general(inputs, kernel, axes), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("backend", "depth", "features", "stride", "columns", "kept"),
    [
        ("cpu", 5, 16, 1, 8, 2),
        ("cpu", 5, 17, 1, 8, 1),
        ("cpu", 5, 16, 1, 7, 1),
        ("gpu", 5, 16, 1, 8, 1),
        ("cpu", 5, 16, 2, 8, 1),
        ("cpu", 4, 16, 2, 8, 2),
    ],
)
@pytest.mark.quick
def test_two_outputs_of_few_channels_are_one_product_on_a_cpu(
    backend, depth, features, stride, columns, kept, monkeypatch
):
    """With steps of two of few channels alone: more of the factors are 0 then."""
    monkeypatch.setattr(sharding, "backend", lambda: backend)
    inputs, kernel = draw((1, 6, columns, depth), 0), draw((3, 3, depth, features), 1)
    program = jax.make_jaxpr(lambda x: models.convolve(x, kernel, (1, stride), "SAME"))(inputs)
    (product,) = [e for e in program.eqns if e.primitive.name == "dot_general"]
    rows = 6 * -(-columns // stride) // kept
    assert product.outvars[0].aval.shape == (rows, kept * features)


@pytest.mark.parametrize(
    "option", [{"lhs_dilation": (1, 2)}, {"rhs_dilation": (2, 1)}, {"feature_group_count": 3}]
)
def test_convolution_refuses_dilation_and_groups(option):
    with pytest.raises(ValueError, match="dilation 1 and one group"):
        models.convolve(jnp.ones((1, 5, 5, 3)), jnp.ones((3, 3, 3, 3)), (1, 1), "SAME", **option)


@pytest.mark.parametrize(
    ("inputs", "kernel", "options", "message"),
    [
        ((1, 3, 5, 5), (3, 3, 3, 3), {}, r"inputs must be \[B, H, W, D\] and the kernel"),
        ((1, 5, 5), (3, 3, 3, 3), {}, r"got \(1, 5, 5\)"),
        (
            (1, 5, 5, 3),
            (3, 3, 3, 3),
            {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
            "channels come last, NHWC and HWIO",
        ),
    ],
)
@pytest.mark.quick
def test_convolution_refuses_channels_that_do_not_come_last(inputs, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        models.convolve(jnp.ones(inputs), jnp.ones(kernel), (1, 1), "SAME", **options)


def test_networks_of_ones_own_take_the_convolution():
    """A layer of flax, with and without; in bfloat16 sums are kept as they are asked for."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    layer = nn.Conv(4, (3, 3), (2, 2), conv_general_dilated=models.convolve)
    params = layer.init(jax.random.key(1), x)
    expected = nn.Conv(4, (3, 3), (2, 2)).apply(params, x)
    np.testing.assert_allclose(layer.apply(params, x), expected, atol=1e-5)
    short = models.convolve(
        x.astype(jnp.bfloat16),
        params["params"]["kernel"].astype(jnp.bfloat16),
        (2, 2),
        "SAME",
        preferred_element_type=jnp.float32,
    )
    assert short.dtype == jnp.float32
    np.testing.assert_allclose(short, expected, atol=0.1)


def test_average_pooling_by_hand():
    x = np.arange(15, dtype=np.float32).reshape(1, 5, 3, 1)
    # Windows {0, 1, 3, 4} and {6, 7, 9, 10}; the last row and column are left over.
    pool = jax.jit(models.average_pool, static_argnums=1)
    np.testing.assert_array_equal(np.squeeze(pool(x, 2)), [2.0, 8.0])
    np.testing.assert_array_equal(pool(x, 1), x)
    channels = np.concatenate([x, -10 * x], axis=-1)
    np.testing.assert_array_equal(np.ravel(pool(channels, 3)), [4.0, -40.0])


# Models


def normalize(x, layer):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return jnp.einsum("...c,c->...c", x, layer["scale"]) + jnp.expand_dims(
        layer["bias"], tuple(range(x.ndim - 1))
    )


def dense(x, layer):
    return x @ layer["kernel"] + jnp.expand_dims(layer["bias"], tuple(range(x.ndim - 1)))


def residual_logits(config, params, x):
    def conv(x, name, stride=1):
        return lax.conv_general_dilated(
            x,
            params[name]["kernel"],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def relu_norm(x, name):
        return jnp.maximum(normalize(x, params[name]), 0)

    x = conv(x, "stem")
    for stage in range(len(config["features"])):
        for block in range(config["blocks"]):
            name = f"stage{stage}_block{block}"
            stride = 2 if f"{name}_shortcut" in params else 1
            hidden = conv(relu_norm(x, f"{name}_norm0"), f"{name}_conv0", stride)
            hidden = conv(relu_norm(hidden, f"{name}_norm1"), f"{name}_conv1")
            x = hidden + (conv(x, f"{name}_shortcut", 2) if stride == 2 else x)
    return dense(relu_norm(x, "norm").mean((1, 2)), params["head"])


def transformer_logits(config, params, x):
    patch, tokens = config["patch"], []
    for i in range(0, x.shape[1], patch):
        for j in range(0, x.shape[2], patch):
            tokens.append(x[:, i : i + patch, j : j + patch].reshape(len(x), -1))
    x = dense(jnp.stack(tokens, 1), params["embed"]) + params["positions"][None]
    for block in range(config["depth"]):
        attention = params[f"block{block}_attention"]
        normed, heads = normalize(x, params[f"block{block}_norm0"]), []
        for h in range(config["heads"]):
            queries, keys, values = (
                normed @ attention[name]["kernel"][:, h] + attention[name]["bias"][h][None, None]
                for name in ("query", "key", "value")
            )
            scores = jnp.einsum("bqc,bkc->bqk", queries, keys) / jnp.sqrt(queries.shape[-1])
            heads.append(jax.nn.softmax(scores) @ values @ attention["out"]["kernel"][h])
        x = x + sum(heads) + attention["out"]["bias"][None, None]
        normed = normalize(x, params[f"block{block}_norm1"])
        hidden = jax.nn.gelu(dense(normed, params[f"block{block}_dense0"]))
        x = x + dense(hidden, params[f"block{block}_dense1"])
    return dense(normalize(x, params["norm"]).mean(1), params["head"])


REFERENCES = {
    "residual": residual_logits,
    "transformer": transformer_logits,
}
"""Layers written out, for models that are more than convolutions followed by dense layers."""


def reference_logits(config, params, images):
    """Written out with XLA's convolution, from parameters as flax names them."""
    x = 2 * images - 1
    if config["kind"] in REFERENCES:
        return REFERENCES[config["kind"]](config, params, x)
    activation = jnp.tanh if config.get("activation") == "tanh" else lambda z: jnp.maximum(z, 0)
    stride, pool = config.get("stride"), config.get("pool", 1)
    for i in range(len(config.get("features", ()))):
        layer = params[f"Conv_{i}"]
        x = lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = activation(x + layer["bias"][None, None, None])
        window = (1, pool, pool, 1)
        x = lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / pool**2
    x = x.reshape(len(x), -1)
    num_dense = sum(name.startswith("Dense") for name in params)
    for i in range(num_dense):
        layer = params[f"Dense_{i}"]
        x = x @ layer["kernel"] + layer["bias"][None]
        x = activation(x) if i + 1 < num_dense else x
    return x


def drawn(config):
    """The config, the module's apply as `(params, x) -> logits`, and three members' parameters."""
    module = models.build(config, num_classes=NUM_CLASSES)
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGES[:1])["params"]
    # Drawn here, not by flax, whose biases start at 0, where a forgotten one would not show.
    leaves, structure = jax.tree.flatten(shapes)
    members = [
        np.float32(0.4) * np.asarray(draw((3, *leaf.shape), seed))
        for seed, leaf in enumerate(leaves)
    ]
    members = jax.tree.unflatten(structure, members)
    return config, jax.jit(lambda params, x: module.apply({"params": params}, x)), members


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return drawn(CONFIGS[request.param])


def member(members, i):
    return jax.tree.map(lambda leaf: leaf[i], members)


def test_logits_against_the_layers_written_out(model):
    config, apply_fn, members = model
    params = member(members, 0)
    logits = apply_fn(params, IMAGES)
    assert logits.shape == (len(IMAGES), NUM_CLASSES)
    expected = jax.jit(lambda p, x: reference_logits(config, p, x))(params, IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_logits_of_an_example_depend_on_that_example_alone(model):
    _, apply_fn, members = model
    params = member(members, 0)
    logits = apply_fn(params, IMAGES)
    images = np.array(IMAGES)
    alone = np.concatenate([apply_fn(params, image[None]) for image in images])
    np.testing.assert_allclose(alone, logits, rtol=1e-5, atol=1e-6)
    images[1] = np.nan
    beside_nan = np.asarray(apply_fn(params, images))
    assert np.isnan(beside_nan[1]).all()
    np.testing.assert_array_equal(np.delete(beside_nan, 1, 0), np.delete(logits, 1, 0))


def test_members_stacked_equal_members_one_by_one(model):
    _, apply_fn, members = model

    def loss(params):
        return jnp.sum(apply_fn(params, IMAGES) ** 2)

    stacked = jax.jit(jax.vmap(jax.value_and_grad(loss)))(members)
    jitted = jax.jit(jax.value_and_grad(loss))
    for i in range(3):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            member(stacked, i),
            jitted(member(members, i)),
        )


@pytest.mark.quick
def test_lists_stand_for_tuples():
    for config in CONFIGS.values():
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
        module = models.build(lists, num_classes=NUM_CLASSES)
        assert module == models.build(config, num_classes=NUM_CLASSES)
        hash(module)


@pytest.mark.parametrize(
    "config, culprit, known",
    [
        ({"kind": "mpl"}, "'mpl'", "linear, mlp, cnn"),
        ({}, "None", "linear, mlp, cnn"),
        ({"kind": "mlp", "depth": 2}, "'depth'", "'activation', 'mean', 'std', 'widths'"),
        ({"kind": "linear", "widths": (2,)}, "'widths'", "[]"),
        ({"kind": "mlp", "num_classes": 2}, "'num_classes'", "'widths'"),
        ({"kind": "mlp", "parent": 2}, "'parent'", "'widths'"),
        ({"kind": "cnn", "activation": "rleu"}, "'rleu'", "relu"),
    ],
)
@pytest.mark.quick
def test_unknown_kinds_and_fields_are_named(config, culprit, known):
    with pytest.raises(ValueError) as error:
        models.build(config, num_classes=NUM_CLASSES)
    assert culprit in str(error.value)
    assert known in str(error.value)


@pytest.mark.quick
def test_a_residual_stage_halves_the_image_and_shortcuts_only_where_it_enters():
    module = models.build({"kind": "residual", "features": (4, 6, 8), "blocks": 2}, num_classes=3)
    params = jax.eval_shape(module.init, jax.random.key(0), IMAGES)["params"]
    shortcuts = [name for name in params if name.endswith("shortcut")]
    assert sorted(shortcuts) == ["stage1_block0_shortcut", "stage2_block0_shortcut"]
    assert params["stage2_block0_shortcut"]["kernel"].shape == (1, 1, 6, 8)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"patch": 2}, "images of 9 x 6 do not divide into patches of 2 pixels"),
        ({"patch": 3, "width": 10, "heads": 4}, "width 10 does not divide into 4 heads"),
    ],
)
def test_a_transformer_refuses_what_does_not_divide(fields, message):
    module = models.build({"kind": "transformer", **fields}, num_classes=3)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), IMAGES)


# Widths as data


narrow = jax.jit(models.narrow)


def test_a_narrowed_network_is_the_small_one():
    x = jax.random.uniform(jax.random.key(0), (6, 3, 3, 1))
    wide = models.MLP(num_classes=4, widths=(16, 16))
    params = jax.tree.map(np.asarray, jax.jit(wide.init)(jax.random.key(1), x)["params"])
    narrowed = narrow(params, jnp.int32(5))
    small = {
        "Dense_0": {"kernel": params["Dense_0"]["kernel"][:, :5], "bias": np.zeros(5, np.float32)},
        "Dense_1": {
            "kernel": params["Dense_1"]["kernel"][:5, :5] * np.float32(np.sqrt(16 / 5)),
            "bias": np.zeros(5, np.float32),
        },
        "Dense_2": {
            "kernel": params["Dense_2"]["kernel"][:5] * np.float32(np.sqrt(16 / 5)),
            "bias": np.zeros(4, np.float32),
        },
    }
    expected = jax.jit(models.MLP(num_classes=4, widths=(5, 5)).apply)({"params": small}, x)
    logits = jax.jit(wide.apply)({"params": narrowed}, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    whole = narrow(params, jnp.int32(16))
    jax.tree.map(np.testing.assert_array_equal, whole, dict(params))


def test_masked_units_stay_out_under_any_optimizer():
    x = jax.random.uniform(jax.random.key(0), (8, 3, 3, 1))
    labels = jnp.arange(8) % 4
    module = models.MLP(num_classes=4, widths=(16, 16))
    start = narrow(jax.jit(module.init)(jax.random.key(1), x)["params"], 5)
    for name in populations.OPTIMIZERS:
        optimizer = populations.make_optimizer(name, 0.05, 0.1)
        state = populations.init_state(start, optimizer)

        def apply_fn(params, x):
            return module.apply({"params": params}, x)

        step = jax.jit(functools.partial(populations.train_step, apply_fn, optimizer))
        for _ in range(20):
            state = step(state, x, labels)
        first, second, last = jax.device_get([state.params[f"Dense_{i}"] for i in range(3)])
        before = np.asarray(start["Dense_0"]["kernel"])
        assert not np.array_equal(first["kernel"][:, :5], before[:, :5])
        for masked in (
            first["kernel"][:, 5:],
            first["bias"][5:],
            second["kernel"][5:],
            second["kernel"][:, 5:],
            second["bias"][5:],
            last["kernel"][5:],
        ):
            assert (masked == 0).all()


def test_narrowed_kernels_keep_their_scale():
    x = jnp.zeros((1, 20, 20, 1))
    module = models.MLP(num_classes=300, widths=(400, 400))
    narrowed = jax.jit(lambda key: models.narrow(module.init(key, x)["params"], 100))(
        jax.random.key(2)
    )
    for name in ("Dense_1", "Dense_2"):
        used = np.asarray(narrowed[name]["kernel"])[:100, :100]
        assert float(used.std()) == pytest.approx(1 / np.sqrt(100), rel=0.03)


def test_only_an_mlp_is_narrowed():
    x = jnp.zeros((1, 8, 8, 1))
    for config in ({"kind": "linear"}, {"kind": "cnn", "features": (4,), "widths": ()}):
        module = models.build(config, num_classes=3)
        params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        with pytest.raises(ValueError, match="only an MLP with a hidden layer is narrowed"):
            models.narrow(params, 2)


@pytest.mark.parametrize("shape, size", [((2, 4, 6, 3), 2), ((1, 7, 5, 2), 3), ((2, 6, 6, 1), 2)])
def test_pooling_and_its_derivatives_are_those_of_a_mean(shape, size):
    x, along = jax.random.normal(jax.random.key(0), (2, *shape))
    _, height, width, depth = shape

    def reference(x):
        rows, columns = height // size, width // size
        x = x[:, : rows * size, : columns * size]
        return x.reshape(-1, rows, size, columns, size, depth).mean((2, 4))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(pool, x):
        total = lambda x: (pool(x) ** 3).sum()  # noqa: E731
        slope = jax.grad(total)
        return (
            *jax.jvp(pool, (x,), (along,)),
            slope(x),
            jax.jvp(slope, (x,), (along,))[1],
            jax.vmap(slope)(jnp.stack([x, along])),
        )

    pool = functools.partial(models.average_pool, size=size)
    for ours, theirs in zip(derivatives(pool, x), derivatives(reference, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
