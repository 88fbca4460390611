"""Measures how fast this machine is, so that pages can estimate how long a run will take."""

from __future__ import annotations

import streamlit as st

from dashboard.shell import store
from dashboard.shell.jobs_panel import newest, start
from defuse_core.workspace.workspace import Project

STARTUP = 4.0
"""Seconds that a run takes before it computes."""


def offer_probe(project: Project, device: str) -> None:
    """Offer to measure how fast a device searches and fine-tunes."""
    probe = newest(project, "probe")
    if probe is not None and probe.live:
        st.caption("Measuring …")
    elif st.button("Measure the speed", help="Runs for a few seconds, and stores nothing"):
        start(project, "probe", {}, device=device)
        st.rerun()


def probed(project: Project, device: str) -> dict[str, float] | None:
    """Return the speeds that the newest probe, if one is not stale, measured on a device."""
    first = next((entry.device for entry in store.devices()), "auto")
    names = {device, *({"auto", first} if device in ("auto", first) else ())}
    runs = store.workspace().runs.of_project(project.id, "probe")
    fitting = [r for r in runs if r.status == "done" and not r.stale and r.resources.device in names]
    return fitting[-1].summary if fitting else None
