"""Check the rows of an archive against each other and against its files, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator

from defuse_core.base.limits import MAX_RUNS, MAX_SOURCE
from defuse_core.base.texts import quote, texts
from defuse_core.exchange.archive.reading import Archive
from defuse_core.exchange.archive.rows import TABLES, AnnotationRow, ArtifactRow, BlobRow, RunRow
from defuse_core.workspace.config_checks import ConfigError, check_config
from defuse_core.workspace.edits import fit_fault
from defuse_core.workspace.label_rules import bounds_fault, count_mistakes


def check_rows(archive: Archive) -> tuple[int, int]:
    """Check every row, and the references between rows; return how many runs and label events there are.

    Raises
    ------
    WorkspaceError
        At the first fault; the message says where it is.
    """
    n_labels, n_runs = _check_labels(archive), 0
    for number, run in enumerate(archive.rows("runs", RunRow), 1):
        if number > MAX_RUNS:
            raise archive.error(f"it has over {MAX_RUNS:,} runs, which no export has")
        if any(len(text) > MAX_SOURCE for text in texts(run.config)):
            raise archive.error(f"run {number}: its config has a text of over {MAX_SOURCE:,} characters")
        if len(set(run.inputs)) < len(run.inputs) or any(above >= number for above in run.inputs):
            raise archive.error(f"run {number} cannot stand on {run.inputs[:10]}")
        if (run.last_annotation or 0) > n_labels:
            raise archive.error(f"run {number} took in labels that are not there")
        try:
            check_config(run.step, run.config)
        except ConfigError as error:
            raise archive.error(f"run {number}: {quote(error, 300)}") from None
        n_runs = number
    named = {f"rows/{table}.jsonl" for table in TABLES}
    named |= {f"runs/{number}/log.txt" for number in range(1, n_runs + 1)} & archive.manifest.members.keys()
    for name, sha256, size in _named(archive):
        member = archive.manifest.members.get(name)
        if member is None or (member.sha256, member.size) != (sha256, size) or name in named:
            raise archive.error(f"{name} is missing, named twice, or not what its row says")
        named.add(name)
    if odd := archive.manifest.members.keys() - named:
        raise archive.error(f"no row names {quote(min(odd))}")
    source = archive.manifest.project.dataset.source
    if source.startswith("blob:") and f"blobs/{source.removeprefix('blob:')}" not in named:
        raise archive.error("the data set is not among the uploads")
    _check_references(archive, n_runs)
    _check_edits(archive)
    return n_runs, n_labels


def _check_labels(archive: Archive) -> int:
    """Refuse answers that cannot be judged; return how many label events there are."""
    n_labels, n_classes = 0, len(archive.manifest.project.dataset.class_names)
    found: dict[int, int | None] = {}  # mistakes, by the run of the search
    n_mistakes: dict[int, int | None] = {}  # by the run of the regions
    for number, run in enumerate(archive.rows("runs", RunRow), 1):
        if run.step == "identify":
            found[number] = count_mistakes(run.record.get("summary") or {})  # type: ignore[arg-type]
        elif run.step == "distill":
            n_mistakes[number] = next((found[above] for above in run.inputs if above in found), None)
    for number, row in enumerate(archive.rows("annotations", AnnotationRow), 1):
        fault = bounds_fault(row, n_classes=n_classes, n_mistakes=n_mistakes.get(row.run))
        if row.edit is None and fault:
            raise archive.error(f"rows/annotations.jsonl, line {number}: {fault}")
        n_labels = number
    return n_labels


def _named(archive: Archive) -> Iterator[tuple[str, str, int]]:
    """Members that rows name: name, SHA-256, size."""
    for blob in archive.rows("blobs", BlobRow):
        yield f"blobs/{blob.sha256}", blob.sha256, blob.size
    for row in archive.rows("artifacts", ArtifactRow):
        yield f"runs/{row.run}/{row.name}", row.sha256, row.size


def _check_edits(archive: Archive) -> None:
    """Compare the edits of regions with the mixture that they edit, where the archive holds it."""
    edited = {row.run for row in archive.rows("annotations", AnnotationRow) if row.edit is not None}
    shapes = {run: shape for run in edited if (shape := _mixture_shape(archive, run)) is not None}
    for number, row in enumerate(archive.rows("annotations", AnnotationRow), 1):
        if row.edit is None or row.undoes is not None or row.run not in shapes:
            continue
        n_components, latent_dim = shapes[row.run]
        removed, added = row.edit.regions, row.edit.into
        if fault := fit_fault(removed, added, n_components=n_components, latent_dim=latent_dim):
            raise archive.error(f"rows/annotations.jsonl, line {number}: the edit of regions: {fault}")
        shapes[row.run] = n_components + len(added), latent_dim


def _mixture_shape(archive: Archive, run: int) -> tuple[int, int] | None:
    """(n_components, latent_dim) of the mixture of a distill run; None where the archive has none."""
    name = f"runs/{run}/mixture.safetensors"
    if name not in archive.manifest.members:
        return None
    head = next(archive.chunks(name), b"")  # 8 bytes: the length of the header; then the header
    length = int.from_bytes(head[:8], "little")
    try:
        n_components, latent_dim = json.loads(head[8 : 8 + length])["means"]["shape"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise archive.error(f"{name} is no mixture") from None
    if not (type(n_components) is type(latent_dim) is int):
        raise archive.error(f"{name} is no mixture")
    return n_components, latent_dim


def _check_references(archive: Archive, n_runs: int) -> None:
    for table in ("tasks", "events", "artifacts", "annotations"):
        for number, row in enumerate(archive.rows(table, TABLES[table]), 1):
            where = f"rows/{table}.jsonl, line {number}"
            run: int = getattr(row, "run")  # noqa: B009
            if run > n_runs:
                raise archive.error(f"{where}: there is no run {run}")
            if isinstance(row, AnnotationRow) and (row.undoes or 0) >= number:
                raise archive.error(f"{where}: it undoes what comes after it")
