"""Where members live: one function that maps over a population on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

MEMBER = "member"


def make_mesh(num_devices: int | None = None) -> Mesh:
    """Returns a one-axis mesh over the first `num_devices` devices, all of them by default.

    Raises:
      ValueError: if there are fewer devices.
    """
    devices = jax.devices()
    num_devices = len(devices) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(devices):
        raise ValueError(f"num_devices must lie in [1, {len(devices)}], got {num_devices}")
    return jax.make_mesh(
        (num_devices,), (MEMBER,), axis_types=(AxisType.Auto,), devices=devices[:num_devices]
    )


def spread(
    fn: Callable[..., Any], *, mesh: Mesh | None = None, vectorized: bool = True
) -> Callable[..., Any]:
    """Returns `fn` mapped over the leading axis of its first argument, spread over the devices.

    The axis is padded to a multiple of the devices by repeating its first entry; the padding is cut
    off again. Members share a device by `vmap`, or take turns by `lax.map`. Call it under `jit`.

    Args:
      fn: `(member, *shared) -> pytree` for one member.
      mesh: with the axis `member`; all devices by default.
      vectorized: whether members of one device run at once rather than one after another.

    Returns:
      `(members, *shared) -> pytree`, `[M, ...]` in each leaf; `shared` is the same for all.
    """
    mesh = make_mesh() if mesh is None else mesh

    def mapped(members, *shared):
        size = jax.tree.leaves(members)[0].shape[0]
        pad = -size % mesh.size
        if pad:
            members = jax.tree.map(
                lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], pad, 0)]), members
            )

        def lifted(members, *shared):
            one = lambda member: fn(member, *shared)  # noqa: E731
            return jax.vmap(one)(members) if vectorized else jax.lax.map(one, members)

        out = jax.shard_map(
            lifted,
            mesh=mesh,
            in_specs=(PartitionSpec(MEMBER), *(PartitionSpec() for _ in shared)),
            out_specs=PartitionSpec(MEMBER),
            check_vma=False,
        )(members, *shared)
        return jax.tree.map(lambda leaf: leaf[:size], out)

    return mapped
