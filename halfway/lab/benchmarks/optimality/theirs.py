"""Attacks of foolbox, torchattacks and adv-lib that look for the nearest point, on our weights.

They have the settings of their packages, but for the number of steps and for what would keep an
attack from the nearest point: a rule that does not choose by the norm (ead), points rounded to 256
levels (ddn), points beyond a budget thrown away (fab), classes that are not looked at (deepfool).
Where a package leaves a choice, it is AttackBench's: first steps of alma, larger budgets first in
minimal_apgd in l1, adaptive radii in tr; in l0 pdpgd has the operator that its docstring prefers.
Brendel and Bethge's attack begins at the nearest of the other images that has another class.
"""

import functools
import importlib.metadata
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from halfway.lab.benchmarks import mnist, peers
from halfway.lab.benchmarks.optimality.passes import (
    LARGEST_BUDGETS,
    NORM_ORDERS,
    NUM_SEARCHES,
    Attack,
    Cost,
    Found,
)

NUM_BISECTIONS, NUM_SAMPLES, NUM_INNER_STEPS = 20, 10, 20
"""Budgets that are bisected, draws of a step of vfga, steps of DeepFool in one of SuperDeepFool."""


class Peer(NamedTuple):
    """An attack of a peer.

    Attributes:
      name: of the attack, as its package calls it.
      norm: "l0", "l1", "l2" or "linf".
      cost: the most passes that it spends; it may end early.
      attack: a number of steps to perturbed images `[N, D, H, W]`, a tensor.
    """

    name: str
    norm: str
    cost: Cost
    attack: Callable[[int], Any]


class Target(NamedTuple):
    """What peers attack.

    Attributes:
      network: a network of PyTorch with our weights that counts passes, see `counted`.
      images: `[N, D, H, W]`, a tensor.
      labels: `[N]`, a tensor.
      num_classes: C.
    """

    network: Any
    images: Any
    labels: Any
    num_classes: int


def counted(torch: Any, network: Any) -> Any:
    """Returns a network that counts its passes: `num_passes`, forward and backward, by examples.

    Args:
      torch: the module of PyTorch.
      network: a network of PyTorch; its parameters no longer need gradients.
    """

    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.num_passes = network.requires_grad_(False), 0

        def forward(self, x: Any) -> Any:
            logits = self.network(x)
            self.num_passes += len(x)
            if logits.requires_grad:
                logits.register_hook(self.count)
            return logits

        def count(self, gradient: Any) -> None:
            self.num_passes += len(gradient)

    return Counted().eval()


def attacks_on(problem: mnist.Problem) -> tuple[list[Attack], list[str]]:
    """Returns peers' attacks on the images of a problem, and why some packages have none.

    Args:
      problem: the network and its images.
    """
    attacks: list[Attack] = []
    absent: list[str] = []
    for package, attacks_of in PACKAGES.items():
        modules = peers.load("torch", package)
        if isinstance(modules, str):
            absent.append(modules)
            continue
        torch, module = modules
        network = counted(torch, peers.network(torch, problem.config, problem.params))
        images, labels = peers.to_torch(torch, problem.images, problem.labels)
        num_classes = problem.logits_fn(problem.images[:1]).shape[1]
        target = Target(network, images, labels, num_classes)
        name = f"{package} {importlib.metadata.version(package)}"
        attacks += [
            Attack(
                name, each.name, each.norm, each.cost, functools.partial(_run, torch, target, each)
            )
            for each in attacks_of(torch, module, target)
        ]
    return attacks, list(dict.fromkeys(absent))


def _run(torch: Any, target: Target, each: Peer, num_steps: int) -> Found:
    torch.manual_seed(0)
    target.network.num_passes = 0
    started = time.perf_counter()
    points = each.attack(num_steps).detach()
    seconds = time.perf_counter() - started
    num_passes = target.network.num_passes / len(target.labels)
    with torch.no_grad():
        fools_peer = (target.network(points).argmax(1) != target.labels).numpy()
    return Found(peers.from_torch(points), num_passes, seconds, fools_peer)


def _foolbox(torch: Any, foolbox: Any, target: Target) -> list[Peer]:
    """Returns the attacks of foolbox."""
    of, model = foolbox.attacks, foolbox.models.PyTorchModel(target.network, bounds=(0, 1))

    def with_steps(make: Callable[..., Any], **options: Any) -> Callable[[int], Any]:
        def attack(num_steps: int) -> Any:
            built = make(steps=num_steps, **options)
            return built.run(model, target.images.clone(), target.labels)

        return attack

    def boundary(make: Callable[..., Any]) -> Callable[[int], Any]:
        def attack(num_steps: int) -> Any:
            begin = _nearest_of_others(torch, target)
            images = target.images.clone()
            return make(steps=num_steps).run(model, images, target.labels, starting_points=begin)

        return attack

    fmn = (of.L0FMNAttack, of.L1FMNAttack, of.L2FMNAttack, of.LInfFMNAttack)
    brendel_bethge = (
        of.L0BrendelBethgeAttack,
        of.L1BrendelBethgeAttack,
        of.L2BrendelBethgeAttack,
        of.LinfinityBrendelBethgeAttack,
    )
    # It evaluates the network once more for each class.
    deepfool = Cost(1, 2 * (target.num_classes - 1))
    searches = {"binary_search_steps": NUM_SEARCHES}
    every_class = {"candidates": None}
    return [
        Peer("deepfool", "linf", deepfool, with_steps(of.LinfDeepFoolAttack, **every_class)),
        Peer("deepfool", "l2", deepfool, with_steps(of.L2DeepFoolAttack, **every_class)),
        Peer("ddn", "l2", Cost(0, 2), with_steps(of.DDNAttack)),
        *(
            Peer("fmn", norm, Cost(0, 2), with_steps(make))
            for norm, make in zip(NORM_ORDERS, fmn, strict=True)
        ),
        Peer(
            "carlini_wagner",
            "l2",
            Cost(0, 2 * NUM_SEARCHES),
            with_steps(of.L2CarliniWagnerAttack, **searches),
        ),
        Peer(
            "ead",
            "l1",
            Cost(0, 3 * NUM_SEARCHES),
            with_steps(of.EADAttack, decision_rule="L1", **searches),
        ),
        # Ten halvings between its start and the image, and two looks at all images before.
        *(
            Peer("brendel_bethge", norm, Cost(12, 2), boundary(make))
            for norm, make in zip(NORM_ORDERS, brendel_bethge, strict=True)
        ),
    ]


def _nearest_of_others(torch: Any, target: Target) -> Any:
    """Returns for each image the nearest one, in l2, that the network gives to another class."""
    with torch.no_grad():
        classes = target.network(target.images).argmax(1)
    flat = target.images.flatten(1)
    away = torch.cdist(flat, flat)
    away[classes[None] == target.labels[:, None]] = math.inf
    return target.images[away.argmin(1)]


def _torchattacks(torch: Any, torchattacks: Any, target: Target) -> list[Peer]:
    """Returns the attacks of torchattacks."""
    del torch

    def called(make: Callable[..., Any]) -> Callable[[int], Any]:
        return lambda num_steps: make(num_steps)(target.images.clone(), target.labels)

    def fab(norm: str) -> Callable[[int], Any]:
        # Points farther than eps are thrown away.
        options = {"norm": norm.capitalize(), "eps": math.inf, "n_classes": target.num_classes}
        return called(lambda n: torchattacks.FAB(target.network, steps=n, **options))

    return [
        Peer(
            "deepfool",
            "l2",
            Cost(0, 1 + target.num_classes),
            called(lambda n: torchattacks.DeepFool(target.network, steps=n)),
        ),
        Peer(
            "carlini_wagner",
            "l2",
            Cost(0, 2),
            called(lambda n: torchattacks.CW(target.network, steps=n)),
        ),
        Peer(
            "ead",
            "l1",
            Cost(1, 3 * NUM_SEARCHES),
            called(
                lambda n: torchattacks.EADL1(
                    target.network, max_iterations=n, binary_search_steps=NUM_SEARCHES
                )
            ),
        ),
        *(
            Peer("fab", norm, Cost(3, 2 + target.num_classes), fab(norm))
            for norm in ("linf", "l2", "l1")
        ),
    ]


def _adv_lib(torch: Any, adv_lib: Any, target: Target) -> list[Peer]:
    """Returns the attacks of adv-lib."""
    del torch
    of = adv_lib.attacks

    def called(attack: Callable[..., Any], steps: str, **options: Any) -> Callable[[int], Any]:
        def run(num_steps: int) -> Any:
            options[steps] = num_steps
            return attack(target.network, target.images.clone(), target.labels, **options)

        return run

    def bisection(norm: str) -> Peer:
        # In l1 it shrinks a larger budget in three walks.
        walks = 3 if norm == "l1" else 1
        attack = called(
            of.auto_pgd.minimal_apgd,
            "n_iter",
            norm=NORM_ORDERS[norm],
            max_eps=LARGEST_BUDGETS[norm],
            binary_search_steps=NUM_BISECTIONS,
            use_large_reps=norm == "l1",
        )
        cost = Cost(NUM_BISECTIONS * (2 * walks + 1), 2 * NUM_BISECTIONS)
        return Peer("minimal_apgd", norm, cost, attack)

    others = target.num_classes - 1
    each, gradients = Cost(0, 2), Cost(0, 1 + others)
    members = [
        Peer("ddn", "l2", each, called(of.ddn, "steps", levels=None)),
        Peer("pdgd", "l2", each, called(of.pdgd, "num_steps")),
        Peer("sigma_zero", "l0", each, called(of.sigma_zero, "num_steps")),
        Peer(
            "vfga",
            "l0",
            Cost(0, 2 + 2 * NUM_SAMPLES),
            called(of.vfga, "max_iter", targeted=False, n_samples=NUM_SAMPLES),
        ),
        Peer(
            "sdf",
            "l2",
            Cost(10, 3 + NUM_INNER_STEPS * gradients.each),
            called(of.sdf, "steps", df_steps=NUM_INNER_STEPS, search_iter=10),
        ),
    ]
    for norm, distance in (("l1", 0.5), ("l2", 0.1)):
        attack = called(of.alma, "num_steps", distance=norm, init_lr_distance=distance)
        members.append(Peer("alma", norm, each, attack))
    for norm, order in NORM_ORDERS.items():
        fmn = called(of.fmn, "steps", norm=order)
        pdpgd = called(
            of.pdpgd, "num_steps", norm=order, proximal_operator=23 if norm == "l0" else None
        )
        members += [Peer("fmn", norm, each, fmn), Peer("pdpgd", norm, each, pdpgd)]
    for norm in LARGEST_BUDGETS:
        fab = called(of.fab, "n_iter", norm=NORM_ORDERS[norm])
        members += [Peer("fab", norm, Cost(1, 2 + others), fab), bisection(norm)]
    for norm in ("linf", "l2"):
        trust_region = called(of.tr, "iter", p=NORM_ORDERS[norm], adaptive=True, c=others)
        members += [
            Peer("df", norm, gradients, called(of.df, "steps", norm=NORM_ORDERS[norm])),
            Peer("tr", norm, Cost(2 + others, 4), trust_region),
        ]
    return members


PACKAGES: dict[str, Callable[[Any, Any, Target], list[Peer]]] = {
    "foolbox": _foolbox,
    "torchattacks": _torchattacks,
    "adv_lib": _adv_lib,
}
"""The attacks of each package by the name of its module."""
