"""T5: shared data is not needed."""

from halfway.lab.studies.t5.study import STUDY

__all__ = ["STUDY"]
