"""Where boundaries of two models and of three rules lie on segments, and in a plane."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from halfway import input_space, landscapes
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array, Key

NUM_SEGMENTS = 10
"""Drawn of each pair of classes, fewer where S has fewer examples that both models have right."""
NUM_CLASS_PAIRS = 45
"""At most; drawn, where the classes make more."""
NUM_HOLDOUT = 2000
"""Of S, at most, that ends are drawn from; S is in random order. Rules are fitted on all of S."""
NUM_STEPS, NUM_HALVINGS = 100, 12
"""Of the search along a segment: points beyond its start, and then of bisection."""
RULES = ("nearest class mean", "linear discriminant", "nearest neighbours")
"""What tells classes apart by the geometry of the data alone."""
SHRINKAGE = 0.1
"""Of the covariance of the linear discriminant, towards its mean variance."""
NUM_NEIGHBOURS = 5
"""That vote; a tie goes to the class of the nearest of those that are tied."""
GRID_SIZE = 61
"""Points along each axis of a plane."""
_SEARCH: dict[str, Any] = {"num_steps": NUM_STEPS, "num_halvings": NUM_HALVINGS, "chunk_size": 8}
_CHUNK = 128
_FAR = 1e12
"""A squared distance beyond all others."""


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


class AffineRules(NamedTuple):
    """Scores of rules that are affine in the input, whose largest decides: `w x + b`.

    Attributes:
      weight: `[..., R, C, d]`.
      bias: `[..., R, C]`; −inf for a class without examples.
    """

    weight: Any
    bias: Any


def affine_rules(x: ArrayLike, labels: ArrayLike, num_classes: int) -> AffineRules:
    """Returns the nearest class mean and the linear discriminant fitted on a sample, by NumPy.

    Args:
      x: `[B, ...]`.
      labels: `[B]`.
      num_classes: C.

    Formula: of the mean, `⟨m_c, x⟩ − ‖m_c‖²/2`. Of the discriminant, `⟨Σ⁻¹m_c, x⟩ −
    ⟨m_c, Σ⁻¹m_c⟩/2 + log π_c` with Σ = (1 − s) W + s tr(W)/d I, W the covariance within classes
    (sums divided by B), s the shrinkage, π_c the share of the class in the sample.
    """
    flat = np.asarray(x, np.float64).reshape(len(np.asarray(x)), -1)
    names = np.asarray(labels)
    onehot = (names[:, None] == np.arange(num_classes)).astype(float)
    count = onehot.sum(0)
    means = onehot.T @ flat / np.maximum(count, 1)[:, None]
    within = flat - means[names]
    covariance = within.T @ within / len(flat)
    size = flat.shape[1]
    scale = np.trace(covariance) / size or 1.0
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(size)
    solved = np.linalg.solve(shrunk, means.T).T
    with np.errstate(divide="ignore"):
        prior = np.log(count / len(flat))
    bias = np.stack([-(means**2).sum(-1) / 2, prior - (means * solved).sum(-1) / 2])
    bias[:, count == 0] = -np.inf
    return AffineRules(np.stack([means, solved]), bias)


def neighbour_votes(squared: Array, labels: Array, num_classes: int) -> Array:
    """Returns scores `[..., C]`: votes of the nearest examples, and the order of the nearest.

    Args:
      squared: `[..., B]`, squared distances to a sample, up to what all have in common.
      labels: `[B]`.
      num_classes: C.
    """
    number = min(NUM_NEIGHBOURS, labels.shape[0])
    _, nearest = jax.lax.top_k(-squared, number)
    # Together less than one vote, each more than all that are farther away.
    weight = 1 + 0.5 ** jnp.arange(2, number + 2)
    votes = jax.nn.one_hot(labels[nearest], num_classes)
    return (votes * weight.reshape(*[1] * (votes.ndim - 2), number, 1)).sum(-2)


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns crossings of both models and of the rules on segments, and decisions in a plane.

    `pair.extra` are the `AffineRules` of S, `shared.extra` the pairs of classes `[G, 2]` that
    segments lead between.
    """
    key_ends, key_plane = jax.random.split(pair.key)
    holdout = pair.halves.s.indices
    rows = holdout[:NUM_HOLDOUT]
    x, y = shared.images[rows], shared.labels[rows]

    def each(fn):
        """Returns `[2, ...]` of both models."""
        return jax.vmap(lambda model: fn(functools.partial(program.apply_fn, model)))(pair.params)

    right = (each(lambda logits_fn: logits_fn(x).argmax(-1)) == y[None]).all(0)
    ends = sample_ends(key_ends, y, right, shared.extra, min(NUM_SEGMENTS, len(y)))
    places = ends.start.ravel(), ends.end.ravel()
    start, end = (x[place] for place in places)
    sample, names = shared.images[holdout], shared.labels[holdout]
    ruled = rule_crossings(pair.extra, sample, names, *places)
    segments = {
        "start": rows[places[0]],
        "end": rows[places[1]],
        "crossing": each(lambda fn: input_space.crossing(fn, start, end, **_SEARCH)),
        "rule_crossing": ruled,
        "valid": ends.valid.ravel(),
    }
    return segments | _plane(each, key_plane, x, y, right)


def rule_crossings(rules: AffineRules, x: Array, labels: Array, start: Array, end: Array) -> Array:
    """Returns where rules first leave the class of the start, `[3, G]`, in the order of `RULES`.

    0 where a rule has the start wrong, inf where it never leaves its class. Along a segment affine
    scores and, up to what all examples have in common, squared distances are interpolated.

    Args:
      rules: fitted on the sample.
      x: `[B, ...]`, the sample.
      labels: `[B]`.
      start: `[G]`, places in the sample; the neighbours of a segment are without both ends.
      end: `[G]`.
    """
    flat = x.reshape(x.shape[0], -1)
    num_classes = rules.bias.shape[-1]

    def search(scores_fn, first, last):
        share = input_space.crossing(scores_fn, first, last, **_SEARCH)
        return jnp.where(scores_fn(first).argmax(-1) == labels[start], share, 0.0)

    def affine(weight, bias):
        # A class without examples never wins; infinite scores cannot be interpolated.
        offset = jnp.where(jnp.isfinite(bias), bias, -_FAR)
        scores = flat @ weight.T + offset[None]
        return search(lambda scores: scores, scores[start], scores[end])

    square = (flat**2).sum(-1)
    count = jnp.arange(flat.shape[0])[None]
    itself = (count == start[:, None]) | (count == end[:, None])

    def distances(place):
        squared = square[place][:, None] + square[None] - 2 * flat[place] @ flat.T
        return jnp.where(itself, _FAR, squared)

    votes = functools.partial(neighbour_votes, labels=labels, num_classes=num_classes)
    neighbours = search(votes, distances(start), distances(end))
    linear = [affine(rules.weight[r], rules.bias[r]) for r in range(2)]
    return jnp.stack([*linear, neighbours])


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
    share t, and `rule_crossing` (pair, rule, segment) of `RULES` fitted on S; and a plane.
    """
    classes = class_pairs(context.condition.num_classes, context.rng())
    images, labels = np.asarray(context.pool.images), np.asarray(context.pool.labels)
    fitted = [
        affine_rules(images[rows], labels[rows], context.condition.num_classes)
        for rows in np.asarray(context.population.halves.s.indices)
    ]
    rules = AffineRules(*(jnp.asarray(np.stack(v), jnp.float32) for v in zip(*fitted, strict=True)))
    # Distances to all of S, at several points of all segments: one pair after another.
    arrays = context.over_pairs(
        _pair, extra=rules, shared_extra=jnp.asarray(classes, jnp.int32), at_once=1
    )
    valid = arrays["valid"]
    crossing, ruled = (
        np.where(valid[:, None], arrays[name], np.float32(0))
        for name in ("crossing", "rule_crossing")
    )
    group = np.repeat(np.arange(len(classes)), valid.shape[1] // len(classes))
    of_segments = ("pair", "segment")
    outcomes = {
        "start": (of_segments, arrays["start"]),
        "end": (of_segments, arrays["end"]),
        "class_pair": (of_segments, np.where(valid, group, -1).astype(np.int16)),
        "crossing": (("pair", "model", "segment"), crossing),
        "rule_crossing": (("pair", "rule", "segment"), ruled),
        "plane_decision": (("pair", "model", "y", "x"), arrays["plane_decision"].astype(np.int16)),
        "plane_classes": (("pair", "corner"), arrays["plane_classes"].astype(np.int16)),
        "plane_corners": (("pair", "corner", "axis"), arrays["plane_corners"]),
        "plane_x": (("pair", "x"), arrays["plane_x"]),
        "plane_y": (("pair", "y"), arrays["plane_y"]),
    }
    return context.dataset({}, outcomes, rule=RULES)


BOUNDARIES = Measurement("boundaries", _measure)
