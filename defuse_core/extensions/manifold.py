"""Find the training codes nearest to a code, and tell whether it is off their manifold.

The paper gives no rule for "off the manifold". Ours: for `share` of the training codes the nearest *other*
code lies within a radius; a code is off the manifold if its nearest training code is farther away than
that. So about 1 − share of the training codes would themselves be off it. Distances are Euclidean in
latent space, where the prior N(0, I) gives every dimension the same scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.runtime import numpy_rng

_MAX_SAMPLE = 2000  # training codes that the radius is estimated on

Codes = Tensor | NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Manifold:
    """The codes of the training images, made by `Manifold.of`.

    Attributes
    ----------
    radius : float
        A code is off the manifold where its nearest training code is farther than this.
    share : float
        Share of the training codes whose nearest other code lies within the radius.
    n_codes : int
    latent_dim : int

    Examples
    --------
    >>> line = Manifold.of(np.arange(10.0)[:, None], seed=0)
    >>> line.radius
    1.0
    >>> distances, indices = line.nearest(np.array([[3.2]]), 2)
    >>> distances.round(1), indices
    (array([[0.2, 0.8]]), array([[3, 4]]))
    >>> line.is_off(np.array([[3.2], [10.5]]))
    array([False,  True])
    """

    radius: float
    share: float
    n_codes: int
    latent_dim: int
    _fitted: Any

    @staticmethod
    def of(codes: Codes, *, share: float = 0.99, seed: int) -> Manifold:
        """Store the training codes and estimate the radius by leave-one-out.

        Parameters
        ----------
        codes : (n, latent_dim)
            Two or more.
        share : float
            In (0, 1].
        seed : int
            With more than 2,000 codes the radius is estimated on a random sample of 2,000; their nearest
            other codes are still searched among all.

        Raises
        ------
        ValueError
            If there are fewer than two codes, they are not finite, or the share is out of range.
        """
        known = _array(codes, "codes")
        if len(known) < 2:
            raise ValueError(
                f"the manifold needs at least 2 training codes, got {len(known)}; encode more images"
            )
        if not 0 < share <= 1:
            raise ValueError(
                f"share must be in (0, 1], got {share}; 0.99 lets 1 % of the training codes be off"
            )
        from sklearn.neighbors import NearestNeighbors  # here, because it is slow to import

        # From about ten dimensions on, a tree is slower than brute force, and it takes time to build.
        fitted = NearestNeighbors(algorithm="brute").fit(known)
        sample = known
        if len(known) > _MAX_SAMPLE:
            sample = known[numpy_rng(seed, "manifold").choice(len(known), _MAX_SAMPLE, replace=False)]
        distances, _ = fitted.kneighbors(sample, n_neighbors=2)  # itself or a duplicate, and the next
        radius = float(np.quantile(distances[:, 1], share, method="inverted_cdf"))
        return Manifold(radius, share, len(known), known.shape[1], fitted)

    def nearest(self, latents: Codes, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Find the k nearest training codes of each code.

        Parameters
        ----------
        latents : (m, latent_dim)
        k : int
            From 1 to `n_codes`.

        Returns
        -------
        distances : (m, k) float64
            Ascending, exact to about 1e-7 of the codes' norm: the distance of a training code to itself
            need not be 0.
        indices : (m, k) int64
            Rows of the training codes.

        Raises
        ------
        ValueError
            If k is out of range, or the codes are not finite or of another dimension.
        """
        if not 1 <= k <= self.n_codes:
            raise ValueError(f"k must be from 1 to {self.n_codes}, the number of training codes, got {k}")
        codes = _array(latents, "latents")
        if codes.shape[1] != self.latent_dim:
            raise ValueError(
                f"latents must be (m, {self.latent_dim}) like the training codes, got {codes.shape}; "
                "take codes of the same generator"
            )
        if not len(codes):
            return np.zeros((0, k)), np.zeros((0, k), dtype=np.int64)
        distances, indices = self._fitted.kneighbors(codes, n_neighbors=k)
        return np.asarray(distances, dtype=np.float64), np.asarray(indices, dtype=np.int64)

    def is_off(self, latents: Codes) -> NDArray[np.bool_]:
        """Tell which codes (m, latent_dim) lie off the manifold, (m,) bool; raises what `nearest` raises."""
        distances, _ = self.nearest(latents, 1)
        return np.asarray(distances[:, 0] > self.radius)


def _array(codes: Codes, name: str) -> NDArray[np.float64]:
    array = np.asarray(codes.cpu() if isinstance(codes, Tensor) else codes, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must be (n, latent_dim), got {array.shape}; give one code as (1, latent_dim)"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity; train the VAE again")
    return array
