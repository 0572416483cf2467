"""T1: an attack on one model moves the other more than noise does."""

from halfway.lab.studies.t1.study import ATTACK, COMPARED, STUDY, Points

__all__ = ["ATTACK", "COMPARED", "STUDY", "Points"]
