"""Draws accuracy before and after a correction, by region or class, as a Plotly figure."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboard.shared.charts import BLUE, GREY, PURPLE, clip
from defuse_core.base.intervals import Interval
from defuse_core.report.sweep import Change


def before_after(changes: Sequence[Change], *, title: str) -> go.Figure:
    """Draw accuracy before (grey squares) and after (dots, triangles if held out), each with its interval."""
    figure = go.Figure()
    rows = list(range(len(changes)))
    link: list[list[float | None]] = [[], []]
    for row, change in enumerate(changes):
        link[0] += [change.before.estimate, change.after.estimate, None]
        link[1] += [row, row, None]
    figure.add_scatter(
        x=link[0], y=link[1], mode="lines", line={"color": GREY, "width": 2}, opacity=0.5, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    _add_scores(figure, changes, rows, [c.before for c in changes], "before", GREY, "square")
    for held_out, name, colour, symbol in (
        (False, "after", BLUE, "circle"),
        (True, "after, region held out", PURPLE, "triangle-up"),
    ):
        mine = [row for row in rows if changes[row].held_out == held_out]
        if mine:
            scores = [changes[row].after for row in mine]
            _add_scores(figure, [changes[row] for row in mine], mine, scores, name, colour, symbol)
    labels = [clip(change.name, 28) for change in changes]
    figure.update_yaxes(tickmode="array", tickvals=rows, ticktext=labels, range=[len(rows) - 0.5, -0.5])
    figure.update_xaxes(title="accuracy", tickformat=".0%")
    plot = 24 * max(len(changes), 3)
    figure.update_layout(
        title=title, height=plot + 140, margin={"l": 10, "r": 10, "t": 40, "b": 10},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -60 / plot, "yanchor": "top"},
    )  # fmt: skip
    return figure


def _add_scores(
    figure: go.Figure, changes: Sequence[Change], rows: Sequence[int], scores: Sequence[Interval], name: str,
    colour: str, symbol: str,
) -> None:  # fmt: skip
    estimates = [score.estimate for score in scores]
    figure.add_scatter(
        x=estimates, y=list(rows), mode="markers", name=name,
        marker={"color": colour, "size": 10, "symbol": symbol},
        error_x={
            "type": "data", "symmetric": False, "color": colour, "thickness": 1.2, "width": 3,
            "array": [score.high - score.estimate for score in scores],
            "arrayminus": [score.estimate - score.low for score in scores],
        },
        hovertext=[f"{clip(c.name)}, {name}: {score!s}" for c, score in zip(changes, scores, strict=True)],
        hoverinfo="text",
    )  # fmt: skip
