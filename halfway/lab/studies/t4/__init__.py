"""T4: attack directions align before accuracy starts."""

from halfway.lab.studies.t4.study import STUDY

__all__ = ["STUDY"]
