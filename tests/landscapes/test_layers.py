"""Filter normalization of every layer with parameters of linen and NNX, and of others' tensors."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from halfway import landscapes

KEY = jax.random.key(0)
X = np.ones((2, 6, 6, 4), np.float32)
ROWS = X[:, 0]  # [2, 6, 4]

# By layer: the layer, its input, and for each tensor that has filters the axes of its outputs.
LAST = {"kernel": (-1,)}
CELL = (np.ones((2, 5), np.float32), np.ones((2, 5), np.float32))
ATTENTION = {f"{part}/kernel": (1, 2) for part in ("query", "key", "value")} | {"out/kernel": (2,)}
LINEN = {
    "BatchNorm": (nn.BatchNorm(use_running_average=True), (X,), {}),
    "Conv": (nn.Conv(3, (2, 2), feature_group_count=1), (X,), LAST),
    "ConvLSTMCell": (
        nn.ConvLSTMCell(5, (2, 2)),
        ((np.ones((2, 6, 6, 5), "f4"), np.ones((2, 6, 6, 5), "f4")), X),
        {"ih/kernel": (-1,), "hh/kernel": (-1,)},
    ),
    "ConvLocal": (nn.ConvLocal(3, (2,)), (ROWS,), {"kernel": (0, 2)}),
    "ConvTranspose": (nn.ConvTranspose(3, (2, 2)), (X,), LAST),
    "ConvTranspose, kernel transposed": (
        nn.ConvTranspose(3, (2, 2), transpose_kernel=True),
        (X,),
        {"kernel": (-2,)},
    ),
    "Dense": (nn.Dense(3), (ROWS,), LAST),
    "DenseGeneral": (nn.DenseGeneral((3, 2), axis=(-2, -1)), (ROWS,), {"kernel": (2, 3)}),
    "DenseGeneral, a batch": (nn.DenseGeneral(3, batch_dims=(0,)), (ROWS,), {"kernel": (0, 2)}),
    "Einsum": (nn.Einsum((8, 4, 5), "nta,hab->nthb"), (ROWS,), {"kernel": (0, 2)}),
    "Embed": (nn.Embed(7, 3), (np.array([1, 2]),), {"embedding": (-1,)}),
    "GRUCell": (nn.GRUCell(5), (CELL[0], ROWS[:, 0]), None),
    "GroupNorm": (nn.GroupNorm(2), (X,), {}),
    "InstanceNorm": (nn.InstanceNorm(), (X,), {}),
    "LSTMCell": (nn.LSTMCell(5), (CELL, ROWS[:, 0]), None),
    "LayerNorm": (nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1)), (X,), {}),
    "MGUCell": (nn.MGUCell(5), (CELL[0], ROWS[:, 0]), None),
    "MultiHeadAttention": (nn.MultiHeadAttention(2, qkv_features=8), (ROWS,), ATTENTION),
    "MultiHeadDotProductAttention": (
        nn.MultiHeadDotProductAttention(2, use_bias=False, normalize_qk=True),
        (ROWS,),
        ATTENTION,
    ),
    "OptimizedLSTMCell": (nn.OptimizedLSTMCell(5), (CELL, ROWS[:, 0]), None),
    "PReLU": (nn.PReLU(), (X,), {}),
    "RMSNorm": (nn.RMSNorm(), (X,), {}),
    "SelfAttention": (nn.SelfAttention(2), (ROWS,), ATTENTION),
    "SimpleCell": (nn.SimpleCell(5), (CELL[0], ROWS[:, 0]), None),
    "WeightNorm": (nn.WeightNorm(nn.Dense(3)), (ROWS,), {"layer_instance/kernel": (-1,)}),
}
WITHOUT_PARAMETERS = {
    *("Bidirectional", "RNN", "RNNCellBase", "Sequential", "Module"),  # what they hold has some
    *("Dropout", "SpectralNorm"),
    *("Fp8DirectDotGeneralOp", "Fp8DotGeneral", "Fp8DotGeneralOp", "Fp8Einsum"),
    *("NANOOFp8DotGeneralOp", "Dict", "List"),
}
NNX = {
    "BatchNorm": (lambda rngs: nnx.BatchNorm(4, rngs=rngs), {}),
    "Conv": (lambda rngs: nnx.Conv(4, 3, (2, 2), rngs=rngs), LAST),
    "ConvTranspose": (lambda rngs: nnx.ConvTranspose(4, 3, (2, 2), rngs=rngs), LAST),
    "ConvTranspose, kernel transposed": (
        lambda rngs: nnx.ConvTranspose(4, 3, (2, 2), transpose_kernel=True, rngs=rngs),
        {"kernel": (-2,)},
    ),
    "Einsum": (
        lambda rngs: nnx.Einsum("nta,hab->nthb", (8, 4, 5), (8, 5), rngs=rngs),
        {"kernel": (0, 2)},
    ),
    "Embed": (lambda rngs: nnx.Embed(7, 3, rngs=rngs), {"embedding": (-1,)}),
    "GRUCell": (lambda rngs: nnx.GRUCell(4, 5, rngs=rngs), None),
    "GroupNorm": (lambda rngs: nnx.GroupNorm(4, num_groups=2, rngs=rngs), {}),
    "InstanceNorm": (lambda rngs: nnx.InstanceNorm(4, rngs=rngs), {}),
    "LSTMCell": (lambda rngs: nnx.LSTMCell(4, 5, rngs=rngs), None),
    "LayerNorm": (lambda rngs: nnx.LayerNorm(4, rngs=rngs), {}),
    "Linear": (lambda rngs: nnx.Linear(4, 3, rngs=rngs), LAST),
    "LinearGeneral": (
        lambda rngs: nnx.LinearGeneral((6, 4), (3, 2), axis=(-2, -1), rngs=rngs),
        {"kernel": (2, 3)},
    ),
    "LoRA": (lambda rngs: nnx.LoRA(4, 2, 3, rngs=rngs), {"lora_a": (-1,), "lora_b": (-1,)}),
    "LoRALinear": (
        lambda rngs: nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs),
        LAST | {"lora/lora_a": (-1,), "lora/lora_b": (-1,)},
    ),
    "MultiHeadAttention": (
        lambda rngs: nnx.MultiHeadAttention(2, 6, 8, normalize_qk=True, rngs=rngs, decode=False),
        ATTENTION,
    ),
    "MultiHeadAttention without biases": (
        lambda rngs: nnx.MultiHeadAttention(2, 6, 8, use_bias=False, rngs=rngs, decode=False),
        ATTENTION,
    ),
    "OptimizedLSTMCell": (lambda rngs: nnx.OptimizedLSTMCell(4, 5, rngs=rngs), None),
    "PReLU": (lambda rngs: nnx.PReLU(), {}),
    "RMSNorm": (lambda rngs: nnx.RMSNorm(4, rngs=rngs), {}),
    "SimpleCell": (lambda rngs: nnx.SimpleCell(4, 5, rngs=rngs), None),
    "WeightNorm": (
        lambda rngs: nnx.WeightNorm(nnx.Linear(4, 3, rngs=rngs), rngs=rngs),
        {"layer_instance/kernel": (-1,)},
    ),
}


def drawn(shapes):
    """Returns random tensors of given shapes, as NumPy's."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def check(params, axes):
    """Checks the ratio of norms of every filter; no other tensor moves.

    Args:
      params: a pytree.
      axes: by path, the output axes; None: those of cells, whose kernels all have outputs last.
    """
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for path, _ in jax.tree.leaves_with_path(params)
    ]
    if axes is None:
        axes = {name: (-1,) for name in names if name.endswith("kernel")}
    assert set(axes) <= set(names)
    direction = jax.jit(landscapes.filter_direction)(params, KEY)
    for name, w, d in zip(names, jax.tree.leaves(params), jax.tree.leaves(direction), strict=True):
        d = np.asarray(d)
        if name not in axes:
            assert not d.any(), name
            continue
        outputs = {axis % w.ndim for axis in axes[name]}
        inputs = tuple(axis for axis in range(w.ndim) if axis not in outputs)
        ratios = np.sqrt((d**2).sum(inputs) / (w**2).sum(inputs))
        np.testing.assert_allclose(ratios, 1, rtol=1e-5, err_msg=name)
        assert np.unique(np.abs(d / w).round(3)).size > 1, name


@pytest.mark.filterwarnings("ignore:SelfAttention:DeprecationWarning")
@pytest.mark.parametrize("name", LINEN)
def test_filters_of_every_layer_of_linen(name):
    module, inputs, axes = LINEN[name]
    shapes = jax.eval_shape(module.init, KEY, *inputs)["params"]
    check(drawn(shapes), axes)


@pytest.mark.parametrize("name", NNX)
def test_filters_of_every_layer_of_nnx(name):
    build, axes = NNX[name]
    check(drawn(nnx.state(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param)), axes)


@pytest.mark.quick
@pytest.mark.parametrize("library, table", [(nn, LINEN), (nnx, NNX)])
def test_the_tables_have_every_layer(library, table):
    layers = {
        name
        for name in dir(library)
        if isinstance(getattr(library, name), type)
        and issubclass(getattr(library, name), library.Module)
    }
    assert layers - WITHOUT_PARAMETERS == {
        name.partition(",")[0].partition(" ")[0] for name in table
    }


def test_layers_stacked_by_vmap_have_filters_of_their_own():
    stacked = nn.vmap(
        nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=3
    )
    shapes = jax.eval_shape(stacked(5).init, KEY, np.ones((3, 2, 4), "f4"))["params"]
    check(drawn(shapes), {"kernel": (0, 2)})


@pytest.mark.parametrize("separator", ["/", "."])
def test_weights_of_other_libraries_have_outputs_first(separator):
    """A square matrix cannot be told by its shape."""
    shapes = {"dense": ((4, 4), (4,)), "conv": ((3, 2, 5, 5), (3, 1, 1)), "norm": ((4, 4), (4, 4))}
    params = {
        f"{layer}{separator}{part}": jax.ShapeDtypeStruct(shape, np.float32)
        for layer, both in shapes.items()
        for part, shape in zip(("weight", "bias"), both, strict=True)
    }
    check(drawn(params), {f"{layer}{separator}weight": (0,) for layer in ("dense", "conv")})


@pytest.mark.parametrize("scale", [1e-25, 1e22])
def test_filters_of_small_and_large_weights(scale):
    params = {"kernel": np.float32(scale) * drawn(jax.ShapeDtypeStruct((6, 3), np.float32))}
    both = np.asarray(jax.jit(landscapes.filter_directions)(params, KEY)["kernel"], float) / scale
    norms = np.linalg.norm(np.asarray(params["kernel"], float) / scale, axis=0)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), [norms, norms], rtol=1e-4)
    assert np.abs((both[0] * both[1]).sum(0)).max() < 1e-4 * (norms**2).max()
