"""Writes data sets from original files as TFDS's builders write them, without TensorFlow."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from halfway.data import prepared
from halfway.data.arrays import DataError, Dataset
from halfway.data.raw import Raw

_Progress = Callable[[Iterable[Any]], Iterable[Any]]


def write(name: str, files: Raw, folder: str, progress: _Progress) -> Dataset:
    """Returns a data set after writing it to the data folder, whole or not at all.

    Args:
      name: the name of TFDS's builder.
      files: the content of the original files.
      folder: data folder.
      progress: a function that wraps the examples of each split.

    Raises:
      DataError: if the written files do not give the same data when they are read, or the folder
        cannot be written.
    """
    read = []

    def check(builder: Any) -> None:
        dataset = prepared.read(name, builder)
        for part, (images, labels) in files.splits.items():
            # TFDS shuffles by hashed keys, so what is compared must not depend on the order.
            split = getattr(dataset, part)
            same = split.images.shape == images.shape and np.isclose(
                split.images.mean(dtype=float) * 255, images.mean(dtype=float), rtol=1e-6
            )
            if not same or (np.bincount(split.labels) != np.bincount(labels["label"])).any():
                raise DataError(f"{builder.data_dir} does not read back as it was written")
        read.append(dataset)

    with prepared.quiet():
        try:
            prepared.write(_builder(name, files, progress), folder, check)
        except OSError as error:
            raise DataError(
                f"data folder {folder} cannot be written ({error.strerror or error}): name another "
                "by --data_dir"
            ) from error
    return read[0]


def _builder(name: str, files: Raw, progress: _Progress) -> Any:
    """Returns a class like TFDS's builder of that name, whose examples are `files`."""
    import tensorflow_datasets as tfds

    base: Any = tfds.builder_cls(files.builder or name)

    class Original(prepared.Silent, base, skip_registration=True):  # pyright: ignore
        """TFDS's builder with other files; features, version and keys are those of TFDS."""

        def _info(self) -> tfds.core.DatasetInfo:
            return prepared.local(super()._info())

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            for feature, class_names in files.class_names.items():
                self.info.features[feature].names = class_names
            return {
                part: self._generate_examples(part, *arrays)
                for part, arrays in files.splits.items()
            }

        def _generate_examples(
            self, part: str, images: np.ndarray, labels: Mapping[str, np.ndarray]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, image in enumerate(progress(images)):
                example: dict[str, Any] = {"image": _png(image)}
                example |= {feature: int(numbers[index]) for feature, numbers in labels.items()}
                if "id" in self.info.features:
                    example["id"] = f"{part}_{index:05d}"
                yield index, example

    Original.name = name
    return Original


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
