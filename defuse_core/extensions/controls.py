"""Run controls, which the paper lacks: tuning without the regions, and the search without its shift.

- **λ = 0** tunes as Defuse does, for as many epochs from the same start, on L(D) alone. Its gain comes
  from more training, not from the regions. The draws still pass through the network beside the training
  images. So with batch normalisation the batch statistics are not those of L(D) alone.
- **Random regions** tune with the chosen λ on as many draws from as many Gaussians. Covariance, τ and
  frozen normals are the same, but each Gaussian is moved to the code of a training image of the region's
  class that is classified correctly: only *where* they lie differs. What Defuse gains beyond this comes
  from the failure regions, not from decoded images of these classes anywhere. The labels are those of the
  data, right for the image in the middle; nobody looked at the draws around it.
- **Raw against centred noise** searches around the same images with the same random numbers. Raw noise
  also moves every code by the noise's mean. The additional mistakes, by kind, show what this shift away
  from the codes of real images does beyond the jitter around them. They do not show which mistakes matter.

All of them take the classifier, the generator and the regions as fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from defuse_core.base.config import IdentificationConfig
from defuse_core.base.records import MistakeKind, Mistakes, Region
from defuse_core.base.runtime import AdaptiveBatch, Loop, numpy_rng
from defuse_core.data.splits import Split
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.identification import SHARD_IMAGES, identify_shard
from defuse_core.method.vae import BetaVAE, encode_means


def random_regions(
    regions: Sequence[Region], labels: Mapping[int, int], *, classifier: Classifier, vae: BetaVAE,
    train: Split, seed: int,
) -> tuple[list[Region], dict[int, int]]:  # fmt: skip
    """Move every region to the code of a random training image of its label that is classified correctly.

    Parameters
    ----------
    regions : sequence of Region
    labels : mapping of int to int
        Label of each region, by region_id.
    classifier : Classifier
        As it is before the correction.
    vae : BetaVAE
    train : Split
        Where no image of the label is classified correctly, a misclassified one is taken; where no image
        has the label, any image.
    seed : int

    Returns
    -------
    regions : list of Region
        With ids, weights and covariances as they were, in the same order.
    labels : dict of int to int
        Class of the image in the middle, by region_id.
    """
    right = predict(classifier, train.images) == train.labels
    chosen = []
    for region in regions:
        of_label = train.labels == labels[region.region_id]
        mask = next(m for m in (right & of_label, of_label, torch.ones_like(right)) if m.any())
        candidates = torch.nonzero(mask)[:, 0]
        chosen.append(int(numpy_rng(seed, "random-region", region.region_id).choice(candidates.numpy())))
    middle = train[torch.tensor(chosen, dtype=torch.int64)]
    codes = encode_means(vae, middle.images).double().numpy()
    moved = [replace(region, mean=code) for region, code in zip(regions, codes, strict=True)]
    return moved, {r.region_id: label for r, label in zip(regions, middle.labels.tolist(), strict=True)}


def sample_split(split: Split, n: int, *, seed: int) -> Split:
    """Take n random images without replacement; all of them, in random order, if there are fewer.

    Parameters
    ----------
    split : Split
    n : int
    seed : int
    """
    drawn = numpy_rng(seed, "noise-sample").choice(len(split), min(n, len(split)), replace=False)
    return split[torch.from_numpy(drawn)]


def compare_noise(
    classifier: Classifier, vae: BetaVAE, split: Split, *, config: IdentificationConfig, seed: int
) -> Loop[dict[str, dict[str, int]]]:
    """Search around the same images with raw and with centred noise, as a `Loop` over shards.

    Parameters
    ----------
    classifier : Classifier
    vae : BetaVAE
    split : Split
        The images to search around.
    config : IdentificationConfig
        Of the search; `centred` is set to both in turn.
    seed : int
        The same Beta noise is drawn for both.

    Returns
    -------
    dict of str to dict of str to int
        For "raw" and "centred": `images` and `codes` searched; `misclassified`, how many of these codes are;
        and by kind the mistakes that the search keeps, at most `max_mistakes_per_image` an image.
    """
    batch = AdaptiveBatch(config.batch_size, device=classifier.mean.device)
    n_shards = math.ceil(len(split) / SHARD_IMAGES)
    searched = {"images": len(split), "codes": len(split) * config.n_perturbations}
    nothing = {"misclassified": 0, **{kind.name.lower(): 0 for kind in MistakeKind}}
    counts = {"raw": nothing, "centred": nothing}
    for shard in range(n_shards):
        part = split[shard * SHARD_IMAGES : (shard + 1) * SHARD_IMAGES]
        for name in counts:
            every = config.model_copy(update={"centred": name == "centred", "max_mistakes_per_image": None})
            mistakes = identify_shard(
                classifier, vae, part, shard=shard, config=every, seed=seed, batch=batch
            )
            nearest = mistakes[_rank(mistakes) < (config.max_mistakes_per_image or config.n_perturbations)]
            more = {"misclassified": len(mistakes), **nearest.counts()}
            counts[name] = {key: count + more[key] for key, count in counts[name].items()}
        yield shard + 1, n_shards, {name: float(sums["misclassified"]) for name, sums in counts.items()}
    return {name: {**searched, **sums} for name, sums in counts.items()}


def _rank(mistakes: Mistakes) -> Tensor:
    """Place of each mistake (n,) int64 among those of its image, from 0 for the smallest ‖ε‖₂."""
    source = mistakes.source_index.numpy()
    return torch.from_numpy(np.arange(len(source)) - np.searchsorted(source, source))
