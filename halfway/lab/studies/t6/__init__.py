"""T6: perturbations are features."""

from halfway.lab.studies.t6.study import STUDY

__all__ = ["STUDY"]
