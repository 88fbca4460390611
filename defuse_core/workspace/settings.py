"""The settings of algorithm 3 that a project's pages share: its ρ, and the τ at which labelling starts.

One place, so that a region is a failure on every page, or on none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defuse_core.base.config import PRESETS, LabelingConfig
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.workspace import Project, Workspace


def labeling_of(store: Workspace, project: Project) -> LabelingConfig:
    """Return how a project's regions are labelled and judged.

    Its newest run of simulated annotators says so, else the paper's settings for such images; ρ is that of
    its newest correction, if there is one.

    Parameters
    ----------
    store : Workspace
    project : Project
    """
    annotated = store.runs.of_project(project.id, "annotate")
    given: Mapping[str, Any] = annotated[-1].config.get("labeling", {}) if annotated else {}
    labeling = LabelingConfig(**given) if given else labeling_for(project.dataset["image_shape"][0])
    corrected = store.runs.of_project(project.id, "correct")
    rho = corrected[-1].config.get("disagreement_threshold") if corrected else None
    return labeling if rho is None else labeling.model_copy(update={"disagreement_threshold": rho})


def with_settings(
    store: Workspace, project: Project, step: StepName, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a step's config, with the project's own settings where it leaves them open.

    Parameters
    ----------
    store : Workspace
    project : Project
    step : str
    config : mapping
        Fields of the step's config.
    """
    labeling = labeling_of(store, project)
    if step == "annotate":
        return {**config, "labeling": {**labeling.model_dump(), **config.get("labeling", {})}}
    if step == "correct":
        return {"disagreement_threshold": labeling.disagreement_threshold, **config}
    return dict(config)


def labeling_for(channels: int) -> LabelingConfig:
    """Return the paper's settings for images of so many channels: grey as MNIST, colour as SVHN and signs.

    Examples
    --------
    >>> labeling_for(1).tau, labeling_for(3).tau
    (0.5, 0.01)
    """
    fitting = [preset for preset in PRESETS.values() if preset.vae.channels == channels]
    return fitting[0].labeling if fitting else LabelingConfig()
