"""Attacks: PGD on one network and on many at once, beside torchattacks on the same weights."""

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, models, sharding
from halfway.lab.benchmarks import auto_attack, mnist, peers, timing
from halfway.lab.benchmarks.timing import Row
from halfway.types import Array, LogitsFn, Params

EPSILON, STEP, NUM_STEPS = 0.1, 0.01, 20
CNN_CHUNK = 32
"""Images that a convolutional network takes at once, so that patches stay in the cache."""
_MLP = {"kind": "mlp", "widths": (256, 256)}
_SMALL_MLP = {"kind": "mlp", "widths": (128, 128)}
# Multiply-adds of an image in the forward pass; the gradient by the input costs as many again.
_CNN_MACS = 28 * 28 * 9 * 16 + 14 * 14 * 9 * 16 * 32 + 7 * 7 * 32 * 10


def rows(data_dir: str | None = None) -> list[Row]:
    """Returns the rows of the suite: medians of five runs in turns, compiled before.

    Args:
      data_dir: the data folder in which MNIST is prepared.
    """
    ceiling = timing.ceiling()
    mlp_macs = 784 * 256 + 256 * 256 + 256 * 10
    small_macs = 64 * 128 + 128 * 128 + 128 * 10
    return [
        _compare("pgd20_cnn", mnist.CNN, 1, 256, 28, 0.5, _CNN_MACS, ceiling),
        _compare("pgd20_cnn", mnist.CNN, 1, 256, 28, 0.5, _CNN_MACS, ceiling, peer_of=_foolbox),
        _compare("pgd20_cnn_x16", mnist.CNN, 16, 256, 28, 0.5, _CNN_MACS, ceiling),
        _compare("pgd20_mlp_x16", _MLP, 16, 256, 28, 0.75, mlp_macs, ceiling),
        _compare("pgd20_small_mlp_x64", _SMALL_MLP, 64, 64, 8, 0.35, small_macs, ceiling),
        auto_attack.first_row(),
        auto_attack.row(data_dir),
    ]


def _compare(
    work: str,
    config: dict[str, Any],
    num_models: int,
    num_images: int,
    side: int,
    target: float,
    macs: int,
    ceiling: float,
    peer_of: Callable[..., Any] | None = None,
) -> Row:
    """Returns the row of PGD on all models at once beside the peer's runs one after another."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(num_images, side, side, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, num_images), jnp.int32)
    module = models.build(config, num_classes=10)
    keys = jax.random.split(jax.random.key(0), num_models)
    params = jax.jit(lambda keys: jax.lax.map(lambda k: module.init(k, x[:1])["params"], keys))(
        keys
    )

    logits_of = functools.partial(mnist.logits_of, config)
    attack = _many(logits_of) if num_models > 1 else _one(logits_of)
    run = jax.jit(attack).lower(params, x, labels).compile()
    peer = (peer_of or _peer)(config, params, np.asarray(x), np.asarray(labels), num_models)
    # A forward and a backward pass, and two operations for each multiply-add.
    operations = 2 * 2 * macs * NUM_STEPS * num_images * num_models
    if isinstance(peer, str):
        (ours,) = timing.median(lambda: run(params, x, labels))
        return Row(
            work,
            ours,
            None,
            None,
            None,
            target,
            operations / ours / ceiling,
            timing.memory(run),
            note=f"{num_models} x {num_images} images",
            skipped=peer,
        )
    name, theirs = peer
    ours, peer_seconds = timing.median(lambda: run(params, x, labels), theirs)
    our_points, peer_points = np.asarray(run(params, x, labels)), theirs()
    same = float((np.abs(our_points - peer_points) < 1e-4).mean())
    return Row(
        work,
        ours,
        name,
        peer_seconds,
        ours / peer_seconds,
        target,
        operations / ours / ceiling,
        timing.memory(run),
        note=f"{num_models} x {num_images} images; {same:.1%} of pixels equal",
    )


def _pgd(logits_fn: LogitsFn, x: Array, labels: Array) -> Array:
    return attacks.pgd(
        logits_fn,
        jax.random.key(0),
        x,
        labels,
        threat=attacks.linf(EPSILON),
        num_steps=NUM_STEPS,
        relative_step=STEP / EPSILON,
        best=False,
    ).adversarial


def _one(logits_of: Callable[[Params], LogitsFn]) -> Callable[..., Array]:
    """Returns the attack on one model, whose chunks of images are spread over the devices."""

    def attack(params: Params, x: Array, labels: Array) -> Array:
        chunks = [a.reshape(-1, CNN_CHUNK, *a.shape[1:]) for a in (x, labels)]
        first = jax.tree.map(lambda leaf: leaf[0], params)

        def part(chunk: tuple[Array, Array], params: Params) -> Array:
            return _pgd(logits_of(params), *chunk)

        points = sharding.spread(part, at_once=1)(tuple(chunks), first)
        return points.reshape(1, *x.shape)

    return attack


def _many(logits_of: Callable[[Params], LogitsFn]) -> Callable[..., Array]:
    """Returns the attack on many models, which are spread over the devices."""

    def attack(params: Params, x: Array, labels: Array) -> Array:
        convolutional = any("Conv" in name for name in params)

        def member(params: Params, x: Array, labels: Array) -> Array:
            if not convolutional:
                return _pgd(logits_of(params), x, labels)
            chunks = [a.reshape(-1, CNN_CHUNK, *a.shape[1:]) for a in (x, labels)]
            points = jax.lax.map(lambda chunk: _pgd(logits_of(params), *chunk), tuple(chunks))
            return points.reshape(x.shape)

        return sharding.spread(member, at_once=1 if convolutional else len(x))(params, x, labels)

    return attack


def _foolbox(
    config: dict[str, Any], params: Params, x: np.ndarray, labels: np.ndarray, num_models: int
) -> tuple[str, Callable[[], np.ndarray]] | str:
    """Returns name and run of foolbox in JAX on the same weights; else why there is none."""
    assert num_models == 1
    modules = peers.load("foolbox")
    if isinstance(modules, str):
        return modules
    (foolbox,) = modules
    first = jax.tree.map(lambda leaf: leaf[0], params)
    model = foolbox.models.JAXModel(jax.jit(mnist.logits_of(config, first)), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=NUM_STEPS, random_start=False)
    images, targets = jnp.asarray(x), jnp.asarray(labels)

    def call() -> np.ndarray:
        return np.asarray(attack.run(model, images, targets, epsilon=EPSILON))[None]

    return f"foolbox {importlib.metadata.version('foolbox')}, JAX", call


def _peer(
    config: dict[str, Any], params: Params, x: np.ndarray, labels: np.ndarray, num_models: int
) -> tuple[str, Callable[[], np.ndarray]] | str:
    """Returns name and run of torchattacks on the same weights; else why there is none."""
    modules = peers.load("torch", "torchattacks")
    if isinstance(modules, str):
        return modules
    torch, torchattacks = modules
    images, targets = peers.to_torch(torch, x, labels)
    runs = []
    for index in range(num_models):
        member = jax.tree.map(lambda leaf: np.array(leaf[index]), params)  # noqa: B023
        network = peers.network(torch, config, member).eval()
        runs.append(
            torchattacks.PGD(network, eps=EPSILON, alpha=STEP, steps=NUM_STEPS, random_start=False)
        )

    def call() -> np.ndarray:
        return np.stack([peers.from_torch(run(images, targets)) for run in runs])

    return f"torchattacks {importlib.metadata.version('torchattacks')}", call
