"""G7: of the order of learning, most is common to both halves."""

from halfway.lab.studies.g7.study import STUDY

__all__ = ["STUDY"]
