"""G2: noise costs more meeting than the wrong labels themselves."""

from halfway.lab.studies.g2.study import STUDY

__all__ = ["STUDY"]
