"""Steps `classifier` and `vae`: a network trained on the project's data, or brought along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from defuse_core.base.checkpoints import load_tensors, load_weights
from defuse_core.base.config import VaeConfig
from defuse_core.base.records import Interval
from defuse_core.base.runtime import derive_seed
from defuse_core.data.splits import Split
from defuse_core.extensions.shipped import load_shipped_vae
from defuse_core.method.classifier import Classifier, classifier_epochs, predict_logits
from defuse_core.method.vae import BetaVAE, vae_config_for, vae_epochs
from defuse_core.steps.base import Item, Merged, Read, Step, interval_json, progress, tensors_file
from defuse_core.steps.networks import bring_network, make_network, upload_of
from defuse_core.steps.source import Source, check_fits
from defuse_core.workspace.configs import ClassifierConfig, GeneratorConfig


class TrainClassifier(Step):
    """Train the classifier under test, or take in the weights that `weights` names."""

    name = "classifier"

    def __init__(self, source: Source, config: ClassifierConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        trained = config.weights is None
        found = make_network(source, config, seed) if trained else bring_network(source, config)
        self.architecture, self.facts = found.architecture, found.facts
        self.classifier = Classifier(found.network, found.preprocessing)
        check_fits(self.classifier, self.dataset, self.architecture)

    def tasks(self) -> list[str]:
        """One."""
        return ["classifier"]

    def run(self, task: str) -> Iterator[Item]:
        """Train, with a point an epoch, and measure."""
        if self.config.weights is None:
            checkpoint = self.work / "training.safetensors" if self.work else None
            epochs = classifier_epochs(
                self.classifier, self.dataset.train, config=self.config.training, seed=self.seed,
                checkpoint=checkpoint,
            )  # fmt: skip
            yield from progress(epochs, points=True)
        answers = {name: self._answer(split) for name, split in self.dataset.splits().items()}
        scores = {
            name: Interval.wilson(int((said["predictions"] == said["labels"]).sum()), len(said["labels"]))
            for name, said in answers.items()
        }
        said = {f"{name}.{part}": t for name, parts in answers.items() for part, t in parts.items()}
        yield tensors_file("predictions", said)
        yield tensors_file(
            task,
            self.classifier.network.state_dict(),
            accuracy={name: interval_json(s) for name, s in scores.items()},
            by_class={name: self._by_class(said) for name, said in answers.items()},
            architecture=self.architecture,
            n_classes=self.dataset.n_classes,
            preprocessing=vars(self.classifier.preprocessing),
            **self.facts,
        )

    def _answer(self, split: Split) -> dict[str, Tensor]:
        """What the classifier says of every image (n,), how sure it is of that, and the labels."""
        confidence, predictions = predict_logits(self.classifier, split.images).softmax(1).max(1)
        return {"predictions": predictions, "confidence": confidence, "labels": split.labels}

    def _by_class(self, said: Mapping[str, Tensor]) -> list[list[float] | None]:
        """Accuracy on each class as an interval; None where it has no image."""
        right = said["predictions"] == said["labels"]
        n = said["labels"].bincount(minlength=self.dataset.n_classes).tolist()
        hits = said["labels"][right].bincount(minlength=self.dataset.n_classes).tolist()
        return [
            interval_json(Interval.wilson(*pair)) if pair[1] else None for pair in zip(hits, n, strict=True)
        ]

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Accuracy by split and class, with intervals."""
        metadata = read(done[0])[1]
        accuracy = {name: values[0] for name, values in metadata["accuracy"].items()}
        intervals = {"intervals": metadata["accuracy"], "by_class": metadata["by_class"]}
        told = ("architecture", "preprocessing", "corrected", "began_afresh")
        about: dict[str, Any] = {name: metadata[name] for name in told if name in metadata}
        return Merged({**about, "accuracy": accuracy, **intervals})


class TrainVae(Step):
    """Train the β-VAE, or take in the weights that `weights` names."""

    name = "vae"

    def __init__(self, source: Source, config: GeneratorConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        if config.weights is not None and config.weights.startswith("shipped:"):
            self.vae = load_shipped_vae(config.weights.removeprefix("shipped:"))
        elif config.weights is not None:
            with upload_of(source, config.weights) as path:
                tensors, metadata = load_tensors(path)
                shape = metadata.get("config")  # files of ours say how they are built
                self.vae = BetaVAE(VaeConfig(**shape) if isinstance(shape, dict) else self._shape())
                load_weights(self.vae, tensors, source=path)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(seed, "vae"))
                self.vae = BetaVAE(self._shape())
        with torch.inference_mode():
            self.vae.encode(self.dataset.train.images[:1])  # says what is wrong with their size

    def _shape(self) -> VaeConfig:
        config = self.config
        return vae_config_for(
            self.dataset.image_shape, latent_dim=config.latent_dim, depth=config.depth,
            hidden_channels=config.hidden_channels, hidden_units=config.hidden_units,
        )  # fmt: skip

    def tasks(self) -> list[str]:
        """One."""
        return ["vae"]

    def run(self, task: str) -> Iterator[Item]:
        """Train, with a point an epoch."""
        if self.config.weights is None:
            validation = self.dataset.validation
            epochs = vae_epochs(
                self.vae, self.dataset.train.images, config=self.config.training, seed=self.seed,
                validation_images=None if validation is None else validation.images,
                checkpoint=self.work / "training.safetensors" if self.work else None,
            )  # fmt: skip
            yield from progress(epochs, points=True)
        yield tensors_file(task, self.vae.state_dict(), config=self.vae.config.model_dump())

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """The shape of the generator."""
        shape = read(done[0])[1]["config"]
        return Merged({"latent_dim": shape["latent_dim"], "image_size": shape["image_size"]})
