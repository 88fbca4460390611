from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from defuse_core.base.intervals import Interval
from defuse_core.method.evaluation import Scores
from defuse_core.report.evidence_figures import (
    RealImage,
    add_caption,
    draw_before_after,
    draw_controls,
    draw_noises,
    draw_real_images,
    draw_shares,
)
from defuse_core.report.figures import RED, figure_bytes
from defuse_core.report.sweep import Change

ROWS = [
    Scores("before", Interval.wilson(90, 100), Interval.wilson(10, 50)),
    Scores("λ = 0", Interval.wilson(91, 100), Interval.wilson(12, 50)),
    Scores("Defuse", Interval.wilson(92, 100), Interval.wilson(49, 50)),
]
COUNTS = {"raw": {"new": 9, "old": 1}, "centred": {"new": 0, "old": 3}}


def test_controls_show_both_accuracies_with_their_intervals() -> None:
    regions, test = draw_controls(ROWS).axes
    assert [text.get_text() for text in regions.texts] == ["0.200", "0.240", "0.980"]
    assert [text.get_text() for text in test.texts] == ["0.900", "0.910", "0.920"]
    assert [label.get_text() for label in regions.get_yticklabels()] == ["before", "λ = 0", "Defuse"]
    for row, drawn in zip(ROWS, regions.containers, strict=True):
        ends = drawn.lines[2][0].get_segments()[0][:, 0]  # type: ignore[attr-defined]
        np.testing.assert_allclose(ends, [row.region.low, row.region.high])
    assert regions.get_ylim()[0] > regions.get_ylim()[1]  # the first row on top


def test_before_and_after_are_linked_and_regions_held_out_are_told_apart() -> None:
    changes = [
        Change("_a $b$", Interval.wilson(1, 10), Interval.wilson(9, 10)),
        Change("x" * 60, Interval.wilson(2, 10), Interval.wilson(5, 10), held_out=True),
    ]
    axes = draw_before_after(changes).axes[0]
    links = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(links, [[0.1, 0.9], [0.2, 0.5]])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["before", "after", "after, held out"]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["_a $b$", "x" * 31 + "…"]
    figure_bytes(draw_before_after(changes[:1]), "svg")  # a name that looks like a formula is text


def test_shares_count_images_whatever_number_of_annotators_they_have() -> None:
    share = np.array([1.0, 1.0, 2 / 3, 0.5, np.nan])
    axes = draw_shares(share).axes[0]
    heights = {
        label.get_text(): bar.get_height()  # type: ignore[attr-defined]
        for label, bar in zip(axes.get_xticklabels(), axes.patches, strict=True)
    }
    assert heights == {"50%": 1, "67%": 1, "100%": 2}


def test_noises_show_every_count() -> None:
    axes = draw_noises(COUNTS, ["new", "old"]).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [9, 1, 0, 3]  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == ["9", "1", "0", "3"]


@pytest.mark.parametrize("channels", [1, 3])
def test_real_images_are_shown_with_what_is_said_of_them(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8, channels), dtype=np.uint8)
    images = [RealImage(image, "4", "9", "4" if i else "9") for i, image in enumerate(pixels)]
    figure = draw_real_images([*images[:11], RealImage(pixels[11], "7")], title="$near$")
    shown = [axes for axes in figure.axes if axes.images]
    told = [axes.get_xlabel() for axes in shown]
    assert told[:2] == ["is 4\n9 → 9 ✗", "is 4\n9 → 4"]
    assert told[11] == "is 7"
    assert to_hex(shown[0].xaxis.label.get_color()).lower() == RED.lower()
    expected = pixels[0, ..., 0] if channels == 1 else pixels[0]
    np.testing.assert_array_equal(shown[0].images[0].get_array(), expected)
    figure_bytes(figure, "png")


def test_a_caption_gets_room_of_its_own() -> None:
    figure = draw_noises(COUNTS, ["new", "old"])
    before = figure.get_size_inches()
    add_caption(figure, "n = 5; seed 0; " * 20)
    figure_bytes(figure, "svg")  # lays it out
    after = figure.get_size_inches()
    assert after[0] == before[0]
    assert after[1] > before[1] + 0.3
    (caption,) = figure.texts
    top = caption.get_window_extent().y1
    assert all(axes.get_tightbbox().y0 >= top for axes in figure.axes)
    assert caption.get_window_extent().x1 <= figure.bbox.width


def test_a_caption_needs_a_layout_that_makes_room() -> None:
    with pytest.raises(ValueError, match="constrained layout"):
        add_caption(Figure(), "n = 5")
