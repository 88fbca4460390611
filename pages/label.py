"""Label: look at draws of a region and say what they show (algorithm 3)."""

from __future__ import annotations

import streamlit as st

from dashboard.label.exchange import show_exchange, show_simulated
from dashboard.label.labelling import show_labelling
from dashboard.label.report import show_agreement
from dashboard.shared import kept
from dashboard.shared.generator_mark import show_mark
from dashboard.shell import store
from dashboard.shell.state import need_project, recall

project = need_project()
st.title("Label")
st.caption("What do you see? One key an image; the region is a failure if most of them are misclassified.")

run = store.workspace().runs.latest(project.id, "distill", done=True)
if run is None:
    st.info("Needs regions first.")
    st.page_link("../pages/regions.py", icon=":material/arrow_forward:")
    st.stop()
if run.stale:
    st.warning("There is a newer search than these regions.")
show_mark(run)
show_labelling(project, run)
with st.expander("Agreement between annotators", on_change="rerun", key="agreement-open") as agreement:
    if agreement.open:
        show_agreement(run)
with st.expander("Import, export, simulated annotators", on_change="rerun", key="exchange-open") as exchange:
    regions = kept.regions(run.id) if exchange.open else None
    if regions is not None:
        show_exchange(project, run, regions, n=int(recall("images", 10)))
        show_simulated(project, run)
