"""Steps `identify`, `distill`, `map` and `draw`: from mistakes to regions that can be looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from defuse_core.base.config import DistillationConfig, IdentificationConfig
from defuse_core.base.records import Mistakes, Region
from defuse_core.base.runtime import AdaptiveBatch, Loop, Result, numpy_rng
from defuse_core.extensions.projection import projection_steps
from defuse_core.method.classifier import predict
from defuse_core.method.distillation import membership, mixture_iterations
from defuse_core.method.identification import SHARD_IMAGES, identify_shard
from defuse_core.method.labeling import draw_images
from defuse_core.method.vae import BetaVAE, encode_means
from defuse_core.steps.base import Item, Merged, Point, Progress, Read, Step, progress, tensors_file
from defuse_core.steps.source import Source, unpack_mixture
from defuse_core.workspace.configs import DrawConfig, MapConfig

_ENCODED_AT_ONCE = 4096  # images between two looks at whether the run is cancelled
_ENCODING = 20  # percent of the map's time, about, that goes into codes


class Identify(Step):
    """Algorithm 1 over the training split, a task a shard of images."""

    name = "identify"

    def __init__(self, source: Source, config: IdentificationConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.classifier, self.vae, self.train = source.classifier(), source.vae(), source.dataset.train
        self.index = sample_training(self.train.labels, config.max_images, seed=seed)
        self._batch: AdaptiveBatch | None = None

    def tasks(self) -> list[str]:
        """`shard=0000` and so on."""
        return [f"shard={shard:04d}" for shard in range(math.ceil(len(self.index) / SHARD_IMAGES))]

    def run(self, task: str) -> Iterator[Item]:
        """Search around the images of one shard, with a point of what was found."""
        if self._batch is None:  # one for all shards of this process: it learns what fits
            self._batch = AdaptiveBatch(self.config.batch_size, device=self.classifier.mean.device)
        shard = int(task.removeprefix("shard="))
        part = self.train[self.index[shard * SHARD_IMAGES : (shard + 1) * SHARD_IMAGES]]
        found = identify_shard(
            self.classifier, self.vae, part,
            shard=shard, config=self.config, seed=self.seed, batch=self._batch,
        )  # fmt: skip
        found = replace(found, source_index=self.index[found.source_index])
        decoded = len(part) * self.config.n_perturbations
        yield Point(task, {**found.counts(), "images": len(part), "decoded": decoded})
        yield Progress(1, 1, found.counts())
        yield tensors_file(task, vars(found))

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """All mistakes by source image; `searched` is the number of images around which was searched."""
        parts = [Mistakes(**read(task)[0]) for task in done]
        mistakes = Mistakes.concatenate(parts, latent_dim=self.vae.latent_dim)
        searched = sum(
            min(SHARD_IMAGES, len(self.index) - int(task.removeprefix("shard=")) * SHARD_IMAGES)
            for task in done
        )
        summary = {"mistakes": mistakes.counts(), "searched": searched, "images": len(self.index)}
        return Merged(summary, [tensors_file("mistakes", vars(mistakes))], replaces_tasks=True)


class Distill(Step):
    """The Dirichlet-process mixture of the mistakes' codes."""

    name = "distill"

    def __init__(self, source: Source, config: DistillationConfig, seed: int) -> None:
        self.config, self.seed, self.mistakes = config, seed, source.mistakes()

    def tasks(self) -> list[str]:
        """One."""
        return ["mixture"]

    def run(self, task: str) -> Iterator[Item]:
        """Fit, with a point an iteration of its lower bound."""
        loop = mixture_iterations(self.mistakes.latents, config=self.config, seed=self.seed)
        mixture = yield from progress(loop, points=True)
        arrays = ("weights", "means", "covariances")
        fit = {name: value for name, value in vars(mixture).items() if name not in (*arrays, "kept")}
        yield tensors_file(task, {n: torch.from_numpy(getattr(mixture, n)) for n in arrays}, fit=fit)

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """The regions with what lies in them."""
        mixture = unpack_mixture(*read(done[0]))
        of_region = membership(mixture, self.mistakes.latents, min_weight=self.config.min_weight)
        regions = [
            {
                "region_id": region.region_id,
                "weight": region.weight,
                "mistakes": int((of_region == region.region_id).sum()),
                "kinds": self.mistakes[of_region == region.region_id].counts(),
            }
            for region in mixture.regions(self.config.min_weight)
        ]
        return Merged({"regions": regions, "converged": mixture.converged, "iterations": mixture.n_iter})


class Map(Step):
    """A stratified sample of training codes and a sample of the mistakes, in the plane together.

    The codes of all training images are kept beside it, to find the nearest images of any code.
    """

    name = "map"

    def __init__(self, source: Source, config: MapConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.vae, self.train, self.mistakes = source.vae(), source.dataset.train, source.mistakes()
        has_regions = "distill" in source.ancestry
        self.mixture = source.mixture() if has_regions else None
        self.min_weight: float = source.upstream("distill").config["min_weight"] if has_regions else 0.0

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
        n_mistakes = min(config.n_mistakes, len(self.mistakes))
        drawn = numpy_rng(seed, "map-mistakes").choice(len(self.mistakes), n_mistakes, replace=False)
        chosen = torch.from_numpy(drawn).sort().values
        latents = torch.cat([train_latents[codes], self.mistakes.latents[chosen]])
        loop = projection_steps(
            latents, method=config.method, seed=seed,
            perplexity=config.perplexity, n_neighbors=config.n_neighbors,
        )  # fmt: skip
        projection = yield from progress(_part(loop, _ENCODING, 100))
        region = torch.full((len(chosen),), -1)
        if self.mixture is not None:
            region = membership(self.mixture, self.mistakes.latents[chosen], min_weight=self.min_weight)
        yield tensors_file(
            task,
            {
                "points": torch.from_numpy(projection.points.copy()),  # (n_codes + n_mistakes, 2)
                "train_index": codes,
                "mistake_index": chosen,
                "mistake_region": region,
            },
            method=config.method,
        )

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """How many of how many points are shown."""
        tensors, metadata = read(done[0])
        return Merged(
            {
                "method": metadata["method"],
                "codes": len(tensors["train_index"]), "codes_of": len(self.train),
                "mistakes": len(tensors["mistake_index"]), "mistakes_of": len(self.mistakes),
            }
        )  # fmt: skip


def encoding_steps(vae: BetaVAE, images: Tensor) -> Loop[Tensor]:
    """`encode_means` as a `Loop` over images, in the batches that it takes them in."""
    parts = []
    for part in images.split(_ENCODED_AT_ONCE):
        parts.append(encode_means(vae, part))
        yield min(len(parts) * _ENCODED_AT_ONCE, len(images)), len(images), {}
    return torch.cat(parts)  # (n, latent_dim)


def _part(loop: Loop[Result], start: int, stop: int) -> Loop[Result]:
    """A loop as a part of a task: its steps in percent of the whole, from `start` to `stop`."""
    while True:
        try:
            step, of, metrics = next(loop)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        yield start + (stop - start) * step // of, 100, metrics


class Draw(Step):
    """The frozen draws of every region at many τ with what the classifier says, a task a region."""

    name = "draw"

    def __init__(self, source: Source, config: DrawConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.classifier, self.vae = source.classifier(), source.vae()
        regions = source.regions()
        ids = [region.region_id for region in regions] if config.region_ids is None else config.region_ids
        if unknown := set(ids) - {region.region_id for region in regions}:
            raise ValueError(f"there is no region {min(unknown)}; see the distill run for those there are")
        self.regions: dict[str, Region] = {
            f"region={region.region_id}": region for region in regions if region.region_id in ids
        }

    def tasks(self) -> list[str]:
        """`region=<id>`, heaviest first."""
        return list(self.regions)

    def run(self, task: str) -> Iterator[Item]:
        """Decode the strip of one region, (n_taus, n_draws, channels, height, width) uint8."""
        images, predictions = draw_strip(self, self.regions[task])
        yield Progress(1, 1)
        yield tensors_file(
            task, {"images": images, "predictions": predictions}, taus=self.config.taus, seed=self.seed
        )

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """How many regions were drawn."""
        del read
        return Merged({"regions": len(done), "taus": len(self.config.taus), "draws": self.config.n_draws})


def draw_strip(step: Draw, region: Region) -> tuple[Tensor, Tensor]:
    """Images (n_taus, n_draws, …) uint8 of a region, and the predictions (n_taus, n_draws)."""
    images = torch.stack(
        [
            draw_images(step.vae, region, step.config.n_draws, tau=tau, seed=step.seed)
            for tau in step.config.taus
        ]
    )
    return images, predict(step.classifier, images.flatten(0, 1)).view(images.shape[:2])


def sample_training(labels: Tensor, max_images: int | None, *, seed: int) -> Tensor:
    """Indices of the training images that a step takes: all, or a stratified sample of so many."""
    return stratified_sample(labels, len(labels) if max_images is None else max_images, seed=seed)


def stratified_sample(labels: Tensor, n: int, *, seed: int) -> Tensor:
    """Choose n of the images so that every class keeps its share; indices, ascending.

    Examples
    --------
    >>> labels = torch.tensor([0] * 60 + [1] * 30)
    >>> labels[stratified_sample(labels, 9, seed=0)].bincount()
    tensor([6, 3])
    """
    order = torch.from_numpy(numpy_rng(seed, "stratified").permutation(len(labels)))
    rank = torch.zeros(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return rank.argsort(stable=True)[:n].sort().values
