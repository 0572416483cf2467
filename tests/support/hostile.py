"""Folders, archives and files that somebody made to do harm, each a few kilobytes."""

import bz2
import gzip
import io
import os
import socket
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\nshowpage\n"


def png(seed=0, shape=(5, 4, 3)):
    """The bytes of a small PNG."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def large_png(width, height):
    """A PNG of a hundred bytes that declares so many pixels, and has none."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def tree():
    """Names and contents of two classes to train on and to test on."""
    places = ("train/cat/1.png", "train/cat/2.png", "train/ant/1.png", "test/ant/9.png")
    files = {name: png(seed) for seed, name in enumerate(places)}
    return files | {"test/cat/3.png": png(7)}


def write(root, files):
    """Writes contents by name below a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def member(name, content=b"", **fields):
    """A member of a tar and its content; fields are those of `tarfile.TarInfo`."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def link(name, target, kind=tarfile.SYMTYPE):
    """A member of a tar that leads to another."""
    return member(name, type=kind, linkname=target)


def pack(path, files, *more, mode="w"):
    """Writes a tar of contents by name, then of members."""
    with tarfile.open(path, mode) as archive:
        for info, content in [*(member(*item) for item in files.items()), *more]:
            archive.addfile(info, io.BytesIO(content) if content else None)
    return path


def make_fifo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def make_socket(path):
    """A socket; its name may be short only, so that the folder is changed for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)
    return path


def make_sparse(path, size):
    """A file that has a size and no content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def negative_tar(path):
    """A tar whose member leads back to the beginning, on which old tarfiles never end."""
    info = tarfile.TarInfo("train/cat/1.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -512)  # the size, in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + bytes(1024))
    return path


def long_name_tar(path, size):
    """A packed tar whose first name is declared to have so many letters."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"a" * 100_000))
    return path


def declared_tar(path, size):
    """A packed tar with an image that is declared to have so many bytes."""
    info = tarfile.TarInfo("train/cat/1.png")
    info.size = size
    path.write_bytes(bz2.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(100_000)))
    return path


def packed_zeros(path, size, *, end=False):
    """A packed tar of kilobytes with so many zeros: of a member that is no image, or at its end."""
    info = tarfile.TarInfo("notes.bin")
    info.size = 0 if end else size
    with gzip.open(path, "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return path


def npy(shape, content=b"", dtype="<f4"):
    """The bytes of an array of NumPy with a header that may be untrue."""
    buffer = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue() + content


def npz(path, arrays, compression=zipfile.ZIP_DEFLATED):
    """Writes an archive of members by name."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in arrays.items():
            archive.writestr(name, content)
    return path


def npz_of_zeros(path, size):
    """An archive of kilobytes, whose `images` unpack to so many bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as entry:
            entry.write(npy((size,), dtype="|u1"))
            for _ in range(size >> 20):
                entry.write(bytes(1 << 20))
        archive.writestr("labels.npy", npy((1,), bytes(4), "<i4"))
    return path
