"""Check the rows of an archive against each other and against its files, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from defuse_core.base.limits import MAX_RUNS, MAX_SOURCE
from defuse_core.base.texts import quote, texts
from defuse_core.exchange.archive.reading import Archive
from defuse_core.exchange.archive.rows import (
    NO_RUN,
    TABLES,
    AnnotationRow,
    ArtifactRow,
    BlobRow,
    RunRow,
)
from defuse_core.workspace.config_checks import ConfigError, check_config
from defuse_core.workspace.configs import STEPS
from defuse_core.workspace.edits import fit_fault
from defuse_core.workspace.label_rules import SINGLE_MISTAKES, bounds_fault, count_mistakes, found_regions
from defuse_core.workspace.manifest.writing import corrected_by

_ALSO: Mapping[str, tuple[str, ...]] = {"vae": ("classifier",)}
"""Steps that a run may stand on besides those that `STEPS` names, by its step."""


@dataclass(frozen=True)
class _Known:
    """What the checks need of an earlier run: the ids of its regions, and how many mistakes they are of."""

    step: str
    regions: frozenset[int]
    n_mistakes: int | None


def check_rows(archive: Archive) -> tuple[int, int]:
    """Check every row, and the references between rows; return how many runs and label events there are.

    Raises
    ------
    WorkspaceError
        At the first fault; the message says where it is.
    """
    runs, last_annotation = _check_runs(archive)
    n_labels = _check_annotations(archive, runs)
    if late := next((number for number, last in last_annotation.items() if last > n_labels), None):
        raise archive.error(f"run {late} took in labels that are not there")
    for table in ("tasks", "events", "artifacts"):
        for number, row in enumerate(archive.rows(table, TABLES[table]), 1):
            if (run := getattr(row, "run")) > len(runs):  # noqa: B009
                raise archive.error(f"rows/{table}.jsonl, line {number}: there is no run {run}")
    _check_members(archive, len(runs))
    return len(runs), n_labels


def _check_runs(archive: Archive) -> tuple[list[_Known], dict[int, int]]:
    """Check each run by itself and against those before it; return them, and the labels that they used."""
    runs: list[_Known] = []
    last_annotation: dict[int, int] = {}
    for number, run in enumerate(archive.rows("runs", RunRow), 1):
        if number > MAX_RUNS:
            raise archive.error(f"it has over {MAX_RUNS:,} runs, which no export has")
        if any(len(text) > MAX_SOURCE for text in texts(run.config)):
            raise archive.error(f"run {number}: its config has a text of over {MAX_SOURCE:,} characters")
        try:
            check_config(run.step, run.config)
        except ConfigError as error:
            raise archive.error(f"run {number}: {quote(error, 300)}") from None
        if fault := _standing_fault(run, number, runs):
            raise archive.error(f"run {number} ({run.step}) {fault}")
        if run.last_annotation is not None:
            last_annotation[number] = run.last_annotation
        summary = run.record.get("summary") or {}
        of_searches = (runs[above - 1] for above in run.inputs if runs[above - 1].step == "identify")
        n_mistakes = (
            count_mistakes(summary)  # type: ignore[arg-type]  # `RunRow` checked that it is an object
            if run.step == "identify"
            else next((search.n_mistakes for search in of_searches), None)
        )
        regions = found_regions(summary) if run.step == "distill" else frozenset()  # type: ignore[arg-type]
        runs.append(_Known(run.step, regions, n_mistakes))
    return runs, last_annotation


def _standing_fault(run: RunRow, number: int, before: Sequence[_Known]) -> str | None:
    """Say why a run cannot stand on its inputs, or begin with its weights; None where it can."""
    if len(set(run.inputs)) < len(run.inputs) or any(above >= number for above in run.inputs):
        return f"cannot stand on {run.inputs[:10]}"
    spec = STEPS[run.step]  # type: ignore[index]  # `check_config` knows the step
    steps = [before[above - 1].step for above in run.inputs]
    may = {*spec.optional, *_ALSO.get(run.step, ())}
    if sorted(steps) != sorted([*spec.needs, *({*steps} & may)]):
        told = ", ".join(steps[:10]) or "nothing"
        return f"stands on {told}, and should stand on {', '.join(spec.needs) or 'nothing'}"
    first = corrected_by(run.config)
    if first in (None, NO_RUN):
        return None
    if not first < number or before[first - 1].step != "correct":
        return f"begins with the classifier of run {first}, which is no correction before it"
    return None


def _check_annotations(archive: Archive, runs: Sequence[_Known]) -> int:
    """Check answers, undos and edits; return how many there are."""
    n_classes = len(archive.manifest.project.dataset.class_names)
    seen: list[tuple[int, bool, bool]] = []  # run, whether it is an edit, whether it is an undo
    made: dict[int, set[int]] = {}  # regions of edits, by run
    first_about: dict[tuple[int, int], int] = {}  # line, by run and region
    shapes: dict[int, tuple[int, int] | None] = {}  # of the mixtures that were edited, by run
    for number, row in enumerate(archive.rows("annotations", AnnotationRow), 1):
        where = f"rows/annotations.jsonl, line {number}"
        if row.run > len(runs):
            raise archive.error(f"{where}: there is no run {row.run}")
        seen.append((row.run, row.edit is not None, row.undoes is not None))
        if row.undoes is not None:
            if row.undoes >= number:
                raise archive.error(f"{where}: it undoes what comes after it")
            if seen[row.undoes - 1] != (row.run, row.edit is not None, False):
                raise archive.error(f"{where}: it undoes what is no answer or edit of its kind and run")
        if row.edit is None:
            fault = bounds_fault(row, n_classes=n_classes, n_mistakes=runs[row.run - 1].n_mistakes)
            if fault:
                raise archive.error(f"{where}: {fault}")
            first_about.setdefault((row.run, row.region_id), number)
        elif row.undoes is None:
            made.setdefault(row.run, set()).update(region.region_id for region in row.edit.into)
            if row.run not in shapes:
                shapes[row.run] = _mixture_shape(archive, row.run)
            shapes[row.run] = _after_edit(archive, row, shapes[row.run], where)
    for (run, region), line in first_about.items():
        if region not in {SINGLE_MISTAKES} | runs[run - 1].regions and region not in made.get(run, ()):
            raise archive.error(
                f"rows/annotations.jsonl, line {line}: there is no region {region} in run {run}"
            )
    return len(seen)


def _after_edit(
    archive: Archive, row: AnnotationRow, shape: tuple[int, int] | None, where: str
) -> tuple[int, int] | None:
    """Compare an edit of regions with the mixture that it edits; return the shape that it has then."""
    if shape is None or row.edit is None:
        return None
    n_components, latent_dim = shape
    removed, added = row.edit.regions, row.edit.into
    if fault := fit_fault(removed, added, n_components=n_components, latent_dim=latent_dim):
        raise archive.error(f"{where}: the edit of regions: {fault}")
    return n_components + len(added), latent_dim


def _check_members(archive: Archive, n_runs: int) -> None:
    """Compare the files of the archive with the rows that name them."""
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


def _named(archive: Archive) -> Iterator[tuple[str, str, int]]:
    """Members that rows name: name, SHA-256, size."""
    for blob in archive.rows("blobs", BlobRow):
        yield f"blobs/{blob.sha256}", blob.sha256, blob.size
    for row in archive.rows("artifacts", ArtifactRow):
        yield f"runs/{row.run}/{row.name}", row.sha256, row.size


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
