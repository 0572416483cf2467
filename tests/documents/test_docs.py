"""The documentation holds what it promises: examples run, flags exist, every room has its place.

That the site builds without a warning is checked where it is built, in .ci/run.
"""

import doctest
import functools
import importlib
import inspect
import pkgutil
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import g1 as g1_plants
from support import plants

import halfway
from halfway import attacks, data
from halfway.lab.commands import __main__ as commands
from halfway.lab.entry import launch
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.runtime.runs import Identity, Run
from halfway.lab.studies.g1 import study as g1
from halfway.lab.study.records import Request

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
LAB = "halfway.lab"
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(halfway.__path__, "halfway.")
    if not m.name.startswith(LAB)
)
PUBLIC = [
    f"halfway.{name}" for name in (*halfway.ROOMS, "keys", "sharding", "storage", "trees", "types")
]
NAMES = {"functools": functools, "jax": jax, "jnp": jnp, "np": np}
"""What examples in docstrings may use beside the modules of the library."""


def find_examples(name):
    library = {name.split(".")[1]: importlib.import_module(name) for name in PUBLIC}
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = finder.find(importlib.import_module(name), name, globs=NAMES | library)
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    said = []
    runner = doctest.DocTestRunner()
    for test in find_examples(name):
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_examples_are_found():
    assert sum(len(find_examples(name)) for name in MODULES) >= 20


def test_every_room_has_a_page():
    listed = re.findall(r"^   (halfway[.\w]*)$", PAGES["api.md"], flags=re.M)
    assert sorted(listed) == sorted(PUBLIC)


def test_every_page_is_in_the_navigation():
    (tree,) = re.findall(r"```\{toctree\}\n:hidden:\n\n(.*?)```", PAGES["index.md"], flags=re.S)
    pages = [path.stem for path in DOCS.iterdir() if path.suffix in (".md", ".ipynb")]
    assert sorted(tree.split()) == sorted(set(pages) - {"index"})


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]*)", PAGES[page]):
        assert (DOCS / target).is_file() or not target, target
    for path in re.findall(r"^```\{(?:include|image)\} (\S+)", PAGES[page], flags=re.M):
        assert (DOCS / path).is_file(), path


def resolve(name):
    """Returns what a dotted name stands for; raises where it stands for nothing."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if module in ("halfway", *MODULES):
            return functools.reduce(getattr, parts[length:], importlib.import_module(module))
    raise ImportError(name)


def test_objects_of_the_library_that_pages_name_exist():
    text = "\n".join(PAGES.values())
    named = re.findall(r"\{py:\w+\}`(?:[^`<]*<)?~?([\w.]+)>?`", text)
    assert len(named) > 30
    for name in named:
        resolve(name)
        # A link leads to a page: that of a room.
        assert ".".join(name.split(".")[:2]) in PUBLIC, name


# Pages

LIBRARY_PAGES = ("attacks.md", "data.md", "landscapes.md", "transfer.md")


def blocks(page):
    """The blocks of Python of a page, one program from top to bottom."""
    return "\n".join(re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.S))


SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGES["libraries.md"], flags=re.M | re.S)
)
EXTRAS = {"Equinox": "equinox", "PyTorch": "torch"}


@pytest.mark.parametrize("library", SECTIONS)
def test_a_model_of_each_library_takes_few_lines_and_gives_logits(library):
    if library in EXTRAS:
        pytest.importorskip(EXTRAS[library], reason=f"{library} is not installed")
    (block,) = re.findall(r"```python\n(.*?)```", SECTIONS[library], flags=re.S)
    assert len(block.strip().splitlines()) <= 10
    scope = {}
    exec(compile(block, library, "exec"), scope)
    depth = 3 if "normalizes" in library else 1
    images = jax.random.uniform(jax.random.key(0), (5, 8, 8, depth))
    logits = jax.jit(scope["logits_fn"])(images)
    assert logits.shape == (5, 10) and bool(jnp.isfinite(logits).all())


@pytest.mark.parametrize("page", LIBRARY_PAGES)
def test_blocks_of_a_page_run(page, digits, tmp_path, monkeypatch, capsys):
    load = data.load
    monkeypatch.setattr(data, "load", lambda name: digits if name == "digits" else load(name))
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(page), page, "exec"), {})
    assert "nan" not in capsys.readouterr().out


def commands_of(text):
    """Command and arguments of every line of shell that starts one of ours."""
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.search(r"(?:python -m experiments\.|^halfway )(\w+)([^#&;\"|)]*)", line)
            if match:
                yield match[1], shlex.split(match[2])


WRITTEN = PAGES | {"README.md": (ROOT / "README.md").read_text(encoding="utf-8")}


@pytest.mark.parametrize("page", [page for page in WRITTEN if "experiments." in WRITTEN[page]])
def test_commands_of_a_page_take_the_flags_it_gives(page):
    for name, arguments in commands_of(WRITTEN[page]):
        values = importlib.import_module(f"halfway.lab.flags.{name}").FLAGS
        launch.parse(values, arguments, positional=name == "compare")
        values.unparse_flags()


def test_commands_are_found():
    names = {name for text in WRITTEN.values() for name, _ in commands_of(text)}
    assert names == set(commands.COMMANDS) - {"laws"}  # which is named in prose


def test_every_command_is_on_its_page():
    rows = re.findall(r"^\| `(\w+)` \|", PAGES["experiments.md"], flags=re.M)
    assert set(commands.COMMANDS) <= set(rows)


# Attacks

ATTACK_ROWS = dict(
    re.findall(r"^\| `(\w+)` \| (?:all|l|moves).*\| (.*) \|$", PAGES["attacks.md"], flags=re.M)
)
PARTS = {
    "linf",
    "l2",
    "l1",
    "objective",
    "exact_gradient",
    "look_ahead",
    "transformed",
    "diverse_inputs",
    "admixed",
    "varied_spectra",
    "shuffled_blocks",
    "flat_maxima",
    "scaled_copies",
    "smoothed",
    "variance_tuned",
    "steps",
    "momentum",
    "ascend",
    "distance",
    "outcome",
    "diagnose",
    "in_words",
    "ensemble",
    "leave_one_out",
    "collect_weights",
    "eot",
    "bpda",
    "straight_through",
    "patch",
    "rotate_and_shift",
    "auto_attack_steps",
}
"""What attacks are made of and looked at with; all else in lower case is an attack."""


def test_every_attack_is_in_the_table():
    public = {name for name in attacks.__all__ if name.islower()}
    assert set(ATTACK_ROWS) == public - PARTS
    assert all(f"attacks.{name}" in PAGES["attacks.md"] for name in PARTS)


def options_of(row):
    """The options that a row of the table names, with those of the row that it refers to."""
    names = set(re.findall(r"`(\w+)`", row))
    match = re.match(r"as `(\w+)`(, without `(\w+)`)?", row)
    if not match:
        return names
    return (names - {match[1]} | options_of(ATTACK_ROWS[match[1]])) - {match[3]}


@pytest.mark.parametrize("name", ATTACK_ROWS)
def test_options_of_an_attack_are_those_of_the_table(name):
    parameters = inspect.signature(getattr(attacks, name)).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    options = {p.name for p in keywords if p.default is not p.empty}
    assert options_of(ATTACK_ROWS[name]) == options - {"threat", "targets", "bounds"}


# Records


@pytest.fixture
def planted_run(tmp_path):
    """A run in which M_θ and outcomes are planted, stored and exported as every run is."""
    planted = g1_plants.plant(np.random.default_rng(0), 1.0)
    folder = tmp_path / "runs" / "digits"
    folder.parent.mkdir()
    identity = Identity("digits", plants.CONFIG.to_dict(), "checksum")
    run = Run.create(folder, identity, num_devices=1)
    requests = []
    for architecture in plants.CONFIG.architectures:
        for condition in g1.conditions(plants.CONFIG, architecture):
            requests.append(Request(LEARNING, (condition,)))
            run.save_measurement(requests[-1], planted.datasets["learning", condition.id])
    # Of images that the other model has right, A fools B on all, and B fools A on half.
    first = requests[0].conditions[0]
    fooled = np.zeros((first.num_pairs, 2, 2, 4), bool)
    fooled[:, 0, 1] = True
    fooled[:, 1, 0, :2] = True
    right = np.ones((first.num_pairs, 2, 4), bool)
    right[:, 1, 3] = False
    outcomes = {
        "fooled": (("pair", "surrogate", "target", "example"), fooled),
        "clean_correct": (("pair", "model", "example"), right),
    }
    requests.append(Request(TRANSFER, (first,)))
    run.save_measurement(requests[-1], plants.dataset(first, {}, outcomes))
    run.export(requests)
    return folder


def test_the_page_on_records_opens_them(planted_run, monkeypatch, capsys):
    """The blocks of experiments.md give the M_θ that was planted, and the outcomes planted."""
    monkeypatch.chdir(planted_run.parent.parent)
    exec(compile(blocks("experiments.md"), "experiments.md", "exec"), {})
    *meets, transfers = capsys.readouterr().out.splitlines()
    assert len(meets) == 2 * len(plants.CONFIG.architectures)
    for line in meets:
        _, _, permuted, estimate = line.split()
        lead = 0.0 if permuted == "True" else g1.LEAD + g1_plants.PLANTED
        assert float(estimate) == pytest.approx(0.5 + lead, abs=0.03)
    name, share = transfers.split()
    assert name.startswith("transfer-")
    # 3 of the 3 that B has right, 2 of the 4 that A has right.
    assert float(share) == pytest.approx(5 / 7)
