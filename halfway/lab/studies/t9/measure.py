"""Where boundaries of two models lie: on segments between examples, along directions, in planes."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import input_space, landscapes
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array, Key

NUM_SEGMENTS = 10
"""Drawn of each pair of classes, fewer where S has fewer examples that both models have right."""
NUM_CLASS_PAIRS = 45
"""At most; drawn, where the classes make more."""
NUM_HOLDOUT, NUM_EXAMPLES = 2000, 200
"""Of S, at most: those that ends are drawn from, and those along whose directions distances are
measured. S is in random order."""
NUM_STEPS, NUM_FAR_STEPS, NUM_HALVINGS = 100, 200, 12
"""Of the search along a segment, along a direction up to the longest distance in a box, and then
of bisection."""
GRID_SIZE = 61
"""Points along each axis of a plane."""
KINDS = ("legitimate", "adversarial", "random")
"""Of directions, as Tramèr et al. (arXiv 1704.03453) tell them apart."""
_SEARCH: dict[str, Any] = {"num_steps": NUM_STEPS, "num_halvings": NUM_HALVINGS, "chunk_size": 8}
_CHUNK = 128


class Ends(NamedTuple):
    """The ends of segments, class c < c': rows `[G, K]` of the examples, and whether they exist."""

    start: Array
    end: Array
    valid: Array


def class_pairs(num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Returns pairs of classes c < c' `[G, 2]`: all, or `NUM_CLASS_PAIRS` of them at random.

    Args:
      num_classes: C.
      rng: draws the pairs where there are too many.
    """
    classes = np.array(list(itertools.combinations(range(num_classes), 2)))
    if len(classes) <= NUM_CLASS_PAIRS:
        return classes
    return classes[np.sort(rng.choice(len(classes), NUM_CLASS_PAIRS, replace=False))]


def sample_ends(key: Key, labels: Array, usable: Array, classes: Array, num_segments: int) -> Ends:
    """Returns segments between random usable examples of two classes; none shares an end.

    Within a pair of classes, that is: so segments of one pair of classes can be exchanged.

    Args:
      key: consumed.
      labels: `[B]`.
      usable: `[B]` bool.
      classes: `[G, 2]`, pairs of classes.
      num_segments: K, of each pair, at most B.
    """

    def draw(key, wanted):
        draws = jax.random.uniform(key, labels.shape, minval=0.5)
        top, rows = jax.lax.top_k(jnp.where(usable & (labels == wanted), draws, 0.0), num_segments)
        return rows, top > 0

    keys = jax.random.split(key, classes.shape)
    rows, valid = jax.vmap(jax.vmap(draw))(keys, classes)
    return Ends(rows[:, 0], rows[:, 1], valid.all(1))


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns crossings on segments, distances along directions, and decisions in a plane.

    `shared.extra` are the pairs of classes `[G, 2]` that segments lead between.
    """
    key_ends, key_chosen, key_random, key_attack, key_plane = jax.random.split(pair.key, 5)
    rows = pair.halves.s.indices[:NUM_HOLDOUT]
    x, y = shared.images[rows], shared.labels[rows]

    def each(fn):
        """Returns `[2, ...]` of both models."""
        return jax.vmap(lambda model: fn(functools.partial(program.apply_fn, model)))(pair.params)

    right = (each(lambda logits_fn: logits_fn(x).argmax(-1)) == y[None]).all(0)
    ends = sample_ends(key_ends, y, right, shared.extra, min(NUM_SEGMENTS, len(y)))
    start, end = x[ends.start.ravel()], x[ends.end.ravel()]
    segments = {
        "start": rows[ends.start.ravel()],
        "end": rows[ends.end.ravel()],
        "crossing": each(lambda fn: input_space.crossing(fn, start, end, **_SEARCH)),
        "length": jnp.linalg.norm((end - start).reshape(len(start), -1), axis=-1),
        "valid": ends.valid.ravel(),
    }
    score = jnp.where(right, jax.random.uniform(key_chosen, y.shape, minval=0.5), 0.0)
    top, chosen = jax.lax.top_k(score, min(NUM_EXAMPLES, len(y)))
    points, names = x[chosen], y[chosen]

    def attacked(logits_fn):
        attack = program.attack(shared.epsilon)
        adversarial = attack(logits_fn, key_attack, points, names).adversarial
        return input_space.directions_toward(points, adversarial)

    def along(directions):
        search = _SEARCH | {"max_distance": points[0].size ** 0.5, "num_steps": NUM_FAR_STEPS}
        return each(lambda fn: input_space.boundary_distance(fn, points, directions, **search))

    # One of each kind for each surrogate; only those of the attack are its own.
    legitimate = input_space.legitimate_directions(points, names, x, y)
    random = input_space.random_directions(key_random, points)
    kinds = jnp.concatenate([legitimate[None], random[None], each(attacked)])
    legitimate, random, *adversarial = jax.lax.map(along, kinds)
    distances = [jnp.stack([legitimate] * 2), jnp.stack(adversarial), jnp.stack([random] * 2)]
    reached = {"distance": jnp.stack(distances), "chosen": top > 0}
    return segments | reached | _plane(each, key_plane, x, y, right)


def _plane(each, key, x, y, right):
    """Returns decisions of both models in the plane of three examples of three classes."""
    # The first has the best draw of all, the others the best of those of yet another class.
    score = jnp.where(right, jax.random.uniform(key, y.shape, minval=0.5), 0.0)
    rows = []
    for _ in range(3):
        rows.append(score.argmax())
        score = jnp.where(y == y[rows[-1]], 0.0, score)
    corners = [x[row] for row in rows]
    plane = landscapes.plane(*corners)
    places = jnp.stack([landscapes.project_onto_plane(plane, corner)[0] for corner in corners])
    across, up = input_space.window(places, num_points=GRID_SIZE)

    def decide(logits_fn):
        grid = (plane, across, up, y[rows[0]])
        return input_space.plane_section(logits_fn, *grid, chunk_size=_CHUNK).decision

    return {
        "plane_decision": each(decide),
        "plane_corners": places,
        "plane_x": across,
        "plane_y": up,
        "plane_classes": y[jnp.stack(rows)],
    }


def _measure(context: Context) -> xr.Dataset:
    """Returns where both models of a pair change their mind on segments between examples of S.

    Both have both ends right, labels clean, so that both cross somewhere; segments lead from the
    lower class to the higher. Of each segment, `class_pair` (pair, segment), −1 where S has none;
    `start` and `end` (pair, segment), rows of the pool; `crossing` (pair, model, segment), the
    share t; `distance` (pair, model, segment) and `between` (pair, segment) in l2; and a plane.

    And the medians over examples of S that both have right of the l2 distance to a model's own
    boundary, and between the boundaries of both, along each kind of direction (pair, kind, model).
    """
    classes = class_pairs(context.condition.num_classes, context.rng())
    arrays = context.over_pairs(_pair, shared_extra=jnp.asarray(classes, jnp.int32))
    valid = arrays["valid"]
    crossing = np.where(valid[:, None], arrays["crossing"], np.float32(0))
    distance = crossing * arrays["length"][:, None]
    with np.errstate(invalid="ignore"):
        between = np.abs(distance[:, 0] - distance[:, 1])
    group = np.repeat(np.arange(len(classes)), valid.shape[1] // len(classes))
    by_kind = [medians(arrays["distance"][:, k], arrays["chosen"]) for k in range(len(KINDS))]
    numbers = {
        name: (("pair", "kind", "model"), np.stack([part[name] for part in by_kind], 1))
        for name in by_kind[0]
    }
    of_segments, of_models = ("pair", "segment"), ("pair", "model", "segment")
    outcomes = {
        "start": (of_segments, arrays["start"]),
        "end": (of_segments, arrays["end"]),
        "class_pair": (of_segments, np.where(valid, group, -1).astype(np.int16)),
        "crossing": (of_models, crossing),
        "distance": (of_models, distance),
        "between": (of_segments, between),
        "plane_decision": (("pair", "model", "y", "x"), arrays["plane_decision"].astype(np.int16)),
        "plane_classes": (("pair", "corner"), arrays["plane_classes"].astype(np.int16)),
        "plane_corners": (("pair", "corner", "axis"), arrays["plane_corners"]),
        "plane_x": (("pair", "x"), arrays["plane_x"]),
        "plane_y": (("pair", "y"), arrays["plane_y"]),
    }
    return context.dataset(numbers, outcomes, kind=KINDS)


def medians(distance: np.ndarray, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Returns medians over examples, `[P, 2]`, of what lies along directions of each surrogate.

    Args:
      distance: `[P, 2, 2, E]`: surrogate, model, example; inf where no boundary is found.
      chosen: `[P, E]`, which examples count.

    Returns:
      `boundary_distance` of the surrogate, infinite ones included; `inter_boundary_distance`, where
      the surrogate has a boundary, infinite where the other has none; and `share_unbounded`, of
      examples without a boundary of the surrogate. NaN where nothing counts.
    """
    values = np.full((3, *distance.shape[:2]), np.nan)
    for p, s in np.ndindex(distance.shape[:2]):
        own_distance, other_distance = (
            distance[p, s, s, chosen[p]],
            distance[p, s, 1 - s, chosen[p]],
        )
        bounded = np.isfinite(own_distance)
        if len(own_distance):
            values[0, p, s], values[2, p, s] = np.median(own_distance), 1 - bounded.mean()
        if bounded.any():
            values[1, p, s] = np.median(np.abs(own_distance[bounded] - other_distance[bounded]))
    names = ("boundary_distance", "inter_boundary_distance", "share_unbounded")
    return dict(zip(names, values, strict=True))


BOUNDARIES = Measurement("boundaries", _measure)
