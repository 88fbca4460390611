"""Draws records as Plotly figures; it neither reads the workspace nor shows anything.

The colours are those of Okabe and Ito (2008): colour-blind people can tell them apart, and they stand
out on light and dark backgrounds. Streamlit's theme gives the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from defuse_core.data.short_names import short_names

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#8c8c8c"
SERIES = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
KINDS = {"perturbation": BLUE, "reconstruction": ORANGE, "dataset": PURPLE}
"""Colour by kind of mistake, the new ones first."""

_MARGIN = {"l": 10, "r": 10, "t": 40, "b": 10}
_LEGEND = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
_SHADES = [[0, "rgba(0, 114, 178, 0)"], [1e-6, "#d3e5f1"], [1, "#0072B2"]]
"""Transparent at 0, then opaque blues on which numbers are readable in the light and the dark theme."""
_NUMBERED, _NAMED = 20, 64  # classes up to which a matrix shows its numbers, and its names
_WIDTH = 12  # characters of a name beside a matrix


def _layout(figure: go.Figure, title: str, *, height: int = 320, **more: Any) -> go.Figure:
    figure.update_layout(title=title, height=height, margin=_MARGIN, legend=_LEGEND, **more)
    return figure


def curves(
    points: Sequence[Mapping[str, float]], series: Mapping[str, str], *, title: str, y: str, of: int
) -> go.Figure:
    """Draw metrics over epochs.

    Parameters
    ----------
    points : sequence of mapping
        One per epoch.
    series : mapping of str to str
        Label by metric.
    of : int
        Epochs that are planned.
    """
    figure = go.Figure()
    epochs = list(range(1, len(points) + 1))
    for (metric, label), colour in zip(series.items(), cycle(SERIES), strict=False):
        values = [point[metric] for point in points]
        mode = "lines" if len(points) > 1 else "markers"
        figure.add_scatter(x=epochs, y=values, name=label, mode=mode, line={"color": colour})
    figure.update_xaxes(title="epoch", range=[0.5, of + 0.5])
    figure.update_yaxes(title=y)
    return _layout(figure, title)


def line(x_values: Sequence[float], y_values: Sequence[float], *, title: str, x: str, y: str) -> go.Figure:
    """Draw one curve."""
    mode = "lines" if len(x_values) > 1 else "markers"
    figure = go.Figure(go.Scatter(x=list(x_values), y=list(y_values), mode=mode, line={"color": BLUE}))
    figure.update_xaxes(title=x, rangemode="tozero")
    figure.update_yaxes(title=y)
    return _layout(figure, title, height=280)


def matrix(
    counts: NDArray[np.int64],
    names: Sequence[str],
    *,
    title: str,
    x: str = "prediction",
    y: str = "true class",
) -> go.Figure:
    """Draw counts by true class (rows) and prediction; the diagonal, the correct ones, stays blank.

    Parameters
    ----------
    counts : (n_classes, n_classes) int
    names : sequence of str
        Of the classes.
    """
    off_diagonal = counts.astype(float)
    np.fill_diagonal(off_diagonal, np.nan)
    few, named = len(names) <= _NUMBERED, len(names) <= _NAMED
    labels = [clip(name, _WIDTH) for name in (short_names(tuple(names), _WIDTH) if named else names)]
    largest = max(1.0, float(np.nanmax(off_diagonal, initial=0)))
    figure = go.Figure(
        go.Heatmap(
            z=off_diagonal, x=list(range(len(names))), y=list(range(len(names))),
            colorscale=_SHADES, zmin=0, zmax=largest,
            customdata=counts, hovertemplate=f"{y} %{{y}}<br>{x} %{{x}}<br>%{{customdata}}<extra></extra>",
            text=np.where(counts > 0, counts.astype(str), "") if few else None,
            texttemplate="%{text}" if few else None, showscale=not few,
            colorbar={"title": "images", "thickness": 12, "tickformat": ",d", "nticks": 5, "len": 0.6},
        )
    )  # fmt: skip
    # Every class has a tick, because the hover text reads it; labels are left out if they have no room
    ticks: dict[str, object] = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": labels}
    ticks |= {"showticklabels": named}
    if not few:
        ticks |= {"tickfont": {"size": 8}}
    figure.update_xaxes(title=x, **ticks, constrain="domain", showgrid=False)
    figure.update_yaxes(
        title=y,
        **ticks,
        autorange="reversed",
        scaleanchor="x",
        showgrid=False,
        constrain="domain",
        constraintoward="top",
    )
    return _layout(figure, title, height=460 if few or not named else 200 + 10 * len(names))


def most_confused(counts: NDArray[np.int64], n: int = 10) -> list[tuple[int, int, int]]:
    """Return the pairs of classes that are confused most often.

    Parameters
    ----------
    counts : (n_classes, n_classes) int
        By true class (rows) and prediction.
    n : int
        At most so many.

    Returns
    -------
    list of (true class, prediction, images)
        The most frequent first; of equals the lower class.

    Examples
    --------
    >>> most_confused(np.array([[9, 2, 0], [1, 8, 0], [0, 5, 7]]), 2)
    [(2, 1, 5), (0, 1, 2)]
    """
    off_diagonal = counts - np.diag(np.diag(counts))
    order = np.argsort(-off_diagonal, axis=None, kind="stable")[:n]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [(label, said, int(counts[label, said])) for label, said in pairs if off_diagonal[label, said]]


def bars(names: Sequence[str], shares: NDArray[np.float64], *, title: str) -> go.Figure:
    """Draw shares as horizontal bars, the first on top, each with its value."""
    figure = go.Figure(
        go.Bar(
            x=shares, y=list(range(len(names))), orientation="h", marker={"color": BLUE},
            text=[f"{share:.1%}" for share in shares], textposition="auto", hoverinfo="skip",
        )
    )  # fmt: skip
    ticks = {"tickmode": "array", "tickvals": list(range(len(names)))}
    figure.update_yaxes(**ticks, ticktext=[clip(name, 16) for name in names], autorange="reversed")
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    return _layout(figure, title, height=70 + 28 * len(names))


def agreement(share: NDArray[np.float64]) -> go.Figure:
    """Draw the number of draws by the share of annotators who gave the most frequent answer.

    Parameters
    ----------
    share : (n_draws,) float
        NaN where fewer than two answered.
    """
    values, counts = np.unique(np.round(share[~np.isnan(share)], 3), return_counts=True)
    figure = go.Figure(
        go.Bar(
            x=[f"{value:.0%}" for value in values], y=counts, text=counts, marker={"color": BLUE},
            hovertemplate="%{y} draws on which %{x} agree<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title="annotators who gave the most frequent answer", type="category")
    figure.update_yaxes(title="draws")
    return _layout(figure, f"Agreement, n = {counts.sum():,} draws", height=300)


def by_class(
    names: Sequence[str], intervals: Sequence[Sequence[float] | None], *, title: str, x: str
) -> go.Figure:
    """Draw a share by class with its interval, the lowest first.

    Parameters
    ----------
    intervals : sequence of (estimate, low, high, n) or None
        None leaves a class out.
    """
    rows = [(name, interval) for name, interval in zip(names, intervals, strict=True) if interval is not None]
    rows.sort(key=lambda row: row[1][0])
    shares = np.array([interval[:3] for _, interval in rows]).reshape(-1, 3)
    figure = go.Figure(
        go.Scatter(
            x=shares[:, 0], y=list(range(len(rows))), mode="markers", marker={"color": BLUE, "size": 9},
            error_x={
                "type": "data", "symmetric": False, "color": BLUE,
                "array": shares[:, 2] - shares[:, 0], "arrayminus": shares[:, 0] - shares[:, 1],
            },
            customdata=[[clip(name), int(interval[3])] for name, interval in rows],
            hovertemplate="%{customdata[0]}: %{x:.3f}, n = %{customdata[1]}<extra></extra>",
        )
    )  # fmt: skip
    labels = [clip(name) for name, _ in rows]
    figure.update_yaxes(
        tickmode="array", tickvals=list(range(len(rows))), ticktext=labels, autorange="reversed"
    )
    figure.update_xaxes(title=x, tickformat=".0%")
    return _layout(figure, title, height=max(320, 60 + 18 * len(rows)))


def kinds_over(images: Sequence[int], counts: Mapping[str, Sequence[int]], *, of: int) -> go.Figure:
    """Draw how many mistakes of each kind were found over the images searched."""
    figure = go.Figure()
    for kind, colour in KINDS.items():
        figure.add_scatter(
            x=list(images),
            y=list(counts[kind]),
            name=kind,
            stackgroup="all",
            line={"color": colour, "width": 1},
        )
    figure.update_xaxes(title="images searched around", range=[0, of])
    figure.update_yaxes(title="mistakes kept", rangemode="tozero")
    return _layout(figure, "Mistakes by kind", height=300)


def noise(grid: NDArray[np.float64], density: NDArray[np.float64], *, centred: bool) -> go.Figure:
    """Draw the density of the noise that is added to each element of a code."""
    figure = go.Figure(go.Scatter(x=grid, y=density, fill="tozeroy", line={"color": BLUE}, name="noise"))
    figure.add_vline(x=0, line={"dash": "dot", "width": 1})
    figure.add_scatter(
        x=np.linspace(-3, 3, 121), y=np.exp(-np.linspace(-3, 3, 121) ** 2 / 2) / np.sqrt(2 * np.pi),
        name="prior of a code", line={"color": ORANGE, "dash": "dash"},
    )  # fmt: skip
    low, high = min(-1.0, grid[0]), max(1.0, grid[-1])
    figure.update_xaxes(
        title="added to every element of z" + (", centred" if centred else ""), range=[low, high]
    )
    figure.update_yaxes(showticklabels=False)
    return _layout(figure, "The noise", height=260)


def clip(name: str, longest: int = 24) -> str:
    """Shorten a name for an axis, and escape it, because Plotly reads some HTML."""
    short = name if len(name) <= longest else name[: longest - 1] + "…"
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
