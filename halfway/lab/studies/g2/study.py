"""G2: most of what label noise costs beyond the wrong labels is memorization."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import learning
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.studies.g2 import figures as drawing
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, PartResult, Verdict
from halfway.lab.study.wording import format_estimate
from halfway.populations import Condition
from halfway.stats import Decision

TEXT = text.load(__file__)
MOST = 0.5
"""The part of the loss that stopping early must win back, to be exceeded."""
FITTED = 0.95
"""Mean training accuracy that every rate must exceed: otherwise nothing was memorized."""
LOSS = 0.1
"""What label noise must cost beyond the ceiling, summed over rates, to speak of its parts."""
MARGIN = 0.03
"""Of the leakage check at ρ = 1: half-width of M_θ in error."""


def conditions(config: RunConfig, architecture: str) -> dict[float, Condition]:
    """Returns the condition of each noise rate, ascending from 0 to 1.

    Args:
      config: of the run.
      architecture: one of `config.architectures`.
    """
    return {rate: condition(config, architecture, noise_rate=rate) for rate in config.noise_rates}


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training at every noise rate, for each architecture."""
    return [
        Request(LEARNING, (trained,))
        for architecture in config.architectures
        for trained in conditions(config, architecture).values()
    ]


class Progress(NamedTuple):
    """Progress in error at one noise rate, `[P]`, both directions summed; NaN if diverged.

    Attributes:
      early: on the other half as labelled, at each model's early stop.
      end: the same at the end of training.
      followed: on the own half at the end.
    """

    early: np.ndarray
    end: np.ndarray
    followed: np.ndarray


def progress(learned: Measured) -> Progress:
    """Returns how far a population came early and at the end.

    A model stops early at the first probe at which its error on S, as labelled, is least.

    Args:
      learned: of `LEARNING`.
    """
    errors = {
        sample: learned.read("error", "pair", "model", "step", sample=sample)
        for sample in ("other", "holdout")
    }
    holdout = errors["holdout"]
    first = np.where(np.isnan(holdout), np.inf, holdout).argmin(-1)
    stopped = np.take_along_axis(errors["other"], first[..., None], -1)[..., 0]
    constant = learned.read("constant_error", "pair", "model", sample="other")
    return Progress((constant - stopped).sum(-1), *learning.meeting_terms(learned))


class Course(NamedTuple):
    """Progress of one architecture at all rates below 1, and what lies between.

    Attributes:
      rates: `[R]`, 0 first.
      early, end: `[R, P]`, progress on the other half divided by 1 − ρ.
      followed: `[R, P]`, on the own half at the end.
    """

    rates: np.ndarray
    early: np.ndarray
    end: np.ndarray
    followed: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """`[P]` bool, pairs that did not diverge at any of the rates."""
        return stats.valid_pairs(self.early, self.end, self.followed)

    def shares(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns shares of the ceiling reached early and at the end, `[W, R]` each.

        Args:
          weights: `[W, P]` of pairs.
        """
        early, end = (
            stats.weighted_ratio(weights, v, self.followed) for v in (self.early, self.end)
        )
        return early, end

    def regained(self, weights: np.ndarray) -> np.ndarray:
        """Returns Σ_ρ(c_early − c_end) over 0 < ρ < 1, `[W]`.

        Args:
          weights: `[W, P]` of pairs.
        """
        early, end = self.shares(weights)
        return (early - end)[:, 1:].sum(-1)

    def lost(self, weights: np.ndarray) -> np.ndarray:
        """Returns Σ_ρ(c_end(0) − c_end(ρ)) over 0 < ρ < 1, `[W]`.

        Args:
          weights: `[W, P]` of pairs.
        """
        _, end = self.shares(weights)
        return (end[:, :1] - end[:, 1:]).sum(-1)


def course(records: Records, architecture: str) -> Course:
    """Returns what the rule reads of one architecture.

    Args:
      records: the measurements of the run.
      architecture: one of `config.architectures`.
    """
    below = {r: c for r, c in conditions(records.config, architecture).items() if r < 1}
    values = [progress(records.get(LEARNING, trained)) for trained in below.values()]
    early, end, followed = (np.stack(terms) for terms in zip(*values, strict=True))
    rates = np.array(list(below))
    ceiling = 1 - rates[:, None]
    return Course(rates, early / ceiling, end / ceiling, followed)


def decide(records: Records) -> Outcome:
    """Returns a test and the gates of each architecture.

    c_ρ is progress on the other half, as labelled, over (1 − ρ) times own progress at the end of
    training, all in error and as ratios of sums over pairs and both directions. Early and at the
    end differ in the numerator alone. Sums are over the config's rates between 0 and 1, each once.
    Statistics of several rates leave out pairs that diverged at any rate below 1. The leakage
    check is the TOST at level .05: the 90 % interval of M_θ at ρ = 1 lies within its margins.
    """
    tests, gates, headlines = [], [], []
    for architecture in records.config.architectures:
        read = course(records, architecture)
        tests.append(
            rules.part(
                _decision(read, lambda w, c=read: c.regained(w) - MOST * c.lost(w), 0.0),
                architecture,
                "Σ_ρ(c_early − c_end) − ½ Σ_ρ(c_end(0) − c_end(ρ)), 0 < ρ < 1",
                "greater",
                0.0,
                control="half of what label noise costs beyond the ceiling",
            )
        )
        gates += _gates(records, architecture, read)
        part = _decision(read, lambda w, c=read: c.regained(w) / c.lost(w), MOST)
        early, end = (
            _decision(read, lambda w, c=read, place=place: c.shares(w)[place][:, 1:].mean(-1), 0.0)
            for place in (0, 1)
        )
        headlines += [
            rules.headline(
                f"part of the loss that stopping early wins back ({architecture})", part
            ),
            rules.headline(
                f"mean over ρ of c at the end ({architecture})", end, "where S errs least", early
            ),
        ]
    return Outcome((*tests, *gates), tuple(test.name for test in tests), tuple(headlines))


def _decision(read: Course, statistic_fn: stats.WeightedStatistic, threshold: float) -> Decision:
    """Returns the t-test on influence values over pairs that a statistic is greater."""
    valid = read.valid
    return stats.composite_test(
        statistic_fn, len(valid), threshold, alternative="greater", valid=valid
    )


def _gates(records: Records, architecture: str, read: Course) -> list[PartResult]:
    """Returns that all labels were fitted, that noise costs something, and that nothing leaks."""
    learned = {
        rate: records.get(LEARNING, trained)
        for rate, trained in conditions(records.config, architecture).items()
    }
    gates = [
        rules.gate(
            learning.training_accuracy(measured),
            f"{architecture}, trained at ρ = {rate:g}",
            "mean training accuracy",
            FITTED,
            bounds=(0, 1),
        )
        for rate, measured in learned.items()
    ]
    cost = rules.part(
        _decision(read, read.lost, LOSS),
        f"{architecture}, cost of noise",
        "Σ_ρ(c_end(0) − c_end(ρ)), 0 < ρ < 1",
        "greater",
        LOSS,
    )
    gates.append(rules.as_gate(cost))
    return [*gates, _leakage(learning.meeting_terms(learned[1.0]), architecture)]


def _leakage(terms: RatioTerms, architecture: str) -> PartResult:
    """Returns the gate that M_θ at ρ = 1 is 0 within a margin.

    Args:
      terms: of M_θ at ρ = 1.
      architecture: whose.
    """
    decision = stats.ratio_equivalence(*terms, -MARGIN, MARGIN)
    return rules.as_gate(
        rules.part(
            decision,
            f"{architecture}, ρ = 1",
            "M_θ in error at ρ = 1",
            "within",
            -MARGIN,
            MARGIN,
        )
    )


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns M_θ and shares of the ceiling against the noise rate, with training accuracy.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    rates = np.array(config.noise_rates)
    ends, earlies, accuracies = [], [], []
    for architecture in config.architectures:
        learned = [
            records.get(LEARNING, trained) for trained in conditions(config, architecture).values()
        ]
        terms = [progress(measured) for measured in learned]
        ends.append([rules.triple(stats.fieller(t.end, t.followed)) for t in terms])
        earlies.append([rules.triple(stats.fieller(t.early, t.followed)) for t in terms])
        accuracies.append([_mean(learning.training_accuracy(measured)) for measured in learned])
    axes = drawing.dose_response(
        rates,
        *np.moveaxis(np.array(ends), -1, 0),
        names=config.architectures,
        early=np.array(earlies),
        regained=MOST,
        training_accuracy=np.array(accuracies),
        gate=FITTED,
    )
    caption = TEXT.caption("g2_dose_response", verdict)
    table = _table(config, np.array(ends), np.array(earlies), np.array(accuracies))
    return [Figure("g2_dose_response", caption, rules.figure_of(axes), table)]


def _mean(values: np.ndarray) -> float:
    """Returns the mean of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else np.nan


def _table(
    config: RunConfig, ends: np.ndarray, earlies: np.ndarray, accuracies: np.ndarray
) -> Table:
    """Returns shares of the ceiling, `[A, R, 3]`, M_θ and training accuracy at each rate."""
    rows = []
    for architecture, *values in zip(config.architectures, ends, earlies, accuracies, strict=True):
        for rate, end, early, accuracy in zip(config.noise_rates, *values, strict=True):
            ceiling = 1 - rate
            shares = [
                format_estimate(*(value / ceiling)) if ceiling else "no ceiling"
                for value in (end, early)
            ]
            numbers = [*shares, format_estimate(*end), format_estimate(accuracy)]
            rows.append([f"{architecture}, ρ = {rate:g}", *numbers])
    columns = ["", "c at the end", "c where S errs least", "M_θ at the end", "training accuracy"]
    caption = "Shares of the ceiling 1 − ρ, and M_θ in error against labels as they are."
    return Table("What is reached at each rate", caption, columns, rows)


STUDY = Study("G2", TEXT, needs, decide, figures, stands_on=("G1",))
