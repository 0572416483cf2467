"""Where boundaries of two models lie: on segments between examples, along directions, in planes."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import input_space, landscapes, populations, sharding
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
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
GRID = 61
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
    """Returns pairs of classes c < c' `[G, 2]`: all, or `NUM_CLASS_PAIRS` of them at random."""
    every = np.array(list(itertools.combinations(range(num_classes), 2)))
    if len(every) <= NUM_CLASS_PAIRS:
        return every
    return every[np.sort(rng.choice(len(every), NUM_CLASS_PAIRS, replace=False))]


def draw_ends(key: Key, labels: Array, usable: Array, classes: Array, num_segments: int) -> Ends:
    """Returns segments between random usable examples of two classes; none shares an end.

    Within a pair of classes, that is: so segments of one pair of classes can be exchanged.

    Args:
      key: consumed.
      labels: `[B]`.
      usable: `[B]` bool.
      classes: `[G, 2]`, pairs of classes.
      num_segments: K, of each pair, at most B.
    """

    def one(key, wanted):
        draws = jax.random.uniform(key, labels.shape, minval=0.5)
        top, rows = jax.lax.top_k(jnp.where(usable & (labels == wanted), draws, 0.0), num_segments)
        return rows, top > 0

    keys = jax.random.split(key, classes.shape)
    rows, valid = jax.vmap(jax.vmap(one))(keys, classes)
    return Ends(rows[:, 0], rows[:, 1], valid.all(1))


@functools.partial(sharding.jit, static_argnames=("program", "settings"))
def _program(members, images, labels, classes, epsilon, *, program: Condition, settings: tuple):
    apply_fn = program.apply_fn
    num_features = int(np.prod(images.shape[1:]))

    def pair(member, images, labels, classes, epsilon):
        key, params, rows = member
        key_ends, key_chosen, key_random, key_attack, key_plane = jax.random.split(key, 5)
        x, y = images[rows], labels[rows]

        def each(fn):
            """`[2, ...]` of both models."""
            return jax.vmap(lambda one: fn(functools.partial(apply_fn, one)))(params)

        right = (each(lambda logits_fn: logits_fn(x).argmax(-1)) == y[None]).all(0)

        ends = draw_ends(key_ends, y, right, classes, min(NUM_SEGMENTS, len(y)))
        start, end = x[ends.start.ravel()], x[ends.end.ravel()]
        crossing = each(lambda logits_fn: input_space.crossing(logits_fn, start, end, **_SEARCH))
        found = {
            "start": rows[ends.start.ravel()],
            "end": rows[ends.end.ravel()],
            "crossing": crossing,
            "length": jnp.linalg.norm((end - start).reshape(len(start), -1), axis=-1),
            "valid": ends.valid.ravel(),
        }

        score = jnp.where(right, jax.random.uniform(key_chosen, y.shape, minval=0.5), 0.0)
        top, chosen = jax.lax.top_k(score, min(NUM_EXAMPLES, len(y)))
        points, names = x[chosen], y[chosen]

        def attacked(logits_fn):
            attack = attack_of(settings, epsilon)
            return input_space.directions_toward(
                points, attack(logits_fn, key_attack, points, names).adversarial
            )

        def along(directions):
            search = _SEARCH | {"max_distance": num_features**0.5, "num_steps": NUM_FAR_STEPS}
            return each(
                lambda logits_fn: input_space.boundary_distance(
                    logits_fn, points, directions, **search
                )
            )

        # One of each kind for each surrogate; only those of the attack are its own.
        legitimate = input_space.legitimate_directions(points, names, x, y)
        random = input_space.random_directions(key_random, points)
        kinds = jnp.concatenate([legitimate[None], random[None], each(attacked)])
        legitimate, random, *adversarial = jax.lax.map(along, kinds)
        found["distance"] = {
            "legitimate": jnp.stack([legitimate] * 2),
            "adversarial": jnp.stack(adversarial),
            "random": jnp.stack([random] * 2),
        }
        found["chosen"] = top > 0
        return found | _plane(each, key_plane, x, y, right)

    return sharding.spread(pair)(members, images, labels, classes, epsilon)


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
    across, up = input_space.window(places, num_points=GRID)

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


def _boundaries(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns where both models of a pair change their mind on segments between examples of S.

    Both have both ends right, labels clean, so that both cross somewhere; segments lead from the
    lower class to the higher. Arrays: `class_pair` `[P, N]`, −1 where S has no such segment;
    `start` and `end` `[P, N]`, rows of the pool; `crossing` `[P, 2, N]`, the share t; `distance`
    `[P, 2, N]` and `between` `[P, N]` in l2.

    And the medians over examples of S that both have right of the l2 distance to a model's own
    boundary, and between the boundaries of both, along each kind of direction.
    """
    (one,) = population
    condition = one.condition
    key_classes, key_pairs = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_classes)).ravel().tolist())
    classes = class_pairs(condition.num_classes, rng)
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels, jnp.int32)
    keys = jax.vmap(lambda p: jax.random.fold_in(key_pairs, p))(jnp.arange(condition.num_pairs))
    found = _program(
        (keys, one.params, one.halves.s.indices[:, :NUM_HOLDOUT]),
        images,
        labels,
        jnp.asarray(classes, jnp.int32),
        jnp.float32(config.attack.epsilon),
        program=populations.program_of(condition),
        settings=settings_of(config),
    )
    found = jax.tree.map(np.asarray, found)
    valid = found["valid"]
    crossing = np.where(valid[:, None], found["crossing"], np.float32(0))
    distance = crossing * found["length"][:, None]
    with np.errstate(invalid="ignore"):
        between = np.abs(distance[:, 0] - distance[:, 1])
    group = np.repeat(np.arange(len(classes)), valid.shape[1] // len(classes))
    arrays = {
        "start": found["start"],
        "end": found["end"],
        "class_pair": np.where(valid, group, -1).astype(np.int16),
        "crossing": crossing,
        "distance": distance,
        "between": between,
    }
    for name in ("decision", "classes"):
        arrays[f"plane_{name}"] = found[f"plane_{name}"].astype(np.int16)
    for name in ("corners", "x", "y"):
        arrays[f"plane_{name}"] = found[f"plane_{name}"]
    both = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES}
    parts = [
        tables.rows(values, both, condition=condition.key, quantity=quantity, subset=kind)
        for kind in KINDS
        for quantity, values in medians(found["distance"][kind], found["chosen"]).items()
    ]
    return Measured(tables.concat(parts), arrays)


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
        own, other = distance[p, s, s, chosen[p]], distance[p, s, 1 - s, chosen[p]]
        bounded = np.isfinite(own)
        if len(own):
            values[0, p, s], values[2, p, s] = np.median(own), 1 - bounded.mean()
        if bounded.any():
            values[1, p, s] = np.median(np.abs(own[bounded] - other[bounded]))
    names = ("boundary_distance", "inter_boundary_distance", "share_unbounded")
    return dict(zip(names, values, strict=True))


BOUNDARIES = Measurement("boundaries", 21, _boundaries)
