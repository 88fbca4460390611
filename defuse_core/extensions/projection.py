"""Project latent codes to the plane (figure 2) by t-SNE, UMAP or PCA, each seeded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.runtime import Callback, Loop, derive_seed, follow

Method = Literal["tsne", "umap", "pca"]

_TSNE_PHASES = ((250, 12.0), (500, 1.0))  # iterations and exaggeration: openTSNE's defaults
_TSNE_CHUNK = 50
_MIN_CODES = 4


@dataclass(frozen=True)
class Projection:
    """A fitted projection.

    Attributes
    ----------
    points : (n, 2) float32
        Where the fitted codes lie.
    method : {"tsne", "umap", "pca"}
    n_iter : int
        Iterations done; fewer if the callback stopped it. 0 for UMAP and PCA.
    """

    points: NDArray[np.float32]
    method: Method
    n_iter: int


def project(
    latents: Tensor,
    *,
    method: Method = "tsne",
    seed: int,
    perplexity: float = 30.0,
    n_neighbors: int = 15,
    callback: Callback | None = None,
) -> Projection:
    """Project codes to the plane.

    Parameters
    ----------
    latents : (n, latent_dim)
        At least four codes.
    method : {"tsne", "umap", "pca"}
        t-SNE by openTSNE (van der Maaten and Hinton 2008), UMAP by umap-learn (McInnes et al. 2018).
    seed : int
    perplexity : float
        Of t-SNE; 30 in figure 2. Lowered if there are fewer than 3 · perplexity + 1 codes.
    n_neighbors : int
        Of UMAP.
    callback : Callback, optional
        Of t-SNE: gets (iteration, iterations, {"kl"}) every 50 iterations; True stops and keeps the
        embedding so far.
    """
    steps = projection_steps(
        latents, method=method, seed=seed, perplexity=perplexity, n_neighbors=n_neighbors
    )
    return follow(steps, callback)


def projection_steps(
    latents: Tensor, *, method: Method, seed: int, perplexity: float = 30.0, n_neighbors: int = 15
) -> Loop[Projection]:
    """`project` as a `Loop`; UMAP and PCA do not yield.

    Parameters
    ----------
    latents : (n, latent_dim)
        At least four codes.
    method : {"tsne", "umap", "pca"}
    seed : int
    perplexity : float
        Of t-SNE.
    n_neighbors : int
        Of UMAP.

    Raises
    ------
    ValueError
        If there are fewer than four codes or two dimensions, a code is not finite, or the method is unknown.
    """
    codes = _array(latents)
    if len(codes) < _MIN_CODES or codes.shape[1] < 2 or not np.isfinite(codes).all():
        raise ValueError(
            f"projection needs at least {_MIN_CODES} finite codes of 2 or more dimensions, "
            f"got {codes.shape}; encode more images"
        )
    if method == "tsne":
        return (yield from _tsne(codes, seed, perplexity))
    state = derive_seed(seed, "projection") % 2**31
    if method == "umap":
        return _umap(codes, state, n_neighbors)
    if method != "pca":
        raise ValueError(f"method must be tsne, umap or pca, got {method!r}")
    from sklearn.decomposition import PCA

    model = PCA(n_components=2, random_state=state).fit(codes)
    return Projection(np.asarray(model.transform(codes), dtype=np.float32), "pca", 0)


def _tsne(codes: NDArray[np.float64], seed: int, perplexity: float) -> Loop[Projection]:
    import openTSNE

    model = openTSNE.TSNE(
        perplexity=min(perplexity, (len(codes) - 1) / 3),
        random_state=derive_seed(seed, "projection") % 2**31,
        n_jobs=torch.get_num_threads(),  # those of the run; more than there are cores only slow it down
    )
    with _without_pynndescent():
        embedding = model.prepare_initial(codes)
    done, total, stop = 0, sum(n for n, _ in _TSNE_PHASES), False
    for n_iter, exaggeration in _TSNE_PHASES:
        for _ in range(n_iter // _TSNE_CHUNK):
            if stop:
                break
            # The optimiser keeps momentum and gains between calls: the chunks are one descent.
            embedding.optimize(_TSNE_CHUNK, exaggeration=exaggeration, momentum=0.8, inplace=True)
            done += _TSNE_CHUNK
            stop = bool((yield done, total, {"kl": float(embedding.kl_divergence)}))
    return Projection(np.asarray(embedding, dtype=np.float32), "tsne", done)


@contextmanager
def _without_pynndescent() -> Iterator[None]:
    """Keep openTSNE from importing pynndescent, which it does not need for Euclidean distances.

    The first import on a machine compiles for most of a minute; later ones take seconds.
    """
    name = "pynndescent"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # makes an import fail
    try:
        yield
    finally:
        del sys.modules[name]


def _umap(codes: NDArray[np.float64], state: int, n_neighbors: int) -> Projection:
    import umap

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*n_jobs value.*overridden")  # seeded: one thread
        model = umap.UMAP(n_neighbors=min(n_neighbors, len(codes) - 1), random_state=state)
        points = model.fit_transform(codes)
    return Projection(np.asarray(points, dtype=np.float32), "umap", 0)


def _array(latents: Tensor) -> NDArray[np.float64]:
    return np.asarray(latents.cpu(), dtype=np.float64)
