"""V3, a verification: on fresh batches nothing is memorized, κ is 0."""

from halfway.lab.studies.v3.study import STUDY

__all__ = ["STUDY"]
