"""What a run reads: the project's data set, and what the runs it stands on left behind."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from defuse_core.annotations import LabelEvent
from defuse_core.architectures import build_network
from defuse_core.checkpoints import load_tensors, load_weights
from defuse_core.classifier import Classifier, Preprocessing
from defuse_core.config import VaeConfig
from defuse_core.data import DataError, ImageDataset, load_dataset
from defuse_core.database import WorkspaceError
from defuse_core.records import Mistakes, Mixture, Region
from defuse_core.runs import Run
from defuse_core.step_configs import StepName
from defuse_core.vae import BetaVAE
from defuse_core.workspace import Workspace


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
        project = self.workspace.project(self.run.project_id)
        source = project.dataset["source"]
        found = load_dataset(source, image_size=project.dataset.get("image_size"))
        if found.fingerprint != project.dataset["fingerprint"]:
            raise DataError(
                f"{source} has changed since project {project.name!r} was created; "
                "put the old data back, or create a new project on the new data"
            )
        return found

    def upstream(self, step: StepName) -> Run:
        """The run of a step that this one stands on."""
        if step not in self.ancestry:
            raise WorkspaceError(f"run {self.run.id} stands on no {step} run; submit the step again")
        return self.ancestry[step]

    def read(self, step: StepName, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata of a safetensors file of an upstream run."""
        return load_tensors(self.workspace.artifact_path(self.upstream(step).id, f"{name}.safetensors"))

    def own(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A file that an earlier attempt of this run stored; None where there is none."""
        if f"{name}.safetensors" not in self.workspace.runs.artifacts(self.run.id):
            return None
        return load_tensors(self.workspace.artifact_path(self.run.id, f"{name}.safetensors"))

    def classifier(self) -> Classifier:
        """The classifier under test."""
        return unpack_classifier(*self.read("classifier", "classifier"))

    def vae(self) -> BetaVAE:
        """The generator."""
        tensors, metadata = self.read("vae", "vae")
        vae = BetaVAE(VaeConfig(**metadata["config"]))
        load_weights(vae, tensors, source="vae.safetensors")
        return vae.eval()

    def mistakes(self) -> Mistakes:
        """The mistakes identified."""
        return Mistakes(**self.read("identify", "mistakes")[0])

    def mixture(self) -> Mixture:
        """The mixture fitted to them."""
        return unpack_mixture(*self.read("distill", "mixture"))

    def regions(self) -> list[Region]:
        """The regions, heaviest first."""
        return self.mixture().regions(self.upstream("distill").config["min_weight"])

    def labels(self, *, up_to: int | None) -> list[LabelEvent]:
        """The answers that count of the distill run."""
        return self.workspace.annotations.counting(self.upstream("distill").id, up_to=up_to)


def unpack_mixture(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Mixture:
    """Build a mixture from the file of a run."""
    fields: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Mixture(**fields, **metadata["fit"])


def pack_classifier(classifier: Classifier, architecture: str, n_classes: int) -> dict[str, Any]:
    """Metadata that `unpack_classifier` builds the network from."""
    return {
        "architecture": architecture,
        "n_classes": n_classes,
        "preprocessing": vars(classifier.preprocessing),
    }


def unpack_classifier(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Classifier:
    """Build a classifier from the file of a run."""
    given = metadata["preprocessing"]
    preprocessing = Preprocessing(tuple(given["mean"]), tuple(given["std"]), given["image_size"])
    network = build_network(
        metadata["architecture"], n_classes=metadata["n_classes"], channels=len(preprocessing.mean)
    )
    load_weights(network, tensors, source="classifier.safetensors")
    return Classifier(network, preprocessing).eval()


def check_fits(classifier: Classifier, dataset: ImageDataset, architecture: str) -> None:
    """Classify one image.

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
