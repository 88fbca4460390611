"""Draw the paper's figures over the seeds of a reproduction: content of results.json in, `Figure` out.

Colours and manner are those of `report.figures`. Mean and range (lowest to highest) are over seeds; a λ
that a seed tuned several times counts once, with the mean of its repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.report import figures, map_figures
from defuse_core.report.evidence_figures import add_caption
from defuse_core.report.figures import (
    BLUE,
    GREY,
    MODEL_COLOURS,
    ORANGE,
    PERCENT,
    PURPLE,
    RED,
    TradeOff,
    new_figure,
    series_colours,
)
from defuse_core.reproduction.paper import Model
from defuse_core.reproduction.results import KINDS
from defuse_core.reproduction.tables import MODELS

Seed = Mapping[str, Any]
"""What results.json of one seed holds."""

_NAMED = 12  # classes up to which figure 2 has a legend of them
_PLANE = ("test", "region")  # axes of figure 5
_RANGE = "#9cc4de"
_KIND_COLOURS = dict(zip(KINDS, (PURPLE, ORANGE, BLUE), strict=True))
_GROUPS = {"validation": "validation", "test": "test", "region": "failure regions"}


def draw_map(
    points: NDArray[np.float32], labels: NDArray[np.int64], mistakes: NDArray[np.float32],
    *, class_names: Sequence[str], title: str,
) -> Figure:  # fmt: skip
    """Figure 2: training codes as dots, mistakes as black diamonds over them; colours by class are ours.

    Parameters
    ----------
    points, labels : (n, 2), (n,) int
        Where the training codes lie, and their class.
    mistakes : (m, 2)
        m may be 0.
    class_names : sequence of str
        More than 12 classes have no legend; the caption says how many there are.
    """
    map_figures.check_labels("labels", labels, points, class_names)
    n_classes = len(class_names)
    colours = map_figures.class_colours(max(n_classes, 9))[:n_classes]  # the shorter palette has a black
    figure, axes = map_figures.draw_codes(points, colours[labels])
    figure.set_size_inches(6.4, 4.4)
    axes.collections[0].set(antialiased=False, alpha=1, sizes=[4])  # blended colours make a PNG large
    x, y = mistakes.T
    size, edge = (10, 0.4) if len(mistakes) <= 1000 else (5, 0)  # many would hide the codes
    axes.scatter(x, y, s=size, c="black", marker="D", lw=edge, ec="white", rasterized=True)
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    n_named = n_classes if n_classes <= _NAMED else 0
    diamond = Line2D([], [], ls="", marker="D", mec="white", mfc="black", ms=6)
    names = [*(figures.clip(name) for name in class_names[:n_named]), f"mistakes (n = {len(mistakes):,})"]
    map_figures.name_legend(axes, [*map_figures.class_marks(colours[:n_named]), diamond], names)
    if not n_named:
        add_caption(figure, f"Dots are training codes, coloured by class: {n_classes} classes.")
    return figure


def draw_scores_over_seeds(seeds: Sequence[Seed]) -> Figure:
    """Figure 4: accuracy before, after tuning on identified mistakes, and after Defuse, by split."""
    _check(seeds)
    groups = [name for name in _GROUPS if any(name in seed["before"] for seed in seeds)]
    models = [model for model in MODELS if any(seed[model] is not None for seed in seeds)]
    figure, axes = new_figure(6.4, 3.6)
    width = 0.84 / len(models)
    for index, model in enumerate(models):
        rows = [seed[model] for seed in seeds if seed[model] is not None]
        places = np.arange(len(groups)) + (index - (len(models) - 1) / 2) * width
        values = [[row[group] for row in rows if group in row] for group in groups]
        _bars(axes, places, values, width, MODEL_COLOURS[MODELS[model]], MODELS[model])
    axes.set_xticks(range(len(groups)), [_GROUPS[group] for group in groups])
    axes.set(ylim=(0, 1.12), ylabel="accuracy", yticks=np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)
    return _add_seeds(figure, seeds)


def draw_trade_off_over_seeds(seeds: Sequence[Seed]) -> Figure:
    """Figure 5: test accuracy against accuracy on the regions, one point a λ; the chosen are ringed."""
    _check(seeds)
    points = _by_lambda(seeds)
    chosen = [seed["defuse"]["lam"] for seed in seeds]
    figure, axes = new_figure(6.4, 4.4)
    _cross(axes, points, "o-", BLUE, 5, "Defuse, one λ a point")
    markers: dict[Model, str] = {"before": "s", "baseline": "D"}
    for model, marker in markers.items():
        if rows := [seed[model] for seed in seeds if seed[model] is not None]:
            test, region = (_spread([row[key] for row in rows]) for key in _PLANE)
            colour = MODEL_COLOURS[MODELS[model]]
            _cross(axes, [TradeOff(0.0, test, region)], marker, colour, 8, MODELS[model])
    axes.set(xlabel="accuracy on failure regions", ylabel="test accuracy", xmargin=0.1, ymargin=0.12)
    ringed = [(p.region.estimate, p.test.estimate) for p in points if p.lam in chosen]
    label = f"chosen: λ = {', '.join(f'{lam:g}' for lam in chosen)}"
    axes.plot(*np.reshape(ringed, (-1, 2)).T, "o", ms=13, mfc="none", mec=RED, mew=1.8, label=label)
    for p, lams in _labelled(points, chosen, axes):
        axes.annotate(
            f"λ = {', '.join(f'{lam:g}' for lam in lams)}", (p.region.estimate, p.test.estimate),
            xytext=(11, 0), va="center", textcoords="offset points", fontsize=8,
            color=RED if p.lam in chosen else "black",
        )  # fmt: skip
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9)
    return _add_seeds(figure, seeds)


def _labelled(points: list[TradeOff], chosen: list[float], axes: Axes) -> list[tuple[TradeOff, list[float]]]:
    """Points with room for a label, each with its λ and any chosen λ nearby that has no room."""
    labelled = figures.apart(points, chosen, axes)
    lams = {p.lam: [p.lam] for p in labelled}
    for q in points:
        if q.lam in chosen and q.lam not in lams:
            ringed = (p for p in labelled if p.lam in chosen)  # only they can have taken its room
            near = min(ringed, key=lambda p: abs(p.test.estimate - q.test.estimate))
            lams[near.lam].append(q.lam)
    return [(p, sorted(lams[p.lam])) for p in labelled]


def draw_rows(rows: Sequence[Tensor]) -> Figure:
    """Pictures side by side, a row for each region.

    Parameters
    ----------
    rows : sequence of Tensor
        One or more of (n, channels, height, width), pixels in [0, 1].
    """
    most = max(len(images) for images in rows)
    figure = Figure(figsize=(0.7 * most, 0.75 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), most, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, images in zip(grid, rows, strict=True):
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    return figure


def draw_kinds(seeds: Sequence[Seed]) -> Figure:
    """Share of each kind among the mistakes, one bar for each seed and one for their mean."""
    _check(seeds)
    counts = np.array([[seed["mistakes"][kind] for kind in KINDS] for seed in seeds], dtype=np.float64)
    totals = counts.sum(axis=1)  # (n_seeds,)
    rows = list(counts / np.maximum(totals, 1)[:, None])
    names = [f"seed {seed['seed']}\nn = {n:,.0f}" for seed, n in zip(seeds, totals, strict=True)]
    if len(seeds) > 1:
        rows.append(np.mean([row for row in rows if row.any()] or rows, axis=0))
        names.append("mean")
    figure, axes = new_figure(6.4, 0.9 + 0.5 * len(rows))
    left = np.zeros(len(rows))
    for kind, shares in zip(KINDS, np.transpose(rows), strict=True):
        bars = axes.barh(range(len(rows)), shares, 0.72, left, color=_KIND_COLOURS[kind])
        bars.set_label(f"{kind}: {shares[-1]:.1%}")
        axes.bar_label(
            bars, [f"{share:.0%}" if share >= 0.05 else "" for share in shares], label_type="center",
            fontsize=8, color="white" if kind == "perturbation" else "black",
        )  # fmt: skip
        left += shares
    axes.set_yticks(range(len(rows)), names)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1), xlabel="share of the mistakes")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)
    return figure


def draw_novelty_over_seeds(seeds: Sequence[Seed]) -> Figure:
    """Beside figure 6: median distance to the nearest misclassified training image, in pixels and codes."""
    _check(seeds)
    pixels = [seed["novelty"]["pixels"] for seed in seeds]
    n = {name: " / ".join(f"{p[name]['n']:,}" for p in pixels if name in p) for q in pixels for name in q}
    figure = Figure(figsize=(7.2, 1.2 + 0.6 * len(n)), layout="constrained")
    kind = "misclassified " * all(seed["novelty"]["reference"]["misclassified"] for seed in seeds)
    figure.suptitle(f"median ℓ2 distance to the nearest {kind}training image", fontsize=10)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"pixels": "in pixels", "latent": "in latent space"}
    for axes, (space, title) in zip(panels, titles.items(), strict=True):
        for y, (name, colour) in enumerate(zip(n, series_colours(len(n)), strict=True)):
            rows = [seed["novelty"][space][name] for seed in seeds if name in seed["novelty"][space]]
            _medians(axes, y, [row["median"] for row in rows], colour)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel=title, xlim=(0, axes.get_xlim()[1] * 1.1))
        axes.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_yticks(range(len(n)), [f"{name}\nn = {counts}" for name, counts in n.items()], fontsize=9)
    panels[0].set_ylim(len(n) - 0.5, -0.7)
    all_of = [f"{seed['seed']}" for seed in seeds if not seed["novelty"]["reference"]["misclassified"]]
    which = f"seed{'s' if len(all_of) > 1 else ''} {', '.join(all_of)}"
    more = f"; nearest of all training images, as none is misclassified: {which}"
    return _add_seeds(figure, seeds, more if all_of else "")


def draw_agreement_over_seeds(seeds: Sequence[Seed]) -> Figure:
    """Beside figure 7: images on which all annotators agree, and pairs of answers that are the same."""
    _check(seeds)
    figure, axes = new_figure(4.4, 3.2)
    names = {"unanimous": "all annotators\nagree", "pairwise": "pairs of answers\nagree"}
    rows = [seed["agreement"] for seed in seeds]  # None where there was nothing to measure
    values = [[share for row in rows if (share := row[key]) is not None] for key in names]
    _bars(axes, np.arange(len(names)), values, 0.6, BLUE)
    axes.set_xticks(range(len(names)), list(names.values()))
    axes.set(xlim=(-0.7, 1.7), ylim=(0, 1.12), ylabel="share", yticks=np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PERCENT)
    images = " / ".join(f"{row['images']:,}" for row in rows)
    return _add_seeds(figure, seeds, f"; images: {images}")


def _check(seeds: Sequence[Seed]) -> None:
    if not seeds:
        raise ValueError("seeds must hold results.json of at least one seed, got none; run one to its report")


def _spread(values: Sequence[float]) -> Interval:
    """Mean, lowest and highest of the seeds."""
    return Interval(float(np.mean(values)), min(values), max(values), len(values))


def _by_lambda(seeds: Sequence[Seed]) -> list[TradeOff]:
    """Mean and range over the seeds by λ, the smallest λ first."""
    points = []
    for lam in sorted({row["lam"] for seed in seeds for row in seed["sweep"]}):
        tuned = [rows for seed in seeds if (rows := [row for row in seed["sweep"] if row["lam"] == lam])]
        means = {key: [float(np.mean([row[key] for row in rows])) for rows in tuned] for key in _PLANE}
        points.append(TradeOff(lam, _spread(means["test"]), _spread(means["region"])))
    return points


def _cross(axes: Axes, points: Sequence[TradeOff], form: str, colour: str, size: int, label: str) -> None:
    """Points of figure 5, with the range of each in both directions."""
    test, region = [p.test for p in points], [p.region for p in points]
    axes.errorbar(
        [i.estimate for i in region], [i.estimate for i in test],
        xerr=figures.error_bars(region), yerr=figures.error_bars(test),
        ecolor=_RANGE if colour == BLUE else colour, elinewidth=0.8,
        fmt=form, color=colour, lw=1, ms=size, label=label,
    )  # fmt: skip


def _bars(
    axes: Axes, places: NDArray[Any], values: Sequence[Sequence[float]], width: float, colour: str,
    label: str | None = None,
) -> None:  # fmt: skip
    """Bars of means with the range as whiskers, a dot a seed, the mean above."""
    heights = [float(np.mean(group or [0.0])) for group in values]
    axes.bar(places, heights, width * 0.92, color=colour, label=label)
    for place, group in zip(places, values, strict=True):
        if not group:
            axes.text(place, 0.02, "not\nmeasured", ha="center", fontsize=7, color=GREY)
            continue
        spread = _spread(group)
        if spread.n > 1:
            ends = figures.error_bars([spread])
            axes.errorbar(place, spread.estimate, ends, fmt="none", ecolor="black", capsize=3, lw=1)
            beside = place + np.linspace(0.16, 0.38, spread.n) * width
            axes.scatter(beside, group, s=9, c="white", ec="black", lw=0.6, zorder=3)
        axes.text(place, spread.high + 0.02, f"{spread.estimate:.3f}", ha="center", fontsize=8)


def _medians(axes: Axes, y: int, medians: Sequence[float], colour: str) -> None:
    """One row of the distances: each seed's median, their range and, written above it, their mean."""
    spread = _spread(medians)
    axes.plot([spread.low, spread.high], [y, y], color=colour, lw=1.2)
    axes.plot(medians, [y] * spread.n, "o", color=colour, ms=5)
    if spread.n > 1:
        axes.plot(spread.estimate, y, "|", color="black", ms=14, mew=2)
    axes.annotate(
        f"{spread.estimate:.2f}", (spread.estimate, y), xytext=(0, 8), ha="center", fontsize=8,
        textcoords="offset points",
    )  # fmt: skip


def _add_seeds(figure: Figure, seeds: Sequence[Seed], more: str = "") -> Figure:
    """Say below a figure which seeds it shows."""
    ids = ", ".join(f"{seed['seed']}" for seed in seeds)
    over = f"Mean over seeds {ids}; ranges from the lowest to the highest"
    return add_caption(figure, (over if len(seeds) > 1 else f"Seed {ids}") + more + ".")
