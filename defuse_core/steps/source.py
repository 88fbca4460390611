"""Loads what a run reads: the project's data set, and the files of the runs that it stands on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defuse_core.base.checkpoints import load_artifact, load_weights
from defuse_core.base.errors import CheckpointError
from defuse_core.base.records import Mistakes, Mixture, Region
from defuse_core.data.facts import find_change
from defuse_core.data.reading import Reading
from defuse_core.data.sources import read_source, read_upload
from defuse_core.data.splits import DataError, ImageDataset
from defuse_core.extensions.regions import apply_edits, region_of_mistakes
from defuse_core.method.classifier import Classifier
from defuse_core.method.vae import BetaVAE
from defuse_core.networks.formats import load_program
from defuse_core.networks.local_code import import_network
from defuse_core.steps.unpacking import (
    build_checked,
    read_stated,
    unpack_mistakes,
    unpack_mixture,
    unpack_vae,
    unpacking,
)
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import RegionEdit
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Run, corrected_by
from defuse_core.workspace.workspace import Project, Workspace


class Source:
    """Reads for one run; what it returns is on the CPU, in evaluation mode, and not shared.

    Raises
    ------
    WorkspaceError
        Where an upstream run is missing or lacks a file.
    DataError
        Where the data set is not the one that the project was created with.
    """

    def __init__(self, workspace: Workspace, run_id: int) -> None:
        self.workspace = workspace
        self.ancestry: dict[str, Run] = workspace.runs.ancestry(run_id)
        self.run = workspace.runs.get(run_id)

    @cached_property
    def dataset(self) -> ImageDataset:
        """The project's data set, compared with its fingerprint."""
        return open_dataset(self.workspace, self.workspace.project(self.run.project_id))

    def upstream(self, step: StepName) -> Run:
        """The run of a step that this one stands on."""
        if step not in self.ancestry:
            raise WorkspaceError(f"run {self.run.id} stands on no {step} run; submit the step again")
        return self.ancestry[step]

    def read(self, step: StepName, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Load tensors and metadata of a safetensors file of an upstream run.

        Parameters
        ----------
        step : str
        name : str
            Of the file, without the suffix `.safetensors`.
        """
        return load_artifact(self.workspace.artifact_path(self.upstream(step).id, f"{name}.safetensors"))

    def own(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Load a file that an earlier attempt of this run stored; None where there is none."""
        if f"{name}.safetensors" not in self.workspace.runs.artifacts(self.run.id):
            return None
        return load_artifact(self.workspace.artifact_path(self.run.id, f"{name}.safetensors"))

    def classifier(self) -> Classifier:
        """The classifier under test."""
        return self.build(*self.read("classifier", "classifier"))

    def build(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Classifier:
        """Build a classifier from the tensors and metadata of its file.

        Parameters
        ----------
        tensors : dict of str to Tensor
            Weights of the network.
        metadata : dict
            "architecture", "preprocessing", "n_classes"; "program" or "code_path" of a user's network.
        """
        name, n_classes, preprocessing = read_stated(metadata)
        channels = len(preprocessing.mean)
        network: nn.Module
        if metadata.get("program"):
            network = load_program(self.workspace.blob_path(self.run.project_id, metadata["program"]))
        elif metadata.get("code_path"):
            network = import_network(name, self._code_path(name), n_classes=n_classes, channels=channels)
        else:
            with unpacking("classifier.safetensors"):
                network = build_checked(name, tensors, n_classes=n_classes, channels=channels)
        load_weights(network, tensors, source="classifier.safetensors")
        return Classifier(network, preprocessing).eval()

    def _code_path(self, name: str) -> str:
        """The folder of the user's own code: from the config, since a file may come from another machine."""
        runs = {run.id: run for run in self.workspace.runs.of_project(self.run.project_id)}
        run = self.upstream("classifier")
        while (number := corrected_by(run)) in runs and number < run.id:  # a further round
            run = self.workspace.runs.ancestry(number)["classifier"]
        if not run.config.get("code_path"):
            raise CheckpointError(
                f"the classifier is {name}, of code on the machine that the project came from; import it "
                "again, and name a folder that you trust: --code-path FOLDER"
            )
        return str(run.config["code_path"])

    def vae(self) -> BetaVAE:
        """The generator."""
        return unpack_vae(*self.read("vae", "vae"))

    def mistakes(self) -> Mistakes:
        """The mistakes identified."""
        return unpack_mistakes(self.read("identify", "mistakes")[0])

    def mixture(self) -> Mixture:
        """The mixture fitted to the mistakes, with the edits that people made.

        A run that stands on a correction sees only the edits that existed when the correction started.
        """
        fitted, min_weight = self.read("distill", "mixture"), self.upstream("distill").config["min_weight"]
        return apply_edits(unpack_mixture(*fitted), self._edits(), min_weight=min_weight)

    def _edits(self) -> list[RegionEdit]:
        corrected = self.ancestry.get("correct")
        return self.workspace.annotations.edits(
            self.upstream("distill").id, up_to=corrected.last_annotation if corrected else None
        )

    def region_of_mistakes(self) -> NDArray[np.int64]:
        """The region of each of the `mistakes`, (n_mistakes,); -1 for none."""
        min_weight = self.upstream("distill").config["min_weight"]
        return region_of_mistakes(
            self.mixture(), self._edits(), self.mistakes().latents, min_weight=min_weight
        )

    def regions(self) -> list[Region]:
        """The regions, heaviest first."""
        return self.mixture().regions(self.upstream("distill").config["min_weight"])

    def labels(self, *, up_to: int | None) -> list[LabelEvent]:
        """The answers that count for the distill run, up to an event; None is all."""
        return self.workspace.annotations.counting(self.upstream("distill").id, up_to=up_to)


def open_dataset(workspace: Workspace, project: Project) -> ImageDataset:
    """Load the data set of a project.

    Parameters
    ----------
    workspace : Workspace
    project : Project

    Raises
    ------
    DataError
        If it is not the one that the project was created with.
    """
    source: str = project.dataset["source"]
    kind, _, sha256 = source.partition(":")
    path = str(workspace.blob_path(project.id, sha256)) if kind == "blob" else source
    reading = Reading.of(project.dataset)
    # every upload is an .npz, whatever its name
    dataset = read_upload(Path(path), reading) if kind == "blob" else read_source(path, reading)
    if change := find_change(project.dataset, dataset):
        names = {blob.sha256: blob.name for blob in workspace.blobs(project.id)}
        raise DataError(
            f"{names.get(sha256, source)} has changed since project {project.name!r} was created: it has "
            f"{change}; put the old data back, or create a new project on the new data"
        )
    return dataset


def check_fits(classifier: Classifier, dataset: ImageDataset, architecture: str) -> None:
    """Check that a classifier takes the images of a data set, by classifying one.

    Parameters
    ----------
    classifier : Classifier
    dataset : ImageDataset
    architecture : str
        Its name, for error messages.

    Raises
    ------
    ValueError
        If the network does not take the data set's images, or has another number of classes.
    """
    shape = tuple(dataset.image_shape)
    try:
        with torch.inference_mode():
            logits = classifier.eval()(dataset.train.images[:1])
    except RuntimeError as error:
        raise ValueError(
            f"architecture {architecture} does not take images of {shape} ({error}); choose another, "
            "or set image_size to the size it was made for"
        ) from error
    if logits.shape != (1, dataset.n_classes):
        raise ValueError(
            f"the classifier tells {logits.shape[-1]} classes apart, the data set has {dataset.n_classes}; "
            "bring the classifier that was trained on this data"
        )
