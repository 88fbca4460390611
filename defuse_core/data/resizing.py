"""Resizes images to a square, bilinear and antialiased: stretched, cropped, or padded with black."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from defuse_core.data.reading import Fit, Reading
from defuse_core.data.splits import Split, check_size

_WORDS: dict[Fit, str] = {
    "stretch": "stretched to square; --fit crop or pad keeps their proportions",
    "crop": "cropped to their middle",
    "pad": "padded with black to square",
}


def fit_image(image: Image.Image, size: int | None, fit: Fit = "stretch") -> Image.Image:
    """Return an image as `size` × `size` pixels; as it is where the size is None or its own.

    Parameters
    ----------
    image : Image
    size : int or None
    fit : {"stretch", "crop", "pad"}
        What happens to an image that is not square. Where it has transparency, it is padded with that.
    """
    if size is None or image.size == (size, size):
        return image
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if fit == "stretch" or short == long:
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if fit == "crop":
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
        return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    inner = max(1, round(width * size / long)), max(1, round(height * size / long))
    square = Image.new(image.mode, (size, size), 0)
    place = (size - inner[0]) // 2, (size - inner[1]) // 2
    square.paste(image.resize(inner, Image.Resampling.BILINEAR), place)
    return square


def fit_images(images: Tensor, size: int, fit: Fit) -> Tensor:
    """Resize images of one size as `fit_image` does.

    Parameters
    ----------
    images : (n, 1 or 3, height, width) uint8
    size : int
    fit : {"stretch", "crop", "pad"}

    Returns
    -------
    images : (n, 1 or 3, size, size) uint8
    """
    resized = torch.empty((len(images), images.shape[1], size, size), dtype=torch.uint8)
    for index, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()  # (height, width, channels)
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        square = np.array(fit_image(picture, size, fit))
        resized[index] = torch.from_numpy(square.reshape(size, size, -1)).permute(2, 0, 1)
    return resized


def fit_splits(
    where: str, splits: Mapping[str, Split], reading: Reading
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Resize the splits whose images are of another size than is asked for; say how many were.

    Parameters
    ----------
    where : str
        Name of the data set, for the message.
    splits : mapping of str to Split
    reading : Reading

    Raises
    ------
    DataError
        If the images would exceed a limit, before they take the memory.
    """
    size = reading.image_size
    fitted, n_resized, n_not_square = dict(splits), 0, 0
    if size is None:
        return fitted, ()
    n_pixels = sum(split.images.shape[0] * split.images.shape[1] for split in splits.values()) * size**2
    check_size(where, sum(map(len, splits.values())), n_pixels)
    for name, split in splits.items():
        height, width = split.images.shape[2:]
        if (height, width) != (size, size):
            fitted[name] = Split(fit_images(split.images, size, reading.fit), split.labels)
            n_resized += len(split)
            n_not_square += len(split) if height != width else 0
    return fitted, resizing_notes(n_resized, n_not_square, size, reading.fit)


def resizing_notes(n_resized: int, n_not_square: int, size: int | None, fit: Fit) -> tuple[str, ...]:
    """Say how many images were resized, and what happened to those that were not square."""
    if not n_resized:
        return ()
    note = f"{n_resized:,} {'image' if n_resized == 1 else 'images'} resized to {size}×{size}"
    if not n_not_square:
        return (note,)
    return (f"{note}, {n_not_square:,} of them not square and {_WORDS[fit]}",)
