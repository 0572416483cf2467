"""Label noise: labels that are replaced at random, with draws nested over noise rates."""

import jax
import jax.numpy as jnp

from halfway.types import Array, Key


def add_label_noise(
    key: Key, labels: Array, noise_rate: float | Array, *, num_classes: int
) -> Array:
    """Returns labels `[N]`, each replaced with probability ρ by a uniform draw over all C classes.

    With the same key, a higher rate replaces the same labels by the same draws and more labels
    besides, so that conditions differ by the rate alone.

    Args:
      key: a PRNG key, consumed.
      labels: `[N]` integer labels.
      noise_rate: ρ, the probability that a label is replaced, in [0, 1].
      num_classes: C, the number of classes.

    Examples:
      >>> labels = jnp.zeros(1000, jnp.int32)
      >>> noisy = data.add_label_noise(jax.random.key(0), labels, 0.5, num_classes=2)
      >>> 0.2 < float(noisy.mean()) < 0.3  # half of the labels are drawn anew, half of them stay 0
      True
    """
    key_where, key_what = jax.random.split(key)
    replaced = jax.random.uniform(key_where, labels.shape) < noise_rate
    uniform = jax.random.randint(key_what, labels.shape, 0, num_classes, labels.dtype)
    return jnp.where(replaced, uniform, labels)
