"""T9: most of what two boundaries share is beyond the geometry of the data."""

from halfway.lab.studies.t9.study import STUDY

__all__ = ["STUDY"]
