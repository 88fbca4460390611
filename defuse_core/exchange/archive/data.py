"""Name the data set that an archive does not hold, and find it again at the import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defuse_core.data.naming import ELSEWHERE, absolute_source, from_elsewhere
from defuse_core.data.reading import READING_FIELDS
from defuse_core.exchange.archive.rows import DatasetRow
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.workspace import Workspace


def data_note(dataset: Mapping[str, Any]) -> str | None:
    """Say which images the archive lacks; None if the project needs no other file."""
    source = str(dataset["source"])
    if source == "digits" or source.startswith("blob:"):
        return None
    return (
        f"the images of {source.removeprefix(ELSEWHERE)} are not in the file; take them along, and import it "
        "with --data"
    )


def missing_data(dataset: Mapping[str, Any]) -> str | None:
    """Say what to do if the data set of a project is not on this machine; None if it is."""
    source = str(dataset["source"])
    kind, _, rest = source.partition(":")
    if kind == "torchvision":
        name, _, root = rest.partition(":")
        if Path(root or "data").is_dir():
            return None
        return (
            f"{root or 'data'} does not exist: torchvision will download to it; if the data are here "
            f"elsewhere, import with --data torchvision:{name}:FOLDER"
        )
    if source.startswith(ELSEWHERE):
        return (
            f"its data set was {source.removeprefix(ELSEWHERE)} where it was exported: what is stored can be "
            "looked at, but steps that read images will fail; delete the project, and import again with "
            "--data PATH"
        )
    if data_note(dataset) is None or Path(source).exists():
        return None
    return (
        f"the data set {source} is not on this machine: what is stored can be looked at, but steps that "
        "read images will fail; put the data there, or delete the project and import again with --data PATH"
    )


def find_data(dataset: DatasetRow, data: str) -> str:
    """Return the source of a project's data set on this machine, compared by its fingerprint.

    Parameters
    ----------
    dataset : DatasetRow
        The data set in the archive.
    data : str
        As `data.sources.load_dataset` takes it.
    """
    from defuse_core.data.facts import find_change
    from defuse_core.data.reading import Reading
    from defuse_core.data.sources import read_source
    from defuse_core.data.splits import DataError  # torch

    if data_note(dataset.model_dump()) is None:
        raise WorkspaceError("the data set of this project is in the file; leave --data out")
    source = absolute_source(data)
    loaded = read_source(source, Reading.of(dataset.model_dump()))
    if change := find_change(dataset.model_dump(), loaded):
        raise DataError(
            f"{source} is not the data set of the project, {dataset.source}: it has {change}; give that one"
        )
    return source


def known_data(workspace: Workspace, dataset: DatasetRow) -> str:
    """Return where a project's data set is read here where the user does not say; no path of it is opened.

    Parameters
    ----------
    workspace : Workspace
        A project here that has the same data tells where they are.
    dataset : DatasetRow
    """
    source = dataset.source
    if source.startswith("blob:"):
        return source
    for project in workspace.projects():
        stored = project.dataset
        same = {"fingerprint", *READING_FIELDS} - {"split_seed"}  # where it matters, the fingerprint differs
        if stored["source"].startswith(("blob:", ELSEWHERE)):
            continue
        if all(stored.get(name) == getattr(dataset, name) for name in same):
            return str(stored["source"])
    return from_elsewhere(source)
