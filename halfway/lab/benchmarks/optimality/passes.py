"""What an attack costs in passes of the network, and the settings that ours and peers' share."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NORM_ORDERS = {"l0": 0, "l1": 1, "l2": 2, "linf": math.inf}
"""The norms, in the order of the tables, and what peers call them."""
NUM_SEARCHES = 9
"""Weights of the margin that are tried, where an attack searches for one."""
LARGEST_BUDGETS = {"linf": 1.0, "l2": 10.0, "l1": 100.0}
"""The budget that a bisection of budgets begins with, in units of the box."""


class Cost(NamedTuple):
    """The most passes that an attack spends on an input: `fixed + each * num_steps`.

    Attributes:
      fixed: passes outside of the steps.
      each: passes of a step. A gradient costs two, forward and backward.
    """

    fixed: int
    each: int

    def passes(self, num_steps: int) -> int:
        """Returns the most passes that so many steps spend.

        Args:
          num_steps: number of steps.
        """
        return self.fixed + self.each * num_steps

    def num_steps(self, budget: int) -> int:
        """Returns the number of steps that stay within a budget.

        Args:
          budget: the number of passes for an input.

        Raises:
          ValueError: if the budget is too small for one step.
        """
        number = (budget - self.fixed) // self.each
        if number < 1:
            raise ValueError(f"a budget of {budget} passes is below the {self.passes(1)} of a step")
        return number


class Found(NamedTuple):
    """What an attack returns on all images of a problem.

    Attributes:
      points: `[N, H, W, D]`.
      passes: forward and backward passes that were spent on an input, a mean over inputs.
      seconds: of the attack, compiled before.
      fools_peer: `[N]`, whether the peer's network, which the attack saw, misclassifies its points;
        None where that is ours.
    """

    points: np.ndarray
    passes: float
    seconds: float
    fools_peer: np.ndarray | None = None


class Attack(NamedTuple):
    """An attack on the images of a problem.

    Attributes:
      package: name and version of the package that it is from.
      name: of the attack.
      norm: "l0", "l1", "l2" or "linf", in which it looks for the nearest point.
      cost: its passes.
      run: a number of steps to what it finds.
    """

    package: str
    name: str
    norm: str
    cost: Cost
    run: Callable[[int], Found]
