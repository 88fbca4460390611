"""What holds for every page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.apps import open_page

PAGES = sorted(path.stem for path in (Path(__file__).parent.parent / "pages").glob("*.py"))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "overview"])
def test_without_a_project_a_page_says_where_to_go(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_page(tmp_path / "home", monkeypatch, page)
    assert [info.value for info in app.info] == [
        "No project is open. Choose one in the sidebar, or create one on the overview."
    ]
    assert [link.proto.page for link in app.page_link] == ["overview"] or app.page_link[0].label == "Overview"
    assert not app.title
    assert not app.button
    assert not app.get("bidi_component")
