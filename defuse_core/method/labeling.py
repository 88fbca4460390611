"""Labelling (sections 3.3 and 4.1, algorithm 3): what a region shows, and what people make of it.

A region is drawn as z ~ N(μ, τ·Σ): τ multiplies the *covariance*. Draws are frozen: one set of
standard normals per region, purpose and seed, scaled by √τ, so that moving τ moves the same images.

An image's label is the answer most annotators gave, "none of the above" being one of the answers; a
tie, or a majority of "none", discards the image. The region is a failure if more than ρ of the kept
images disagree with the classifier, and its label is their most frequent one; where two tie it has none.
`reach_verdict` alone decides that. The paper settles neither ties nor what "none" discards.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.base.records import Annotation, FailureInstances, Mistakes, Region, Verdict
from defuse_core.base.runtime import numpy_rng
from defuse_core.method.classifier import Classifier, predict, predict_logits
from defuse_core.method.vae import BetaVAE, decode_bytes

Purpose = Literal["label", "tune", "test"]
"""What draws are for; each purpose has draws of its own."""

Votes = list[list[int | None]]
"""Of each image, the answers given, in the order of the annotators' names; None is none of the above."""

_Label = TypeVar("_Label", bound=Hashable)


def standard_normals(region: Region, n: int, *, seed: int, purpose: Purpose = "label") -> NDArray[np.float64]:
    """Return the region's frozen normals (n, latent_dim); the first n of any longer set.

    Parameters
    ----------
    region : Region
    n : int
        0 or more.
    seed : int
    purpose : {"label", "tune", "test"}
        Each has normals of its own.
    """
    rng = numpy_rng(seed, "draw", purpose, region.region_id)
    return rng.standard_normal((n, len(region.mean)))


def draw_latents(region: Region, n: int, *, tau: float, seed: int, purpose: Purpose = "label") -> Tensor:
    """Draw z ~ N(μ, τ·Σ).

    Parameters
    ----------
    region : Region
    n : int
        Codes to draw.
    tau : float
        τ, 0 or more; 0 is the mean itself.
    seed : int
    purpose : {"label", "tune", "test"}

    Returns
    -------
    (n, latent_dim) float32
    """
    if not tau >= 0:
        raise ValueError(f"tau must be 0 or more, got {tau}")
    factor = np.linalg.cholesky(region.covariance)  # Σ = factor @ factor.T
    noise = standard_normals(region, n, seed=seed, purpose=purpose)
    return torch.from_numpy(region.mean + np.sqrt(tau) * noise @ factor.T).float()


def draw_images(
    vae: BetaVAE, region: Region, n: int, *, tau: float, seed: int, purpose: Purpose = "label"
) -> Tensor:
    """Decode draws of a region to uint8 images (n, channels, height, width).

    Parameters
    ----------
    vae : BetaVAE
    region : Region
    n : int
        0 or more.
    tau : float
        τ, 0 or more.
    seed : int
    purpose : {"label", "tune", "test"}
    """
    return decode_bytes(vae, draw_latents(region, n, tau=tau, seed=seed, purpose=purpose))


def draw_strip(
    classifier: Classifier, vae: BetaVAE, region: Region, *, taus: Sequence[float], n: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw the same n images of a region at many τ, and classify them.

    Parameters
    ----------
    classifier : Classifier
    vae : BetaVAE
    region : Region
    taus : sequence of float
        0 or more each.
    n : int
    seed : int

    Returns
    -------
    images : (n_taus, n, channels, height, width) uint8
    predictions : (n_taus, n) int64
    """
    latents = torch.cat([draw_latents(region, n, tau=tau, seed=seed) for tau in taus])
    images = decode_bytes(vae, latents)
    shape = (len(taus), n)
    return images.view(*shape, *images.shape[1:]), predict(classifier, images).view(shape)


def suggest_tau(taus: Sequence[float], predictions: Tensor, *, purity: float) -> float | None:
    """Return the largest τ at which at least `purity` of the draws get the same prediction.

    Parameters
    ----------
    taus : sequence of float
        (n_taus,)
    predictions : (n_taus, n) int64
    purity : float
        In (0, 1].

    Returns
    -------
    float or None
        None where no τ is that pure.

    Examples
    --------
    >>> suggest_tau([0.1, 0.5, 1.0], torch.tensor([[7, 7, 7], [7, 7, 7], [7, 7, 2]]), purity=0.9)
    0.5
    """
    if not 0 < purity <= 1:
        raise ValueError(f"purity must be in (0, 1], got {purity}")
    pure = [
        tau
        for tau, said in zip(taus, predictions, strict=True)
        if int(said.bincount().max()) / len(said) >= purity  # a product would round: 0.28 · 25 > 7
    ]
    return max(pure, default=None)


def failure_instances(
    vae: BetaVAE,
    regions: Sequence[Region],
    labels: Mapping[int, int],
    n: int,
    *,
    tau: float | Mapping[int, float],
    seed: int,
    purpose: Literal["tune", "test"],
) -> FailureInstances:
    """Draw D_f: n images of every region that `labels` names (region_id → label).

    τ is one for all regions, or one each by region_id.

    Parameters
    ----------
    vae : BetaVAE
    regions : sequence of Region
    labels : mapping of int to int
        Class by region_id; other regions are left out.
    n : int
        Draws of each region.
    tau : float, or mapping of int to float
        One for all regions, or one each by region_id.
    seed : int
    purpose : {"tune", "test"}
    """
    chosen = [region for region in regions if region.region_id in labels]
    taus = {r.region_id: tau if isinstance(tau, float | int) else tau[r.region_id] for r in chosen}
    images = [draw_images(vae, r, n, tau=taus[r.region_id], seed=seed, purpose=purpose) for r in chosen]
    ids = torch.tensor([r.region_id for r in chosen], dtype=torch.int64).repeat_interleave(n)
    of_region = torch.tensor([labels[r.region_id] for r in chosen], dtype=torch.int64)
    if not images:
        raise ValueError("no region has a label; label at least one failure region")
    return FailureInstances(torch.cat(images), of_region.repeat_interleave(n), ids)


def simulate_annotators(
    annotators: Mapping[str, Classifier], images: Tensor, *, region_id: int, threshold: float
) -> list[Annotation]:
    """Let classifiers stand in for people, image by image.

    Parameters
    ----------
    annotators : mapping of name to Classifier
    images : (n, channels, height, width)
    region_id : int
    threshold : float
        An annotator whose highest probability is under it says "none of the above".
    """
    answers = []
    for name, annotator in annotators.items():
        top, label = predict_logits(annotator, images).softmax(1).max(1)
        for index, (probability, c) in enumerate(zip(top.tolist(), label.tolist(), strict=True)):
            said = c if probability >= threshold else None
            answers.append(Annotation(region_id, name, said, index))
    return answers


def collect_votes(annotations: Iterable[Annotation], n_samples: int) -> Votes:
    """Turn annotations of one region into votes on each of its images.

    An annotator's label of an image counts before their label of the region; the later of two on
    the same subject counts. Images without an answer have no votes.

    Parameters
    ----------
    annotations : iterable of Annotation
        Of one region.
    n_samples : int
        Images of the region that were shown.

    Raises
    ------
    ValueError
        If annotations name several regions, or an image that does not exist.
    """
    answers: dict[str, dict[int | None, int | None]] = {}
    regions = set()
    for annotation in annotations:
        sample = annotation.sample_id
        if sample is not None and not 0 <= sample < n_samples:
            raise ValueError(f"sample_id must be in 0 … {n_samples - 1}, got {sample}")
        if annotation.label is not None and annotation.label < 0:
            raise ValueError(f"label must be a class index or None, got {annotation.label}")
        regions.add(annotation.region_id)
        answers.setdefault(annotation.annotator, {})[sample] = annotation.label
    if len(regions) > 1:
        raise ValueError(f"annotations must be of one region, got {sorted(regions)}; group them first")
    return [
        [given.get(sample, given.get(None)) for _, given in sorted(answers.items())
         if sample in given or None in given]
        for sample in range(n_samples)
    ]  # fmt: skip


def more_to_decide(error: Interval, *, threshold: float, confidence: float = 0.95) -> int | None:
    """Return how many more answers decide a region, if the share of errors stays what it is.

    A region is decided once Wilson's interval of its error leaves out ρ, which is once the score
    test of error = ρ rejects it.

    Parameters
    ----------
    error : Interval
        Share of the kept images whose label is not the classifier's prediction.
    threshold : float
        ρ, in [0, 1).

    Returns
    -------
    int or None
        0 where it is decided; None where no number decides it, or nothing is known.

    Examples
    --------
    >>> more_to_decide(Interval.wilson(8, 10), threshold=0.5)
    1
    """
    if error.n == 0 or error.estimate == threshold:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    needed = z**2 * threshold * (1 - threshold) / (error.estimate - threshold) ** 2
    if threshold == 0:
        return 0
    return max(0, math.floor(needed) + 1 - error.n)


def majority(votes: Sequence[_Label]) -> _Label | None:
    """Return the most frequent answer; None where there is none, or where two tie.

    Examples
    --------
    >>> majority([3, 3, 8]), majority([3, 8]), majority([3, None, None])
    (3, None, None)
    """
    ranked = Counter(votes).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def reach_verdict(
    region_id: int, predictions: Tensor, annotations: Iterable[Annotation], *,
    disagreement_threshold: float = 0.5,
) -> Verdict:  # fmt: skip
    """Decide whether a region is a failure, and its label; the order of annotators does not matter.

    Parameters
    ----------
    region_id : int
    predictions : (n,) int64
        What the classifier says of the images shown.
    annotations : iterable of Annotation
        Of this region.
    disagreement_threshold : float
        ρ; the region is a failure if *more* than this share of the kept images disagree.
    """
    annotations = list(annotations)
    if foreign := {a.region_id for a in annotations} - {region_id}:
        raise ValueError(
            f"annotations must be of region {region_id}, got {sorted(foreign)}; group them first"
        )
    votes = collect_votes(annotations, len(predictions))
    labels = tuple(majority(of_image) for of_image in votes)
    kept = [
        (label, said) for label, said in zip(labels, predictions.tolist(), strict=True) if label is not None
    ]
    error = Interval.wilson(sum(label != said for label, said in kept), len(kept))
    label = majority([label for label, _ in kept])
    is_failure = error.n > 0 and error.estimate > disagreement_threshold
    n_unanswered = sum(not of_image for of_image in votes)
    n_disagreed = sum(
        label is None and bool(of_image) and not _most_say_none(of_image)
        for label, of_image in zip(labels, votes, strict=True)
    )
    rho = disagreement_threshold
    return Verdict(region_id, is_failure, label, labels, error, n_disagreed, n_unanswered, rho)


def _most_say_none(votes: Sequence[int | None]) -> bool:
    """Whether "none of the above" is the answer that most gave, rather than that two answers tie."""
    return majority([-1 if vote is None else vote for vote in votes]) == -1


def mistake_images(vae: BetaVAE, mistakes: Mistakes, index: Tensor) -> Tensor:
    """Decode the mistakes at these indices to images, (n, channels, height, width) uint8.

    Parameters
    ----------
    vae : BetaVAE
    mistakes : Mistakes
    index : (n,) int64
    """
    return decode_bytes(vae, mistakes.latents[index])
