"""Paths that cannot be: one line before anything is computed, for every flag that names one."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from support import commands, launcher

from halfway.lab.config.user import UserError
from halfway.lab.user_models import loading

CONFIG = f"{launcher.SMALL}:g1"
SWEEP = f"--sweep={Path(__file__).parents[2] / 'configs' / 'sweeps' / 'example.toml'}"
DATA = "--data=digits"
PLACES = {
    "reproduce --workdir": (CONFIG,),
    "reproduce --data_dir": (CONFIG, "--dry_run"),
    "decide --workdir": (),
    "compare": (),
    "publish --workdir": (),
    "register --workdir": (),
    "sweep --workdir": (SWEEP,),
    "laws --workdir": (),
    "landscape --workdir": (CONFIG,),
    "transfer --out_dir": ("--surrogates=mine:load", DATA),
    "evaluate --out_dir": ("--model=mine:load", DATA),
    "benchmark --out": ("--suite=scale",),
    "benchmark --markdown": ("--suite=optimality",),
}
"""Command and flag, to the other arguments."""
PATHS = {
    "300 letters": ("a" * 300, "File name too long"),
    "6000 letters": ("/".join(["a" * 99] * 60), "File name too long"),
    "a file in the way": ("file/x", "(file is a file)"),
    "a dangling link": ("dangling", "the link dangling leads to nowhere, which does not exist"),
    "below a dangling link": ("dangling/x", "the link dangling leads to nowhere"),
    "a link to itself": ("loop", "Too many levels of symbolic links"),
    "no permission": ("closed/x", "Permission denied"),
    "a zero byte": ("a\0b", "a\\0b cannot be used"),
}


@contextlib.contextmanager
def as_nobody():
    """As a user whom permissions bind."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def folder(monkeypatch):
    """A folder with everything that can be in the way, which every user may enter.

    It is the current folder too: to that of the suite another user might not find back.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "file").touch()
        (folder / "dangling").symlink_to("nowhere")
        (folder / "loop").symlink_to("loop")
        (folder / "closed").mkdir(mode=0o000)
        monkeypatch.chdir(folder)
        yield folder
        monkeypatch.undo()
        (folder / "closed").chmod(0o700)


@pytest.mark.quick
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_cannot_be_is_one_line(folder, place, path):
    (command, *flag), (value, words) = place.split(), PATHS[path]
    arguments = [f"{flag[0]}={value}", *PLACES[place]] if flag else [value, value]
    before = sorted(folder.iterdir())
    with as_nobody() if path == "no permission" else contextlib.nullcontext():
        done = commands.call(folder, command, *arguments, positional=not flag)
    assert words in done.complaint
    assert sorted(folder.iterdir()) == before


@pytest.mark.quick
@pytest.mark.parametrize("path", PATHS)
def test_a_run_whose_path_cannot_be_is_one_line(folder, path):
    value, words = PATHS[path]
    nobody = as_nobody() if path == "no permission" else contextlib.nullcontext()
    with nobody, pytest.raises(UserError, match=r"^--surrogates=run:") as caught:
        loading.load_models("surrogates", f"run:{folder}/{value}")
    assert words.removeprefix("the link dangling") in str(caught.value).replace(f"{folder}/", "")
    assert len(str(caught.value)) < 600


@pytest.mark.quick
@pytest.mark.parametrize("place", [place for place in PLACES if "--out_dir" in place])
def test_a_file_or_a_folder_without_permission_is_refused_before_anything_is_computed(
    folder, place
):
    command, flag = place.split()
    done = commands.call(folder, command, f"{flag}=file", *PLACES[place])
    assert f"{flag}=file is not a folder: choose another" in done.complaint
    (folder / "shut").mkdir(mode=0o555)
    with as_nobody():
        done = commands.call(folder, command, f"{flag}=shut", *PLACES[place])
    assert f"{flag}=shut cannot be written (no permission)" in done.complaint


@pytest.mark.quick
def test_a_name_that_is_too_long_only_below_the_folder_is_one_line(folder):
    # The folder can be, but no file in it.
    deep = f"{'a' * 99}/" * 40
    deep += "b" * (4090 - len(str(folder)) - len(deep))
    done = commands.call(folder, "decide", f"--workdir={folder}/{deep}")
    assert "File name too long" in done.complaint


@pytest.mark.quick
@pytest.mark.parametrize("flag", ["--out", "--markdown"])
def test_a_folder_where_a_file_should_be_is_one_line(folder, flag):
    (folder / "rows").mkdir()
    done = commands.call(folder, "benchmark", f"{flag}=rows", *PLACES[f"benchmark {flag}"])
    assert f"{flag}=rows is not a file: choose another" in done.complaint
