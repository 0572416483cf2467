"""Original files: planted idx files and archives are read exactly, damaged ones leave nothing."""

import gzip
import hashlib
import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import idx_files

from halfway import data
from halfway.data import original, prepared, raw, reencoded

ROOT = Path(__file__).resolve().parents[2]
MNIST = ROOT.parent / "shared" / "data" / "mnist"
STEMS = tuple(raw.IDX["mnist"].md5)
SIZES = {"train": 40, "t10k": 20}
WRITERS = {"": lambda content: content, ".gz": gzip.compress, ".xz": lzma.compress}


def _planted():
    """Contents of four small idx files, by stem."""
    rng = np.random.default_rng(0)
    contents = {}
    for part, size in SIZES.items():
        images = rng.integers(0, 256, (size, 28, 28))
        contents[f"{part}-images-idx3-ubyte"] = idx_files.encode(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx_files.encode(np.arange(size) % 10)
    return contents


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A folder of small idx files that pass for the originals."""
    source = tmp_path / "source"
    source.mkdir()
    contents = _planted()
    for index, (stem, content) in enumerate(contents.items()):
        ending = ("", ".gz", ".xz", ".gz")[index]
        (source / f"{stem}{ending}").write_bytes(WRITERS[ending](content))
    md5 = {stem: hashlib.md5(content).hexdigest() for stem, content in contents.items()}
    monkeypatch.setitem(raw.IDX, "mnist", raw.Idx(md5, packed=False))
    return source


def _unpack(split):
    """Returns images as bytes and labels as a set of pairs: what does not depend on the order."""
    pixels = np.round(split.images * 255).astype(np.uint8)
    return sorted(zip((image.tobytes() for image in pixels), split.labels.tolist(), strict=True))


def _expected(images, labels):
    return sorted(zip((image.tobytes() for image in images), map(int, labels), strict=True))


@pytest.mark.quick
def test_mnist_is_prepared_as_tfds_reads_it(mnist, tmp_path):
    import tensorflow_datasets as tfds

    root = tmp_path / "data"
    dataset = data.prepare("mnist", mnist, root)
    assert (dataset.name, dataset.num_classes) == ("mnist", 10)
    assert dataset.train.images.shape == (40, 28, 28, 1)
    contents = _planted()
    for part, split in (("train", dataset.train), ("t10k", dataset.test)):
        images = np.frombuffer(contents[f"{part}-images-idx3-ubyte"], np.uint8, offset=16)
        labels = np.frombuffer(contents[f"{part}-labels-idx1-ubyte"], np.uint8, offset=8)
        assert _unpack(split) == _expected(images.reshape(-1, 28, 28), labels)
    assert data.load("mnist", root).checksum == dataset.checksum
    assert [path.name for path in root.iterdir()] == ["mnist"]
    # TFDS's own builder finds and reads what was prepared, in the same order.
    source = tfds.data_source("mnist", split="train", data_dir=str(root))
    assert tfds.builder("mnist", data_dir=str(root)).version == dataset.version
    labels = [int(example["label"]) for example in source]
    np.testing.assert_array_equal(labels, dataset.train.labels)


def test_version_in_the_name(mnist, tmp_path):
    dataset = data.prepare("mnist", mnist, tmp_path / "data")
    same = data.load(f"mnist:{dataset.version}", tmp_path / "data")
    assert same.checksum == dataset.checksum
    with pytest.raises(data.DataError, match=r"unknown data set 'mnist:9\.9\.9'"):
        data.load("mnist:9.9.9", tmp_path / "data")


def test_what_is_prepared_is_left_as_it_is(mnist, tmp_path):
    first = data.prepare("mnist", mnist, tmp_path / "data")
    for file in mnist.iterdir():
        file.unlink()
    assert data.prepare("mnist", mnist, tmp_path / "data").checksum == first.checksum


def test_interrupted_preparation_can_be_run_again(mnist, tmp_path):
    written = []

    def interrupt(examples):
        for example in examples:
            written.append(example)
            if len(written) == 30:
                raise KeyboardInterrupt
            yield example

    root = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt):
        data.prepare("mnist", mnist, root, progress=interrupt)
    assert not list(root.iterdir())
    assert len(data.prepare("mnist", mnist, root).train.labels) == 40


def test_what_a_killed_process_left_is_removed(mnist, tmp_path):
    root = tmp_path / "data"
    (root / "incomplete.dead" / "mnist").mkdir(parents=True)
    (root / "incomplete.dead" / ".lock").touch()
    with prepared._scratch(str(root)) as alive:
        data.prepare("mnist", mnist, root)
        assert sorted(path.name for path in root.iterdir()) == [Path(alive).name, "mnist"]


def test_writing_that_loses_something_is_noticed(mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(original, "_png", lambda image: png(np.zeros_like(image)))
    with pytest.raises(data.DataError, match="does not read back"):
        data.prepare("mnist", mnist, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


png = original._png


def _refused(source, root, match, name="mnist"):
    with pytest.raises(data.DataError, match=match) as caught:
        data.prepare(name, source, root)
    assert "\n" not in str(caught.value)
    # Where the files can be had, whatever is wrong with those given.
    assert ("its files are at" in str(caught.value)) == (name in data.preparable())
    assert not root.exists() or not list(root.iterdir())


@pytest.mark.parametrize("name", data.preparable())
def test_who_lacks_a_data_set_is_told_where_to_get_it(name, tmp_path):
    with pytest.raises(data.DataError, match=r"prepare it .*its files are at .*, https?://\S+\)$"):
        data.load(name, tmp_path)


def _file(source, stem):
    (path,) = source.glob(f"{stem}*")
    return path


@pytest.mark.parametrize("index", range(4))
def test_truncated_file(index, mnist, tmp_path):
    path = _file(mnist, STEMS[index])
    path.write_bytes(path.read_bytes()[:-20])
    _refused(mnist, tmp_path / "data", rf"{path.name} (cannot be read|holds).*truncated or damaged")


@pytest.mark.parametrize("index", range(4))
def test_missing_file(index, mnist, tmp_path):
    _file(mnist, STEMS[index]).unlink()
    _refused(mnist, tmp_path / "data", rf"lacks {STEMS[index]}")


@pytest.mark.parametrize("index", range(4))
def test_other_content_has_another_checksum(index, mnist, tmp_path):
    path = _file(mnist, STEMS[index])
    content = bytearray(_planted()[STEMS[index]])
    content[-1] = (content[-1] + 1) % 10
    path.write_bytes(WRITERS[path.suffix if path.suffix in WRITERS else ""](bytes(content)))
    _refused(mnist, tmp_path / "data", rf"{path.name} has md5 [0-9a-f]{{32}} where the original")


def test_file_of_another_kind(mnist, tmp_path):
    path = _file(mnist, STEMS[0])
    path.write_bytes(b"<html>404</html>" * 100)
    _refused(mnist, tmp_path / "data", rf"{path.name} is no idx file")


def _plant(source, monkeypatch, **changed):
    """Replaces files and lets them pass for the originals."""
    md5 = dict(raw.IDX["mnist"].md5)
    for name, array in changed.items():
        stem = f"{name.replace('_', '-')}-ubyte"
        path = _file(source, stem)
        content = idx_files.encode(array)
        path.write_bytes(WRITERS[path.suffix if path.suffix in WRITERS else ""](content))
        md5[stem] = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(raw.IDX, "mnist", raw.Idx(md5, packed=False))


def test_labels_out_of_range(mnist, tmp_path, monkeypatch):
    labels = np.arange(40) % 10
    labels[7] = 10
    _plant(mnist, monkeypatch, train_labels_idx1=labels)
    path = _file(mnist, "train-labels")
    _refused(mnist, tmp_path / "data", rf"{path.name} has label 10 at example 7, outside of 0 to 9")


def test_labels_and_images_of_different_numbers(mnist, tmp_path, monkeypatch):
    _plant(mnist, monkeypatch, train_labels_idx1=np.zeros(39))
    _refused(mnist, tmp_path / "data", "holds 39 labels for 40 images")


def test_empty_split(mnist, tmp_path, monkeypatch):
    empty = {"t10k_images_idx3": np.zeros((0, 28, 28)), "t10k_labels_idx1": np.zeros(0)}
    _plant(mnist, monkeypatch, **empty)
    _refused(mnist, tmp_path / "data", "t10k-labels-idx1-ubyte.* is an empty split")


def test_folder_that_does_not_exist(tmp_path):
    _refused(tmp_path / "nowhere", tmp_path / "data", "nowhere does not exist")


def test_name_that_cannot_be_prepared(tmp_path):
    _refused(tmp_path, tmp_path / "data", "'kmnist' cannot be prepared from files", name="kmnist")
    _refused(tmp_path, tmp_path / "data", "read in place", name="folder:images")


def test_data_folder_that_cannot_be_written(mnist, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(data.DataError, match=r"cannot be written.*--data_dir"):
        data.prepare("mnist", mnist, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_fashion_mnist_is_checked_as_it_is_compressed(mnist, tmp_path, monkeypatch):
    md5 = {}
    for stem, content in _planted().items():
        _file(mnist, stem).unlink()
        (mnist / f"{stem}.gz").write_bytes(gzip.compress(content, mtime=0))
        md5[stem] = hashlib.md5(gzip.compress(content, mtime=0)).hexdigest()
    _refused(mnist, tmp_path / "data", "where the original", name="fashion_mnist")
    monkeypatch.setitem(raw.IDX, "fashion_mnist", raw.Idx(md5, packed=True))
    dataset = data.prepare("fashion_mnist", mnist, tmp_path / "data")
    assert dataset.class_names[:2] == ("T-shirt/top", "Trouser")
    assert data.names(tmp_path / "data") == ("digits", "fashion_mnist", "mixture", "mnist1d")
    path = mnist / f"{STEMS[0]}.gz"
    (mnist / STEMS[0]).write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    _refused(mnist, tmp_path / "other", "only the checksum of .*gz is published", "fashion_mnist")


def test_digest_of_mnist():
    if not MNIST.is_dir():
        pytest.skip("the original files are not beside the repository")
    files = raw.read("mnist", MNIST)
    images, labels = files.splits["test"]
    assert images.shape == (10_000, 28, 28, 1)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of the original
    assert np.bincount(labels["label"]).tolist() == counts
    assert abs(images.mean() / 255 - 0.1325) < 5e-5


# CIFAR


def _cifar(kind, num_classes, per_file=10):
    """Returns the members of a small archive, and images and labels of each split."""
    rng = np.random.default_rng(1)
    members, splits = {}, {}
    for part, names in kind.members.items():
        chunks = []
        for name in names:
            labels = rng.integers(0, list(num_classes), (per_file, len(num_classes)))
            pixels = rng.integers(0, 256, (per_file, 3072))
            chunks.append(np.concatenate([labels, pixels], axis=1).astype(np.uint8))
            members[name] = chunks[-1].tobytes()
        whole = np.concatenate(chunks)
        count = len(num_classes)
        images = [row[count:].reshape(3, 32, 32).transpose(1, 2, 0) for row in whole]
        splits[part] = np.stack(images), whole[:, count - 1]
    for file, classes in zip(kind.labels.values(), num_classes, strict=True):
        members[file] = "".join(f"name{i}\n" for i in range(classes)).encode()
    return members, splits


def _archive(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    """Name, folder with a small archive that passes for the original, members and splits."""
    name, kind = request.param, raw.CIFAR[request.param]
    members, splits = _cifar(kind, (10,) if name == "cifar10" else (20, 100))
    source = tmp_path / "source"
    source.mkdir()

    def plant(changed):
        md5 = _archive(source / kind.archive, members | changed)
        monkeypatch.setitem(raw.CIFAR, name, kind._replace(md5=md5))

    plant({})
    return name, source, splits, plant


@pytest.mark.quick
def test_cifar_is_prepared_from_its_archive(cifar, tmp_path):
    name, source, splits, _ = cifar
    before = sorted(source.rglob("*"))
    dataset = data.prepare(name, source, tmp_path / "data")
    assert dataset.num_classes == {"cifar10": 10, "cifar100": 100}[name]
    assert dataset.class_names[3] == "name3"
    for part, (images, labels) in splits.items():
        assert _unpack(getattr(dataset, part)) == _expected(images, labels)
    assert sorted(source.rglob("*")) == before
    archive = source / raw.CIFAR[name].archive
    again = data.prepare(name, archive, tmp_path / "other")
    assert again.checksum == dataset.checksum


def test_archive_that_is_truncated(cifar, tmp_path):
    name, source, _, _ = cifar
    path = source / raw.CIFAR[name].archive
    path.write_bytes(path.read_bytes()[:-1000])
    _refused(source, tmp_path / "data", f"{path.name} has md5 .*damaged or another", name)


def test_archive_that_is_another(cifar, tmp_path, monkeypatch):
    name, source, _, _ = cifar
    monkeypatch.setitem(raw.CIFAR, name, raw.CIFAR[name]._replace(md5="0" * 32))
    _refused(source, tmp_path / "data", f"{raw.CIFAR[name].archive} has md5", name)


def test_archive_with_labels_out_of_range(cifar, tmp_path):
    name, source, _, plant = cifar
    (member, *_) = raw.CIFAR[name].members["test"]
    plant({member: bytes([200]) * (3072 + len(raw.CIFAR[name].labels))})
    _refused(source, tmp_path / "data", r"\(test\) has label 200 at example 0", name)


def test_archive_with_half_an_example(cifar, tmp_path):
    name, source, _, plant = cifar
    (member, *_) = raw.CIFAR[name].members["test"]
    plant({member: bytes(3000)})
    _refused(source, tmp_path / "data", "holds 3000 bytes in a split, no multiple of", name)


def test_pickles_are_never_opened(cifar, tmp_path):
    name, source, _, _ = cifar
    archive = source / raw.CIFAR[name].archive
    archive.rename(source / archive.name.replace("binary", "python"))
    _refused(source, tmp_path / "data", "holds pickles, which are never opened", name)


def test_jpeg_files_of_cifar10_are_counted(tmp_path):
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "0000.jpg")
    _refused(
        tmp_path / "images",
        tmp_path / "data",
        "not CIFAR-10: train must have 5,000 images of each class",
        name="cifar10_jpeg",
    )


def test_jpeg_files_of_cifar10_are_prepared(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for part, count in (("train", 2), ("test", 1)):
        for label in reencoded._CLASSES:
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:04d}.jpg")
    monkeypatch.setattr(reencoded, "_COUNTS", {"train": 2, "test": 1})
    dataset = data.prepare("cifar10_jpeg", tmp_path / "images", tmp_path / "data")
    in_place = data.load(f"folder:{tmp_path / 'images'}")
    assert dataset.name == "cifar10_jpeg" and dataset.class_names == in_place.class_names
    # The order is that of hashed keys.
    for part in ("train", "test"):
        stored, read = getattr(dataset, part), getattr(in_place, part)
        assert sorted(map(_bytes, *stored)) == sorted(map(_bytes, *read))
    assert data.load("cifar10_jpeg", tmp_path / "data").checksum == dataset.checksum


def _bytes(image, label):
    return int(label), image.tobytes()
