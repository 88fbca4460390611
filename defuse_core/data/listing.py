"""A list of images with class, split and group, whatever named them; `gather` makes a data set of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from defuse_core.base.files import plain
from defuse_core.base.limits import MAX_IMAGES
from defuse_core.base.texts import first_names
from defuse_core.data.class_names import class_key
from defuse_core.data.decoding import ImageSource
from defuse_core.data.dividing import set_apart
from defuse_core.data.naming import SPLIT_NAMES
from defuse_core.data.picture_rules import Picture
from defuse_core.data.pictures import ImageFiles, Rules
from defuse_core.data.reading import TEST_SHARE, Reading
from defuse_core.data.splits import DataError, ImageDataset, Split, check_size

_NUMBER = re.compile(r"(\d{1,18})")


class Item(NamedTuple):
    """An image that was named, before it is read.

    Attributes
    ----------
    name : str
        For messages.
    source : Path, bytes or function
        As `decoding.read_picture` takes it.
    label : str
        The name of its class.
    split : str
        "train", "validation" or "test"; "" where nothing says.
    group : str
        "" where nothing says.
    """

    name: str
    source: ImageSource
    label: str
    split: str = ""
    group: str = ""


@dataclass
class Listing:
    """The images of a data set, in the order in which they are read.

    Attributes
    ----------
    items : list of Item
    class_names : tuple of str
    notes : list of str
        What was passed over or assumed.
    unusable : dict of str to str
        Files that are named and cannot be used, with the reason.
    """

    items: list[Item]
    class_names: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names, numbers in them by value.

    Examples
    --------
    >>> natural_order(["10", "9", "b2", "b10", "b1"])
    ['9', '10', 'b1', 'b2', 'b10']
    """
    return sorted(names, key=lambda name: ([_part(part) for part in _NUMBER.split(name)], name))


def _part(part: str) -> tuple[int, int, str]:
    """A part of a name as it is compared: of digits by value, before any other text."""
    return (0, int(part), "") if part.isdecimal() else (1, 0, part) if part else (-1, 0, "")


def order_note(names: Sequence[str]) -> list[str]:
    """Say that classes are in natural order, where the order by characters is another."""
    if list(names) == sorted(names):
        return []
    return [
        f"classes are numbered in natural order ({first_names(names, 3)}), by characters it would be "
        f"{first_names(sorted(names), 3)}: a classifier trained with torchvision's ImageFolder has that"
    ]


def split_called(name: str) -> str | None:
    """Return the split that people call so, "train", "validation" or "test"; None for another name."""
    return SPLIT_NAMES.get(class_key(name).casefold())


def settle_splits(where: str, splits: Sequence[str]) -> tuple[list[str], list[str]]:
    """Decide what validation and test are; return the splits, "" where they are to be divided, and notes.

    Parameters
    ----------
    where : str
        For messages.
    splits : sequence of {"train", "validation", "test", ""}
        Of every image.

    Raises
    ------
    DataError
        If some images have a split and others have none, or none is of training.
    """
    present = set(splits)
    if "" in present and len(present) > 1:
        n = sum(not split for split in splits)
        raise DataError(f"{where} names no split for {n:,} of {len(splits):,} images; name one for each")
    if present == {""}:
        return list(splits), []
    if "train" not in present:
        raise DataError(f"{where} has no training images, only {' and '.join(sorted(present))}; add train")
    if "test" in present:
        return list(splits), []
    if "validation" in present:
        note = "there is no test split, so the validation split is the test split, and nothing is validation"
        return ["test" if split == "validation" else split for split in splits], [note]
    return [""] * len(splits), []


def gather(
    root: Path, listing: Listing, reading: Reading, *, name: str = "", channels: int | None = None
) -> ImageDataset:
    """Read the images of a list by the same rules, divide them, and make a data set of them.

    Parameters
    ----------
    root : Path
        Of the data set, for messages.
    listing : Listing
    reading : Reading
    name : str
        Of the data set; by default that of the root.
    channels : {1, 3}, optional
        Grey or RGB; by default grey only if every image is grey.

    Raises
    ------
    DataError
        If there is no image, sizes are mixed, files cannot be read, or a limit is exceeded.
    """
    if len(listing.items) > MAX_IMAGES:
        raise DataError(
            f"{plain(root)} has {len(listing.items):,} images, at most {MAX_IMAGES:,} are read; "
            "leave some out"
        )
    files = ImageFiles(root, reading)
    for file, reason in listing.unusable.items():
        files.refuse(file, reason)
    pictures, places = files.read((item.name, item.source) for item in listing.items)
    files.check()
    if not pictures:
        raise DataError(f"{plain(root)} has no image that can be read; add some")
    items = [listing.items[place] for place in places]
    notes = list(listing.notes)
    splits, labels = _divide(plain(root), items, listing.class_names, reading, notes)
    if channels is None:
        channels = 3 if any(picture.pixels.ndim == 3 for picture in pictures) else 1
    n_pixels = sum(picture.pixels.shape[0] * picture.pixels.shape[1] for picture in pictures)
    check_size(plain(root), len(pictures), n_pixels * channels)
    rules = Rules.of(pictures)
    made = _stack(pictures, splits, labels, rules, channels)
    groups = tuple(item.group for item, split in zip(items, splits, strict=True) if split == "train")
    return ImageDataset(
        name or root.resolve().name, made["train"], made["test"], listing.class_names, made.get("validation"),
        (*files.notes(rules), *notes), groups if any(groups) else None,
    )  # fmt: skip


def _divide(
    where: str, items: Sequence[Item], names: Sequence[str], reading: Reading, notes: list[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the split of every item, and its label; add to the notes what was decided."""
    index = {name: number for number, name in enumerate(names)}
    labels = np.array([index[item.label] for item in items], np.int64)
    splits, said = settle_splits(where, [item.split for item in items])
    notes += said
    groups = [item.group for item in items]
    if any(groups) and not all(groups):
        n = sum(not group for group in groups)
        raise DataError(f"{where} names no group for {n:,} of {len(groups):,} images; name one for each")
    if splits[0]:
        if across := _groups_across(items):
            notes.append(f"groups are in more than one split ({first_names(across)})")
        return splits, labels
    own = groups if any(groups) else None
    is_apart = set_apart(torch.from_numpy(labels), TEST_SHARE, seed=reading.seed, groups=own)
    notes.append(division_note(int(is_apart.sum()), len(items), reading.seed, grouped=own is not None))
    return ["test" if apart else "train" for apart in is_apart.tolist()], labels


def division_note(n_apart: int, n: int, seed: int | None, *, grouped: bool = False) -> str:
    """Say how a test split was set apart."""
    how = "the last of every class" if seed is None else f"of every class at random, seed {seed}"
    if grouped:
        how = f"whole groups at random, seed {seed or 0}"
    return f"there is no test split, so {n_apart:,} of {n:,} images were set apart for it ({how})"


def _groups_across(items: Sequence[Item]) -> list[str]:
    first: dict[str, str] = {}
    across = {
        item.group: None
        for item in items
        if item.group and first.setdefault(item.group, item.split) != item.split
    }
    return list(across)


def _stack(
    pictures: list[Picture],
    splits: Sequence[str],
    labels: NDArray[np.int64],
    rules: Rules,
    channels: int,
) -> dict[str, Split]:
    """Make the splits one by one, and empty the list of pictures to free their memory."""
    by_split = {
        name: list(compress(pictures, (split == name for split in splits)))
        for name in ("train", "test", "validation")
        if name in splits
    }
    pictures.clear()
    made = {}
    for name, own in by_split.items():
        images = rules.stack(own, channels)
        planar = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (n, channels, height, width)
        here = labels[np.array([split == name for split in splits])]
        made[name] = Split(torch.from_numpy(planar), torch.from_numpy(here))
    return made
