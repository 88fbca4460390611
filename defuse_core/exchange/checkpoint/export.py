"""Export a corrected classifier: a safetensors file with the upload's names and types of weights, and a card.

Names and types are read from the upload itself, which the workspace keeps. A classifier of a second round
("corrected:<run>") goes back to the upload of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from defuse_core.base.checkpoints import dump_tensors, load_artifact
from defuse_core.base.intervals import Interval
from defuse_core.exchange.checkpoint.loading_code import loading_code
from defuse_core.exchange.checkpoint.model_card import Card, RegionRow, write_card
from defuse_core.method.classifier import Preprocessing
from defuse_core.networks.formats import Weights, read_weights, sniff_format
from defuse_core.networks.sniffing import PROGRAMS
from defuse_core.steps.correct import BEFORE, SAID, task_of
from defuse_core.steps.source import Source
from defuse_core.workspace import edits as region_edits
from defuse_core.workspace.configs import SweepConfig
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.labels import SIMULATED_PREFIX, SINGLE_MISTAKES
from defuse_core.workspace.runs import Run, corrected_by
from defuse_core.workspace.workspace import Workspace

FORMAT = "defuse-checkpoint"
VERSION = 1


def corrected_checkpoint(
    workspace: Workspace, run_id: int, *, task: str | None = None, name: str = "corrected"
) -> tuple[bytes, str]:
    """Return a corrected classifier of a correct run.

    Parameters
    ----------
    workspace : Workspace
    run_id : int
        A correct run that is done.
    task : str, optional
        Names the λ, such as "lam=0.1" or "baseline/lam=1"; by default the λ that the run chose.
    name : str
        Name of the file without ".safetensors"; the program in the card uses it.

    Returns
    -------
    content : bytes
        A safetensors file: weights under the names and in the types of the upload, or the network's own
        where it was trained here. Its metadata holds format, version, defuse_version, architecture,
        preprocessing, n_classes, class_names, project, run, task, lam, epoch and accuracy, as JSON.
    card : str
        Markdown.

    Raises
    ------
    WorkspaceError
        If the run is no correct run, is not done, or has no such task.
    """
    run = workspace.runs.get(run_id)
    if run.step != "correct" or run.status != "done":
        raise WorkspaceError(
            f"run must be a correct run that is done, run {run_id} is {run.step}, {run.status}; "
            "see: defuse runs"
        )
    tensors, point = _weights(workspace, run, task)
    source = Source(workspace, run_id)
    about = source.read("classifier", "classifier")[1]
    upload = _upload_of(workspace, source.upstream("classifier"))
    prefix = "" if upload is None else _stripped(tensors, upload)
    files = tensors if upload is None else _as_uploaded(tensors, upload, prefix)
    code = loading_code(
        f"{name}.safetensors", about["architecture"], tensors, n_classes=about["n_classes"],
        preprocessing=Preprocessing.of_json(about["preprocessing"]), key_prefix=prefix,
    )  # fmt: skip
    rounded = _rounded_to(tensors, files, prefix)
    card = _card(
        source, about, point, task=task or task_of(point["lam"]), name=name, code=code, rounded_to=rounded
    )
    return dump_tensors(files, metadata=_metadata(card)), write_card(card)


def _card(
    source: Source, about: Mapping[str, Any], point: Mapping[str, Any], *, task: str, name: str, code: str,
    rounded_to: str | None,
) -> Card:  # fmt: skip
    run = source.run
    project = source.workspace.project(run.project_id)
    return Card(
        file_name=f"{name}.safetensors", project=project.name, run=run.id, task=task,
        chosen=point == run.summary["corrected"]["chosen"], architecture=about["architecture"],
        preprocessing=Preprocessing.of_json(about["preprocessing"]), class_names=project.class_names,
        config=SweepConfig.model_validate(run.config), seed=run.seed,
        n_training=project.dataset["sizes"]["train"], point=point,
        before=run.summary.get("before", {}), nested_under=about.get("nested_under"),
        rounded_to=rounded_to, code=code, version=version("defuse"), regions=_by_region(source, task),
        **_of_labels(source),
    )  # fmt: skip


def tasks_with_weights(workspace: Workspace, run_id: int) -> list[str]:
    """Return the tasks of a correct run that stored weights.

    Parameters
    ----------
    workspace : Workspace
    run_id : int
        A correct run.
    """
    names = [name.removesuffix(".safetensors") for name in workspace.runs.artifacts(run_id)]
    return [n for n in names if n.startswith(("lam=", "baseline/lam=")) and not n.endswith(SAID)]


def _weights(workspace: Workspace, run: Run, task: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if task is not None and task not in (known := tasks_with_weights(workspace, run.id)):
        raise WorkspaceError(f"task must be one of {', '.join(known)}, got {task!r}")
    path = workspace.artifact_path(run.id, f"{task or 'corrected'}.safetensors")
    tensors, metadata = load_artifact(path)
    point: dict[str, Any] = metadata["point"]  # type: ignore[assignment]
    return tensors, point


def _upload_of(workspace: Workspace, run: Run) -> Weights | None:
    """The upload that a classifier goes back to; None if it was trained here, or is a program."""
    while (number := corrected_by(run)) is not None and number < run.id:  # a further round
        run = workspace.runs.ancestry(number)["classifier"]
    kind, _, name = str(run.config.get("weights")).partition(":")
    if kind != "blob":
        return None
    path = workspace.blob_path(run.project_id, name)
    return None if sniff_format(path) in PROGRAMS else read_weights(path)


def _stripped(tensors: Mapping[str, Tensor], upload: Weights) -> str:
    """The prefix of the upload's names that the network's own names do not have."""
    own_prefix = upload.own_prefix(tensors.keys())
    if own_prefix is None:
        raise WorkspaceError(
            "the weights do not have the names of the upload that they were tuned from; bring it again, and "
            "correct that"
        )
    return upload.prefix.removesuffix(own_prefix)


def _as_uploaded(tensors: Mapping[str, Tensor], upload: Weights, prefix: str) -> dict[str, Tensor]:
    """The tuned weights that the upload has, under its names, in its types where both are floating."""
    own_prefix = upload.prefix.removeprefix(prefix)
    weights = {}
    for key, uploaded in upload.tensors.items():
        tuned = tensors[own_prefix + key]
        both = uploaded.is_floating_point() and tuned.is_floating_point()
        weights[upload.prefix + key] = tuned.to(uploaded.dtype) if both else tuned
    return weights


def _rounded_to(tensors: Mapping[str, Tensor], files: Mapping[str, Tensor], prefix: str) -> str | None:
    narrower = [
        file.dtype
        for name, file in files.items()
        if file.is_floating_point()
        and file.element_size() < tensors[name.removeprefix(prefix)].element_size()
    ]
    return str(narrower[0]).removeprefix("torch.") if narrower else None


def _of_labels(source: Source) -> dict[str, Any]:
    """How much was labelled, and by whom."""
    failures = source.own("failures")
    assert failures is not None  # stored before the first task
    counting = source.labels(up_to=source.run.last_annotation)
    answers = [event for event in counting if event.region_id != SINGLE_MISTAKES]
    return {
        "n_regions": len(failures[0]["tune.ids"].unique()),
        "n_labelled": len(failures[1]["verdicts"]),
        "n_answers": len(answers),
        "simulated": all(event.annotator.startswith(SIMULATED_PREFIX) for event in answers),
    }


def _by_region(source: Source, task: str) -> list[RegionRow]:
    """Accuracy by region, before and after; empty if the run did not measure it before."""
    before, after, failures = source.own(BEFORE + SAID), source.own(task + SAID), source.own("failures")
    if before is None or after is None or failures is None:
        return []
    run = source.run
    edits = source.workspace.annotations.edits(source.upstream("distill").id, up_to=run.last_annotation)
    names, classes = region_edits.names(edits), source.workspace.project(run.project_id).class_names
    rows = []
    for part, measured in (("test", "region"), ("held_out", "held_out")):
        labels, ids = failures[0][f"{part}.labels"], failures[0][f"{part}.ids"]
        for region_id in ids.unique().tolist():
            mine = torch.nonzero(ids == region_id)[:, 0]
            scores = [
                Interval.wilson(int((said[0][measured][mine] == labels[mine]).sum()), len(mine))
                for said in (before, after)
            ]
            label = classes[int(labels[mine[0]])]
            rows.append(RegionRow(region_id, names.get(region_id, ""), label, *scores))
    return rows


def _metadata(card: Card) -> dict[str, Any]:
    scores = ("test", "validation", "region", "held_out")
    return {
        "format": FORMAT,
        "version": VERSION,
        "defuse_version": card.version,
        "architecture": card.architecture,
        "preprocessing": asdict(card.preprocessing),
        "n_classes": len(card.class_names),
        "class_names": list(card.class_names),
        "project": card.project,
        "run": card.run,
        "task": card.task,
        "lam": card.point["lam"],
        "epoch": card.point["epoch"],
        "accuracy": {name: card.point[name] for name in scores if name in card.point},
    }
