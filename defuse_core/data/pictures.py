"""Reads image files as uint8, by rules that hold for a whole data set.

- Depth, floats and transparency: see `picture_rules`.
- *Rotation* by EXIF is applied. Of several frames the first is read.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from defuse_core.base.errors import UnreadableError
from defuse_core.base.files import plain
from defuse_core.base.limits import MAX_DATASET_BYTES
from defuse_core.base.texts import first_names
from defuse_core.data.decoding import ImageSource, read_picture
from defuse_core.data.picture_rules import Picture as Picture
from defuse_core.data.picture_rules import Rules as Rules
from defuse_core.data.reading import Reading
from defuse_core.data.resizing import resizing_notes
from defuse_core.data.splits import DataError

_SHOWN = 10


class ImageFiles:
    """Reads the image files of a data set, and remembers what is wrong with them.

    Parameters
    ----------
    root : Path
        Of the data set, for messages.
    reading : Reading
        Size and fit of the images, and whether files that cannot be read are left out.
    """

    def __init__(self, root: Path, reading: Reading) -> None:
        self._root, self._reading, self._n_bytes = root, reading, 0
        self._problems: dict[str, str] = {}
        self._conversions: Counter[str] = Counter()
        self._n_resized = self._n_not_square = 0

    def refuse(self, name: str, reason: str) -> None:
        """Remember that a file cannot be used; `check` raises."""
        self._problems[name] = reason

    def read(self, files: Iterable[tuple[str, ImageSource]]) -> tuple[list[Picture], list[int]]:
        """Read files of equal size.

        Parameters
        ----------
        files : iterable of (name, source)
            Names are for messages.

        Returns
        -------
        pictures : list of Picture
        places : list of int
            Which of the files each is, from 0; those that cannot be read are left out, and `check` raises for
            them.

        Raises
        ------
        DataError
            If sizes are mixed, or all images together exceed the limit.
        """
        pictures: list[Picture] = []
        places: list[int] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow: what it cannot read is refused, not printed
            for place, (name, source) in enumerate(files):
                try:
                    picture = read_picture(source, self._reading)
                except DataError as error:
                    self.refuse(name, str(error))
                    continue
                if pictures and picture.pixels.shape[:2] != pictures[0].pixels.shape[:2]:
                    (height, width), (first, other) = picture.pixels.shape[:2], pictures[0].pixels.shape[:2]
                    raise DataError(
                        f"{name} is {width}×{height}, others in {plain(self._root)} are "
                        f"{other}×{first}; give image_size to resize them all"
                    )
                self._count(picture)
                pictures.append(picture)
                places.append(place)
        return pictures, places

    def _count(self, picture: Picture) -> None:
        self._n_bytes += picture.pixels.nbytes + (0 if picture.alpha is None else picture.alpha.nbytes)
        if self._n_bytes > MAX_DATASET_BYTES:
            raise DataError(
                f"the images of {plain(self._root)} take over {MAX_DATASET_BYTES / 2**30:.0f} GB in memory; "
                "give a smaller image_size, or fewer images"
            )
        self._conversions.update(picture.conversions)
        width, height = picture.own_size
        self._n_resized += width > 0
        self._n_not_square += width != height

    def check(self) -> None:
        """Raise one error for all files that cannot be used, unless they are to be left out.

        Raises
        ------
        UnreadableError
            If there is one; it lists them all.
        """
        if not self._problems or self._reading.leave_out:
            return
        each = [f"{name} ({why})" for name, why in self._problems.items()]
        if len(each) == 1:
            (name,), (why,) = self._problems, self._problems.values()
            message = f"{name} is not a readable image ({why}); replace or remove it, or leave it out"
        else:
            more = f" and {len(each) - _SHOWN:,} more" if len(each) > _SHOWN else ""
            message = (
                f"{len(each):,} files in {plain(self._root)} are not readable images: "
                f"{', '.join(each[:_SHOWN])}{more}; replace or remove them, or leave them out"
            )
        raise UnreadableError(message, each)

    def notes(self, rules: Rules) -> tuple[str, ...]:
        """Say what was done to how many images, a sentence for each kind, and what was left out.

        Parameters
        ----------
        rules : Rules
        """
        words = {
            "deep": f"scaled from {rules.bits} to 8 bits",
            "float": f"of floats scaled from 0 … {rules.white:g}",
            "transparent": f"with transparency laid on {'white' if rules.background else 'black'}",
        }
        told: Counter[str] = Counter()
        for kind, n in self._conversions.items():
            told[words.get(kind, kind)] += n
        notes = [f"{n:,} {'image' if n == 1 else 'images'} {text}" for text, n in sorted(told.items())]
        if n := len(self._problems):
            left = first_names([*self._problems])
            notes.append(f"{n:,} {'file' if n == 1 else 'files'} left out, not readable ({left})")
        size, fit = self._reading.image_size, self._reading.fit
        return (*notes, *resizing_notes(self._n_resized, self._n_not_square, size, fit))
