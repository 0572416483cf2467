"""G1: training on one half descends the other."""

from halfway.lab.studies.g1.study import STUDY

__all__ = ["STUDY"]
