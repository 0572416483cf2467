"""What is measured of learning beyond its landscapes, by hand."""

import dataclasses

import numpy as np

from configs import digits
from experiments import observations
from experiments.conditions import condition


def test_an_example_is_learned_where_it_becomes_right_for_good():
    correct = np.array(
        [[0, 1, 1, 0, 1],
         [1, 0, 1, 0, 1],
         [1, 1, 1, 0, 0]], bool
    )  # fmt: skip
    # Right from the second step on, lost and found again, always, never, lost at the end.
    assert observations.learned_at(correct, (0, 3, 9)).tolist() == [3, 9, 0, 10, 10]
    stacked = observations.learned_at(np.stack([correct, correct[:, ::-1]]), (0, 3, 9))
    assert stacked.tolist() == [[3, 9, 0, 10, 10], [10, 10, 0, 9, 3]]


def test_learning_is_looked_at_from_the_start_to_the_end_of_training():
    steps = observations.learning_steps(700)
    assert (steps[0], steps[1], steps[-1]) == (0, 1, 700)
    assert list(steps) == sorted(set(steps)) and len(steps) <= 61


def test_passes_are_steps_over_the_half_and_end_with_training():
    one = dataclasses.replace(condition(digits.get_config(), "mlp"), probe_steps=(0, 200))
    assert one.num_examples == 600 and one.batch_size == 64
    assert observations.pass_steps(one) == (9, 19, 38, 75, 150, 200)
