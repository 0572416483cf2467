"""G8: with fresh data nothing is memorized; reuse makes κ."""

from halfway.lab.studies.g8.study import STUDY

__all__ = ["STUDY"]
