"""Flags, configs and folders: what a user can get wrong, and what is found where."""

import logging
import os
import shlex
import sys
import textwrap
from pathlib import Path

import jax
import pytest
from support import commands, launcher

from halfway.lab import studies
from halfway.lab.commands import __main__ as console
from halfway.lab.config import config_file, settings
from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared
from halfway.lab.flags import reproduce, transfer
from halfway.lab.runtime import datasets, devices, environment, processes, runs

ROOT = Path(__file__).resolve().parents[3]
TINY = "--config=configs/digits.py:tiny"
OWN = textwrap.dedent(
    """
    from halfway.lab.config import shipped

    def get_config(variant=""):
        config = shipped("digits:tiny")
        config.num_pairs = 3
        config.num_holdout = len(variant) or 7
        return config
    """
)
BROKEN = {
    "syntax.py": "def get_config(:",
    "imports.py": "import no_such_module",
    "nothing.py": "x = 1",
    "number.py": "def get_config():\n    return 3",
    "lacking.py": "from ml_collections import ConfigDict\n"
    "def get_config():\n    return ConfigDict({'dataset': 'digits', 'num_pairs': 4})",
    "extra.py": OWN.replace("num_holdout = len(variant) or 7", "note = 1"),
    "text": "hello",
}

# Arguments, and what the line must name: the culprit, and what to do about it.
MISTAKES = [
    (["--onyl=G1"], ["--onyl", "did you mean --only"]),
    (["--epochs=3"], ["--epochs", "--workdir"]),
    (["--noconfig"], ["unknown flag --noconfig"]),
    (["--workdir"], ["--workdir", "Missing value"]),
    (["stray"], ["'stray'", "--"]),
    ([TINY, "--", "--only=G1"], ["'--only=G1'"]),
    (["--only=G99"], ["'G99'", "G1, G2"]),
    (["--only=G1,,t1"], ["'t1'"]),
    (["--only="], ["--only", "G1,T1"]),
    (["--only=,"], ["--only", "G1,T1"]),
    (["--only=g1"], ["'g1'", "did you mean G1?"]),
    (["--at_once=0"], ["--at_once", "0"]),
    (["--at_once=two"], ["--at_once", "two"]),
    (["--checkpoint_every=-1"], ["--checkpoint_every", "-1"]),
    # The config's file.
    (["--config=nope.py"], ["'nope.py'", "digits"]),
    (["--config"], ["--config", "Missing value"]),
    (["--config="], ["--config", "FILE.py"]),
    (["--config=."], ["'.'"]),
    (["--config=configs/digits.py:nope"], ["'nope'", "smoke, tiny"]),
    (["--config=files/syntax.py"], ["files/syntax.py", "SyntaxError", "line 1"]),
    (["--config=files/imports.py"], ["files/imports.py", "no_such_module"]),
    (["--config=files/nothing.py"], ["files/nothing.py", "get_config"]),
    (["--config=files/number.py"], ["files/number.py", "ConfigDict", "3"]),
    (["--config=files/lacking.py"], ["no field 'subset'"]),
    (["--config=files/extra.py"], ["unknown config field 'note'"]),
    (["--config=files/text"], ["files/text"]),
    # Its fields.
    (["--config.num_pair=3"], ["'num_pair'", "did you mean num_pairs?"]),
    (["--config.training.lr=3"], ["did you mean training.learning_rate?"]),
    (["--config.training.learning_rat=3"], ["did you mean training.learning_rate?"]),
    (["--config.trainin.learning_rate=3"], ["did you mean training.learning_rate?"]),
    (["--config.batch_size=3"], ["'batch_size'", "did you mean training.batch_size?"]),
    (["--config.models.mlp.depth=3"], ["'models.mlp.depth'"]),
    (["--config.zzz", "3"], ["'zzz'", "num_pairs"]),
    (["--config.training=3"], ["'training'", "group of fields", "training.optimizer"]),
    (["--config.num_pairs"], ["num_pairs", "Missing value"]),
    # Types.
    (["--config.num_pairs=abc"], ["config.num_pairs must be an integer", "'abc'"]),
    (["--config.num_pairs=1.5"], ["config.num_pairs must be an integer", "'1.5'"]),
    (["--config.training.learning_rate=fast"], ["learning_rate must be a number", "'fast'"]),
    (["--config.training.probe_steps=(1.5,2)"], ["probe_steps must be a tuple", "1.5"]),
    (["--config.noise_rates=(0,x,1)"], ["noise_rates must be a tuple"]),
    # Ranges.
    (["--config.num_pairs=0"], ["config.num_pairs", "[2, 4096]", "0"]),
    (["--config.num_pairs=-3"], ["config.num_pairs", "[2, 4096]", "-3"]),
    (["--config.seed=-1"], ["config.seed", "-1"]),
    (["--config.noise_rates=3"], ["config.noise_rates", "[0, 1]", "3"]),
    (["--config.noise_rates=(0,.5,1.5)"], ["config.noise_rates", "[0, 1]", "1.5"]),
    (["--config.noise_rates=(0,1)"], ["config.noise_rates", "between"]),
    (["--config.training.learning_rate=nan"], ["learning_rate must be finite", "nan"]),
    (["--config.training.learning_rate=inf"], ["learning_rate must be finite", "inf"]),
    (["--config.training.learning_rate=-1"], ["learning_rate must be positive", "-1"]),
    (["--config.training.batch_size=0"], ["batch_size", "[1, 65536]"]),
    (["--config.training.probe_steps=(0,)"], ["probe_steps", "(0,)"]),
    (["--config.training.probe_steps=()"], ["probe_steps", "()"]),
    (["--config.training.optimizer=rmsprop"], ["optimizer", "adam or sgd", "'rmsprop'"]),
    (["--config.attack.epsilon=0"], ["attack.epsilon", "(0, 1]"]),
    (["--config.models.mlp.widths=(0,)"], ["models.mlp.widths", "at least 1"]),
    (["--config.models.mlp.kind=svm"], ["'svm'", "mlp, cnn"]),
    (["--config.architectures=('gru',)"], ["architectures", "mlp", "'gru'"]),
    (["--config.hypotheses=('X9',)"], ["'X9'", "G1, G2"]),
    (["--config.hypotheses=()"], ["no hypothesis is named"]),
    (["--config.subset=test"], ["config.subset is all or train", "'test'"]),
    (["--config.dataset=imagenet"], ["'imagenet'", "digits"]),
    (["--config.num_classes=3"], ["num_classes is 3", "10 classes"]),
    (["--config.num_examples=1000"], ["num_examples=1000", "1797", "at most 600"]),
    (["--config.num_holdout=1000"], ["1000", "1797"]),
    # Folders.
    (["--workdir=files/text"], ["--workdir=files/text", "not a folder"]),
    (["--workdir=files/text/below"], ["--workdir=files/text/below", "(files/text is a file)"]),
    (["--workdir=files"], ["--workdir=files", "not empty", "choose another"]),
]
IDS = [" ".join(arguments) or "nothing" for arguments, _ in MISTAKES]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with broken files; devices stay those of the tests."""
    (tmp_path / "files").mkdir()
    for name, content in BROKEN.items():
        (tmp_path / "files" / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "start", lambda place: None)
    return tmp_path


def complaint(name, *arguments):
    with pytest.raises(UserError) as caught:
        commands.main(name, *arguments)
    return " ".join(str(caught.value).split())


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=IDS)
def test_a_mistake_is_one_line_and_changes_nothing(folder, arguments, words):
    first = [] if "--" in arguments else launcher.FOLDERS  # nothing after "--" is a flag
    line = complaint("reproduce", *first, *arguments)
    for word in words:
        assert word in line
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert left == ["files", *sorted(f"files/{file}" for file in BROKEN)]


# From the arguments to the line and the exit code; in processes of their own in test_scale.py.
WHOLE = [
    ("reproduce", ["--onyl=G1"], "did you mean --only"),
    ("reproduce", ["--config.num_pairs=0"], "[2, 4096]"),
    ("reproduce", ["--config=nope.py"], "'nope.py'"),
    ("reproduce", ["--workdir=there", *launcher.FOLDERS], "not empty"),
    ("reproduce", ["--compilation_cache=text/x"], "'off'"),
    ("decide", [], "--workdir is needed"),
]


@pytest.mark.quick
@pytest.mark.parametrize(("command", "arguments", "words"), WHOLE)
def test_a_mistake_is_printed_and_ends_with_exit_code_2(tmp_path, command, arguments, words):
    (tmp_path / "there").mkdir()
    for name in ("text", "there/text"):
        (tmp_path / name).write_text("hello")
    assert words in commands.call(tmp_path, command, *arguments).complaint
    assert len(list(tmp_path.rglob("*"))) == 3


@pytest.mark.quick
def test_decide_takes_a_workdir_and_nothing_else(folder):
    for arguments, words in (
        ([], ["--workdir is needed"]),
        (["--workdir=nowhere"], ["--workdir=nowhere", "no run"]),
        (["--config=digits"], ["unknown flag --config", "--workdir"]),
        (["--config.seed=3"], ["unknown flag --config.seed", "--workdir"]),
        (["--only=G1"], ["unknown flag --only"]),
        (["--wrkdir=x"], ["unknown flag --wrkdir", "did you mean --workdir?"]),
        (["x"], ["'x'"]),
    ):
        line = complaint("decide", *arguments)
        assert all(word in line for word in words), line


def test_help_is_the_docstring_and_the_flags(monkeypatch, capsys):
    monkeypatch.setattr(launch, "LOG", logging.getLogger("of the help"))
    monkeypatch.setattr(sys, "argv", ["halfway reproduce", "--help"])
    reproduce.run()
    shown = capsys.readouterr().out
    assert "decide hypotheses" in shown and "Example: " in shown
    for name in reproduce.FLAGS:
        assert (f"\n--{name} " in shown) == (name != shared.FIELD)


@pytest.mark.quick
@pytest.mark.parametrize("name", console.COMMANDS)
def test_help_of_each_command_fits_a_screen(name):
    lines = launch.usage(name, commands.flags_of(name).FLAGS).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert f"Example: halfway {name}" in "\n".join(lines)


@pytest.mark.quick
def test_the_console_script_names_the_nearest_command(monkeypatch, capsys):
    for word, answer in (("reprodcue", "did you mean reproduce?"), ("zz", "there are reproduce")):
        monkeypatch.setattr(sys, "argv", ["halfway", word])
        with pytest.raises(SystemExit) as caught:
            console.main()
        assert caught.value.code == 2 and answer in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["halfway"])
    console.main()
    assert all(f"  {name} " in capsys.readouterr().out for name in list(console.COMMANDS)[:1])


def load(*arguments):
    launch.parse(reproduce.FLAGS, arguments)
    return reproduce.CONFIG.load()


@pytest.mark.quick
def test_without_arguments_digits_are_taken_whatever_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = load()
    assert (file.name, file.config.num_pairs, file.overrides) == ("digits", 16, {})
    assert not reproduce.CONFIG.given and load("--config=digits:smoke").config.num_pairs == 6
    assert reproduce.CONFIG.given
    # What an earlier command line said is forgotten.
    assert load().config.num_pairs == 16


def test_a_config_is_looked_for_in_the_current_folder_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("digits:smoke", "configs/digits.py:smoke", "digits.py:smoke"):
        assert load(f"--config={text}").config.num_pairs == 6
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text(OWN)
    assert load("--config=digits").config.num_pairs == 3
    assert load("--config=configs/digits.py").config.num_pairs == 3
    assert load(f"--config={ROOT}/configs/digits.py").config.num_pairs == 16
    assert [path.name for path in (tmp_path / "configs").iterdir()] == ["digits.py"]


def test_packages_of_a_user_are_not_taken_for_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in ("configs", "experiments"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in config_file.shipped_names():
        assert load(f"--config={name}").name == name


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=own.py:ab", "--config.num_pairs=7"],
        ["--config", "own.py:ab", "--config.num_pairs", "7"],
        ["-config", "own.py:ab", "-config.num_pairs=7"],
        ["--config.num_pairs=7", "--config=own.py:ab"],
        ["--config=no.py", "--config.num_pairs=5", "--config=own.py:ab", "--config.num_pairs=7"],
    ],
)
def test_ways_to_write_the_same_config(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    file = load(*arguments)
    assert file.config.num_pairs == 7
    assert file.config.num_holdout == 2
    assert file.name == "own-ab"
    assert file.overrides == {"num_pairs": 7}


@pytest.mark.quick
def test_fields_have_the_types_that_are_declared():
    config = load(
        "--config.noise_rates=(0,.5,1)",
        "--config.training.learning_rate=1",
        "--config.attack.epsilon=8/255",
        "--config.attack.budgets=4/255,8/255",
        "--config.architectures=cnn",
        "--config.models.mlp.widths=64",
        "--config.models.mlp.mean=0",
        "--config.seed=5",
    ).config
    assert [type(rate) for rate in config.noise_rates] == [float] * 3
    assert type(config.training.learning_rate) is float
    assert config.attack.epsilon == 8 / 255 and config.attack.budgets == (4 / 255, 8 / 255)
    assert config.architectures == ("cnn",)
    assert config.models["mlp"]["widths"] == (64,) and config.models["mlp"]["mean"] == 0.0
    assert type(config.seed) is int


@pytest.mark.quick
def test_budgets_are_understood_wherever_they_are_a_flag():
    launch.parse(transfer.FLAGS, ["--epsilon=8/255,0.01", "--attacks=pgd,fgsm"])
    assert transfer.EPSILON.value == (0.01, 8 / 255)
    assert transfer.ATTACKS.value == ["pgd", "fgsm"]
    launch.parse(transfer.FLAGS, [])
    assert transfer.EPSILON.value == (0.1,)
    for wrong in ("0", "-1", "1/0", "x", "", "nan", "inf", "0.1,,"):
        with pytest.raises(UserError, match="--epsilon must be positive numbers"):
            launch.parse(transfer.FLAGS, [f"--epsilon={wrong}"])


def test_studies_are_chosen_in_the_order_of_the_family():
    def chosen(*names):
        return [study.id for study in studies.choose(names)]

    assert chosen("T1", " G1") == ["G1", "T1"]
    deciding = [study.id for study in studies.listed() if study.kind != "description"]
    assert chosen("all") == deciding and len(deciding) > 20
    assert chosen("D1", "all") == [*deciding, "D1"]


def test_the_default_workdir_names_config_variant_and_overrides():
    def workdir(*arguments):
        return runs.default_folder(load(*arguments))

    assert workdir() == "runs/digits"
    assert workdir(TINY) == "runs/digits-tiny"
    assert workdir(TINY, "--config.num_pairs=4", "--config.seed=0") == "runs/digits-tiny"
    a, b = "--config.num_pairs=5", "--config.training.learning_rate=1"
    both = workdir(TINY, a, b)
    assert both.startswith("runs/digits-tiny-")
    assert workdir(TINY, b + ".0", a) == both
    assert len({workdir(TINY), workdir(TINY, a), workdir(TINY, b), both, workdir(a, b)}) == 5


@pytest.mark.quick
def test_the_data_folder_is_the_flag_else_the_variable_else_at_home(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/variable")
    assert datasets.folder("/flag") == "/flag"
    assert datasets.folder(None) == "/variable"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("TFDS_DATA_DIR")
        else:
            monkeypatch.setenv("TFDS_DATA_DIR", unset)
        assert datasets.folder(None) == "~/tensorflow_datasets"


@pytest.mark.parametrize("variable", ["flag", "TFDS_DATA_DIR", "HOME"])
def test_data_are_prepared_where_they_should_be(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    if variable != "flag":
        monkeypatch.setenv(variable, str(tmp_path))
    datasets.load_for(load(TINY).config, str(tmp_path) if variable == "flag" else None)
    folder = tmp_path / "tensorflow_datasets" if variable == "HOME" else tmp_path
    assert list(folder.glob("digits/*/dataset_info.json"))


@pytest.mark.quick
def test_programs_are_kept_in_the_users_cache_if_there_is_one(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    devices.use_cache("off")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    devices.use_cache(None)
    assert not kept
    monkeypatch.setenv("HOME", str(tmp_path))
    devices.use_cache(None)
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / ".cache/halfway/jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    devices.use_cache(None)
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "xdg/halfway/jax")
    devices.use_cache(str(tmp_path / "given"))
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "given")
    assert (tmp_path / "given").is_dir()


def test_each_core_is_a_device_unless_xla_is_told_otherwise(monkeypatch):
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    devices.use_cores()
    assert not kept
    monkeypatch.setenv("XLA_FLAGS", "")
    devices.use_cores()
    assert kept == {"jax_num_cpu_devices": len(os.sched_getaffinity(0))}


def test_a_config_of_ones_own_that_lacks_a_field_is_named(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN.replace("config.num_pairs = 3", "del config.attack.epsilon"))
    with pytest.raises(UserError, match=r"'attack\.epsilon'"):
        load(f"--config={path}")


@pytest.mark.parametrize("program", ["prog", "halfway reproduce"])
def test_the_recorded_command_can_be_pasted(monkeypatch, digits, program):
    arguments = ["--config.noise_rates=(0, .5, 1)", "--only=G1"]
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    described = environment.describe(digits, launch.command_line())
    words = shlex.split(described["command"])
    assert described["data_version"] == digits.version
    assert described["data_size"] == {"train": 1437, "test": 360}
    assert words[0] == ("python" if program == "prog" else "halfway")
    assert words[-2:] == arguments


@pytest.mark.quick
def test_leaves_are_all_fields_by_dotted_name():
    fields = settings.leaves(load().config)
    assert fields["training.batch_size"] == 64
    assert fields["models.mlp.widths"] == (128, 128)
    assert not {"training", "models"} & set(fields)
    # What is stored comes back the same.
    config = load("--config=cifar10").config
    assert settings.parse(config.to_dict()) == config


@pytest.mark.quick
@pytest.mark.parametrize(
    "error",
    [
        MemoryError("12 GiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 12 GiB\nmore lines"),
    ],
)
def test_out_of_memory_is_one_line(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        launch.guard(main)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: out of memory: lower --at_once where there are several processes")
    assert err.count("\n") == 1
    assert "12 GiB" in err


def test_other_faults_of_a_program_keep_their_traceback():
    def main():
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        launch.guard(main)


@pytest.mark.quick
def test_what_is_said_at_an_end_is_true(tmp_path, monkeypatch):
    """A command that keeps nothing does not promise to go on."""

    def end(*_):
        raise processes.Terminated

    monkeypatch.setattr(devices, "start", end)
    ends = {
        "reproduce": ((), "the same command goes on from here"),
        "laws": ((), "nothing was kept, the same command begins anew"),
        "landscape": ((), "the same command goes on from here"),
    }
    for name, (arguments, words) in ends.items():
        result = commands.call(tmp_path, name, *arguments, "--compilation_cache=off")
        assert result.err == f"terminated: {words}\n", (name, result)
    own = ("--params=x.npz", "--loss=mine:loss", "--compilation_cache=off")
    assert "begins anew" in commands.call(tmp_path, "landscape", *own).err
