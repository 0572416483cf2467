"""T11: transfer crosses architectures."""

from halfway.lab.studies.t11.study import STUDY

__all__ = ["STUDY"]
