"""Folders and tars of images: the same arrays from either, and what can be wrong with them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfway import data

CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def _png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def _pixels(seed, shape=(5, 4, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def _tree(test="test"):
    """Names and contents: two classes, three images to train on, two to test."""
    places = ("train/cat/1.png", "train/cat/2.png", "train/ant/1.png", f"{test}/ant/9.png")
    tree = {name: _png(_pixels(seed)) for seed, name in enumerate(places)}
    return tree | {f"{test}/cat/3.PNG": _png(_pixels(4))}


def _write(root, tree):
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def _pack(path, tree, mode="w", folders=()):
    with tarfile.open(path, mode) as archive:
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name, content in tree.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _load(path):
    return data.load(f"folder:{path}")


def _refused(path, match):
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(data.DataError, match=match) as caught:
        _load(path)
    assert "\n" not in str(caught.value)
    assert sorted(path.parent.rglob("*")) == before


@pytest.mark.quick
def test_images_labels_and_names(tmp_path):
    dataset = _load(_write(tmp_path / "images", _tree()))
    assert dataset.class_names == ("ant", "cat")
    assert dataset.train.labels.tolist() == [0, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]
    for split, seeds in ((dataset.train, (2, 0, 1)), (dataset.test, (3, 4))):
        expected = np.stack([_pixels(seed) for seed in seeds]).astype(np.float32) / 255
        np.testing.assert_array_equal(split.images, expected)
    assert dataset.checksum == data.checksum((dataset.train, dataset.test))
    assert dataset.version == dataset.checksum[:12]
    assert len(dataset.pool().labels) == 5


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
@pytest.mark.parametrize("around", ["", "./", "some/folders/"])
def test_a_tar_is_read_like_its_folder(mode, around, tmp_path):
    expected = _load(_write(tmp_path / "images", _tree()))
    tree = {around + name: content for name, content in _tree().items()}
    path = _pack(tmp_path / "images.tar", tree, mode)
    assert _load(path).checksum == expected.checksum
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "images.tar"]


@pytest.mark.parametrize("test", ["val", "valid", "validation"])
def test_other_names_of_the_test_split(test, tmp_path):
    expected = _load(_write(tmp_path / "images", _tree()))
    assert _load(_write(tmp_path / "other", _tree(test))).checksum == expected.checksum


def test_folders_around_and_other_files(tmp_path):
    expected = _load(_write(tmp_path / "images", _tree()))
    tree = {f"a/b/{name}": content for name, content in _tree().items()}
    tree |= {"README.md": b"#", "a/b/train/cat/notes.txt": b"?", "a/b/.git/train/x/1.png": b"?"}
    tree |= {"__MACOSX/a/b/train/cat/._1.png": b"?"}
    path = _write(tmp_path / "other", tree)
    with pytest.warns(data.DataWarning, match=r"skipped 1 .txt in test and train"):
        assert _load(path).checksum == expected.checksum


def test_without_a_test_split(tmp_path):
    tree = {name: content for name, content in _tree().items() if name.startswith("train")}
    dataset = _load(_write(tmp_path / "images", tree))
    assert dataset.test.images.shape == (0, 5, 4, 3)
    assert len(dataset.pool().labels) == 3


@pytest.mark.quick
def test_grey_and_coloured_images(tmp_path):
    grey = {name: _png(_pixels(0, (5, 4))) for name in _tree()}
    assert _load(_write(tmp_path / "grey", grey)).train.images.shape == (3, 5, 4, 1)
    mixed = grey | {"train/ant/1.png": _png(_pixels(1))}
    assert _load(_write(tmp_path / "mixed", mixed)).train.images.shape == (3, 5, 4, 3)
    clear = grey | {"train/ant/1.png": _png(_pixels(1, (5, 4, 4)))}
    images = _load(_write(tmp_path / "clear", clear)).train.images
    np.testing.assert_array_equal(images[0], _pixels(1, (5, 4, 4))[..., :3].astype("f4") / 255)


def test_jpeg(tmp_path):
    tree = {name.lower().replace("png", "jpg"): content for name, content in _tree().items()}
    tree = {name: _png(np.full((8, 8, 3), 51, np.uint8), format="JPEG") for name in tree}
    np.testing.assert_allclose(_load(_write(tmp_path / "jpeg", tree)).train.images, 0.2, atol=0.005)


# What can be wrong


@pytest.mark.quick
def test_nothing_there(tmp_path):
    _refused(tmp_path / "nowhere", "nowhere does not exist; folder:PATH needs")


@pytest.mark.parametrize("where", ["train/cat/1.png", "test/ant/9.png"])
@pytest.mark.parametrize("pack", [False, True])
def test_corrupt_image(where, pack, tmp_path):
    for content in (b"", b"no image", _tree()[where][:-30]):
        tree = _tree() | {where: content}
        path = tmp_path / "images"
        path = _pack(path.with_suffix(".tar"), tree) if pack else _write(path, tree)
        _refused(path, rf"{where} cannot be read .*truncated or damaged")


def test_images_of_several_sizes(tmp_path):
    tree = _tree() | {"test/ant/9.png": _png(_pixels(0, (6, 4, 3)))}
    _refused(_write(tmp_path / "images", tree), r"several sizes: test/ant/9.png of 4×6 and .* 4×5")


@pytest.mark.parametrize("split", ["train", "test", "val"])
def test_empty_split(split, tmp_path):
    tree = {name: content for name, content in _tree().items() if not name.startswith(split)}
    path = _write(tmp_path / "images", tree)
    (path / split / "cat").mkdir(parents=True)
    _refused(path, f"split '{split}' is empty")
    _refused(_pack(tmp_path / "i.tar", tree, folders=[f"{split}/cat"]), f"split '{split}' is empty")


@pytest.mark.parametrize("tree", [{}, {"train/cat/readme.txt": b""}, {"1.png": _png(_pixels(0))}])
def test_no_tree_of_images(tree, tmp_path):
    path = _write(tmp_path / "images", tree)
    path.mkdir(exist_ok=True)
    _refused(path, "split 'train' is empty|not at <split>/<class>/<image>")


@pytest.mark.parametrize("name", ["trian/cat/1.png", "train/1.png", "train/cat/white/1.png"])
def test_image_at_a_wrong_place(name, tmp_path):
    path = _write(tmp_path / "images", _tree() | {name: _png(_pixels(0))})
    _refused(path, rf"{name} is not at <split>/<class>/<image>")


def test_two_splits_to_test_on(tmp_path):
    _refused(_write(tmp_path / "images", _tree() | _tree("val")), r"several splits .*test, val")


def test_class_that_train_lacks(tmp_path):
    path = _write(tmp_path / "images", _tree() | {"test/bee/1.png": _png(_pixels(0))})
    _refused(path, "class 'bee' that train lacks")


def test_one_class(tmp_path):
    tree = {name: content for name, content in _tree().items() if "cat" in name}
    _refused(_write(tmp_path / "images", tree), "one class, 'cat'")


def test_sixteen_bits(tmp_path):
    tree = _tree() | {"train/ant/1.png": _png(_pixels(0, (5, 4)).astype(np.uint16))}
    _refused(_write(tmp_path / "images", tree), "pixels of kind I;16: save it with 8 bits")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_truncated_tar(mode, tmp_path):
    path = _pack(tmp_path / "images.tar", _tree(), mode)
    content = path.read_bytes()
    size = sum(512 + 512 * -(-len(image) // 512) for image in _tree().values())
    cuts = [len(content) // 2, 10, *([size] if mode == "w" else [len(content) - 5])]
    for cut in cuts:  # the last of a plain tar lies between the members and the end mark
        path.write_bytes(content[:cut])
        _refused(path, "images.tar.* (cannot be read|has no end mark).*truncated")


def test_file_that_is_no_tar(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK" + bytes(2000))
    _refused(tmp_path / "images.zip", "images.zip cannot be read")


def test_home_is_expanded(tmp_path, monkeypatch):
    _write(tmp_path / "images", _tree())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(data.load("folder:~/images").train.labels) == 3


@pytest.mark.slow
def test_cifar10_of_the_shared_data():
    if not CIFAR.is_file():
        pytest.skip("cifar10-jpeg.tar.xz is not beside the repository")
    dataset = _load(CIFAR)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    mean = dataset.train.images.mean((0, 1, 2), dtype=float)
    np.testing.assert_allclose(mean, (0.4913, 0.4821, 0.4465), atol=5e-5)
