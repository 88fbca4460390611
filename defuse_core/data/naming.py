"""The kinds of data sets: how each is recognised, loaded and named. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from defuse_core.base.errors import DataError

FROM_TEST: Literal["from-test"] = "from-test"
"""Validation images that are a random half of the test images."""

Validation = float | Literal["from-test"]
"""Where validation images come from: a share of the training images, in (0, 1), or `FROM_TEST`."""


SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
}  # fmt: skip
"""What people call a split, in any case: as a folder, in the name of an array, in a table."""

NO_SOURCE = "the data set is an empty text; give its name or path, or . for the current folder"


def _same(source: str) -> str:
    return source


@dataclass(frozen=True)
class DataSource:
    """A kind of data set. A source is the text that a person types, such as "digits" or a path.

    Attributes
    ----------
    matches : function of a source
        Whether it is of this kind, as true or false.
    loader : str
        "module:function". It takes the source and a `reading.Reading`, and returns an `ImageDataset`, which
        is resized and divided as that says if it is not yet. It is imported when a data set is loaded, since
        that takes torch.
    absolute : function of a source
        Returns it with absolute paths, since a run starts in a folder of its own.
    portable : function of a source
        Returns it without the folders of this machine; None if it is only a path.
    title : function of a source
        Returns what results and tables call it.
    """

    matches: Callable[[str], object]
    loader: str
    absolute: Callable[[str], str] = _same
    portable: Callable[[str], str | None] = _same
    title: Callable[[str], str] = _same


def _absolute_torchvision(source: str) -> str:
    kind, name, root = [*source.split(":", 2), ""][:3]
    return f"{kind}:{name}:{Path(root or 'data').resolve()}"


def _without_root(source: str) -> str:
    return ":".join(source.split(":")[:2])


def _absolute_path(source: str) -> str:
    if not source:
        raise DataError(NO_SOURCE)
    return str(Path(source).expanduser().resolve())


def _nothing(source: str) -> None:
    del source


def _file_name(source: str) -> str:
    return source.rpartition("/")[2]


ELSEWHERE = "elsewhere:"
"""Begins the source of data that are on another machine, by a path of that machine; none of it is opened."""


def _there(source: str) -> str:
    return source.removeprefix(ELSEWHERE)


SOURCES: list[DataSource] = [
    DataSource(
        re.compile(ELSEWHERE).match, "defuse_core.data.elsewhere:refuse_elsewhere",
        portable=_nothing, title=lambda source: _file_name(_there(source)),
    ),
    DataSource("digits".__eq__, "defuse_core.data.sources:load_digits_source"),
    DataSource(
        re.compile("torchvision:").match, "defuse_core.data.torchvision_sets:load_torchvision_source",
        absolute=_absolute_torchvision, portable=_without_root, title=_without_root,
    ),
    DataSource(
        lambda _: True, "defuse_core.data.sources:load_path",
        absolute=_absolute_path, portable=_nothing, title=_file_name,
    ),
]  # fmt: skip
"""All kinds; the first that matches a source is its kind."""


def source_kind(source: str) -> DataSource:
    """Return the kind of data set that a source is of."""
    return next(kind for kind in SOURCES if kind.matches(source))


def absolute_source(source: str) -> str:
    """Make the path in a source absolute, since a run starts in a folder of its own.

    Raises
    ------
    DataError
        If it is empty: that would be the current folder.

    Examples
    --------
    >>> absolute_source("digits"), absolute_source("torchvision:SVHN:/data")
    ('digits', 'torchvision:SVHN:/data')
    """
    return source_kind(source).absolute(source)


def without_path(source: str) -> str | None:
    """Remove the folder, which is of another machine, from a source; None if it is only a path."""
    return source_kind(source).portable(source)


def from_elsewhere(source: str) -> str:
    """Return a source of another machine as one of this machine; a path there is marked, not opened here.

    Examples
    --------
    >>> from_elsewhere("/home/ada/signs.npz"), from_elsewhere("digits")
    ('elsewhere:/home/ada/signs.npz', 'digits')
    """
    here = without_path(source)
    return f"{ELSEWHERE}{_there(source)}" if here is None else absolute_source(here)
