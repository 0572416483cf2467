"""How often the models of pairs differ and err, and how well their vote is calibrated."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from halfway import meeting, sharding
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Population
from halfway.types import Array, Key


def _predictions(population: Population, rows: Array, images: Array) -> np.ndarray:
    """Returns `[P, 2, B]` classes that both models of each pair predict on rows `[P, B]`."""
    apply_fn = population.apply_fn

    def pair(member, images):
        params, rows = member
        logits = jax.vmap(apply_fn, (0, None))(params, images[rows])
        return jnp.argmax(logits, -1)

    run = sharding.jit(sharding.spread(pair))
    return np.asarray(run((population.params, rows), images))


def _agreement(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns on how many examples of S, labels clean, models of a pair differ and err.

    And one calibration error of the vote of all models on the pool, each voting where it has not
    trained.
    """
    del key, config
    (one,) = population
    condition = one.condition
    images, labels = jnp.asarray(pool.images, jnp.float32), np.asarray(pool.labels)
    rows = np.asarray(one.halves.s.indices)
    seen = _predictions(one, one.halves.s.indices, images)
    counts = {
        "num_disagree": (seen[:, 0] != seen[:, 1]).sum(-1),
        "num_compared": np.full(condition.num_pairs, rows.shape[1]),
    }
    each = {"pair": range(condition.num_pairs)}
    named = {"condition": condition.key, "subset": "holdout"}
    wrong = (seen != labels[rows][:, None]).sum(-1)
    parts = [tables.rows(v, each, quantity=name, **named) for name, v in counts.items()]
    parts.append(
        tables.rows(wrong, each | {"surrogate": tables.HALVES}, quantity="num_wrong", **named)
    )
    every = jnp.broadcast_to(jnp.arange(len(labels)), (condition.num_pairs, len(labels)))
    predictions = _predictions(one, every, images)
    unseen = np.ones(predictions.shape, bool)
    halves = (one.halves.a, one.halves.b)
    for side, half in enumerate(halves):
        for p in range(condition.num_pairs):
            unseen[p, side, np.asarray(half.indices[p])[np.asarray(half.mask[p])]] = False
    finite = one.finite
    votes = meeting.votes(
        predictions[finite].reshape(-1, len(labels)),
        condition.num_classes,
        unseen[finite].reshape(-1, len(labels)),
    )
    error = meeting.class_aggregated_calibration_error(votes, labels) if finite.any() else np.nan
    parts.append(
        tables.rows(np.array([error]), {"quantity": ["calibration_error"]}, condition=condition.key)
    )
    return Measured(tables.concat(parts))


AGREEMENT = Measurement("agreement", 4, _agreement)
