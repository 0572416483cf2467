"""D2, a description: the gradient noise scale along training."""

from halfway.lab.studies.d2.study import STUDY

__all__ = ["STUDY"]
