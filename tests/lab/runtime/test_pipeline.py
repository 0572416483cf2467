"""What a run's page is told of its data set."""

import pytest
from support import tiny_run

from halfway.lab.runtime import pipeline


@pytest.mark.quick
@pytest.mark.parametrize(
    ("num_examples", "subset", "given"),
    [(600, "all", 1797), (600, "train", 1437), (89, "all", None), (90, "all", 1797)],
)
def test_a_small_pool_is_named_as_what_is_given(num_examples, subset, given):
    config = tiny_run.digits(num_examples=num_examples, num_holdout=100, subset=subset)
    assert pipeline._given({"train": 1437, "test": 360}, config) == given
    # Runs of before noted the sizes as a text.
    assert pipeline._given("1437 train, 360 test", config) is None
