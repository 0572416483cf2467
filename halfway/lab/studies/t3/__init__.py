"""T3, the law of transfer: how far outputs agree says how far attacks move."""

from halfway.lab.studies.t3.study import STUDY

__all__ = ["STUDY"]
