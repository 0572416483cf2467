"""T7: what an ensemble gains is what the second law says it gains."""

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import ensembles
from halfway.lab.measurements.ensembles import ALIGNMENT, block_sizes, compared_on
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t7 import figures as drawing
from halfway.lab.studies.t7 import predict
from halfway.lab.studies.t7.measure import ENSEMBLES, MIDPOINTS, TAIL
from halfway.lab.studies.t7.predict import Rates, Sides
from halfway.lab.study import rules, text, wording
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.stats import Crossed, Decision, Side

TEXT = text.load(__file__)
MARGIN = 0.3
"""Of what is gained: the prediction misses the measured success by less."""
LEAD = 0.0
"""By which success of all surrogates exceeds that of one."""
LAW, SUCCESS = "by the law", "success"
SINGLE = "one surrogate"
WAYS = {
    "probabilities": "mean probabilities",
    "loss": "mean loss",
    "worst": "hardest of all",
    TAIL: "SGD tail of one",
    MIDPOINTS[0]: "weight midpoint of two, raw",
    MIDPOINTS[1]: "weight midpoint of two, matched",
}
"""Ways to attack beside the mean logits, in words."""


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns twice the config's pairs, their alignment, and what surrogates do to targets."""
    compared = compared_on(config)
    return [Request(kind, (compared,)) for kind in (LEARNING, ALIGNMENT, ENSEMBLES)]


def _read(records: Records) -> tuple[Measured, Sides | None, tuple[int, ...]]:
    """Returns what attacks did, what predictions are made of, and the numbers k."""
    config = records.config
    compared = compared_on(config)
    attacked = records.get(ENSEMBLES, compared)
    sides = predict.sides(records.get(ALIGNMENT, compared), attacked, config.num_pairs)
    return attacked, sides, block_sizes(config.num_pairs)


def _gain(rates: Rates) -> np.ndarray:
    return rates.together - rates.single


def _miss(rates: Rates, k: int, share: float = 0.0) -> np.ndarray:
    """Returns predicted minus measured success of all, and a share of the gain."""
    return predict.predicted(rates, k) - rates.together + share * _gain(rates)


def decide(records: Records) -> Outcome:
    """Returns the equivalence of predicted and measured success, and the test of the gain.

    Success is the share of S that a target has right and loses to PGD on the mean logits of k
    surrogates, mean over disjoint blocks of 16 surrogates and over targets. The logit of success is
    a line in alignment through those measured at k = 1 and 2, read at the alignment that the law
    gives 16, k_half being that of models which are neither surrogates nor targets. The miss as a
    share of the gain is the estimate; both of its margins are tested on miss ± .3 gain, whose sign
    does not depend on that of the gain. Surrogates, targets, examples and the models of k_half are
    deleted in turn, see `predict`.
    """
    attacked, sides, sizes = _read(records)
    first, last = sizes[0], sizes[-1]
    epsilon = records.config.attack.epsilon
    margins: list[tuple[float, Side]] = [
        (MARGIN, "greater"),
        (-MARGIN, "less"),
    ]
    above, below = (
        stats.crossed_test(
            predict.estimate(functools.partial(_miss, k=last, share=share), sides), alternative=side
        )
        for share, side in margins
    )
    share = predict.estimate(lambda rates: _miss(rates, last) / _gain(rates), sides)
    law = Decision(
        *share[:3],
        p_value=max(above.p_value, below.p_value),
        p_reverse=min(1.0, 2 * min(above.p_reverse, below.p_reverse)),
        num_pairs=0,
        num_excluded=0,
    )
    gain = stats.crossed_test(predict.estimate(_gain, sides), LEAD, alternative="greater")
    parts = (
        rules.part(
            _counted(law, attacked),
            LAW,
            f"success of {last} surrogates as predicted minus as measured, over what is gained",
            "within",
            -MARGIN,
            MARGIN,
            control="success of one and of two surrogates, and the law",
        ),
        rules.part(
            _counted(stats.bounded(gain, -1.0), attacked),
            SUCCESS,
            f"success at ε = {epsilon:g} of {last} surrogates minus that of one",
            "greater",
            LEAD,
            control=f"k = {first}",
        ),
    )
    return Outcome(parts, (LAW,), tuple(_headlines(attacked, sides, sizes, epsilon)))


def _counted(decision: Decision, attacked: Measured) -> Decision:
    """Returns a decision that counts all pairs: surrogates, targets and partners are in each."""
    finite = attacked.finite
    return decision._replace(num_pairs=int(finite.sum()), num_excluded=int((~finite).sum()))


def measured_success(attacked: Measured, k: int) -> Crossed:
    """Returns the success of k surrogates; its interval is over targets and examples.

    Args:
      attacked: of `ENSEMBLES`.
      k: number of surrogates.
    """
    rates = attacked.read("fooled", "pair", "example", num_surrogates=k)
    return stats.bounded(stats.crossed_mean(rates))


def predicted_success(sides: Sides | None, k: int) -> Crossed:
    """Returns the success of k surrogates that the line and the law give.

    Args:
      sides: of `predict.sides`.
      k: number of surrogates.
    """
    return stats.bounded(predict.estimate(functools.partial(predict.predicted, k=k), sides))


def _headlines(
    attacked: Measured, sides: Sides | None, sizes: Sequence[int], epsilon: float
) -> list[Headline]:
    """Returns the success of all surrogates beside the prediction and beside one, and the rest."""
    label = f"success of {sizes[-1]} surrogates at ε = {epsilon:g}"
    together, single = (measured_success(attacked, k)[:3] for k in (sizes[-1], sizes[0]))
    headlines = [
        Headline(label, *together, "predicted", predicted_success(sides, sizes[-1])[:3]),
        Headline("success of one surrogate", *single),
    ]
    for k in sizes[2:-1]:
        rate, expected = measured_success(attacked, k), predicted_success(sides, k)
        headlines.append(Headline(f"success of {k}", *rate[:3], "predicted", expected[:3]))
    return headlines


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns success against alignment with the prediction, and success by way of attack.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    attacked, sides, sizes = _read(records)
    epsilon, last = config.attack.epsilon, sizes[-1]
    rates = {k: _triple(measured_success(attacked, k)) for k in sizes}
    drawn = []
    if sides is not None:
        values = ensembles.alignments_by_size(
            records.get(ALIGNMENT, compared_on(config)), config.num_pairs
        )
        alignment = [float(np.nanmean(values[k])) for k in sizes]
        half = float(sides.whole.k_half[0])
        expected = ensembles.law(last, half)
        grid = np.linspace(alignment[0], max(*alignment, expected), 100)
        gain = float(_gain(sides.whole)[0])
        axes = drawing.gains(
            sizes,
            alignment,
            [*rates.values()],
            line=(grid, predict.success_at(sides.whole, grid)),
            predicted=(expected, _triple(predicted_success(sides, last))),
            margin=MARGIN * abs(gain),
            epsilon=epsilon,
        )
        caption = TEXT.caption("t7_gains", verdict, last=last, margin=f"{100 * MARGIN:g} %")
        drawn.append(Figure("t7_gains", caption, rules.figure_of(axes)))
    rows = {SINGLE: rates[sizes[0]], f"mean logits ({last})": rates[last]}
    for way, way_words in WAYS.items():
        name = way_words if way in (TAIL, *MIDPOINTS) else f"{way_words} ({last})"
        rows[name] = _rate(attacked.read("fooled_by", way=way))
    if sides is None:
        rows = {name: rate for name, rate in rows.items() if math.isfinite(rate[0])} or {
            SINGLE: (0.0, -math.inf, math.inf)
        }
    axes = drawing.ways(rows, reference=[SINGLE], xlabel=f"success at ε = {epsilon:g}, share of S")
    caption = TEXT.caption("t7_ways", verdict, last=last)
    return [*drawn, Figure("t7_ways", caption, rules.figure_of(axes))]


def _triple(crossed: Crossed) -> tuple[float, float, float]:
    return crossed.estimate, crossed.low, crossed.high


def _rate(shares: np.ndarray) -> tuple[float, float, float]:
    """Returns a mean over targets with its interval; NaN where it was not measured."""
    if not np.isfinite(shares).any():
        return math.nan, math.nan, math.nan
    return rules.triple(stats.bounded(stats.mean_test(shares, alternative="greater")))


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns how far the prediction misses, and how success rises."""
    parts = {part.name: part for part in verdict.parts}
    miss, rise = parts[LAW], parts[SUCCESS]
    return {
        "miss": wording.format_estimate(miss.estimate, miss.low, miss.high),
        "gain": wording.format_estimate(rise.estimate, rise.low, rise.high),
        "margin": f"{100 * MARGIN:g} %",
    }


STUDY = Study("T7", TEXT, needs, decide, figures, words, stands_on=("T1", "V2"))
