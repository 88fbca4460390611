"""The step `classifier`: a classifier that is trained on the data of the project, or loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.data.splits import Split
from defuse_core.method.classifier import Classifier, classifier_epochs, predict_logits
from defuse_core.steps.base import Item, Merged, Read, Step, interval_json, progress, tensors_file
from defuse_core.steps.networks import bring_network, make_network
from defuse_core.steps.source import Source, check_fits
from defuse_core.workspace.configs import ClassifierConfig


class TrainClassifier(Step):
    """Train the classifier under test, or load the weights that `weights` names."""

    name = "classifier"

    def __init__(self, source: Source, config: ClassifierConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        trained = config.weights is None
        network = make_network(source, config, seed) if trained else bring_network(source, config)
        self.architecture, self.facts = network.architecture, network.facts
        self.classifier = Classifier(network.network, network.preprocessing)
        check_fits(self.classifier, self.dataset, self.architecture)

    def tasks(self) -> list[str]:
        """One."""
        return ["classifier"]

    def run(self, task: str) -> Iterator[Item]:
        """Train, with a point for every epoch, and measure."""
        if self.config.weights is None:
            checkpoint = self.work / "training.safetensors" if self.work else None
            training = self.config.training
            epochs = classifier_epochs(
                self.classifier, self.dataset.train, config=training, seed=self.seed,
                selection=self.dataset.selection if training.keep == "best" else None,
                checkpoint=checkpoint,
            )  # fmt: skip
            yield from progress(epochs, points=True)
        answers = {name: self._answer(split) for name, split in self.dataset.splits().items()}
        scores = {
            name: Interval.wilson(int((said["predictions"] == said["labels"]).sum()), len(said["labels"]))
            for name, said in answers.items()
        }
        tensors = {f"{name}.{part}": t for name, parts in answers.items() for part, t in parts.items()}
        yield tensors_file("predictions", tensors)
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
        """Prediction, confidence and label of every image, (n,) each."""
        confidence, predictions = predict_logits(self.classifier, split.images).softmax(1).max(1)
        return {"predictions": predictions, "confidence": confidence, "labels": split.labels}

    def _by_class(self, said: Mapping[str, Tensor]) -> list[list[float] | None]:
        """Accuracy on each class as an interval; None where the class has no image."""
        right = said["predictions"] == said["labels"]
        n = said["labels"].bincount(minlength=self.dataset.n_classes).tolist()
        hits = said["labels"][right].bincount(minlength=self.dataset.n_classes).tolist()
        return [
            interval_json(Interval.wilson(*pair)) if pair[1] else None for pair in zip(hits, n, strict=True)
        ]

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Accuracy by split and class, with intervals.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        metadata = read(done[0])[1]
        accuracy = {name: values[0] for name, values in metadata["accuracy"].items()}
        intervals = {"intervals": metadata["accuracy"], "by_class": metadata["by_class"]}
        names = ("architecture", "preprocessing", "corrected", "began_afresh")
        about: dict[str, Any] = {name: metadata[name] for name in names if name in metadata}
        return Merged({**about, "accuracy": accuracy, **intervals})
