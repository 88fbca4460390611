"""Replay a run from its manifest, with all runs that it stands on, in a project of its own.

Every step is submitted with its config and seed, on the replays of the runs that it stood on; labels and
edits come from the manifest. A replay that was stopped is resumed; one that is done is only looked up.

`bringing` finds what a manifest does not hold, and guards against manifests of strangers. No cluster that
a manifest names is called: everything computes on this machine. Imports no torch.
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
from defuse_core.jobs.ensure import ensure, find_run
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.manifest.models import MadeRun, Manifest
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Project, Workspace

_CHUNK = 2**20

Watch = Callable[[Run], Run]
"""Follows a live run to its end and returns it as it is then."""


@dataclass(frozen=True)
class Replay:
    """The replayed runs, in the order of the manifest; after an early stop the last one is not done."""

    project: Project
    runs: tuple[Run, ...]

    @property
    def done(self) -> bool:
        """Whether all of them are done."""
        return all(run.status == "done" for run in self.runs)


def replay(
    workspace: Workspace, manifest: Manifest, *, name: str, watch: Watch, bring: Bring | None = None
) -> Replay:
    """Replay the runs of a manifest, or resume a replay that was stopped.

    Parameters
    ----------
    workspace : Workspace
    manifest : Manifest
    name : str
        Of the new project, or of the replay to resume.
    watch : callable
        Called with every run that is live.
    bring : Bring, optional
        What the manifest names but does not hold.

    Returns
    -------
    Replay
        It ends at the first run that does not become done.

    Raises
    ------
    WorkspaceError
        If data, an upload or a consent is missing, the data differ, or the project of this name is no
        replay of this manifest.
    DataError
        If the data set cannot be read.
    ConfigError
        If the device or the threads are refused.
    """
    bring = bring or Bring()
    check_consent(manifest, bring)
    uploads = find_uploads(workspace, manifest, bring.checkpoints)
    find_more_data(manifest, bring.more_data)  # raises before anything is created
    for made in manifest.runs:
        launcher.probe(resources_of(made, bring))
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
    """The project of the replay; created on the data of the manifest if it does not exist."""
    known = {project.name: project for project in workspace.projects()}
    if (project := known.get(name.strip())) is not None:
        if project.created_at <= manifest.made_at:
            raise WorkspaceError(f"project {name!r} is older than the manifest; give another --name")
        return _check_data(project, manifest, f"project {name!r} is no replay of it; give another --name")
    from defuse_core.workspace.projects import new_project  # torch: slow to import

    place = find_source(workspace, manifest, data)
    project = new_project(
        workspace, name, place.source, reading=place.reading,
        upload_name=next((u.name for u in manifest.uploads if f"blob:{u.sha256}" == place.source), ""),
    )  # fmt: skip
    try:
        return _check_data(project, manifest, "give the same data by --data")
    except WorkspaceError:
        workspace.delete_project(project.id)
        raise


def _check_data(project: Project, manifest: Manifest, remedy: str) -> Project:
    """Return the project; its data must be those of the manifest."""
    was, now = manifest.dataset.model_dump(mode="json"), project.dataset
    changes = [
        f"{words} {was[name]} there, {now[name]} here"
        for name, words in (("sizes", "images"), ("image_shape", "shape"), ("class_names", "classes"))
        if was[name] != now[name]
    ]
    if not changes and was["fingerprint"] == now["fingerprint"]:
        return project
    changes = changes or ["same numbers, shapes and classes, but other pixels or labels"]
    raise WorkspaceError(f"{now['source']} is not the manifest's data set ({'; '.join(changes)}); {remedy}")


def _begin(
    workspace: Workspace,
    project: Project,
    manifest: Manifest,
    position: int,
    runs: Sequence[Run],
    bring: Bring,
) -> Run:
    """The run at a position: looked up, resumed, or submitted on those before it."""
    original = manifest.runs[position]
    config = _config(workspace, manifest, original, runs, bring)
    upstream = [runs[other] for other in original.stands_on]
    run = find_run(workspace, project.id, original.step, config, seed=original.seed, upstream=upstream)
    newest = launcher.find_upstream(workspace, project.id, original.step, config) if run is None else {}
    if not {each.id for each in newest.values()} <= {each.id for each in runs}:
        raise WorkspaceError(
            f"project {project.name!r} has runs of its own, on which {original.step} would stand; "
            "give another --name"
        )
    return ensure(
        workspace, project.id, original.step, config, seed=original.seed, upstream=upstream,
        resources=resources_of(original, bring),
    )  # fmt: skip


def _config(
    workspace: Workspace, manifest: Manifest, original: MadeRun, runs: Sequence[Run], bring: Bring
) -> dict[str, Any]:
    """The config of a run, with the runs, answers and paths of this workspace."""
    config = {**original.config}
    if original.starts_from is not None:
        config["weights"] = f"corrected:{runs[original.starts_from].id}"
    if config.get("code_path"):
        config["code_path"] = str(Path(bring.code_path or "").resolve())
    if config.get("more_data"):
        config["more_data"] = find_more_data(manifest, bring.more_data)[config["more_data"]]
    if original.step == "correct":
        (regions,) = original.stands_on
        log = next(log for log in manifest.logs if log.regions == regions)
        config["last_annotation"] = store_log(workspace, runs[regions].id, log)
    return config


def resources_of(made: MadeRun, bring: Bring) -> Resources:
    """Return where a run must compute to give the same numbers; a run of a cluster computes here.

    Parameters
    ----------
    made : MadeRun
        The run in the manifest.
    bring : Bring
        Its device and threads come first, where the user states them.
    """
    local = made.resources.engine == "local"
    threads = made.found.threads if local else max(1, round(made.resources.cpus))
    device = made.found.device.get("device") if local else "auto" if made.resources.gpus else "cpu"
    return Resources(
        device=bring.device or str(device or made.resources.device),
        threads=threads if bring.threads is None else bring.threads,
    )
