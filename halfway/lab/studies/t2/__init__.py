"""T2: alignment predicts which attacks transfer, beyond how close to the boundary an example is."""

from halfway.lab.studies.t2.study import STUDY

__all__ = ["STUDY"]
