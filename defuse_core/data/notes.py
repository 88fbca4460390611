"""Says of a data set what its owner should know before working with it: conversions, and what looks wrong."""

from __future__ import annotations

from collections import Counter

import torch

from defuse_core.base.texts import first_names
from defuse_core.data.splits import ImageDataset, Split

DARK = 32
"""A split whose brightest pixel is below this, of 255, is told: 12 bits taken for 16 give 15."""


def dataset_notes(dataset: ImageDataset) -> list[str]:
    """Return what was converted when the data set was read, and what is odd about its images.

    Parameters
    ----------
    dataset : ImageDataset

    Returns
    -------
    notes : list of str
        A phrase each; empty for most data sets.
    """
    odd = [note for name, split in dataset.splits().items() for note in _oddities(name, split)]
    return [*dataset.conversions, *_shape_notes(dataset), *_class_notes(dataset), *odd]


def _shape_notes(dataset: ImageDataset) -> list[str]:
    """Say now what the generator would refuse later: it halves the side of square images."""
    _, height, width = dataset.image_shape
    if height == width and height % 2 == 0:
        return []
    odd = "not square" if height != width else "of an odd side"
    return [
        f"the images are {width}×{height}, {odd}, and the generator takes square images of an even side; "
        "give image_size to resize them"
    ]


def _class_notes(dataset: ImageDataset) -> list[str]:
    """Say which classes nobody has used, and which might be one."""
    by_case = Counter(name.casefold() for name in dataset.class_names)
    alike = [name for name in dataset.class_names if by_case[name.casefold()] > 1]
    notes = [f"classes differ in case alone ({first_names(alike)})"] if alike else []
    total = torch.stack(list(dataset.class_counts().values())).sum(0)
    if not (names := [dataset.class_names[index] for index in torch.nonzero(total == 0).flatten()]):
        return notes
    have = "1 class has" if len(names) == 1 else f"{len(names):,} classes have"
    return [*notes, f"{have} no images ({first_names(names)})"]


def _oddities(name: str, split: Split) -> list[str]:
    pixels = split.images.flatten(2)  # (n_images, channels, height · width)
    low, high = pixels.amin(2), pixels.amax(2)
    darkest, brightest = int(low.min()), int(high.max())
    if darkest == brightest:
        return [f"every pixel of the {name} split is {darkest}; check how its images were saved"]
    notes = []
    if brightest <= 1:
        notes.append(
            f"the brightest pixel of the {name} split is 1 of 255, black to a network; if pixels of 0 … 1 "
            "were saved as integers, multiply them by 255 first"
        )
    elif brightest < DARK:
        notes.append(
            f"the brightest pixel of the {name} split is {brightest} of 255, nearly black; if more than 8 "
            "bits were cut, scale them to 0 … 255 first"
        )
    flat = (low == high).all(1).nonzero().flatten()
    if len(flat):
        first = (
            f"number {int(flat[0]) + 1:,}" if len(flat) == 1 else f"the first is number {int(flat[0]) + 1:,}"
        )
        notes.append(f"{len(flat):,} of {len(split):,} {name} images have one colour everywhere ({first})")
    return notes
