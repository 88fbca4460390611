"""Correct: fine-tune the classifier on its failure regions, over a sweep of λ (section 3.3)."""

from __future__ import annotations

import streamlit as st

from dashboard.correct.form import read_labels, show_form
from dashboard.correct.runs import choose_correction, show_staleness
from dashboard.correct.second_round import show_second_round
from dashboard.correct.sweep_detail import show_detail
from dashboard.correct.sweep_view import show_sweep
from dashboard.shared.generator_mark import show_mark
from dashboard.shell import store
from dashboard.shell.jobs_panel import follow, newest, show_trouble
from dashboard.shell.state import need_project, project_link
from defuse_core.report.sweep import read_sweep

project = need_project()
st.title("Correct")
st.caption(
    "For each λ the classifier is fine-tuned on the training images and, weighted by λ, on draws of its "
    "failure regions. It is tested on other draws, and on the test images."
)

distill = store.workspace().runs.latest(project.id, "distill", done=True)
if distill is None:
    st.info("Needs regions first.")
    st.page_link("../pages/regions.py", icon=":material/arrow_forward:", query_params=project_link())
else:
    latest = newest(project, "correct")
    with st.expander("New correction", expanded=latest is None or latest.status not in ("done", "running")):
        labelled = read_labels(distill)
        if labelled is not None:
            show_form(project, distill, labelled)

run = choose_correction(project, distill)
latest = newest(project, "correct")
if latest is not None and not latest.live and latest.status != "done":
    show_trouble(latest)
if run is None:
    st.stop()
show_staleness(run, distill)
show_mark(run)
follow(run, show_sweep)
show_detail(project, run, read_sweep(store.workspace(), run))
if run.status == "done":
    show_second_round(project, run)
