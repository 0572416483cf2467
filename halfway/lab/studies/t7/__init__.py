"""T7: more surrogates meet the target better, by the second law."""

from halfway.lab.studies.t7.study import STUDY

__all__ = ["STUDY"]
