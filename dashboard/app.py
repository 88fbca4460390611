"""Router and sidebar."""

from __future__ import annotations

import os

import streamlit as st

from dashboard import cache, state
from dashboard.jobs_panel import show_pipeline
from dashboard.server import LOGIN
from defuse_core.database import WorkspaceError

if os.environ.get(LOGIN) and not st.user.is_logged_in:
    st.button("Log in", on_click=st.login)
    st.stop()
st.set_page_config(page_title="Defuse", page_icon="🐞", layout="wide")
page = st.navigation(
    [
        st.Page(
            "../pages/overview.py",
            title="Overview",
            icon=":material/home:",
            help="All projects: what was found in each and what comes next.",
            default=True,
        )
    ]
)
try:
    workspace = cache.workspace()
except WorkspaceError as error:
    st.error(str(error))
    st.stop()
with st.sidebar:
    st.subheader("Defuse")
    project = state.choose_project(workspace.projects())
    if project is not None:
        show_pipeline(project)
    found = cache.device()
    st.caption(f":material/memory: {found or 'looking for a GPU …'}")
state.show_note()
page.run()
