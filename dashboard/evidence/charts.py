"""Draw the Plotly figures that only the page Evidence has. Pure: records in, figures out.

`figures` and `evidence_figures` of `defuse_core.report` draw the same with matplotlib, for files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from dashboard.shared.charts import BLUE, KINDS, ORANGE, PURPLE, SERIES, SKY
from defuse_core.base.intervals import Interval
from defuse_core.report.evidence import CONTROLS, SETS, Distances, Model

GREY = "#a0a0a0"
COLOURS = {
    "before": GREY, CONTROLS["lam=0"]: SKY, CONTROLS["random"]: PURPLE, "identified mistakes": ORANGE,
    "Defuse": BLUE,
}  # fmt: skip
NOISES = {"raw": BLUE, "centred": ORANGE}
BINS = 40
_MARGIN = {"l": 10, "r": 10, "t": 36, "b": 10}
_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}


def accuracies(models: Sequence[Model]) -> go.Figure:
    """Draw figure 4: accuracy of every model on every set of images, as bars with intervals."""
    figure = go.Figure()
    sets = [name for name in SETS if all(name in model.scores for model in models)]
    width = 0.84 / len(models)
    for number, model in enumerate(models):
        scores = [model.scores[name] for name in sets]
        places = [i + (number - (len(models) - 1) / 2) * width for i in range(len(sets))]
        figure.add_bar(
            x=places, y=[s.estimate for s in scores], width=0.92 * width, name=model.name,
            marker={"color": COLOURS[model.name]}, error_y=_ends(scores, thickness=1.5, width=4),
            hovertext=[_told(model.name, SETS[k], s) for k, s in zip(sets, scores, strict=True)],
            hoverinfo="text",
        )  # fmt: skip
        figure.add_scatter(
            x=places, y=[s.high for s in scores], text=[f"{s.estimate:.3f}" for s in scores],
            mode="text", textposition="top center", hoverinfo="skip", showlegend=False, cliponaxis=False,
        )  # fmt: skip
    figure.update_xaxes(tickmode="array", tickvals=list(range(len(sets))), ticktext=[SETS[k] for k in sets])
    figure.update_yaxes(title="accuracy", tickformat=".0%", range=[0, 1.1], tickvals=[0, 0.25, 0.5, 0.75, 1])
    return _lay_out(figure, height=380)


def controls(models: Sequence[Model]) -> go.Figure:
    """Draw accuracy on the regions (left) and on the test images (right) of models and controls."""
    titles = ("on the failure regions", "on the test images (axis cut)")
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=titles)
    for column, name in enumerate(("region", "test"), start=1):
        for row, model in enumerate(models):
            score = model.scores[name]
            figure.add_scatter(
                x=[score.estimate], y=[row], mode="markers+text", text=[f"{score.estimate:.3f}"],
                textposition="top center", name=model.name, showlegend=False,
                marker={"color": COLOURS[model.name], "size": 11},
                error_x=_ends([score], thickness=2, width=5, color=COLOURS[model.name]),
                hovertext=[_told(model.name, SETS[name], score)], hoverinfo="text", row=1, col=column,
            )  # fmt: skip
        level = models[0].scores[name].estimate
        figure.add_vline(x=level, line={"dash": "dot", "width": 1, "color": GREY}, row=1, col=column)
    names = [model.name for model in models]
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
    figure.update_yaxes(**ticks, range=[len(names) - 0.5, -0.7], showgrid=False)
    figure.update_xaxes(tickformat=".0%", range=[-0.04, 1.06], row=1, col=1)
    figure.update_xaxes(tickformat=".1%", nticks=5, row=1, col=2)
    figure.update_annotations(font={"size": 13})
    return _lay_out(figure, height=110 + 46 * len(models))


def novelty(distances: Distances, *, x: str) -> go.Figure:
    """Draw how far images are from the nearest misclassified image, with medians as lines.

    Parameters
    ----------
    distances : mapping of str to (n,) float64
        By set of images.
    x : str
        Title of the x axis: the distance that is measured.
    """
    figure, edges = go.Figure(), bin_edges(distances)
    middles, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    for (name, far), colour in zip(distances.items(), cycle(SERIES), strict=False):
        share = np.histogram(far, edges)[0] / len(far)
        median = float(np.median(far))
        figure.add_bar(
            x=middles, y=share, width=width, name=f"{name}, n = {len(far):,}, median {median:.2f}",
            marker={"color": colour, "line": {"width": 0}}, opacity=0.55,
            hovertemplate="%{y:.1%} at about %{x:.2f}<extra></extra>",
        )  # fmt: skip
        figure.add_vline(x=median, line={"color": colour, "width": 2, "dash": "dash"})
    figure.update_xaxes(title=x, rangemode="tozero")
    figure.update_yaxes(title="share of images", tickformat=".0%")
    figure.update_layout(barmode="overlay", bargap=0)
    return _lay_out(figure, height=360, legend={**_LEGEND, "orientation": "v"})


def bin_edges(distances: Distances) -> NDArray[np.float64]:
    """Return the edges of the bins of the distances, from 0 to beyond the largest distance, (BINS + 1,)."""
    largest = max((float(far.max()) for far in distances.values()), default=0.0)
    return np.linspace(0, largest * 1.02 or 1.0, BINS + 1)


def noises(counts: Mapping[str, Mapping[str, int]]) -> go.Figure:
    """Draw how many mistakes of each kind raw and centred noise find around the same images."""
    figure = go.Figure()
    for name, colour in NOISES.items():
        by_kind = [counts[name][kind] for kind in KINDS]
        figure.add_bar(
            x=list(KINDS), y=by_kind, name=f"{name} noise", marker={"color": colour},
            text=[f"{n:,}" for n in by_kind], textposition="outside", cliponaxis=False,
            hovertemplate=f"{name}: %{{y:,}} %{{x}}<extra></extra>",
        )  # fmt: skip
    largest = max(counts[name][kind] for name in NOISES for kind in KINDS)
    figure.update_yaxes(title="mistakes kept", range=[0, 1.12 * (largest or 1)])
    figure.update_layout(barmode="group")
    return _lay_out(figure, height=320)


def _ends(scores: Sequence[Interval], **look: Any) -> dict[str, Any]:
    """Whiskers to both ends of the intervals."""
    return {
        "type": "data", "symmetric": False, "color": "#6e6e6e", **look,
        "array": [score.high - score.estimate for score in scores],
        "arrayminus": [score.estimate - score.low for score in scores],
    }  # fmt: skip


def _told(model: str, measured_on: str, score: Interval) -> str:
    return f"<b>{model}</b>, {measured_on}: {score!s}"


def _lay_out(figure: go.Figure, *, height: int, legend: Mapping[str, Any] | None = None) -> go.Figure:
    figure.update_layout(height=height, margin=_MARGIN, legend=legend or _LEGEND)
    return figure
