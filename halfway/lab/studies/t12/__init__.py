"""T12: size of gradients, alignment and variability each say something of transfer."""

from halfway.lab.studies.t12.study import STUDY

__all__ = ["STUDY"]
