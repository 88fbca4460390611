"""Reads the files of MNIST's format IDX, gzipped or not, and the .mat files of SVHN."""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defuse_core.base.files import plain
from defuse_core.base.limits import MAX_DATASET_BYTES
from defuse_core.base.texts import quote
from defuse_core.data.arrays import build_dataset, channels_last, check_labels, class_indices, convert_pixels
from defuse_core.data.folders import entries
from defuse_core.data.listing import split_called
from defuse_core.data.reading import Reading
from defuse_core.data.splits import DataError, ImageDataset

_IDX_NAME = re.compile(
    r"(?P<before>.*?)(?P<kind>images?|labels?)[-_.]idx[13](?:[-_.]u?byte)?(?P<gz>\.gz)?$", re.IGNORECASE
)
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAT_NAME = re.compile(r"(?P<split>train|test|extra)_(?P<size>\d+x\d+)\.mat$", re.IGNORECASE)

IdxFiles = dict[tuple[str, str], Path]
"""By "x" or "y" and the split."""


def find_idx(folder: Path) -> dict[str, IdxFiles]:
    """Return the IDX files of a folder by the set that they are of, such as "emnist-letters", often "".

    Parameters
    ----------
    folder : Path
    """
    found: dict[str, IdxFiles] = {}
    for path in entries(folder):  # a file goes before itself gzipped
        if (match := _IDX_NAME.fullmatch(path.name)) is None:
            continue
        words = [word for word in re.split(r"[-_.]", match["before"].casefold()) if word]
        splits = [split for word in words if (split := _idx_split(word))]
        family = "-".join(word for word in words if _idx_split(word) is None)
        kind = "x" if match["kind"].casefold().startswith("image") else "y"
        found.setdefault(family, {}).setdefault((kind, splits[0] if splits else ""), path)
    return found


def _idx_split(word: str) -> str | None:
    return "test" if word == "t10k" else split_called(word)


def is_idx(path: Path) -> bool:
    """Whether a file is called as those of MNIST are: train-images-idx3-ubyte, …."""
    return _IDX_NAME.fullmatch(path.name) is not None


def load_idx(folder: Path, reading: Reading, *, of: Path | None = None) -> ImageDataset:
    """Load the images and labels of all splits from the IDX files of a folder.

    Parameters
    ----------
    folder : Path
    reading : Reading
    of : Path, optional
        A file of the set that is meant, where the folder has several.

    Raises
    ------
    DataError
        If there are several sets, a file is missing or damaged, or a limit is exceeded.
    """
    families = find_idx(folder)
    if of is not None:
        families = {name: files for name, files in families.items() if _is_of(of, files)}
    if len(families) != 1:
        raise DataError(
            f"{plain(folder)} has IDX files of {len(families)} sets ({', '.join(sorted(families))}); give "
            "the path of the training images of one of them"
        )
    ((family, files),) = families.items()
    splits = dict.fromkeys(split for _, split in files)
    for split in splits:
        if len(files.keys() & {("x", split), ("y", split)}) < 2:
            (there,) = [path for (_, own), path in files.items() if own == split]
            raise DataError(f"{plain(there)} has no file of its {_missing(files, split)} beside it; add it")
    images = {split: _read_idx(files["x", split]) for split in splits}
    labels = {split: _read_idx(files["y", split]) for split in splits}
    notes = []
    if "emnist" in family:
        images = {split: own.swapaxes(1, 2) for split, own in images.items()}
        notes.append("images transposed, since the files of EMNIST hold them on their side")
    return _assemble(folder, family or folder.name, images, labels, None, notes, reading)


def _missing(files: IdxFiles, split: str) -> str:
    return "labels" if ("x", split) in files else "images"


def _is_of(path: Path, files: IdxFiles) -> bool:
    return path in files.values() or path.with_suffix("") in files.values()


def _read_idx(path: Path) -> NDArray[Any]:
    """Read an IDX file: two zeros, type, number of dimensions, their lengths, and values, big-endian."""
    if not path.is_file():
        raise DataError(f"{plain(path)} is no regular file; give IDX files")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            zeros, code, n_dimensions = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{n_dimensions}I", file.read(4 * n_dimensions))
            if zeros or code not in _IDX_TYPES or n_dimensions not in (1, 3):
                raise DataError(f"{plain(path)} is no IDX file of images or labels; download it again")
            dtype = np.dtype(_IDX_TYPES[code])
            n_bytes = math.prod(shape) * dtype.itemsize
            if n_bytes > MAX_DATASET_BYTES:
                raise DataError(
                    f"{plain(path)} has {n_bytes / 2**30:.1f} GB, at most {MAX_DATASET_BYTES / 2**30:.0f} GB "
                    "are read; save fewer or smaller images"
                )
            content = file.read(n_bytes + 1)
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{plain(path)} is no readable IDX file ({error}); download it again") from error
    if len(content) != n_bytes:
        raise DataError(f"{plain(path)} is not as long as its first bytes say; download it again")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def find_mat(folder: Path) -> dict[str, Path]:
    """Return the files train_32x32.mat, … of a folder by "train", "test" and "extra".

    Parameters
    ----------
    folder : Path
    """
    found = {}
    for path in entries(folder):
        if match := _MAT_NAME.fullmatch(path.name):
            found[match["split"].casefold()] = path
    return found


def load_mat(folder: Path, reading: Reading, *, of: Path | None = None) -> ImageDataset:
    """Load the .mat files of SVHN from a folder: X of (height, width, 3, n), y of (n, 1), 10 for the digit 0.

    Parameters
    ----------
    folder : Path
    reading : Reading
    of : Path, optional
        A file that is read where none is called as those of SVHN are.

    Raises
    ------
    DataError
        If a file is damaged, holds no such arrays, or exceeds a limit.
    """
    found = find_mat(folder)
    if of is not None and of not in found.values():
        found = {"": of}
    notes = []
    if (extra := found.pop("extra", None)) is not None:
        if found:
            notes.append(f"{plain(Path(extra.name))} not read; torchvision:SVHN-extra trains on it")
        else:
            found["train"] = extra
    read = {split: _read_mat(path) for split, path in found.items()}
    images = {split: own[0] for split, own in read.items()}
    labels = {split: own[1].reshape(-1) for split, own in read.items()}
    names = None
    values = {int(value) for own in labels.values() for value in np.unique(own)}
    if "" not in found and values <= {*range(1, 11)}:
        labels = {split: own % 10 for split, own in labels.items()}
        names = tuple("0123456789")
        notes.append("label 10 read as the digit 0, as the files of SVHN mean it")
    return _assemble(folder, "" if of is None else of.stem, images, labels, names, notes, reading)


def _read_mat(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    from scipy.io import loadmat, whosmat

    if not path.is_file():
        raise DataError(f"{plain(path)} is no regular file; give a .mat file")
    try:
        shapes = {name: shape for name, shape, _ in whosmat(str(path))}
        if sum(math.prod(shape) for shape in shapes.values()) > MAX_DATASET_BYTES:
            raise DataError(f"{plain(path)} exceeds {MAX_DATASET_BYTES / 2**30:.0f} GB; save fewer images")
        if not {"X", "y"} <= shapes.keys():
            held = ", ".join(map(str, shapes))
            raise DataError(f"{plain(path)} has no X and y; it holds {quote(held)}. Save the arrays as those")
        content = loadmat(str(path), variable_names=["X", "y"])
    except DataError:
        raise
    except NotImplementedError as error:
        raise DataError(f"{plain(path)} is of MATLAB 7.3; save it with -v7") from error
    except Exception as error:  # SciPy raises whatever a damaged file leads it to
        raise DataError(f"{plain(path)} is no readable .mat file ({quote(error)}); get it again") from error
    return content["X"], content["y"]


def _assemble(
    folder: Path,
    name: str,
    images: Mapping[str, NDArray[Any]],
    labels: Mapping[str, NDArray[Any]],
    names: tuple[str, ...] | None,
    notes: list[str],
    reading: Reading,
) -> ImageDataset:
    """Make a data set of arrays as files hold them."""
    turned = {}
    for split, own in images.items():
        order = channels_last(own.shape, len(labels[split]))
        if order is None:
            raise DataError(f"{plain(folder)}: images of shape {own.shape} have no known order; save an .npz")
        turned[split] = own.transpose(order)
        check_labels("labels", labels[split].shape, labels[split].dtype, len(turned[split]))
    indices, class_names, said = class_indices(labels, names)
    pixels, converted = convert_pixels({s: own.dtype for s, own in turned.items()}, turned.__getitem__)
    arrays = {split: (pixels.pop(split), own) for split, own in indices.items()}
    return build_dataset(name or folder.name, arrays, class_names, [*notes, *converted, *said], reading)
