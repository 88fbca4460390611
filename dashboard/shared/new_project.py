"""Creates a project on a data set that the user chooses, in a process that outlives the page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import streamlit as st

from dashboard.shell import store
from dashboard.shell.server import is_shared
from dashboard.shell.state import forget, note, open_soon, plain, recall, remember
from dashboard.shell.uploads import upload_box
from defuse_core.base.limits import MAX_IMAGE_SIZE
from defuse_core.data.naming import FROM_TEST
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.workspace import Blob

_WAYS = ("Digits", "torchvision", "Path", "Upload")
_SHARE = "share"
_VALIDATION: dict[str, str | None] = {
    "those of the data set, if any": None,
    "a share of the training images": _SHARE,
    "a random half of the test images": FROM_TEST,
}
_READING, _UPLOADED, _CHOSEN = "_reading", "_uploaded", "_chosen-way"


def new_project_form() -> None:
    """Ask for a name and a data set, and start to create the project."""
    name = st.text_input("Name", key="new-name", placeholder="signs")
    ways = [way for way in _WAYS if way != "Path" or not is_shared()]
    way = st.segmented_control("Data set", ways, default=ways[0], required=True, key="new-way")
    _forget_trouble(way or _WAYS[0])
    source, size = _choose_source(way or _WAYS[0])
    validation = _choose_validation()
    if st.button("Create", icon=":material/add:", type="primary"):
        if not name.strip() or not source:
            st.error("Give a name and a data set.")
        else:
            _begin(name.strip(), source, size, validation)
    _show_reading()


def _forget_trouble(way: str) -> None:
    """Drop the error of a data set that was refused, once another way is chosen."""
    before, reading = recall(_CHOSEN), recall(_READING)
    remember(_CHOSEN, way)
    if before not in (None, way) and reading is not None and reading[1].done():
        forget(_READING)


def _choose_validation() -> str | None:
    """Ask where validation images come from; return it as the command takes it, None for the data's own."""
    chosen = st.selectbox(
        "Validation images",
        list(_VALIDATION),
        key="new-validation",
        help="λ is chosen on them, and the best epoch. Data without a split of their own can lend some; "
        "without any, the training images serve",
    )
    if _VALIDATION[chosen] != _SHARE:
        return _VALIDATION[chosen]
    share = st.number_input(
        "Share", 0.01, 0.9, value=0.1, step=0.05, key="new-share", help="Of every class, the last images"
    )
    return f"{share:g}"


def _choose_source(way: str) -> tuple[str | Blob | None, int | None]:
    """Ask for the data set; return its source, and the size its images are resized to, if any."""
    if way == "Digits":
        st.caption("5,000 handwritten digits of 28×28: 4,000 to train on, 1,000 to test on.")
        return "digits", None
    if way == "torchvision":
        left, right = st.columns(2)
        chosen = left.selectbox("Name of the set", ("MNIST", "SVHN", "GTSRB"), key="new-torchvision")
        root = right.text_input("Kept in", key="new-root", placeholder="data", help="Downloaded if not there")
        size = (
            _size("GTSRB's are resized to 32 pixels unless you say otherwise.") if chosen == "GTSRB" else None
        )
        return f"torchvision:{chosen}" + (f":{root}" if root else ""), size
    if way == "Path":
        path = st.text_input("Path on this machine", key="new-path", placeholder="/data/signs or signs.npz")
        st.caption(
            "A folder with train/<class>/ and test/<class>/, or arrays x_train, y_train, x_test, y_test."
        )
        is_npz = path.strip().endswith(".npz")
        return path.strip(), None if is_npz else _size("Needed where the images have mixed sizes.")
    st.caption("Arrays x_train, y_train, x_test, y_test, uint8, and class_names if you like.")
    upload_box("File", _keep, key="new-file", kind="npz")
    blob: Blob | None = recall(_UPLOADED)
    if blob is not None:
        st.caption(f":material/check: {plain(blob.name)}, {blob.size / 2**20:.1f} MB, is stored.")
    return blob, None


def _size(hint: str) -> int | None:
    return st.number_input(
        "Resize to, pixels",
        1,
        MAX_IMAGE_SIZE,
        value=None,
        step=1,
        key="new-size",
        help=hint,
        placeholder="as they are",
    )


def _keep(name: str, pieces: Iterator[bytes]) -> None:
    """Store an uploaded data set; the project that is created on it will name it."""
    try:
        remember(_UPLOADED, store.workspace().store_upload(name, pieces))
    except (WorkspaceError, OSError) as error:
        note(str(error))


def _begin(name: str, source: str | Blob, size: int | None, validation: str | None) -> None:
    if isinstance(source, Blob):
        options = ["--upload-name", source.name]
        source = f"blob:{source.sha256}"
    else:
        options = ["--image-size", str(size)] if size else []
    if validation:
        options += ["--validation", validation]
    command = [sys.executable, "-P", "-m", "defuse_core.cli", "new", "--json", "--data", source]
    remember(_READING, (name, store.on_thread(_create, [*command, *options, "--", name])))


def _create(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.stdout.startswith("{"):
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    return {"error": done.stderr.strip() or "the data set could not be read"}


def _show_reading() -> None:
    """Show the progress of the project that this tab asked for; the process does not need the tab."""
    if (reading := recall(_READING)) is None:
        return
    name, future = reading
    st.fragment(_watch, run_every=0.5 if not future.done() else None)(name, future)


def _watch(name: str, future: Future[dict[str, Any]]) -> None:
    if not future.done():
        st.caption(":material/hourglass_empty: Reading the data set …")
        return
    answer = future.result()
    if "error" in answer:
        st.error(plain(answer["error"]))
        return
    forget(_READING)
    forget(_UPLOADED)
    note(f"Project {name} created")
    open_soon(answer["name"])
    st.rerun()
