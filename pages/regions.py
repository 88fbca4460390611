"""Regions: a mixture groups the codes of the mistakes; each group can be drawn at any τ."""

from __future__ import annotations

import streamlit as st

from dashboard.regions.distilling import show_distillation, show_regions
from dashboard.shared.generator_mark import show_mark
from dashboard.shell import store
from dashboard.shell.forms import config_form
from dashboard.shell.jobs_panel import follow, newest, show_trouble, start
from dashboard.shell.state import need_project

project = need_project()
st.title("Regions")
st.caption(
    "A Dirichlet-process Gaussian mixture groups the latent codes of the mistakes. Every component of enough "
    "weight is a region, from which images can be drawn."
)

run = newest(project, "distill")
search = store.workspace().runs.latest(project.id, "identify")
done = store.workspace().runs.latest(project.id, "distill", done=True)
if search is None:
    st.info("Needs mistakes first.")
    st.page_link("../pages/identify.py", icon=":material/arrow_forward:")
with st.expander("Distill", expanded=run is None or run.status not in ("done", "running")):
    config = config_form(
        "distill", key=f"distill-{project.id}", main=("n_components", "min_weight", "max_codes")
    )
    left, _ = st.columns([1, 2])
    seed = int(
        left.number_input("seed", 0, value=0, step=1, key="distill-seed", help="Of the initialisation")
    )
    if done is not None and store.workspace().annotations.counting(done.id):
        st.caption("Labels and names stay with their regions; new regions start without any.")
    if st.button("Start", type="primary", icon=":material/play_arrow:", disabled=search is None):
        start(project, "distill", config, seed=seed)
        st.rerun()

if run is None:
    st.stop()
if run.live:
    follow(run, show_distillation)
elif run.status != "done":
    show_trouble(run)
    show_distillation(run)
if done is not None:
    if done.stale:
        st.warning("There is a newer search. Distill again to group its mistakes.")
    elif done.id != run.id:
        st.caption(f"The regions of run {done.id}, distilled before:")
    show_mark(done)
    show_regions(project, done)
