"""The report as one HTML page: strings in, a string out; no script, no network.

`report` draws the figures and writes the file; here is what a reader sees, in the
order of the sections: the answer, the map, the forest, a card for each hypothesis, every
condition, what to distrust, how to repeat it.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from halfway.lab.report.cards import cards
from halfway.lab.report.document import document
from halfway.lab.report.elements import (
    Drawing,
    Table,
    css_class,
    duration,
    figure,
    glyph,
    listing,
    table,
    text,
)
from halfway.lab.study import wording
from halfway.lab.study.protocol import Evidence, Verdict

BY_CONSTRUCTION = (
    "M_θ in error is close to a held-out error, counted from the best constant predictor: that "
    "it is high where a model generalizes is no discovery.",
    "With labels noisy at rate ρ and one half fitted, a perfect predictor reaches 1 − ρ: the "
    "ceiling. That M_θ falls with ρ is arithmetic; how far below the ceiling it falls is not.",
    "A model that ignores the labels has M_θ = 0 on independent samples. Halves of one finite pool "
    "are a little dependent: A's majority class is rarer in B, so the best constant predictor of A "
    "is worse on B and such a model comes out slightly above 0. Permuted labels show by how much.",
    "Not by construction: how far below the ceiling, everything measured inside one half alone, "
    "κ, and every claim about transfer (T).",
)
MEANING = (
    "A meeting coefficient <i>M</i> says how far a walk down one side's landscape also goes down "
    "the other's: 1 all the way, ½ halfway, 0 not at all."
)
FINITE_DATA = (
    "All pairs are drawn from one finite data set. They are independent only given that set: the "
    "intervals say what other splits of the same data would give, not what other data would."
)
_SECTIONS = {
    "answer": "The answer",
    "map": "The map",
    "forest": "Effects",
    "hypotheses": "Hypothesis by hypothesis",
    "conditions": "Every condition",
    "distrust": "What to distrust",
    "repeat": "To repeat it",
}


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What was run, and all that is needed to run it again.

    Attributes:
      command: the command of the run as typed, e.g. "halfway reproduce".
      config: the configuration, plain data; `seed`: the one all keys are derived from.
      versions: package to version; `commit`: of the code, None outside a repository.
      devices: in words, e.g. "CPU (2 cores)"; `num_devices`: how many JAX used.
      dataset, data_version, data_checksum: name, version and checksum of what was loaded.
      num_pairs, num_conditions: pairs a condition, and how many conditions were trained.
      architectures: names.
      started: when, as text.
      seconds: run time of each stage, in the order they ran.
      warnings: a sentence each.
      evidence: the kind of evidence of the run's verdicts.
      layout: how members and examples were spread over devices, and the number of processes.
      compute_dtype: of training steps; all else is float32.
    """

    command: str
    config: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    commit: str | None
    devices: str
    num_devices: int
    dataset: str
    data_version: str
    data_checksum: str
    num_pairs: int
    architectures: Sequence[str]
    num_conditions: int
    started: str
    seconds: Mapping[str, float]
    warnings: Sequence[str]
    evidence: Evidence
    layout: str = ""
    compute_dtype: str = "float32"


def render(
    *,
    verdicts: Sequence[Verdict],
    family: Sequence[tuple[str, str]],
    explanations: Mapping[str, str],
    drawings: Mapping[str, Sequence[Drawing]],
    forest: Drawing | None,
    condition_tables: Sequence[Table],
    condition_drawings: Sequence[Drawing],
    run: RunInfo,
) -> str:
    """Returns the whole page.

    Args:
      verdicts: what was decided.
      family: all hypotheses in order, (id, short claim).
      explanations: a paragraph for each id that was run; blank lines separate paragraphs.
      drawings: the figures of each card.
      forest: the figure of all effects; None where nothing was run.
      condition_tables, condition_drawings: everything that was measured, without a verdict.
      run: what was run.
    """
    tiles = wording.states(verdicts, family)
    verdicts = wording.in_order(verdicts, family)
    bodies = {
        "answer": _answer(verdicts, len(family), run),
        "map": _map(tiles),
        "forest": _forest(verdicts, forest),
        "hypotheses": cards(verdicts, tiles, explanations, drawings, run.command),
        "conditions": _conditions(condition_tables, condition_drawings),
        "distrust": _distrust(verdicts, run),
        "repeat": repeat(run),
    }
    return document(
        f"halfway: {run.dataset}, seed {run.seed}",
        "Do halves meet? Do models meet?",
        {name: (title, bodies[name]) for name, title in _SECTIONS.items()},
    )


def _answer(verdicts: Sequence[Verdict], num_family: int, run: RunInfo) -> str:
    lines = []
    for letter in "GT":
        lead, rest = wording.answer(verdicts, letter)
        lines.append(f'<p class="answer"><strong>{text(lead)}</strong> {text(rest)}</p>')
    kind = escape(wording.EVIDENCE[run.evidence])
    little = escape(wording.little_was_run(len(verdicts), num_family))
    ran = [
        f"data set {run.dataset}",
        f"{run.num_pairs} pairs a condition",
        ", ".join(run.architectures),
        f"{run.num_conditions} condition" + "s" * (run.num_conditions != 1),
        duration(sum(run.seconds.values())),
        f"{run.num_devices} × {run.devices}",
    ]
    return (
        "\n".join(lines)
        + f"<p>{MEANING}</p><p>Evidence: {kind}. {little} Brackets are 95 % intervals.</p>"
        + f'<p class="ran">Run: {" · ".join(map(escape, ran))}.</p>'
    )


def _map(tiles: Sequence[tuple[str, str, str]]) -> str:
    rows = []
    for letter, question in (("G", "G: do halves meet?"), ("T", "T: do models meet?")):
        cells = "".join(
            f'<li><a class="tile {css_class(state)}" href="#{name.lower()}">'
            f'<span class="state">{glyph(state)}<b>{name}</b> {state}</span>'
            f'<span class="claim">{text(claim)}</span></a></li>'
            for name, claim, state in tiles
            if name[0] == letter
        )
        rows.append(f'<h3>{question}</h3><ul class="map">{cells}</ul>')
    return "\n".join(rows)


def _forest(verdicts: Sequence[Verdict], forest: Drawing | None) -> str:
    if forest is None:
        return "<p>No hypothesis was run, so there is no effect to show.</p>"
    notes = []
    for verdict in verdicts:
        weakest = wording.weakest_part(verdict)
        if weakest is not None and len(verdict.parts) > 1:
            value = wording.format_estimate(weakest.estimate, weakest.low, weakest.high)
            rule = wording.format_rule(weakest)
            notes.append(
                f'<a href="#{verdict.id.lower()}">{verdict.id}</a> {text(weakest.statistic)}: '
                f"{text(value)}, must be {text(rule)}"
            )
    if not notes:
        return figure(forest)
    lead = "<p>A rule holds only where all of its parts do. The weakest part of each:</p>"
    return f'<div class="beside">{figure(forest)}<div>{lead}{listing(notes)}</div></div>'


def _conditions(tables: Sequence[Table], drawings: Sequence[Drawing]) -> str:
    if not tables and not drawings:
        return "<p>Nothing was measured outside the hypotheses above.</p>"
    parts = ["<p>Descriptions, without a verdict: every condition that was trained.</p>"]
    for item in tables:
        parts.append(f"<h3>{text(item.title)}</h3><p>{text(item.caption)}</p>")
        parts.append(table(item.columns, item.rows, item.title))
    parts.append(f'<div class="figures">{"".join(map(figure, drawings))}</div>')
    return "\n".join(parts)


def _distrust(verdicts: Sequence[Verdict], run: RunInfo) -> str:
    found = [text(item) for item in run.warnings]
    for verdict in verdicts:
        link = f'<a href="#{verdict.id.lower()}">{verdict.id}</a>: '
        found += [link + text(item) for item in verdict.warnings]
        for part in verdict.parts:
            if part.kind == "gate" and not part.passed:
                value = wording.format_estimate(part.estimate, part.low, part.high)
                rule = wording.format_rule(part)
                found.append(
                    link
                    + text(f"gate {part.name} not met: {part.statistic} is {value}, not {rule}.")
                )
        if verdict.num_excluded:
            noun = "pair" if verdict.num_excluded == 1 else "pairs"
            found.append(
                f"{link}{verdict.num_excluded} {noun} left out, because a value was not finite."
            )
    kind = f"Evidence: {escape(wording.EVIDENCE[run.evidence])}."
    return (
        "<h3>So by construction</h3>"
        + listing([text(item) for item in BY_CONSTRUCTION])
        + "<h3>The data and the evidence</h3>"
        + listing([escape(FINITE_DATA), kind])
        + "<h3>Warnings of this run</h3>"
        + (listing(list(dict.fromkeys(found))) if found else "<p>None.</p>")
    )


def _precision(compute_dtype: str) -> str:
    if compute_dtype == "float32":
        return "float32 throughout"
    return f"training steps compute in {compute_dtype}; parameters and every measurement: float32"


def repeat(run: RunInfo) -> str:
    """Returns the section on how to repeat a run, as HTML."""
    facts = [
        ("Seed", str(run.seed)),
        ("Commit", run.commit or "not in a repository"),
        (
            "Data",
            f"{run.dataset}, version {run.data_version or 'unknown'}, checksum {run.data_checksum}",
        ),
        ("Devices", ", ".join(filter(None, (f"{run.num_devices} × {run.devices}", run.layout)))),
        ("Precision", _precision(run.compute_dtype)),
        ("Started", run.started),
    ]
    listed = "".join(f"<dt>{term}</dt><dd>{escape(words)}</dd>" for term, words in facts)
    stages = [[stage, duration(value)] for stage, value in run.seconds.items()]
    stages.append(["total", duration(sum(run.seconds.values()))])
    versions = [[name, version] for name, version in run.versions.items()]
    config = escape(json.dumps(run.config, indent=2, default=str, ensure_ascii=False))
    times = table(["Stage", "Time"], stages, "Run time by stage")
    packages = table(["Package", "Version"], versions, "Versions")
    return (
        f"<pre><code>{escape(run.command)}</code></pre><dl>{listed}</dl>"
        f'<div class="side"><div><h3>Run time by stage</h3>{times}</div>'
        f"<div><h3>Versions</h3>{packages}</div></div>"
        f"<details><summary>Configuration</summary><pre><code>{config}</code></pre></details>"
    )
