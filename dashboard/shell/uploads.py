"""Takes uploads: passes them on piece by piece, and frees their memory at once.

Streamlit holds an upload in memory, gives the page a copy of it, and keeps both while the tab is open.
Here a callback reads the original, and drops it before the page runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import streamlit as st
from streamlit.typing import UploadedFile

from dashboard.shell.server import MAX_UPLOAD_MB
from dashboard.shell.state import forget, recall, remember
from dashboard.shell.streamlit_internals import free_upload
from defuse_core.base.files import open_file

_CHUNK = 2**20

Take = Callable[[str, Iterator[bytes]], None]
"""Gets the user's name for a file, and its content in pieces."""


def upload_box(
    label: str, take: Take, *, key: str, kind: str | Sequence[str] | None = None, told: str = ""
) -> None:
    """Ask for a file; `take` gets it in a callback."""
    key = f"{key}-{recall(f'{key}-round', 0)}"
    st.file_uploader(
        label, kind, key=key, help=told, on_change=_taken, args=(key, take), max_upload_size=MAX_UPLOAD_MB
    )


def _taken(key: str, take: Take) -> None:
    file: UploadedFile | None = recall(key)
    if file is None:
        return
    take(file.name, pieces(file))
    base, _, number = key.rpartition("-")
    remember(f"{base}-round", int(number) + 1)  # a new widget, which does not know the file
    forget(key)
    free_upload(file)


def pieces(file: UploadedFile) -> Iterator[bytes]:
    """Read an upload a megabyte at a time."""
    file.seek(0)
    while piece := file.read(_CHUNK):
        yield piece


def pieces_of(path: Path) -> Iterator[bytes]:
    """Read a file of this machine a megabyte at a time; raises `CheckpointError` if it is none."""
    with open_file(path) as file:
        while piece := file.read(_CHUNK):
            yield piece
