"""Identification (section 3.1, algorithm 1): search around every image for codes that are misclassified.

z = μ(x) + ε with every element of ε ~ Beta(a, b), *added raw*: Beta(50, 50) has mean 0.5 and
standard deviation 0.050, so every code moves by about +0.5 in each dimension and jitters around
that. `centred` subtracts the mean, `noise_scale` multiplies. z is kept where f(decode(z)) ≠ y, at
most `max_mistakes_per_image` of an image, those of smallest ‖ε‖₂: the paper limits the size of ψ, and
does not state which are kept. Beyond the paper, every mistake is told apart by `MistakeKind`.

The search runs in bfloat16 where the processor has it. Whatever bfloat16 calls wrong, or right by
less than its error, is decided in float32 before it is kept, so that the result is float32's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.config import IdentificationConfig, Precision
from defuse_core.base.records import MistakeKind, Mistakes
from defuse_core.base.runtime import (
    AdaptiveBatch,
    Callback,
    autocast,
    numpy_rng,
    supports_bf16,
)
from defuse_core.data.splits import Split, sample_training
from defuse_core.method.classifier import Classifier
from defuse_core.method.vae import BetaVAE

SHARD_IMAGES = 64
"""Images a shard. Noise depends on (seed, shard), so this is part of what a seed means."""

_BF16_ERROR = 2.0**-4  # of the largest logit; .039 was the most in 20,000 codes of the demo


def sample_beta_noise(
    shape: tuple[int, ...],
    *,
    a: float,
    b: float,
    rng: np.random.Generator,
    centred: bool = False,
    scale: float = 1.0,
) -> NDArray[np.float32]:
    """Draw ε, every element from scale · (Beta(a, b) - c), c = a / (a + b) where centred, else 0.

    Parameters
    ----------
    shape : tuple of int
        0 or more each.
    a, b : float
        Above 0; in the paper 50 for MNIST, 75 for SVHN and signs.
    rng : numpy.random.Generator
    centred : bool
        Whether the mean is subtracted; not in the paper.
    scale : float
        1 in the paper.

    Examples
    --------
    >>> noise = sample_beta_noise((1000, 10), a=50, b=50, rng=np.random.default_rng(0))
    >>> round(float(noise.mean()), 2), round(float(noise.std()), 2)
    (0.5, 0.05)
    """
    if a <= 0 or b <= 0:
        raise ValueError(f"a and b must be positive, got a = {a}, b = {b}")
    mean = a / (a + b) if centred else 0.0
    return (scale * (rng.beta(a, b, shape) - mean)).astype(np.float32)


def identify(
    classifier: Classifier,
    vae: BetaVAE,
    split: Split,
    *,
    config: IdentificationConfig,
    seed: int,
    callback: Callback | None = None,
) -> Mistakes:
    """Run algorithm 1 over a split.

    Parameters
    ----------
    classifier, vae
        On the same device, which does the work; images are moved there shard by shard.
    split : Split
        Training images, in the paper; `max_images` of the config are sampled from them.
    config : IdentificationConfig
    seed : int
    callback : Callback, optional
        Gets (shard, shards, {"dataset", "reconstruction", "perturbation", "images_per_second"});
        True stops, and what has been found so far is returned.

    Returns
    -------
    Mistakes
        By source image, then by ‖ε‖₂. The same for any batch size.

    Examples
    --------
    >>> from defuse_core.extensions.shipped import load_shipped_classifier, load_shipped_vae
    >>> from defuse_core.data.sources import load_digits
    >>> found = identify(load_shipped_classifier(), load_shipped_vae(), load_digits().train[:64],
    ...                  config=IdentificationConfig(n_perturbations=5), seed=0)
    >>> bool((found.predictions != found.labels).all())
    True
    """
    parts: list[Mistakes] = []
    counts = {kind.name.lower(): 0 for kind in MistakeKind}
    n_images = len(searched_images(split.labels, config=config, seed=seed))
    n_shards = math.ceil(n_images / SHARD_IMAGES)
    started, decoded = time.monotonic(), 0
    for shard, found in identify_shards(classifier, vae, split, config=config, seed=seed):
        parts.append(found)
        counts = {name: counts[name] + count for name, count in found.counts().items()}
        decoded += min(SHARD_IMAGES, n_images - shard * SHARD_IMAGES) * config.n_perturbations
        speed = decoded / (time.monotonic() - started)
        if callback is not None and callback(shard + 1, n_shards, {**counts, "images_per_second": speed}):
            break
    return Mistakes.concatenate(parts, latent_dim=vae.latent_dim)


def searched_images(labels: Tensor, *, config: IdentificationConfig, seed: int) -> Tensor:
    """Return the indices of the images that are searched around, ascending: all, or a stratified sample.

    Parameters
    ----------
    labels : (n,) int64
        Of the split.
    config : IdentificationConfig
        Its `max_images` is the size of the sample.
    seed : int
    """
    return sample_training(labels, config.max_images, seed=seed)


def identify_shards(
    classifier: Classifier,
    vae: BetaVAE,
    split: Split,
    *,
    config: IdentificationConfig,
    seed: int,
    first_shard: int = 0,
) -> Iterator[tuple[int, Mistakes]]:
    """Yield (shard, its mistakes) from `first_shard` on; memory does not grow with the split.

    Parameters
    ----------
    classifier : Classifier
    vae : BetaVAE
    split : Split
        Images to search around, or what `max_images` of the config are sampled from.
    config : IdentificationConfig
    seed : int
        The noise of a shard depends on it and on the number of the shard alone.
    first_shard : int
        0 or more.
    """
    batch = AdaptiveBatch(config.batch_size, device=classifier.mean.device)
    searched = searched_images(split.labels, config=config, seed=seed)
    for shard in range(first_shard, math.ceil(len(searched) / SHARD_IMAGES)):
        mistakes = search_shard(
            classifier, vae, split, searched, shard=shard, config=config, seed=seed, batch=batch
        )
        yield shard, mistakes


def search_shard(
    classifier: Classifier, vae: BetaVAE, split: Split, searched: Tensor, *, shard: int,
    config: IdentificationConfig, seed: int, batch: AdaptiveBatch | None = None,
) -> Mistakes:  # fmt: skip
    """Search around one shard of the images that are searched; the mistakes name images of the split.

    Parameters
    ----------
    classifier : Classifier
    vae : BetaVAE
    split : Split
    searched : (n_searched,) int64
        Of `searched_images`.
    shard, config, seed, batch
        As of `identify_shard`.
    """
    part = split[searched[shard * SHARD_IMAGES : (shard + 1) * SHARD_IMAGES]]
    mistakes = identify_shard(classifier, vae, part, shard=shard, config=config, seed=seed, batch=batch)
    return replace(mistakes, source_index=searched[mistakes.source_index])


def identify_shard(
    classifier: Classifier,
    vae: BetaVAE,
    part: Split,
    *,
    shard: int,
    config: IdentificationConfig,
    seed: int,
    batch: AdaptiveBatch | None = None,
) -> Mistakes:
    """Search around the at most `SHARD_IMAGES` images of one shard; one transfer from the device.

    Parameters
    ----------
    classifier : Classifier
    vae : BetaVAE
    part : Split
        At most `SHARD_IMAGES` images.
    shard : int
        Its number, 0 or more.
    config : IdentificationConfig
    seed : int
    batch : AdaptiveBatch, optional
        Shared by shards, so that it learns once what fits in memory.
    """
    with torch.inference_mode():
        found = _search_shard(classifier, vae, part, shard, config, seed, batch)
    # Cloned out here: tensors made in inference mode cannot be trained on
    return Mistakes(**{name: value.cpu().clone() for name, value in vars(found).items()})


def _search_shard(
    classifier: Classifier,
    vae: BetaVAE,
    part: Split,
    shard: int,
    config: IdentificationConfig,
    seed: int,
    batch: AdaptiveBatch | None,
) -> Mistakes:
    """`identify_shard`, on the device."""
    if len(part) > SHARD_IMAGES:
        raise ValueError(f"a shard holds at most {SHARD_IMAGES} images, got {len(part)}")
    classifier.eval()
    vae.eval()
    device = classifier.mean.device
    batch = batch or AdaptiveBatch(config.batch_size, device=device)
    labels = part.labels.to(device)
    means, kinds = _encode_and_tell(classifier, vae, part.images.to(device), labels)

    noise = torch.from_numpy(
        sample_beta_noise(
            (len(part), config.n_perturbations, vae.latent_dim),
            a=config.noise_a, b=config.noise_b, rng=numpy_rng(seed, "noise", shard),
            centred=config.centred, scale=config.noise_scale,
        )
    ).to(device)  # fmt: skip
    latents = (means[:, None] + noise).flatten(0, 1)  # (n_images · n_perturbations, latent_dim)
    norms = noise.norm(dim=2)  # (n_images, n_perturbations)
    wanted = labels.repeat_interleave(config.n_perturbations)

    kept, predictions = _search(classifier, vae, latents, wanted, norms, config, batch)
    source = torch.nonzero(kept)[:, 0]
    order = norms[kept].argsort(stable=True)
    order = order[source[order].argsort(stable=True)]  # by image, then by norm
    flat = torch.nonzero(kept.flatten()).flatten()[order]
    source = source[order]
    return Mistakes(
        latents=latents[flat],
        labels=labels[source],
        predictions=predictions[flat],
        source_index=source + shard * SHARD_IMAGES,
        noise_norm=norms.flatten()[flat],
        kind=kinds[source],
    )


def _encode_and_tell(
    classifier: Classifier, vae: BetaVAE, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes μ(x) (n, latent_dim), and the kind (n,) that a mistake made of each image will be."""
    # A batch of its own: the last bits of μ(x) depend on its size, which must not be the config's.
    batch = AdaptiveBatch(SHARD_IMAGES, device=images.device)
    means = batch.run(lambda i, j: vae.encode(images[i:j])[0], len(images))
    said = batch.run(lambda i, j: classifier(images[i:j]).argmax(1), len(images))
    said_decoded = batch.run(lambda i, j: classifier(vae.decode(means[i:j])).argmax(1), len(images))
    kinds = torch.full_like(labels, MistakeKind.PERTURBATION)
    kinds[said_decoded != labels] = MistakeKind.RECONSTRUCTION
    kinds[said != labels] = MistakeKind.DATASET
    return means, kinds


def _search(
    classifier: Classifier,
    vae: BetaVAE,
    latents: Tensor,
    wanted: Tensor,
    norms: Tensor,
    config: IdentificationConfig,
    batch: AdaptiveBatch,
) -> tuple[Tensor, Tensor]:
    """Mask of the codes to keep (n_images, n_perturbations), and the predictions of all codes."""
    fast = config.precision != "fp32" and supports_bf16(latents.device)
    precision: Precision = "bf16" if fast or config.precision == "bf16" else "fp32"

    def classify(start: int, stop: int) -> Tensor:
        with autocast(latents.device, precision):
            logits: Tensor = classifier(vae.decode(latents[start:stop]))
        return logits.float()

    scores = batch.run(classify, len(latents))  # (n_images · n_perturbations, n_classes)
    predictions = scores.argmax(1)
    if precision == "fp32":
        return _smallest((predictions != wanted).view_as(norms), norms, config), predictions

    mine = scores.gather(1, wanted[:, None])[:, 0]
    rival = scores.scatter(1, wanted[:, None], -math.inf).amax(1)
    largest = scores.abs().amax(1)
    slack = _BF16_ERROR * largest.clamp(min=largest.mean())  # small logits carry no smaller an error
    possible = (rival - mine > -slack).view_as(norms)
    decided = torch.zeros_like(possible)
    while True:
        kept = _smallest(possible, norms, config)
        asked = torch.nonzero((kept & ~decided).flatten()).flatten()
        if not len(asked):
            return kept, predictions

        def decide(start: int, stop: int, asked: Tensor = asked) -> Tensor:
            logits: Tensor = classifier(vae.decode(latents[asked[start:stop]]))
            return logits.argmax(1)

        predictions[asked] = batch.run(decide, len(asked))
        decided.view(-1)[asked] = True
        possible.view(-1)[asked] = predictions[asked] != wanted[asked]


def _smallest(candidates: Tensor, norms: Tensor, config: IdentificationConfig) -> Tensor:
    """Of each image's candidates, mark the `max_mistakes_per_image` of smallest norm."""
    cap = config.max_mistakes_per_image
    if cap is None or cap >= candidates.shape[1]:
        return candidates
    ranked = norms.masked_fill(~candidates, math.inf).topk(cap, dim=1, largest=False)
    kept = torch.zeros_like(candidates)
    return kept.scatter(1, ranked.indices, True) & candidates
