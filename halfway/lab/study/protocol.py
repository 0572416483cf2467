"""The contract of a study: what it needs, its records, its rule and its verdict."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as MplFigure

from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.report.elements import Table
from halfway.populations import Condition, Population
from halfway.storage import json_digest
from halfway.types import Key

COLUMNS = (
    "condition",
    "pair",
    "surrogate",
    "target",
    "attack",
    "step",
    "budget",
    "subset",
    "quantity",
    "value",
)
Word = Literal["supported", "refuted", "inconclusive"]
Evidence = Literal["exploratory", "confirmatory", "none"]
Direction = Literal["greater", "less", "within", "different"]


@dataclasses.dataclass(frozen=True)
class Records:
    """The measurements of a run: a long table, its conditions, and arrays per example.

    Attributes:
      table: one row a number, with the columns `COLUMNS`; null where a column has no meaning.
      conditions: one row a condition, its fields as columns, indexed by the `condition` key.
      config: of the run.
      arrays: `arrays[measurement, condition key][name]`, outcomes for each example.
    """

    table: pd.DataFrame
    conditions: pd.DataFrame
    config: RunConfig
    arrays: Mapping[tuple[str, str], Mapping[str, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )


class Measured(NamedTuple):
    """What one measurement of one condition gave: rows of the table, and arrays by name."""

    table: pd.DataFrame
    arrays: Mapping[str, np.ndarray] = {}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A quantity that is measured on populations and stored once, whichever studies ask for it.

    Attributes:
      name: of its files.
      salt: folded into the run's key, unique and for good: what else is measured changes nothing.
      measure: `(key, populations, pool, config) -> Measured`, the populations of a `Request` in
        its order. The only place of a study with JAX.
    """

    name: str
    salt: int
    measure: Callable[[Key, Sequence[Population], Split, RunConfig], Measured]


MANY = 8
"""Conditions of a request whose keys are all written out in its name."""


class Request(NamedTuple):
    """A measurement of a condition; further conditions are its controls or partners."""

    measurement: Measurement
    conditions: tuple[Condition, ...]

    @property
    def key(self) -> str:
        """Names the stored measurement; of many conditions, the first and a json_digest of all."""
        keys = [c.key for c in self.conditions]
        if len(keys) > MANY:  # a file's name has an end
            keys = [keys[0], json_digest(keys)[:12]]
        return "-".join((self.measurement.name, *keys))


@dataclasses.dataclass(frozen=True)
class PartResult:
    """One part of a rule as it came out: a test, an equivalence (TOST) or a gate.

    Attributes:
      name: short and unique within the study, e.g. "mlp" or "mlp, noise".
      kind: "test" (one-sided, or two-sided where the direction is "different"), "equivalence" (two
        one-sided tests) or "gate" (a precondition).
      statistic: what was computed, in words with its symbol.
      estimate: always finite where there was anything to estimate, else nan.
      low: lower end of the 95 % interval; -inf where unbounded.
      high: upper end; inf where unbounded.
      direction: the side of the threshold the claim is on; "different": either.
      threshold: one number, or the two margins of an equivalence.
      p_value: raw; None for a gate.
      p_reverse: raw p of the reverse claim; None for a gate.
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
        """How far the estimate lies on the claim's side of the threshold; negative beyond it.

        Both sides of the threshold are the claim's where it is "different".
        """
        if self.direction == "within":
            low, high = self.threshold
            return min(self.estimate - low, high - self.estimate)
        if self.direction == "different":
            return abs(self.estimate - self.threshold[0])
        sign = 1 if self.direction == "greater" else -1
        return sign * (self.estimate - self.threshold[0])

    @property
    def passed(self) -> bool:
        """Whether this part holds: a gate met, or a raw p below .05."""
        if self.kind == "gate":
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
      parts: every test and gate.
      first: names of the rule's first part for each architecture; the worse one is the effect.
      headlines: numbers for the answer and the card, e.g. M_θ of each architecture.
      warnings: what a reader should distrust, a sentence each.
    """

    parts: tuple[PartResult, ...]
    first: tuple[str, ...]
    headlines: tuple[Headline, ...] = ()
    warnings: tuple[str, ...] = ()

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
        """(number of tests) times the smallest p of the reverse tests."""
        return min(1.0, len(self.tests) * min(_p(part.p_reverse) for part in self.tests))


def _p(value: float | None) -> float:
    return 1.0 if value is None or math.isnan(value) else value


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A hypothesis decided: an `Outcome` with Holm's adjustment over the whole family.

    Attributes:
      effect: estimate of the rule's first part, worse architecture; always finite.
      interval: its 95 % interval; -inf and inf where unbounded.
      p_value: raw; p_adjusted: Holm over the family of 20.
      num_pairs: smallest number of valid pairs over the conditions used.
    """

    id: str
    claim: str
    verdict: Word
    reason: str
    effect: float
    interval: tuple[float, float]
    p_value: float
    p_adjusted: float
    control: str
    num_pairs: int
    evidence: Evidence
    parts: tuple[PartResult, ...]
    headlines: tuple[Headline, ...] = ()
    warnings: tuple[str, ...] = ()
    num_excluded: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict: infinite numbers become null."""
        return _plain(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn figure: a file name without ending, what to see in it, the figure, its numbers."""

    name: str
    caption: str
    figure: MplFigure
    table: Table | None = None


class Study(Protocol):
    """One hypothesis. `decide`, `draw` and `explain` read records alone, never a model.

    Attributes:
      id: "G1" to "T12".
      claim: one sentence.
      controls: what the effect is compared with.
      smallest_effect: the smallest effect worth reporting, in words and in the unit of the rule;
        `plant` at `effect=1` is of this size.
    """

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def claim(self) -> str: ...  # noqa: D102
    @property
    def controls(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def smallest_effect(self) -> str: ...  # noqa: D102

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns what has to be measured, and on which conditions."""
        ...

    def decide(self, records: Records) -> Outcome:
        """Returns every part of the rule, computed from the records; deterministic."""
        ...

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns the figures of the card, with the control in them."""
        ...

    def explain(self, verdict: Verdict) -> str:
        """Returns a paragraph in plain words, with numbers, for any of the three verdicts."""
        ...

    def boundaries(self) -> Sequence[str]:
        """Returns the tests of the rule by name, each of which `plant` can put at its boundary."""
        ...

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns synthetic records with the study's own noise and number of pairs.

        Args:
          rng: consumed.
          effect: in units of `smallest_effect`; 0 is the boundary of the null.
          boundary: one of `boundaries()` that is put at the boundary of its null, the others at
            `effect`.
        """
        ...


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value
