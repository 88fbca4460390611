from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness
from torch import Tensor

from defuse_core.extensions.projection import project

METHODS = ("tsne", pytest.param("umap", marks=pytest.mark.verify), "pca")
"""UMAP is compiled anew in every process, which takes half a minute on a slow core."""


@pytest.fixture(scope="module")
def clusters() -> Tensor:
    """Three clusters of 50 codes in 6 dimensions, 12 standard deviations apart."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.eye(6)[:3] * 12
    return (centres.repeat_interleave(50, 0) + torch.randn(150, 6, generator=rng)).float()


@pytest.mark.parametrize("method", METHODS)
def test_neighbours_stay_neighbours(method: str, clusters: Tensor) -> None:
    found = project(clusters, method=method, seed=0)
    assert found.points.shape == (150, 2)
    assert found.points.dtype == np.float32
    labels = np.repeat([0, 1, 2], 50)
    centres = np.stack([found.points[labels == k].mean(0) for k in range(3)])
    nearest = np.linalg.norm(found.points[:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels).mean() > 0.98
    assert trustworthiness(clusters.numpy(), found.points, n_neighbors=5) > 0.75


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_agree(method: str, clusters: Tensor) -> None:
    first, second = (project(clusters, method=method, seed=3).points for _ in range(2))
    np.testing.assert_array_equal(first, second)


UNCOMPILED = """
import numpy as np
import torch
from defuse_core.extensions.projection import project
rng = torch.Generator().manual_seed(0)
codes = (torch.eye(6)[:2] * 12).repeat_interleave(15, 0) + torch.randn(30, 6, generator=rng)
points = project(codes, method="umap", seed=3, n_neighbors=4).points
assert points.dtype == np.float32
centres = np.stack([points[:15].mean(0), points[15:].mean(0)])
nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(1)
assert nearest.tolist() == [0] * 15 + [1] * 15
"""


def test_umap_uncompiled_keeps_two_clusters_apart() -> None:
    """What `make test` has of UMAP: 30 codes need no compiler."""
    done = subprocess.run(
        [sys.executable, "-c", UNCOMPILED], capture_output=True, text=True, check=False,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.verify
def test_different_seeds_differ(clusters: Tensor) -> None:
    first, second = (project(clusters, method="umap", seed=seed).points for seed in (0, 1))
    assert not np.allclose(first, second)


def test_pca_is_the_two_directions_of_most_variance(clusters: Tensor) -> None:
    centred = clusters.double() - clusters.double().mean(0)
    values = torch.linalg.svdvals(centred)
    points = project(clusters, method="pca", seed=0).points
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), values[:2].numpy(), rtol=1e-4)


def test_tsne_reports_progress_and_stops_keeping_what_it_has(clusters: Tensor) -> None:
    steps: list[int] = []

    def stop(step: int, of: int, metrics: Mapping[str, float]) -> bool:
        assert of == 750
        assert metrics["kl"] > 0
        steps.append(step)
        return step >= 300

    found = project(clusters, method="tsne", seed=0, callback=stop)
    assert steps == sorted(steps)
    assert steps[-1] == 300 == found.n_iter
    assert np.isfinite(found.points).all()


def test_few_codes_lower_perplexity_and_neighbours() -> None:
    codes = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert project(codes, method="tsne", seed=0).points.shape == (5, 2)
    assert project(codes, method="pca", seed=0).points.shape == (5, 2)


@pytest.mark.parametrize("codes", [torch.zeros(3, 2), torch.full((9, 2), float("nan")), torch.zeros(9, 1)])
def test_bad_codes_name_the_remedy(codes: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"at least 4 finite codes of 2 or more dimensions.*encode more images"
    ):
        project(codes, seed=0)


def test_unknown_method(clusters: Tensor) -> None:
    with pytest.raises(ValueError, match="should be 'tsne' or 'umap' or 'pca', got 'mds'"):
        project(clusters, method="mds", seed=0)
