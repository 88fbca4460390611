"""The step `probe`: how fast this device searches, tunes and classifies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from defuse_core.base.config import CorrectionConfig, IdentificationConfig
from defuse_core.base.records import FailureInstances
from defuse_core.base.runtime import AdaptiveBatch
from defuse_core.method.classifier import predict
from defuse_core.method.correction import tuning_epochs
from defuse_core.method.identification import SHARD_IMAGES, identify_shard
from defuse_core.steps.base import Item, Merged, Progress, Read, Step, tensors_file
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import ProbeConfig

_PROBE_CODES = 32  # per image: a shard of 64 images is four batches of 512
_PROBE_IMAGES = 256  # to tune on, with as many failures
_PROBE_EPOCHS = 1_000_000  # more than there is time for


class Probe(Step):
    """How fast this device searches (codes a second), tunes and classifies (images a second)."""

    name = "probe"

    def __init__(self, source: Source, config: ProbeConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.classifier, self.vae = source.classifier(), source.vae()
        self.part = source.dataset.train[:SHARD_IMAGES]
        self.tuned_on = source.dataset.train[:_PROBE_IMAGES]

    def tasks(self) -> list[str]:
        """The search, and the correction."""
        return ["speed", "tuning"]

    def run(self, task: str) -> Iterator[Item]:
        """Measure one of the two until the time is over, after one round to warm up."""
        yield from self._search(task) if task == "speed" else self._tune(task)

    def _search(self, task: str) -> Iterator[Item]:
        config = IdentificationConfig(n_perturbations=_PROBE_CODES)
        batch = AdaptiveBatch(config.batch_size, device=self.classifier.mean.device)
        shards, spent, started = -1, 0.0, 0.0
        while spent < self.config.seconds:
            identify_shard(
                self.classifier, self.vae, self.part,
                shard=shards + 1, config=config, seed=self.seed, batch=batch,
            )  # fmt: skip
            shards += 1
            started = started or time.monotonic()
            spent = time.monotonic() - started
            yield Progress(round(min(spent, self.config.seconds) * 10), round(self.config.seconds * 10))
        decoded = shards * len(self.part) * config.n_perturbations
        yield tensors_file(task, {}, codes_per_second=decoded / spent)

    def _tune(self, task: str) -> Iterator[Item]:
        """Tune on the same images as data and as failures; then classify them."""
        data = self.tuned_on
        failures = FailureInstances(data.images, data.labels, torch.zeros_like(data.labels))
        config = CorrectionConfig(lambdas=(1.0,), epochs=_PROBE_EPOCHS)
        epochs = tuning_epochs(
            self.classifier, data, failures, lam=1.0, config=config, seed=self.seed, selection=data[:1]
        )
        done, spent, started = -1, 0.0, 0.0
        for _ in epochs:
            done += 1
            started = started or time.monotonic()
            spent = time.monotonic() - started
            yield Progress(round(min(spent, self.config.seconds) * 10), round(self.config.seconds * 10))
            if spent >= self.config.seconds:
                break
        started = time.monotonic()
        predict(self.classifier, data.images)
        classified = len(data) / (time.monotonic() - started)
        yield tensors_file(
            task, {}, tuned_per_second=2 * len(data) * done / spent, classified_per_second=classified
        )

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """The speeds of both tasks.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        return Merged({name: speed for task in done for name, speed in read(task)[1].items()})
