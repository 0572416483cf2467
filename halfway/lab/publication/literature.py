"""Published numbers beside ours: tables of the literature page."""

import math
from collections.abc import Callable, Mapping, Sequence

from halfway.lab.publication.result import Result
from halfway.lab.publication.tables import markdown, name_of
from halfway.lab.studies.d1 import study as d1
from halfway.lab.studies.d2 import study as d2
from halfway.lab.studies.d3 import study as d3
from halfway.lab.study.verdict import Headline, Verdict
from halfway.lab.study.wording import format_estimate, format_percent

NOT_MEASURED = "*Not measured yet.*"

DISAGREEMENT = {
    "all different": "1.036",
    "same start and order, other data": "1.038",
    "same data, other start": ".911",
    "same data, other order": ".901",
    "same data, other start and order": "–",
}
"""Disagreement over error by what differs: Jiang et al., arXiv 2106.13799, CIFAR-10, ResNet-18."""
_ALL = "all different"


def disagreement(results: Sequence[Result]) -> str:
    """Returns disagreement over error by what differs between two models, published and ours.

    Args:
      results: shipped ones.
    """
    ours = [(result, result.verdict("G4")) for result in results]
    measured = [(result, verdict) for result, verdict in ours if verdict is not None]
    larger = dict.fromkeys(
        headline.label.split(", ", 1)[1]
        for _, verdict in measured
        for headline in verdict.headlines
        if f", {_ALL}, n = " in headline.label
    )
    rows = []
    for setting in (*DISAGREEMENT, *larger):
        cells = [
            _other_data(result) if setting == d1.OTHER_DATA else _ratio(verdict, setting)
            for result, verdict in measured
        ]
        rows.append([setting, DISAGREEMENT.get(setting, "–"), *cells])
    return markdown(
        ["what differs", "published", *(name_of(result) for result, _ in measured)], rows
    )


def _other_data(result: Result) -> str:
    """Returns the ratio where data alone differ, which D1 has; a dash where it was not run."""
    verdict = result.verdict("D1")
    label = f"disagreement over error, {d1.OTHER_DATA}"
    return "–" if verdict is None else _shown(verdict, label)


def _ratio(verdict: Verdict, setting: str) -> str:
    if setting == _ALL:
        return format_estimate(verdict.effect, *verdict.interval)
    return _shown(verdict, f"disagreement over error, {setting}")


def _shown(verdict: Verdict, label: str) -> str:
    """Returns a headline of a verdict as text; a dash where it has none of that label."""
    headlines: dict[str, Headline] = {headline.label: headline for headline in verdict.headlines}
    if label not in headlines:
        return "–"
    headline = headlines[label]
    if math.isnan(headline.low) and headline.estimate.is_integer():  # a step
        return f"{headline.estimate:.0f}"
    return format_estimate(headline.estimate, headline.low, headline.high)


ONSETS = {
    "last step before accuracy": "step t* ({})",
    "onset of the alignment": "onset of the alignment of input gradients ({}), step",
    "share of the alignment's gain before accuracy": "part of the alignment's gain at t* ({})",
}
"""Rows of the table of onsets, with the headlines of T4."""


def onsets(results: Sequence[Result]) -> str:
    """Returns when attack directions align and when accuracy rises, by data set and architecture.

    Args:
      results: shipped ones.
    """
    columns, cells = [], {name: [] for name in ONSETS}
    for result in results:
        verdict = result.verdict("T4")
        if verdict is None:
            continue
        for architecture in result.meeting:
            columns.append(f"{name_of(result)}, {_in_words(architecture)}")
            for name, label in ONSETS.items():
                cells[name].append(_shown(verdict, label.format(architecture)))
    return markdown(["", *columns], [[name, *row] for name, row in cells.items()])


def calibration_points(results: Sequence[Result]) -> dict[str, dict[str, d1.Point]]:
    """Returns disagreement minus error and its bound, by data set and condition of the grid.

    Args:
      results: shipped ones.
    """
    measured = {name_of(result): result.verdict("D1") for result in results}
    return {
        name: d1.points(verdict.headlines)
        for name, verdict in measured.items()
        if verdict is not None
    }


def calibration(results: Sequence[Result]) -> str:
    """Returns how far disagreement and error differ, and how much of the bound that is.

    Args:
      results: shipped ones.
    """
    rows = []
    for name, by_condition in calibration_points(results).items():
        farthest = max(by_condition, key=lambda condition: abs(by_condition[condition][0]))
        estimate, low, high, bound = by_condition[farthest]
        above = sum(abs(values[0]) > values[3] for values in by_condition.values())
        shares = sorted(abs(values[0]) / values[3] for values in by_condition.values() if values[3])
        rows.append(
            [
                name,
                f"{len(by_condition)}",
                f"{above}",
                f"{100 * shares[len(shares) // 2]:.0f} %",
                f"{farthest}: {format_estimate(estimate, low, high)}, bound {bound:.3f}",
            ]
        )
    columns = [
        "data set",
        "conditions",
        "of these above the bound",
        "median share of the bound",
        "largest difference",
    ]
    if not rows:
        return NOT_MEASURED
    alt = "Disagreement minus error of each condition against its calibration error."
    return f"{markdown(columns, rows)}\n\n![{alt}](figures/{CALIBRATION_FIGURE}.png)"


CALIBRATION_FIGURE = "literature_calibration"


NOISE_SCALE = 900.0
"""Of MNIST, about: McCandlish et al., arXiv 1812.06162, the mean over training."""
NOISE_FIGURE = "literature_noise"
OTHER_HALF = "other half"
"""Of the two halves, the one that the models were not trained on, as D2 calls it."""


def noise_curves(results: Sequence[Result]) -> dict[str, dict[tuple[str, str], d2.Curve]]:
    """Returns n_half by data set, architecture and half, and step.

    Args:
      results: shipped ones.
    """
    measured = {name_of(result): result.verdict("D2") for result in results}
    return {
        name: d2.curves(verdict.headlines)
        for name, verdict in measured.items()
        if verdict is not None
    }


def noise_scale(results: Sequence[Result]) -> str:
    """Returns n_half at the first, a middle and the last step, and its mean over training.

    Args:
      results: shipped ones.
    """
    rows = []
    for result in results:
        verdict = result.verdict("D2")
        for (architecture, half), curve in d2.curves(verdict.headlines).items() if verdict else ():
            steps = sorted(curve)
            places = (steps[0], steps[1], steps[len(steps) // 2], steps[-1])
            shown = [f"{format_estimate(*curve[step])} ({step})" for step in places]
            mean = d2.mean_over_training(curve)
            published = f"about {NOISE_SCALE:g}" if result.dataset == "mnist" else "–"
            rows.append(
                [
                    f"{name_of(result)}, {_in_words(architecture)}, {half}",
                    *shown,
                    "undefined" if math.isnan(mean) else f"{mean:,.0f}",
                    published,
                ]
            )
    columns = ["n_half (after steps)", "start", "next", "middle", "end", "mean", "published mean"]
    if not rows:
        return NOT_MEASURED
    alt = "The gradient noise scale along training on each data set, MLP and CNN."
    return f"{markdown(columns, rows)}\n\n![{alt}](figures/{NOISE_FIGURE}.png)"


ORDER: Mapping[str, str] = {
    "I-FGSM": "36",
    "FGSM": "55",
    "MI-FGSM": "58",
    "TIM": "58",
    "NI-FGSM": "67",
    "SIM": "70 to 71",
    "VMI-FGSM": "70 to 71",
    "DIM": "70 to 71",
}
"""Success in %, ResNet-50 to CNNs at 16/255: survey, arXiv 2602.23117."""
JOINT = {"ensemble": "32.2", "ensemble, SVRE": "31.5"}
"""Success in % on vision transformers, same survey."""
TARGETED = {
    "MI-FGSM": "–",
    "MI-FGSM, targeted": "0 to 4",
    "ensemble": "–",
    "ensemble, targeted": "11 to 46",
}
"""Success in %, ImageNet networks: Liu et al., arXiv 1611.02770."""


STEPS = {
    "FGSM minus I-FGSM": "19",
    "MI-FGSM minus FGSM": "3",
    "TIM minus FGSM": "3",
    "NI-FGSM minus MI-FGSM": "9",
    "SIM minus NI-FGSM": "3 to 4",
    "VMI-FGSM minus NI-FGSM": "3 to 4",
    "DIM minus NI-FGSM": "3 to 4",
    "ensemble, SVRE minus ensemble": "−0.7",
}
"""The same as differences, in percentage points: all but the last are a gain."""
_NO_GAIN = "ensemble, SVRE minus ensemble"


def attack_steps(results: Sequence[Result]) -> str:
    """Returns the differences along the published order, and whether each of them holds.

    A gain holds where its whole interval lies above 0, and is reversed where it lies below; that
    SVRE gains nothing holds unless its whole interval lies above 0.

    Args:
      results: all that are published.
    """

    def judged(name: str, step: d3.Interval) -> str:
        _, low, high = step
        if name == _NO_GAIN:
            word = "does not hold" if low > 0 else "holds"
        else:
            word = "holds" if low > 0 else "reversed" if high < 0 else "open"
        return f"{format_percent(*step)}, {word}"

    return ways(results, STEPS, cell=judged)


def _percent(name: str, rate: d3.Interval) -> str:
    del name
    return format_percent(*rate)


def ways(
    results: Sequence[Result],
    published: Mapping[str, str],
    cell: Callable[[str, d3.Interval], str] = _percent,
) -> str:
    """Returns how far attacks transfer in %: a column a data set and architecture of the targets.

    Args:
      results: all that are published.
      published: success in % by name of the way to attack, or of a step.
      cell: the name and our number to the text of a cell.
    """
    columns: dict[str, Mapping[str, d3.Interval]] = {}
    for result in results:
        verdict = result.verdict("D3")
        if verdict is not None:
            surrogate = d3.architectures(verdict.headlines)[0]
            for architecture, values in d3.rates(verdict.headlines, list(published)).items():
                where = f"{_in_words(surrogate)} to {_in_words(architecture)}"
                columns[f"{name_of(result)}, {where}"] = values
    if not columns:
        return NOT_MEASURED
    rows = [
        [name, number, *(cell(name, values[name]) for values in columns.values())]
        for name, number in published.items()
    ]
    return markdown(["%", "published", *columns], rows)


def _in_words(architecture: str) -> str:
    """Returns an architecture of our configs as it is called in text."""
    words = {"residual": "residual network", "transformer": "transformer", "linear": "linear model"}
    return words.get(architecture, architecture.upper())
