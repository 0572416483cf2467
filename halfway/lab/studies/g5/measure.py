"""The class by class meeting matrices of networks that trained on a third sample."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from halfway import meeting, populations
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Array, Key, Params, Sample

MATRICES = ("residual-free", "full")
LABELS = ("true", "shuffled")


def _class_matrices(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns both meeting matrices of own and other half, by true and by shuffled labels."""
    keys = jax.random.split(key)
    true = samples["own"], samples["other"]
    shuffled = tuple(
        one._replace(labels=populations.permute_labels(k, one))
        for k, one in zip(keys, true, strict=True)
    )
    found = {}
    for labels, parts in zip(LABELS, (true, shuffled), strict=True):
        arguments = (program.apply_fn, params, images, *parts)
        found[f"residual-free.{labels}"] = meeting.residual_free_matrix(*arguments)
        found[f"full.{labels}"] = meeting.meeting_matrix(*arguments)
    return found


def _classes(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns how much more examples of one class meet than those of two, untrained and trained.

    The population trains on S, so that θ depends on neither half all along its walk. `contrast` is
    mean diagonal minus mean off-diagonal, `size` the mean |entry| that it is a share of.
    """
    del key, config  # labels are shuffled with the pairs' own keys
    (one,) = population
    condition = one.condition
    steps = (0, condition.probe_steps[-1])
    seen = populations.observe(condition, pool, _class_matrices, steps=steps)
    parts, arrays = [], {}
    axes = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES, "step": steps}
    for name, value in seen.items():
        matrices = np.asarray(value)
        arrays[name] = matrices
        contrast, size = meeting.contrast_terms(jnp.asarray(matrices))
        for quantity, numbers in (("contrast", contrast), ("size", size)):
            parts.append(
                tables.rows(
                    np.asarray(numbers),
                    axes,
                    condition=condition.key,
                    subset=name,
                    quantity=f"class_{quantity}",
                )
            )
    return Measured(tables.concat(parts), arrays)


CLASSES = Measurement("classes", 7, _classes)
