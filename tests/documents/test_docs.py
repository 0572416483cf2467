"""The documentation holds what it promises: examples run, every message and module has its place.

That the site builds without a warning is checked where it is built, in .ci/run.
"""

import ast
import doctest
import functools
import importlib
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import halfway
from halfway.lab import studies
from halfway.lab.study import plants

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
LAB = "halfway.lab"
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(halfway.__path__, "halfway.")
    if not m.name.startswith(LAB)
)
PUBLIC = [f"halfway.{name}" for name in (*halfway.ROOMS, "sharding", "storage", "trees", "types")]
NAMES = {"functools": functools, "jax": jax, "jnp": jnp, "np": np}
"""What examples in docstrings may use beside the modules of the library."""


def find_examples(name):
    library = {name.split(".")[1]: importlib.import_module(name) for name in PUBLIC}
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(importlib.import_module(name), name, globs=NAMES | library)
    return [test for test in found if test.examples]


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


# Messages

RAISED = {"UserError", "DataError", "ValueError", "FileNotFoundError", "warning", "warn"}
HOLE = "\0"


def literal(node):
    """Returns a message with a hole for whatever is not constant."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[sd]", HOLE, node.value) if isinstance(node.value, str) else HOLE
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    if isinstance(node, ast.BinOp):
        return literal(node.left) + literal(node.right)
    return HOLE


def messages(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
            if name in RAISED:
                yield literal(node.args[0])


def fragments(message):
    """Returns the constant parts that say something; the longest, where all are short."""
    parts = [" ".join(part.split()) for part in message.split(HOLE)]
    return [part for part in parts if len(part) >= 12] or [max(parts, key=len)]


SOURCES = [
    path
    for room in ("experiments", "halfway", "configs")
    for path in sorted((ROOT / room).rglob("*.py"))
]
ERRORS = " ".join(PAGES["errors.md"].split())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_message_is_on_the_page(path):
    missing = [m for m in messages(path) if not all(part in ERRORS for part in fragments(m))]
    assert not missing


def test_messages_are_found():
    assert sum(len(list(messages(path))) for path in SOURCES) > 100


def test_every_rule_of_a_config_field_is_on_the_page():
    tree = ast.parse(
        (ROOT / "halfway" / "lab" / "config" / "settings.py").read_text(encoding="utf-8")
    )
    rules = [
        (node.elts[0].value, fragments(literal(node.elts[2])))
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple) and len(node.elts) == 3
        if isinstance(node.elts[0], ast.Constant)
        if isinstance(node.elts[1], ast.Compare | ast.BoolOp | ast.Call)
    ]
    assert len(rules) > 15
    for field, (rule,) in rules:
        rows = [row for row in PAGES["errors.md"].splitlines() if f"`{field}`" in row]
        assert any(rule in row for row in rows), (field, rule)


def test_the_page_on_records_opens_them(tmp_path, monkeypatch, capsys):
    """The blocks of experiments.md give the M_θ that was planted, and the outcomes planted."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGES["experiments.md"], flags=re.S))
    records = studies.available()["G1"].plant(np.random.default_rng(0), 1.0)
    run = tmp_path / "runs" / "digits"
    (run / "measurements").mkdir(parents=True)
    records.table.to_parquet(run / "records.parquet")
    records.conditions.to_parquet(run / "conditions.parquet")
    outcomes = np.array([[[True, False, False, True]] * 2])
    np.savez(
        run / "measurements" / "transfer-x.npz",
        target_fooled=outcomes,
        target_correct=np.ones_like(outcomes),
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "experiments.md", "exec"), {})
    *meets, transfers = capsys.readouterr().out.splitlines()
    assert len(meets) == 2 * len(plants.CONFIG.architectures)
    for line in meets:
        _, _, permuted, estimate = line.split()
        planted = 0.5 if permuted == "True" else 0.55
        assert float(estimate) == pytest.approx(planted, abs=0.03)
    assert transfers == "transfer-x 0.5"
