"""T7: what an ensemble gains is what the second law says it gains."""

from halfway.lab.studies.t7.study import STUDY

__all__ = ["STUDY"]
