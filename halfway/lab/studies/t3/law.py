"""The law of transfer over the grid: what is predicted from what, and how far it errs.

    logit M_x = logit M_x(base) + Σ_k β_k (g_k − g_k(base))

g is the logit of μ_f for the law; for each rival one or two functions of its own measure. Slopes
come from the lock.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from halfway import stats
from halfway.lab.measurements import grid, learning, transfer
from halfway.lab.measurements.grid import AGREEMENT, NO_CHANGE, SPACES, TERMS, Grid
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.study.records import Measured, Records
from halfway.populations import Condition

LAW = "μ_f"
ACCURACY, MEETING, GAP, PREDICTIONS, DESIGN = (
    "accuracy",
    "M_θ",
    "gap",
    "equal predictions",
    "ρ and n alone",
)
RIVALS = (ACCURACY, MEETING, GAP, PREDICTIONS, DESIGN)
"""What else could predict transfer; "no change" beside them needs no slope."""
CKA, COSINE, JACOBIANS, GRADIENTS, NOISE_IMAGES = (
    "CKA of logits",
    "cosine of logits",
    "μ_J",
    "μ_x",
    "μ_f on noise images",
)
BESIDE = (CKA, COSINE, JACOBIANS, GRADIENTS, NOISE_IMAGES)
"""Measures that are shown and do not decide: others of agreement, and μ_x, which is nearly M_x."""
TABLE = "table"
"""The table of what each intervention did to logit M_x on digits."""
TRANSFORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "logit": grid.clipped_logit,
    "identity": lambda value: value,
}


class Line(NamedTuple):
    """A fitted predictor: the transform of its measure, and its slopes."""

    transform: str
    slopes: tuple[float, ...]


UNMOVED = Line("identity", ())
"""The line of "no change"."""


class Measures(NamedTuple):
    """What is read of the base, first, and of N interventions, as sums of each pair.

    Attributes:
      plan: the grid.
      transfer: terms of M_x, `[1 + N, P]` each.
      predictors: terms of each measure, `[1 + N, P]` each, by name.
      design: logit(.01 + .98(1 − ρ)) and log n, `[2, 1 + N]`.
      valid: `[P]` bool, the pairs all of whose terms are finite.
    """

    plan: Grid
    transfer: RatioTerms
    predictors: Mapping[str, RatioTerms]
    design: np.ndarray
    valid: np.ndarray

    @property
    def num_pairs(self) -> int:
        """The number of pairs of every condition."""
        return self.valid.size


def read(records: Records) -> Measures:
    """Returns what the law and its rivals are made of.

    Accuracy, equal predictions and all of function space are of S with clean labels; M_θ and the
    gap in error are those of P2 and D1 with S, as labelled, in the place of B.

    Args:
      records: of a run that measured the grid.
    """
    plan = grid.design(records.config)
    conditions = plan.conditions
    attacked = [transfer.coefficient_terms(records.get(TRANSFER, c)) for c in conditions]
    agreed = [records.get(AGREEMENT, condition) for condition in conditions]
    learned = [records.get(LEARNING, condition) for condition in conditions]
    means: dict[str, list[np.ndarray]] = {
        ACCURACY: [measured.read("accuracy", "pair", "model").mean(-1) for measured in agreed],
        GAP: [_gap(measured) for measured in learned],
        PREDICTIONS: [measured.read("agreement") for measured in agreed],
        CKA: [measured.read("cka") for measured in agreed],
        COSINE: [measured.read("cosine") for measured in agreed],
    }
    terms: dict[str, list[RatioTerms]] = {MEETING: [_meeting(measured) for measured in learned]}
    spaces = dict(zip((LAW, JACOBIANS, NOISE_IMAGES, GRADIENTS), SPACES, strict=True))
    for name, space in spaces.items():
        terms[name] = [_function_terms(measured, space) for measured in agreed]
    predictors = {name: _stacked(values) for name, values in terms.items()}
    for name, values in means.items():
        numerators = np.array(values)
        predictors[name] = RatioTerms(numerators, np.ones_like(numerators))
    increases = _stacked(attacked)
    valid = stats.valid_pairs(*increases, *(v for pair in predictors.values() for v in pair))
    return Measures(plan, increases, predictors, _design(conditions), valid)


def _stacked(terms: Sequence[RatioTerms]) -> RatioTerms:
    return RatioTerms(*map(np.array, zip(*terms, strict=True)))


def _function_terms(measured: Measured, space: str) -> RatioTerms:
    """Returns numerators and denominators of a coefficient of both directions (D3)."""
    product, followed, other = (
        measured.read("terms", "pair", space=space, term=term) for term in TERMS
    )
    return RatioTerms(2 * product, followed + other)


def _meeting(learned: Measured) -> RatioTerms:
    """Returns the terms of M_θ in error with S in the place of B."""
    return RatioTerms(
        *(learning.progress(learned, "error", sample) for sample in ("holdout", "own"))
    )


def _gap(learned: Measured) -> np.ndarray:
    """Returns `[P]` the gap in error on S at the end, mean of both models."""
    unseen, own_error = (
        learned.read("error", "pair", "model", "step", sample=sample)[..., -1]
        for sample in ("holdout", "own")
    )
    return (unseen - own_error).mean(-1)


def _design(conditions: Sequence[Condition]) -> np.ndarray:
    """Returns what is known of conditions before anything is measured, `[2, 1 + N]`."""
    clean = np.array([1 - condition.noise_rate for condition in conditions])
    sizes = np.array([condition.num_examples for condition in conditions], float)
    return np.array([special.logit(0.01 + 0.98 * clean), np.log(sizes)])


def regressors(measures: Measures, name: str, transform: str, weights: np.ndarray) -> np.ndarray:
    """Returns `[R, N, K]` what a predictor's slopes multiply: differences from the base.

    Args:
      measures: of a run.
      name: of a predictor.
      transform: of `TRANSFORMS`.
      weights: `[R, P]` of pairs.
    """
    if name == DESIGN:
        values = np.repeat(measures.design.T[None], len(weights), 0)
    else:
        ratio = stats.weighted_ratio(weights, *measures.predictors[name])
        values = TRANSFORMS[transform](ratio)[..., None]
    return values[:, 1:] - values[:, :1]


def observed(measures: Measures, weights: np.ndarray) -> np.ndarray:
    """Returns `[R, 1 + N]` M_x of the base and of every intervention.

    Args:
      measures: of a run.
      weights: `[R, P]` of pairs.
    """
    return stats.weighted_ratio(weights, *measures.transfer)


def predicted(measures: Measures, name: str, line: Line, weights: np.ndarray) -> np.ndarray:
    """Returns `[R, N]` M_x of every intervention as a line predicts it from the base.

    Args:
      measures: of a run.
      name: of a predictor; "no change" predicts the base, and the table adds its slopes.
      line: its transform and slopes.
      weights: `[R, P]` of pairs.
    """
    anchor = TRANSFORMS["logit"](observed(measures, weights)[:, :1])
    if name == NO_CHANGE:
        moved = np.zeros((1, len(measures.plan.interventions)))
    elif name == TABLE:
        moved = np.array(line.slopes)[None]
    else:
        moved = regressors(measures, name, line.transform, weights) @ np.array(line.slopes)
    return special.expit(anchor + moved)


def errors(measures: Measures, name: str, line: Line, weights: np.ndarray) -> np.ndarray:
    """Returns `[R, N]` how far each prediction of M_x is off, without sign.

    Args:
      measures: of a run.
      name: of a predictor.
      line: its transform and slopes.
      weights: `[R, P]` of pairs.
    """
    truth = observed(measures, weights)[:, 1:]
    return np.abs(truth - predicted(measures, name, line, weights))


def mean_error(
    measures: Measures, name: str, line: Line, mask: np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function of weights `[R, P]` to the mean error `[R]` over interventions.

    Args:
      measures: of a run.
      name: of a predictor.
      line: its transform and slopes.
      mask: `[N]` bool, interventions that count; all by default.
    """
    chosen = slice(None) if mask is None else mask
    return lambda weights: errors(measures, name, line, weights)[:, chosen].mean(-1)


def fit(measures: Measures) -> dict[str, Line]:
    """Returns the lines of all predictors, by least squares from the base; see the lock.

    The law's transform is the logit; of a rival it is the one of smaller mean error in M_x.

    Args:
      measures: of digits, with the shipped seed and number of pairs.
    """
    weights = measures.valid.astype(float)[None]
    moved = TRANSFORMS["logit"](observed(measures, weights))[0]
    moved = moved[1:] - moved[0]
    lines = {}
    for name in (LAW, *RIVALS, *BESIDE):
        candidates = []
        for transform in ("logit",) if name in (LAW, DESIGN) else TRANSFORMS:
            x = regressors(measures, name, transform, weights)[0]
            slopes = np.round(stats.anchored_slopes(x, moved), 2 if name == LAW else 4)
            line = Line(transform, tuple(map(float, slopes)))
            candidates.append((errors(measures, name, line, weights).mean(), line))
        lines[name] = min(candidates, key=lambda candidate: candidate[0])[1]
    lines[TABLE] = Line("logit", tuple(map(float, np.round(moved, 4))))
    return lines
