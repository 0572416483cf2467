"""Every command that is asked to end: by Ctrl-C, by SIGTERM, and by a terminal that closes."""

import os
import signal

import pytest
from support import commands, launcher, run_folder

from halfway.lab.commands import __main__ as console
from halfway.lab.commands import compare, landscape
from halfway.lab.runtime import datasets, pipeline, processes, sweep_file
from halfway.lab.runtime.runs import Run
from halfway.lab.study import registration
from halfway.lab.user_models import loading

EXAMPLES = ("--data=x.npz", "--compilation_cache=off", "--out_dir=out")
# The arguments of each command, and what it is about to call when it is asked.
WORK = {
    "reproduce": ([*run_folder.G1, "--workdir=run"], (pipeline, "measure")),
    "decide": (["--workdir=run"], (Run, "open")),
    "register": ([], (registration, "updated")),
    "publish": ([], ("halfway.lab.publication.documents", "update")),
    "sweep": (["--sweep=example.toml"], (sweep_file, "is_finished")),
    "compare": (["a", "b"], (compare, "summarize")),
    "evaluate": (["--model=a:b", *EXAMPLES], (loading, "load_examples")),
    "transfer": (["--surrogates=a:b", *EXAMPLES], (loading, "load_examples")),
    "landscape": (
        ["--params=x.npz", "--loss=a:b", "--compilation_cache=off"],
        (landscape, "load_params"),
    ),
    "laws": (["--config=digits:tiny", *launcher.FOLDERS], (datasets, "load_for")),
    "benchmark": (
        ["--suite=transfer", *launcher.FOLDERS],
        ("halfway.lab.runtime.devices", "use_cache"),
    ),
    "compile_ahead": (
        ["--compilation_cache=off", launcher.FOLDERS[1]],
        ("halfway.lab.runtime.datasets", "load_for"),
    ),
    "prepare_data": (["--dataset=mnist", "--source=."], ("halfway.data", "prepare")),
}
KEEPS_NOTHING = ("laws", "landscape", "compile_ahead")


def test_the_table_has_every_command():
    assert set(WORK) == set(console.COMMANDS)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", WORK)
def test_a_command_that_is_asked_ends_in_one_line_and_with_its_code(
    tmp_path, monkeypatch, name, number
):
    arguments, (module, function) = WORK[name]
    (tmp_path / "example.toml").write_text('config = "digits:tiny"\n[grid]\nseed = [0]\n')
    target = f"{module}.{function}" if isinstance(module, str) else None

    def asked(*_, **__):
        os.kill(os.getpid(), number)
        pytest.fail("goes on")

    monkeypatch.setattr(*((target, asked) if target else (module, function, asked)))
    result = commands.call(tmp_path, name, *arguments, positional=name == "compare")
    how = "interrupted" if number == signal.SIGINT else "terminated"
    then = "nothing was kept, the same command begins anew"
    if name not in KEEPS_NOTHING:
        then = "the same command goes on from here"
    assert result.code == processes.CODES[number], result
    assert result.err == f"{how}: {then}\n", result
