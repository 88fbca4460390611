"""Training of the β-VAE: the loss of Higgins et al. (2017), KL annealing, early stopping, resumption.

Beyond the paper, a term of consistency may be added with weight γ: what readers say of decoded images, beside
what they say of the real ones (`extensions.consistency`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from defuse_core.base.checkpoints import (
    copy_state,
    load_tensors,
    load_weights,
    resume_training,
    save_training,
    tensor_sha256,
)
from defuse_core.base.config import VaeConfig, VaeTraining
from defuse_core.base.errors import CheckpointError
from defuse_core.base.rates import cosine_rate
from defuse_core.base.runtime import (
    Callback,
    Loop,
    autocast,
    check_finite,
    follow,
    torch_rng,
)
from defuse_core.data.splits import as_pixels, shuffled_batches
from defuse_core.method.augmentation import augment
from defuse_core.method.vae import EVALUATION_BATCH, BetaVAE

Consistency = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Takes images and what was decoded from their codes, both (n, channels, height, width) in [0, 1], and a
random stream on the CPU; returns how much they differ, (), nats an image."""


class ElboTerms(NamedTuple):
    """The loss and its parts, means over a batch, nats an image."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, I)) of each row, (n, latent_dim) → (n,), nats.

    Parameters
    ----------
    mean, logvar : (n, latent_dim)
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)


def kl_weight(step: int, kl_anneal_steps: int) -> float:
    """w, rising linearly from 0 at step 0 to 1 at `kl_anneal_steps`; 1 where there is no annealing.

    Parameters
    ----------
    step : int
        0 or more.
    kl_anneal_steps : int
        0 or more.

    Examples
    --------
    >>> kl_weight(250, 1000)
    0.25
    """
    return 1.0 if kl_anneal_steps == 0 else min(1.0, step / kl_anneal_steps)


def elbo_loss(
    logits: Tensor,
    images: Tensor,
    mean: Tensor,
    logvar: Tensor,
    *,
    beta: float,
    weight: float = 1.0,
) -> ElboTerms:
    """Negative ELBO with the KL term weighted by w·β, averaged over the batch.

    Parameters
    ----------
    logits, images : (n, channels, height, width)
        Decoded logits, and pixels in [0, 1].
    mean, logvar : (n, latent_dim)
    beta, weight : float
        β and w.
    """
    pixels = F.binary_cross_entropy_with_logits(logits.float(), images, reduction="sum")
    reconstruction = pixels / len(images)
    kl = kl_divergence(mean.float(), logvar.float()).mean()
    return ElboTerms(reconstruction + weight * beta * kl, reconstruction, kl)


def train_vae(
    vae: BetaVAE,
    images: Tensor,
    *,
    config: VaeTraining,
    seed: int,
    validation_images: Tensor | None = None,
    consistency: Consistency | None = None,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> list[dict[str, float]]:
    """Train in place with Adam; on the same device equal seeds give equal weights, bit for bit.

    Parameters
    ----------
    vae : BetaVAE
        Left in evaluation mode.
    images : (n, channels, size, size) uint8
    config : VaeTraining
        With `patience`, training stops after so many epochs without a lower full-weight loss (on
        `validation_images`, or on the training images where there are none), and the weights of
        the best epoch are restored.
    seed : int
        Of shuffling and of the codes drawn.
    consistency : Consistency, optional
        Needed where `config.consistency_weight` is above 0.
    callback : Callback, optional
        Gets (epoch, epochs, {"loss", "reconstruction", "kl", "consistency", "kl_weight", "monitored"}).
    checkpoint : path, optional
        Written after every epoch; where it exists, training goes on from it and ends with the
        weights of an undisturbed training.

    Returns
    -------
    list of dict
        The metrics of every epoch, those before a resume included.

    Raises
    ------
    ValueError
        If there are no images, a term of consistency is weighed and not given, or the checkpoint belongs to
        another config, seed or data.
    DivergenceError
        If a loss or a weight is not finite.
    """
    epochs = vae_epochs(
        vae, images, config=config, seed=seed, validation_images=validation_images,
        consistency=consistency, checkpoint=checkpoint,
    )  # fmt: skip
    return follow(epochs, callback)


def vae_epochs(
    vae: BetaVAE,
    images: Tensor,
    *,
    config: VaeTraining,
    seed: int,
    validation_images: Tensor | None = None,
    consistency: Consistency | None = None,
    checkpoint: str | Path | None = None,
) -> Loop[list[dict[str, float]]]:
    """`train_vae` as a `Loop` over epochs.

    Parameters
    ----------
    vae : BetaVAE
        Trained in place.
    images : (n, channels, height, width) uint8
    config : VaeTraining
    seed : int
    validation_images : (m, channels, height, width) uint8, optional
    consistency : Consistency, optional
        As in `train_vae`.
    checkpoint : path, optional
        Where the training is stored after every epoch, and resumed from.
    """
    if not len(images):
        raise ValueError("training needs at least one image, got none; give the training split")
    if config.consistency_weight and consistency is None:
        raise ValueError(
            f"consistency_weight is {config.consistency_weight:g}, and nobody reads the images; give "
            "consistency, or set the weight to 0"
        )
    device = next(vae.parameters()).device
    data = images.to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.learning_rate)
    identity = {
        "config": config.model_dump(),
        "vae": vae.config.model_dump(),
        "seed": seed,
        "images": tensor_sha256(images),
        "validation_images": None if validation_images is None else tensor_sha256(validation_images),
    }
    path = None if checkpoint is None else Path(checkpoint)
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    if path is not None and path.exists():
        history, best = resume_training(path, vae, optimizer, identity=identity)
    steps_per_epoch = math.ceil(len(data) / config.batch_size)
    while len(history) < config.epochs and not _out_of_patience(history, config.patience):
        epoch = len(history) + 1
        metrics = _train_epoch(
            vae, optimizer, data, config, seed, epoch, (epoch - 1) * steps_per_epoch, consistency
        )
        metrics["monitored"] = metrics["reconstruction"] + config.beta * metrics["kl"]
        metrics["monitored"] += config.consistency_weight * metrics["consistency"]
        if validation_images is not None:
            metrics["monitored"] = _monitor(vae, validation_images, config, seed, consistency)
        check_finite((metrics["loss"], metrics["monitored"]), vae, when=f"epoch {epoch}")
        history.append(metrics)
        if config.patience is not None and _best_epoch(history) == epoch:
            best = copy_state(vae)
        try:  # the callback first: a crash after it repeats an epoch, and its metrics, but loses none
            stop = yield epoch, config.epochs, metrics
        finally:
            if path is not None:
                save_training(path, vae, optimizer, identity=identity, history=history, best=best)
        if stop:
            break
    if best:
        vae.load_state_dict(best)
    vae.eval()
    return history


def load_unfinished(checkpoint: str | Path) -> tuple[BetaVAE, int]:
    """Load a generator as the checkpoint of its training has it, and the number of epochs it was trained.

    Parameters
    ----------
    checkpoint : path
        As `train_vae` writes it after every epoch.

    Raises
    ------
    CheckpointError
        If the file is missing or is no such checkpoint.
    """
    tensors, metadata = load_tensors(checkpoint)
    identity, history = metadata.get("identity"), metadata.get("history")
    if not isinstance(identity, dict) or "vae" not in identity or not isinstance(history, list):
        raise CheckpointError(f"{checkpoint} is no checkpoint of a generator's training; train the generator")
    vae = BetaVAE(VaeConfig(**identity["vae"]))
    own = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    load_weights(vae, own, source=checkpoint)
    return vae.eval(), len(history)


def _train_epoch(
    vae: BetaVAE, optimizer: torch.optim.Adam, data: Tensor, config: VaeTraining, seed: int, epoch: int,
    first_step: int, consistency: Consistency | None,
) -> dict[str, float]:  # fmt: skip
    vae.train()
    device = data.device
    generator = torch_rng(seed, "vae", epoch)
    sums = torch.zeros(4, device=device)
    steps = config.epochs * math.ceil(len(data) / config.batch_size)
    for step, index in enumerate(shuffled_batches(len(data), config.batch_size, generator), first_step):
        rate = cosine_rate(config.learning_rate, config.final_learning_rate, step / steps)
        optimizer.param_groups[0]["lr"] = rate
        weight = kl_weight(step, config.kl_anneal_steps)
        batch = augment(as_pixels(data[index.to(device)]), config.augmentation, generator)
        noise = torch.randn(len(index), vae.latent_dim, generator=generator).to(device)
        with autocast(device, config.precision):
            mean, logvar = vae.encode(batch)
            logits = vae.decode_logits(mean.float() + noise * (logvar.float() / 2).exp())
            differ = _difference(consistency, batch, logits, config, generator)
        terms = elbo_loss(logits, batch, mean, logvar, beta=config.beta, weight=weight)
        loss = terms.loss + config.consistency_weight * differ
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        sums += torch.stack([loss, terms.reconstruction, terms.kl, differ]).detach() * len(index)
    names = ("loss", "reconstruction", "kl", "consistency")
    return {**dict(zip(names, (sums / len(data)).tolist(), strict=True)), "kl_weight": weight}


def _difference(
    consistency: Consistency | None, images: Tensor, logits: Tensor, config: VaeTraining,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    if consistency is None or not config.consistency_weight:
        return torch.zeros((), device=images.device)
    return consistency(images, logits.float().sigmoid(), generator)


def _monitor(
    vae: BetaVAE, images: Tensor, config: VaeTraining, seed: int, consistency: Consistency | None
) -> float:
    """Full-weight loss at a fixed draw of codes."""
    vae.eval()
    generator = torch_rng(seed, "vae-validation")
    total = 0.0
    with torch.inference_mode():
        for batch in images.split(EVALUATION_BATCH):
            x = as_pixels(batch.to(next(vae.parameters()).device))
            mean, logvar = vae.encode(x)
            noise = torch.randn(mean.shape, generator=generator).to(x.device)
            logits = vae.decode_logits(mean + noise * (logvar / 2).exp())
            loss = elbo_loss(logits, x, mean, logvar, beta=config.beta).loss
            loss += config.consistency_weight * _difference(consistency, x, logits, config, generator)
            total += float(loss) * len(batch)
    return total / len(images)


def _best_epoch(history: list[dict[str, float]]) -> int:
    return 1 + min(range(len(history)), key=lambda epoch: history[epoch]["monitored"])


def _out_of_patience(history: list[dict[str, float]], patience: int | None) -> bool:
    return patience is not None and bool(history) and len(history) - _best_epoch(history) >= patience
