"""Flags, configs and folders: what a user can get wrong, and what is found where."""

import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest
from absl import flags
from support import launcher

from halfway.lab import studies
from halfway.lab.commands import cli
from halfway.lab.config import config_file
from halfway.lab.config.user import UserError
from halfway.lab.runtime import environment

ROOT = Path(__file__).resolve().parents[3]
TINY = "--config=configs/digits.py:tiny"
OWN = textwrap.dedent(
    """
    from configs import digits

    def get_config(variant=""):
        config = digits.get_config("tiny")
        with config.unlocked():
            config.num_pairs = 3
            config.note = variant
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
    "text": "hello",
}

# Arguments, and what the line must name: the culprit, and what to do about it.
MISTAKES = [
    (["--onyl=G1"], ["--onyl", "did you mean --only"]),
    (["--epochs=3"], ["--epochs", "--workdir"]),
    (["--noconfig"], ["--noconfig"]),
    (["--workdir"], ["--workdir", "Missing value"]),
    (["stray"], ["'stray'", "--"]),
    ([TINY, "--", "--only=G1"], ["'--only=G1'"]),
    (["--only=G99"], ["'G99'", "G1, G2"]),
    (["--only=G1,,t1"], ["'t1'"]),
    (["--only="], ["--only", "G1,T1"]),
    (["--only=,"], ["--only", "G1,T1"]),
    # The config's file.
    (["--config=nope.py"], ["'nope.py'", "configs/digits.py"]),
    (["--config"], ["--config", "FILE.py"]),
    (["--config="], ["--config", "FILE.py"]),
    (["--config=."], ["'.'"]),
    (["--config=configs/digits.py:nope"], ["'nope'", "smoke, tiny"]),
    (["--config=files/syntax.py"], ["files/syntax.py", "SyntaxError", "line 1"]),
    (["--config=files/imports.py"], ["files/imports.py", "no_such_module"]),
    (["--config=files/nothing.py"], ["files/nothing.py", "get_config"]),
    (["--config=files/number.py"], ["files/number.py", "ConfigDict", "3"]),
    (["--config=files/lacking.py"], ["no field 'subset'"]),
    (["--config=files/text"], ["files/text"]),
    # Its fields.
    (["--config.num_pair=3"], ["'num_pair'", "did you mean num_pairs?"]),
    (["--config.training.learning_rat=3"], ["did you mean training.learning_rate?"]),
    (["--config.trainin.learning_rate=3"], ["did you mean training.learning_rate?"]),
    (["--config.batch_size=3"], ["'batch_size'", "did you mean training.batch_size?"]),
    (["--config.models.mlp.depth=3"], ["'models.mlp.depth'"]),
    (["--config.zzz", "3"], ["'zzz'", "num_pairs"]),
    (["--config.training=3"], ["config.training", "training.optimizer"]),
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
    (["--config.hypotheses=()"], ["config.hypotheses"]),
    (["--config.subset=test"], ["subset", "'test'", "'train'"]),
    (["--config.dataset=imagenet"], ["'imagenet'", "digits"]),
    (["--config.num_classes=3"], ["num_classes is 3", "10 classes"]),
    (["--config.num_examples=1000"], ["num_examples=1000", "1797", "at most 600"]),
    (["--config.num_holdout=1000"], ["1000", "1797"]),
    # Folders.
    (["--workdir=files/text"], ["--workdir=files/text", "not a folder"]),
    (["--workdir=files/text/below"], ["--workdir=files/text/below", "cannot be written"]),
    (["--workdir=files"], ["--workdir=files", "not empty", "choose another"]),
    (["--compilation_cache=files/text/x"], ["--compilation_cache=files/text/x", "'off'"]),
]
IDS = [" ".join(arguments) or "nothing" for arguments, _ in MISTAKES]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each mistake led to, and the names of the files that were there afterwards."""

    def start(arguments):
        folder = tmp_path_factory.mktemp("mistake")
        cwd = folder / "cwd"
        (cwd / "files").mkdir(parents=True)
        for name, content in BROKEN.items():
            (cwd / "files" / name).write_text(content)
        rest = [f for f in launcher.FOLDERS if f.partition("=")[0] not in str(arguments)]
        first = [] if "--" in arguments else rest  # nothing after "--" is a flag
        return launcher.Job(folder, *first, *arguments, cwd=cwd), cwd

    outcomes = {}
    jobs = [start(MISTAKES[0][0])]
    for i, name in enumerate(IDS):
        if i + 1 < len(IDS):  # two at a time
            jobs.append(start(MISTAKES[i + 1][0]))
        job, cwd = jobs[i]
        result = job.wait()
        outcomes[name] = result, sorted(str(path.relative_to(cwd)) for path in cwd.rglob("*"))
    return outcomes


@pytest.mark.parametrize(
    ("name", "words"), [*zip(IDS, [w for _, w in MISTAKES], strict=True)], ids=IDS
)
def test_a_mistake_is_one_line_and_changes_nothing(results, name, words):
    result, left = results[name]
    line = result.complaint
    for word in words:
        assert word in line
    assert left == ["files", *sorted(f"files/{file}" for file in BROKEN)]


def test_decide_takes_a_workdir_and_nothing_else(tmp_path):
    for arguments, words in (
        ([], ["--workdir is needed"]),
        (["--workdir=nowhere"], ["--workdir=nowhere", "no run"]),
        (["--config=configs/digits.py"], ["unknown flag --config", "--workdir"]),
        (["--config.seed=3"], ["unknown flag --config.seed", "--workdir"]),
        (["--only=G1"], ["unknown flag --only"]),
        (["--wrkdir=x"], ["unknown flag --wrkdir", "did you mean --workdir?"]),
        (["x"], ["'x'"]),
    ):
        (tmp_path / "cwd").mkdir(exist_ok=True)
        result = launcher.run(
            tmp_path, *arguments, module="experiments.decide", cwd=tmp_path / "cwd"
        )
        for word in words:
            assert word in result.complaint
        assert not list((tmp_path / "cwd").iterdir())


def test_help_lists_the_flags_of_each_entry_point_even_without_a_home(tmp_path):
    variables = os.environ | {"HOME": "/dev/null", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.reproduce", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path)
    assert done.returncode == 0
    assert "\n  --config\n" in done.stdout and "decides hypotheses" in done.stdout
    for name in cli.RUN_FLAGS:
        assert f"--{name}" in done.stdout
    result = launcher.run(tmp_path, "--help", module="experiments.decide")
    assert result.code == 0 and not result.err
    assert "\n  --workdir\n" in result.out and "--config" not in result.out


def parse(*arguments):
    return cli.parse(["prog", *arguments], cli.RUN_FLAGS, flags.FlagValues())


def prepare(*arguments):
    return cli.prepare(parse("--compilation_cache=off", launcher.FOLDERS[1], *arguments))


def test_without_arguments_digits_are_taken_whatever_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = parse()
    assert (options.name, options.config.num_pairs, options.overrides) == ("digits", 16, {})
    assert options.config.is_locked
    assert not any(options[3:])


def test_a_relative_config_is_looked_for_in_the_current_folder_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("--config=configs/digits.py:smoke").config.num_pairs == 6  # the repository's
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text(OWN)
    assert parse("--config=configs/digits.py").config.num_pairs == 3
    assert parse(f"--config={ROOT}/configs/digits.py").config.num_pairs == 16
    assert [path.name for path in (tmp_path / "configs").iterdir()] == ["digits.py"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=own.py:a:b", "--config.num_pairs=7"],
        ["--config", "own.py:a:b", "--config.num_pairs", "7"],
        ["-config", "own.py:a:b", "-config.num_pairs=7"],
        ["--config.num_pairs=7", "--config=own.py:a:b"],
        ["--config=no.py", "--config.num_pairs=5", "--config=own.py:a:b", "--config.num_pairs=7"],
    ],
)
def test_ways_to_write_the_same_config(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    options = parse(*arguments)
    assert options.config.num_pairs == 7
    assert options.config.note == "a:b"
    assert options.name == "own-a:b"
    assert options.overrides == {"num_pairs": 7}


def test_fields_keep_the_types_of_the_file():
    config = parse(
        "--config.noise_rates=(0,1,1)",
        "--config.training.learning_rate=1",
        "--config.architectures=cnn",
        "--config.models.mlp.widths=64",
        "--config.seed=5",
    ).config
    assert [type(rate) for rate in config.noise_rates] == [float] * 3
    assert type(config.training.learning_rate) is float
    assert config.architectures == ("cnn",)
    assert config.models.mlp.widths == (64,)
    assert type(config.seed) is int


def test_only_chooses_among_studies_and_the_config_is_the_default():
    def chosen(*arguments):
        return [study.id for study in prepare(*arguments).studies]

    assert chosen() == ["G1", "G2", "T1", "T2"]
    assert chosen(TINY) == ["G1"]
    assert chosen("--only=T1, G1") == ["G1", "T1"]
    assert chosen("--only=all") == list(studies.available())


def test_the_default_workdir_names_config_variant_and_overrides():
    def workdir(*arguments):
        return str(prepare(*arguments).workdir)

    assert workdir() == "runs/digits"
    assert workdir(TINY, "--only=G1") == "runs/digits-tiny"
    assert workdir(TINY, "--config.num_pairs=4", "--config.seed=0") == "runs/digits-tiny"
    assert workdir(TINY, "--workdir=here") == "here"
    a, b = "--config.num_pairs=5", "--config.training.learning_rate=1"
    both = workdir(TINY, a, b)
    assert both.startswith("runs/digits-tiny-")
    assert workdir(TINY, b + ".0", a) == both
    assert len({workdir(TINY), workdir(TINY, a), workdir(TINY, b), both, workdir(a, b)}) == 5


def test_the_data_folder_is_the_flag_else_the_variable_else_at_home(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/variable")
    assert environment.data_dir("/flag") == "/flag"
    assert environment.data_dir(None) == "/variable"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("TFDS_DATA_DIR")
        else:
            monkeypatch.setenv("TFDS_DATA_DIR", unset)
        assert environment.data_dir(None) == "~/tensorflow_datasets"


@pytest.mark.parametrize("variable", ["flag", "TFDS_DATA_DIR", "HOME"])
def test_data_are_prepared_where_they_should_be(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    arguments = [TINY, "--compilation_cache=off"]
    if variable == "flag":
        arguments.append(f"--data_dir={tmp_path}")
    else:
        monkeypatch.setenv(variable, str(tmp_path))
    cli.prepare(parse(*arguments))
    folder = tmp_path / "tensorflow_datasets" if variable == "HOME" else tmp_path
    assert list(folder.glob("digits/*/dataset_info.json"))


def test_programs_are_kept_in_the_users_cache_if_there_is_one(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    environment.use_cache("off")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    environment.use_cache(None)
    assert not kept
    monkeypatch.setenv("HOME", str(tmp_path))
    environment.use_cache(None)
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / ".cache/halfway/jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    environment.use_cache(None)
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "xdg/halfway/jax")
    environment.use_cache(str(tmp_path / "given"))
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "given")
    assert (tmp_path / "given").is_dir()


def test_each_core_is_a_device_unless_xla_is_told_otherwise(monkeypatch):
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    environment.use_cores()
    assert not kept
    monkeypatch.setenv("XLA_FLAGS", "")
    environment.use_cores()
    assert kept == {"jax_num_cpu_devices": len(os.sched_getaffinity(0))}


def test_a_config_of_ones_own_that_lacks_a_field_is_named(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN.replace("config.note = variant", "del config.attack.epsilon"))
    with pytest.raises(UserError, match=r"'attack\.epsilon'"):
        prepare(f"--config={path}")


def test_the_recorded_command_can_be_pasted(monkeypatch, digits):
    arguments = ["--config.noise_rates=(0, .5, 1)", "--only=G1"]
    monkeypatch.setattr(sys, "argv", ["prog", *arguments])
    described = environment.describe(digits)
    words = shlex.split(described["command"])
    assert described["data_version"] == digits.version
    assert described["data_size"] == "1437 train, 360 test"
    assert words[:2] == ["python", "-m"]
    assert words[3:] == arguments


def test_leaves_are_all_fields_by_dotted_name():
    fields = config_file.leaves(parse().config)
    assert fields["training.batch_size"] == 64
    assert fields["models.mlp.widths"] == (128, 128)
    assert not {"training", "models"} & set(fields)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("12 GiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 12 GiB\nmore lines"),
    ],
)
def test_out_of_memory_is_one_line(error, capsys):
    def main(options):
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.guard(main, cli.Options())
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: out of memory: lower --at_once where there are several processes")
    assert err.count("\n") == 1
    assert "12 GiB" in err


def test_other_faults_of_a_program_keep_their_traceback():
    def main(options):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        cli.guard(main, cli.Options())
