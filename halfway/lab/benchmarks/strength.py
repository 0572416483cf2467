"""Strength of our attacks and of peers' attacks on a network trained on MNIST.

Both sides have the same weights, images, budgets and steps. Attacks with a budget are compared by
robust accuracy, attacks that search the nearest point by the median distance over images that both
fool. A larger number means a weaker attack.
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from halfway import attacks
from halfway.lab.benchmarks import auto_attack, mnist, peers
from halfway.lab.study import wording
from halfway.types import Array

BUDGETS = {"linf": (0.18, 0.21, 0.24), "l2": (2.0, 2.5, 3.0)}
"""Budgets at which a third or less survives, since survivors cost AutoAttack time."""
NUM_STEPS, NUM_QUERIES = {"pgd": 40, "apgd": 100, "auto_attack": 10}, 1000
"""AutoAttack has fewer than the paper's 100 steps and 5,000 queries on both sides, for time."""
PERCENTAGE_POINTS, LARGER = 0.3, 1.01
"""The points of robust accuracy, and the factor of a median, by which ours may be weaker."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An attack of ours beside a peer's, on all images. None where a field has no meaning.

    Attributes:
      work: attack and norm.
      budget: ε; None for attacks that search the nearest point.
      ours: our robust accuracy in percent, or our median distance.
      peer: name and version of the peer.
      theirs: the peer's robust accuracy in percent, or the peer's median distance.
      weaker: ours minus theirs in points, or ours over theirs.
      at_most: an upper bound on `weaker`.
      note: further facts for a reader.
      skipped: why the attack could not run.
    """

    work: str
    budget: float | None = None
    ours: float | None = None
    peer: str | None = None
    theirs: float | None = None
    weaker: float | None = None
    at_most: float | None = None
    note: str = ""
    skipped: str | None = None


def rows(data_dir: str | None = None) -> list[Comparison]:
    """Returns the rows of the suite: three attacks at three budgets in two norms, then distances.

    Args:
      data_dir: the data folder in which MNIST is prepared.
    """
    problem = mnist.problem(data_dir)
    if isinstance(problem, str):
        return [Comparison("all", skipped=problem)]
    modules = peers.load("foolbox", "torch", "torchattacks")
    if isinstance(modules, str):
        return [Comparison("all", skipped=modules)]
    foolbox, torch, torchattacks = modules
    network = peers.network(torch, problem.config, problem.params).eval()
    model = foolbox.models.PyTorchModel(network, bounds=(0, 1))
    images, labels = peers.to_torch(torch, problem.images, problem.labels)

    def bounded(name: str, norm: str, epsilon: float) -> Comparison:
        attack = _torchattacks(torchattacks, network, name, norm, epsilon)
        other = peers.call(torch, attack, problem.images, problem.labels)
        return _accuracy(problem, name, norm, epsilon, _bounded, other)

    def whole(norm: str, epsilon: float) -> Comparison:
        spent = NUM_STEPS["auto_attack"], NUM_QUERIES
        staged = auto_attack.Staged(problem, norm, *spent)
        peer = auto_attack.peer(problem, norm, epsilon, *spent)
        assert not isinstance(peer, str)
        other = peer[1](problem.images, problem.labels)
        attack = lambda *_: staged(epsilon).adversarial  # noqa: E731
        return _accuracy(problem, "auto_attack", norm, epsilon, attack, other)

    def nearest(name: str, norm: str, options: dict[str, Any], attack: Any) -> Comparison:
        other = peers.from_torch(attack.run(model, images, labels))
        return _distance(problem, name, norm, options, other)

    work: list[Callable[[], Comparison]] = []
    for norm, budgets in BUDGETS.items():
        for epsilon in budgets:
            work += [functools.partial(bounded, name, norm, epsilon) for name in ("pgd", "apgd")]
            work.append(functools.partial(whole, norm, epsilon))
    for (name, norm), (options, attack) in _nearest(foolbox).items():
        work.append(functools.partial(nearest, name, norm, options, attack))
    # The suite takes half an hour, so progress is shown.
    return [run() for run in tqdm.tqdm(work, unit="row", disable=None)]


def as_text(rows: list[Comparison]) -> str:
    """Returns the rows as a table for a terminal.

    Args:
      rows: the rows of the suite.
    """
    names = ["work", "ε", "ours", "peer", "peer's", "weaker by", "at most", "note"]
    body = [
        [
            row.work,
            *(_number(value) for value in (row.budget, row.ours)),
            row.peer or "–",
            *(_number(value) for value in (row.theirs, row.weaker, row.at_most)),
            row.note if row.skipped is None else f"skipped: {row.skipped}",
        ]
        for row in rows
    ]
    return "\n".join(wording.align([names, *body]))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _torchattacks(module: Any, network: Any, name: str, norm: str, epsilon: float) -> Any:
    """Returns the peer of one of our attacks at a budget, with as many steps of the same length."""
    steps = NUM_STEPS[name]
    if name == "apgd":
        return module.APGD(network, norm=peers.TORCH_NORM[norm], eps=epsilon, steps=steps, seed=0)
    make = module.PGD if norm == "linf" else module.PGDL2
    # Attacks start at the clean input, since random starts alone change results by half a point.
    return make(network, eps=epsilon, alpha=0.1 * epsilon, steps=steps, random_start=False)


def _bounded(problem: mnist.Problem, name: str, norm: str, epsilon: float) -> Array:
    """Returns all images as our attack perturbs them."""
    options = {"relative_step": 0.1} if name == "pgd" else {}
    attack = functools.partial(
        getattr(attacks, name), problem.logits_fn, num_steps=NUM_STEPS[name], **options
    )
    threat = getattr(attacks, norm)(epsilon)
    return mnist.in_chunks(problem, lambda key, x, y: attack(key, x, y, threat=threat))()


def _right(problem: mnist.Problem, images: Any) -> np.ndarray:
    logits = jax.jit(problem.logits_fn)(jnp.asarray(images))
    return np.asarray(jnp.argmax(logits, -1) == problem.labels)


def _accuracy(
    problem: mnist.Problem,
    name: str,
    norm: str,
    epsilon: float,
    attack: Callable[..., Array],
    peer_points: np.ndarray,
) -> Comparison:
    """Returns the row of robust accuracies, both measured with our network."""
    our_points = attack(problem, name, norm, epsilon)
    away = [
        float(attacks.distance(jnp.asarray(point), problem.images, norm).max())
        for point in (our_points, peer_points)
    ]
    ours, theirs = (100 * _right(problem, point).mean() for point in (our_points, peer_points))
    return Comparison(
        f"{name} {norm}",
        epsilon,
        float(ours),
        _version("torchattacks"),
        float(theirs),
        float(ours - theirs),
        PERCENTAGE_POINTS,
        note=f"{NUM_STEPS[name]} steps; farthest {away[0]:.4f} and {away[1]:.4f}",
    )


def _nearest(module: Any) -> dict[tuple[str, str], tuple[dict[str, Any], Any]]:
    """Returns attacks by name and norm: our options, and foolbox's attack with as many steps."""
    of = module.attacks
    return {
        ("deepfool", "linf"): ({"num_steps": 50}, of.LinfDeepFoolAttack(steps=50, candidates=10)),
        ("deepfool", "l2"): ({"num_steps": 50}, of.L2DeepFoolAttack(steps=50, candidates=10)),
        ("ddn", "l2"): ({"num_steps": 100}, of.DDNAttack(steps=100)),
        ("fmn", "linf"): ({"num_steps": 100}, of.LInfFMNAttack(steps=100)),
        ("fmn", "l2"): ({"num_steps": 100}, of.L2FMNAttack(steps=100)),
        ("fmn", "l1"): ({"num_steps": 100}, of.L1FMNAttack(steps=100)),
        ("carlini_wagner", "l2"): (
            {"num_steps": 200, "num_searches": 9},
            of.L2CarliniWagnerAttack(binary_search_steps=9, steps=200),
        ),
    }


def _distance(
    problem: mnist.Problem, name: str, norm: str, options: dict[str, Any], peer_points: np.ndarray
) -> Comparison:
    """Returns the row of median distances over the images that both attacks fool."""
    named = {} if name in ("ddn", "carlini_wagner") else {"norm": norm}
    attack = functools.partial(getattr(attacks, name), problem.logits_fn, **options, **named)
    our_points = mnist.in_chunks(problem, attack)()
    both = (
        _right(problem, problem.images)
        & ~_right(problem, our_points)
        & ~_right(problem, peer_points)
    )
    right = _right(problem, problem.images).sum()
    medians = [
        float(np.median(np.asarray(attacks.distance(jnp.asarray(p), problem.images, norm))[both]))
        for p in (our_points, peer_points)
    ]
    return Comparison(
        f"{name} {norm}",
        None,
        medians[0],
        _version("foolbox"),
        medians[1],
        medians[0] / medians[1],
        LARGER,
        note=f"median distance; {both.sum()} of {right} fooled by both; {_said(options)}",
    )


def _said(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package
