"""Documents whose tables and sentences are made from published results."""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from halfway import storage
from halfway.lab.config.user import UserError
from halfway.lab.publication import figures, literature, result, tables
from halfway.lab.publication.result import Result
from halfway.lab.report import drawing
from halfway.lab.studies.d1 import figures as d1_figures
from halfway.lab.studies.t3 import study as t3
from halfway.lab.study import rules

DOCUMENTS = ("README.md", "docs/results.md", "docs/law.md", "docs/literature.md")
"""Documents that have such blocks, relative to the repository."""
_BLOCK = re.compile(r"(<!-- begin ([\w:-]+) -->\n)(?:.*?\n)?(<!-- end \2 -->)", re.DOTALL)
_NUM_DECIDING = 1 + len(t3.COMPARED)


def blocks(results: Sequence[Result]) -> dict[str, Callable[[], str]]:
    """Returns the functions that write each block, by its name.

    Args:
      results: all that are published, in order.
    """
    shipped = result.shipped(results)
    unshuffled = [published for published in results if not published.shuffled]
    again = [
        published for published in unshuffled if published not in shipped and published.decides
    ]
    return {
        "runs": lambda: tables.runs(shipped),
        "counts": lambda: tables.counts(shipped),
        "checks": lambda: tables.verdicts(shipped, checks=True),
        "hypotheses": lambda: tables.verdicts(shipped),
        "sections": lambda: tables.sections(shipped),
        "law": lambda: tables.law(shipped, _NUM_DECIDING),
        "law-interventions": lambda: tables.law_by_intervention(shipped),
        "t13": lambda: tables.study_table(shipped, "t13_agreement"),
        "replication": lambda: "\n\n".join(
            tables.replication(first, others)
            for first in shipped
            if (others := [published for published in again if published.dataset == first.dataset])
        ),
        "null": lambda: tables.null([published for published in results if published.shuffled]),
        "questions": lambda: questions(shipped),
        "literature-disagreement": lambda: literature.disagreement(shipped),
        "literature-onsets": lambda: literature.onsets(shipped),
        "literature-calibration": lambda: literature.calibration(shipped),
        "literature-noise": lambda: literature.noise_scale(shipped),
        "literature-order": lambda: literature.ways(unshuffled, literature.ORDER),
        "literature-steps": lambda: literature.attack_steps(unshuffled),
        "literature-joint": lambda: literature.ways(unshuffled, literature.JOINT),
        "literature-targeted": lambda: literature.ways(unshuffled, literature.TARGETED),
    }


def questions(results: Sequence[Result]) -> str:
    """Returns the questions of the README with an answer a data set.

    Args:
      results: shipped ones.
    """
    path = Path(__file__).with_name("questions.toml")
    asked = tomllib.loads(path.read_text(encoding="utf-8"))["questions"]
    rows = [[row["asked"], *(_answer(row, published) for published in results)] for row in asked]
    return tables.markdown(["what was asked", *map(tables.name_of, results)], rows)


def _answer(row: Mapping[str, str], published: Result) -> str:
    """Returns the number that answers a question, and the verdict where it is of one."""
    verdict = published.verdict(row["study"])
    if verdict is None:
        return "–"
    shown = tables.FORMATS[row["format"]]
    if "meeting" in row:
        first = next(iter(published.meeting))
        rates = published.meeting[first]
        return shown(rates[row["meeting"]]) if row["meeting"] in rates else "–"
    if "headline" in row:
        headline = next(h for h in verdict.headlines if h.label.startswith(row["headline"]))
        triple = headline.estimate, headline.low, headline.high
    else:
        triple = verdict.effect, *verdict.interval
    return f"{shown(triple)}, {verdict.verdict}"


def filled(text: str, results: Sequence[Result]) -> str:
    """Returns a document with all its blocks as results have them.

    Args:
      text: with blocks between `<!-- begin NAME -->` and `<!-- end NAME -->`.
      results: all that are published, in order.

    Raises:
      UserError: for a block of another name.
    """
    known = blocks(results)

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        if name not in known:
            raise UserError(f"no block {name!r} is made from results: there are {', '.join(known)}")
        return f"{match[1]}{known[name]()}\n{match[3]}"

    return _BLOCK.sub(fill, text)


def update(root: Path) -> list[Path]:
    """Returns the documents that were written anew, and draws the figures.

    Args:
      root: the repository.

    Raises:
      UserError: if there are no results, or a document names an unknown block.
    """
    results = result.read_all(root / result.RESULTS_FOLDER)
    if not result.shipped(results):
        raise UserError(f"{root / result.RESULTS_FOLDER} holds no result of a shipped config")
    changed = []
    for name in DOCUMENTS:
        path = root / name
        before = path.read_text(encoding="utf-8")
        after = filled(before, results)
        if after != before:
            storage.write_whole(path, after.encode())
            changed.append(path)
    _draw(root / "docs" / "figures", result.shipped(results))
    return changed


def _draw(folder: Path, results: Sequence[Result]) -> None:
    drawn = {
        "results_map": figures.verdict_map(results),
        "results_clearness": figures.clearness(results),
        "results_law": figures.law(results, _NUM_DECIDING, t3.LARGEST_ERROR),
    }
    if points := literature.calibration_points(results):
        axes = d1_figures.against_bound(points, colors=figures.DATASET_COLORS)
        drawn[literature.CALIBRATION_FIGURE] = rules.figure_of(axes)
    if curves := literature.noise_curves(results):
        drawn[literature.NOISE_FIGURE] = figures.noise_scales(
            curves, half=literature.OTHER_HALF, published=literature.NOISE_SCALE
        )
    for name, figure in drawn.items():
        storage.write_whole(folder / f"{name}.png", drawing.png(figure, dpi=130))
