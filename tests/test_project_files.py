"""A project taken along and brought back on the overview, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from defuse_core.workspace.workspace import Workspace
from tests.apps import errors, keep_downloads, open_page, settle, toasts, told
from tests.in_process import add_run, end_all
from tests.workspaces import Place


@pytest.fixture
def packed(place: Place, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The project of shapes as the overview exports it."""
    kept = keep_downloads(monkeypatch)
    open_page(place.workspace.home, monkeypatch, "overview")
    return kept["shapes.defuse.zip"]()


def bring(app: AppTest, name: str, content: bytes) -> AppTest:
    """Upload a file as the project's."""
    app.file_uploader[-1].upload(name, content, "application/zip").run()
    return settle(app)


def test_a_project_comes_back_whole_in_another_workspace(
    packed: bytes, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    app = open_page(elsewhere, monkeypatch, "overview")
    app.text_input(key="import-data").set_value(place.project.dataset["source"]).run()
    app = bring(app, "shapes.zip", packed)
    assert not errors(app)
    assert toasts(app) == ["Project shapes is here"]
    workspace = Workspace(elsewhere)
    (project,) = workspace.projects()
    assert app.session_state["project"] == project.name == "shapes"
    before, after = (
        [(r.step, r.status, r.summary) for r in w.runs.of_project(p.id)]
        for w, p in ((place.workspace, place.project), (workspace, project))
    )
    assert after == before
    assert not list(elsewhere.glob("tmp*"))  # nothing is left of the upload


def test_data_of_another_machine_are_asked_for(
    packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = bring(open_page(tmp_path / "elsewhere", monkeypatch, "overview"), "shapes.zip", packed)
    assert not errors(app)
    (toast,) = toasts(app)
    assert toast.startswith("Project shapes is here; its data set was ")
    assert toast.endswith("delete the project, and import it again: Its images")


def test_a_name_that_is_taken_asks_for_another(
    packed: bytes, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_page(place.workspace.home, monkeypatch, "overview")
    app = bring(app, "shapes.zip", packed)
    (error,) = errors(app)
    assert error.startswith("shapes.zip: ")
    assert error.endswith("give another one: Call it")
    assert len(place.workspace.projects()) == 1
    app.text_input(key="import-name").set_value("again").run()
    app = bring(app, "shapes.zip", packed)
    assert not errors(app)
    assert [p.name for p in place.workspace.projects()] == ["shapes", "again"]


def test_what_is_no_project_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = bring(open_page(tmp_path / "home", monkeypatch, "overview"), "holiday.zip", b"no archive")
    (error,) = errors(app)
    assert error.startswith("holiday.zip: ")
    assert not Workspace(tmp_path / "home").projects()


def test_a_project_at_work_is_exported_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(place, "control")
    app = open_page(place.workspace.home, monkeypatch, "overview")
    assert f"Run {run.id} is under way" in told(app)
    end_all(place)
