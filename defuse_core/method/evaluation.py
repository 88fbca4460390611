"""Evidence (section 4): what the correction changed, by how much, and how sure that is.

Figure 4 (before, identified mistakes, Defuse), figure 7 (agreement), and what the paper lacks: are images
still classified correctly after reconstruction alone, at ε = 0, and how well are the real images classified
that lie nearest to a region? Figure 6 is in `novelty`.
Shares come with Wilson intervals, which take the split, or the regions, as given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.base.records import FailureInstances, Region
from defuse_core.data.splits import Split
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.vae import BetaVAE, decode_images, encode_means


@dataclass(frozen=True)
class Scores:
    """A row of figure 4; `validation` is None where the data set has no such split."""

    model: str
    test: Interval
    region: Interval
    validation: Interval | None = None


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree; figure 7 has the mean of `share`.

    Attributes
    ----------
    share : (n_images,) float64
        Share of the annotators who gave the most frequent answer; NaN where fewer than two answered.
    unanimous : Interval
        Of the images with two answers or more, those on which all answers are the same.
    pairwise : float
        Share of pairs of answers on the same image that are the same; NaN without a pair.
    """

    share: NDArray[np.float64]
    unanimous: Interval
    pairwise: float


def share(right: Tensor) -> Interval:
    """Share of images that are classified correctly, (n,) bool, with its Wilson interval; NaN where n = 0."""
    return Interval.wilson(int(right.sum()), len(right))


def score_split(classifier: Classifier, split: Split) -> Interval:
    """Accuracy on a split with its Wilson interval.

    Parameters
    ----------
    classifier : Classifier
    split : Split
    """
    return share(predict(classifier, split.images) == split.labels)


def score_failures(classifier: Classifier, failures: FailureInstances) -> Interval:
    """Region accuracy (M.R. accuracy): the share of all instances predicted as the region's label.

    Parameters
    ----------
    classifier : Classifier
    failures : FailureInstances
    """
    return score_split(classifier, Split(failures.images, failures.labels))


def score_regions(classifier: Classifier, failures: FailureInstances) -> dict[int, Interval]:
    """Accuracy on each region, by region_id, ascending.

    Parameters
    ----------
    classifier : Classifier
    failures : FailureInstances
    """
    ids = failures.region_ids.unique().tolist()
    return {i: score_failures(classifier, failures.regions([i])) for i in ids}


def p_value_of_change(n_fixed: int, n_broken: int) -> float:
    """Return the p-value of McNemar's exact test that a correction fixes and breaks equally often.

    Parameters
    ----------
    n_fixed, n_broken : int
        Test images whose prediction became right, and wrong; 0 or more.

    Examples
    --------
    >>> p_value_of_change(0, 0)
    1.0
    """
    if min(n_fixed, n_broken) < 0:
        raise ValueError(f"counts must be 0 or more, got {n_fixed} and {n_broken}")
    n = n_fixed + n_broken
    # Both tails: at 1/2 they are alike. `scipy.stats`, which has the test, takes seconds to import.
    return min(1.0, 2 * float(bdtr(min(n_fixed, n_broken), n, 0.5)))


def reconstruction_control(classifier: Classifier, vae: BetaVAE, split: Split) -> Interval:
    """Of the images classified correctly, the share still classified correctly after reconstruction (ε = 0).

    Under about .95 the decoder is too blurry to blame the classifier for what it misclassifies.

    Parameters
    ----------
    classifier : Classifier
    vae : BetaVAE
    split : Split
    """
    right = split[predict(classifier, split.images) == split.labels]
    decoded = decode_images(vae, encode_means(vae, right.images))
    still = int((predict(classifier, decoded) == right.labels).sum())
    return Interval.wilson(still, len(right))


def nearest_to_region(
    region: Region, codes: Tensor, k: int, *, tau: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the codes that a region's Gaussian N(μ, τ·Σ) finds the most likely.

    Parameters
    ----------
    region : Region
    codes : (n, latent_dim)
        μ(x) of real images.
    k : int
        1 or more; all codes where there are fewer.
    tau : float
        τ at which the region is drawn. It scales the distances by 1/√τ and leaves their order; at τ = 0,
        where the Gaussian is a point, they are taken under Σ.

    Returns
    -------
    index : (k,) int64
        Rows of `codes`, nearest first; of equals the earlier row.
    distance : (k,) float64
        Mahalanobis distance to μ. Draws of the region lie at about √latent_dim.

    Raises
    ------
    ValueError
        If k or τ is out of range, or the codes are of another dimension.

    Examples
    --------
    >>> flat = Region(0, 1.0, np.zeros(2), np.diag([4.0, 1.0]))
    >>> nearest_to_region(flat, torch.tensor([[0.0, 1.5], [2.0, 0.0], [9.0, 9.0]]), 2, tau=1.0)
    (array([1, 0]), array([1. , 1.5]))
    """
    if k < 1 or not tau >= 0:
        raise ValueError(f"k must be 1 or more and tau 0 or more, got {k} and {tau}")
    if codes.ndim != 2 or codes.shape[1] != len(region.mean):
        raise ValueError(
            f"codes must be (n, {len(region.mean)}) like the region's mean, got {tuple(codes.shape)}; "
            "encode images by the generator of the region"
        )
    from scipy.linalg import solve_triangular  # slow to import

    factor = np.linalg.cholesky((tau or 1.0) * region.covariance)
    away = solve_triangular(factor, (codes.double().numpy() - region.mean).T, lower=True)  # (latent_dim, n)
    distance = np.linalg.norm(away, axis=0)
    index = np.argsort(distance, kind="stable")[:k]
    return index, distance[index]


def agreement(votes: Sequence[Sequence[int | None]]) -> Agreement:
    """Measure agreement on the images that two annotators or more answered: one alone agrees with nobody.

    "None of the above" (None) is an answer like the others.

    Parameters
    ----------
    votes : sequence of sequence of (int or None)
        The answers on each image, of any number of annotators.
    """
    share = [max(Counter(v).values()) / len(v) if len(v) > 1 else float("nan") for v in votes]
    compared = [v for v in votes if len(v) > 1]
    same = sum(len(set(v)) == 1 for v in compared)
    pairs = sum(comb(len(v), 2) for v in compared)
    equal = sum(comb(n, 2) for v in compared for n in Counter(v).values())
    pairwise = equal / pairs if pairs else float("nan")
    return Agreement(np.array(share), Interval.wilson(same, len(compared)), pairwise)


def majority_share(shares: NDArray[np.float64]) -> tuple[float, float, int]:
    """Return figure 7's numbers: mean, standard error and count of the shares that are known.

    Parameters
    ----------
    shares : (n_images,) float64
        `Agreement.share`; NaN where there is nothing to compare.

    Returns
    -------
    mean, standard_error : float
        NaN without an image; the error is NaN with only one.
    n : int
    """
    known = shares[~np.isnan(shares)]
    n = len(known)
    mean = float(known.mean()) if n else float("nan")
    return mean, float(known.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"), n


def found_again(base: Tensor, other: Tensor) -> dict[int, float]:
    """Measure how well each region of one fit is found again by another fit to the same mistakes.

    Parameters
    ----------
    base, other : (n,) int64
        The region of every mistake under either fit; -1 for none. The ids of the fits need not correspond.

    Returns
    -------
    dict of int to float
        For each region of `base` that holds mistakes, by id ascending: the best Jaccard overlap (mistakes in
        both / mistakes in either) between it and any region of `other`, in [0, 1]; 0 where that has none.

    Raises
    ------
    ValueError
        If the two are not of the same mistakes.

    References
    ----------
    Hennig, "Cluster-wise assessment of cluster stability", Computational Statistics and Data Analysis 52,
    2007.

    Examples
    --------
    >>> found_again(torch.tensor([4, 4, 4, 7, -1]), torch.tensor([0, 0, 2, 2, -1]))
    {4: 0.6666666666666666, 7: 0.5}
    """
    if base.ndim != 1 or base.shape != other.shape:
        raise ValueError(
            f"base and other must be (n,) of the same mistakes, got {tuple(base.shape)} and "
            f"{tuple(other.shape)}; assign all mistakes under both fits"
        )
    from sklearn.metrics.cluster import contingency_matrix  # slow to import: as in `novelty`

    both = contingency_matrix(base.numpy(), other.numpy())  # (ids of base, ids of other), ascending
    ids, other_ids = base.unique(), other.unique()
    either = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    overlaps = (both / either)[:, (other_ids >= 0).numpy()]
    best = overlaps.max(1, initial=0.0)
    return {int(i): float(best[row]) for row, i in enumerate(ids.tolist()) if i >= 0}


def misclassified(classifier: Classifier, split: Split) -> Split:
    """Return the images of a split that the classifier gets wrong.

    Parameters
    ----------
    classifier : Classifier
    split : Split
    """
    wrong: Tensor = predict(classifier, split.images) != split.labels
    return split[torch.nonzero(wrong).flatten()]
