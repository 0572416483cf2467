"""What a run stores, damaged or exchanged: made again or refused, never read as something else."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from support import commands, linear_population, run_folder
from support.damage import FAULTS, flip

from halfway import populations, storage
from halfway.lab.commands import landscape
from halfway.lab.config.user import UserError
from halfway.lab.publication import result
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.checkpoints import Keeper
from halfway.lab.runtime.runs import Run
from halfway.lab.user_models import loading, stored
from halfway.lab.user_models.loading import Examples

# Orbax's background tasks are left behind by a restore that fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
NUM_FLIPS = 400


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody disturbed."""
    return run_folder.make(tmp_path_factory.mktemp("undisturbed"))[0]


@pytest.fixture(scope="module")
def other(tmp_path_factory, undisturbed):
    """A run of another seed, with files of the same names but for the conditions."""
    folder = tmp_path_factory.mktemp("other")
    flags = (*run_folder.G1, "--workdir=run", "--config.seed=1")
    assert commands.call(folder, "reproduce", *flags).code == 0
    return folder / "run"


def measurements(run):
    """A digest of each number and label that was measured."""
    asked = pipeline.requests(pipeline._earlier(run), run.config)
    run.records(asked)
    return run.measurements_digest(asked)


# Bits

READ = {
    "config.json": lambda run: (run.identity, run.num_devices),
    "run.json": lambda run: run.notes(),
    "verdicts.json": lambda run: run.verdicts(),
    "measurements/*.npz": measurements,
}


@pytest.mark.parametrize("pattern", READ)
def test_a_flipped_bit_of_a_run_never_becomes_another_value(undisturbed, tmp_path, pattern):
    work = shutil.copytree(undisturbed, tmp_path / "run")
    expected = READ[pattern](Run.open(work))
    rng = np.random.default_rng(0)
    path, num_refused = sorted(work.glob(pattern))[0], 0
    whole = path.read_bytes()
    for _ in range(NUM_FLIPS):
        path.write_bytes(flip(whole, rng))
        try:
            value = READ[pattern](Run.open(work))
        except UserError:
            num_refused += 1
        else:
            assert repr(value) == repr(expected)
    # Spaces, and dates within an archive, say nothing.
    assert num_refused > 0.7 * NUM_FLIPS


def check_flips(folder, read, num_flips):
    """Flips bits of each file of a folder; what is read is as it was, or None."""
    expected = storage.tree_digest(read())
    rng = np.random.default_rng(0)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for _ in range(num_flips if whole else 0):
            path.write_bytes(flip(whole, rng))
            tree = read()
            assert tree is None or storage.tree_digest(tree) == expected, path
        path.write_bytes(whole)
    assert storage.tree_digest(read()) == expected


STATE = populations.TrainState({"w": jnp.ones((3, 2))}, (), jnp.ones((3, 2), int))
PROGRESS = populations.Progress(1, populations.begin_walk(STATE), ())
FLIPS = [pytest.param(2), pytest.param(NUM_FLIPS, marks=pytest.mark.slow)]


@pytest.mark.parametrize("num_flips", FLIPS)
def test_a_flipped_bit_of_a_population_never_becomes_another_value(
    undisturbed, tmp_path, num_flips
):
    work = shutil.copytree(undisturbed, tmp_path / "run")
    run = Run.open(work)
    (condition, *_) = run.conditions().values()

    def read():
        population = run.load_population(condition)
        return None if population is None else populations.population._to_tree(population)

    check_flips(work / "populations" / condition.id, read, num_flips)


@pytest.mark.parametrize("num_flips", FLIPS)
def test_a_flipped_bit_of_a_checkpoint_never_becomes_another_value(tmp_path, num_flips):
    condition = linear_population.CONDITION
    keeper = Keeper(tmp_path, condition, origin={"data": "0"}, seconds_between=0.0)
    keeper(PROGRESS)
    check_flips(tmp_path / condition.id, keeper.find, num_flips)


EXAMPLES = Examples(np.zeros((2, 3), np.float32), np.zeros(2, np.int32), "zeros")
LOGITS = np.arange(4.0).reshape(1, 2, 2)


@pytest.mark.quick
def test_a_flipped_bit_of_an_attacks_outcomes_never_becomes_another_value(tmp_path):
    facts = stored.identity({"attack": "pgd", "budget": 0.1}, EXAMPLES)
    path = tmp_path / "pgd_0.1.npz"
    arrays = {"fooled": np.arange(6) % 2 == 0, "norm": np.linspace(0, 1, 6)}
    stored.write(path, arrays, facts, LOGITS, share=0.5)

    def read():
        return stored.read(path, facts, LOGITS, folder=tmp_path, what="grid")

    expected, whole, rng = repr(read()), path.read_bytes(), np.random.default_rng(0)
    for _ in range(NUM_FLIPS):
        path.write_bytes(flip(whole, rng))
        try:
            assert repr(read()) == expected
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.quick
def test_a_flipped_bit_of_a_result_never_becomes_another_value(undisturbed, tmp_path):
    path = result.write(result.of_run(Run.open(undisturbed), exploratory=True), tmp_path)
    expected, whole, rng = repr(result.read(path)), path.read_bytes(), np.random.default_rng(0)
    for _ in range(NUM_FLIPS):
        path.write_bytes(flip(whole, rng))
        try:
            assert repr(result.read(path)) == expected
        except UserError as error:
            assert path.name in str(error)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="it is the result"):
        result.read(path.rename(tmp_path / "mnist.json"))


# Commands

STORED = ("config.json", "run.json", "verdicts.json", "records.parquet", "measurements/*.npz")
COMMANDS = {
    "reproduce": (*run_folder.G1, "--workdir=run"),
    "decide": ("--workdir=run",),
    "compare": ("run", "run"),
}


def assert_repaired_or_refused(folder, command, expected):
    """Calls a command on a damaged run: the same verdicts, or one line and nothing changed."""
    work = folder / "run"
    before = (work / "verdicts.json").read_bytes()
    done = commands.call(folder, command, *COMMANDS[command], positional=command == "compare")
    if done.code:
        assert work.name in done.complaint
        assert (work / "verdicts.json").read_bytes() == before
    elif command != "compare":
        assert run_folder.read(work, "verdicts.json") == expected
        assert Run.open(work).verdicts() == expected
    return done


REFUSED = {
    "reproduce": {"config.json", "run.json"},
    "decide": {"config.json", "run.json", "measurements/*.npz"},
    "compare": {"config.json", "run.json", "verdicts.json"},
}
"""Files without which a command cannot go on; it makes the others anew, or does not read them."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_made_again_or_refused(
    undisturbed, tmp_path, without_pages, command, fault
):
    expected = run_folder.read(undisturbed, "verdicts.json")
    for number, pattern in enumerate(STORED):
        work = shutil.copytree(undisturbed, tmp_path / str(number) / "run")
        path = sorted(work.glob(pattern))[0]
        path.write_bytes(FAULTS[fault](path.read_bytes()))
        done = assert_repaired_or_refused(work.parent, command, expected)
        assert (done.code == 2) == (pattern in REFUSED[command]), (pattern, done)
        if done.code == 0 and command != "compare":
            run_folder.assert_same(work, undisturbed)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_file_of_another_run_is_not_taken(undisturbed, other, tmp_path, without_pages, command):
    expected = run_folder.read(undisturbed, "verdicts.json")
    assert expected != run_folder.read(other, "verdicts.json")
    for number, pattern in enumerate(STORED):
        work = shutil.copytree(undisturbed, tmp_path / str(number) / "run")
        path, foreign = (sorted(folder.glob(pattern))[0] for folder in (work, other))
        shutil.copy(foreign, path)
        done = assert_repaired_or_refused(work.parent, command, expected)
        assert (done.code == 2) == (pattern in REFUSED[command]), (pattern, done)


def test_two_measurements_of_a_run_that_were_exchanged_are_made_again(
    undisturbed, tmp_path, without_pages
):
    work = shutil.copytree(undisturbed, tmp_path / "run")
    first, second = sorted((work / "measurements").iterdir())
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), contents, strict=True):
        path.write_bytes(content)
    expected = run_folder.read(undisturbed, "verdicts.json")
    assert assert_repaired_or_refused(tmp_path, "decide", expected).code == 2
    done = assert_repaired_or_refused(tmp_path, "reproduce", expected)
    assert done.err.count("is another measurement): it is measured again") == 2
    run_folder.assert_same(work, undisturbed)


def exchange(first, second, *names):
    for name in names:
        spare = first / "spare"
        (first / name).rename(spare)
        (second / name).rename(first / name)
        spare.rename(second / name)


@pytest.mark.parametrize(
    "names",
    [("arrays",), ("digest.json",), ("arrays", "digest.json"), ("condition.json",), (".",)],
    ids="+".join,
)
def test_parts_of_two_populations_that_were_exchanged_are_not_taken(undisturbed, tmp_path, names):
    work = shutil.copytree(undisturbed, tmp_path / "run")
    first, second = sorted((work / "populations").iterdir())
    known = Run.open(undisturbed).conditions()
    if names == (".",):
        first.rename(work / "spare")
        second.rename(first)
        (work / "spare").rename(second)
    else:
        exchange(first, second, *names)
    run = Run.open(work)
    for condition in known.values():
        assert run.load_population(condition) is None
        with pytest.raises(UserError, match=r"cannot be read .*: run reproduce again"):
            run.read_population(condition)
    with pytest.raises(UserError, match="reproduce again"):
        loading.load_models("surrogates", f"run:{work}")
    if "condition.json" in names or "." in names:
        with pytest.raises(UserError, match="cannot be used"):
            run.conditions()


def test_a_population_of_other_data_or_another_version_is_not_taken(
    undisturbed, tmp_path, monkeypatch
):
    run = Run.open(shutil.copytree(undisturbed, tmp_path / "run"))
    (condition, *_) = run.conditions().values()
    assert run.read_population(condition) is not None
    with monkeypatch.context() as patched:
        patched.setattr(run, "data_checksum", "of other images")
        with pytest.raises(UserError, match="was made from"):
            run.read_population(condition)
    monkeypatch.setattr("halfway.__version__", "9.9")
    with pytest.raises(UserError, match="was made from"):
        run.read_population(condition)


def test_a_checkpoint_of_other_data_is_not_taken(tmp_path):
    condition = linear_population.CONDITION
    keepers = [
        Keeper(tmp_path, condition, origin={"data": data}, seconds_between=0.0) for data in "ab"
    ]
    keepers[0](PROGRESS)
    assert keepers[0].find() is not None and keepers[1].find() is None


@pytest.mark.quick
def test_the_outcomes_of_another_attack_or_budget_are_not_taken(tmp_path):
    places = [("pgd", 0.1), ("pgd", 0.2), ("fgsm", 0.1)]
    for attack, budget in places:
        facts = stored.identity({"attack": attack, "budget": budget}, EXAMPLES)
        stored.write(tmp_path / f"{attack}_{budget}.npz", {"x": LOGITS}, facts, LOGITS)
    facts = stored.identity({"attack": "pgd", "budget": 0.1}, EXAMPLES)
    for name, differs in (("pgd_0.2", "budget"), ("fgsm_0.1", "attack")):
        with pytest.raises(UserError, match=rf"holds another grid \({differs} differ\)"):
            stored.read(tmp_path / f"{name}.npz", facts, LOGITS, folder=tmp_path, what="grid")


# Files of an older version


def unsealed(path):
    """Writes a file as versions before its digest wrote it."""
    fields = json.loads(path.read_text())
    del fields["sha256"]
    fields.pop("written", None)
    storage.write_json(path, fields)


def test_a_run_without_digests_is_checked_and_sealed_by_reproduce(
    undisturbed, tmp_path, without_pages
):
    work = shutil.copytree(undisturbed, tmp_path / "run")
    for name in ("config.json", "run.json"):
        unsealed(work / name)
    for command in ("decide", "compare"):
        arguments = COMMANDS[command]
        done = commands.call(tmp_path, command, *arguments, positional=command == "compare")
        assert "carries no digest" in done.complaint and "run reproduce again" in done.complaint
    assert commands.call(tmp_path, "reproduce", *COMMANDS["reproduce"]).code == 0
    run_folder.assert_same(work, undisturbed)
    assert commands.call(tmp_path, "decide", *COMMANDS["decide"]).code == 0
    # Taken out by a flipped bit, the digest is no sign of an older version.
    for name in ("config.json", "run.json"):
        content = (work / name).read_text()
        (work / name).write_text(content.replace('"sha256"', '"sha257"'))
        done = commands.call(tmp_path, "reproduce", *COMMANDS["reproduce"])
        assert f"{name} cannot be read (sha257" in done.complaint
        (work / name).write_text(content)


def test_a_population_without_an_origin_is_taken(undisturbed, tmp_path):
    run = Run.open(shutil.copytree(undisturbed, tmp_path / "run"))
    (condition, *_) = run.conditions().values()
    population = run.read_population(condition)
    populations.save(run.path / "populations" / condition.id, population)
    assert run.read_population(condition) is not None


# Wrong types, and archives that are none


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("config.json", "num_devices", "2"),
        ("config.json", "num_devices", 0),
        ("config.json", "name", 3),
        ("config.json", "config", []),
        ("config.json", "version", None),
        ("run.json", "hypotheses", "G1"),
        ("run.json", "hypotheses", [3]),
        ("run.json", "seconds", []),
        ("run.json", "seconds", {"training": "long"}),
        ("run.json", "environment", "here"),
        ("run.json", "unsuitable", {"G1": None}),
        ("run.json", "written", 3),
    ],
)
@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_wrong_type_is_one_line(undisturbed, tmp_path, name, field, value, is_sealed):
    work = shutil.copytree(undisturbed, tmp_path / "run")
    fields = json.loads((work / name).read_text()) | {field: value}
    del fields["sha256"]
    if is_sealed:
        identity = None if name == "config.json" else Run.open(work).identity
        storage.write_sealed_json(work / name, fields, identity)
    else:
        storage.write_json(work / name, fields)
    for command, arguments in COMMANDS.items():
        done = commands.call(tmp_path, command, *arguments, positional=command == "compare")
        assert f"{name} cannot be read ({field}" in done.complaint


@pytest.mark.quick
@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b'"x"', b"[" * 10**5, b"\xff"])
@pytest.mark.parametrize("name", ["config.json", "run.json", "verdicts.json"])
def test_json_that_is_none_of_ours_is_one_line(undisturbed, tmp_path, name, content):
    work = shutil.copytree(undisturbed, tmp_path / "run")
    (work / name).write_bytes(content)
    assert name in commands.call(tmp_path, "compare", "run", "run", positional=True).complaint


def npy(shape, content=b"", kind="<f4"):
    """A .npy file whose header says what it likes."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def archive(**entries):
    """Returns a function that writes an archive with the bytes of each .npy file in it."""

    def write(path):
        storage.write_whole(path, b"")
        with storage.zipfile.ZipFile(path, "w") as file:
            for name, content in entries.items():
                file.writestr(f"{name.replace('__', '/')}.npy", content)

    return write


ONE = npy("(1,)", np.float32(1).tobytes())
HOSTILE = {
    "a name within a name": (archive(w=ONE, w__k=ONE), "w is both a tensor and a part of w/k"),
    "the other way round": (archive(w__k=ONE, w=ONE), "w is both a tensor and a part of others"),
    "an empty part": (archive(w____k=ONE), "has an empty part"),
    "an empty tensor": (archive(w=npy("(0, 3)")), "w has the shape (0, 3), without a number"),
    "no tensor": (archive(), "holds no arrays"),
    "integers": (archive(w=npy("(1,)", bytes(4), "<i4")), "floats are needed"),
    "a shape of terabytes": (archive(w=npy(f"({10**12},)")), "shape (1000000000000,)"),
    "a shape beyond all": (archive(w=npy(f"({2**62}, {2**62})")), "and holds 0"),
    "a negative shape": (archive(w=npy("(-1,)", bytes(4))), "shape (-1,)"),
    "too few bytes": (archive(w=npy("(2,)", bytes(4))), "and holds 4"),
    "too many bytes": (archive(w=npy("(1,)", bytes(8))), "and holds 8"),
    "a shape that is none": (archive(w=npy("'x'", bytes(4))), "cannot be read as .npz"),
    "a type that is none": (archive(w=npy("(1,)", bytes(4), "<q9")), "cannot be read as .npz"),
    "Python objects": (archive(w=npy("(1,)", bytes(8), "|O")), "Python objects"),
    "no array": (archive(w=b"import os"), "cannot be read as .npz"),
    "a .npy renamed": (lambda path: path.write_bytes(ONE), "cannot be read as .npz"),
    "an empty file": (lambda path: path.write_bytes(b""), "cannot be read as .npz"),
    "a folder": (lambda path: path.mkdir(), "regular file"),
    "nothing": (lambda path: None, "No such file"),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", HOSTILE)
def test_parameters_that_are_none_are_one_line(tmp_path, name):
    write, words = HOSTILE[name]
    write(tmp_path / "a.npz")
    (tmp_path / "mine.py").write_text("def loss(params): return 0.0\n")
    done = commands.call(tmp_path, "landscape", "--params=a.npz", "--loss=mine:loss")
    assert "--params" in done.complaint and words in done.complaint
    with pytest.raises(UserError, match=r"^--data"):
        loading.load_examples(str(tmp_path / "a.npz"), None, None)


@pytest.mark.quick
def test_parameters_of_any_depth_are_read(tmp_path):
    archive(a__b__c=ONE, a__b__d=ONE, e=ONE)(tmp_path / "a.npz")
    tree = landscape.load_params(tmp_path / "a.npz")
    assert sorted(tree) == ["a", "e"] and sorted(tree["a"]["b"]) == ["c", "d"]
