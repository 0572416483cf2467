"""What a run stands on: programs are forgotten before a process runs out of memory maps."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from halfway.lab.runtime import devices

pytestmark = pytest.mark.quick


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
