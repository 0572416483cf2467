"""G8: at equal numbers of steps, more passes memorize more."""

from halfway.lab.studies.g8.study import STUDY

__all__ = ["STUDY"]
