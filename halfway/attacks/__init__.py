"""Attacks as pure functions: `attack(logits_fn, key, x, labels, *, threat, ...) -> AttackResult`.

All are exported flat. They are not jitted: the caller is, and may `vmap` over parameters, examples
and budgets.
"""

from halfway.attacks.auto_pgd import apgd
from halfway.attacks.base import AttackResult
from halfway.attacks.fast_boundary import fab
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
from halfway.attacks.minimum_norm import ddn, deepfool, fmn
from halfway.attacks.nearest import distance, minimum_budget
from halfway.attacks.penalty import carlini_wagner
from halfway.attacks.random_search import square
from halfway.attacks.suite import Outcome, auto_attack, outcome
from halfway.attacks.threat import Threat, l1, l2, linf

__all__ = [
    "AttackResult",
    "Outcome",
    "Threat",
    "apgd",
    "auto_attack",
    "bim",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "di_fgsm",
    "distance",
    "fab",
    "fgsm",
    "fmn",
    "l1",
    "l2",
    "linf",
    "mi_fgsm",
    "minimum_budget",
    "ni_fgsm",
    "outcome",
    "pgd",
    "si_fgsm",
    "square",
    "ti_fgsm",
    "vmi_fgsm",
]
