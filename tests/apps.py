"""Pages of the dashboard by AppTest: opened as a link opens them, and read as data."""

from __future__ import annotations

import base64
import io
import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from streamlit.components.v2.bidi_component.main import _make_trigger_id
from streamlit.runtime.media_file_manager import MediaFileManager
from streamlit.testing.v1 import AppTest

from dashboard.shell import store as cache
from defuse_core.workspace.runs import Run
from tests.in_process import fresh_place
from tests.workspaces import Place, eventually

DASHBOARD = Path(__file__).resolve().parent.parent / "dashboard" / "app.py"
NASTY = "<img src=x onerror=alert(1)>"


def open_page(home: Path, monkeypatch: pytest.MonkeyPatch, page: str, /, **query: str) -> AppTest:
    """Open a page by its link, until nothing loads any more."""
    monkeypatch.setenv("DEFUSE_HOME", str(home))
    cache.workspace.clear()  # held once a process; each test has one of its own
    app = AppTest.from_file(str(DASHBOARD), default_timeout=30)
    for name, value in query.items():
        app.query_params[name] = value
    app.switch_page(f"../pages/{page}.py").run()
    return settle(app)


def opener(page: str) -> Callable[..., AppTest]:
    """What opens this page on the project of a place, by its link with more of a query."""

    def opened(place: Place, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
        return open_page(place.workspace.home, monkeypatch, page, project=place.project.name, **query)

    return opened


def latest(place: Place, step: str) -> Run:
    """The newest run of a step, whatever became of it."""
    return place.workspace.runs.of_project(place.project.id, step)[-1]


def settle(app: AppTest) -> AppTest:
    """Run a page again until it has loaded what it shows; AppTest fires no run_every."""

    def loaded() -> bool:
        assert not app.exception, app.exception[0].value
        if not any(caption.value.startswith("Loading") for caption in app.caption):
            return True
        app.run()
        return False

    eventually(loaded, seconds=30)
    return app


def click(app: AppTest, label: str) -> AppTest:
    """Click the button of this label."""
    (found,) = [button for button in app.button if button.label == label]
    found.click().run()
    return settle(app)


def metrics(app: AppTest) -> dict[str, str]:
    """Value by label."""
    return {metric.label: metric.value for metric in app.metric}


def told(app: AppTest) -> str:
    """All text of a page that is read as Markdown."""
    kinds = (app.title, app.subheader, app.markdown, app.caption, app.info, app.warning, app.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def words(markdown: str) -> str:
    """Text as it is read, where Markdown escapes it."""
    return re.sub(r"\\([^A-Za-z0-9\s])", r"\1", markdown)


def errors(app: AppTest) -> list[str]:
    """The errors of a page, as they are read."""
    return [words(str(error.value)) for error in app.error]


def toasts(app: AppTest) -> list[str]:
    """What the page told in passing, as it is read."""
    return [words(str(toast.value)) for toast in app.toast]


def component(app: AppTest, key: str) -> dict[str, Any]:
    """What the component of this key was given."""
    (found,) = [e.proto for e in app.get("bidi_component") if e.key == key]
    given: dict[str, Any] = json.loads(found.json)
    return given


def tiles(app: AppTest, key: str) -> list[dict[str, Any]]:
    """What the image grid of this key was given; its images as arrays (height, width, channels)."""
    found = component(app, key)["tiles"]
    return [{**tile, "images": [decode(url) for url in tile["images"]]} for tile in found]


def send(app: AppTest, key: str, *, trigger: bool = False, **told: Any) -> AppTest:
    """Let the browser's part of a component, or of a table, tell something, with the callbacks of that.

    AppTest cannot by itself. A trigger is what a component says once, and does not go on holding.
    """
    (found,) = [e for e in (*app.get("bidi_component"), *app.dataframe) if e.key == key]
    states = app._tree.get_widget_states()
    state = states.widgets.add(id=found.proto.id)
    if found.type == "dataframe":
        state.string_value = json.dumps(told)
    elif trigger:
        state.id = _make_trigger_id(found.proto.id, "events")
        state.json_trigger_value = json.dumps([{"event": name, "value": told[name]} for name in told])
    else:
        state.json_value = json.dumps(told)
    app._run(states)
    return app


def keep_downloads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], bytes]]:
    """What makes the downloads of the pages that are opened from now on, by file name."""
    kept: dict[str, Callable[[], bytes]] = {}
    add = MediaFileManager.add_deferred

    def keep(self: MediaFileManager, make: Callable[[], bytes], *more: Any, **options: Any) -> str:
        kept[options["file_name"]] = make
        return add(self, make, *more, **options)

    monkeypatch.setattr(MediaFileManager, "add_deferred", keep)
    return kept


def forget_answers(place: Place) -> Place:
    """The same workspace as if nobody had labelled anything."""
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as connection, connection:
        connection.execute("DELETE FROM annotations")
    return place


def give_nasty_names(place: Place, folder: Path) -> Place:
    """The same workspace, all whose names are markup; its images are written to this folder."""
    names = [NASTY, "**b**", "[c](http://x)"]
    with np.load(place.project.dataset["source"]) as stored:
        np.savez(folder / "nasty.npz", **{**stored, "class_names": np.array(names)})
    dataset = fresh_place(folder / "nasty-home", folder / "nasty.npz").project.dataset
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as connection, connection:
        connection.execute("UPDATE projects SET name = ?, dataset = ?", (NASTY, json.dumps(dataset)))
    return Place(place.workspace, place.workspace.projects()[0])


def decode(url: str) -> NDArray[np.uint8]:
    """Pixels of a PNG in a data URL, (height, width, channels)."""
    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def figure(app: AppTest, key: str) -> dict[str, Any]:
    """The Plotly figure of this key, as the browser gets it, with its arrays as numpy's."""
    (spec,) = [e.proto.spec for e in app.get("plotly_chart") if e.proto.id.endswith(f"-{key}")]
    read: dict[str, Any] = json.loads(spec, object_hook=_array)
    return read


def _array(found: dict[str, Any]) -> Any:
    """Plotly sends an array as its type and its bytes."""
    if not {"dtype", "bdata"} <= found.keys():
        return found
    flat = np.frombuffer(base64.b64decode(found["bdata"]), found["dtype"])
    shape = [int(size) for size in str(found.get("shape", flat.size)).split(",")]
    return flat.reshape(shape)


def has_markup(app: AppTest) -> bool:
    """Whether any text of the page may hold HTML."""
    return any(e.proto.allow_html for kind in (app.markdown, app.caption) for e in kind) or bool(app.html)
