"""Two halves of a data set, and a third sample on which every choice is made.

`split` has static shapes: the number of examples, the overlap and the noise rate are data, so that
many conditions share one compiled program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway.data.noise import add_label_noise
from halfway.types import Array, Key, Sample, is_traced


class Halves(NamedTuple):
    """The halves `a` and `b`, and the sample `s`, disjoint from both, for every choice."""

    a: Sample
    b: Sample
    s: Sample


def split(
    key: Key,
    labels: Array,
    *,
    num_examples: int | Array,
    num_classes: int,
    capacity: int | None = None,
    num_holdout: int | None = None,
    overlap: float | Array = 0.0,
    noise_rate: float | Array = 0.0,
    stratified: bool = False,
    holdout_key: Key | None = None,
) -> Halves:
    """Returns A, B and S drawn from a pool.

    All are positions of one random order: A is the first n, B starts `round(overlap n)` before A
    ends, S is the last `num_holdout`. A smaller n with the same key gives a subset of the same A.

    Args:
      key: a PRNG key, which is consumed.
      labels: `[N]` clean labels of the pool.
      num_examples: n, the number of examples of each half; may be traced.
      num_classes: C; noise is uniform over all classes, the true one included.
      capacity: static length of A and B, at least n; n by default.
      num_holdout: static length of S; what two disjoint halves of `capacity` leave by default.
      overlap: share of A's examples that B holds too, in [0, 1]; may be traced.
      noise_rate: ρ, the probability that a label is replaced, in [0, 1]; independent for each
        example of A, B and S, also where A and B overlap; may be traced.
      stratified: whether each sample has the pool's class shares (to within one or two examples a
        class) instead of an i.i.d. draw.
      holdout_key: a PRNG key that decides which examples are S, where it is given; consumed. Splits
        with the same `holdout_key` and different `key` hold out the same examples and draw their
        halves from the others.

    Raises:
      ValueError: if n, overlap or noise_rate is concrete and out of range, or if capacity or
        num_holdout is.

    Examples:
      >>> labels = jnp.arange(100) % 10
      >>> a, b, s = populations.split(jax.random.key(0), labels, num_examples=30, num_classes=10)
      >>> [len(sample.indices) for sample in (a, b, s)]
      [30, 30, 40]
      >>> len(set(a.indices.tolist()) & set(b.indices.tolist()))  # disjoint
      0
    """
    pool = labels.shape[0]
    if capacity is None:
        capacity = int(num_examples)
    if num_holdout is None:
        num_holdout = pool - 2 * capacity
    _check_rate("overlap", overlap)
    _check_rate("noise_rate", noise_rate)
    _check_size(num_examples, capacity, overlap, pool, num_holdout)
    shared = jnp.round(jnp.asarray(overlap) * num_examples).astype(jnp.int32)

    key_order, key_a, key_b, key_s = jax.random.split(key, 4)

    def shuffle(key, labels):
        if stratified:
            return _stratified_order(key, labels, num_classes)
        return jax.random.permutation(key, labels.shape[0])

    if holdout_key is None:
        order = shuffle(key_order, labels)
    else:
        common = shuffle(holdout_key, labels)
        rest, held = common[: pool - num_holdout], common[pool - num_holdout :]
        order = jnp.concatenate([rest[shuffle(key_order, labels[rest])], held])

    def sample(key, start, length, count):
        rows = jnp.arange(length)
        indices = order[jnp.clip(start + rows, 0, pool - 1)].astype(jnp.int32)
        return Sample(
            indices,
            add_label_noise(key, labels[indices], noise_rate, num_classes=num_classes),
            rows < count,
        )

    return Halves(
        sample(key_a, 0, capacity, num_examples),
        sample(key_b, num_examples - shared, capacity, num_examples),
        sample(key_s, pool - num_holdout, num_holdout, num_holdout),
    )


def permute_labels(key: Key, sample: Sample) -> Array:
    """Returns `[N]` labels of a sample, permuted among its valid examples.

    Classes stay as frequent as they are, and no relation to the inputs is left.

    Args:
      key: a PRNG key, which is consumed.
      sample: the sample; its padding keeps its labels.
    """
    size = sample.labels.shape[0]
    draws = jnp.where(sample.mask, jax.random.uniform(key, (size,)), 2.0)
    return jnp.where(sample.mask, sample.labels[jnp.argsort(draws)], sample.labels)


def _stratified_order(key: Key, labels: Array, num_classes: int) -> Array:
    """Returns an order of the pool in which each class is spread evenly, at random within."""
    key_rank, key_offset = jax.random.split(key)
    pool = labels.shape[0]
    shuffled = jax.random.permutation(key_rank, pool)
    onehot = jax.nn.one_hot(labels[shuffled], num_classes, dtype=jnp.int32)
    rank = (jnp.cumsum(onehot, 0) * onehot).sum(-1) - 1
    count = onehot.sum(0)[labels[shuffled]]
    offset = jax.random.uniform(key_offset, (num_classes,))[labels[shuffled]]
    return shuffled[jnp.argsort((rank + offset) / count)]


def _check_rate(name: str, value: float | Array) -> None:
    """Checks that a rate lies in [0, 1], unless it is traced."""
    if not is_traced(value) and not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def _check_size(num_examples, capacity: int, overlap, pool: int, num_holdout: int) -> None:
    """Checks that halves and holdout fit into the pool, as far as sizes are not traced."""
    if not is_traced(num_examples) and not is_traced(overlap):
        n = int(num_examples)
        sizes = np.arange(1, pool + 1, dtype=np.float32)
        needed = 2 * sizes - np.round(np.float32(overlap) * sizes)
        largest = int((needed <= pool - max(num_holdout, 0)).sum())
        if n > largest:
            raise ValueError(
                f"two halves of num_examples={n} do not fit beside {max(num_holdout, 0)} held out "
                f"of a pool of {pool}: n may be at most {largest}"
            )
        if not 1 <= n <= capacity:
            raise ValueError(f"num_examples must lie in [1, {capacity}] (capacity), got {n}")
    if capacity > pool:
        raise ValueError(f"capacity must be at most {pool}, the size of the pool, got {capacity}")
    if not 0 <= num_holdout <= pool:
        raise ValueError(f"num_holdout must lie in [0, {pool}], got {num_holdout}")
