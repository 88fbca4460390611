"""The β-VAE that models the training images (section 3.1; figures 9–14).

Loss per image: Bernoulli reconstruction summed over pixels + w·β·KL(q(z|x) ‖ N(0, I)), where w rises
linearly from 0 to 1 over `kl_anneal_steps` (Higgins et al. 2017; annealing after Bowman et al.
2016). The figures name three fully connected layers of 256 for the decoder and leave open how 256
units become a feature map; here a linear layer onto (hidden_channels, side, side) follows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defuse_core.base.checkpoints import copy_state, resume_training, save_training, tensor_sha256
from defuse_core.base.config import VaeConfig, VaeTraining
from defuse_core.base.runtime import Callback, Loop, autocast, follow, torch_rng
from defuse_core.data.splits import as_pixels, shuffled_batches

_EVALUATION_BATCH = 512


class ElboTerms(NamedTuple):
    """The loss and its parts, means over a batch, nats an image."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class BetaVAE(nn.Module):
    """Convolutional β-VAE; pixels in [0, 1], padded before encoding and cropped after decoding.

    Parameters
    ----------
    config : VaeConfig

    Examples
    --------
    >>> vae = BetaVAE(VaeConfig(channels=1, image_size=28, padding=2, latent_dim=10))
    >>> mean, logvar = vae.encode(torch.rand(3, 1, 28, 28))
    >>> mean.shape, vae.decode(mean).shape
    (torch.Size([3, 10]), torch.Size([3, 1, 28, 28]))
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        width, units = config.hidden_channels, config.hidden_units
        side = config.padded_size // 2**config.depth
        flat = width * side * side
        down = [config.channels] + [width] * config.depth
        self.encoder = nn.Sequential(
            *_stack(lambda a, b: nn.Conv2d(a, b, 4, 2, 1), down),
            nn.Flatten(),
            *_stack(nn.Linear, [flat, units, units]),
            nn.Linear(units, 2 * config.latent_dim),
        )
        up = [width] * config.depth
        self.decoder = nn.Sequential(
            *_stack(nn.Linear, [config.latent_dim, units, units, units, flat]),
            nn.Unflatten(1, (width, side, side)),
            *_stack(lambda a, b: nn.ConvTranspose2d(a, b, 4, 2, 1), up),
            nn.ConvTranspose2d(width, config.channels, 4, 2, 1),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                # torch's default shrinks the signal layer by layer, and codes collapse at the start
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)

    @property
    def latent_dim(self) -> int:
        """Dimensions of z."""
        return self.config.latent_dim

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (n, channels, size, size), uint8 or [0, 1].

        Returns
        -------
        mean, logvar : (n, latent_dim)

        Raises
        ------
        ValueError
            If the images are not of the size and channels the model was built for.
        """
        config = self.config
        expected = (config.channels, config.image_size, config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be (n, {', '.join(map(str, expected))}), got {tuple(images.shape)}; "
                "resize them, or build the VAE for this size"
            )
        padded = F.pad(as_pixels(images), [config.padding] * 4)
        mean, logvar = self.encoder(padded).chunk(2, dim=1)
        return mean, logvar

    def decode_logits(self, latents: Tensor) -> Tensor:
        """Decode (n, latent_dim) to logits of pixels (n, channels, size, size), padding cropped."""
        if latents.shape[1:] != (self.latent_dim,):
            raise ValueError(f"latents must be (n, {self.latent_dim}), got {tuple(latents.shape)}")
        pad = self.config.padding
        logits: Tensor = self.decoder(latents)
        return logits[:, :, pad : logits.shape[2] - pad, pad : logits.shape[3] - pad]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode (n, latent_dim) to pixels in [0, 1], (n, channels, size, size)."""
        return self.decode_logits(latents).sigmoid()


def _stack(layer: Callable[[int, int], nn.Module], widths: list[int]) -> list[nn.Module]:
    """Layers between successive widths, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [layer(width_in, width_out), nn.ReLU(inplace=True)]
    return layers


def vae_config_for(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int = 10,
    hidden_channels: int = 32,
    hidden_units: int = 256,
    depth: int = 3,
) -> VaeConfig:
    """Return the config for square images of (channels, size, size), with the padding they need.

    Parameters
    ----------
    image_shape : tuple of int
        (channels, size, size).
    latent_dim, hidden_channels, hidden_units : int
        1 or more.
    depth : int
        Convolutions of stride 2, from 1 to 6.
    """
    channels, height, width = image_shape
    if height != width:
        raise ValueError(f"the VAE takes square images, got {height}×{width}; load the data with image_size")
    return VaeConfig(
        channels=channels, image_size=height, padding=-height % 2**depth // 2, depth=depth,
        hidden_channels=hidden_channels, hidden_units=hidden_units, latent_dim=latent_dim,
    )  # fmt: skip


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
    callback : Callback, optional
        Gets (epoch, epochs, {"loss", "reconstruction", "kl", "kl_weight", "monitored"}).
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
        If there are no images, or the checkpoint belongs to another config, seed or data.
    RuntimeError
        If the loss is not finite.
    """
    epochs = vae_epochs(
        vae, images, config=config, seed=seed, validation_images=validation_images, checkpoint=checkpoint
    )
    return follow(epochs, callback)


def vae_epochs(
    vae: BetaVAE,
    images: Tensor,
    *,
    config: VaeTraining,
    seed: int,
    validation_images: Tensor | None = None,
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
    checkpoint : path, optional
        Where the training is stored after every epoch, and resumed from.
    """
    if not len(images):
        raise ValueError("training needs at least one image, got none; give the training split")
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
        metrics = _train_epoch(vae, optimizer, data, config, seed, epoch, (epoch - 1) * steps_per_epoch)
        metrics["monitored"] = metrics["reconstruction"] + config.beta * metrics["kl"]
        if validation_images is not None:
            metrics["monitored"] = _monitor(vae, validation_images, config, seed)
        if not math.isfinite(metrics["loss"]):
            raise RuntimeError(f"loss of epoch {epoch} is {metrics['loss']}; lower learning_rate")
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


def _train_epoch(
    vae: BetaVAE,
    optimizer: torch.optim.Adam,
    data: Tensor,
    config: VaeTraining,
    seed: int,
    epoch: int,
    first_step: int,
) -> dict[str, float]:
    vae.train()
    device = data.device
    generator = torch_rng(seed, "vae", epoch)
    sums = torch.zeros(3, device=device)
    for step, index in enumerate(shuffled_batches(len(data), config.batch_size, generator), first_step):
        weight = kl_weight(step, config.kl_anneal_steps)
        batch = as_pixels(data[index.to(device)])
        noise = torch.randn(len(index), vae.latent_dim, generator=generator).to(device)
        with autocast(device, config.precision):
            mean, logvar = vae.encode(batch)
            logits = vae.decode_logits(mean.float() + noise * (logvar.float() / 2).exp())
        terms = elbo_loss(logits, batch, mean, logvar, beta=config.beta, weight=weight)
        optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        optimizer.step()
        sums += torch.stack(terms).detach() * len(index)
    loss, reconstruction, kl = (sums / len(data)).tolist()
    return {"loss": loss, "reconstruction": reconstruction, "kl": kl, "kl_weight": weight}


def _monitor(vae: BetaVAE, images: Tensor, config: VaeTraining, seed: int) -> float:
    """Full-weight loss at a fixed draw of codes."""
    vae.eval()
    generator = torch_rng(seed, "vae-validation")
    total = 0.0
    with torch.inference_mode():
        for batch in images.split(_EVALUATION_BATCH):
            x = as_pixels(batch.to(next(vae.parameters()).device))
            mean, logvar = vae.encode(x)
            noise = torch.randn(mean.shape, generator=generator).to(x.device)
            logits = vae.decode_logits(mean + noise * (logvar / 2).exp())
            total += float(elbo_loss(logits, x, mean, logvar, beta=config.beta).loss) * len(batch)
    return total / len(images)


def _best_epoch(history: list[dict[str, float]]) -> int:
    return 1 + min(range(len(history)), key=lambda epoch: history[epoch]["monitored"])


def _out_of_patience(history: list[dict[str, float]], patience: int | None) -> bool:
    return patience is not None and bool(history) and len(history) - _best_epoch(history) >= patience


def encode_means(vae: BetaVAE, images: Tensor) -> Tensor:
    """Return μ(x) of every image, (n, latent_dim) float32 on the CPU.

    Parameters
    ----------
    vae : BetaVAE
    images : (n, channels, height, width)
        uint8, or float in [0, 1].
    """
    device = next(vae.parameters()).device
    with torch.inference_mode():
        parts = [vae.encode(batch.to(device))[0].cpu() for batch in images.split(_EVALUATION_BATCH)]
    return torch.cat(parts) if parts else torch.zeros(0, vae.latent_dim)


def decode_images(vae: BetaVAE, latents: Tensor) -> Tensor:
    """Decode codes (n, latent_dim) to pixels in [0, 1], (n, channels, size, size) on the CPU.

    Parameters
    ----------
    vae : BetaVAE
    latents : (n, latent_dim)
    """
    device = next(vae.parameters()).device
    with torch.inference_mode():
        parts = [vae.decode(batch.to(device)).cpu() for batch in latents.split(_EVALUATION_BATCH)]
    return torch.cat(parts) if parts else torch.zeros(0, *_image_shape(vae.config))


def _image_shape(config: VaeConfig) -> tuple[int, int, int]:
    return config.channels, config.image_size, config.image_size
