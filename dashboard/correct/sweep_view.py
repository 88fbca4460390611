"""Show a sweep: its progress, its charts, the rule that chose λ, and what can still be changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.correct.form import read_lambdas
from dashboard.correct.sweep_chart import Drawn, over_lambda, tradeoff
from dashboard.correct.sweep_detail import follow_opened, open_point
from dashboard.shell import store
from dashboard.shell.jobs_panel import time_left
from dashboard.shell.state import note, plain, recall, refuse, remember
from defuse_core.jobs import launcher
from defuse_core.report.sweep import BEFORE, SETS, Measured, Sweep, read_sweep, task_name, tell_choice
from defuse_core.workspace.config_checks import ConfigError
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.runs import Run, Task

_CONFIG = {
    "displaylogo": False, "doubleClick": "reset", "scrollZoom": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
}  # fmt: skip
_MOST_BUTTONS = 24


def show_sweep(run: Run) -> None:
    """Show a sweep as far as it is computed; `follow` calls it again and again."""
    follow_opened()
    sweep, tasks = read_sweep(store.workspace(), run), store.workspace().runs.tasks(run.id)
    if run.live:
        _show_progress(run, tasks)
    if not sweep.points and not sweep.baseline and sweep.before is None:
        return
    left, right = st.columns(2, gap="medium")
    with left:
        _show_chart(tradeoff(sweep), f"tradeoff-{run.id}", _TRADEOFF)
    with right:
        _show_chart(over_lambda(sweep), f"over-lambda-{run.id}", _OVER)
    if sweep.chosen is not None and "before_selection" in run.summary:
        st.markdown(f":material/flag: {tell_choice(run, sweep)}")
    st.caption(_told(run, sweep))
    if not run.live:
        _show_growth(run, [task for task in tasks if task.status != "done"])
    with st.expander("All points as a table"):
        table = points_table(sweep, tasks)
        st.dataframe(table, hide_index=True, alt="Every λ with its status and accuracies")
        st.download_button(
            "Points as CSV", lambda: points_csv(sweep), file_name=f"sweep-run{run.id}.csv", mime="text/csv",
            on_click="ignore", icon=":material/download:",
        )  # fmt: skip


_TRADEOFF = "Test and validation accuracy over the accuracy on the regions, a point a λ"
_OVER = "Accuracy on the regions and on real images over λ"


def _show_chart(drawn: Drawn, key: str, alt: str) -> None:
    def clicked() -> None:
        state: Any = recall(key, {})
        task = drawn.opened(state.get("selection", {}).get("points", []))
        if task is not None:
            open_point(task)

    st.plotly_chart(
        drawn.figure, key=key, on_select=clicked, selection_mode="points", config=_CONFIG, alt=alt
    )  # fmt: skip


def _told(run: Run, sweep: Sweep) -> str:
    """Caption of the charts, in numbers: images, seed, epochs, draws, seeds."""
    tuning, n_seeds = run.config["correction"], run.config["n_seeds"]
    epochs = "1 epoch" if tuning["epochs"] == 1 else f"{tuning['epochs']} epochs"
    first = next(iter(sweep.by_task.values()), sweep.before)
    scores = {} if first is None else first.scores
    return (
        "; ".join(f"{SETS[name]} n = {score.n:,}" for name, score in scores.items())
        + f". Seed {run.seed}; {tuning['optimizer']}, the best of {epochs} is kept; "
        f"{tuning['instances_per_region']} draws a region to tune on, and as many to test on; "
        + (f"{n_seeds} seeds a λ: mean, and range." if n_seeds > 1 else "one seed a λ.")
        + " Click a point to open its λ."
    )


# While it runs


def _show_progress(run: Run, tasks: Sequence[Task]) -> None:
    """Show progress and time left of a sweep, and buttons that cancel single λ."""
    if run.status == "queued" or not tasks:
        waits = run.status == "queued"
        st.caption("The correction is waiting for another run …" if waits else "The regions are drawn …")
        return
    left_out: frozenset[str] = recall(_asked(run), frozenset())
    tuned = [task for task in tasks if task.name != BEFORE and task.name not in left_out]
    done = sum(task.status == "done" for task in tuned)
    share = sum(_share(task) for task in tuned) / max(1, len(tuned))
    st.progress(min(share, 1.0), text=f"{done} of {len(tuned)} measured{_time_left(run, tuned)}")
    coming = [task for task in tasks if task.status in ("queued", "running") and task.name != BEFORE]
    if coming:
        row = st.container(horizontal=True, gap="small", vertical_alignment="center")
        row.caption("Leave out:", width="content")
        for task in coming[:_MOST_BUTTONS]:
            row.button(
                _called(task), key=f"leave-{run.id}-{task.name}", on_click=_cancel,
                args=(run, task.name), icon=":material/close:", disabled=task.name in left_out,
                help="Left out" if task.name in left_out else "Cancels this λ only; resume computes it later",
            )  # fmt: skip
        if len(coming) > _MOST_BUTTONS:
            row.caption(f"and {len(coming) - _MOST_BUTTONS} more")


def _share(task: Task) -> float:
    return 1.0 if task.status in ("done", "cancelled") else task.step / task.steps if task.steps else 0.0


def _called(task: Task) -> str:
    if task.name == BEFORE:
        return "before correction"
    name = task_name(task.name)
    return name + (f" · {task.step}/{task.steps}" if task.status == "running" and task.steps else "")


def _time_left(run: Run, tasks: Sequence[Task]) -> str:
    """The time left at the rate of this attempt; nothing before its first λ is measured."""
    events = store.workspace().runs.events(run.id, kind="point")
    since = run.attempt_at or 0.0
    new = {event.task for event in events if event.at >= since and event.task != BEFORE}
    share_new = len(new) + sum(_share(task) for task in tasks if task.status == "running")
    left = sum(1 - _share(task) for task in tasks)
    share = share_new / (share_new + left) if share_new else 0.0
    return time_left(run, share, parts=len(new), key="sweep") if new else ""


def _asked(run: Run) -> str:
    """Key under which this tab keeps the λ that it asked to leave out, until another attempt starts."""
    return f"left-out-{run.id}-{run.attempt_at}"


def _cancel(run: Run, task: str) -> None:
    try:
        launcher.cancel(store.workspace(), run.id, task)
    except WorkspaceError as error:
        refuse(str(error))
        return
    remember(_asked(run), frozenset({*recall(_asked(run), frozenset()), task}))


# Once it has ended


def extend(run: Run, changes: Mapping[str, Any]) -> None:
    """Continue a run with changed settings, or say why that is refused."""
    try:
        launcher.extend(store.workspace(), run.id, changes)
    except (WorkspaceError, ConfigError) as error:
        refuse(str(error))
    else:
        note(f"Run {run.id} continues; its results so far are kept")


def _show_growth(run: Run, missing: Sequence[Task]) -> None:
    """Offer to resume, to add λ and seeds, and to choose λ by another rule; nothing is computed twice."""
    if missing:
        st.caption(f"Not measured: {'; '.join(map(_called, missing))}.")
    failures = [task for task in missing if task.status == "failed"] if run.status == "done" else []
    if failures:
        st.warning(f"{len(failures)} λ failed and cannot be chosen. {plain(str(failures[0].error))}")
    row = st.container(horizontal=True)
    if len(missing) > len(failures):
        row.button("Resume what was cancelled", on_click=extend, args=(run, {}), icon=":material/resume:")
    with row.popover("Add λ", icon=":material/add:"):
        typed = st.text_input("More λ", key=f"more-{run.id}", placeholder="0.05, 0.5")
        n_seeds = st.number_input(
            "seeds", run.config.get("n_seeds", 1), 20, step=1, key=f"more-seeds-{run.id}",
            help="How often every λ is tuned, including those already computed",
        )  # fmt: skip
        st.button(
            "Compute them", on_click=_add, args=(run, typed, int(n_seeds)), type="primary",
            disabled=not read_lambdas(typed) and int(n_seeds) == run.config.get("n_seeds", 1),
            help="Results so far are kept; cancelled λ are computed, too",
        )  # fmt: skip
    with row.popover("Choose by", icon=":material/rule:"):
        rules = ("regions", "paper")
        rule = st.radio(
            "Rule", rules, index=rules.index(run.config["rule"]), key=f"rule-{run.id}",
            format_func=lambda name: _RULES[name],
        )  # fmt: skip
        loss = st.number_input(
            "Accuracy that may be lost", 0.0, 1.0, float(run.config["max_loss"]), step=0.005,
            format="%g", key=f"loss-{run.id}", disabled=rule == "paper",
        )  # fmt: skip
        st.button(
            "Choose", on_click=extend, args=(run, {"rule": rule, "max_loss": loss}), type="primary",
            disabled=(rule, loss) == (run.config["rule"], run.config["max_loss"]),
            help="Computes nothing again; the evaluation of the earlier choice becomes stale",
        )  # fmt: skip


_RULES = {
    "regions": "best on the draws tuned on, within the accuracy that may be lost",
    "paper": "the paper's: best on the images that select the epoch",
}


def _add(run: Run, typed: str, n_seeds: int) -> None:
    lambdas = [*run.config["correction"]["lambdas"], *read_lambdas(typed)]
    extend(run, {"correction": {"lambdas": lambdas}, "n_seeds": n_seeds})


# As a table


def points_table(sweep: Sweep, tasks: Sequence[Task]) -> pd.DataFrame:
    """Every λ of a run with its status, and its accuracies where it was measured."""
    points = sweep.by_task | ({BEFORE: sweep.before} if sweep.before is not None else {})
    rows = []
    for task in tasks:
        point = points.get(task.name)
        row: dict[str, Any] = {"tuned": _called(task), "status": task.status}
        if point is not None:
            row |= {"epoch": point.epoch, "to choose by": point.selection, "tuned on": point.tuned}
            row |= {SETS[name]: str(score) for name, score in point.scores.items()}
            row |= {"fixed": point.fixed, "broken": point.broken}
        rows.append(row)
    return pd.DataFrame(rows)


def points_csv(sweep: Sweep) -> bytes:
    """Every point with all its numbers, unrounded."""
    points = [*([sweep.before] if sweep.before is not None else []), *sweep.points, *sweep.baseline]
    return pd.DataFrame([_csv_row(point) for point in points]).to_csv(index=False).encode()


def _csv_row(point: Measured) -> dict[str, Any]:
    scores = {
        f"{name}_{part}": value for name, score in point.scores.items() for part, value in vars(score).items()
    }
    return {
        "task": point.task, "lam": point.lam, "repeat": point.repeat, "epoch": point.epoch,
        "selection": point.selection, "tuned": point.tuned, **scores, "fixed": point.fixed,
        "broken": point.broken,
    }  # fmt: skip
