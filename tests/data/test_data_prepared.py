"""Data sets that a user has prepared with TFDS: found by name, read, and refused where unfit."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from support import hostile

from halfway import data

pytestmark = pytest.mark.quick

tfds = pytest.importorskip("tensorflow_datasets")


def _prepare(root, name="mine", *, image=None, label=None, parts=("train", "test"), **options):
    """Prepares 12 images a split as a user would, with features of choice."""
    image = image or tfds.features.Tensor(shape=(6, 5, 3), dtype=np.uint8)
    label = label or tfds.features.ClassLabel(names=["a", "b", "c"])
    make = options.pop("make", lambda index: np.full((6, 5, 3), index, np.uint8))
    number = options.pop("number", lambda index: index % 3)
    keys = options.pop("keys", ("image", "label"))
    flat = options.pop("flat", False)  # of an image that is a dict

    class Mine(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(options.pop("version", "1.2.0"))

        def _info(self):
            features = dict(zip(keys, (image, label), strict=True))
            features = tfds.features.FeaturesDict(_flat(features) if flat else features)
            info = tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)
            info.initialize_from_bucket = lambda: None
            return info

        def _split_generators(self, manager):
            return {part: self._generate_examples() for part in parts}

        def _generate_examples(self):
            for index in range(12):
                example = dict(zip(keys, (make(index), number(index)), strict=True))
                yield index, _flat(example) if flat else example

        def _log_download_bytes(self): ...
        def _log_download_done(self): ...

    Mine.name = name
    builder = Mine(data_dir=str(root))
    builder.download_and_prepare(
        file_format=options.pop("file_format", "array_record"),
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
    return root / name


def _flat(example):
    return {**example["image"], "label": example["label"]}


def test_any_prepared_data_set_is_read(tmp_path):
    _prepare(tmp_path)
    dataset = data.load("mine", tmp_path)
    assert (dataset.name, dataset.version, dataset.num_classes) == ("mine", "1.2.0", 3)
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.train.images.shape == (12, 6, 5, 3) == dataset.test.images.shape
    np.testing.assert_array_equal(dataset.train.images[7], np.float32(7) / np.float32(255))
    assert dataset.train.labels.tolist() == [0, 1, 2] * 4
    assert dataset.checksum == data.checksum((dataset.train, dataset.test))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (hostile.EPS, r"example/7 cannot be read \(by its content neither PNG nor JPEG"),
        (hostile.large_png(9400, 9400), "images of several sizes"),
    ],
    ids=["EPS", "large"],
)
def test_images_in_records_are_opened_as_those_in_folders(content, words, tmp_path, monkeypatch):
    def start(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    image = tfds.features.Image(shape=(None, None, 3))
    more = tfds.features.Sequence(image)  # not asked for, and not opened

    def make(index):
        return io.BytesIO(content if index == 7 else hostile.png(index, (6, 5, 3)))

    _prepare(tmp_path, "mine", image=image, make=make)
    with pytest.raises(data.DataError, match=words):
        data.load("mine", tmp_path)
    _prepare(
        tmp_path,
        "good",
        image=tfds.features.FeaturesDict({"image": image, "other": image, "more": more}),
        make=lambda index: {
            "image": io.BytesIO(hostile.png(index, (6, 5, 3))),
            "other": io.BytesIO(content),
            "more": [io.BytesIO(content)],
        },
        flat=True,
    )
    pixels = data.load("good", tmp_path).train.images
    expected = np.asarray(Image.open(io.BytesIO(hostile.png(7, (6, 5, 3)))))
    np.testing.assert_array_equal(pixels[7], expected.astype(np.float32) / np.float32(255))


def test_the_newest_version_is_read(tmp_path):
    for version in ("1.10.0", "1.9.0", "1.2.3"):
        _prepare(tmp_path, version=version)
    assert data.load("mine", tmp_path).version == "1.10.0"
    assert data.load("mine:1.9.0", tmp_path).version == "1.9.0"


def test_configs_are_named(tmp_path):
    folder = _prepare(tmp_path)
    (folder / "small").mkdir()
    (folder / "1.2.0").rename(folder / "small" / "1.2.0")
    with pytest.raises(data.DataError, match="in the configs small: name one, as 'mine/small'"):
        data.load("mine", tmp_path)
    assert data.load("mine/small", tmp_path).num_classes == 3
    assert data.names(tmp_path) == ("digits", "mine/small", "mixture", "mnist1d")


def test_validation_stands_in_for_test(tmp_path):
    _prepare(tmp_path, parts=("train", "validation"))
    assert len(data.load("mine", tmp_path).test.labels) == 12
    _prepare(tmp_path, "single", parts=("train",))
    assert data.load("single", tmp_path).test.images.shape == (0, 6, 5, 3)


def _refused(root, match, name="mine"):
    with pytest.raises(data.DataError, match=match) as caught:
        data.load(name, root)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_features_that_are_not_there(tmp_path):
    _prepare(tmp_path, keys=("picture", "label"))
    _refused(tmp_path, "no feature 'image', only label, picture")
    _prepare(tmp_path, "other", label=tfds.features.Scalar(dtype=np.int64))
    _refused(tmp_path, "are no classes", "other")
    _prepare(tmp_path, "third", parts=("test",))
    _refused(tmp_path, "no split 'train', only test", "third")


def test_images_of_several_sizes(tmp_path):
    image = tfds.features.Tensor(shape=(None, 5, 3), dtype=np.uint8)
    _prepare(tmp_path, image=image, make=lambda i: np.zeros((6 + i % 2, 5, 3), np.uint8))
    _refused(tmp_path, r"several sizes, e.g. \(6, 5, 3\) and \(7, 5, 3\)")


def test_images_that_are_no_bytes(tmp_path):
    image = tfds.features.Tensor(shape=(6, 5, 3), dtype=np.float32)
    _prepare(tmp_path, image=image, make=lambda i: np.zeros((6, 5, 3), np.float32))
    _refused(tmp_path, "holds images float32 .* must be uint8")


def test_labels_out_of_range(tmp_path):
    # `ClassLabel` checks what is written; a data set whose classes were edited later is not.
    folder = _prepare(tmp_path, label=tfds.features.ClassLabel(num_classes=3))
    for path in (folder / "1.2.0").glob("*.json"):
        path.write_text(path.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    _refused(tmp_path, r"\(train\) has label 2 at example 2, outside of 0 to 1")


def _truncate(path):
    os.truncate(path, 100)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip, os.unlink])
def test_damaged_files(damage, tmp_path):
    folder = _prepare(tmp_path) / "1.2.0"
    damage(next(folder.glob("*train*")))
    _refused(tmp_path, r"1.2.0 cannot be read \(.*\): delete it and prepare the data set again")


def test_damaged_description(tmp_path):
    folder = _prepare(tmp_path) / "1.2.0"
    (folder / "features.json").write_text("{")
    _refused(tmp_path, "cannot be read")
    shutil.rmtree(folder)
    _refused(tmp_path, "unknown data set 'mine'")


def test_format_that_needs_tensorflow(tmp_path):
    folder = _prepare(tmp_path) / "1.2.0"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    _refused(tmp_path, 'only TensorFlow reads: .*file_format="array_record"')
