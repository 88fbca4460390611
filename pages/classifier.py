"""Classifier: import or train one; then see what it gets wrong on real images."""

from __future__ import annotations

import streamlit as st

from dashboard.classifier.beginning import choose_beginning
from dashboard.classifier.bring import bring_classifier
from dashboard.shared.data_card import data_card
from dashboard.shared.verdicts import show_classifier, show_training
from dashboard.shell.forms import config_form
from dashboard.shell.jobs_panel import follow, newest, show_trouble, start
from dashboard.shell.state import linked_way, need_project

project = need_project()
st.title("Classifier")
data_card(project)

run = newest(project, "classifier")
with st.expander("Upload or train a classifier", expanded=run is None or run.status != "done"):
    way = linked_way("How", ("Bring one", "Train one here"), key="how")
    if way == "Bring one":
        bring_classifier(project)
    else:
        pretrained = choose_beginning(project)
        config = config_form(
            "classifier",
            key=f"train-{project.id}",
            main=("architecture", "optimizer", "learning_rate", "epochs", "batch_size", "augmentation"),
            leave_out=("weights", "pretrained", "code_path", "trust_program", "channel_order"),
        )
        seed = st.number_input("seed", 0, value=0, step=1, key="train-seed", help="Of every random stream")
        if st.button("Train", type="primary", icon=":material/play_arrow:"):
            start(project, "classifier", {**config, "pretrained": pretrained}, seed=seed)
            st.rerun()

if run is None:
    st.info("No classifier yet: upload the one that you want to examine, or train a small one here.")
elif run.live:
    follow(run, show_training)
elif run.status == "done":
    show_classifier(project, run)
else:
    show_trouble(run)
