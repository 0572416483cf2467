"""The class by class meeting matrices of networks that trained on a third sample."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import meeting, populations
from halfway.lab.measurements.context import Context
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

MATRICES = ("residual-free", "full")
LABELS = ("true", "shuffled")


def _class_matrices(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> Array:
    """Returns meeting matrices of own and other half, `[matrix, labels, C, C]`: a probe."""
    halves = samples["own"], samples["other"]
    keys = jax.random.split(key)
    shuffled = tuple(
        half._replace(labels=populations.permute_labels(half_key, half))
        for half_key, half in zip(keys, halves, strict=True)
    )

    def both_matrices(labelled: tuple[Sample, Sample]) -> Array:
        arguments = program.apply_fn, params, images, *labelled
        return jnp.stack(
            [meeting.residual_free_matrix(*arguments), meeting.meeting_matrix(*arguments)]
        )

    # One program for both labellings, one after the other.
    by_labels = jax.tree.map(lambda *leaves: jnp.stack(leaves), halves, shuffled)
    return jnp.moveaxis(jax.lax.map(both_matrices, by_labels), 0, 1)


def _measure(context: Context) -> xr.Dataset:
    """Returns how much more examples of one class meet than those of two, untrained and trained.

    The population trains on S, so that θ depends on neither half all along its walk. `class_matrix`
    (pair, model, step, matrix, labels, class, other_class); of it `class_contrast`, mean diagonal
    minus mean off-diagonal, and `class_size`, the mean |entry| that the contrast is a share of
    (pair, model, step, matrix, labels). Labels are shuffled with the keys of the pairs.
    """
    steps = (0, context.condition.probe_steps[-1])
    matrices = context.along_training(_class_matrices, steps)
    contrast, size = meeting.contrast_terms(matrices)
    cells = "pair", "model", "step", "matrix", "labels"
    return context.dataset(
        {"class_contrast": (cells, contrast), "class_size": (cells, size)},
        {"class_matrix": ((*cells, "class", "other_class"), np.asarray(matrices))},
        step=steps,
        matrix=MATRICES,
        labels=LABELS,
    )


CLASSES = Measurement("classes", _measure)
