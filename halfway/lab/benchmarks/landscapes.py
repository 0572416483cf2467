"""Landscapes: a slice, Hessian eigenvalues beside PyHessian, weight matching."""

import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from halfway import landscapes, losses, models, populations, sharding
from halfway.lab.benchmarks import peers, timing
from halfway.lab.benchmarks.timing import Row
from halfway.lab.config.user import LOG
from halfway.types import Params

NUM_IMAGES, SIDE, GRID_SIZE = 1000, 28, 25
_CNN = {"kind": "cnn", "features": (16, 32), "stride": 1, "pool": 2, "widths": ()}
_MLP = {"kind": "mlp", "widths": (128,)}


def rows(data_dir: str | None = None) -> list[Row]:
    """Returns the rows of the suite; it needs no data folder."""
    del data_dir
    images, labels = _data()
    ceiling = timing.ceiling()
    return [
        _slice(images, labels, ceiling),
        *_eigenvalues(images, labels),
        _matching(),
    ]


def _data() -> tuple[Any, Any]:
    """Returns images of ten classes in [0, 1]: a mean of each and noise, from a fixed seed."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, NUM_IMAGES)
    means = rng.uniform(0.3, 0.7, (10, SIDE, SIDE, 1))
    images = np.clip(means[labels] + 0.2 * rng.standard_normal((NUM_IMAGES, SIDE, SIDE, 1)), 0, 1)
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def _model(config: dict[str, Any], images: Any) -> tuple[Any, Params]:
    module = models.build(config, num_classes=10)
    params = jax.jit(module.init)(jax.random.key(0), images[:1])["params"]
    return lambda params, x: jnp.asarray(module.apply({"params": params}, x)), params


def _slice(images: Any, labels: Any, ceiling: float) -> Row:
    apply_fn, params = _model(_CNN, images)
    directions = landscapes.filter_directions(params, jax.random.key(1))
    ticks = jnp.linspace(-1.0, 1.0, GRID_SIZE)
    loss_fn = landscapes.mean_landscape(
        apply_fn, images, labels, loss_fns={"loss": losses.cross_entropy}, chunk_size=5
    )

    def row(tick, params, directions):
        # With few examples and few points at once, patches of a convolution stay in the cache, and
        # patches of the images, which no point changes, are made once for three points.
        points = [tick[None], ticks]
        return landscapes.slice_grid(loss_fn, params, directions, points, chunk_size=3)["loss"][0]

    spread = sharding.spread(row, at_once=1)
    run = jax.jit(spread).lower(ticks, params, directions).compile()
    (seconds,) = timing.least(lambda: run(ticks, params, directions), repeats=2)
    macs = 28 * 28 * 9 * 16 + 14 * 14 * 9 * 16 * 32 + 7 * 7 * 32 * 10
    share = 2 * macs * NUM_IMAGES * ticks.size**2 / seconds / ceiling
    return Row(
        f"slice_cnn_{GRID_SIZE}x{GRID_SIZE}",
        seconds,
        ratio=seconds / 15,
        target=1.0,
        ceiling_share=share,
        peak_memory_bytes=timing.memory(run),
        note=f"{NUM_IMAGES} images; ratio to 15 s",
    )


def _eigenvalues(images: Any, labels: Any) -> list[Row]:
    apply_fn, params = _model(_MLP, images)
    optimizer = populations.make_optimizer("adam", 2e-3)

    @jax.jit
    def train(params):
        state = populations.init_state(params, optimizer)
        step = lambda _, s: populations.train_step(apply_fn, optimizer, s, images, labels)  # noqa: E731
        return jax.lax.fori_loop(0, 30, step, state).params

    params = train(params)

    def loss_fn(params, images, labels):
        return losses.cross_entropy(apply_fn(params, images), labels).mean()

    def top(params, images, labels, key):
        return landscapes.top_eigenvalues(
            lambda p: loss_fn(p, images, labels), params, key, num_eigenvalues=5, tolerance=1e-4
        ).values

    def traced(params, images, labels, key):
        return landscapes.hessian_trace(
            lambda p: loss_fn(p, images, labels), params, key, num_samples=50
        )

    arguments = (params, images, labels, jax.random.key(2))
    run_top = jax.jit(top).lower(*arguments).compile()
    run_trace = jax.jit(traced).lower(*arguments).compile()
    size = int(optax.tree.size(params))
    peer = _peer(params, images, labels)
    if peer is None:
        times_top, times_trace = (
            [*timing.least(lambda run=run: run(*arguments)), None] for run in (run_top, run_trace)
        )
        name, note, note_trace = None, f"{size} parameters; PyHessian is not installed", ""
    else:
        name, hessian = peer
        times_top = timing.least(
            lambda: run_top(*arguments),
            lambda: hessian.eigenvalues(maxIter=200, tol=1e-4, top_n=5) and None,
        )
        times_trace = timing.least(
            lambda: run_trace(*arguments), lambda: hessian.trace(maxIter=50, tol=0.0) and None
        )
        ours = np.asarray(run_top(*arguments))
        theirs = np.array(hessian.eigenvalues(maxIter=200, tol=1e-4, top_n=5)[0])
        worst = np.abs(ours / theirs - 1).max()
        note = f"{size} parameters; largest relative difference of the five {worst:.1e}"
        estimate, error = (float(v) for v in run_trace(*arguments))
        note_trace = f"{estimate:.4g} ± {error:.2g}, theirs {np.mean(hessian.trace(50, 0.0)):.4g}"
    limit = times_top[0] / 3
    rows = [Row("top5_mlp_100k_under_3_s", times_top[0] or 0.0, ratio=limit, target=1.0)]
    for work, times, run, words in (
        ("top5_mlp_100k", times_top, run_top, note),
        ("trace_mlp_100k_50_samples", times_trace, run_trace, note_trace),
    ):
        ours_seconds, peer_seconds = times[0] or 0.0, times[1]
        ratio = None if peer_seconds is None else ours_seconds / peer_seconds
        memory = timing.memory(run)
        rows.append(Row(work, ours_seconds, name, peer_seconds, ratio, 0.5, None, memory, words))
    return rows


def _peer(params: Params, images: Any, labels: Any) -> tuple[str, Any] | None:
    """Returns PyHessian on the same network, weights and data; None where it is not installed."""
    modules = peers.load("pyhessian", "torch")
    if isinstance(modules, str):
        LOG.warning("%s", modules)
        return None
    pyhessian, torch = modules
    inputs = torch.from_numpy(np.array(2 * images - 1).reshape(NUM_IMAGES, -1))
    first, second = (peers.dense(torch, params[name]) for name in ("Dense_0", "Dense_1"))
    layers = [first, torch.nn.ReLU(), second]
    data = (inputs, torch.from_numpy(np.array(labels)).long())
    criterion = torch.nn.CrossEntropyLoss()
    hessian = pyhessian.hessian(torch.nn.Sequential(*layers), criterion, data=data, cuda=False)
    return f"PyHessian {importlib.metadata.version('pyhessian')}", hessian


def _matching() -> Row:
    module = models.build({"kind": "mlp", "widths": (512, 512, 512)}, num_classes=10)
    image = jnp.zeros((1, SIDE, SIDE, 1))
    init = jax.jit(lambda key: module.init(key, image)["params"])
    first, second = (jax.device_get(init(jax.random.key(i))) for i in (0, 1))
    specification = landscapes.derive_permutations(module, first)
    key = jax.random.key(2)

    def run():
        return landscapes.weight_match(specification, first, second, key).permutations

    (seconds,) = timing.least(run)
    sweeps = landscapes.weight_match(specification, first, second, key).num_sweeps
    return Row(
        "weight_match_mlp_3x512",
        seconds,
        ratio=seconds / 1.0,
        target=1.0,
        note=f"{sweeps} sweeps; ratio to 1 s",
    )
