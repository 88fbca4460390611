"""A run made again from its manifest, with all it stands on, in a project of its own.

Every step is submitted with its config and seed on the runs that stand where those of the manifest
stood; labels and edits come from the manifest. A replay that was stopped goes on where it was, and one
that is done is found done.

What a manifest does not hold, and what may be done with one of a stranger, is in `bringing`. No
cluster that it names is called: everything computes here. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defuse_core.exchange.replay.bringing import (
    Bring,
    check_consent,
    find_more_data,
    find_source,
    find_uploads,
)
from defuse_core.exchange.replay.relabeling import store_log
from defuse_core.jobs import launcher
from defuse_core.workspace.configs import check_config
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.manifest.models import MadeRun, Manifest
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Project, Workspace

_CHUNK = 2**20

Watch = Callable[[Run], Run]
"""Follows a live run to its end and returns it as it is then."""


@dataclass(frozen=True)
class Replay:
    """The runs made again, in the order of the manifest; the last is not done where it stopped there."""

    project: Project
    runs: tuple[Run, ...]

    @property
    def done(self) -> bool:
        """Whether all of them are done."""
        return all(run.status == "done" for run in self.runs)


def replay(
    workspace: Workspace, manifest: Manifest, *, name: str, watch: Watch, bring: Bring | None = None
) -> Replay:
    """Make the runs of a manifest again, or what is missing of a replay that was stopped.

    Parameters
    ----------
    workspace : Workspace
    manifest : Manifest
    name : str
        Of the project to make, or of the replay to go on with.
    watch : callable
        Called with every run that is live.
    bring : Bring, optional
        What the manifest names and does not hold.

    Returns
    -------
    Replay
        It ends with the first run that does not end as done.

    Raises
    ------
    WorkspaceError
        If data, an upload or a consent is missing, the data are others, or the project of this name is
        no replay of this manifest.
    DataError
        If the data set cannot be read.
    """
    bring = bring or Bring()
    check_consent(manifest, bring)
    uploads = find_uploads(workspace, manifest, bring.checkpoints)
    find_more_data(manifest, bring.more_data)  # what is missing is told before anything is made
    project = _open_project(workspace, manifest, name, bring.data)
    stored = {blob.sha256 for blob in workspace.blobs(project.id)}
    for upload, path in uploads.items():
        if upload.sha256 not in stored:
            workspace.add_blob(project.id, upload.name, _chunks(path))
    runs: list[Run] = []
    for position in range(len(manifest.runs)):
        run = _begin(workspace, project, manifest, position, runs, bring)
        runs.append(watch(run) if run.live else run)
        if runs[-1].status != "done":
            break
    return Replay(project, tuple(runs))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _open_project(workspace: Workspace, manifest: Manifest, name: str, data: str | None) -> Project:
    """The project of the replay, created on the data of the manifest where it does not exist."""
    known = {project.name: project for project in workspace.projects()}
    if (project := known.get(name.strip())) is not None:
        if project.created_at <= manifest.made_at:
            raise WorkspaceError(f"project {name!r} is older than the manifest; give another --name")
        return _check_data(project, manifest, f"project {name!r} is no replay of it; give another --name")
    from defuse_core.workspace.projects import new_project  # torch: slow to import

    found = find_source(workspace, manifest, data)
    project = new_project(
        workspace, name, found.source, image_size=found.image_size, validation_share=found.validation_share,
        upload_name=next((u.name for u in manifest.uploads if f"blob:{u.sha256}" == found.source), ""),
    )  # fmt: skip
    try:
        return _check_data(project, manifest, "give the same data by --data")
    except WorkspaceError:
        workspace.delete_project(project.id)
        raise


def _check_data(project: Project, manifest: Manifest, remedy: str) -> Project:
    """The project, whose data are to be those of the manifest."""
    was, now = manifest.dataset.model_dump(mode="json"), project.dataset
    if was["fingerprint"] == now["fingerprint"]:
        return project
    told = [
        f"{words} {was[name]} there, {now[name]} here"
        for name, words in (("sizes", "images"), ("image_shape", "shape"), ("class_names", "classes"))
        if was[name] != now[name]
    ]
    told = told or ["same numbers, shapes and classes, but other pixels or labels"]
    raise WorkspaceError(f"{now['source']} is not the manifest's data set ({'; '.join(told)}); {remedy}")


def _begin(
    workspace: Workspace,
    project: Project,
    manifest: Manifest,
    position: int,
    runs: Sequence[Run],
    bring: Bring,
) -> Run:
    """The run at a position: found, gone on with, or submitted on those before it."""
    made = manifest.runs[position]
    config = _config(workspace, manifest, made, runs, bring)
    resources = resources_of(made, bring)
    wanted = check_config(made.step, config).model_dump(mode="json")
    ids = {runs[other].id for other in made.stands_on}
    found = [
        run
        for run in workspace.runs.of_project(project.id, made.step)
        if run.config == wanted and run.seed == made.seed and set(run.upstream) == ids
    ]
    if found and (found[-1].live or found[-1].status == "done"):
        return found[-1]
    if found:
        return launcher.resume(workspace, found[-1].id, resources=resources)
    newest = launcher.find_upstream(workspace, project.id, made.step)
    if {run.id for run in newest.values()} != ids:
        raise WorkspaceError(
            f"project {project.name!r} has runs of its own, on which {made.step} would stand; "
            "give another --name"
        )
    return launcher.submit(workspace, project.id, made.step, wanted, seed=made.seed, resources=resources)


def _config(
    workspace: Workspace, manifest: Manifest, made: MadeRun, runs: Sequence[Run], bring: Bring
) -> dict[str, Any]:
    """The config of a run, with the runs, answers and paths of this workspace."""
    config = {**made.config}
    if made.starts_from is not None:
        config["weights"] = f"corrected:{runs[made.starts_from].id}"
    if config.get("code_path"):
        config["code_path"] = str(Path(bring.code_path or "").resolve())
    if config.get("more_data"):
        config["more_data"] = find_more_data(manifest, bring.more_data)[config["more_data"]]
    if made.step == "correct":
        (regions,) = made.stands_on
        log = next(log for log in manifest.logs if log.regions == regions)
        config["last_annotation"] = store_log(workspace, runs[regions].id, log)
    return config


def resources_of(made: MadeRun, bring: Bring) -> Resources:
    """Where a run computes that is to give the same numbers; what ran on a cluster runs here."""
    local = made.resources.engine == "local"
    threads = made.found.threads if local else max(1, round(made.resources.cpus))
    device = made.found.device.get("device") if local else "auto" if made.resources.gpus else "cpu"
    return Resources(
        device=bring.device or str(device or made.resources.device),
        threads=threads if bring.threads is None else bring.threads,
    )
