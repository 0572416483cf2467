"""Sparse-RS: random search over few pixels of any colour, which needs losses and no gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses
from halfway.attacks import base, door, random_search, threat
from halfway.attacks.base import AttackResult
from halfway.attacks.threat import Bounds
from halfway.types import Array, Key, LogitsFn, LossFn

DIVISORS = {0: 2, 50: 4, 200: 5, 500: 6, 1000: 8, 2000: 10, 4000: 12, 6000: 15, 8000: 20}
"""Queries, of 10,000, after which the first share of swapped pixels is divided by a number."""


@door.checked
def sparse_rs(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    num_pixels: int,
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    loss_fn: LossFn = losses.margin,
    num_queries: int = 5000,
    first_share: float = 0.3,
) -> AttackResult:
    """Returns the result of Sparse-RS in l0 (Croce et al., 2022), where at most k pixels differ.

    It begins with k random pixels in random corners of the box of colours. Each query gives the
    colours of x back to a share of them, which shrinks with the number of queries, and takes as
    many others in new random corners; what results is kept where the loss grows or the attack
    succeeds. A pixel that gives its colour back may itself be drawn anew, which the authors'
    program does not let it: then no pixel is stuck in a colour, and k may be all pixels. An example
    rests once it succeeds; the search ends when all do.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; every example draws by its place in the batch.
      x: `[B, ...]` clean inputs within the bounds: images `[B, H, W, D]`, of which a pixel is all
        its channels, or `[B, n]`, of which it is a feature.
      labels: `[B]` integers.
      num_pixels: k ≥ 1, of each example; static.
      bounds: smallest and largest value of a feature, finite.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      num_queries: at most, the clean input and the start included; at least 2, static.
      first_share: α at the beginning, in (0, 1]; a query swaps α/2 to α/20 of the k pixels, at
        least one; static.

    Raises:
      ValueError: for fewer than one pixel or two queries, bounds that are not finite and a share
        outside (0, 1].

    Source: arXiv 2006.12834.
    """
    base.check_count("num_pixels", num_pixels)
    base.check_count("num_queries", num_queries, least=2)
    if not 0 < first_share <= 1:
        raise ValueError(f"first_share must lie in (0, 1], got {first_share}")
    if not threat.are_finite(bounds):
        raise ValueError(f"sparse_rs needs finite bounds, got {bounds}")
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    height, width, *rest = (*x.shape[1:], 1, 1)
    total = height * width
    budget = min(num_pixels, total)
    sizes = swap_sizes(budget, num_queries, first_share)
    most, numbers = max(sizes), jnp.array(sizes)
    keys = base.example_keys(key, x.shape[0])
    # The memory of the search is an order of all pixels, of which the first `budget` are chosen.

    def pixels(values: Array) -> Array:
        return jnp.broadcast_to(values, x.shape).reshape(x.shape[0], total, int(np.prod(rest)))

    clean, lower, upper = (
        pixels(jnp.asarray(values, x.dtype)) for values in (x, bounds[0], bounds[1])
    )

    def begin(key: Key, x: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
        draws = jax.random.uniform(jax.random.fold_in(key, 0), (budget, 1 + x.shape[1]))
        places = jnp.arange(budget)
        others = places + _whole(draws[:, 0], total - places)
        order = _exchange(jnp.arange(total), others, budget)
        new = order[:budget]
        return x.at[new].set(jnp.where(draws[:, 1:] < 0.5, lower[new], upper[new])), order

    def propose(index: Array, point: Array, order: Array) -> tuple[Array, Array]:
        number, places = numbers[index - 1], jnp.arange(most)

        def swap(
            key: Key, point: Array, order: Array, x: Array, lower: Array, upper: Array
        ) -> tuple[Array, Array]:
            draws = jax.random.uniform(jax.random.fold_in(key, index), (most, 2 + x.shape[1]))
            leaves = places + _whole(draws[:, 0], budget - places)
            order = _exchange(order, leaves, number)
            old = order[:most]
            # The last place of the chosen stands for the pixel that leaves.
            enters = budget - 1 + _whole(draws[:, 1], total - budget + 1)
            order = _exchange(order, jnp.where(enters < budget, places, enters), number)
            new = order[:most]
            colours = jnp.where(draws[:, 2:] < 0.5, lower[new], upper[new])
            # What is beyond the number that is swapped goes to a pixel that there is not.
            old, new = (jnp.where(places < number, pixel, total) for pixel in (old, new))
            point = point.at[old].set(x[old], mode="drop")
            return point.at[new].set(colours, mode="drop"), order

        point, order = jax.vmap(swap)(keys, pixels(point), order, clean, lower, upper)
        return point.reshape(x.shape), order

    point, order = jax.vmap(begin)(keys, clean, lower, upper)
    return random_search.search(goal, x, (point.reshape(x.shape), order), propose, num_queries)


def swap_sizes(num_pixels: int, num_queries: int, first_share: float) -> list[int]:
    """Returns how many pixels each query after the start swaps.

    A share of the pixels that is divided as in `DIVISORS`, scaled to the number of queries, and
    rounded down; one at least.

    Args:
      num_pixels: k.
      num_queries: of the whole search; the list is two shorter.
      first_share: of the pixels.
    """
    sizes = []
    for index in range(1, num_queries - 1):
        place = index * 10_000 // num_queries
        divisor = max((by for after, by in DIVISORS.items() if place > after), default=1)
        sizes.append(max(int(first_share * num_pixels / divisor), 1))
    return sizes or [1]


def _whole(draws: Array, limit: Array | int) -> Array:
    """Returns whole numbers from 0 to limit − 1, of draws from [0, 1)."""
    return (draws * limit).astype(jnp.int32)


def _exchange(order: Array, others: Array, number: Array | int) -> Array:
    """Returns `[P]` pixels where, one after another, place i < number and others[i] exchange."""

    def exchange(i: Array, order: Array) -> Array:
        return order.at[i].set(order[others[i]]).at[others[i]].set(order[i])

    return jax.lax.fori_loop(0, number, exchange, order)
