"""Novelty (section 4.3): the misclassified training image that is nearest to a mistake, and how far it is.

Figure 6 shows the nearest images. Their distances are beyond the paper, in pixels and between codes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.data.splits import as_pixels

_CHUNK_BYTES = 2**26
"""Of float64 rows that are compared at a time, 64 MiB: 170 images of 3×128×128."""

_NEAREST_BATCH = 1024  # reference images that are float64 at once


def novelty(images: Tensor, reference: Tensor) -> NDArray[np.float64]:
    """Measure the ℓ2 distance in pixels of each image to the nearest reference image, which figure 6 shows.

    Parameters
    ----------
    images : (n, channels, height, width) uint8 or [0, 1]
    reference : (m, channels, height, width) uint8 or [0, 1]
        The misclassified training images, m of 1 or more.

    Returns
    -------
    (n,) float64
        Distances between pixels in [0, 1]. 0 means that the image is in the training data already.
    """
    return _to_nearest(images, reference, _rows)


def nearest_known(images: Tensor, reference: Tensor) -> Tensor:
    """Figure 6: find the reference image that is nearest to each image, by ℓ2 distance in pixels.

    Parameters
    ----------
    images : (n, channels, height, width) uint8 or [0, 1]
        A few: all are held as float64.
    reference : (m, channels, height, width) uint8 or [0, 1]
        m of 1 or more.

    Returns
    -------
    (n,) int64
        Indices into `reference`; the first of equals.
    """
    rows = torch.from_numpy(_rows(images))
    parts = [torch.cdist(rows, torch.from_numpy(_rows(some))) for some in reference.split(_NEAREST_BATCH)]
    return torch.cat(parts, 1).argmin(1)


def latent_novelty(latents: Tensor, reference: Tensor) -> NDArray[np.float64]:
    """Measure the ℓ2 distance of each code (n, latent_dim) to the nearest of (m, latent_dim).

    The prior N(0, I) gives every dimension the same scale. Pixels call an image new that is moved by a
    pixel; codes call it new where the generator tells it apart from what is known. Returns and errors
    are as of `novelty`.

    Parameters
    ----------
    latents : (n, latent_dim)
    reference : (m, latent_dim)
    """
    return _to_nearest(latents, reference, lambda codes: codes.double().numpy())


def _to_nearest(
    items: Tensor, reference: Tensor, read: Callable[[Tensor], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Distance of each item to the nearest reference; only `_CHUNK_BYTES` of either are float64 at a time."""
    if not len(reference):
        raise ValueError(
            "novelty needs at least one misclassified training image, and the classifier gets all "
            "of them right; compare with the whole training split"
        )
    from sklearn.metrics import pairwise_distances_argmin  # slow to import: not for those who only score

    n = max(1, _CHUNK_BYTES // (8 * max(1, items[0].numel() if len(items) else 1)))
    nearest = np.full(len(items), np.inf)
    for some in reference.split(n):
        known = read(some)
        for start in range(0, len(items), n):
            rows = read(items[start : start + n])
            index = pairwise_distances_argmin(rows, known)
            mine = nearest[start : start + n]
            np.minimum(mine, np.linalg.norm(rows - known[index], axis=1), out=mine)
    return nearest


def _rows(images: Tensor) -> NDArray[np.float64]:
    return as_pixels(images).flatten(1).double().numpy()
