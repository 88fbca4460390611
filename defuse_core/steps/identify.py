"""The step `identify`: algorithm 1 over the training images, one task per shard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from defuse_core.base.config import IdentificationConfig
from defuse_core.base.records import Mistakes
from defuse_core.base.runtime import AdaptiveBatch
from defuse_core.method.identification import SHARD_IMAGES, search_shard, searched_images
from defuse_core.steps.base import Item, Merged, Point, Progress, Read, Step, tensors_file
from defuse_core.steps.source import Source


class Identify(Step):
    """Algorithm 1 over the training split, one task per shard of images."""

    name = "identify"

    def __init__(self, source: Source, config: IdentificationConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.classifier, self.vae, self.train = source.classifier(), source.vae(), source.dataset.train
        self.index = searched_images(self.train.labels, config=config, seed=seed)
        self._batch: AdaptiveBatch | None = None

    def tasks(self) -> list[str]:
        """`shard=0000` and so on."""
        return [f"shard={shard:04d}" for shard in range(math.ceil(len(self.index) / SHARD_IMAGES))]

    def run(self, task: str) -> Iterator[Item]:
        """Search around the images of one shard, with a point for its mistakes."""
        if self._batch is None:  # one for all shards of this process: it learns which size fits
            self._batch = AdaptiveBatch(self.config.batch_size, device=self.classifier.mean.device)
        shard = int(task.removeprefix("shard="))
        mistakes = search_shard(
            self.classifier, self.vae, self.train, self.index,
            shard=shard, config=self.config, seed=self.seed, batch=self._batch,
        )  # fmt: skip
        images = min(SHARD_IMAGES, len(self.index) - shard * SHARD_IMAGES)
        decoded = images * self.config.n_perturbations
        yield Point(task, {**mistakes.counts(), "images": images, "decoded": decoded})
        yield Progress(1, 1, mistakes.counts())
        yield tensors_file(task, vars(mistakes))

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """All mistakes, by source image; `searched` is the number of images searched around.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        parts = (Mistakes(**read(task)[0]) for task in done)
        mistakes = Mistakes.concatenate(parts, latent_dim=self.vae.latent_dim)
        searched = sum(
            min(SHARD_IMAGES, len(self.index) - int(task.removeprefix("shard=")) * SHARD_IMAGES)
            for task in done
        )
        summary = {"mistakes": mistakes.counts(), "searched": searched, "images": len(self.index)}
        return Merged(summary, [tensors_file("mistakes", vars(mistakes))], replaces_tasks=True)
