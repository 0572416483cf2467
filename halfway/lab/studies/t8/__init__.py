"""T8: models share an adversarial subspace."""

from halfway.lab.studies.t8.study import STUDY

__all__ = ["STUDY"]
