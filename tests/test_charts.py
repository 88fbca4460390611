"""Charts: the numbers that go in are those that are drawn."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from numpy.typing import NDArray

from dashboard.shared import charts
from tests.apps import NASTY


def all_text(found: Any) -> list[str]:
    """Every string anywhere in a figure."""
    if isinstance(found, str):
        return [found]
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else ()
    return [text for part in parts for text in all_text(part)]


def as_dict(figure: go.Figure) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(figure.to_json())
    return read


# Curves


def test_curves_are_the_metrics_over_the_epochs() -> None:
    points = [{"loss": 3.0, "kl": 0.5, "other": 9.0}, {"loss": 2.0, "kl": 1.5, "other": 9.0}]
    figure = charts.curves(points, {"loss": "Loss", "kl": "KL"}, title="T", y="nats", of=40)
    loss, kl = figure.data
    assert (list(loss.x), list(loss.y), loss.name) == ([1, 2], [3.0, 2.0], "Loss")
    assert (list(kl.x), list(kl.y), kl.name) == ([1, 2], [0.5, 1.5], "KL")
    assert (loss.line.color, kl.line.color) == (charts.BLUE, charts.ORANGE)
    assert (loss.mode, kl.mode) == ("lines", "lines")
    assert tuple(figure.layout.xaxis.range) == (0.5, 40.5)  # it does not move while epochs come
    assert (figure.layout.title.text, figure.layout.yaxis.title.text) == ("T", "nats")


def test_a_single_epoch_is_a_point_that_can_be_seen() -> None:
    figure = charts.curves([{"loss": 3.0}], {"loss": "Loss"}, title="T", y="nats", of=1)
    assert "markers" in figure.data[0].mode


def test_no_epochs_are_no_error() -> None:
    figure = charts.curves([], {"loss": "Loss"}, title="T", y="nats", of=5)
    assert not list(figure.data[0].y)


def test_equal_records_give_equal_figures() -> None:
    """Any change would clear the selection and the zoom."""
    points = [{"loss": float(i)} for i in range(5)]
    first, second = (charts.curves(points, {"loss": "L"}, title="T", y="n", of=5).to_json() for _ in "ab")
    assert first == second


# One curve


def test_a_line_is_its_points_in_the_order_given() -> None:
    figure = charts.line([5, 10, 15], [-40.0, -31.5, -30.0], title="T", x="iteration", y="nats")
    (line,) = figure.data
    assert (list(line.x), list(line.y)) == ([5, 10, 15], [-40.0, -31.5, -30.0])
    assert (line.mode, line.line.color) == ("lines", charts.BLUE)
    titles = figure.layout.title.text, figure.layout.xaxis.title.text, figure.layout.yaxis.title.text
    assert titles == ("T", "iteration", "nats")
    assert figure.layout.xaxis.rangemode == "tozero"  # it begins at the beginning
    assert figure.layout.yaxis.rangemode is None  # but a bound far from 0 fills the height


@pytest.mark.parametrize("n", [0, 1])
def test_a_line_of_less_than_two_points_is_what_can_be_seen_of_it(n: int) -> None:
    (line,) = charts.line([5.0] * n, [2.0] * n, title="T", x="x", y="y").data
    assert line.mode == "markers"
    assert (list(line.x), list(line.y)) == ([5.0] * n, [2.0] * n)


# Shares


def test_bars_are_shares_each_beside_its_name_and_with_its_value() -> None:
    figure = charts.bars(["row", "column", "dia"], np.array([0.7512, 0.2, 0.0488]), title="T")
    (bars,) = figure.data
    assert list(bars.x) == [0.7512, 0.2, 0.0488]
    assert bars.orientation == "h"
    assert list(bars.text) == ["75.1%", "20.0%", "4.9%"]
    axis = figure.layout.yaxis
    named = dict(zip(axis.tickvals, axis.ticktext, strict=True))
    assert [named[place] for place in bars.y] == ["row", "column", "dia"]
    assert axis.autorange == "reversed"  # the first on top
    assert tuple(figure.layout.xaxis.range) == (0, 1)  # bars of two images compare
    assert figure.layout.title.text == "T"


def test_every_bar_has_room() -> None:
    few, many = (charts.bars(["n"] * n, np.full(n, 1 / n), title="T") for n in (2, 12))
    assert many.layout.height - few.layout.height >= 10 * 20


# Agreement


def test_agreement_counts_draws_by_the_share_that_agrees() -> None:
    share = np.array([1.0, 0.8, np.nan, 1.0, 0.6, 0.8, 1.0, np.nan])
    figure = charts.agreement(share)
    (bars,) = figure.data
    assert list(bars.x) == ["60%", "80%", "100%"]
    assert list(bars.y) == [1, 2, 3]
    assert [int(text) for text in bars.text] == [1, 2, 3]
    assert figure.layout.title.text == "Agreement, n = 6 draws"
    assert figure.layout.xaxis.type == "category"  # "60%" is no number, and gaps are no zeros


def test_the_same_share_by_another_sum_is_the_same_bar() -> None:
    share = np.array([2 / 3, 1 - 1 / 3, 0.1 + 0.2 + 0.3 + 1 / 15, 1 / 3, 0.5])
    (bars,) = charts.agreement(share).data
    assert dict(zip(bars.x, bars.y, strict=True)) == {"33%": 1, "50%": 1, "67%": 3}


@pytest.mark.parametrize("share", [np.zeros(0), np.full(3, np.nan)])
def test_where_nobody_answered_there_is_no_bar(share: NDArray[np.float64]) -> None:
    figure = charts.agreement(share)
    assert not len(figure.data[0].x)
    assert figure.layout.title.text == "Agreement, n = 0 draws"


# Matrix


def test_a_matrix_shows_counts_and_leaves_the_diagonal_blank() -> None:
    counts = np.array([[50, 2, 0], [1, 40, 7], [0, 0, 30]])
    before = counts.copy()
    figure = charts.matrix(counts, ["a", "b", "c"], title="Confusion")
    (heat,) = figure.data
    z = np.array(heat.z, dtype=float)
    assert np.isnan(np.diag(z)).all()
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(z[off], counts[off])
    np.testing.assert_array_equal(heat.customdata, counts)  # told on hovering, the diagonal too
    assert [list(row) for row in heat.text] == [["50", "2", ""], ["1", "40", "7"], ["", "", "30"]]
    assert list(figure.layout.xaxis.ticktext) == list(figure.layout.yaxis.ticktext) == ["a", "b", "c"]
    assert figure.layout.yaxis.autorange == "reversed"  # the first class above
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("prediction", "true class")
    np.testing.assert_array_equal(counts, before)


@pytest.mark.parametrize(
    ("n", "numbered", "named"),
    [(2, True, True), (20, True, True), (21, False, True), (43, False, True), (200, False, False)],
)
def test_large_matrices_show_colours_in_place_of_numbers(n: int, numbered: bool, named: bool) -> None:
    counts = np.ones((n, n), dtype=np.int64)
    figure = charts.matrix(counts, [f"class {i}" for i in range(n)], title="T")
    (heat,) = figure.data
    assert (heat.text is not None) is numbered
    assert heat.showscale is not numbered
    ticks = figure.layout.xaxis
    assert ticks.showticklabels is named
    assert list(ticks.tickvals) == list(range(n))
    assert [f"class {i}" for i in range(n)] == list(ticks.ticktext)  # which the hover text reads


def test_names_beside_a_matrix_keep_what_distinguishes_them() -> None:
    names = [f"Speed limit ({n}km/h)" for n in range(20, 63)]
    figure = charts.matrix(np.ones((43, 43), dtype=np.int64), names, title="T")
    assert list(figure.layout.yaxis.ticktext)[:2] == ["…(20km/h)", "…(21km/h)"]


def test_the_most_confused_pairs_are_counted_off_the_diagonal() -> None:
    counts = np.array([[50, 2, 0], [1, 40, 7], [2, 0, 30]])
    assert charts.most_confused(counts) == [(1, 2, 7), (0, 1, 2), (2, 0, 2), (1, 0, 1)]
    assert charts.most_confused(counts, 1) == [(1, 2, 7)]
    assert charts.most_confused(np.diag([3, 4])) == []


def test_a_matrix_without_mistakes_is_empty_and_not_full() -> None:
    (heat,) = charts.matrix(np.diag([5, 7]), ["a", "b"], title="T").data
    assert (heat.zmin, heat.zmax) == (0, 1)


# By class


def test_classes_come_lowest_first_with_their_intervals() -> None:
    intervals = [(0.9, 0.8, 0.95, 40), None, (0.5, 0.4, 0.65, 30), (0.7, 0.7, 0.7, 0)]
    figure = charts.by_class(["a", "b", "c", "d"], intervals, title="T", x="accuracy")
    (dots,) = figure.data
    assert list(dots.x) == [0.5, 0.7, 0.9]
    assert list(figure.layout.yaxis.ticktext) == ["c", "d", "a"]
    np.testing.assert_allclose(np.add(dots.x, dots.error_x.array), [0.65, 0.7, 0.95])
    np.testing.assert_allclose(np.subtract(dots.x, dots.error_x.arrayminus), [0.4, 0.7, 0.8])
    assert [list(row) for row in dots.customdata] == [["c", 30], ["d", 0], ["a", 40]]
    assert figure.layout.yaxis.autorange == "reversed"  # the lowest above


def test_names_and_intervals_have_to_be_of_one_length() -> None:
    with pytest.raises(ValueError, match="shorter"):
        charts.by_class(["a", "b"], [(0.5, 0.4, 0.6, 10)], title="T", x="x")


def test_no_class_at_all_is_no_error() -> None:
    assert not len(charts.by_class(["a"], [None], title="T", x="x").data[0].x)


def test_every_class_has_room() -> None:
    few, many = (
        charts.by_class([str(i) for i in range(n)], [(0.5, 0.4, 0.6, 9)] * n, title="T", x="x")
        for n in (3, 100)
    )
    assert few.layout.height >= 300
    assert many.layout.height >= 100 * 15


# Mistakes and noise


def test_mistakes_are_stacked_by_kind_in_their_colours() -> None:
    counts = {"dataset": [0, 2], "reconstruction": [1, 1], "perturbation": [5, 9]}
    figure = charts.kinds_over([64, 128], counts, of=1000)
    assert [line.name for line in figure.data] == ["perturbation", "reconstruction", "dataset"]
    for line in figure.data:
        assert list(line.x) == [64, 128]
        assert list(line.y) == counts[line.name]
        assert line.line.color == charts.KINDS[line.name]
    assert len({line.stackgroup for line in figure.data}) == 1
    assert tuple(figure.layout.xaxis.range) == (0, 1000)
    assert len(set(charts.KINDS.values())) == 3


@pytest.mark.parametrize(("low", "high", "shown"), [(0.3, 0.7, (-1.0, 1.0)), (-4.0, 2.0, (-4.0, 2.0))])
def test_the_noise_is_drawn_within_its_range(low: float, high: float, shown: tuple[float, float]) -> None:
    grid, density = np.linspace(low, high, 11), np.linspace(0, 3, 11)
    figure = charts.noise(grid, density, centred=low < 0)
    noise, prior = figure.data
    np.testing.assert_array_equal(noise.x, grid)
    np.testing.assert_array_equal(noise.y, density)
    assert np.trapezoid(prior.y, prior.x) == pytest.approx(1, abs=0.01)
    assert max(prior.y) == pytest.approx(1 / np.sqrt(2 * np.pi))
    assert tuple(figure.layout.xaxis.range) == shown
    assert ("centred" in figure.layout.xaxis.title.text) is (low < 0)


# All of them


def figures(name: str) -> list[go.Figure]:
    names = [name, "b"]
    return [
        charts.matrix(np.array([[1, 2], [3, 4]]), names, title="T"),
        charts.matrix(np.ones((30, 30), dtype=np.int64), [name] * 30, title="T"),
        charts.by_class(names, [(0.5, 0.4, 0.6, 9)] * 2, title="T", x="x"),
        charts.bars(names, np.array([0.5, 0.25]), title="T"),
    ]


@pytest.mark.parametrize("name", [NASTY, "<b>", "&lt;b&gt;", "<a href='javascript:alert(1)'>x</a>"])
def test_names_are_no_markup(name: str) -> None:
    """Plotly reads some HTML in labels: what is left of a name may not be any."""
    own = {"<br>", "<extra>", "</extra>"}
    for figure in figures(name):
        texts = all_text(as_dict(figure))
        tags = {tag for text in texts for tag in re.findall(r"</?\w[^>]*>?", text)}
        assert tags <= own
        assert any("&lt;" in text or "&amp;lt;" in text for text in texts)


def test_long_names_are_cut() -> None:
    for figure in figures("n" * 300):
        assert max(len(text) for text in all_text(as_dict(figure)) if "nnn" in text) <= 24


def test_names_that_are_cut_alike_stay_classes_of_their_own() -> None:
    names = ["n" * 40 + "1", "n" * 40 + "2"]
    figure = charts.matrix(np.array([[1, 2], [3, 4]]), names, title="T")
    assert list(figure.data[0].x) == [0, 1]
    for drawn in (
        charts.by_class(names, [(0.5, 0.4, 0.6, 9)] * 2, title="T", x="x"),
        charts.bars(names, np.array([0.5, 0.25]), title="T"),
    ):
        assert list(drawn.data[0].y) == [0, 1]


def test_colours_are_told_apart_on_light_and_on_dark() -> None:
    """Contrast of 3 and more with white and with Streamlit's dark ground, or as near as a set of six gets."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    colours = (charts.BLUE, charts.ORANGE, charts.GREEN, charts.RED, charts.PURPLE, charts.SKY)
    assert len(set(colours)) == 6
    for colour in colours:
        on_light = 1.05 / (luminance(colour) + 0.05)
        on_dark = (luminance(colour) + 0.05) / (luminance("#0e1117") + 0.05)
        assert on_light > 2
        assert on_dark > 3
