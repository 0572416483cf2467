"""G2: most of what label noise costs beyond the wrong labels is memorization."""

from halfway.lab.studies.g2.study import FITTED, STUDY

__all__ = ["FITTED", "STUDY"]
