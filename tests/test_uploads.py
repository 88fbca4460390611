"""Uploads of the dashboard: taken piece by piece, then let go; and what that needs of Streamlit."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit
from packaging.requirements import Requirement
from streamlit.runtime import scriptrunner
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parent.parent
INTERNALS = ROOT / "dashboard" / "shell" / "streamlit_internals.py"
LOGGER = "dashboard.shell.streamlit_internals"
PUBLIC = {"streamlit", "streamlit.typing"}
TAKEN: list[tuple[str, bytes]] = []


def keep(name: str, pieces: Iterator[bytes]) -> None:
    """What a page does with an upload."""
    TAKEN.append((name, b"".join(pieces)))


def _page() -> None:
    import streamlit as st
    from streamlit.runtime.scriptrunner_utils.script_run_context import get_script_run_ctx

    from dashboard.shell.uploads import upload_box
    from tests.test_uploads import keep

    upload_box("File", keep, key="box")
    manager = get_script_run_ctx().uploaded_file_mgr
    st.caption(f"{sum(map(len, manager.file_storage.values()))} uploads are held")


def upload(name: str, content: bytes) -> AppTest:
    """Upload a file to a page with a box."""
    TAKEN.clear()
    app = AppTest.from_function(_page).run()
    app.file_uploader[0].upload(name, content).run()
    assert not app.exception
    return app


def test_an_upload_is_taken_whole_and_let_go(caplog: pytest.LogCaptureFixture) -> None:
    content = bytes(range(256)) * 10_000  # three pieces
    app = upload("mine.pt", content)
    (taken,) = TAKEN
    assert taken == ("mine.pt", content)
    assert app.caption[0].value == "0 uploads are held"
    lacking = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert not lacking


@pytest.mark.parametrize(
    ("owner", "part"), [(scriptrunner, "get_script_run_ctx"), (MemoryUploadedFileManager, "remove_file")]
)
def test_without_a_part_of_streamlit_the_page_works_and_the_log_names_it(
    owner: object, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(owner, part)
    app = upload("mine.pt", b"weights")
    (taken,) = TAKEN
    assert taken == ("mine.pt", b"weights")
    assert app.caption[0].value == "1 uploads are held"
    (told,) = {record.getMessage() for record in caplog.records if record.name == LOGGER}
    assert part in told
    assert f"Streamlit {streamlit.__version__} keeps an upload in memory" in told


def test_only_one_module_uses_more_than_the_public_parts_of_streamlit() -> None:
    private = set()
    for path in (*ROOT.glob("dashboard/**/*.py"), *ROOT.glob("pages/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            inner = [m for m in modules if m.partition(".")[0] == "streamlit" and m not in PUBLIC]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "st":
                inner += [node.attr] if node.attr.startswith("_") else []
            private |= {(path, name) for name in inner}
    assert {path for path, _ in private} == {INTERNALS}, private


def test_the_version_of_streamlit_is_bounded() -> None:
    import tomllib

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bounds,) = [r.specifier for r in map(Requirement, wanted) if r.name == "streamlit"]
    assert bounds.contains(streamlit.__version__)
    assert not bounds.contains("2.0")
    assert not bounds.contains("1.66")  # has no App, no typing
