"""Folders, tars and archives that were made to do harm: one line each, no hang, little memory.

The functions are called in one process whose memory is limited; the commands get the same files.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import commands, hostile, launcher

import halfway
from halfway import data, files, storage

ROOM_MB = 300
"""Megabytes that reading may take beyond what the process has before."""


def folder(**changes):
    """Makes a folder of images with something changed in it."""

    def make(path):
        hostile.write(path, hostile.tree() | changes.get("files", {}))
        for name, target in changes.get("links", {}).items():
            (path / name).symlink_to(target)
        for name, make_it in changes.get("others", {}).items():
            make_it(path / name)
        return path

    return make


def tar(*members, mode="w"):
    """Makes a tar of images with more members."""
    return lambda path: hostile.pack(path, hostile.tree(), *members, mode=mode)


def of_large_images(path):
    return hostile.write(path, {name: hostile.large_png(9400, 9400) for name in hostile.tree()})


def to_a_sibling(path):
    (path.parent / "beside" / "dog").mkdir(parents=True, exist_ok=True)
    return folder(links={"train/dog": "../../beside/dog"})(path)


IMAGE = "train/cat/x.png"
OUT, CIRCLE = "a link out of it or to nowhere: 1, e.g. train/dog", "a link in a circle: 1, e.g. "
IN_PLACE = f"in the place of an image: 1, e.g. {IMAGE}"
LIMIT = "GB of memory, the limit is "
FOLDERS = {
    "link out": (to_a_sibling, OUT),
    "link to nowhere": (folder(links={"train/dog": "cow"}), OUT),
    "link to the root of the disk": (folder(links={"train/dog": "/etc"}), OUT),
    "link of an image out": (folder(links={IMAGE: "/etc/passwd"}), f"nowhere: 1, e.g. {IMAGE}"),
    "link to its own folder": (folder(links={"train/dog": "."}), CIRCLE),
    "link to the root": (folder(links={"train/cat/dog": "../.."}), CIRCLE),
    "link to itself": (folder(links={"train/dog": "dog"}), OUT),
    "FIFO": (folder(others={IMAGE: hostile.make_fifo}), f"a FIFO {IN_PLACE}"),
    "socket": (folder(others={IMAGE: hostile.make_socket}), f"a socket {IN_PLACE}"),
    "link to a device": (folder(links={IMAGE: "/dev/zero"}), f"nowhere: 1, e.g. {IMAGE}"),
    "a terabyte": (folder(others={IMAGE: lambda path: hostile.make_sparse(path, 10**12)}), LIMIT),
    "EPS": (folder(files={IMAGE: hostile.EPS}), f"{IMAGE} cannot be read (by its content neither"),
    "one of 89 megapixels": (folder(files={IMAGE: hostile.large_png(9400, 9400)}), "several sizes"),
    "all of 89 megapixels": (of_large_images, "would take 5.3 GB of memory, the limit is 4 GB"),
    "4000 megapixels": (folder(files={IMAGE: hostile.large_png(63_000, 63_000)}), "megapixels"),
    "class of control letters": (folder(files={"train/\x1b[2Jx/1.png": hostile.png()}), "printed"),
}
TARS = {
    "link out": (tar(hostile.link("train/dog", "../../elsewhere")), OUT),
    "link to nowhere": (tar(hostile.link("train/dog", "cow")), OUT),
    "link to the root of the disk": (tar(hostile.link("train/dog", "/etc")), OUT),
    "hard link out": (tar(hostile.link("train/dog", "../x", tarfile.LNKTYPE)), OUT),
    "link to itself": (tar(hostile.link("train/dog", "dog")), CIRCLE),
    "links to each other": (
        tar(hostile.link("train/dog", "cow"), hostile.link("train/cow", "dog")),
        "a link in a circle: 2, e.g. train/cow",
    ),
    "link to the root": (tar(hostile.link("train/cat/dog", "../..")), CIRCLE),
    "name out": (tar(hostile.member("../train/cat/9.png", hostile.png())), "leads outside"),
    "a name twice": (tar(hostile.member("train/cat/1.png", hostile.png(9))), "twice"),
    "file in a file": (tar(hostile.member("train/cat/1.png/2.png", b"?")), "and yet"),
    "FIFO": (tar(hostile.member(IMAGE, type=tarfile.FIFOTYPE)), f"a FIFO {IN_PLACE}"),
    "device": (tar(hostile.member(IMAGE, type=tarfile.CHRTYPE)), f"a device {IN_PLACE}"),
    "EPS": (tar(hostile.member(IMAGE, hostile.EPS)), f"{IMAGE} cannot be read (by its content"),
    "leads back": (hostile.negative_tar, "damaged"),
    "a header of 3 GB": (lambda path: hostile.long_name_tar(path, 3 * 10**9), "3,000,000,000"),
    "an image of 8 GB": (lambda path: hostile.declared_tar(path, 8 * 10**9), LIMIT),
    "an image of 3 GB that ends": (lambda path: hostile.declared_tar(path, 3 * 10**9), "ends with"),
    "FIFO as tar": (hostile.make_fifo, "is a FIFO: a regular file is needed"),
    "socket as tar": (hostile.make_socket, "is a socket: a regular file is needed"),
    "sparse file as tar": (lambda path: hostile.make_sparse(path, 10**12), "is empty"),
    "zeros after the end": (
        lambda path: hostile.packed_zeros(path, 65 << 20, end=True),
        "for long",
    ),
    "bomb": (lambda path: hostile.packed_zeros(path, 4 << 20), "the limit is 0.002 GB"),
}
LABELS = {"labels.npy": hostile.npy((1,), bytes(4), "<i4")}
ARCHIVES = {
    "FIFO": (hostile.make_fifo, "is a FIFO: a regular file is needed"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "sparse file": (lambda path: hostile.make_sparse(path, 10**12), "zip"),
    "a terabyte": (
        lambda path: hostile.npz(path, {"images.npy": hostile.npy((10**6, 10**6))} | LABELS),
        "images.npy declares float32 of shape (1000000, 1000000), 4,000,000,000,000 bytes",
    ),
    "a negative shape": (
        lambda path: hostile.npz(path, {"images.npy": hostile.npy((-1, -1), bytes(4))} | LABELS),
        "images.npy",
    ),
    "a shape that overflows": (
        lambda path: hostile.npz(path, {"images.npy": hostile.npy((2**33, 2**31))} | LABELS),
        "images.npy declares",
    ),
    "brackets": (
        lambda path: hostile.npz(
            path, {"images.npy": b"\x93NUMPY\x01\x00" + (5000).to_bytes(2, "little") + b"(" * 5000}
        ),
        "images.npy is no array",
    ),
    "pickles": (
        lambda path: hostile.npz(path, {"images.npy": hostile.npy((1,), bytes(8), "|O")}),
        "never unpickled",
    ),
    "packed as NumPy never does": (
        lambda path: hostile.npz(path, LABELS, compression=14),
        "encrypted, or packed",
    ),
    "no archive": (lambda path: path.write_bytes(hostile.npy((1,), bytes(4))), "zip"),
    "bomb": (lambda path: hostile.npz_of_zeros(path, 4 << 20), "the limit is 0.002 GB"),
}
CASES = [("folder", *case) for case in FOLDERS.items()]
CASES += [("tar", *case) for case in TARS.items()]
CASES += [("npz", *case) for case in ARCHIVES.items()]
CASES = [(kind, name, make, words) for kind, name, (make, words) in CASES]
IDS = [f"{kind} {name}" for kind, name, *_ in CASES]

# Reads each of the paths that stdin names, within so much memory, and says what came of it.
CHILD = """
import json, resource, sys
from halfway import data, files
memory = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
from PIL import Image, EpsImagePlugin
def started(*_, **__):
    raise AssertionError("Ghostscript was started")
EpsImagePlugin.Ghostscript = started
resource.setrlimit(resource.RLIMIT_AS, (memory + int(sys.argv[1]) * 10**6,) * 2)
for line in sys.stdin:
    path, options = json.loads(line)
    try:
        if path.endswith(".npz"):
            files.read_npz(path, **options)
        else:
            data.load(f"folder:{path}", **options)
        said = "it was read"
    except ValueError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps(said), flush=True)
"""


def path_of(root, kind, name):
    ending = {"folder": "", "tar": ".tar", "npz": ".npz"}[kind]
    return root / f"{name.replace(' ', '_')}{ending}"


@pytest.fixture(scope="module")
def files_of(tmp_path_factory):
    """The path of each case."""
    root = tmp_path_factory.mktemp("hostile")
    for kind, name, make, _ in CASES:
        make(path_of(root, kind, name))
    yield {(kind, name): path_of(root, kind, name) for kind, name, *_ in CASES}
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def said(files_of):
    """What reading each of them said, in one process whose memory is limited."""
    lines = [
        json.dumps([str(path), {"max_gb": 0.002} if name == "bomb" else {}])
        for (_, name), path in files_of.items()
    ]
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(ROOM_MB)],
        input="\n".join(lines),
        env=os.environ | {"PYTHONPATH": str(Path(halfway.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == len(lines), result.stderr
    return dict(zip(files_of, answers, strict=True))


@pytest.mark.parametrize(("kind", "name", "make", "words"), CASES, ids=IDS)
def test_what_is_hostile_is_refused_with_one_line(kind, name, make, words, said):
    assert words in said[kind, name]
    assert "\n" not in said[kind, name]


def test_the_limit_of_memory_is_one(tmp_path):
    """What the limit of the tests above would say of a program that reads first."""
    code = CHILD.replace("files.read_npz(path, **options)", "bytearray(10**9)")
    result = subprocess.run(
        [sys.executable, "-c", code, str(ROOM_MB)],
        input=json.dumps(["x.npz", {}]),
        env=os.environ | {"PYTHONPATH": str(Path(halfway.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert json.loads(result.stdout).startswith("MemoryError"), result.stderr


# Links that are followed


@pytest.mark.quick
@pytest.mark.parametrize("pack", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("name", ["class", "image", "through a link", "beside", "hard", "hidden"])
def test_links_within_are_followed(name, pack, tmp_path):
    images, links = hostile.tree(), {}
    expected = dict(images)
    if name == "class":
        links = {"train/dog": "cat"}
        expected |= {f"train/dog/{k}.png": images[f"train/cat/{k}.png"] for k in (1, 2)}
    elif name == "through a link":
        links = {"train/dog": "cow", "train/cow": "../train/cat"}
        for label in ("cow", "dog"):
            expected |= {f"train/{label}/{k}.png": images[f"train/cat/{k}.png"] for k in (1, 2)}
    elif name == "beside":
        links = {"train/dog": "../store/dog"}
        images["store/dog/1.png"] = expected["train/dog/1.png"] = hostile.png(9)
    elif name == "hidden":
        links = {"train/dog/1.png": "../../.git/objects/abc"}
        images[".git/objects/abc"] = expected["train/dog/1.png"] = hostile.png(9)
    else:
        links = {"train/dog/1.png": "../cat/1.png"}
        expected["train/dog/1.png"] = images["train/cat/1.png"]
    if pack:
        members = [hostile.link(place, target) for place, target in links.items()]
        if name == "hard":
            members = [hostile.link("train/dog/1.png", "train/cat/1.png", tarfile.LNKTYPE)]
        path = hostile.pack(tmp_path / "linked.tar", images, *members)
    else:
        path = hostile.write(tmp_path / "linked", images)
        for place, target in links.items():
            (path / place).parent.mkdir(exist_ok=True)
            if name == "hard":
                (path / place).hardlink_to(path / "train/cat/1.png")
            else:
                (path / place).symlink_to(target)
    plain = hostile.write(tmp_path / "plain", expected)
    assert data.load(f"folder:{path}").checksum == data.load(f"folder:{plain}").checksum
    assert "dog" in data.load(f"folder:{path}").class_names


def test_what_is_skipped_is_counted(tmp_path):
    more = {"train/cat/a.webp": b"?", "train/cat/b.webp": b"?", "test/ant/notes": b"?"}
    path = hostile.write(tmp_path / "images", hostile.tree() | more | {"README.md": b"#"})
    with pytest.warns(data.DataWarning, match="skipped 2 .webp, 1 without ending in test and tr"):
        data.load(f"folder:{path}")


def test_the_limit_can_be_raised_by_what_the_line_says(tmp_path):
    path = hostile.write(tmp_path / "images", hostile.tree())
    with pytest.raises(data.DataError, match=r"limit is 1e-07 GB: .* --max_gb=1 ") as caught:
        data.load(f"folder:{path}", max_gb=1e-7)
    assert "max_gb=1 of a function" in str(caught.value)
    assert len(data.load(f"folder:{path}", max_gb=1).train.labels) == 3


# Data that TFDS has prepared


def test_prepared_data_name_no_module_and_are_regular_files(digits, tmp_path):
    assert len(digits.train.labels)
    place = next(Path(launcher.CACHE).glob("data/digits/*.*.*"))
    other = tmp_path / "mine" / "1.0.0"
    shutil.copytree(place, other)
    features = json.loads((other / "features.json").read_text())
    features["pythonClassName"] = "antigravity.Feature"
    (other / "features.json").write_text(json.dumps(features))
    with pytest.raises(data.DataError, match=r"names 'antigravity.Feature', no feature of TFDS"):
        data.load("mine", tmp_path)
    assert "antigravity" not in sys.modules
    (other / "features.json").unlink()
    hostile.make_fifo(other / "features.json")
    with pytest.raises(data.DataError, match=r"features.json is a FIFO"):
        data.load("mine", tmp_path)


# Commands that read data

NPZ = ["FIFO", "device", "folder", "a terabyte", "brackets", "bomb"]
OTHERS = [("folder", "FIFO"), ("folder", "link out"), ("folder", "EPS"), ("tar", "link to itself")]
OTHERS += [("folder", "all of 89 megapixels"), ("tar", "FIFO as tar"), ("tar", "leads back")]
READERS = {
    "evaluate": ["--model=model:load", "--data={}"],
    "transfer": ["--surrogates=model:load", "--data={}"],
    "landscape": ["--params={}", "--loss=model:load"],
    "reproduce": ["--config.dataset={}"],
    "laws": ["--config.dataset={}"],
}
TABLE = [
    (command, kind, name)
    for command in READERS
    for kind, name in [*(("npz", name) for name in NPZ), *OTHERS]
    if (command == "landscape") <= (kind == "npz")  # it takes parameters, no data
    and (command in ("reproduce", "laws")) <= (kind != "npz")
]


@pytest.mark.parametrize(("command", "kind", "name"), TABLE, ids=map(" ".join, TABLE))
def test_commands_refuse_hostile_data(command, kind, name, files_of, tmp_path):
    path = files_of[kind, name]
    given = str(path) if kind == "npz" else f"folder:{path}"
    arguments = [text.format(given) for text in READERS[command]]
    limit = ["--max_gb=0.002"] if name == "bomb" else []
    words = {"npz": ARCHIVES, "folder": FOLDERS, "tar": TARS}[kind][name][1]
    assert words in commands.call(tmp_path, command, *arguments, *limit).complaint
    assert list(tmp_path.iterdir()) == []


def test_prepare_data_refuses_a_fifo(tmp_path):
    hostile.make_fifo(tmp_path / "cifar-10-binary.tar.gz")
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        axes = 3 if "images" in name else 1
        hostile.make_fifo(tmp_path / f"{name}-idx{axes}-ubyte")
    for name in ("cifar10", "mnist"):
        result = commands.call(
            tmp_path, "prepare_data", f"--dataset={name}", "--source=.", "--data_dir=there"
        )
        assert "lacks" in result.complaint


@pytest.mark.quick
def test_arrays_that_are_well_are_read_as_numpy_reads_them(tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b/c": np.asfortranarray(np.ones((2, 3), "f2")),
        "empty": np.zeros((0, 3), np.int32),
        "scalar": np.float32(3),
        "text": np.array(["ä", "b"]),
        "fields": np.zeros(2, [("x", "f4"), ("y", "i8")]),
    }
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "x.npz", **arrays)
        read = storage.read_arrays(tmp_path / "x.npz")
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == array.dtype
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-100])
    with pytest.raises(zipfile.BadZipFile):
        files.read_npz(tmp_path / "x.npz")
