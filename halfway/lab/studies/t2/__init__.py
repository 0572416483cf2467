"""T2: input-gradient alignment predicts transfer example by example."""

from halfway.lab.studies.t2.study import STUDY

__all__ = ["STUDY"]
