"""Makes a data set of arrays, whatever file held them: pixels become uint8, labels become class indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defuse_core.base.limits import MAX_CLASSES
from defuse_core.base.texts import first_names
from defuse_core.data.class_names import class_key
from defuse_core.data.dividing import set_apart
from defuse_core.data.listing import division_note, natural_order, order_note, settle_splits
from defuse_core.data.reading import TEST_SHARE, Reading
from defuse_core.data.resizing import fit_splits
from defuse_core.data.splits import DataError, ImageDataset, Split

Arrays = tuple[NDArray[np.uint8], NDArray[Any]]
"""Images (n, height, width) or (n, height, width, 1 or 3), and labels (n,)."""

_GIVE_ONE = "give one class index an image"


@dataclass(frozen=True)
class PixelRange:
    """The least and the largest value of arrays of one type, over all splits."""

    low: float
    high: float

    @classmethod
    def of(cls, arrays: Iterable[NDArray[Any]]) -> PixelRange:
        """Find it; not a number where a pixel is none."""
        lows, highs = zip(*((float(own.min()), float(own.max())) for own in arrays), strict=True)
        return cls(float(np.min(lows)), float(np.max(highs)))

    def convert(self, images: NDArray[Any]) -> tuple[NDArray[np.uint8], str]:
        """Return images of another type as uint8, and say how.

        Raises
        ------
        DataError
            If it is not clear which value is white.
        """
        low, high, kind = self.low, self.high, images.dtype.kind
        where = f"{images.dtype} pixels of {low:g} … {high:g}"
        if kind == "b":
            return images.astype(np.uint8) * np.uint8(255), "bool pixels scaled to 0 and 255"
        if kind in "iu" and low >= 0:
            bits = max(8, int(high).bit_length())
            if bits == 8:
                return images.astype(np.uint8), f"{where} saved as uint8"
            return (images >> (bits - 8)).astype(np.uint8), f"{where} scaled from {bits} to 8 bits"
        if kind == "f" and low >= 0 and high <= 1:
            return _rounded(images, 255, 0), f"{where} scaled from 0 … 1 to 0 … 255"
        if kind == "f" and -1 <= low < 0 and high <= 1:
            return _rounded(images, 127.5, 127.5), f"{where} scaled from −1 … 1 to 0 … 255"
        if kind == "f" and low >= 0 and high <= 255:
            return _rounded(images, 1, 0), f"{where} rounded to uint8"
        raise DataError(
            f"{where} leave open what is black and white; undo the normalisation, scale them to 0 … 255 and "
            "save them with .astype('uint8')"
        )


def _rounded(images: NDArray[Any], factor: float, offset: float) -> NDArray[np.uint8]:
    """Scale floats image by image, since a copy of all as floats would take four times the memory."""
    made = np.empty(images.shape, np.uint8)
    for index, image in enumerate(images):
        made[index] = np.rint(image.astype(np.float64) * factor + offset).astype(np.uint8)
    return made


def convert_pixels(
    dtypes: Mapping[str, np.dtype[Any]], read: Callable[[str], NDArray[Any]]
) -> tuple[dict[str, NDArray[np.uint8]], list[str]]:
    """Read the images of all splits as uint8, by the same rule; return them, and what was converted.

    Parameters
    ----------
    dtypes : mapping
        Types of the images by split; other types than uint8 are read twice, first to find their range.
    read : function of a split
        Returns its images.
    """
    kinds = {split: dtype.kind for split, dtype in dtypes.items() if dtype != np.uint8}
    ranges = {
        kind: PixelRange.of(read(split) for split, own in kinds.items() if own == kind)
        for kind in {*kinds.values()}
    }
    images, notes = {}, dict[str, None]()
    for split in dtypes:
        images[split] = read(split)
        if split in kinds:
            images[split], note = ranges[kinds[split]].convert(images[split])
            notes[note] = None
    return images, list(notes)


def channels_last(shape: tuple[int, ...], n_labels: int) -> tuple[int, ...] | None:
    """Return the order of axes that makes images (n, height, width[, channels]); None where none does.

    Parameters
    ----------
    shape : tuple of int
    n_labels : int

    Examples
    --------
    >>> channels_last((10, 3, 32, 32), 10), channels_last((32, 32, 3, 10), 10)
    ((0, 2, 3, 1), (3, 0, 1, 2))
    """
    if len(shape) == 3:
        return (0, 1, 2) if shape[0] == n_labels or shape[2] != n_labels else (2, 0, 1)
    if len(shape) != 4:
        return None
    if shape[0] != n_labels and shape[3] == n_labels and shape[2] in (1, 3):  # as MATLAB has it
        return 3, 0, 1, 2
    if shape[3] in (1, 3):
        return 0, 1, 2, 3
    return (0, 2, 3, 1) if shape[1] in (1, 3) else None


def check_labels(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], n_images: int) -> None:
    """Check by its header that an array may be the labels of images.

    Parameters
    ----------
    name : str
    shape, dtype
        Of the array.
    n_images : int

    Raises
    ------
    DataError
        If not.
    """
    fits = len(shape) in (1, 2) and shape[:1] == (n_images,) and 0 not in shape
    if not fits or dtype.kind not in "iubfUS":
        raise DataError(f"{name} must be {n_images} integers, got {dtype} {shape}; {_GIVE_ONE}")


def class_indices(
    labels: Mapping[str, NDArray[Any]], names: Sequence[str] | None
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...], list[str]]:
    """Return labels as class indices, the names of the classes, and what was converted.

    Parameters
    ----------
    labels : mapping of (n,), (n, 1) or one-hot (n, n_classes)
        By the split: integers, whole floats, or texts.
    names : sequence of str or None
        Of the classes, by index.

    Raises
    ------
    DataError
        If labels are no classes, or texts are not among the names.
    """
    notes: dict[str, None] = {}
    flat = {split: _flat(split, own, notes) for split, own in labels.items()}
    if any(own.dtype.kind in "US" for own in flat.values()):
        return _by_name(flat, names, notes)
    whole = {split: own.astype(np.int64) for split, own in flat.items()}
    low = min(int(own.min()) for own in whole.values())
    high = max(int(own.max()) for own in whole.values())
    if low == 1 and (names is None or len(names) == high):
        notes["labels begin at 1, so the class of label 1 has index 0"] = None
        whole = {split: own - 1 for split, own in whole.items()}
        own_names = tuple(map(str, range(1, min(high, MAX_CLASSES + 1) + 1)))
        return whole, tuple(names or own_names), list(notes)
    n_images = sum(map(len, whole.values()))
    if names is None and high >= n_images:
        raise DataError(
            f"label {high} of only {n_images} images; renumber the labels from 0, or save class_names too"
        )
    return whole, tuple(names or map(str, range(max(0, high) + 1))), list(notes)


def _flat(split: str, labels: NDArray[Any], notes: dict[str, None]) -> NDArray[Any]:
    """Labels (n,) of one-hot rows, columns, booleans and floats."""
    where = f"the {split} labels" if split else "the labels"
    if labels.ndim == 2 and labels.shape[1] == 1:
        notes["labels of shape (n, 1) read as n labels"] = None
        labels = labels[:, 0]
    if labels.dtype.kind == "S":
        labels = np.array(decoded_names(labels.ravel()), dtype=str).reshape(labels.shape)
    if labels.ndim == 2:
        is_one_hot = labels.dtype.kind in "iubf" and (
            ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()
        )
        if not is_one_hot:
            n = len(labels)
            raise DataError(
                f"{where} must be {n} integers or one-hot, got {labels.dtype} {labels.shape}; {_GIVE_ONE}"
            )
        notes[f"one-hot labels of {labels.shape[1]} classes read as the class that is 1"] = None
        indices: NDArray[Any] = labels.argmax(1)
        return indices
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels != np.rint(labels)).any() or np.abs(labels).max() > 2**53:
            raise DataError(
                f"{where} must be {len(labels)} integers, got {labels.dtype} {labels.shape}; {_GIVE_ONE}"
            )
        notes["labels that are whole floats read as integers"] = None
    return labels


def _by_name(
    labels: Mapping[str, NDArray[Any]], names: Sequence[str] | None, notes: dict[str, None]
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...], list[str]]:
    """Labels that are texts as places among the names, or among themselves in natural order."""
    texts = {split: [class_key(str(text)) for text in own.tolist()] for split, own in labels.items()}
    used = {text for own in texts.values() for text in own}
    order = [class_key(name) for name in names] if names is not None else natural_order(used)
    if names is not None and used.isdisjoint(order) and all(text.isdecimal() for text in used):
        notes["labels that are texts of digits read as integers"] = None
        numbers = {split: np.array([int(text[:18]) for text in own]) for split, own in texts.items()}
        whole, found, more = class_indices(numbers, names)
        return whole, found, [*notes, *more]
    index = {text: place for place, text in enumerate(order)}
    if unknown := sorted(used - index.keys()):
        raise DataError(
            f"labels {first_names(unknown)} are not among the class names; add them or rename them"
        )
    notes["labels that are texts are the names of the classes"] = None
    whole = {split: np.array([index[text] for text in own], np.int64) for split, own in texts.items()}
    shown = tuple(names) if names is not None else tuple(order)
    return whole, shown, [*notes, *([] if names is not None else order_note(order))]


def decoded_names(names: NDArray[Any]) -> tuple[str, ...]:
    """Return an array of class names as text.

    Parameters
    ----------
    names : (n_classes,) of text, of bytes of UTF-8 or of integers

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


def to_split(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> Split:
    """Make a split of NHW or NHWC images."""
    if images.ndim == 3:
        images = images[..., None]
    planar = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (n, channels, height, width)
    return Split(torch.from_numpy(planar), torch.from_numpy(labels.astype(np.int64)))


def build_dataset(
    name: str,
    arrays: dict[str, Arrays],
    class_names: Sequence[str],
    notes: Sequence[str],
    reading: Reading,
) -> ImageDataset:
    """Make a data set of arrays by split, resized as is asked for and divided where there is no test split.

    Parameters
    ----------
    name : str
    arrays : dict of Arrays
        By "train", "validation", "test", or "" where nothing says; labels are class indices. It is emptied.
    class_names : sequence of str
    notes : sequence of str
        What was converted before.
    reading : Reading
    """
    if "" in arrays:
        arrays["train"] = arrays.pop("")
    present = [*arrays]
    settled, said = settle_splits(name, present)
    splits = {new or "train": to_split(*arrays.pop(old)) for old, new in zip(present, settled, strict=True)}
    splits, resized = fit_splits(name, splits, reading)
    train, test = splits["train"], splits.get("test")
    notes = [*notes, *said, *resized]
    if test is None:
        is_apart = set_apart(train.labels, TEST_SHARE, seed=reading.seed)
        notes.append(division_note(int(is_apart.sum()), len(train), reading.seed))
        train, test = train[~is_apart], train[is_apart]
    return ImageDataset(name, train, test, tuple(class_names), splits.get("validation"), tuple(notes))
