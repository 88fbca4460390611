"""Lists the classes and image files of a folder, and passes over what operating systems leave in one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from defuse_core.base.files import plain
from defuse_core.base.limits import MAX_CLASSES
from defuse_core.base.texts import first_names
from defuse_core.data.class_names import class_key
from defuse_core.data.listing import Item, Listing, natural_order, order_note, split_called
from defuse_core.data.splits import DataError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}
)
_LEFTOVERS = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"})


@dataclass
class PassedOver:
    """What of a folder is not read, or read from where one may not expect it, for `notes`.

    Attributes
    ----------
    suffixes : Counter of str
        Files in the folders of classes that are no images, by suffix.
    n_nested, n_beside : int
        Images in folders within those of classes, which count, and beside the folders of classes, which
        do not.
    n_links : int
        Links to folders within those of classes, which may lead anywhere.
    folders : list of str
        Names of the folders beside train/.
    unlabelled : str
        The folder of a test split whose images are in no class folders.
    doubled : list of str
        Classes with two folders, whose names differ only as systems encode them (NFC, NFD).
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    n_nested: int = 0
    n_beside: int = 0
    n_links: int = 0
    folders: list[str] = field(default_factory=list)
    unlabelled: str = ""
    doubled: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Say what was passed over, a phrase for each kind; nothing if all was read."""
        n, notes = self.suffixes.total(), []
        if n:
            kinds = first_names([plain(Path(suffix)) for suffix in sorted(self.suffixes)])
            notes.append(f"{_count(n, 'file')} passed over, no {'image' if n == 1 else 'images'} ({kinds})")
        if self.n_nested:
            notes.append(f"{_count(self.n_nested, 'image')} in subfolders of classes counted in")
        if self.n_links:
            notes.append(
                f"{_count(self.n_links, 'link')} to folders within classes passed over; copy them there"
            )
        if self.n_beside:
            notes.append(
                f"{_count(self.n_beside, 'image')} beside the class folders passed over; move each into one"
            )
        if self.folders:
            folders, names = _count(len(self.folders), "folder"), first_names(self.folders)
            notes.append(f"{folders} beside train/ passed over ({names})")
        if self.doubled:
            names = first_names(list(dict.fromkeys(self.doubled)))
            notes.append(f"folders whose names look the same are one class ({names})")
        if self.unlabelled:
            notes.append(
                f"{self.unlabelled}/ passed over: its images are in no class folders, so have no label"
            )
        return notes


def list_folder(root: Path) -> Listing:
    """List the images of a folder by their class folders.

    Parameters
    ----------
    root : Path
        It holds train/<class>/ and others that `naming.SPLIT_NAMES` has, or <class>/train/ and others, or
        <class>/.

    Raises
    ------
    DataError
        If there are no classes or no images, a split has two folders, or training lacks a class.
    """
    passed = PassedOver()
    root, notes = _unwrapped(root)
    folders = split_folders(root, passed)
    base = folders.get("train", root)
    names = dict.fromkeys(map(class_key, class_folders(base)))
    if not names:
        raise DataError(f"{base} has no class folders; put the images of each class in one folder")
    if folders:
        passed.n_beside += images_beside(root)
    items: list[Item] = []
    for split, folder in folders.items() if folders else [("", root)]:
        found = list(_class_images(root, folder, split, names, passed))
        beside = images_beside(folder)
        if not found and beside and split == "test":
            passed.unlabelled = plain(Path(folder.name))
            continue
        if not found:
            raise DataError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); add some")
        passed.n_beside += beside
        items += found
    if not folders and all(split_called(part) for part in _second_parts(items)):
        items = [
            item._replace(split=split_called(part) or "")
            for item, part in zip(items, _second_parts(items), strict=True)
        ]
        passed.n_nested = 0
        notes.append("each class has folders of its own for the splits, which are read as such")
    return Listing(items, tuple(names), [*notes, *passed.notes(), *order_note(list(names))])


def _unwrapped(root: Path) -> tuple[Path, list[str]]:
    """Go into a folder that is all that another holds, as unpacking makes them; say so."""
    inner = [entry for entry in entries(root) if entry.is_dir()]
    if len(inner) != 1 or images_beside(root) or images_beside(inner[0]) or len(class_folders(inner[0])) < 2:
        return root, []
    return inner[0], [f"the folder {plain(Path(inner[0].name))}/ in it was read, since it holds nothing else"]


def _second_parts(items: list[Item]) -> list[str]:
    """What each image lies in below the folder of its class; "" where that is the class itself."""
    return [parts[1] if len(parts := Path(item.name).parts) > 2 else "" for item in items]


def split_folders(root: Path, passed: PassedOver) -> dict[str, Path]:
    """Return the folders of train, test and validation, in this order, by the split.

    They are called as `naming.SPLIT_NAMES` has it, in any case. A folder without a test split whose train/
    has no folders holds classes, one of which is called train.

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
    for entry in entries(root):
        if entry.is_dir():
            named[split_called(entry.name) or ""].append(entry)
    others = named.pop("")
    if not named["train"] or not (named["test"] or any(map(class_folders, named["train"]))):
        return {}
    for own in named.values():
        if len(own) > 1:
            raise DataError(f"{root} has both {own[0].name}/ and {own[1].name}/; remove one of them")
    passed.folders = [plain(Path(entry.name)) for entry in others]
    return {split: own[0] for split, own in named.items() if own}


def class_folders(folder: Path) -> list[str]:
    """Return the names of the classes in a folder, in natural order.

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
    for entry in entries(folder):
        if not entry.exists():
            raise DataError(f"{plain(entry)} is a link that leads nowhere; mend or remove it")
        if not entry.is_dir():
            continue
        if plain(entry) != str(entry):
            raise DataError(f"{plain(entry)} has a name that is not UTF-8; rename the folder")
        names.append(entry.name)
    if len(names) > MAX_CLASSES:
        raise DataError(f"{plain(folder)} has {len(names):,} classes, at most {MAX_CLASSES:,} are read")
    return natural_order(names)


def _class_images(
    root: Path, folder: Path, split: str, names: Iterable[str], passed: PassedOver
) -> Iterator[Item]:
    """Yield the images of each class in a folder; a class may be absent."""
    own: dict[str, list[Path]] = {}
    for name in class_folders(folder):
        own.setdefault(class_key(name), []).append(folder / name)
    if unknown := own.keys() - {*names}:
        raise DataError(
            f"{folder} has classes that training has not: {', '.join(sorted(unknown))}; "
            "add them to train/ or remove them"
        )
    if doubled := [label for label, places in own.items() if len(places) > 1]:
        passed.doubled += doubled
    for label, places in own.items():
        for place in places:
            for path in _images_within(place, passed):
                yield Item(plain(path.relative_to(root)), path, label, split)


def _images_within(folder: Path, passed: PassedOver) -> Iterator[Path]:
    """Yield the image files of a class, those at any depth; links to folders are not followed."""
    for entry in entries(folder):
        if is_image(entry.name):
            yield entry
        elif entry.is_symlink() and entry.is_dir():
            passed.n_links += 1
        elif entry.is_dir():
            for path in walk_images(entry):
                passed.n_nested += 1
                yield path
        else:
            passed.suffixes[entry.suffix.lower() or "no suffix"] += 1


def walk_images(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder, by name; hidden folders and links to folders are passed over."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_leftover(name))
        yield from (Path(place, name) for name in sorted(names) if is_image(name))


def images_beside(folder: Path) -> int:
    """Return how many image files lie in a folder itself."""
    return sum(is_image(entry.name) and not entry.is_dir() for entry in entries(folder))


def is_image(name: str) -> bool:
    """Whether a file is called as images are, and no hidden file."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LEFTOVERS


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun if n == 1 else noun + 's'}"


def entries(folder: Path) -> list[Path]:
    """Return the entries of a folder by name, without hidden ones and leftovers of operating systems."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{plain(folder)} cannot be listed ({error.strerror}); change its permissions"
        ) from error
    return [entry for entry in found if not _is_leftover(entry.name)]
