import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import placement


def one(member, weights):
    key, x = member
    noise = jax.random.uniform(key, x.shape)
    return {"product": x @ weights + noise, "sum": x.sum()}


WEIGHTS = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), jnp.float32)


def draw(size):
    x = np.random.default_rng(1).standard_normal((size, 3))
    return jax.random.split(jax.random.key(2), size), jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize(
    "size, num_devices, vectorized",
    [(1, 2, True), (2, 2, True), (3, 2, True), (5, 2, True), (3, 1, True), (3, 2, False)],
)
def test_spread_is_vmap(size, num_devices, vectorized):
    mesh = placement.make_mesh(num_devices)
    result = jax.jit(placement.spread(one, mesh=mesh, vectorized=vectorized))(draw(size), WEIGHTS)
    expected = jax.jit(jax.vmap(one, in_axes=(0, None)))(draw(size), WEIGHTS)
    assert result["product"].shape == (size, 3)
    assert result["sum"].shape == (size,)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, expected
    )


def test_all_devices_by_default():
    assert placement.make_mesh().size == jax.device_count() == 2
    assert placement.make_mesh(1).size == 1
    result = jax.jit(placement.spread(one))(draw(4), WEIGHTS)
    shards = result["product"].addressable_shards
    assert {shard.device for shard in shards} == set(jax.devices())
    assert [shard.data.shape for shard in shards] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("num_devices", [0, -1, 3])
def test_impossible_meshes_are_refused(num_devices):
    with pytest.raises(ValueError, match=rf"\[1, 2\], got {num_devices}"):
        placement.make_mesh(num_devices)
