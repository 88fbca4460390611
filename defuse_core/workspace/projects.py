"""Create projects from data sets: the data is read once, checked, and identified by its fingerprint."""

from __future__ import annotations

from pathlib import Path

from defuse_core.data.facts import dataset_facts
from defuse_core.data.naming import Validation, absolute_source
from defuse_core.data.notes import dataset_notes
from defuse_core.data.sources import load_dataset, load_npz
from defuse_core.data.splits import DataError, ImageDataset, set_validation_apart
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.workspace import Blob, Project, Workspace


def new_project(
    workspace: Workspace,
    name: str,
    source: str,
    *,
    image_size: int | None = None,
    validation: Validation | None = None,
    upload_name: str = "",
) -> Project:
    """Create a project on a data set.

    Parameters
    ----------
    workspace : Workspace
    name : str
    source : str
        As `data.sources.load_dataset` takes it, or blob:<sha256>, an .npz stored by `Workspace.store_upload`.
    image_size : int, optional
        Resize folder and GTSRB images to this many pixels, square.
    validation : float or "from-test", optional
        Of the training images, as `data.set_validation_apart` takes it.
    upload_name : str
        What the user called the upload.

    Raises
    ------
    DataError
        If the data set cannot be used.
    WorkspaceError
        If the name is taken or malformed.
    """
    upload = None
    if source.startswith("blob:"):
        upload = _find_upload(workspace, source.removeprefix("blob:"), upload_name or "upload.npz")
        dataset = _load_upload(workspace, upload)
        if validation is not None:
            dataset = set_validation_apart(dataset, validation)
    else:
        source = absolute_source(source)
        dataset = load_dataset(source, image_size=image_size, validation=validation)
    notes = dataset_notes(dataset)
    return workspace.create_project(
        name,
        dataset={
            "source": source,
            "image_size": image_size,
            **({} if validation is None else {"validation": validation}),
            **dataset_facts(dataset),
            **({"notes": notes} if notes else {}),
        },
        upload=upload,
    )


def _find_upload(workspace: Workspace, sha256: str, name: str) -> Blob:
    path = workspace.home / "blobs" / Path(sha256).name
    if not path.is_file():
        raise WorkspaceError(f"{name} is no longer stored; upload it again")
    return Blob(sha256, name, path.stat().st_size)


def _load_upload(workspace: Workspace, upload: Blob) -> ImageDataset:
    path = workspace.home / "blobs" / upload.sha256
    try:
        return load_npz(path)
    except DataError as error:
        # The data set's name is that of its file.
        message = str(error).replace(f"{path}: {upload.sha256}", upload.name)
        raise DataError(message.replace(str(path), upload.name).replace(upload.sha256, upload.name)) from None
