"""Settings of the whole suite: two devices, strict ranks, one compilation cache, no home folder."""

import functools
import os
import signal
import sys
import tempfile
from pathlib import Path

# Before JAX starts: two devices, so that placement is exercised everywhere.
# Programs run once here, on little data: to optimize them takes longer than it saves. XLA's older
# emitters of fused loops, and one module for each program, compile in half the time.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=2 {QUICK_TO_COMPILE}")
# Workers of one run share compiled programs; the first process to come makes the folder.
CACHE = os.environ.setdefault("HALFWAY_TEST_CACHE", tempfile.mkdtemp(prefix="halfway-test-cache-"))

# A shell has what runs in the background ignore Ctrl-C, `nohup` a terminal that closes. Children
# inherit it, and tests would wait for ever for those that they ask to end.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import jax
import pytest

from halfway import populations, sharding
from halfway.lab.runtime import devices

sharding.CPU_LEVEL = None  # that of XLA_FLAGS above
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(CACHE) / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


_LONGEST = (
    "test_rules.py",
    "test_scale.py",
    "test_populations.py",
    "test_reproduce.py",
    "test_landscape.py",
    "test_notebooks.py",
    "test_suite.py",
    "test_grid.py",
    "test_random_search.py",
    "test_minimum_norm.py",
    "test_t12_factors.py",
    "test_sweep.py",
    "test_transfer_grid.py",
)
"""Whole files are dealt out to workers: a long one that came last would be waited for alone."""


def pytest_collection_modifyitems(items):
    """Begins with the files that take longest."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def forgotten(tmp_path_factory):
    """Modules that a test wrote are not those of the same name in the next one."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(folder):
            del sys.modules[name]


@pytest.fixture(scope="session")
def digits():
    """The embedded data set, from a data folder that the whole run shares."""
    from halfway import data

    return data.load("digits", Path(CACHE) / "data")


@pytest.fixture(scope="session")
def pool(digits):
    """All images of digits, which halves and S are drawn from."""
    return digits.pool("all")


@pytest.fixture(scope="session")
def train(pool):
    """Trains a population on the pool; each condition once, whoever asks for it."""
    return functools.cache(lambda condition: populations.train(condition, pool))


@pytest.fixture
def without_pages(monkeypatch):
    """No page is written: to draw all its figures takes longer than to measure what they show."""
    from halfway.lab.report import page

    monkeypatch.setattr(page, "write", lambda *_, **__: None)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A worker compiles more than a process can hold."""
    yield
    devices.forget_programs(20_000)


@pytest.fixture(scope="module", autouse=True)
def store_no_programs_of_attacks(request):
    """Programs of attacks run once: to store them takes time."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    if "attacks" in request.path.parts or request.path.stem == "test_benchmark":
        jax.config.update(name, 1e9)
    yield
    jax.config.update(name, before)
