"""Make pictures for a page that may load nothing: small images side by side as one PNG in a data URL."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PIXELS_PER_INCH = 96  # of CSS
_DOTS_PER_INCH = 160  # of the figures' PNG
_KINDS = {b"\x89PNG": "png", b"<?xml": "svg+xml", b"<svg": "svg+xml"}


@dataclass(frozen=True)
class Sprite:
    """`n` images side by side; `side` is the width and height of each, in pixels."""

    url: str
    n: int
    side: int


@dataclass(frozen=True)
class Plot:
    """A figure; `width` and `height` in pixels of CSS."""

    url: str
    width: int
    height: int


def make_plot(content: bytes) -> Plot:
    """Make a data URL of a figure, with the size at which it was drawn.

    Raises
    ------
    ValueError
        If it is neither a PNG nor an SVG with its size in points.
    """
    url = data_url(content)
    if content.startswith(b"\x89PNG"):
        width, height = Image.open(BytesIO(content)).size
        scale = _PIXELS_PER_INCH / _DOTS_PER_INCH
        return Plot(url, round(width * scale), round(height * scale))
    sizes = dict(re.findall(rb'\b(width|height)="([0-9.]+)pt"', content[:2000]))
    if len(sizes) != 2:
        raise ValueError("an SVG must say its width and height in points; draw it by matplotlib")
    width, height = (round(float(sizes[side]) * _PIXELS_PER_INCH / 72) for side in (b"width", b"height"))
    return Plot(url, width, height)


def make_sprite(images: Sequence[NDArray[np.uint8]], *, side: int) -> Sprite:
    """Put images side by side in one row.

    Parameters
    ----------
    images : sequence of (height, width, 1 or 3) uint8
        At least one; all of the same shape. They are scaled down to `side`, but never up.
    side : int
        Largest width and height of an image, in pixels.

    Returns
    -------
    Sprite

    Raises
    ------
    ValueError
        If there is no image, or the shapes differ or are not as above.

    Examples
    --------
    >>> grey = np.zeros((28, 28, 1), dtype=np.uint8)
    >>> sprite = make_sprite([grey] * 10, side=64)
    >>> sprite.n, sprite.side, sprite.url[:22]
    (10, 28, 'data:image/png;base64,')
    """
    shapes = {image.shape for image in images}
    if len(shapes) != 1 or next(iter(shapes))[2:] not in ((1,), (3,)):
        raise ValueError(
            f"images must be one or more of one shape (height, width, 1 or 3), got {sorted(shapes)}; "
            "give those of one data set"
        )
    height, width, channels = images[0].shape
    side = min(side, max(height, width))
    row = np.concatenate([_fit(image, side) for image in images], axis=1)  # (side, n · side, channels)
    picture = Image.fromarray(row[..., 0] if channels == 1 else row)
    file = BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return Sprite(data_url(file.getvalue()), len(images), side)


def _fit(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale an image to fit a square of `side`, centred on black: (side, side, channels)."""
    height, width, channels = image.shape
    scale = side / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(picture).reshape(size[1], size[0], channels)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    square = np.zeros((side, side, channels), dtype=np.uint8)
    square[top : top + size[1], left : left + size[0]] = pixels
    return square


def data_url(content: bytes, kind: str | None = None) -> str:
    """Write a file as a data URL.

    Parameters
    ----------
    content : bytes
    kind : str, optional
        Media type; by default that of PNG or SVG, recognised by the first bytes.

    Raises
    ------
    ValueError
        If no kind is given and the content is neither.

    Examples
    --------
    >>> data_url(b"{}", "application/json")
    'data:application/json;base64,e30='
    """
    if kind is None:
        kinds = [name for start, name in _KINDS.items() if content.startswith(start)]
        if not kinds:
            raise ValueError(f"a figure must be PNG or SVG, it begins with {content[:8]!r}; name its kind")
        kind = f"image/{kinds[0]}"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
