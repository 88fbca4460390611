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
"""For so many seconds after a new figure, the browser may still report events of the old one."""

_MADE = "map-made"


@dataclass(frozen=True)
class Ground:
    """What a map is drawn from: the search, the regions if there are any, and labels and predictions.

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
    """Read what a map of a search's mistakes is drawn from; None while it loads."""
    runs = store.workspace().runs
    distill = runs.latest(project.id, "distill", done=True)
    if distill is not None and identify.id not in distill.upstream:
        distill = None
    regions = kept.regions(distill.id) if distill is not None else None
    if distill is not None and regions is None:
        return None
    predictions = store.arrays(runs.ancestry(identify.id)["classifier"].id, "predictions")
    return Ground(
        identify, distill, read_mistakes(identify.id), regions,
        predictions["train.labels"], predictions["train.predictions"],
    )  # fmt: skip


def show_map(project: Project, ground: Ground, whole: LatentMap, *, key: str) -> None:
    """Show a map and its controls, in a fragment, so that a selection does not rerun the page."""
    forget(_EDITED)  # this run of the page has read the newest regions
    st.fragment(_show)(project, ground, whole, key)


def _show(project: Project, ground: Ground, whole: LatentMap, key: str) -> None:
    if recall(_EDITED):  # a button reran the fragment alone, on the old regions
        st.rerun()
    drawn = whole.thinned()
    if drawn is not whole:
        st.caption(
            f"{len(drawn.codes):,} of {len(whole.codes):,} training codes and {len(drawn.mistakes):,} of "
            f"{len(whole.mistakes):,} mistakes are drawn: a sample of {MOST_POINTS:,} points."
        )
    custom_names = names(store.workspace().annotations.edits(ground.distill.id)) if ground.distill else {}
    left, right = st.columns([3, 2])
    with left:
        rows = _filter(project, ground, drawn, custom_names)
        membership = ground.membership[drawn.mistake_index]
        around = {_short_name(i, custom_names): line for i, line in outlines(drawn, membership).items()}

        def chosen() -> None:
            state: Any = recall(key, {})
            points = state.get("selection", {}).get("points", [])
            if not points and time.monotonic() - recall(_DRAWN, 0.0) < _SETTLES:
                return  # the browser dropped the selection with the chart that a filter replaced
            remember(_SELECTED, (key, read_selection(points, drawn, rows)))
            remember("page", 1)

        figure = draw_map(
            drawn, colourings(project, ground, drawn, custom_names), kept=rows, outlines=around,
            selected=_marked(key, rows), hover=_hover(project, ground, drawn, custom_names),
        )  # fmt: skip
        st.plotly_chart(
            figure, key=key, on_select=chosen, config=_CONFIG,
            alt="Training codes as dots and mistakes as diamonds, in the plane",
        )  # fmt: skip
    with right:
        _show_selection(project, ground, drawn, rows, key)


def _hover(
    project: Project, ground: Ground, drawn: LatentMap, custom_names: Mapping[int, str]
) -> tuple[list[str], list[str]]:
    """Texts under the pointer: the class of a code; class, prediction and region of a mistake."""
    names, mistakes, index = project.class_names, ground.found, drawn.mistake_index
    code_texts = [names[label] for label in ground.train_labels[drawn.code_index].tolist()]
    mistake_texts = [
        f"{names[label]} → {names[prediction]}"
        + (f", region {_short_name(region, custom_names)}" if region >= 0 else "")
        for label, prediction, region in zip(
            mistakes.labels[index].tolist(), mistakes.predictions[index].tolist(),
            ground.membership[index].tolist(), strict=True,
        )
    ]  # fmt: skip
    return code_texts, mistake_texts


def _short_name(region_id: int, custom_names: Mapping[int, str]) -> str:
    """Name a region on the map; with its number, since two regions may have the same name."""
    return f"{region_id} · {custom_names[region_id]}" if region_id in custom_names else str(region_id)


def _marked(key: str, rows: Indices) -> Selection:
    """Return what was selected when the filters changed or the page opened; the figure marks that.

    The browser itself marks later selections, so they leave the figure as it is.
    """
    version = key, rows.tobytes()
    of, marked = recall(_MARKED, (("", b""), NOTHING))
    if of != version or recall(key) is None:  # no chart of it in this tab yet
        marked = _selection(key)
        remember(_MARKED, (version, marked))
        remember(_DRAWN, time.monotonic())
    return marked


def _filter(project: Project, ground: Ground, drawn: LatentMap, custom_names: Mapping[int, str]) -> Indices:
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
        prediction = linked_choice("Prediction", numbers, key="said", show=name_of)
    with columns[3]:
        ids = ground.regions.ids if ground.regions is not None else []
        region = linked_region(ids, dict(custom_names), key="within")
    mistakes, index = ground.found, drawn.mistake_index
    keep = np.ones(len(index), dtype=bool)
    for choice, values in (
        (None if kind is None else KINDS.index(kind), mistakes.kind[index]),
        (label, mistakes.labels[index]),
        (prediction, mistakes.predictions[index]),
        (region, ground.membership[index]),
    ):
        if choice is not None:
            keep &= values == int(choice)
    return np.nonzero(keep)[0]


def colourings(
    project: Project, ground: Ground, shown: LatentMap, given: Mapping[int, str]
) -> list[Colouring]:
    """Return the ways to colour a map: by class, prediction, kind, and region if there are any."""
    mistakes, index = ground.found, shown.mistake_index
    grey = np.full(len(shown.codes), -1)
    names, colours = project.class_names, palette(len(project.class_names))
    ways = [
        Colouring("class", names, colours, ground.train_labels[shown.code_index], mistakes.labels[index]),
        Colouring(
            "prediction", names, colours, ground.train_predictions[shown.code_index],
            mistakes.predictions[index],
        ),
        Colouring("kind", KINDS, [charts.KINDS[kind] for kind in KINDS], grey, mistakes.kind[index]),
    ]  # fmt: skip
    if ground.regions is not None:
        ids = ground.regions.ids
        place = {region_id: i for i, region_id in enumerate(ids)}
        of_mistake = np.array([place.get(i, -1) for i in ground.membership[index].tolist()], dtype=np.int64)
        region_names = [region_name(i, dict(given)) for i in ids]
        ways.append(Colouring("region", region_names, palette(len(ids)), grey, of_mistake))
    return ways


def _selection(key: str) -> Selection:
    """What is selected on this map."""
    of, selection = recall(_SELECTED, ("", NOTHING))
    return selection if of == key else NOTHING


def _show_selection(project: Project, ground: Ground, drawn: LatentMap, rows: Indices, key: str) -> None:
    """Show what was clicked, or what was selected among the mistakes that the filters leave."""
    selection = _selection(key)
    if len(selection) == 1:
        is_code = len(selection.codes) == 1
        number = int((selection.codes if is_code else selection.mistakes)[0])
        show_code(project, ground.identify, ground.found, number, is_mistake=not is_code)
        return
    visible = drawn.mistake_index[rows]
    if not len(selection):
        st.markdown(f"**{len(visible):,} mistakes** shown, {len(drawn.codes):,} training codes")
        st.caption(
            "Click a point to look at its code; take the lasso or the box on the chart's right to select "
            "many. Drag to move, scroll to zoom; double-click an empty place to end a selection."
        )
        return
    mistakes = selection.mistakes[np.isin(selection.mistakes, visible)]
    st.markdown(f"**{len(mistakes):,} of {len(visible):,}** mistakes selected")
    if len(selection.codes):
        st.caption(f"and {len(selection.codes):,} of {len(drawn.codes):,} training codes")
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
    """Sort the numbers of mistakes in one of the orders `_SORTS`; equal ones stay in order."""
    if order == "mixed":
        return np.random.default_rng(0).permutation(mistakes)
    by: dict[str, NDArray[Any]] = {
        "distance": ground.found.noise_norm, "class": ground.found.labels,
        "prediction": ground.found.predictions, "region": ground.membership,
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
        custom_names = names(store.workspace().annotations.edits(ground.distill.id))
        st.page_link(
            "../pages/label.py", label=f"Label region {plain(region)}", icon=":material/label:",
            query_params={"region": region_name(int(region), custom_names), **project_link()},
        )  # fmt: skip


def _make_region(distill: Run, regions: Regions, mistakes: Indices) -> None:
    select(distill, regions, mistakes)
    remember(_MADE, recall("region"))  # the page then offers to label it
    remember(_EDITED, True)
