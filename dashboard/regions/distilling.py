"""Shows a distillation, the table of its regions, and the region that is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from dashboard.shared import charts, kept
from dashboard.shared.gallery import read_mistakes
from dashboard.shared.region_data import Regions
from dashboard.shared.region_detail import (
    linked_region,
    region_name,
    show_actions,
    show_mistakes,
    show_scrubber,
)
from dashboard.shared.region_table import COLUMNS, region_table
from dashboard.shared.table_csv import table_csv
from dashboard.shell import store
from dashboard.shell.jobs_panel import follow, newest, show_trouble, start, tell_begin
from dashboard.shell.state import plain, project_link, recall, remember
from defuse_core.report.verdicts import count_failures, tell_failures
from defuse_core.workspace.edits import names, newest_change
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project


def show_distillation(run: Run) -> None:
    """Show the progress of a distillation: its lower bound over the iterations."""
    points = store.workspace().runs.events(run.id, kind="point")
    if not points:
        if run.live:
            st.caption(tell_begin(run, "The mixture is fitted …"))
        return
    figure = charts.line(
        [int(event.key) for event in points], [event.data["lower_bound"] for event in points],
        title="Lower bound of the evidence", x="iteration", y="nats a code",
    )  # fmt: skip
    st.plotly_chart(figure, key="lower-bound")


def show_regions(project: Project, run: Run) -> None:
    """Show the table of regions, and the one that is chosen."""
    regions, verdicts = kept.regions(run.id), kept.verdicts(run.id)
    if regions is None or verdicts is None:
        return
    if not regions.found:
        st.info("No component has enough weight to be a region. Lower min weight, and distill again.")
        return
    mistakes = read_mistakes(store.workspace().runs.ancestry(run.id)["identify"].id)
    edits = store.workspace().annotations.edits(run.id)
    region_names = names(edits)
    columns = st.columns(4)
    inside = int((regions.membership >= 0).sum())
    columns[0].metric("Regions", len(regions.found))
    columns[1].metric("Mistakes in them", f"{inside:,}", help=f"of {len(regions.membership):,}")
    labelled = [verdicts[i] for i in regions.ids if i in verdicts]
    columns[2].metric("Labelled", f"{len(labelled)} of {len(regions.ids)}")
    n, n_sure = count_failures(labelled)
    rho = kept.labeling(run.id).disagreement_threshold
    columns[3].metric("Failures", n, help=f"More than ρ = {rho:g} of their labelled draws are misclassified")
    if labelled:
        st.caption(
            f"{tell_failures(n, n_sure)}. Sure is a verdict whose 95 % interval leaves out ρ = {rho:g}: "
            "label more draws of the others to be sure of them."
        )
    if not run.summary["converged"]:
        st.warning(
            f"The fit stopped after {run.summary['iterations']} iterations, before it settled: with more, "
            "mistakes may lie in other regions. Raise max iter, and distill again before you label."
        )
    table = region_table(
        regions, mistakes, project.class_names, names=region_names, verdicts=verdicts,
        found_again=_found_again(run),
    )  # fmt: skip
    key = f"regions-{run.id}-{newest_change(edits)}"
    st.dataframe(
        table, hide_index=True, column_config=COLUMNS, key=key, selection_mode="multi-row",
        on_select=lambda: _look_at(key, regions.ids), height=min(420, 38 + 35 * len(table)),
        alt="Regions with weight, mistakes, error and status",
    )  # fmt: skip
    st.download_button(
        "Regions as CSV", lambda: table_csv(table), file_name=f"regions-run{run.id}.csv", mime="text/csv",
        on_click="ignore", icon=":material/download:",
    )  # fmt: skip
    _show_stability(project, run)
    chosen = _look_for(regions, region_names)
    st.subheader(plain(region_name(chosen, region_names)), anchor=False)
    show_actions(run, regions, chosen, _selected(key, regions.ids))
    show_scrubber(project, run, regions, chosen, verdicts.get(chosen))
    with st.expander("Mistakes in this region"):
        show_mistakes(project, run, regions, chosen, mistakes)


def _selected(key: str, ids: Sequence[int]) -> list[int]:
    """Return the regions whose rows are selected in the table."""
    selection: Any = recall(key, {})
    return [ids[row] for row in selection.get("selection", {}).get("rows", []) if row < len(ids)]


def _look_at(key: str, ids: Sequence[int]) -> None:
    if selected := _selected(key, ids):
        remember("region", str(selected[-1]))


def _look_for(regions: Regions, region_names: dict[int, str]) -> int:
    """Return the region to show: the one chosen here, in the table or by a link, else the heaviest."""
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    with left:
        chosen = linked_region(regions.ids, region_names)
    region_id = regions.ids[0] if chosen is None else chosen
    with right:
        st.page_link(
            "../pages/label.py", label="Label it", icon=":material/label:",
            query_params={"region": region_name(region_id, region_names), **project_link()},
        )  # fmt: skip
    return region_id


def _found_again(run: Run) -> dict[int, float]:
    """Return how far other seeds find each region; empty if that was not measured on this run."""
    done = [
        r
        for r in store.workspace().runs.of_project(run.project_id, "stability")
        if r.status == "done" and run.id in r.upstream
    ]
    return {r["region_id"]: r["found_again"] for r in done[-1].summary["regions"]} if done else {}


def _show_stability(project: Project, run: Run) -> None:
    """Show how far the regions depend on the seed, or offer to measure it."""
    stability = newest(project, "stability")
    mine = stability if stability is not None and run.id in stability.upstream else None
    if mine is not None and mine.live:
        follow(mine, _stability_progress)
        return
    left, right = st.columns([3, 1], vertical_alignment="center")
    if mine is not None and mine.status == "done":
        scores = mine.summary["adjusted_rand"]
        left.caption(
            f"Under {len(scores)} other seeds the mistakes are grouped with an adjusted Rand index of "
            f"{min(scores):.2f} … {max(scores):.2f} (1 is alike, 0 is chance), into "
            f"{min(mine.summary['n_regions'])} … {max(mine.summary['n_regions'])} regions. "
            "That is of the regions as distilled; edits are not in it."
        )
    else:
        if mine is not None:
            show_trouble(mine)
        left.caption("Would another seed find the same regions?")
        if right.button("Measure the stability", help="Fits the mixture under five other seeds"):
            start(project, "stability", {}, on=[run])
            st.rerun()


def _stability_progress(run: Run) -> None:
    tasks = store.workspace().runs.tasks(run.id)
    done = sum(task.status == "done" for task in tasks)
    st.progress(done / max(1, len(tasks)), text=f"Fitted under {done} of {len(tasks) or '…'} other seeds")
