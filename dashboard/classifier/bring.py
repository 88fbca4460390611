"""Asks for the weights and the preprocessing of a classifier, and inspects them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard.classifier.inspection import STATED, show_inspection, show_progress
from dashboard.shell import store
from dashboard.shell.forms import config_form
from dashboard.shell.jobs_panel import follow, newest, start
from dashboard.shell.server import MAX_UPLOAD_MB, is_shared
from dashboard.shell.state import forget, linked_way, plain, recall, remember
from dashboard.shell.uploads import Take, pieces_of, upload_box
from defuse_core.base.errors import CheckpointError
from defuse_core.base.machine import local_code_allowed
from defuse_core.jobs import launcher
from defuse_core.networks.sniffing import PROGRAMS, sniff_format
from defuse_core.reproduction.demo import shipped_cards
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Blob, Project

_PATH = "Path on this machine"
_WAYS = ("Upload", "From models/", _PATH, "Earlier upload")
_PENDING, _PROBLEM, _WAY = "bring-pending", "bring-problem", "bring-way"


def bring_classifier(project: Project) -> None:
    """Ask for weights, inspect them, and show the result."""
    ways = tuple(way for way in _WAYS if way != _PATH or not is_shared())
    way = linked_way("Where from", ways, key="from")
    with st.expander("Its preprocessing, if you know it"):
        stated = config_form(
            "inspect", key=f"stated-{project.id}", main=STATED, presets=False,
            leave_out=("architecture", "weights", "code_path", "trust_program", "n_images"),
        )  # fmt: skip
        st.caption(
            "Of pixels in [0, 1]. Left empty: mean and std of the training images, and their own size."
        )
    if recall(_key(_WAY, project)) != way:  # what was said of another way is about something else
        forget(_key(_PROBLEM, project))
        forget(_key(_PENDING, project))
        remember(_key(_WAY, project), way)
    _choose_weights(project, way, stated)
    problem, pending = recall(_key(_PROBLEM, project)), recall(_key(_PENDING, project))
    if problem is not None:
        st.error(plain(problem))
    if pending is not None:
        _ask_for_trust(project, pending, stated)
    run = newest(project, "inspect")
    if run is not None and problem is None and pending is None:
        st.divider()
        follow(run, show_progress) if run.live else show_inspection(project, run)
        if not run.live:
            with st.expander("A network of your own class", expanded=bool(run.config["code_path"])):
                _offer_local_code(project, run)


def _formats() -> str:
    larger = "" if is_shared() else "; for a larger file give its path"
    return (
        "safetensors; .pt or .pth with the weights alone, also inside a training checkpoint; TorchScript; "
        f"torch.export. Up to {MAX_UPLOAD_MB} MB{larger}."
    )


def _key(name: str, project: Project) -> str:
    return f"{name}-{project.id}"


def _choose_weights(project: Project, way: str, stated: dict[str, Any]) -> None:
    """Ask for weights in one of the ways, and start to inspect them."""

    def take(name: str, pieces: Iterable[bytes]) -> None:
        blob = _store(project, name, pieces)
        if blob is not None:
            _admit(project, blob, stated)

    if way == "From models/":
        if (name := _choose_shipped()) is not None:
            inspect(project, {**stated, "weights": f"shipped:{name}"})
            st.rerun()
    elif way == "Upload":
        upload_box("Checkpoint", take, key="bring-upload", told=_formats())
        st.caption(_formats())
    elif way == _PATH:
        typed = st.text_input("Path", key="bring-path", placeholder="/models/signs.safetensors")
        if st.button("Inspect", key="inspect-path", disabled=not typed.strip()):
            _take_path(project, typed.strip(), take)
            st.rerun()
    else:
        blobs = {f"{b.name} · {b.size / 2**20:.1f} MB · {b.sha256[:8]}": b for b in brought_blobs(project)}
        chosen = st.selectbox("Upload", list(blobs), key="bring-earlier", index=None)
        if st.button("Inspect", key="inspect-earlier", disabled=chosen is None) and chosen is not None:
            _admit(project, blobs[chosen], stated)
            st.rerun()


def _take_path(project: Project, typed: str, take: Take) -> None:
    """Store a file of this machine, once it is known to be a checkpoint."""
    try:
        path = Path(typed).expanduser()
        sniff_format(path)
        take(path.name, pieces_of(path))
    except CheckpointError as error:
        remember(_key(_PROBLEM, project), str(error))
    except RuntimeError as error:  # an unknown home
        remember(_key(_PROBLEM, project), f"{typed} is not a path ({error}); check the path")


def _choose_shipped() -> str | None:
    """Return the shipped classifier that the user asked to inspect just now, if any."""
    cards = shipped_cards("classifier")
    captions = {
        name: f"{name} · {card['architecture']} · {card['accuracy']['test']:.3f} on {card['data']['name']}"
        for name, card in cards.items()
    }
    name = st.selectbox("Model", list(cards), key="bring-shipped", format_func=lambda name: captions[name])
    return name if st.button("Inspect", key="inspect-shipped") else None


def brought_blobs(project: Project) -> list[Blob]:
    """Return the uploads of a project without its data set and its generators, the newest first."""
    blobs = store.workspace().blobs(project.id)
    generators = store.workspace().runs.of_project(project.id, "vae")
    others = {run.config.get(name) for run in generators for name in ("weights", "pretrained")}
    others.add(project.dataset["source"])
    return [blob for blob in reversed(blobs) if f"blob:{blob.sha256}" not in others]


def _store(project: Project, name: str, pieces: Iterable[bytes]) -> Blob | None:
    try:
        return store.workspace().add_blob(project.id, name, pieces)
    except OSError as error:
        remember(_key(_PROBLEM, project), f"{name} cannot be read ({error.strerror}); check the path")
    except WorkspaceError as error:
        remember(_key(_PROBLEM, project), str(error))
    return None


def _admit(project: Project, blob: Blob, stated: dict[str, Any]) -> None:
    """Inspect an upload; if it is a program, ask first."""
    path = store.workspace().blob_path(project.id, blob.sha256)
    forget(_key(_PENDING, project))
    forget(_key(_PROBLEM, project))
    try:
        kind = sniff_format(path)
    except CheckpointError as error:
        remember(_key(_PROBLEM, project), str(error).replace(str(path), blob.name))
        return
    if kind in PROGRAMS:
        remember(_key(_PENDING, project), blob)
    else:
        inspect(project, {**stated, "weights": f"blob:{blob.sha256}"})


def _ask_for_trust(project: Project, blob: Blob, stated: dict[str, Any]) -> None:
    st.warning(
        f"**{plain(blob.name)} is a program**, not only weights: TorchScript and torch.export files run on "
        "this machine, with your rights, whenever the classifier is used. Go on only if you trust who made "
        "it.",
        icon=":material/warning:",
    )
    row = st.container(horizontal=True)
    if row.button("I trust it: run it", key="trust"):
        inspect(project, {**stated, "weights": f"blob:{blob.sha256}", "trust_program": True})
        st.rerun()
    if row.button("Leave it", key="distrust"):
        forget(_key(_PENDING, project))
        st.rerun()


def inspect(project: Project, config: dict[str, Any]) -> None:
    """Start to inspect weights; cancel an inspection that is running."""
    forget(_key(_PENDING, project))
    forget(_key(_PROBLEM, project))
    earlier = newest(project, "inspect")
    if earlier is not None and earlier.live:
        launcher.cancel(store.workspace(), earlier.id)
    start(project, "inspect", config)


def _offer_local_code(project: Project, run: Run) -> None:
    if not local_code_allowed():
        st.caption(
            "Is the network a class of your own? Start with `defuse dashboard --allow-local-code`, and name "
            "it here."
        )
        return
    left, right = st.columns(2)
    own = run.config["code_path"] is not None
    name = left.text_input(
        "Class of your own", run.config["architecture"] if own else "", key=f"class-{run.id}",
        placeholder="networks:SignNet",
    )  # fmt: skip
    folder = right.text_input(
        "Folder it is imported from", run.config["code_path"] or "", key=f"folder-{run.id}",
        placeholder="/home/me/signs",
    )  # fmt: skip
    if st.button("Import it and inspect", disabled=not (name and folder)):
        config = {k: v for k, v in run.config.items() if k != "training"}
        inspect(project, {**config, "architecture": name.strip(), "code_path": folder.strip()})
        st.rerun()
