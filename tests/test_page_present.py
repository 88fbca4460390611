"""The page of the presentation in each of its states, without a browser."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from defuse_core.base.checkpoints import dump_tensors
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.labeling import draw_images
from defuse_core.steps.source import Source
from defuse_core.workspace.edits import RegionEdit
from defuse_core.workspace.labels import LabelEvent
from tests.apps import (  # fmt: skip
    NASTY,
    component,
    decode,
    forget_answers,
    give_nasty_names,
    has_markup,
    latest,
    opener,
    told,
    words,
)
from tests.in_process import done_here, fresh_place, store_run
from tests.workspaces import Place, copy_place

opened = opener("present")

SWEEP = {
    "correction": {"lambdas": [1.0], "epochs": 1, "instances_per_region": 8, "precision": "fp32"},
    "baseline_lambdas": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def corrected(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of the workspace of shapes with a correction; take a copy."""
    place = copy_place(template, tmp_path_factory.mktemp("corrected") / "home")
    done_here(place, "correct", SWEEP)
    place.workspace.close()
    return place.workspace.home


def deck(app: AppTest, place: Place) -> dict[str, dict[str, Any]]:
    """The slides that the browser gets, by key."""
    given = component(app, f"show-{latest(place, 'distill').id}")
    return {slide["key"]: slide for slide in given["slides"]}


def failures(place: Place) -> dict[int, int]:
    """Label of every region of which most draws are misclassified, by answers and predictions."""
    source, found = Source(place.workspace, latest(place, "distill").id), {}
    for region in source.regions():
        said = predict(source.classifier(), draw_images(source.vae(), region, 10, tau=0.5, seed=0))
        events = [e for e in source.labels(up_to=None) if e.region_id == region.region_id]
        answers = torch.tensor([e.label for e in sorted(events, key=lambda e: e.sample_id or 0)])
        if (answers != said).sum() > 5:
            found[region.region_id] = int(answers.mode().values)
    return found


def test_the_slides_follow_the_lambda_that_is_chosen(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copy_place(corrected, tmp_path / "home")

    def said() -> list[list[list[str]]]:
        """Of every region, what is said of its draws before and after."""
        slides = [slide for key, slide in deck(opened(place, monkeypatch), place).items() if "region-" in key]
        return [[[one["text"] for one in panel["said"]] for panel in slide["panels"]] for slide in slides]

    assert any(before != after for before, after in said())
    run, weights = latest(place, "correct"), place.tensors(latest(place, "classifier"))
    content = dump_tensors(
        weights["classifier.safetensors"], metadata={"point": {}}
    )  # as if λ had done nothing
    artifact = place.workspace.store_artifact(run.id, "corrected.safetensors", content)
    place.workspace.runs.name_artifact(run.id, artifact)
    assert all(before == after for before, after in said())


def test_a_further_round_leaves_the_labelled_one_to_present(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copy_place(corrected, tmp_path / "home")
    labelled = latest(place, "distill")
    store_run(place, "distill", {"regions": [], "converged": True, "iterations": 1})
    app = opened(place, monkeypatch)
    assert component(app, f"show-{labelled.id}")["slides"]


def test_without_regions_or_labels_the_page_leads_there(
    tmp_path: Path, template: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(fresh_place(tmp_path / "fresh", template.parent / "shapes.npz"), monkeypatch)
    assert [info.value for info in app.info] == ["Needs regions first."]
    assert [link.proto.page for link in app.page_link] == ["regions"]
    app = opened(forget_answers(place), monkeypatch)
    assert app.info[0].value.startswith("Label regions first")
    assert [link.proto.page for link in app.page_link] == ["label"]
    assert not app.get("bidi_component")


def test_without_a_failure_the_page_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run, source = latest(place, "distill"), Source(place.workspace, latest(place, "distill").id)
    forget_answers(place)
    region = source.regions()[0]
    said = predict(source.classifier(), draw_images(source.vae(), region, 10, tau=0.5, seed=0)).tolist()
    place.workspace.annotations.append(
        run.id, [LabelEvent(region.region_id, "Ada", label, i) for i, label in enumerate(said)]
    )
    app = opened(place, monkeypatch)
    assert [info.value for info in app.info] == [
        "None of the labelled regions is a failure. Label more of them."
    ]
    assert list(deck(app, place)) == ["title", "found", "limits"]
    assert [figure["value"] for figure in deck(app, place)["found"]["figures"]][-1] == "0"


def test_labelled_regions_are_shown_as_they_are_worst_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(place, monkeypatch)
    shown, wanted = deck(app, place), failures(place)
    regions = {int(key.removeprefix("region-")): shown[key] for key in shown if key.startswith("region-")}
    assert wanted
    assert regions.keys() == wanted.keys()
    shares = [slide["panels"][0]["figure"]["bars"][0][0] for slide in regions.values()]
    assert shares == sorted(shares)
    assert list(shown)[:2] + list(shown)[-1:] == ["title", "found", "limits"]
    source = Source(place.workspace, latest(place, "distill").id)
    names = place.project.class_names
    for region in source.regions():
        if (slide := regions.get(region.region_id)) is None:
            continue
        images = draw_images(source.vae(), region, 10, tau=0.5, seed=0)
        pixels = np.stack([decode(url) for url in slide["images"]])
        np.testing.assert_array_equal(pixels, images.permute(0, 2, 3, 1).numpy())
        (panel,) = slide["panels"]
        said = [names[i] for i in predict(source.classifier(), images).tolist()]
        assert [one["text"] for one in panel["said"]] == said
        assert slide["facts"][0]["value"] == names[wanted[region.region_id]]
        assert [one["right"] for one in panel["said"]] == [
            text == slide["facts"][0]["value"] for text in said
        ]
    assert "Nothing is corrected yet" in told(app)


def tuned(place: Place) -> Classifier:
    """The corrected classifier, put together by hand."""
    source = Source(place.workspace, latest(place, "correct").id)
    classifier = source.classifier()
    classifier.network.load_state_dict(place.tensors(latest(place, "correct"))["corrected.safetensors"])
    return classifier.eval()


def test_a_correction_shows_after_what_the_corrected_classifier_says(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copy_place(corrected, tmp_path / "home")
    app = opened(place, monkeypatch)
    shown, run = deck(app, place), latest(place, "correct")
    source = Source(place.workspace, run.id)
    tensors, classifiers = place.tensors(run)["failures.safetensors"], (source.classifier(), tuned(place))
    regions = {region.region_id: region for region in source.regions()}
    checked = 0
    for region_id in tensors["test.ids"].unique().tolist():
        slide, here = shown[f"region-{region_id}"], tensors["test.ids"] == region_id
        draws = draw_images(source.vae(), regions[region_id], 10, tau=0.5, seed=0)
        for panel, classifier in zip(slide["panels"], classifiers, strict=True):
            said = [place.project.class_names[i] for i in predict(classifier, draws).tolist()]
            assert [one["text"] for one in panel["said"]] == said
            right = predict(classifier, tensors["test.images"][here]) == tensors["test.labels"][here]
            assert panel["figure"]["bars"][0][0] == pytest.approx(right.float().mean().item())
            assert f"n = {len(right)} fresh draws" in panel["figure"]["note"]
        checked += 1
    assert checked == len(failures(place))
    regions_change, test_change = shown["trade-off"]["figures"]
    right = predict(classifiers[0], tensors["test.images"]) == tensors["test.labels"]
    assert regions_change["bars"][0][0] == pytest.approx(right.float().mean().item())
    chosen = run.summary["corrected"]["chosen"]
    assert [bars["bars"][1][0] for bars in (regions_change, test_change)] == [
        chosen["region"][0], chosen["test"][0],
    ]  # fmt: skip
    test = source.dataset.test
    was, now = (predict(classifier, test.images) == test.labels for classifier in classifiers)
    assert test_change["bars"][0][0] == pytest.approx(was.float().mean().item())
    assert [figure["value"] for figure in shown["cost"]["figures"]] == [
        str(int((~was & now).sum())), str(int((was & ~now).sum())),
    ]  # fmt: skip
    assert not app.warning


def test_an_evaluation_is_quoted_and_a_correction_of_older_labels_is_said_to_be_one(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copy_place(corrected, tmp_path / "home")
    first = next(iter(failures(place)))
    run = store_run(place, "evaluate", {})
    measured = {"before": [0.25, 0.1, 0.5, 40], "after": [0.5, 0.3, 0.7, 40]}
    quoted = {
        "by_region": [{"region_id": first, "held_out": False, **measured}],
        "nearest": {"pooled": {"before": [0.625, 0.3, 0.8, 8], "after": [0.75, 0.4, 0.9, 8]}},
        "still_correct_after_reconstruction": 0.871, "label_agreement": 0.432,
    }  # fmt: skip
    stored = place.workspace.store_artifact(run.id, "results.json", json.dumps(quoted).encode())
    place.workspace.runs.name_artifact(run.id, stored)
    labels = [LabelEvent(r.region_id, "Grace", 0, 0) for r in Source(place.workspace, run.id).regions()[:1]]
    place.workspace.annotations.append(latest(place, "distill").id, labels)
    app = opened(place, monkeypatch)
    shown = deck(app, place)
    before, after = shown[f"region-{first}"]["panels"]
    assert (before["figure"]["bars"], after["figure"]["bars"]) == ([[0.25, 0.1, 0.5]], [[0.5, 0.3, 0.7]])
    limits = " ".join(shown["limits"]["points"]).replace("\u00a0", " ")
    assert "87 %" in limits
    assert "43 %" in limits
    assert (
        "8 real test images nearest to these regions: 62 % classified correctly before, 75 % after" in limits
    )
    assert "changed since the correction" in limits
    assert [warning.value for warning in app.warning] == ["Labels or data have changed since the correction."]


def test_a_correction_of_other_regions_is_not_told(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copy_place(corrected, tmp_path / "home")
    labelled = latest(place, "distill")
    again = done_here(place, "distill", {"n_components": 12}, seed=0)  # the same regions, without the labels
    place.workspace.annotations.append(
        again.id,
        [
            dataclasses.replace(event, id=0, key=None)
            for event in place.workspace.annotations.counting(labelled.id)
        ],
    )
    app = opened(place, monkeypatch)
    assert "trade-off" not in deck(app, place)
    assert "Nothing is corrected yet" in told(app)


def test_names_that_are_markup_are_shown_as_they_are(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nasty = give_nasty_names(place, tmp_path)
    region = next(iter(failures(nasty)))
    edit = RegionEdit("rename", (region,), name=NASTY[:60], by="Ada")
    nasty.workspace.annotations.edit(latest(nasty, "distill").id, edit)
    app = opened(nasty, monkeypatch)
    shown = deck(app, nasty)
    assert shown["title"]["title"] == NASTY
    assert shown[f"region-{region}"]["title"] == NASTY[:60]
    assert not has_markup(app)
    assert NASTY not in told(app)
    assert NASTY in words(told(app))
