"""Create projects from data sets: the data is read once, checked, and identified by its fingerprint."""

from __future__ import annotations

from pathlib import Path

from defuse_core.data.facts import dataset_facts
from defuse_core.data.naming import Validation, absolute_source
from defuse_core.data.notes import dataset_notes
from defuse_core.data.reading import Reading
from defuse_core.data.sources import read_source, read_upload
from defuse_core.data.splits import DataError, ImageDataset
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.workspace import Blob, Project, Workspace


def new_project(
    workspace: Workspace,
    name: str,
    source: str,
    *,
    image_size: int | None = None,
    validation: Validation | None = None,
    reading: Reading | None = None,
    upload_name: str = "",
) -> Project:
    """Create a project on a data set.

    Parameters
    ----------
    workspace : Workspace
    name : str
    source : str
        As `data.sources.load_dataset` takes it, or blob:<sha256>, an .npz stored by `Workspace.store_upload`.
    image_size, validation
        As in `Reading`.
    reading : Reading, optional
        How the data set is read, in place of those two.
    upload_name : str
        What the user called the upload.

    Raises
    ------
    DataError
        If the data set cannot be used.
    WorkspaceError
        If the name is taken or malformed.
    """
    reading = reading or Reading(image_size, validation=validation)
    source, upload, dataset = open_source(workspace, source, reading, upload_name=upload_name)
    notes = dataset_notes(dataset)
    return workspace.create_project(
        name,
        dataset={
            "source": source,
            **reading.remembered(),
            **dataset_facts(dataset),
            **({"notes": notes} if notes else {}),
        },
        upload=upload,
    )


def open_source(
    workspace: Workspace, source: str, reading: Reading, *, upload_name: str = ""
) -> tuple[str, Blob | None, ImageDataset]:
    """Read a data set that no project is on yet.

    Parameters
    ----------
    workspace, source, reading, upload_name
        As `new_project` takes them.

    Returns
    -------
    source : str
        With absolute paths.
    upload : Blob or None
    dataset : ImageDataset
    """
    if not source.startswith("blob:"):
        source = absolute_source(source)
        return source, None, read_source(source, reading)
    upload = _find_upload(workspace, source.removeprefix("blob:"), upload_name or "upload.npz")
    return source, upload, _load_upload(workspace, upload, reading)


def _find_upload(workspace: Workspace, sha256: str, name: str) -> Blob:
    path = workspace.home / "blobs" / Path(sha256).name
    if not path.is_file():
        raise WorkspaceError(f"{name} is no longer stored; upload it again")
    return Blob(sha256, name, path.stat().st_size)


def _load_upload(workspace: Workspace, upload: Blob, reading: Reading) -> ImageDataset:
    path = workspace.home / "blobs" / upload.sha256
    try:
        return read_upload(path, reading)
    except DataError as error:
        # The data set's name is that of its file.
        message = str(error).replace(f"{path}: {upload.sha256}", upload.name)
        raise DataError(message.replace(str(path), upload.name).replace(upload.sha256, upload.name)) from None
