"""The step `map`: codes of training images and of mistakes, projected to the plane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from defuse_core.base.runtime import Loop, Result, numpy_rng
from defuse_core.data.splits import stratified_sample
from defuse_core.extensions.projection import projection_steps
from defuse_core.method.vae import BetaVAE, encode_means
from defuse_core.steps.base import Item, Merged, Read, Step, progress, tensors_file
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import MapConfig

_ENCODED_AT_ONCE = 4096  # images between two checks whether the run is cancelled
_ENCODING = 20  # percent of the task that encoding takes, about


class Map(Step):
    """A stratified sample of training codes and a sample of the mistakes, projected together.

    The codes of all training images are stored too, to find the images nearest to any code.
    """

    name = "map"

    def __init__(self, source: Source, config: MapConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.vae, self.train, self.mistakes = source.vae(), source.dataset.train, source.mistakes()
        has_regions = "distill" in source.ancestry
        self.regions = source.region_of_mistakes() if has_regions else None

    def tasks(self) -> list[str]:
        """One, named after the method."""
        return [self.config.method]

    def run(self, task: str) -> Iterator[Item]:
        """Encode all training images, sample, project; `codes` holds latents (n_train, latent_dim)."""
        config, seed = self.config, self.seed
        encoding = encoding_steps(self.vae, self.train.images)
        train_latents = yield from progress(_part(encoding, 0, _ENCODING))
        yield tensors_file("codes", {"latents": train_latents})
        codes = stratified_sample(self.train.labels, config.n_codes, seed=seed)
        regions = self._regions()
        chosen = self._choose(regions)
        latents = torch.cat([train_latents[codes], self.mistakes.latents[chosen]])
        loop = projection_steps(latents, config=config, seed=seed)
        projection = yield from progress(_part(loop, _ENCODING, 100))
        yield tensors_file(
            task,
            {
                "points": torch.from_numpy(projection.points.copy()),  # (n_codes + n_mistakes, 2)
                "train_index": codes,
                "mistake_index": chosen,
                "mistake_region": regions[chosen],
            },
            method=config.method,
        )

    def _regions(self) -> Tensor:
        """The region of every mistake, (n_mistakes,) int64; -1 for none."""
        if self.regions is None:
            return torch.full((len(self.mistakes),), -1)
        return torch.from_numpy(self.regions)

    def _choose(self, regions: Tensor) -> Tensor:
        """Numbers of the mistakes on the map, ascending; all lie in regions where the config says so."""
        offered = (regions >= 0).nonzero()[:, 0] if self.config.in_regions else torch.arange(len(regions))
        n = min(self.config.n_mistakes, len(offered))
        drawn = numpy_rng(self.seed, "map-mistakes").choice(len(offered), n, replace=False)
        return offered[torch.from_numpy(drawn).sort().values]

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """How many codes and mistakes are on the map, and of how many.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        tensors, metadata = read(done[0])
        return Merged(
            {
                "method": metadata["method"],
                "codes": len(tensors["train_index"]), "codes_of": len(self.train),
                "mistakes": len(tensors["mistake_index"]), "mistakes_of": len(self.mistakes),
            }
        )  # fmt: skip


def encoding_steps(vae: BetaVAE, images: Tensor) -> Loop[Tensor]:
    """`encode_means` as a `Loop` over images; returns (n, latent_dim).

    Parameters
    ----------
    vae : BetaVAE
    images : (n, channels, height, width) uint8
    """
    parts = []
    for part in images.split(_ENCODED_AT_ONCE):
        parts.append(encode_means(vae, part))
        yield min(len(parts) * _ENCODED_AT_ONCE, len(images)), len(images), {}
    return torch.cat(parts)


def _part(loop: Loop[Result], start: int, stop: int) -> Loop[Result]:
    """A loop as a part of a task: its steps in percent of the task, from `start` to `stop`."""
    while True:
        try:
            step, of, metrics = next(loop)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        yield start + (stop - start) * step // of, 100, metrics
