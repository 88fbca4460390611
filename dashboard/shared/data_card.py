"""Shows a project's data set and a few of its images."""

from __future__ import annotations

import streamlit as st

from dashboard.components.image_grid import Tile, image_grid
from dashboard.shared import kept
from dashboard.shared.new_project import new_project_form
from dashboard.shell import store
from dashboard.shell.state import plain
from defuse_core.workspace.workspace import Project

_SHOWN_CLASSES = 12


def data_card(project: Project) -> None:
    """Describe the data set, and offer to look at its images or to create a project on another."""
    data = project.dataset
    channels, height, width = data["image_shape"]
    sizes = " + ".join(f"{n:,} {part}" for part, n in data["sizes"].items())
    colour = "grey" if channels == 1 else "colour"
    st.markdown(
        f"**{plain(source_of(project))}** · {sizes} images · {height}×{width}, {colour} · "
        f"{len(project.class_names)} classes"
    )
    if project.notes:
        st.caption(":material/info: " + " · ".join(map(plain, project.notes)))
    left, right = st.columns(2)
    images = left.popover("Look at the images", icon=":material/image:", on_change="rerun", key="look")
    if images.open:  # not before: loading them needs torch and takes time
        with images:
            _samples(project)
    with right.popover("Another data set", icon=":material/database:"):
        st.caption(
            "A project is one data set with all its results; create another project for another data set."
        )
        new_project_form()


def _samples(project: Project) -> None:
    dataset = kept.dataset(project.id)
    if dataset is None:
        return
    labels = dataset.train.labels.numpy()
    names = project.class_names
    tiles = []
    shown = [label for label in range(len(names)) if (labels == label).any()][:_SHOWN_CLASSES]
    for label in shown:
        index = (labels == label).nonzero()[0][:4]
        images = dataset.train.images[index].permute(0, 2, 3, 1).numpy()
        tiles.append(Tile(list(images), caption=f"{names[label]} · {(labels == label).sum():,}"))
    image_grid(tiles, key="samples")
    if len(names) > len(shown):
        st.caption(f"The first {len(shown)} of {len(names)} classes that have images")


def source_of(project: Project) -> str:
    """Return where a project's data set comes from, in the user's words."""
    source: str = project.dataset["source"]
    if not source.startswith("blob:"):
        return source
    blobs = {blob.sha256: blob.name for blob in store.workspace().blobs(project.id)}
    return blobs.get(source.removeprefix("blob:"), "an upload")
