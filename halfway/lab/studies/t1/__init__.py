"""T1: an attack on one model moves the other through what both have learned."""

from halfway.lab.studies.t1.study import ATTACK, COMPARED, STUDY, Points, mean_increase

__all__ = ["ATTACK", "COMPARED", "STUDY", "Points", "mean_increase"]
