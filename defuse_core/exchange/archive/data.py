"""Name the data set that an archive does not hold, and find it again at the import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defuse_core.exchange.archive.rows import DatasetRow
from defuse_core.workspace.database import WorkspaceError


def data_note(dataset: Mapping[str, Any]) -> str | None:
    """Say which images the archive lacks; None if the project needs no other file."""
    source = str(dataset["source"])
    if source == "digits" or source.startswith("blob:"):
        return None
    return (
        f"the images of {source} are not in the file; where that does not exist, take them along and import "
        "with --data"
    )


def missing_data(dataset: Mapping[str, Any]) -> str | None:
    """Say what to do if the data set of a project is not on this machine; None if it is."""
    source = str(dataset["source"])
    kind, _, rest = source.partition(":")
    if kind == "torchvision":
        root = Path(rest.partition(":")[2] or "data")
        return None if root.is_dir() else f"{root} does not exist: torchvision will download to it"
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
        A folder or an .npz file on this machine.
    """
    from defuse_core.data.sources import load_dataset
    from defuse_core.data.splits import DataError  # torch

    if data_note(dataset.model_dump()) is None:
        raise WorkspaceError("the data set of this project is in the file; leave --data out")
    source = str(Path(data).expanduser().resolve())
    loaded = load_dataset(source, image_size=dataset.image_size, validation_share=dataset.validation_share)
    if loaded.fingerprint != dataset.fingerprint:
        raise DataError(f"{source} is not the data set of the project, {dataset.source}; give that one")
    return source
