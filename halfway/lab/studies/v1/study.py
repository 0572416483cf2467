"""V1, a verification: the identities and laws of the framework (P1 to P10) hold in this code."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import laws
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.v1 import figures as drawing
from halfway.lab.studies.v1.linear_gaussian import HALF_SIZES, LINEAR_GAUSSIAN, TARGETS, TIME
from halfway.lab.studies.v1.measure import (
    BLOCK_SIZES,
    CLASSES,
    IDENTITIES,
    KERNEL_SETTINGS,
    MIDPOINT,
    PATH,
    ROUGHNESS,
    SPACES,
    SPLIT_MEAN,
    SPLIT_VARIANCE,
)
from halfway.lab.study import conditions, rules, text, wording
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, PartResult, Verdict
from halfway.populations import Condition
from halfway.stats import Decision

TEXT = text.load(__file__, "verification")
ROUNDING_MARGIN = 1e-3
"""Of P1, P5, P6, P8 and P9, which are exact. In float32 a number is known to 10⁻⁷ of its size, and
sums and differences of some thousand terms to 10⁻⁵ or 10⁻⁴; a wrong factor is off by far more."""
SPLIT_MARGIN = 0.05
"""Of P2, which is exact over all splits: of those that are drawn the variance is known to 1 % and
the mean to 1 % of a standard deviation. A variance without its 4 would be off by .75, one of N
instead of N − 1 is not told apart."""


class Identity(NamedTuple):
    """An identity as it is shown: its part, what its residual is, and how far it may be off."""

    part: str
    statistic: str
    margin: float


IDENTITY_PARTS = {
    PATH: Identity("P1 path", "|Σ descents − drop| over Σ |descents|", ROUNDING_MARGIN),
    SPLIT_VARIANCE: Identity(
        "P2 variance", "variance of L_A − L_B over 4 s²/N, minus 1", SPLIT_MARGIN
    ),
    SPLIT_MEAN: Identity("P2 mean", "mean of L_A − L_B over its standard deviation", SPLIT_MARGIN),
    CLASSES: Identity(
        "P6 classes",
        "|sum of the meeting matrix − ⟨∇L_A, ∇L_B⟩| over ‖∇L_A‖ ‖∇L_B‖",
        ROUNDING_MARGIN,
    ),
    MIDPOINT: Identity("P8 midpoint", "|L(midpoint) − P8| over its terms", ROUNDING_MARGIN),
    ROUGHNESS: Identity(
        "P9 roughness", "|odds(μ_J) − odds(μ_f) Ω_s/Ω_v| over odds(μ_J)", ROUNDING_MARGIN
    ),
}
"""By name in the measurement."""
FIRST_ORDER = Identity(
    "P5 first order", "increase under an attack over ε ⟨h_B, s(h_A)⟩, minus 1", ROUNDING_MARGIN
)
LAWS = ("P3 ", "P7 ", "P10 ")
"""How the names of parts begin whose residuals are no rounding: headlines."""
SYMBOLS: dict[str, str] = dict(zip(SPACES, ("μ_f", "μ_J"), strict=True))


def first_law_part(size: int) -> str:
    """Returns the name of the part of P3 at a size.

    Args:
      size: n, of `BLOCK_SIZES`.
    """
    return f"P3 n = {size}"


def transfer_part(size: int) -> str:
    """Returns the name of the part of P7 at a size.

    Args:
      size: n, of `HALF_SIZES`.
    """
    return f"P7 n = {size}"


def kernel_part(space: str, setting: str) -> str:
    """Returns the name of a part of P10.

    Args:
      space: of `SPACES`.
      setting: name of one of `KERNEL_SETTINGS`.
    """
    return f"P10 {SYMBOLS[space]}, {setting}"


def measured_on(config: RunConfig) -> Condition:
    """Returns the condition that residuals are stored under: the first architecture without noise.

    Args:
      config: of the run.
    """
    return conditions.condition(config, config.architectures[0])


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns residuals of identities and laws, and attacks on linear models, a replicate a pair.

    Args:
      config: of the run.
    """
    condition = measured_on(config)
    return [Request(m, (condition,)) for m in (LEARNING, IDENTITIES, LINEAR_GAUSSIAN)]


def decide(records: Records) -> Outcome:
    """Returns an equivalence with 0 for each residual; the units are pairs, the replicates.

    Of identities it is the mean of relative residuals, of laws a ratio of sums. A pair stands for
    its own replicates, many where a law is one of expectations. A residual that is the same in all
    pairs, such as exactly 0, has a point for its interval; p is then 0 within the margin, 1 beyond
    it. The effect is the part that is farthest from 0 in units of its margin.

    Args:
      records: the measurements of the run.
    """
    condition = measured_on(records.config)
    identities, linear = (records.get(m, condition) for m in (IDENTITIES, LINEAR_GAUSSIAN))
    parts = [
        *_identity_parts(identities),
        *_first_law_parts(identities),
        *_linear_parts(linear),
        *_kernel_parts(identities),
    ]
    parts.sort(key=lambda part: int(part.name.split()[0].removeprefix("P")))
    worst = _farthest(parts)
    headlines = [
        rules.headline(f"{part.statistic} ({part.name})", _estimate(part))
        for part in (_farthest([p for p in parts if p.name.startswith(law)]) for law in LAWS)
    ]
    return Outcome(tuple(parts), (worst.name,), tuple(headlines))


def _estimate(part: PartResult) -> stats.Estimate:
    return stats.Estimate(part.estimate, part.low, part.high, part.num_pairs, part.num_excluded)


def _farthest(parts: Sequence[PartResult]) -> PartResult:
    """Returns the part whose estimate is farthest from 0 in units of its margin."""
    return max(parts, key=lambda part: abs(part.estimate) / part.threshold[1])


def _part(decision: Decision, name: str, statistic: str, margin: float, control: str) -> PartResult:
    """Returns an equivalence with 0."""
    return rules.part(decision, name, statistic, "within", -margin, margin, control=control)


def _identity_parts(measured: Measured) -> list[PartResult]:
    """Returns P1, P2, P6, P8 and P9: exactly 0 in all pairs is a point with p = 0."""
    parts = []
    for identity, (name, statistic, margin) in IDENTITY_PARTS.items():
        residual, scale = (
            measured.read(quantity, identity=identity) for quantity in ("residual", "scale")
        )
        with np.errstate(all="ignore"):  # what is undefined is left out and counted
            relative = residual / scale
        decision = stats.mean_equivalence(relative, -margin, margin)
        parts.append(_part(decision, name, statistic, margin, "0"))
    return parts


def _first_law_parts(measured: Measured) -> list[PartResult]:
    """Returns P3 at each n, whose n_half comes from other examples and carries its error over."""
    half = stats.linearized(measured.read("noise"), measured.read("signal"))
    parts = []
    for size in BLOCK_SIZES:
        predicted = float(measured.read("first_law", block_size=size))
        products, squares = (
            measured.read(name, block_size=size) for name in ("block_product", "block_square")
        )
        coefficient = stats.linearized(products, squares)
        # Of n/(n + n_half) by n_half.
        slope = -(predicted**2) / size
        values = coefficient.ratio + coefficient.values - predicted - slope * half.values
        margin = laws.margin_of(predicted)
        decision = stats.mean_equivalence(values, -margin, margin)
        parts.append(
            _part(decision, first_law_part(size), "μ_θ minus the first law", margin, "first law")
        )
    return parts


def _linear_parts(measured: Measured) -> list[PartResult]:
    """Returns P5, all n together, and P7 at each n."""
    # By label: a sum in another order would differ in its last digit.
    products, increases = (
        np.sum([measured.read(name, num_examples=n, target=TARGETS[0]) for n in HALF_SIZES], 0)
        for name in ("product", "increase")
    )
    name, statistic, margin = FIRST_ORDER
    decision = stats.ratio_equivalence(
        increases - TIME * products, TIME * products, -margin, margin
    )
    parts = [_part(decision, name, statistic, margin, "0")]
    for size in HALF_SIZES:
        exact = float(measured.read("exact", num_examples=size))
        other, own_increase = (
            measured.read("increase", num_examples=size, target=target) for target in TARGETS
        )
        margin = laws.margin_of(exact)
        decision = stats.ratio_equivalence(
            other - exact * own_increase, own_increase, -margin, margin
        )
        parts.append(_part(decision, transfer_part(size), "M_x minus P7", margin, "P7"))
    return parts


def _kernel_parts(measured: Measured) -> list[PartResult]:
    """Returns P10 in each setting, for values and for input gradients."""
    parts = []
    for setting in KERNEL_SETTINGS:
        for space in SPACES:
            place = {"setting": setting.name, "space": space}
            law = float(measured.read("spectral_law", **place))
            products, squares = (
                measured.read(name, **place) for name in ("kernel_product", "kernel_square")
            )
            margin = laws.margin_of(law)
            decision = stats.ratio_equivalence(products - law * squares, squares, -margin, margin)
            name = kernel_part(space, setting.name)
            statistic = f"{SYMBOLS[space]} minus the spectral law"
            parts.append(_part(decision, name, statistic, margin, "spectral law"))
    return parts


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every residual in units of its margin.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    del records  # The parts are all that is drawn.
    parts = verdict.parts
    axes = drawing.residuals(
        [f"{part.name} (± {part.threshold[1]:.2g})" for part in parts],
        [
            [value / part.threshold[1] for value in (part.estimate, part.low, part.high)]
            for part in parts
        ],
        held=[part.passed for part in parts],
    )
    caption = TEXT.caption("v1_residuals", verdict)
    return [Figure("v1_residuals", caption, rules.figure_of(axes))]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the residual that is largest in units of its margin.

    Args:
      verdict: what the rule decided.
    """
    worst = _farthest(verdict.parts)
    return {
        "num_parts": str(len(verdict.parts)),
        "worst": wording.format_estimate(worst.estimate, worst.low, worst.high),
        "worst_name": worst.name,
        "worst_margin": f"{worst.threshold[1]:.2g}",
    }


STUDY = Study("V1", TEXT, needs, decide, figures, words, kind="verification")
