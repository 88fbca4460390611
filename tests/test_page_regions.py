"""The regions' page, empty and filled, without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from streamlit.testing.v1 import AppTest

from dashboard.shared.region_data import SEED, TAUS, find_regions
from defuse_core.base.config import DistillationConfig
from defuse_core.data.splits import as_bytes
from defuse_core.extensions.regions import merge, select, split
from defuse_core.method.classifier import predict
from defuse_core.method.labeling import draw_images, draw_strip, suggest_tau
from defuse_core.method.vae import decode_images
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.config_fields import walk_fields
from defuse_core.workspace.edits import RegionEdit
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Run
from tests.apps import (
    NASTY,
    click,
    component,
    decode,
    errors,
    figure,
    forget_answers,
    give_nasty_names,
    has_markup,
    latest,
    metrics,
    opener,
    send,
    settle,
    tiles,
    toasts,
    told,
    words,
)
from tests.in_process import add_run, begin, done_here, end_all, fresh_place, store_run
from tests.workspaces import Place

pytestmark = pytest.mark.usefixtures("runs_wait")
opened = opener("regions")


def source_of(place: Place) -> Source:
    return Source(place.workspace, latest(place, "distill").id)


def ids_of(place: Place) -> list[int]:
    """Ids of the regions as edited, heaviest first."""
    return [region.region_id for region in source_of(place).regions()]


def edits_of(place: Place) -> list[RegionEdit]:
    return place.workspace.annotations.edits(latest(place, "distill").id)


def store_edit(place: Place, edit: RegionEdit) -> None:
    place.workspace.annotations.edit(latest(place, "distill").id, edit)


def table_of(app: AppTest) -> dict[str, list[Any]]:
    """Columns of the table of regions."""
    (table,) = app.dataframe
    columns: dict[str, list[Any]] = table.value.to_dict("list")
    return columns


def looked_at(app: AppTest) -> str:
    """The region that the page is about, as its heading and its scrubber say."""
    (heading,) = [words(heading.value) for heading in app.subheader]
    region = heading.partition(" · ")[0].removeprefix("Region ")
    (scrubber,) = [e.key for e in app.get("bidi_component") if str(e.key).startswith("tau-")]
    assert scrubber.rpartition("-")[2] == region
    return heading


def choose_rows(app: AppTest, *rows: int) -> AppTest:
    """Select rows of the table."""
    key = app.dataframe[0].key
    return settle(send(app, str(key), selection={"rows": list(rows), "columns": [], "cells": []}))


def press(app: AppTest, label: str) -> AppTest:
    """Click the button whose label begins so, and look before the page loads what it shows then."""
    (found,) = [button for button in app.button if button.label.startswith(label)]
    return found.click().run()


def labels(app: AppTest) -> list[str]:
    return [button.label for button in app.button]


# Before there are regions


def test_without_mistakes_the_page_says_what_it_needs(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(fresh_place(tmp_path / "home", template.parent / "shapes.npz"), monkeypatch)
    assert [info.value for info in app.info] == ["Needs mistakes first."]
    assert [link.proto.page for link in app.page_link] == ["identify"]
    (start,) = app.button
    assert (start.label, start.disabled) == ("Start", True)
    assert not app.metric


@pytest.fixture
def searched(tmp_path: Path, template: Path) -> Iterator[Place]:
    """A workspace whose runs up to the mistakes are done, without having computed."""
    place = fresh_place(tmp_path / "home", template.parent / "shapes.npz")
    for step in ("classifier", "vae", "identify"):
        store_run(place, step, {"mistakes": {"dataset": 9}})
    yield place
    end_all(place)


def fields(app: AppTest) -> dict[str, Any]:
    """Values of the form's widgets by field."""
    widgets = [w for w in (*app.number_input, *app.selectbox) if (w.key or "").startswith("distill-1-")]
    values = {str(widget.key).removeprefix("distill-1-"): widget.value for widget in widgets}
    return {name: value for name, value in values.items() if name != "preset"}


def test_start_submits_what_is_shown(searched: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(searched, monkeypatch)
    assert not app.info
    assert fields(app) == DistillationConfig().model_dump()
    assert fields(app).keys() == {path[0] for path, _, _ in walk_fields(DistillationConfig())}
    values = {"n_components": 7, "min_weight": 0.05, "max_codes": 300, "max_iter": 9}
    for name, value in values.items():
        app.number_input(key=f"distill-1-{name}").set_value(value)
    app.number_input(key="distill-seed").set_value(11)
    app = click(app.run(), "Start")
    run = latest(searched, "distill")
    assert run.live
    assert run.config == check_config("distill", values).model_dump(mode="json")
    assert (run.seed, run.resources.device) == (11, "auto")
    assert "It is waiting for another run …" in told(app)
    assert fields(app) == {"method": "dirichlet_process", **values}  # they stay as they were set
    app = click(app, "Start")
    assert len(errors(app)) == 1
    assert f"run {run.id}" in errors(app)[0]
    assert len(searched.workspace.runs.of_project(searched.project.id, "distill")) == 1


def test_a_field_left_empty_is_told_in_one_message(searched: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(searched, monkeypatch)
    app.number_input(key="distill-1-n_components").set_value(None).run()
    app = click(app, "Start")
    assert [error.partition(" should")[0] for error in errors(app)] == ["distill: n_components"]
    assert not searched.workspace.runs.of_project(searched.project.id, "distill")


def test_a_fit_under_way_is_drawn(searched: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(searched, "distill")
    begin(searched, run)
    assert "The mixture is fitted …" in told(opened(searched, monkeypatch))
    searched.workspace.runs.plan_tasks(run.id, ["mixture"])
    for iteration, bound in ((5, -9.5), (10, -7.25)):
        searched.workspace.runs.add_point(run.id, "mixture", str(iteration), {"lower_bound": bound})
    searched.workspace.runs.report_progress(run.id, "mixture", 10, 100, {})
    app = opened(searched, monkeypatch)
    (line,) = figure(app, "lower-bound")["data"]
    assert (list(line["x"]), list(line["y"])) == ([5, 10], [-9.5, -7.25])
    assert "**Regions** · running 10%" in told(app)
    assert not app.dataframe


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        ("failed", "error", "distillation needs at least 2 mistakes"),
        ("cancelled", "warning", "Regions was cancelled. What it had done is kept"),
    ],
)
def test_a_fit_that_did_not_end_well_is_told(
    searched: Place, monkeypatch: pytest.MonkeyPatch, status: Any, kind: str, message: str
) -> None:
    run = add_run(searched, "distill")
    error = "distillation needs at least 2 mistakes, got 1" if status == "failed" else None
    searched.workspace.runs.finish(run.id, status, error=error)
    app = opened(searched, monkeypatch)
    (shown,) = getattr(app, kind)
    assert message in words(shown.value)
    assert "is fitted" not in told(app)
    assert not app.dataframe


def test_a_fit_without_a_region_says_what_to_do(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    done_here(place, "distill", {"n_components": 3, "min_weight": 0.99, "max_codes": 100})
    app = opened(place, monkeypatch)
    assert [info.value.partition(".")[0] for info in app.info] == [
        "No component has enough weight to be a region"
    ]
    assert not app.metric
    assert not app.dataframe


def test_regions_of_older_mistakes_read_as_stale(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store_run(place, "identify", {"mistakes": {"dataset": 9}})
    app = opened(place, monkeypatch)
    assert [warning.value.partition(".")[0] for warning in app.warning] == ["There is a newer search"]
    assert metrics(app)["Regions"] == str(len(ids_of(place)))  # those there are can still be seen


# What was found


def test_what_was_found_is_told_as_stored(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source, names = source_of(place), place.project.class_names
    summary = {row["region_id"]: row for row in source.run.summary["regions"]}
    app = opened(place, monkeypatch)
    shown = table_of(app)
    assert shown["region"] == list(summary) == ids_of(place)
    assert shown["mistakes"] == [row["mistakes"] for row in summary.values()]
    assert shown["weight"] == pytest.approx([row["weight"] for row in summary.values()])
    for kind in ("dataset", "reconstruction", "perturbation"):
        assert shown[kind] == [row["kinds"][kind] for row in summary.values()]
    answers = place.workspace.annotations.counting(source.run.id)
    for row, region in enumerate(source.regions()):
        images = draw_images(source.vae(), region, 10, tau=0.5, seed=0)
        said = predict(source.classifier(), images).tolist()
        labelled = [e.label for e in answers if e.region_id == region.region_id]
        wrong = sum(a != b for a, b in zip(said, labelled, strict=True))
        low, high = binomtest(wrong, 10).proportion_ci(method="wilson")
        assert shown["status"][row] == ("failure" if wrong > 5 else "not a failure")
        assert shown["sure"][row] == ("sure" if low > 0.5 or high < 0.5 else "not sure")
        assert shown["error"][row] == wrong / 10
        assert shown["interval"][row] == f"{low:.2f} … {high:.2f} (n = 10)"
        most = np.bincount(labelled)
        assert shown["label"][row] == names[most.argmax()]
        assert shown["label fits"][row] == f"{most.max()} of 10"
    assert not {"name", "found again"} & shown.keys()
    n_mistakes = len(source.mistakes())
    assert metrics(app) == {
        "Regions": str(len(summary)),
        "Mistakes in them": f"{sum(shown['mistakes']):,}",
        "Labelled": f"{len(summary)} of {len(summary)}",
        "Failures": str(shown["status"].count("failure")),
    }
    assert [m.help for m in app.metric][1] == f"of {n_mistakes:,}"
    assert looked_at(app) == f"Region {ids_of(place)[0]}"


def test_regions_without_answers_are_unlabelled(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run, (first, second, *_) = latest(forget_answers(place), "distill"), ids_of(place)
    labelled = [LabelEvent(first, "Ada", 1), LabelEvent(second, "Ada", None)]
    place.workspace.annotations.append(run.id, labelled)
    app = opened(place, monkeypatch)
    assert table_of(app)["status"][:3] == ["failure", "none of the above", "unlabelled"]
    assert metrics(app)["Labelled"] == f"2 of {len(ids_of(place))}"
    assert metrics(app)["Failures"] == "1"
    assert component(app, f"tau-{run.id}-{first}")["label"] == "column"


def test_a_link_opens_the_region_that_was_looked_at(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(place)
    app = opened(place, monkeypatch, region=f"Region {ids[3]}")
    assert looked_at(app) == f"Region {ids[3]}"
    assert app.selectbox(key="region").value == str(ids[3])
    assert app.query_params["region"] == f"Region {ids[3]}"
    (link,) = [link.proto for link in app.page_link if link.proto.label == "Label it"]
    assert link.page == "label"
    assert ("region", f"Region {ids[3]}") in parse_qsl(link.query_string)
    app.selectbox(key="region").set_value(str(ids[5])).run()
    assert looked_at(settle(app)) == f"Region {ids[5]}"


@pytest.mark.parametrize("asked", ["Region 99", NASTY, ""])
def test_a_link_to_what_is_not_there_opens_the_heaviest(
    place: Place, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    app = opened(place, monkeypatch, region=asked)
    assert looked_at(app) == f"Region {ids_of(place)[0]}"
    assert app.selectbox(key="region").value is None
    assert NASTY not in told(app)


def test_the_mistakes_of_a_region_are_shown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source, region = source_of(place), ids_of(place)[4]
    app = opened(place, monkeypatch, region=f"Region {region}")
    shown = tiles(app, "region-mistakes")
    row = table_of(app)["region"].index(region)
    assert len(shown) == 12
    assert f"12 of {table_of(app)['mistakes'][row]:,} mistakes in it" in told(app)
    found = find_regions(place.workspace, source.run.id)
    inside = torch.from_numpy(np.nonzero(found.membership == region)[0])
    decoded = as_bytes(decode_images(source.vae(), source.mistakes().latents[inside]))
    of_region = decoded.permute(0, 2, 3, 1).numpy().astype(int)
    for tile in shown:
        assert np.abs(of_region - tile["images"][2]).max((1, 2, 3)).min() <= 1
    assert len({tile["images"][2].tobytes() for tile in shown}) > 6


# At every τ


@pytest.mark.parametrize("purity", [None, 0.6, 1.0])
def test_the_scrubber_is_given_the_region(
    place: Place, monkeypatch: pytest.MonkeyPatch, purity: float | None
) -> None:
    source = source_of(place)
    region = source.regions()[4]
    asked = {} if purity is None else {"purity": str(purity)}
    app = opened(place, monkeypatch, region=f"Region {region.region_id}", **asked)
    given = component(app, f"tau-{source.run.id}-{region.region_id}")
    images, said = draw_strip(source.classifier(), source.vae(), region, taus=TAUS, n=64, seed=SEED)
    sheet = images[:, :, 0].permute(0, 2, 1, 3).reshape(len(TAUS) * 8, 64 * 8).numpy()
    np.testing.assert_array_equal(decode(given["sprite"])[..., 0], sheet)
    assert given["predictions"] == said.tolist()
    assert given["taus"] == list(TAUS)
    assert given["names"] == place.project.class_names
    assert given["label"] == table_of(app)["label"][4] != table_of(app)["label"][0]
    assert given["taus"][given["chosen"]] == 0.5  # what it was labelled at
    best = suggest_tau(TAUS, said, purity=0.9 if purity is None else purity)
    shares = [np.bincount(row).max() / 64 for row in said.numpy()]
    assert best == max((t for t, s in zip(TAUS, shares, strict=True) if s >= given["purity"]), default=None)
    assert given["suggested"] == (None if best is None else TAUS.index(best))
    assert given["purity"] == (0.9 if purity is None else purity)
    assert "at τ = 0.5" in told(app)


def test_purity_is_honoured_for_every_region(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just below the share of the purest τ that one is suggested, just above it none is."""
    source = source_of(place)
    purest = {}
    for region in source.regions():
        _, said = draw_strip(source.classifier(), source.vae(), region, taus=TAUS, n=64, seed=SEED)
        purest[region.region_id] = max(row.bincount().max().item() / 64 for row in said)
    region_id, share = min(purest.items(), key=lambda item: item[1])
    assert 0.5 < share < 1, "every region is pure at some τ: none tells"
    app = opened(place, monkeypatch, region=f"Region {region_id}", purity=f"{share - 0.005:.3f}")
    key = f"tau-{source.run.id}-{region_id}"
    assert component(app, key)["suggested"] is not None
    app.number_input(key="purity").set_value(round(share + 0.005, 3)).run()
    assert component(settle(app), key)["suggested"] is None


def test_a_tau_that_is_chosen_is_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run, (first, second, *others) = latest(place, "distill"), ids_of(place)
    app = opened(place, monkeypatch)
    key = f"tau-{run.id}-{first}"
    settle(send(app, key, tau=0.2))
    assert [(e.kind, e.regions, e.tau) for e in edits_of(place)] == [("tau", (first,), 0.2)]
    assert "at τ = 0.2" in told(app)
    assert TAUS[component(app, key)["chosen"]] == 0.2
    assert edits_of(place)[0].by  # whoever is logged in
    send(app, key, tau=0.2)
    assert len(edits_of(place)) == 1
    assert "Undo" not in labels(app)
    choose_rows(app, 1)
    assert TAUS[component(app, f"tau-{run.id}-{second}")["chosen"]] == 0.5
    choose_rows(app, 0)
    app = click(app, "Use τ = 0.2 for all")
    assert [(e.kind, *e.regions, e.tau) for e in edits_of(place)[1:]] == [
        ("tau", i, 0.2) for i in (second, *others)
    ]
    click(app, "Use τ = 0.2 for all")  # all have it
    assert len(edits_of(place)) == len(ids_of(place))
    again = opened(place, monkeypatch, region=f"Region {others[2]}")
    assert TAUS[component(again, f"tau-{run.id}-{others[2]}")["chosen"]] == 0.2


# Edits


def test_a_name_is_shown_everywhere_and_the_region_stays_chosen(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(place)
    app = opened(place, monkeypatch, region=f"Region {ids[2]}")
    name(app).set_value("  loops \t here ").run()
    assert toasts(app) == [f"Region {ids[2]} named 'loops here'"]
    app = settle(app)
    assert looked_at(app) == f"Region {ids[2]} · loops here"
    assert table_of(app)["name"] == ["loops here" if i == ids[2] else "" for i in ids]
    assert f"Region {ids[2]} · loops here" in app.selectbox(key="region").options
    assert app.selectbox(key="region").value == str(ids[2])
    assert name(app).value == "loops here"
    (link,) = [link.proto for link in app.page_link if link.proto.label == "Label it"]
    assert ("region", f"Region {ids[2]} · loops here") in parse_qsl(link.query_string)
    assert [(e.kind, e.regions, e.name) for e in edits_of(place)] == [("rename", (ids[2],), "loops here")]
    again = opened(place, monkeypatch, region=f"Region {ids[2]} · loops here")
    assert looked_at(again) == f"Region {ids[2]} · loops here"
    name(app).set_value("").run()
    assert toasts(app) == [f"Name of region {ids[2]} removed"]
    assert looked_at(settle(app)) == f"Region {ids[2]}"
    assert "name" not in table_of(app)


def name(app: AppTest) -> Any:
    """The field of a region's name."""
    (found,) = [field for field in app.text_input if field.label == "Name"]
    return found


def test_a_region_that_was_named_in_another_tab_stays_chosen(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(place)
    app = opened(place, monkeypatch, region=f"Region {ids[2]}")
    for told_as in ("loops", "hoops", ""):
        store_edit(place, RegionEdit("rename", (ids[2],), name=told_as))
        assert looked_at(settle(app.run())) == f"Region {ids[2]}" + (f" · {told_as}" if told_as else "")


def choice_script(otherwise: int | None) -> None:
    """The choice among three regions; a script of its own."""
    import streamlit as st

    from dashboard.shared.region_detail import linked_region

    st.text(linked_region([4, 12, 2], {12: "loops"}, otherwise=otherwise))


@pytest.mark.parametrize("otherwise", [None, 12])
@pytest.mark.parametrize(
    ("kept", "region"),
    [
        ("2", 2), ("Region 12", 12), ("Region 12 · hoops", 12), ("Region 4 · 12", 4),
        ("Region 1", None), ("99", None), (NASTY, None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_whatever_a_tab_kept_of_a_choice_is_one_of_the_regions_or_none(
    kept: str | None, region: int | None, otherwise: int | None
) -> None:
    app = AppTest.from_function(choice_script, args=(otherwise,))
    if kept is not None:
        app.session_state["region"] = kept
    app.run()
    assert not app.exception
    expected = otherwise if region is None else region
    assert app.text[0].value == str(expected)
    assert app.selectbox(key="region").value == (None if expected is None else str(expected))


def test_an_undone_name_leaves_the_field_as_well(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(place)
    app = opened(place, monkeypatch, region=f"Region {ids[2]}")
    settle(name(app).set_value("loops").run())
    settle(name(app).set_value("hoops").run())
    press(app, "Undo")
    assert toasts(app) == [f"Taken back: region {ids[2]} named 'hoops'"]
    assert looked_at(settle(app)) == f"Region {ids[2]} · loops"
    assert name(app).value == "loops"
    click(app, "Undo")
    assert looked_at(app) == f"Region {ids[2]}"
    assert name(app).value == ""
    assert "Undo" not in labels(app)
    name(app).set_value("loops").run()  # as it was once
    assert looked_at(settle(app)) == f"Region {ids[2]} · loops"


def test_a_region_is_split_and_undone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before, ids = source_of(place), ids_of(place)
    gone = before.regions()[3]
    found = find_regions(place.workspace, before.run.id)
    inside = torch.from_numpy(found.membership == gone.region_id)
    halves = split(before.mixture(), gone, before.mistakes().latents[inside], seed=SEED)
    app = opened(place, monkeypatch, region=f"Region {gone.region_id}")
    press(app, "Split")
    new = [half.region_id for half in halves]
    said = f"egion {gone.region_id} split into {new[0]} and {new[1]}"
    assert toasts(app) == [f"R{said}. Their labels stay with them: label what is new, or undo."]
    (edit,) = edits_of(place)
    assert (edit.kind, edit.regions, edit.undone) == ("split", (gone.region_id,), False)
    for made, half in zip(edit.into, halves, strict=True):
        assert made.region_id == half.region_id
        np.testing.assert_allclose(made.mean, half.mean)
        np.testing.assert_allclose(made.covariance, half.covariance)
    app = settle(app)
    assert table_of(app)["region"] == ids_of(place)
    assert sorted(ids_of(place)) == sorted({*ids, *new} - {gone.region_id})
    assert looked_at(app) == f"Region {new[0]}"
    assert metrics(app)["Regions"] == str(len(ids) + 1)
    statuses = dict(zip(table_of(app)["region"], table_of(app)["status"], strict=True))
    assert [statuses[i] for i in new] == ["unlabelled"] * 2
    press(app, "Undo")
    assert toasts(app) == [f"Taken back: r{said}"]
    assert edits_of(place)[0].undone
    app = settle(app)
    assert table_of(app)["region"] == ids
    assert looked_at(app) == f"Region {gone.region_id}"  # what was looked at before
    assert app.selectbox(key="region").value == str(gone.region_id)
    assert "unlabelled" not in table_of(app)["status"]
    assert "Undo" not in labels(app)


LABELLED = ". Their labels stay with them: label what is new, or undo."


def test_selected_regions_are_merged_and_undone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ids = source_of(place), ids_of(place)
    regions = source.regions()
    expected = merge(source.mixture(), [regions[2], regions[4]])
    app = opened(place, monkeypatch)
    (button,) = [b for b in app.button if b.label.startswith("Merge")]
    assert button.disabled
    choose_rows(app, 4)
    assert looked_at(app) == f"Region {ids[4]}"
    assert [b.disabled for b in app.button if b.label.startswith("Merge")] == [True]
    choose_rows(app, 2, 4)
    assert looked_at(app) == f"Region {ids[4]}"
    assert f"Merge {ids[2]} and {ids[4]}" in labels(app)
    press(app, "Merge")
    assert toasts(app) == [f"Regions {ids[2]} and {ids[4]} merged into {expected.region_id}{LABELLED}"]
    (edit,) = edits_of(place)
    assert (edit.kind, edit.regions) == ("merge", (ids[2], ids[4]))
    np.testing.assert_allclose(edit.into[0].covariance, expected.covariance)
    app = settle(app)
    assert looked_at(app) == f"Region {expected.region_id}"
    shown = table_of(app)
    assert sorted(shown["region"]) == sorted({*ids, expected.region_id} - {ids[2], ids[4]})
    assert shown["weight"][shown["region"].index(expected.region_id)] == pytest.approx(
        regions[2].weight + regions[4].weight
    )
    assert "Merge …" in labels(app)  # nothing is selected in the new table
    click(app, "Undo")
    assert table_of(app)["region"] == ids
    assert looked_at(app) == f"Region {ids[2]}"


def test_a_region_of_few_mistakes_is_not_split(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(place)
    made = select(source.mixture(), source.mistakes().latents[:3], of=1000)
    store_edit(place, RegionEdit("select", (), (made,), (0, 1, 2)))
    app = opened(place, monkeypatch, region=f"Region {made.region_id}")
    row = table_of(app)["region"].index(made.region_id)
    assert table_of(app)["mistakes"][row] == 3
    press(app, "Split")
    assert errors(app) == ["a region needs at least 10 mistakes to be split, this one has 3; leave it whole"]
    assert [e.kind for e in edits_of(place)] == ["select"]
    assert looked_at(settle(app)) == f"Region {made.region_id}"
    press(app, "Undo")  # it took no region's place: the heaviest is looked at
    assert looked_at(settle(app)) == f"Region {ids_of(place)[0]}"
    assert app.selectbox(key="region").value is None


@pytest.mark.parametrize("button", ["Split", "Merge"])
def test_an_edit_of_regions_that_were_changed_meanwhile_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, button: str
) -> None:
    source, ids = source_of(place), ids_of(place)
    app = choose_rows(opened(place, monkeypatch), 0, 1)
    made = merge(source.mixture(), source.regions()[1:3])
    store_edit(place, RegionEdit("merge", (ids[1], ids[2]), (made,)))  # in another tab
    press(app, button)
    assert errors(app) == ["the regions were changed in another tab or terminal; look again"]
    assert len(edits_of(place)) == 1
    app = settle(app)
    assert table_of(app)["region"] == ids_of(place)
    assert made.region_id in ids_of(place)
    choose_rows(app, 0, 1)
    press(app, button)  # it was looked at again
    assert not app.error
    assert len(edits_of(place)) == 2


def test_a_region_that_is_gone_is_no_longer_chosen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ids = source_of(place), ids_of(place)
    app = opened(place, monkeypatch, region=f"Region {ids[2]}")
    made = merge(source.mixture(), source.regions()[2:4])
    store_edit(place, RegionEdit("merge", (ids[2], ids[3]), (made,)))
    choice = app.run().selectbox(key="region")
    assert choice.value is None
    assert choice.proto.set_value  # the browser, which shows the old one, is told
    assert not choice.proto.HasField("raw_value")
    assert looked_at(settle(app)) == f"Region {ids_of(place)[0]}"


def test_an_undo_of_what_was_undone_meanwhile_is_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ids_of(place)[0]
    store_edit(place, RegionEdit("rename", (first,), name="loops"))
    app = opened(place, monkeypatch)
    place.workspace.annotations.undo_edit(latest(place, "distill").id)
    press(app, "Undo")
    assert not toasts(app)
    assert not app.error
    assert looked_at(settle(app)) == f"Region {first}"


# Stability


def store_stability(place: Place, found: dict[int, float | None]) -> Run:
    """A stability run that found this."""
    regions = [{"region_id": i, "found_again": share} for i, share in found.items()]
    summary = {"adjusted_rand": [0.5, 0.84, 0.71], "n_regions": [9, 12, 10], "regions": regions}
    return store_run(place, "stability", summary)


def test_stability_is_measured_by_a_button_and_followed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(place, monkeypatch)
    assert "Would another seed find the same regions?" in told(app)
    app = click(app, "Measure the stability")
    run = latest(place, "stability")
    assert run.live
    assert run.config == check_config("stability", {}).model_dump(mode="json")
    assert latest(place, "distill").id in run.upstream
    assert progress(app) == ["Fitted under 0 of … other seeds"]
    begin(place, run)
    place.workspace.runs.plan_tasks(run.id, ["seed=1", "seed=2", "seed=3"])
    place.workspace.runs.finish_task(run.id, "seed=2", "done")
    app = opened(place, monkeypatch)
    assert progress(app) == ["Fitted under 1 of 3 other seeds"]
    assert "Measure the stability" not in labels(app)
    assert "found again" not in table_of(app)
    place.workspace.runs.finish(run.id, "failed", error="no memory is left")
    app = opened(place, monkeypatch)
    assert errors(app) == ["no memory is left"]
    assert "Measure the stability" in labels(app)


def progress(app: AppTest) -> list[str]:
    """What the bars of the page say."""
    return [bar.proto.text for bar in app.main.get("progress")]


def test_what_other_seeds_find_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(place)
    shares = {i: None if i == ids[1] else 1 / (2 + row) for row, i in enumerate(ids)}
    store_stability(place, shares)
    app = opened(place, monkeypatch)
    assert (
        "Under 3 other seeds the mistakes are grouped with an adjusted Rand index of 0.50 … 0.84 "
        "(1 is alike, 0 is chance), into 9 … 12 regions." in told(app)
    )
    assert "Measure the stability" not in labels(app)
    shown = dict(zip(ids, table_of(app)["found again"], strict=True))
    assert np.isnan(shown.pop(ids[1]))
    assert shown == {i: share for i, share in shares.items() if i != ids[1]}


def test_what_was_found_of_older_regions_is_not_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store_stability(place, dict.fromkeys(ids_of(place), 0.5))
    done_here(place, "distill", {"n_components": 4, "max_codes": 100})
    app = opened(place, monkeypatch)
    assert "found again" not in table_of(app)
    assert "Would another seed find the same regions?" in told(app)


# Text


def test_names_that_are_markup_are_shown_as_text(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nasty, first = give_nasty_names(place, tmp_path), ids_of(place)[0]
    app = opened(nasty, monkeypatch, region=f"Region {first}")
    name(app).set_value(NASTY).run()
    assert toasts(app) == [f"Region {first} named '{NASTY}'"]
    assert NASTY not in str(app.toast[0].value)
    app = settle(app)
    assert looked_at(app) == f"Region {first} · {NASTY}"
    assert not has_markup(app)
    assert NASTY not in told(app)  # escaped, so that it is shown as it is
    assert table_of(app)["name"][0] == NASTY
    assert any(NASTY in text for text in table_of(app)["predictions"])
    given = component(app, f"tau-{latest(nasty, 'distill').id}-{first}")
    assert given["names"] == nasty.project.class_names
    (undo,) = [b for b in app.button if b.label == "Undo"]
    assert (NASTY in undo.help, NASTY in words(undo.help)) == (False, True)
    press(app, "Undo")
    assert toasts(app) == [f"Taken back: region {first} named '{NASTY}'"]


def test_whoever_edits_is_named_as_on_the_page_of_labels(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(place, monkeypatch)
    app.session_state["annotator"] = "Grace"
    name(app).set_value("loops").run()
    assert [e.by for e in edits_of(place)] == ["Grace"]
