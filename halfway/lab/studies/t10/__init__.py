"""T10: what lies on the data transfers, what leaves it less."""

from halfway.lab.studies.t10.study import STUDY

__all__ = ["STUDY"]
