"""Figure 2: the latent codes in the plane, with the mistakes among them; colours by class are ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from defuse_core.report.figures import BLUE, GREEN, ORANGE, RED, clip, new_figure

_FEW = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#F0E442", "#000000")
_NAMED = 20  # up to so many classes, each has its own colour
_EDGE = "#222222"


def draw_map(
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    mistakes: NDArray[np.float32],
    mistake_labels: NDArray[np.int64],
    *,
    told: str,
) -> Figure:
    """Figure 2, coloured by true class: training codes as dots, mistakes as diamonds; there, blue and black.

    Parameters
    ----------
    points : (n, 2)
        Where the training codes lie.
    labels : (n,) int
    class_names : sequence of str
        More than 20 classes share a continuous colour map and have no legend.
    mistakes : (m, 2)
        Drawn in this order over all training codes; m may be 0.
    mistake_labels : (m,) int
        True class, which differs from the prediction.
    told : str
        The caption: number of codes, method, seed.

    Raises
    ------
    ValueError
        If points and labels differ in number, or a label has no name.
    """
    check_labels("labels", labels, points, class_names)
    check_labels("mistake_labels", mistake_labels, mistakes, class_names)
    colours = class_colours(len(class_names))
    figure, axes = draw_codes(points, colours[labels])
    if len(mistakes):
        x, y = mistakes.T
        axes.scatter(x, y, s=20, c=colours[mistake_labels], marker="D", lw=0.6, ec=_EDGE, rasterized=True)
    axes.set_xlabel(told, loc="left", fontsize=8, parse_math=False)
    if len(class_names) <= _NAMED:
        _class_legend(axes, colours, class_names, with_mistakes=bool(len(mistakes)))
    return figure


def check_labels(
    name: str, labels: NDArray[np.int64], points: NDArray[np.float32], class_names: Sequence[str]
) -> None:
    """Check that every point has one label and every label has a name.

    Parameters
    ----------
    name : str
        Of the argument, for the error.
    labels : (n,) int64
    points : (n, 2)
    class_names : sequence of str

    Raises
    ------
    ValueError
        If not.
    """
    if len(labels) != len(points) or not np.isin(labels, np.arange(len(class_names))).all():
        raise ValueError(
            f"{name} must be a class from 0 to {len(class_names) - 1} for each of {len(points)} points, "
            f"got {len(labels)} of {np.unique(labels)}; give those of the same run"
        )


def draw_codes(points: NDArray[np.float32], colours: NDArray[np.float64]) -> tuple[Figure, Axes]:
    """Draw training codes as dots on axes without ticks or frame.

    Parameters
    ----------
    points : (n, 2)
    colours : (n, 4)
        RGBA in [0, 1].
    """
    figure, axes = new_figure(7.2, 5.2)
    # One collection in the given order: class by class, the last would hide the others. Pixels even in SVG.
    x, y = points.T
    axes.scatter(x, y, s=5, c=colours, lw=0, alpha=0.6, rasterized=True)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_visible(False)
    return figure, axes


def _class_legend(
    axes: Axes, colours: NDArray[np.float64], class_names: Sequence[str], *, with_mistakes: bool
) -> None:
    """Put a legend of the classes and of the mistakes beside the axes."""
    marks = class_marks(colours)
    names = [clip(name) for name in class_names]
    if with_mistakes:
        marks.append(Line2D([], [], ls="", marker="D", mec=_EDGE, mfc="white"))
        names.append("mistake, by true class")
    name_legend(axes, marks, names)


def class_marks(colours: NDArray[np.float64]) -> list[Line2D]:
    """Return one dot per colour, for a legend."""
    return [Line2D([], [], ls="", marker="o", mec="none", mfc=tuple(colour)) for colour in colours]


def name_legend(axes: Axes, marks: Sequence[Line2D], names: Sequence[str]) -> None:
    """Put a legend to the right of the axes; names are plain text, even where they look like a formula.

    Parameters
    ----------
    axes : Axes
    marks : sequence of Line2D
    names : sequence of str
        One for each mark.
    """
    legend = axes.legend(
        marks, ["-"] * len(marks), loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)  # set afterwards: matplotlib omits names that begin with _


def class_colours(n_classes: int) -> NDArray[np.float64]:
    """Return one colour per class, (n_classes, 4): distinct up to 20 classes, continuous beyond."""
    if n_classes <= len(_FEW):
        return np.asarray(to_rgba_array(_FEW[:n_classes]))
    if n_classes <= _NAMED:  # the strong ones first, then their pale twins
        pairs = colormaps["tab20"](np.arange(_NAMED))
        return np.concatenate([pairs[::2], pairs[1::2]])[:n_classes]
    return np.asarray(colormaps["viridis"](np.linspace(0, 1, n_classes)))
