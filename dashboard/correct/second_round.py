"""The second round: search again on the corrected classifier, and see which regions are closed, open, new."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from dashboard.shell import store
from dashboard.shell.jobs_panel import TITLES, show_trouble, start
from dashboard.shell.store import later, workspace
from defuse_core.extensions.rounds import MAX_ERROR, MAX_FOUND
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.edits import names
from defuse_core.workspace.pipeline import SECOND_ROUND, next_round, searched_lam
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project, Workspace

if TYPE_CHECKING:
    from defuse_core.extensions.rounds import RegionFound, RegionNow
    from defuse_core.steps.second_round import Rounds


def begin(project: Project, run: Run) -> None:
    """Start a search of the corrected classifier, and its grouping, with the settings of the first."""
    first = store.workspace().runs.ancestry(run.id)
    ground = start(project, "classifier", {"weights": f"corrected:{run.id}"})
    for step in SECOND_ROUND[1:]:
        if ground is None:
            return
        before, device = first[step], first[step].resources.device
        ground = start(
            project, step, before.config, seed=before.seed, device=device, on=[ground, first["vae"]]
        )


@later("the second round", max_entries=2)
def rounds_of(run_id: int, second: tuple[tuple[str, int], ...]) -> Callable[[], Rounds]:
    """What became of the regions of a correction in a second search; None while it is computed."""
    return partial(_compare, workspace(), run_id, dict(second))


def _compare(store: Workspace, run_id: int, second: dict[str, int]) -> Rounds:
    from defuse_core.steps.second_round import compare

    return compare(store, run_id, second)


def show_second_round(project: Project, run: Run) -> None:
    """Offer to search again on the corrected classifier; show what became of the regions."""
    st.subheader("Second round")
    runs = next_round(store.workspace(), run)
    if not runs:
        st.caption(
            "Search the corrected classifier just as the first one was searched: are the bugs gone, and "
            "has the correction made others? The results of the first round above stay as they are."
        )
        if st.button("Identify again", icon=":material/replay:", type="primary"):
            begin(project, run)
            st.rerun()
        return
    for step in SECOND_ROUND:
        if step in runs and not runs[step].live and runs[step].status != "done":
            show_trouble(runs[step])
    if runs["classifier"].status == "done":
        searched, chosen = searched_lam(runs["classifier"], run), run.summary["corrected"]["chosen"]["lam"]
        if searched != chosen:
            st.warning(f"The second round searched λ = {searched:g}; now λ = {chosen:g} is chosen.")
        if "identify" not in runs:
            st.warning("The corrected classifier has not been searched with the first round's generator.")
        if (searched != chosen or "identify" not in runs) and st.button(
            "Identify again", icon=":material/replay:"
        ):
            begin(project, run)
            st.rerun()
    waiting = [TITLES[step] for step in SECOND_ROUND if step in runs and runs[step].live]
    if waiting:
        st.caption(f"Running: {', '.join(waiting)}; see the sidebar.")
    if "identify" in runs and runs["identify"].status == "done":
        ended = [step for step in SECOND_ROUND[1:] if step in runs and runs[step].status == "done"]
        done = {step: runs[step].id for step in ended}
        rounds = rounds_of(run.id, tuple(done.items()))
        if rounds is not None:
            _show_rounds(rounds, run, done)


def _show_rounds(rounds: Rounds, run: Run, second: Mapping[StepName, int]) -> None:
    closed = sum(now.status == "closed" for now in rounds.regions)
    new = sum(region.within is None for region in rounds.found)
    columns = st.columns(4)
    columns[0].metric("Closed", f"{closed} of {len(rounds.regions)}")
    columns[1].metric("Still open", len(rounds.regions) - closed)
    columns[2].metric("New regions", new if "distill" in second else "–", help=_NEW)
    columns[3].metric(
        "Mistakes found", f"{rounds.n_after:,}", f"{rounds.n_after - rounds.n_before:,}",
        delta_color="inverse", help=f"By the same search that found {rounds.n_before:,} before",
    )  # fmt: skip
    distill = store.workspace().runs.ancestry(run.id)["distill"]
    custom_names = names(store.workspace().annotations.edits(distill.id))
    st.dataframe(_regions_table(rounds, custom_names), hide_index=True, column_config=_COLUMNS)
    st.caption(
        f"A region is closed where at most {MAX_ERROR:.0%} of its test draws are misclassified and the "
        f"second search (run {second['identify']}) finds at most {MAX_FOUND:.0%} as many mistakes in it "
        "that are not predicted as its label. A search keeps few mistakes an image: how many it finds in all "
        "says little of the repair."
    )
    if rounds.found:
        st.dataframe(_found_table(rounds), hide_index=True)
        st.caption(
            f"Regions of the second round (run {second['distill']}). They are not labelled yet: a region "
            "of mistakes is a bug only once a person says what its draws show."
        )


_NEW = "Regions of the second search, most of whose mistakes lie in no region of the first"
_COLUMNS = {
    "error before": st.column_config.NumberColumn(
        format="percent", help="Share of its test draws that are misclassified"
    ),
    "error after": st.column_config.NumberColumn(format="percent"),
    "mistakes before": st.column_config.NumberColumn(format="localized", help="Found by the first search"),
    "mistakes after": st.column_config.NumberColumn(format="localized", help="Found by the second search"),
}


def _regions_table(rounds: Rounds, custom_names: dict[int, str]) -> pd.DataFrame:
    rows = [
        {
            "region": now.region_id,
            "name": custom_names.get(now.region_id, ""),
            "status": now.status,
            "why open": _why_open(now),
            "error before": now.before.estimate,
            "error after": now.after.estimate,
            "95 % interval": f"{now.after.low:.2f} … {now.after.high:.2f} (n = {now.after.n})",
            "mistakes before": now.n_before,
            "mistakes after": now.n_after,
        }
        for now in rounds.regions
    ]
    table = pd.DataFrame(rows)
    return table if (table["name"] != "").any() else table.drop(columns="name")


def _told(region: RegionFound) -> str:
    if region.within is None:
        return "new"
    status = "a failure" if region.was_failure else "no failure so far"
    return f"where region {region.within} was, {status}"


def _why_open(now: RegionNow) -> str:
    """Name the limits that an open region exceeds: of its draws, of its search, or both."""
    draws = now.after.estimate > MAX_ERROR
    search = now.n_after > MAX_FOUND * now.n_before
    return " and ".join(name for name, over in (("draws", draws), ("search", search)) if over)


def _found_table(rounds: Rounds) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "region of the second round": [region.region_id for region in rounds.found],
            "mistakes": [region.n_mistakes for region in rounds.found],
            "is": [_told(region) for region in rounds.found],
        }
    )
