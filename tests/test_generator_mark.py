"""A generator that is too blurry to search with: asked about before the search, told of all its results."""

from __future__ import annotations

from dataclasses import replace

import pytest

from defuse_core.report.generator import USABLE, mark_of, still_correct, tell_unusable
from tests.apps import component, latest, open_page, told
from tests.in_process import store_run
from tests.workspaces import Place

pytestmark = pytest.mark.usefixtures("runs_wait")
MARK = "The generator is too blurry: of the images classified correctly, 7"


def measure(place: Place, share: float) -> None:
    """As if ε = 0 had been measured like this."""
    store_run(place, "control", {"control": {"train": [share, 0.0, 1.0, 100]}, "by_class": {"train": []}})


def test_a_search_with_it_starts_only_once_it_is_confirmed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(place, 0.07)
    before = latest(place, "identify").id
    app = open_page(place.workspace.home, monkeypatch, "identify", project=place.project.name)
    assert any(MARK in error.value for error in app.error)
    (start,) = [button for button in app.button if button.label == "Start"]
    assert start.disabled
    (confirm,) = [box for box in app.checkbox if box.label.startswith("Search all the same")]
    confirm.check().run()
    (start,) = [button for button in app.button if button.label == "Start"]
    assert not start.disabled
    start.click().run()
    assert latest(place, "identify").id > before


@pytest.mark.parametrize("share", [0.8, 0.94])
def test_a_usable_one_is_not_asked_about(place: Place, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    measure(place, share)
    app = open_page(place.workspace.home, monkeypatch, "identify", project=place.project.name)
    assert not [box for box in app.checkbox if box.label.startswith("Search all the same")]
    assert "too blurry" not in told(app)
    assert tell_unusable(share) == tell_unusable(None) == ""
    assert tell_unusable(USABLE - 0.001)


@pytest.mark.parametrize("page", ["identify", "regions", "label"])
def test_what_it_found_carries_the_mark(place: Place, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    measure(place, 0.07)
    app = open_page(place.workspace.home, monkeypatch, page, project=place.project.name)
    assert any(MARK in warning.value for warning in app.warning)


def test_the_slides_carry_the_mark(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(place, 0.07)
    app = open_page(place.workspace.home, monkeypatch, "present", project=place.project.name)
    slides = {
        slide["key"]: slide for slide in component(app, f"show-{latest(place, 'distill').id}")["slides"]
    }
    assert MARK in slides["found"]["text"]
    assert slides["limits"]["points"][0].startswith(MARK)


def test_the_mark_is_of_the_generator_that_was_searched_with(place: Place) -> None:
    search, store = latest(place, "distill"), place.workspace
    assert mark_of(store, search) == ""  # nothing is measured
    measure(place, 0.07)
    assert MARK in mark_of(store, search)
    measure(place, 0.9)  # measured again
    assert mark_of(store, search) == ""
    ground = store.runs.ancestry(search.id)
    other = replace(ground["classifier"], id=10_000)  # a corrected one, which was not measured by itself
    assert still_correct(store, other, ground["vae"]) == 0.9
    assert still_correct(store, ground["classifier"], replace(ground["vae"], id=10_000)) is None
