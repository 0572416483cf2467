"""What a rule finds: parts, an outcome, and the verdict once all studies are looked at."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import numpy as np

Kind = Literal["hypothesis", "control", "verification", "description"]
Word = Literal[
    "supported",
    "refuted",
    "inconclusive",
    "not at this size",
    "met",
    "not met",
    "verified",
    "off",
    "described",
]
WORDS: dict[Kind, tuple[Word, ...]] = {
    "hypothesis": ("supported", "refuted", "inconclusive"),
    "control": ("met", "not met"),
    "verification": ("verified", "off"),
    "description": ("described",),
}
"""What a study of each kind can come to. A hypothesis of too few pairs is "not at this size"."""
HELD: tuple[Word, ...] = ("met", "verified")
"""What a control or a verification must have come to for what stands on it."""


class Listed(NamedTuple):
    """A study in the list of all: its id, its claim in few words, and its kind."""

    id: str
    short: str
    kind: Kind


Evidence = Literal["exploratory", "confirmatory", "replication", "none"]
Direction = Literal["greater", "less", "within"]


@dataclasses.dataclass(frozen=True)
class PartResult:
    """One part of a rule as it came out: a test, an equivalence (TOST) or a gate.

    Attributes:
      name: short and unique within the study, e.g. "mlp" or "mlp, noise".
      kind: "test" (one-sided), "equivalence" (two one-sided tests) or "gate" (a precondition).
      statistic: what was computed, in words with its symbol.
      estimate: always finite where there was anything to estimate, else nan.
      low: lower end of the 95 % interval; -inf where unbounded.
      high: upper end; inf where unbounded.
      direction: the side of the threshold that the claim is on, or "within" two margins.
      threshold: one number, or the two margins of an equivalence.
      p_value: raw; None for a gate that is no test.
      p_reverse: raw p of the reverse claim; None where it is not tested.
      num_pairs: valid pairs used (the smaller of the two where two conditions are compared).
      num_excluded: pairs left out because a value was not finite.
      control: what it is compared with, in words.
    """

    name: str
    kind: Literal["test", "equivalence", "gate"]
    statistic: str
    estimate: float
    low: float
    high: float
    direction: Direction
    threshold: tuple[float, ...]
    p_value: float | None
    p_reverse: float | None
    num_pairs: int
    num_excluded: int = 0
    control: str = ""

    @property
    def clearance(self) -> float:
        """How far the estimate lies on the claim's side of the threshold; negative beyond it."""
        if self.direction == "within":
            low, high = self.threshold
            return min(self.estimate - low, high - self.estimate)
        sign = 1 if self.direction == "greater" else -1
        return sign * (self.estimate - self.threshold[0])

    @property
    def passed(self) -> bool:
        """Whether this part holds: a raw p below .05; a gate without a p, by its estimate."""
        if self.kind == "gate" and self.p_value is None:
            return self.clearance > 0
        return self.p_value is not None and self.p_value < 0.05


@dataclasses.dataclass(frozen=True)
class Headline:
    """A number a reader remembers: a coefficient with its interval, and the control's."""

    label: str
    estimate: float
    low: float
    high: float
    control_label: str = ""
    control: tuple[float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `decide` returns, before the family of hypotheses is looked at together.

    Attributes:
      parts: every test and gate; a description has none.
      first: names of the rule's first part for each architecture; the worse one is the effect.
      headlines: numbers for the answer and the card, e.g. M_θ of each architecture.
      warnings: what a reader should distrust, a sentence each.
      num_pairs: of a description: valid pairs used. Elsewhere parts say it.
    """

    parts: tuple[PartResult, ...]
    first: tuple[str, ...]
    headlines: tuple[Headline, ...] = ()
    warnings: tuple[str, ...] = ()
    num_pairs: int = 0

    @property
    def effect(self) -> PartResult:
        """The rule's first part, of the architecture nearest to its threshold or beyond."""
        parts = [part for part in self.parts if part.name in self.first]
        return min(parts, key=lambda part: part.clearance)

    @property
    def tests(self) -> tuple[PartResult, ...]:
        """The parts that carry a p-value."""
        return tuple(part for part in self.parts if part.kind != "gate")

    @property
    def p_value(self) -> float:
        """The largest p over the tests: all of them must hold."""
        return max(_p(part.p_value) for part in self.tests)

    @property
    def p_reverse(self) -> float:
        """(number of reverse tests) times the smallest p among them; 1 where there is none."""
        reverses = [_p(part.p_reverse) for part in self.tests if part.p_reverse is not None]
        return min(1.0, len(reverses) * min(reverses, default=1.0))


def _p(value: float | None) -> float:
    return 1.0 if value is None or math.isnan(value) else value


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A study decided: an `Outcome`, for a hypothesis with Holm's adjustment over the family.

    Attributes:
      kind: of the study.
      effect: estimate of the rule's first part, worse architecture; always finite. Of a description
        its first headline.
      interval: its 95 % interval; -inf and inf where unbounded.
      p_value: raw; p_adjusted: Holm over the family of hypotheses, None for other kinds.
      num_pairs: smallest number of valid pairs over the conditions used.
      rule: which rule decided, in words with its digest; `is_locked`: whether it is that of the
        lock, None where nobody asked.
    """

    id: str
    claim: str
    verdict: Word
    reason: str
    effect: float
    interval: tuple[float, float]
    p_value: float
    p_adjusted: float | None
    control: str
    num_pairs: int
    evidence: Evidence
    parts: tuple[PartResult, ...]
    headlines: tuple[Headline, ...] = ()
    warnings: tuple[str, ...] = ()
    num_excluded: int = 0
    kind: Kind = "hypothesis"
    rule: str = ""
    is_locked: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict: infinite numbers become null."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value
