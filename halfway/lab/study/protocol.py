"""The contract of a study: what it needs, its rule, its figures and its words."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure as MplFigure

from halfway.lab.config.settings import RunConfig
from halfway.lab.study import wording
from halfway.lab.study.records import Records, Request
from halfway.lab.study.text import Text
from halfway.lab.study.verdict import Kind, Listed, Outcome, Verdict


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text: the first column names the row; every row is as long as `columns`."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: a row of {len(row)} cells, {len(self.columns)} needed"
                )

    def __str__(self) -> str:
        """As lines of text, the title first."""
        return "\n".join([self.title, *wording.align([self.columns, *self.rows])])


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn figure: a file name without ending, what to see in it, the figure, its numbers."""

    name: str
    caption: str
    figure: MplFigure
    table: Table | None = None


def _no_words(verdict: Verdict) -> Mapping[str, Any]:
    del verdict
    return {}


@dataclasses.dataclass(frozen=True)
class Study:
    """A hypothesis, a control, a verification or a description. It reads records, never a model.

    Attributes:
      id: such as "G1".
      text: claim, controls, smallest effect worth reporting, and every sentence of the card.
      needs: the config to what has to be measured, and on which conditions.
      decide: the records to every part of the rule; deterministic.
      figures: the records and the verdict to the figures of the card, with the control in them.
      words: the verdict to what the text's sentences are filled with, beside what all have.
      kind: a hypothesis can come out either way and is a member of the family; a control must hold
        for the instrument to be trusted; a verification is of an identity or a law with known
        assumptions; a description decides nothing: it has headlines and no part of a rule.
      stands_on: ids of controls and verifications without which a verdict is inconclusive.
    """

    id: str
    text: Text
    needs: Callable[[RunConfig], Sequence[Request]]
    decide: Callable[[Records], Outcome]
    figures: Callable[[Records, Verdict], Sequence[Figure]]
    words: Callable[[Verdict], Mapping[str, Any]] = _no_words
    kind: Kind = "hypothesis"
    stands_on: tuple[str, ...] = ()

    @property
    def claim(self) -> str:
        """The claim as one sentence."""
        return self.text.claim

    @property
    def listed(self) -> Listed:
        """What the map shows of the study before anything is run."""
        return Listed(self.id, self.text.short, self.kind)

    def explain(self, verdict: Verdict) -> str:
        """Returns a paragraph in plain words, with numbers, for any verdict."""
        return self.text.explain(verdict, **self.words(verdict))
