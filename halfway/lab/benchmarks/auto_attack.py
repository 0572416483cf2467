"""AutoAttack on a network trained on MNIST, beside torchattacks: survivors and time by stage."""

import functools
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, models, sharding
from halfway.attacks.auto import suite
from halfway.lab.benchmarks import mnist, peers, timing
from halfway.lab.benchmarks.timing import Row
from halfway.types import Array

NUM_STEPS, NUM_QUERIES, CHUNK = 100, 5000, 16
LIMIT = 15.0
"""Seconds in which a new network has its first result."""
SURVIVORS = (0.1, 0.3)
"""The lowest and highest share of images that Auto-PGD with cross-entropy may leave."""


class Staged:
    """`attacks.auto_attack` with a program for each stage, so that stages can be timed.

    Attributes:
      memory: bytes of the largest program; None where the backend does not report them.
      seconds: the seconds of all calls by stage.
      survivors: the number of survivors after the clean inputs and each stage of the last call.
    """

    def __init__(
        self,
        problem: mnist.Problem,
        norm: str,
        num_steps: int = NUM_STEPS,
        num_queries: int = NUM_QUERIES,
        version: str | tuple[str, ...] = "standard",
    ) -> None:
        size = len(problem.labels)
        shards = max(n for n in range(1, jax.device_count() + 1) if size % n == 0)
        split = lambda a: a.reshape(shards, -1, *a.shape[1:])  # noqa: E731
        self._key = jax.random.key(0)
        self._x, self._labels = split(problem.images), split(problem.labels)
        logits_fn, make = problem.logits_fn, getattr(attacks, norm)
        plan = suite.Plan(version, num_steps=num_steps, num_queries=num_queries, chunk_size=CHUNK)

        def run(index: int, key, x, labels, result, epsilon):
            def part(member, epsilon):
                key, x, labels, result = member
                threat = make(epsilon)
                return suite.stage(
                    index, logits_fn, key, x, labels, result, threat=threat, plan=plan
                )

            keys = jax.random.split(key, shards)
            return sharding.spread(part, at_once=1)((keys, x, labels, result), epsilon)

        def clean(x, labels):
            part = lambda member: suite.clean(logits_fn, *member, plan=plan)  # noqa: E731
            return sharding.spread(part, at_once=1)((x, labels))

        self._clean = jax.jit(clean).lower(self._x, self._labels).compile()
        shapes = jax.eval_shape(clean, self._x, self._labels)
        epsilon = jnp.zeros(())
        self._stages = {
            name: jax.jit(functools.partial(run, index))
            .lower(self._key, self._x, self._labels, shapes, epsilon)
            .compile()
            for index, name in enumerate(plan.stages)
        }
        sizes = [timing.memory(program) for program in self._stages.values()]
        self.memory = None if None in sizes else max(m for m in sizes if m is not None)
        self.seconds: dict[str, list[float]] = {name: [] for name in plan.stages}
        self.survivors: list[int] = []

    def __call__(self, epsilon: float, number: int | None = None) -> suite.StagedResult:
        """Returns the result of all stages, or of the first `number`, and keeps their seconds."""
        result = self._clean(self._x, self._labels)
        self.survivors = [int((~result.success).sum())]
        for index, name in enumerate([*self._stages][:number]):
            started = time.perf_counter()
            key = jax.random.fold_in(self._key, index)
            args = (key, self._x, self._labels, result, jnp.asarray(epsilon, jnp.float32))
            result = jax.block_until_ready(self._stages[name](*args))
            self.seconds[name].append(time.perf_counter() - started)
            self.survivors.append(int((~result.success).sum()))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), result)


def row(data_dir: str | None) -> Row:
    """Returns the row of AutoAttack in l∞; a row that was skipped says why.

    Args:
      data_dir: the data folder in which MNIST is prepared.
    """
    work, target = "auto_attack_mnist", 0.7
    problem = mnist.problem(data_dir)
    if isinstance(problem, str):
        return Row(work, None, target=target, skipped=problem)
    ours = Staged(problem, "linf")
    epsilon = budget(ours, len(problem.labels))
    for seconds in ours.seconds.values():
        seconds.clear()
    call, theirs = functools.partial(ours, epsilon), peer(problem, "linf", epsilon)
    if isinstance(theirs, str):
        (seconds,) = timing.median(call)
        return Row(
            work,
            seconds,
            target=target,
            peak_memory_bytes=ours.memory,
            skipped=theirs,
            note=_note(problem, epsilon, ours),
        )
    name, run, report = theirs
    run(problem.images[:10], problem.labels[:10])  # warm
    call()
    whole = functools.partial(run, problem.images, problem.labels)
    mine, other = timing.median(call, whole, warm=False)
    return Row(
        work,
        mine,
        name,
        other,
        mine / other,
        target,
        None,
        ours.memory,
        note=f"{_note(problem, epsilon, ours)}; peer: {report()}",
    )


def first_row() -> Row:
    """Returns the row of what a user waits for: a new CNN, nothing of it compiled, 64 images.

    The seconds are those to the first result of Auto-PGD by `attacks.auto_attack_steps`, the ratio
    is that over `LIMIT`; the note has the seconds to the end of the last stage.
    """
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(64, 28, 28, 1)), jnp.float32)
    module = models.build(dict(mnist.CNN), num_classes=10)
    params = jax.jit(module.init)(jax.random.key(1), images)["params"]
    logits_fn = mnist.logits_of(dict(mnist.CNN), params)
    labels = logits_fn(images).argmax(1)
    with timing.cold():
        started = time.perf_counter()
        steps = attacks.auto_attack_steps(
            logits_fn, jax.random.key(0), images, labels, threat=attacks.linf(8 / 255)
        )
        ends = [(step.stage, time.perf_counter() - started) for step in steps]
    first = next(seconds for stage, seconds in ends if stage >= 0)
    return Row(
        f"auto_attack_first_result_under_{LIMIT:.0f}_s",
        first,
        ratio=first / LIMIT,
        target=1.0,
        note=f"64 images of a new CNN, from cold; all stages {ends[-1][1]:.1f} s",
    )


def budget(ours: Staged, size: int) -> float:
    """Returns an ε at which Auto-PGD leaves a share within `SURVIVORS`, by bisection.

    Args:
      ours: the attack; its first stage is called.
      size: the number of images.

    Raises:
      RuntimeError: if no ε is found.
    """
    low, high = 0.0, 0.4
    for _ in range(12):
        epsilon = 0.5 * (low + high)
        ours(epsilon, 1)
        share = ours.survivors[-1] / size
        if SURVIVORS[0] <= share <= SURVIVORS[1]:
            return epsilon
        low, high = (epsilon, high) if share > SURVIVORS[1] else (low, epsilon)
    raise RuntimeError(f"no budget leaves a share of {SURVIVORS} to Auto-PGD")


def peer(
    problem: mnist.Problem,
    norm: str,
    epsilon: float,
    num_steps: int = NUM_STEPS,
    num_queries: int = NUM_QUERIES,
) -> tuple[str, Callable[[Array, Array], np.ndarray], Callable[[], str]] | str:
    """Returns torchattacks' AutoAttack with as many steps and queries; else why there is none.

    Args:
      problem: the network and its images.
      norm: "linf" or "l2".
      epsilon: the budget ε.
      num_steps: the number of steps of the stages that take steps.
      num_queries: the number of queries of the stage that takes queries.

    Returns:
      Its name, a function of images and labels that runs it, and a function that returns the times
      by stage of the last run.
    """
    modules = peers.load("torch", "torchattacks")
    if isinstance(modules, str):
        return modules
    torch, torchattacks = modules
    network = peers.network(torch, problem.config, problem.params).eval()
    attack = torchattacks.AutoAttack(network, norm=peers.TORCH_NORM[norm], eps=epsilon, seed=0)
    stages = attack._autoattack.attacks
    record: list[tuple[float, int]] = []
    for stage in stages[:3]:
        stage.steps = num_steps  # 10 by default, where the paper has 100
    stages[3].n_queries = num_queries
    for stage in stages:
        stage.forward = _timed(stage.forward, record)

    def run(x: Array, labels: Array) -> np.ndarray:
        record.clear()
        return peers.call(torch, attack, x, labels)

    def report() -> str:
        names = suite.VERSIONS["standard"][: len(record)]
        return ", ".join(
            f"{name} {seconds:.1f} s on {size}"
            for name, (seconds, size) in zip(names, record, strict=True)
        )

    name = f"torchattacks {importlib.metadata.version('torchattacks')}"
    return name, run, report


def _timed(forward: Callable[..., Any], record: list[tuple[float, int]]) -> Callable[..., Any]:
    def timed(images: Any, labels: Any, *rest: Any, **options: Any) -> Any:
        started = time.perf_counter()
        points = forward(images, labels, *rest, **options)
        record.append((time.perf_counter() - started, len(images)))
        return points

    return timed


def _note(problem: mnist.Problem, epsilon: float, ours: Staged) -> str:
    stages = ", ".join(
        f"{name} {np.median(seconds):.1f} s on {size}"
        for (name, seconds), size in zip(ours.seconds.items(), ours.survivors, strict=False)
    )
    return (
        f"ε = {epsilon:.3f}, {len(problem.labels)} images, accuracy {problem.accuracy:.1%}; "
        f"ours: {stages}, {ours.survivors[-1]} left"
    )
