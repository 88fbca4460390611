"""The step `control`: does reconstruction alone (ε = 0) already mislead the classifier, and others?

A generator that was trained with the classifier in the loop may have learned to please it. So the same share
is measured by readers that the generator never saw, too: the simulated annotators where there are any, else
a small network of another design, trained here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import torch

from defuse_core.base.config import NetworkTraining
from defuse_core.base.intervals import Interval
from defuse_core.base.runtime import derive_seed
from defuse_core.data.splits import Split, stratified_sample
from defuse_core.extensions.consistency import control_by_readers
from defuse_core.method.classifier import Classifier, Preprocessing, classifier_epochs
from defuse_core.method.evaluation import reconstruction_control
from defuse_core.networks.architectures import build_network
from defuse_core.steps.annotators import find_annotators
from defuse_core.steps.base import Item, Merged, Progress, Read, Step, interval_json, progress, tensors_file
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import ControlConfig

_READERS = ("resnet_small", "all_convolutional")  # the first of another design than the classifier's
_READER_TRAINING = NetworkTraining(
    optimizer="sgd", learning_rate=0.05, final_learning_rate=1e-4, epochs=8, batch_size=64,
    precision="auto", augmentation="affine",
)  # fmt: skip
_READER_IMAGES = 10_000


class Control(Step):
    """The share of correctly classified images that are still correct after reconstruction (ε = 0)."""

    name = "control"

    def __init__(self, source: Source, config: ControlConfig, seed: int) -> None:
        self.seed, self.trains = seed, config.train_reader
        self.classifier, self.vae, self.dataset = source.classifier(), source.vae(), source.dataset
        self.readers = _annotators(source)
        architecture = source.read("classifier", "classifier")[1]["architecture"]
        self.reader = next(name for name in _READERS if name != architecture)

    def tasks(self) -> list[str]:
        """One per split."""
        return list(self.dataset.splits())

    def run(self, task: str) -> Iterator[Item]:
        """Measure one split, as a whole and by class, and a sample of it by the readers."""
        split = self.dataset.splits()[task]
        by_class = [
            reconstruction_control(
                self.classifier, self.vae, split[torch.nonzero(split.labels == label)[:, 0]]
            )
            for label in range(self.dataset.n_classes)
        ]
        n = sum(interval.n for interval in by_class)
        whole = Interval.wilson(sum(round(f.estimate * f.n) for f in by_class if f.n), n)
        if not self.readers and self.trains:
            self.readers = yield from self._train_reader()
        read = None
        if self.readers:
            readers = list(self.readers.values())
            read = interval_json(control_by_readers(readers, self.vae, split, seed=self.seed))
        yield Progress(1, 1)
        yield tensors_file(
            task, {}, control=interval_json(whole), readers=list(self.readers), by_readers=read,
            by_class=[interval_json(interval) if interval.n else None for interval in by_class],
        )  # fmt: skip

    def _train_reader(self) -> Generator[Item, None, dict[str, Classifier]]:
        """A small network; under the same seed every task trains the same one."""
        train, seed = self.dataset.train, derive_seed(self.seed, "control", "reader")
        sample: Split = train[stratified_sample(train.labels, _READER_IMAGES, seed=seed)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            channels = self.dataset.image_shape[0]
            network = build_network(self.reader, n_classes=self.dataset.n_classes, channels=channels)
        reader = Classifier(network, Preprocessing.of(sample.images)).to(self.classifier.mean.device)
        yield from progress(classifier_epochs(reader, sample, config=_READER_TRAINING, seed=seed))
        return {self.reader: reader}

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """The control by split, as a whole, by class and by the readers.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        files = {name: read(name)[1] for name in done}
        parts = ("control", "by_class", "by_readers")
        summary = {part: {name: files[name][part] for name in done} for part in parts}
        return Merged({**summary, "readers": files[done[0]]["readers"]})


def _annotators(source: Source) -> dict[str, Classifier]:
    try:
        return find_annotators(source)
    except ValueError:  # none were trained, and the shipped ones know other images
        return {}
