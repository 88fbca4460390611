"""Lists the classes and image files of a folder, and passes over what operating systems leave in one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from defuse_core.base.files import plain
from defuse_core.base.limits import MAX_CLASSES, MAX_IMAGES
from defuse_core.base.texts import first_names
from defuse_core.data.naming import VALIDATION_NAMES
from defuse_core.data.pictures import ImageFiles, Picture
from defuse_core.data.splits import DataError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}
)
_LEFTOVERS = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"})
_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(VALIDATION_NAMES, "validation")


@dataclass
class PassedOver:
    """What of a folder is not read, for `notes`.

    Attributes
    ----------
    suffixes : Counter of str
        Files in the folders of classes that are no images, by suffix.
    n_nested, n_beside : int
        Images in folders within those of classes, and beside the folders of classes.
    folders : list of str
        Names of the folders beside train/.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    n_nested: int = 0
    n_beside: int = 0
    folders: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Say what was passed over, a phrase for each kind; nothing if all was read."""
        n, notes = self.suffixes.total(), []
        if n:
            kinds = first_names([plain(Path(suffix)) for suffix in sorted(self.suffixes)])
            notes.append(f"{_count(n, 'file')} passed over, no {'image' if n == 1 else 'images'} ({kinds})")
        if self.n_nested:
            notes.append(
                f"{_count(self.n_nested, 'image')} in subfolders of classes passed over; move them up, or "
                "make each subfolder a class"
            )
        if self.n_beside:
            notes.append(
                f"{_count(self.n_beside, 'image')} beside the class folders passed over; move each into one"
            )
        if self.folders:
            folders, names = _count(len(self.folders), "folder"), first_names(self.folders)
            notes.append(f"{folders} beside train/ passed over ({names})")
        return tuple(notes)


def split_folders(root: Path, passed: PassedOver) -> dict[str, Path]:
    """Return the folders of train, test and validation, in this order, by the split.

    They are called train, test, and any of `naming.VALIDATION_NAMES`, in any case. A folder without a test
    split whose train/ has no folders holds classes, one of which is called train.

    Parameters
    ----------
    root : Path
    passed : PassedOver
        Remembers the other folders.

    Returns
    -------
    folders : dict of Path
        Empty if the root holds the classes.

    Raises
    ------
    DataError
        If a split has two folders.
    """
    named: dict[str, list[Path]] = {"train": [], "test": [], "validation": [], "": []}
    for entry in _entries(root):
        if entry.is_dir():
            named[_SPLITS.get(entry.name.casefold(), "")].append(entry)
    others = named.pop("")
    if not named["train"] or not (named["test"] or any(map(class_folders, named["train"]))):
        return {}
    for own in named.values():
        if len(own) > 1:
            raise DataError(f"{root} has both {own[0].name}/ and {own[1].name}/; remove one of them")
    passed.folders = [plain(Path(entry.name)) for entry in others]
    return {split: own[0] for split, own in named.items() if own}


def class_folders(folder: Path) -> list[str]:
    """Return the names of the classes in a folder, sorted.

    Parameters
    ----------
    folder : Path
        Hidden folders in it and those of operating systems are no classes.

    Raises
    ------
    DataError
        If the folder cannot be read, a link in it leads nowhere, a name is not UTF-8, or there are too many.
    """
    names = []
    for entry in _entries(folder):
        if not entry.exists():
            raise DataError(f"{plain(entry)} is a link that leads nowhere; mend or remove it")
        if not entry.is_dir():
            continue
        if plain(entry) != str(entry):
            raise DataError(f"{plain(entry)} has a name that is not UTF-8; rename the folder")
        names.append(entry.name)
    if len(names) > MAX_CLASSES:
        raise DataError(f"{plain(folder)} has {len(names):,} classes, at most {MAX_CLASSES:,} are read")
    return sorted(names)


def read_classes(
    folder: Path, names: Sequence[str], files: ImageFiles, passed: PassedOver
) -> tuple[list[Picture], list[int]]:
    """Read the images of each class in its folder.

    Parameters
    ----------
    folder : Path
        It holds a folder a class; a class may be absent.
    names : sequence of str
        Of the classes.
    files : ImageFiles
        Remembers the files that cannot be used, which are left out here.
    passed : PassedOver
        Remembers what is not read.

    Returns
    -------
    pictures : list of Picture
    labels : list of int

    Raises
    ------
    DataError
        If there is a class that is not among the names, or no image.
    """
    if unknown := set(class_folders(folder)) - set(names):
        raise DataError(
            f"{folder} has classes that training has not: {', '.join(sorted(unknown))}; "
            "add them to train/ or remove them"
        )
    found: list[Path] = []
    labels: list[int] = []
    nested = 0
    for label, name in enumerate(names):
        for entry in _entries(folder / name) if (folder / name).is_dir() else []:
            if _is_image(entry.name):
                found.append(entry)
                labels.append(label)
            elif entry.is_dir():
                nested += _n_images(entry)
            else:
                passed.suffixes[entry.suffix.lower() or "no suffix"] += 1
    if not found:
        remedy = f"move up the {_count(nested, 'image')} in subfolders of classes" if nested else "add some"
        raise DataError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); {remedy}")
    if len(found) > MAX_IMAGES:
        raise DataError(
            f"{folder} has {len(found):,} images, at most {MAX_IMAGES:,} are read; leave some out"
        )
    passed.n_nested += nested
    passed.n_beside += images_beside(folder)
    return files.read(found, folder), labels


def images_beside(folder: Path) -> int:
    """Return how many image files lie in a folder itself."""
    return sum(_is_image(entry.name) and not entry.is_dir() for entry in _entries(folder))


def _n_images(folder: Path) -> int:
    """How many image files lie in a folder at any depth; of a link, which may lead anywhere, at the top."""
    n_images = 0
    for _, folders, names in os.walk(folder):
        n_images += sum(_is_image(name) for name in names)
        folders[:] = [] if folder.is_symlink() else [name for name in folders if not name.startswith(".")]
    return n_images


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun if n == 1 else noun + 's'}"


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder by name, without hidden ones and leftovers of operating systems."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{plain(folder)} cannot be listed ({error.strerror}); change its permissions"
        ) from error
    return [e for e in entries if not e.name.startswith(".") and e.name.casefold() not in _LEFTOVERS]
