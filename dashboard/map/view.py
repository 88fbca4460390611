"""The map on the page: colours, filters, selection, and what was selected or clicked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from dashboard.map.chart import Colouring, draw_map, palette
from dashboard.map.detail import show_code
from dashboard.map.latent_map import (
    MOST_POINTS,
    NOTHING,
    Indices,
    LatentMap,
    Selection,
    outlines,
    read_selection,
)
from dashboard.shared import charts, kept
from dashboard.shared.gallery import KINDS, Found, export, read_mistakes, show_gallery
from dashboard.shared.region_data import Regions
from dashboard.shared.region_detail import linked_region, region_name, select
from dashboard.shell import store
from dashboard.shell.state import (
    forget,
    linked_choice,
    linked_page,
    linked_way,
    plain,
    project_link,
    recall,
    remember,
)
from defuse_core.workspace.edits import names
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

_SORTS = ("mixed", "distance", "class", "prediction", "region")
_PER_PAGE = 12
_CONFIG = {
    "scrollZoom": True, "displaylogo": False, "displayModeBar": True, "doubleClick": "reset",
    "modeBarButtonsToRemove": ["zoom2d", "autoScale2d"],
}  # fmt: skip
_SELECTED, _MARKED, _DRAWN, _EDITED = "map-selection", "map-marked", "map-drawn", "map-edited"
_SETTLES = 5.0
"""Seconds after another figure was drawn in which the browser may still tell of the one before."""

_MADE = "map-made"


@dataclass(frozen=True)
class Ground:
    """What a map stands on: the search, the regions where there are any, and what is known of images.

    Attributes
    ----------
    identify, distill : Run
    found : Found
        The mistakes.
    regions : Regions or None
    train_labels, train_predictions : (n_train,) int64
    """

    identify: Run
    distill: Run | None
    found: Found
    regions: Regions | None
    train_labels: Indices
    train_predictions: Indices

    @property
    def membership(self) -> Indices:
        """Region of each mistake, -1 for none."""
        none = np.full(len(self.found.labels), -1)
        return none if self.regions is None else self.regions.membership


def read_ground(project: Project, identify: Run) -> Ground | None:
    """Read what a map of a search's mistakes stands on; None while that is worked out."""
    runs = store.workspace().runs
    distill = runs.latest(project.id, "distill", done=True)
    if distill is not None and identify.id not in distill.upstream:
        distill = None
    regions = kept.regions(distill.id) if distill is not None else None
    if distill is not None and regions is None:
        return None
    said = store.arrays(runs.ancestry(identify.id)["classifier"].id, "predictions")
    return Ground(
        identify, distill, read_mistakes(identify.id), regions,
        said["train.labels"], said["train.predictions"],
    )  # fmt: skip


def show_map(project: Project, ground: Ground, whole: LatentMap, *, key: str) -> None:
    """Show a map with all that can be done with it; a fragment, so that a selection runs no page."""
    forget(_EDITED)  # the ground is as it is now
    st.fragment(_show)(project, ground, whole, key)


def _show(project: Project, ground: Ground, whole: LatentMap, key: str) -> None:
    if recall(_EDITED):  # a button of the fragment's runs the fragment alone, on the regions as they were
        st.rerun()
    shown = whole.thinned()
    if shown is not whole:
        st.caption(
            f"{len(shown.codes):,} of {len(whole.codes):,} training codes and {len(shown.mistakes):,} of "
            f"{len(whole.mistakes):,} mistakes are drawn: a sample of {MOST_POINTS:,} points."
        )
    given = names(store.workspace().annotations.edits(ground.distill.id)) if ground.distill else {}
    left, right = st.columns([3, 2])
    with left:
        kept = _filter(project, ground, shown, given)
        membership = ground.membership[shown.mistake_index]
        around = {_short_name(i, given): line for i, line in outlines(shown, membership).items()}

        def chosen() -> None:
            state: Any = recall(key, {})
            points = state.get("selection", {}).get("points", [])
            if not points and time.monotonic() - recall(_DRAWN, 0.0) < _SETTLES:
                return  # nobody let go of them: the browser did, with the chart that a filter replaced
            remember(_SELECTED, (key, read_selection(points, shown, kept)))
            remember("page", 1)

        figure = draw_map(
            shown, colourings(project, ground, shown, given), kept=kept, outlines=around,
            selected=_marked(key, kept), hover=_hover(project, ground, shown, given),
        )  # fmt: skip
        st.plotly_chart(
            figure, key=key, on_select=chosen, config=_CONFIG,
            alt="Training codes as dots and mistakes as diamonds, in the plane",
        )  # fmt: skip
    with right:
        _show_selection(project, ground, shown, kept, key)


def _hover(
    project: Project, ground: Ground, shown: LatentMap, given: Mapping[int, str]
) -> tuple[list[str], list[str]]:
    """What is told of each point: its class, or class, prediction and region of a mistake."""
    names, found, index = project.class_names, ground.found, shown.mistake_index
    codes = [names[label] for label in ground.train_labels[shown.code_index].tolist()]
    mistakes = [
        f"{names[label]} → {names[said]}" + (f", region {_short_name(region, given)}" if region >= 0 else "")
        for label, said, region in zip(
            found.labels[index].tolist(), found.predictions[index].tolist(),
            ground.membership[index].tolist(), strict=True,
        )
    ]  # fmt: skip
    return codes, mistakes


def _short_name(region_id: int, given: Mapping[int, str]) -> str:
    """A region as it is called on the map: one's own, though two may have been given the same name."""
    return f"{region_id} · {given[region_id]}" if region_id in given else str(region_id)


def _marked(key: str, kept: Indices) -> Selection:
    """What the figure marks as selected: what was selected when the filters changed or the page opened.

    Later selections are the browser's own: they leave the figure as it is.
    """
    shown = key, kept.tobytes()
    of, marked = recall(_MARKED, (("", b""), NOTHING))
    if of != shown or recall(key) is None:  # no chart of it in this tab yet
        marked = _selection(key)
        remember(_MARKED, (shown, marked))
        remember(_DRAWN, time.monotonic())
    return marked


def _filter(project: Project, ground: Ground, shown: LatentMap, given: Mapping[int, str]) -> Indices:
    """Show the filters; return the rows of the map's mistakes that they leave."""
    numbers = [str(i) for i in range(len(project.class_names))]

    def name_of(number: str) -> str:
        return project.class_names[int(number)]

    columns = st.columns(4)
    with columns[0]:
        kind = linked_choice("Kind", list(charts.KINDS), key="kind")
    with columns[1]:
        label = linked_choice("True class", numbers, key="label", show=name_of)
    with columns[2]:
        said = linked_choice("Prediction", numbers, key="said", show=name_of)
    with columns[3]:
        ids = ground.regions.ids if ground.regions is not None else []
        region = linked_region(ids, dict(given), key="within")
    found, index = ground.found, shown.mistake_index
    keep = np.ones(len(index), dtype=bool)
    for wanted, values in (
        (None if kind is None else KINDS.index(kind), found.kind[index]),
        (label, found.labels[index]),
        (said, found.predictions[index]),
        (region, ground.membership[index]),
    ):
        if wanted is not None:
            keep &= values == int(wanted)
    return np.nonzero(keep)[0]


def colourings(
    project: Project, ground: Ground, shown: LatentMap, given: Mapping[int, str]
) -> list[Colouring]:
    """The ways to colour a map: by class, prediction, kind, and region where there are any."""
    found, index = ground.found, shown.mistake_index
    grey = np.full(len(shown.codes), -1)
    names, colours = project.class_names, palette(len(project.class_names))
    ways = [
        Colouring("class", names, colours, ground.train_labels[shown.code_index], found.labels[index]),
        Colouring(
            "prediction", names, colours, ground.train_predictions[shown.code_index],
            found.predictions[index],
        ),
        Colouring("kind", KINDS, [charts.KINDS[kind] for kind in KINDS], grey, found.kind[index]),
    ]  # fmt: skip
    if ground.regions is not None:
        ids = ground.regions.ids
        place = {region_id: i for i, region_id in enumerate(ids)}
        of_mistake = np.array([place.get(i, -1) for i in ground.membership[index].tolist()], dtype=np.int64)
        called = [region_name(i, dict(given)) for i in ids]
        ways.append(Colouring("region", called, palette(len(ids)), grey, of_mistake))
    return ways


def _selection(key: str) -> Selection:
    """What is selected on this map."""
    of, selection = recall(_SELECTED, ("", NOTHING))
    return selection if of == key else NOTHING


def _show_selection(project: Project, ground: Ground, shown: LatentMap, kept: Indices, key: str) -> None:
    """Show what was clicked, or what was selected among the mistakes that the filters leave."""
    selection = _selection(key)
    if len(selection) == 1:
        is_code = len(selection.codes) == 1
        number = int((selection.codes if is_code else selection.mistakes)[0])
        show_code(project, ground.identify, ground.found, number, is_mistake=not is_code)
        return
    visible = shown.mistake_index[kept]
    if not len(selection):
        st.markdown(f"**{len(visible):,} mistakes** shown, {len(shown.codes):,} training codes")
        st.caption(
            "Click a point to look at its code; take the lasso or the box on the chart's right to select "
            "many. Drag to move, scroll to zoom; double-click an empty place to end a selection."
        )
        return
    mistakes = selection.mistakes[np.isin(selection.mistakes, visible)]
    st.markdown(f"**{len(mistakes):,} of {len(visible):,}** mistakes selected")
    if len(selection.codes):
        st.caption(f"and {len(selection.codes):,} of {len(shown.codes):,} training codes")
    if not len(mistakes):
        return
    order = linked_way("Sort by", _SORTS, key="sort")
    ordered = sort_mistakes(mistakes, order, ground)
    page = ordered[linked_page(len(ordered), _PER_PAGE, key="page")]
    show_gallery(project, ground.identify, ground.found, page, key="selected")
    export(project, ground.identify, ground.found, ordered, page)
    if ground.distill is not None and ground.regions is not None:
        _offer_region(ground, mistakes)


def sort_mistakes(mistakes: Indices, order: str, ground: Ground) -> Indices:
    """Put mistakes, by number, in an order; equal ones by number."""
    found = ground.found
    if order == "mixed":
        return np.random.default_rng(0).permutation(mistakes)
    by: dict[str, NDArray[Any]] = {
        "distance": found.noise_norm, "class": found.labels, "prediction": found.predictions,
        "region": ground.membership,
    }  # fmt: skip
    return mistakes[np.argsort(by[order][mistakes], kind="stable")]


def _offer_region(ground: Ground, mistakes: Indices) -> None:
    assert ground.distill is not None
    assert ground.regions is not None
    st.button(
        "Make a region of them", icon=":material/add_circle:", on_click=_make_region, type="primary",
        args=(ground.distill, ground.regions, mistakes), disabled=len(mistakes) < 2,
        help="A new region of these mistakes, drawn and labelled like the others; can be undone",
    )  # fmt: skip
    region = recall(_MADE) or recall("within")
    if region is not None and int(region) in ground.regions.ids:
        given = names(store.workspace().annotations.edits(ground.distill.id))
        st.page_link(
            "../pages/label.py", label=f"Label region {plain(region)}", icon=":material/label:",
            query_params={"region": region_name(int(region), given), **project_link()},
        )  # fmt: skip


def _make_region(distill: Run, regions: Regions, mistakes: Indices) -> None:
    select(distill, regions, mistakes)
    remember(_MADE, recall("region"))  # what was made is what is looked at
    remember(_EDITED, True)
