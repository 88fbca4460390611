"""The map as a figure: what is drawn where, in which colour, and what its buttons change."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from numpy.typing import NDArray

from dashboard.map.chart import GREY, Colouring, draw_map, palette
from dashboard.map.latent_map import NOTHING, Indices, LatentMap, Selection
from tests.apps import NASTY
from tests.test_charts import all_text

Json = dict[str, Any]


def a_map(n: int = 40, m: int = 15, seed: int = 0) -> LatentMap:
    rng = np.random.default_rng(seed)
    codes, mistakes = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 3
    return LatentMap(
        "tsne", codes.astype(np.float32), np.sort(rng.choice(1000, n, replace=False)),
        mistakes.astype(np.float32), np.sort(rng.choice(500, m, replace=False)),
    )  # fmt: skip


def a_colouring(shown: LatentMap, name: str, n_groups: int, seed: int = 0) -> Colouring:
    """Every group, and none, at random."""
    rng = np.random.default_rng(seed)
    codes, mistakes = (
        rng.integers(-1, n_groups, len(part)).astype(np.int64) for part in (shown.codes, shown.mistakes)
    )
    return Colouring(name, [f"{name} {i}" for i in range(n_groups)], palette(n_groups), codes, mistakes)


def three(shown: LatentMap) -> list[Colouring]:
    return [a_colouring(shown, name, n, n) for name, n in (("class", 3), ("region", 30), ("kind", 2))]


SQUARE = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0], [0.0, 0.0]])


def drawn(
    shown: LatentMap, colourings: Sequence[Colouring], *, kept: Sequence[int] | None = None,
    selected: Selection = NOTHING, outlines: Mapping[str, NDArray[np.float64]] | None = None,
) -> go.Figure:  # fmt: skip
    rows = np.arange(len(shown.mistakes)) if kept is None else np.array(kept, dtype=np.int64)
    return draw_map(shown, colourings, kept=rows, selected=selected, outlines=outlines or {})


def as_dict(figure: go.Figure) -> Json:
    read: Json = json.loads(figure.to_json())
    return read


def button(figure: Json, label: str) -> list[Any]:
    """The arguments of the button of this label."""
    menus = figure["layout"]["updatemenus"]
    (args,) = [found["args"] for menu in menus for found in menu["buttons"] if found["label"] == label]
    return list(args)


def restyled(figure: Json, label: str) -> list[Json]:
    """The traces as `Plotly.restyle` leaves them: a list has a value a trace, None takes the value away."""
    changes, traces = button(figure, label)
    data: list[Json] = copy.deepcopy(figure["data"])
    for path, given in changes.items():
        for place, trace in enumerate(traces):
            value = given[place % len(given)] if isinstance(given, list) else given
            *parents, last = path.split(".")
            part = data[trace]
            for name in parents:
                part = part.setdefault(name, {})
            part.pop(last, None) if value is None else part.update({last: value})
    return data


def colours_of(marker: Mapping[str, Any]) -> list[str]:
    """The colour of each point, as a browser finds it on the scale; it has to lie on a stop of it."""
    low, high = marker["cmin"], marker["cmax"]
    stops = [(low + place * (high - low), colour) for place, colour in marker["colorscale"]]
    assert stops[0][0] == low
    assert stops[-1][0] == high
    assert all(a < b for (a, _), (b, _) in pairwise(stops))
    found = []
    for value in marker["color"]:
        (colour,) = {colour for place, colour in stops if abs(place - value) < 1e-9}
        found.append(colour)
    return found


def expected_colours(colouring: Colouring, groups: Indices) -> list[str]:
    return [GREY if group < 0 else colouring.colours[group] for group in groups.tolist()]


def legend(data: Sequence[Json]) -> list[tuple[str, str]]:
    """Names and colours of the legend's entries, as they come."""
    return [
        (trace["name"], trace["marker"]["color"])
        for trace in data
        if trace.get("visible", True) is True and trace.get("showlegend", True) and "name" in trace
    ]


# Points


def test_dots_are_the_codes_and_diamonds_the_mistakes_that_are_kept() -> None:
    shown, kept = a_map(), [1, 4, 5, 14]
    figure = drawn(shown, three(shown), kept=kept)
    codes, mistakes = figure.data[:2]
    np.testing.assert_array_equal(np.stack([codes.x, codes.y], axis=1), shown.codes)
    np.testing.assert_array_equal(np.stack([mistakes.x, mistakes.y], axis=1), shown.mistakes[kept])
    assert (codes.marker.symbol, mistakes.marker.symbol) == (None, "diamond")
    assert all(trace.type == "scattergl" for trace in figure.data)
    for trace in figure.data[2:]:  # what else is drawn is no point
        assert trace.mode == "lines" or list(trace.x) == [None]
    assert not any("customdata" in trace for trace in as_dict(figure)["data"])  # it would be sent every time


def test_the_frame_is_of_the_whole_map_whatever_is_kept() -> None:
    """Filters leave the view where it is."""
    shown = a_map()
    whole, one = drawn(shown, three(shown)), drawn(shown, three(shown), kept=[3])
    for axis, column in (("xaxis", 0), ("yaxis", 1)):
        low, high = whole.layout[axis].range
        places = np.concatenate([shown.codes, shown.mistakes])[:, column]
        assert low < places.min() < places.max() < high
        assert high - low < 1.1 * np.ptp(places)
        assert tuple(one.layout[axis].range) == (low, high)
    assert whole.layout.yaxis.scaleanchor == "x"


def test_a_map_without_mistakes_shows_the_codes() -> None:
    shown = a_map(m=0)
    figure = drawn(shown, three(shown))
    assert len(figure.data[0].x) == 40
    assert not len(figure.data[1].x)
    assert figure.layout.xaxis.range[0] < shown.codes[:, 0].min()
    colouring = a_colouring(shown, "class", 3)
    assert colours_of(as_dict(drawn(shown, [colouring]))["data"][1]["marker"]) == []
    nothing_kept = drawn(a_map(), three(a_map()), kept=[])
    assert not len(nothing_kept.data[1].x)


def test_equal_input_gives_equal_bytes() -> None:
    """Streamlit makes another chart of another figure: zoom and selection would be lost."""

    def once(seed: int = 0, kept: Sequence[int] = (0, 3, 9), picked: int = 1) -> str:
        shown = a_map(seed=seed)
        selected = Selection(shown.code_index[:picked], shown.mistake_index[2:4])
        around = {"1": SQUARE, "<b>": SQUARE + 1}
        return str(drawn(shown, three(shown), kept=kept, selected=selected, outlines=around).to_json())

    assert once() == once()
    assert len({once(), once(seed=1), once(kept=(0, 3)), once(picked=2)}) == 4


# Colours


@pytest.mark.parametrize("first", range(3))
def test_points_have_the_colours_of_their_groups(first: int) -> None:
    shown, kept = a_map(60, 30), list(range(1, 30, 2))
    ways = three(shown)
    ways = [ways[first], *(way for i, way in enumerate(ways) if i != first)]
    figure = as_dict(drawn(shown, ways, kept=kept))
    data = figure["data"]
    assert colours_of(data[0]["marker"]) == expected_colours(ways[0], ways[0].codes)
    assert colours_of(data[1]["marker"]) == expected_colours(ways[0], ways[0].mistakes[kept])
    assert GREY in colours_of(data[0]["marker"])
    for way in ways:
        after = restyled(figure, way.name)
        assert colours_of(after[0]["marker"]) == expected_colours(way, way.codes)
        assert colours_of(after[1]["marker"]) == expected_colours(way, way.mistakes[kept])


@pytest.mark.parametrize("n", [0, 1, 2, 10, 11, 24, 48, 49, 60, 200])
def test_any_number_of_groups_has_colours(n: int) -> None:
    shown = a_map(400, 50)
    colouring = a_colouring(shown, "class", n)
    marker = as_dict(drawn(shown, [colouring]))["data"][0]["marker"]
    assert colours_of(marker) == expected_colours(colouring, colouring.codes)


def test_colours_are_told_apart_up_to_48_and_repeat_after() -> None:
    for n in (1, 3, 10, 11, 24, 48):
        assert len({*palette(n)}) == n
        assert GREY not in palette(n)
    many = palette(130)
    assert len({*many}) == 48
    assert many[48:96] == many[:48]
    assert many[96:] == many[:34]
    assert palette(0) == []
    assert all(re.fullmatch(r"#[0-9A-Fa-f]{6}", colour) for colour in (*palette(10), *many, GREY))


# The legend


@pytest.mark.parametrize(("n", "entries"), [(0, 0), (1, 1), (3, 3), (24, 24), (25, 0), (60, 0)])
def test_groups_are_in_the_legend_where_there_is_room(n: int, entries: int) -> None:
    shown = a_map()
    colouring = a_colouring(shown, "class", n)
    found = legend(as_dict(drawn(shown, [colouring]))["data"])
    assert found == list(zip(colouring.groups, colouring.colours, strict=True))[:entries]


def test_the_legend_is_that_of_the_colouring() -> None:
    shown = a_map()
    ways = three(shown)
    figure = drawn(shown, ways, outlines={"3": SQUARE})
    assert legend(as_dict(figure)["data"]) == list(zip(ways[0].groups, ways[0].colours, strict=True))
    for way in ways:
        after = legend(restyled(as_dict(figure), way.name))
        wanted = list(zip(way.groups, way.colours, strict=True)) if way.name != "region" else []
        assert after == wanted
    assert figure.layout.legend.itemclick is False  # a click would hide the entry and no point
    assert figure.layout.legend.itemdoubleclick is False


# Buttons


@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("then", range(3))
def test_a_button_changes_to_the_figure_that_its_colouring_draws_first(first: int, then: int) -> None:
    shown, kept = a_map(), [0, 2, 3, 7, 11]
    ways = three(shown)
    selected = Selection(shown.code_index[:3], shown.mistake_index[2:4])

    def with_first(i: int) -> go.Figure:
        order = [ways[i], *(way for k, way in enumerate(ways) if k != i)]
        return drawn(shown, order, kept=kept, selected=selected, outlines={"3": SQUARE})

    figure, wanted = with_first(first), as_dict(with_first(then))
    assert figure.layout.updatemenus[0].buttons[0].label == ways[first].name
    assert {b.method for b in figure.layout.updatemenus[0].buttons} == {"restyle"}
    after = restyled(as_dict(figure), ways[then].name)

    def seen(data: Sequence[Json]) -> list[Json]:
        return [{**trace, "visible": True} for trace in data if trace.get("visible", True) is True]

    assert len(seen(after)) == 2 + len(legend(after))
    assert seen(after) == seen(wanted["data"])
    assert after[-1] == wanted["data"][-1]  # the outline, as it was
    before, wanted_layout = as_dict(figure)["layout"], wanted["layout"]
    assert {k: v for k, v in before.items() if k != "updatemenus"} == {
        k: v for k, v in wanted_layout.items() if k != "updatemenus"
    }


def test_a_button_names_a_value_for_every_trace_and_leaves_the_outlines() -> None:
    shown = a_map()
    figure = drawn(shown, three(shown), outlines={"3": SQUARE, "5": SQUARE + 1})
    n_legend = 3 + 2  # of the class and the kind; 30 regions have none
    for way in three(shown):
        changes, traces = button(as_dict(figure), way.name)
        assert list(traces) == list(range(2 + n_legend))
        assert all(len(values) == len(traces) for values in changes.values())
        assert changes["visible"][:2] == [True, True]
    assert len(figure.data) == 2 + n_legend + 2


def test_buttons_go_back_and_forth() -> None:
    shown = a_map()
    figure = as_dict(drawn(shown, three(shown)))
    once = restyled(figure, "class")
    for label in ("kind", "region", "kind", "class"):
        figure["data"] = restyled(figure, label)
    assert figure["data"] == once


# Outlines


def test_outlines_are_hidden_until_their_button_is_pressed() -> None:
    shown = a_map()
    around = {"3": SQUARE, "fours · open": SQUARE * 2 + 5}
    figure = drawn(shown, three(shown), outlines=around)
    lines = [(i, trace) for i, trace in enumerate(figure.data) if trace.mode == "lines"]
    for (_, trace), polygon in zip(lines, around.values(), strict=True):
        np.testing.assert_array_equal(np.stack([trace.x, trace.y], axis=1), polygon)
        assert trace.visible is False
        assert trace.showlegend is False
    assert not figure.layout.annotations
    traces, layout, numbers = button(as_dict(figure), "region outlines")
    assert traces == {"visible": True}
    assert list(numbers) == [i for i, _ in lines]
    assert [note["text"] for note in layout["annotations"]] == list(around)
    for note, polygon in zip(layout["annotations"], around.values(), strict=True):
        np.testing.assert_allclose([note["x"], note["y"]], (polygon.min(0) + polygon.max(0)) / 2)
        assert note["showarrow"] is False
    traces, layout, again = button(as_dict(figure), "no outlines")
    assert traces == {"visible": False}
    assert not layout["annotations"]
    assert list(again) == list(numbers)
    labels = [b.label for b in figure.layout.updatemenus[1].buttons]
    assert labels[figure.layout.updatemenus[1].active or 0] == "no outlines"
    assert {b.method for b in figure.layout.updatemenus[1].buttons} == {"update"}


def test_without_outlines_there_is_no_button_for_them() -> None:
    shown = a_map()
    assert len(drawn(shown, three(shown)).layout.updatemenus) == 1


# Selection


def test_what_is_selected_is_marked_by_place() -> None:
    shown, kept = a_map(), [0, 2, 5, 6, 9]
    of_kept, gone = shown.mistake_index[[2, 9]], shown.mistake_index[[1]]
    selected = Selection(shown.code_index[[0, 7, 39]], np.sort(np.concatenate([of_kept, gone])))
    codes, mistakes = drawn(shown, three(shown), kept=kept, selected=selected).data[:2]
    assert list(codes.selectedpoints) == [0, 7, 39]
    assert list(mistakes.selectedpoints) == [1, 4]  # places among those that are drawn
    assert codes.unselected.marker.opacity < codes.marker.opacity or codes.unselected.marker.opacity < 0.2


def test_where_only_codes_are_selected_the_mistakes_fade() -> None:
    shown = a_map()
    nobody = np.zeros(0, dtype=np.int64)
    codes, mistakes = drawn(shown, three(shown), selected=Selection(shown.code_index[:2], nobody)).data[:2]
    assert list(codes.selectedpoints) == [0, 1]
    assert mistakes.selectedpoints is not None
    assert len(mistakes.selectedpoints) == 0


def test_where_nothing_is_selected_nothing_fades() -> None:
    shown = a_map()
    assert not any("selectedpoints" in trace for trace in as_dict(drawn(shown, three(shown)))["data"])


# Names


@pytest.mark.parametrize("name", [NASTY, "<b>x</b>", "<a href='javascript:alert(1)'>x</a>"])
def test_names_are_no_markup(name: str) -> None:
    shown = a_map()
    ways = [replace(way, groups=[name] * len(way.groups)) for way in three(shown)]
    figure = drawn(shown, ways, outlines={name: SQUARE})
    texts = all_text(as_dict(figure))
    assert not [text for text in texts if re.search(r"</?\w", text)]
    assert any("&lt;" in text for text in texts)
    (note,) = button(as_dict(figure), "region outlines")[1]["annotations"]
    assert note["text"].startswith("&lt;")


def test_long_names_are_cut() -> None:
    shown = a_map()
    ways = [replace(way, groups=["n" * 300] * len(way.groups)) for way in three(shown)]
    texts = all_text(as_dict(drawn(shown, ways, outlines={"n" * 300: SQUARE})))
    assert max(len(text) for text in texts if "nnn" in text) <= 24
