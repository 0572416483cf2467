"""Words of a study: plain text beside it, filled by one formatter.

A file `text.toml` has `short` (the claim in few words), `claim` (as a sentence), `controls`,
`decides` (what the rule asks of which number), `smallest_effect`, `opening` (what is asked, with
its numbers), an ending for each verdict of its kind in `[endings]`, and for each figure a
`caption`, in which `{seen}` stands for what the table `[figures.NAME.seen]` says of the verdict.
Words in braces are filled in.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfway.lab.study import wording
from halfway.lab.study.verdict import WORDS, Kind, Verdict

TOO_SMALL = "The run is too small to decide the claim: {reason}."
"""The ending of every hypothesis that has no verdict at the size of the run."""


@dataclasses.dataclass(frozen=True)
class Text:
    """The words of a study.

    Attributes:
      short: the claim in a few words, for the map.
      claim: as one sentence.
      controls: what the effect is compared with.
      decides: what the rule asks of which number, in a line.
      unit: what the tests draw from, of which more would settle more: "pairs" or "factors".
      smallest_effect: worth reporting, in words and in the unit of the rule.
      opening: what is asked.
      endings: by verdict.
      captions: by name of the figure.
      observations: what a figure shows, by name of the figure and verdict.
    """

    short: str
    claim: str
    controls: tuple[str, ...]
    decides: str
    unit: str
    smallest_effect: str
    opening: str
    endings: Mapping[str, str]
    captions: Mapping[str, str]
    observations: Mapping[str, Mapping[str, str]]

    def explain(self, verdict: Verdict, **words: Any) -> str:
        """Returns opening and ending of a verdict, filled.

        Args:
          verdict: whose numbers are told: `{numbers}` are all headlines, `{headline_0}`, ... each
            one, `{effect}` the estimate with its interval, `{reason}` the reason of the verdict.
          **words: what else the sentences name.
        """
        headlines = [wording.format_headline(headline) for headline in verdict.headlines]
        filling = {
            "numbers": "; ".join(headlines),
            "effect": wording.format_estimate(verdict.effect, *verdict.interval),
            "reason": verdict.reason,
        }
        filling |= {f"headline_{index}": text for index, text in enumerate(headlines)}
        ending = self.endings.get(verdict.verdict, TOO_SMALL)
        return _filled(f"{self.opening} {ending}", filling | words)

    def caption(self, name: str, verdict: Verdict, **words: Any) -> str:
        """Returns the caption of a figure, which says what was seen, filled.

        Args:
          name: of the figure.
          verdict: for what was seen.
          **words: what else the sentences name.
        """
        observations = self.observations.get(name, {})
        # Where a run is too small, a figure shows what one that settles nothing shows.
        observation = observations.get(verdict.verdict, observations.get("inconclusive", ""))
        return _filled(self.captions[name], {"seen": _filled(observation, words)} | words)


def load(file: str, kind: Kind = "hypothesis") -> Text:
    """Returns the words in `text.toml` beside a module.

    Args:
      file: `__file__` of the module.
      kind: of the study, which says what verdicts it needs endings for.

    Raises:
      ValueError: if an entry is missing, or a verdict has no ending.
    """
    path = Path(file).with_name("text.toml")
    plain = tomllib.loads(path.read_text(encoding="utf-8"))
    endings, figures = plain.get("endings", {}), plain.get("figures", {})
    missing = {"short", "claim", "controls", "decides", "smallest_effect", "opening"} - set(plain)
    missing |= set(WORDS[kind]) - set(endings)
    missing |= {f"caption of {name}" for name, figure in figures.items() if "caption" not in figure}
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    return Text(
        short=_one_line(plain["short"]),
        claim=_one_line(plain["claim"]),
        controls=tuple(map(_one_line, plain["controls"])),
        decides=_one_line(plain["decides"]),
        unit=plain.get("unit", "pairs"),
        smallest_effect=_one_line(plain["smallest_effect"]),
        opening=_one_line(plain["opening"]),
        endings={name: _one_line(text) for name, text in endings.items()},
        captions={name: _one_line(figure["caption"]) for name, figure in figures.items()},
        observations={
            name: {verdict: _one_line(text) for verdict, text in figure.get("seen", {}).items()}
            for name, figure in figures.items()
        },
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _filled(text: str, words: Mapping[str, Any]) -> str:
    """Returns a text with its words filled in; KeyError where one is missing."""
    return text.format_map(dict(words))
