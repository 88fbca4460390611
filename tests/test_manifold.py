from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defuse_core.extensions.manifold import Manifold


def normal(n: int, dim: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((n, dim))


def all_distances(latents: NDArray[np.float64], codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The reference: every difference, (m, n)."""
    return np.asarray(np.sqrt(((latents[:, None] - codes[None]) ** 2).sum(2)))


def leave_one_out(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The reference: distance of every code to its nearest other, (n,)."""
    distances = all_distances(codes, codes)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(distances.min(1))


@pytest.mark.parametrize("k", [1, 7, 150])
@pytest.mark.parametrize("dim", [1, 4, 20])
def test_nearest_against_all_distances(dim: int, k: int) -> None:
    codes, latents = normal(150, dim), normal(40, dim, 1) * 2
    distances, indices = Manifold.of(codes, seed=0).nearest(latents, k)
    every = all_distances(latents, codes)
    assert distances.shape == indices.shape == (40, k)
    assert distances.dtype == np.float64
    assert indices.dtype == np.int64
    np.testing.assert_allclose(distances, np.sort(every, 1)[:, :k], atol=1e-7)
    np.testing.assert_allclose(np.take_along_axis(every, indices, 1), distances, atol=1e-7)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_the_radius_is_the_smallest_that_holds_for_the_share(share: float) -> None:
    codes = normal(300, 5)
    found, nearest_other = Manifold.of(codes, share=share, seed=0), leave_one_out(codes)
    within = nearest_other <= found.radius + 1e-9
    assert within.mean() >= share
    assert (nearest_other < found.radius - 1e-9).mean() < share
    assert (found.share, found.n_codes, found.latent_dim) == (share, 300, 5)


def test_a_code_is_off_where_it_is_farther_than_most_training_codes_are_from_each_other() -> None:
    codes, latents = normal(400, 3), normal(200, 3, 1) * 2
    found = Manifold.of(codes, share=0.95, seed=0)
    expected = all_distances(latents, codes).min(1) > np.sort(leave_one_out(codes))[379]  # the 380th of 400
    np.testing.assert_array_equal(found.is_off(latents), expected)
    assert 20 < expected.sum() < 180
    assert found.is_off(latents).dtype == np.bool_


def test_training_codes_are_on_it_and_what_is_far_is_off_it() -> None:
    codes = normal(500, 8)
    found = Manifold.of(codes, seed=0)
    assert not found.is_off(codes).any()
    assert found.is_off(codes + 50).all()
    fresh = found.is_off(normal(2000, 8, 1))  # of the same distribution: off about as often as stated
    assert 0.002 < fresh.mean() < 0.03


def test_twins_count_as_each_others_nearest() -> None:
    codes = np.repeat(normal(20, 3), 2, axis=0)
    assert Manifold.of(codes, seed=0).radius == pytest.approx(0, abs=1e-6)
    lonely = np.concatenate([codes, [[9.0, 9.0, 9.0]]])
    assert Manifold.of(lonely, share=1.0, seed=0).radius == pytest.approx(leave_one_out(lonely).max())


def test_the_radius_of_many_codes_is_estimated_on_a_seeded_sample_against_all_of_them() -> None:
    codes = normal(6000, 3)
    first, again, other = (Manifold.of(codes, seed=seed) for seed in (0, 0, 1))
    assert first.radius == again.radius
    assert first.radius != other.radius
    nearest_other = np.concatenate(
        [np.sort(all_distances(part, codes), 1)[:, 1] for part in np.array_split(codes, 60)]
    )
    for found in (first, other):
        assert 0.98 < (nearest_other <= found.radius).mean() < 0.998
    few = codes[:2000]  # no more than the sample: the seed has no part
    assert Manifold.of(few, seed=0).radius == Manifold.of(few, seed=1).radius


@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 99), st.floats(0.1, 10), st.floats(-5, 5))
def test_scaling_scales_moving_and_turning_change_nothing(
    n: int, dim: int, seed: int, scale: float, shift: float
) -> None:
    codes, latents = normal(n, dim, seed), normal(6, dim, seed + 1)
    turn, _ = np.linalg.qr(normal(dim, dim, seed + 2))
    k = min(3, n)
    found = Manifold.of(codes, share=0.9, seed=0)
    moved = Manifold.of(scale * codes @ turn + shift, share=0.9, seed=0)
    assert moved.radius == pytest.approx(scale * found.radius, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(
        moved.nearest(scale * latents @ turn + shift, k)[0],
        scale * found.nearest(latents, k)[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_tensors_and_arrays_of_float32_are_the_same_codes() -> None:
    codes, latents = normal(50, 4).astype(np.float32), normal(9, 4, 1).astype(np.float32)
    ours, theirs = (
        Manifold.of(codes, seed=0),
        Manifold.of(torch.from_numpy(codes), seed=0),
    )
    assert ours.radius == theirs.radius
    for one, other in zip(
        ours.nearest(latents, 3), theirs.nearest(torch.from_numpy(latents), 3), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_no_codes_have_no_neighbours() -> None:
    distances, indices = Manifold.of(normal(5, 2), seed=0).nearest(np.zeros((0, 2)), 3)
    assert distances.shape == indices.shape == (0, 3)
    assert Manifold.of(normal(5, 2), seed=0).is_off(torch.zeros(0, 2)).shape == (0,)


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        (normal(1, 3), "at least 2 training codes, got 1; encode more images"),
        (np.zeros((0, 3)), "at least 2 training codes, got 0"),
        (np.array([[0.0], [np.nan]]), "codes must be finite, got NaN or infinity; train the VAE again"),
        (np.array([[0.0], [np.inf]]), "codes must be finite"),
        (np.zeros(4), r"codes must be \(n, latent_dim\), got \(4,\)"),
    ],
)
def test_bad_codes_name_the_remedy(codes: NDArray[np.float64], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Manifold.of(codes, seed=0)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got"):
        Manifold.of(normal(5, 2), share=share, seed=0)


@pytest.mark.parametrize(
    ("latents", "k", "told"),
    [
        (np.zeros((3, 2)), 0, "k must be from 1 to 5, the number of training codes, got 0"),
        (np.zeros((3, 2)), 6, "k must be from 1 to 5, the number of training codes, got 6"),
        (np.zeros((3, 4)), 1, r"latents must be \(m, 2\) .*got \(3, 4\); take codes of the same generator"),
        (np.zeros(2), 1, r"latents must be \(n, latent_dim\).*give one code as \(1, latent_dim\)"),
        (torch.tensor([[0.0, float("nan")]]), 1, "latents must be finite"),
    ],
)
def test_bad_questions_name_the_remedy(latents: Any, k: int, told: str) -> None:
    found = Manifold.of(normal(5, 2), seed=0)
    with pytest.raises(ValueError, match=told):
        found.nearest(latents, k)
    if k == 1:
        with pytest.raises(ValueError, match=told):
            found.is_off(latents)
