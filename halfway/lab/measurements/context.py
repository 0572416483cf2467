"""How a quantity is measured: a function of one pair, lifted to a population on all devices.

A `Measurement` is a function of a `Context`. Keys, placement, axes and pairs that diverged are
settled here, once for all of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import attacks, losses, populations, sharding
from halfway.data import Split
from halfway.keys import named_key
from halfway.lab.config.settings import RunConfig
from halfway.lab.study.records import NUMBERS
from halfway.populations import Condition, Halves, Population, Probe
from halfway.transfer import Attack
from halfway.types import ApplyFn, Array, Key, LossFn, Params

MODELS = ("A", "B")
"""The labels of the two models of a pair, along "model", "surrogate" and "target"."""
Variables = Mapping[str, tuple[Sequence[str], Any]]
"""Names to (dimensions, values)."""


class Pair(NamedTuple):
    """What a measurement sees of one pair.

    Attributes:
      key: of this pair in this measurement.
      params: leaves `[2, ...]`, θ_A and θ_B.
      halves: A, B and S.
      extra: what else belongs to the pair.
    """

    key: Key
    params: Params
    halves: Halves
    extra: Any = ()


class Shared(NamedTuple):
    """What is the same for all pairs.

    Attributes:
      images: `[N, ...]` of the pool.
      labels: `[N]`, clean.
      epsilon: the budget.
      extra: what else is the same.
    """

    images: Array
    labels: Array
    epsilon: Array
    extra: Any = ()


@dataclasses.dataclass(frozen=True)
class Program:
    """What of a condition and of the config's attack shapes a compiled program.

    Attributes:
      condition: see `populations.program_of`.
      num_steps: of the attack.
      relative_step: its step as a share of the budget.
    """

    condition: Condition
    num_steps: int
    relative_step: float

    @property
    def apply_fn(self) -> ApplyFn:
        """`(params, x) -> logits` of the model."""
        return self.condition.apply_fn

    def attack(self, epsilon: float | Array, loss_fn: LossFn = losses.margin) -> Attack:
        """Returns the config's attack: PGD from the clean image, in l∞.

        Args:
          epsilon: the budget.
          loss_fn: attack loss; that of an ensemble is its own.
        """
        return functools.partial(
            attacks.pgd,
            threat=attacks.linf(epsilon),
            loss_fn=loss_fn,
            num_steps=self.num_steps,
            relative_step=self.relative_step,
        )


PairFn = Callable[[Pair, Shared, Program], Mapping[str, Array]]
"""Named arrays of one pair; a function of a module, since a new one at each call is compiled at
each call."""
MemberFn = Callable[[Any, Shared, Program], Any]
"""A tree of arrays of one member, which may be a model, or several together; as `PairFn`."""


@functools.partial(sharding.jit, static_argnames=("fn", "program", "at_once"))
def _over_members(members, shared, *, fn: MemberFn, program: Program, at_once: int | None):
    lifted = sharding.spread(lambda member, shared: fn(member, shared, program), at_once=at_once)
    return lifted(members, shared)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a measurement is made from.

    Attributes:
      key: of the measurement.
      populations: those of the request, in its order.
      pool: the examples that halves are drawn from.
      config: of the run.
    """

    key: Key
    populations: tuple[Population, ...]
    pool: Split
    config: RunConfig

    @property
    def population(self) -> Population:
        """The first population, which the measurement is about."""
        return self.populations[0]

    @property
    def condition(self) -> Condition:
        """The condition of the first population."""
        return self.population.condition

    @functools.cached_property
    def shared(self) -> Shared:
        """Images, labels and the budget that decides, on the device."""
        return Shared(
            jnp.asarray(self.pool.images, jnp.float32),
            jnp.asarray(self.pool.labels, jnp.int32),
            jnp.float32(self.config.attack.epsilon),
        )

    def program(self, condition: Condition | None = None, *, trains: bool = False) -> Program:
        """Returns what shapes the programs of a condition, the first population's by default.

        Args:
          condition: whose program it is.
          trains: whether it trains models; see `populations.program_of`.
        """
        attack = self.config.attack
        condition = self.condition if condition is None else condition
        shape = populations.program_of(condition, trains=trains)
        return Program(shape, attack.num_steps, attack.relative_step)

    def pair_keys(self, name: str = "pairs") -> Key:
        """Returns `[P]` keys; those of pair p do not depend on the number of pairs."""
        root = named_key(self.key, name)
        index = jnp.arange(self.condition.num_pairs)
        return jax.vmap(lambda p: jax.random.fold_in(root, p))(index)

    def rng(self, name: str = "host") -> np.random.Generator:
        """Returns a generator of NumPy's for what is drawn on the host."""
        words = jax.random.key_data(named_key(self.key, name))
        return np.random.default_rng(np.asarray(words).ravel().tolist())

    def over_pairs(
        self,
        fn: PairFn,
        *,
        extra: Any = (),
        shared_extra: Any = (),
        epsilon: float | None = None,
        at_once: int | None = None,
        trains: bool = False,
    ) -> dict[str, np.ndarray]:
        """Returns what a function of one pair gives for every pair, `[P, ...]` each.

        Args:
          fn: see `PairFn`.
          extra: leaves `[P, ...]` that the function sees as `pair.extra`.
          shared_extra: what it sees as `shared.extra`.
          epsilon: in the place of the budget that decides.
          at_once: pairs of a device that are taken together; all by default.
          trains: whether the function trains models with the condition's optimizer and batches.
        """
        population = self.population
        pairs = Pair(self.pair_keys(), population.params, population.halves, extra)
        return self.over_members(
            fn,
            pairs,
            shared_extra=shared_extra,
            epsilon=epsilon,
            at_once=at_once,
            trains=trains,
        )

    def over_members(
        self,
        fn: MemberFn,
        members: Any,
        *,
        condition: Condition | None = None,
        shared_extra: Any = (),
        epsilon: float | None = None,
        at_once: int | None = None,
        trains: bool = False,
    ) -> Any:
        """Returns what a function of one member gives for every member, leaves `[M, ...]`.

        Args:
          fn: see `MemberFn`.
          members: leaves `[M, ...]`, such as models of one population or of several.
          condition: whose program it is; that of the first population by default.
          shared_extra: what the function sees as `shared.extra`.
          epsilon: in the place of the budget that decides.
          at_once: members of a device that are taken together; all by default.
          trains: whether the function trains models with the condition's optimizer and batches.
        """
        shared = self.shared._replace(extra=shared_extra)
        if epsilon is not None:
            shared = shared._replace(epsilon=jnp.float32(epsilon))
        program = self.program(condition, trains=trains)
        tree = _over_members(members, shared, fn=fn, program=program, at_once=at_once)
        return jax.tree.map(np.asarray, tree)

    def along_training(
        self, probe_fn: Probe, steps: Sequence[int], num_pairs: int | None = None
    ) -> Any:
        """Returns what a probe sees along training, `[P, 2, T, ...]`; see `populations.observe`.

        Args:
          probe_fn: a function of one model, see `populations.Probe`.
          steps: T numbers of steps, ascending.
          num_pairs: P, the first ones of the condition; all by default.
        """
        return populations.observe(
            self.condition, self.pool, probe_fn, steps=steps, num_pairs=num_pairs
        )

    def dataset(
        self, numbers: Variables, outcomes: Variables | None = None, **coordinates: Any
    ) -> xr.Dataset:
        """Returns labelled arrays with what is the same for all: pairs, models, who is finite.

        Args:
          numbers: what rules compute with; NaN for pairs that diverged when it is read.
          outcomes: of single examples, kept as they are.
          **coordinates: labels of dimensions; "model", "surrogate" and "target" are A and B where
            nothing else is said, "pair" is counted.
        """
        variables = {
            name: (tuple(dims), np.asarray(values, np.float64))
            for name, (dims, values) in numbers.items()
        }
        for name, (dims, values) in (outcomes or {}).items():
            variables[name] = tuple(dims), np.asarray(values)
        variables["finite"] = ("pair",), self.population.finite
        used = {dim for dims, _ in variables.values() for dim in dims}
        labels: dict[str, Any] = {"pair": np.arange(self.condition.num_pairs)}
        labels |= dict.fromkeys(("model", "surrogate", "target"), MODELS) | coordinates
        coords = {dim: np.asarray(values) for dim, values in labels.items() if dim in used}
        return xr.Dataset(variables, coords, {NUMBERS: tuple(numbers)})
