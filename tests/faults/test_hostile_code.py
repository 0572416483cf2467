"""Code of a user that fails or ends the program: one line with file and line, and exit code 2."""

import numpy as np
import pytest
from support import commands, hostile, launcher

SKELETON = """
import jax.numpy as jnp

{above}

def load():
    {load}
    return lambda x: jnp.zeros((len(x), 3)) + jnp.arange(3.0)

def load_models():
    {load}
    return {{"a": load(), "b": load()}}

def loss(params):
    {load}
    return jnp.sum(params["w"] ** 2)

def build(num_classes):
    {load}
    return lambda key, x: {{"w": jnp.zeros(x[0].size)}}, lambda params, x: load()(x)

def get_config(variant=""):
    {load}
    from halfway.lab.config import shipped
    return shipped("digits:tiny")
"""
# What stands above the functions or in them, and words of the line.
FAULTS = {
    "exit 0": ("import sys; sys.exit(0)", ["it ends the program, with code 0"]),
    "exit 5": ("import sys; sys.exit(5)", ["it ends the program, with code 5"]),
    "exit with words": ("raise SystemExit('bye')", ["it ends the program, with code 'bye'"]),
    "quit": ("raise SystemExit", ["it ends the program, with code None"]),
    "ValueError": ("raise ValueError('no luck')", ["ValueError: no luck"]),
    "of two lines": ("raise ValueError('no' + chr(10) + 'luck')", ["ValueError: no luck"]),
    "without words": ("raise RuntimeError", ["RuntimeError"]),
    "missing name": ("undefined", ["NameError", "'undefined'"]),
    "ImportError": ("import no_such_module", ["ModuleNotFoundError", "no_such_module"]),
    "BaseException": ("raise type('Odd', (Exception,), {})('x')", ["Odd: x"]),
    "recursion": ("f = lambda: f(); f()", ["RecursionError"]),
}
SYNTAX = "def broken(:"
COMMANDS = {
    "evaluate": ["--model={}:load", "--data=data.npz"],
    "transfer": ["--surrogates={}:load_models", "--data=data.npz"],
    "transfer, targets": ["--surrogates=fine:load_models", "--targets={}:load_models"],
    "landscape, loss": ["--params=params.npz", "--loss={}:loss"],
    "reproduce": ["--config={}.py"],
    "reproduce, variant": ["--config={}.py:some"],
    "landscape, config": ["--config={}.py"],
    "laws": ["--config={}.py"],
    "reproduce, model": ["--config=digits:tiny", "--config.models.mine={}:build"],
    "laws, model": ["--config=digits:tiny", "--config.models.mine={}:build"],
}
COMMANDS["transfer, targets"] += ["--data=data.npz"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with modules that fail, each at its top and in its functions."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "fine.py").write_text(SKELETON.format(above="", load=""))
    for number, (code, _) in enumerate(FAULTS.values()):
        (folder / f"top{number}.py").write_text(SKELETON.format(above=code, load=""))
        (folder / f"within{number}.py").write_text(SKELETON.format(above="", load=code))
    (folder / "syntax.py").write_text(SKELETON.format(above=SYNTAX, load=""))
    (folder / "values.py").write_text(
        "from sys import exit\nload = loss = build = 3\nimport os\nload_models = os\n"
        "get_config = 'text'\n"
    )
    images = np.random.default_rng(0).random((6, 4, 4, 1)).astype("f4")
    np.savez(folder / "data.npz", images=images, labels=np.arange(6) % 3)
    np.savez(folder / "params.npz", w=np.ones(3, "f4"))
    return folder


def complain(folder, command, module):
    name, *_ = command.split(",")
    arguments = [text.format(module) for text in COMMANDS[command]]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)  # as the start of a process does
        line = commands.call(folder, name, *arguments, *launcher.FOLDERS).complaint
    assert not (folder / "runs").exists()
    return line


COMMON = ["exit 0", "ValueError", "missing name", "ImportError"]
TABLE = [
    (command, list(FAULTS).index(fault), where)
    for command in COMMANDS
    for fault in (FAULTS if command == "evaluate" else COMMON)
    for where in ("top", "within")
]


@pytest.mark.quick
@pytest.mark.parametrize(("command", "number", "where"), TABLE)
def test_code_that_fails_is_one_line_with_file_and_line(command, number, where, here):
    module = f"{where}{number}"
    line = complain(here, command, module)
    code, words = list(FAULTS.values())[number]
    source = (here / f"{module}.py").read_text().splitlines()
    numbers = [index for index, text in enumerate(source, 1) if text.strip() == code]
    assert any(f"{module}.py, line {index})" in line for index in numbers), line
    assert all(word in line for word in words), line


@pytest.mark.quick
@pytest.mark.parametrize("command", COMMANDS)
def test_code_that_cannot_be_read_names_its_line(command, here):
    line = complain(here, command, "syntax")
    assert "SyntaxError" in line and "syntax.py, line 4)" in line


@pytest.mark.quick
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_function_is_refused(command, here):
    assert "no function" in complain(here, command, "values")


NAMES = {
    "fine:nothing": "fine has no 'nothing'; it has build, get_config, load, load_models, loss",
    "fine": "names no function: write pkg.module:fn",
    "fine:": "names no function",
    ":load": "names no function",
    "fine:load.x": "names no function",
    "fine:__class__": "names no function",
    "../fine:load": "names no function",
    ".fine:load": "names no function",
    "fine.load:load": "'fine' is not a package",
    "nowhere:load": "No module named 'nowhere'",
    "os:getcwd": "os is Python's own",
    "sys:exit": "sys is Python's own",
    "builtins:exit": "builtins is Python's own",
    "values:exit": "of Python's own sys",
}
FLAGS_OF_CODE = {
    "--model": ("evaluate", ["--data=data.npz"]),
    "--surrogates": ("transfer", ["--data=data.npz"]),
    "--targets": ("transfer", ["--surrogates=fine:load_models", "--data=data.npz"]),
    "--loss": ("landscape", ["--params=params.npz"]),
}


@pytest.mark.quick
@pytest.mark.parametrize("flag", FLAGS_OF_CODE)
@pytest.mark.parametrize("name", NAMES)
def test_only_callables_of_the_named_module(flag, name, here):
    command, more = FLAGS_OF_CODE[flag]
    line = commands.call(here, command, f"{flag}={name}", *more).complaint
    assert f"{flag}={name}" in line and NAMES[name] in line


LATE = {
    "exit": "it ends the program, with code 0 (",
    "ValueError": "ValueError: no luck (",
}


@pytest.mark.quick
@pytest.mark.parametrize("fault", LATE)
def test_code_that_fails_late_is_one_line_too(fault, here):
    """A loss is called in programs that are made long after the first check of it."""
    code = {"exit": "raise SystemExit(0)", "ValueError": "raise ValueError('no luck')"}[fault]
    (here / f"late_{fault.lower()}.py").write_text(
        "import jax.numpy as jnp\n\ncalls = []\n\ndef loss(params):\n    calls.append(1)\n"
        f"    if len(calls) > 2:\n        {code}\n    return jnp.sum(params['w'] ** 2)\n"
    )
    arguments = ["--params=params.npz", f"--loss=late_{fault.lower()}:loss", "--workdir=late"]
    result = commands.call(here, "landscape", *arguments)
    line = result.err.splitlines()[-1]
    assert result.code == 2 and line.startswith("error: code of yours fails: ")
    assert LATE[fault] in line and f"late_{fault.lower()}.py, line 8)" in line


@pytest.mark.quick
@pytest.mark.parametrize("command", ["reproduce", "laws", "landscape"])
@pytest.mark.parametrize("kind", ["fifo", "device", "large"])
def test_a_config_is_a_regular_file_of_a_text(command, kind, tmp_path):
    path = tmp_path / "odd.py"
    if kind == "fifo":
        hostile.make_fifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        hostile.make_sparse(path, 10**12)
    words = {"fifo": "is a FIFO", "device": "is a device", "large": "larger than 10 MB"}
    assert words[kind] in commands.call(tmp_path, command, f"--config={path}").complaint


@pytest.mark.quick
def test_a_sweep_is_a_regular_file_of_a_text(tmp_path):
    hostile.make_fifo(tmp_path / "x.toml")
    assert "is a FIFO" in commands.call(tmp_path, "sweep", "--sweep=x.toml").complaint
    hostile.make_sparse(tmp_path / "y.toml", 10**12)
    assert "larger than" in commands.call(tmp_path, "sweep", "--sweep=y.toml").complaint
    (tmp_path / "z.toml").write_text("a = " + "[" * 100_000)
    assert "is no TOML file" in commands.call(tmp_path, "sweep", "--sweep=z.toml").complaint
