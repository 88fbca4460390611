"""One set of answers, and what every page and file says of it: which regions are failures, and how surely.

The answers are of every kind: all wrong, most wrong, most right, a tie of two labels, none of the above, and
two annotators who disagree on every draw.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from defuse_core.method.classifier import predict
from defuse_core.method.labeling import draw_images
from defuse_core.report.evidence import read_evidence
from defuse_core.report.verdicts import tell_failures
from defuse_core.steps.source import Source
from defuse_core.workspace.labels import LabelEvent
from tests.apps import (
    component,
    figure,
    forget_answers,
    keep_downloads,
    latest,
    metrics,
    open_page,
    told,
    words,
)
from tests.in_process import done_here
from tests.workspaces import Place, copy_place

pytestmark = pytest.mark.usefixtures("runs_wait")

Way = Callable[[list[int]], Sequence[int | None]]
WORDS = "3 failures, 2 of them sure"
SWEEP: dict[str, Any] = {
    "correction": {"lambdas": [1.0], "epochs": 1, "instances_per_region": 16, "precision": "fp32"},
    "baseline_lambdas": [],
}


@dataclass(frozen=True)
class Told:
    """The workspace, and by region what is to be said of it and of its label."""

    home: Path
    statuses: dict[int, str]
    labels: dict[int, str]
    answers: dict[int, list[int | None]]

    def place(self, folder: Path) -> Place:
        """A copy of one's own."""
        return copy_place(self.home, folder / "home")


def wrong(said: int) -> int:
    return (said + 1) % 3


def answer(place: Place) -> Told:
    """Answer six regions, each in its way: by what the classifier says of each draw."""
    run = latest(place, "distill")
    source, names = Source(place.workspace, run.id), place.project.class_names
    alike: list[tuple[str, Way]] = [  # of regions whose draws are all predicted alike
        ("failure, sure", lambda said: [wrong(c) for c in said]),
        ("failure, not sure", lambda said: [wrong(c) for c in said[:7]] + said[7:]),
        ("failure, sure", lambda said: [wrong(c) if n % 2 else wrong(wrong(c)) for n, c in enumerate(said)]),
    ]
    others: list[tuple[str, Way]] = [
        ("not a failure, not sure", lambda said: [wrong(c) for c in said[:3]] + said[3:]),
        ("none of the above", lambda said: [None] * len(said)),
        ("undecided", lambda said: [*said]),
    ]
    events, statuses, labels, answers = [], {}, {}, {}
    for region in source.regions():
        i, images = region.region_id, draw_images(source.vae(), region, 10, tau=0.5, seed=0)
        said = predict(source.classifier(), images).tolist()
        ways = alike if len(set(said)) == 1 and alike else others
        if not ways:
            continue
        statuses[i], way = ways.pop(0)
        answers[i] = list(way(said))
        labels[i] = "" if statuses[i] in ("none of the above", "undecided") else label_of(answers[i], names)
        events += [LabelEvent(i, "Ada", label, n) for n, label in enumerate(answers[i])]
        if statuses[i] == "undecided":
            events += [LabelEvent(i, "Bob", wrong(c), n) for n, c in enumerate(said)]
    assert len(statuses) == 6
    place.workspace.annotations.append(run.id, events)
    return Told(place.workspace.home, statuses, labels, answers)


def label_of(answers: list[int | None], names: Sequence[str]) -> str:
    """What is to be said of the label of a region."""
    (first, n), *rest = Counter(answers).most_common()
    tied = bool(rest) and rest[0][1] == n
    return "no label: the most frequent ones tie" if tied else f"{names[first or 0]}, fits {n} of 10 draws"


def label_told(row: dict[str, Any]) -> str:
    """What a row of a table says of its label, in the same words."""
    if row["label"] == "none: a tie":
        return "no label: the most frequent ones tie"
    return f"{row['label']}, fits {row['label fits']} draws" if row["label"] else ""


@pytest.fixture(scope="module")
def answered(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The workspace with these answers, and all that is made of them."""
    place = forget_answers(copy_place(template, tmp_path_factory.mktemp("truth") / "home"))
    truth = answer(place)
    done_here(place, "correct", SWEEP)
    done_here(place, "evaluate", {"n_nearest": 2, "noise_images": 0, "controls": False})
    done_here(place, "report")
    place.workspace.close()
    return truth


def page(place: Place, monkeypatch: pytest.MonkeyPatch, name: str, **query: str) -> AppTest:
    return open_page(place.workspace.home, monkeypatch, name, project=place.project.name, **query)


def test_the_page_regions_and_its_file(
    answered: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, files = answered.place(tmp_path), keep_downloads(monkeypatch)
    app = page(place, monkeypatch, "regions")
    assert f"{WORDS}." in told(app)
    assert metrics(app)["Failures"] == "3"
    table = pd.read_csv(io.BytesIO(files[f"regions-run{latest(place, 'distill').id}.csv"]()))
    for row in table.fillna("").to_dict("records"):
        said = ", ".join(filter(None, (row["status"], row["sure"])))
        assert said == answered.statuses.get(row["region"], "unlabelled")
        assert label_told(row) == answered.labels.get(row["region"], "")


def test_the_page_label(answered: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = answered.place(tmp_path)
    for region, status in answered.statuses.items():
        app = page(place, monkeypatch, "label", region=f"Region {region}", annotator="Ada")
        assert f" **{status}**" in told(app)
        if answered.labels[region]:
            assert answered.labels[region].lower() in words(told(app)).lower()


def test_the_page_correct(answered: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(answered.place(tmp_path), monkeypatch, "correct")
    assert f"{WORDS}; 1 without a label, since the most frequent ones tie" in told(app)
    (shown,) = [
        frame.value for frame in (*app.dataframe, *app.get("arrow_data_frame")) if "goes in" in frame.value
    ]
    going = {i for i, status in answered.statuses.items() if status.startswith("failure")}
    going = {i for i in going if not answered.labels[i].startswith("no label")}
    assert set(shown["region"]) == going
    for row in shown.to_dict("records"):
        assert row["status"] == answered.statuses[row["region"]]
        assert label_told(row) == answered.labels[row["region"]]
    others = [status for status in answered.statuses.values() if not status.startswith("failure")]
    assert f"{len(others)} more regions are labelled, and stay out" in told(app)
    assert all(f"1 {status}" in told(app) for status in others)


def test_the_slides(answered: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = answered.place(tmp_path)
    app = page(place, monkeypatch, "present")
    given = component(app, f"show-{latest(place, 'distill').id}")["slides"]
    slides = {slide["key"]: slide for slide in given}
    assert slides["found"]["text"] == f"{WORDS}."
    assert [figure["value"] for figure in slides["found"]["figures"]][-1] == "3"
    failures = {i for i, status in answered.statuses.items() if status.startswith("failure")}
    assert {key for key in slides if key.startswith("region-")} == {f"region-{i}" for i in failures}
    names = place.project.class_names
    for i in failures:
        slide = slides[f"region-{i}"]
        assert slide["over"].endswith(answered.statuses[i].removeprefix("failure, "))
        for panel in slide["panels"]:  # tick and cross by each image's own answer
            expected = [
                names.index(one["text"]) == own
                for one, own in zip(panel["said"], answered.answers[i], strict=True)
            ]
            assert [one["right"] for one in panel["said"]] == expected
        if answered.labels[i].startswith("no label"):
            assert "no clear majority, so no label" in slide["facts"][0]["note"]
        else:
            fit = answered.labels[i].partition(", ")[2]
            assert all(fit in panel["figure"]["note"] for panel in slide["panels"])


def test_the_page_evidence_and_its_file(
    answered: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, files = answered.place(tmp_path), keep_downloads(monkeypatch)
    app = page(place, monkeypatch, "evidence")
    assert f"{WORDS}." in told(app)
    run = latest(place, "evaluate").id
    (name,) = [name for name in files if name.endswith("by-region.csv")]
    table = pd.read_csv(io.BytesIO(files[name]()))
    for row in table.to_dict("records"):
        assert row["status"] == answered.statuses[row["region"]]
        fit = f"fits {row['label_fits']} of {row['labelled_draws']} draws"
        assert answered.labels[row["region"]] == f"{row['label']}, {fit}"
    evidence = read_evidence(place.workspace, run)
    assert np.isnan(evidence.share).sum() == 50  # one annotator agrees with nobody
    assert evidence.unanimous is not None
    assert (evidence.unanimous.estimate, evidence.unanimous.n) == (0.0, 10)
    assert "by the one label of each, which fits 17 of 20 draws that were labelled" in told(app)
    assert [sum(figure(app, f"figure7-{run}")["data"][0]["y"])] == [10]
    assert "n = 10 draws with two answers or more" in words(told(app))
    assert "**All agree on 0\xa0%** of the draws" in told(app)


def test_the_report(answered: Told, tmp_path: Path) -> None:
    place = answered.place(tmp_path)
    path = place.workspace.artifact_path(latest(place, "report").id, "report.html")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", path.read_text())).replace("\u00a0", " ")
    assert WORDS in text
    assert "weak spot" not in text
    assert "(it fits 17 of 20 labelled pictures)" in text
    assert "1 of them was left out of the repair" in text
    assert "n = 10 pictures with two answers or more" in text
    assert not re.search(r"\bnan\b", text)
    for i, label in answered.labels.items():
        if answered.statuses[i].startswith("failure") and not label.startswith("no label"):
            assert f"Region {i} · {answered.statuses[i]} ·" in text
            assert f"right by a label that {label.partition(', ')[2].replace('draws', 'pictures')}" in text
    results = json.loads(
        place.workspace.artifact_path(latest(place, "report").id, "results.json").read_text()
    )
    assert tell_failures(results["failure_regions"], results["sure_failures"]) == WORDS


def test_rho_of_the_project_counts_on_every_page(
    answered: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = answered.place(tmp_path)
    done_here(place, "correct", {**SWEEP, "disagreement_threshold": 0.71})
    assert "2 failures, 2 of them sure." in told(page(place, monkeypatch, "regions"))
    (seven,) = [i for i, status in answered.statuses.items() if status == "failure, not sure"]
    app = page(place, monkeypatch, "label", region=f"Region {seven}", annotator="Ada")
    assert " **not a failure, not sure**" in told(app)
    assert "more than ρ = 0.71 misclassified" in told(app)
    app = page(place, monkeypatch, "correct")
    assert "2 failures, 2 of them sure; 1 without a label" in told(app)
