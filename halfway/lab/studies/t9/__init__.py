"""T9: boundaries meet, about halfway."""

from halfway.lab.studies.t9.study import STUDY

__all__ = ["STUDY"]
