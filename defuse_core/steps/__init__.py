"""The steps of the method as runs: config and upstream runs in, artifacts out, on any engine."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from defuse_core.steps.base import Step
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.workspace import Workspace

STEP_CLASSES: dict[StepName, tuple[str, str]] = {
    "inspect": ("inspect", "Inspect"),
    "classifier": ("classifier", "TrainClassifier"),
    "vae": ("vae", "TrainVae"),
    "control": ("control", "Control"),
    "probe": ("probe", "Probe"),
    "identify": ("identify", "Identify"),
    "distill": ("distill", "Distill"),
    "map": ("map", "Map"),
    "stability": ("stability", "Stability"),
    "annotators": ("annotators", "TrainAnnotators"),
    "annotate": ("annotate", "Annotate"),
    "correct": ("correct", "Correct"),
    "evaluate": ("evaluate", "Evaluate"),
    "report": ("report", "Report"),
}
"""Module and class of each step; a runner imports only the module of its own step."""


def load_step(workspace: Workspace, run_id: int) -> Step:
    """Make the step of a run from its config and the runs that it stands on.

    Parameters
    ----------
    workspace : Workspace
    run_id : int
    """
    run = workspace.runs.get(run_id)
    config = check_config(run.step, run.config)
    module, name = STEP_CLASSES[run.step]  # type: ignore[index]  # checked with the config
    make: Any = getattr(import_module(f"{__name__}.{module}"), name)
    step: Step = make(Source(workspace, run_id), config, run.seed)
    return step
