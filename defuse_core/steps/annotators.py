"""Step `annotators`: five small networks that stand in for people, trained on the project's own classes.

An annotator differs from the classifier under test in architecture, random stream and augmentation. It
also trains on images that the classifier is not trained on: the validation images, and those of
`more_data`. It never trains on the test images, on which it is scored. Its labels, and so every region
accuracy, are no more reliable than that score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.base.runtime import derive_seed
from defuse_core.data.sources import load_dataset
from defuse_core.data.splits import ImageDataset, Split
from defuse_core.extensions.shipped import ANNOTATORS, load_annotators
from defuse_core.method.classifier import Classifier, Preprocessing, classifier_epochs, predict
from defuse_core.method.labeling import Votes, collect_votes, majority, simulate_annotators
from defuse_core.networks.architectures import build_network
from defuse_core.steps.base import Item, Merged, Read, Step, interval_json, progress, tensors_file
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import AnnotationConfig, AnnotatorsConfig
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Workspace

_SAID = ".said"
NONE = -1
"""None of the above, in tensors of answers."""


class TrainAnnotators(Step):
    """Train the five annotators, or load the shipped ones, one task each; measure each and their vote."""

    name = "annotators"

    def __init__(self, source: Source, config: AnnotatorsConfig, seed: int) -> None:
        self.config, self.seed, self.test = config, seed, source.dataset.test
        self.n_classes, self.channels = source.dataset.n_classes, source.dataset.image_shape[0]
        self.shipped = _shipped(source) if config.shipped else {}
        self.split = _training_images(source.dataset, config.more_data)
        self.preprocessing = Preprocessing.of(self.split.images)
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Set the device on which each task will make its network."""
        self._device = device

    def tasks(self) -> list[str]:
        """Names of the annotators."""
        return list(ANNOTATORS)

    def run(self, task: str) -> Iterator[Item]:
        """Train one, with a point for every epoch, and let it label the test images."""
        architecture, own = ANNOTATORS[task]
        if self.config.shipped:
            yield from self._store(task, architecture, self.shipped[task].to(self._device))
            return
        training = self.config.training
        if self.config.own_augmentation and training.augmentation != "none":
            training = training.model_copy(update={"augmentation": own.augmentation})
        seed = derive_seed(self.seed, "annotators", task)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build_network(architecture, n_classes=self.n_classes, channels=self.channels)
        annotator = Classifier(network, self.preprocessing).to(self._device)
        epochs = classifier_epochs(
            annotator, self.split, config=training, seed=seed,
            checkpoint=self.work / f"{task}.training.safetensors" if self.work else None,
        )  # fmt: skip
        yield from progress(epochs, points=True)
        yield from self._store(task, architecture, annotator)

    def _store(self, task: str, architecture: str, annotator: Classifier) -> Iterator[Item]:
        images, labels = self.test.images, self.test.labels
        said = {"predictions": predict(annotator, images), "answers": answer(annotator, images)}
        yield tensors_file(task + _SAID, {**said, "labels": labels})
        yield tensors_file(
            task, annotator.network.state_dict(), architecture=architecture, n_classes=self.n_classes,
            preprocessing=vars(annotator.preprocessing),
        )  # fmt: skip

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Test accuracy of each, and of their vote, where "none of the above" counts as wrong.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        files = {name: read(name + _SAID)[0] for name in done}
        labels = files[done[0]]["labels"]
        intervals = {name: _score(each["predictions"], labels) for name, each in files.items()}
        voted = vote({name: each["answers"] for name, each in files.items()})
        summary = {
            "accuracy": {name: interval[0] for name, interval in intervals.items()},
            "intervals": intervals,
            "majority": _score(voted, labels),
            "none_of_the_above": float((voted == NONE).double().mean()),
            "trained_on": None if self.config.shipped else len(self.split),  # their model cards say it
        }
        return Merged(summary)


def find_annotators(source: Source) -> dict[str, Classifier]:
    """Load the annotators that the run stands on, else the shipped ones, which know digits; by name.

    Raises
    ------
    ValueError
        If none were trained for the project, and it is not of 28×28 digits.
    """
    if "annotators" in source.ancestry:
        names = [name for name in ANNOTATORS if name in _stored(source)]
        return {name: source.build(*source.read("annotators", name)) for name in names}
    return _shipped(source)


@dataclass(frozen=True)
class Labelled:
    """The simulated annotators that gave the labels of regions, and how sure they had to be.

    Attributes
    ----------
    annotators : mapping of str to Classifier
        By name.
    min_probability : float
        Under it, an annotator said "none of the above".
    """

    annotators: Mapping[str, Classifier]
    min_probability: float

    def votes(self, images: Tensor) -> Votes:
        """Return their answers to images (n, channels, height, width), as they gave them to label."""
        answers = simulate_annotators(self.annotators, images, region_id=NONE, threshold=self.min_probability)
        return collect_votes(answers, len(images))


def who_labelled(source: Source, *, at: float) -> Labelled:
    """Find the annotate run that stored a label; others may have been trained, or asked, since.

    Parameters
    ----------
    source : Source
        Of a run that stands on a distill run.
    at : float
        When the label was stored, in seconds since 1970.

    Returns
    -------
    Labelled
        Where no annotate run is known, such as in a replay, the annotators that `source` stands on, else
        the shipped ones, with the default `min_probability`.
    """
    runs = _annotate_runs(source.workspace, source.upstream("distill"), at=at)
    if not runs:
        return Labelled(find_annotators(source), AnnotationConfig().min_probability)
    config = AnnotationConfig.model_validate(runs[-1].config)
    return Labelled(find_annotators(Source(source.workspace, runs[-1].id)), config.min_probability)


def min_probability_of(store: Workspace, regions: Run) -> float:
    """Return how sure annotators had to be when they last labelled the regions of a distill run.

    Parameters
    ----------
    store : Workspace
    regions : Run
        The distill run; where they never labelled its regions, the default is returned.
    """
    runs = _annotate_runs(store, regions, at=math.inf)
    config = AnnotationConfig.model_validate(runs[-1].config) if runs else AnnotationConfig()
    return config.min_probability


def _annotate_runs(store: Workspace, regions: Run, *, at: float) -> list[Run]:
    """The annotate runs that stored labels of these regions, of those that there were at a time."""
    return [
        run
        for run in store.runs.of_project(regions.project_id, "annotate")
        if regions.id in run.upstream
        and run.created_at <= at
        and (run.status == "done" or run.record.get("labelled"))
    ]


def _shipped(source: Source) -> dict[str, Classifier]:
    names = source.workspace.project(source.run.project_id).class_names
    if names != list("0123456789") or source.dataset.image_shape != (1, 28, 28):
        raise ValueError(
            "the shipped simulated annotators know 28×28 digits only; train some with: defuse "
            "train-annotators; or label the regions yourself, or with: defuse label import FILE.csv"
        )
    return load_annotators()


def _stored(source: Source) -> set[str]:
    run = source.upstream("annotators")
    return {name.removesuffix(".safetensors") for name in source.workspace.runs.artifacts(run.id)}


def answer(annotator: Classifier, images: Tensor) -> Tensor:
    """Return an annotator's answer to each image, (n,) int64, as in the step `annotate`; see `NONE`.

    Parameters
    ----------
    annotator : Classifier
    images : (n, channels, height, width) uint8
    """
    answers = simulate_annotators(
        {"": annotator}, images, region_id=NONE, threshold=AnnotationConfig().min_probability
    )
    return torch.tensor([NONE if a.label is None else a.label for a in answers], dtype=torch.int64)


def vote(answers: Mapping[str, Tensor]) -> Tensor:
    """Return the majority answer to each image, (n,) int64; `NONE` if it is none of the above, or a tie."""
    votes = torch.stack(list(answers.values()), 1).tolist()  # (n, n_annotators)
    voted = [majority([None if label == NONE else label for label in labels]) for labels in votes]
    return torch.tensor([NONE if label is None else label for label in voted], dtype=torch.int64)


def _score(said: Tensor, labels: Tensor) -> list[float]:
    return interval_json(Interval.wilson(int((said == labels).sum()), len(labels)))


def _training_images(dataset: ImageDataset, more_data: str | None) -> Split:
    """Training and validation images of the project, and the training images of other data."""
    parts = [dataset.train, *([] if dataset.validation is None else [dataset.validation])]
    if more_data is not None:
        more = load_dataset(more_data)
        if more.image_shape != dataset.image_shape or more.n_classes != dataset.n_classes:
            raise ValueError(
                f"more_data must have images of {dataset.image_shape} in {dataset.n_classes} classes, "
                f"{more_data} has {more.image_shape} in {more.n_classes}; give data of the same kind"
            )
        parts.append(more.train)
    return Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
