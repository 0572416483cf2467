"""Attacks: PGD on one network and on many at once, beside torchattacks on the same weights."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import peers, timing
from experiments.benchmarks.timing import Row
from halfway import attacks, models, placement
from halfway.types import Array, LogitsFn, Params

EPSILON, STEP, NUM_STEPS = 0.1, 0.01, 20
CHUNK = 32
"""Images of a convolutional network at once, whose patches stay in the cache."""
_CNN = {"kind": "cnn", "features": (16, 32), "stride": 1, "pool": 2, "widths": ()}
_MLP = {"kind": "mlp", "widths": (256, 256)}
_SMALL_MLP = {"kind": "mlp", "widths": (128, 128)}
# Multiply-adds of one image forward; the gradient to the input costs as many again.
_CNN_MACS = 28 * 28 * 9 * 16 + 14 * 14 * 9 * 16 * 32 + 7 * 7 * 32 * 10


def rows() -> list[Row]:
    """Returns the rows of the suite: medians of five runs in turns, compiled before."""
    ceiling = timing.ceiling()
    mlp_macs = 784 * 256 + 256 * 256 + 256 * 10
    small_macs = 64 * 128 + 128 * 128 + 128 * 10
    return [
        _compare("pgd20_cnn", _CNN, 1, 256, 28, 0.5, _CNN_MACS, ceiling),
        _compare("pgd20_cnn_x16", _CNN, 16, 256, 28, 0.5, _CNN_MACS, ceiling),
        _compare("pgd20_mlp_x16", _MLP, 16, 256, 28, 0.75, mlp_macs, ceiling),
        _compare("pgd20_small_mlp_x64", _SMALL_MLP, 64, 64, 8, 0.35, small_macs, ceiling),
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
) -> Row:
    """Returns PGD on all models at once against one torchattacks run after another."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(num_images, side, side, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, num_images), jnp.int32)
    module = models.build(config, num_classes=10)
    keys = jax.random.split(jax.random.key(0), num_models)
    params = jax.jit(lambda keys: jax.lax.map(lambda k: module.init(k, x[:1])["params"], keys))(
        keys
    )

    def logits_of(params: Params) -> LogitsFn:
        return lambda x: jnp.asarray(module.apply({"params": params}, x))

    attack = _many(logits_of) if num_models > 1 else _one(logits_of)
    run = jax.jit(attack).lower(params, x, labels).compile()
    peer = _peer(config, params, np.asarray(x), np.asarray(labels), num_models)
    # Forward and back to the input, two operations a multiply-add.
    operations = 2 * 2 * macs * NUM_STEPS * num_images * num_models
    if isinstance(peer, str):
        (ours,) = timing.median(lambda: run(params, x, labels))
        return Row(
            work, ours, None, None, None, target, operations / ours / ceiling, timing.memory(run),
            note=f"{num_models} x {num_images} images", skipped=peer,
        )  # fmt: skip
    name, theirs = peer
    ours, peer_seconds = timing.median(lambda: run(params, x, labels), theirs)
    found, other = np.asarray(run(params, x, labels)), theirs()
    same = float((np.abs(found - other) < 1e-4).mean())
    return Row(
        work, ours, name, peer_seconds, ours / peer_seconds, target, operations / ours / ceiling,
        timing.memory(run), note=f"{num_models} x {num_images} images; {same:.1%} of pixels equal",
    )  # fmt: skip


def _pgd(logits_fn: LogitsFn, x: Array, labels: Array) -> Array:
    return attacks.pgd(
        logits_fn, jax.random.key(0), x, labels, threat=attacks.linf(EPSILON),
        num_steps=NUM_STEPS, relative_step=STEP / EPSILON, best=False,
    ).adversarial  # fmt: skip


def _one(logits_of: Callable[[Params], LogitsFn]) -> Callable[..., Array]:
    """Returns the attack on one model: chunks of images are spread over the devices."""

    def attack(params: Params, x: Array, labels: Array) -> Array:
        chunks = [a.reshape(-1, CHUNK, *a.shape[1:]) for a in (x, labels)]
        first = jax.tree.map(lambda leaf: leaf[0], params)

        def part(chunk: tuple[Array, Array], params: Params) -> Array:
            return _pgd(logits_of(params), *chunk)

        found = placement.spread(part, vectorized=False)(tuple(chunks), first)
        return found.reshape(1, *x.shape)

    return attack


def _many(logits_of: Callable[[Params], LogitsFn]) -> Callable[..., Array]:
    """Returns the attack on many models, which are spread over the devices."""

    def attack(params: Params, x: Array, labels: Array) -> Array:
        convolutional = any("Conv" in name for name in params)

        def member(params: Params, x: Array, labels: Array) -> Array:
            if not convolutional:
                return _pgd(logits_of(params), x, labels)
            chunks = [a.reshape(-1, CHUNK, *a.shape[1:]) for a in (x, labels)]
            found = jax.lax.map(lambda chunk: _pgd(logits_of(params), *chunk), tuple(chunks))
            return found.reshape(x.shape)

        return placement.spread(member, vectorized=not convolutional)(params, x, labels)

    return attack


def _peer(
    config: dict[str, Any], params: Params, x: np.ndarray, labels: np.ndarray, num_models: int
) -> tuple[str, Callable[[], np.ndarray]] | str:
    """Returns torchattacks on the same weights, one model after another; else why there is none."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import torchattacks  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"{error.name} is not installed: pip install -e '.[peers]'"
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    targets = torch.from_numpy(labels.copy()).long()
    runs = []
    for index in range(num_models):
        member = jax.tree.map(lambda leaf: np.array(leaf[index]), params)  # noqa: B023
        network = _network(torch, config, member).eval()
        runs.append(
            torchattacks.PGD(network, eps=EPSILON, alpha=STEP, steps=NUM_STEPS, random_start=False)
        )

    def call() -> np.ndarray:
        found = [run(images, targets).detach().numpy().transpose(0, 2, 3, 1) for run in runs]
        return np.stack(found)

    return f"torchattacks {importlib.metadata.version('torchattacks')}", call


def _network(torch: Any, config: dict[str, Any], params: Params) -> Any:
    """Returns the network in PyTorch with our weights."""
    nn = torch.nn

    class Scale(nn.Module):
        def forward(self, x: Any) -> Any:
            return 2 * x - 1

    class Channels(nn.Module):
        """Features last, as our dense layer takes them."""

        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1)

    layers: list[Any] = [Scale()]
    if config["kind"] == "cnn":
        for index in range(len(config["features"])):
            layers += [
                peers.convolution(torch, params[f"Conv_{index}"]),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        layers += [Channels(), nn.Flatten(), peers.dense(torch, params["Dense_0"])]
        return nn.Sequential(*layers)
    layers.append(nn.Flatten())
    number = len(config["widths"])
    for index in range(number + 1):
        layers.append(peers.dense(torch, params[f"Dense_{index}"]))
        if index < number:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
