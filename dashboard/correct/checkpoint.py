"""Download the corrected classifier: safetensors under the names its weights came with, and its card."""

from __future__ import annotations

import re

import streamlit as st

from dashboard.shell import store
from defuse_core.workspace.runs import Run


def show_download(run: Run, task: str, called: str) -> None:
    """Offer the classifier that a task of a correct run made, once the run is done.

    Parameters
    ----------
    run : Run
    task : str
    called : str
        The task as the page names it.
    """
    if run.status != "done":
        st.caption("The corrected checkpoint can be downloaded once the run is done.")
        return
    name = f"corrected-run{run.id}-{re.sub(r'[^A-Za-z0-9.-]+', '-', task)}"

    def checkpoint(part: int) -> bytes | str:
        from defuse_core.exchange.checkpoint.export import corrected_checkpoint

        return corrected_checkpoint(store.workspace(), run.id, task=task, name=name)[part]

    row = st.container(horizontal=True)
    row.download_button(
        f"Corrected checkpoint, {called}", lambda: checkpoint(0), file_name=f"{name}.safetensors",
        mime="application/octet-stream", on_click="ignore", icon=":material/download:", type="primary",
        help="Safetensors, in the architecture and under the names that the weights came with",
    )  # fmt: skip
    row.download_button(
        "Its card", lambda: checkpoint(1), file_name=f"{name}.md", mime="text/markdown", on_click="ignore",
        icon=":material/description:", help="What it is, how it was made, how to load it, and its limits",
    )  # fmt: skip
