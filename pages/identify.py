"""Identify: search around every training image for codes that the classifier misclassifies (algorithm 1)."""

from __future__ import annotations

import streamlit as st

from dashboard.identify.search import show_estimate, show_mistakes, show_noise, show_search
from dashboard.shared.generator_mark import confirm_search, show_mark
from dashboard.shell import store
from dashboard.shell.forms import config_form, device_field
from dashboard.shell.jobs_panel import follow, newest, show_trouble, start
from dashboard.shell.state import need_project

project = need_project()
st.title("Identify")
st.caption(
    "Every image is encoded; its code is perturbed Q times, decoded and classified. What is misclassified is "
    "kept."
)

run = newest(project, "identify")
missing = [step for step in ("classifier", "vae") if store.workspace().runs.latest(project.id, step) is None]
if missing:
    st.info("Needs a classifier and a generator first.")
    for step, page in (("classifier", "classifier"), ("vae", "generator")):
        if step in missing:
            st.page_link(f"../pages/{page}.py", icon=":material/arrow_forward:")
with st.expander("Search", expanded=run is None or run.status not in ("done", "running")):
    left, right = st.columns([3, 2])
    with left:
        config = config_form(
            "identify",
            key=f"identify-{project.id}",
            main=(
                "n_perturbations",
                "noise_a",
                "noise_b",
                "centred",
                "noise_scale",
                "max_mistakes_per_image",
                "max_images",
            ),
        )
        first, second = st.columns(2)
        with first:
            device = device_field()
        seed = second.number_input("seed", 0, value=0, step=1, key="identify-seed", help="Of the noise")
    with right:
        show_noise(config)
    if not missing:
        show_estimate(project, config, device)
    ready = not missing and confirm_search(project)
    if st.button("Start", type="primary", icon=":material/play_arrow:", disabled=not ready):
        start(project, "identify", config, seed=seed, device=device)
        st.rerun()

if run is None:
    st.stop()
if run.live:
    follow(run, lambda latest: show_search(project, latest))
elif run.status == "done":
    show_mark(run)
    show_mistakes(project, run)
else:
    show_trouble(run)
    show_search(project, run)
