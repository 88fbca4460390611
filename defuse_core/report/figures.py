"""Draw the paper's figures with matplotlib: records in, `Figure` out; nothing is computed here.

Drawn without pyplot, which keeps state that threads would share. Colours are those of Okabe and Ito
(2008), which people with colour-blindness can tell apart; correct and wrong also differ by a mark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.method.evaluation import Agreement, Scores

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"
PURPLE, SKY = "#CC79A7", "#56B4E9"
MODEL_COLOURS = {
    "before": GREY, "λ = 0": SKY, "random regions": PURPLE, "identified mistakes": ORANGE, "Defuse": BLUE,
}  # fmt: skip
"""By name of a row of figure 4 or of a control."""
_SERIES = (BLUE, ORANGE, GREY, GREEN, RED, PURPLE, SKY)
PERCENT = PercentFormatter(1.0, decimals=0)
_CELL = 0.62  # inches per thumbnail
_LETTER = 0.068  # inches per letter of 9 points: an upper limit of the average width
_IN_CORNER = 4  # letters of a class name that fit in a thumbnail
_DPI = 160
_CLIP = 24  # letters of a class's name


@dataclass(frozen=True)
class RegionPicture:
    """One region, like those of figures 1 and 3.

    Attributes
    ----------
    title : str
    images : (n, channels, height, width) uint8
    labels : sequence of (str or None)
        What people said of each image; None where no answer counts.
    before, after : sequence of str
        Prediction on each image, before and after correction.
    """

    title: str
    images: Tensor
    labels: Sequence[str | None]
    before: Sequence[str]
    after: Sequence[str]


@dataclass(frozen=True)
class TradeOff:
    """One λ of figure 5."""

    lam: float
    test: Interval
    region: Interval


def figure_bytes(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Return a figure as the content of a file; its pixels are 160 to the inch.

    Parameters
    ----------
    figure : Figure
    kind : {"png", "svg"}
    """
    file = BytesIO()
    figure.savefig(file, format=kind, dpi=_DPI)
    return file.getvalue()


def series_colours(n: int) -> list[str]:
    """Return a colour for each of n series; of more than seven the first come again.

    Parameters
    ----------
    n : int
        0 or more.
    """
    return [_SERIES[index % len(_SERIES)] for index in range(n)]


def clip(name: str, longest: int = _CLIP) -> str:
    """Shorten a name that is too long, with an ellipsis at its end.

    Parameters
    ----------
    name : str
    longest : int
        Letters, the ellipsis included.
    """
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def draw_scores(scores: Sequence[Scores]) -> Figure:
    """Figure 4: accuracy of each model on the test split and on the regions, with intervals.

    Parameters
    ----------
    scores : sequence of Scores
        One or more, from left to right; all are drawn.
    """
    groups = {"test": [s.test for s in scores], "regions": [s.region for s in scores]}
    if all(s.validation is not None for s in scores):
        groups = {"validation": [s.validation for s in scores if s.validation], **groups}
    figure, axes = new_figure(6.4, 3.6)
    width = 0.8 / len(scores)
    others = iter(series_colours(len(scores)))
    for index, score in enumerate(scores):
        colour = MODEL_COLOURS.get(score.model) or next(others)
        intervals = [group[index] for group in groups.values()]
        places = np.arange(len(groups)) + (index - (len(scores) - 1) / 2) * width
        heights = [i.estimate for i in intervals]
        axes.bar(places, heights, width * 0.92, color=colour, label=score.model)
        axes.errorbar(places, heights, error_bars(intervals), fmt="none", ecolor="black", capsize=3, lw=1)
        for place, interval in zip(places, intervals, strict=True):
            axes.text(place, interval.high + 0.015, f"{interval.estimate:.3f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set(ylim=(0, 1.12), ylabel="accuracy")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    return figure


def draw_trade_off(
    points: Sequence[TradeOff], *, before: Scores, baseline: Scores | None, chosen: float
) -> Figure:
    """Figure 5: test accuracy against region accuracy, one point per λ.

    Parameters
    ----------
    points : sequence of TradeOff
    before : Scores
        Of the uncorrected classifier.
    baseline : Scores or None
        Of the one tuned on single mistakes.
    chosen : float
        λ of the point to circle.
    """
    figure, axes = new_figure(6.4, 4.2)
    ordered = sorted(points, key=lambda p: p.lam)
    axes.errorbar(
        [p.region.estimate for p in ordered], [p.test.estimate for p in ordered],
        yerr=error_bars([p.test for p in ordered]), xerr=error_bars([p.region for p in ordered]),
        fmt="o-", color=BLUE, ecolor="#9cc4de", lw=1, ms=5, elinewidth=0.8, label="Defuse, one λ a point",
    )  # fmt: skip
    rivals = ((before, "s", GREY), (baseline, "D", ORANGE))
    for scores, marker, colour in ((s, m, c) for s, m, c in rivals if s is not None):
        axes.plot(
            scores.region.estimate, scores.test.estimate, marker, color=colour, ms=8, label=scores.model
        )
    for p in apart(ordered, {chosen}, axes):
        place = p.region.estimate, p.test.estimate
        if p.lam == chosen:
            axes.plot(*place, "o", ms=13, mfc="none", mec=RED, mew=1.8)
        axes.annotate(
            f"λ = {p.lam:g}", place, xytext=(-8, 10), ha="right", textcoords="offset points",
            fontsize=8, color=RED if p.lam == chosen else "black",
        )  # fmt: skip
    axes.set(xlabel="region accuracy", ylabel="test accuracy")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.legend(frameon=False, loc="lower left")
    return figure


def apart(points: Sequence[TradeOff], chosen: Collection[float], axes: Axes) -> list[TradeOff]:
    """Pick the points to label so that labels do not overlap: chosen ones first, then the largest λ.

    Parameters
    ----------
    points : sequence of TradeOff
    chosen : collection of float
        λ of the chosen points.
    axes : Axes
        With its final limits.
    """
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())

    def far(a: TradeOff, b: TradeOff) -> bool:
        x, y = a.region.estimate - b.region.estimate, a.test.estimate - b.test.estimate
        return bool(abs(x) > 0.2 * width or abs(y) > 0.05 * height)

    labelled: list[TradeOff] = []
    for p in sorted(points, key=lambda p: (p.lam not in chosen, -p.lam)):
        if all(far(p, other) for other in labelled):
            labelled.append(p)
    return labelled


def draw_regions(pictures: Sequence[RegionPicture]) -> Figure:
    """Like figures 1 and 3: each region's draws, before and after, the prediction in the corner.

    A prediction is right if it is what people said of that image; grey where they said nothing that counts.
    Names that are too long for the corner stand above the draws; a mark then says whether each is correct.
    """
    columns = max(len(p.images) for p in pictures)
    long = any(len(name) > _IN_CORNER for p in pictures for name in (*p.before, *p.after))
    figure = Figure(figsize=(2 * columns * _CELL + 0.5, len(pictures) * (_CELL + 0.42) + 0.35))
    figure.set_layout_engine("none")
    width, height = figure.get_size_inches()
    for side, name in enumerate(("before", "after correction")):
        x = (side * (columns * _CELL + 0.3) + 0.1) / width
        figure.text(x, 1 - 0.22 / height, name, fontsize=11, weight="bold", va="center")
        for row, picture in enumerate(pictures):
            top = height - 0.35 - row * (_CELL + 0.42)
            said = picture.before if side == 0 else picture.after
            parts = [picture.title] if side == 0 else []
            parts += [_most_frequent(said)] if long else []
            heading = clip("; ".join(parts), int(columns * _CELL / _LETTER))
            figure.text(x, (top - 0.16) / height, heading, fontsize=9, va="center", parse_math=False)
            own = zip(picture.images, said, picture.labels, strict=True)
            for column, (image, prediction, label) in enumerate(own):
                left, bottom = x + column * _CELL / width, (top - 0.3 - _CELL) / height
                box = (left, bottom, 0.94 * _CELL / width, 0.94 * _CELL / height)
                right = None if label is None else prediction == label
                corner = "" if long else prediction
                _thumbnail(figure.add_axes(box), image, corner or "✓" * (right is True), right=right)
    return figure


def _most_frequent(said: Sequence[str]) -> str:
    """Say the most frequent prediction, and whether there are others."""
    (name, _), *others = Counter(said).most_common()
    return f"predicted as {clip(name)}" + (" and others" if others else "")


def _thumbnail(axes: Axes, image: Tensor, corner: str, *, right: bool | None) -> None:
    """An image with the prediction in its corner; where `right` is None, without a verdict."""
    grey = image.shape[0] == 1
    pixels = image[0].numpy() if grey else image.permute(1, 2, 0).numpy()
    axes.imshow(pixels, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest")
    colour = GREY if right is None else GREEN if right else RED
    axes.text(
        0.06, 0.93, f"✗{corner}" if right is False else corner, transform=axes.transAxes, va="top",
        fontsize=8, weight="bold", color="white", parse_math=False,
        bbox={"facecolor": colour, "pad": 1.2, "lw": 0},
    )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1.2)


def draw_side_by_side(
    draws: Tensor, known: Tensor, predictions: tuple[Sequence[str], Sequence[str]], *, known_as: str
) -> Figure:
    """Figure 6: images of failure regions above, the known image nearest to each below.

    Parameters
    ----------
    draws, known : (n, channels, height, width) uint8
        n of 1 or more.
    predictions : pair of sequence of str
        What the classifier says of either.
    known_as : str
        What the lower row is called.
    """
    width, height = max(len(draws) * _CELL, 4.0), 2 * (_CELL + 0.3)
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    rows = (("draws of failure regions", draws), (known_as, known))
    for row, ((name, images), said) in enumerate(zip(rows, predictions, strict=True)):
        top = height - row * (_CELL + 0.3)
        figure.text(0.02 / width, (top - 0.15) / height, name, fontsize=9, va="center", parse_math=False)
        for column, (image, prediction) in enumerate(zip(images, said, strict=True)):
            box = (
                column * _CELL / width, (top - 0.3 - _CELL) / height, 0.94 * _CELL / width,
                0.94 * _CELL / height,
            )  # fmt: skip
            _thumbnail(figure.add_axes(box), image, clip(prediction, _IN_CORNER), right=None)
    return figure


def draw_novelty(
    distances: Mapping[str, NDArray[np.float64]], *, x: str = "ℓ2 to the nearest misclassified training image"
) -> Figure:
    """Beside figure 6: distance to the nearest misclassified training image, one curve per set of images.

    Parameters
    ----------
    distances : mapping of str to (n,) float64
        By set, one or more; none empty.
    x : str
        Label of the axis.
    """
    figure, axes = new_figure(6.4, 3.4)
    edges = np.linspace(0, max(float(d.max()) for d in distances.values()) * 1.02, 41).tolist()
    for (name, values), colour in zip(distances.items(), series_colours(len(distances)), strict=True):
        label = f"{name} (n = {len(values)}, median {np.median(values):.1f})"
        share = np.full(len(values), 1 / len(values))
        axes.hist(values, edges, weights=share, color=colour, alpha=0.35)
        axes.hist(values, edges, weights=share, color=colour, histtype="step", lw=1.4, label=label)
    axes.set(xlabel=x, ylabel="share of images", xlim=(0, None))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def draw_agreement(found: Agreement) -> Figure:
    """Beside figure 7: images by the share of their annotators who gave the most frequent answer.

    Parameters
    ----------
    found : Agreement
        Images may have any number of annotators; those with fewer than two are not in it.
    """
    figure, axes = new_figure(6.4, 3.2)
    shares, counts = np.unique(np.round(found.share[~np.isnan(found.share)], 3), return_counts=True)
    if not len(counts):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No image has two answers: there is no agreement to measure.", ha="center")
        return figure
    bars = axes.bar([f"{share:.0%}" for share in shares], counts / counts.sum(), color=BLUE)
    axes.bar_label(bars, [str(count) for count in counts], fontsize=8)
    axes.set(xlabel="annotators who gave the most frequent answer", ylabel=f"share of {counts.sum()} images")
    axes.set_title(f"unanimous on {found.unanimous:.2f}, pairs agree {found.pairwise:.2f}", fontsize=10)
    axes.yaxis.set_major_formatter(PERCENT)
    return figure


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure with axes that are open at the top and on the right.

    Parameters
    ----------
    width, height : float
        Inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def error_bars(intervals: Sequence[Interval]) -> NDArray[np.float64]:
    """Return distances from the estimates to both ends, (2, n), as matplotlib expects them."""
    low = [max(i.estimate - i.low, 0.0) for i in intervals]
    high = [max(i.high - i.estimate, 0.0) for i in intervals]
    return np.array([low, high])
