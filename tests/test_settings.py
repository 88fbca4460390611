"""The project's own ρ and τ: of its newest runs, else those of the paper for such images."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from defuse_core.base.config import LabelingConfig
from defuse_core.workspace.label_files import from_csv
from defuse_core.workspace.settings import labeling_of, with_settings
from tests.apps import component, open_page
from tests.in_process import add_run
from tests.workspaces import Place

pytestmark = pytest.mark.usefixtures("runs_wait")


def coloured(place: Place) -> Place:
    """The same project, as if its images had colours."""
    dataset = {**place.project.dataset, "image_shape": [3, 8, 8]}
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as connection, connection:
        connection.execute("UPDATE projects SET dataset = ?", (json.dumps(dataset),))
        connection.execute("DELETE FROM annotations")
    return Place(place.workspace, place.workspace.project(place.project.id))


def test_they_are_the_papers_until_a_run_says_otherwise(place: Place) -> None:
    store = place.workspace
    assert labeling_of(store, place.project) == LabelingConfig()
    assert labeling_of(store, coloured(place).project) == LabelingConfig(tau=0.01)
    add_run(place, "annotate", {"labeling": {"tau": 0.2, "disagreement_threshold": 0.4}})
    assert labeling_of(store, place.project) == LabelingConfig(tau=0.2, disagreement_threshold=0.4)
    add_run(place, "correct", {"disagreement_threshold": 0.3})
    assert labeling_of(store, place.project) == LabelingConfig(tau=0.2, disagreement_threshold=0.3)


@pytest.mark.parametrize(
    ("step", "config", "expected"),
    [
        ("correct", {}, {"disagreement_threshold": 0.3}),
        ("correct", {"disagreement_threshold": 0.6}, {"disagreement_threshold": 0.6}),
        ("annotate", {"n_single": 3}, {
            "n_single": 3, "labeling": {"n_samples": 10, "tau": 0.5, "disagreement_threshold": 0.3},
        }),
        ("annotate", {"labeling": {"tau": 0.1}}, {
            "labeling": {"n_samples": 10, "tau": 0.1, "disagreement_threshold": 0.3},
        }),
        ("identify", {"noise_a": 75.0}, {"noise_a": 75.0}),
    ],
)  # fmt: skip
def test_they_fill_in_what_a_config_leaves_open(
    place: Place, step: Any, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    add_run(place, "correct", {"disagreement_threshold": 0.3})
    assert with_settings(place.workspace, place.project, step, config) == expected


def test_photographs_are_labelled_at_their_own_tau(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place = coloured(place)
    app = open_page(place.workspace.home, monkeypatch, "label", project=place.project.name)
    assert component(app, "board")["subject"]["tau"] == 0.01
    text = "region,annotator,label\n0,Ada,row\n"
    (event,) = from_csv(text, place.project.class_names, [0], tau=0.01)
    assert event.tau == 0.01
