"""The step `inspect`: the architecture of an upload, and the preprocessing that it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from defuse_core.base.runtime import numpy_rng
from defuse_core.data.splits import Split, stratified_sample
from defuse_core.extensions.contract import (
    Variant,
    by_accuracy,
    check_contract,
    is_worse,
    usual_preprocessings,
)
from defuse_core.method.classifier import Classifier
from defuse_core.networks.detection import Fit, detect
from defuse_core.networks.formats import read_weights, sniff_format
from defuse_core.networks.sniffing import PROGRAMS
from defuse_core.steps.base import Item, Merged, Point, Progress, Read, Step, interval_json, tensors_file
from defuse_core.steps.feeding import stated_preprocessing
from defuse_core.steps.networks import (
    Network,
    bring_network,
    build_fit,
    choose_fit,
    upload_of,
)
from defuse_core.steps.source import Source, check_fits
from defuse_core.workspace.configs import InspectConfig

_SHOWN_KEYS = 30


class Inspect(Step):
    """Compare weights with every known architecture; test those that fit with the usual preprocessings."""

    name = "inspect"

    def __init__(self, source: Source, config: InspectConfig, seed: int) -> None:
        if config.weights is None:
            raise ValueError("inspect needs weights: an upload, or shipped:<name>")
        self.config, self.dataset = config, source.dataset
        self.usual = stated_preprocessing(InspectConfig(), source.dataset)
        networks, self.fits, self.format = _open(source, config)
        self.networks: dict[str, Network] = {network.architecture: network for network in networks}
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
        for network in self.networks.values():
            network.network.to(device)

    def run(self, task: str) -> Iterator[Item]:
        """Test every network that fits, with a point for each."""
        contract: list[tuple[str, Variant]] = []
        for done, (name, network) in enumerate(self.networks.items()):
            stated = network.preprocessing
            variants = usual_preprocessings(stated, self.usual, channels=len(stated.mean))
            loop = check_contract(network.network, variants, self.sample)
            while True:
                try:
                    step, of, metrics = next(loop)
                except StopIteration as ended:
                    measured: list[Variant] = ended.value
                    break
                share = round(100 * (done + step / of))  # every network counts the same
                yield Progress(share, 100 * len(self.networks), dict(metrics))
            if measured[0].accuracy is not None:
                check_fits(Classifier(network.network, measured[0].preprocessing), self.dataset, name)
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
        """The summary that the task wrote.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        return Merged(read(done[0])[1]["summary"])


def _open(source: Source, config: InspectConfig) -> tuple[list[Network], list[Fit], str]:
    """Load the networks to test, how well each architecture fits, and the format."""
    if str(config.weights).startswith("shipped:"):
        return [bring_network(source, config)], [], "safetensors"
    dataset = source.dataset
    with upload_of(source, str(config.weights)) as path:
        kind = sniff_format(path)
        if kind in PROGRAMS or config.code_path is not None:
            return [bring_network(source, config)], [], kind
        weights = read_weights(path)  # once for all architectures that fit
        fits = detect(weights, n_classes=dataset.n_classes, image_shape=dataset.image_shape)
        chosen = [fit for fit in fits if fit.exact]
        if config.architecture is not None:
            chosen = [choose_fit(fits, config.architecture)]
        return [build_fit(weights, fit, path, dataset, config) for fit in chosen], fits, kind


def _n_parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.network.parameters())


def _fit_json(fit: Fit) -> dict[str, Any]:
    keys = {kind: list(getattr(fit, kind)) for kind in ("missing", "unexpected", "reshaped")}
    return {
        "architecture": fit.architecture,
        "exact": fit.exact,
        "wrong_classes": fit.wrong_classes,
        "n_classes": fit.n_classes,
        "shared": fit.shared,
        **{kind: names[:_SHOWN_KEYS] for kind, names in keys.items()},
        "counts": {kind: len(names) for kind, names in keys.items()},
    }


def _contract_json(measured: list[tuple[str, Variant]]) -> list[dict[str, Any]]:
    """Every preprocessing of every network, and whether another is clearly better."""
    taken = [variant for _, variant in measured if variant.accuracy is not None]
    n = max((variant.accuracy.n for variant in taken if variant.accuracy), default=0)
    whole = by_accuracy(variant for variant in taken if variant.accuracy and variant.accuracy.n == n)
    return [
        {
            **_variant_json(name, variant),
            "worse": bool(whole) and is_worse(variant, whole[0], n_tried=len(taken) - 1),
        }
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
