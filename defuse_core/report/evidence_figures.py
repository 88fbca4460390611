"""Draw evidence beyond the paper's figures: controls, accuracy by region and class, noise, real images.

Records in, matplotlib `Figure` out; colours and style are those of `defuse_core.report.figures`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from defuse_core.base.intervals import Interval
from defuse_core.method.evaluation import Scores
from defuse_core.report.figures import (
    BLUE,
    GREY,
    MODEL_COLOURS,
    ORANGE,
    PERCENT,
    PURPLE,
    RED,
    clip,
    error_bars,
    new_figure,
)
from defuse_core.report.sweep import Change

_CLIP = 32  # letters of a name
_LETTERS = 15  # of a caption, per inch
_CELL = 0.95  # inches per image
_A_ROW = 10  # images


@dataclass(frozen=True)
class RealImage:
    """An image of the test split and what the classifier says of it.

    Attributes
    ----------
    image : (height, width, 1 or 3) uint8
    label : str
        Its true class.
    before, after : str or None
        Predictions; None where they are not known.
    """

    image: NDArray[np.uint8]
    label: str
    before: str | None = None
    after: str | None = None


def add_caption(figure: Figure, told: str) -> Figure:
    """Write n, seed and settings below a figure, in lines that fit it; return the figure.

    Parameters
    ----------
    figure : Figure
        Becomes higher by the lines.
    told : str
        The caption, as plain text.

    Raises
    ------
    ValueError
        If the figure has no constrained layout, which makes space for the lines.
    """
    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        raise ValueError(f"figure must have a constrained layout, got {engine}; draw it by one of draw_…")
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(told, int(width * _LETTERS))
    more = 0.15 * len(lines) + 0.1  # inches
    figure.set_size_inches(width, height + more)
    engine.set(rect=(0, more / (height + more), 1, height / (height + more)))
    figure.text(
        0.01, 0.05 / (height + more), "\n".join(lines), fontsize=7.5, color=GREY, va="bottom",
        linespacing=1.3, parse_math=False,
    ).set_in_layout(False)  # fmt: skip
    return figure


def draw_controls(rows: Sequence[Scores]) -> Figure:
    """Accuracy on the regions (left) and on the test images (right) of models and controls, with intervals.

    Parameters
    ----------
    rows : sequence of Scores
        From top to bottom; a dotted line marks the first.
    """
    figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for place, name, title in zip(axes, ("region", "test"), _TITLES, strict=True):
        intervals = [getattr(row, name) for row in rows]
        for y, (row, interval) in enumerate(zip(rows, intervals, strict=True)):
            colour = MODEL_COLOURS.get(row.model, BLUE)
            _point(place, interval, y, colour, "o")
            place.annotate(
                f"{interval.estimate:.3f}", (interval.estimate, y), xytext=(0, 6), ha="center", fontsize=8,
                textcoords="offset points",
            )  # fmt: skip
        place.axvline(intervals[0].estimate, ls=":", lw=1, color=GREY, zorder=0)
        place.set_title(title, fontsize=10)
        place.spines[["top", "right"]].set_visible(False)
    axes[0].set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.8), xlim=(-0.03, 1.05))
    axes[0].set_yticklabels([row.model for row in rows], parse_math=False)
    axes[0].xaxis.set_major_formatter(PERCENT)
    axes[1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes[1].xaxis.set_major_locator(MaxNLocator(4))
    return figure


_TITLES = ("accuracy on the failure regions", "accuracy on the test images (axis cut)")


def draw_before_after(changes: Sequence[Change]) -> Figure:
    """Accuracy before (grey squares) and after (dots) with intervals, the first row on top.

    Regions held out are triangles.
    """
    figure, axes = new_figure(6.4, 1.3 + 0.3 * len(changes))
    for y, change in enumerate(changes):
        axes.plot([change.before.estimate, change.after.estimate], [y, y], color=GREY, lw=1.5, alpha=0.5)
        _point(axes, change.before, y, GREY, "s")
        after = (PURPLE, "^") if change.held_out else (BLUE, "o")
        _point(axes, change.after, y, *after)
    marks = [("before", GREY, "s"), ("after", BLUE, "o"), ("after, held out", PURPLE, "^")]
    any_held_out = any(change.held_out for change in changes)
    for name, colour, marker in marks if any_held_out else marks[:2]:
        axes.plot([], [], marker, color=colour, label=name)
    axes.set(yticks=range(len(changes)), ylim=(len(changes) - 0.5, -0.5), xlabel="accuracy")
    axes.set_yticklabels([clip(change.name, _CLIP) for change in changes], parse_math=False)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8)
    return figure


def _point(axes: Axes, interval: Interval, y: float, colour: str, marker: str) -> None:
    ends = error_bars([interval])
    axes.errorbar([interval.estimate], [y], xerr=ends, fmt=marker, color=colour, capsize=2.5, lw=1.2, ms=6)


def draw_shares(share: NDArray[np.float64]) -> Figure:
    """Draw agreement where the number of annotators differs: images by the share of them who agree.

    Parameters
    ----------
    share : (n,) float64
        Share of the annotators who gave the most frequent answer; NaN where nobody answered.
    """
    values, counts = np.unique(np.round(share[~np.isnan(share)], 3), return_counts=True)
    figure, axes = new_figure(6.4, 3.2)
    bars = axes.bar([f"{value:.0%}" for value in values], counts, color=BLUE, width=0.7)
    axes.bar_label(bars, [f"{count:,}" for count in counts], fontsize=8)
    axes.set(xlabel="annotators who gave the most frequent answer", ylabel=f"images of {counts.sum():,}")
    return figure


def draw_noises(counts: Mapping[str, Mapping[str, int]], kinds: Sequence[str]) -> Figure:
    """Mistakes by kind that raw and centred noise find around the same images.

    Parameters
    ----------
    counts : mapping of str to mapping of str to int
        For "raw" and "centred", by kind.
    kinds : sequence of str
        From left to right.
    """
    figure, axes = new_figure(6.4, 3.2)
    for side, (name, colour) in enumerate((("raw", BLUE), ("centred", ORANGE))):
        heights = [counts[name][kind] for kind in kinds]
        places = np.arange(len(kinds)) + (side - 0.5) * 0.4
        bars = axes.bar(places, heights, 0.38, color=colour, label=f"{name} noise")
        axes.bar_label(bars, [f"{n:,}" for n in heights], fontsize=8)
    axes.set(xticks=range(len(kinds)), xticklabels=list(kinds), ylabel="mistakes kept")
    axes.legend(frameon=False)
    return figure


def draw_real_images(images: Sequence[RealImage], *, title: str) -> Figure:
    """Real images in rows of ten, below each its class and its predictions before and after.

    Parameters
    ----------
    images : sequence of RealImage
        At least one.
    title : str
    """
    columns = min(max(len(images), 5), _A_ROW)
    rows = -(-len(images) // columns)
    size = (columns * _CELL, rows * (_CELL + 0.35) + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if number < len(images):
            _show_image(axes, images[number])
        else:
            axes.set_axis_off()
    return figure


def _show_image(axes: Axes, real: RealImage) -> None:
    grey = real.image.shape[2] == 1
    pixels = real.image[..., 0] if grey else real.image
    axes.imshow(pixels, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest")
    label, before, after = (clip(name or "", 10) for name in (real.label, real.before, real.after))
    wrong = real.after not in (None, real.label)
    said = "" if real.before is None else f"\n{before} → {after}" + (" ✗" if wrong else "")
    axes.set_xlabel(f"is {label}{said}", fontsize=7.5, color=RED if wrong else "black", parse_math=False)
    axes.set(xticks=[], yticks=[])
