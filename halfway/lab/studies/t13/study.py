"""T13: the tangent kernel says before training how far two networks will agree."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.grid import AGREEMENT, TERMS
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.studies.t13.measure import (
    DISTANCE,
    LOSSES,
    RATES,
    SPECTRA,
    TANGENT,
    setting,
    sizes,
)
from halfway.lab.study import rules, text
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.lab.study.wording import format_estimate

TEXT = text.load(__file__)
NEAR = 0.05
"""Below which the mean error of the predicted μ_f must lie."""
AGREES, BEATS = "error of the tangent kernel", "against distances"


class Compared(NamedTuple):
    """Measured terms and predictions, of one loss.

    Attributes:
      cells: (n, ρ) of each.
      terms: terms of a coefficient, `[N, P]` each.
      predicted: `[N]` by kernel.
    """

    cells: list[tuple[int, float]]
    terms: RatioTerms
    predicted: Mapping[str, np.ndarray]


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training and agreement of wide networks, and the spectra of two kernels."""
    conditions = [
        setting(config, size, rate, loss)
        for loss in LOSSES
        for size in sizes(config)
        for rate in RATES
    ]
    requests = [Request(m, (c,)) for c in conditions for m in (LEARNING, AGREEMENT)]
    return [*requests, Request(SPECTRA, tuple(conditions[:1]))]


def _spectra(records: Records) -> Measured:
    return records.get(
        SPECTRA, setting(records.config, sizes(records.config)[0], RATES[0], LOSSES[0])
    )


def compared(
    records: Records, loss: str, space: str = "values", quantity: str = "predicted"
) -> Compared:
    """Returns what was measured beside what kernels predict, of each size and noise rate.

    Args:
      records: of the run.
      loss: of `LOSSES`.
      space: of `grid.SPACES`.
      quantity: of `SPECTRA`, for that space.
    """
    spectra = _spectra(records)
    cells = [(size, rate) for size in sizes(records.config) for rate in RATES]
    numerators, denominators = [], []
    for size, rate in cells:
        agreed = records.get(AGREEMENT, setting(records.config, size, rate, loss))
        product, followed, other = (
            agreed.read("terms", "pair", space=space, term=term) for term in TERMS
        )
        numerators.append(2 * product)
        denominators.append(followed + other)
    predicted = {
        kernel: np.array(
            [
                float(spectra.read(quantity, kernel=kernel, num_examples=size, noise_rate=rate))
                for size, rate in cells
            ]
        )
        for kernel in (TANGENT, DISTANCE)
    }
    return Compared(cells, RatioTerms(np.array(numerators), np.array(denominators)), predicted)


def _error(values: Compared, kernel: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function of weights of pairs to the mean |μ − predicted| `[R]`."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        ratio = stats.weighted_ratio(weights, *values.terms)
        return np.abs(ratio - values.predicted[kernel]).mean(-1)

    return statistic


def _test(values: Compared, statistic_fn, threshold: float, alternative) -> stats.Decision:
    return stats.composite_test(
        statistic_fn,
        values.terms.numerators.shape[-1],
        threshold,
        alternative=alternative,
        valid=stats.valid_pairs(*values.terms),
    )


def decide(records: Records) -> Outcome:
    """Returns the test of the tangent kernel's error, and of its lead over distances.

    Errors are means of |μ_f − P10| over sizes and noise rates, μ_f of both directions on S. Pairs
    are the units; the prediction has no error of its own here.
    """
    values = compared(records, LOSSES[0])
    near, far = (_error(values, kernel) for kernel in (TANGENT, DISTANCE))
    parts = (
        rules.part(
            _test(values, near, NEAR, "less"),
            AGREES,
            "mean |μ_f − predicted|",
            "less",
            NEAR,
        ),
        rules.part(
            _test(values, lambda weights: far(weights) - near(weights), 0.0, "greater"),
            BEATS,
            f"error of the {DISTANCE} − that of the {TANGENT}",
            "greater",
            0.0,
            control=DISTANCE,
        ),
    )
    slopes = compared(records, LOSSES[0], "jacobians", "predicted_slopes")
    headlines = [
        rules.headline(
            "mean error of μ_f",
            _test(values, near, 0.0, "greater"),
            DISTANCE,
            _test(values, far, 0.0, "greater"),
        ),
        rules.headline("mean error of μ_J", _test(slopes, _error(slopes, TANGENT), 0.0, "greater")),
    ]
    if LOSSES[1] in _trained_on(records):
        squared = compared(records, LOSSES[1])
        decision = _test(squared, _error(squared, TANGENT), 0.0, "greater")
        headlines.append(rules.headline("mean error of μ_f with squared loss", decision))
    return Outcome(parts, (AGREES,), tuple(headlines))


def _trained_on(records: Records) -> list[str]:
    """Returns the losses whose networks were measured, the one that decides first."""
    return [
        loss
        for loss in LOSSES
        if records.has(AGREEMENT, setting(records.config, sizes(records.config)[0], RATES[0], loss))
    ]


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns measured and predicted agreement against n, at each noise rate.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    both = [
        compared(records, LOSSES[0]),
        compared(records, LOSSES[0], "jacobians", "predicted_slopes"),
    ]
    sizes = sorted({size for size, _ in both[0].cells})
    measured, predicted = {}, {}
    for rate in RATES:
        places = [both[0].cells.index((size, rate)) for size in sizes]
        points = [
            np.array(
                [
                    rules.triple(stats.fieller(*(array[place] for array in values.terms)))
                    for place in places
                ]
            )
            for values in both
        ]
        measured[f"ρ = {rate:g}"] = (points[0], points[1])
        lines = [values.predicted[TANGENT][places] for values in both]
        predicted[f"ρ = {rate:g}"] = (sizes, lines[0], lines[1])
    axes = plots.spectral_law(sizes, measured, predicted)
    caption = TEXT.caption("t13_agreement", verdict)
    table = _table(records, verdict)
    return [Figure("t13_agreement", caption, rules.figure_of(axes), table)]


def _table(records: Records, verdict: Verdict) -> Table:
    """Returns measured and predicted coefficients of both losses and spaces."""
    rows = []
    spaces = {"μ_f": ("values", "predicted"), "μ_J": ("jacobians", "predicted_slopes")}
    for loss in _trained_on(records):
        for symbol, (space, quantity) in spaces.items():
            values = compared(records, loss, space, quantity)
            for place, (size, rate) in enumerate(values.cells):
                terms = (array[place] for array in values.terms)
                rows.append(
                    [
                        f"{symbol}, n = {size}, ρ = {rate:g}",
                        loss.replace("_", " "),
                        format_estimate(*rules.triple(stats.fieller(*terms))),
                        *(f"{values.predicted[k][place]:.3f}" for k in (TANGENT, DISTANCE)),
                    ]
                )
    columns = ["coefficient", "trained on", "measured", TANGENT, DISTANCE]
    return Table("Measured and predicted", TEXT.caption("t13_table", verdict), columns, rows)


STUDY = Study("T13", TEXT, needs, decide, figures, stands_on=("T1",))
