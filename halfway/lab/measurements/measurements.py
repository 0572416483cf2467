"""What is measured on populations: landscapes along training, transfer, first-order predictions."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, losses, populations, sharding, transfer
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Key

ATTACKS = ("attack", "noise", "other_example")
TARGETS = ("A", "B", "A permuted", "B permuted")


def _learning(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns the landscapes along training, as the population's probes saw them."""
    del key, pool, config  # everything was read while training
    (one,) = population
    condition = one.condition
    both = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES}
    walk = both | {"step": condition.probe_steps}
    names, losses_read = tuple(one.landscapes), tuple(populations.LOSSES)

    def stack(by_subset):
        return np.array([[by_subset[name][loss] for loss in losses_read] for name in names])

    constants = [f"constant_{loss}" for loss in losses_read]
    products = [f"gradient_{name}" for name in one.products]
    parts = (
        (stack(one.landscapes), {"subset": names, "quantity": losses_read} | walk),
        (stack(one.constant), {"subset": names, "quantity": constants} | both),
        (np.array(list(one.products.values())), {"quantity": products} | walk),
        (one.finite[None], {"quantity": ["finite"], "pair": both["pair"]}),
    )
    named = {"condition": condition.key}
    return Measured(tables.concat([tables.rows(values, axes, **named) for values, axes in parts]))


LEARNING = Measurement("learning", 1, _learning)


def budgets_of(condition: Condition, config: RunConfig) -> tuple[float, ...]:
    """Returns the budgets a condition is attacked at: the whole curve without noise, else one."""
    decides = float(config.attack.epsilon)
    if condition.noise_rate > 0:
        return (decides,)
    return tuple(sorted({decides, *(float(e) for e in config.attack.budgets)}))


@functools.partial(sharding.jit, static_argnames=("program", "settings"))
def _transfer_program(members, images, labels, epsilon, *, program: Condition, settings: tuple):
    apply_fn = program.apply_fn

    def pair(member, images, labels, epsilon):
        key, params, permuted, rows = member
        targets = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), params, permuted)
        attack = attack_of(settings, epsilon)
        matrix = transfer.transfer_matrix(
            apply_fn, params, apply_fn, targets, key, images[rows], labels[rows], attack=attack
        )
        sums = {name: transfer.summarize(matrix, name) for name in ("clean", *ATTACKS)}
        matched = {name: share.mean(-1) for name, share in matrix.matched.items()}
        return matrix, sums, matched

    return sharding.spread(pair)(members, images, labels, epsilon)


def _transfer(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns sums over S of what attacks on each model do to the other and to the controls.

    The populations are the condition and its control with permuted labels, which share S.
    """
    one, permuted = population
    condition = one.condition
    images, labels = jnp.asarray(pool.images), jnp.asarray(pool.labels)
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(jnp.arange(condition.num_pairs))
    members = (keys, one.params, permuted.params, one.halves.s.indices)
    budgets = budgets_of(condition, config)
    each = range(condition.num_pairs)
    axes = {"pair": each, "surrogate": tables.HALVES, "target": TARGETS}
    # A target that diverged misclassifies everything: that is no success.
    alive = np.stack([one.finite] * 2 + [permuted.finite] * 2, -1)[:, None]
    parts, arrays = [], {}
    for budget in budgets:
        matrix, sums, matched = _transfer_program(
            members,
            images,
            labels,
            jnp.float32(budget),
            program=populations.program_of(condition),
            settings=settings_of(config),
        )
        named = {"condition": condition.key, "budget": budget}
        counts, subsets = ("num_fooled", "num_examples"), transfer.DENOMINATORS
        names = tuple(sums)
        counted = [
            [[sums[name][f"{count}.{subset}"] for subset in subsets] for count in counts]
            for name in names
        ]
        increases = [sums[name]["increase"] for name in ATTACKS]
        shares = [matched[name] for name in matched]
        by_surrogate = {"pair": each, "surrogate": tables.HALVES}
        for values, columns, valid in (
            (counted, {"attack": names, "quantity": counts, "subset": subsets} | axes, alive),
            (
                increases,
                {"attack": ATTACKS, "quantity": ["increase"], "subset": ["all"]} | axes,
                alive,
            ),
            (shares, {"attack": tuple(matched), "quantity": ["matched"]} | by_surrogate, True),
        ):
            array = np.array(values, np.float64).reshape([len(v) for v in columns.values()])
            parts.append(tables.rows(np.where(valid, array, np.nan), columns, **named))
        if budget == config.attack.epsilon:
            arrays = _outcomes(matrix)
            arrays["labels"] = np.asarray(labels[one.halves.s.indices]).astype(np.int16)
    return Measured(tables.concat(parts), arrays)


def _outcomes(matrix: transfer.TransferMatrix) -> dict[str, np.ndarray]:
    """Returns `[P, 2, B]` outcomes of A→B and B→A on each example at the deciding budget."""
    swap = np.array([1, 0])
    attacked = np.asarray(matrix.target["attack"].correct)
    clean_loss = np.asarray(matrix.target["clean"].loss)
    clean_correct = np.asarray(matrix.target["clean"].correct)
    return {
        "surrogate_correct": np.asarray(matrix.surrogate["clean"].correct),
        "surrogate_fooled": ~np.asarray(matrix.surrogate["attack"].correct),
        "target_correct": clean_correct[:, swap],
        "target_fooled": np.stack([~attacked[:, 0, 1], ~attacked[:, 1, 0]], 1),
        "target_loss": clean_loss[:, swap].astype(np.float32),
    }


TRANSFER = Measurement("transfer", 2, _transfer)


@functools.partial(sharding.jit, static_argnames=("program",))
def _first_order_program(members, images, labels, epsilon, *, program: Condition):
    apply_fn = program.apply_fn

    def pair(member, images, labels, epsilon):
        params, rows = member
        x, y = images[rows], labels[rows]

        def direction(surrogate, target):
            return transfer.first_order(
                functools.partial(apply_fn, surrogate),
                functools.partial(apply_fn, target),
                x,
                y,
                threat=attacks.linf(epsilon),
            )

        swapped = jax.tree.map(lambda leaf: leaf[::-1], params)
        return jax.vmap(direction)(params, swapped)

    return sharding.spread(pair)(members, images, labels, epsilon)


def _first_order(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns P5 for each example of S, both directions, as arrays `[P, 2, B]`."""
    del key  # nothing here is random
    (one,) = population
    condition = one.condition
    out = _first_order_program(
        (one.params, one.halves.s.indices),
        jnp.asarray(pool.images),
        jnp.asarray(pool.labels),
        jnp.float32(config.attack.epsilon_calibration),
        program=populations.program_of(condition),
    )
    arrays = {name: np.asarray(values) for name, values in out._asdict().items()}
    table = tables.rows(
        np.asarray(losses.masked_mean(out.tau, jnp.isfinite(out.tau), axis=-1)),
        {"pair": range(condition.num_pairs), "surrogate": tables.HALVES},
        condition=condition.key,
        budget=float(config.attack.epsilon_calibration),
        quantity="tau",
        subset="all",
    )
    return Measured(table, arrays)


FIRST_ORDER = Measurement("first_order", 3, _first_order)
