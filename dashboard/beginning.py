"""What the training of a classifier begins with: random weights, ImageNet's, or those of a file."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from dashboard import cache
from dashboard.bring import FORMATS, brought_blobs
from dashboard.state import forget, plain, recall, remember
from dashboard.uploads import upload_box
from defuse_core.database import WorkspaceError
from defuse_core.sniffing import CheckpointError, sniff_format
from defuse_core.workspace import Project

_CHOICES = {"": "random weights", "imagenet": "ImageNet's weights, by torchvision"}
_PROBLEM = "begin-problem"


def choose_beginning(project: Project) -> str | None:
    """Ask what training begins with; return it as `ClassifierConfig.pretrained` takes it."""
    key = f"begin-{project.id}"
    names = _CHOICES | {f"blob:{b.sha256}": f"{b.name} · {b.sha256[:8]}" for b in brought_blobs(project)}

    def take(name: str, pieces: Iterable[bytes]) -> None:
        forget(_PROBLEM)
        try:
            blob = cache.workspace().add_blob(project.id, name, pieces)
            path = cache.workspace().blob_path(project.id, blob.sha256)
            kind = sniff_format(path)
        except CheckpointError as error:
            remember(_PROBLEM, str(error).replace(str(path), name))
            return
        except WorkspaceError as error:
            remember(_PROBLEM, str(error))
            return
        if kind in ("torchscript", "exported"):
            remember(_PROBLEM, f"{name} is a program; to begin with its weights, save its state_dict")
        else:
            remember(key, f"blob:{blob.sha256}")

    if recall(key) not in names:
        forget(key)
    chosen = st.selectbox(
        "Begin with", list(names), key=key, format_func=names.__getitem__,
        help="Layers that have other shapes there, such as the last, begin afresh. The architecture has to "
        "be the same: name it below",
    )  # fmt: skip
    if (problem := recall(_PROBLEM)) is not None:
        st.error(plain(problem))
    with st.popover("Weights from a file"):
        upload_box("Checkpoint", take, key=f"begin-upload-{project.id}", told=FORMATS)
    return chosen or None
