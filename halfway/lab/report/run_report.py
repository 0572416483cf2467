"""The report of a run, in the order of its sections.

The answer, the map, the forest, a card for each hypothesis, every condition, what to distrust, how
to repeat it.
"""

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from halfway import plots
from halfway.lab.report.page import Page
from halfway.lab.study import global_null, registration, wording
from halfway.lab.study.protocol import Figure, Table
from halfway.lab.study.verdict import WORDS, Evidence, Listed, PartResult, Verdict
from halfway.lab.study.wording import format_duration, format_estimate, format_p

LAW = "T3"
"""The study whose figure is the law of transfer: it stands at the top, not in its card."""
_KINDS = {"test": "test", "equivalence": "equivalence (two tests)", "gate": "gate (precondition)"}


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
      given: N where the pool is so small that what is said is said given its N images.
      shipped: the shipped config that this one is nearest to, with its digest and whether it is
        that of the lock; `changed`: the fields in which it differs.
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
    given: int | None = None
    shipped: str = ""
    changed: Sequence[str] = ()

    @property
    def ran(self) -> list[str]:
        """What was run, in a few words each."""
        return [
            f"data set {self.dataset}",
            f"{self.num_pairs} pairs a condition",
            ", ".join(self.architectures),
            f"{self.num_conditions} condition" + "s" * (self.num_conditions != 1),
            format_duration(sum(self.seconds.values())),
            f"{self.num_devices} × {self.devices}",
        ]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Name and value of what a repetition needs."""
        version, changed = self.data_version or "unknown", ", ".join(self.changed)
        precision = "float32 throughout"
        if self.compute_dtype != "float32":
            precision = (
                f"training steps compute in {self.compute_dtype}; parameters and every "
                "measurement: float32"
            )
        devices = f"{self.num_devices} × {self.devices}"
        return [
            ("Seed", str(self.seed)),
            ("Commit", self.commit or "not in a repository"),
            ("Shipped config", "; changed: ".join(filter(None, (self.shipped, changed)))),
            ("Data", f"{self.dataset}, version {version}, checksum {self.data_checksum}"),
            ("Devices", ", ".join(filter(None, (devices, self.layout)))),
            ("Precision", precision),
            ("Started", self.started),
        ]

    @property
    def stages(self) -> Table:
        """Run time of each stage and of all."""
        rows = [[stage, format_duration(value)] for stage, value in self.seconds.items()]
        rows.append(["total", format_duration(sum(self.seconds.values()))])
        return Table("Run time by stage", "", ["Stage", "Time"], rows)

    @property
    def packages(self) -> Table:
        """Versions of packages."""
        rows = [[name, version] for name, version in self.versions.items()]
        return Table("Versions", "", ["Package", "Version"], rows)

    @property
    def settings(self) -> str:
        """The configuration as JSON."""
        return json.dumps(self.config, indent=2, default=str, ensure_ascii=False)


def page(
    *,
    verdicts: Sequence[Verdict],
    listed: Sequence[Listed],
    explanations: Mapping[str, str],
    figures: Mapping[str, Sequence[Figure]],
    condition_tables: Sequence[Table],
    condition_figures: Sequence[Figure],
    run: RunInfo,
    walks: Figure | None = None,
) -> Page:
    """Returns the report.

    Args:
      verdicts: what was decided, in any order.
      listed: all studies in the order of the map.
      explanations: a paragraph in plain words for each id; blank lines separate paragraphs.
      figures: of each hypothesis's card, by id.
      condition_tables: descriptions of every condition.
      condition_figures: figures of them.
      run: what was run and how to repeat it.
      walks: the picture of training and attack, which follows the answer; the law of transfer
        follows it where T3 was run.

    Raises:
      ValueError: a verdict on a study that is not listed.
    """
    tiles = wording.tiles(verdicts, listed)
    verdicts = wording.in_order(verdicts, listed)
    forest = forest_figure(verdicts, listed)
    decided = [verdict for verdict in verdicts if verdict.kind == "hypothesis"]
    num_hypotheses = sum(study.kind == "hypothesis" for study in listed)
    cards = {
        kind: [
            _card(
                verdict, explanations.get(verdict.id, ""), figures.get(verdict.id, ()), run.command
            )
            for verdict in verdicts
            if verdict.kind == kind
        ]
        for kind in WORDS
    }
    weakest = [
        (verdict.id, part)
        for verdict in verdicts
        if len(verdict.parts) > 1 and (part := wording.weakest_part(verdict)) is not None
    ]
    content = {
        "run": run,
        "null": _null(verdicts, num_hypotheses) if run.config.get("shuffled_labels") else None,
        "answers": [wording.answer(verdicts, letter) for letter in "GT"],
        "walks": walks,
        "law": next(iter(figures.get(LAW, ())), None),
        "law_verdict": next((verdict for verdict in verdicts if verdict.id == LAW), None),
        "little": wording.little_was_run(len(decided), num_hypotheses),
        "tiles": tiles,
        "forest": forest,
        "weakest": weakest,
        "cards": cards,
        "missing": [(tile.id, tile.claim) for tile in tiles if tile.state == "not run"],
        "run_all": wording.rerun_command(run.command, "all"),
        "condition_tables": condition_tables,
        "condition_figures": condition_figures,
        "doubted": [verdict for verdict in verdicts if _doubts(verdict)],
    }
    drawn = [
        *([forest] if forest else []),
        *([walks] if walks else []),
        *(figure for many in figures.values() for figure in many),
        *condition_figures,
    ]
    heading = "Do halves meet? Do models meet?"
    return Page("report", f"halfway: {run.dataset}, seed {run.seed}", heading, content, drawn)


def _null(verdicts: Sequence[Verdict], num_hypotheses: int) -> Table:
    """Returns what studies claim of a pool whose labels are permuted."""
    rows = [
        [
            row.id,
            row.outcome,
            format_p(row.p_value),
            row.reason or "must claim nothing",
        ]
        for row in global_null.claimed(
            verdicts,
            family_size=num_hypotheses,
            without_labels=registration.without_labels(),
        )
    ]
    columns = ["Study", "Outcome", "p, gates and controls ignored", "Said beforehand"]
    return Table("The global null", "", columns, rows)


def _card(
    verdict: Verdict, explanation: str, figures: Sequence[Figure], command: str
) -> dict[str, Any]:
    """Returns what a card shows: claim, verdict, plain words, figures, every part of the rule."""
    explained = explanation if explanation.strip() else wording.sentence(verdict.reason)
    numbers = map(wording.format_headline, verdict.headlines)
    return {
        "verdict": verdict,
        "paragraphs": [part for part in explained.split("\n\n") if part.strip()],
        # Those of a description stand in the table of its figure.
        "numbers": [number for number in numbers if verdict.parts and number not in explained],
        "figures": () if verdict.id == LAW else figures,
        "figure_above": verdict.id == LAW and bool(figures),
        "parts": _parts(verdict),
        "command": wording.rerun_command(command, verdict.id),
    }


def _parts(verdict: Verdict) -> Table:
    columns = [
        "Part",
        "Holds",
        "Statistic",
        "Kind",
        "Estimate [95 %]",
        "Must be",
        "p",
        "p of reverse",
        "Pairs",
        "Control",
    ]
    rows = [_part(part) for part in verdict.parts]
    raw = format_p(verdict.p_value)
    effect = format_estimate(verdict.effect, *verdict.interval)
    caption = (
        f"Effect {effect}. All parts must hold, so the p-value of the rule is the largest of its "
        f"tests: {raw} raw"
    )
    if verdict.p_adjusted is None:
        caption += "; each must be below .05."
    else:
        adjusted = format_p(verdict.p_adjusted)
        caption += f", {adjusted} after Holm's adjustment over the family of hypotheses."
    return Table(f"Parts of the rule of {verdict.id}", caption, columns, rows)


def _part(part: PartResult) -> list[str]:
    pairs = f"{part.num_pairs}"
    if part.num_excluded:
        pairs += f" ({part.num_excluded} left out)"
    return [
        part.name,
        "yes" if part.passed else "no",
        part.statistic,
        _KINDS[part.kind],
        format_estimate(part.estimate, part.low, part.high),
        wording.format_rule(part),
        format_p(part.p_value),
        format_p(part.p_reverse),
        pairs,
        part.control or "–",
    ]


def _doubts(verdict: Verdict) -> bool:
    unmet = any(part.kind == "gate" and not part.passed for part in verdict.parts)
    return bool(verdict.warnings or unmet or verdict.num_excluded)


def forest_figure(verdicts: Sequence[Verdict], listed: Sequence[Listed]) -> Figure | None:
    """Returns the forest of all effects in the order of the list; None where there is no verdict.

    A control is drawn where the effect is a headline minus that control, for only then are the
    two on one axis.

    Args:
      verdicts: what was decided.
      listed: all studies in the order of the map.
    """
    rows = [
        _forest_row(verdict)
        for verdict in wording.in_order(verdicts, listed)
        if verdict.kind != "description"
    ]
    if not rows:
        return None
    caption = (
        "Effect and 95 % interval of the first part of each rule, worse architecture; every row "
        "has its own scale and unit. Dashed: the threshold; shaded: the side that the claim is "
        "on. Grey: the control. An arrow is an interval without end. An effect that is a "
        "difference from a control has that control at 0."
    )
    return Figure("forest", caption, plots.forest(rows)[0].figure)


def _forest_row(verdict: Verdict) -> plots.ForestRow:
    first = wording.effect_part(verdict) or next(iter(verdict.parts), None)
    low, high = verdict.interval
    control, label = None, ""
    for headline in verdict.headlines:
        if headline.control is None:
            continue
        difference = headline.estimate - headline.control[0]
        if abs(difference - verdict.effect) <= 1e-6 + 0.01 * abs(verdict.effect):
            control = headline.control
            label = f"control {format_estimate(*control).split(' [')[0]}"
            break
    failing = [part.name for part in verdict.parts if not part.passed]
    return plots.ForestRow(
        name=verdict.id,
        label=first.statistic if first else "effect",
        estimate=verdict.effect,
        low=low,
        high=high,
        threshold=first.threshold if first else (0.0,),
        direction=first.direction if first else "greater",
        verdict=verdict.verdict,
        value=format_estimate(verdict.effect, low, high),
        control=control,
        control_label=label,
        note=textwrap.shorten(f"fails: {failing[0]}", 26, placeholder="…") if failing else "",
    )
