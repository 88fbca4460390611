"""The map of latent space as a Plotly figure: layers in, figure out. Equal input gives equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import qualitative

from dashboard.charts import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, clip
from dashboard.latent_map import LatentMap, Layer

_FEW = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#8C6D31", "#6B4C9A", "#E377C2", "#7F7F00")
_MANY = tuple(qualitative.Dark24 + qualitative.Light24)
GREY = "#9a9a9a"


def colour_of(group: int, n_groups: int) -> str:
    """The colour of a class or region; grey for -1. They repeat after 48."""
    if group < 0:
        return GREY
    return _FEW[group] if n_groups <= len(_FEW) else _MANY[group % len(_MANY)]


def draw_map(
    shown: LatentMap, layers: Sequence[Layer], colours: Mapping[int, str], *,
    outlines: Mapping[int, NDArray[np.float64]], names: Mapping[int, str], revision: str, height: int = 620,
) -> go.Figure:  # fmt: skip
    """Draw training codes as dots and mistakes as diamonds, a trace a layer, outlines behind the last.

    Parameters
    ----------
    shown : LatentMap
    layers : sequence of Layer
        The number of a trace is that of its layer.
    colours : mapping of int to str
        By group.
    outlines : mapping of int to (k, 2) float
        By region.
    names : mapping of int to str
        Of the regions.
    revision : str
        Zoom and selection stay while this stays.
    """
    figure = go.Figure()
    seen: set[int] = set()
    for layer in layers:
        is_code = layer.what == "code"
        points = (shown.codes if is_code else shown.mistakes)[layer.rows]
        colour = colours.get(layer.group, GREY)
        marker = (
            {"size": 4, "opacity": 0.5}
            if is_code
            else {"size": 8, "symbol": "diamond", "opacity": 0.9, "line": {"width": 0.6, "color": "#222"}}
        )
        figure.add_scattergl(
            x=points[:, 0], y=points[:, 1], mode="markers", name=clip(layer.name),
            marker={"color": colour, **marker}, legendgroup=str(layer.group),
            showlegend=layer.group not in seen, unselected={"marker": {"opacity": 0.15}},
            hovertemplate=f"{clip(layer.name)}{'' if is_code else ' · mistake'}<extra></extra>",
        )  # fmt: skip
        seen.add(layer.group)
    for region_id, polygon in outlines.items():
        figure.add_scattergl(
            x=polygon[:, 0], y=polygon[:, 1], mode="lines", showlegend=False, hoverinfo="skip",
            line={"color": "rgba(120, 120, 120, .9)", "width": 1.2},
        )  # fmt: skip
        x, y = polygon[:-1].mean(axis=0)
        figure.add_annotation(
            x=float(x), y=float(y), text=clip(names[region_id]), showarrow=False,
            font={"size": 11}, bgcolor="rgba(128, 128, 128, .25)",
        )  # fmt: skip
    axis = {"showticklabels": False, "showgrid": False, "zeroline": False, "title": None}
    for update, values in ((figure.update_xaxes, 0), (figure.update_yaxes, 1)):
        places = np.concatenate([shown.codes[:, values], shown.mistakes[:, values]])
        margin = 0.03 * float(np.ptp(places))
        update(**axis, range=[float(places.min()) - margin, float(places.max()) + margin])
    figure.update_yaxes(scaleanchor="x")
    figure.update_layout(
        height=height, margin={"l": 0, "r": 0, "t": 10, "b": 0}, dragmode="lasso",
        uirevision=revision, selectionrevision=revision, editrevision=revision,
        legend={"itemsizing": "constant", "orientation": "h", "y": -0.02, "yanchor": "top"},
    )  # fmt: skip
    return figure
