"""G4: halves disagree as often as they err."""

from halfway.lab.studies.g4.study import STUDY

__all__ = ["STUDY"]
