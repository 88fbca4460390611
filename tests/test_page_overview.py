"""The shell and the overview, empty and filled, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import cache
from defuse_core.workspace import Workspace
from tests.workspaces import Place, eventually

APP = str(Path(__file__).resolve().parent.parent / "dashboard" / "app.py")


@pytest.fixture(autouse=True)
def _fresh_caches() -> None:
    """The workspace is held once a process; each test has one of its own."""
    cache.workspace.clear()


def open_app(home: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("DEFUSE_HOME", str(home))
    app = AppTest.from_file(APP, default_timeout=30).run()
    assert not app.exception
    return app


def texts(app: AppTest) -> str:
    return "\n".join(str(m.value) for m in [*app.markdown, *app.caption])


def test_an_empty_workspace_offers_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_app(tmp_path / "home", monkeypatch)
    assert [b.label for b in app.button] == ["Create", "Open the demo"]
    assert app.sidebar.selectbox[0].disabled


def test_the_demo_is_one_click(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_app(tmp_path / "home", monkeypatch)
    next(b for b in app.button if b.label == "Open the demo").click().run()
    assert not app.exception
    assert app.sidebar.selectbox[0].value == "demo"
    workspace = Workspace(tmp_path / "home")
    (project,) = workspace.projects()
    eventually(
        lambda: [r.status for r in workspace.runs.of_project(project.id)] == ["done", "done"], seconds=60
    )
    app.run()
    assert {m.label: m.value for m in app.metric}["Test accuracy"] == "0.960"
    assert "Next: identify" in [b.label for b in app.button]
    assert "**Classifier** · done" in texts(app)
    assert "**Mistakes** · missing" in texts(app)


def test_a_filled_project_is_shown_in_numbers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_app(place.workspace.home, monkeypatch)
    next(b for b in app.button if b.label == "Open").click().run()
    shown = {m.label: m.value for m in app.metric}
    mistakes = place.workspace.runs.latest(place.project.id, "identify")
    regions = place.workspace.runs.latest(place.project.id, "distill")
    assert mistakes is not None
    assert regions is not None
    assert shown["Mistakes"] == f"{sum(mistakes.summary['mistakes'].values()):,}"
    n = len(regions.summary["regions"])
    assert shown["Regions labelled"] == f"{n} of {n}"
    assert shown["Regions after correction"] == "–"
    assert "**Labels** · done" in texts(app)
    assert "Next: correct" in [b.label for b in app.button]


def test_the_next_step_starts_a_run_which_the_sidebar_cancels_and_resumes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_app(place.workspace.home, monkeypatch)
    next(b for b in app.button if b.label == "Next: correct").click().run()
    assert not app.exception
    run = place.workspace.runs.of_project(place.project.id, "correct")[-1]
    eventually(lambda: place.get(run).status == "running", seconds=30)
    app.run()
    assert "**Correction** · running" in texts(app)
    next(b for b in app.sidebar.button if b.label == "Cancel").click().run()
    assert place.get(run).status == "cancelled"
    assert "**Correction** · cancelled" in texts(app)
    next(b for b in app.sidebar.button if b.label == "Resume").click().run()
    assert place.get(run).live
    next(b for b in app.sidebar.button if b.label == "Cancel").click().run()


def test_errors_of_a_new_project_are_shown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_app(place.workspace.home, monkeypatch)
    app.text_input[0].set_value("shapes")
    app.text_input[1].set_value("/nowhere.npz")
    next(b for b in app.button if b.label == "Create").click().run()
    assert "/nowhere.npz does not exist; check the path" in app.error[0].value
    app.text_input[0].set_value("<img src=x onerror=alert(1)>")
    app.text_input[1].set_value("digits")
    next(b for b in app.button if b.label == "Create").click().run()
    assert not app.exception
    assert len(place.workspace.projects()) == 2


def test_a_project_is_deleted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_app(place.workspace.home, monkeypatch)
    next(b for b in app.button if b.label == "Delete it").click().run()
    assert not app.exception
    assert not place.workspace.projects()
    assert not list((place.workspace.home / "runs").iterdir())


def test_a_workspace_that_cannot_be_used_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "defuse.sqlite").write_bytes(b"no database at all" * 100)
    app = open_app(tmp_path / "home", monkeypatch)
    assert "is damaged" in app.error[0].value
    assert not app.title
