"""Edits of regions: the same again from JSON, and what is left of the regions after any of them."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defuse_core.workspace.edits import (
    STRUCTURAL,
    EditKind,
    Gaussian,
    RegionEdit,
    gaussian_fault,
    ids_ever,
    live_ids,
    names,
    newest_change,
    taus,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
KINDS = st.sampled_from(["rename", "tau", *STRUCTURAL])


def made(*ids: int) -> tuple[Gaussian, ...]:
    return tuple(Gaussian(i, 0.1, (0.0, 1.0), ((1.0, 0.0), (0.0, 1.0))) for i in ids)


@st.composite
def gaussians(draw: st.DrawFn) -> Gaussian:
    dim = draw(st.integers(1, 3))
    vector = st.tuples(*[FINITE] * dim)
    return Gaussian(draw(st.integers(0, 500)), draw(FINITE), draw(vector), draw(st.tuples(*[vector] * dim)))


@st.composite
def edits(draw: st.DrawFn) -> RegionEdit:
    return RegionEdit(
        draw(KINDS), tuple(draw(st.lists(st.integers(0, 500), max_size=3))),
        tuple(draw(st.lists(gaussians(), max_size=2))), tuple(draw(st.lists(st.integers(0, 99), max_size=3))),
        draw(st.text()), draw(st.none() | FINITE),
        by=draw(st.text()), id=draw(st.integers(0, 99)), at=draw(FINITE), undone_by=draw(st.integers(0, 99)),
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[RegionEdit]:
    """Edits of regions 0, 1, 2 as a store gives them: ids ascend, new ids are new, some are undone."""
    found: list[RegionEdit] = []
    number, unused = 0, 3
    for kind in draw(st.lists(KINDS, max_size=8)):
        number += draw(st.integers(1, 3))
        live = live_ids([0, 1, 2], found)
        n_gone, n_made = {"merge": (2, 1), "split": (1, 2), "select": (0, 1)}.get(kind, (1, 0))
        if len(live) < n_gone:
            continue
        about = tuple(draw(st.permutations(live))[:n_gone])
        undone = kind != "tau" and draw(st.booleans())
        new = made(*range(unused, unused + n_made))
        unused += n_made
        name, tau = draw(st.sampled_from(["", "blurry", "7 as 1"])), 0.1 * number
        edit = RegionEdit(kind, about, new, (), name, tau, id=number, undone_by=number + 50 if undone else 0)
        found.append(edit)
    return found


@given(edit=edits())
def test_an_edit_is_the_same_again_from_json(edit: RegionEdit) -> None:
    text = edit.to_json()
    read = RegionEdit.of_json(text, by=edit.by, id=edit.id, at=edit.at, undone_by=edit.undone_by)
    assert read == edit
    assert set(json.loads(text)) == {"kind", "regions", "into", "mistakes", "name", "tau"}
    with sqlite3.connect(":memory:") as database:
        assert database.execute("SELECT json_extract(?, '$.kind')", (text,)).fetchone() == (edit.kind,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_sqlite_cannot_read_again_are_refused(bad: float) -> None:
    for edit in (
        RegionEdit("tau", (0,), tau=bad),
        RegionEdit("merge", (0, 1), (Gaussian(2, 0.5, (0.0,), ((bad,),)),)),
    ):
        with pytest.raises(ValueError, match="not JSON compliant"):
            edit.to_json()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"weight": -5.0}, "weight must be above 0 and at most 1, got -5"),
        ({"weight": 1.1}, "weight must be above 0"),
        ({"mean": (0.0,)}, "covariance must be square"),
        ({"mean": (), "covariance": ()}, "covariance must be square"),
        ({"covariance": ((1.0, 0.0), (0.0,))}, "covariance must be square"),
        ({"mean": (0.0, math.inf)}, "mean and covariance must be finite"),
        ({"covariance": ((1.0, 0.5), (0.0, 1.0))}, "covariance must be symmetric"),
        ({"covariance": ((0.0, 0.0), (0.0, 0.0))}, "covariance must be positive definite"),
        ({"covariance": ((1.0, 2.0), (2.0, 1.0))}, "covariance must be positive definite"),
        ({"covariance": ((1e308, 1e308), (1e308, -1e308))}, "covariance must be positive definite"),
    ],
)
def test_a_region_that_nothing_can_be_drawn_from_is_told(changes: dict[str, Any], told: str | None) -> None:
    (good,) = made(3)
    fault = gaussian_fault(replace(good, **changes))
    assert fault == told if told is None or fault is None else fault.startswith(told)


@given(history=histories())
def test_what_lives_is_what_was_found_or_made_and_not_taken_away(history: list[RegionEdit]) -> None:
    counting = [edit for edit in history if edit.kind in STRUCTURAL and not edit.undone]
    came = {0, 1, 2} | {g.region_id for edit in counting for g in edit.into}
    went = {region_id for edit in counting for region_id in edit.regions}
    live = live_ids([0, 1, 2], history)
    assert sorted(live) == sorted(came - went)
    assert live_ids([0, 1, 2], [e for e in history if not e.undone]) == live
    assert live_ids([2, 1, 0], []) == [2, 1, 0]
    assert {0, 1, 2, *live} <= {*ids_ever([0, 1, 2], history)}
    made = [g.region_id for edit in history for g in edit.into]
    assert ids_ever([0, 1, 2], history) == [0, 1, 2, *made]


@given(history=histories())
def test_names_and_taus_are_those_given_last(history: list[RegionEdit]) -> None:
    for region_id in range(20):
        about = [edit for edit in history if edit.regions[:1] == (region_id,)]
        given_names = [edit.name for edit in about if edit.kind == "rename" and not edit.undone]
        assert names(history).get(region_id, "") == (given_names or [""])[-1]
        assert taus(history).get(region_id) == ([e.tau for e in about if e.kind == "tau"] or [None])[-1]
    assert "" not in names(history).values()


@given(history=histories())
def test_the_newest_change_is_an_edit_or_undo_of_which_regions_there_are(history: list[RegionEdit]) -> None:
    ids = {0}
    for edit in history:
        if edit.kind in STRUCTURAL:
            ids |= {edit.id, edit.undone_by}
    assert newest_change(history) == max(ids)


def test_an_undo_brings_back_and_is_a_change_itself() -> None:
    merge = RegionEdit("merge", (0, 2), made(3), id=4)
    rename = RegionEdit("rename", (3,), name="loops", id=9)
    assert live_ids([0, 1, 2], [merge, rename]) == [1, 3]
    assert newest_change([merge, rename]) == 4
    undone = [replace(merge, undone_by=10), replace(rename, undone_by=12)]
    assert live_ids([0, 1, 2], undone) == [0, 1, 2]
    assert newest_change(undone) == 10
    assert names(undone) == {}


@pytest.mark.parametrize(
    ("kind", "regions", "into", "told", "words"),
    [
        ("rename", (3,), (), {"name": "7 as 1"}, "region 3 named '7 as 1'"),
        ("rename", (3,), (), {"name": ""}, "name of region 3 removed"),
        ("tau", (3,), (), {"tau": 0.25}, "region 3 at τ = 0.25"),
        ("merge", (3, 5), (9,), {}, "regions 3 and 5 merged into 9"),
        ("split", (3,), (9, 10), {}, "region 3 split into 9 and 10"),
        ("select", (), (9,), {}, "region 9 made of a selection"),
    ],
)
def test_an_edit_says_itself_in_words(
    kind: EditKind, regions: tuple[int, ...], into: tuple[int, ...], told: dict[str, object], words: str
) -> None:
    assert str(RegionEdit(kind, regions, made(*into), **told)) == words
