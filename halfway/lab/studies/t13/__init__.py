"""T13: the tangent kernel says before training how far two networks will agree."""

from halfway.lab.studies.t13.study import STUDY

__all__ = ["STUDY"]
