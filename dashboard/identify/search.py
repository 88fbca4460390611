"""Shows the search for mistakes: its cost, its progress and its results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import streamlit as st

from dashboard.shared import charts
from dashboard.shared.gallery import KINDS, export, read_mistakes, show_gallery, spread_out
from dashboard.shared.probe import STARTUP, offer_probe, probed
from dashboard.shared.verdicts import confusion, show_confused
from dashboard.shell import store
from dashboard.shell.jobs_panel import duration
from dashboard.shell.pace import Pace, seconds_left
from dashboard.shell.state import linked_choice, linked_page
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

_KIND_HELP = {
    "perturbation": "new: image and reconstruction were both classified correctly",
    "reconstruction": "the reconstruction is misclassified already: the generator's fault",
    "dataset": "the real image is misclassified already",
}
_PER_PAGE = 24


def show_noise(config: dict[str, Any]) -> None:
    """Draw the noise that a config adds to each element of a code."""
    from scipy.stats import beta

    a, b, scale = config["noise_a"], config["noise_b"], config["noise_scale"]
    if not all(value is not None and value > 0 for value in (a, b, scale)):
        return
    mean = a / (a + b) if config["centred"] else 0.0
    shares = np.linspace(0, 1, 401)
    density = beta.pdf(shares, a, b) / scale
    inside = np.isfinite(density)
    figure = charts.noise(scale * (shares[inside] - mean), density[inside], centred=config["centred"])
    st.plotly_chart(figure, key="noise")
    spread = scale * beta.std(a, b)
    moved = 0.0 if config["centred"] else scale * a / (a + b)
    st.caption(
        f"Every element of a latent code moves by {moved:.2f} on average, and jitters by {spread:.3f} (its "
        "standard deviation)"
        + ("." if config["centred"] else ": raw noise, as in the paper, shifts all codes the same way.")
    )


def show_estimate(project: Project, config: Mapping[str, Any], device: str) -> None:
    """Say what a search will cost, by the speed that a probe measured on the device."""
    n_images = _searched_around(project, config)
    n_codes = n_images * (config["n_perturbations"] or 0)
    speed = (probed(project, device) or {}).get("codes_per_second")
    left, right = st.columns([3, 1], vertical_alignment="center")
    if speed is None:
        left.caption(
            f"{n_images:,} images × Q = {n_codes:,} codes. How long that takes here is not known yet."
        )
    else:
        left.markdown(
            f"About **{duration(STARTUP + n_codes / speed)}**: {n_images:,} images × Q = {n_codes:,} codes, "
            f"{speed:,.0f} a second on this device"
        )
    with right:
        offer_probe(project, device)


def _searched_around(project: Project, config: Mapping[str, Any]) -> int:
    """Return the number of training images that a search with this config uses."""
    n_train: int = project.dataset["sizes"]["train"]
    return min(config.get("max_images") or n_train, n_train)


def show_search(project: Project, run: Run) -> None:
    """Show a running search: counts by kind, speed, time left."""
    points = store.workspace().runs.events(run.id, kind="point")
    batches = [event.data for event in points]
    total = _searched_around(project, run.config)
    if not batches:
        st.caption(
            "The search is waiting for another run …" if run.status == "queued" else "The search begins …"
        )
        return
    searched = np.cumsum([point["images"] for point in batches])
    counts = {kind: np.cumsum([point[kind] for point in batches]).tolist() for kind in KINDS}
    columns = st.columns(5)
    for column, kind in zip(columns, charts.KINDS, strict=False):
        column.metric(kind, f"{counts[kind][-1]:,}", help=_KIND_HELP[kind])
    recent = [event for event in points if run.attempt_at is not None and event.at >= run.attempt_at]
    spent = recent[-1].at - (run.attempt_at or 0.0) if recent else 0.0
    if run.live and recent and spent > 0:
        images = sum(event.data["images"] for event in recent) / spent
        codes = sum(event.data["decoded"] for event in recent) / spent
        details = f"decoded and classified; they lie around {images:,.1f} training images a second"
        columns[3].metric("Images a second", f"{codes:,.0f}", help=details)
        pace = Pace(float(searched[-1] / total), recent[-1].at)
        took = spent * float(searched[-1]) / sum(event.data["images"] for event in recent)  # in all attempts
        left = seconds_left(pace, spent=took, interval=spent / len(recent), now=time.time())
        columns[4].metric("Time left", "–" if left is None else duration(left))
    st.plotly_chart(charts.kinds_over(searched.tolist(), counts, of=total), key="kinds-over")


def show_mistakes(project: Project, run: Run) -> None:
    """Show the mistakes of a search: counts by kind, which class is predicted as which, the images."""
    counts = run.summary["mistakes"]
    columns = st.columns(4)
    columns[0].metric(
        "Mistakes kept", f"{sum(counts.values()):,}", help=f"around {run.summary['searched']:,} images"
    )
    for column, called in zip(columns[1:], charts.KINDS, strict=True):
        column.metric(called, f"{counts[called]:,}", help=_KIND_HELP[called])
    if not sum(counts.values()):
        st.info(
            "No mistake was found. Search wider: with a larger noise scale, or more perturbations per image."
        )
        return
    mistakes = read_mistakes(run.id)
    names = project.class_names
    numbers = [str(i) for i in range(len(names))]
    row = st.columns([2, 2, 2, 1])
    with row[0]:
        kind = linked_choice("Kind", list(charts.KINDS), key="kind")
    with row[1]:
        label = linked_choice("True class", numbers, key="label", show=lambda i: names[int(i)])
    with row[2]:
        prediction = linked_choice("Prediction", numbers, key="said", show=lambda i: names[int(i)])
    keep = np.ones(len(mistakes.labels), dtype=bool)
    keep &= True if kind is None else mistakes.kind == KINDS.index(kind)
    of_kind = keep.copy()
    keep &= True if label is None else mistakes.labels == int(label)
    keep &= True if prediction is None else mistakes.predictions == int(prediction)
    chosen = spread_out(np.nonzero(keep)[0])
    with row[3]:
        page = chosen[linked_page(len(chosen), _PER_PAGE, key="page")]
    flow = confusion(mistakes.labels[of_kind], mistakes.predictions[of_kind], len(names))
    line = st.container(horizontal=True)  # one below the other in a narrow window
    with line.container(width=360):
        st.plotly_chart(charts.matrix(flow, names, title="Which class is predicted as which"), key="flow")
        show_confused(flow, names)
    with line.container(width=590):
        st.caption(f"{len(page)} of {len(chosen):,}, in mixed order")
        show_gallery(project, run, mistakes, page)
        export(project, run, mistakes, np.sort(chosen), page)
