"""G3: coherence measured early, inside A alone, predicts the gap better than its rivals."""

from halfway.lab.studies.g3.study import STUDY

__all__ = ["STUDY"]
