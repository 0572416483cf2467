"""V1, a verification: the identities and laws of the framework hold in this code."""

from halfway.lab.studies.v1.study import STUDY

__all__ = ["STUDY"]
