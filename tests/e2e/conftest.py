"""One dashboard on 127.0.0.1 and one Chromium for all browser tests: each has a tab and a project of its own.

Workspaces are prepared once and brought in as archives, which takes a fifth of a second.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, expect

from defuse_core.data.sources import load_dataset
from defuse_core.exchange.archive import export_project, import_project
from defuse_core.workspace.projects import new_project
from tests.e2e.serving import SECONDS, Server, Site, browsing, find_chromium, serving
from tests.in_process import done_here
from tests.templates import make_once
from tests.workspaces import Place, copy_place

expect.set_options(timeout=30 * SECONDS)  # another worker keeps the other core busy
CORRECTION: dict[str, Any] = {
    "correction": {"lambdas": [1.0], "epochs": 1, "instances_per_region": 16, "precision": "fp32"},
    "baseline_lambdas": [1.0],
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell with a failed test what its tab showed, as a screen reader has it."""
    report = yield
    tab = getattr(item, "funcargs", {}).get("page")
    if report.when == "call" and report.failed and isinstance(tab, Page):
        try:
            shown = tab.locator("body").aria_snapshot(timeout=5 * SECONDS)
        except Error as error:
            shown = str(error)
        report.sections.append((f"the tab, at {tab.url}", shown))
    return report


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium, as the system's package installs it."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell, then run the tests again")
    with browsing(path) as browser:
        yield browser


@pytest.fixture(scope="session")
def dashboard(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The dashboard of all tests; take it by `server`, which cleans up."""
    assert chromium.is_connected()
    with serving(tmp_path_factory.mktemp("dashboard"), spare=True) as found:
        yield found


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A tab of 1440 × 900; an error in the console fails the test."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: None if _is_usual(message) else errors.append(message.text))
    tab.on("requestfailed", lambda request: None if _is_ended(request) else errors.append(request.url))
    yield tab
    context.close()
    assert not errors


@pytest.fixture
def server(page: Page, dashboard: Server) -> Iterator[Server]:
    """The dashboard on an empty workspace; what a test puts there is gone after it."""
    assert not dashboard.workspace.projects()
    yield dashboard
    _close_tabs(page)
    dashboard.clear()


@pytest.fixture
def own_server(page: Page, tmp_path: Path) -> Iterator[Server]:
    """A dashboard that a test may kill, on the workspace that is at `tmp_path / "home"`, or an empty one."""
    with serving(tmp_path) as found:
        yield found
        _close_tabs(page)


@pytest.fixture(scope="session")
def archives(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the projects that tests begin from, as files."""
    return make_once(tmp_path_factory, "archives", partial(_export_projects, template))


@pytest.fixture
def labelled(server: Server, archives: Path, template: Path) -> Site:
    """The project of shapes, whose regions are labelled."""
    data = str(template.parent / "shapes.npz")
    return Site(server, import_project(server.workspace, archives / "labelled.defuse.zip", data=data))


@pytest.fixture
def corrected(server: Server, archives: Path, template: Path) -> Site:
    """The project of shapes, corrected with one λ and one of the baseline."""
    data = str(template.parent / "shapes.npz")
    return Site(server, import_project(server.workspace, archives / "corrected.defuse.zip", data=data))


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of ten images of every digit to train on, and ten to test with."""
    return make_once(tmp_path_factory, "digits", _save_digits) / "digits.npz"


@pytest.fixture
def digits(server: Server, digits_file: Path) -> Site:
    """A project on it, with the demo's classifier and generator."""
    site = Site(server, new_project(server.workspace, "digits", str(digits_file)))
    for step, name in (("classifier", "demo-classifier"), ("vae", "demo-vae")):
        done_here(Place(site.workspace, site.project), step, {"weights": f"shipped:{name}"})
    return site


def _save_digits(folder: Path) -> None:
    dataset = load_dataset("digits")
    train, test = dataset.train[::40], dataset.test[::10]  # which lie in the order of the classes
    np.savez(
        folder / "digits.npz", x_train=train.images[:, 0], y_train=train.labels,
        x_test=test.images[:, 0], y_test=test.labels, class_names=np.array(dataset.class_names),
    )  # fmt: skip


def _export_projects(template: Path, folder: Path) -> None:
    place = copy_place(template, folder / "home")
    export_project(place.workspace, place.project.id, folder / "labelled.defuse.zip")
    done_here(place, "correct", CORRECTION)
    export_project(place.workspace, place.project.id, folder / "corrected.defuse.zip")
    place.workspace.close()


def _close_tabs(page: Page) -> None:
    """Leave the dashboard before what it shows is gone."""
    for tab in page.context.pages:
        tab.close()


def _is_ended(request: Request) -> bool:
    """Chromium ends the request of a file that it saves, and those of a page that is left."""
    return request.failure == "net::ERR_ABORTED"


def _is_usual(message: ConsoleMessage) -> bool:
    """No error, or Streamlit looking for its server below the page that a link leads to."""
    probes = ("/_stcore/health", "/_stcore/host-config")
    return message.type != "error" or message.location["url"].endswith(probes)
