"""Ask of a generator that it keeps what the classifier sees: a term beyond the paper's loss.

Trained on pixels alone, a β-VAE spends its few nats on what covers most pixels, and blurs what tells classes
apart. So most of what is then "misclassified" on photographs is blur. The term γ·KL(f(x) ‖ f(decode(z)))
weighs what the classifier f says of the decoded image against what it says of the real one, as StylEx trains
its generator with the classifier in the loop (Lang et al. 2021, reference 29 of the paper).

A decoder can also learn to please *this* classifier, and show a person nothing. Two things work against it:
other networks, the readers, are asked beside the classifier; and before they read, the real and the decoded
image are moved alike and get the same noise, so that no exact pattern of pixels pays.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.data.splits import Split, stratified_sample
from defuse_core.method.augmentation import move
from defuse_core.method.classifier import Classifier, predict_logits
from defuse_core.method.vae import BetaVAE, decode_images, encode_means

_READ = 2_000  # images at most: five readers take their time
_NOISE = 0.03  # standard deviation, of pixels in [0, 1]


class ReaderConsistency:
    """KL(f(x) ‖ f(x′)), the mean over images and readers f, where x′ is decoded from the code of x.

    Parameters
    ----------
    readers : sequence of Classifier
        One or more, such as the classifier under test and others that learned the same classes. They are
        copied: gradients pass through the copies and never change them.

    Raises
    ------
    ValueError
        If there is no reader.

    Examples
    --------
    >>> from defuse_core.method.classifier import Preprocessing
    >>> flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> term = ReaderConsistency([Classifier(flat, Preprocessing((0.5,), (0.5,)))])
    >>> images = torch.rand(4, 1, 8, 8)
    >>> float(term(images, images, torch.Generator()))
    0.0
    """

    def __init__(self, readers: Sequence[Classifier]) -> None:
        if not readers:
            raise ValueError("consistency needs at least one reader; give the classifier under test")
        self.readers = [copy.deepcopy(reader).eval().requires_grad_(False) for reader in readers]

    def __call__(self, images: Tensor, decoded: Tensor, generator: torch.Generator) -> Tensor:
        """Compare what the readers say of both, (), nats.

        Parameters
        ----------
        images, decoded : (n, channels, height, width)
            Pixels in [0, 1].
        generator : torch.Generator
            On the CPU; moves and noise, the same for an image and its decoding.
        """
        moved = move(torch.cat([images, decoded], 1), generator)  # an image and its decoding alike
        noise = _NOISE * torch.randn(images.shape, generator=generator).to(images.device)
        real, made = (part + noise for part in moved.chunk(2, 1))
        differences = []
        for reader in self.readers:
            with torch.no_grad():
                wanted = F.log_softmax(reader(real).float(), 1)
            said = F.log_softmax(reader(made).float(), 1)
            differences.append(F.kl_div(said, wanted, log_target=True, reduction="batchmean"))
        return torch.stack(differences).mean()


def control_by_readers(readers: Sequence[Classifier], vae: BetaVAE, split: Split, *, seed: int) -> Interval:
    """Measure `evaluation.reconstruction_control` by readers who decide together, on at most 2,000 images.

    Parameters
    ----------
    readers : sequence of Classifier
        One or more; the class of the highest mean probability is what they say.
    vae : BetaVAE
    split : Split
    seed : int
        Of the sample, stratified by class, where there are more images.
    """
    split = split[stratified_sample(split.labels, _READ, seed=seed)]
    right = split[_read(readers, split.images) == split.labels]
    decoded = decode_images(vae, encode_means(vae, right.images))
    return Interval.wilson(int((_read(readers, decoded) == right.labels).sum()), len(right))


def _read(readers: Sequence[Classifier], images: Tensor) -> Tensor:
    return torch.stack([predict_logits(reader, images).softmax(1) for reader in readers]).mean(0).argmax(1)
