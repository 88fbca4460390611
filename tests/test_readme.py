"""What the README shows is true of the code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from defuse_core.data import sources as data_sources
from defuse_core.data.splits import Split

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "dashboard" / "docs").glob("*.md"))]


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.verify), 10])
def test_the_python_example_runs(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """On a tenth of the digits, which take a tenth of the time; on all where there are minutes."""
    digits = data_sources.load_digits()
    few = Split(digits.train.images[::every], digits.train.labels[::every])
    monkeypatch.setattr(data_sources, "load_digits", lambda: replace(digits, train=few))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["regions"]) > 5
    assert set(names["mistakes"].predictions.tolist()) <= set(range(10))
    assert len([line for line in code.splitlines() if line]) <= 10


def test_every_dependency_has_a_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    table = README.split("## Dependencies")[1].split("\n## ")[0].lower()
    for requirement in wanted:
        name = Requirement(requirement).name.lower()
        assert re.search(rf"\b{re.escape(name)}\b", table), f"{name} is not in the README's table"


def test_every_command_and_option_exists() -> None:
    import typer

    from defuse_core.cli.main import app

    text = "\n".join(path.read_text() for path in DOCUMENTS)
    calls = re.findall(r"^(?:\.venv/bin/)?defuse (.+?)(?: +#.*)?$", text, re.MULTILINE)
    assert len(calls) > 25
    whole: Any = typer.main.get_command(app)
    for call in calls:
        command = whole
        words = call.split()
        while hasattr(command, "commands"):
            name = words.pop(0)
            assert name in command.commands, call
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, call


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_and_pictures_exist(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)]+)\)", document.read_text())
    for target in targets:
        file, _, heading = target.partition("#")
        assert (document.parent / file).exists(), target
        named = (
            re.findall(r"^#+ (.+)$", (document.parent / file).read_text(), re.MULTILINE) if heading else []
        )
        assert not heading or heading in [name.lower().replace(" ", "-") for name in named], target


def test_the_documents_are_linked() -> None:
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", README)}
    assert {f"dashboard/docs/{path.name}" for path in DOCUMENTS[1:]} <= linked


def test_make_help_lists_the_commands_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make ([a-z]+)", README, re.MULTILINE):
        assert re.search(rf"^{command}:.*## ", makefile, re.MULTILINE), command
