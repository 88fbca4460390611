"""Present: what was found, in large type, one slide per failure region."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from dashboard.components.slides import slides
from dashboard.present.exhibits import exhibition, find_correction, presented
from dashboard.present.presenting import slides_of
from dashboard.present.survey import survey_of
from dashboard.shared import kept
from dashboard.shell import store
from dashboard.shell.state import need_project, plain, recall, remember
from defuse_core.report.generator import mark_of
from defuse_core.workspace.edits import names

project = need_project()
st.title("Present")
st.caption("Covers the whole window. The arrow keys lead through the slides, Esc leaves, ? shows all keys.")

workspace = store.workspace()
run = presented(workspace, project)
if run is None:
    st.info("Needs regions first.")
    st.page_link("../pages/regions.py", icon=":material/arrow_forward:")
    st.stop()
events = workspace.annotations.counting(run.id)
if not any(event.region_id >= 0 for event in events):
    st.info("Label regions first: people decide whether a region is a failure.")
    st.page_link("../pages/label.py", icon=":material/arrow_forward:")
    st.stop()

stage = st.container()  # always there: a running presentation stays while other parts load
correct, evaluate = find_correction(workspace, run)
runs, key = workspace.runs.ancestry(run.id), f"slides-{run.id}"
regions = kept.regions(run.id)
content = exhibition(run.id, *(None if step_run is None else step_run.id for step_run in (correct, evaluate)))
if regions is not None and content is not None:
    survey = survey_of(runs["classifier"].summary, runs["identify"].summary, ids=regions.ids, events=events)
    survey = replace(survey, mark=mark_of(workspace, run))
    stale = correct is not None and correct.stale
    region_names = names(workspace.annotations.edits(run.id))
    remember(
        key, slides_of(project.name, project.class_names, survey, content, names=region_names, stale=stale)
    )
    if not content.exhibits:
        st.info("None of the labelled regions is a failure. Label more of them.")
        st.page_link("../pages/label.py", icon=":material/arrow_forward:")
    elif correct is None:
        st.caption("Nothing is corrected yet: the slides show the classifier as it is.")
    elif stale:
        st.warning("Labels or data have changed since the correction.")
if deck := recall(key):  # the latest slides, while new ones are made
    with stage:
        slides(deck, about=project.name, key=f"show-{run.id}")
    st.markdown("\n".join(f"1. {plain(slide.title)}" for slide in deck))
