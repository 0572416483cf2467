"""When examples are learned, by hand."""

import numpy as np

from halfway.lab.studies.g7 import measure


def test_an_example_is_learned_where_it_becomes_right_for_good():
    correct = np.array([[0, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]], bool)
    # Right from the second step on, lost and found again, always, never, lost at the end.
    assert measure.learned_at(correct, (0, 3, 9)).tolist() == [3, 9, 0, 10, 10]
    stacked = measure.learned_at(np.stack([correct, correct[:, ::-1]]), (0, 3, 9))
    assert stacked.tolist() == [[3, 9, 0, 10, 10], [10, 10, 0, 9, 3]]


def test_learning_is_looked_at_from_the_start_to_the_end_of_training():
    steps = measure.learning_steps(700)
    assert (steps[0], steps[1], steps[-1]) == (0, 1, 700)
    assert list(steps) == sorted(set(steps)) and len(steps) <= 61
