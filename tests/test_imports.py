"""The arrows between modules point one way: see the layers below."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "defuse_core"

REPRODUCTION = frozenset(
    f"reproduction{part}" for part in ("", "_plans", "_results", "_goals", "_tables", "_figures", "_files")
)

LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "config",
            "paper",
            "errors",
            "machine",
            "source_names",
            "files",
            "database",
            "garbage",
            "runs",
            "sniffing",
            "region_edits",
        }
    ),
    frozenset(
        {"annotations", "label_files", "label_studio", "step_configs", "run_store", "runtime", "records"}
    ),
    frozenset({"workspace", "data", "data_sources", "checkpoints", "architectures", "common_networks"}),
    frozenset({"programs", "checkpoint_formats", "detection", "local_code"}),
    frozenset({"manifest_models", "manifest", "manifest_reading", "pipeline"}),
    frozenset({"bringing", "comparison", "relabeling"}),
    frozenset({"classifier", "vae"}),
    frozenset({"contract", "loading_code", "model_card", "suite", "partial_resnet"}),
    frozenset(
        {
            "identification",
            "distillation",
            "labeling",
            "correction",
            "evaluation",
            "manifold",
            "projection",
            "regions",
        }
    ),
    frozenset({"controls", "figures", "evidence_figures", "rounds", "shipped", "projects", "archive"}),
    frozenset({"report_content", "report_limits", "report_words", "report_tables", "sprites", "html_report"}),
    frozenset({"steps"}),
    frozenset({"exporting", "suite_export", "suite_model"}),
    frozenset({"jobs"}),
    frozenset({"demo", "console", "cli_options", "replay", *REPRODUCTION}),
    frozenset(
        {"cli_common", "cli_labels", "cli_projects", "cli_replay", "cli_reproduce", "cli_runs", "cli_suite"}
    ),
    frozenset({"cli"}),
)
"""A module imports from its own layer or below; the steps of the paper never import each other."""

STEPS = next(layer for layer in LAYERS if "identification" in layer)

WITHOUT_TORCH = (
    "defuse_core.exchange.archive",
    "defuse_core.cli",
    "defuse_core.base.config",
    "defuse_core.console",
    "defuse_core.demo",
    "defuse_core.reproduction.run",
    "defuse_core.reproduction.results",
    "defuse_core.reproduction.tables",
    "defuse_core.networks.sniffing",
    "defuse_core.workspace.workspace",
    "defuse_core.jobs.launcher",
    "defuse_core.jobs.runner",
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


def core_modules(names: set[str]) -> set[str]:
    """The modules of defuse_core among names."""
    parts = {name.split(".")[1] for name in names if name.startswith("defuse_core.")}
    return {part for part in parts if (CORE / f"{part}.py").is_file() or (CORE / part).is_dir()}


def module_of(path: Path) -> str:
    """The module or package of defuse_core that a file belongs to."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def layer_of(module: str) -> int:
    found = [index for index, layer in enumerate(LAYERS) if module in layer]
    assert found, f"{module} has no layer; give it one in this test"
    return found[0]


@pytest.mark.parametrize(
    "path", sorted(p for p in CORE.rglob("*.py") if p != CORE / "__init__.py"), ids=lambda path: path.stem
)
def test_modules_import_from_below(path: Path) -> None:
    module = module_of(path)
    for other in core_modules(imported(path)) - {module}:
        assert layer_of(other) <= layer_of(module), f"{path.name} imports {other} from above it"
        if module in STEPS:
            assert other not in STEPS, f"{module} imports {other}: steps exchange records only"


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.stem)
def test_core_knows_no_user_interface(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"streamlit", "plotly", "dashboard", "pages"}


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_nothing_slow_is_imported_before_it_is_needed(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit(bool({{'torch', 'streamlit', 'ray', 'sklearn'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_dashboard_starts_without_torch() -> None:
    modules = ", ".join(
        f"dashboard.{path.stem}"
        for path in sorted((ROOT / "dashboard").glob("*.py"))
        if path.stem not in ("__init__", "app")
    )
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'sklearn', 'scipy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", sorted((ROOT / "dashboard").rglob("*.py")), ids=lambda path: path.stem)
def test_the_dashboard_does_not_import_its_pages(path: Path) -> None:
    assert not any(name.split(".")[0] == "pages" for name in imported(path))


def test_pages_are_short() -> None:
    for page in (ROOT / "pages").glob("*.py"):
        assert len(page.read_text().splitlines()) < 150, page.name
    assert len((ROOT / "dashboard" / "app.py").read_text().splitlines()) < 60
