"""Store the labels and edits of a manifest, in order, under ids of this workspace. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import Gaussian, RegionEdit
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.manifest.models import Answer, Edit, Entry, Log, UndoneEdit
from defuse_core.workspace.manifest.writing import read_log
from defuse_core.workspace.workspace import Workspace


def store_log(workspace: Workspace, regions_id: int, log: Log) -> int | None:
    """Store the labels and edits of a log, except those that the regions have already.

    Keys stay; the time of an answer becomes that of storing it here.

    Parameters
    ----------
    workspace : Workspace
    regions_id : int
        The distill run here whose regions they are about.
    log : Log

    Returns
    -------
    int or None
        Id of the last entry: labels up to it count. None if the log is empty.

    Raises
    ------
    WorkspaceError
        If the regions have other labels already, or an entry cannot be stored.
    """
    entries, ids = read_log(workspace, regions_id)
    stored = Log(regions=log.regions, entries=tuple(entries)).entries
    n = min(len(stored), len(log.entries))
    if [_untimed(e) for e in stored[:n]] != [_untimed(e) for e in log.entries[:n]]:
        raise WorkspaceError(
            f"the regions of run {regions_id} have labels or edits that the manifest does not have; "
            "give another --name"
        )
    answers: list[LabelEvent] = []
    for entry in log.entries[n:]:
        if isinstance(entry, Answer) and entry.undoes is None:
            answers.append(_event(entry))  # thousands, in one transaction
            continue
        ids += workspace.annotations.append(regions_id, answers)
        answers = []
        ids.append(_store(workspace, regions_id, entry, ids))
    ids += workspace.annotations.append(regions_id, answers)
    if read_log(workspace, regions_id)[1][: len(ids)] != ids:
        raise WorkspaceError("the manifest has two answers of the same key; write it again: defuse manifest")
    return ids[len(log.entries) - 1] if log.entries else None


def _store(workspace: Workspace, regions_id: int, entry: Entry, ids: Sequence[int]) -> int:
    """Store an undo or an edit; return its id."""
    if isinstance(entry, Answer):
        undone = ids[entry.undoes] if entry.undoes is not None else None
        return workspace.annotations.append(regions_id, [_event(entry, undoes=undone)])[0]
    if isinstance(entry, Edit):
        return workspace.annotations.edit(regions_id, _edit(entry))
    taken_back = workspace.annotations.undo_edit(regions_id)
    if taken_back is None or taken_back.id != ids[entry.undoes]:
        raise WorkspaceError(
            "the manifest takes edits back in an order that cannot be; write it again: defuse manifest"
        )
    return workspace.annotations.last_id(regions_id)


def _event(answer: Answer, *, undoes: int | None = None) -> LabelEvent:
    return LabelEvent(**{**answer.model_dump(exclude={"kind", "at"}), "undoes": undoes})


def _edit(entry: Edit) -> RegionEdit:
    into = tuple(Gaussian(**placed.model_dump()) for placed in entry.into)
    fields = entry.model_dump(include={"regions", "mistakes", "name", "tau", "by"})
    return RegionEdit(entry.edit, into=into, **fields)


def _untimed(entry: Entry) -> Entry:
    """The entry without when it was stored."""
    return entry if isinstance(entry, UndoneEdit) else entry.model_copy(update={"at": 0.0})
