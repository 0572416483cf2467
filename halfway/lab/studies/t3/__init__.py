"""T3: transfer follows generalization."""

from halfway.lab.studies.t3.study import STUDY

__all__ = ["STUDY"]
