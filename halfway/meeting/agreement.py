"""How far models agree on examples that none of them trained on; NumPy.

Two models drawn from one law disagree as often as they err, if their vote is calibrated (Jiang et
al., *Assessing Generalization of SGD via Disagreement*, 2022). Then the error is known without
labels.
"""

import numpy as np
from numpy.typing import ArrayLike


def votes(predictions: ArrayLike, num_classes: int, unseen: ArrayLike | None = None) -> np.ndarray:
    """Returns the share of models `[B, C]` that vote for each class, among those that may vote.

    Args:
      predictions: `[M, B]` predicted classes.
      num_classes: C, the number of classes.
      unseen: `[M, B]` bool, whether a model may vote because it did not train on the example; None:
        all may vote.

    Returns:
      `[B, C]` of rows that sum to 1; NaN where no model may vote.
    """
    predictions = np.asarray(predictions)
    may_vote = np.ones(predictions.shape, bool) if unseen is None else np.asarray(unseen)
    counts = np.stack([((predictions == c) & may_vote).sum(0) for c in range(num_classes)], -1)
    with np.errstate(invalid="ignore"):
        return counts / may_vote.sum(0)[:, None]


def class_aggregated_calibration_error(votes: ArrayLike, labels: ArrayLike) -> float:
    """Returns the class-aggregated calibration error of a vote, in [0, C].

    `Σ_q |Σ_k P(Y = k, h_k = q) − q Σ_k P(h_k = q)|` over the values q that votes take. It bounds
    |E[disagreement] − E[error]| of two models drawn independently from the voters, with
    replacement.

    Args:
      votes: `[B, C]`, the shares h_k(x) of each example and class; rows that are NaN do not enter.
      labels: `[B]` integers in [0, C).

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
    num_hits = np.bincount(place, hits.reshape(-1), minlength=len(values))
    num_expected = values * np.bincount(place, minlength=len(values))
    return float(np.abs(num_hits - num_expected).sum() / len(classes))
