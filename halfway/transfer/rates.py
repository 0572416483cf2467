"""Rates of a transfer matrix, each with its denominator, and the kinds of mistakes."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp

from halfway.transfer.matrix import TransferMatrix
from halfway.types import Array

Denominator = Literal["all", "target_correct", "both_correct"]
DENOMINATORS: tuple[Denominator, ...] = ("all", "target_correct", "both_correct")


class Rate(NamedTuple):
    """A success rate as counts `[K, M]`: `num_fooled` of `num_examples`."""

    num_fooled: Array
    num_examples: Array


class Outcomes(NamedTuple):
    """A success rate example by example, `[K, M, B]` bool; `fooled` only where `counted`."""

    fooled: Array
    counted: Array


class Mistakes(NamedTuple):
    """How many examples of a denominator end in which way, as counts `[K, M]`.

    Attributes:
      unfooled: the target classifies the point correctly.
      same: the target takes it for the wrong class that the surrogate takes it for.
      different: the target is wrong and the surrogate is right, or wrong in another way.
    """

    unfooled: Array
    same: Array
    different: Array


def increase(matrix: TransferMatrix, points: str = "attack") -> Array:
    """Returns `[K, M, B]` increases of the targets' attack loss from clean points to others.

    Args:
      matrix: outcomes of surrogates and targets.
      points: "attack", "noise" or "other_example".
    """
    return matrix.target[points].loss - matrix.target["clean"].loss[None]


def own_increase(matrix: TransferMatrix) -> Array:
    """Returns `[K, B]` increases of the surrogates' own attack loss under their attack.

    Args:
      matrix: outcomes of surrogates and targets.
    """
    return matrix.surrogate["attack"].loss - matrix.surrogate["clean"].loss


def coefficient(matrix: TransferMatrix, points: str = "attack") -> Array:
    """Returns M_x `[K, M]`, the target's increase over the surrogate's, each summed over examples.

    It is definition 1 in input space: F and G are minus the attack losses, the walk is the attack.
    At the points of a control it is the baseline of M_x, over the same denominator.

    Args:
      matrix: outcomes of surrogates and targets.
      points: the points at which the targets are evaluated: "attack", "noise" or "other_example".

    Examples:
      >>> def evaluation(loss):
      ...     wrong = jnp.array(loss) > 0
      ...     return transfer.Evaluation(jnp.array(loss), ~wrong, wrong.astype(jnp.int16))
      >>> matrix = transfer.TransferMatrix(  # one surrogate, two targets, two examples
      ...     surrogate={"clean": evaluation([[-1.0, -3.0]]), "attack": evaluation([[1.0, 1.0]])},
      ...     target={"clean": evaluation([[-1.0, -2.0], [-1.0, -1.0]]),
      ...             "attack": evaluation([[[1.0, -1.0], [-1.0, -1.0]]])},
      ...     matched={}, norm=jnp.ones((1, 2)))
      >>> print(transfer.coefficient(matrix))
      [[0.5 0. ]]
      >>> print(transfer.success(matrix, "target_correct").num_fooled)
      [[1 0]]
      >>> print(transfer.mistakes(matrix, "target_correct").same)
      [[1 0]]
    """
    return increase(matrix, points).sum(-1) / own_increase(matrix).sum(-1)[:, None]


def counted(matrix: TransferMatrix, denominator: Denominator) -> Array:
    """Returns `[K, M, B]` bool, whether a denominator counts an example.

    Args:
      matrix: outcomes of surrogates and targets.
      denominator: "all" examples, "target_correct": those that the target classifies correctly when
        clean, or "both_correct": those that the surrogate classifies correctly too.

    Raises:
      ValueError: if the denominator is none of `DENOMINATORS`.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {DENOMINATORS}, got {denominator!r}")
    clean = matrix.target["clean"].correct[None]
    both = clean & matrix.surrogate["clean"].correct[:, None]
    chosen = {"all": jnp.ones_like(both), "target_correct": clean, "both_correct": both}
    return jnp.broadcast_to(chosen[denominator], both.shape)


def outcomes(matrix: TransferMatrix, denominator: Denominator, points: str = "attack") -> Outcomes:
    """Returns which examples are counted, and which of these a target misclassifies.

    Args:
      matrix: outcomes of surrogates and targets.
      denominator: "all" examples, "target_correct": those that the target classifies correctly when
        clean, or "both_correct": those that the surrogate classifies correctly too.
      points: "clean", "attack", "noise" or "other_example".

    Raises:
      ValueError: if the denominator is none of `DENOMINATORS`.
    """
    eligible = counted(matrix, denominator)
    correct = matrix.target[points].correct
    wrong = ~(correct[None] if points == "clean" else correct)
    return Outcomes(eligible & wrong, eligible)


def success(matrix: TransferMatrix, denominator: Denominator, points: str = "attack") -> Rate:
    """Returns how many examples a target misclassifies, among those that the denominator counts.

    Args:
      matrix: outcomes of surrogates and targets.
      denominator: "all" examples, "target_correct": those that the target classifies correctly when
        clean, or "both_correct": those that the surrogate classifies correctly too.
      points: "clean", "attack", "noise" or "other_example".

    Raises:
      ValueError: if the denominator is none of `DENOMINATORS`.
    """
    masks = outcomes(matrix, denominator, points)
    return Rate(masks.fooled.sum(-1), masks.counted.sum(-1))


def mistakes(matrix: TransferMatrix, denominator: Denominator, points: str = "attack") -> Mistakes:
    """Returns how many examples do not fool a target, and how many it mistakes like the surrogate.

    The three counts sum to `num_examples` of `success`.

    Args:
      matrix: outcomes of surrogates and targets.
      denominator: "all" examples, "target_correct": those that the target classifies correctly when
        clean, or "both_correct": those that the surrogate classifies correctly too.
      points: "clean", "attack", "noise" or "other_example"; both models see the same points.

    Raises:
      ValueError: if the denominator is none of `DENOMINATORS`.

    Source: Waseda et al., arXiv 2112.14337.
    """
    masks = outcomes(matrix, denominator, points)
    predicted = matrix.target[points].predicted
    predicted = predicted[None] if points == "clean" else predicted
    alike = masks.fooled & (predicted == matrix.surrogate[points].predicted[:, None])
    fooled, same = masks.fooled.sum(-1), alike.sum(-1)
    return Mistakes(masks.counted.sum(-1) - fooled, same, fooled - same)


def clean_error(matrix: TransferMatrix) -> Array:
    """Returns the error rate `[M]` of the targets on clean examples, to report beside every rate.

    Args:
      matrix: outcomes of surrogates and targets.
    """
    return 1.0 - matrix.target["clean"].correct.mean(-1)


def summarize(matrix: TransferMatrix, points: str = "attack") -> Mapping[str, Array]:
    """Returns the sums that a table of transfer needs, `[K, M]` each.

    Args:
      matrix: outcomes of surrogates and targets.
      points: "attack", "noise", "other_example" or "clean".

    Returns:
      `increase`, that of the target's attack loss summed over examples (not for "clean"), and for
      each denominator `num_fooled.NAME` and `num_examples.NAME`.
    """
    sums = {"increase": increase(matrix, points).sum(-1)} if points != "clean" else {}
    for name in DENOMINATORS:
        rate = success(matrix, name, points)
        sums |= {f"num_fooled.{name}": rate.num_fooled, f"num_examples.{name}": rate.num_examples}
    return sums
