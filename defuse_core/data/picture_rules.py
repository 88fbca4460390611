"""The rules by which images of more than 8 bits, floats and transparent ones of a data set become uint8.

- *Depth.* Of more than 8 bits the upper 8 are kept. Where a format does not say how many of its 16 bits are
  used, the brightest pixel of the data set does: 12 bits in a 16-bit PNG are 12 bits. Files that declare
  their white, and TIFFs whose 0 is white, are of 16 bits, whatever the others are.
- *Floats* are of 0 … 1 if no pixel of the data set is above 1.5, since rounding and resampling overshoot 1;
  else of 0 … 255.
- *Transparency* is laid on white; on black if opaque pixels differ more from that, on average.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_OVERSHOOT = 1.5  # above 1 by rounding or resampling, but not of 0 … 255


@dataclass(frozen=True)
class Picture:
    """An image as its file holds it, before the rules.

    Attributes
    ----------
    pixels : (height, width) uint8, uint16, int32 or float32, or (height, width, 3) uint8
    alpha : (height, width) uint8 or None
        0 is transparent; None where nothing is.
    bits : int
        How many bits its pixels take, 8 or more; of a float image 8.
    conversions : tuple of str
        What was done to it, as in `ImageFiles.conversions`.
    own_size : tuple of int
        Width and height before it was resized; (0, 0) if it was not.
    """

    pixels: NDArray[Any]
    alpha: NDArray[np.uint8] | None = None
    bits: int = 8
    conversions: tuple[str, ...] = ()
    own_size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Rules:
    """How all images of a data set become uint8.

    Attributes
    ----------
    bits : int
        Of the images of more than 8 bits.
    white : float
        The white of float images, 1 or 255.
    background : int
        Under transparent pixels, 0 or 255.
    """

    bits: int
    white: float
    background: int

    @classmethod
    def of(cls, pictures: Iterable[Picture]) -> Rules:
        """Find the rules for a data set; see the module."""
        bits, peak, contrast = 8, 0.0, {0: 0.0, 255: 0.0}
        for picture in pictures:
            bits = max(bits, picture.bits)
            if picture.pixels.dtype.kind == "f":
                peak = max(peak, float(picture.pixels.max()))
            if picture.alpha is not None:
                for background in contrast:
                    contrast[background] += _contrast(picture, background)
        return cls(bits, 255.0 if peak > _OVERSHOOT else 1.0, 0 if contrast[0] > contrast[255] else 255)

    def apply(self, picture: Picture, channels: int) -> NDArray[np.uint8]:
        """Return an image as uint8 (height, width, channels)."""
        pixels = picture.pixels
        if picture.alpha is not None:
            pixels = _laid_on(picture, self.background)
        elif pixels.dtype.kind == "f":
            pixels = np.rint((pixels * (255 / self.white)).clip(0, 255)).astype(np.uint8)
        elif pixels.dtype != np.uint8:
            pixels = (pixels >> (self.bits - 8)).astype(np.uint8)
        grey = pixels.ndim == 2
        if grey and channels == 3:
            return np.repeat(pixels[..., None], 3, axis=2)
        if not grey and channels == 1:
            pixels = np.asarray(Image.fromarray(pixels).convert("L"))
        return pixels.reshape(*pixels.shape[:2], channels)

    def stack(self, pictures: list[Picture], channels: int) -> NDArray[np.uint8]:
        """Return images as uint8 (n, height, width, channels), and empty the list to free their memory."""
        n = len(pictures)
        images = np.empty((n, *pictures[0].pixels.shape[:2], channels), np.uint8)
        for index in reversed(range(n)):
            images[index] = self.apply(pictures.pop(), channels)
        return images


def _laid_on(picture: Picture, background: int) -> NDArray[np.uint8]:
    assert picture.alpha is not None
    alpha = picture.alpha.astype(np.uint16)
    if picture.pixels.ndim == 3:
        alpha = alpha[..., None]
    laid = picture.pixels * alpha + np.uint16(background) * (255 - alpha)
    return ((laid + 127) // 255).astype(np.uint8)


def _contrast(picture: Picture, background: int) -> float:
    """Mean absolute difference of an image from a background of 0 or 255, over its opaque pixels."""
    assert picture.alpha is not None
    pixels = picture.pixels if picture.pixels.ndim == 3 else picture.pixels[..., None]
    n_opaque = int(picture.alpha.sum(dtype=np.int64))
    if not n_opaque:
        return 0.0
    level = int(np.einsum("hwc,hw->", pixels, picture.alpha, dtype=np.int64, casting="unsafe"))
    # no pixel is beyond 0 or 255, so that the mean of differences is the difference of means
    return float(abs(level / (n_opaque * pixels.shape[2]) - background))
