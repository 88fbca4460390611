"""Steps `inspect`, `control` and `probe`: what can be known before minutes are spent.

`inspect` finds the architecture of an upload and the preprocessing it was trained with; `control`
tells whether reconstruction alone (ε = 0) already misleads the classifier; `probe` measures speed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from defuse_core.base.config import CorrectionConfig, IdentificationConfig
from defuse_core.base.records import FailureInstances, Interval
from defuse_core.base.runtime import AdaptiveBatch, numpy_rng
from defuse_core.data.splits import Split
from defuse_core.extensions.contract import (
    Variant,
    by_accuracy,
    check_contract,
    is_worse,
    usual_preprocessings,
)
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.correction import tuning_epochs
from defuse_core.method.evaluation import reconstruction_control
from defuse_core.method.identification import SHARD_IMAGES, identify_shard
from defuse_core.networks.detection import Fit, detect
from defuse_core.networks.formats import read_weights, sniff_format
from defuse_core.networks.sniffing import PROGRAMS
from defuse_core.steps.base import Item, Merged, Point, Progress, Read, Step, interval_json, tensors_file
from defuse_core.steps.networks import (
    Network,
    bring_network,
    build_fit,
    choose_fit,
    stated_preprocessing,
    upload_of,
)
from defuse_core.steps.search import stratified_sample
from defuse_core.steps.source import Source, check_fits
from defuse_core.workspace.configs import ControlConfig, InspectConfig, ProbeConfig

_SHOWN_KEYS = 30
_PROBE_CODES = 32  # an image: a shard of 64 is four batches of 512
_PROBE_IMAGES = 256  # tuned on at once, with as many failures
_PROBE_EPOCHS = 1_000_000  # more than there is time for


class Inspect(Step):
    """Compare weights with every architecture known, and feed those that fit in the usual ways."""

    name = "inspect"

    def __init__(self, source: Source, config: InspectConfig, seed: int) -> None:
        if config.weights is None:
            raise ValueError("inspect needs weights: an upload, or shipped:<name>")
        self.config, self.dataset = config, source.dataset
        self.usual = stated_preprocessing(InspectConfig(), source.dataset)
        found, self.fits, self.format = _open(source, config)
        self.networks: dict[str, Network] = {each.architecture: each for each in found}
        split = self.dataset.selection
        index = stratified_sample(split.labels, config.n_images, seed=seed)
        self.sample: Split = split[
            index[torch.from_numpy(numpy_rng(seed, "contract").permutation(len(index)))]
        ]

    def tasks(self) -> list[str]:
        """One."""
        return ["inspection"]

    def to(self, device: torch.device) -> None:
        """Move the networks to a device."""
        for found in self.networks.values():
            found.network.to(device)

    def run(self, task: str) -> Iterator[Item]:
        """Test every network that fits, with a point for each."""
        contract: list[tuple[str, Variant]] = []
        for done, (name, found) in enumerate(self.networks.items()):
            stated = found.preprocessing
            variants = usual_preprocessings(stated, self.usual, channels=len(stated.mean))
            loop = check_contract(found.network, variants, self.sample)
            while True:
                try:
                    step, of, metrics = next(loop)
                except StopIteration as ended:
                    measured: list[Variant] = ended.value
                    break
                share = round(100 * (done + step / of))  # each counts the same, however long
                yield Progress(share, 100 * len(self.networks), dict(metrics))
            if measured[0].accuracy is not None:
                check_fits(Classifier(found.network, measured[0].preprocessing), self.dataset, name)
            yield Point(name, {"taken": sum(variant.accuracy is not None for variant in measured)})
            contract += [(name, variant) for variant in measured]
        yield tensors_file(
            task,
            {},
            summary={
                "format": self.format,
                "parameters": max(map(_n_parameters, self.networks.values()), default=None),
                "fits": [_fit_json(fit) for fit in self.fits],
                "contract": _contract_json(contract),
                "split": "training" if self.dataset.validation is None else "validation",
            },
        )

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """What was found."""
        return Merged(read(done[0])[1]["summary"])


def _open(source: Source, config: InspectConfig) -> tuple[list[Network], list[Fit], str]:
    """The networks to test, how well each architecture fits, and the format."""
    if str(config.weights).startswith("shipped:"):
        return [bring_network(source, config)], [], "safetensors"
    dataset = source.dataset
    with upload_of(source, str(config.weights)) as path:
        kind = sniff_format(path)
        if kind in PROGRAMS or config.code_path is not None:
            return [bring_network(source, config)], [], kind
        weights = read_weights(path)  # once, whichever number of architectures fits
        fits = detect(weights, n_classes=dataset.n_classes, image_shape=dataset.image_shape)
        chosen = [fit for fit in fits if fit.exact]
        if config.architecture is not None:
            chosen = [choose_fit(fits, config.architecture)]
        return [build_fit(weights, fit, path, dataset, config) for fit in chosen], fits, kind


def _n_parameters(found: Network) -> int:
    return sum(parameter.numel() for parameter in found.network.parameters())


def _fit_json(fit: Fit) -> dict[str, Any]:
    keys = {name: list(getattr(fit, name)) for name in ("missing", "unexpected", "reshaped")}
    return {
        "architecture": fit.architecture,
        "exact": fit.exact,
        "wrong_classes": fit.wrong_classes,
        "n_classes": fit.n_classes,
        "shared": fit.shared,
        **{name: found[:_SHOWN_KEYS] for name, found in keys.items()},
        "counts": {name: len(found) for name, found in keys.items()},
    }


def _contract_json(measured: list[tuple[str, Variant]]) -> list[dict[str, Any]]:
    """Every way to feed every network, and whether another is clearly better."""
    taken = [variant for _, variant in measured if variant.accuracy is not None]
    n = max((variant.accuracy.n for variant in taken if variant.accuracy), default=0)
    whole = by_accuracy(variant for variant in taken if variant.accuracy and variant.accuracy.n == n)
    return [
        {**_variant_json(name, variant), "worse": bool(whole) and is_worse(variant, whole[0])}
        for name, variant in measured
    ]


def _variant_json(architecture: str, variant: Variant) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "name": variant.name,
        **vars(variant.preprocessing),
        "accuracy": None if variant.accuracy is None else interval_json(variant.accuracy),
        "problem": variant.problem,
    }


class Control(Step):
    """The share of correctly read images that are still read correctly after reconstruction (ε = 0)."""

    name = "control"

    def __init__(self, source: Source, config: ControlConfig, seed: int) -> None:
        del config, seed
        self.classifier, self.vae, self.dataset = source.classifier(), source.vae(), source.dataset

    def tasks(self) -> list[str]:
        """One a split."""
        return list(self.dataset.splits())

    def run(self, task: str) -> Iterator[Item]:
        """Measure one split, whole and by class."""
        split = self.dataset.splits()[task]
        by_class = [
            reconstruction_control(
                self.classifier, self.vae, split[torch.nonzero(split.labels == label)[:, 0]]
            )
            for label in range(self.dataset.n_classes)
        ]
        n = sum(found.n for found in by_class)
        whole = Interval.wilson(sum(round(f.estimate * f.n) for f in by_class if f.n), n)
        yield Progress(1, 1)
        yield tensors_file(
            task, {}, control=interval_json(whole),
            by_class=[interval_json(found) if found.n else None for found in by_class],
        )  # fmt: skip

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """The control by split, and by class."""
        found = {name: read(name)[1] for name in done}
        return Merged({part: {name: found[name][part] for name in done} for part in ("control", "by_class")})


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
        """Measure one of the two, after one round to warm up, until the time is over."""
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
        """Tune on images as if they were failures, too; then classify those that were tuned on."""
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
        """The speeds."""
        return Merged({name: speed for task in done for name, speed in read(task)[1].items()})
