"""Routes to the pages, and shows the sidebar."""

from __future__ import annotations

import os

import streamlit as st

from dashboard.shell import state, store
from dashboard.shell.jobs_panel import show_pipeline
from dashboard.shell.server import LOGIN
from dashboard.shell.text import plain
from defuse_core.workspace.database import WorkspaceError

PAGES = {
    "overview": ("Overview", "home", "All projects: what was found in each and what comes next."),
    "classifier": ("Classifier", "neurology", "Upload or train the classifier; see what it gets wrong."),
    "generator": ("Generator", "auto_awesome", "Train the β-VAE of the images; see if it is sharp enough."),
    "identify": ("Identify", "search", "Search for mistakes that the test set does not contain."),
    "map": ("Map", "scatter_plot", "See where the mistakes lie among the training images."),
    "regions": ("Regions", "bubble_chart", "Group the mistakes into regions, and look at each at any τ."),
    "label": ("Label", "label", "Say what the draws of a region show."),
    "correct": ("Correct", "build",
                "Fine-tune the classifier on its bugs, and see what that costs elsewhere."),
    "evidence": ("Evidence", "fact_check",
                 "What the correction changed, how sure that is, and what would have changed without it."),
    "present": ("Present", "slideshow", "Show what was found, in large type, region by region."),
}  # fmt: skip

if os.environ.get(LOGIN) and not st.user.is_logged_in:
    st.button("Log in", on_click=st.login)
    st.stop()
st.set_page_config(page_title="Defuse", page_icon="🐞", layout="wide")
page = st.navigation(
    [
        st.Page(
            f"../pages/{name}.py",
            title=title,
            icon=f":material/{icon}:",
            help=description,
            default=name == "overview",
        )
        for name, (title, icon, description) in PAGES.items()
    ]
)
try:
    workspace = store.workspace()
except WorkspaceError as error:
    st.error(plain(str(error)))
    st.stop()
with st.sidebar:
    project = state.choose_project(workspace.projects())
    if project is not None:
        show_pipeline(project)
    devices = store.devices()
    st.caption(f":material/memory: {devices[0] if devices else 'looking for a GPU …'}")
store.warm_up()
state.show_note()
page.run()
