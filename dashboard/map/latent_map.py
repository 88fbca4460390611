"""The map of latent space as data: which point is which code, and which are drawn.

Nothing here draws; what takes time runs on a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dashboard.shell.store import later, workspace
from defuse_core.workspace.workspace import Workspace

if TYPE_CHECKING:
    from defuse_core.extensions.manifold import Manifold

Indices = NDArray[np.int64]

MOST_POINTS = 20_000
"""So many points pan smoothly; of a larger map the page draws a sample, and says so."""

_PREVIEW = 2_000  # training codes, and mistakes, of the first picture
_OUTLINED = 0.5  # share of a region's mistakes that its outline goes around; t-SNE tears the rest away
_FEWEST = 8  # mistakes that a region needs for an outline


@dataclass(frozen=True)
class LatentMap:
    """Codes in the plane.

    Attributes
    ----------
    method : str
    codes : (n, 2) float32
        Where training codes lie.
    code_index : (n,) int64
        Index of each in the training split.
    mistakes : (m, 2) float32
    mistake_index : (m,) int64
        Number of each among the mistakes identified.
    """

    method: str
    codes: NDArray[np.float32]
    code_index: Indices
    mistakes: NDArray[np.float32]
    mistake_index: Indices

    def thinned(self) -> LatentMap:
        """Return at most `MOST_POINTS` points, always the same; codes and mistakes keep their shares."""
        n = len(self.codes) + len(self.mistakes)
        if n <= MOST_POINTS:
            return self
        share = MOST_POINTS / n
        codes, mistakes = (_sample(len(part), int(len(part) * share)) for part in (self.codes, self.mistakes))
        return replace(
            self,
            codes=self.codes[codes], code_index=self.code_index[codes],
            mistakes=self.mistakes[mistakes], mistake_index=self.mistake_index[mistakes],
        )  # fmt: skip


def _sample(n: int, size: int) -> Indices:
    return np.sort(np.random.default_rng(0).permutation(n)[:size])


def read_map(method: str, arrays: Mapping[str, NDArray[Any]]) -> LatentMap:
    """Make a map from what a map run stored."""
    n = len(arrays["train_index"])
    points = arrays["points"]
    return LatentMap(method, points[:n], arrays["train_index"], points[n:], arrays["mistake_index"])


@later("a first picture", max_entries=2)
def preview(run_id: int) -> Callable[[], LatentMap]:
    """A first map of the mistakes of a run; None while it is computed."""
    return partial(make_preview, workspace(), run_id)


@later("the training codes", max_entries=2)
def manifold_of(run_id: int) -> Callable[[], Manifold]:
    """The codes of all training images, to search for the nearest; None while they are read."""
    return partial(fit_manifold, workspace(), run_id)


def make_preview(store: Workspace, run_id: int) -> LatentMap:
    """Make a first map by PCA, of samples of the training codes and of the mistakes of a run."""
    import torch

    from defuse_core.data.splits import stratified_sample
    from defuse_core.extensions.projection import project
    from defuse_core.method.vae import encode_means
    from defuse_core.steps.source import Source

    source = Source(store, run_id)
    train, mistakes = source.dataset.train, source.mistakes()
    codes = stratified_sample(train.labels, min(_PREVIEW, len(train)), seed=0)
    chosen = torch.from_numpy(_sample(len(mistakes), _PREVIEW))
    latents = torch.cat([encode_means(source.vae(), train.images[codes]), mistakes.latents[chosen]])
    points = project(latents, method="pca", seed=0).points
    n = len(codes)
    return LatentMap("pca", points[:n], codes.numpy(), points[n:], chosen.numpy())


def fit_manifold(store: Workspace, run_id: int) -> Manifold:
    """Load the codes of all training images that a map run stored."""
    from defuse_core.base.checkpoints import load_artifact
    from defuse_core.extensions.manifold import Manifold

    codes, _ = load_artifact(store.artifact_path(run_id, "codes.safetensors"))
    return Manifold.of(codes["latents"], seed=store.runs.get(run_id).seed)


@dataclass(frozen=True)
class Selection:
    """What a person selected: indices of training images, and numbers of mistakes, ascending."""

    codes: Indices
    mistakes: Indices

    def __len__(self) -> int:
        return len(self.codes) + len(self.mistakes)


NOTHING = Selection(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def read_selection(points: Sequence[Mapping[str, Any]], shown: LatentMap, kept: Indices) -> Selection:
    """Return the codes of the points that a browser names by trace and place.

    Parameters
    ----------
    points : sequence of mapping
        "curve_number" 0 for a training code, 1 for a mistake; others are left out. "point_index".
    shown : LatentMap
    kept : (k,) int64
        Rows of the mistakes that were drawn.
    """
    rows: tuple[list[int], list[int]] = [], []
    sizes = len(shown.codes), len(kept)
    for point in points:
        trace, place = point.get("curve_number"), point.get("point_index")
        if type(trace) is type(place) is int and trace in (0, 1) and 0 <= place < sizes[trace]:
            rows[trace].append(place)
    codes, mistakes = (np.array(places, dtype=np.int64) for places in rows)
    return Selection(np.unique(shown.code_index[codes]), np.unique(shown.mistake_index[kept[mistakes]]))


def outlines(shown: LatentMap, membership: Indices) -> dict[int, NDArray[np.float64]]:
    """Outline each region: the convex hull of the half of its mistakes nearest their median.

    Parameters
    ----------
    shown : LatentMap
    membership : (m,) int64
        Region of each of the map's mistakes; -1 for none.

    Returns
    -------
    dict of int to (k, 2) float
        Closed polygons by region_id; regions with under eight mistakes on the map have none.
    """
    from scipy.spatial import ConvexHull, QhullError

    polygons = {}
    for region_id in np.unique(membership[membership >= 0]).tolist():
        points = shown.mistakes[membership == region_id].astype(np.float64)
        if len(points) < _FEWEST:
            continue
        distance = np.linalg.norm(points - np.median(points, axis=0), axis=1)
        middle = points[distance <= np.quantile(distance, _OUTLINED)]
        try:
            hull = ConvexHull(middle).vertices
        except QhullError:  # all on one line
            continue
        polygons[region_id] = middle[[*hull, hull[0]]]
    return polygons
