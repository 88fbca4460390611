"""Kinds of hostile data sets in .npz files."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.campaign.checkpoints import object_npz
from tests.campaign.kinds import HOSTILE_TEXTS, Kind, Stock, damage, odd_path, write

_SHAPES: tuple[tuple[int, ...], ...] = (
    (), (4,), (4, 8), (4, 0, 0), (0, 8, 8), (4, 1, 1), (4, 8, 8, 0), (4, 8, 8, 2), (4, 8, 8, 4), (4, 3, 8, 8),
    (1,) * 32, (4, 1, 100_000), (4, 8, 8, 1, 1), (10**6, 0, 8), (4, 8, 8, 3),
)  # fmt: skip
_TYPES = ("<f4", "<f8", "<f2", "<i8", ">u2", "|b1", "<c8", "<U5", "|S3", "<M8[s]", "|V4", "|u1", ">u1", "<i1")
_HEADERS = (
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000), }",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775807, 2), }",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8), }",
    b"{'descr': '|u1', 'fortran_order': True, 'shape': (4, 8, 8), }",
    b"{'descr': [('a', '|u1'), ('b', '<f8')], 'fortran_order': False, 'shape': (4,), }",
    b"{'descr': '|V1000000000', 'fortran_order': False, 'shape': (4, 8, 8), }",
    b"{'descr': '<U1000000000', 'fortran_order': False, 'shape': (4,), }",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 8, 8)",
    b"{'descr': 'x', 'fortran_order': 3, 'shape': 'y', }",
    b"__import__('os').system('true')",
    b"(" * 5000,
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"1," * 3000 + b"), }",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",), }",
    b"\xff\xfe\0",
    b"",
)


def arrays(stock: Stock) -> dict[str, Any]:
    """The arrays of the good data set.

    Parameters
    ----------
    stock : Stock
    """
    with np.load(io.BytesIO(stock.npz)) as archive:
        return {name: archive[name] for name in archive.files}


def _npz(folder: Path, content: dict[str, Any]) -> Path:
    out = io.BytesIO()
    np.savez(out, **content)
    return write(folder, "data.npz", out.getvalue())


def shapes(rng: Random, folder: Path, stock: Stock) -> Path:
    """An array of another shape or type than images and labels have."""
    content = arrays(stock)
    for name in rng.sample(sorted(content), rng.choice((1, 1, 2))):
        shape, kind = rng.choice(_SHAPES), rng.choice(_TYPES)
        converted = name != "class_names" and rng.random() < 0.4
        content[name] = content[name].astype(kind, casting="unsafe") if converted else np.zeros(shape, kind)
    return _npz(folder, content)


def labels(rng: Random, folder: Path, stock: Stock) -> Path:
    """Labels out of range, as text or floats, too many, too few; names that nobody gives a class."""
    content = arrays(stock)
    part = rng.choice(("y_train", "y_test", "y_val"))
    values = content[part].copy()
    values[rng.randrange(len(values))] = rng.choice((-1, 10, 99, 10**6, 2**31, 2**62, 2**63 - 1, -(2**63)))
    names = [rng.choice(HOSTILE_TEXTS) for _ in range(rng.choice((0, 1, 9, 10, 11, 5000)))]
    content[part] = rng.choice(
        (
            lambda: values,
            lambda: values,
            lambda: values.astype(np.uint64),
            lambda: values.astype(float),
            lambda: np.full(len(values), np.nan),
            lambda: values.astype(str),
            lambda: values[:-1],
            lambda: np.concatenate([values, values]),
            lambda: values[:, None],
            lambda: values > 0,
            lambda: content[part],
        )
    )()
    if rng.random() < 0.5:
        content["class_names"] = np.array(names, dtype=str)
    if rng.random() < 0.2:
        del content[rng.choice(sorted(content))]
    return _npz(folder, content)


def floats(rng: Random, folder: Path, stock: Stock) -> Path:
    """Images as floats, some of them not finite."""
    content = arrays(stock)
    name = rng.choice(("x_train", "x_test", "x_val"))
    images = content[name].astype(rng.choice(("f2", "f4", "f8"))) / rng.choice((1, 255))
    images.flat[rng.randrange(images.size)] = rng.choice((np.nan, np.inf, -np.inf, -1.0, 1e30))
    return _npz(folder, {**content, name: images})


def zeros(n_bytes: int) -> tuple[bytes, bytes]:
    """Zeros as deflate packs them, made without packing them: the packed start, and the repeated rest.

    Parameters
    ----------
    n_bytes : int
        About; in whole megabytes.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first, block * max(n_bytes // 2**20 - 1, 0) + packer.flush()


def packed_member(name: str, head: bytes, n_zeros: int, *, method: int = 8, flags: int = 0) -> bytes:
    """A zip file of one member that inflates to a head and zeros.

    Parameters
    ----------
    name : str
    head : bytes
    n_zeros : int
    method, flags : int
        As the zip directory states them.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH) + b"".join(zeros(n_zeros))
    size = len(head) + max(n_zeros // 2**20, 1) * 2**20
    crc = zlib.crc32(head)
    for _ in range(
        min(max(n_zeros // 2**20, 1), 128)
    ):  # that of larger ones is wrong, which shows at the end only
        crc = zlib.crc32(bytes(2**20), crc)
    sizes = struct.pack("<3L", crc, len(content), min(size, 2**32 - 2))
    encoded = name.encode()
    local = (
        struct.pack("<4s5H", b"PK\x03\x04", 20, flags, method, 0, 33)
        + sizes
        + struct.pack("<2H", len(encoded), 0)
    )
    central = struct.pack("<4s6H", b"PK\x01\x02", 20, 20, flags, method, 0, 33) + sizes
    central += struct.pack("<5H2L", len(encoded), 0, 0, 0, 0, 0, 0) + encoded
    start = len(local) + len(encoded) + len(content)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(central), start, 0)
    return local + encoded + content + central + end


def _npy_head(header: bytes) -> bytes:
    padded = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded) % 65536) + padded


def bombs(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """A member that inflates to up to 4 GB, is encrypted, or packed in an unknown way."""
    n = rng.choice((2**20, 2**27, 2**30, 2**32 - 2**21))
    shape = rng.choice((n, n // 784, 10**12))
    head = _npy_head(b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 28, 28), }" % shape)
    method, flags = rng.choice(
        ((8, 0), (8, 0), (8, 0), (9, 0), (12, 0), (14, 0), (93, 0), (99, 0), (8, 1), (8, 64))
    )
    name = rng.choice(("x_train.npy", "x_train.npy", "other.npy", "readme.txt", "../x_train.npy", "x_train"))
    return write(folder, "data.npz", packed_member(name, head, n, method=method, flags=flags))


def headers(rng: Random, folder: Path, stock: Stock) -> Path:
    """An array whose header says more, less or other than its data."""
    out = io.BytesIO()
    wrong, header = rng.choice(("x_train", "y_train", "x_test", "class_names")), rng.choice(_HEADERS)
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    width = "<H" if version == b"\x01\x00" else "<I"
    length = rng.choice((len(header), len(header), 2**16 - 1, 0))
    member = (
        b"\x93NUMPY" + version + struct.pack(width, length) + header + rng.randbytes(rng.choice((0, 256)))
    )
    with zipfile.ZipFile(io.BytesIO(stock.npz)) as good, zipfile.ZipFile(out, "w") as archive:
        for info in good.infolist():
            archive.writestr(info.filename, member if info.filename == f"{wrong}.npy" else good.read(info))
    return write(folder, "data.npz", out.getvalue())


def objects(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Arrays of objects, whose pickle calls a function."""
    return write(folder, "data.npz", object_npz(rng, folder))


def damaged(rng: Random, folder: Path, stock: Stock) -> Path:
    """A good data set with flipped bits, cut off, or spliced with an archive."""
    return write(folder, "data.npz", damage(rng, stock.npz, stock.archive))


def members(rng: Random, folder: Path, stock: Stock) -> Path:
    """Members twice, under other names, or very many."""
    out = io.BytesIO(stock.npz)
    n, name = (
        rng.choice((1, 3, 5000)),
        rng.choice(("x_train.npy", "x.npy", "../../y.npy", "\x1b[2J", "x_train", "a" * 9000)),
    )
    with zipfile.ZipFile(out, "a") as archive:
        for i in range(n):
            info = zipfile.ZipInfo(name if n < 10 else f"{i}.npy")
            archive.writestr(info, archive.read("y_test.npy"))
    return write(folder, "data.npz", out.getvalue())


def odd(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """No usual file at all."""
    return odd_path(rng, folder, ".npz")


KINDS = (
    Kind("npz-shapes", "data", shapes, 2),
    Kind("npz-labels", "data", labels, 2),
    Kind("npz-floats", "data", floats, 0.5),
    Kind("npz-bombs", "data", bombs, 0.3),
    Kind("npz-headers", "data", headers, 2),
    Kind("npz-objects", "data", objects),
    Kind("npz-damaged", "data", damaged, 2),
    Kind("npz-members", "data", members, 0.5),
    Kind("npz-odd", "data", odd, 0.5),
)
