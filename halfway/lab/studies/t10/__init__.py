"""T10: the on- and off-manifold parts of a perturbation transfer differently."""

from halfway.lab.studies.t10.study import STUDY

__all__ = ["STUDY"]
