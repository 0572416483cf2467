"""What a run stands on: a process neither runs out of memory maps nor of memory."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import populations
from halfway.data import Split
from halfway.lab.config.place import Place
from halfway.lab.runtime import costs, devices


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are read on Linux")
def test_programs_are_forgotten_only_where_they_hold_too_many_maps():
    traces = []

    @jax.jit
    def double(x):
        traces.append(1)
        return 2 * x

    double(jnp.ones(3))
    assert not devices.forget_programs(10**9)
    double(jnp.ones(3))
    assert len(traces) == 1
    assert devices.forget_programs(0)
    double(jnp.ones(3))
    assert len(traces) == 2
    # Linux gives 65,530 to a process: half of them are left for what compiles next.
    assert devices.MOST_MAPS < 65_530 / 2


def test_freed_memory_goes_back_to_the_system(monkeypatch):
    """Sixty megabytes in small pieces, of which every twentieth stays: the C library keeps them."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("malloc_trim is of the GNU C library")
    pieces = [bytes(60_000) for _ in range(1000)]  # below the size that is mapped by itself
    stay = pieces[::20]
    devices.return_memory()
    full = _resident()
    del pieces
    assert devices.return_memory()
    assert _resident() < full - 30e6
    assert len(stay) == 50
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not devices.return_memory()


def _resident():
    """Returns the bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


POOL = Split(np.zeros((5000, 8, 8, 1), np.float32), np.zeros(5000, np.int32))
LARGE = populations.Condition(
    dataset="digits",
    architecture="residual",
    model={"kind": "residual", "features": (16, 32), "blocks": 1},
    num_classes=10,
    num_examples=2000,
    capacity=2000,
    num_holdout=100,
    probe_steps=(0, 10),
    num_pairs=12,
    seed=0,
    batch_size=64,
)


def at_once(monkeypatch, memory, **flags):
    monkeypatch.setattr(devices, "device_bytes", lambda: memory)
    return devices.lay_out(Place(**flags), [LARGE], POOL).at_once


@pytest.mark.quick
def test_as_many_members_run_at_once_as_fit_into_memory(monkeypatch):
    """A system without memory ends a process and leaves no message: nothing may come that far."""
    need = costs.memory_of(LARGE, (8, 8, 1))
    here = LARGE.num_pairs // jax.device_count()
    whole = (here * need.held + here * need.look) / devices.FOR_POPULATIONS
    assert at_once(monkeypatch, int(1.01 * whole)) is None
    for number in range(1, here):
        some = (here * need.held + number * need.look) / devices.FOR_POPULATIONS
        assert at_once(monkeypatch, int(1.001 * some)) == number
    assert at_once(monkeypatch, need.most) == 1
    assert at_once(monkeypatch, None) is None
    assert at_once(monkeypatch, need.most, at_once=5) == 5


@pytest.mark.quick
def test_devices_of_a_cpu_share_the_memory_of_the_machine():
    share = devices.device_bytes()
    assert share is not None
    assert 2**28 < share * jax.local_device_count() < 2**50


HUNGRY = """
import logging, resource
import jax, jax.numpy as jnp
from halfway import sharding
from halfway.lab.config.place import Place
from halfway.lab.runtime import devices

logging.basicConfig()
devices.use_cores(1)
devices._machine_bytes = lambda: 2**30
devices.lay_out(Place())
assert resource.getrlimit(resource.RLIMIT_DATA)[0] == int(0.9 * 2**30)

@sharding.jit
def run(members):
    def large(member):  # a product of 128 MB, of which the largest entry is wanted
        return (member @ member[: 2**12].T).max()
    return sharding.spread(large, at_once=8)(members)

members = jax.random.normal(jax.random.key(0), (8, 2**13, 2))
largest = run(members)
expected = [(member @ member[: 2**12].T).max() for member in members]
assert jnp.allclose(largest, jnp.stack(expected), rtol=1e-5), (largest, expected)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="limits are those of Linux")
def test_a_program_that_needs_more_memory_than_there_is_goes_on_with_fewer_members():
    command = [sys.executable, "-c", HUNGRY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"out of memory: run goes on with \d members? at once", done.stderr)
