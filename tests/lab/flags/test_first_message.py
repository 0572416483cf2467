"""What is said before a command begins its work: nothing large has been imported for it.

Each command runs in a process of its own, which says after each of its ends what it has imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import commands

from halfway.lab.commands import __main__ as console

ROOT = Path(__file__).resolve().parents[3]
LARGE = (
    *("jax", "jaxlib", "flax", "optax", "orbax", "pandas", "scipy", "matplotlib", "xarray"),
    *("sklearn", "tensorflow", "tensorflow_datasets", "pyarrow", "PIL", "pydantic"),
)
MISTAKEN = {
    "at_once": "0",
    "batch_size": "0",
    "checkpoint_every": "-1",
    "data_dir": "text",
    "distributed": "perhaps",
    "dry_run": "perhaps",
    "epsilon": "-8/255",
    "markdown": "text/below.md",
    "max_gb": "-1",
    "norm": "l3",
    "num_examples": "many",
    "num_processes": "0",
    "num_steps": "0",
    "out": "text/below.json",
    "out_dir": "text",
    "process_id": "-1",
    "seed": "-1",
    "threat": "linf:8/255,l3:1",
    "topology": "v5e:4x4",
    "version": "plain",
    "workdir": "text",
}
"""A value that each of these flags cannot have alone, in a folder with a file named `text`."""
LACKING = {
    "decide": ([], "--workdir is needed"),
    "sweep": ([], "--sweep is needed"),
    "compare": (["a"], "two or more runs are needed"),
    "evaluate": (["--model=mine:load"], "--data is needed"),
    "transfer": (["--data=digits"], "--surrogates is needed"),
    "landscape": (["--params=a.npz"], "--params and --loss belong together"),
    "compile_ahead": (["--parts=lectures"], "--parts must be among"),
    "prepare_data": (["--dataset=mnist"], "--dataset and --source are needed"),
}
"""Of each command that checks its flags together: what is given, and what is said then."""
PROGRAM = """
import io, json, runpy, sys
name, large, lines = json.loads(sys.argv[1])
ends = []
for arguments in lines:
    sys.argv, sys.stderr, code = [f"experiments.{name}", *arguments], io.StringIO(), 0
    try:
        runpy.run_module(f"experiments.{name}", run_name="__main__")
    except SystemExit as end:
        code = end.code
    imported = [module for module in large if module in sys.modules]
    ends.append([code, sys.stderr.getvalue(), imported])
print("\\n" + json.dumps(ends))
"""


def ends_of(folder, name, lines):
    """Exit code, error and large modules after each of these arguments, in one fresh process."""
    (folder / "text").write_text("hello")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([name, LARGE, lines])],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    return json.loads(done.stdout.splitlines()[-1])


def mistaken(name):
    """The flags of a command for which there is a value that they cannot have."""
    return [flag for flag in commands.flags_of(name).FLAGS if flag in MISTAKEN]


@pytest.mark.quick
@pytest.mark.parametrize("name", console.COMMANDS)
def test_help_and_mistakes_are_said_before_anything_large_is_imported(tmp_path, name):
    lines = [(["--help"], ""), (["--no_such"], "unknown flag --no_such")]
    lines += [([f"--{flag}={MISTAKEN[flag]}"], f"--{flag}") for flag in mistaken(name)]
    lines += [LACKING[name]] if name in LACKING else []
    ends = ends_of(tmp_path, name, [arguments for arguments, _ in lines])
    for (arguments, words), (code, error, large) in zip(lines, ends, strict=True):
        assert large == [], arguments
        if arguments == ["--help"]:
            assert (code, error) == (0, "")
        else:
            assert code == 2 and error.startswith("error: ") and words in error, (arguments, error)
            assert error.count("\n") == 1, error
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_every_flag_that_is_checked_as_it_is_read_is_among_them():
    """What others hold is a text that is looked at later, or is true or false."""
    for name in console.COMMANDS:
        values = commands.flags_of(name).FLAGS
        for flag in set(values) - set(MISTAKEN):
            assert not values[flag].validators, flag
            assert not hasattr(values[flag].parser, "enum_values"), flag
            assert values[flag].boolean or values[flag].parser.parse("some text"), flag
    assert {flag for name in console.COMMANDS for flag in mistaken(name)} == set(MISTAKEN)
    checking = {name for name in console.COMMANDS if hasattr(commands.flags_of(name), "check")}
    assert checking == set(LACKING)


def test_large_modules_are_noticed_where_the_work_begins(tmp_path):
    ((code, error, large),) = ends_of(tmp_path, "decide", [["--workdir=nowhere"]])
    assert code == 2 and "no run" in error
    assert {"jax", "flax", "pandas", "scipy", "matplotlib", "xarray", "pydantic"} <= set(large)
