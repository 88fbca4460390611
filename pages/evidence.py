"""Evidence: what the correction changed, how sure that is, and what would have changed without it."""

from __future__ import annotations

import streamlit as st

from dashboard.evidence.cards import Card, show_accuracies, show_controls, show_where
from dashboard.evidence.checks import show_agreement, show_limits, show_noise, show_novelty
from dashboard.evidence.form import (
    choose_evaluation,
    evidence_of,
    need_correction,
    show_form,
    show_ground,
    show_progress,
)
from dashboard.evidence.nearest import show_nearest
from dashboard.evidence.report import show_report
from dashboard.shared.generator_mark import show_mark
from dashboard.shell import store
from dashboard.shell.jobs_panel import follow, newest, show_trouble
from dashboard.shell.state import need_project

project = need_project()
st.title("Evidence")
st.caption(
    "What the correction changed, how sure that is, and what would have changed without it. Every figure can "
    "be downloaded as PNG, SVG and CSV."
)

correct = need_correction(project)
latest = newest(project, "evaluate")
if correct is None:
    st.stop()
with st.expander("Measure", expanded=latest is None or latest.status not in ("done", "running", "queued")):
    show_form(project, ready=latest is None or not latest.live)
if latest is not None and latest.live:
    follow(latest, show_progress)
elif latest is not None and latest.status != "done":
    show_trouble(latest)

run = choose_evaluation(project, correct)
if run is None:
    st.stop()
show_ground(project, run)
show_mark(run)
card = Card(project, run, store.workspace().runs.ancestry(run.id)["correct"], evidence_of(run.id))
for show in (
    show_accuracies,
    show_controls,
    show_where,
    show_nearest,
    show_novelty,
    show_agreement,
    show_noise,
    show_limits,
):
    show(card)
show_report(project, run)
