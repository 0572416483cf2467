"""G6: θ_A and θ_B meet in the middle after permutation matching."""

from halfway.lab.studies.g6.study import STUDY

__all__ = ["STUDY"]
