"""Creates a project on a data set that the user chooses, in a process that outlives the page."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from PIL import Image

from dashboard.components.image_grid import Tile, image_grid
from dashboard.shell import store
from dashboard.shell.server import is_shared
from dashboard.shell.state import forget, note, open_soon, plain, recall, remember
from dashboard.shell.uploads import upload_box
from defuse_core.base.limits import MAX_IMAGE_SIZE
from defuse_core.data.naming import FROM_TEST
from defuse_core.data.reading import Fit
from defuse_core.data.torchvision_names import TORCHVISION_SETS
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.workspace import Blob

_WAYS = ("Digits", "torchvision", "Path", "Upload")
_SHARE = "share"
_VALIDATION: dict[str, str | None] = {
    "those of the data set, if any": None,
    "a share of the training images": _SHARE,
    "a random half of the test images": FROM_TEST,
}
_FITS: dict[str, Fit] = {
    "stretched": "stretch",
    "cropped to their middle": "crop",
    "padded with black": "pad",
}
_READING, _UPLOADED, _LEFT_OUT, _CHOSEN = "_reading", "_uploaded", "_left_out", "_chosen-way"


def new_project_form() -> None:
    """Ask for a name and a data set; show what is read, and start to create the project."""
    name = st.text_input("Name", key="new-name", placeholder="signs")
    ways = [way for way in _WAYS if way != "Path" or not is_shared()]
    way = st.segmented_control("Data set", ways, default=ways[0], required=True, key="new-way")
    _forget_trouble(way or _WAYS[0])
    source = _choose_source(way or _WAYS[0])
    options = [*_choose_size(), *_choose_validation()]
    look = st.button("Preview", icon=":material/visibility:", help="Reads the data set, creates nothing")
    if st.button("Create", icon=":material/add:", type="primary"):
        if not name.strip() or not source:
            st.error("Give a name and a data set.")
        else:
            _begin(name.strip(), source, options)
    elif look and not source:
        st.error("Give a data set.")
    elif look and source:
        _begin(name.strip() or "preview", source, [*options, "--preview", "-"])
    _show_reading()


def _forget_trouble(way: str) -> None:
    """Drop the error of a data set that was refused, once another way is chosen."""
    before, reading = recall(_CHOSEN), recall(_READING)
    remember(_CHOSEN, way)
    if before not in (None, way) and reading is not None and reading[1].done():
        forget(_READING)


def _choose_validation() -> list[str]:
    """Ask where validation images come from; return the command's options for it."""
    chosen = st.selectbox(
        "Validation images",
        list(_VALIDATION),
        key="new-validation",
        help="λ is chosen on them, and the best epoch. Data without a split of their own can lend some; "
        "without any, the training images serve",
    )
    if _VALIDATION[chosen] != _SHARE:
        own = _VALIDATION[chosen]
        return [] if own is None else ["--validation", own]
    share = st.number_input(
        "Share", 0.01, 0.9, value=0.1, step=0.05, key="new-share", help="Of every class, the last images"
    )
    return ["--validation", f"{share:g}"]


def _choose_source(way: str) -> str | Blob | None:
    """Ask for the data set; return its source."""
    if way == "Digits":
        st.caption("5,000 handwritten digits of 28×28: 4,000 to train on, 1,000 to test on.")
        return "digits"
    if way == "torchvision":
        left, right = st.columns(2)
        chosen = left.selectbox("Name of the set", list(TORCHVISION_SETS), key="new-torchvision")
        root = right.text_input("Kept in", key="new-root", placeholder="data", help="Downloaded if not there")
        return f"torchvision:{chosen}" + (f":{root}" if root else "")
    if way == "Path":
        path = st.text_input("Path on this machine", key="new-path", placeholder="/data/signs or signs.npz")
        st.caption(
            "A folder of images by class, with splits or without, or with a table of path, label and split; "
            "an .npz, IDX, .mat or Parquet file. Documentation, *Your own data*, has the list."
        )
        return path.strip()
    st.caption("An .npz with arrays of images and labels, such as x_train, y_train, x_test, y_test.")
    upload_box("File", _keep, key="new-file", kind="npz")
    blob: Blob | None = recall(_UPLOADED)
    if blob is not None:
        st.caption(f":material/check: {plain(blob.name)}, {blob.size / 2**20:.1f} MB, is stored.")
    return blob


def _choose_size() -> list[str]:
    """Ask which size the images get, and how; return it as the command takes it."""
    size = st.number_input(
        "Resize to, pixels",
        1,
        MAX_IMAGE_SIZE,
        value=None,
        step=1,
        key="new-size",
        help="Needed where images have mixed sizes or are not square. GTSRB's get 32 if you say nothing",
        placeholder="as they are",
    )
    if not size:
        return []
    fit = st.selectbox("Images that are not square are", list(_FITS), key="new-fit")
    return ["--image-size", str(size), "--fit", _FITS[fit]]


def _keep(name: str, pieces: Iterator[bytes]) -> None:
    """Store an uploaded data set; the project that is created on it will name it."""
    try:
        remember(_UPLOADED, store.workspace().store_upload(name, pieces))
    except (WorkspaceError, OSError) as error:
        note(str(error))


def _begin(name: str, source: str | Blob, options: list[str]) -> None:
    if isinstance(source, Blob):
        options = [*options, "--upload-name", source.name]
        source = f"blob:{source.sha256}"
    if st.session_state.get("new-leave-out"):
        remember(_LEFT_OUT, source)
    if recall(_LEFT_OUT) == source:
        options = [*options, "--leave-out"]
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
        if unreadable := answer.get("unreadable"):
            _offer_to_leave_out(unreadable)
        return
    if "preview" in answer:
        _show_preview(answer["preview"])
        return
    for key in (_READING, _UPLOADED, _LEFT_OUT):
        forget(key)
    note(f"Project {name} created")
    open_soon(answer["name"])
    st.rerun()


def _offer_to_leave_out(files: list[str]) -> None:
    """List all files that cannot be read; a tick leaves them out the next time."""
    with st.expander(f"All {len(files):,} files" if len(files) > 1 else "The file"):
        st.dataframe({"file": files}, hide_index=True)
    these = "it" if len(files) == 1 else "them"
    st.checkbox(f"Leave {these} out", key="new-leave-out", help="Then press the button again")


def _show_preview(preview: dict[str, Any]) -> None:
    """Show images with their labels, counts by class and split, and what was converted or left out."""
    channels, height, width = preview["image_shape"]
    colour = "grey" if channels == 1 else "colour"
    sizes = " + ".join(f"{sum(own):,} {part}" for part, own in preview["counts"].items())
    n = len(preview["class_names"])
    st.markdown(f"**Preview** · {sizes} images · {height}×{width}, {colour} · {n:,} classes")
    tiles = [Tile([_decoded(own["png"])], caption=own["label"]) for own in preview["images"]]
    image_grid(tiles, key="new-preview")
    st.dataframe({"class": preview["class_names"], **preview["counts"]}, hide_index=True, height=210)
    for told in preview["notes"]:
        st.caption(f":material/info: {plain(told)}")


def _decoded(png: str) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
