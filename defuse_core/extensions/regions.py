"""Edit regions: merge them, split them, or make a new one of selected mistakes.

An edited mixture is the fitted one with new components appended; components that an edit removed get
weight 0. So a `region_id` stays the index of a component and is never used twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.errors import DefuseError
from defuse_core.base.records import Mixture, Region
from defuse_core.base.runtime import derive_seed
from defuse_core.method.distillation import membership
from defuse_core.workspace.edits import STRUCTURAL, Gaussian, RegionEdit, fit_fault

_REGULARISATION = 1e-6  # added to variances, as scikit-learn's mixtures do


class RegionError(DefuseError, ValueError):
    """Edits that do not fit the regions; the message names the remedy."""


def apply_edits(mixture: Mixture, edits: Sequence[RegionEdit], *, min_weight: float | None = None) -> Mixture:
    """Apply edits to a mixture, in order; an undone edit leaves components of weight 0.

    Parameters
    ----------
    mixture : Mixture
        As it was fitted.
    edits : sequence of RegionEdit
        All of them, those undone included.
    min_weight : float, optional
        Of distillation: a component above it stays a region when a selection takes some of its weight.

    Raises
    ------
    RegionError
        If an edit was made for another mixture.
    """
    weights, means, covariances = list(mixture.weights), list(mixture.means), list(mixture.covariances)
    kept: set[int] = set()
    for edit in (e for e in edits if e.kind in STRUCTURAL):
        first = len(weights)
        new_ids = list(range(first, first + len(edit.into)))
        latent_dim = mixture.means.shape[1]
        if fault := fit_fault(edit.regions, edit.into, n_components=first, latent_dim=latent_dim):
            raise RegionError(
                f"the edit “{edit}” was made for other regions: {fault}; group the mistakes again: "
                "defuse distill"
            )
        for gaussian in edit.into:
            weights.append(0.0 if edit.undone else gaussian.weight)
            means.append(np.array(gaussian.mean))
            covariances.append(np.array(gaussian.covariance))
        if edit.undone:
            continue
        for gone in edit.regions:
            weights[gone] = 0.0
        kept = (kept - set(edit.regions)) | set(new_ids)
        if edit.kind == "select":  # its weight is taken from all others
            share = edit.into[0].weight
            if min_weight is not None:
                kept |= {k for k, weight in enumerate(weights[:first]) if weight > min_weight}
            weights[:first] = [weight * (1 - share) for weight in weights[:first]]
    return replace(
        mixture,
        weights=np.array(weights), means=np.stack(means), covariances=np.stack(covariances),
        kept=frozenset(kept),
    )  # fmt: skip


def region_of_mistakes(
    mixture: Mixture, edits: Sequence[RegionEdit], latents: Tensor, *, min_weight: float
) -> NDArray[np.int64]:
    """Say in which region each mistake of a search lies, as people edited the regions.

    It is the region of the most probable component, unless a person chose otherwise: a mistake that was
    selected for a region stays in it, and follows it when it is merged or split.

    Parameters
    ----------
    mixture : Mixture
        As edited.
    edits : sequence of RegionEdit
        All of them, those undone included.
    latents : (n_mistakes, latent_dim)
        Of all mistakes that the regions were distilled from, in their order.
    min_weight : float
        Of distillation.

    Returns
    -------
    (n_mistakes,) int64
        A `Region.region_id`; -1 for none.
    """
    of_region = membership(mixture, latents, min_weight=min_weight).numpy()
    for edit in edits:
        if not edit.undone:
            _follow(edit, of_region, mixture, latents)
    return of_region


def _follow(edit: RegionEdit, of_region: NDArray[np.int64], mixture: Mixture, latents: Tensor) -> None:
    """Move mistakes in place to the regions of an edit, even where another component is more probable."""
    new_ids = [gaussian.region_id for gaussian in edit.into]
    gone = np.isin(of_region, edit.regions)
    if edit.kind == "select":
        of_region[[index for index in edit.mistakes if index < len(of_region)]] = new_ids[0]
    elif edit.kind == "merge":
        of_region[gone] = new_ids[0]
    elif edit.kind == "split" and gone.any():
        weights = np.zeros_like(mixture.weights)  # of `mixture`, a part that an edit removed later has 0
        weights[new_ids] = [gaussian.weight for gaussian in edit.into]
        among = replace(mixture, weights=weights)
        of_region[gone] = membership(among, latents[gone], min_weight=0.0).numpy()


def merge(mixture: Mixture, regions: Sequence[Region]) -> Gaussian:
    """Merge Gaussians into one with the mean and covariance of their mixture.

    Parameters
    ----------
    mixture : Mixture
        As edited so far.
    regions : sequence of Region
        Two or more.
    """
    regions = list({region.region_id: region for region in regions}.values())
    if len(regions) < 2:
        raise ValueError(f"a merge takes two regions or more, got {len(regions)}; choose another one, too")
    weights = np.array([region.weight for region in regions])
    shares = weights / weights.sum()
    means = np.stack([region.mean for region in regions])  # (n_regions, latent_dim)
    mean = shares @ means
    within = np.einsum("k,kij->ij", shares, np.stack([region.covariance for region in regions]))
    between = np.einsum("k,ki,kj->ij", shares, means - mean, means - mean)
    return _gaussian(len(mixture.weights), float(weights.sum()), mean, within + between)


def split(mixture: Mixture, region: Region, latents: Tensor, *, seed: int) -> tuple[Gaussian, Gaussian]:
    """Split a Gaussian in two, fitted to its mistakes by expectation maximisation.

    Parameters
    ----------
    mixture : Mixture
        As edited so far.
    region : Region
    latents : (n, latent_dim)
        Codes of the region's mistakes; at least twice latent_dim + 1.
    seed : int
        Of the initialisation.
    """
    from sklearn.mixture import GaussianMixture

    needed = 2 * (len(region.mean) + 1)
    if len(latents) < needed:
        raise ValueError(
            f"a region needs at least {needed} mistakes to be split, this one has {len(latents)}; "
            "leave it whole"
        )
    state = derive_seed(seed, "split", region.region_id) % 2**32
    codes = np.asarray(latents, dtype=np.float64)
    fitted = GaussianMixture(2, n_init=3, random_state=state).fit(codes)
    order = np.argsort(-fitted.weights_, kind="stable")
    first = len(mixture.weights)
    heavy, light = (
        _gaussian(first + i, region.weight * fitted.weights_[k], fitted.means_[k], fitted.covariances_[k])
        for i, k in enumerate(order)
    )
    return heavy, light


def select(mixture: Mixture, latents: Tensor, *, of: int) -> Gaussian:
    """Fit a Gaussian to codes that a person selected.

    Its covariance is shrunk after Ledoit and Wolf (2004), which keeps it positive definite even for few
    codes.

    Parameters
    ----------
    mixture : Mixture
        As edited so far.
    latents : (n, latent_dim)
        Two codes or more.
    of : int
        Number of all mistakes; the share of the selected ones is the weight.
    """
    from sklearn.covariance import LedoitWolf

    if len(latents) < 2:
        raise ValueError(f"a region is made of two mistakes or more, got {len(latents)}; select more")
    codes = np.asarray(latents, dtype=np.float64)
    fitted = LedoitWolf().fit(codes)
    covariance = fitted.covariance_ + _REGULARISATION * np.eye(codes.shape[1])
    weight = min(len(codes) / of, 0.99)  # something is left for the others
    return _gaussian(len(mixture.weights), weight, fitted.location_, covariance)


def _gaussian(
    region_id: int, weight: float, mean: NDArray[np.float64], covariance: NDArray[np.float64]
) -> Gaussian:
    rows = tuple(tuple(float(value) for value in row) for row in (covariance + covariance.T) / 2)
    return Gaussian(region_id, float(weight), tuple(float(value) for value in mean), rows)
