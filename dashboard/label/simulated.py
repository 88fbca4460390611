"""Finds simulated annotators: those trained on the project; else, for digits, the shipped ones."""

from __future__ import annotations

from dataclasses import dataclass

from dashboard.shell import store
from defuse_core.workspace.workspace import Project


@dataclass(frozen=True)
class Simulated:
    """Five annotators that are networks; `run` trained them, None means the shipped ones."""

    run: int | None

    def __str__(self) -> str:
        """Return who they are, for the middle of a sentence."""
        if self.run is None:
            return "five small networks that were trained on all of MNIST"
        return f"the five networks of run {self.run}"


def find_simulated(project: Project) -> Simulated | None:
    """Return the simulated annotators for a project's images, or None."""
    trained = store.workspace().runs.latest(project.id, "annotators", done=True)
    if trained is not None:
        return Simulated(trained.id)
    digits = project.class_names == list("0123456789") and project.dataset["image_shape"] == [1, 28, 28]
    return Simulated(None) if digits else None
