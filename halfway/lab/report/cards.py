"""A card for each hypothesis: claim, verdict, plain words, figures, every part of its rule."""

from collections.abc import Mapping, Sequence
from html import escape

from halfway.lab.report.elements import Drawing, figure, glyph, table, text
from halfway.lab.study import wording
from halfway.lab.study.protocol import PartResult, Verdict


def cards(
    verdicts: Sequence[Verdict],
    tiles: Sequence[tuple[str, str, str]],
    explanations: Mapping[str, str],
    drawings: Mapping[str, Sequence[Drawing]],
    command: str,
) -> str:
    """Returns a card for each verdict, then the hypotheses that were not run.

    Args:
      verdicts: in the order of the family.
      tiles: (id, short claim, state) of the whole family.
      explanations: a paragraph for each id; drawings: the figures of each card.
      command: the command of the run.
    """
    found = [
        _card(verdict, explanations.get(verdict.id, ""), drawings.get(verdict.id, ()), command)
        for verdict in verdicts
    ]
    missing = [(name, claim) for name, claim, state in tiles if state == "not run"]
    if missing:
        whole = escape(wording.rerun_command(command, "all"))
        items = "".join(
            f'<li id="{name.lower()}"><b>{name}</b> {text(claim)}</li>' for name, claim in missing
        )
        found.append(
            f'<div class="card"><h3>Not run</h3><ul class="missing">{items}</ul>'
            "<p>To run every hypothesis that has a study:</p>"
            f"<pre><code>{whole}</code></pre></div>"
        )
    return "\n".join(found)


def _card(verdict: Verdict, explanation: str, drawings: Sequence[Drawing], command: str) -> str:
    name = verdict.id.lower()
    words = explanation if explanation.strip() else _sentence(verdict.reason)
    paragraphs = [part for part in words.split("\n\n") if part.strip()]
    numbers = "".join(
        f"<li>{text(number)}</li>"
        for number in map(wording.format_headline, verdict.headlines)
        if number not in words  # the paragraph may say it already
    )
    left_out = (
        f"{verdict.num_excluded} left out, because a value was not finite"
        if verdict.num_excluded
        else "none left out"
    )
    warnings = "".join(f"<li>{text(item)}</li>" for item in verdict.warnings)
    facts = [
        ("Why this verdict", text(_sentence(verdict.reason))),
        ("Control", text(verdict.control or "none")),
        ("Pairs", f"{verdict.num_pairs} used, {left_out}"),
        ("Evidence", escape(wording.EVIDENCE[verdict.evidence])),
    ]
    listed = "".join(f"<dt>{term}</dt><dd>{words}</dd>" for term, words in facts)
    again = escape(wording.rerun_command(command, verdict.id))
    return f"""<article class="card" id="{name}" aria-labelledby="{name}-title">
<div class="head"><h3 id="{name}-title"><b>{verdict.id}</b> {text(verdict.claim)}</h3>
<p class="badge {verdict.verdict}">{glyph(verdict.verdict)} {verdict.verdict}\
<span class="kind"> · evidence: {verdict.evidence}</span></p></div>
<div class="{"beside" if len(drawings) == 1 else "above"}"><div>
{"".join(f"<p>{text(part)}</p>" for part in paragraphs)}
{f'<ul class="numbers">{numbers}</ul>' if numbers else ""}</div>
<div class="figures">{"".join(figure(drawing) for drawing in drawings)}</div></div>
<details><summary>Every part of the rule</summary>
{_parts(verdict)}
<dl>{listed}</dl>
{f"<p>Distrust:</p><ul>{warnings}</ul>" if warnings else ""}
<p>To run just this again:</p><pre><code>{again}</code></pre>
</details>
</article>"""


_KINDS = {"test": "test", "equivalence": "equivalence (two tests)", "gate": "gate (precondition)"}
_TWO_SIDED = "test (two-sided)"


def _parts(verdict: Verdict) -> str:
    columns = [
        "Part",
        "Statistic",
        "Kind",
        "Estimate [95 %]",
        "Must be",
        "p",
        "p of reverse",
        "Pairs",
        "Control",
        "Holds",
    ]
    rows = [[*_part(part)] for part in verdict.parts]
    raw, adjusted = wording.format_p(verdict.p_value), wording.format_p(verdict.p_adjusted)
    effect = wording.format_estimate(verdict.effect, *verdict.interval)
    words = (
        f"Effect {effect}. All parts must hold, so the p-value of the rule is the largest of its "
        f"tests: {raw} raw, {adjusted} after Holm's adjustment over the family of hypotheses."
    )
    return table(columns, rows, f"Parts of the rule of {verdict.id}") + f"<p>{text(words)}</p>"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}".rstrip(".") + "."


def _part(part: PartResult) -> list[str]:
    pairs = f"{part.num_pairs}"
    if part.num_excluded:
        pairs += f" ({part.num_excluded} left out)"
    return [
        part.name,
        part.statistic,
        _TWO_SIDED if part.direction == "different" else _KINDS[part.kind],
        wording.format_estimate(part.estimate, part.low, part.high),
        wording.format_rule(part),
        wording.format_p(part.p_value),
        wording.format_p(part.p_reverse),
        pairs,
        part.control or "–",
        "yes" if part.passed else "no",
    ]
