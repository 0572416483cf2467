"""Numbers and verdicts in words: what the page, the terminal and the cards have in common."""

import math
import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from halfway.lab.study.verdict import WORDS, Headline, Listed, PartResult, Verdict

STATES = (*WORDS["hypothesis"], "not at this size", "not run")
CHECKED = (*WORDS["control"], *WORDS["verification"])
MARKS = {
    "supported": "●",
    "refuted": "✕",
    "inconclusive": "◐",
    "not at this size": "○",
    "not run": "·",
    "met": "✓",
    "not met": "✗",
    "verified": "≡",
    "off": "≠",
    "described": "–",
}
EVIDENCE = {
    "exploratory": "exploratory (rules or settings were chosen with this data set in sight)",
    "confirmatory": "confirmatory (rules and settings were locked before this data set was opened)",
    "replication": "replication (locked rules and settings, with another seed or more pairs)",
    "none": "none (too few pairs for these numbers to count as evidence)",
}


class _Question(NamedTuple):
    """How a question is answered: by sentences in which {moved} and {control} are shares."""

    noun: str
    met: str
    not_met: str
    not_asked: str


_QUESTIONS = {
    "G": _Question(
        "halves",
        "A model trained on one half of the data makes {moved} of its progress on the other half "
        "too, which it never saw ({control} when labels are shuffled).",
        "It is not shown that what a model learns on one half carries over to the other: {moved} "
        "of its progress, against {control} when labels are shuffled.",
        "Whether what is learned on one half carries over to the other was not asked (G1 was not "
        "run).",
    ),
    "T": _Question(
        "models",
        "An attack on one model moves the other {moved} as far (a model that learned nothing: "
        "{control}).",
        "It is not shown that an attack on one model moves the other through what both learned: "
        "{moved} as far, against {control} for a model that learned nothing.",
        "Whether an attack on one model moves the other was not asked (T1 was not run).",
    ),
}


def format_estimate(estimate: float, low: float = math.nan, high: float = math.nan) -> str:
    """Returns an estimate and its 95 % interval, e.g. "0.990 [0.985, 0.995]".

    Two significant digits of the standard error decide the decimals, six at most where a number
    is no power of ten; it is taken from the interval as (high − low)/(2 × 1.96), or from its one
    finite side. Unbounded ends are written
    as ∞, an undefined estimate as "undefined", a missing interval is left out.

    Args:
      estimate: in any units; NaN where it is undefined.
      low: lower end of the interval.
      high: upper end of the interval.
    """
    if math.isnan(estimate):
        return "undefined"
    decimals, power = _digits(estimate, low, high)
    numbers = [_fixed(value, decimals, power) for value in (estimate, low, high)]
    text = numbers[0]
    if not (math.isnan(low) and math.isnan(high)):
        text += f" [{numbers[1]}, {numbers[2]}]"
    if power:
        exponent = str(power).replace("-", "−")
        text = f"{text} × 10^{exponent}"
    return text


def format_percent(estimate: float, low: float = math.nan, high: float = math.nan) -> str:
    """Returns a share and its interval in %, as `format_estimate` writes them.

    Args:
      estimate: 0 to 1.
      low: lower end of the interval.
      high: upper end of the interval.
    """
    return format_estimate(*(100 * value for value in (estimate, low, high)))


def format_budget(epsilon: float) -> str:
    """Returns a budget as it is typed: as a fraction of 255 where it is one and not round.

    Args:
      epsilon: of images in [0, 1].

    Examples:
      >>> [wording.format_budget(epsilon) for epsilon in (8 / 255, 0.2, 0.035)]
      ['8/255', '0.2', '0.035']
    """
    levels = round(255 * epsilon)
    is_round = abs(float(f"{epsilon:.2g}") - epsilon) < 1e-6
    if abs(levels - 255 * epsilon) < 1e-4 and 1 <= levels <= 64 and not is_round:
        return f"{levels}/255"
    return f"{epsilon:g}"


def format_stored(effect: float | None, low: float | None, high: float | None) -> str:
    """Returns an effect as a JSON file gives it back: null stands for what was not finite.

    Args:
      effect: the estimate.
      low: lower end of its interval.
      high: upper end of its interval.
    """
    return format_estimate(
        math.nan if effect is None else effect,
        -math.inf if low is None else low,
        math.inf if high is None else high,
    )


def half_width(estimate: float, low: float, high: float) -> float:
    """Returns half of an interval, from its one finite side if there is but one; 0 where unknown.

    Args:
      estimate: in any units.
      low: lower end of the interval.
      high: upper end of the interval.
    """
    sides = [abs(end - estimate) for end in (low, high) if math.isfinite(end)]
    return sum(sides) / len(sides) if sides and math.isfinite(estimate) else 0.0


def _digits(estimate: float, low: float, high: float) -> tuple[int, int]:
    """Returns (decimals, power of ten taken out) for an estimate with its interval."""
    error = half_width(estimate, low, high) / 1.96
    if error > 0:
        lowest = int(f"{error:.1e}".split("e")[1]) - 1
    elif estimate and math.isfinite(estimate):  # no error to go by: three digits of the estimate
        lowest = int(f"{estimate:.2e}".split("e")[1]) - 2
    else:
        lowest = -2
    largest = max((abs(v) for v in (estimate, low, high) if math.isfinite(v)), default=0.0)
    if largest and (lowest > 3 or (lowest < -6 and largest < 0.01)):
        power = math.floor(math.log10(largest))
        return max(0, power - lowest), power
    return min(max(0, -lowest), 6), 0


def _fixed(value: float, decimals: int, power: int = 0) -> str:
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value / 10.0**power:.{decimals}f}"
    if text.startswith("-") and not text.strip("-0."):
        text = text[1:]  # no negative zero
    return text.replace("-", "−")


def format_p(p_value: float | None) -> str:
    """Returns a p-value to two digits, more where rounding would move it across .05.

    To be shown beside an effect, never alone.
    """
    if p_value is None:
        return "–"
    if math.isnan(p_value):
        return "undefined"
    if p_value < 1e-4:
        return "< 0.0001"
    for digits in range(2, 8):
        text = f"{p_value:.{digits}g}"
        if (float(text) < 0.05) == (p_value < 0.05):
            break
    return text


def format_duration(seconds: float) -> str:
    """Returns a time in seconds, or in minutes and seconds from two minutes on."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes >= 2 else f"{round(seconds)} s"


def sentence(text: str) -> str:
    """Returns a text with a capital letter and one full stop."""
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."


def format_headline(headline: Headline) -> str:
    """Returns "label = estimate [low, high] (control label: estimate [low, high])"."""
    text = f"{headline.label} = {format_estimate(headline.estimate, headline.low, headline.high)}"
    if headline.control is not None:
        name = headline.control_label or "control"
        text += f" ({name}: {format_estimate(*headline.control)})"
    return text


def format_rule(part: PartResult) -> str:
    """Returns the threshold of a part as a comparison: "> 0", "between −0.03 and 0.03"."""
    numbers = [f"{value:g}".replace("-", "−") for value in part.threshold]
    if part.direction == "within":
        return f"between {numbers[0]} and {numbers[-1]}"
    return f"{'>' if part.direction == 'greater' else '<'} {numbers[0]}"


def weakest_part(verdict: Verdict) -> PartResult | None:
    """Returns the test with the largest p-value: the one that decides; None without tests."""
    tests = [part for part in verdict.parts if part.kind != "gate"]

    def rank(part: PartResult) -> float:
        return 1.0 if part.p_value is None or math.isnan(part.p_value) else part.p_value

    return max(tests, key=rank, default=None)


def in_order(verdicts: Sequence[Verdict], listed: Sequence[Listed]) -> list[Verdict]:
    """Returns the verdicts in the order of the list; ValueError where one is not in it.

    Args:
      verdicts: in any order.
      listed: all studies, in order.
    """
    order = {study.id: index for index, study in enumerate(listed)}
    unknown = sorted({verdict.id for verdict in verdicts} - set(order))
    if unknown:
        raise ValueError(f"verdicts of unknown studies {unknown}; known are {list(order)}")
    return sorted(verdicts, key=lambda verdict: order[verdict.id])


class Tile(NamedTuple):
    """A study on the map: its id, claim in few words, state, and the row it stands in."""

    id: str
    claim: str
    state: str
    row: str


ROWS = {"G": "halves", "T": "models", "checks": "checks"}
"""Rows of the map with their names in a terminal: two questions, then what they stand on."""


def tiles(verdicts: Sequence[Verdict], listed: Sequence[Listed]) -> list[Tile]:
    """Returns the map: a tile for each study that decides, in the order of the list.

    Args:
      verdicts: in any order.
      listed: all studies, in order.
    """
    state_of = {verdict.id: str(verdict.verdict) for verdict in in_order(verdicts, listed)}
    return [
        Tile(
            study.id,
            study.short,
            state_of.get(study.id, "not run"),
            study.id[0] if study.kind == "hypothesis" else "checks",
        )
        for study in listed
        if study.kind != "description"
    ]


def format_share(value: float) -> str:
    """Returns a share as a percentage that never rounds to all or nothing.

    Args:
      value: the share, about 0 to 1; what lies outside is said to be all or nothing.

    Examples:
      >>> [wording.format_share(value) for value in (0.634, 0.9999, 0.0002, 0.996)]
      ['63 %', '> 99.9 %', '< 0.1 %', '99.6 %']
    """
    if math.isnan(value):
        return "an undefined share"
    if value > 0.999:
        return "> 99.9 %"
    if value < 0.001:
        return "< 0.1 %"
    decimals = 1 if value > 0.99 or value < 0.01 else 0
    return f"{100 * value:.{decimals}f} %"


def answer(verdicts: Sequence[Verdict], letter: str) -> tuple[str, str]:
    """Returns the answer to one question as a plain sentence, and the numbers behind it.

    The controls G1 and T1 say how far halves and models meet at all; the hypotheses ask how.

    Args:
      verdicts: all that were decided, in the order of the report.
      letter: "G" for halves, "T" for models.
    """
    question = _QUESTIONS[letter]
    of_letter = [verdict for verdict in verdicts if verdict.id[0] == letter]
    first = next((v for v in of_letter if v.id == f"{letter}1" and v.headlines), None)
    sentence_of, number = question.not_asked, ""
    if first is not None:
        headline = first.headlines[0]
        template = question.met if first.verdict == "met" else question.not_met
        control = headline.control[0] if headline.control else math.nan
        sentence_of = template.format(
            moved=format_share(headline.estimate), control=format_share(control)
        )
        number = f"{format_headline(headline)}; "
    hypotheses = [verdict.verdict for verdict in of_letter if verdict.kind == "hypothesis"]
    counts = {state: hypotheses.count(state) for state in STATES}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    tally = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts) or "none"
    return sentence_of, f"{number}hypotheses about {question.noun} that were run: {tally}."


def little_was_run(num_run: int, num_family: int) -> str:
    """Returns how much of the family was run, with a caution where it is less than a quarter.

    Args:
      num_run: number of hypotheses that were run.
      num_family: number of all hypotheses.
    """
    text = f"{num_run} of {num_family} hypotheses were run"
    if num_run < num_family / 4:
        text += ": this answers little of the whole question"
    return text + "."


def rerun_command(command: str, name: str) -> str:
    """Returns the command of a run with `--only` set to one hypothesis.

    Args:
      command: of the run, as typed.
      name: id of the hypothesis.
    """
    kept = re.sub(r"\s--only(=|\s+)(\"[^\"]*\"|'[^']*'|\S+)", "", f" {command}").strip()
    return f"{kept} --only={name}"


def terminal_map(verdicts: Sequence[Verdict], listed: Sequence[Listed]) -> str:
    """Returns the map and the table of verdicts as plain text, at most 100 columns wide.

    Args:
      verdicts: in any order.
      listed: all studies, in order.
    """
    lines = []
    for name, noun in ROWS.items():
        row = [tile for tile in tiles(verdicts, listed) if tile.row == name]
        if row:
            marks = "   ".join(f"{tile.id} {MARKS[tile.state]}" for tile in row)
            lines.append(f"{noun:<7} {marks}")
    for words in (STATES, CHECKED):
        lines.append("        " + "   ".join(f"{MARKS[word]} {word}" for word in words))
    rows = [("id", "verdict", "what was measured", "effect [95 % interval]", "p", "pairs")]
    for verdict in in_order(verdicts, listed):
        p_value = verdict.p_value if verdict.p_adjusted is None else verdict.p_adjusted
        if verdict.kind == "description":
            p_value = None
        rows.append(
            (
                verdict.id,
                verdict.verdict,
                textwrap.shorten(quantity(verdict), WIDTH // 3, placeholder="…"),
                format_estimate(verdict.effect, *verdict.interval),
                format_p(p_value),
                str(verdict.num_pairs),
            )
        )
    if len(rows) > 1:
        lines += ["", *align(rows), ""]
        lines.append(evidence_line(in_order(verdicts, listed)))
    return "\n".join(lines)


def quantity(verdict: Verdict) -> str:
    """Returns what the effect of a verdict is: whose, such as an architecture's, and what."""
    if verdict.kind == "description":
        return verdict.headlines[0].label
    part = effect_part(verdict)
    return "effect" if part is None else f"{part.name}: {part.statistic}"


def effect_part(verdict: Verdict) -> PartResult | None:
    """Returns the part that is the effect: other parts of a rule may be of another statistic."""
    shown = (verdict.effect, *verdict.interval)
    same = [part for part in verdict.parts if (part.estimate, part.low, part.high) == shown]
    return next(iter(same), None)


def evidence_line(verdicts: Sequence[Verdict]) -> str:
    """Returns the kinds of evidence, and which rules are not those of the lock."""
    kinds = list(dict.fromkeys(verdict.evidence for verdict in verdicts))
    others = [verdict.id for verdict in verdicts if verdict.is_locked is False]
    rules = f"Rules not as locked: {', '.join(others)}." if others else "Rules: as locked."
    return f"Evidence: {', '.join(kinds)}. {rules} p: adjusted over all hypotheses; raw for checks."


WIDTH = 100
"""Columns that a terminal is expected to have."""


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns one line a row, its cells padded to the widest of their column.

    Args:
      rows: of equally many cells.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
