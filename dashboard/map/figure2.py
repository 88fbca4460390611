"""A map like figure 2 of the paper: its progress, the button that makes it, and its downloads."""

from __future__ import annotations

from functools import partial

import streamlit as st

from dashboard.map.latent_map import read_map
from dashboard.map.view import Ground
from dashboard.shell import store
from dashboard.shell.jobs_panel import start, tell_begin
from defuse_core.workspace.configs import MapConfig
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

_PAPERS = MapConfig()


def latest_map(project: Project, identify: Run) -> Run | None:
    """Return the newest finished map of these mistakes; None if there is none."""
    runs = store.workspace().runs.of_project(project.id, "map")
    done = [run for run in runs if run.status == "done" and identify.id in run.upstream]
    return done[-1] if done else None


def map_progress(run: Run) -> tuple[float, str]:
    """Return the progress of a map, in [0, 1], and the text for it."""
    tasks = store.workspace().runs.tasks(run.id)
    share = tasks[0].step / tasks[0].steps if tasks and tasks[0].steps else 0.0
    kl = tasks[0].metrics.get("kl") if tasks else None
    waits = tell_begin(run, "The map is made …")
    return share, waits if kl is None else f"{run.config['method']}, Kullback–Leibler divergence {kl:.2f}"


def show_figure2(project: Project, run: Run, ground: Ground) -> None:
    """Offer a map like figure 2: t-SNE, perplexity 30, 10,000 training codes at most, mistakes in regions."""
    is_papers = MapConfig.model_validate(run.config) == _PAPERS
    if not is_papers:
        told = "Makes a map like the paper's: t-SNE, perplexity 30"
        if st.button("Figure 2", icon=":material/image:", help=told):
            start(project, "map", {}, seed=run.seed)
            st.rerun()
        return
    with st.popover("Figure 2", icon=":material/image:"):
        drawn = "all mistakes" if ground.regions is None else "the mistakes that lie in regions"
        st.caption(f"t-SNE, perplexity 30; diamonds are {drawn}, by their true class.")
        for kind in ("png", "svg"):
            st.download_button(
                kind.upper(), partial(_picture, project, run, ground, kind),
                file_name=f"figure2-run{run.id}.{kind}", on_click="ignore", icon=":material/download:",
            )  # fmt: skip


def _picture(project: Project, run: Run, ground: Ground, kind: str) -> bytes:
    from defuse_core.report.figures import figure_bytes
    from defuse_core.report.map_figures import draw_map

    method = run.summary["method"]
    latent_map = read_map(method, store.arrays(run.id, method))
    inside = ground.membership[latent_map.mistake_index] >= 0 if ground.regions is not None else slice(None)
    index = latent_map.mistake_index[inside]
    caption = f"{method}, {len(latent_map.codes):,} training codes, {len(index):,} mistakes, seed {run.seed}"
    figure = draw_map(
        latent_map.codes, ground.train_labels[latent_map.code_index], project.class_names,
        latent_map.mistakes[inside], ground.found.labels[index], told=caption,
    )  # fmt: skip
    return figure_bytes(figure, "svg" if kind == "svg" else "png")
