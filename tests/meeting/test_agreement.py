"""Votes, their calibration, and the theorem that bounds disagreement minus error."""

import itertools

import numpy as np
import pytest

from halfway import meeting

pytestmark = pytest.mark.quick


def test_votes_are_shares_of_those_that_may():
    predictions = [[0, 1, 2], [0, 2, 2], [1, 2, 2]]
    unseen = [[True, True, False], [True, True, False], [False, True, False]]
    shares = meeting.votes(predictions, 3, unseen)
    np.testing.assert_allclose(shares[0], [1, 0, 0])
    np.testing.assert_allclose(shares[1], [0, 1 / 3, 2 / 3])
    assert np.isnan(shares[2]).all()
    np.testing.assert_allclose(meeting.votes(predictions, 3)[0], [2 / 3, 1 / 3, 0])


def test_calibration_error_by_hand():
    # q = 1 twice, once right: |1 − 2|; q = 0 twice, once right: |1 − 0|; over two examples.
    assert meeting.class_aggregated_calibration_error([[1, 0], [1, 0]], [0, 1]) == 1.0
    assert meeting.class_aggregated_calibration_error([[1, 0], [0, 1]], [0, 1]) == 0.0
    with_nan = [[1, 0], [np.nan, np.nan], [1, 0]]
    assert meeting.class_aggregated_calibration_error(with_nan, [0, 0, 1]) == 1.0


@pytest.mark.parametrize("skill", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_models", [2, 5])
def test_disagreement_minus_error_is_within_the_bound(skill, num_models):
    rng = np.random.default_rng(int(10 * skill) + num_models)
    labels = rng.integers(0, 4, 300)
    hard = rng.uniform(size=300)  # a difficulty that all models share
    guesses = rng.integers(0, 4, (num_models, 300))
    right = rng.uniform(size=(num_models, 300)) < skill * (0.3 + hard)[None]
    predictions = np.where(right, labels, guesses)
    error = (predictions != labels).mean()
    drawn_pairs = itertools.product(
        range(num_models), repeat=2
    )  # with replacement, as in the theorem
    disagreement = np.mean([(predictions[i] != predictions[j]).mean() for i, j in drawn_pairs])
    bound = meeting.class_aggregated_calibration_error(meeting.votes(predictions, 4), labels)
    assert abs(disagreement - error) <= bound + 1e-12
    assert bound < 2.0


def test_a_calibrated_vote_disagrees_as_often_as_it_errs():
    # Of ten models, k are right on examples of kind k, and a share k/10 of those are labelled so.
    predictions, labels = [], []
    for k in (2, 5, 8):
        for i in range(10):
            predictions.append([0] * k + [1] * (10 - k))
            labels.append(0 if i < k else 1)
    predictions, labels = np.array(predictions).T, np.array(labels)
    shares = meeting.votes(predictions, 2)
    assert meeting.class_aggregated_calibration_error(shares, labels) == pytest.approx(0)
    disagreement = 1 - (shares**2).sum(-1).mean()
    assert disagreement == pytest.approx((predictions != labels).mean())
