"""A real server on 127.0.0.1 and a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from tests.e2e.serving import Server, browsing, find_chromium, serving
from tests.in_process import done_here
from tests.workspaces import Place

CORRECTION: dict[str, Any] = {
    "correction": {"lambdas": [1.0], "epochs": 1, "instances_per_region": 16, "precision": "fp32"},
    "baseline_lambdas": [1.0],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser, a server and its runs keep two cores busy, and a page is waited for only so long."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not item.path.stem.endswith("_js"):
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium, as the system's package installs it."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium, then run the tests again")
    with browsing(path) as browser:
        yield browser


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A dashboard on an empty workspace."""
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def page(chromium: Browser, server: Server) -> Iterator[Page]:
    """A tab of 1440 × 900, closed before the server ends; an error in the console fails the test."""
    assert server.url
    yield from _tab(chromium)


def _tab(chromium: Browser) -> Iterator[Page]:
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
def shapes_server(place: Place, tmp_path: Path) -> Iterator[Server]:
    """A dashboard on the small workspace of shapes, whose regions are labelled, with a map by PCA."""
    done_here(place, "map", {"method": "pca"})
    place.workspace.close()
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def shapes_page(chromium: Browser, shapes_server: Server) -> Iterator[Page]:
    """A tab like `page`, for that dashboard."""
    assert shapes_server.url
    yield from _tab(chromium)


@pytest.fixture
def corrected_server(place: Place, tmp_path: Path) -> Iterator[Server]:
    """A dashboard on the small workspace of shapes, corrected with one λ and one of the baseline."""
    done_here(place, "correct", CORRECTION)
    place.workspace.close()
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def corrected_page(chromium: Browser, corrected_server: Server) -> Iterator[Page]:
    """A tab like `page`, for that dashboard."""
    assert corrected_server.url
    yield from _tab(chromium)


def _is_ended(request: Request) -> bool:
    """Chromium ends the request of a file that it saves, and those of a page that is left."""
    return request.failure == "net::ERR_ABORTED"


def _is_usual(message: ConsoleMessage) -> bool:
    """No error, or Streamlit looking for its server below the page that a link leads to."""
    probes = ("/_stcore/health", "/_stcore/host-config")
    return message.type != "error" or message.location["url"].endswith(probes)
