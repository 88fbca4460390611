"""Distillation (section 3.2): group the codes of the mistakes into misclassification regions.

A Gaussian mixture with a Dirichlet-process prior (scikit-learn's `BayesianGaussianMixture`, full
covariances, its defaults) is fitted to the codes; components that weigh more than 1 % are the
regions. Densities and memberships use the fitted (π, μ, Σ) alone, so that they can be had from the
stored arrays; scikit-learn's own add the uncertainty of the parameters.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from defuse_core.base.config import DistillationConfig
from defuse_core.base.records import Mixture
from defuse_core.base.runtime import Callback, Loop, derive_seed, follow, numpy_rng

_ITERATIONS_PER_CALLBACK = 5
_DENSITY_BATCH = 4096


@dataclass(frozen=True)
class RelaxedRegion:
    """Definition 3.2 evaluated on a sample of codes.

    Attributes
    ----------
    n_codes, n_mistakes : int
        Codes within the radius, and how many of them are misclassified.
    share : float
        n_mistakes / n_codes; NaN where the ball is empty.
    holds : bool
        share > ρ.
    """

    n_codes: int
    n_mistakes: int
    share: float
    holds: bool


def fit_mixture(
    latents: Tensor, *, config: DistillationConfig, seed: int, callback: Callback | None = None
) -> Mixture:
    """Fit the Dirichlet-process mixture to the codes of the mistakes.

    Parameters
    ----------
    latents : (n, latent_dim)
    config : DistillationConfig
        K is lowered to n where there are fewer codes than components.
    seed : int
        Of the initialisation, and of the sample where there are more codes than `max_codes`.
    callback : Callback, optional
        Gets (iteration, max_iter, {"lower_bound"}) every few iterations; True stops.

    Raises
    ------
    ValueError
        If there are under two codes, or they are not finite.
    """
    return follow(mixture_iterations(latents, config=config, seed=seed), callback)


def mixture_iterations(latents: Tensor, *, config: DistillationConfig, seed: int) -> Loop[Mixture]:
    """`fit_mixture` as a `Loop` over iterations.

    Parameters
    ----------
    latents : (n, latent_dim)
        Codes of the mistakes.
    config : DistillationConfig
    seed : int
    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import: as long as torch, and only for fits
    from sklearn.mixture import BayesianGaussianMixture

    codes = np.asarray(latents.cpu(), dtype=np.float64)
    if len(codes) < 2:
        raise ValueError(
            f"distillation needs at least 2 mistakes, got {len(codes)}; "
            "identify with more perturbations, or a larger noise_scale"
        )
    if not np.isfinite(codes).all():
        raise ValueError("latents must be finite, got NaN or infinity; train the VAE again")
    if len(codes) > config.max_codes:
        sample = numpy_rng(seed, "distillation-sample").choice(len(codes), config.max_codes, replace=False)
        codes = codes[np.sort(sample)]
    mixture = BayesianGaussianMixture(
        n_components=min(config.n_components, len(codes)),
        covariance_type="full",
        weight_concentration_prior_type="dirichlet_process",
        random_state=derive_seed(seed, "distillation") % 2**32,
        warm_start=True,
    )
    n_iter, stop = 0, False
    while n_iter < config.max_iter and not stop:
        mixture.max_iter = min(_ITERATIONS_PER_CALLBACK, config.max_iter - n_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # reported as Mixture.converged
            mixture.fit(codes)
        n_iter += mixture.n_iter_
        bound = float(mixture.lower_bound_)
        stop = bool((yield n_iter, config.max_iter, {"lower_bound": bound})) or mixture.converged_
    return Mixture(
        weights=mixture.weights_,
        means=mixture.means_,
        covariances=mixture.covariances_,
        converged=bool(mixture.converged_),
        n_iter=n_iter,
        lower_bound=bound,
        n_codes=len(codes),
    )


def log_density(mixture: Mixture, latents: Tensor) -> Tensor:
    """Return log p(z) of each code under the mixture, (n, latent_dim) → (n,) float64.

    Parameters
    ----------
    mixture : Mixture
    latents : (n, latent_dim)
    """
    if not len(latents):
        return torch.zeros(0, dtype=torch.float64)
    density = MixtureSameFamily(_categorical(mixture), _components(mixture))
    return torch.cat([density.log_prob(part.double()) for part in latents.cpu().split(_DENSITY_BATCH)])


def membership(mixture: Mixture, latents: Tensor, *, min_weight: float = 0.01) -> Tensor:
    """Assign each code to its most probable component.

    Parameters
    ----------
    mixture : Mixture
    latents : (n, latent_dim)
    min_weight : float
        In [0, 1]: components of at most this weight are no regions.

    Returns
    -------
    (n,) int64
        A `Region.region_id`; -1 where that component is no region.
    """
    if not len(latents):
        return torch.zeros(0, dtype=torch.int64)
    components, log_weights = _components(mixture), _categorical(mixture).logits
    ids = torch.cat(
        [
            (log_weights + components.log_prob(part.double()[:, None])).argmax(1)
            for part in latents.cpu().split(_DENSITY_BATCH)
        ]
    )
    return ids.where(torch.from_numpy(mixture.are_regions(min_weight))[ids], -1)


def relaxed_region(
    latents: Tensor,
    is_mistake: Tensor,
    *,
    centre: NDArray[np.float64] | Tensor,
    radius: float,
    rho: float,
) -> RelaxedRegion:
    """Evaluate definition 3.2: of the codes within `radius` of `centre`, are more than ρ misclassified?

    Parameters
    ----------
    latents : (n, latent_dim)
        Codes of images whose true label is known.
    is_mistake : (n,) bool
        Whether the classifier gets the decoded image wrong.
    centre : (latent_dim,)
    radius : float
        ε of the definition, where it is above 0 and the ball open; here 0 or more, and the ball is closed.
    rho : float
        ρ in [0, 1). 0 asks for any mistake; the strict definition 3.1 is share = 1.

    Examples
    --------
    >>> codes = torch.tensor([[0.0], [1.0], [5.0]])
    >>> wrong = torch.tensor([True, False, False])
    >>> relaxed_region(codes, wrong, centre=torch.zeros(1), radius=1.0, rho=0.4)
    RelaxedRegion(n_codes=2, n_mistakes=1, share=0.5, holds=True)
    """
    if not radius >= 0 or not 0 <= rho < 1:
        raise ValueError(f"radius must be 0 or more and rho in [0, 1), got {radius} and {rho}")
    distance = (latents.double() - torch.as_tensor(centre, dtype=torch.float64)).norm(dim=1)
    inside = distance <= radius
    n_codes, n_mistakes = int(inside.sum()), int((inside & is_mistake).sum())
    share = n_mistakes / n_codes if n_codes else float("nan")
    return RelaxedRegion(n_codes, n_mistakes, share, share > rho)


def _categorical(mixture: Mixture) -> Categorical:
    return Categorical(logits=torch.from_numpy(mixture.weights).log())  # probs= would clamp at 2e-16


def _components(mixture: Mixture) -> MultivariateNormal:
    covariances = torch.from_numpy(mixture.covariances)
    return MultivariateNormal(torch.from_numpy(mixture.means), covariance_matrix=covariances)
