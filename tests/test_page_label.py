"""The page of labels, empty and filled, without a browser: what the board is given, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from streamlit.testing.v1 import AppTest

from dashboard.components.label_board import class_keys
from dashboard.shared.region_data import SEED
from defuse_core.base.checkpoints import load_tensors
from defuse_core.extensions.regions import merge
from defuse_core.extensions.shipped import load_annotators
from defuse_core.method.classifier import predict
from defuse_core.method.labeling import draw_images, simulate_annotators
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import RegionEdit
from defuse_core.workspace.label_files import to_csv
from defuse_core.workspace.label_studio import label_studio_config
from defuse_core.workspace.labels import Annotations, LabelEvent
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
    keep_downloads,
    latest,
    metrics,
    open_page,
    send,
    settle,
    tiles,
    toasts,
    told,
    words,
)
from tests.in_process import add_run, done_here, end_all, fresh_place, store_run
from tests.workspaces import Place, copy_place

pytestmark = pytest.mark.usefixtures("runs_wait")

ME = "Grace"


@pytest.fixture
def labelled(place: Place) -> Place:
    """Every region is labelled, by Ada."""
    return place


@pytest.fixture
def place(place: Place) -> Place:
    """A workspace whose regions nobody has labelled."""
    return forget_answers(place)


def opened(place: Place, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    options = {"project": place.project.name, "annotator": ME, **query}
    return open_page(place.workspace.home, monkeypatch, "label", **options)


def source_of(place: Place) -> Source:
    return Source(place.workspace, latest(place, "distill").id)


def ids_of(place: Place) -> list[int]:
    """Ids of the regions as edited, heaviest first."""
    return [region.region_id for region in source_of(place).regions()]


def answers_of(place: Place) -> list[LabelEvent]:
    """What counts."""
    return place.workspace.annotations.counting(latest(place, "distill").id)


def answer(place: Place, region: int, labels: Sequence[int | None], *, by: str = ME, **more: Any) -> None:
    """Answer the first draws of a region."""
    events = [LabelEvent(region, by, label, sample, **more) for sample, label in enumerate(labels)]
    place.workspace.annotations.append(latest(place, "distill").id, events)


def board(app: AppTest) -> dict[str, Any]:
    return component(app, "board")


def shown(app: AppTest) -> tuple[int, float, int, str, int]:
    """What is labelled: region, τ, number of images, annotator and pass."""
    subject = board(app)["subject"]
    return tuple(subject[name] for name in ("region", "tau", "n_samples", "annotator", "round"))


def item(app: AppTest, number: int, label: int | None, **more: Any) -> dict[str, Any]:
    """An answer as the browser sends it, on the image of this number."""
    told = {"key": f"k{number}", "seq": number, "undoes": None, "sample": number, "label": label}
    return {**told, "seconds": 1.5, **board(app)["subject"], **more}


def queue(app: AppTest, *items: dict[str, Any], attempt: int = 1) -> AppTest:
    """Send answers."""
    return settle(send(app, "board", queue={"items": list(items), "attempt": attempt}))


def progress(app: AppTest) -> str:
    (bar,) = app.main.get("progress")
    return words(bar.proto.text)


# Before there is anything to label


def test_without_regions_the_page_says_what_it_needs(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(fresh_place(tmp_path / "home", template.parent / "shapes.npz"), monkeypatch)
    assert [info.value for info in app.info] == ["Needs regions first."]
    assert [link.proto.page for link in app.page_link] == ["regions"]
    assert not app.get("bidi_component")


def test_a_distillation_without_a_region_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    done_here(place, "distill", {"n_components": 3, "min_weight": 0.99, "max_codes": 100})
    app = opened(place, monkeypatch)
    assert [info.value.partition(".")[0] for info in app.info] == ["There is no region"]
    assert not app.get("bidi_component")


def test_regions_are_labelled_while_others_are_distilled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, new = latest(place, "distill"), add_run(place, "distill")
    assert board(opened(place, monkeypatch))["subject"]["run"] == done.id
    place.workspace.runs.finish(new.id, "failed", error="no memory is left")
    assert board(opened(place, monkeypatch))["subject"]["run"] == done.id
    store_run(place, "identify", {"mistakes": {"dataset": 9}})
    app = opened(place, monkeypatch)
    assert board(app)["subject"]["run"] == done.id
    assert "There is a newer search than these regions" in app.warning[0].value


# What the board is given


def test_the_board_shows_the_draws_of_the_core(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(place)
    region = source.regions()[5]
    app = opened(place, monkeypatch, region=f"Region {region.region_id}")
    given, names = board(app), place.project.class_names
    assert given["subject"] == {
        "run": source.run.id, "region": region.region_id, "tau": 0.5, "seed": SEED, "n_samples": 10,
        "annotator": ME, "round": 1,
    }  # fmt: skip
    images = draw_images(source.vae(), region, 10, tau=0.5, seed=SEED)
    pixels = [decode(image["src"]) for image in given["images"]]
    np.testing.assert_array_equal(pixels, images.permute(0, 2, 3, 1))
    said = [names[c] for c in predict(source.classifier(), images).tolist()]
    assert [image["said"] for image in given["images"]] == said
    assert len(set(said)) > 1
    keys = class_keys(names)
    assert given["classes"] == [{"name": n, "key": k} for n, k in zip(names, keys, strict=True)]
    assert (given["answers"], given["saved"], given["trouble"]) == ([], [], None)
    assert str(source.run.id) in given["namespace"]


def test_blind_hides_predictions_and_verdict_until_all_is_answered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = ids_of(place)[0]
    answer(place, region, [1] * 9)
    app = opened(place, monkeypatch, blind="true", region=f"Region {region}")
    assert app.toggle(key="blind").value is True
    assert {image["said"] for image in board(app)["images"]} == {None}
    assert "Hidden until all images are answered." in told(app)
    assert not metrics(app)
    assert [text.value for text in app.main.markdown] == ["**Verdict**"]
    queue(app, item(app, 9, 1))
    assert "Hidden" not in told(app)
    assert metrics(app) == {"Error": "100%"}
    assert {image["said"] for image in board(app)["images"]} == {None}  # an image was answered unseen
    app.toggle(key="blind").set_value(False).run()
    assert None not in {image["said"] for image in board(settle(app))["images"]}


def test_answers_are_those_of_this_annotator_pass_and_draws(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = ids_of(place)[:2]
    answer(place, first, [0, None])
    place.workspace.annotations.append(
        latest(place, "distill").id,
        [
            LabelEvent(first, ME, 2, None, key="whole"),
            LabelEvent(first, "Bob", 1, 0),
            LabelEvent(other, ME, 1, 0),
            LabelEvent(first, ME, 1, 0, round=2),
            LabelEvent(first, ME, 1, 0, seed=SEED + 1),
            LabelEvent(first, ME, 1, 10, n_samples=11),
            LabelEvent(first, ME, 1, 0, tau=0.51),
        ],
    )
    choose_tau(place, first, 0.5)
    app = opened(place, monkeypatch, region=f"Region {first}")
    found = board(app)["answers"]
    assert [(a["sample"], a["label"]) for a in found] == [(0, 0), (1, None), (None, 2)]
    assert [a["key"] for a in found] == [e.name for e in answers_of(place)[:3]]
    assert found[2]["key"] == "whole"
    app.text_input(key="annotator").set_value("Bob").run()
    assert [(a["sample"], a["label"]) for a in board(settle(app))["answers"]] == [(0, 1)]


def choose_tau(place: Place, region: int, tau: float) -> None:
    """Choose τ as the page of regions does."""
    place.workspace.annotations.edit(latest(place, "distill").id, RegionEdit("tau", (region,), tau=tau))


def test_the_tau_of_the_page_of_regions_is_shown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(place)
    first, second = source.regions()[:2]
    choose_tau(place, first.region_id, 0.05)
    answer(place, second.region_id, [1], by="Bob", tau=1.8)
    app = opened(place, monkeypatch, region=f"Region {first.region_id}")
    assert shown(app)[:2] == (first.region_id, 0.05)
    images = draw_images(source.vae(), first, 10, tau=0.05, seed=SEED).permute(0, 2, 3, 1)
    np.testing.assert_array_equal([decode(i["src"]) for i in board(app)["images"]], images)
    app = opened(place, monkeypatch, region=f"Region {second.region_id}")
    assert shown(app)[1] == 1.8  # none is chosen: it is as it was labelled last
    choose_tau(place, second.region_id, 0.3)
    assert shown(opened(place, monkeypatch, region=f"Region {second.region_id}"))[1] == 0.3


@pytest.mark.parametrize(("asked", "n"), [("3", 3), ("64", 64), ("65", 10), ("0", 10), ("x", 10)])
def test_how_many_images_are_shown_stands_in_the_link(
    place: Place, monkeypatch: pytest.MonkeyPatch, asked: str, n: int
) -> None:
    app = opened(place, monkeypatch, images=asked)
    assert (shown(app)[2], len(board(app)["images"])) == (n, n)


# Which region


def test_the_first_unlabelled_region_is_shown_and_stays_when_it_is_labelled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, *_ = ids = ids_of(place)
    answer(place, first, [1])
    answer(place, second, [1], by="Bob")  # it is not mine
    answer(place, second, [1], round=2)  # nor of this pass
    app = opened(place, monkeypatch)
    assert shown(app)[0] == second
    assert progress(app) == f"1 of {len(ids)} regions labelled by {ME}, first pass"
    queue(app, item(app, 0, 1, sample=None))
    assert shown(app)[0] == second
    assert progress(app) == f"2 of {len(ids)} regions labelled by {ME}, first pass"
    assert shown(opened(place, monkeypatch))[0] == third


def test_a_link_to_a_region_that_is_gone_shows_the_first_unlabelled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, ids = source_of(place), ids_of(place)
    answer(place, ids[0], [1])
    for asked in ("Region 99", NASTY):
        app = opened(place, monkeypatch, region=asked)
        assert shown(app)[0] == ids[1]
        assert NASTY not in told(app)
    app = opened(place, monkeypatch, region=f"Region {ids[3]}")
    made = merge(source.mixture(), source.regions()[3:5])
    edit = RegionEdit("merge", (ids[3], ids[4]), (made,))  # in another tab
    place.workspace.annotations.edit(source.run.id, edit)
    app = settle(app.run())
    first = next(i for i in ids_of(place) if i != ids[0])
    assert shown(app)[0] == first
    assert app.selectbox(key="region").value == str(first)


def test_next_goes_to_a_region_without_answers_and_previous_to_the_one_before(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(place)
    for region in (ids[1], ids[-1]):
        answer(place, region, [1])
    answer(place, ids[2], [1], round=2)
    answer(place, ids[2], [1], by="Bob")
    app = opened(place, monkeypatch)

    def move(step: int) -> int:
        settle(send(app, "board", trigger=True, move=step))
        region: int = board(app)["subject"]["region"]
        assert app.selectbox(key="region").value == str(region)
        return region

    assert move(1) == ids[2]
    assert move(-1) == ids[1]
    assert move(-1) == ids[0]
    assert move(-1) == ids[-1]  # round the corner
    assert move(1) == ids[0]
    assert move(7) == ids[0]  # no step at all
    for region in ids:
        answer(place, region, [1])
    assert [move(1), move(1)] == [ids[1], ids[2]]  # all are labelled: it goes through them


# Storing


def test_answers_are_stored_once_in_their_order_and_shown(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(place, monkeypatch)
    region = shown(app)[0]
    sent = [item(app, 2, 1), item(app, 0, None), item(app, 5, 0, seconds=60.0), item(app, 6, 2, sample=2)]
    queue(app, *sent)
    queue(app, *sent, item(app, 7, 1, sample=None), attempt=2)
    found = answers_of(place)
    assert [(e.key, e.sample_id, e.label) for e in found] == [
        ("k2", 2, 1), ("k0", 0, None), ("k5", 5, 0), ("k6", 2, 2), ("k7", None, 1),
    ]  # fmt: skip
    assert {(e.region_id, e.annotator, e.tau, e.seed, e.n_samples, e.round) for e in found} == {
        (region, ME, 0.5, SEED, 10, 1)
    }
    assert [e.seconds for e in found] == [1.5, 1.5, 60.0, 1.5, 1.5]
    given = board(app)
    assert [a["key"] for a in given["answers"]] == [e.key for e in found]
    assert set(given["saved"]) == {e.key for e in found}
    assert given["trouble"] is None
    assert "Time spent: 66 s here, 66 s in all" in told(app)


def test_an_answer_is_taken_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(place, monkeypatch)
    answer(place, shown(app)[0], [2])  # without a key
    first, second = item(app, 1, 1), item(app, 2, 1)
    undo = {**first, "key": "u", "seq": 3, "undoes": "k1"}
    queue(app, first, second, undo)
    assert [(e.sample_id, e.label) for e in answers_of(place)] == [(0, 2), (2, 1)]
    assert set(board(app)["saved"]) == {"k1", "k2", "u"}
    queue(app, undo, attempt=2)
    keyless = board(app)["answers"][0]
    queue(app, {**first, "key": "v", "sample": 0, "undoes": keyless["key"]}, attempt=3)
    assert [(e.sample_id, e.label) for e in answers_of(place)] == [(2, 1)]
    assert [a["sample"] for a in board(app)["answers"]] == [2]
    assert board(app)["saved"] == ["v"]


def test_a_malformed_queue_is_told_and_not_stored(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(place, monkeypatch)
    good = item(app, 0, 1)
    queue(app, good, {**item(app, 1, 1), "label": "1"})
    assert answers_of(place) == []
    assert "item 1 of the queue: label must be a whole number" in board(app)["trouble"]
    assert board(app)["saved"] == []
    queue(app, good, attempt=2)
    assert [e.key for e in answers_of(place)] == ["k0"]
    assert (board(app)["trouble"], board(app)["saved"]) == (None, ["k0"])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"label": 3}, "label must be in 0 … 2, got 3"),
        ({"sample": 10}, "sample must be in 0 … 9, got 10"),
        ({"annotator": "  "}, "an annotation needs the name of its annotator"),
        ({"run": 99}, "run 99 does not exist any more"),
        ({"key": "id:1"}, "its key is one of the database's own"),
    ],
)
def test_an_answer_that_can_never_be_stored_is_told_and_holds_up_no_other(
    place: Place, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], problem: str, first: bool
) -> None:
    app = opened(place, monkeypatch)
    good, bad = item(app, 0, 1), {**item(app, 1, 1), **changed}
    queue(app, *([bad, good] if first else [good, bad]))
    assert [e.key for e in answers_of(place)] == ["k0"]
    assert board(app)["trouble"] is None
    assert {*board(app)["saved"]} == {good["key"], bad["key"]}  # the board lets go of it
    (shown,) = errors(app)
    assert shown.startswith("1 could not be stored.")
    assert problem in shown
    queue(app, item(app, 2, 1))
    assert len(answers_of(place)) == 2
    assert errors(app) == [shown]  # until it was taken note of
    assert not errors(click(app, "Understood"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "annotator-bob",
            "Names that begin with annotator- are those of simulated annotators; choose another.",
        ),
        ("Bo\u200bb", "The annotator's name has characters that are not shown: "),
    ],
)
def test_names_that_no_person_may_have_are_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    (error,) = errors(opened(place, monkeypatch, annotator=name))
    assert error.startswith(told)


def test_a_tie_between_people_is_told_as_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    region = ids_of(place)[0]
    answer(place, region, [1] * 10)
    bobs = [LabelEvent(region, "Bob", 2, sample) for sample in range(9)]
    place.workspace.annotations.append(latest(place, "distill").id, bobs)
    app = opened(place, monkeypatch, region=f"Region {region}")
    assert "9 left out: the annotators disagree on them." in told(app)
    assert "failure, not sure" in told(app)
    last = LabelEvent(region, "Bob", 2, 9)
    place.workspace.annotations.append(latest(place, "distill").id, [last])
    app = opened(place, monkeypatch, region=f"Region {region}")
    assert "10 left out" in told(app)
    assert "undecided" in told(app)
    assert not metrics(app)


def test_what_the_disk_refuses_is_told_and_stored_once_it_does_not(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(place, monkeypatch)
    queue(app, item(app, 0, 1))

    def refuse(*_: Any) -> None:
        raise WorkspaceError("the disk is full; make room")

    with monkeypatch.context() as broken:
        broken.setattr(Annotations, "append", refuse)
        queue(app, item(app, 1, 2), attempt=2)
    assert board(app)["trouble"] == "the disk is full; make room"
    assert "k1" not in board(app)["saved"]
    assert [a["key"] for a in board(app)["answers"]] == ["k0"]
    queue(app, item(app, 1, 2), attempt=3)
    assert board(app)["trouble"] is None
    assert "k1" in board(app)["saved"]
    assert [e.key for e in answers_of(place)] == ["k0", "k1"]


def test_a_late_answer_is_stored_where_it_was_given(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(place)
    app = opened(place, monkeypatch, region=f"Region {ids[0]}")
    late = item(app, 0, 1)
    app.selectbox(key="region").set_value(str(ids[1])).run()
    app.text_input(key="annotator").set_value("Bob").run()
    app = queue(settle(app), late)
    assert [(e.region_id, e.annotator) for e in answers_of(place)] == [(ids[0], ME)]
    assert shown(app)[::3] == (ids[1], "Bob")
    assert board(app)["answers"] == []
    assert board(app)["saved"] == ["k0"]


# The verdict


def share_of(wrong: int, n: int) -> str:
    low, high = binomtest(wrong, n).proportion_ci(method="wilson")
    return f"95 % interval {low:.2f} … {high:.2f}, n = {n}"


@pytest.mark.parametrize(
    ("labels", "mark", "error", "also"),
    [
        ([], "not labelled yet", None, []),
        (
            [1, 1, 1],
            "failure, not sure",
            "100%",
            [share_of(3, 3), "1 more like these would decide.", "a failure"],
        ),
        (
            [1] * 10,
            "failure, sure",
            "100%",
            [share_of(10, 10), "Label: column, fits 10 of 10 draws", "it counts as a failure"],
        ),
        (
            [2] * 10,
            "not a failure, sure",
            "0%",
            [share_of(0, 10), "Label: diagonal", "it counts as no failure"],
        ),
        (
            [1, 2] * 5,
            "not a failure, not sure",
            "50%",
            ["Just ρ = 0.5 of them", "counts as no failure", "No label: the most frequent ones tie"],
        ),
        ([None] * 10, "none of the above", None, []),
        ([None] * 6 + [1] * 4, "failure, sure", "100%", [share_of(4, 4)]),
        (
            [1] * 8 + [2] * 2,
            "failure, not sure",
            "80%",
            ["1 more like these would decide.", "counts as a failure"],
        ),
    ],
)
def test_the_verdict_is_told_as_it_stands(
    place: Place, monkeypatch: pytest.MonkeyPatch, labels: list[int | None], mark: str,
    error: str | None, also: list[str],
) -> None:  # fmt: skip
    region = source_of(place).regions()[0]
    answer(place, region.region_id, labels)
    app = opened(place, monkeypatch, region=f"Region {region.region_id}")
    assert {image["said"] for image in board(app)["images"]} == {"diagonal"}  # class 2
    (_, verdict) = [text.value for text in app.main.markdown]
    assert verdict.endswith(f" **{mark}**")
    assert metrics(app) == ({} if error is None else {"Error": error})
    for text in also:
        assert text in words(told(app)), text
    assert ("would decide" in told(app)) == any("would decide" in text for text in also)


def test_all_people_decide_and_the_simulated_only_where_none_answered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = ids_of(place)[0]
    for number in range(1, 6):
        answer(place, region, [1] * 10, by=f"annotator-{number}")
    app = opened(place, monkeypatch, region=f"Region {region}")
    assert "not labelled yet" in told(app)
    assert "it counts as: failure, sure; by simulated annotators, at τ = 0.5." in told(app)
    assert not metrics(app)
    assert board(app)["answers"] == []
    queue(app, *[item(app, i, 2) for i in range(10)])
    assert metrics(app) == {"Error": "0%"}  # five to one, and they do not count
    answer(place, region, [1] * 10, by="Bob")
    answer(place, region, [1] * 10, by="Eve")
    assert metrics(settle(app.run())) == {"Error": "100%"}


def test_the_second_pass_measures_the_annotator_and_does_not_vote(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = ids_of(place)[0]
    answer(place, region, [1, 1, 2, None, 1, 1, 1, 1, 1, 1])
    app = opened(place, monkeypatch, region=f"Region {region}", **{"pass": "second pass"})
    assert shown(app)[4] == 2
    assert progress(app).startswith("0 of ")
    assert board(app)["answers"] == []
    assert "A second pass does not count as a vote" in told(app)
    before = metrics(app)["Error"]
    queue(app, *[item(app, i, label) for i, label in enumerate([1, 2, 2, None])])
    assert metrics(app) == {"Error": before, "You agree with yourself": "75%"}
    low, high = binomtest(3, 4).proportion_ci(method="wilson")
    assert [m.help for m in app.metric][1] == f"0.750 [{low:.3f}, {high:.3f}] of 4 images"
    assert [e.round for e in answers_of(place)] == [1] * 10 + [2] * 4
    app.segmented_control(key="pass").set_value("first pass").run()
    assert len(board(settle(app))["answers"]) == 10
    assert metrics(app) == {"Error": before}


def test_answers_on_other_draws_are_offered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    region = ids_of(place)[0]
    answer(place, region, [1, 2, 1, 1, 1], tau=0.1, n_samples=5)
    answer(place, region, [2], by="Bob", tau=2.0, n_samples=7)  # not mine
    choose_tau(place, region, 0.8)
    app = opened(place, monkeypatch, region=f"Region {region}")
    assert shown(app)[1:3] == (0.8, 10)
    assert "You labelled this region at τ = 0.1, 5 images." in told(app)
    assert "not labelled yet" in told(app)
    app = click(app, "Show those")
    assert shown(app)[1:3] == (0.1, 5)
    assert app.number_input(key="images").value == 5
    assert [a["label"] for a in board(app)["answers"]] == [1, 2, 1, 1, 1]
    assert not app.main.button
    edits = place.workspace.annotations.edits(latest(place, "distill").id)
    assert [(e.kind, e.regions, e.tau) for e in edits][1:] == [("tau", (region,), 0.1)]


def test_answers_on_more_draws_than_fit_are_told_and_not_offered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = ids_of(place)[0]
    last = LabelEvent(region, ME, 1, 64, n_samples=65)
    place.workspace.annotations.append(latest(place, "distill").id, [last])
    app = opened(place, monkeypatch, region=f"Region {region}")
    assert "You labelled this region at τ = 0.5, 65 images." in told(app)
    assert not app.main.button


# What others say


def opened_wide(place: Place, monkeypatch: pytest.MonkeyPatch, part: str, **query: str) -> AppTest:
    """The page with one of its folded parts open."""
    app = opened(place, monkeypatch, **query)
    app.session_state[f"{part}-open"] = True
    return settle(app.run())


def test_agreement_is_of_the_draws_that_two_have_answered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ids_of(place)[:2]
    answer(place, first, [0, 1, 2, None, 1])
    assert "Nobody else has answered the same draws yet." in told(
        opened_wide(place, monkeypatch, "agreement")
    )
    answer(place, first, [0, 1, 1, None, 2, 2], by="Bob")
    answer(place, first, [0, 1, None, None], by="annotator-1")
    answer(place, first, [2] * 10, round=2)
    answer(place, second, [1] * 10, by="Eve")
    place.workspace.annotations.append(latest(place, "distill").id, [LabelEvent(-1, "Zoe", 1, 0)])
    app = opened_wide(place, monkeypatch, "agreement")
    votes: list[list[int | None]]  # of each image of the first region
    votes = [[0] * 3, [1] * 3, [1, None, 2], [None] * 3, [2, 1]]
    share = [max(map(v.count, v)) / len(v) for v in votes]
    (bars,) = figure(app, "agreement")["data"]
    values, counts = np.unique(np.round(share, 3), return_counts=True)
    assert list(bars["x"]) == [f"{value:.0%}" for value in values] == ["33%", "50%", "100%"]
    assert list(bars["y"]) == counts.tolist() == [1, 1, 3]
    pairs = [a == b for v in votes for a, b in combinations(v, 2)]
    agreement = {name: metrics(app)[name] for name in ("Unanimous", "Pairs of equal answers")}
    assert agreement == {
        "Unanimous": f"{3 / 5:.0%}", "Pairs of equal answers": f"{np.mean(pairs):.0%}",
    }  # fmt: skip
    assert f"Bob, {ME}, annotator-1 on 5 draws" in words(told(app))
    assert "Eve" not in told(app)
    assert "Zoe" not in told(app)


# Files


def upload(app: AppTest, file: str, content: str | bytes) -> AppTest:
    data = content.encode() if isinstance(content, str) else content
    (box,) = app.file_uploader
    return box.upload(file, data).run()


def test_a_csv_is_taken_in_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ids_of(place)[:2]
    n_mistakes = len(source_of(place).mistakes())
    text = (
        "region,annotator,label,sample,tau\n"
        f"{first},Eve, column ,,\n{first},Eve,row,3,\n{first},Eve,diagonal,3,\n"
        f"{second},Eve,none of the above,0,0.1\n-1,Eve,row,{n_mistakes - 1},\n"
    )
    app = opened_wide(place, monkeypatch, "exchange")
    upload(app, "labels.csv", text)
    assert toasts(app) == ["5 answers stored"]
    found = [(e.region_id, e.annotator, e.label, e.sample_id, e.tau) for e in answers_of(place)]
    assert found == [
        (first, "Eve", 1, None, 0.5), (first, "Eve", 0, 3, 0.5), (first, "Eve", 2, 3, 0.5),
        (second, "Eve", None, 0, 0.1), (-1, "Eve", 0, n_mistakes - 1, 0.5),
    ]  # fmt: skip
    upload(settle(app), "again.csv", text)
    assert toasts(app) == ["0 answers stored, 5 were known already"]
    upload(settle(app), "more.csv", text.replace(",row,3,", ",column,3,").replace(",diagonal,3,", ",row,3,"))
    assert toasts(app) == ["2 answers stored, 3 were known already"]
    assert len(answers_of(place)) == 7
    assert answers_of(place)[-1].label == 0
    app = opened(place, monkeypatch, region=f"Region {first}", annotator="Eve")
    assert [(a["sample"], a["label"]) for a in board(app)["answers"]][-1] == (3, 0)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("l.csv", "region,annotator,label\n4,Eve,row\n99,Eve,row\n", "l.csv: line 3: there is no region 99"),
        (
            "l.csv",
            "region,annotator,label\n4,Eve,row\n4,Eve,cat\n",
            "l.csv: line 3: label must be one of row",
        ),
        ("l.csv", "region,label\n4,row\n", "l.csv: the CSV lacks the columns annotator"),
        ("l.csv", "region,annotator,label\n4,Eve,r\xf6w\n".encode("latin-1"), "l.csv is not text in UTF-8"),
        (
            "l.csv",
            "region,annotator,label,n_samples\n4,Eve,row,99999999999\n",
            "at most 10,000, got 99",
        ),
        ("L.JSON", "region,annotator,label\n4,Eve,row\n", "L.JSON: "),
        ("l.json", '[{"data": 5}]', "l.json: task 1: data must be an object"),
        (f"{NASTY}.csv", "", f"{NASTY}.csv: the CSV lacks"),
    ],
)
def test_a_file_with_a_mistake_is_told_in_one_message_and_not_stored(
    place: Place, monkeypatch: pytest.MonkeyPatch, file: str, content: str | bytes, problem: str
) -> None:
    app = opened_wide(place, monkeypatch, "exchange")
    upload(app, file, content)
    assert len(errors(app)) == 1
    assert problem in errors(app)[0]
    assert NASTY not in str(app.error[0].value)
    assert answers_of(place) == []
    assert not toasts(app)
    upload(settle(app), "good.csv", "region,annotator,label\n4,Eve,row\n")
    assert len(answers_of(place)) == 1
    assert not app.error


def test_answers_go_out_as_csv_as_they_are_at_the_click(
    labelled: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = latest(labelled, "distill")
    answer(forget_answers(labelled), ids_of(labelled)[0], [1, None], seconds=2.5)
    downloads = keep_downloads(monkeypatch)
    app = opened_wide(labelled, monkeypatch, "exchange")
    queue(app, item(app, 2, 0, seconds=3.0))  # after the button was shown
    content = downloads[f"labels-run{run.id}.csv"]()
    assert content == to_csv(answers_of(labelled), labelled.project.class_names).encode()
    rows = [line.split(",") for line in content.decode().splitlines()]
    assert [row[3] for row in rows] == ["label", "column", "none of the above", "row"]
    forget_answers(labelled)
    upload(app, "labels.csv", content)
    found = answers_of(labelled)
    assert [(e.sample_id, e.label, e.seconds) for e in found] == [(0, 1, 2.5), (1, None, 2.5), (2, 0, 3.0)]


def test_tasks_of_label_studio_carry_the_draws_that_were_labelled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, ids = source_of(place), ids_of(place)
    answer(place, ids[0], [1, 2], tau=0.1, n_samples=3)
    answer(place, ids[0], [0], by="Bob", tau=0.2, n_samples=2)
    answer(place, ids[1], [0], seed=SEED + 1)  # drawn elsewhere
    choose_tau(place, ids[2], 1.4)
    downloads = keep_downloads(monkeypatch)
    app = opened_wide(place, monkeypatch, "exchange", images="4")
    tasks = json.loads(downloads[f"label-studio-run{source.run.id}.json"]())
    wanted = {(ids[0], 0.1, 3), (ids[0], 0.2, 2), (ids[2], 1.4, 4), *((i, 0.5, 4) for i in ids[3:])}
    seen: dict[tuple[int, float, int], dict[int, dict[str, Any]]] = {}
    for task in tasks:
        data = task["data"]
        assert data["seed"] == SEED
        of_draws = seen.setdefault((data["region"], data["tau"], data["n_samples"]), {})
        of_draws[data["sample"]] = task
    assert seen.keys() == wanted
    vae, regions = source.vae(), {region.region_id: region for region in source.regions()}
    for (region, tau, n), of_draws in seen.items():
        images = draw_images(vae, regions[region], n, tau=tau, seed=SEED).permute(0, 2, 3, 1)
        assert sorted(of_draws) == list(range(n))
        pixels = [decode(of_draws[i]["data"]["image"]) for i in range(n)]
        np.testing.assert_array_equal(pixels, images)
    told_of = {
        (*subject, sample): [a["result"][0]["value"]["choices"] for a in task["annotations"]]
        for subject, of_draws in seen.items()
        for sample, task in of_draws.items()
        if task["annotations"]
    }
    assert told_of == {
        (ids[0], 0.1, 3, 0): [["column"]], (ids[0], 0.1, 3, 1): [["diagonal"]],
        (ids[0], 0.2, 2, 0): [["row"]],
    }  # fmt: skip
    assert downloads["label-studio.xml"]().decode() == label_studio_config(place.project.class_names)
    before = answers_of(place)
    upload(app, "export.json", json.dumps(tasks))
    assert toasts(app) == ["0 answers stored, 3 were known already"]
    assert answers_of(place) == before
    forget_answers(place)
    upload(settle(app), "export.json", json.dumps(tasks))
    assert toasts(app) == ["3 answers stored"]
    assert {(e.region_id, e.tau, e.sample_id, e.annotator, e.label) for e in answers_of(place)} == {
        (e.region_id, e.tau, e.sample_id, e.annotator, e.label) for e in before if e.seed == SEED
    }
    upload(settle(app), "export.json", json.dumps(tasks))
    assert toasts(app) == ["0 answers stored, 3 were known already"]


# Simulated annotators: the shipped of digits, or those trained on the project


@pytest.fixture(scope="module")
def digits_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of images of the size and with the names of digits, up to the regions."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    images = rng.integers(0, 40, (60, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 3 : 2 * label + 6] += 200
    folder = tmp_path_factory.mktemp("digits")
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:20], "y_test": labels[:20]}
    np.savez(folder / "digits.npz", class_names=np.array(list("0123456789")), **arrays)
    place = fresh_place(folder / "home", folder / "digits.npz")
    tiny = {"hidden_channels": 2, "depth": 3, "hidden_units": 8, "latent_dim": 2}
    done_here(place, "classifier", {"architecture": "mnist_cnn", "training": {"epochs": 1}})
    done_here(place, "vae", {**tiny, "training": {"epochs": 1}})
    done_here(place, "identify", {"n_perturbations": 2})
    done_here(place, "distill", {"n_components": 2})
    place.workspace.close()
    return folder / "home"


@pytest.fixture
def digits(digits_home: Path, tmp_path: Path) -> Iterator[Place]:
    place = copy_place(digits_home, tmp_path / "digits")
    yield place
    end_all(place)


def test_a_second_opinion_is_to_be_had_once_all_is_answered(
    digits: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(digits)
    region = source.regions()[0]
    mine: list[int | None] = [0, 8, 8, 3, None, 8, 8, 8, 8]
    answer(digits, region.region_id, mine)
    app = opened(digits, monkeypatch, region=f"Region {region.region_id}")
    assert not app.main.button
    assert "once you have answered every image" in told(app)
    queue(app, item(app, 9, 5))
    app = click(app, "Ask for a second opinion")
    images = draw_images(source.vae(), region, 10, tau=0.5, seed=SEED)
    answers = simulate_annotators(load_annotators(), images, region_id=region.region_id, threshold=0.5)
    theirs: list[list[str]] = [[] for _ in range(10)]
    for a in sorted(answers, key=lambda a: a.annotator):
        theirs[a.sample_id or 0].append("–" if a.label is None else str(a.label))
    yours = ["–" if label is None else str(label) for label in [*mine, 5]]
    opinions = tiles(app, "opinions")
    assert [tile["caption"] for tile in opinions] == [
        f"you {own}\nthey {' '.join(votes)}" for own, votes in zip(yours, theirs, strict=True)
    ]
    np.testing.assert_array_equal([t["images"][0] for t in opinions], images.permute(0, 2, 3, 1))
    same = sum(
        all(votes.count(own) > votes.count(other) for other in {*votes} - {own}) and own in votes
        for own, votes in zip(yours, theirs, strict=True)
    )
    who = "five small networks that were trained on all of MNIST"
    assert f"the majority of {who} agrees with you on {same} of 10" in words(told(app))
    assert {e.annotator for e in answers_of(digits)} == {ME}  # it does not count


@pytest.mark.timeout(120)
def test_the_second_opinion_is_that_of_annotators_trained_on_other_images(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = done_here(place, "annotators", {"training": {"epochs": 3}})
    source = source_of(place)
    region = source.regions()[0]
    answer(place, region.region_id, [1] * 10)
    app = opened(place, monkeypatch, region=f"Region {region.region_id}")
    app = click(app, "Ask for a second opinion")
    trained = {
        name.removesuffix(".safetensors"): source.build(
            *load_tensors(place.workspace.artifact_path(run.id, name))
        )
        for name in place.workspace.runs.artifacts(run.id)
        if ".said" not in name
    }
    assert len(trained) == 5
    images = draw_images(source.vae(), region, 10, tau=0.5, seed=SEED)
    answers = simulate_annotators(trained, images, region_id=region.region_id, threshold=0.5)
    theirs: list[list[str]] = [[] for _ in range(10)]
    for a in sorted(answers, key=lambda a: a.annotator):
        theirs[a.sample_id or 0].append("–" if a.label is None else place.project.class_names[a.label])
    assert [tile["caption"] for tile in tiles(app, "opinions")] == [
        f"you {place.project.class_names[1]}\nthey {' '.join(votes)}" for votes in theirs
    ]
    assert {vote for votes in theirs for vote in votes} != {"–"}, "they do answer"
    assert f"the majority of the five networks of run {run.id} agrees with you on " in words(told(app))
    assert {e.annotator for e in answers_of(place)} == {ME}  # it does not count


def test_annotators_of_the_project_go_before_the_shipped(
    digits: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(digits, "annotators", {"shipped": True})
    digits.workspace.runs.finish(run.id, "done", summary={})
    told_there = told(opened_wide(digits, monkeypatch, "exchange"))
    assert f"The five networks of run {run.id} can label every region" in words(told_there)
    assert "trained on all of MNIST" not in told_there


def test_the_simulated_annotators_label_by_a_run(digits: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = click(opened_wide(digits, monkeypatch, "exchange"), "Let them label")
    run = latest(digits, "annotate")
    assert run.live
    assert run.config == check_config("annotate", {}).model_dump(mode="json")
    assert latest(digits, "distill").id in run.upstream
    app.session_state["exchange-open"] = True
    settle(app.run())
    assert "The simulated annotators are running" in told(app)
    assert not app.main.button


def test_simulated_annotators_are_not_offered_for_other_images(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(place, ids_of(place)[0], [1] * 10)
    app = opened_wide(place, monkeypatch, "exchange", region=f"Region {ids_of(place)[0]}")
    assert metrics(app) == {"Error": "100%"}
    assert not app.main.button
    assert "simulated" not in told(app)


# Text


def test_names_that_are_markup_are_shown_as_text(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nasty, region = give_nasty_names(place, tmp_path), ids_of(place)[0]
    answer(nasty, region, [0] * 10, by=NASTY)
    answer(nasty, region, [0] * 10)
    edit = RegionEdit("rename", (region,), name=NASTY)
    place.workspace.annotations.edit(latest(nasty, "distill").id, edit)
    app = opened_wide(nasty, monkeypatch, "agreement", annotator=NASTY, region=f"Region {region} · {NASTY}")
    given = board(app)
    assert given["subject"]["annotator"] == NASTY
    assert [c["name"] for c in given["classes"]] == nasty.project.class_names
    assert {image["said"] for image in given["images"]} == {nasty.project.class_names[2]}
    assert progress(app) == f"1 of {len(ids_of(place))} regions labelled by {NASTY}, first pass"
    assert f"Label: {NASTY}, fits 10 of 10 draws. By the paper's rule" in words(told(app))
    assert f"{NASTY}, {ME} on 10 draws" in words(told(app))
    assert NASTY not in told(app)  # escaped, so that it is shown as it is
    assert NASTY not in app.main.get("progress")[0].proto.text
    assert not has_markup(app)
    assert app.selectbox(key="region").value == str(region)
