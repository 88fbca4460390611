"""Steps `classifier` and `vae`: a network trained on the project's data, or brought along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from defuse_core.architectures import build_network
from defuse_core.checkpoints import load_tensors, load_weights
from defuse_core.classifier import Classifier, Preprocessing, classifier_epochs
from defuse_core.config import VaeConfig
from defuse_core.data import ImageDataset
from defuse_core.evaluation import score_split
from defuse_core.runtime import derive_seed
from defuse_core.shipped import load_shipped_classifier, load_shipped_vae, read_card
from defuse_core.step_configs import ClassifierConfig, GeneratorConfig
from defuse_core.steps.base import Item, Merged, Read, Step, interval_json, progress, tensors_file
from defuse_core.steps.source import Source, check_fits, pack_classifier
from defuse_core.vae import BetaVAE, vae_config_for, vae_epochs


class TrainClassifier(Step):
    """Train the classifier under test, or take in the weights that `weights` names."""

    name = "classifier"

    def __init__(self, source: Source, config: ClassifierConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        if config.weights is not None and config.weights.startswith("shipped:"):
            name = config.weights.removeprefix("shipped:")
            self.classifier = load_shipped_classifier(name)
            self.architecture: str = read_card(name)["architecture"]
        else:
            self.architecture, self.classifier = _build(config, self.dataset, seed)
            if config.weights is not None:
                path = _blob(source, config.weights)
                load_weights(self.classifier.network, load_tensors(path)[0], source=path.name)
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
        scores = {n: score_split(self.classifier, s) for n, s in self.dataset.splits().items()}
        yield tensors_file(
            task,
            self.classifier.network.state_dict(),
            accuracy={name: interval_json(s) for name, s in scores.items()},
            **pack_classifier(self.classifier, self.architecture, self.dataset.n_classes),
        )

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Accuracy by split."""
        metadata = read(done[0])[1]
        accuracy = {name: values[0] for name, values in metadata["accuracy"].items()}
        return Merged({"architecture": metadata["architecture"], "accuracy": accuracy})


def _build(config: ClassifierConfig, dataset: ImageDataset, seed: int) -> tuple[str, Classifier]:
    """A network with the weights that the seed gives."""
    usual = Preprocessing.of(dataset.train.images)
    preprocessing = Preprocessing(config.mean or usual.mean, config.std or usual.std, config.image_size)
    size = preprocessing.image_size or dataset.image_shape[1]
    architecture = config.architecture or ("mnist_cnn" if size == 28 else "resnet_small")
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "classifier"))
        channels = len(preprocessing.mean)
        network = build_network(architecture, n_classes=dataset.n_classes, channels=channels)
    return architecture, Classifier(network, preprocessing)


def _blob(source: Source, weights: str) -> Path:
    kind, _, sha256 = weights.partition(":")
    if kind != "blob":
        raise ValueError(f"weights must be shipped:<name> or blob:<sha256>, got {weights!r}")
    return source.workspace.blob_path(source.run.project_id, sha256)


class TrainVae(Step):
    """Train the β-VAE, or take in the weights that `weights` names."""

    name = "vae"

    def __init__(self, source: Source, config: GeneratorConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        if config.weights is not None and config.weights.startswith("shipped:"):
            self.vae = load_shipped_vae(config.weights.removeprefix("shipped:"))
        elif config.weights is not None:
            path = _blob(source, config.weights)
            tensors, metadata = load_tensors(path)
            shape = metadata.get("config")  # files of ours say how they are built
            self.vae = BetaVAE(VaeConfig(**shape) if isinstance(shape, dict) else self._shape())
            load_weights(self.vae, tensors, source=path.name)
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
