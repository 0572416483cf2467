"""D1, a description: disagreement minus error, and the calibration error that bounds it."""

from halfway.lab.studies.d1.study import STUDY

__all__ = ["STUDY"]
