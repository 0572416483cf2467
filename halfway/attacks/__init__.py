"""Attacks as pure functions: `attack(logits_fn, key, x, labels, *, threat, ...) -> AttackResult`.

All are exported flat, with what they are composed of: `objective`, gradient estimators
(`exact_gradient` and what wraps it), update rules (`steps`, `momentum`) and the loop, `ascend`.
They are not jitted: the caller is, and may `vmap` over parameters, examples and budgets.
"""

from halfway.attacks.auto.auto_pgd import apgd
from halfway.attacks.auto.staged import Progress, auto_attack_steps
from halfway.attacks.auto.suite import Outcome, StagedResult, auto_attack, outcome
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
from halfway.attacks.defended import bpda, eot, straight_through
from halfway.attacks.diagnostics import Diagnosis, diagnose, in_words
from halfway.attacks.ensembles import Ensemble, collect_weights, ensemble, leave_one_out
from halfway.attacks.estimators import (
    admixed,
    diverse_inputs,
    flat_maxima,
    look_ahead,
    momentum,
    scaled_copies,
    shuffled_blocks,
    smoothed,
    transformed,
    variance_tuned,
    varied_spectra,
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
from halfway.attacks.minimum_norm.sparse_tabu import sparse_tabu
from halfway.attacks.random_search import square
from halfway.attacks.rotation import rotate_and_shift, spatial
from halfway.attacks.sparse_random_search import sparse_rs
from halfway.attacks.threat import Threat, l1, l2, linf, patch
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
    "Progress",
    "StagedResult",
    "Threat",
    "UniversalResult",
    "admixed",
    "apgd",
    "ascend",
    "auto_attack",
    "auto_attack_steps",
    "bim",
    "boundary",
    "bpda",
    "carlini_wagner",
    "collect_weights",
    "ddn",
    "deepfool",
    "di_fgsm",
    "diagnose",
    "distance",
    "diverse_inputs",
    "ensemble",
    "eot",
    "exact_gradient",
    "fab",
    "fgsm",
    "flat_maxima",
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
    "patch",
    "pgd",
    "rotate_and_shift",
    "scaled_copies",
    "shuffled_blocks",
    "si_fgsm",
    "sigma_zero",
    "smoothed",
    "sparse_rs",
    "sparse_tabu",
    "spatial",
    "square",
    "steps",
    "straight_through",
    "svre",
    "ti_fgsm",
    "transformed",
    "universal",
    "variance_tuned",
    "varied_spectra",
    "vmi_fgsm",
]
