"""Attacks as pure functions: `attack(logits_fn, key, x, labels, *, threat, ...) -> AttackResult`.

All are exported flat, with what they are composed of: `objective`, gradient estimators
(`exact_gradient` and what wraps it), update rules (`steps`, `momentum`) and the loop, `ascend`.
They are not jitted: the caller is, and may `vmap` over parameters, examples and budgets.
"""

from halfway.attacks.auto_pgd import apgd
from halfway.attacks.base import (
    AttackResult,
    Estimator,
    GradientEstimate,
    Objective,
    ascend,
    exact_gradient,
    objective,
    steps,
)
from halfway.attacks.diagnostics import Diagnosis, diagnose, in_words
from halfway.attacks.ensembles import Ensemble, collect_weights, ensemble, leave_one_out
from halfway.attacks.estimators import (
    diverse_inputs,
    look_ahead,
    momentum,
    scaled_copies,
    smoothed,
    variance_tuned,
)
from halfway.attacks.gradient import (
    bim,
    di_fgsm,
    fgsm,
    mi_fgsm,
    ni_fgsm,
    pgd,
    si_fgsm,
    ti_fgsm,
    vmi_fgsm,
)
from halfway.attacks.minimum_norm.decision_based import boundary, hop_skip_jump
from halfway.attacks.minimum_norm.fast_boundary import fab
from halfway.attacks.minimum_norm.gradient_based import ddn, deepfool, fmn
from halfway.attacks.minimum_norm.nearest import distance, minimum_budget
from halfway.attacks.minimum_norm.penalty import carlini_wagner
from halfway.attacks.minimum_norm.sigma_zero import sigma_zero
from halfway.attacks.random_search import square
from halfway.attacks.sparse_random_search import sparse_rs
from halfway.attacks.suite import Outcome, auto_attack, outcome
from halfway.attacks.threat import Threat, l1, l2, linf
from halfway.attacks.universal_perturbation import UniversalResult, universal
from halfway.attacks.variance_reduction import svre

__all__ = [
    "AttackResult",
    "Diagnosis",
    "Ensemble",
    "Estimator",
    "GradientEstimate",
    "Objective",
    "Outcome",
    "Threat",
    "UniversalResult",
    "apgd",
    "ascend",
    "auto_attack",
    "bim",
    "boundary",
    "carlini_wagner",
    "collect_weights",
    "ddn",
    "deepfool",
    "di_fgsm",
    "diagnose",
    "distance",
    "diverse_inputs",
    "ensemble",
    "exact_gradient",
    "fab",
    "fgsm",
    "fmn",
    "hop_skip_jump",
    "in_words",
    "l1",
    "l2",
    "leave_one_out",
    "linf",
    "look_ahead",
    "mi_fgsm",
    "minimum_budget",
    "momentum",
    "ni_fgsm",
    "objective",
    "outcome",
    "pgd",
    "scaled_copies",
    "si_fgsm",
    "sigma_zero",
    "smoothed",
    "sparse_rs",
    "square",
    "steps",
    "svre",
    "ti_fgsm",
    "universal",
    "variance_tuned",
    "vmi_fgsm",
]
