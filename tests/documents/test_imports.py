"""Imports go one way: no circle, no arrow upwards, and a light door to the package.

Each check is a function of sources, module names to text, and is shown to fail on a planted fault.
"""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import halfway

ROOT = Path(halfway.__file__).parents[1]
FOLDERS = ("halfway", "experiments", "configs")
ORDER = (
    *("types", "trees", "keys", "norms", "files", "user_code", "stats"),
    *("sharding", "losses", "custom_models", "models", "data", "storage"),
    *("attacks", "landscapes", "meeting", "interop"),
    *("populations", "transfer", "robustness", "input_space", "plots"),
    *("lab.config", "lab.study", "lab.measurements", "lab.studies"),
    *("lab.report", "lab.runtime", "lab.publication", "lab.benchmarks"),
    *("lab.user_models", "lab.ahead", "lab.entry", "lab.flags", "lab.commands"),
)
"""The rooms of the package; a room imports itself and rooms before it."""
MOST_FILES = 15
ENTRY_POINTS = {"experiments": {"halfway.lab.commands"}, "configs": {"halfway.lab.config"}}
"""What folders beside the package may import of it."""


def name_of(path):
    """The module of a file, relative to the root."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {
    name_of(path.relative_to(ROOT)): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
PACKAGES = {name for name, path in PATHS.items() if path.stem == "__init__"}


def imports(sources, packages=frozenset()):
    """Of each module the modules among the sources that it imports, within functions too."""
    graph = {}
    for name, text in sources.items():
        home = name.split(".") if name in packages else name.split(".")[:-1]
        targets = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = home[: len(home) + 1 - node.level] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                members = {f"{base}.{alias.name}" for alias in node.names}
                # A name that is no module is something that the package holds.
                targets |= {member if member in sources else base for member in members}
        graph[name] = (targets & set(sources)) - {name}
    return graph


def circle(graph):
    """The modules of a circle of imports in their order, or nothing."""
    done = set()

    def walk(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if closed := walk(target, [*path, name]):
                return closed
        done.add(name)
        return []

    for name in sorted(graph):
        if closed := walk(name, []):
            return closed
    return []


def room(module):
    """The room of a module of the package; that of `halfway` itself is empty."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 2 if parts[:1] == ["lab"] else 1])


def arrows_upwards(graph, order=ORDER):
    """The imports of a room that comes later, and of the package by folders that may not."""
    faults = []
    for name, targets in graph.items():
        top = name.split(".")[0]
        for target in sorted(targets):
            inside = target.split(".")[0] == "halfway"
            if top == "halfway":
                place, other = room(name), room(target)
                known = inside and place in order and other in order
                fault = not (other in ("", place) and inside) and not (
                    known and order.index(other) < order.index(place)
                )
            else:
                allowed = {top, *ENTRY_POINTS[top]}
                fault = not any(f"{target}.".startswith(f"{start}.") for start in allowed)
            if fault:
                faults.append(f"{name} imports {target}")
    return faults


def crowded(paths, most=MOST_FILES):
    """The folders with more than so many source files; the list of studies has folders alone."""
    counts = Counter(str(Path(path).parent) for path in paths)
    return {folder: number for folder, number in counts.items() if number > most}


DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl_py",
    "orbax": "orbax_checkpoint",
    "sklearn": "scikit_learn",
}
"""Where the name of a distribution is not that of its package."""


def undeclared(sources, requirements):
    """The packages of others that sources import and that no requirement names."""
    declared = {re.split(r"[^\w.-]", text)[0].replace("-", "_").lower() for text in requirements}
    tops = set()
    for text in sources.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                tops |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                tops.add(node.module.split(".")[0])
    others = tops - {*FOLDERS, *sys.stdlib_module_names}
    return {top for top in others if DISTRIBUTIONS.get(top, top).lower() not in declared}


@functools.cache
def graph_of_the_tree():
    return imports(SOURCES, PACKAGES)


def test_no_circle():
    assert circle(graph_of_the_tree()) == []


def test_no_arrow_upwards():
    assert arrows_upwards(graph_of_the_tree()) == []


def test_packages_of_others_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    optional = [*extras["tensorboard"], *extras["mnist1d"]]
    assert undeclared(SOURCES, [*project["dependencies"], *optional]) == set()


def test_every_room_has_its_place():
    rooms = {room(name) for name in SOURCES if name.split(".")[0] == "halfway"}
    assert rooms - {"", "lab"} == set(ORDER)
    assert set(halfway.ROOMS) <= set(ORDER)


def test_no_folder_is_crowded():
    assert crowded(PATHS[name].relative_to(ROOT) for name in SOURCES) == {}


LARGE = (
    *("pandas", "matplotlib", "xarray", "sklearn", "tensorflow", "tensorflow_datasets", "orbax"),
    *("pyarrow", "PIL", "torch", "equinox"),
)
"""What a room imports where it is used, figures aside."""


def test_the_door_is_light():
    """`import halfway` reads no room; rooms read nothing large, figures only what draws them."""
    rooms = [name for name in halfway.ROOMS if name != "plots"]
    code = f"""
import sys
before = set(sys.modules)
import halfway
tops = set(name.split(".")[0] for name in set(sys.modules) - before - set(["halfway"]))
print(sorted(tops - sys.stdlib_module_names))
for room in {rooms}:
    getattr(halfway, room)
print([name for name in {(*LARGE, "halfway.lab")} if name in sys.modules])
halfway.plots
print([name for name in {(*LARGE, "halfway.lab")} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["[]", "[]", "['matplotlib', 'PIL']"], done


# Planted faults

EMPTY = dict.fromkeys(SOURCES, "")
"""All modules, none of which imports anything."""


def test_imports_are_read_in_all_their_forms():
    sources = {
        "halfway": "",
        "halfway.a": "import halfway.b.c\nimport numpy as np",
        "halfway.b": "from halfway.b.c import value\nfrom . import d",
        "halfway.b.c": "from ..e import value",
        "halfway.b.d": "def call():\n    from halfway import a, b",
        "halfway.e": "from halfway import __version__\nfrom halfway.b import value",
    }
    assert imports(sources, {"halfway", "halfway.b"}) == {
        "halfway": set(),
        "halfway.a": {"halfway.b.c"},
        "halfway.b": {"halfway.b.c", "halfway.b.d"},
        "halfway.b.c": {"halfway.e"},
        "halfway.b.d": {"halfway.a", "halfway.b"},
        "halfway.e": {"halfway", "halfway.b"},
    }


def test_a_circle_is_noticed():
    straight = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert circle(straight) == []
    assert circle(straight | {"c": {"a"}}) == ["a", "b", "c", "a"]
    within = {"halfway.b": "from halfway.b import c", "halfway.b.c": "from halfway.b import value"}
    assert circle(imports(within, {"halfway.b"})) == ["halfway.b", "halfway.b.c", "halfway.b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("losses", "from halfway.models import build"),
        ("types", "import halfway.losses"),
        ("stats.ranks", "from halfway import losses"),
        ("attacks.base", "from halfway import transfer"),
        ("transfer.grid", "from halfway.lab.config import user"),
        ("plots.style", "def draw():\n    from halfway import lab"),
        ("lab.config.settings", "from halfway.lab.study import records"),
        ("lab.measurements.context", "from halfway.lab.studies.g1 import study"),
        ("lab.report.page", "from halfway.lab.runtime import runs"),
        ("lab.runtime.runs", "from halfway.lab.commands import launch"),
        ("lab.runtime.runs", "from configs import digits"),
        ("cellar", "from halfway import types"),
    ],
)
def test_an_arrow_upwards_is_noticed(name, text):
    planted = EMPTY | {f"halfway.{name}": text}
    (fault,) = arrows_upwards(imports(planted, PACKAGES))
    assert fault.startswith(f"halfway.{name} imports ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("experiments.new", "from halfway.lab.runtime import runs"),
        ("experiments.new", "from halfway import attacks"),
        ("configs.new", "from halfway.lab.study import records"),
    ],
)
def test_an_entry_point_that_does_the_work_itself_is_noticed(name, text):
    assert len(arrows_upwards(imports(EMPTY | {name: text}, PACKAGES))) == 1


def test_a_package_that_is_not_declared_is_noticed():
    sources = {
        "halfway.a": "import math\nimport PIL.Image\nfrom halfway import types\nimport orbax.x",
        "halfway.b": "def load():\n    from zarr import open\n    from . import a",
    }
    declared = ["pillow>=11", "orbax-checkpoint>=0.12,<0.13"]
    assert undeclared(sources, declared) == {"zarr"}
    assert undeclared(sources, declared[:1]) == {"orbax", "zarr"}


def test_a_crowd_is_noticed():
    files = [f"halfway/a/f{number}.py" for number in range(MOST_FILES)]
    others = [f"halfway/b/s{number}/study.py" for number in range(99)]
    assert crowded([*files, *others]) == {}
    assert crowded([*files, "halfway/a/more.py", *others]) == {"halfway/a": MOST_FILES + 1}
