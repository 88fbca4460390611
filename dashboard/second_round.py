"""The second round: search again on the corrected classifier, and see which regions are closed, open, new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from dashboard import cache
from dashboard.jobs_panel import TITLES, show_trouble, start
from defuse_core.extensions.rounds import MAX_ERROR, MAX_FOUND
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.edits import names
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project, Workspace

if TYPE_CHECKING:
    from defuse_core.base.intervals import Interval
    from defuse_core.extensions.rounds import RegionFound, RegionNow
    from defuse_core.steps.source import Source

STEPS: tuple[StepName, ...] = ("classifier", "identify", "distill")


@dataclass(frozen=True)
class Rounds:
    """What became of the regions.

    Attributes
    ----------
    regions : sequence of RegionNow
        The failure regions of the first round.
    found : sequence of RegionFound
        Regions of the second; none before it is distilled.
    n_before, n_after : int
        Mistakes that either search found in all.
    """

    regions: Sequence[RegionNow]
    found: Sequence[RegionFound]
    n_before: int
    n_after: int


def next_round(workspace: Workspace, run: Run) -> dict[str, Run]:
    """The newest runs of the second round that began with a correction, by step; empty where none did."""
    runs = workspace.runs.of_project(run.project_id)
    mine = [r for r in runs if r.step == "classifier" and r.config["weights"] == f"corrected:{run.id}"]
    found = {"classifier": mine[-1]} if mine else {}
    for step, ground in zip(STEPS[1:], STEPS, strict=False):
        standing = [r for r in runs if r.step == step and ground in found and found[ground].id in r.upstream]
        if standing:
            found[step] = standing[-1]
    return found


def begin(project: Project, run: Run) -> None:
    """Search the corrected classifier as the first was searched, and group what is found likewise."""
    first = cache.workspace().runs.ancestry(run.id)
    if start(project, "classifier", {"weights": f"corrected:{run.id}"}) is None:
        return
    for step in STEPS[1:]:
        before = first[step]
        if start(project, step, before.config, seed=before.seed, device=before.resources.device) is None:
            return


def compare(store: Workspace, run_id: int, second: dict[str, int]) -> Rounds:
    """Follow the failure regions of a correction into the search that came after it; on a thread.

    Parameters
    ----------
    second : dict of str to int
        Runs of the second round by step: identify, and distill where it is done.
    """
    from defuse_core.extensions.rounds import follow_regions, misread, trace_regions
    from defuse_core.method.distillation import membership
    from defuse_core.steps.source import Source

    source, run = Source(store, run_id), store.runs.get(run_id)
    mixture, min_weight = source.mixture(), source.upstream("distill").config["min_weight"]
    mistakes = Source(store, second["identify"]).mistakes()
    verdicts = source.read("correct", "failures")[1]["verdicts"]
    labels = {v["region_id"]: v["label"] for v in verdicts if v["is_failure"]}
    searches = (source.mistakes(), mistakes)
    lying = [membership(mixture, s.latents, min_weight=min_weight).numpy() for s in searches]
    wrong = [
        misread(inside, s.predictions.numpy(), labels) for inside, s in zip(lying, searches, strict=True)
    ]
    errors = _errors(source, searched_lam(Source(store, second["identify"]).upstream("classifier"), run))
    found: list[RegionFound] = []
    if "distill" in second:
        later = Source(store, second["distill"])
        regions = membership(
            later.mixture(), mistakes.latents, min_weight=later.upstream("distill").config["min_weight"]
        )
        found = trace_regions(regions.numpy(), lying[1], failures=errors.keys())
    return Rounds(follow_regions(errors, *wrong), found, *(len(s) for s in searches))


def searched_lam(classifier: Run, run: Run) -> float:
    """The λ whose classifier a second round searched, which need not be the one that is chosen now."""
    point = classifier.summary.get("corrected") or run.summary["corrected"]["chosen"]
    return float(point["lam"])


def _errors(source: Source, lam: float) -> dict[int, tuple[Interval, Interval]]:
    """By failure region, the share of its test draws misread before and after, held out or not."""
    from defuse_core.base.intervals import Interval
    from defuse_core.steps.correct import BEFORE, SAID, task_of

    failures = source.read("correct", "failures")[0]
    said = [source.read("correct", task + SAID)[0] for task in (BEFORE, task_of(lam))]
    errors = {}
    for part, drawn in (("region", "test"), ("held_out", "held_out")):
        labels, ids = failures[f"{drawn}.labels"], failures[f"{drawn}.ids"]
        for region_id in ids.unique().tolist():
            mine = ids == region_id
            wrong = [int((given[part][mine] != labels[mine]).sum()) for given in said]
            before, after = (Interval.wilson(n, int(mine.sum())) for n in wrong)
            errors[region_id] = before, after
    return errors


def show_second_round(project: Project, run: Run) -> None:
    """Offer to search again on the corrected classifier; show what became of the regions."""
    st.subheader("Second round")
    runs = next_round(cache.workspace(), run)
    if not runs:
        st.caption(
            "Search the corrected classifier just as the first one was searched: are the bugs gone, and "
            "has the correction made others? The first round stays as it is, to be looked at above."
        )
        if st.button("Identify again", icon=":material/replay:", type="primary"):
            begin(project, run)
            st.rerun()
        return
    for step in STEPS:
        if step in runs and not runs[step].live and runs[step].status != "done":
            show_trouble(runs[step])
    if runs["classifier"].status == "done":
        searched, chosen = searched_lam(runs["classifier"], run), run.summary["corrected"]["chosen"]["lam"]
        if searched != chosen:
            st.warning(f"The second round searched λ = {searched:g}; now λ = {chosen:g} is chosen.")
            if st.button("Identify again", icon=":material/replay:"):
                begin(project, run)
                st.rerun()
    waiting = [TITLES[step] for step in STEPS if step in runs and runs[step].live]
    if waiting:
        st.caption(f"Under way: {', '.join(waiting)}; see the left.")
    if "identify" in runs and runs["identify"].status == "done":
        done = {step: runs[step].id for step in STEPS[1:] if step in runs and runs[step].status == "done"}
        rounds = cache.rounds(run.id, done)
        if rounds is not None:
            _show_rounds(rounds, run, done)


def _show_rounds(rounds: Rounds, run: Run, second: Mapping[StepName, int]) -> None:
    closed = sum(now.status == "closed" for now in rounds.regions)
    new = sum(found.within is None for found in rounds.found)
    columns = st.columns(4)
    columns[0].metric("Closed", f"{closed} of {len(rounds.regions)}")
    columns[1].metric("Still open", len(rounds.regions) - closed)
    columns[2].metric("New regions", new if "distill" in second else "–", help=_NEW)
    columns[3].metric(
        "Mistakes found", f"{rounds.n_after:,}", f"{rounds.n_after - rounds.n_before:,}",
        delta_color="inverse", help=f"By the same search that found {rounds.n_before:,} before",
    )  # fmt: skip
    given = names(cache.workspace().annotations.edits(cache.workspace().runs.ancestry(run.id)["distill"].id))
    st.dataframe(_regions_table(rounds, given), hide_index=True, column_config=_COLUMNS)
    st.caption(
        f"A region is closed where at most {MAX_ERROR:.0%} of its test draws are misread and the "
        f"second search (run {second['identify']}) finds at most {MAX_FOUND:.0%} as many mistakes in it "
        "that are not read as its label. A search keeps few mistakes an image: how many it finds in all says "
        "little of the repair."
    )
    if rounds.found:
        st.dataframe(_found_table(rounds), hide_index=True)
        st.caption(
            f"Regions of the second round (run {second['distill']}). They are not labelled yet: a region "
            "of mistakes is a bug only once a person says what its draws show."
        )


_NEW = "Regions of the second search most of whose mistakes lie in no region of the first"
_COLUMNS = {
    "error before": st.column_config.NumberColumn(format="percent", help="Share of its test draws misread"),
    "error after": st.column_config.NumberColumn(format="percent"),
    "mistakes before": st.column_config.NumberColumn(format="localized", help="That the first search found"),
    "mistakes after": st.column_config.NumberColumn(format="localized", help="That the second search found"),
}


def _regions_table(rounds: Rounds, given: dict[int, str]) -> pd.DataFrame:
    rows = [
        {
            "region": now.region_id,
            "name": given.get(now.region_id, ""),
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


def _told(found: RegionFound) -> str:
    if found.within is None:
        return "new"
    return f"where region {found.within} was, " + ("a failure" if found.was_failure else "no failure so far")


def _why_open(now: RegionNow) -> str:
    """Which of the two limits a region that is open does not keep."""
    draws = now.after.estimate > MAX_ERROR
    search = now.n_after > MAX_FOUND * now.n_before
    return " and ".join(name for name, over in (("draws", draws), ("search", search)) if over)


def _found_table(rounds: Rounds) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "region of the second round": [found.region_id for found in rounds.found],
            "mistakes": [found.n_mistakes for found in rounds.found],
            "is": [_told(f) for f in rounds.found],
        }
    )
