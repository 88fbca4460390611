"""Distillation against scikit-learn and SciPy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

from defuse_core.base.config import DistillationConfig
from defuse_core.base.records import Mixture
from defuse_core.base.runtime import derive_seed
from defuse_core.method.distillation import (
    RelaxedRegion,
    fit_mixture,
    log_density,
    membership,
    relaxed_region,
)

PLANTED_WEIGHTS = np.array([0.5, 0.3, 0.2])
PLANTED_MEANS = np.array([[0.0, 0.0], [12.0, 0.0], [0.0, 12.0]])
PLANTED_COVARIANCES = np.array(
    [[[1.0, 0.6], [0.6, 1.0]], [[2.0, 0.0], [0.0, 0.5]], [[0.5, -0.2], [-0.2, 1.0]]]
)
TEN = DistillationConfig(n_components=10)


def planted(n: int = 2000) -> Tensor:
    rng = np.random.default_rng(0)
    parts = [
        rng.multivariate_normal(mean, covariance, round(weight * n))
        for weight, mean, covariance in zip(PLANTED_WEIGHTS, PLANTED_MEANS, PLANTED_COVARIANCES, strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts)).float()


def overlapping(n: int = 300) -> Tensor:
    """Codes without clear clusters, for which inference takes many iterations."""
    return torch.from_numpy(np.random.default_rng(1).gamma(2.0, size=(n, 3))).float()


def make_mixture(weights: list[float]) -> Mixture:
    rng = np.random.default_rng(2)
    factors = rng.normal(size=(len(weights), 3, 3))
    return Mixture(
        weights=np.array(weights),
        means=3 * rng.normal(size=(len(weights), 3)),
        covariances=factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(3),
        converged=True,
        n_iter=1,
        lower_bound=0.0,
        n_codes=10,
    )


def joint_log_density(mixture: Mixture, codes: Tensor) -> NDArray[np.float64]:
    """log π_k + log N(z | μ_k, Σ_k) by SciPy, (n, n_components)."""
    points = codes.double().numpy()
    columns = [
        np.log(weight) + np.atleast_1d(multivariate_normal(mean, covariance).logpdf(points))
        for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    ]
    return np.stack(columns, axis=1)


def test_planted_gaussians_are_recovered() -> None:
    mixture = fit_mixture(planted(), config=TEN, seed=0)
    regions = mixture.regions(0.05)
    assert mixture.converged
    assert mixture.n_codes == 2000
    assert mixture.weights.sum() == pytest.approx(1)
    assert len(regions) == 3  # heaviest first, as planted
    np.testing.assert_allclose([r.weight for r in regions], PLANTED_WEIGHTS, atol=0.01)
    np.testing.assert_allclose([r.mean for r in regions], PLANTED_MEANS, atol=0.15)
    np.testing.assert_allclose([r.covariance for r in regions], PLANTED_COVARIANCES, atol=0.25)


@pytest.mark.parametrize("max_iter", [1, 4, 5, 6, 23, 300])
def test_the_fit_in_chunks_is_one_plain_fit(max_iter: int) -> None:
    codes, seed = overlapping(), 7
    config = DistillationConfig(n_components=8, max_iter=max_iter)
    found = fit_mixture(codes, config=config, seed=seed)
    plain = BayesianGaussianMixture(
        n_components=8,
        weight_concentration_prior_type="dirichlet_process",
        max_iter=max_iter,
        random_state=derive_seed(seed, "distillation") % 2**32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        plain.fit(codes.double().numpy())
    np.testing.assert_allclose(found.weights, plain.weights_, rtol=1e-8)
    np.testing.assert_allclose(found.means, plain.means_, rtol=1e-8)
    np.testing.assert_allclose(found.covariances, plain.covariances_, rtol=1e-8, atol=1e-10)
    assert found.lower_bound == pytest.approx(plain.lower_bound_)
    assert (found.n_iter, found.converged) == (plain.n_iter_, plain.converged_)


@pytest.mark.parametrize(("max_iter", "converged"), [(1, False), (2, False), (500, True)])
def test_converged_tells_the_truth_without_a_warning(max_iter: int, converged: bool) -> None:
    config = DistillationConfig(n_components=8, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixture = fit_mixture(overlapping(), config=config, seed=0)
    assert mixture.converged is converged
    assert mixture.n_iter <= max_iter
    assert (mixture.n_iter < max_iter) is converged


def test_callback_sees_progress_and_stops() -> None:
    calls: list[tuple[int, int, float]] = []

    def watch(step: int, of: int, metrics: Mapping[str, float]) -> bool:
        calls.append((step, of, metrics["lower_bound"]))
        return len(calls) == 2

    config = DistillationConfig(n_components=8, max_iter=500)
    stopped = fit_mixture(overlapping(), config=config, seed=0, callback=watch)
    steps, totals, bounds = zip(*calls, strict=True)
    assert len(calls) == 2
    assert set(totals) == {500}
    assert steps[0] < steps[1] == stopped.n_iter
    assert bounds[0] < bounds[1] == stopped.lower_bound
    assert not stopped.converged
    short = DistillationConfig(n_components=8, max_iter=stopped.n_iter)
    expected = fit_mixture(overlapping(), config=short, seed=0)
    np.testing.assert_array_equal(stopped.means, expected.means)


def test_equal_seeds_agree_and_others_differ() -> None:
    config = DistillationConfig(n_components=8, max_iter=10)
    first, again, other = (fit_mixture(overlapping(), config=config, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.means, again.means)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.allclose(first.means, other.means)


def test_more_codes_than_max_codes_are_sampled() -> None:
    config = DistillationConfig(n_components=5, max_codes=400)
    first, again, other = (fit_mixture(planted(), config=config, seed=s) for s in (0, 0, 1))
    assert first.n_codes == other.n_codes == 400
    np.testing.assert_array_equal(first.means, again.means)
    # The sample is of all codes, not the first 400, which are of one cluster.
    for mixture in (first, other):
        weights = [region.weight for region in mixture.regions(0.05)]
        np.testing.assert_allclose(weights, PLANTED_WEIGHTS, atol=0.08)
    heaviest = [mixture.regions(0.05)[0].mean for mixture in (first, other)]
    assert not np.allclose(heaviest[0], heaviest[1])


def test_as_many_codes_as_max_codes_are_all_used() -> None:
    config = DistillationConfig(n_components=5, max_codes=2000)
    free = DistillationConfig(n_components=5)
    found, expected = (fit_mixture(planted(), config=c, seed=0) for c in (config, free))
    np.testing.assert_array_equal(found.means, expected.means)


@pytest.mark.parametrize("n", [2, 3, 9])
def test_fewer_codes_than_components(n: int) -> None:
    mixture = fit_mixture(planted()[:n], config=TEN, seed=0)
    assert mixture.n_codes == n
    assert mixture.weights.shape == (n,)
    assert mixture.covariances.shape == (n, 2, 2)
    assert mixture.weights.sum() == pytest.approx(1)
    assert np.isfinite(mixture.means).all()
    assert np.linalg.eigvalsh(mixture.covariances).min() > 0


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_codes_name_a_remedy(n: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 mistakes, got {n}; .*noise_scale"):
        fit_mixture(torch.zeros(n, 2), config=TEN, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_codes_that_are_not_finite_name_a_remedy(value: float) -> None:
    codes = planted()[:20].clone()
    codes[3, 1] = value
    with pytest.raises(ValueError, match=r"latents must be finite.*train the VAE again"):
        fit_mixture(codes, config=TEN, seed=0)


@pytest.mark.parametrize("n", [1, 50, 5000])
def test_log_density_is_scipys(n: int) -> None:
    mixture = make_mixture([0.5, 0.005, 0.2, 0.295])
    codes = torch.from_numpy(4 * np.random.default_rng(3).normal(size=(n, 3))).float()
    expected = logsumexp(joint_log_density(mixture, codes), axis=1)
    found = log_density(mixture, codes)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 50, 5000])
def test_membership_is_the_most_probable_component(n: int) -> None:
    mixture = make_mixture([0.5, 0.005, 0.2, 0.295])
    codes = torch.from_numpy(4 * np.random.default_rng(3).normal(size=(n, 3))).float()
    best = joint_log_density(mixture, codes).argmax(axis=1)
    expected = np.where(mixture.weights[best] > 0.01, best, -1)
    assert membership(mixture, codes).tolist() == expected.tolist()
    assert membership(mixture, codes, min_weight=0.0).tolist() == best.tolist()


def test_membership_cut_is_strict() -> None:
    mixture = make_mixture([0.75, 0.25])
    code = torch.from_numpy(mixture.means[1:]).float()
    assert membership(mixture, code, min_weight=0.2).tolist() == [1]
    assert membership(mixture, code, min_weight=0.25).tolist() == [-1]


def test_components_that_weigh_next_to_nothing_count_for_next_to_nothing() -> None:
    """A Dirichlet process leaves unused components at weights like 1e-60, and a broad prior."""
    far = Mixture(
        weights=np.array([1.0, 1e-60]),
        means=np.zeros((2, 2)),
        covariances=np.stack([np.eye(2), 100 * np.eye(2)]),
        converged=True,
        n_iter=1,
        lower_bound=0.0,
        n_codes=10,
    )
    codes = torch.tensor([[0.0, 0.0], [9.0, 0.0], [12.0, 0.0]])
    joint = joint_log_density(far, codes)
    assert joint.argmax(axis=1).tolist() == [0, 0, 0]
    assert membership(far, codes).tolist() == [0, 0, 0]
    np.testing.assert_allclose(log_density(far, codes), logsumexp(joint, axis=1), rtol=1e-9)


def test_a_component_without_weight_is_never_chosen() -> None:
    mixture = make_mixture([1.0, 0.0])
    codes = torch.from_numpy(mixture.means).float()
    expected = multivariate_normal(mixture.means[0], mixture.covariances[0]).logpdf(codes.numpy())
    assert membership(mixture, codes).tolist() == [0, 0]
    np.testing.assert_allclose(log_density(mixture, codes), expected, rtol=1e-6)


def test_no_codes_have_no_density_and_no_component() -> None:
    mixture = make_mixture([0.75, 0.25])
    assert log_density(mixture, torch.zeros(0, 3)).shape == (0,)
    assert membership(mixture, torch.zeros(0, 3)).shape == (0,)


# Distances from (0, 0): 0, 1, 5, 5, 10; misclassified: the second, third and fifth.
CODES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0], [-5.0, 0.0], [6.0, 8.0]])
MISREAD = torch.tensor([False, True, True, False, True])


@pytest.mark.parametrize(
    ("radius", "rho", "expected"),
    [
        (0.0, 0.0, RelaxedRegion(1, 0, 0.0, False)),
        (0.5, 0.0, RelaxedRegion(1, 0, 0.0, False)),
        (1.0, 0.0, RelaxedRegion(2, 1, 0.5, True)),  # the boundary belongs to the ball
        (1.0, 0.49, RelaxedRegion(2, 1, 0.5, True)),
        (1.0, 0.5, RelaxedRegion(2, 1, 0.5, False)),  # exactly ρ is not more than ρ
        (4.999, 0.0, RelaxedRegion(2, 1, 0.5, True)),
        (5.0, 0.5, RelaxedRegion(4, 2, 0.5, False)),
        (10.0, 0.5, RelaxedRegion(5, 3, 0.6, True)),
        (99.0, 0.6, RelaxedRegion(5, 3, 0.6, False)),
    ],
)
def test_relaxed_region_hand_worked(radius: float, rho: float, expected: RelaxedRegion) -> None:
    for centre in (np.zeros(2), torch.zeros(2)):
        assert relaxed_region(CODES, MISREAD, centre=centre, radius=radius, rho=rho) == expected


def test_relaxed_region_elsewhere() -> None:
    found = relaxed_region(CODES, MISREAD, centre=np.array([6.0, 8.0]), radius=5.0, rho=0.9)
    assert found == RelaxedRegion(2, 2, 1.0, True)  # (3, 4) is at distance 5


def test_an_empty_ball_holds_nothing() -> None:
    found = relaxed_region(CODES, MISREAD, centre=np.array([50.0, 0.0]), radius=1.0, rho=0.0)
    assert (found.n_codes, found.n_mistakes, found.holds) == (0, 0, False)
    assert np.isnan(found.share)


@pytest.mark.parametrize(
    ("radius", "rho"), [(-1.0, 0.5), (1.0, -0.1), (1.0, 1.0), (1.0, np.nan), (np.nan, 0.5)]
)
def test_relaxed_region_refuses_bad_numbers(radius: float, rho: float) -> None:
    with pytest.raises(ValueError, match=r"radius must be 0 or more and rho in \[0, 1\)"):
        relaxed_region(CODES, MISREAD, centre=np.zeros(2), radius=radius, rho=rho)
