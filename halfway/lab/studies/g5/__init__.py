"""G5: who meets whom predicts who is confused with whom."""

from halfway.lab.studies.g5.study import STUDY

__all__ = ["STUDY"]
