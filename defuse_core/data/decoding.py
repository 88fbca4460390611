"""Decodes image files as they hold their pixels, turned as their EXIF says; the first of several frames."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from defuse_core.base.limits import MAX_IMAGE_PIXELS
from defuse_core.data.jpeg_scans import refuse_many_scans
from defuse_core.data.picture_rules import Picture
from defuse_core.data.reading import Reading
from defuse_core.data.resizing import fit_image
from defuse_core.data.splits import DataError

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "WEBP", "TIFF")
"""What is tried, whatever a file is called; others of Pillow's readers start programs."""

_GREY = ("1", "L", "LA", "La")
_ORIENTATION, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 262, 339  # tags of EXIF and of TIFF
_SIGNED = 2  # a sample format

ImageSource = Path | bytes | Callable[[], Image.Image]
"""An image file, its content, or what decodes an image."""


def read_picture(source: ImageSource, reading: Reading) -> Picture:
    """Decode the first frame of an image, turned as its EXIF says, and resize it.

    Parameters
    ----------
    source : Path, bytes or function that returns an image
    reading : Reading
        Its size and fit.

    Raises
    ------
    DataError
        The reason alone, if it is no regular file, cannot be decoded, or is larger than the limit.
    """
    if isinstance(source, Path) and not source.is_file():
        raise DataError(
            "it is a folder" if source.is_dir() else "no regular file" if source.exists() else "a broken link"
        )
    try:
        with _opened(source) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise DataError(f"{width:,}×{height:,} pixels, at most {MAX_IMAGE_PIXELS:,} are read")
            if image.format in ("JPEG", "MPO") and isinstance(source, Path | bytes):
                refuse_many_scans(source)
            return _decode(image, reading)
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


def _opened(source: ImageSource) -> Image.Image:
    if not isinstance(source, Path | bytes):
        return source()
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)


def _decode(image: Image.Image, reading: Reading) -> Picture:
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
        return _deep(turned, reading, scaled=scaled, inverted=inverted, done=done)
    if turned.mode not in (*_GREY, "RGB", "RGBA", "RGBa", "P", "PA"):
        done.append(f"converted from {turned.mode} to RGB")
    see_through = turned.has_transparency_data
    mode = ("L" if turned.mode in _GREY else "RGB") + ("A" if see_through else "")
    bands = turned.convert(mode)
    resized = fit_image(bands, reading.image_size, reading.fit)
    own_size = (0, 0) if resized is bands else bands.size
    pixels = np.array(resized)
    if not see_through:
        return Picture(pixels, conversions=tuple(done), own_size=own_size)
    colour, alpha = np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1])
    colour = colour[..., 0] if mode == "LA" else colour
    if alpha.min() == 255:
        return Picture(colour, conversions=tuple(done), own_size=own_size)
    return Picture(colour, alpha, conversions=(*done, "transparent"), own_size=own_size)


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _turned(image: Image.Image) -> Image.Image:
    """Apply the rotation of the EXIF data; damaged data are as none."""
    try:
        is_turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # Pillow's reader of EXIF raises whatever damaged data lead it to
        return image
    return ImageOps.exif_transpose(image) if is_turned else image


def _tag(image: Image.Image, tag: int, default: int = 0) -> int:
    """The first value of a tag of a TIFF; the default where it is absent or the image of another format."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _deep(image: Image.Image, reading: Reading, *, scaled: bool, inverted: bool, done: list[str]) -> Picture:
    """Read an image of more than 8 bits a pixel, which is grey; where 0 is white it is `inverted`."""
    if "transparency" in image.info:
        done.append("with a transparent colour, which is shown as it is")
    image = image if image.mode in ("I", "F") else image.convert("I")
    resized = fit_image(image, reading.image_size, reading.fit)
    own_size = (0, 0) if resized is image else image.size
    if image.mode == "F":
        if inverted:
            raise DataError("floats of which 0 is white; save them inverted, 0 black")
        if scaled:
            raise DataError("a float PFM; save it as PNG, 0 black and 255 white")
        pixels: NDArray[Any] = np.array(resized)
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 255:  # or not a number
            raise DataError(f"floats of {low:g} … {high:g}; scale them to 0 … 1 or 0 … 255")
        return Picture(pixels, conversions=(*done, "float"), own_size=own_size)
    pixels = np.array(resized)
    if (least := int(pixels.min())) < 0:
        raise DataError(f"integers from {least}; scale them to 0 … 65535")
    if inverted:
        pixels = 2**16 - 1 - pixels
        done.append("inverted, since 0 is white in their files")
    if scaled or inverted:  # of all 16 bits, whatever other files use
        reduced = (pixels >> 8).astype(np.uint8)
        return Picture(reduced, conversions=(*done, "scaled from 16 to 8 bits"), own_size=own_size)
    bits = max(8, int(pixels.max()).bit_length())
    pixels = pixels.astype(np.uint16 if bits <= 16 else np.int32)
    return Picture(pixels, bits=bits, conversions=(*done, "deep"), own_size=own_size)
