"""Every room imports from the rooms below it, and from no other."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "defuse_core"

MAY_IMPORT = {
    "base": "",
    "data": "base",
    "networks": "base data",
    "method": "base data networks",
    "workspace": "base data",
    "extensions": "base data networks method workspace",
    "report": "base data method workspace extensions",
    "steps": "base data networks method workspace extensions report",
    "jobs": "base workspace steps",
    "exchange": "base data networks method workspace extensions steps jobs",
    "reproduction": "base data method workspace extensions report steps jobs exchange",
    "cli": "base data workspace report steps jobs exchange reproduction",
}
"""The rooms of defuse_core, lowest first, and what each may import."""

PAPER = ("identification", "distillation", "labeling", "correction", "evaluation")
"""Steps of the method: they exchange records and never import each other."""

WITHOUT_TORCH = (
    "defuse_core.base.config",
    "defuse_core.base.machine",
    "defuse_core.cli.console",
    "defuse_core.cli.main",
    "defuse_core.data.naming",
    "defuse_core.exchange.archive",
    "defuse_core.jobs.launcher",
    "defuse_core.jobs.runner",
    "defuse_core.networks.sniffing",
    "defuse_core.reproduction.demo",
    "defuse_core.reproduction.results",
    "defuse_core.reproduction.run",
    "defuse_core.reproduction.tables",
    "defuse_core.workspace.workspace",
)
"""Imported before anything is computed: by the dashboard, the command line, a run that waits its turn."""


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at any depth of it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(names: set[str]) -> set[str]:
    """The rooms of defuse_core among names."""
    return {name.split(".")[1] for name in names if name.startswith("defuse_core.")}


def drawing() -> str:
    """The rooms as a Mermaid graph: an arrow for what a room imports and does not get through another."""
    direct = {
        room: set().union(*(rooms(imported(path)) for path in (CORE / room).rglob("*.py"))) - {room}
        for room in MAY_IMPORT
    }
    below: dict[str, set[str]] = {}
    for room in MAY_IMPORT:  # lowest first
        below[room] = direct[room].union(*(below[other] for other in direct[room]))
    arrows = [
        f"    {room} --> {other}"
        for room in reversed(MAY_IMPORT)
        for other in reversed(MAY_IMPORT)
        if other in direct[room] and not any(other in below[middle] for middle in direct[room])
    ]
    return "\n".join(["graph TD", *arrows])


def test_the_picture_of_the_architecture_is_that_of_the_code() -> None:
    text = (ROOT / "dashboard" / "docs" / "architecture.md").read_text()
    assert text.split("```mermaid\n")[1].split("\n```")[0] == drawing()


def test_the_house_is_its_rooms() -> None:
    assert {path.name for path in CORE.iterdir() if path.name != "__pycache__"} == {
        *MAY_IMPORT,
        "__init__.py",
    }
    for (lower, _), (room, below) in pairwise(MAY_IMPORT.items()):
        assert {*below.split()} <= {*list(MAY_IMPORT)[: list(MAY_IMPORT).index(lower) + 1]}, room


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_from_below(room: str) -> None:
    for path in sorted((CORE / room).rglob("*.py")):
        above = rooms(imported(path)) - {room, *MAY_IMPORT[room].split()}
        assert not above, f"{path.relative_to(CORE)} imports {above}"


@pytest.mark.parametrize("step", PAPER)
def test_steps_of_the_paper_exchange_records_only(step: str) -> None:
    names = imported(CORE / "method" / f"{step}.py")
    assert not {f"defuse_core.method.{other}" for other in PAPER if other != step} & names


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_core_knows_no_user_interface(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"streamlit", "plotly", "dashboard", "pages"}


def test_nothing_slow_is_imported_before_it_is_needed() -> None:
    code = f"""if True:
        import importlib, sys
        for name in {WITHOUT_TORCH}:
            importlib.import_module(name)
            slow = {{"torch", "streamlit", "ray", "sklearn"}} & {{*sys.modules}}
            assert not slow, f"{{name}} imports {{slow}}"
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


DASHBOARD = {
    path.name: "" if path.name in ("shell", "components") else "shell components shared"
    for path in (ROOT / "dashboard").iterdir()
    if (path / "__init__.py").is_file()
} | {"shared": "shell components"}
"""The rooms of the dashboard, most of them a page's, and what each may import."""


@pytest.mark.parametrize("room", DASHBOARD)
def test_rooms_of_pages_import_no_other_page(room: str) -> None:
    for path in sorted((ROOT / "dashboard" / room).rglob("*.py")):
        names = {name.split(".")[1] for name in imported(path) if name.startswith("dashboard.")}
        above = names - {room, *DASHBOARD[room].split()}
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


def test_the_dashboard_starts_without_torch() -> None:
    names = [_name(path) for path in sorted((ROOT / "dashboard").rglob("*.py")) if path.stem != "app"]
    code = f"""if True:
        import importlib, sys
        for name in {names}:
            importlib.import_module(name)
            slow = {{"torch", "sklearn", "scipy"}} & {{*sys.modules}}
            assert not slow, f"{{name}} imports {{slow}}"
    """
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _name(path: Path) -> str:
    """Of a module, as it is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", sorted((ROOT / "dashboard").rglob("*.py")), ids=lambda path: path.stem)
def test_the_dashboard_does_not_import_its_pages(path: Path) -> None:
    assert not any(name.split(".")[0] == "pages" for name in imported(path))


def test_pages_are_short() -> None:
    for page in (ROOT / "pages").glob("*.py"):
        assert len(page.read_text().splitlines()) < 150, page.name
    assert len((ROOT / "dashboard" / "app.py").read_text().splitlines()) < 60
