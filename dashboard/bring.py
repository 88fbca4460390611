"""Bringing a classifier: where its weights come from, what they are, and how they want to be fed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import cache
from dashboard.forms import config_form
from dashboard.jobs_panel import follow, newest, show_trouble, start
from dashboard.server import ALLOW_LOCAL_CODE, MAX_UPLOAD_MB
from dashboard.state import forget, linked_way, note, plain, recall, remember
from dashboard.uploads import Take, pieces_of, upload_box
from defuse_core.database import WorkspaceError
from defuse_core.demo import shipped_cards
from defuse_core.runs import Run
from defuse_core.sniffing import CheckpointError, sniff_format
from defuse_core.workspace import Blob, Project

_WAYS = ("Upload", "From models/", "Path on this machine", "Earlier upload")
_PENDING, _PROBLEM = "bring-pending", "bring-problem"
_STATED = ("mean", "std", "image_size", "channel_order")
_FORMATS = (
    "safetensors; .pt or .pth with the weights alone, also inside a training checkpoint; TorchScript; "
    f"torch.export. Up to {MAX_UPLOAD_MB} MB; for a larger file give its path."
)


def bring_classifier(project: Project) -> None:
    """Ask for weights, inspect them, and show what was found."""
    way = linked_way("Where from", _WAYS, key="from")
    with st.expander("What it expects of images, where you know it"):
        stated = config_form(
            "inspect", key=f"stated-{project.id}", main=_STATED, presets=False,
            leave_out=("architecture", "weights", "code_path", "trust_program", "n_images"),
        )  # fmt: skip
        st.caption(
            "Of pixels in [0, 1]. Left empty: mean and std of the training images, and their own size."
        )
    _choose_weights(project, way, stated)
    if (problem := recall(_PROBLEM)) is not None:
        st.error(plain(problem))
    if (pending := recall(_PENDING)) is not None and pending[0] == project.id:
        _ask_for_trust(project, pending[1], stated)
    run = newest(project, "inspect")
    if run is not None and problem is None and recall(_PENDING) is None:
        st.divider()
        follow(run, _show_progress) if run.live else _show_inspection(project, run)


def _choose_weights(project: Project, way: str, stated: dict[str, Any]) -> None:
    """Ask for weights in one of the ways, and begin to inspect them."""

    def take(name: str, pieces: Iterable[bytes]) -> None:
        blob = _store(project, name, pieces)
        if blob is not None:
            _admit(project, blob, stated)

    if way == "From models/":
        if (name := _choose_shipped()) is not None:
            inspect(project, {**stated, "weights": f"shipped:{name}"})
            st.rerun()
    elif way == "Upload":
        upload_box("Checkpoint", take, key="bring-upload", told=_FORMATS)
        st.caption(_FORMATS)
    elif way == "Path on this machine":
        typed = st.text_input("Path", key="bring-path", placeholder="/models/signs.safetensors")
        if st.button("Inspect", key="inspect-path", disabled=not typed.strip()):
            _take_path(typed.strip(), take)
            st.rerun()
    else:
        blobs = {f"{b.name} · {b.size / 2**20:.1f} MB · {b.sha256[:8]}": b for b in _blobs(project)}
        chosen = st.selectbox("Upload", list(blobs), key="bring-earlier", index=None)
        if st.button("Inspect", key="inspect-earlier", disabled=chosen is None) and chosen is not None:
            _admit(project, blobs[chosen], stated)
            st.rerun()


def _take_path(typed: str, take: Take) -> None:
    try:
        path = Path(typed).expanduser()
        take(path.name, pieces_of(path))
    except (RuntimeError, ValueError) as error:  # a home that nobody has, a byte that no path has
        remember(_PROBLEM, f"{typed} is not a path ({error}); check the path")


def _choose_shipped() -> str | None:
    """The shipped classifier that was asked for in this run of the page, if any was."""
    cards = shipped_cards("classifier")
    told = {
        name: f"{name} · {card['architecture']} · {card['accuracy']['test']:.3f} on {card['data']['name']}"
        for name, card in cards.items()
    }
    name = st.selectbox("Model", list(cards), key="bring-shipped", format_func=lambda name: told[name])
    return name if st.button("Inspect", key="inspect-shipped") else None


def _blobs(project: Project) -> list[Blob]:
    """Uploads of the project, the newest first, without its data set."""
    blobs = cache.workspace().blobs(project.id)
    return [blob for blob in reversed(blobs) if f"blob:{blob.sha256}" != project.dataset["source"]]


def _store(project: Project, name: str, pieces: Iterable[bytes]) -> Blob | None:
    try:
        return cache.workspace().add_blob(project.id, name, pieces)
    except OSError as error:
        remember(_PROBLEM, f"{name} cannot be read ({error.strerror}); check the path")
    except WorkspaceError as error:
        remember(_PROBLEM, str(error))
    return None


def _admit(project: Project, blob: Blob, stated: dict[str, Any]) -> None:
    """Inspect an upload; where it is a program, ask first."""
    path = cache.workspace().blob_path(project.id, blob.sha256)
    forget(_PENDING)
    try:
        kind = sniff_format(path)
    except CheckpointError as error:
        remember(_PROBLEM, str(error).replace(str(path), blob.name))
        return
    if kind in ("torchscript", "exported"):
        remember(_PENDING, (project.id, blob))
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
        forget(_PENDING)
        st.rerun()


def inspect(project: Project, config: dict[str, Any]) -> None:
    """Begin to inspect weights."""
    forget(_PENDING)
    forget(_PROBLEM)
    start(project, "inspect", config)


def _show_progress(run: Run) -> None:
    tasks = cache.workspace().runs.tasks(run.id)
    share = tasks[0].step / tasks[0].steps if tasks and tasks[0].steps else 0.0
    st.progress(
        share, text="Comparing the usual preprocessings …" if share else "Looking for the architecture …"
    )


def _show_inspection(project: Project, run: Run) -> None:
    if run.status != "done":
        show_trouble(run)
        return
    found = run.summary
    fits: list[dict[str, Any]] = found["fits"]
    exact = [fit["architecture"] for fit in fits if fit["exact"]]
    if found["contract"]:
        names = " or ".join(dict.fromkeys(row["architecture"] for row in found["contract"]))
        told = f"{_name_of(project, run)}: {names} · {found['parameters']:,} parameters · {found['format']}"
        st.success(told, icon=":material/check_circle:")
        if len(exact) > 1:
            st.caption(
                "These have the same weights and differ in what is between them: accuracy tells which it is."
            )
        _show_contract(project, run, found["contract"], found["split"])
    else:
        _show_misfit(project, run, fits)


def _name_of(project: Project, run: Run) -> str:
    """What the weights that a run inspected are called."""
    kind, _, name = str(run.config["weights"]).partition(":")
    names = {blob.sha256: blob.name for blob in cache.workspace().blobs(project.id)}
    return plain(name if kind == "shipped" else names.get(name, "an upload"))


def _show_contract(project: Project, run: Run, rows: list[dict[str, Any]], split: str) -> None:
    st.markdown("**The contract test**: is it fed the way it was trained?")
    taken = [row for row in rows if row["accuracy"] is not None]
    taken.sort(key=lambda row: -row["accuracy"][0])
    st.dataframe(contract_table(rows), hide_index=True, height=min(38 + 35 * len(rows), 300))
    n = max((row["accuracy"][3] for row in taken), default=0)
    st.caption(
        f"Accuracy on {n:,} {split} images, a sample stratified by class. All were screened on a few; n says "
        "on how many each was measured."
    )
    if not taken:
        st.error("The network takes none of these. State the size it was made for, above.")
        return
    labels = [_label(row, rows) for row in taken]
    chosen = taken[
        st.selectbox("Feed it", range(len(taken)), format_func=labels.__getitem__, key=f"feed-{run.id}")
    ]
    stated = next((row for row in rows if row["name"] == "as stated"), taken[0])
    for row, which in ((chosen, "The one chosen"), (stated, "What was stated")):
        if _is_worse(row, taken[0]):
            share = "not taken at all" if row["accuracy"] is None else f"right on {row['accuracy'][0]:.1%}"
            st.warning(
                f"{which} is not the best: {share}, against {taken[0]['accuracy'][0]:.1%} with {labels[0]}. "
                "A classifier that is fed wrongly makes mistakes that are not its own."
            )
            break
    if st.button("Use this classifier", type="primary", key=f"use-{run.id}"):
        given = {name: chosen[name] for name in (*_STATED, "architecture")}
        kept = {name: run.config[name] for name in ("weights", "code_path", "trust_program")}
        if kept["trust_program"] or str(kept["weights"]).startswith("shipped:"):
            given.pop("architecture")
        if start(project, "classifier", {**given, **kept}) is not None:
            note("The classifier is taken in")
        st.rerun()


def _is_worse(row: dict[str, Any], best: dict[str, Any]) -> bool:
    """Another is clearly better: its interval lies above this one's accuracy."""
    return row["accuracy"] is None or bool(best["accuracy"][1] > row["accuracy"][0])


def _label(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    several = len({other["architecture"] for other in rows}) > 1
    return (f"{row['architecture']}: " if several else "") + f"{row['name']} ({row['accuracy'][0]:.1%})"


def contract_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The contract test as a table, in the order given."""
    return pd.DataFrame(
        [
            {
                "preprocessing": row["name"],
                "accuracy": "" if row["accuracy"] is None else f"{row['accuracy'][0]:.1%}",
                "95 % interval": ""
                if row["accuracy"] is None
                else "{1:.1%} – {2:.1%}".format(*row["accuracy"]),
                "n": "" if row["accuracy"] is None else f"{row['accuracy'][3]:,}",
                "architecture": row["architecture"],
                "mean": ", ".join(f"{value:.3g}" for value in row["mean"]),
                "std": ", ".join(f"{value:.3g}" for value in row["std"]),
                "size": row["image_size"] or "own",
                "not taken because": row["problem"],
            }
            for row in rows
        ]
    ).astype(str)


def _show_misfit(project: Project, run: Run, fits: list[dict[str, Any]]) -> None:
    wrong = next((fit for fit in fits if fit["wrong_classes"]), None)
    name = _name_of(project, run)
    if wrong is not None:
        st.error(
            f"{name} is a {wrong['architecture']} that tells {wrong['n_classes']:,} classes apart; the data "
            f"set has {len(project.class_names)}. Bring the classifier that was trained on it."
        )
    else:
        st.error(f"No architecture that is known fits the weights of {name}.")
    names = [fit["architecture"] for fit in fits]
    if names:
        st.dataframe(
            pd.DataFrame(
                [
                    {
                        "architecture": fit["architecture"],
                        "weights in common": f"{fit['shared']:.0%}",
                        "missing": fit["counts"]["missing"],
                        "unexpected": fit["counts"]["unexpected"],
                        "of another shape": fit["counts"]["reshaped"],
                    }
                    for fit in fits
                ]
            ),
            hide_index=True,
        )
        chosen = st.selectbox("Which keys disagree with", names, key=f"misfit-{run.id}")
        fit = fits[names.index(chosen)]
        for what in ("missing", "unexpected", "reshaped"):
            if fit[what]:
                more = fit["counts"][what] - len(fit[what])
                st.caption("of another shape" if what == "reshaped" else what)
                st.code("\n".join([*fit[what], *([f"… and {more} more"] if more else [])]), language=None)
    _offer_local_code(project, run)


def _offer_local_code(project: Project, run: Run) -> None:
    if os.environ.get(ALLOW_LOCAL_CODE) != "1":
        st.caption(
            "Is the network a class of your own? Start with `defuse dashboard --allow-local-code`, and name "
            "it here."
        )
        return
    left, right = st.columns(2)
    name = left.text_input("Class of your own", key="local-class", placeholder="networks:SignNet")
    folder = right.text_input("Folder it is imported from", key="local-folder", placeholder="/home/me/signs")
    if st.button("Import it and inspect", disabled=not (name and folder)):
        config = {k: v for k, v in run.config.items() if k != "training"}
        inspect(project, {**config, "architecture": name.strip(), "code_path": folder.strip()})
        st.rerun()
