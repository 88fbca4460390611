"""The β-VAE that models the training images (sections 2 and 4.1; figures 9–14).

Loss per image: Bernoulli reconstruction summed over pixels + w·β·KL(q(z|x) ‖ N(0, I)), where w rises
linearly from 0 to 1 over `kl_anneal_steps` (Higgins et al. 2017; annealing after Bowman et al.
2016). The figures name three fully connected layers of 256 for the decoder, then four transposed
convolutions, five for the signs, and no layer between. Read so, 256 units are a map of (64, 2, 2), or of
(16, 4, 4) for the signs, which ends at 32 or 128 pixels: `decoder="reshape"`. "linear" puts a layer onto
(hidden_channels, side, side) after them instead, which images of other sizes need.

Beyond the paper, `blocks` puts residual blocks at every size (pre-activation, He et al. 2016) and enlarges by
sub-pixel convolutions (Shi et al. 2016): photographs need more than the plain stack.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defuse_core.base.config import Decoder, VaeConfig
from defuse_core.base.runtime import AdaptiveBatch
from defuse_core.data.splits import as_bytes, as_pixels

EVALUATION_BATCH = 512


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
            *_stack(lambda a, b: _with_blocks(nn.Conv2d(a, b, 4, 2, 1), b, config.blocks), down),
            nn.Flatten(),
            *_stack(nn.Linear, [flat, units, units]),
            nn.Linear(units, 2 * config.latent_dim),
        )
        map_shape = config.map_shape
        linear = config.decoder == "linear"
        up = [map_shape[0]] + [width] * (config.depth - linear)
        hidden = [units] * 3 + ([flat] if linear else [])
        self.decoder = nn.Sequential(
            *_stack(nn.Linear, [config.latent_dim, *hidden]),
            nn.Unflatten(1, map_shape),
            *_stack(lambda a, b: _with_blocks(_double(a, b, config.blocks), b, config.blocks), up),
            _double(width, config.channels, config.blocks),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                # torch's default shrinks the signal layer by layer, and codes collapse at the start
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Residual):
                module.begin_as_identity()
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


class _Residual(nn.Module):
    """x + two convolutions of SiLU(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1)
        )

    def begin_as_identity(self) -> None:
        """Set the last convolution to zero: a deep stack then trains as a shallow one does at first."""
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.body(x)
        return x + added


def _with_blocks(layer: nn.Module, width: int, blocks: int) -> nn.Module:
    """A layer and the residual blocks behind it; the layer itself where there are none."""
    return nn.Sequential(layer, *(_Residual(width) for _ in range(blocks))) if blocks else layer


def _double(width_in: int, width: int, blocks: int) -> nn.Module:
    """A layer that doubles height and width: the figures' transposed convolution, or a sub-pixel one."""
    if not blocks:
        return nn.ConvTranspose2d(width_in, width, 4, 2, 1)
    return nn.Sequential(nn.Conv2d(width_in, 4 * width, 3, 1, 1), nn.PixelShuffle(2))


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
    decoder: Decoder = "linear",
    blocks: int = 0,
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
    decoder : {"linear", "reshape"}
    blocks : int
        Residual blocks at every size, from 0 to 8.
    """
    channels, height, width = image_shape
    if height != width:
        raise ValueError(f"the VAE takes square images, got {height}×{width}; load the data with image_size")
    multiple = 2 ** (depth + (decoder == "reshape"))
    return VaeConfig(
        channels=channels, image_size=height, padding=-height % multiple // 2, depth=depth,
        hidden_channels=hidden_channels, hidden_units=hidden_units, latent_dim=latent_dim, decoder=decoder,
        blocks=blocks,
    )  # fmt: skip


def encode_means(vae: BetaVAE, images: Tensor) -> Tensor:
    """Return μ(x) of every image, (n, latent_dim) float32 on the CPU.

    Parameters
    ----------
    vae : BetaVAE
    images : (n, channels, height, width)
        uint8, or float in [0, 1].
    """
    return _in_batches(vae, images, lambda batch: vae.encode(batch)[0])


def decode_images(vae: BetaVAE, latents: Tensor) -> Tensor:
    """Decode codes (n, latent_dim) to pixels in [0, 1], (n, channels, size, size) on the CPU.

    Parameters
    ----------
    vae : BetaVAE
    latents : (n, latent_dim)
    """
    return _in_batches(vae, latents, vae.decode)


def decode_bytes(vae: BetaVAE, latents: Tensor) -> Tensor:
    """Decode codes (n, latent_dim) to uint8 images (n, channels, size, size), which take a quarter of pixels.

    Parameters
    ----------
    vae : BetaVAE
    latents : (n, latent_dim)
    """
    return _in_batches(vae, latents, lambda codes: as_bytes(vae.decode(codes).cpu()))


def _in_batches(vae: BetaVAE, items: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Concatenate a function of each batch on the CPU; smaller batches where memory runs out."""
    device = next(vae.parameters()).device
    batch = AdaptiveBatch(EVALUATION_BATCH, device=device, grows=False)

    def answer(start: int, stop: int) -> Tensor:
        with torch.inference_mode():
            return function(items[start:stop].to(device)).cpu()

    return batch.run(answer, len(items))
