"""The programs of runs, landscapes, transfer and evaluations: those that a real run calls."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import attack_names, commands, launcher, run_folder, tiny_run

from halfway import attacks, populations, sharding
from halfway.lab import studies
from halfway.lab.ahead import everything, programs, recording, slices
from halfway.lab.config.settings import LandscapeSizes
from halfway.lab.measurements import weight_space
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.devices import Hardware
from halfway.lab.study.conditions import condition
from halfway.lab.user_models import loading

SIZES = LandscapeSizes(
    num_pairs=2, num_points=3, grid=3, num_examples=20, num_steps=3, num_samples=2
)
NUM_CLASSES = 10


@pytest.fixture(scope="module")
def hardware():
    return Hardware("two", tuple(jax.devices()[:2]), None)


class Watcher:
    """A recorder that compiles nothing and lets programs run: what a real run calls."""

    def __init__(self):
        self.names = {}

    def __call__(self, call):
        _, text, _ = recording._traced(call)
        self.names[recording.digest_of(call.name, text)] = recording._label(call)
        return call.program(*call.args, **call.kwargs)


def _uncompiled(monkeypatch):
    """Rows without compiling, which is tested on its own."""

    def row(self, call, traced, shapes, *, mapped):
        return recording.Row(self.stage, recording._label(call), "", self.hardware, self.dtype)

    monkeypatch.setattr(recording.Recorder, "_compiled", row)


def test_a_recorded_run_has_the_programs_of_a_real_one(monkeypatch, hardware, pool):
    _uncompiled(monkeypatch)
    config, chosen = tiny_run.config(), studies.choose(["G1", "G5", "T1"])
    layout = sharding.Layout(sharding.make_mesh(2))
    with sharding.use(layout):
        record = programs.recorder(hardware)
        programs.of_run(record, config, chosen, pool)
        watcher = Watcher()
        with sharding.taken_by(watcher):
            wanted = pipeline.conditions(chosen, config, pool)
            trained = {each: populations.train(each, pool) for each in wanted}
            for request in pipeline.requests(chosen, config):
                parts = [trained[each] for each in request.conditions]
                pipeline.measured(request, parts, pool, config)
    assert record.unfinished == {}
    assert set(record.rows) == set(watcher.names) and len(watcher.names) > 7


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3, 5, 6, 7, 12, 17])
def test_every_study_is_measured_on_any_number_of_pairs(monkeypatch, hardware, pool, number):
    """The host's part of every measurement: nothing of it may need a power of two."""
    _uncompiled(monkeypatch)
    config = tiny_run.digits("tiny", num_pairs=number, architectures=("mlp", "cnn"))
    chosen = studies.choose(["all"])
    assert not studies.unsuitable(chosen, config)
    with sharding.use(sharding.Layout(sharding.make_mesh(2))):
        record = programs.recorder(hardware)
        programs.of_run(record, config, chosen, pool)
    assert record.unfinished == {}


def test_landscapes_have_the_programs_of_a_real_page(monkeypatch, hardware, pool):
    _uncompiled(monkeypatch)
    trained = condition(tiny_run.config(), "mlp")
    with sharding.use(sharding.Layout(sharding.make_mesh(2))):
        record = programs.recorder(hardware)
        programs.of_landscapes(record, trained, pool, SIZES)
        watcher = Watcher()
        with sharding.taken_by(watcher):
            population = populations.train(trained, pool)
            weight_space.measure(population, pool, jax.random.key(0), SIZES)
    assert record.unfinished == {}
    # Where a plane lies is a constant of programs: digests differ, names do not.
    names = sorted(row.program for row in record.rows.values())
    assert names == sorted(watcher.names.values()) and len(names) > 12


def linear(x):
    return x.reshape(len(x), -1) @ jnp.linspace(-1, 1, 64 * NUM_CLASSES).reshape(64, NUM_CLASSES)


def test_an_evaluation_goes_through_every_stage_of_every_attack(monkeypatch, hardware, pool):
    _uncompiled(monkeypatch)
    record = programs.recorder(hardware, modulus=1)
    fns = loading.named_attacks(["pgd", "auto_attack"])
    options = {"threats": [attacks.linf(0.1)], "attacks": fns, "batch_size": 8}
    images = np.asarray(pool.images[:16], np.float32)
    programs.of_evaluation(record, linear, images, **options)
    names = [row.program for row in record.rows.values()]
    stages = ["attack apgd_ce", "attack apgd_t", "attack fab_t", "attack square"]
    expected = ["diagnosed pgd", "look", "attacked pgd", "clean", *stages, "nearest linf"]
    assert record.unfinished == {} and set(names) == set(expected)


def test_transfer_has_a_program_for_each_attack_and_kind(monkeypatch, hardware, pool):
    _uncompiled(monkeypatch)
    with sharding.use(sharding.Layout(sharding.make_mesh(2))):
        record = programs.recorder(hardware)
        programs.of_transfer(
            record,
            {"a": linear},
            {"a": linear, "b": lambda x: -linear(x)},
            x=pool.images[:8],
            labels=pool.labels[:8],
            attack_fns=loading.choose_attacks(["fgsm", "pgd"], None),
            budgets=[0.1],
        )
    names = [row.program for row in record.rows.values()]
    assert record.unfinished == {}
    assert sorted(names)[-2:] == ["perturb fgsm margin", "perturb pgd margin"]


def test_what_runs_long_gets_all_of_a_tpu_compilers_time(monkeypatch, hardware, pool):
    _uncompiled(monkeypatch)
    told, jit_fn = {}, jax.jit

    def listening(fn, **options):
        told[getattr(fn, "__name__", "")] = options.get("compiler_options")
        return jit_fn(fn, **options)

    monkeypatch.setattr(jax, "jit", listening)
    monkeypatch.setattr(sharding, "backend", lambda: "tpu")
    images, labels = np.asarray(pool.images[:16], np.float32), pool.labels[:16]
    threats, names = [attacks.linf(0.1)], ["pgd", "auto_attack"]
    # A layout of its own: programs of another are not made again.
    with sharding.use(sharding.Layout(sharding.make_mesh(2), at_once=5)):
        record = programs.recorder(hardware, modulus=1)
        programs.of_run(record, tiny_run.config(), studies.choose(["G1", "T1"]), pool)
        fns = loading.choose_attacks(["pgd"], None)
        models = {"a": linear}
        data = {"x": images, "labels": labels, "attack_fns": fns, "budgets": [0.1]}
        programs.of_transfer(record, models, models, **data)
        fns = loading.named_attacks(names)
        programs.of_evaluation(record, linear, images, threats=threats, attacks=fns, batch_size=8)
    hot = {"_advance_program", "_perturb_program", "_attacked", "_attack", "_nearest"}
    brief = {"_draw_program", "_init_program", "_start_program", "_look_program", "_over_members"}
    assert {name for name in hot | brief if told[name] is None} == hot


def test_a_host_that_cannot_go_on_is_said(hardware, pool, monkeypatch):
    _uncompiled(monkeypatch)

    def stops(*arguments):
        raise LookupError("no success\nto choose from")

    monkeypatch.setattr(pipeline, "measured", stops)
    with sharding.use(sharding.Layout(sharding.make_mesh(2))):
        record = programs.recorder(hardware)
        programs.of_run(record, tiny_run.config(), studies.choose(["G1"]), pool)
    assert record.unfinished == {"learning": "LookupError: no success to choose from"}


def test_an_attack_that_fails_is_named_and_hides_no_other(hardware, monkeypatch):
    _uncompiled(monkeypatch)
    record = programs.recorder(hardware)
    images, labels = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, int)
    for name, options in (("fgsm", {"threat": 0.1}), ("ddn", {}), ("fmn", {"norm": "l9"})):
        attack = functools.partial(getattr(attacks, name), linear, **options)
        programs.of_attack(record, attack, jax.random.key(0), images, labels)
    assert set(record.unfinished) == {"attack fgsm", "attack fmn"}
    assert "norm must be one of linf, l2, l1, got 'l9'" in record.unfinished["attack fmn"]
    assert [(row.stage, row.program) for row in record.rows.values()] == [("attack", "ddn")]


@pytest.mark.quick
@pytest.mark.parametrize(
    "name", ["draw", "init", "start", "advance", "look probe", "over_members f"]
)
def test_what_to_lower_are_fields_that_there_are(name):
    words = programs.lower_of_run(name)
    for field in words.replace(",", " ").replace(" or ", " ").split():
        if field.startswith("config."):
            value = tiny_run.config()
            for part in field.split(".")[1:]:
                value = getattr(value, part)
    assert "config." in words


# The flag


def _with_cpus(monkeypatch):
    devices = tuple(jax.devices()[:2])
    choose = lambda name: name and Hardware(name, devices, 10**9)  # noqa: E731
    monkeypatch.setattr(slices, "choose", choose)


def test_a_dry_run_of_a_run_on_a_slice(tmp_path, monkeypatch):
    _with_cpus(monkeypatch)
    flags = ("--workdir=run", "--dry_run", "--topology=v5e:2x2")
    result = commands.call(tmp_path, "reproduce", *run_folder.G1, *flags)
    assert result.code == 0, result.err
    assert result.out.startswith("6 programs for v5e:2x2, mesh member:2,data:1, 1 GB a device: 6 ")
    assert "train linear  advance linear" in result.out
    assert not any(tmp_path.iterdir())


def test_everything_goes_through_every_part(tmp_path, monkeypatch):
    _with_cpus(monkeypatch)
    _uncompiled(monkeypatch)
    monkeypatch.setattr(loading, "attack_names", lambda: ["fgsm", "mi_fgsm", "pgd"])
    monkeypatch.setattr(everything, "WITHOUT_THREAT", {"ddn": ({},), "fmn": ({"norm": "l1"},)})
    flags = ("--topologies=one,two", "--only=G1", "--markdown=table.md", "--out=rows.json")
    result = commands.call(tmp_path, "compile_ahead", *flags)
    assert result.code == 0, result.err
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["hardware"] for row in rows} == {"one", "two"}
    rounded = [row for row in rows if row["dtype"] == "bfloat16"]
    assert rounded and {row["program"] for row in rounded} <= {"advance", "start", "init", "draw"}
    stages = {row["stage"] for row in rows}
    kinds = {f"train {name}" for name in everything.MODELS}
    assert stages >= {"landscapes", "transfer", "evaluate", *kinds}
    attacked = {row["program"] for row in rows if row["stage"] == "attack"}
    assert attacked == {"ddn", "fmn", "universal", "svre"}
    table = (tmp_path / "table.md").read_text()
    assert "| one float32 | one bfloat16 | two float32 | two bfloat16 |" in table
    assert all(f"| {stage} |" in table for stage in stages)


@pytest.mark.quick
def test_no_attack_is_left_out():
    known = attack_names.taking("x", "labels", "key")
    compiled = {*everything.WITHOUT_THREAT, *loading.attack_names(), "universal", "svre"}
    assert known - {"auto_attack_steps"} == compiled  # which is `auto_attack`, by chunks


def test_what_fails_without_a_reason_ends_with_a_mistake(tmp_path, monkeypatch):
    _with_cpus(monkeypatch)

    def row(self, call, traced, shapes, *, mapped):
        return recording.Row(self.stage, "advance", "mlp", "one", "float32", problem="no such op")

    monkeypatch.setattr(recording.Recorder, "_compiled", row)
    flags = ("--topologies=one", "--only=G1", "--parts=studies")
    result = commands.call(tmp_path, "compile_ahead", *flags)
    assert result.code == 2 and "advance mlp: no such op" in result.err
    monkeypatch.setattr(everything, "REASONS", {"advance": "it is known"})
    assert commands.call(tmp_path, "compile_ahead", *flags).code == 0


MISTAKES = [
    ("reproduce", ("--topology=v5e:2x2",), "--topology needs --dry_run"),
    *(
        (name, ("--dry_run",), "--topology=v5e:4x4")
        for name in ("transfer", "evaluate", "landscape")
    ),
    ("compile_ahead", ("--parts=attacks,cellar",), "got cellar"),
]


@pytest.mark.quick
@pytest.mark.parametrize(("name", "flags", "words"), MISTAKES)
def test_mistakes(tmp_path, name, flags, words):
    assert words in commands.call(tmp_path, name, *flags).complaint


@pytest.mark.quick
def test_without_libtpu_a_run_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(slices.importlib.util, "find_spec", lambda name: None)
    flags = (*run_folder.G1, "--dry_run", "--topology=v5e:2x2")
    assert "halfway[tpu]" in commands.call(tmp_path, "reproduce", *flags).complaint


# With the compiler for TPUs


@pytest.mark.slow
def test_a_run_compiles_for_tpus(tmp_path):
    pytest.importorskip("libtpu", reason="the extra tpu is not installed")
    done = launcher.run(
        tmp_path, "--config=digits:tiny", "--dry_run", "--topology=v5e:2x2", "--mesh=data:4"
    )
    assert done.code == 0, done.err
    assert "6 compile and fit, 0 do not" in done.out and "all-reduce" in done.out


@pytest.mark.slow
def test_an_unknown_slice_names_those_of_the_library(tmp_path):
    pytest.importorskip("libtpu", reason="the extra tpu is not installed")
    done = launcher.run(tmp_path, "--config=digits:tiny", "--dry_run", "--topology=v9:2x2")
    assert done.code == 2 and "it knows" in done.err and "v5e:4x4" in done.err


@pytest.mark.quick
def test_reasons_are_of_known_names_and_models_of_known_kinds():
    assert all(isinstance(reason, str) and reason for reason in everything.REASONS.values())
    assert set(everything.MODELS) == {"mlp", "cnn", "residual", "transformer"}
