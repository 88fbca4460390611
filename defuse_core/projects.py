"""Projects made from data sets: the data is read once, checked, and remembered by its fingerprint."""

from __future__ import annotations

from pathlib import Path

from defuse_core.data import load_dataset
from defuse_core.workspace import Project, Workspace


def new_project(workspace: Workspace, name: str, source: str, *, image_size: int | None = None) -> Project:
    """Create a project on a data set; see `data.load_dataset` for what `source` may be.

    Raises
    ------
    DataError
        If the data set cannot be used.
    WorkspaceError
        If the name is taken or malformed.
    """
    if source.startswith("torchvision:"):
        dataset_name, _, root = source.removeprefix("torchvision:").partition(":")
        source = f"torchvision:{dataset_name}:{Path(root or 'data').resolve()}"
    elif source != "digits":
        source = str(Path(source).resolve())  # runs start in folders of their own
    dataset = load_dataset(source, image_size=image_size)
    return workspace.create_project(
        name,
        dataset={
            "source": source,
            "image_size": image_size,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "image_shape": list(dataset.image_shape),
            "sizes": {part: len(split) for part, split in dataset.splits().items()},
        },
    )
