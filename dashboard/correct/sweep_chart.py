"""Draw a sweep over λ with Plotly: figure 5, and both accuracies over λ. Pure: records in, figures out.

Equal input gives equal bytes: if the figure changes, Streamlit makes a new chart, and zoom and selection are
lost. Points carry no data of their own: `Drawn.tasks` says, on the server, what a click opens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.shared.charts import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from defuse_core.report.sweep import SETS, Measured, Sweep, by_lambda

COLOURS = {"test": BLUE, "validation": SKY, "region": GREEN, "held_out": PURPLE}
_SYMBOLS = {"held_out": "triangle-up", "validation": "circle-open"}
_HEIGHT = 500
_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.14, "yanchor": "top"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_TICKS = 7
_UNSELECTED = {"marker": {"opacity": 0.45}}
_AS_IT_IS = {"marker": {"opacity": 1.0}}  # not dimmed by a selection: a mark to compare the others with


@dataclass(frozen=True)
class Drawn:
    """A figure, and the task that each of its points opens, by trace; "" opens nothing."""

    figure: go.Figure
    tasks: Sequence[Sequence[str]]

    def opened(self, points: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the task of the first point that opens one; a browser names points by trace and place."""
        for point in points:
            trace, place = point.get("curve_number"), point.get("point_index")
            if not (isinstance(trace, int) and isinstance(place, int) and 0 <= trace < len(self.tasks)):
                continue
            if 0 <= place < len(self.tasks[trace]) and self.tasks[trace][place]:
                return self.tasks[trace][place]
        return None


def tradeoff(sweep: Sweep) -> Drawn:
    """Draw figure 5: accuracy on real images over that on the regions, one point a λ."""
    figure, tasks = go.Figure(), []
    groups, of_baseline = by_lambda(sweep.points), by_lambda(sweep.baseline)
    series = (
        ("test", "region", groups, "test", {"symbol": "circle", "color": BLUE, "size": 10}),
        ("validation", "region", groups, "validation", {"symbol": "circle-open", "color": SKY, "size": 9}),
        (
            "test", "held_out", groups, "test, over regions held out",
            {"symbol": "triangle-up", "color": PURPLE, "size": 11},
        ),
        ("test", "region", of_baseline, "baseline, test", {"symbol": "diamond", "color": ORANGE, "size": 11}),
    )  # fmt: skip
    for y, x, candidates, name, marker in series:
        measured = _having(_having(candidates, x), y)
        if measured:
            _add_scatter(figure, measured, x, y, name, marker)
            tasks.append([group[0].task for group in measured])
    chosen = [group for group in groups if group[0].task == sweep.chosen]
    tasks += _add_before(figure, sweep.before) + _add_ring(figure, chosen)
    figure.update_xaxes(title="accuracy on the regions")
    figure.update_yaxes(title="accuracy on real images")
    return Drawn(_lay_out(figure, "Trade-off (figure 5)"), tasks)


def _having(groups: Sequence[Sequence[Measured]], name: str) -> list[Sequence[Measured]]:
    return [group for group in groups if name in group[0].scores]


def _add_scatter(
    figure: go.Figure, groups: Sequence[Sequence[Measured]], x: str, y: str, name: str, marker: dict[str, Any]
) -> None:
    xs, ys = (_spread(groups, part) for part in (x, y))
    several = any(len(group) > 1 for group in groups)
    bars = {
        f"error_{axis}": {
            "type": "data", "symmetric": False, "thickness": 1, "width": 0,
            "array": above, "arrayminus": below,
        }
        for axis, (_, below, above) in (("x", xs), ("y", ys))
    }  # fmt: skip
    figure.add_scatter(
        x=xs[0], y=ys[0], mode="lines+markers", name=name, marker=marker,
        line={"color": marker["color"], "width": 1, "dash": "dot"}, opacity=0.85,
        hovertext=[_told(group) for group in groups], hoverinfo="text", **(bars if several else {}),
        unselected=_UNSELECTED,
    )  # fmt: skip


def _spread(groups: Sequence[Sequence[Measured]], name: str) -> tuple[list[float], list[float], list[float]]:
    """Mean over the repeats of each λ, how far the lowest lies below it, and the highest above it."""
    values = [[point.scores[name].estimate for point in group] for group in groups]
    means = [sum(part) / len(part) for part in values]
    below = [mean - min(part) for mean, part in zip(means, values, strict=True)]
    return means, below, [max(part) - mean for mean, part in zip(means, values, strict=True)]


def _told(group: Sequence[Measured]) -> str:
    """Text under the pointer: every accuracy of a λ with its interval, and its range over the seeds."""
    first = group[0]
    head = "before correction" if first.lam is None else f"λ = {first.lam:g}, epoch {first.epoch}"
    lines = [f"<b>{head}</b>" + (f", {len(group)} seeds" if len(group) > 1 else "")]
    for name, label in SETS.items():
        if name not in first.scores:
            continue
        score = str(first.scores[name])
        if len(group) > 1:
            values = [point.scores[name].estimate for point in group]
            mean = sum(values) / len(values)
            score = f"{mean:.3f}, {min(values):.3f} … {max(values):.3f}; the first {score}"
        lines.append(f"{label} {score}")
    if first.fixed is not None:
        of = "test images" + (" of the first" if len(group) > 1 else "")
        lines.append(f"{of}: {first.fixed} fixed, {first.broken} broken")
    return "<br>".join(lines)


def _add_before(figure: go.Figure, before: Measured | None) -> list[list[str]]:
    """Draw the accuracies before the correction, as squares: filled for test, open for validation."""
    places = (("region", "test", "square"), ("region", "validation", "square-open"))
    measured = [p for p in places if before is not None and {*p[:2]} <= before.scores.keys()]
    if before is None or not measured:
        return []
    figure.add_scatter(
        x=[before.scores[x].estimate for x, _, _ in measured],
        y=[before.scores[y].estimate for _, y, _ in measured],
        mode="markers", name="before", hovertext=[_told([before])] * len(measured), hoverinfo="text",
        marker={"symbol": [symbol for *_, symbol in measured], "color": GREY, "size": 12},
        unselected=_AS_IT_IS,
    )  # fmt: skip
    return [[""] * len(measured)]


def _add_ring(figure: go.Figure, chosen: Sequence[Sequence[Measured]]) -> list[list[str]]:
    if not chosen:
        return []
    (x,), *_ = _spread(chosen, "region")
    (y,), *_ = _spread(chosen, "test")
    figure.add_scatter(
        x=[x], y=[y], mode="markers+text", name="chosen", hovertext=[_told(chosen[0])], hoverinfo="text",
        text=[f"λ = {chosen[0][0].lam:g}"], textposition="bottom left", textfont={"color": RED},
        marker={"symbol": "circle-open", "color": RED, "size": 19, "line": {"width": 3}},
        unselected={**_AS_IT_IS, "textfont": {"color": RED}},
    )  # fmt: skip
    return [[chosen[0][0].task]]


def over_lambda(sweep: Sweep) -> Drawn:
    """Draw accuracy on the regions (above) and on real images (below) over λ, on a log axis."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    groups, of_baseline = by_lambda(sweep.points), by_lambda(sweep.baseline)
    lambdas = [float(group[0].lam or 0.0) for group in (*groups, *of_baseline)]
    tasks: list[list[str]] = []
    for row, names in enumerate((("region", "held_out"), ("test", "validation")), start=1):
        for name in names:
            measured = _having(groups, name)
            if not measured:
                continue
            tasks += _add_band(figure, measured, name, lambdas, row)
            _add_line(figure, measured, name, lambdas, row)
            tasks.append([group[0].task for group in measured])
            if sweep.before is not None and name in sweep.before.scores:
                level = sweep.before.scores[name].estimate
                line = {"dash": "dot", "width": 1.5, "color": COLOURS[name]}
                figure.add_hline(y=level, line=line, row=row, col=1)
        if of_baseline:
            _add_line(figure, of_baseline, names[0], lambdas, row, baseline=True)
            tasks.append([group[0].task for group in of_baseline])
    chosen = next((group for group in groups if group[0].task == sweep.chosen), None)
    if chosen is not None:
        x = _place(float(chosen[0].lam or 0.0), lambdas)
        figure.add_vline(x=x, line={"color": RED, "width": 2}, opacity=0.6)
    figure.update_xaxes(type="log", **_ticks(lambdas))
    figure.update_xaxes(title="λ, weight of the regions", row=2, col=1)
    figure.update_yaxes(title="on the regions", row=1, col=1)
    figure.update_yaxes(title="on real images", row=2, col=1)
    dots = "; dotted: before" if sweep.before is not None else ""
    return Drawn(_lay_out(figure, f"Accuracy over λ{dots}"), tasks)


def _add_band(
    figure: go.Figure, groups: Sequence[Sequence[Measured]], name: str, lambdas: Sequence[float], row: int
) -> list[list[str]]:
    """Fill the range over the seeds; draw nothing if every λ was tuned once."""
    if all(len(group) == 1 for group in groups):
        return []
    means, below, above = _spread(groups, name)
    xs = [_place(float(group[0].lam or 0.0), lambdas) for group in groups]
    low = [mean - part for mean, part in zip(means, below, strict=True)]
    high = [mean + part for mean, part in zip(means, above, strict=True)]
    figure.add_scatter(
        x=[*xs, *xs[::-1]], y=[*high, *low[::-1]], fill="toself", mode="lines", line={"width": 0},
        fillcolor=COLOURS[name], opacity=0.22, hoverinfo="skip", showlegend=False, row=row, col=1,
        name=f"{name} band",
    )  # fmt: skip
    return [[]]


def _add_line(
    figure: go.Figure, groups: Sequence[Sequence[Measured]], name: str, lambdas: Sequence[float], row: int,
    *, baseline: bool = False,
) -> None:  # fmt: skip
    colour = ORANGE if baseline else COLOURS[name]
    label = "baseline" if baseline else {"region": "regions tuned on"}.get(name, SETS[name])
    means, *_ = _spread(groups, name)
    symbol = "diamond" if baseline else _SYMBOLS.get(name, "circle")
    figure.add_scatter(
        x=[_place(float(group[0].lam or 0.0), lambdas) for group in groups], y=means,
        mode="lines+markers", name=label, legendgroup=label, showlegend=not baseline or row == 1,
        line={"color": colour, "width": 2, "dash": "dash" if baseline else "solid"},
        marker={"color": colour, "size": 8, "symbol": symbol},
        hovertext=[_told(group) for group in groups], hoverinfo="text",
        unselected=_UNSELECTED, row=row, col=1,
    )  # fmt: skip


def _place(lam: float, lambdas: Sequence[float]) -> float:
    """Place of a λ on the log axis; 0 lies a decade left of the smallest other."""
    return lam or min((other for other in lambdas if other > 0), default=1.0) / 10


def _ticks(lambdas: Sequence[float]) -> dict[str, Any]:
    """A few ticks at powers of ten, and one at 0 if that is drawn."""
    if not lambdas:
        return {}
    places = [_place(lam, lambdas) for lam in lambdas]
    positive = [lam for lam in lambdas if lam > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    powers = range(low, high + 1, max(1, -(-(high - low) // _MOST_TICKS)))
    ticks = {10.0**power: _power(power) for power in powers}
    if 0.0 in lambdas:
        ticks = {tick: text for tick, text in ticks.items() if tick > 2 * min(places)} | {min(places): "0"}
    margin = 0.03 * (math.log10(max(places)) - math.log10(min(places))) + 0.1
    around = [math.log10(min(places)) - margin, math.log10(max(places)) + margin]
    return {
        "tickmode": "array", "tickvals": list(ticks), "ticktext": list(ticks.values()), "range": around,
    }  # fmt: skip


def _power(power: int) -> str:
    return f"{10.0**power:g}" if abs(power) < 3 else "10" + str(power).translate(_SUPERSCRIPT)


def _lay_out(figure: go.Figure, title: str) -> go.Figure:
    figure.update_layout(
        title=title, height=_HEIGHT, margin={"l": 10, "r": 10, "t": 40, "b": 10}, legend=_LEGEND,
        hovermode="closest", hoverlabel={"align": "left"}, clickmode="event+select", dragmode="pan",
    )  # fmt: skip
    return figure
