"""Choose the evaluation that the page Evidence shows, warn if it is out of date, and start a new one."""

from __future__ import annotations

import streamlit as st

from dashboard.shell import store
from dashboard.shell.forms import config_form, device_field
from dashboard.shell.jobs_panel import TITLES, start, time_left
from dashboard.shell.state import forget, linked_choice, plain, project_link
from defuse_core.report.evidence import Evidence, read_evidence
from defuse_core.workspace.pipeline import done_share
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

EVALUATION = "evaluation"
"""The URL parameter that names the evaluation to show."""

_TASKS = {
    "evidence": "models, splits, regions, novelty",
    "control/lam=0": "λ = 0",
    "control/random": "random regions",
    "noise": "raw and centred noise",
}


def need_correction(project: Project) -> Run | None:
    """Return the correction to measure; if there is none, say what comes first."""
    correct = store.workspace().runs.latest(project.id, "correct")
    if correct is None:
        st.info("Needs a correction first.")
        st.page_link("../pages/correct.py", icon=":material/arrow_forward:", query_params=project_link())
    elif correct.live:
        st.info(f"Correction {correct.id} is running; an evaluation started here waits for it.")
    return correct


def show_form(project: Project, *, ready: bool) -> None:
    """Show the settings of an evaluation and the button that starts it."""
    st.caption(
        "Measures the classifier before and after on all splits and regions, tunes the two controls, looks "
        "for the nearest real images, and searches again with raw and centred noise: a few minutes."
    )
    config = config_form("evaluate", key=f"evaluate-{project.id}", main=(), presets=False)
    left, right, _ = st.columns(3)
    with left:
        device = device_field()
    seed = right.number_input(
        "seed", 0, value=0, step=1, key="evaluate-seed", help="Of the random regions, and the noise"
    )
    if st.button("Measure", type="primary", icon=":material/play_arrow:", disabled=not ready):
        if start(project, "evaluate", config, seed=int(seed), device=device) is not None:
            forget(EVALUATION)  # the page shows the new run
        st.rerun()


def show_progress(run: Run) -> None:
    """Show the progress of an evaluation; `follow` calls it again and again."""
    tasks = store.workspace().runs.tasks(run.id)
    if run.status == "queued" or not tasks:
        waits = run.status == "queued"
        st.caption("The evaluation is waiting for another run …" if waits else "The evaluation begins …")
        return
    share = done_share(tasks)
    done = sum(task.status == "done" for task in tasks)
    left = time_left(run, share, parts=done, spent=run.seconds, key="evidence") if share > 0.05 else ""
    st.progress(share, text=f"{done} of {len(tasks)} parts measured{left}")
    st.caption(" · ".join(f"{_TASKS.get(task.name, task.name)}: {task.status}" for task in tasks))


def choose_evaluation(project: Project, correct: Run) -> Run | None:
    """Return the evaluation to show: the newest of the newest correction, unless another is chosen.

    Evaluations of earlier corrections and rounds can be chosen, too.
    """
    runs = store.workspace().runs.of_project(project.id, "evaluate")
    done = sorted((r for r in runs if r.status == "done"), key=lambda r: (r.upstream[0], r.id))
    if not done:
        return None
    first = done[-1]
    if len(done) > 1:
        by_id = {str(run.id): run for run in reversed(done)}
        left, _ = st.columns([1, 2])
        with left:
            chosen = linked_choice(
                "Evaluation", list(by_id), key=EVALUATION, unset=f"run {first.id}, the newest",
                show=lambda i: f"run {i}, of correction {by_id[i].upstream[0]}",
            )  # fmt: skip
        first = first if chosen is None else by_id[chosen]
    if first.upstream[0] != correct.id:
        st.warning(
            f"This is the evaluation of correction {first.upstream[0]}; the newest is {correct.id}. Measure "
            "that, too."
        )
    return first


def show_ground(project: Project, run: Run) -> None:
    """Name the runs that an evaluation is based on, and warn if it is out of date."""
    ground = store.workspace().runs.ancestry(run.id)
    steps = [step for step in TITLES if step in ground and step != "evaluate"]
    upstream = " · ".join(f"{TITLES[step]} {ground[step].id}" for step in steps)
    st.caption(f"Evaluation {run.id} stands on the runs {upstream}")
    if run.stale and (why := why_stale(project, run)):
        st.warning(plain(f"This is out of date: {why}."))


def why_stale(project: Project, run: Run) -> str:
    """Say what changed since a stale evaluation and what to do; empty if only the correction is newer."""
    runs = store.workspace().runs
    ground = runs.ancestry(run.id)
    correct = ground["correct"]
    for step in TITLES:
        latest = runs.latest(project.id, step, done=True)
        if step in ground and ground[step] not in (run, correct) and latest and latest.id > ground[step].id:
            title = TITLES[step].lower()
            return f"{title} {ground[step].id} was followed by run {latest.id}; go on from there"
    if store.workspace().annotations.last_id(ground["distill"].id) > (correct.last_annotation or 0):
        return "labels were given since the correction began; correct and measure again"
    latest = runs.latest(project.id, "correct", done=True)
    if latest is not None and latest.id > correct.id:
        return ""
    return f"correction {correct.id} has gone on since; measure again"


def evidence_of(run_id: int) -> Evidence:
    """Return the results of an evaluate run that is done; callers must not change them."""
    sha256 = store.checksum(run_id, "results.json")
    return _evidence(str(store.workspace().home), run_id, str(sha256))


@st.cache_resource(max_entries=4, show_spinner=False)
def _evidence(home: str, run_id: int, sha256: str) -> Evidence:
    del home, sha256
    return read_evidence(store.workspace(), run_id)
