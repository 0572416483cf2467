"""Which classes meet in a network trained on a third sample, and which are taken for each other."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import meeting
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample


def _class_matrix(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> Array:
    """Returns the residual-free meeting matrix of own and other half, `[C, C]`: a probe."""
    del key
    halves = samples["own"], samples["other"]
    return meeting.residual_free_matrix(program.apply_fn, params, images, *halves)


def _measure_classes(context: Context) -> xr.Dataset:
    """Returns how far examples of two classes move each other's logits, untrained and trained.

    The population trains on S, so that θ depends on neither half all along its walk. `class_matrix`
    (pair, model, step, class, other_class) is the residual-free matrix of P6; NaN where a class
    does not occur.
    """
    steps = (0, context.condition.probe_steps[-1])
    matrices = context.along_training(_class_matrix, steps)
    cells = "pair", "model", "step", "class", "other_class"
    return context.dataset({"class_matrix": (cells, np.asarray(matrices))}, step=steps)


CLASSES = Measurement("classes", _measure_classes)


def _confusions(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns what θ_A takes the examples of B for, and θ_B those of A, labels clean."""
    num_classes = program.condition.num_classes

    def count(params: Params, half: Sample) -> Array:
        labels = shared.labels[half.indices]
        predictions = program.apply_fn(params, shared.images[half.indices]).argmax(-1)
        counts = jnp.zeros((num_classes, num_classes), jnp.int32)
        return counts.at[labels, predictions].add(half.mask.astype(jnp.int32))

    models = (jax.tree.map(lambda leaf, side=side: leaf[side], pair.params) for side in range(2))
    others = pair.halves.b, pair.halves.a
    return {"counts": jnp.stack([count(m, half) for m, half in zip(models, others, strict=True)])}


def _measure_confusions(context: Context) -> xr.Dataset:
    """Returns how often each class of the other half is taken for each, labels clean.

    `confusion` (pair, model, class, other_class): the number of examples of a class that the model
    puts into the other. And of the pool, the same for all pairs, `pixel_product` (class,
    other_class): the scalar product of the mean images of two classes, from which their distance
    follows.
    """
    counts = context.over_pairs(_confusions)["counts"]
    images, labels = np.asarray(context.pool.images), np.asarray(context.pool.labels)
    means = np.stack(
        [
            images[labels == label].mean(0, dtype=np.float64).ravel()
            for label in range(context.condition.num_classes)
        ]
    )
    return context.dataset(
        {
            "confusion": (("pair", "model", "class", "other_class"), counts),
            "pixel_product": (("class", "other_class"), means @ means.T),
        }
    )


CONFUSIONS = Measurement("confusions", _measure_confusions)
