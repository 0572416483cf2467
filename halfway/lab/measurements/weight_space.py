"""Landscapes of a trained population, and of anybody's own models, as named arrays.

Everything is computed here, with JAX; `report.landscape_page` draws the arrays without it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import landscapes, meeting, populations, sharding
from halfway.data import Split
from halfway.lab.config.settings import LandscapeSizes
from halfway.populations import Condition, Population, program_of
from halfway.types import Array, Key, Params, Sample

Arrays = dict[str, np.ndarray]
MARGIN = 0.35
"""How far a plane reaches beyond its points, as a share of their extent."""


_compiled = functools.partial(sharding.jit)


def measure(population: Population, pool: Split, key: Key, sizes: LandscapeSizes) -> Arrays:
    """Returns the landscapes of a population.

    Args:
      population: of one condition.
      pool: what its halves were drawn from.
      key: consumed.
      sizes: how much.
    """
    num_pairs = min(sizes.num_pairs, population.condition.num_pairs)
    sizes = dataclasses.replace(sizes, num_pairs=num_pairs)
    first = jax.tree.map(lambda leaf: leaf[:num_pairs], population)
    # What a party sees are the labels it trains on: permuted ones in a control.
    trained_labels = first.trained_labels
    parts = first.halves._replace(
        a=first.halves.a._replace(labels=trained_labels[:, 0]),
        b=first.halves.b._replace(labels=trained_labels[:, 1]),
    )
    first = first.replace(halves=parts)
    images = jnp.asarray(pool.images, jnp.float32)
    labels = jnp.asarray(pool.labels, jnp.int32)
    keys = jax.random.split(key, 5)
    shared = retrace(first.condition, pool, num_pairs)
    result = plane(first, shared, images, sizes)
    result |= segments(first, shared, images, labels, keys[0], sizes)
    result |= random_slices(first, images, keys[1], sizes)
    result |= spectra(first, shared, images, keys[2], sizes)
    result |= class_matrix(first, shared, images, labels, sizes)
    result |= alignments(first, shared, images, keys[3], sizes)
    result |= section(first, images, labels, sizes)
    return result


def retrace(condition: Condition, pool: Split, num_pairs: int) -> Params:
    """Returns walks of pairs that start from one θ_0, `[P, 2, T, ...]`, T the probe steps.

    Halves and batches are the population's; only B's initialization is A's.

    Args:
      condition: of the population.
      pool: what its halves were drawn from.
      num_pairs: P.
    """
    last = condition.probe_steps[-1]
    dense = np.unique(np.round(np.geomspace(1, last, 12)).astype(int))
    shared = dataclasses.replace(condition, shared_start=True)
    return populations.retrace(shared, pool, steps=(0, *dense.tolist()), num_pairs=num_pairs)


def _landscape(
    population: Population, images: Array, sample: Sample, sizes: LandscapeSizes
) -> Callable[[Params], dict[str, Array]]:
    """Returns error and cross-entropy over the first examples of one pair's sample."""
    # Padding is last, so that the first examples are valid ones.
    number = min(sizes.num_examples, population.condition.num_examples, sample.indices.shape[0])
    rows = sample.indices[:number]
    return landscapes.mean_landscape(
        population.apply_fn,
        images[rows],
        sample.labels[:number],
        loss_fns={name: populations.LOSSES[name] for name in ("error", "cross_entropy")},
        chunk_size=sizes.chunk_size,
    )


def _member(tree: Any, *index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def plane(population: Population, walks: Params, images: Array, sizes: LandscapeSizes) -> Arrays:
    """Returns the plane through θ_0, θ_A and θ_B of the first pair, which share their start.

    Args:
      population: whose halves make the landscapes.
      walks: `[P, 2, T, ...]` from `retrace`.
      images: `[N, H, W, D]` of the pool.
      sizes: how much.
    """
    start, end_a, end_b = (_member(walks, 0, i, t) for i, t in ((0, 0), (0, -1), (1, -1)))
    through = landscapes.plane(start, end_a, end_b)
    project = _compiled(
        jax.vmap(jax.vmap(lambda params: landscapes.project_onto_plane(through, params)))
    )
    coordinates, distances = project(_member(walks, 0))
    points = np.asarray(coordinates).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    extent = float((high - low).max())
    centre = (low + high) / 2
    ticks = np.linspace(-0.5 - MARGIN, 0.5 + MARGIN, sizes.grid) * extent
    x, y = (jnp.asarray(centre[i] + ticks, jnp.float32) for i in (0, 1))
    values = []
    for half in (population.halves.a, population.halves.b):
        loss_fn = _landscape(population, images, _member(half, 0), sizes)
        values.append(_compiled(lambda x, y, f=loss_fn: landscapes.surface(f, through, x, y))(x, y))
    surfaces = {
        f"plane_{name}": np.stack([np.asarray(v[name]) for v in values]) for name in values[0]
    }
    return surfaces | {
        "plane_x": np.asarray(x),
        "plane_y": np.asarray(y),
        "plane_walks": np.asarray(coordinates),
        "plane_distances": np.asarray(distances),
    }


def segments(
    population: Population,
    walks: Params,
    images: Array,
    labels: Array,
    key: Key,
    sizes: LandscapeSizes,
) -> Arrays:
    """Returns error and cross-entropy on S along segments, `[P, T]` each.

    From θ_A to θ_B as trained ("raw"), to θ_B with its units permuted to match θ_A ("matched"), and
    between the ends of walks from one start ("shared"). Labels of S are clean.

    Args:
      population: the pairs.
      walks: `[P, 2, T, ...]` from `retrace`.
      images, labels: of the pool, labels clean.
      key: consumed; for the matching.
      sizes: how much.
    """
    between = {
        "raw": ends(population.params),
        "matched": matched_ends(population, key),
        "shared": ends(jax.tree.map(lambda leaf: leaf[:, :, -1], walks)),
    }
    return {
        f"segment_{name}_{loss}": values
        for name, pair in between.items()
        for loss, values in segment(population, *pair, images, labels, sizes).items()
    }


def ends(params: Params) -> tuple[Params, Params]:
    """Returns θ_A and θ_B, leaves `[P, ...]`, of parameters `[P, 2, ...]`."""
    return _side(params, 0), _side(params, 1)


def matched_ends(population: Population, key: Key) -> tuple[Params, Params]:
    """Returns θ_A, and θ_B with its units permuted to match it in the weights.

    Args:
      population: the pairs.
      key: consumed.
    """
    params = population.params
    specification = landscapes.derive_permutations(
        population.condition.module, _member(params, 0, 0)
    )
    permuted = []
    for p in range(jax.tree.leaves(params)[0].shape[0]):
        target, other = _member(params, p, 0), _member(params, p, 1)
        matching = landscapes.weight_match(specification, target, other, jax.random.fold_in(key, p))
        permuted.append(landscapes.apply_permutations(specification, matching.permutations, other))
    return _side(params, 0), jax.tree.map(lambda *leaves: jnp.stack(leaves), *permuted)


def segment(
    population: Population,
    start: Params,
    end: Params,
    images: Array,
    labels: Array,
    sizes: LandscapeSizes,
) -> Arrays:
    """Returns error and cross-entropy on S from start to end, `[P, T]` by loss.

    Args:
      population: whose S and model it is.
      start: leaves `[P, ...]`.
      end: leaves `[P, ...]`.
      images, labels: of the pool; labels clean, whatever S is labelled with.
      sizes: how much.
    """
    values = _segment_program(
        (start, end, population.halves.s.indices),
        images,
        labels,
        program=program_of(population.condition, trains=False),
        num_points=sizes.num_points,
        chunk_size=sizes.chunk_size,
    )
    return {loss: np.asarray(v) for loss, v in values.items()}


@functools.partial(sharding.jit, static_argnames=("program", "num_points", "chunk_size"))
def _segment_program(
    members, images, labels, *, program: Condition, num_points: int, chunk_size: int
):
    def interpolate_pair(member, images, labels):
        start, end, rows = member
        loss_fn = landscapes.mean_landscape(
            program.apply_fn,
            images[rows],
            labels[rows],
            loss_fns={name: populations.LOSSES[name] for name in ("error", "cross_entropy")},
            chunk_size=chunk_size,
        )
        return landscapes.interpolate(loss_fn, start, end, num_points)

    return sharding.spread(interpolate_pair, at_once=1)(members, images, labels)


def _side(tree: Params, side: int) -> Params:
    return jax.tree.map(lambda leaf: leaf[:, side], tree)


def random_slices(population: Population, images: Array, key: Key, sizes: LandscapeSizes) -> Arrays:
    """Returns cross-entropy around θ_A along filter-normalized directions, of A and of B.

    One direction a pair, `[P, G]`; and the two directions of the first pair, `[2, G, G]`.

    Args:
      population: the pairs.
      images: `[N, H, W, D]` of the pool.
      key: consumed.
      sizes: how much.
    """
    ticks = jnp.linspace(-1.0, 1.0, sizes.grid)
    keys = jax.random.split(key, sizes.num_pairs)

    def slice_pair(member, images):
        params, parts, key = member
        directions = landscapes.filter_directions(params, key)
        lone = jax.tree.map(lambda leaf: leaf[:1], directions)
        return jnp.stack(
            [
                landscapes.slice_grid(
                    _landscape(population, images, half, sizes), params, lone, [ticks]
                )["cross_entropy"]
                for half in parts
            ]
        )

    parts = (population.halves.a, population.halves.b)
    run = _compiled(sharding.spread(slice_pair, at_once=1))
    curves = np.asarray(run((_side(population.params, 0), parts, keys), images))

    def slice_half(half):
        params = _member(population.params, 0, 0)
        directions = landscapes.filter_directions(params, keys[0])
        loss_fn = _landscape(population, images, half, sizes)
        return landscapes.slice_grid(loss_fn, params, directions, [ticks, ticks])["cross_entropy"].T

    faces = [np.asarray(_compiled(slice_half)(_member(half, 0))) for half in parts]
    return {
        "slice_t": np.asarray(ticks),
        "slice_own": curves[:, 0],
        "slice_other": curves[:, 1],
        "slice_plane": np.stack(faces),
    }


def spectrum_of(
    loss_fn: Callable[[Params], Array], params: Params, key: Key, sizes: LandscapeSizes
) -> dict[str, Array]:
    """Returns the largest eigenvalues, the trace with its error, and the density's quadrature.

    Args:
      loss_fn: parameters to a scalar.
      params: of one model.
      key: consumed.
      sizes: how much.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    keys = jax.random.split(key, 3)
    tops, _ = landscapes.top_eigenvalues(
        loss_fn, params, keys[0], num_eigenvalues=min(sizes.num_eigenvalues, size)
    )
    trace, error = landscapes.hessian_trace(
        loss_fn, params, keys[1], num_samples=4 * sizes.num_samples
    )
    density = landscapes.spectral_density(
        loss_fn,
        params,
        keys[2],
        num_steps=min(sizes.num_steps, size),
        num_samples=sizes.num_samples,
    )
    return {
        "tops": tops,
        "trace": trace,
        "trace_error": error,
        "nodes": density.nodes,
        "weights": density.weights,
    }


def spectra(
    population: Population, walks: Params, images: Array, key: Key, sizes: LandscapeSizes
) -> Arrays:
    """Returns Hessian spectra of L_A in cross-entropy at θ_0 and at θ_A, of each pair.

    Args:
      population: the pairs.
      walks: `[P, 2, T, ...]` from `retrace`; A starts there as in the population.
      images: `[N, H, W, D]` of the pool.
      key: consumed.
      sizes: how much.
    """
    keys = jax.random.split(key, sizes.num_pairs)

    def pair_spectrum(member, images):
        params, half, key = member
        landscape = _landscape(population, images, half, sizes)
        return spectrum_of(lambda p: landscape(p)["cross_entropy"], params, key, sizes)

    run = _compiled(sharding.spread(pair_spectrum, at_once=1))
    result = {}
    start = jax.tree.map(lambda leaf: leaf[:, 0, 0], walks)
    for name, params in {"start": start, "end": _side(population.params, 0)}.items():
        spectrum = run((params, population.halves.a, keys), images)
        result |= {f"spectrum_{name}_{what}": np.asarray(v) for what, v in spectrum.items()}
    return result


def _block_size(params: Params) -> int:
    """Returns how many examples' gradients of a logit make a block of 400 MB."""
    return max(1, 100_000_000 // sum(leaf.size for leaf in jax.tree.leaves(params)))


def class_matrix(
    population: Population, walks: Params, images: Array, labels: Array, sizes: LandscapeSizes
) -> Arrays:
    """Returns the residual-free meeting matrix `[P, C, C]` at initialization.

    Entry (c, c') is the mean over i of class c in A and j of class c' in B of tr K(x_i, x_j)/C at
    θ_0 of A (P6); NaN where a class does not occur among the examples.

    Args:
      population: the pairs.
      walks: `[P, 2, T, ...]` from `retrace`; A starts there as in the population.
      images, labels: of the pool, labels clean.
      sizes: how much.
    """
    condition = population.condition
    number = min(sizes.num_class_examples, condition.num_examples)

    def pair_matrix(member, images, labels):
        params, *rows = member
        valid = jnp.ones(number, bool)
        samples = (Sample(chosen, labels[chosen], valid) for chosen in rows)
        return meeting.residual_free_matrix(
            population.apply_fn, params, images, *samples, chunk_size=sizes.chunk_size
        )

    run = _compiled(sharding.spread(pair_matrix, at_once=1))
    rows = [half.indices[:, :number] for half in (population.halves.a, population.halves.b)]
    start = jax.tree.map(lambda leaf: leaf[:, 0, 0], walks)
    return {"matrix": np.asarray(run((start, *rows), images, labels))}


def alignments(
    population: Population, walks: Params, images: Array, key: Key, sizes: LandscapeSizes
) -> Arrays:
    """Returns centred alignments `[P]` of tangent kernels tr K/C on examples of S.

    Of θ_A with θ_B ("halves"), the same with the examples of one kernel shuffled, which is what
    chance gives ("shuffled"), and of θ_0 with θ_A ("walk").

    Args:
      population: the pairs.
      walks: `[P, 2, T, ...]` from `retrace`; A starts there as in the population.
      images: `[N, H, W, D]` of the pool.
      key: consumed; for the shuffling.
      sizes: how much.
    """
    keys = jax.random.split(key, sizes.num_pairs)

    def pair_alignments(member, images):
        models, rows, key = member
        x = images[rows]
        size = _block_size(models[0])
        start, end_a, end_b = (
            landscapes.trace_ntk(population.apply_fn, params, x, x, block_size=size)
            for params in models
        )
        order = jax.random.permutation(key, rows.shape[0])
        return {
            "alignment_halves": landscapes.kernel_alignment(end_a, end_b),
            "alignment_shuffled": landscapes.kernel_alignment(end_a, end_b[order][:, order]),
            "alignment_walk": landscapes.kernel_alignment(start, end_a),
        }

    run = _compiled(sharding.spread(pair_alignments, at_once=1))
    start = jax.tree.map(lambda leaf: leaf[:, 0, 0], walks)
    ends = _side(population.params, 0), _side(population.params, 1)
    rows = population.halves.s.indices[:, : sizes.num_class_examples]
    return {n: np.asarray(v) for n, v in run(((start, *ends), rows, keys), images).items()}


def section(population: Population, images: Array, labels: Array, sizes: LandscapeSizes) -> Arrays:
    """Returns what θ_A and θ_B of the first pair decide on the plane through three examples of S.

    Args:
      population: the pairs.
      images, labels: of the pool.
      sizes: how much.
    """
    rows = np.asarray(population.halves.s.indices[0])
    classes = np.asarray(labels)[rows]
    chosen = [rows[np.flatnonzero(classes == c)[0]] for c in np.unique(classes)[:3]]
    if len(chosen) < 3:
        chosen = rows[:3].tolist()
    corners = images[np.asarray(chosen)]
    through = landscapes.plane(*corners)
    places = np.stack(
        [np.asarray(landscapes.project_onto_plane(through, corner)[0]) for corner in corners]
    )
    low, high = places.min(0), places.max(0)
    ticks = np.linspace(-0.5 - MARGIN, 0.5 + MARGIN, 4 * sizes.grid)
    x, y = ((low + high)[i] / 2 + ticks * float((high - low).max()) for i in (0, 1))

    def decide(params, x, y):
        logits_fn = lambda image: population.apply_fn(params, image[None])[0]  # noqa: E731
        values = landscapes.surface(
            lambda image: jnp.argmax(logits_fn(image)), through, x, y, chunk_size=256
        )
        return values.astype(jnp.int32)

    run = _compiled(decide)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    decisions = [np.asarray(run(_member(population.params, 0, i), x, y)) for i in (0, 1)]
    return {
        "section_x": np.asarray(x),
        "section_y": np.asarray(y),
        "section_decisions": np.stack(decisions),
        "section_points": places,
        "section_labels": np.asarray(labels)[np.asarray(chosen)],
    }


def measure_own(
    loss_fn: Callable[[Params], Array], members: Sequence[Params], key: Key, sizes: LandscapeSizes
) -> Arrays:
    """Returns landscapes of models that are not ours: of one to three points of one loss.

    Slices and a spectrum at the first; with two, the segment between them; with three, the plane.

    Args:
      loss_fn: parameters to a scalar.
      members: one to three pytrees of equal shapes.
      key: consumed.
      sizes: how much.
    """
    params = members[0]
    key_slice, key_spectrum = jax.random.split(key)
    ticks = jnp.linspace(-1.0, 1.0, sizes.grid)
    directions = landscapes.filter_directions(params, key_slice)

    @_compiled
    def around(params):
        face = landscapes.slice_grid(loss_fn, params, directions, [ticks, ticks])
        lone = jax.tree.map(lambda leaf: leaf[:1], directions)
        return face.T, landscapes.slice_grid(loss_fn, params, lone, [ticks])

    face, curve = around(params)
    spectrum = _compiled(lambda p: spectrum_of(loss_fn, p, key_spectrum, sizes))(params)
    result = {
        "slice_t": np.asarray(ticks),
        "slice_own": np.asarray(curve)[None],
        "slice_plane": np.asarray(face)[None],
    }
    result |= {f"spectrum_end_{name}": np.asarray(v)[None] for name, v in spectrum.items()}
    if len(members) > 1:
        run = _compiled(lambda a, b: landscapes.interpolate(loss_fn, a, b, sizes.num_points))
        result["segment_raw_loss"] = np.asarray(run(members[0], members[1]))[None]
    if len(members) > 2:
        result |= _own_plane(loss_fn, members, sizes)
    return result


def _own_plane(
    loss_fn: Callable[[Params], Array], members: Sequence[Params], sizes: LandscapeSizes
) -> Arrays:
    through = landscapes.plane(*members[:3])
    places = np.stack(
        [np.asarray(landscapes.project_onto_plane(through, member)[0]) for member in members[:3]]
    )
    low, high = places.min(0), places.max(0)
    ticks = np.linspace(-0.5 - MARGIN, 0.5 + MARGIN, sizes.grid) * float((high - low).max())
    x, y = (jnp.asarray((low + high)[i] / 2 + ticks, jnp.float32) for i in (0, 1))
    values = _compiled(lambda x, y: landscapes.surface(loss_fn, through, x, y))(x, y)
    return {
        "plane_x": np.asarray(x),
        "plane_y": np.asarray(y),
        "plane_cross_entropy": np.asarray(values)[None],
        "plane_points": places,
    }


def summary(arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """Returns the barriers of every segment, `[P]`, by path, loss and baseline."""
    result = {}
    for name, values in arrays.items():
        if name.startswith("segment_"):
            for baseline in landscapes.BASELINES:
                heights = landscapes.barrier(jnp.asarray(values), baseline=baseline)
                result[name.removeprefix("segment_"), baseline] = np.asarray(heights)
    return result
