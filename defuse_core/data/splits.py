"""Data sets: uint8 images with labels, split into train, validation and test.

A data set is held once in memory, as uint8 tensors; `as_pixels` turns a batch into pixels in [0, 1].
`sources` loads data sets. One that cannot be used raises a `DataError`, which says why and names the remedy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress

import torch
from torch import Tensor

from defuse_core.base.errors import DataError as DataError
from defuse_core.base.limits import MAX_DATASET_BYTES, MAX_IMAGE_PIXELS, MAX_IMAGES
from defuse_core.base.runtime import numpy_rng
from defuse_core.data.class_names import check_class_names
from defuse_core.data.dividing import set_apart
from defuse_core.data.dividing import stratified_sample as stratified_sample
from defuse_core.data.naming import FROM_TEST, Validation


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes
    ----------
    images : (n, channels, height, width) uint8
    labels : (n,) int64
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ImageDataset:
    """A named data set; `validation` is None where the source has none.

    Attributes
    ----------
    conversions : tuple of str
        What its loader converted or passed over, a phrase each; `notes.dataset_notes` adds what is odd.
    groups : tuple of str or None
        Of the training images, where the source names them; images of one group stay in one split.

    Raises
    ------
    DataError
        If arrays disagree in shape or type, labels are out of range, a class that another split shows has no
        training image, class names break the rule of `class_names`, or a limit of `base.limits` is exceeded.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    validation: Split | None = None
    conversions: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        try:
            check_class_names(self.class_names)
        except ValueError as error:
            raise DataError(f"{self.name}: {error}") from None
        for name, split in self.splits().items():
            _check_split(f"{self.name}, {name} split", split, n_classes=len(self.class_names))
            if split.images.shape[1:] != self.train.images.shape[1:]:
                raise DataError(
                    f"{self.name}: {name} images are {tuple(split.images.shape[1:])}, train images "
                    f"{tuple(self.train.images.shape[1:])}; resize one of them"
                )
        splits = self.splits().values()
        check_size(self.name, sum(map(len, splits)), sum(split.images.nbytes for split in splits))
        counts = self.class_counts()
        others = sum(counts.values()) - counts["train"]
        if empty := [self.class_names[i] for i in torch.nonzero((counts["train"] == 0) & (others > 0))]:
            raise DataError(
                f"{self.name}: no training image of class {', '.join(empty[:5])}; "
                "add images, or leave the class out"
            )

    def class_counts(self) -> dict[str, Tensor]:
        """Return how many images of each class a split has, (n_classes,) int64, by the split."""
        n = len(self.class_names)
        return {name: torch.bincount(split.labels, minlength=n) for name, split in self.splits().items()}

    def splits(self) -> dict[str, Split]:
        """Return the splits that exist, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def selection(self) -> Split:
        """The split that chooses epochs: validation, or train where there is none."""
        return self.train if self.validation is None else self.validation

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the class names, shapes and contents of every split, in hexadecimal."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for name, split in self.splits().items():
            digest.update(f"{name}{tuple(split.images.shape)}".encode())
            digest.update(split.images.contiguous().numpy().data)
            digest.update(split.labels.contiguous().numpy().data)
        return digest.hexdigest()


def as_pixels(images: Tensor) -> Tensor:
    """Turn uint8 images into pixels in [0, 1]; float images pass unchanged.

    Examples
    --------
    >>> as_pixels(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([0., 1.])
    """
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def as_bytes(pixels: Tensor) -> Tensor:
    """Quantise pixels in [0, 1] to uint8, to the nearest of 256 levels."""
    return pixels.clamp(0, 1).mul(255).round_().to(torch.uint8)


def shuffled_batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices 0 … n-1 once each in random order, `batch_size` at a time.

    Parameters
    ----------
    n : int
    batch_size : int
        1 or more; the last batch may be smaller.
    generator : torch.Generator
    """
    yield from torch.randperm(n, generator=generator).split(batch_size)


def set_validation_apart(dataset: ImageDataset, validation: Validation) -> ImageDataset:
    """Set validation images apart: a share of the training images, or a random half of the test images.

    Of the training images the last of every class are taken, in their order: frames of one track or video lie
    beside each other, and near-copies on both sides would make validation easier than the test. Where the
    data set names groups, whole groups are taken. The test images are halved as the paper does (section 4.1),
    the same way every time.

    Parameters
    ----------
    dataset : ImageDataset
    validation : float or "from-test"
        A share in (0, 1) of every class's training images, or `naming.FROM_TEST`.

    Raises
    ------
    DataError
        If there is a validation split already, the share is not within (0, 1), or no image is moved.
    """
    if dataset.validation is not None:
        raise DataError(f"{dataset.name} has a validation split of its own; leave validation out")
    if validation == FROM_TEST:
        if len(dataset.test) < 2:
            raise DataError(
                f"{dataset.name} has one test image; give a share of the training images, say 0.1"
            )
        order = torch.from_numpy(numpy_rng(0, "validation").permutation(len(dataset.test)))
        first, second = (half.sort().values for half in order.tensor_split(2))
        return replace(dataset, test=dataset.test[first], validation=dataset.test[second])
    if isinstance(validation, str) or not 0 < validation < 1:
        raise DataError(
            f"validation must be between 0 and 1, got {validation}; give 0.1 for a tenth of the training "
            f"images, or {FROM_TEST} for half of the test images"
        )
    groups = dataset.groups
    is_apart = set_apart(dataset.train.labels, validation, seed=None, groups=groups, name="validation")
    kept = None if groups is None else tuple(compress(groups, (~is_apart).tolist()))
    train, apart = dataset.train[~is_apart], dataset.train[is_apart]
    return replace(dataset, train=train, validation=apart, groups=kept)


def _check_split(where: str, split: Split, *, n_classes: int) -> None:
    images, labels = split.images, split.labels
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"{where}: images must be uint8 (n, 1 or 3, height, width), "
            f"got {images.dtype} {tuple(images.shape)}; convert them, 0 black and 255 white"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{where}: labels must be int64 ({len(images)},), got {labels.dtype} "
            f"{tuple(labels.shape)}; give one class index an image"
        )
    if not len(labels):
        raise DataError(f"{where} is empty; add images")
    height, width = images.shape[2:]
    if not 0 < height * width <= MAX_IMAGE_PIXELS:
        raise DataError(
            f"{where}: images are {height:,}×{width:,}, they must have 1 to {MAX_IMAGE_PIXELS:,} pixels; "
            "save them in another size"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise DataError(f"{where}: labels must be 0 or more, got {low}; renumber the classes from 0")
    if high >= n_classes:
        raise DataError(
            f"{where}: labels must be in 0 … {n_classes - 1} for {n_classes} classes, "
            f"got {low} … {high}; renumber them or extend class_names"
        )


def check_size(where: str, n_images: int, n_bytes: int) -> None:
    """Check the size of a data set against the limits.

    Parameters
    ----------
    where : str
        Its name, for the message.
    n_images : int
    n_bytes : int
        Of all images in memory.

    Raises
    ------
    DataError
        If there are too many images, or they take too much memory.
    """
    if n_images > MAX_IMAGES or n_bytes > MAX_DATASET_BYTES:
        raise DataError(
            f"{where} has {n_images:,} images of {n_bytes / 2**30:.1f} GB, at most {MAX_IMAGES:,} of "
            f"{MAX_DATASET_BYTES / 2**30:.0f} GB are allowed; save fewer or smaller images"
        )


def split_by_class(split: Split, share: float, name: str = "test") -> tuple[Split, Split]:
    """Divide in order: the last `share` of the images of each class become the other split.

    Parameters
    ----------
    split : Split
    share : float
        In (0, 1).
    name : str
        Of the other split, for error messages.

    Raises
    ------
    DataError
        If no class has enough images to give one away.
    """
    is_apart = set_apart(split.labels, share, seed=None, name=name)
    return split[~is_apart], split[is_apart]


def sample_training(labels: Tensor, max_images: int | None, *, seed: int) -> Tensor:
    """Return the indices of the training images that a step takes: all, or a stratified sample.

    Parameters
    ----------
    labels : (n,) int64
    max_images : int or None
        Size of the sample; None takes all.
    seed : int
    """
    return stratified_sample(labels, len(labels) if max_images is None else max_images, seed=seed)
