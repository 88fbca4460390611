"""Project latent codes to the plane (figure 2) by t-SNE, UMAP or PCA, each seeded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.named import load_function
from defuse_core.base.runtime import Callback, Loop, derive_seed, follow
from defuse_core.workspace.configs import PROJECTIONS, MapConfig

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
    method : str
    n_iter : int
        Iterations done; fewer if the callback stopped it. 0 for UMAP and PCA.
    """

    points: NDArray[np.float32]
    method: str
    n_iter: int


def project(
    latents: Tensor,
    *,
    method: str = "tsne",
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
    method : str
        A name in `PROJECTIONS`: "tsne", by openTSNE (van der Maaten and Hinton 2008), "umap", by umap-learn
        (McInnes et al. 2018), or "pca".
    seed : int
    perplexity : float
        Of t-SNE; 30 in figure 2. Lowered if there are fewer than 3 · perplexity + 1 codes.
    n_neighbors : int
        Of UMAP.
    callback : Callback, optional
        Of t-SNE: gets (iteration, iterations, {"kl"}) every 50 iterations; True stops and keeps the
        embedding so far.
    """
    config = MapConfig(method=method, perplexity=perplexity, n_neighbors=n_neighbors)
    return follow(projection_steps(latents, config=config, seed=seed), callback)


def projection_steps(latents: Tensor, *, config: MapConfig, seed: int) -> Loop[Projection]:
    """`project` as a `Loop`, by the method of `PROJECTIONS` that the config names.

    Parameters
    ----------
    latents : (n, latent_dim)
        At least four codes.
    config : MapConfig
    seed : int

    Raises
    ------
    ValueError
        If there are fewer than four codes or two dimensions, or a code is not finite.
    """
    codes = np.asarray(latents.cpu(), dtype=np.float64)
    if len(codes) < _MIN_CODES or codes.shape[1] < 2 or not np.isfinite(codes).all():
        raise ValueError(
            f"projection needs at least {_MIN_CODES} finite codes of 2 or more dimensions, "
            f"got {codes.shape}; encode more images"
        )
    state = derive_seed(seed, "projection") % 2**31
    loop: Loop[Projection] = load_function(PROJECTIONS[config.method])(codes, state, config)
    return (yield from loop)


def pca_steps(codes: NDArray[np.float64], seed: int, config: MapConfig) -> Loop[Projection]:
    """PCA; does not yield.

    Parameters
    ----------
    codes : (n, latent_dim)
    seed : int
    config : MapConfig
    """
    yield from ()
    from sklearn.decomposition import PCA

    points = PCA(n_components=2, random_state=seed).fit_transform(codes)
    return Projection(np.asarray(points, dtype=np.float32), config.method, 0)


def tsne_steps(codes: NDArray[np.float64], seed: int, config: MapConfig) -> Loop[Projection]:
    """t-SNE by openTSNE, in chunks of iterations.

    Parameters
    ----------
    codes : (n, latent_dim)
    seed : int
    config : MapConfig
    """
    import openTSNE

    model = openTSNE.TSNE(
        perplexity=min(config.perplexity, (len(codes) - 1) / 3),
        random_state=seed,
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
    return Projection(np.asarray(embedding, dtype=np.float32), config.method, done)


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


def umap_steps(codes: NDArray[np.float64], seed: int, config: MapConfig) -> Loop[Projection]:
    """UMAP by umap-learn; does not yield.

    Parameters
    ----------
    codes : (n, latent_dim)
    seed : int
    config : MapConfig
    """
    yield from ()
    import umap

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*n_jobs value.*overridden")  # seeded: one thread
        model = umap.UMAP(n_neighbors=min(config.n_neighbors, len(codes) - 1), random_state=seed)
        points = model.fit_transform(codes)
    return Projection(np.asarray(points, dtype=np.float32), config.method, 0)
