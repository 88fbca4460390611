"""Asks which weights the training of a classifier starts from: random, ImageNet's, or those of a file."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from dashboard.classifier.bring import brought_blobs
from dashboard.shell import store
from dashboard.shell.server import MAX_UPLOAD_MB
from dashboard.shell.state import forget, plain, recall, remember
from dashboard.shell.uploads import upload_box
from defuse_core.base.errors import CheckpointError
from defuse_core.networks.sniffing import PROGRAMS, SAVE_WEIGHTS, sniff_format
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.workspace import Blob, Project

_CHOICES = {"": "random weights", "imagenet": "ImageNet's weights, by torchvision"}
_FORMATS = (
    f"safetensors; .pt or .pth with the weights alone, or in a training checkpoint. Up to {MAX_UPLOAD_MB} MB"
)


def choose_beginning(project: Project) -> str | None:
    """Ask what training starts from; return it as `ClassifierConfig.pretrained` takes it."""
    key, problem = f"begin-{project.id}", f"begin-problem-{project.id}"

    def take(name: str, pieces: Iterable[bytes]) -> None:
        forget(problem)
        try:
            blob = store.workspace().add_blob(project.id, name, pieces)
        except WorkspaceError as error:
            remember(problem, str(error))
            return
        if (refusal := _refusal(project, blob)) is None:
            remember(key, f"blob:{blob.sha256}")
        else:
            remember(problem, refusal)

    usable = [blob for blob in brought_blobs(project) if _refusal(project, blob) is None]
    names = _CHOICES | {f"blob:{blob.sha256}": f"{blob.name} · {blob.sha256[:8]}" for blob in usable}
    if recall(key) not in names:
        forget(key)
    chosen = st.selectbox(
        "Begin with", list(names), key=key, format_func=names.__getitem__, persist_state="session",
        on_change=forget, args=(problem,),
        help="Layers that have other shapes there, such as the last, start from random weights. The "
        "architecture has to be the same: name it below",
    )  # fmt: skip
    with st.popover("Weights from a file"):
        upload_box("Checkpoint", take, key=f"begin-upload-{project.id}", told=_FORMATS)
        st.caption(_FORMATS)
    with st.container():  # always there, so that nothing below moves when an error comes or goes
        if (message := recall(problem)) is not None:
            st.error(plain(message))
    return chosen or None


def _refusal(project: Project, blob: Blob) -> str | None:
    """Return why training cannot start from an upload, None if it can."""
    try:
        path = store.workspace().blob_path(project.id, blob.sha256)
        kind = sniff_format(path)
    except WorkspaceError as error:
        return str(error)
    except CheckpointError as error:
        return str(error).replace(str(path), blob.name)
    if kind in PROGRAMS:
        return f"{blob.name} is a program; bring its weights alone: {SAVE_WEIGHTS}"
    return None
