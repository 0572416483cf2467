"""Replicates of a simulation run in chunks of one size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import meeting


@pytest.mark.parametrize("at_once", [1, 3, 4, 7, 100])
def test_chunks_change_no_replicate(at_once):
    keys = jax.random.split(jax.random.key(0), 7)
    draw = lambda key: {"x": jax.random.normal(key, (2,)), "y": jax.random.uniform(key)}  # noqa: E731
    looped = [draw(key) for key in keys]
    drawn = meeting.map_replicates(draw, keys, at_once=at_once)
    for name in ("x", "y"):
        np.testing.assert_array_equal(drawn[name], jnp.stack([each[name] for each in looped]))


def test_all_chunks_are_one_program():
    """With two, factorizations of both wait for each other on a CPU of two threads."""
    sizes = []

    def factor(key):
        sizes.append(key.shape)
        return jnp.linalg.cholesky(jnp.eye(3) * (1 + jax.random.uniform(key)))

    keys = jax.random.split(jax.random.key(0), 10)
    jax.make_jaxpr(lambda keys: meeting.map_replicates(factor, keys, at_once=4))(keys)
    assert len(sizes) == 1
