"""CONTRIBUTING.md followed to the letter in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = {
    part.split("\n", 1)[0]: re.findall(r"```python\n(.*?)```", part, flags=re.S)
    for part in TEXT.split("\n## ")
}
CACHE = os.environ["HALFWAY_TEST_CACHE"]


@pytest.fixture
def copy(tmp_path):
    """A copy of the code, which Python finds before the installed one."""
    for folder in ("halfway", "experiments", "configs"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "tests").mkdir()
    return tmp_path


def _run(copy, *arguments):
    folders = (f"--compilation_cache={CACHE}/jax", f"--data_dir={CACHE}/data")
    done = subprocess.run(
        [sys.executable, "-m", *arguments, *(folders if "experiments" in arguments[0] else ())],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _insert(path, before, text):
    content = path.read_text(encoding="utf-8")
    assert content.count(before) == 1
    path.write_text(content.replace(before, text + before), encoding="utf-8")


def test_every_example_is_short():
    assert list(SECTIONS)[1:] == [
        "Add an attack",
        "Add a model",
        "Add a data set",
        "Add a hypothesis",
    ]
    for blocks in list(SECTIONS.values())[1:]:
        for block in blocks:
            assert len(block.splitlines()) < 30


def test_add_an_attack(copy):
    attack, test = SECTIONS["Add an attack"]
    (copy / "halfway" / "attacks" / "adaptive.py").write_text(attack, encoding="utf-8")
    (copy / "tests" / "test_adaptive.py").write_text(test, encoding="utf-8")
    assert "1 passed" in _run(copy, "pytest", "tests/test_adaptive.py", "-p", "no:cacheprovider")


@pytest.mark.slow
def test_add_a_model(copy):
    module, config = SECTIONS["Add a model"]
    models = copy / "halfway" / "models.py"
    _insert(models, "_KINDS: dict", module + "\n\n")
    _entry(models, '"cnn": CNN', '"residual_mlp": ResidualMLP')
    (copy / "residual.py").write_text(config, encoding="utf-8")
    out = _run(copy, "experiments.reproduce", "--config=residual.py", "--workdir=run")
    assert "G1" in out


def _entry(path, after, text):
    content = path.read_text(encoding="utf-8")
    assert content.count(after) == 1
    path.write_text(content.replace(after, f"{after}, {text}"), encoding="utf-8")


@pytest.mark.slow
def test_add_a_data_set(copy):
    (module,) = SECTIONS["Add a data set"]
    (copy / "halfway" / "data" / "clouds.py").write_text(module, encoding="utf-8")
    package = copy / "halfway" / "data" / "__init__.py"
    _entry(package, '"digits": digits.load', '"clouds": clouds.load')
    _entry(package, "from halfway.data import digits", "clouds")
    command = re.search(r"`python -m (experiments[^`]*--config.num_classes=4)`", TEXT)
    assert command
    out = _run(copy, *command[1].split(), "--workdir=run")
    assert "G1" in out


def test_add_a_hypothesis():
    (block,) = SECTIONS["Add a hypothesis"]
    # As it stands there, it is what every test of the suite is run on.
    assert block == (ROOT / "halfway" / "lab" / "studies" / "g1.py").read_text(encoding="utf-8")
