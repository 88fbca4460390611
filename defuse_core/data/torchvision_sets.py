"""Loads the classification data sets of torchvision by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defuse_core.base.texts import quote
from defuse_core.data.arrays import Arrays, build_dataset
from defuse_core.data.class_names import class_key
from defuse_core.data.listing import Item, Listing, gather
from defuse_core.data.reading import Reading
from defuse_core.data.splits import DataError, ImageDataset
from defuse_core.data.torchvision_names import TORCHVISION_SETS, TorchvisionSet

_LABELS = ("targets", "labels", "_labels", "y")
_PAIRS = ("_samples", "samples")  # of an image and a label
_FILES = ("_image_files", "_images")
_NAMES = ("classes", "categories", "all_categories")


def load_torchvision_source(source: str, reading: Reading) -> ImageDataset:
    """`load_torchvision` by "torchvision:<name>[:root]".

    Parameters
    ----------
    source : str
    reading : Reading
    """
    _, name, root = [*source.split(":", 2), ""][:3]
    return _load(name, Path(root or "data"), reading, download=True)


def load_torchvision(
    name: str, root: str | Path = "data", *, image_size: int | None = None, download: bool = True
) -> ImageDataset:
    """Load a data set by torchvision, downloading what is not under `root`.

    Parameters
    ----------
    name : str
        One of `TORCHVISION_SETS`, in any case. SVHN-extra has the 531,131 easier house numbers of SVHN's
        third split to train on, 1.6 GB.
    root : str or Path
        Where torchvision keeps its files.
    image_size : int, optional
        Size of the images after resizing, pixels; 32 by default for GTSRB. Sets of mixed sizes need one.

    Raises
    ------
    DataError
        If there is no such set, or the files are missing and cannot be downloaded.
    """
    return _load(name, Path(root), Reading(image_size), download=download)


def _load(name: str, root: Path, reading: Reading, *, download: bool) -> ImageDataset:
    known = {each.casefold(): each for each in TORCHVISION_SETS}
    if name.casefold() not in known:
        raise DataError(
            f"torchvision data set must be one of {', '.join(TORCHVISION_SETS)}, got {quote(name, 60)!r}; "
            "give one of them, or the images as a folder or an .npz file"
        )
    name = known[name.casefold()]
    wanted = TORCHVISION_SETS[name]
    for path in [path for depth in ("*", "*/*", "*/raw/*") for path in root.glob(depth)]:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(f"{path} is no regular file; remove it, and torchvision downloads it")
    parts = _open_parts(name, wanted, root, download=download)
    labels = {split: _labels(part) for split, part in parts.items()}
    n_classes = 1 + max(max(own, default=0) for own in labels.values())
    names = _class_names(next(iter(parts.values())), wanted, n_classes)
    images = {split: _pixels(part, wanted) for split, part in parts.items()}
    if any(own is None for own in images.values()):
        size = reading.image_size or wanted.size
        return _from_files(name, root, parts, labels, names, replace(reading, image_size=size))
    arrays: dict[str, Arrays] = {
        split: (own, np.array(labels[split])) for split, own in images.items() if own is not None
    }
    notes = ["images transposed, since the files of EMNIST hold them on their side"] if wanted.upright else []
    return build_dataset(name, arrays, names, notes, reading)


def _open_parts(name: str, wanted: TorchvisionSet, root: Path, *, download: bool) -> dict[str, Any]:
    from torchvision import datasets

    kind = getattr(datasets, wanted.kind or name)
    try:
        return {
            split: _open(kind, root, arguments, download=download)
            for split, arguments in wanted.splits.items()
        }
    except Exception as error:  # torchvision and SciPy raise whatever a damaged file leads them to
        raise DataError(
            f"torchvision's {name} is not under {root} and could not be downloaded ({error}); "
            "check the network, or give the data as an .npz file"
        ) from error


def _open(kind: Callable[..., Any], root: Path, arguments: dict[str, Any], *, download: bool) -> Any:
    """Open what is there, else download it: some sets refuse to download what is there already."""
    own = inspect.signature(kind).parameters
    if "download" not in own and kind.__name__ not in ("EMNIST", "QMNIST"):
        return kind(str(root), **arguments)
    if download:
        with suppress(Exception):  # its files are not there, or damaged, which the next attempt says
            return kind(str(root), download=False, **arguments)
    return kind(str(root), download=download, **arguments)


def _labels(part: Any) -> list[int]:
    for name in _LABELS:
        if (own := getattr(part, name, None)) is not None:
            return [int(label) for label in own]
    for name in _PAIRS:
        if (pairs := getattr(part, name, None)) is not None:
            return [int(label) for _, label in pairs]
    return [int(part[index][1]) for index in range(len(part))]


def _class_names(part: Any, wanted: TorchvisionSet, n_classes: int) -> tuple[str, ...]:
    """The names of torchvision, where it has one for every class that tells it from others."""
    numbers = tuple(map(str, range(n_classes)))
    own = next((value for name in _NAMES if (value := getattr(part, name, None))), None)
    if wanted.numbered or own is None or len(own) < n_classes:
        return numbers
    names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in own]
    keys = [class_key(name) for name in names]
    return tuple(
        f"{name} ({index})" if keys.count(key) > 1 else name
        for index, (name, key) in enumerate(zip(names, keys, strict=True))
    )


def _pixels(part: Any, wanted: TorchvisionSet) -> NDArray[np.uint8] | None:
    """The images of a set that holds them as one array, channels last; None where it reads files."""
    data = getattr(part, "data", None)
    if data is None or isinstance(data, list):
        return None
    images: NDArray[np.uint8] = np.asarray(data)
    if images.ndim == 4 and images.shape[1] == 3:
        return images.transpose(0, 2, 3, 1)
    return images.transpose(0, 2, 1) if wanted.upright else images


def _from_files(
    name: str,
    root: Path,
    parts: dict[str, Any],
    labels: dict[str, list[int]],
    names: Sequence[str],
    reading: Reading,
) -> ImageDataset:
    items = []
    for split, part in parts.items():
        files = _files(part)
        for index, label in enumerate(labels[split]):
            source = _Lazy(part, index) if files is None else Path(files[index])
            title = f"{split or 'image'} {index + 1}" if files is None else str(files[index])
            items.append(Item(title, source, names[label], split))
    return gather(root, Listing(items, tuple(names)), reading, name=name)


def _files(part: Any) -> list[str | Path] | None:
    """The files of a set's images, in its order; None where it has no list of them."""
    for name in _FILES:
        if (files := getattr(part, name, None)) is not None:
            return list(files)
    for name in _PAIRS:
        pairs = getattr(part, name, None)
        if pairs and isinstance(pairs[0][0], str | Path):
            return [file for file, _ in pairs]
    return None


class _Lazy:
    """Decodes an image of a set when it is read, and no sooner."""

    def __init__(self, part: Any, index: int) -> None:
        self._part, self._index = part, index

    def __call__(self) -> Image.Image:
        image: Image.Image = self._part[self._index][0]
        return image
