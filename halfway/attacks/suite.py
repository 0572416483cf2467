"""AutoAttack: four attacks in their standard order, each on what the ones before left."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from halfway import losses
from halfway.attacks import base, door
from halfway.attacks.auto_pgd import apgd
from halfway.attacks.base import AttackResult
from halfway.attacks.minimum_norm import fast_boundary, nearest
from halfway.attacks.random_search import square
from halfway.attacks.threat import Threat
from halfway.types import Array, Key, LogitsFn

STAGES = ("apgd_ce", "apgd_t", "fab_t", "square")
"""Names of the stages in standard order."""

_Single = Callable[[Key, Array, Array, Threat, Array], tuple[Array, Any]]
"""Key, input `[1, ...]`, label `[1]`, threat and target `[1]` to a point and queries."""


class Outcome(NamedTuple):
    """What became of each input, `[B]` bool each; at most one of the three holds.

    None holds where the model answers NaN at the point that the attack found, or the attack had no
    point to begin at and says so by a loss of NaN: neither is a success, and for neither can a
    model be called robust.

    Attributes:
      misclassified: from the start; no success of any attack.
      fooled: classified rightly, and wrongly after the attack.
      robust: classified rightly before and after.
    """

    misclassified: Array
    fooled: Array
    robust: Array


def outcome(logits_fn: LogitsFn, x: Array, labels: Array, result: AttackResult) -> Outcome:
    """Returns what became of each input, with those misclassified from the start apart.

    Robust accuracy is `outcome.robust.mean()`; the success rate among the inputs that were
    classified rightly is `fooled.sum() / (fooled.sum() + robust.sum())`.

    Args:
      logits_fn: of the model.
      x: `[B, ...]`, clean inputs.
      labels: `[B]`.
      result: of an untargeted attack.

    Examples:
      >>> def logits_fn(x):
      ...     return jnp.stack([x[:, 0], jnp.zeros(x.shape[0])], axis=-1)
      >>> x, labels = jnp.array([[0.5], [-0.5], [2.0]]), jnp.array([0, 0, 0])
      >>> threat = attacks.linf(1.0, bounds=(-9.0, 9.0))
      >>> result = attacks.pgd(logits_fn, jax.random.key(0), x, labels, threat=threat)
      >>> [a.tolist().index(True) for a in attacks.outcome(logits_fn, x, labels, result)]
      [1, 0, 2]
    """
    right = losses.error(logits_fn(x), labels) == 0
    # NaN logits are neither right nor a success.
    answers = ~jnp.isnan(logits_fn(result.adversarial)).any(-1) & ~jnp.isnan(result.loss)
    return Outcome(~right, right & result.success, right & ~result.success & answers)


@door.checked
def auto_attack(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    stages: tuple[str, ...] = STAGES,
    num_steps: int = 100,
    num_targets: int = 9,
    num_queries: int = 5000,
    chunk_size: int = 64,
) -> AttackResult:
    """Returns the result of AutoAttack (Croce and Hein, 2020) in its standard version.

    APGD with cross-entropy, then APGD with the targeted DLR loss and targeted FAB, for each of the
    classes after the first in turn, then Square, all from the clean input and each on the inputs
    that nothing before has fooled; so it can be compiled whole, in chunks of which there are as
    many as it takes. Misclassified is misclassified, as whatever class. What is never fooled ends
    at the point of largest margin loss that a stage came to. With three classes or fewer targets
    are steered to by cross-entropy, and in l1 there is no Square.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; every example draws by its place in the batch.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      stages: of `STAGES`, in the order in which they are run; static.
      num_steps: of APGD and FAB, static.
      num_targets: largest number of classes that are targets; static.
      num_queries: of Square at most, static.
      chunk_size: inputs that are attacked at once, static; larger on accelerators.

    Raises:
      ValueError: for an unknown stage and counts below 1; and as the attacks do.

    Source: arXiv 2003.01690.
    """
    check(stages, num_steps, num_targets, chunk_size)
    result = clean(logits_fn, x, labels, chunk_size=chunk_size)
    for index, name in enumerate(stages):
        if name == "square" and threat.norm.name == "l1":
            continue
        result = stage(
            name,
            logits_fn,
            jax.random.fold_in(key, index),
            x,
            labels,
            result,
            threat=threat,
            num_steps=num_steps,
            num_targets=num_targets,
            num_queries=num_queries,
            chunk_size=chunk_size,
        )
    return result


def check(stages: tuple[str, ...], num_steps: int, num_targets: int, chunk_size: int) -> None:
    """Checks what `auto_attack` takes beside inputs and labels.

    Args:
      stages: names of stages.
      num_steps: of each walk, at least 1.
      num_targets: of targeted stages, at least 1.
      chunk_size: inputs at once, at least 1.

    Raises:
      ValueError: for an unknown stage and counts below 1.
    """
    for name in stages:
        if name not in STAGES:
            raise ValueError(f"stages must be of {', '.join(STAGES)}, got {name!r}")
    counts = {"num_steps": num_steps, "num_targets": num_targets, "chunk_size": chunk_size}
    for name, count in counts.items():
        base.check_count(name, count)


def clean(logits_fn: LogitsFn, x: Array, labels: Array, *, chunk_size: int) -> AttackResult:
    """Returns the result before any attack: x itself, with success where it is misclassified.

    Args:
      logits_fn: of the model.
      x: `[B, ...]`.
      labels: `[B]`.
      chunk_size: inputs at once.
    """

    def look(example: tuple[Array, Array]) -> AttackResult:
        image, label = example
        return _alone(logits_fn, image[None], label[None], 1)

    return jax.lax.map(look, (x, labels), batch_size=chunk_size)


def stage(
    name: str,
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    result: AttackResult,
    *,
    threat: Threat,
    num_steps: int,
    num_targets: int,
    num_queries: int,
    chunk_size: int,
) -> AttackResult:
    """Returns the result after one more stage of `auto_attack`.

    Args:
      name: of the stage.
      logits_fn, key, x, labels: as of `auto_attack`.
      result: before the stage, from `clean` or another stage.
      threat, num_steps, num_targets, num_queries, chunk_size: as of `auto_attack`.
    """
    num_classes = jax.eval_shape(logits_fn, x).shape[1]
    norm, bounds = threat.norm.name, threat.bounds

    def apgd_ce(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        del target
        won = apgd(logits_fn, key, x, label, threat=threat, num_steps=num_steps)
        return won.adversarial, won.queries

    def apgd_t(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        def loss_fn(logits: Array, label: Array) -> Array:
            if num_classes < 4:
                return -losses.cross_entropy(logits, target)
            return -losses.targeted_dlr(label)(logits, target)

        won = apgd(logits_fn, key, x, label, threat=threat, loss_fn=loss_fn, num_steps=num_steps)
        return won.adversarial, won.queries

    def fab_t(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        del key
        goal = nearest.firm(logits_fn, label, losses.margin)
        linearize = fast_boundary.class_ahead(logits_fn, label, target)
        kept, queries = fast_boundary.search(
            goal, linearize, x, norm, bounds, num_steps=num_steps, queries_of_step=2
        )
        return threat.project(kept.point, x), queries

    def random(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        del target
        won = square(logits_fn, key, x, label, threat=threat, num_queries=num_queries)
        return won.adversarial, won.queries

    single = {"apgd_ce": apgd_ce, "apgd_t": apgd_t, "fab_t": fab_t, "square": random}[name]
    if name in ("apgd_ce", "square"):
        return _on_survivors(single, logits_fn, key, x, labels, labels, result, threat, chunk_size)
    order = _ranked(logits_fn, x, labels, chunk_size)

    def towards(rank: Array, result: AttackResult) -> AttackResult:
        return _on_survivors(
            single,
            logits_fn,
            jax.random.fold_in(key, rank),
            x,
            labels,
            order[:, rank],
            result,
            threat,
            chunk_size,
        )

    return jax.lax.fori_loop(0, min(num_targets, num_classes - 1), towards, result)


def _ranked(logits_fn: LogitsFn, x: Array, labels: Array, chunk_size: int) -> Array:
    """Returns the classes other than the label, `[B, C − 1]`, the largest logit first."""
    logits = jax.lax.map(lambda image: logits_fn(image[None])[0], x, batch_size=chunk_size)
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[1], dtype=bool), -jnp.inf, logits)
    return jnp.argsort(-others, axis=1)[:, :-1]


def _on_survivors(
    single: _Single,
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    targets: Array,
    result: AttackResult,
    threat: Threat,
    chunk_size: int,
) -> AttackResult:
    """Returns the result after an attack on the inputs without success, in chunks of them.

    Every input is attacked by itself, with a key of its own: what else is in its chunk does not
    matter.
    """
    size = labels.shape[0]
    left = ~result.success
    # Those that are left come first, then the others; beyond the end a place that is dropped.
    places = jnp.concatenate([jnp.argsort(~left), jnp.full(-size % chunk_size, size)])
    number = left.sum()
    keys = base.example_keys(key, size)
    budgets = jnp.broadcast_to(threat.epsilon, (size,))

    def alone(key: Key, image: Array, label: Array, budget: Array, target: Array) -> AttackResult:
        scaled = threat.replace(epsilon=budget)  # pyright: ignore[reportAttributeAccessIssue]
        point, queries = single(key, image[None], label[None], scaled, target[None])
        return _alone(logits_fn, point, label[None], queries + 1)

    def attack(carry: tuple[Array, AttackResult]) -> tuple[Array, AttackResult]:
        begin, result = carry
        rows = jax.lax.dynamic_slice_in_dim(places, begin, chunk_size)
        old = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), result)
        chunk = (a.at[rows].get(mode="clip") for a in (keys, x, labels, budgets, targets))
        new = jax.vmap(alone)(*chunk)
        kept = base.better_of(
            base.Candidate(new.adversarial, new.success, new.loss),
            base.Candidate(old.adversarial, old.success, old.loss),
        )
        new = AttackResult(kept.point, kept.success, kept.loss, old.queries + new.queries)
        # What was done already, and only fills the last chunk, is not touched.
        rows = jnp.where(begin + jnp.arange(chunk_size) < number, rows, size)
        write = lambda whole, part: whole.at[rows].set(part, mode="drop")  # noqa: E731
        return begin + chunk_size, jax.tree.map(write, result, new)

    begin = jnp.zeros((), number.dtype)
    return jax.lax.while_loop(lambda carry: carry[0] < number, attack, (begin, result))[1]


def _alone(logits_fn: LogitsFn, point: Array, label: Array, queries: Array | int) -> AttackResult:
    """Returns what a point `[1, ...]` is worth, without the leading axis."""
    result = nearest.result(nearest.firm(logits_fn, label, losses.margin), point, queries)
    return jax.tree.map(lambda leaf: leaf[0], result)
