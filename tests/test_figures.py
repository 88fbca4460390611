from __future__ import annotations

import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from numpy.typing import NDArray
from PIL import Image

from defuse_core.base.intervals import Interval
from defuse_core.method.evaluation import Scores, agreement
from defuse_core.report.figures import (
    BLUE,
    GREEN,
    ORANGE,
    RegionPicture,
    TradeOff,
    draw_agreement,
    draw_novelty,
    draw_regions,
    draw_scores,
    draw_trade_off,
    figure_bytes,
    series_colours,
)
from defuse_core.report.map_figures import draw_map

BEFORE = Scores("before", Interval.wilson(95, 100), Interval.wilson(20, 100))
BASELINE = Scores("identified mistakes", Interval.wilson(94, 100), Interval.wilson(60, 100))
DEFUSE = Scores("Defuse", Interval.wilson(95, 100), Interval.wilson(90, 100))


def test_scores_have_a_bar_of_each_height() -> None:
    axes = draw_scores([BEFORE, BASELINE, DEFUSE]).axes[0]
    heights = sorted(round(patch.get_height(), 4) for patch in axes.patches)  # type: ignore[attr-defined]
    assert heights == [0.2, 0.6, 0.9, 0.94, 0.95, 0.95]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["test", "regions"]


@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_every_model_and_every_set_is_drawn(n: int) -> None:
    share, names = Interval.wilson(9, 10), [f"model {i}" for i in range(n)]
    axes = draw_scores([Scores(name, share, share) for name in names]).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    assert len(axes.patches) == 2 * n
    drawn = draw_novelty({name: np.linspace(1, 8, 50) for name in names}).axes[0]
    legend = drawn.get_legend().get_texts()
    assert [text.get_text().partition(" (")[0] for text in legend] == names
    assert len(set(series_colours(n))) == min(n, 7)


def test_a_model_has_its_colour_wherever_it_stands() -> None:
    drawn = [draw_scores(rows).axes[0] for rows in ([BEFORE, BASELINE, DEFUSE], [BEFORE, DEFUSE])]
    colours = [
        {
            bars.get_label(): bars.patches[0].get_facecolor()
            for bars in axes.containers
            if hasattr(bars, "patches")
        }
        for axes in drawn
    ]
    assert colours[1]["Defuse"] == colours[0]["Defuse"] != colours[0][BASELINE.model]


def test_scores_show_validation_where_all_have_it() -> None:
    share = Interval.wilson(9, 10)
    figure = draw_scores([Scores("before", share, share, share), Scores("Defuse", share, share, share)])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "validation",
        "test",
        "regions",
    ]


def test_trade_off_draws_every_lambda_where_it_was_measured() -> None:
    points = [
        TradeOff(lam, Interval.wilson(90 + i, 100), Interval.wilson(30 * i, 100))
        for i, lam in enumerate((1, 0.1, 1e-5))
    ]
    axes = draw_trade_off(points, before=BEFORE, baseline=BASELINE, chosen=0.1).axes[0]
    line = axes.containers[0].lines[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(line.get_xdata(orig=False), [0.6, 0.3, 0.0])  # by λ
    np.testing.assert_allclose(line.get_ydata(orig=False), [0.92, 0.91, 0.90])
    assert {text.get_text() for text in axes.texts} == {"λ = 0.1", "λ = 1", "λ = 1e-05"}


def test_labels_of_lambdas_do_not_run_into_each_other() -> None:
    points = [TradeOff(lam, Interval.wilson(95, 100), Interval.wilson(90, 100)) for lam in (1.0, 2.0, 5.0)]
    far = TradeOff(1e-3, Interval.wilson(80, 100), Interval.wilson(10, 100))
    axes = draw_trade_off([*points, far], before=BEFORE, baseline=BASELINE, chosen=2.0).axes[0]
    assert {text.get_text() for text in axes.texts} == {"λ = 2", "λ = 0.001"}


def test_novelty_shares_sum_to_one() -> None:
    axes = draw_novelty({"draws": np.linspace(1, 8, 50), "test": np.linspace(2, 9, 20)}).axes[0]
    filled = axes.containers[0]
    assert sum(bar.get_height() for bar in filled) == pytest.approx(1)


def test_agreement_counts_images() -> None:
    found = agreement([[1, 1, 1, 1, 1], [1, 1, 1, 2, 3], [0, 0, 0, 0, 0], []])
    axes = draw_agreement(found).axes[0]
    assert [bar.get_height() for bar in axes.containers[0]] == pytest.approx([1 / 3, 2 / 3])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["60%", "100%"]


def test_agreement_is_drawn_from_shares_of_any_number_of_annotators() -> None:
    axes = draw_agreement(agreement([[1, 1], [1, 2], [1, 1, 2], [4]])).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["50%", "67%", "100%"]
    assert axes.get_ylabel() == "share of 3 images"


@pytest.mark.parametrize("votes", [[[1]] * 10, [], [[], [2]]])
def test_without_two_answers_on_an_image_no_agreement_is_drawn(votes: list[list[int | None]]) -> None:
    axes = draw_agreement(agreement(votes)).axes[0]
    told = axes.get_title() + "".join(text.get_text() for text in axes.texts)
    assert "no agreement to measure" in told
    assert "nan" not in told
    assert not axes.containers


@pytest.mark.parametrize("channels", [1, 3])
def test_regions_show_all_images_with_predictions_as_plain_text(channels: int) -> None:
    images = torch.randint(0, 256, (4, channels, 8, 8), dtype=torch.uint8)
    picture = RegionPicture(
        "region 3", images, ["a$b", "a$b", "c", None], ["a$b", "c", "c", "c"], ["a$b"] * 4
    )
    figure = draw_regions([picture, picture])
    assert len(figure.axes) == 2 * 2 * 4
    texts = [axes.texts[0].get_text() for axes in figure.axes]
    assert texts[:4] == ["a$b", "✗c", "c", "c"]  # each by its own answer; of the last there is none
    assert texts[8:12] == ["a$b", "a$b", "✗a$b", "a$b"] or texts[4:8] == ["a$b", "a$b", "✗a$b", "a$b"]
    shown = figure.axes[1].images[0].get_array()
    expected = images[1, 0] if channels == 1 else images[1].permute(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(shown), expected.numpy())
    with Image.open(io.BytesIO(figure_bytes(figure, "png"))) as written:
        assert written.width > 500
    assert len(figure_bytes(figure, "svg")) > 1000


def test_names_too_long_for_a_corner_stand_above_the_draws() -> None:
    images = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    narrows, children = "Road narrows on the right side", "Children crossing"
    picture = RegionPicture(
        "region 40: $1", images, [children] * 10, [narrows] * 8 + [children] * 2, [children] * 10
    )
    figure = draw_regions([picture])
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["✗"] * 8 + ["✓"] * 12
    told = [text.get_text() for text in figure.texts]
    assert "region 40: $1; predicted as Road narrows on the rig… and others" in told
    assert "predicted as Children crossing" in told
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        assert axes.texts[0].get_window_extent().x1 <= axes.get_window_extent().x1
    words = "region 7: annotators say Right-of-way at next intersection; accuracy 0% → 100%"
    figure = draw_regions([replace(picture, title=words)])
    FigureCanvasAgg(figure).draw()
    (title,) = (text for text in figure.texts if text.get_text().startswith("region 7"))
    assert title.get_window_extent().x1 <= figure.axes[9].get_window_extent().x1


def places(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, 2)).astype(np.float32)


def test_the_map_shows_every_code_where_it_lies_in_the_colour_of_its_class() -> None:
    points, mistakes = places(7), places(3, 1)
    labels, mistake_labels = np.array([0, 1, 2, 0, 1, 2, 2]), np.array([2, 0, 2])
    figure = draw_map(points, labels, ["row", "column", "dia"], mistakes, mistake_labels, told="7 of 9 · pca")
    axes = figure.axes[0]
    dots, diamonds = axes.collections
    colours = np.array([to_rgba(colour) for colour in (BLUE, ORANGE, GREEN)])
    for drawn, where, classes in ((dots, points, labels), (diamonds, mistakes, mistake_labels)):
        np.testing.assert_allclose(np.asarray(drawn.get_offsets()), where)
        np.testing.assert_allclose(np.asarray(drawn.get_facecolor())[:, :3], colours[classes, :3])
    assert sum(np.asarray(diamonds.get_edgecolor())[0, :3]) < 0.6  # dark
    assert (list(axes.get_xticks()), list(axes.get_yticks())) == ([], [])
    assert axes.get_xlabel() == "7 of 9 · pca"


@pytest.mark.parametrize("n_classes", [1, 8, 9, 20])
def test_every_class_has_a_colour_of_its_own_and_its_name_outside_of_the_map(n_classes: int) -> None:
    names = [f"class {index}" for index in range(n_classes)]
    labels = np.arange(n_classes)
    figure = draw_map(places(n_classes), labels, names, places(2), labels[:1].repeat(2), told="")
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [*names, "mistake, by true class"]
    shown = [handle.get_markerfacecolor() for handle in legend.legend_handles]
    drawn = np.asarray(axes.collections[0].get_facecolor())[:, :3]
    np.testing.assert_allclose(np.array([to_rgba(colour)[:3] for colour in shown[:-1]]), drawn)
    assert len(np.unique(drawn, axis=0)) == n_classes
    figure.draw_without_rendering()
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1 - 1


def test_many_classes_share_a_continuous_map_and_need_no_legend() -> None:
    labels = np.arange(43)
    axes = draw_map(places(43), labels, [str(i) for i in labels], places(0), labels[:0], told="").axes[0]
    assert axes.get_legend() is None
    assert len(axes.collections) == 1  # no diamonds
    steps = np.abs(np.diff(np.asarray(axes.collections[0].get_facecolor())[:, :3], axis=0)).max(1)
    assert steps.min() > 0
    assert steps.max() < 0.1


def test_names_of_classes_are_plain_text_whatever_they_hold() -> None:
    names = ["a$b", "$\\frac{", "_hidden", "", "x" * 60]
    labels = np.arange(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_map(places(5), labels, names, places(0), labels[:0], told="5 codes of $\\bad{ · seed 0")
        assert b"<svg" in figure_bytes(figure, "svg")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [*names[:4], "x" * 23 + "…"]


@pytest.mark.parametrize(
    ("labels", "mistake_labels", "told"),
    [
        ([0, 1], [0], "labels must be a class from 0 to 1 for each of 3 points, got 2 of"),
        ([0, 1, 2], [0], r"labels must be a class from 0 to 1 .* got 3 of \[0 1 2\]"),
        ([0, 1, 1], [-1], r"mistake_labels must be .* for each of 1 points, got 1 of \[-1\]"),
    ],
)
def test_labels_that_do_not_fit_the_map_are_refused(
    labels: list[int], mistake_labels: list[int], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        draw_map(places(3), np.array(labels), ["a", "b"], places(1), np.array(mistake_labels), told="")


def test_a_figure_as_bytes_is_a_picture_of_its_kind() -> None:
    figure = draw_novelty({"draws": np.linspace(1, 8, 50)})
    with Image.open(io.BytesIO(figure_bytes(figure, "png"))) as picture:
        assert picture.size == (round(6.4 * 160), round(3.4 * 160))
    svg = figure_bytes(figure, "svg")
    assert svg.startswith(b"<?xml")
    assert svg.rstrip().endswith(b"</svg>")


def test_a_map_of_many_codes_is_small_as_svg_too() -> None:
    labels = np.zeros(5000, dtype=np.int64)
    figure = draw_map(places(5000), labels, ["a"], places(5000, 1), labels, told="")
    assert len(figure_bytes(figure, "svg")) < 600_000
