"""A network small enough for attacks in tests, with random weights, and inputs it classifies."""

import jax
import jax.numpy as jnp


def network(params, x):
    """Logits of five classes."""
    w1, w2 = params
    return jnp.tanh(x.reshape(x.shape[0], -1) @ w1) @ w2


def problem(number, *shape, wrong=None):
    """Parameters, inputs `[number, *shape]` and labels, of which one is wrong where it is named."""
    k1, k2, k3 = jax.random.split(jax.random.key(1), 3)
    x = jax.random.uniform(k3, (number, *shape))
    size = x[0].size
    params = 2 * jax.random.normal(k1, (size, 16)), jax.random.normal(k2, (16, 5))
    labels = jnp.argmax(network(params, x), -1)
    return params, x, labels if wrong is None else labels.at[wrong].set((labels[wrong] + 1) % 5)
