"""Reads the arrays of a data set from an `.npz`, each only after its header, its size and the limits agree.

An `.npz` is a zip of `.npy` files. `numpy.load` allocates whatever a header claims, and leaves what is wrong
with the zip to a dozen kinds of exception; here all of them are one `DataError`.
"""

from __future__ import annotations

import math
import re
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
from defuse_core.data.arrays import channels_last, check_labels
from defuse_core.data.listing import split_called
from defuse_core.data.splits import DataError

_ENCRYPTED = 0x1  # bit of a member's flags
_KINDS = {
    "x": "x", "image": "x", "images": "x", "img": "x", "imgs": "x", "data": "x",
    "y": "y", "label": "y", "labels": "y", "target": "y", "targets": "y",
}  # fmt: skip
"""What people call images and labels, beside the name of a split: x_train, train_images, labels."""

_NAMES = ("class_names", "classes", "label_names")
_NAME_KINDS = "USiu"  # of class_names: text, bytes of UTF-8, or numbers
_VERSION = (1, 0)  # of the format .npy; others are for arrays of records, with headers of up to 4 GB
_WORDS = re.compile(r"[^\W\d_]+")

Slot = tuple[str, str]
"""What an array is, "x" or "y", and of which split: "train", "validation", "test" or ""; or ("names", "")."""


@dataclass(frozen=True)
class ArrayHeader:
    """What an `.npz` says of one of its arrays."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class NpzArrays:
    """The arrays of a data set in an `.npz`, each read when it is asked for.

    Parameters
    ----------
    path : Path
    archive : ZipFile
        Of the path, open.

    Raises
    ------
    DataError
        If an array is missing, malformed, there twice, holds objects, is not of the size that its header
        says, or exceeds a limit.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        held = _members(archive)
        self._slots = _slots(path, held)
        _check_size(path, [held[name] for name in self._slots.values()])
        self._members = held
        self.headers = {slot: _read_header(archive, held[name]) for slot, name in self._slots.items()}
        self.order = _check_headers(path, self.headers, list(held))
        unread = sorted(name for name in held if _is_like(name) and name not in self._slots.values())
        self.notes = []
        if unread:
            arrays = "array" if len(unread) == 1 else "arrays"
            self.notes.append(f"{len(unread):,} {arrays} not read ({first_names(unread)})")
        moved = [self.headers["x", split].name for split, order in self.order.items() if not _is_last(order)]
        if moved:
            self.notes.append(f"channels moved last ({first_names(moved)})")

    @property
    def splits(self) -> list[str]:
        """The splits that the file has, "" where nothing says."""
        return [split for kind, split in self._slots if kind == "x"]

    def read(self, kind: str, split: str = "") -> NDArray[Any]:
        """Read an array; of images with the channels last."""
        array = _read_array(self._archive, self._members[self._slots[kind, split]])
        return array.transpose(self.order[split]) if kind == "x" else array


@contextmanager
def open_npz(path: Path) -> Iterator[NpzArrays]:
    """Open a data set in an `.npz`; whatever goes wrong while it is open is a `DataError`.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If the file is missing, no regular file, damaged, encrypted, compressed in an unusual way, or has a
        directory above `MAX_ZIP_DIRECTORY`; and as `NpzArrays` says.
    """
    if not path.is_file():
        if path.exists():
            raise DataError(f"{path} is no regular file; give an .npz file")
        raise DataError(f"{path} does not exist; check the path")
    with _explained(path), bounded_zip(path) as archive:
        yield NpzArrays(path, archive)


def _is_like(name: str) -> bool:
    """Whether an array is called like images or labels."""
    return any(word in _KINDS for word in _WORDS.findall(name.casefold()))


def _slot(name: str) -> Slot | None:
    """What an array is by its name: a word for images or labels, one for a split, in any order."""
    if name.casefold() in _NAMES:
        return "names", ""
    words = _WORDS.findall(re.sub(r"(?<=[a-z])(?=[XY]$)", "_", name).casefold())  # trainX
    kinds = [_KINDS[word] for word in words if word in _KINDS]
    splits = [split for word in words if (split := split_called(word))]
    known = len(kinds) == 1 and len(splits) < 2 and len(words) == 1 + len(splits)
    return (kinds[0], splits[0] if splits else "") if known else None


def _slots(path: Path, held: Mapping[str, zipfile.ZipInfo]) -> dict[Slot, str]:
    """Which array is what. Labels come first: they are small, and say how the images lie."""
    slots: dict[Slot, str] = {}
    for name in held:
        if (slot := _slot(name)) is None:
            continue
        if slot in slots:
            raise DataError(f"{path} has {slots[slot]} and {name} for the same; keep one")
        slots[slot] = name
    splits = {split for kind, split in slots if kind != "names"}
    if "" in splits and "train" in splits:
        same = [slots[slot] for slot in slots if slot[1] in ("", "train") and slot[0] != "names"]
        raise DataError(f"{path} has {first_names(same)}, two sets of training images; keep one")
    return dict(sorted(slots.items(), key=lambda item: item[0][0] == "x"))


def _check_headers(
    path: Path, arrays: Mapping[Slot, ArrayHeader], names: list[str]
) -> dict[str, tuple[int, ...]]:
    """Check that the arrays make a data set, before any is read; return the order of the axes of images."""
    splits = dict.fromkeys(split for kind, split in arrays if kind != "names") or {"train": None}
    pairs = [(kind, split) for split in splits for kind in "xy"]
    if missing := [f"{kind}_{_short(split)}" for kind, split in pairs if (kind, split) not in arrays]:
        held = first_names(names, 20)
        raise DataError(
            f"{path} lacks {', '.join(missing)}; it holds {held or 'nothing'}. "
            "Save the arrays under these names"
        )
    order = {split: _check_split(path, arrays["x", split], arrays["y", split]) for split in splits}
    if ("names", "") not in arrays:
        return order
    shape, dtype = arrays["names", ""].shape, arrays["names", ""].dtype
    if dtype.kind not in _NAME_KINDS:
        raise DataError(f"{path}: class_names must be texts, got {dtype}; save np.array(names, dtype=str)")
    if len(shape) != 1:
        raise DataError(f"{path}: class_names must be a list of names, got shape {shape}; save a list")
    if shape[0] > MAX_CLASSES:
        raise DataError(f"{path}: class_names has {shape[0]:,} names, at most {MAX_CLASSES:,} are allowed")
    return order


def _is_last(order: tuple[int, ...]) -> bool:
    return list(order) == sorted(order)


def _short(split: str) -> str:
    return {"": "train", "validation": "val"}.get(split, split)


def _check_split(path: Path, images: ArrayHeader, labels: ArrayHeader) -> tuple[int, ...]:
    n_labels = labels.shape[0] if labels.shape else 0
    order = channels_last(images.shape, n_labels)
    if images.dtype.kind not in "uifb":
        raise DataError(
            f"{path}: {images.name} must be uint8, got {images.dtype}; save it with .astype('uint8')"
        )
    if order is None:
        raise DataError(
            f"{path}: {images.name} must be (n, height, width) or (n, height, width, 1 or 3), "
            f"got {images.shape}; reshape it, and lay transparency on a colour"
        )
    n_images = images.shape[order[0]]
    if not n_images:
        raise DataError(f"{path}: {images.name} is empty; add images")
    check_labels(f"{path}: {labels.name}", labels.shape, labels.dtype, n_images)
    return order


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
    return ArrayHeader(name.removesuffix(".npy"), shape, dtype)


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
