"""Draw the map of latent space as a Plotly figure. Equal input gives equal bytes.

If the figure changes, Streamlit makes a new chart, and zoom and selection are lost. So one figure holds
every colouring, and its own buttons switch between them in the browser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import qualitative

from dashboard.map.latent_map import Indices, LatentMap, Selection
from dashboard.shared.charts import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, clip

_FEW = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#8C6D31", "#6B4C9A", "#E377C2", "#7F7F00")
_MANY = tuple(qualitative.Dark24 + qualitative.Light24)
_LEGEND = 24  # entries that a legend has room for
GREY = "#9a9a9a"
_ON_BUTTONS = "#4a86b8"  # readable on light, on dark, and on the white of the active button


def palette(n: int) -> list[str]:
    """Return colours for n classes or regions; they repeat after 48."""
    return list(_FEW[:n]) if n <= len(_FEW) else [_MANY[i % len(_MANY)] for i in range(n)]


@dataclass(frozen=True)
class Colouring:
    """One way to colour a map.

    Attributes
    ----------
    name : str
        Text of its button.
    groups : sequence of str
        Names of the groups.
    colours : sequence of str
        One per group.
    codes, mistakes : (n,) int64, (m,) int64
        Group of each point; -1 is grey.
    """

    name: str
    groups: Sequence[str]
    colours: Sequence[str]
    codes: Indices
    mistakes: Indices


def draw_map(
    shown: LatentMap, colourings: Sequence[Colouring], *, kept: Indices, selected: Selection,
    outlines: Mapping[str, NDArray[np.float64]],
    hover: tuple[Sequence[str], Sequence[str]] | None = None, height: int = 640,
) -> go.Figure:  # fmt: skip
    """Draw training codes as dots (trace 0) and mistakes as diamonds (trace 1).

    Parameters
    ----------
    shown : LatentMap
    colourings : sequence of Colouring
        The first is shown at first.
    kept : (k,) int64
        Rows of the mistakes that are drawn.
    selected : Selection
        What is marked as selected from the start.
    outlines : mapping of str to (k, 2) float
        Closed polygons by name; a button shows them.
    hover : tuple of sequence of str, optional
        Text under the pointer, for each code and for each mistake of the map.
    """
    figure = go.Figure()
    _add_points(figure, shown.codes, _places(shown.code_index, selected.codes), size=4, opacity=0.5)
    marks = {"symbol": "diamond", "line": {"width": 0.6, "color": "#222"}}
    index = _places(shown.mistake_index[kept], selected.mistakes)
    _add_points(figure, shown.mistakes[kept], index, size=8, opacity=0.9, **marks)
    if hover is not None:
        hover_texts = [clip(text, 40) for text in hover[0]], [clip(hover[1][i], 40) for i in kept.tolist()]
        for trace, texts in zip(figure.data, hover_texts, strict=True):
            trace.update(text=texts, hoverinfo="text")
    if not len(selected):
        figure.update_traces(selectedpoints=None)
    for colouring in colourings:
        for name, colour in _legend_of(colouring):
            figure.add_scattergl(
                x=[None], y=[None], mode="markers", name=clip(name), marker={"color": colour, "size": 9},
                visible=colouring is colourings[0], hoverinfo="skip",
            )  # fmt: skip
    for name, polygon in outlines.items():
        figure.add_scattergl(
            x=polygon[:, 0], y=polygon[:, 1], mode="lines", name=clip(name), showlegend=False,
            hoverinfo="skip", visible=False, line={"color": "rgba(120, 120, 120, .9)", "width": 1.3},
        )  # fmt: skip
    figure.data[0].marker.update(_marker(colourings[0], colourings[0].codes))
    figure.data[1].marker.update(_marker(colourings[0], colourings[0].mistakes[kept]))
    menus = [_colour_menu(colourings, kept)]
    if outlines:
        menus.append(_outline_menu(outlines, first=len(figure.data) - len(outlines)))
    _lay_out(figure, shown, height)
    figure.update_layout(updatemenus=menus)
    return figure


def _add_points(figure: go.Figure, points: NDArray[np.float32], selected: list[int], **marker: Any) -> None:
    figure.add_scattergl(
        x=points[:, 0], y=points[:, 1], mode="markers", marker=marker, showlegend=False, hoverinfo="none",
        selectedpoints=selected, unselected={"marker": {"opacity": 0.12}},
    )  # fmt: skip


def _places(index: Indices, selected: Indices) -> list[int]:
    places: list[int] = np.nonzero(np.isin(index, selected))[0].tolist()
    return places


def _legend_of(colouring: Colouring) -> list[tuple[str, str]]:
    """Names and colours of the groups, in order; empty if there are too many for a legend."""
    entries = list(zip(colouring.groups, colouring.colours, strict=True))
    return entries if len(entries) <= _LEGEND else []


def _marker(colouring: Colouring, groups: Indices) -> dict[str, Any]:
    """Colours as numbers, which take a tenth of the bytes; grey is 0."""
    colours = [GREY, *colouring.colours]
    last = max(1, len(colours) - 1)
    return {
        "color": (groups + 1).tolist(), "cmin": 0, "cmax": last,
        "colorscale": [[i / last, colour] for i, colour in enumerate(colours)]
        if len(colours) > 1
        else [[0, GREY], [1, GREY]],
    }  # fmt: skip


def _colour_menu(colourings: Sequence[Colouring], rows: Indices) -> dict[str, Any]:
    """Buttons that change colours and legend, and nothing else."""
    n_legend = sum(len(_legend_of(colouring)) for colouring in colourings)
    buttons = []
    for colouring in colourings:
        parts = _marker(colouring, colouring.codes), _marker(colouring, colouring.mistakes[rows])
        changes: dict[str, list[Any]] = {f"marker.{k}": [part[k] for part in parts] for k in parts[0]}
        of_legend = [other is colouring for other in colourings for _ in _legend_of(other)]
        colours = [colour for other in colourings for _, colour in _legend_of(other)]
        changes["marker.color"] += colours
        for name in ("marker.cmin", "marker.cmax", "marker.colorscale"):
            changes[name] += [None] * n_legend
        changes["visible"] = [True, True, *of_legend]
        traces = list(range(2 + n_legend))  # not the outlines, which have a button of their own
        buttons.append({"label": colouring.name, "method": "restyle", "args": [changes, traces]})
    return _menu(buttons, y=1.07)  # above the outline menu: side by side they overlap in a narrow window


def _outline_menu(outlines: Mapping[str, NDArray[np.float64]], *, first: int) -> dict[str, Any]:
    traces = list(range(first, first + len(outlines)))
    names = [
        {
            "x": float(polygon[:-1, 0].mean()), "y": float(polygon[:-1, 1].mean()), "text": clip(name, 16),
            "showarrow": False, "font": {"size": 10}, "bgcolor": "rgba(128, 128, 128, .3)",
        }
        for name, polygon in outlines.items()
    ]  # fmt: skip
    show = {"args": [{"visible": True}, {"annotations": names}, traces]}
    hide = {"args": [{"visible": False}, {"annotations": []}, traces]}
    buttons = [
        {"label": "no outlines", "method": "update", **hide},
        {"label": "region outlines", "method": "update", **show},
    ]
    return _menu(buttons, y=1.005)


def _menu(buttons: list[dict[str, Any]], **where: Any) -> dict[str, Any]:
    return {
        "type": "buttons", "direction": "right", "buttons": buttons, "showactive": True,
        "x": 0, "xanchor": "left", "yanchor": "bottom", "pad": {"l": 0, "r": 0, "t": 0, "b": 4},
        "font": {"color": _ON_BUTTONS}, "borderwidth": 1, "bordercolor": "rgba(128, 128, 128, .4)",
        "bgcolor": "rgba(128, 128, 128, .12)", **where,
    }  # fmt: skip


def _lay_out(figure: go.Figure, latent_map: LatentMap, height: int) -> None:
    axis = {"showticklabels": False, "showgrid": False, "zeroline": False, "title": None}
    places = np.concatenate([latent_map.codes, latent_map.mistakes])
    for update, values in ((figure.update_xaxes, places[:, 0]), (figure.update_yaxes, places[:, 1])):
        margin = 0.03 * float(np.ptp(values))
        update(**axis, range=[float(values.min()) - margin, float(values.max()) + margin])
    figure.update_yaxes(scaleanchor="x")
    figure.update_layout(
        height=height, margin={"l": 0, "r": 0, "t": 96, "b": 0}, dragmode="pan",
        legend={
            "orientation": "h", "y": -0.02, "yanchor": "top", "itemclick": False, "itemdoubleclick": False,
        },
        modebar={"orientation": "v"},
    )  # fmt: skip
