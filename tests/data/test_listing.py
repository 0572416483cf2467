"""Random folders and tars: what is read is what was written, or they are refused with one line."""

import io
import os
import tarfile
import tempfile
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hostile

from halfway import data
from halfway.data import images, listing

GOOD = {f"{part}/{label}": None for part in ("train", "test") for label in ("a", "b")}
IMAGES = [hostile.png(seed, (2, 2)) for seed in range(8)]
BAD = [b"", b"no image", hostile.EPS, IMAGES[0][:-20], hostile.png(0, (3, 2))]
LEAVES = ("1.png", "2.png", "x.jpg", "notes.txt", ".hidden.png", "c")
FOLDERS = (*GOOD, "train", "store", "train/c", "..", "")
TARGETS = ("../a/1.png", "a", "../../store/1.png", "/etc/passwd", "..", "nowhere", "../b", "1.png")


@st.composite
def trees(draw):
    """Names to what they stand for: bytes of a file, the target of a link, or a FIFO."""
    tree = {f"{folder}/0.png": IMAGES[index] for index, folder in enumerate(GOOD)}
    for _ in range(draw(st.integers(0, 6))):
        folder, leaf = draw(st.sampled_from(FOLDERS)), draw(st.sampled_from(LEAVES))
        content = st.sampled_from(IMAGES) | st.sampled_from(BAD)
        tree[f"{folder}/{leaf}".lstrip("/")] = draw(
            content | st.sampled_from(TARGETS) | st.just(None)
        )
    return tree


def pixels(content):
    """What Pillow makes of bytes that are a PNG of two by two grey pixels; None for others."""
    known = {
        image: np.random.default_rng(seed).integers(0, 256, (2, 2)).astype(np.uint8)
        for seed, image in enumerate(IMAGES)
    }
    return known.get(content)


def expected(root):
    """What the operating system reaches in a folder: labels and pixels by split, or None."""
    root = root.resolve()
    parts = {"train": [], "test": []}
    for part in parts:
        for label in sorted(entry.name for entry in (root / part).iterdir()):
            place = root / part / label
            if label.startswith(".") or not place.is_dir():
                continue
            for name in sorted(entry.name for entry in place.iterdir()):
                file = place / name
                if file.suffix not in (".png", ".jpg") or name.startswith("."):
                    continue
                real = file.resolve()
                if not real.is_file() or not real.is_relative_to(root):
                    return None
                image = pixels(real.read_bytes())
                if image is None:
                    return None
                parts[part].append((label, image))
    return parts


def outcome(path):
    """What was read by split, as labels and pixels; None where it was refused with one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", data.DataWarning)
            dataset = data.load(f"folder:{path}")
    except data.DataError as error:
        assert "\n" not in str(error)
        return None
    return {
        part: [
            (dataset.class_names[label], np.rint(image[..., 0] * 255).astype(np.uint8))
            for image, label in zip(*getattr(dataset, part), strict=True)
        ]
        for part in ("train", "test")
    }


def assert_same(read, wanted):
    assert {part: [label for label, _ in rows] for part, rows in read.items()} == {
        part: [label for label, _ in rows] for part, rows in wanted.items()
    }
    for part, rows in read.items():
        for (_, image), (_, other) in zip(rows, wanted[part], strict=True):
            np.testing.assert_array_equal(image, other)


def write(root, tree):
    """Writes what can be written; a name below a file or link is left out."""
    for name, what in tree.items():
        path = root / name
        if ".." in name.split("/") or path.parent.resolve() != root.resolve() / Path(name).parent:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, bytes):
                path.write_bytes(what)
            elif what is None:
                os.mkfifo(path)
            else:
                path.symlink_to(what)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue


def pack(path, tree):
    with tarfile.open(path, "w") as archive:
        for name, what in tree.items():
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                archive.addfile(info, io.BytesIO(what))
                continue
            info.type = tarfile.FIFOTYPE if what is None else tarfile.SYMTYPE
            info.linkname = what or ""
            archive.addfile(info)


@pytest.mark.quick
@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees())
def test_a_folder_is_read_as_it_was_written_or_refused(tree):
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "images"
        root.mkdir()
        write(root, tree)
        read = outcome(root)
        if read is not None:
            wanted = expected(root)
            assert wanted is not None
            assert_same(read, wanted)


@pytest.mark.quick
@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees())
def test_a_tar_is_read_as_its_folder_or_refused(tree):
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "images.tar"
        pack(path, tree)
        read = outcome(path)
        if read is not None:
            root = Path(scratch) / "images"
            root.mkdir()
            with tarfile.open(path) as archive:
                archive.extractall(root, filter="fully_trusted")
            assert_same(read, expected(root))


@pytest.mark.quick
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_tar_is_read_as_it_was_or_refused(choice):
    tree = {f"{folder}/{n}.png": IMAGES[n] for folder in GOOD for n in range(2)}
    mode = choice.draw(st.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]))
    with tempfile.TemporaryDirectory() as scratch:
        path = hostile.pack(Path(scratch) / "images.tar", tree, mode=mode)
        before = outcome(path)
        content = bytearray(path.read_bytes())
        for _ in range(choice.draw(st.integers(1, 3))):
            position = choice.draw(st.integers(0, len(content) - 1))
            content[position] ^= 1 << choice.draw(st.integers(0, 7))
        path.write_bytes(content)
        read = outcome(path)
        names = {label for rows in (read or before).values() for label, _ in rows}
        if read is not None and names == {"a", "b"} and mode != "w":
            assert_same(read, before)  # a compressed tar has a checksum of its own


@pytest.mark.quick
def test_a_flipped_bit_of_a_png_changes_nothing_or_is_refused():
    """Pillow compares no checksum of what holds the pixels."""
    content = hostile.png(0, (2, 2))
    before = images.read({"x": content}, "here", max_gb=1)
    refused = 0
    for position in range(8 * len(content)):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        try:
            read = images.read({"x": bytes(changed)}, "here", max_gb=1)
        except data.DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(read, before)
    assert refused > 4 * len(content)


@pytest.mark.quick
def test_the_trees_are_of_every_kind():
    """Both outcomes are frequent, so that the tests above say something."""
    counts = {True: 0, False: 0}

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(trees())
    def count(tree):
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "images").mkdir()
            write(Path(scratch) / "images", tree)
            counts[outcome(Path(scratch) / "images") is None] += 1

    count()
    assert min(counts.values()) >= 4, counts


@pytest.mark.quick
def test_links_are_resolved_part_by_part():
    Entry = listing.Entry
    entries = {
        PurePosixPath("train/a/1.png"): Entry("a file", 1),
        PurePosixPath("b"): Entry("a link", 0, PurePosixPath("train/a")),
        PurePosixPath("train/c"): Entry("a link", 0, PurePosixPath("../b"), PurePosixPath("train")),
    }
    reached = listing.reach(Path("x"), entries)
    assert {str(place): str(real) for place, real in reached.images.items()} == {
        f"{folder}/1.png": "train/a/1.png" for folder in ("train/a", "b", "train/c")
    }
    assert {str(place) for place in reached.folders} == {"train", "train/a", "b", "train/c"}


@pytest.mark.quick
def test_folders_with_links_to_each_other_end():
    """Thirty folders with two links each to the next are a thousand million paths."""
    entries = {PurePosixPath("f30/1.png"): listing.Entry("a file", 1)}
    for number in range(30):
        for link in "ab":
            name = PurePosixPath(f"f{number}/{link}")
            entries[name] = listing.Entry("a link", 0, PurePosixPath(f"f{number + 1}"))
    with pytest.raises(data.DataError, match="again and again"):
        listing.reach(Path("x"), entries)
