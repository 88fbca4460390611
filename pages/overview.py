"""Overview: projects, what was found in each, and the next step to take."""

from __future__ import annotations

import streamlit as st

from dashboard.overview.project_files import import_form, show_export
from dashboard.overview.projects import delete, open_demo, project_card, take_next_step
from dashboard.shared.new_project import new_project_form
from dashboard.shell import store
from dashboard.shell.state import open_project
from defuse_core.workspace.pipeline import next_step, stages

st.title("Overview")
workspace = store.workspace()
projects = workspace.projects()

left, right = st.columns(2, gap="large")
with left, st.container(border=True):
    st.markdown("**New project**")
    new_project_form()
    with st.expander("Or import one"):
        import_form()
with right, st.container(border=True):
    st.markdown("**See it work**")
    st.markdown("5,000 handwritten digits with a trained classifier and generator.")
    st.button("Open the demo", type="primary", icon=":material/play_arrow:", on_click=open_demo)

for project in projects:
    pipeline = stages(workspace, project.id)
    with st.container(border=True, key=f"card-{project.id}"):
        project_card(project, pipeline)
        coming = next_step(pipeline)
        row = st.container(horizontal=True)
        row.button("Open", key=f"open-{project.id}", on_click=open_project, args=(project.name,))
        if coming and row.button(f"Next: {coming}", key=f"next-{project.id}", type="primary"):
            take_next_step(project, coming)
        with row.popover("Export", icon=":material/archive:"):
            show_export(project)
        with row.popover("Delete", icon=":material/delete:"):
            st.markdown("Its runs, labels and files are deleted, too.")
            st.button("Delete it", key=f"delete-{project.id}", on_click=delete, args=(project,))
