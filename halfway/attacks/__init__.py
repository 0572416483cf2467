"""Attacks as pure functions: `attack(logits_fn, key, x, labels, *, threat, ...) -> AttackResult`.

All are exported flat. They are not jitted: the caller is, and may `vmap` over parameters, examples
and budgets.
"""

from halfway.attacks.base import AttackResult
from halfway.attacks.gradient import fgsm, pgd
from halfway.attacks.threat import Threat, linf

__all__ = ["AttackResult", "Threat", "fgsm", "linf", "pgd"]
