"""AutoAttack: attacks in the order of its version, each on what the ones before left."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from halfway import losses
from halfway.attacks import base, door
from halfway.attacks.auto.auto_pgd import SHRINKING, apgd
from halfway.attacks.base import AttackResult
from halfway.attacks.defended import DrawFn, eot
from halfway.attacks.minimum_norm import fast_boundary, nearest
from halfway.attacks.random_search import square
from halfway.attacks.threat import Threat
from halfway.types import Array, Key, LogitsFn

STAGES = ("apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square")
"""Names of the stages that there are."""
VERSIONS = {
    "standard": ("apgd_ce", "apgd_t", "fab_t", "square"),
    "plus": ("apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"),
    "rand": ("apgd_ce", "apgd_dlr"),
}
"""Stages by version, in the order in which they are run."""
RESTARTS = 5
"""Of untargeted stages of "plus", and of the first in l1."""

Single = Callable[[Key, Array, Array, Threat, Array], tuple[Array, Any]]
"""Key, input `[1, ...]`, label `[1]`, threat and target `[1]` to a point and queries."""


class StagedResult(NamedTuple):
    """What `auto_attack` returns: as `AttackResult`, and by which stage.

    Attributes:
      adversarial, success, loss, queries: as of `AttackResult`; the loss is the margin loss.
      stage: `[B]` int32, the place in the version of the stage that fooled the model; −1 where it
        errs from the start, and the number of stages where none fooled it.
    """

    adversarial: Array
    success: Array
    loss: Array
    queries: Array
    stage: Array


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
    version: str | tuple[str, ...] = "standard",
    num_steps: int = 100,
    num_restarts: int | None = None,
    num_targets: int = 9,
    num_queries: int = 5000,
    draw_fn: DrawFn | None = None,
    num_draws: int = 20,
    chunk_size: int = 64,
) -> StagedResult:
    """Returns the result of AutoAttack (Croce and Hein, 2020).

    Attacks in the order of the version, all from the clean input and each on the inputs that
    nothing before has fooled; so it can be compiled whole, in chunks of which there are as many as
    it takes. Targeted ones steer to the classes after the first in turn. Misclassified is
    misclassified, as whatever class. What is never fooled ends at the point of largest margin loss
    that a stage came to.

    - "standard": Auto-PGD with cross-entropy, with the targeted DLR loss, targeted FAB, Square.
    - "plus": Auto-PGD with cross-entropy and with DLR, five restarts each, FAB with five restarts,
      Square, targeted Auto-PGD and targeted FAB.
    - "rand", for randomized models: Auto-PGD with cross-entropy and with DLR, along means of the
      gradient over draws (`eot`).

    With three classes or fewer targets are steered to by cross-entropy, and in the place of DLR is
    the margin. In l1 Auto-PGD goes through radii of 3 ε, 2 ε and ε, with cross-entropy five times.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples. Of a randomized model
        it says what success is: logits of one draw, or the mean of several.
      key: consumed; every example draws by its place in the batch.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      version: one of these, or names of `STAGES` in the order in which they are run; static.
      num_steps: of Auto-PGD and FAB, static.
      num_restarts: of untargeted Auto-PGD and FAB; None: those of the version; static.
      num_targets: largest number of classes that are targets; static.
      num_queries: of Square at most, static.
      draw_fn: the randomized model, a key and inputs to logits; for "rand".
      num_draws: of each of its gradients, static.
      chunk_size: inputs that are attacked at once, static; larger on accelerators.

    Raises:
      ValueError: for an unknown version or stage, counts below 1, and "rand" without `draw_fn`.

    Source: arXiv 2003.01690; for l1, arXiv 2103.01208.
    """
    plan = Plan(
        version,
        num_steps=num_steps,
        num_restarts=num_restarts,
        num_targets=num_targets,
        num_queries=num_queries,
        draw_fn=draw_fn,
        num_draws=num_draws,
        chunk_size=min(chunk_size, max(x.shape[0], 1)),
    )
    result = clean(logits_fn, x, labels, plan)
    for index in range(len(plan.stages)):
        stage_key = jax.random.fold_in(key, index)
        result = stage(index, logits_fn, stage_key, x, labels, result, threat=threat, plan=plan)
    return result


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `auto_attack` was asked to do, checked; static.

    Attributes:
      version, num_steps, num_restarts, num_targets, num_queries, draw_fn, num_draws, chunk_size: as
        of `auto_attack`.

    Raises:
      ValueError: for an unknown version or stage, counts below 1, and "rand" without `draw_fn`.
    """

    version: str | tuple[str, ...] = "standard"
    num_steps: int = 100
    num_restarts: int | None = None
    num_targets: int = 9
    num_queries: int = 5000
    draw_fn: DrawFn | None = None
    num_draws: int = 20
    chunk_size: int = 64

    def __post_init__(self) -> None:
        """Checks all fields."""
        if isinstance(self.version, str) and self.version not in VERSIONS:
            raise ValueError(
                f"version must be one of {', '.join(VERSIONS)}, or stages, got {self.version!r}"
            )
        for name in self.stages:
            if name not in STAGES:
                raise ValueError(f"stages must be of {', '.join(STAGES)}, got {name!r}")
        if self.version == "rand" and self.draw_fn is None:
            raise ValueError(
                'version "rand" needs draw_fn, a function of a key and inputs to logits'
            )
        counts = ("num_steps", "num_targets", "num_queries", "num_draws", "chunk_size")
        for name in counts if self.num_restarts is None else ("num_restarts", *counts):
            base.check_count(name, getattr(self, name))

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, of `STAGES`."""
        return VERSIONS[self.version] if isinstance(self.version, str) else self.version

    def restarts(self, name: str, norm: str) -> int:
        """Returns the number of restarts of an untargeted stage.

        Args:
          name: of the stage.
          norm: of the threat model.
        """
        if self.num_restarts is not None:
            return self.num_restarts
        return RESTARTS if self.version == "plus" or (name, norm) == ("apgd_ce", "l1") else 1


def clean(logits_fn: LogitsFn, x: Array, labels: Array, plan: Plan) -> StagedResult:
    """Returns the result before any attack: x itself, with success where it is misclassified.

    Args:
      logits_fn: of the model.
      x: `[B, ...]`.
      labels: `[B]`.
      plan: of the attack.
    """

    def look(example: tuple[Array, Array]) -> AttackResult:
        image, label = example
        return _alone(logits_fn, image[None], label[None], 1)

    result = jax.lax.map(look, (x, labels), batch_size=plan.chunk_size)
    stage = jnp.where(result.success, -1, len(plan.stages))
    return StagedResult(result.adversarial, result.success, result.loss, result.queries, stage)


def stage(
    index: int,
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    result: StagedResult,
    *,
    threat: Threat,
    plan: Plan,
) -> StagedResult:
    """Returns the result after one more stage of `auto_attack`.

    Args:
      index: of the stage in the plan.
      logits_fn, key, x, labels, threat: as of `auto_attack`.
      result: before the stage, from `clean` or another stage.
      plan: of the attack.
    """
    single = single_of(plan.stages[index], logits_fn, x, threat, plan)
    run = functools.partial(_on_survivors, single, logits_fn, plan=plan, threat=threat)
    if not plan.stages[index].endswith("_t"):
        return run(key, x, labels, labels, result, index=index)
    order = ranked(logits_fn, x, labels, plan)

    def towards(rank: Array, result: StagedResult) -> StagedResult:
        key_rank = jax.random.fold_in(key, rank)
        return run(key_rank, x, labels, order[:, rank], result, index=index)

    return jax.lax.fori_loop(0, min(plan.num_targets, order.shape[1]), towards, result)


def single_of(name: str, logits_fn: LogitsFn, x: Array, threat: Threat, plan: Plan) -> Single:
    """Returns a stage for one input, by its name.

    Args:
      name: of `STAGES`.
      logits_fn: of the model.
      x: `[B, ...]`, of which the shape matters.
      threat: of the attack; its budget is not looked at.
      plan: of the attack.
    """
    num_classes = jax.eval_shape(logits_fn, x).shape[1]
    norm = threat.norm.name
    walk = functools.partial(
        apgd,
        logits_fn,
        num_steps=plan.num_steps,
        radii=SHRINKING if norm == "l1" else ((1.0, 1.0),),
        estimator=base.exact_gradient
        if plan.draw_fn is None
        else eot(plan.draw_fn, num_draws=plan.num_draws),
    )

    def apgd_ce(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        del target
        won = walk(key, x, label, threat=threat, num_restarts=plan.restarts(name, norm))
        return won.adversarial, won.queries

    def apgd_dlr(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        del target
        loss_fn = losses.margin if num_classes < 3 else losses.dlr
        restarts = plan.restarts(name, norm)
        won = walk(key, x, label, threat=threat, num_restarts=restarts, loss_fn=loss_fn)
        return won.adversarial, won.queries

    def apgd_t(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        def loss_fn(logits: Array, label: Array) -> Array:
            if num_classes < 4:
                return -losses.cross_entropy(logits, target)
            return -losses.targeted_dlr(label)(logits, target)

        won = walk(key, x, label, threat=threat, loss_fn=loss_fn)
        return won.adversarial, won.queries

    def boundary(linearize, each: int, key: Key, x: Array, label: Array, threat: Threat, restarts):
        goal = nearest.firm(logits_fn, label, losses.margin)
        kept, queries = fast_boundary.search(
            goal,
            linearize,
            x,
            norm,
            threat.limits(x),
            num_steps=plan.num_steps,
            queries_of_step=each,
            restarts=jax.random.split(key, restarts)[1:],
        )
        return threat.project(kept.point, x), queries

    def fab(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        del target
        linearize = nearest.nearest_class(logits_fn, label, norm)
        return boundary(
            linearize, num_classes + 1, key, x, label, threat, plan.restarts(name, norm)
        )

    def fab_t(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        linearize = fast_boundary.class_ahead(logits_fn, label, target)
        return boundary(linearize, 2, key, x, label, threat, 1)

    def random(key: Key, x: Array, label: Array, threat: Threat, target: Array):
        del target
        won = square(logits_fn, key, x, label, threat=threat, num_queries=plan.num_queries)
        return won.adversarial, won.queries

    singles = (apgd_ce, apgd_dlr, apgd_t, fab, fab_t, random)
    return singles[STAGES.index(name)]


def ranked(logits_fn: LogitsFn, x: Array, labels: Array, plan: Plan) -> Array:
    """Returns the classes other than the label, `[B, C − 1]`, the largest logit first.

    Args:
      logits_fn: of the model.
      x: `[B, ...]`.
      labels: `[B]`.
      plan: of the attack.
    """
    logits = jax.lax.map(lambda image: logits_fn(image[None])[0], x, batch_size=plan.chunk_size)
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[1], dtype=bool), -jnp.inf, logits)
    return jnp.argsort(-others, axis=1)[:, :-1]


class Chunk(NamedTuple):
    """Inputs that are attacked together, without a word to each other; `[N, ...]` each.

    Attributes:
      keys: of each input, consumed.
      x: clean inputs.
      labels: of these.
      budgets: ε of each.
      targets: the class that a targeted stage steers to.
    """

    keys: Key
    x: Array
    labels: Array
    budgets: Array
    targets: Array


def improve(
    single: Single,
    logits_fn: LogitsFn,
    chunk: Chunk,
    old: StagedResult,
    *,
    index: int,
    threat: Threat,
) -> StagedResult:
    """Returns the better of what was found before and of one stage, for each input of a chunk.

    Args:
      single: the stage, from `single_of`.
      logits_fn: of the model.
      chunk: inputs.
      old: their results so far.
      index: of the stage in the plan.
      threat: of the attack; its budget is not looked at.
    """

    def alone(key: Key, image: Array, label: Array, budget: Array, target: Array) -> AttackResult:
        scaled = dataclasses.replace(threat, epsilon=budget)
        point, queries = single(key, image[None], label[None], scaled, target[None])
        return _alone(logits_fn, point, label[None], queries + 1)

    new = jax.vmap(alone)(*chunk)
    kept = base.better_of(
        base.Candidate(new.adversarial, new.success, new.loss),
        base.Candidate(old.adversarial, old.success, old.loss),
    )
    by = jnp.where(new.success, index, old.stage)
    return StagedResult(kept.point, kept.success, kept.loss, old.queries + new.queries, by)


def _on_survivors(
    single: Single,
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    targets: Array,
    result: StagedResult,
    *,
    index: int,
    threat: Threat,
    plan: Plan,
) -> StagedResult:
    """Returns the result after an attack on the inputs without success, in chunks of them.

    Every input is attacked by itself, with a key of its own: what else is in its chunk does not
    matter.
    """
    size, chunk_size = labels.shape[0], plan.chunk_size
    left = ~result.success
    # Those that are left come first, then the others; beyond the end a place that is dropped.
    places = jnp.concatenate([jnp.argsort(~left), jnp.full(-size % chunk_size, size)])
    number = left.sum()
    keys = base.example_keys(key, size)
    budgets = jnp.broadcast_to(threat.epsilon, (size,))

    def attack(carry: tuple[Array, StagedResult]) -> tuple[Array, StagedResult]:
        begin, result = carry
        rows = jax.lax.dynamic_slice_in_dim(places, begin, chunk_size)
        old = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), result)
        chunk = (a.at[rows].get(mode="clip") for a in (keys, x, labels, budgets, targets))
        new = improve(single, logits_fn, Chunk(*chunk), old, index=index, threat=threat)
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
