"""The step `vae`: the β-VAE, trained on the data of the project, or loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

from defuse_core.base.checkpoints import load_tensors
from defuse_core.base.config import VaeConfig
from defuse_core.base.errors import CheckpointError, DefuseError
from defuse_core.base.runtime import derive_seed
from defuse_core.data.splits import stratified_sample
from defuse_core.extensions.consistency import ReaderConsistency
from defuse_core.extensions.shipped import load_shipped_vae
from defuse_core.method.classifier import Classifier
from defuse_core.method.evaluation import reconstruction_control
from defuse_core.method.vae import BetaVAE, vae_config_for
from defuse_core.method.vae_training import vae_epochs
from defuse_core.networks.sniffing import sniff_format
from defuse_core.steps.base import Item, Merged, Point, Progress, Read, Step, tensors_file
from defuse_core.steps.networks import upload_of
from defuse_core.steps.source import Source
from defuse_core.steps.unpacking import build_vae
from defuse_core.workspace.configs import GeneratorConfig

TRAINING = "training.safetensors"
"""The file of a training that goes on, in the folder `work` of its run."""

_WATCHED, _LOOKS = 500, 20  # images, and how often in all


class TrainVae(Step):
    """Train the β-VAE, from random weights or from `pretrained`; or load what `weights` names."""

    name = "vae"

    def __init__(self, source: Source, config: GeneratorConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        self.classifier = source.classifier() if config.asks_readers else None
        self.watched = self.classifier or _newest_classifier(source)
        given = config.weights or config.pretrained
        if given is not None and given.startswith("shipped:"):
            self.vae = load_shipped_vae(given.removeprefix("shipped:"))
        elif given is not None:
            with upload_of(source, given) as path:
                self.vae = self._read(path)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(seed, "vae"))
                self.vae = BetaVAE(self._shape())
        with torch.inference_mode():
            self.vae.encode(self.dataset.train.images[:1])  # raises if their size is wrong

    def _read(self, path: Path) -> BetaVAE:
        """The generator of a file: our own say which shape it has, which is believed if the weights fit."""
        sniff_format(path)  # raises for what is no checkpoint, or has a header without end
        tensors, metadata = load_tensors(path)
        stated = metadata.get("config")
        try:
            shape = VaeConfig(**stated) if isinstance(stated, dict) else self._shape()
        except (ValidationError, TypeError) as error:
            raise CheckpointError(
                f"{path} states the shape of no generator; export the generator again, or train one"
            ) from error
        return build_vae(shape, tensors, source=str(path))

    def _shape(self) -> VaeConfig:
        config = self.config
        return vae_config_for(
            self.dataset.image_shape, latent_dim=config.latent_dim, depth=config.depth,
            hidden_channels=config.hidden_channels, hidden_units=config.hidden_units, decoder=config.decoder,
            blocks=config.blocks,
        )  # fmt: skip

    def tasks(self) -> list[str]:
        """One."""
        return ["vae"]

    def run(self, task: str) -> Iterator[Item]:
        """Train, with a point for every epoch."""
        if self.config.weights is None:
            validation = self.dataset.validation
            epochs = vae_epochs(
                self.vae, self.dataset.train.images, config=self.config.training, seed=self.seed,
                validation_images=None if validation is None else validation.images,
                consistency=ReaderConsistency([self.classifier]) if self.classifier else None,
                checkpoint=self.work / TRAINING if self.work else None,
            )  # fmt: skip
            for epoch, of, metrics in epochs:
                metrics = {**metrics, **self._watch(epoch, of)}
                yield Progress(epoch, of, metrics)
                yield Point(str(epoch), metrics)
        yield tensors_file(task, self.vae.state_dict(), config=self.vae.config.model_dump())

    def _watch(self, epoch: int, epochs: int) -> dict[str, float]:
        """ε = 0 on a few images as "kept", now and then: who watches sees whether to train on."""
        if self.watched is None or (epoch % max(1, epochs // _LOOKS) and epoch != epochs):
            return {}
        split = self.dataset.validation or self.dataset.train
        few = split[stratified_sample(split.labels, _WATCHED, seed=self.seed)]
        self.vae.eval()
        return {"kept": reconstruction_control(self.watched, self.vae, few).estimate}

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Latent dimension and image size of the generator.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        shape = read(done[0])[1]["config"]
        return Merged({"latent_dim": shape["latent_dim"], "image_size": shape["image_size"]})


def _newest_classifier(source: Source) -> Classifier | None:
    """The project's newest classifier, to watch a training that does not depend on it; None without one."""
    run = source.workspace.runs.latest(source.run.project_id, "classifier", done=True)
    try:
        return None if run is None else Source(source.workspace, run.id).classifier()
    except (DefuseError, OSError, ValueError):  # it is only watched
        return None
