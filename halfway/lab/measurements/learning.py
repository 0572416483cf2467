"""Landscapes along training, as the probes of the population saw them, and M_θ from them."""

from typing import Literal, NamedTuple

import numpy as np
import xarray as xr

from halfway import populations
from halfway.lab.measurements.context import Context
from halfway.lab.study.records import Measured, Measurement

SAMPLES = ("own", "other", "holdout")
"""The half trained on, with the labels trained on; the other half and S, as labelled."""


def _measure(context: Context) -> xr.Dataset:
    """Returns losses, gradient products and the best constant predictor along training.

    `error`, `brier`, `cross_entropy` (pair, model, sample, step) and `constant_LOSS` (pair, model,
    sample); `gradient_NAME` (pair, model, step), see `populations.gradient_products`; `num_steps`
    (pair, model). Everything was read while training.
    """
    population = context.population
    numbers = {}
    for loss in populations.LOSSES:
        walks = [population.landscapes[sample][loss] for sample in SAMPLES]
        constants = [population.constant[sample][loss] for sample in SAMPLES]
        numbers[loss] = ("pair", "model", "sample", "step"), np.stack(walks, 2)
        numbers[f"constant_{loss}"] = ("pair", "model", "sample"), np.stack(constants, 2)
    for name, values in population.products.items():
        numbers[f"gradient_{name}"] = ("pair", "model", "step"), values
    numbers["num_steps"] = ("pair", "model"), population.num_steps
    return context.dataset(numbers, sample=SAMPLES, step=context.condition.probe_steps)


LEARNING = Measurement("learning", _measure)


class RatioTerms(NamedTuple):
    """Numerators and denominators `[P]` of a meeting coefficient; NaN for pairs that diverged."""

    numerators: np.ndarray
    denominators: np.ndarray


def progress(learned: Measured, loss: str, sample: str) -> np.ndarray:
    """Returns `[P]` progress at the end of training from the best constant predictor, both models.

    Args:
      learned: of `LEARNING`.
      loss: of `populations.LOSSES`.
      sample: of `SAMPLES`.
    """
    walk = learned.read(loss, "pair", "model", "step", sample=sample)
    constant = learned.read(f"constant_{loss}", "pair", "model", sample=sample)
    return (constant - walk[..., -1]).sum(-1)


def meeting_terms(
    learned: Measured, loss: str = "error", at: Literal["end", "best"] = "end"
) -> RatioTerms:
    """Returns numerators and denominators of M_θ, both directions summed.

    Args:
      learned: of `LEARNING`.
      loss: of `populations.LOSSES`.
      at: "end" of training, or "best": the probe at which S, as labelled, has the least
        cross-entropy, chosen for each model.
    """
    if at == "end":
        return RatioTerms(*(progress(learned, loss, sample) for sample in ("other", "own")))
    holdout = learned.read("cross_entropy", "pair", "model", "step", sample="holdout")
    best = np.where(np.isnan(holdout), np.inf, holdout).argmin(-1)[..., None]
    terms = []
    for sample in ("other", "own"):
        walk = learned.read(loss, "pair", "model", "step", sample=sample)
        constant = learned.read(f"constant_{loss}", "pair", "model", sample=sample)
        terms.append((constant - np.take_along_axis(walk, best, -1)[..., 0]).sum(-1))
    return RatioTerms(*terms)


def gap(learned: Measured, loss: str = "error") -> np.ndarray:
    """Returns `[P]` the symmetric estimate of the generalization gap at the end (P2).

    Args:
      learned: of `LEARNING`.
      loss: of `populations.LOSSES`.
    """
    other_loss, own_loss = (
        learned.read(loss, "pair", "model", "step", sample=sample)[..., -1]
        for sample in ("other", "own")
    )
    return (other_loss - own_loss).mean(-1)


def training_accuracy(learned: Measured) -> np.ndarray:
    """Returns `[P]` accuracy at the end on the labels trained on, mean of the two models.

    Args:
      learned: of `LEARNING`.
    """
    return 1 - learned.read("error", "pair", "model", "step", sample="own")[..., -1].mean(-1)
