"""Tables and sentences of published results, as Markdown."""

import math
from collections.abc import Callable, Mapping, Sequence

from scipy import stats as distributions

from halfway.lab import studies
from halfway.lab.publication.result import DATASETS, Result, Triple
from halfway.lab.study import family, global_null, registration, wording
from halfway.lab.study.protocol import Study
from halfway.lab.study.verdict import PartResult, Verdict
from halfway.lab.study.wording import MARKS, format_estimate, format_p

POWER = 0.8
"""Of the number of pairs that would settle what is undecided."""
_NO_RUN = "–"


def name_of(result: Result) -> str:
    """Returns the data set of a result as documents name it.

    Args:
      result: the result.
    """
    return DATASETS.get(result.dataset, result.dataset)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown.

    Args:
      columns: heads.
      rows: cells of text, as many as heads.
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def runs(results: Sequence[Result]) -> str:
    """Returns what was run: one row a data set, with the kind of evidence.

    Args:
      results: shipped ones.
    """
    rows = [
        [
            f"**{name_of(result)}**",
            f"{result.evidence}{given(result)}",
            f"{result.num_pairs}",
            f"{sum(verdict.kind == 'hypothesis' for verdict in result.verdicts)}",
            f"{wording.format_duration(result.seconds)} on {result.devices}",
            result.config.split(", ", 1)[-1],
            result.started.split(" ")[0],
        ]
        for result in results
    ]
    columns = ["data set", "evidence", "pairs", "hypotheses", "time", "config", "run on"]
    return markdown(columns, rows)


def cell(verdict: Verdict | None) -> str:
    """Returns a verdict with its effect, interval and p-value.

    Args:
      verdict: None where the study was not run.
    """
    if verdict is None:
        return _NO_RUN
    effect = format_estimate(verdict.effect, *verdict.interval)
    text = f"**{verdict.verdict}** {effect}"
    if verdict.p_adjusted is not None and verdict.verdict != "refuted":
        text += f", p {format_p(verdict.p_adjusted)}"
    kind = "" if verdict.evidence == "exploratory" else f" ({verdict.evidence})"
    return text + (kind if verdict.kind == "hypothesis" else "")


def verdicts(results: Sequence[Result], *, checks: bool = False) -> str:
    """Returns all hypotheses, or all controls and verifications, by data set.

    Args:
      results: one a column.
      checks: whether controls and verifications are wanted.
    """
    rows = [
        [study.id, f"{study.text.claim} *{study.text.decides}*"]
        + [cell(result.verdict(study.id)) for result in results]
        for study in studies.available().values()
        if study.kind in (("control", "verification") if checks else ("hypothesis",))
    ]
    return markdown(["", "claim, and *what decides*", *map(column_of, results)], rows)


def column_of(result: Result) -> str:
    """Returns the head of a result's column: data set and seed where it is not the shipped one.

    Args:
      result: the result.
    """
    seed = f", seed {result.seed}" if result.name != result.dataset else ""
    return f"{name_of(result)}{seed}"


def count(result: Result) -> str:
    """Returns how many hypotheses came out how, as a phrase.

    Args:
      result: the result.
    """
    words = [verdict.verdict for verdict in result.verdicts if verdict.kind == "hypothesis"]
    counts = {word: words.count(word) for word in dict.fromkeys(words)}
    shown = [f"{counts[word]} {word}" for word in MARKS if word in counts]
    return ", ".join(shown)


def counts(results: Sequence[Result]) -> str:
    """Returns how many hypotheses came out how on each data set, as sentences.

    Args:
      results: shipped ones.
    """
    return " ".join(f"On {name_of(result)}{given(result)}: {count(result)}." for result in results)


def given(result: Result) -> str:
    """Returns what a result is conditional on, as a phrase; empty where the pool is large.

    Args:
      result: the result.
    """
    return "" if result.given is None else f", given these {result.given:,} images"


def together(study: Study, results: Sequence[Result]) -> str:
    """Returns what all data sets together say of a claim, and what would settle it, as sentences.

    Args:
      study: the study.
      results: shipped ones.
    """
    by_word: dict[str, list[str]] = {}
    settled = []
    for result in results:
        verdict = result.verdict(study.id)
        if verdict is None:
            continue
        by_word.setdefault(verdict.verdict, []).append(name_of(result))
        if verdict.verdict == "inconclusive":
            words = {check.id: check.verdict for check in result.verdicts}
            why = family.doubt(study, words)
            why = f"{why}{_but(verdict)}." if why else settle(study, verdict)
            settled.append(f"On {name_of(result)} {why}")
    if not by_word:
        return "Not run yet."
    said = "; ".join(f"{word} on {_listed(names)}" for word, names in by_word.items())
    decided = set(by_word) - {"inconclusive"}
    number = sum(map(len, by_word.values()))
    opening = f"{said[:1].upper()}{said[1:]}."
    if {"supported", "refuted"} <= decided:
        opening = f"Data sets disagree: {said}."
    elif number > 1 and len(by_word) == 1 and decided:
        opening = f"All agree: {said}."
    return " ".join([opening, *settled])


def _but(verdict: Verdict) -> str:
    """Returns what the rule of a hypothesis itself says, where what it stands on fails."""
    gates = all(part.passed for part in verdict.parts if part.kind == "gate")
    holds = verdict.p_adjusted is not None and verdict.p_adjusted < family.LEVEL and gates
    return ", though every part of its own rule holds" if holds else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def settle(study: Study, verdict: Verdict) -> str:
    """Returns what would settle an undecided claim, as a sentence.

    That is a gate to be met, or the number of pairs with which the same estimate and spread would
    be told from the threshold, with power .8, at the level of a single hypothesis in the family.

    Args:
      study: the study.
      verdict: its verdict, inconclusive though what it stands on holds.
    """
    gates = [part for part in verdict.parts if part.kind == "gate" and not part.passed]
    if gates:
        part = gates[0]
        return (
            f"a gate is not met: {part.statistic} ({part.name}) is {part.estimate:.3g} and must "
            f"be {wording.format_rule(part)}; more pairs would not change that."
        )
    part = wording.weakest_part(verdict)
    if part is None or not math.isfinite(part.estimate):
        return f"{verdict.reason}."
    facts = (
        f"the part '{part.name}' is {format_estimate(part.estimate, part.low, part.high)} and must "
        f"be {wording.format_rule(part)}"
    )
    if study.text.unit != "pairs":
        return f"{facts}; more {study.text.unit} would settle it, not more pairs."
    needed = pairs_needed(part)
    if needed is None:
        return f"{facts}; the estimate lies too near to the threshold for any number of pairs."
    way = "" if part.clearance > 0 else " against the claim"
    return f"{facts}; if it stays, about {needed:,} pairs would settle it{way}."


def pairs_needed(part: PartResult) -> int | None:
    """Returns the number of pairs that would tell an estimate from its threshold; None if over 10⁵.

    Args:
      part: a test whose interval narrows with the square root of the number of pairs.
    """
    half = wording.half_width(part.estimate, part.low, part.high)
    if not half or not part.clearance:
        return None
    error = half / distributions.t.ppf(0.975, max(1, part.num_pairs - 1))
    level, power = distributions.norm.isf([family.LEVEL / studies.family_size(), 1 - POWER])
    needed = part.num_pairs * ((level + power) * error / part.clearance) ** 2
    return math.ceil(max(needed, part.num_pairs)) if needed < 1e5 else None


def sections(results: Sequence[Result]) -> str:
    """Returns a section for each hypothesis: what all data sets say together, and the numbers.

    Args:
      results: shipped ones.
    """
    texts = []
    for study in studies.available().values():
        if study.kind != "hypothesis":
            continue
        texts.append(f"### {study.id}: {study.text.short}\n\n{together(study, results)}")
        if table := headlines(study, results):
            texts.append(table)
    return "\n\n".join(texts)


MOST_HEADLINES = 4


def headlines(study: Study, results: Sequence[Result]) -> str:
    """Returns the first numbers of a study by data set; empty where there are none.

    Args:
      study: the study.
      results: shipped ones.
    """
    ran = [(result, result.verdict(study.id)) for result in results]
    columns = [(result, verdict) for result, verdict in ran if verdict is not None]
    labels = list(
        dict.fromkeys(
            headline.label
            for _, verdict in columns
            for headline in verdict.headlines[:MOST_HEADLINES]
        )
    )
    rows = []
    for label in labels:
        row = [label]
        for _, verdict in columns:
            shown = [headline for headline in verdict.headlines if headline.label == label]
            row.append(
                format_estimate(shown[0].estimate, shown[0].low, shown[0].high)
                if shown
                else _NO_RUN
            )
        rows.append(row)
    return markdown(["", *(name_of(result) for result, _ in columns)], rows) if rows else ""


def law(results: Sequence[Result], num_deciding: int) -> str:
    """Returns the errors of the law and of its rivals by data set.

    Args:
      results: shipped ones.
      num_deciding: how many of the predictors decide, the law first.
    """
    known = [(result, result.law.errors) for result in results if result.law is not None]
    rows = []
    for place, name in enumerate(known[0][1]):
        shown = f"**{name}, the law**" if place == 0 else name
        if place == num_deciding:
            shown = f"*beside it, not deciding:* {name}"
        rows.append([shown, *(format_estimate(*errors[name]) for _, errors in known)])
    return markdown(["predicted from", *(name_of(result) for result, _ in known)], rows)


def law_by_intervention(results: Sequence[Result]) -> str:
    """Returns measured and predicted transfer of every intervention by data set.

    Args:
      results: shipped ones.
    """
    known = [(result, result.law) for result in results if result.law is not None]
    first = known[0][1]
    rows = []
    for place, (name, factor) in enumerate(zip(first.names, first.factors, strict=True)):
        row = [name, factor]
        for _, points in known:
            estimate, low, high = points.measured[1 + place]
            row += [f"{points.predicted[place]:.3f}", format_estimate(estimate, low, high)]
        rows.append(row)
    base = ["base", _NO_RUN]
    for _, points in known:
        base += [_NO_RUN, format_estimate(*points.measured[0])]
    columns = ["intervention", "factor"]
    for result, _ in known:
        columns += [f"{name_of(result)}, predicted", "measured"]
    return markdown(columns, [base, *rows])


def study_table(results: Sequence[Result], name: str) -> str:
    """Returns a table of a study's figure on each data set that has it, each with its title.

    Args:
      results: shipped ones.
      name: of the figure.
    """
    texts = []
    for result in results:
        if name in result.tables:
            table = result.tables[name]
            texts.append(f"*{name_of(result)}*\n\n{markdown(table['columns'], table['rows'])}")
    return "\n\n".join(texts)


def replication(first: Result, again: Sequence[Result]) -> str:
    """Returns effects of a data set with several seeds.

    Args:
      first: with the shipped seed.
      again: with others.
    """
    rows = [
        [study.id, study.text.short]
        + [cell(result.verdict(study.id)) for result in (first, *again)]
        for study in studies.available().values()
        if study.kind != "description"
    ]
    return markdown(["", "claim", *map(column_of, (first, *again))], rows)


def null(results: Sequence[Result]) -> str:
    """Returns what studies claim of shuffled pools, gates and controls ignored.

    Args:
      results: of runs with permuted labels.
    """
    without = registration.without_labels()
    claims = [
        {
            row.id: row
            for row in global_null.claimed(
                result.verdicts, family_size=studies.family_size(), without_labels=without
            )
        }
        for result in results
    ]
    rows = []
    for study in studies.available().values():
        if study.kind in ("verification", "description"):
            continue
        row = [study.id, study.text.short]
        for rows_by_id in claims:
            claimed = rows_by_id.get(study.id)
            if claimed is None:
                row.append(_NO_RUN)
                continue
            row.append(f"{format_p(claimed.p_value)}, {claimed.outcome}")
        rows.append([*row, without.get(study.id, "")])
    heads = [f"p, seed {result.seed}" for result in results]
    table = markdown(["", "claim", *heads, "why it needs no true labels"], rows)
    return table if results else f"*No shuffled run is published yet.*\n\n{table}"


Format = Callable[[Triple], str]


def percent(triple: Triple) -> str:
    """Returns the estimate as a percentage.

    Args:
      triple: estimate, low and high.
    """
    value = triple[0]
    return (
        wording.format_share(value)
        if 0 <= value <= 1
        else f"{round(100 * value)} %".replace("-", "−")
    )


def points(triple: Triple) -> str:
    """Returns the estimate in percentage points.

    Args:
      triple: estimate, low and high.
    """
    return f"{100 * triple[0]:.1f} points"


def plain(triple: Triple) -> str:
    """Returns the estimate with two decimals.

    Args:
      triple: estimate, low and high.
    """
    return f"{triple[0]:.2f}"


FORMATS: Mapping[str, Format] = {"percent": percent, "points": points, "plain": plain}
