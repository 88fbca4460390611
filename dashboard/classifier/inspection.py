"""Shows the result of an inspection: the network of the weights, and the preprocessing it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import streamlit as st

from dashboard.shell import store
from dashboard.shell.jobs_panel import show_trouble, start
from dashboard.shell.state import note, plain
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

_DOUBTFUL = 0.5
"""Below this accuracy, something is probably wrong with the weights or the preprocessing."""

STATED = ("mean", "std", "image_size", "channel_order")
"""Fields of the preprocessing that a user can state."""


def show_progress(run: Run) -> None:
    """Show the progress of an inspection."""
    tasks = store.workspace().runs.tasks(run.id)
    share = tasks[0].step / tasks[0].steps if tasks and tasks[0].steps else 0.0
    st.progress(
        share, text="Comparing the usual preprocessings …" if share else "Looking for the architecture …"
    )


def show_inspection(project: Project, run: Run) -> None:
    """Show the network of the weights and the preprocessing it needs; let the user import it."""
    if run.status != "done":
        show_trouble(run)
        return
    summary = run.summary
    fits: list[dict[str, Any]] = summary["fits"]
    exact = [fit["architecture"] for fit in fits if fit["exact"]]
    if summary["contract"]:
        names = " or ".join(dict.fromkeys(row["architecture"] for row in summary["contract"]))
        name = _name_of(project, run)
        text = f"{name}: {names} · {summary['parameters']:,} parameters · {summary['format']}"
        st.success(text, icon=":material/check_circle:")
        if len(exact) > 1:
            st.caption(
                "These architectures have the same weights and differ in the layers between them; accuracy "
                "shows which one it is."
            )
        _show_contract(project, run, summary["contract"], summary["split"])
    else:
        _show_misfit(project, run, fits)


def _name_of(project: Project, run: Run) -> str:
    """Return the name of the weights that a run inspected."""
    kind, _, name = str(run.config["weights"]).partition(":")
    names = {blob.sha256: blob.name for blob in store.workspace().blobs(project.id)}
    return plain(name if kind == "shipped" else names.get(name, "an upload"))


def _show_contract(project: Project, run: Run, rows: list[dict[str, Any]], split: str) -> None:
    st.markdown("**The contract test**: does it get images as it was trained on them?")
    rows = ranked(rows)
    taken = [row for row in rows if row["accuracy"] is not None]
    st.dataframe(contract_table(rows), hide_index=True, height=min(38 + 35 * len(rows), 300))
    n = max((row["accuracy"][3] for row in taken), default=0)
    st.caption(
        f"Accuracy on {n:,} {split} images, a sample stratified by class. All were screened on a few; n says "
        "on how many each was measured."
    )
    if not taken:
        st.error("The network accepts none of these. State its image size above.")
        return
    best, chance = taken[0]["accuracy"], 1 / len(project.class_names)
    doubtful = best[0] < _DOUBTFUL or best[1] <= chance
    if doubtful:
        st.warning(
            f"Right on {best[0]:.1%} at best, where guessing gives {chance:.1%}: these may be weights of "
            "other data, of classes in another order, or not trained; or it wants images in yet another way."
        )
    labels = [_label(row, rows) for row in taken]
    chosen = taken[
        st.selectbox("Feed it", range(len(taken)), format_func=labels.__getitem__, key=f"feed-{run.id}")
    ]
    of_best = [row for row in rows if row["architecture"] == taken[0]["architecture"]]
    stated = next((row for row in of_best if row["name"] == "as stated"), taken[0])
    for row, which in ((chosen, "The one chosen"), (stated, "What was stated")):
        if row.get("worse"):
            share = "not taken at all" if row["accuracy"] is None else f"right on {row['accuracy'][0]:.1%}"
            st.warning(
                f"{which} is not the best preprocessing: {share}, against {taken[0]['accuracy'][0]:.1%} with "
                f"{labels[0]}. With wrong preprocessing a classifier makes mistakes that are not its own."
            )
            break
    kind: Literal["primary", "secondary"] = "secondary" if doubtful else "primary"
    if st.button("Use this classifier", type=kind, key=f"use-{run.id}"):
        choice = {name: chosen[name] for name in (*STATED, "architecture")}
        origin = {name: run.config[name] for name in ("weights", "code_path", "trust_program")}
        if origin["trust_program"] or str(origin["weights"]).startswith("shipped:"):
            choice.pop("architecture")
        if start(project, "classifier", {**choice, **origin}) is not None:
            note("The classifier is in the project")
        st.rerun()


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows: by accuracy those measured on all images, then those on a few, then those not accepted."""
    n = max((row["accuracy"][3] for row in rows if row["accuracy"]), default=0)

    def rank(row: dict[str, Any]) -> tuple[int, float]:
        if row["accuracy"] is None:
            return 2, 0.0
        return int(row["accuracy"][3] < n), -row["accuracy"][0]

    return sorted(rows, key=rank)


def _label(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    several = len({other["architecture"] for other in rows}) > 1
    return (f"{row['architecture']}: " if several else "") + f"{row['name']} ({row['accuracy'][0]:.1%})"


def contract_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the contract test as a table, in the order of its rows."""
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
        st.error(f"No known architecture fits the weights of {name}.")
        st.caption(
            "Save the network as TorchScript, which contains its architecture "
            '(`torch.jit.script(model).save("model.pt")`), or name its class below.'
        )
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
