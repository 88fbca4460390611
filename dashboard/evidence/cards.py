"""The cards of the page Evidence: each shows a figure, what it says in words, its sources, and its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from dashboard.evidence import charts as evidence_charts
from dashboard.evidence.pictures import accuracies_picture, changes_picture, controls_picture
from dashboard.evidence.tables import (
    accuracies_table,
    changes_table,
    held_out_scores,
    regions_table,
    scores_table,
)
from dashboard.shared.change_chart import before_after
from dashboard.shared.figure_export import Export, show_export
from dashboard.shell.state import plain
from dashboard.shell.streamlit_internals import Container
from defuse_core.report.evidence import (
    CONTROLS,
    Evidence,
    class_changes,
    control_rows,
    region_changes,
    tell_change,
    tell_control,
    tell_lambda,
    tell_runs,
    tell_sizes,
    tell_taus,
    tell_tuning,
)
from defuse_core.report.numbers import SURE, percent, within
from defuse_core.report.sweep import Change
from defuse_core.report.verdicts import failures_told, label_fit, tell_fit
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURE, _HALF = 580, 455  # pixels
_CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}


@dataclass(frozen=True)
class Card:
    """What the cards of one evaluation have in common."""

    project: Project
    run: Run
    correct: Run
    found: Evidence

    def told(self, *parts: str) -> str:
        """Return a caption: what is particular to a figure, then the runs and their seeds."""
        seeds = self.found.results["seeds"]
        return "; ".join([*filter(None, parts), tell_runs(self.run, self.correct, seeds)]) + "."

    def show(
        self, name: str, figure: go.Figure, caption: str, draw: Callable[[], Figure],
        table: Callable[[], pd.DataFrame], *, alt: str,
    ) -> None:  # fmt: skip
        """Show a figure with its caption and its downloads."""
        st.plotly_chart(figure, key=f"{name}-{self.run.id}", config=_CONFIG, alt=alt)
        self.show_files(name, caption, draw, table)

    def show_files(
        self, name: str, caption: str, draw: Callable[[], Figure], table: Callable[[], pd.DataFrame]
    ) -> None:
        """Show a caption and the downloads of its figure."""
        row = st.container(horizontal=True, vertical_alignment="center", gap="medium", wrap=False)
        row.caption(plain(caption))
        with row:
            show_export(Export(f"evidence-run{self.run.id}-{name}", caption, draw, table))


@contextmanager
def bordered(title: str, told: str) -> Iterator[None]:
    """Show a card with a title and a line on what its figure shows."""
    with st.container(border=True):
        st.subheader(title, anchor=False)
        st.caption(told)
        yield


def beside() -> tuple[Container, Container]:
    """Return places for a figure and for the text beside it, or below it in a narrow window."""
    row = st.container(horizontal=True, gap="medium")
    return row.container(width=_FIGURE), row.container()


def side_by_side() -> tuple[Container, Container]:
    """Return places for two figures, one below the other in a narrow window."""
    row = st.container(horizontal=True, gap="medium")
    return row.container(width=_HALF), row.container(width=_HALF)


def show_accuracies(card: Card) -> None:
    """Show figure 4: the models on all sets of images, and whether the test split changed."""
    evidence, flips = card.found, card.found.results["flips"]
    with bordered("Accuracy before and after", "Figure 4 of the paper, with 95 % intervals (Wilson)"):
        left, right = beside()
        with left:
            card.show(
                "figure4", evidence_charts.accuracies(evidence.models),
                card.told(tell_sizes(evidence), tell_taus(evidence.results), tell_tuning(evidence.results)),
                partial(accuracies_picture, evidence), partial(accuracies_table, evidence),
                alt="Accuracy of every model on the real images and on the regions",
            )  # fmt: skip
        with right:
            _tell_accuracies(evidence)
            st.markdown(tell_change(flips["fixed"], flips["broken"], flips["p"]))
            st.caption(
                "An interval says how far another sample of the same images or draws could have moved a "
                "number. It covers no other search, labels or training."
            )


def _tell_accuracies(evidence: Evidence) -> None:
    before, after = evidence.models[0].scores, evidence.models[-1].scores
    row = st.container(horizontal=True, gap="medium")
    for name, title in (("region", "On the regions"), ("test", "On the test images")):
        change = after[name].estimate - before[name].estimate
        sure = name == "region" or evidence.results["flips"]["p"] < SURE
        row.metric(
            title, percent(after[name].estimate, 1), f"{100 * change:+.1f} points", width="content",
            delta_color="normal" if sure and change else "off", help=f"{before[name]} → {after[name]}",
        )  # fmt: skip
    if fit := label_fit(evidence.results):
        st.caption(f"On the regions by the one label of each, which {tell_fit(*fit)} that were labelled.")
    if held := held_out_scores(evidence):
        st.markdown(
            f"On **regions held out**, which it was never tuned on: {within(held[0])} → "
            f"**{within(held[1])}**, n = {held[1].n:,} draws."
        )
    if evidence.results["baseline"] is None:
        st.caption("There is no baseline: no single mistakes were tuned on in this correction.")
    if "validation" not in before:
        st.caption("There is no validation split; training accuracy stood in for it where λ was chosen.")


def show_controls(card: Card) -> None:
    """Show what would have changed without the regions."""
    evidence, results = card.found, card.found.results
    with bordered("What would have changed without the regions", "Null controls, 95 % intervals (Wilson)"):
        if "controls" not in results:
            st.info("Not measured: measure with controls to see this.")
            return
        rows = control_rows(evidence)
        left, right = beside()
        with left:
            card.show(
                "controls", evidence_charts.controls(rows),
                card.told(tell_sizes(evidence), tell_tuning(results), "all on the same images and draws"),
                lambda: controls_picture(evidence), lambda: scores_table(rows),
                alt="Accuracy of models and controls on the regions and on the test images",
            )  # fmt: skip
        with right:
            for name in CONTROLS:
                st.markdown(tell_control(name, evidence))


def show_where(card: Card) -> None:
    """Show accuracy by region and by class, before and after."""
    evidence, names = card.found, card.project.class_names
    told = (
        f"{failures_told(evidence.results)}. Draws count by the one label of their region, which fits so "
        "many of the draws that were labelled; test images by their own class"
    )
    with bordered("Where it changed", told):
        regions, classes = region_changes(evidence, names), class_changes(evidence)
        left, right = side_by_side()
        with left:
            size = evidence.results["settings"]["correct"]["correction"]["instances_per_region"]
            _show_changes(
                card, "by-region", "By region and its label, worst before first", regions,
                card.told(f"n = {size} fresh draws of every region", tell_lambda(evidence.results)),
                lambda: regions_table(evidence, names),
            )  # fmt: skip
        with right:
            n = evidence.models[0].scores["test"].n
            _show_changes(
                card, "by-class", "By class, test images, worst before first", classes,
                card.told(f"n = {n:,} test images", tell_lambda(evidence.results)),
                lambda: changes_table(classes, "class"),
            )  # fmt: skip


def _show_changes(
    card: Card, name: str, title: str, changes: list[Change], caption: str,
    table: Callable[[], pd.DataFrame],
) -> None:  # fmt: skip
    card.show(
        name, before_after(changes, title=title), caption, lambda: changes_picture(changes), table,
        alt=f"Accuracy before and after, {title}",
    )  # fmt: skip
