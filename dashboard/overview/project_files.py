"""Exports a project to a file, and imports one from a file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import streamlit as st

from dashboard.shell import store
from dashboard.shell.state import note, open_project, plain, recall, refuse
from dashboard.shell.uploads import upload_box
from defuse_core.exchange.archive import data_note, export_project, import_project, missing_data
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.workspace import Project

_MOST = 2**30  # bytes of a download, which Streamlit holds in memory
_NAME, _DATA, _TRUST = "import-name", "import-data", "import-trust"


def show_export(project: Project) -> None:
    """Offer a project with its runs, labels and uploads as one file."""
    workspace = store.workspace()
    runs = workspace.runs.of_project(project.id)
    live = [run.id for run in runs if run.live]
    size = sum(artifact.size for run in runs for artifact in workspace.runs.artifacts(run.id).values())
    size += sum(blob.size for blob in workspace.blobs(project.id))
    st.caption(f"{len(runs)} runs with labels and uploads, {size / 2**20:,.0f} MB.")
    if (missing := data_note(project.dataset)) is not None:
        st.caption(plain(f"Note: {missing}."))
    if size > _MOST:
        st.caption(
            plain(f"That is too large for a browser; use: defuse project export FILE -p {project.name}")
        )
    if live:
        st.caption(f"Run {live[0]} is under way: wait for its end, or cancel it.")
    st.download_button(
        "Export", lambda: _pack(project), file_name=f"{_file_name(project.name)}.defuse.zip",
        mime="application/zip", on_click="ignore", icon=":material/download:", key=f"export-{project.id}",
        disabled=bool(live) or size > _MOST,
    )  # fmt: skip


def _pack(project: Project) -> bytes:
    workspace = store.workspace()
    with tempfile.TemporaryDirectory(dir=workspace.home) as folder:
        path = Path(folder) / "project.zip"
        export_project(workspace, project.id, path)
        return path.read_bytes()


def _file_name(name: str) -> str:
    """Turn a project's name into that of a file."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "project"


def import_form() -> None:
    """Ask for an exported project, and import it."""
    st.text_input("Call it", key=_NAME, placeholder="as it was called", max_chars=80)
    st.text_input(
        "Its images", key=_DATA, placeholder="as in a project here", max_chars=4096,
        help="Where they are on this machine, if the file does not hold them: an .npz, a folder of images, "
        "or torchvision:NAME:FOLDER. No path in the file is opened.",
    )  # fmt: skip
    st.checkbox(
        "I trust the programs in it", key=_TRUST,
        help="TorchScript and torch.export files are programs that run here; without such files this "
        "has no effect",
    )  # fmt: skip
    upload_box(
        "A project's file", _take, key="import-file", kind="zip",
        told="Written by Export, or by: defuse project export",
    )  # fmt: skip


def _take(name: str, content: Iterator[bytes]) -> None:
    workspace = store.workspace()
    path = None
    try:
        with tempfile.TemporaryDirectory(dir=workspace.home) as folder:
            path = Path(folder) / "upload.zip"
            with path.open("wb") as file:
                file.writelines(content)
            new_name = str(recall(_NAME) or "").strip() or None
            data = str(recall(_DATA) or "").strip() or None
            project = import_project(
                workspace, path, name=new_name, data=data, trust_programs=bool(recall(_TRUST))
            )
    except (WorkspaceError, ValueError, OSError) as error:
        refuse(f"{name}: {_in_the_page(str(error).replace(str(path), 'the file'))}")
        return
    open_project(project.name)
    missing = missing_data(project.dataset)
    note(f"Project {project.name} is here" + (f"; {_in_the_page(missing)}" if missing else ""))


def _in_the_page(message: str) -> str:
    """Put the remedy in an error into the words of the page."""
    message = message.replace("give another name: --name NAME", "give another one: Call it")
    message = message.replace("import again with --data PATH", "import it again: Its images")
    message = message.replace("import with --data ", "import with Its images: ")
    message = message.replace("leave --data out", "leave Its images empty")
    return message.replace("import with --trust-programs", "tick the box, and upload it again")
