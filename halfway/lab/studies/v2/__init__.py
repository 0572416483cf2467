"""V2, a verification: the second law, how k surrogates align with a further model."""

from halfway.lab.studies.v2.study import STUDY

__all__ = ["STUDY"]
