"""The global null: on a pool whose labels are permuted, what has no true labels can claim nothing.

Controls must fail there, and with controls and gates ignored no hypothesis may hold, but those that
the lock lists beforehand with the reason why they need no true labels.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from halfway.lab.study.family import LEVEL
from halfway.lab.study.verdict import Verdict


class Claimed(NamedTuple):
    """What a study says of a pool with permuted labels, whatever gates and controls say.

    Attributes:
      id: of the study.
      p_value: raw, the largest over its tests; for a control that over its first parts.
      claims: whether it is below the level of a hypothesis that is alone in the family.
      reason: why it needs no true labels; empty where it does.
    """

    id: str
    p_value: float
    claims: bool
    reason: str

    @property
    def is_wrong(self) -> bool:
        """Whether it claims what it may not."""
        return self.claims and not self.reason

    @property
    def outcome(self) -> str:
        """What it does, in words."""
        if self.is_wrong:
            return "claims what it may not"
        return "claims it" if self.claims else "claims nothing"


def claimed(
    verdicts: Sequence[Verdict], *, family_size: int, without_labels: Mapping[str, str]
) -> list[Claimed]:
    """Returns what every control and hypothesis claims, in the order of the verdicts.

    Args:
      verdicts: of a run with permuted labels.
      family_size: the number of hypotheses there are.
      without_labels: hypotheses that need no true labels, each with its reason.
    """
    rows = []
    for verdict in verdicts:
        if verdict.kind in ("verification", "description"):
            continue
        level = LEVEL / family_size if verdict.kind == "hypothesis" else LEVEL
        p_value = verdict.p_value
        if verdict.kind == "control":
            # T1 asks for M_x near 0 at ρ = 1 too, which holds here as it should.
            tested = [part for part in verdict.parts if part.kind == "test"]
            p_value = max(1.0 if part.p_value is None else part.p_value for part in tested)
        reason = without_labels.get(verdict.id, "")
        rows.append(Claimed(verdict.id, p_value, p_value < level, reason))
    return rows
