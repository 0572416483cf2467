"""Settings of the whole suite: two devices, strict ranks, one compilation cache, no home folder."""

import os
import tempfile
from pathlib import Path

# Before JAX starts: two devices, so that placement is exercised everywhere.
# Programs run once here, on little data: to optimize them takes longer than it saves.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
)
# Workers of one run share compiled programs; the first process to come makes the folder.
CACHE = os.environ.setdefault("HALFWAY_TEST_CACHE", tempfile.mkdtemp(prefix="halfway-test-cache-"))

import jax
import pytest

from halfway import sharding
from halfway.lab.runtime import devices

sharding.CPU_LEVEL = None  # that of XLA_FLAGS above
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(CACHE) / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def digits():
    """The embedded data set, from a data folder that the whole run shares."""
    from halfway import data

    return data.load("digits", Path(CACHE) / "data")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A worker compiles more than a process can hold."""
    yield
    devices.forget_programs(20_000)


@pytest.fixture(scope="module", autouse=True)
def store_no_programs_of_attacks(request):
    """Programs of attacks run once: to store them takes time."""
    name = "jax_persistent_cache_min_compile_time_secs"
    attacks = {
        "attacks",
        "attacks_transfer",
        "auto_pgd",
        "benchmark",
        "decision_based",
        "diagnostics",
        "ensembles",
        "fast_boundary",
        "minimum_norm",
        "random_search",
        "suite",
        "threat",
        "universal_perturbation",
    }
    before = getattr(jax.config, name)
    if request.module.__name__.removeprefix("test_") in attacks:
        jax.config.update(name, 1e9)
    yield
    jax.config.update(name, before)
