"""G5: halves meet class by class."""

from halfway.lab.studies.g5.study import STUDY

__all__ = ["STUDY"]
