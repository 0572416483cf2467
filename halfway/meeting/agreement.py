"""How far models agree where none of them has looked; NumPy.

Two models from one law disagree as often as they err, if their vote is calibrated (Jiang et al.,
*Assessing Generalization of SGD via Disagreement*, 2022): no labels are needed to know the error.
"""

import numpy as np
from numpy.typing import ArrayLike


def votes(predictions: ArrayLike, num_classes: int, unseen: ArrayLike | None = None) -> np.ndarray:
    """Returns `[B, C]` the share of models that vote for each class, over those that may vote.

    Args:
      predictions: `[M, B]` classes.
      num_classes: C.
      unseen: `[M, B]` bool, whether a model did not train on an example; None: none did.

    Returns:
      rows that sum to 1; NaN where no model may vote.
    """
    predictions = np.asarray(predictions)
    may = np.ones(predictions.shape, bool) if unseen is None else np.asarray(unseen)
    counts = np.stack([((predictions == c) & may).sum(0) for c in range(num_classes)], -1)
    with np.errstate(invalid="ignore"):
        return counts / may.sum(0)[:, None]


def class_aggregated_calibration_error(votes: ArrayLike, labels: ArrayLike) -> float:
    """Returns the class-aggregated calibration error of a vote, in [0, C].

    `Σ_q |Σ_k P(Y = k, h_k = q) − q Σ_k P(h_k = q)|` over the values q that votes take. It bounds
    |E[disagreement] − E[error]| of two models drawn independently from the voters (the same one may
    be drawn twice).

    Args:
      votes: `[B, C]`, h_k(x) of each example and class; rows that are NaN do not enter.
      labels: `[B]`.

    Examples:
      >>> meeting.class_aggregated_calibration_error([[0.5, 0.5], [0.5, 0.5]], [0, 1])
      0.0
    """
    shares, classes = np.asarray(votes, np.float64), np.asarray(labels)
    valid = np.isfinite(shares).all(-1)
    shares, classes = shares[valid], classes[valid]
    hits = classes[:, None] == np.arange(shares.shape[1])
    values, place = np.unique(shares, return_inverse=True)
    place = place.reshape(-1)
    found = np.bincount(place, hits.reshape(-1), minlength=len(values))
    expected = values * np.bincount(place, minlength=len(values))
    return float(np.abs(found - expected).sum() / len(classes))
