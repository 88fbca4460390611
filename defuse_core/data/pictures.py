"""Reads image files as uint8, by rules that hold for a whole data set.

- Depth, floats and transparency: see `picture_rules`.
- *Rotation* by EXIF is applied. Of several frames the first is read.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from defuse_core.base.files import plain
from defuse_core.base.limits import MAX_DATASET_BYTES, MAX_IMAGE_PIXELS
from defuse_core.data.jpeg_scans import refuse_many_scans
from defuse_core.data.picture_rules import Picture as Picture
from defuse_core.data.picture_rules import Rules as Rules
from defuse_core.data.splits import DataError

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "WEBP", "TIFF")
"""What is tried, whatever a file is called; others of Pillow's readers start programs."""

_GREY = ("1", "L", "LA", "La")
_ORIENTATION, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 262, 339  # tags of EXIF and of TIFF
_SIGNED = 2  # a sample format
_SHOWN = 10


class ImageFiles:
    """Reads the image files of a data set, and remembers what is wrong with them.

    Parameters
    ----------
    root : Path
        Of the data set, for messages.
    size : int, optional
        Resize to this many pixels, square.
    """

    def __init__(self, root: Path, size: int | None = None) -> None:
        self._root, self._size, self._n_bytes = root, size, 0
        self._problems: dict[Path, str] = {}
        self._conversions: Counter[str] = Counter()

    def refuse(self, path: Path, reason: str) -> None:
        """Remember that a file cannot be used; `check` raises."""
        self._problems[path] = reason

    def read(self, paths: Sequence[Path], folder: Path) -> list[Picture]:
        """Read files of equal size.

        Parameters
        ----------
        paths : sequence of Path
        folder : Path
            What they lie in, for messages.

        Raises
        ------
        DataError
            If sizes are mixed, or all images together exceed the limit. Files that are no readable images
            are left out; `check` raises for them.
        """
        pictures: list[Picture] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow: what it cannot read is refused, not printed
            for path in paths:
                try:
                    picture = read_picture(path, self._size)
                except DataError as error:
                    self.refuse(path, str(error))
                    continue
                if pictures and picture.pixels.shape[:2] != pictures[0].pixels.shape[:2]:
                    (height, width), (first, other) = picture.pixels.shape[:2], pictures[0].pixels.shape[:2]
                    raise DataError(
                        f"{plain(path)} is {width}×{height}, others in {plain(folder)} are "
                        f"{other}×{first}; give image_size to resize them all"
                    )
                self._count(picture)
                pictures.append(picture)
        return pictures

    def _count(self, picture: Picture) -> None:
        self._n_bytes += picture.pixels.nbytes + (0 if picture.alpha is None else picture.alpha.nbytes)
        if self._n_bytes > MAX_DATASET_BYTES:
            raise DataError(
                f"the images of {plain(self._root)} take over {MAX_DATASET_BYTES / 2**30:.0f} GB in memory; "
                "give a smaller image_size, or fewer images"
            )
        self._conversions.update(picture.conversions)

    def check(self) -> None:
        """Raise one error for all files that cannot be used: the first ten, and how many.

        Raises
        ------
        DataError
            If there is one.
        """
        n = len(self._problems)
        if n == 1:
            ((path, why),) = self._problems.items()
            raise DataError(f"{plain(path)} is not a readable image ({why}); replace or remove it")
        if n:
            first = [f"{self._name(path)} ({why})" for path, why in [*self._problems.items()][:_SHOWN]]
            more = f" and {n - _SHOWN:,} more" if n > _SHOWN else ""
            raise DataError(
                f"{n:,} files in {plain(self._root)} are not readable images: {', '.join(first)}{more}; "
                "replace or remove them"
            )

    def _name(self, path: Path) -> str:
        return plain(path.relative_to(self._root) if path.is_relative_to(self._root) else path)

    def conversions(self, rules: Rules) -> tuple[str, ...]:
        """Say what was done to how many images, a sentence for each kind.

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
        return tuple(f"{n:,} {'image' if n == 1 else 'images'} {text}" for text, n in sorted(told.items()))


def read_picture(path: Path, size: int | None = None) -> Picture:
    """Decode the first frame of an image file, turned as its EXIF says.

    Parameters
    ----------
    path : Path
    size : int, optional
        Resize to this many pixels, square.

    Raises
    ------
    DataError
        The reason alone, if it is no regular file, cannot be decoded, or is larger than the limit.
    """
    if not path.is_file():
        raise DataError(
            "it is a folder" if path.is_dir() else "no regular file" if path.exists() else "a broken link"
        )
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise DataError(f"{width:,}×{height:,} pixels, at most {MAX_IMAGE_PIXELS:,} are read")
            if image.format in ("JPEG", "MPO"):
                refuse_many_scans(path)
            return _decode(image, size)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"more than the {MAX_IMAGE_PIXELS:,} pixels that are read") from error
    except UnidentifiedImageError as error:
        raise DataError("cut off, or of no format that is read") from error
    except PermissionError as error:
        raise DataError("it may not be read: change its permissions") from error
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise DataError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _decode(image: Image.Image, size: int | None) -> Picture:
    done = []
    if _tag(image, _SAMPLE_FORMAT) == _SIGNED and not _is_deep(image):
        raise DataError("signed integers of 8 bits; save them unsigned, 0 black and 255 white")
    if getattr(image, "is_animated", False):
        done.append("of several frames, of which the first was read")
    if not _is_deep(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        done.append("of 16 bits a channel, of which the upper 8 were read")
    scaled = image.format == "PPM"  # Pillow scales those to 16 bits by the brightest value they declare
    inverted = _is_deep(image) and _tag(image, _PHOTOMETRIC, 1) == 0  # Pillow inverts those of 8 bits itself
    image.load()
    turned = _turned(image)
    if turned is not image:
        done.append("turned as their EXIF says")
    if _is_deep(turned):
        return _deep(turned, size, scaled=scaled, inverted=inverted, done=done)
    if turned.mode not in (*_GREY, "RGB", "RGBA", "RGBa", "P", "PA"):
        done.append(f"converted from {turned.mode} to RGB")
    see_through = turned.has_transparency_data
    mode = ("L" if turned.mode in _GREY else "RGB") + ("A" if see_through else "")
    bands = _resized(turned.convert(mode), size)
    pixels = np.array(bands)
    if not see_through:
        return Picture(pixels, conversions=tuple(done))
    colour, alpha = np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1])
    colour = colour[..., 0] if mode == "LA" else colour
    if alpha.min() == 255:
        return Picture(colour, conversions=tuple(done))
    return Picture(colour, alpha, conversions=(*done, "transparent"))


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _turned(image: Image.Image) -> Image.Image:
    """Apply the rotation of the EXIF data; damaged data are as none."""
    try:
        is_turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # Pillow's reader of EXIF raises whatever damaged data lead it to
        return image
    return ImageOps.exif_transpose(image) if is_turned else image


def _resized(image: Image.Image, size: int | None) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR) if size else image


def _tag(image: Image.Image, tag: int, default: int = 0) -> int:
    """The first value of a tag of a TIFF; the default where it is absent or the image of another format."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _deep(image: Image.Image, size: int | None, *, scaled: bool, inverted: bool, done: list[str]) -> Picture:
    """Read an image of more than 8 bits a pixel, which is grey; where 0 is white it is `inverted`."""
    if image.mode == "F":
        if inverted:
            raise DataError("floats of which 0 is white; save them inverted, 0 black")
        if scaled:
            raise DataError("a float PFM; save it as PNG, 0 black and 255 white")
        pixels: NDArray[Any] = np.array(_resized(image, size))
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 255:  # or not a number
            raise DataError(f"floats of {low:g} … {high:g}; scale them to 0 … 1 or 0 … 255")
        return Picture(pixels, conversions=(*done, "float"))
    if "transparency" in image.info:
        done.append("with a transparent colour, which is shown as it is")
    image = image if image.mode == "I" else image.convert("I")
    pixels = np.array(_resized(image, size))
    if (least := int(pixels.min())) < 0:
        raise DataError(f"integers from {least}; scale them to 0 … 65535")
    if inverted:
        pixels = 2**16 - 1 - pixels
        done.append("inverted, since 0 is white in their files")
    if scaled or inverted:  # of all 16 bits, whatever other files use
        return Picture((pixels >> 8).astype(np.uint8), conversions=(*done, "scaled from 16 to 8 bits"))
    bits = max(8, int(pixels.max()).bit_length())
    pixels = pixels.astype(np.uint16 if bits <= 16 else np.int32)
    return Picture(pixels, bits=bits, conversions=(*done, "deep"))
