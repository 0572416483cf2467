"""A population on disk is the same whatever it holds: a small one serves the whole room."""

import pytest
from support import linear_population

from halfway import populations


@pytest.fixture(scope="session")
def population():
    """The population of `linear_population.CONDITION`, trained without a disturbance."""
    return populations.train(linear_population.CONDITION, linear_population.images())
