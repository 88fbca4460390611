"""Lists the classes and image files of a folder, and passes over what operating systems leave in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from defuse_core.base.limits import MAX_CLASSES, MAX_IMAGES
from defuse_core.data.pictures import ImageFiles, Picture, plain
from defuse_core.data.splits import DataError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}
)
_LEFTOVERS = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"})


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
    folder: Path, names: Sequence[str], files: ImageFiles
) -> tuple[list[Picture], list[int], Counter[str]]:
    """Read the images of each class in its folder.

    Parameters
    ----------
    folder : Path
        It holds a folder a class; a class may be absent.
    names : sequence of str
        Of the classes.
    files : ImageFiles
        Remembers the files that cannot be used, which are left out here.

    Returns
    -------
    pictures : list of Picture
    labels : list of int
    others : Counter of str
        How many files were passed over that are no images, by their suffix.

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
    others: Counter[str] = Counter()
    for label, name in enumerate(names):
        for entry in _entries(folder / name) if (folder / name).is_dir() else []:
            if entry.suffix.lower() in IMAGE_SUFFIXES:
                found.append(entry)
                labels.append(label)
            elif not entry.is_dir():
                others[entry.suffix.lower() or "no suffix"] += 1
    if not found:
        raise DataError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); add some")
    if len(found) > MAX_IMAGES:
        raise DataError(
            f"{folder} has {len(found):,} images, at most {MAX_IMAGES:,} are read; leave some out"
        )
    pictures = files.read(found, folder)
    return pictures, labels, others


def passed_over(others: Counter[str]) -> tuple[str, ...]:
    """Say how many files are no images; nothing if all are."""
    if not others:
        return ()
    n, suffixes = others.total(), sorted(others)
    some = ", ".join(plain(Path(suffix)) for suffix in suffixes[:5]) + (" …" if len(suffixes) > 5 else "")
    return (
        f"{n:,} {'file' if n == 1 else 'files'} passed over, no {'image' if n == 1 else 'images'} ({some})",
    )


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder by name, without hidden ones and leftovers of operating systems."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{plain(folder)} cannot be listed ({error.strerror}); change its permissions"
        ) from error
    return [e for e in entries if not e.name.startswith(".") and e.name.casefold() not in _LEFTOVERS]
