"""G7: what A's training learns first of B is what B itself learns first."""

from halfway.lab.studies.g7.study import STUDY

__all__ = ["STUDY"]
