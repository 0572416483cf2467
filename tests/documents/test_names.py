"""Names and docstrings: a variable says what it holds, a docstring what is done to what."""

import ast
import re
from pathlib import Path

import pytest

import halfway

PACKAGE = Path(halfway.__file__).parent
ROOT = PACKAGE.parent
FOLDERS = [PACKAGE, ROOT / "experiments", ROOT / "configs"]
PATHS = sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))
PRONOUNS = {"one", "two", "found", "own", "every", "which", "seen", "it", "them", "those"}
"""Words that say nothing of what they stand for."""


def functions(tree):
    """Public functions and methods with whether they are methods, none inside a function."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield method, True


def names(tree):
    """Every name that something is bound to, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_name_says_what_it_holds(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    vague = [f"line {line}: {name}" for name, line in names(tree) if name in PRONOUNS]
    assert not vague


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_public_docstring_says_what_is_done_and_explains_arguments(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = []
    for function, is_method in functions(tree):
        text = ast.get_docstring(function) or ""
        decorators = {ast.unparse(decorator) for decorator in function.decorator_list}
        is_property = any(re.search(r"property$", name) for name in decorators)
        arguments = function.args
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        number = len(given) - (is_method and "staticmethod" not in decorators)
        place = f"line {function.lineno}: {function.name}"
        if not text:
            missing.append(f"{place} has no docstring")
        elif not is_property and not re.match(r"[A-Z][a-z]+s\b", text):
            missing.append(f"{place} does not begin with a verb: {text.split()[0]}")
        elif number >= 2 and "Args:" not in text:
            missing.append(f"{place} has {number} arguments and no Args")
    assert not missing


def test_an_all_capital_name_means_one_thing():
    """A constant of a module is defined once in the project, or is the same object."""
    places = {}
    for path in PATHS:
        if path.is_relative_to(PACKAGE / "lab" / "studies"):
            continue  # a study's own TEXT, PLANTED and so on
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Name) and re.fullmatch(r"[A-Z][A-Z_]+", target.id):
                    places.setdefault(target.id, []).append(str(path.relative_to(ROOT)))
    double = {name: where for name, where in places.items() if len(where) > 1}
    assert not set(double) - FLAG_NAMES, double


FLAG_NAMES = {"FLAGS", "CONFIG", "WORKDIR", "DATA_DIR", "PLACE", "DATA", "ATTACKS", "NUM_EXAMPLES"}
FLAG_NAMES |= {"OUT_DIR", "SEED", "MAX_READ", "CHECKPOINT_EVERY", "TOPOLOGY"}
"""The flags of a command, which are its own."""
