"""The demo: the whole method on the 5,000 embedded digits with the shipped models, in minutes.

Every step is a run in the workspace, in a project of its own; a demo that was stopped resumes where it was.
Labels come from five simulated annotators (see `extensions.shipped`), who vote on ten images a region.
`QUICK` is the same in a minute, on a few hundred digits: it shows that everything works, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from defuse_core.base.config import (
    PRESETS,
    CorrectionConfig,
    DistillationConfig,
    IdentificationConfig,
    Preset,
)
from defuse_core.base.files import write_bytes
from defuse_core.base.machine import MODELS
from defuse_core.jobs.ensure import ensure, upstream_among
from defuse_core.reproduction.run import Watch, few_images
from defuse_core.workspace.configs import StepName, preset_values
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.results import load_results
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Project, Workspace

PROJECT = "demo"

QUICK: Preset = PRESETS["demo"].model_copy(
    update={
        "identification": IdentificationConfig(n_perturbations=10, max_mistakes_per_image=5),
        "distillation": DistillationConfig(n_components=30),
        "correction": CorrectionConfig(lambdas=(1.0,), epochs=1, batch_size=32, instances_per_region=32),
    }
)
"""The demo's preset for a few hundred digits: so few mistakes and λ that a minute is enough."""

_STEPS: tuple[StepName, ...] = ("identify", "distill", "annotate", "correct", "evaluate", "report")


def demo_configs(preset: Preset = PRESETS["demo"]) -> Iterator[tuple[StepName, dict[str, Any]]]:
    """Yield the steps of the demo in order, each with its config."""
    yield "classifier", {"weights": "shipped:demo-classifier"}
    yield "vae", {"weights": "shipped:demo-vae"}
    for step in _STEPS:
        yield step, preset_values(preset, step)


def shipped_cards(kind: str, models: Path = MODELS) -> dict[str, dict[str, Any]]:
    """Return the cards of the shipped models of a kind by name.

    Parameters
    ----------
    kind : {"classifier", "vae"}
    models : Path
        Folder that the models are in.
    """
    cards = [json.loads(path.read_text()) for path in sorted(models.glob("*.json"))]
    return {card["name"]: card for card in cards if card["kind"] == kind}


def digits_dataset(models: Path = MODELS) -> dict[str, Any]:
    """Return what a project stores about the embedded digits, from the cards of the shipped models.

    The same as from the digits themselves, without torch; every run compares the fingerprint with them.
    """
    data = json.loads((models / "demo-classifier.json").read_text())["data"]
    shape = json.loads((models / "demo-vae.json").read_text())["vae"]
    return {
        "source": "digits",
        "image_size": None,
        "split_seed": 0,
        "fingerprint": data["fingerprint"],
        "class_names": [str(digit) for digit in range(10)],
        "image_shape": [shape["channels"], shape["image_size"], shape["image_size"]],
        "sizes": {"train": data["train"], "test": data["test"]},
    }


def demo_project(workspace: Workspace, name: str = PROJECT) -> Project:
    """Return the demo's project, created on the embedded digits where it does not exist.

    Parameters
    ----------
    workspace : Workspace
    name : str

    Raises
    ------
    WorkspaceError
        If the project exists on other data.
    """
    if name not in {project.name for project in workspace.projects()}:
        try:
            return workspace.create_project(name, dataset=digits_dataset())
        except WorkspaceError:  # another demo may have been faster
            if name not in {project.name for project in workspace.projects()}:
                raise
    project = workspace.project(name)
    if project.dataset["source"] != "digits":
        raise WorkspaceError(
            f"project {name!r} is on {project.dataset['source']}, the demo on digits; give another --project"
        )
    return project


def quick_project(workspace: Workspace, name: str = f"{PROJECT}-quick") -> Project:
    """Return the quick demo's project, created on a few hundred of the digits where it does not exist.

    Parameters
    ----------
    workspace : Workspace
    name : str

    Raises
    ------
    WorkspaceError
        If the project exists on other data.
    """
    from defuse_core.workspace.projects import new_project  # torch: slow to import

    upload = workspace.store_upload("digits-quick.npz", [few_images("digits")])
    source = f"blob:{upload.sha256}"
    if name not in {project.name for project in workspace.projects()}:
        return new_project(workspace, name, source, upload_name=upload.name)
    project = workspace.project(name)
    if project.dataset["source"] != source:
        raise WorkspaceError(
            f"project {name!r} is on other data than the quick demo, which takes a few hundred digits; give "
            "another --project"
        )
    return project


def run_demo(
    workspace: Workspace, project: Project, *, seed: int, resources: Resources, watch: Watch,
    preset: Preset = PRESETS["demo"],
) -> dict[StepName, Run]:  # fmt: skip
    """Run every step of the demo, or what a stopped one lacks; return the runs by step.

    Stops at the first run that does not end as done, which is then the last of those returned.

    Parameters
    ----------
    workspace : Workspace
    project : Project
    seed : int
    resources : Resources
    watch : Watch
    preset : Preset
        Configs of the steps after the generator.
    """
    reports = [r for r in workspace.runs.of_project(project.id, "report") if r.status == "done"]
    begun_after = reports[-1].id if reports else 0
    runs: dict[StepName, Run] = {}
    for step, config in demo_configs(preset):
        run = ensure(
            workspace, project.id, step, config, seed=seed, upstream=upstream_among(runs, step, config),
            resources=resources, after=begun_after,
        )  # fmt: skip
        runs[step] = watch(run) if run.live else run
        if runs[step].status != "done":
            break
    return runs


def write_evidence(workspace: Workspace, report: Run, out: Path) -> dict[str, Any]:
    """Copy the figures and tables of a report run into a folder; return its results.json.

    Parameters
    ----------
    workspace : Workspace
    report : Run
        A report run that is done.
    out : Path
        Created where it is missing.
    """
    for name in workspace.runs.artifacts(report.id):
        write_bytes(out / name, workspace.artifact_path(report.id, name).read_bytes())
    return load_results(out / "results.json", report.id)
