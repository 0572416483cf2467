"""Arrays on disk: whole or not at all, and what was damaged is never taken for whole."""

import contextlib
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from halfway import storage

# Orbax's background tasks are left behind by a restore that fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
NAME = "facts.json"
FACTS = {"step": 3, "of": "it"}


def arrays(scale=1.0):
    rng = np.random.default_rng(0)
    return {
        "num_steps": np.int64(3),
        "walk": {
            "00000": (scale * rng.normal(size=(4, 2, 8))).astype(np.float32),
            "00001": rng.integers(0, 9, (4, 2)).astype(np.int32),
            "00002": np.array([True, False]),
        },
        "seen": {"00000": {"error": rng.uniform(size=(4, 2)).astype(np.float32)}},
    }


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "one"
    storage.save_tree(folder, arrays(), FACTS, name=NAME)
    return folder


# The digest


@pytest.mark.quick
def test_digest_tells_apart_what_differs_and_nothing_else():
    a = np.arange(6, dtype=np.int32).reshape(2, 3)
    same = [
        {"a": a},
        {"a": a.copy()},
        {"a": np.asfortranarray(a)},  # the same array, laid out in another order
        {"a": np.repeat(a, 2, 0)[::2]},
    ]
    assert len({storage.tree_digest(tree) for tree in same}) == 1
    bit = a.copy()
    bit[1, 2] ^= 1
    others = [
        {"a": bit},
        {"b": a},
        {"a": {"a": a}},
        {"a": a.reshape(3, 2)},
        {"a": a.view(np.uint32)},
        {"a": a.astype(np.int64)},
        {"a": a, "b": np.zeros(0)},
        {},
    ]
    assert len({storage.tree_digest(tree) for tree in [*same, *others]}) == 1 + len(others)
    assert storage.tree_digest({"a": a, "b": bit}) != storage.tree_digest({"a": bit, "b": a})
    assert storage.tree_digest({"a": np.float32(0.0)}) != storage.tree_digest(
        {"a": np.float32(-0.0)}
    )


# There and back


def test_what_was_saved_comes_back_bit_by_bit(original):
    tree, facts = storage.load_tree(original, name=NAME)
    assert facts == FACTS
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
    assert_equal(tree, arrays())


def test_arrays_of_devices_and_values_that_are_no_numbers_come_back(tmp_path):
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    storage.save_tree(tmp_path / "x", {"a": jnp.arange(3), "b": odd}, {}, name=NAME)
    tree, facts = storage.load_tree(tmp_path / "x", name=NAME)
    assert facts == {}
    assert tree["a"].tolist() == [0, 1, 2]
    assert tree["b"].tobytes() == odd.tobytes()


@pytest.mark.quick
def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "deep" / "x"
    storage.save_tree(folder, arrays(), FACTS, name=NAME)
    (folder / "stray").touch()
    (tmp_path / "deep" / "x.partial" / "arrays").mkdir(parents=True)  # of a process that was killed
    storage.save_tree(folder, arrays(2.0), {"step": 4}, name=NAME)
    tree, facts = storage.load_tree(folder, name=NAME)
    assert facts == {"step": 4}
    assert_equal(tree, arrays(2.0))
    assert not (folder / "stray").exists()
    assert names(tmp_path / "deep") == ["x"]


@pytest.mark.quick
def test_where_nothing_is_stored_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is stored"):
        storage.load_tree(tmp_path / "x", name=NAME)
    (tmp_path / "x").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing is stored"):
        storage.load_tree(tmp_path / "x", name=NAME)


# Damage


def load_or_none(folder):
    """What is loaded, after checking that it is what was written; None where loading raises."""
    try:
        tree, facts = storage.load_tree(folder, name=NAME)
    except Exception:  # of many kinds
        return None
    assert_equal(tree, arrays())
    return facts


def test_a_flipped_bit_is_noticed_or_without_effect(original, tmp_path):
    noticed = {}
    for number, name in enumerate(files_of(original)):
        whole = (original / name).read_bytes()
        rng = np.random.default_rng(number)
        # Anywhere in the file, and in its middle.
        places = {0, len(whole) // 2, len(whole) - 1, *rng.integers(0, max(1, len(whole)), 3)}
        for place in sorted(int(p) for p in places if whole):
            folder = shutil.copytree(original, tmp_path / f"{number}-{place}")
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(damaged)
            facts = load_or_none(folder)
            noticed.setdefault(str(name), []).append(facts is None)
            if name.name != NAME and facts is not None:
                assert facts == FACTS
    assert len(noticed) >= 5
    assert any(all(answers) for answers in noticed.values())
    assert noticed["digest.json"] == [True] * len(noticed["digest.json"])


def test_arrays_that_read_well_but_are_others_are_refused(original, tmp_path):
    # Whole and by its own checksums right, but not what the digest is of.
    other = arrays()
    other["walk"]["00000"].view(np.uint32)[1, 1, 1] ^= 1
    storage.save_tree(tmp_path / "other", other, FACTS, name=NAME)
    folder = shutil.copytree(original, tmp_path / "one")
    shutil.rmtree(folder / "arrays")
    shutil.copytree(tmp_path / "other" / "arrays", folder / "arrays")
    with pytest.raises(ValueError, match="is not what was written"):
        storage.load_tree(folder, name=NAME)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_noticed_or_without_effect(original, tmp_path, share):
    num_noticed = 0
    for number, name in enumerate(files_of(original)):
        folder = shutil.copytree(original, tmp_path / str(number))
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(share * len(whole))])
        num_noticed += load_or_none(folder) is None
    assert num_noticed >= 4  # facts, digest, metadata and data at least


def test_a_file_that_is_missing_is_noticed_or_without_effect(original, tmp_path):
    missed = set()
    for number, name in enumerate(files_of(original)):
        folder = shutil.copytree(original, tmp_path / str(number))
        (folder / name).unlink()
        if load_or_none(folder) is None:
            missed.add(str(name))
    assert missed >= {NAME, "digest.json"}
    for content in ("", "{", "[]", json.dumps({"sha256": "0" * 64})):
        folder = shutil.copytree(original, tmp_path / f"digest {len(content)}")
        (folder / "digest.json").write_text(content)
        assert load_or_none(folder) is None


# Drawn by hypothesis: written, damaged anywhere, read: the same or refused


def damages():
    """Ways to damage the bytes of a file that is not empty."""

    def change(content, place, mask):
        damaged = bytearray(content)
        damaged[place % len(content)] ^= mask
        return bytes(damaged)

    def cut(content, place, length):
        place %= len(content)
        return content[:place] + content[place + length :]

    def insert(content, place, extra):
        place %= len(content)
        return content[:place] + extra + content[place:]

    def exchange(content, first, second):
        first, second = sorted((first % len(content), second % len(content)))
        return content[second:] + content[first:second] + content[:first]

    place = st.integers(0, 10**6)
    return st.one_of(
        st.builds(lambda *a: lambda content: change(content, *a), place, st.integers(1, 255)),
        st.builds(lambda *a: lambda content: cut(content, *a), place, st.integers(1, 300)),
        st.builds(
            lambda *a: lambda content: insert(content, *a), place, st.binary(min_size=1, max_size=9)
        ),
        st.builds(lambda *a: lambda content: exchange(content, *a), place, place),
    )


def dtypes():
    return st.sampled_from(["?", "i1", "u1", "<i4", ">i8", "<f2", "<f4", ">f8", "<c8", "<U3", "S2"])


def named_arrays():
    names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
    array = npst.arrays(dtypes(), npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    return st.dictionaries(names, array, max_size=4)


def plain():
    """What JSON can hold."""
    names, numbers = st.text(max_size=4), st.floats(allow_nan=False, allow_infinity=False)
    leaves = st.none() | st.booleans() | st.integers() | numbers | names
    grown = st.recursive(
        leaves,
        lambda part: st.lists(part, max_size=3) | st.dictionaries(names, part, max_size=2),
        max_leaves=5,
    )
    return st.dictionaries(names, grown, max_size=3)


DRAWN = {"deadline": None, "derandomize": True, "database": None}


@pytest.mark.quick
@hypothesis.settings(max_examples=80, **DRAWN)
@hypothesis.given(named_arrays(), plain(), st.lists(damages(), max_size=3))
def test_arrays_that_were_damaged_are_the_same_or_refused(arrays, facts, damage):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        storage.write_arrays(path, arrays, facts)
        content = path.read_bytes()
        for change in damage:
            content = change(content) or b"x"
        path.write_bytes(content)
        try:
            again, read = storage.read_facts(path)
        except (OSError, ValueError):
            assert damage  # what was not damaged is read
            return
        assert read == facts
        assert storage.tree_digest(again) == storage.tree_digest(dict(sorted(arrays.items())))


@pytest.mark.quick
@hypothesis.settings(max_examples=80, **DRAWN)
@hypothesis.given(plain(), plain(), plain(), st.lists(damages(), max_size=3))
def test_fields_that_were_damaged_are_the_same_or_refused(fields, identity, other, damage):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        storage.write_sealed_json(path, fields, identity)
        content = path.read_bytes()
        if storage.json_digest(other) != storage.json_digest(identity):
            with pytest.raises(ValueError, match="does not hold what was written"):
                storage.read_sealed_json(path, other)
        for change in damage:
            content = change(content) or b"x"
        path.write_bytes(content)
        try:
            again = storage.read_sealed_json(path, identity)
        except ValueError:
            assert damage
            return
        assert storage.json_digest(again) == storage.json_digest(fields)


@hypothesis.settings(max_examples=8, **DRAWN)
@hypothesis.given(named_arrays(), plain(), plain(), st.integers(0, 99), damages())
def test_a_tree_that_was_damaged_is_the_same_or_refused(arrays, facts, origin, number, damage):
    numbers = {
        f"{place}": a for place, a in enumerate(arrays.values()) if a.dtype.kind in "iuf" and a.size
    }
    numbers = {name: a.astype(a.dtype.newbyteorder("=")) for name, a in numbers.items()}
    numbers["x"] = np.arange(3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        storage.save_tree(path, numbers, facts, name=NAME, origin=origin)
        assert storage.load_tree(path, name=NAME, origin=origin)[1] == facts
        files = [path / name for name in files_of(path) if (path / name).stat().st_size]
        place = files[number % len(files)]
        place.write_bytes(damage(place.read_bytes()))
        try:
            again, read = storage.load_tree(path, name=NAME, origin=origin)
        except Exception:  # of many kinds
            return
        assert read == facts
        assert storage.tree_digest(again) == storage.tree_digest(numbers)


@pytest.mark.quick
def test_a_tree_of_another_origin_is_refused(tmp_path):
    storage.save_tree(tmp_path / "x", arrays(), FACTS, name=NAME, origin={"data": "a"})
    storage.load_tree(tmp_path / "x", name=NAME)
    with pytest.raises(ValueError, match="was made from"):
        storage.load_tree(tmp_path / "x", name=NAME, origin={"data": "b"})
    digest = json.loads((tmp_path / "x" / "digest.json").read_text())
    for changed in ({"origin": {"data": "b"}}, {"origin": None}, {"origin": {}}):
        (tmp_path / "x" / "digest.json").write_text(json.dumps(digest | changed))
        with pytest.raises(ValueError, match="is not what was written"):
            storage.load_tree(tmp_path / "x", name=NAME, origin={"data": "b"})


@pytest.mark.quick
def test_arrays_that_would_come_back_as_others_are_not_written(tmp_path):
    for array in (jnp.ones(2, jnp.bfloat16), np.array([None]), np.zeros(2, "V3")):
        with pytest.raises(ValueError, match="which a NumPy archive cannot hold"):
            storage.write_arrays(tmp_path / "x.npz", {"w": array})
    with pytest.raises(ValueError, match="zero byte"):
        storage.write_arrays(tmp_path / "x.npz", {"a\0b": np.ones(2)})
    with pytest.raises(ValueError, match="must not be named 'sha256'"):
        storage.write_sealed_json(tmp_path / "x.json", {"sha256": 1})
    assert names(tmp_path) == []


@pytest.mark.quick
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    for read in (storage.read_json, storage.read_sealed_json, storage.read_arrays):
        with pytest.raises(ValueError, match="is a FIFO"):
            read(tmp_path / "x")


# A save that fails


@pytest.mark.parametrize("when", ["facts", "digest"])
def test_after_a_save_that_failed_the_old_one_is_whole_and_nothing_else_is_left(
    tmp_path, monkeypatch, when
):
    folder = tmp_path / "x"
    storage.save_tree(folder, arrays(), FACTS, name=NAME)
    before = {name: (folder / name).read_bytes() for name in files_of(folder)}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        *((json, "dumps", full) if when == "facts" else (storage, "tree_digest", full))
    )
    with pytest.raises(OSError, match="No space left"):
        storage.save_tree(folder, arrays(2.0), {"step": 4}, name=NAME)
    monkeypatch.undo()
    assert names(tmp_path) == ["x"]
    assert before == {name: (folder / name).read_bytes() for name in files_of(folder)}
    assert load_or_none(folder) == FACTS


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x"):
        with pytest.raises(OSError, match=r"Not a directory|File exists"):
            storage.save_tree(path, arrays(), FACTS, name=NAME)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_os_error_and_the_old_one_stays_whole(small_disk):
    folder = small_disk / "x"
    storage.save_tree(folder, arrays(), FACTS, name=NAME)
    large = {"a": np.random.default_rng(0).normal(size=(2, 50_000))}
    for path in (folder, small_disk / "y"):
        with pytest.raises(OSError, match="No space left on device") as caught:
            storage.save_tree(path, large, {"step": 4}, name=NAME)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path)
        assert names(small_disk) == ["x"]
        assert load_or_none(folder) == FACTS
    # Full to the last byte, then with room for the arrays, but not for all files of theirs.
    with (small_disk / "rest").open("wb", buffering=0) as rest:
        with contextlib.suppress(OSError):
            while True:
                rest.write(b"0" * 512)
        for free in (0, 4096):
            rest.truncate(rest.tell() - free)
            with pytest.raises(OSError, match="No space left on device") as caught:
                storage.save_tree(folder, arrays(2.0), {"step": 4}, name=NAME)
            assert caught.value.errno == errno.ENOSPC
            assert names(small_disk) == ["rest", "x"]
            assert load_or_none(folder) == FACTS
    (small_disk / "rest").unlink()
    storage.save_tree(folder, arrays(2.0), {"step": 4}, name=NAME)
    assert storage.load_tree(folder, name=NAME)[1] == {"step": 4}


def test_of_a_failed_write_nothing_is_said_late_and_of_others_everything(
    tmp_path, monkeypatch, caplog
):
    logger = logging.getLogger("asyncio")
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    @contextlib.contextmanager
    def full():
        raise ValueError("OUT_OF_RANGE: Failed writing [os_error_code='27']")
        yield

    monkeypatch.setattr(storage, "_checkpointer", full)
    for _ in range(2):
        with pytest.raises(OSError, match="too large"):
            storage.save_tree(tmp_path / "tree", {"w": np.ones(2)}, {}, name="facts.json")
    for words in ("Failed writing [os_error_code='27']", "of a program of one's own"):
        logger.error("Task exception was never retrieved", exc_info=ValueError(words))
    logger.error("slow")
    told = [record.exc_info and str(record.exc_info[1]) for record in caplog.records]
    assert told == ["of a program of one's own", None]
    assert len(logger.filters) == 1


def test_a_folder_that_is_still_written_to_is_removed_for_good(tmp_path):
    """As threads of a failed write do for a while: they make it anew after it was removed."""
    folder = tmp_path / "tree.partial"
    (folder / "0").mkdir(parents=True)
    late = 4

    def remove(path, **options):
        nonlocal late
        real(path, **options)
        if late:
            late -= 1
            (folder / "late").mkdir(parents=True)

    real = storage.shutil.rmtree
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(storage.shutil, "rmtree", remove)
        storage._remove(folder)
    assert late == 0
    assert not folder.exists()
