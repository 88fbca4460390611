"""Write the manifest of a run from a workspace.

`replay` repeats a run from it. It holds only what the result stands on, so no maps, no probes, and no
runs that were redone. It holds the answers of simulated annotators, and, of those whom a later step
asked again, the run that trained them. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from defuse_core.base.limits import MAX_HEADER_BYTES, MAX_REGION_NAME
from defuse_core.base.texts import quote
from defuse_core.data.class_names import mend_key
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import RegionEdit
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.manifest.models import (
    FORMAT,
    VERSION,
    DataSet,
    Entry,
    MadeStep,
    Manifest,
    uploads_of,
)
from defuse_core.workspace.results import load_results
from defuse_core.workspace.runs import Artifact, Run
from defuse_core.workspace.workspace import Project, Workspace

RESULTS = "results.json"

OWN = frozenset({"seconds", "last_annotation", "code_path", "more_data"})
"""Keys whose values belong to one workspace: `compared` leaves them out."""

_LIBRARIES = ("defuse", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors")
_CHUNK = 2**20


def make_manifest(workspace: Workspace, run_id: int) -> dict[str, Any]:
    """Return everything that made a run, and all it stands on, as values for JSON.

    Parameters
    ----------
    workspace : Workspace
    run_id : int
        A run of a step in `MadeStep`, done or live. The results of a live one, such as the report that
        will hold the manifest, are left open.

    Returns
    -------
    dict
        The fields of `Manifest`. It holds paths of data and names of annotators.

    Raises
    ------
    WorkspaceError
        If the run is of another step, or one that it stands on is not done, or a file is gone.
    """
    target = workspace.runs.get(run_id)
    if target.step not in get_args(MadeStep):
        raise WorkspaceError(
            f"run {run_id} is of step {target.step}; a manifest is of {', '.join(get_args(MadeStep))}"
        )
    runs = _in_order(workspace, target)
    for run in runs.values():
        if run.status != "done" and not (run.id == run_id and run.live):
            raise WorkspaceError(
                f"{run.step} (run {run.id}) is {run.status}; resume it: defuse resume {run.id}"
            )
    project = workspace.project(target.project_id)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "made_at": round(time.time(), 3),
        "versions": library_versions(),
        "machine": machine(),
        "project": project.name,
        "dataset": {name: project.dataset.get(name) for name in DataSet.model_fields},
        "uploads": _uploads(workspace, project, list(runs.values())),
        "runs": [_made(workspace, run, runs) for run in runs.values()],
        "logs": [_log(workspace, run, runs) for run in runs.values() if run.step == "correct"],
    }
    try:
        checked = Manifest.model_validate(_finite(manifest))
    except ValidationError as error:
        told = error.errors(include_url=False, include_input=False, include_context=False)[0]["msg"]
        raise WorkspaceError(
            f"run {run_id} or what it stands on is damaged ({quote(told)}); run the steps again"
        ) from None
    logs = [
        {**log.model_dump(mode="json"), "entries": [_short(entry) for entry in log.entries]}
        for log in checked.logs
    ]
    return {**checked.model_dump(mode="json"), "logs": logs}


def read_log(
    workspace: Workspace, regions_id: int, *, up_to: int | None = None
) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the answers about the regions of a distill run and their edits, in order, and the ids of these.

    Parameters
    ----------
    workspace : Workspace
    regions_id : int
        The distill run.
    up_to : int, optional
        Id of the last event to return; by default all.

    Returns
    -------
    entries : list of dict
        As the models `Answer`, `Edit` and `UndoneEdit` take them.
    ids : list of int
        Of the entries, in this workspace.
    """
    answers = workspace.annotations.events(regions_id, up_to=up_to)
    edits = workspace.annotations.edits(regions_id, up_to=up_to)
    undone = {edit.undone_by: edit.id for edit in edits if edit.undone}
    rows: dict[int, LabelEvent | RegionEdit | int] = {**undone}
    rows |= {answer.id: answer for answer in answers}
    rows |= {edit.id: edit for edit in edits}
    ids = sorted(rows)
    places = {id_: position for position, id_ in enumerate(ids)}
    return [_entry(rows[id_], places) for id_ in ids], ids


def tensors_digest(path: Path) -> str | None:
    """Return a digest of a safetensors file, of its metadata only what is `compared`.

    The SHA-256 of the file would not do: the order of its metadata changes from process to process.
    None for a file that is not complete.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER_BYTES, path.stat().st_size):
            return None
        try:
            header = json.loads(file.read(length))
            metadata = {key: _parsed(text) for key, text in header.pop("__metadata__", {}).items()}
        except (ValueError, RecursionError, AttributeError):
            return None
        content = [header, compared(metadata)]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def compared(value: Any) -> Any:
    """Return a value of JSON without what belongs to one workspace: times, paths, numbers of runs.

    Numbers that JSON does not have become null.

    Examples
    --------
    >>> compared({"weights": "corrected:12", "seconds": 3, "loss": float("nan")})
    {'weights': 'corrected', 'loss': None}
    """
    if isinstance(value, Mapping):
        return {key: compared(inner) for key, inner in value.items() if key not in OWN}
    if isinstance(value, list | tuple):
        return [compared(inner) for inner in value]
    if isinstance(value, str) and re.fullmatch(r"corrected:\d+", value):
        return "corrected"
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_results(workspace: Workspace, run: Run) -> dict[str, Any] | None:
    """Return results.json of a run; None where there is none, or its summary holds it.

    Parameters
    ----------
    workspace : Workspace
    run : Run
    """
    if RESULTS not in workspace.runs.artifacts(run.id) or "results" in run.summary:
        return None
    results: dict[str, Any] = load_results(workspace.artifact_path(run.id, RESULTS), run.id)
    return results


def library_versions() -> dict[str, str]:
    """Return the versions of Defuse, Python, and the libraries that results depend on."""
    return {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()}


def machine() -> dict[str, Any]:
    """Return system, processor and number of cores; nothing that names the machine."""
    return {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}


def corrected_by(config: Mapping[str, Any]) -> int | None:
    """Return the number of the correct run whose classifier a config begins with.

    Examples
    --------
    >>> corrected_by({"weights": "corrected:12"}), corrected_by({"weights": "shipped:demo-classifier"})
    (12, None)
    """
    match = re.fullmatch(r"corrected:(\d{1,18})", str(config.get("weights") or ""))
    return int(match[1]) if match else None


def _in_order(workspace: Workspace, target: Run) -> dict[int, Run]:
    """The run and all it stands on, each after what it stands on; earlier rounds included."""
    by_id = {run.id: run for run in workspace.runs.of_project(target.project_id)}
    ordered: dict[int, Run] = {}
    waiting = [target.id]
    while waiting:
        current = by_id.get(waiting[-1])
        if current is None:
            raise WorkspaceError(f"the project has no run {waiting[-1]}, which run {target.id} begins with")
        first = corrected_by(current.config)
        below = [*([] if first is None else [first]), *_needed(current, by_id)]
        if late := next((other for other in below if other >= current.id), None):
            raise WorkspaceError(
                f"run {current.id} stands on run {late}, which is not before it; run the step again"
            )
        if missing := [other for other in below if other not in ordered]:
            waiting += reversed(missing)
            continue
        ordered.setdefault(current.id, current)
        waiting.pop()
    return ordered


def _needed(run: Run, by_id: Mapping[int, Run]) -> list[int]:
    """Ids of the runs that this one stands on directly, of steps in a manifest."""
    return [other for other in run.upstream if by_id[other].step in get_args(MadeStep)]


def _made(workspace: Workspace, run: Run, runs: Mapping[int, Run]) -> dict[str, Any]:
    """One run, as `MadeRun` takes it."""
    places = {id_: position for position, id_ in enumerate(runs)}
    first, record = corrected_by(run.config), run.record
    numbered = {"weights": None} if first is not None else {}
    if run.step == "correct":
        numbered["last_annotation"] = None
    return {
        "number": run.id,
        "step": run.step,
        "config": {**run.config, **numbered},
        "seed": run.seed,
        "resources": {name: value for name, value in vars(run.resources).items() if name != "address"},
        "stands_on": [places[other] for other in _needed(run, runs)],
        "starts_from": None if first is None else places[first],
        "done": run.status == "done",
        "stale": run.stale,
        "found": {
            **{name: record[name] for name in ("versions", "machine", "threads") if name in record},
            "device": {name: v for name, v in record.get("device", {}).items() if name != "address"},
        },
        "seconds": round(run.seconds, 3),
        "summary": run.summary,
        "results": read_results(workspace, run),
        "files": [_file(workspace, run, artifact) for artifact in workspace.runs.artifacts(run.id).values()],
    }


def _file(workspace: Workspace, run: Run, artifact: Artifact) -> dict[str, Any]:
    is_tensors = artifact.name.endswith(".safetensors")
    path = workspace.artifact_path(run.id, artifact.name)
    return {**asdict(artifact), "content": tensors_digest(path) if is_tensors else None}


def _uploads(workspace: Workspace, project: Project, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The uploads that data or weights come from, or that training began with."""
    data = str(project.dataset["source"]).removeprefix("blob:")
    named = {data}.union(*(uploads_of(run.config) for run in runs))
    return [asdict(blob) for blob in workspace.blobs(project.id) if blob.sha256 in named]


def _log(workspace: Workspace, correction: Run, runs: Mapping[int, Run]) -> dict[str, Any]:
    """The answers and edits that a correction used, as `Log` takes them."""
    (regions_id,) = correction.upstream
    began = correction.started_at or 0.0
    simulated = [
        {"config": run.config, "seed": run.seed}
        for run in workspace.runs.of_project(correction.project_id, "annotate")
        if regions_id in run.upstream and run.status == "done" and (run.finished_at or 0.0) <= began
    ]
    entries, _ = read_log(workspace, regions_id, up_to=correction.last_annotation)
    return {"regions": list(runs).index(regions_id), "simulated": simulated, "entries": entries}


def _entry(row: LabelEvent | RegionEdit | int, places: Mapping[int, int]) -> dict[str, Any]:
    if isinstance(row, int):
        return {"kind": "edit undone", "undoes": places[row]}
    values = {name: value for name, value in asdict(row).items() if name != "id"}
    if isinstance(row, RegionEdit):
        values["name"] = row.name[:MAX_REGION_NAME]
        names = ("regions", "into", "mistakes", "name", "tau", "by", "at")
        return {"kind": "edit", "edit": row.kind, **{name: values[name] for name in names}}
    undoes = None if row.undoes is None else places[row.undoes]
    return {"kind": "answer", **values, "key": mend_key(row.key), "undoes": undoes}


def _short(entry: Entry) -> dict[str, Any]:
    """An entry without fields that have their default: there are thousands of entries."""
    return entry.model_dump(mode="json", exclude_defaults=True)


def _parsed(text: str) -> Any:
    """The value of a text of the metadata: ours is JSON, that of other programs may be plain."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _finite(value: Any) -> Any:
    """The value, with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
