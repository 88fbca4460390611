"""Generator: the β-VAE that models the training images, and whether it is sharp enough."""

from __future__ import annotations

from functools import partial

import streamlit as st

from dashboard.shared.reconstruction import (
    show_control,
    show_generator,
    show_losses,
    show_training,
    train_further,
)
from dashboard.shell.forms import config_form
from dashboard.shell.jobs_panel import follow, newest, show_trouble, start
from dashboard.shell.state import need_project
from defuse_core.reproduction.demo import shipped_cards

project = need_project()
st.title("Generator")
st.caption(
    "A β-VAE learns what the training images look like. Mistakes are searched for around its latent codes."
)

run = newest(project, "vae")
with st.expander("Train a generator, or use a shipped one", expanded=run is None or run.status != "done"):
    fitting = [
        name
        for name, card in shipped_cards("vae").items()
        if [card["vae"]["channels"], *[card["vae"]["image_size"]] * 2] == project.dataset["image_shape"]
    ]
    weights = st.selectbox(
        "Generator", fitting, key="vae-weights", index=None, placeholder="train one on this data",
        format_func=lambda name: f"{name}, from models/",
    )  # fmt: skip
    config = {"weights": f"shipped:{weights}"}
    seed = 0
    if weights is None:
        config = config_form(
            "vae",
            key=f"vae-{project.id}",
            main=(
                "latent_dim",
                "beta",
                "consistency_weight",
                "epochs",
                "learning_rate",
                "batch_size",
            ),
            leave_out=("weights", "pretrained"),
        )
        seed = st.number_input("seed", 0, value=0, step=1, key="vae-seed", help="Of every random stream")
    label = "Train" if weights is None else "Use this generator"
    if st.button(label, type="primary", icon=":material/play_arrow:"):
        if start(project, "vae", config, seed=seed) is not None and newest(project, "classifier") is not None:
            start(project, "control", {})  # waits for the generator, then measures it
        st.rerun()

if run is None:
    st.info("No generator yet.")
elif run.live:
    follow(run, partial(show_training, project))
elif run.status == "done":
    show_control(project)
    train_further(project, run)
    show_generator(project, run)
    show_losses(run)
else:
    show_trouble(run)
    show_losses(run)
