"""Map: training codes and mistakes in the plane (figure 2)."""

from __future__ import annotations

import streamlit as st

from dashboard.map.figure2 import latest_map, map_progress, show_figure2
from dashboard.map.latent_map import preview, read_map
from dashboard.map.view import read_ground, show_map
from dashboard.shell import store
from dashboard.shell.forms import config_form
from dashboard.shell.jobs_panel import follow, newest, show_trouble, start
from dashboard.shell.state import need_project

project = need_project()
st.title("Map")
identify = store.workspace().runs.latest(project.id, "identify", done=True)
if identify is None:
    st.info("Needs mistakes first.")
    st.page_link("../pages/identify.py", icon=":material/arrow_forward:")
    st.stop()

run, map_run = newest(project, "map"), latest_map(project, identify)
with st.expander("Make a map", expanded=run is None):
    config = config_form(
        "map", key=f"map-{project.id}", main=("method", "n_codes", "n_mistakes", "perplexity", "n_neighbors"),
        presets=False,
    )  # fmt: skip
    left, _ = st.columns([1, 2])
    seed = int(left.number_input("seed", 0, value=0, step=1, key="map-seed", help="Of samples and method"))
    if st.button("Start", type="primary", icon=":material/play_arrow:"):
        start(project, "map", config, seed=seed, on=[identify])
        st.rerun()
if run is not None and run.live:
    follow(run, lambda latest: st.progress(*map_progress(latest)))
elif run is not None and run.status != "done" and identify.id in run.upstream:
    show_trouble(run)

ground = read_ground(project, identify)
if ground is None:
    st.stop()
if map_run is not None:
    summary, method = map_run.summary, map_run.summary["method"]
    st.caption(
        f"{method} of {summary['codes']:,} of {summary['codes_of']:,} training codes, stratified by class, "
        f"and {summary['mistakes']:,} of {summary['mistakes_of']:,} mistakes; seed {map_run.seed}."
    )
    show_figure2(project, map_run, ground)
    show_map(project, ground, read_map(method, store.arrays(map_run.id, method)), key=f"map-{map_run.id}")
else:
    first = preview(identify.id)
    if first is not None:
        st.caption(
            f"A first picture: PCA of {len(first.codes):,} of {len(ground.train_labels):,} training codes "
            f"and {len(first.mistakes):,} of {len(ground.found.labels):,} mistakes. The map replaces it."
        )
        show_map(project, ground, first, key=f"preview-{identify.id}")
