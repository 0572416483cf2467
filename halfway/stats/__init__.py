"""Intervals and tests over pairs, rank correlations, means over surrogates and targets; NumPy."""

from halfway.stats.crossed import Crossed, Side, crossed_mean, crossed_ratio, crossed_test
from halfway.stats.inference import (
    Alternative,
    Concordance,
    Decision,
    Estimate,
    Linearized,
    SlopeSums,
    auc,
    fieller,
    holm,
    linearized,
    mean_equivalence,
    mean_test,
    ratio_difference,
    ratio_equivalence,
    ratio_test,
    slope,
)
from halfway.stats.ranks import RankCorrelation, kendall, spearman

__all__ = [
    "Alternative",
    "Concordance",
    "Crossed",
    "Decision",
    "Estimate",
    "Linearized",
    "RankCorrelation",
    "Side",
    "SlopeSums",
    "auc",
    "crossed_mean",
    "crossed_ratio",
    "crossed_test",
    "fieller",
    "holm",
    "kendall",
    "linearized",
    "mean_equivalence",
    "mean_test",
    "ratio_difference",
    "ratio_equivalence",
    "ratio_test",
    "slope",
    "spearman",
]
