"""Our attacks that look for the nearest adversarial point, with the passes that each spends."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import halfway
from halfway import attacks
from halfway.attacks import AttackResult
from halfway.lab.benchmarks import mnist
from halfway.lab.benchmarks.optimality.passes import (
    LARGEST_BUDGETS,
    NUM_SEARCHES,
    Attack,
    Cost,
    Found,
)

NUM_HALVINGS = 15


class Composed(NamedTuple):
    """An attack of ours with its passes.

    Attributes:
      name: of the attack.
      norm: "l0", "l1", "l2" or "linf".
      cost: its passes, which do not depend on what it meets.
      attack: `(logits_fn, key, x, labels, *, num_steps) -> AttackResult`.
    """

    name: str
    norm: str
    cost: Cost
    attack: Callable[..., AttackResult]


def composed(num_classes: int) -> list[Composed]:
    """Returns our attacks.

    Args:
      num_classes: C, since some differentiate all logits.
    """
    # To linearize at a point, and to look where the step ends.
    boundaries = 1 + num_classes + 1
    runs = NUM_HALVINGS + 1
    members = [
        Composed(
            "deepfool",
            norm,
            Cost(3, boundaries),
            functools.partial(attacks.deepfool, norm=norm),
        )
        for norm in ("linf", "l2")
    ]
    members.append(Composed("ddn", "l2", Cost(2, 2), attacks.ddn))
    for norm in LARGEST_BUDGETS:
        fmn, fab = (functools.partial(fn, norm=norm) for fn in (attacks.fmn, attacks.fab))
        members += [
            Composed("fmn", norm, Cost(3, 2), fmn),
            Composed("fab", norm, Cost(7, boundaries), fab),
            Composed("apgd, bisection", norm, Cost(2 * runs, 2 * runs), _bisection(norm)),
        ]
    members.append(
        Composed(
            "carlini_wagner",
            "l2",
            Cost(3 + num_classes + NUM_SEARCHES, 2 * NUM_SEARCHES),
            functools.partial(attacks.carlini_wagner, num_searches=NUM_SEARCHES),
        )
    )
    for name in ("sigma_zero", "sparse_tabu"):
        members.append(Composed(name, "l0", Cost(2, 2), getattr(attacks, name)))
    return members


def _bisection(norm: str) -> Callable[..., AttackResult]:
    return functools.partial(
        attacks.minimum_budget,
        attacks.apgd,
        threat_fn=getattr(attacks, norm),
        largest=LARGEST_BUDGETS[norm],
        num_halvings=NUM_HALVINGS,
    )


def attacks_on(problem: mnist.Problem) -> list[Attack]:
    """Returns our attacks on the images of a problem.

    Args:
      problem: the network and its images.
    """
    num_classes = problem.logits_fn(problem.images[:1]).shape[1]
    return [
        Attack(
            f"halfway {halfway.__version__}",
            each.name,
            each.norm,
            each.cost,
            functools.partial(_run, problem, each),
        )
        for each in composed(num_classes)
    ]


def _run(problem: mnist.Problem, each: Composed, num_steps: int) -> Found:
    def attack(key: Any, x: Any, labels: Any) -> AttackResult:
        return each.attack(problem.logits_fn, key, x, labels, num_steps=num_steps)

    program = mnist.in_chunks(problem, attack)
    started = time.perf_counter()
    points = np.asarray(program())
    return Found(points, each.cost.passes(num_steps), time.perf_counter() - started)
