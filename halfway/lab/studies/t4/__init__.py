"""T4: directions of attack align in the first steps, before accuracy."""

from halfway.lab.studies.t4.study import STUDY

__all__ = ["STUDY"]
