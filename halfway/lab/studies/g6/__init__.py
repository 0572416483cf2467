"""G6: most of what separates θ_A and θ_B is the naming of units."""

from halfway.lab.studies.g6.study import STUDY

__all__ = ["STUDY"]
