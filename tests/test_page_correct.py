"""The page Correct without a browser: what it needs, what it starts, and what it shows as stored."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from streamlit.testing.v1 import AppTest

from dashboard.shell import store as cache
from defuse_core.base.config import PAPER_LAMBDAS
from defuse_core.base.intervals import Interval
from defuse_core.exchange.checkpoint.export import corrected_checkpoint
from defuse_core.extensions.answers import answers_by_region, judge
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.labels import SINGLE_MISTAKES, LabelEvent
from defuse_core.workspace.pipeline import SECOND_ROUND
from tests.apps import (
    NASTY,
    click,
    component,
    errors,
    figure,
    forget_answers,
    give_nasty_names,
    has_markup,
    keep_downloads,
    latest,
    metrics,
    opener,
    send,
    settle,
    tiles,
    told,
    words,
)
from tests.in_process import add_run, begin, done_here, end_all, fresh_place, store_run
from tests.workspaces import SWEEP, Place, copy_place, eventually

pytestmark = pytest.mark.usefixtures("runs_wait")
opened = opener("correct")

LAMBDAS = [0.0, 0.1, 1.0]
CONFIG: dict[str, Any] = {
    "correction": {**SWEEP["correction"], "lambdas": LAMBDAS, "epochs": 1, "held_out_share": 0.3},
    "baseline_lambdas": [1.0],
}
TASKS = ["lam=0", "lam=0.1", "lam=1", "baseline/lam=1"]
FORM = "correct-1"


@pytest.fixture(scope="module")
def there(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace with a correction; not to be changed."""
    found = copy_place(template, tmp_path_factory.mktemp("corrected") / "home")
    done_here(found, "correct", CONFIG)
    return found


@pytest.fixture
def mine(there: Place, tmp_path: Path) -> Iterator[Place]:
    """The same, to be changed."""
    found = copy_place(there.workspace.home, tmp_path / "mine")
    yield found
    end_all(found)


def failures(place: Place) -> list[int]:
    """Ids of the failure regions, judged here."""
    source = Source(place.workspace, latest(place, "distill").id)
    answers = answers_by_region(source.labels(up_to=None))
    found = judge(source.classifier(), source.vae(), source.regions(), answers, disagreement_threshold=0.5)
    return [verdict.region_id for verdict in found if verdict.is_failure and verdict.label is not None]


def points(place: Place) -> dict[str, dict[str, Any]]:
    events = place.workspace.runs.events(latest(place, "correct").id, kind="point")
    return {event.task: event.data for event in events}


# Before there is a correction


def test_without_regions_the_page_says_what_it_needs(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(fresh_place(tmp_path / "home", template.parent / "shapes.npz"), monkeypatch)
    assert [info.value for info in app.info] == ["Needs regions first."]
    assert [link.proto.page for link in app.page_link] == ["regions"]
    assert not app.button


def test_without_labels_the_page_says_what_to_do(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(forget_answers(place), monkeypatch)
    assert [info.value.partition(":")[0] for info in app.info] == ["Label regions first"]
    assert [link.proto.page for link in app.page_link] == ["label"]
    assert not app.button


def test_where_no_region_is_a_failure_there_is_nothing_to_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = failures(place)
    forget_answers(place)
    nothing = [LabelEvent(i, "Ada", None, sample) for i in ids for sample in range(10)]
    place.workspace.annotations.append(latest(place, "distill").id, nothing)
    app = opened(place, monkeypatch)
    (info,) = app.info
    assert info.value.startswith(f"None of the {len(ids)} labelled regions is a failure")
    assert [link.proto.page for link in app.page_link] == ["label", "identify"]
    assert not app.button


# The form


def table_of(app: AppTest) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = app.dataframe[0].value.to_dict("list")
    return columns


def test_the_failures_are_listed_and_all_go_in(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = failures(place)
    assert len(ids) > 1
    app = opened(place, monkeypatch)
    shown = table_of(app)
    assert shown["region"] == ids
    assert shown["goes in"] == [True] * len(ids)
    events = place.workspace.annotations.counting(latest(place, "distill").id)
    labelled = {event.region_id for event in events} - {SINGLE_MISTAKES}
    if len(labelled) > len(ids):
        assert f"{len(labelled) - len(ids)} more regions are labelled, and stay out" in told(app)
    app = click(app, "Start")
    run = latest(place, "correct")
    expected = check_config("correct", {"correction": {"lambdas": PAPER_LAMBDAS}})
    assert run.config == expected.model_dump(mode="json")
    assert (run.config["regions"], run.seed, run.resources.device) == (None, 0, "auto")
    assert "The correction is waiting for another run …" in told(app)
    app = click(app, "Start")
    assert len(errors(app)) == 1
    assert f"run {run.id}" in errors(app)[0]


def test_start_submits_what_is_chosen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = failures(place)
    app = opened(place, monkeypatch)
    app.text_input(key=f"{FORM}-lambdas").set_value("0, 0.5 ; 2")
    app.text_input(key=f"{FORM}-baseline-lambdas").set_value("3")
    values = {
        "correction.epochs": 2,
        "correction.held_out_share": 0.25,
        "n_seeds": 3,
        "max_loss": 0.02,
        "correction.learning_rate": 0.01,
    }
    for name, value in values.items():
        app.number_input(key=f"{FORM}-{name}").set_value(value)
    app.selectbox(key=f"{FORM}-correction.optimizer").set_value("sgd")
    app.selectbox(key=f"{FORM}-rule").set_value("paper")
    app.number_input(key="correct-seed").set_value(7)
    app.run()
    edits = {"edited_rows": {"0": {"goes in": False}}, "added_rows": [], "deleted_rows": []}
    app = settle(send(app, str(app.dataframe[0].key), **edits))
    app = click(app, "Start")
    run = latest(place, "correct")
    assert run.seed == 7
    assert run.config["regions"] == ids[1:]
    assert run.config["baseline_lambdas"] == [3.0]
    assert (run.config["rule"], run.config["max_loss"], run.config["n_seeds"]) == ("paper", 0.02, 3)
    tuning = run.config["correction"]
    assert tuning["lambdas"] == [0.0, 0.5, 2.0]
    assert (tuning["epochs"], tuning["optimizer"], tuning["learning_rate"]) == (2, "sgd", 0.01)
    assert tuning["held_out_share"] == 0.25
    end_all(place)
    app.toggle(key=f"{FORM}-baseline-True").set_value(False).run()
    click(app, "The paper's 17")
    click(app, "Start")
    assert latest(place, "correct").config["baseline_lambdas"] == []
    assert latest(place, "correct").config["correction"]["lambdas"] == list(PAPER_LAMBDAS)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", "Give at least one λ."),
        ("x", "λ must be a number from 0 up, got x."),
        ("1, -1", "λ must be a number from 0 up, got -1."),
        ("1e400", "λ must be a number from 0 up, got 1e400."),
        ("nan", "λ must be a number from 0 up, got nan."),
        ("1, 1.0", "A λ is given twice; with a decimal comma 0,1 reads as two of them: write 0.1."),
    ],
)
def test_lambdas_that_are_none_are_told_before_the_start(
    place: Place, monkeypatch: pytest.MonkeyPatch, typed: str, told: str
) -> None:
    app = opened(place, monkeypatch)
    app.text_input(key=f"{FORM}-lambdas").set_value(typed).run()
    assert errors(app) == [told]
    (start,) = [button for button in app.button if button.label == "Start"]
    assert start.disabled
    app.text_input(key=f"{FORM}-lambdas").set_value("1").run()
    assert not errors(app)


def test_without_a_region_nothing_starts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(place, monkeypatch)
    rows = {str(i): {"goes in": False} for i in range(len(app.dataframe[0].value))}
    app = settle(
        send(app, str(app.dataframe[0].key), edited_rows=rows, added_rows=[], deleted_rows=[])
    )  # fmt: skip
    (start,) = [button for button in app.button if button.label == "Start"]
    assert start.disabled
    assert "Select at least one region" in told(app)


def test_without_labelled_mistakes_there_is_no_baseline(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as connection, connection:
        connection.execute("DELETE FROM annotations WHERE region_id = ?", (SINGLE_MISTAKES,))
    app = opened(place, monkeypatch)
    (baseline,) = [toggle for toggle in app.toggle if toggle.label == "Baseline"]
    assert (baseline.value, baseline.disabled) == (False, True)
    assert "single mistakes, of which none is labelled" in told(app)
    click(app, "Start")
    assert latest(place, "correct").config["baseline_lambdas"] == []


def test_the_time_is_estimated_from_the_probe(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(place, monkeypatch)
    assert "How long that takes here is not known yet." in told(app)
    click(app, "Measure the speed")
    assert latest(place, "probe").live
    end_all(place)
    assert "is not known yet" in told(opened(place, monkeypatch))
    store_run(
        place, "probe", {"codes_per_second": 9.0, "tuned_per_second": 1000.0, "classified_per_second": 5000.0}
    )
    eventually(lambda: bool(cache.devices()), seconds=60)
    if cache.devices()[0].device != "cpu":
        pytest.skip("the speed of another device is not known")
    app = opened(place, monkeypatch)
    app.text_input(key=f"{FORM}-lambdas").set_value("1")
    app.number_input(key=f"{FORM}-correction.epochs").set_value(10)
    app.toggle(key=f"{FORM}-baseline-True").set_value(False).run()
    n = 256 * len(failures(place))
    seconds = 4 + 10 * ((1280 + n) / 1000 + 60 / 5000) + (120 + 60 + n) / 5000
    assert f"About **{seconds:.0f} s**: 1 λ: 1 times 10 epochs" in told(app)
    app.number_input(key=f"{FORM}-correction.epochs").set_value(None).run()
    assert not app.exception


# While it runs


def test_a_sweep_under_way_fills_in_and_lets_one_lambda_go(
    place: Place, there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(place, "correct", CONFIG)
    begin(place, run)
    assert "The regions are drawn …" in told(opened(place, monkeypatch))
    runs, stored = place.workspace.runs, points(there)
    runs.plan_tasks(run.id, ["before", *TASKS])
    for task in ("before", "lam=0"):
        runs.add_point(run.id, task, task, stored[task])
        runs.finish_task(run.id, task, "done", artifacts=[])
    runs.report_progress(run.id, "lam=0.1", 1, 2, {})
    app = opened(place, monkeypatch)
    (test, *_) = figure(app, f"tradeoff-{run.id}")["data"]
    assert list(test["y"]) == [stored["lam=0"]["test"][0]]
    labels = [button.label for button in app.button if str(button.key).startswith("leave-")]
    assert labels == ["λ = 0.1 · 1/2", "λ = 1", "baseline, λ = 1"]
    (bar,) = [e.proto for e in app.get("progress") if "measured" in e.proto.text]
    assert bar.text.startswith("1 of 4 measured · about ")
    assert "is chosen" not in told(app)
    app = click(app, "λ = 1")
    assert runs.beat(run.id)[1] == {"lam=1"}
    (left_out,) = [button for button in app.button if button.label == "λ = 1"]
    assert left_out.disabled
    assert not [button for button in app.button if button.label == "Add λ"]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_sweep_that_did_not_end_well_is_told_and_shows_what_it_has(
    place: Place, there: Place, monkeypatch: pytest.MonkeyPatch, status: Any
) -> None:
    run = add_run(place, "correct", CONFIG)
    begin(place, run)
    place.workspace.runs.plan_tasks(run.id, TASKS)
    place.workspace.runs.add_point(run.id, "lam=0", "lam=0", points(there)["lam=0"])
    place.workspace.runs.finish(run.id, status, error="the disk is full" if status == "failed" else None)
    app = opened(place, monkeypatch)
    assert len([*app.error, *app.warning]) == 1
    assert figure(app, f"tradeoff-{run.id}")["data"][0]["name"] == "test"


# What was found


def test_the_charts_points_are_the_stored_ones(there: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, run = points(there), latest(there, "correct")
    app = opened(there, monkeypatch)
    by_name = {trace["name"]: trace for trace in figure(app, f"tradeoff-{run.id}")["data"]}
    for name, x, y in (
        ("test", "region", "test"),
        ("validation", "region", "validation"),
        ("test, over regions held out", "held_out", "test"),
    ):
        assert list(by_name[name]["x"]) == [stored[task][x][0] for task in TASKS[:3]]
        assert list(by_name[name]["y"]) == [stored[task][y][0] for task in TASKS[:3]]
    assert list(by_name["baseline, test"]["y"]) == [stored["baseline/lam=1"]["test"][0]]
    assert list(by_name["before"]["x"]) == [stored["before"]["region"][0]] * 2
    by_name = {trace["name"]: trace for trace in figure(app, f"over-lambda-{run.id}")["data"]}
    assert list(by_name["regions tuned on"]["x"]) == [0.01, 0.1, 1.0]
    assert list(by_name["regions tuned on"]["y"]) == [stored[task]["region"][0] for task in TASKS[:3]]


def test_the_chosen_lambda_is_open_with_the_rule_that_chose_it(
    there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, before = latest(there, "correct").summary["corrected"]["chosen"], points(there)["before"]
    app = opened(there, monkeypatch)
    assert f"**λ = {chosen['lam']:g}** is chosen" in told(app)
    assert f"{before['selection']:.4f} before" in told(app)
    assert f"λ = {chosen['lam']:g}" in [heading.value for heading in app.subheader]
    shown = metrics(app)
    assert shown["Test"] == f"{chosen['test'][0]:.3f}"
    assert shown["Regions"] == f"{chosen['region'][0]:.3f}"
    assert shown["Regions held out"] == f"{chosen['held_out'][0]:.3f}"
    assert shown["Fixed · broken"] == f"{chosen['fixed']} · {chosen['broken']}"


def test_a_link_opens_a_lambda(there: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for task, heading in (("lam=0.1", "λ = 0.1"), ("baseline/lam=1", "Baseline, λ = 1")):
        app = opened(there, monkeypatch, point=heading.replace("Baseline", "baseline"))
        assert heading in [found.value for found in app.subheader]
        assert metrics(app)["Test"] == f"{points(there)[task]['test'][0]:.3f}"
    app = opened(there, monkeypatch, point="λ = 77")
    assert any(found.value.startswith("λ = ") for found in app.subheader)


def test_what_was_fixed_and_broken_is_shown_as_it_is(there: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source, files = (
        Source(there.workspace, latest(there, "correct").id),
        there.tensors(latest(there, "correct")),
    )
    test = source.dataset.test
    was, now = (files[f"{task}.said.safetensors"]["test"] for task in ("before", "lam=0.1"))
    app = opened(there, monkeypatch, point="λ = 0.1")
    seen = 0
    for flip, before_right in (("fixed", False), ("broken", True)):
        expected = [
            i
            for i, label in enumerate(test.labels.tolist())
            if (was[i] == label) == before_right and (now[i] == label) != before_right
        ]
        assert f"**{flip.capitalize()}: {len(expected)}** of 120 test images" in told(app)
        if not expected:
            continue
        shown = tiles(app, f"{flip}-images")
        seen += len(shown)
        assert len(shown) == min(24, len(expected))
        for i, tile in zip(expected, shown, strict=False):
            np.testing.assert_array_equal(tile["images"][0], test.images[i].permute(1, 2, 0).numpy())
            names = [source.dataset.class_names[int(k)] for k in (test.labels[i], was[i], now[i])]
            assert tile["caption"] == f"{names[0]}: {names[1]} → {names[2]}\ntest {i}"
            assert (tile["corner"], tile["wrong"]) == (names[2], before_right)
    assert seen > 0


def test_the_regions_draws_are_shown_too(there: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    files = there.tensors(latest(there, "correct"))
    drawn = files["failures.safetensors"]
    app = opened(there, monkeypatch, point="λ = 1", **{"images-of": "Draws of the regions"})
    n_fixed = 0
    pictures = []
    for part, name in (("region", "test"), ("held_out", "held_out")):
        was, now = (files[f"{task}.said.safetensors"][part] for task in ("before", "lam=1"))
        right = drawn[f"{name}.labels"]
        fixed = (was != right) & (now == right)
        n_fixed += int(fixed.sum())
        pictures += [image.permute(1, 2, 0).numpy().tobytes() for image in drawn[f"{name}.images"][fixed]]
    assert n_fixed > 0
    assert f"**Fixed: {n_fixed:,}**" in told(app)
    shown = tiles(app, "fixed-images")
    assert {tile["images"][0].tobytes() for tile in shown} <= {*pictures}
    assert not any(tile["wrong"] for tile in shown)


def test_regions_and_classes_are_counted_before_and_after(
    there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, files = (
        Source(there.workspace, latest(there, "correct").id),
        there.tensors(latest(there, "correct")),
    )
    app = opened(there, monkeypatch, point="λ = 1")
    by_class = {t.get("name"): t for t in figure(app, "by-class")["data"]}
    labels = source.dataset.test.labels
    for name, task in (("before", "before"), ("after", "lam=1")):
        right = files[f"{task}.said.safetensors"]["test"] == labels
        expected = sorted(float(right[labels == c].double().mean()) for c in range(3))
        assert sorted(by_class[name]["x"]) == pytest.approx(expected)
    by_region = {t.get("name"): t for t in figure(app, "by-region")["data"]}
    drawn, after = files["failures.safetensors"], files["lam=1.said.safetensors"]
    held_out = dict(
        zip(*(by_region["after, region held out"][part] for part in ("hovertext", "x")), strict=True)
    )
    for region in drawn["held_out.ids"].unique().tolist():
        mine = drawn["held_out.ids"] == region
        hits = (after["held_out"] == drawn["held_out.labels"])[mine]
        found = Interval.wilson(int(hits.sum()), len(hits))
        (told_of,) = [text for text in held_out if text.startswith(f"Region {region} → ")]
        assert held_out[told_of] == found.estimate
        assert f"[{found.low:.3f}, {found.high:.3f}], n = 16" in told_of
    assert len(by_region["after"]["x"]) == len(drawn["test.ids"].unique())


def test_points_flips_checkpoint_and_card_can_be_downloaded(
    there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep_downloads(monkeypatch)
    opened(there, monkeypatch, point="λ = 0.1")
    run, stored = latest(there, "correct"), points(there)
    rows = list(csv.DictReader(io.StringIO(kept[f"sweep-run{run.id}.csv"]().decode())))
    assert [row["task"] for row in rows] == ["before", *TASKS]
    for row in rows:
        assert float(row["test_estimate"]) == stored[row["task"]]["test"][0]
        assert [float(row[f"region_{part}"]) for part in ("low", "high", "n")] == stored[row["task"]][
            "region"
        ][1:]
    flips = list(csv.DictReader(io.StringIO(kept[f"flips-run{run.id}.csv"]().decode())))
    of_test = [row["flip"] for row in flips if row["set"] == "test"]
    for flip in ("fixed", "broken"):
        assert of_test.count(flip) == stored["lam=0.1"][flip]
    name = f"corrected-run{run.id}-lam-0.1"
    content, card = corrected_checkpoint(there.workspace, run.id, task="lam=0.1", name=name)
    loaded = safetensors.torch.load(kept[f"{name}.safetensors"]())
    expected = safetensors.torch.load(content)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())
    assert kept[f"{name}.md"]() == card


# Going on


def test_more_lambdas_and_seeds_go_into_the_same_run(mine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = latest(mine, "correct")
    app = opened(mine, monkeypatch)
    app.text_input(key=f"more-{run.id}").set_value("0.5, 5")
    app.number_input(key=f"more-seeds-{run.id}").set_value(2).run()
    app = click(app, "Compute them")
    grown = latest(mine, "correct")
    assert (grown.id, grown.status) == (run.id, "queued")
    assert grown.config["correction"] == {**run.config["correction"], "lambdas": [*LAMBDAS, 0.5, 5.0]}
    assert grown.config["n_seeds"] == 2
    assert len(figure(app, f"tradeoff-{run.id}")["data"][0]["x"]) == len(LAMBDAS)  # they stay


def test_another_rule_is_taken_and_a_wrong_lambda_refused(
    mine: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = latest(mine, "correct")
    app = opened(mine, monkeypatch)
    app.text_input(key=f"more-{run.id}").set_value("0.1").run()
    app = click(app, "Compute them")
    (error,) = errors(app)
    assert "lambdas must be distinct" in error
    assert latest(mine, "correct").status == "done"
    (choose,) = [button for button in app.button if button.label == "Choose"]
    assert choose.disabled  # nothing would change
    app.radio(key=f"rule-{run.id}").set_value("paper").run()
    click(app, "Choose")
    assert (latest(mine, "correct").status, latest(mine, "correct").config["rule"]) == ("queued", "paper")


def test_what_was_cancelled_is_resumed(mine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = latest(mine, "correct")
    with closing(sqlite3.connect(mine.workspace.home / "defuse.sqlite")) as connection, connection:
        connection.execute("UPDATE tasks SET status = 'cancelled' WHERE name = 'lam=0'")
    app = opened(mine, monkeypatch)
    assert "Not measured: λ = 0." in told(app)
    assert list(figure(app, f"tradeoff-{run.id}")["data"][0]["y"]) == [
        points(mine)[task]["test"][0] for task in ("lam=0.1", "lam=1")
    ]
    click(app, "Resume what was cancelled")
    assert latest(mine, "correct").status == "queued"


def test_a_lambda_that_diverged_is_told_and_not_resumed(mine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(mine.workspace.home / "defuse.sqlite")) as connection, connection:
        connection.execute("UPDATE tasks SET status = 'failed', error = 'It diverged' WHERE name = 'lam=0'")
    app = opened(mine, monkeypatch)
    assert "Not measured: λ = 0." in told(app)
    assert "1 λ failed and cannot be chosen. It diverged" in [warning.value for warning in app.warning]
    assert not [button for button in app.button if button.label == "Resume what was cancelled"]


def test_a_second_round_stands_on_the_first(mine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = latest(mine, "correct")
    first = mine.workspace.runs.ancestry(run.id)
    store_run(mine, "vae", {})
    click(opened(mine, monkeypatch), "Identify again")
    classifier, search, groups = (latest(mine, step) for step in SECOND_ROUND)
    assert classifier.config["weights"] == f"corrected:{run.id}"
    assert set(search.upstream) == {classifier.id, first["vae"].id}
    assert groups.upstream == (search.id,)
    assert (search.config, groups.config) == (first["identify"].config, first["distill"].config)


# Others


def test_without_the_predictions_a_correction_shows_what_there_is(
    place: Place, there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {
        task: {k: v for k, v in data.items() if k not in ("held_out", "validation")}
        for task, data in points(there).items()
        if task != "before"
    }
    run = add_run(place, "correct", CONFIG)
    begin(place, run)
    for task, data in kept.items():
        place.workspace.runs.add_point(run.id, task, task, data)
    summary = {"before_selection": 0.9, "corrected": {"chosen": kept["lam=1"], "points": []}}
    place.workspace.runs.finish(run.id, "done", summary=summary)
    app = opened(place, monkeypatch)
    assert any("no predictions for each image" in info.value for info in app.info)
    assert list(metrics(app)) == ["Test", "Regions", "Fixed · broken", "Epoch kept"]
    assert [t["name"] for t in figure(app, f"tradeoff-{run.id}")["data"]] == [
        "test",
        "baseline, test",
        "chosen",
    ]


def test_labels_given_since_make_it_stale(mine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    mine.workspace.annotations.append(
        latest(mine, "distill").id, [LabelEvent(failures(mine)[0], "Bob", 0, 0)]
    )
    app = opened(mine, monkeypatch)
    assert any("Since this correction began, labels were given" in w.value for w in app.warning)


def test_an_earlier_round_can_be_chosen(mine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = latest(mine, "correct")
    app = opened(mine, monkeypatch)
    assert "Correction" not in [box.label for box in app.selectbox]
    second = add_run(mine, "correct", {**CONFIG, "n_seeds": 2})
    app = opened(mine, monkeypatch)
    (choice,) = [box for box in app.selectbox if box.label == "Correction"]
    assert len(choice.options) == 2
    assert "The correction is waiting for another run …" in told(app)
    app = opened(mine, monkeypatch, correction=f"run {first.id}")
    assert "is chosen" in told(app)
    mine.workspace.runs.finish(second.id, "cancelled")
    newer = store_run(mine, "distill", {"regions": []})
    app = opened(mine, monkeypatch)
    assert any(
        f"earlier regions (run {first.upstream[0]}); the newest are those of run {newer.id}" in words(w.value)
        for w in app.warning
    )


def test_names_are_shown_as_they_are(mine: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(give_nasty_names(mine, tmp_path), monkeypatch, point="λ = 0.1")
    assert not has_markup(app)
    labels = {text for trace in figure(app, "by-class")["data"] for text in trace.get("hovertext", [])}
    assert any("&lt;img" in text for text in labels)
    assert not any(NASTY in text for text in labels)
    assert any(NASTY in tile["caption"] for tile in component(app, "fixed-images")["tiles"])
