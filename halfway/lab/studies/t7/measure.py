"""What k surrogates share with other models, and how far attacks on all of them carry."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, losses, meeting, populations, sharding
from halfway.attacks.ensembles import HOW
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import weight_space
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.study import tables
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Array, Key, Params

NUM_EXAMPLES = 1000
"""Of S that are looked at, at most."""
MIDPOINTS = ("midpoint, raw", "midpoint, matched")
TAIL = "SGD tail"
NUM_TAILS, TAIL_RATE = 4, 0.05
"""Single surrogates that a tail begins at, and its constant learning rate (Gubri et al.)."""
PER_PASS = 4
"""Models that are kept of a tail in each pass over the half (Gubri et al.)."""


def setting(config: RunConfig) -> Condition:
    """Returns twice the config's pairs, of which no model has seen S.

    θ_A of the first half are the surrogates, θ_B of the second half the targets. The partner of
    each, an independent draw of the same law, is neither: those give k_half.
    """
    own = condition(config, config.architectures[0])
    return dataclasses.replace(
        own,
        num_pairs=2 * config.num_pairs,
        common_holdout=True,
        probe_steps=(0, own.probe_steps[-1]),  # on the way nobody looks
    )


def numbers(config: RunConfig) -> tuple[int, ...]:
    """Returns the numbers k of surrogates: powers of two up to the number of pairs."""
    return tuple(2**i for i in range(config.num_pairs.bit_length()))


@functools.partial(sharding.jit, static_argnames=("program",))
def _gradient_program(params, images, labels, *, program: Condition):
    """Input gradients of the margin loss `[P, 2, B, ...]`, and whether models are right there."""

    def model(params, x, y):
        def total(x):
            logits = program.apply_fn(params, x)
            return losses.margin(logits, y).sum(), logits.argmax(-1) == y

        gradient, correct = jax.grad(total, has_aux=True)(x)
        return gradient, correct

    def pair(params, x, y):
        return jax.lax.map(lambda one: model(one, x, y), params)

    return sharding.spread(pair)(params, images, labels)


@functools.partial(sharding.jit, static_argnames=("program", "settings", "how"))
def _attack_program(surrogates, targets, images, labels, epsilon, *, program, settings, how: str):
    """Examples that attacks on blocks of surrogates `[R, k, ...]` make targets err on, `[R, M, B]`.

    PGD from the clean image on the margin loss, which has nothing random.
    """
    apply_fn = program.apply_fn

    def block(members, targets, x, y, epsilon):
        logits_fn, loss_fn = attacks.ensemble(apply_fn, members, how, losses.margin)
        attack = attack_of(settings, epsilon, loss_fn)
        points = attack(logits_fn, jax.random.key(0), x, y).adversarial
        return jax.lax.map(lambda one: apply_fn(one, points).argmax(-1) != y, targets)

    return sharding.spread(block)(surrogates, targets, images, labels, epsilon)


def midpoints(population: Population, surrogates: Params, key: Key) -> dict[str, Params]:
    """Returns halfway points of the weights of two surrogates each, raw and after matching.

    Args:
      population: whose model it is.
      surrogates: leaves `[K, ...]`; the first is matched by the second, the third by the fourth.
      key: consumed; for the matching.

    Returns:
      leaves `[K // 2, ...]`, by `MIDPOINTS`.
    """

    def two_each(leaf):
        number = len(leaf) // 2
        return leaf[: 2 * number].reshape(number, 2, *leaf.shape[1:])

    twos = jax.tree.map(two_each, surrogates)
    raw = weight_space.ends(twos)
    matched = weight_space.matched_ends(dataclasses.replace(population, params=twos), key)
    middles = [jax.tree.map(lambda a, b: 0.5 * (a + b), *ends) for ends in (raw, matched)]
    return dict(zip(MIDPOINTS, middles, strict=True))


def tails(
    population: Population, chosen: Sequence[int], images: Array, number: int, key: Key
) -> Params:
    """Returns weights `[R, number, ...]` that SGD visits from θ_A of some pairs on (LGV).

    Batches are drawn from the half that the model was trained on.

    Args:
      population: the pairs.
      chosen: R pairs.
      images: of the pool.
      number: of models in each tail.
      key: consumed.
    """
    one, rows = population.condition, jnp.asarray(chosen)
    start, half = jax.tree.map(
        lambda leaf: leaf[rows],
        (jax.tree.map(lambda leaf: leaf[:, 0], population.params), population.halves.a),
    )
    keys = jax.random.split(key, len(chosen))
    return _tail_program(
        (keys, start, half.indices, population.trained_labels[rows, 0]),
        images,
        program=populations.program_of(one),
        number=number,
        num_examples=one.num_examples,
    )


@functools.partial(sharding.jit, static_argnames=("program", "number", "num_examples"))
def _tail_program(members, images, *, program: Condition, number: int, num_examples: int):
    size = min(program.batch_size, num_examples)

    def one(member, images):
        key, params, rows, labels = member

        def loss_fn(key: Key, params: Params) -> Array:
            drawn = jax.random.randint(key, (size,), 0, num_examples)
            logits = program.apply_fn(params, images[rows[drawn]])
            return losses.cross_entropy(logits, labels[drawn]).mean()

        return attacks.collect_weights(
            key,
            params,
            loss_fn,
            num_models=number,
            learning_rate=TAIL_RATE,
            steps_between=max(1, round(num_examples / size / PER_PASS)),
        )

    return sharding.spread(one)(members, images)


def constant_terms(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ‖h_i‖² and the mean of ⟨h_i, h_j⟩ over j ≠ i of models `[K, ...]`, `[K]` each.

    k_half is Σ_i ‖h_i‖² / Σ_i mean_j ⟨h_i, h_j⟩ − 1, as of `meeting.ensemble_noise`.
    """
    vectors = gradients.reshape(len(gradients), -1)
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    total = vectors.sum(0, dtype=np.float64)
    products = np.array([np.dot(one.astype(np.float64), total) for one in vectors])
    return squares, (products - squares) / max(1, len(vectors) - 1)


def _blocks(params: Params, k: int) -> Params:
    """Returns disjoint blocks `[R, k, ...]` of models `[K, ...]`; what is left over is left out."""

    def cut(leaf):
        number = len(leaf) // k
        return leaf[: number * k].reshape(number, k, *leaf.shape[1:])

    return jax.tree.map(cut, params)


def _measure(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns what alignment, the law's constant and success rates are made of, a row a target.

    All are sums over examples of S, labels clean, for each target: `target_square` ‖h_m‖²,
    `ensemble_product` ⟨h̄, h_m⟩ and `ensemble_square` ‖h̄‖², both means over disjoint blocks of k
    surrogates ("step"); `ensemble_fooled` by the way of attack ("subset") and k, the mean over
    blocks of the examples that the target had right and loses, of `ensemble_examples`. For the
    partner of each model `partner_square` and `partner_product`, see `constant_terms`. Models that
    diverged are left out, and rows that do not belong to a target are NaN.
    """
    (one,) = population
    own, half = one.condition, config.num_pairs
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels, jnp.int32)
    rows = one.halves.s.indices[0][:NUM_EXAMPLES]
    x, y, finite = images[rows], labels[rows], one.finite
    shared = {"program": populations.program_of(own)}
    gradients, correct = (np.asarray(v) for v in _gradient_program(one.params, x, y, **shared))
    each = {"pair": range(own.num_pairs)}
    named = {"condition": own.key, "subset": "holdout"}
    parts = []

    def add(quantity: str, values: np.ndarray, place: slice | np.ndarray, **columns) -> None:
        every = np.full(own.num_pairs, np.nan)
        every[place] = values
        parts.append(
            tables.rows(np.where(finite, every, np.nan), each, quantity=quantity, **named | columns)
        )

    # The partner of a surrogate is θ_B of its pair, that of a target θ_A.
    index = np.arange(own.num_pairs)
    known = np.flatnonzero(finite)
    partners = gradients[index, (index < half).astype(int)][known]
    for name, values in zip(("square", "product"), constant_terms(partners), strict=True):
        add(f"partner_{name}", values, known)

    chosen = np.flatnonzero(finite[:half])
    surrogates, targets = gradients[chosen, 0], gradients[half:, 1]
    add(
        "target_square",
        (targets.reshape(half, -1).astype(np.float64) ** 2).sum(1),
        slice(half, None),
    )
    right = correct[half:, 1]
    add("ensemble_examples", right.sum(1), slice(half, None))
    first = jax.tree.map(lambda leaf: leaf[chosen, 0], one.params)
    second = jax.tree.map(lambda leaf: leaf[half:, 1], one.params)

    def fooled(members: Params, how: str = "logits") -> np.ndarray:
        """Examples of each target under the attack on each block, `[R, M]`."""
        wrong = _attack_program(
            members,
            second,
            x,
            y,
            jnp.float32(config.attack.epsilon),
            settings=settings_of(config),
            how=how,
            **shared,
        )
        return (np.asarray(wrong) & right).sum(-1)

    for k in numbers(config):
        if k > len(chosen):
            product = square = count = np.full(half, np.nan)
        else:
            terms = meeting.surrogate_terms(
                jnp.asarray(surrogates), jnp.asarray(targets), num_surrogates=k
            )
            product, square = np.asarray(terms.products), np.full(half, float(terms.surrogate))
            count = fooled(_blocks(first, k)).mean(0)
        add("ensemble_product", product, slice(half, None), step=k)
        add("ensemble_square", square, slice(half, None), step=k)
        add("ensemble_fooled", count, slice(half, None), step=k, subset="logits")
    for name, (k, values) in _others(one, first, chosen, images, config, key, fooled).items():
        add("ensemble_fooled", values, slice(half, None), step=k, subset=name)
    return Measured(tables.concat(parts))


def _others(
    population: Population,
    surrogates: Params,
    chosen: np.ndarray,
    images: Array,
    config: RunConfig,
    key: Key,
    fooled,
) -> Mapping[str, tuple[int, np.ndarray]]:
    """Returns (k, examples of each target) of other ways to attack as many surrogates or fewer."""
    most, found = numbers(config)[-1], {}
    if most > len(chosen):
        return found
    whole = _blocks(surrogates, most)
    for how in HOW[1:]:
        found[how] = most, fooled(whole, how).mean(0)
    key_match, key_tail = jax.random.split(key)
    middles = midpoints(population, surrogates, key_match)
    # Together they are as many as single surrogates: one program for all.
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *middles.values())
    halves = np.split(fooled(_blocks(together, 1)), len(middles))
    found |= {name: (2, each.mean(0)) for name, each in zip(middles, halves, strict=True)}
    number = min(NUM_TAILS, len(chosen))
    visited = tails(population, chosen[:number].tolist(), images, most, key_tail)
    one_by_one = [jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], visited) for r in range(number)]
    found[TAIL] = most, np.mean([fooled(tail)[0] for tail in one_by_one], 0)
    return found


ENSEMBLES = Measurement("surrogate_ensembles", 18, _measure)
