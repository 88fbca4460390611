"""Reads the arrays of a data set from an `.npz`, each only after its header, its size and the limits agree.

An `.npz` is a zip of `.npy` files. `numpy.load` allocates whatever a header claims, and leaves what is wrong
with the zip to a dozen kinds of exception; here all of them are one `DataError`.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from defuse_core.base.limits import MAX_CLASSES, MAX_DATASET_BYTES, MAX_EXPANSION, SMALL_BYTES
from defuse_core.base.texts import first_names
from defuse_core.base.zips import bounded_zip
from defuse_core.data.naming import VALIDATION_NAMES
from defuse_core.data.splits import DataError

_ENCRYPTED = 0x1  # bit of a member's flags
_ARRAYS = ("class_names", "y_train", "x_train", "y_test", "x_test", "y_val", "x_val")
_ALIASES = {f"{kind}_{name}": f"{kind}_val" for kind in "xy" for name in VALIDATION_NAMES}
_NAME_KINDS = "USiu"  # of class_names: text, bytes of UTF-8, or numbers
_VERSION = (1, 0)  # of the format .npy; others are for arrays of records, with headers of up to 4 GB


@dataclass(frozen=True)
class ArrayHeader:
    """What an `.npz` says of one of its arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


Headers = Mapping[str, ArrayHeader]


def read_npz(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of a data set one by one, so that no two have to be in memory.

    A validation split of any of the `naming.VALIDATION_NAMES` is x_val and y_val here. What else is in the
    file is not read; `unread_arrays` tells of it.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If the file is missing, no regular file, damaged, encrypted, compressed in an unusual way, or has a
        directory above `MAX_ZIP_DIRECTORY`; if there are two validation splits; if an array is missing,
        malformed, there twice, holds objects, is not of the size that its header says, or exceeds a limit.
    """
    if not path.is_file():
        if path.exists():
            raise DataError(f"{path} is no regular file; give an .npz file")
        raise DataError(f"{path} does not exist; check the path")
    with _explained(path), bounded_zip(path) as archive:
        held = _members(archive)
        members = _as_read(path, held)
        chosen = [name for name in _ARRAYS if name in members]
        _check_size(path, [members[name] for name in chosen])
        headers = {name: _read_header(archive, members[name]) for name in chosen}
        _check_headers(path, headers, list(held))
        for name in headers:
            yield name, _read_array(archive, members[name])  # no local name would keep it in memory


def unread_arrays(path: Path) -> tuple[str, ...]:
    """Say which arrays of an `.npz` are called like images or labels (x_…, y_…) and are not read.

    Parameters
    ----------
    path : Path
        Of a file that `read_npz` reads.

    Returns
    -------
    notes : tuple of str
        One phrase, or none.
    """
    with _explained(path), bounded_zip(path) as archive:
        names = [name for name in _members(archive) if name[:2].lower() in ("x_", "y_")]
    unread = sorted(set(names) - {*_ARRAYS, *_ALIASES})
    if not unread:
        return ()
    return (f"{len(unread):,} {'array' if len(unread) == 1 else 'arrays'} not read ({first_names(unread)})",)


def decoded_names(names: NDArray[Any]) -> tuple[str, ...]:
    """Return an array of class names as text.

    Parameters
    ----------
    names : (n_classes,) of text, of bytes or of integers

    Raises
    ------
    DataError
        If bytes are not UTF-8.
    """
    if names.dtype.kind != "S":
        return tuple(str(name) for name in names)
    try:
        return tuple(name.decode() for name in names.tolist())
    except UnicodeDecodeError as error:
        raise DataError(
            f"class_names has bytes that are not UTF-8 ({error.reason}); save it as text"
        ) from None


def _as_read(path: Path, held: Mapping[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The arrays by the names under which they are read, a validation split as x_val and y_val."""
    apart = [name for name in VALIDATION_NAMES if {f"x_{name}", f"y_{name}"} & held.keys()]
    if len(apart) > 1:
        raise DataError(f"{path} has validation arrays of more than one name ({', '.join(apart)}); keep one")
    return {_ALIASES.get(name, name): member for name, member in held.items()}


def _check_headers(path: Path, arrays: Headers, names: list[str]) -> None:
    """Check that the arrays make a data set, before any is read."""
    required = ("x_train", "y_train", "x_test", "y_test")
    if missing := [name for name in required if name not in arrays]:
        held = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
        raise DataError(
            f"{path} lacks {', '.join(missing)}; it holds {held or 'nothing'}. "
            "Save the arrays under these names"
        )
    for part in ("train", "test", "val") if {"x_val", "y_val"} & arrays.keys() else ("train", "test"):
        _check_split(path, arrays, part)
    if "class_names" not in arrays:
        return
    shape, dtype = arrays["class_names"].shape, arrays["class_names"].dtype
    if dtype.kind not in _NAME_KINDS:
        raise DataError(f"{path}: class_names must be texts, got {dtype}; save np.array(names, dtype=str)")
    if len(shape) != 1:
        raise DataError(f"{path}: class_names must be a list of names, got shape {shape}; save a list")
    if shape[0] > MAX_CLASSES:
        raise DataError(f"{path}: class_names has {shape[0]:,} names, at most {MAX_CLASSES:,} are allowed")


def _check_split(path: Path, arrays: Headers, part: str) -> None:
    images, labels = arrays.get(f"x_{part}"), arrays.get(f"y_{part}")
    if images is None or labels is None:
        raise DataError(f"{path} has one of x_{part} and y_{part} but not the other; add it")
    if images.dtype != np.uint8:
        raise DataError(
            f"{path}: x_{part} must be uint8, got {images.dtype}; "
            "scale it to 0 … 255 and save it with .astype('uint8')"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{path}: x_{part} must be (n, height, width) or (n, height, width, 1 or 3), "
            f"got {images.shape}; move the channels last"
        )
    n_images = images.shape[0]
    if labels.shape != (n_images,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: y_{part} must be {n_images} integers, got {labels.dtype} {labels.shape}; "
            "give one class index an image"
        )
    if not n_images:
        raise DataError(f"{path}: x_{part} is empty; add images")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise whatever goes wrong inside as a `DataError` with the remedy."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except PermissionError as error:
        raise DataError(f"{path} may not be read ({error.strerror}); change its permissions") from error
    except Exception as error:  # numpy, zlib and zipfile raise a dozen kinds for a damaged file
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"{path} is not a readable .npz of plain arrays ({reason}); "
            "write it again with numpy.savez and no object arrays"
        ) from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a zip by name."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in members:
            raise ValueError(f"it holds {name[:50]} twice")
        members[name] = member
    return members


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    name = member.filename
    if member.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in another way than numpy does")
    with archive.open(member) as file:
        if (version := npy.read_magic(file)) != _VERSION:
            raise ValueError(f"{name} is of the format {version}, which is none of plain arrays")
        shape, _, dtype = npy.read_array_header_1_0(file)
        n_bytes = member.file_size - file.tell()
    if dtype.hasobject or any(length < 0 for length in shape):
        raise ValueError(f"{name} holds {dtype} of shape {shape}")
    if n_bytes != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {n_bytes:,} bytes, not those of {dtype} {shape}")
    return ArrayHeader(shape, dtype)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as file:
        array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        file.read(1)  # the end, where the checksum is compared
    return array


def _check_size(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Check what the members unpack to against the limits."""
    total = sum(member.file_size for member in members)
    if total > MAX_DATASET_BYTES:
        raise DataError(
            f"{path} unpacks to {total / 2**30:.1f} GB, at most {MAX_DATASET_BYTES / 2**30:.0f} GB are read; "
            "save fewer or smaller images"
        )
    for member in members:
        if member.file_size > max(SMALL_BYTES, MAX_EXPANSION * member.compress_size):
            raise DataError(
                f"{path}: {member.filename} unpacks {member.compress_size / 2**20:.1f} MB to "
                f"{member.file_size / 2**20:,.0f} MB, more than {MAX_EXPANSION}-fold as no images do; check "
                "what is in it, and save it with numpy.savez"
            )
