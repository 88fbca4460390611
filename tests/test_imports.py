"""The arrows between modules point one way: see the layers below."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "defuse_core"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"runtime", "records"}),
    frozenset({"config"}),
    frozenset({"data", "checkpoints", "architectures"}),
    frozenset({"classifier", "vae"}),
    frozenset({"identification", "distillation", "labeling", "correction", "evaluation", "projection"}),
    frozenset({"figures", "shipped"}),
    frozenset({"demo"}),
    frozenset({"cli"}),
)
"""A module imports from its own layer or below; the steps, in the fifth, never import each other."""

STEPS = LAYERS[4]


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


def core_modules(names: set[str]) -> set[str]:
    """The modules of defuse_core among names."""
    parts = {name.split(".")[1] for name in names if name.startswith("defuse_core.")}
    return {part for part in parts if (CORE / f"{part}.py").is_file()}


def layer_of(module: str) -> int:
    found = [index for index, layer in enumerate(LAYERS) if module in layer]
    assert found, f"{module} has no layer; give it one in this test"
    return found[0]


@pytest.mark.parametrize("path", sorted(CORE.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_modules_import_from_below(path: Path) -> None:
    for other in core_modules(imported(path)) - {path.stem}:
        assert layer_of(other) <= layer_of(path.stem), f"{path.stem} imports {other} from above it"
        if path.stem in STEPS:
            assert other not in STEPS, f"{path.stem} imports {other}: steps exchange records only"


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.stem)
def test_core_knows_no_user_interface(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"streamlit", "plotly", "dashboard", "pages"}


def test_help_does_not_import_torch() -> None:
    code = "import sys, defuse_core.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
