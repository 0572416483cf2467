"""PNG and JPEG images from bytes: the headers of all before the pixels of any."""

import io
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from halfway import files
from halfway.data.arrays import DataError, damaged

ENDINGS = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
"""What is opened, whatever the name of a file: others start programs, or are seldom tested."""
_GREY, _COLOURED = ("L", "1"), ("RGB", "P", "RGBA", "LA", "CMYK", "YCbCr")
_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_BYTES = 4  # of a float32, as which each value is kept


def read(
    contents: Mapping[Any, bytes], path: object, *, max_gb: float, num_channels: int | None = None
) -> np.ndarray:
    """Returns images of one size, in the order in which they are given.

    Args:
      contents: the bytes of N files by name.
      path: where they are, for messages.
      max_gb: gigabytes that the images may take as float32.
      num_channels: 1, 3 or 4; None for 1 if all images are grey, else 3.

    Returns:
      `[N, H, W, D]` uint8.

    Raises:
      DataError: if a file is no PNG or JPEG of 8 bits a channel, is damaged, or has another size.
      files.Refused: if the images would take more memory.
    """
    opened = {name: _open(content, f"{path}/{name}") for name, content in contents.items()}
    _check_sizes(path, opened)
    if num_channels is None:
        num_channels = 1 if all(image.mode in _GREY for image in opened.values()) else 3
    width, height = next((image.size for image in opened.values()), (1, 1))
    shape = (len(opened), height, width, num_channels)
    files.check_size(path, _BYTES * math.prod(shape), max_gb)
    images = np.zeros(shape, np.uint8)
    for row, name in zip(images, list(opened), strict=True):
        with opened.pop(name) as image:
            try:
                pixels = np.asarray(image.convert(_CHANNELS[num_channels]))
            except Exception as error:  # PIL's are of every kind
                raise damaged(f"{path}/{name}", error) from error
        row[...] = pixels.reshape(row.shape)
    return images


def _open(content: bytes, where: str) -> Any:
    """Returns a PIL image of which the header is read, and no pixel."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.format == "PNG":  # its checksums, which Pillow does not compare with pixels
                image.verify()
                image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise damaged(where, ValueError("by its content neither PNG nor JPEG")) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise DataError(
            f"{where} declares more than {most:.0f} megapixels: make it smaller"
        ) from error
    except Exception as error:  # PIL's are of every kind
        raise damaged(where, error) from error
    if image.mode not in (*_GREY, *_COLOURED):
        raise DataError(f"{where} has pixels of kind {image.mode}: save it with 8 bits a channel")
    return image


def _check_sizes(path: object, images: Mapping[Any, Any]) -> None:
    names = sorted(images)
    for name in names[1:]:
        if images[name].size != images[names[0]].size:
            sizes = ["×".join(map(str, images[file].size)) for file in (names[0], name)]
            raise DataError(
                f"{path} has images of several sizes: {names[0]} of {sizes[0]} and {name} of "
                f"{sizes[1]} pixels; make them one size"
            )
