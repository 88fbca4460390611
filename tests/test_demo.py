"""The demo as a stranger runs it, and a demo that is stopped in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from defuse_core import demo
from defuse_core.config import PRESETS, CorrectionConfig, DistillationConfig, IdentificationConfig
from defuse_core.database import WorkspaceError
from defuse_core.projects import new_project
from defuse_core.runs import Resources, Run
from defuse_core.step_configs import STEPS, check_config
from defuse_core.workspace import Workspace
from tests.workspaces import eventually

pytestmark = pytest.mark.alone

SHORT = PRESETS["demo"].model_copy(
    update={
        "identification": IdentificationConfig(n_perturbations=10, max_mistakes_per_image=5),
        "distillation": DistillationConfig(),
        "correction": CorrectionConfig(lambdas=(1.0,), epochs=1, instances_per_region=32),
    }
)


def run_defuse(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "defuse_core.cli", *words]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the evidence of the whole demo, run once, and its workspace in home/."""
    found = tmp_path_factory.mktemp("demo")
    env = {"DEFUSE_HOME": str(found / "home")}
    done = run_defuse("demo", "--out", "evidence", cwd=found, env=env)
    assert done.returncode == 0, done.stderr
    assert "Figure 4" in done.stdout
    return found


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    """results.json of the whole demo."""
    read: dict[str, Any] = json.loads((folder / "evidence" / "results.json").read_text())
    written = {path.name for path in (folder / "evidence").iterdir()}
    assert {
        f"figure{n}.png" for n in ("1-regions", "4-accuracy", "5-trade-off", "6-novelty", "7-agreement")
    } <= written
    return read


@pytest.mark.timeout(900)
def test_the_demo_finds_and_repairs_bugs(results: dict[str, Any]) -> None:
    assert results["failure_regions"] >= 5
    assert results["before"]["region"] < 0.40
    assert results["defuse"]["region"] >= 0.90
    assert results["defuse"]["test"] >= results["before"]["test"] - 0.01
    assert results["defuse"]["region"] > results["baseline"]["region"]
    assert len(results["sweep"]) == 17


@pytest.mark.timeout(900)
def test_the_demo_tells_kinds_of_mistakes_apart(results: dict[str, Any]) -> None:
    counts = results["mistakes"]
    assert counts == {"dataset": 620, "reconstruction": 460, "perturbation": 15_517}, "as the README tells"
    assert counts["perturbation"] > 0.8 * sum(counts.values())
    assert results["still_correct_after_reconstruction"] > 0.95
    assert 0 < results["label_agreement"] < 1


@pytest.mark.timeout(900)
def test_the_demo_is_more_than_its_controls(results: dict[str, Any]) -> None:
    for name in ("lam=0", "random"):
        assert results["controls"][name]["region"][0] < 0.6 < results["defuse"]["region"]
    raw, centred = (results["noise"][name]["misread"] for name in ("raw", "centred"))
    assert raw > centred
    assert {row["region_id"] for row in results["nearest"]["regions"]} == {
        row["region_id"] for row in results["by_region"]
    }


@pytest.mark.timeout(900)
def test_the_suite_fails_on_the_original_and_passes_on_the_corrected_model(
    folder: Path, results: dict[str, Any], tmp_path: Path
) -> None:
    env = {"DEFUSE_HOME": str(folder / "home"), "COLUMNS": "120"}

    def check(model: str, *more: str) -> subprocess.CompletedProcess[str]:
        words = ("suite", "check", "--model", model, "--suite", "bugs", *more)
        return run_defuse(*words, cwd=tmp_path, env=env)

    assert run_defuse("suite", "export", "--out", "bugs", cwd=tmp_path, env=env).returncode == 0
    written = run_defuse("checkpoint", "--out", "corrected.safetensors", cwd=tmp_path, env=env)
    assert written.returncode == 0, written.stderr
    original = check(str(demo.MODELS / "demo-classifier.safetensors"))
    assert original.returncode == 1, original.stderr
    assert original.stdout.count("FAIL") >= results["failure_regions"]
    corrected = check("corrected.safetensors")
    assert corrected.returncode == 0, corrected.stdout
    assert check("corrected.safetensors", "--max-error", "0").returncode == 1


@pytest.mark.timeout(900)
def test_the_demo_is_runs_of_a_workspace(folder: Path, results: dict[str, Any]) -> None:
    workspace = Workspace(folder / "home")
    (project,) = workspace.projects()
    runs = workspace.runs.of_project(project.id)
    assert [run.step for run in runs] == [
        "classifier", "vae", "identify", "distill", "annotate", "correct", "evaluate", "report",
    ]  # fmt: skip
    assert {run.status for run in runs} == {"done"}
    assert not any(run.stale for run in runs)
    by_step = {run.step: run for run in runs}
    assert by_step["identify"].summary["mistakes"] == results["mistakes"]
    assert by_step["correct"].summary["failures"] == results["failure_regions"]
    assert len(by_step["distill"].summary["regions"]) == results["scenarios"]
    for run in runs:
        workspace.verify(run.id)
    labels = workspace.annotations.counting(by_step["distill"].id)
    assert len({event.annotator for event in labels}) == 5
    assert len(labels) == 5 * 2 * 10 * results["scenarios"]  # draws, and as many single mistakes


def follow(workspace: Workspace, run: Run) -> Run:
    eventually(lambda: not workspace.runs.get(run.id).live, seconds=120)
    return workspace.runs.get(run.id)


@pytest.mark.timeout(400)
def test_a_demo_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    project = demo.demo_project(workspace)
    resources = Resources(device="cpu")

    def until_regions(run: Run) -> Run:
        if run.step == "annotate":
            raise KeyboardInterrupt
        return follow(workspace, run)

    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(workspace, project, seed=0, resources=resources, watch=until_regions, preset=SHORT)
    begun = [run.id for run in workspace.runs.of_project(project.id)]
    assert len(begun) == 5
    found = demo.run_demo(
        workspace, project, seed=0, resources=resources,
        watch=lambda run: follow(workspace, run), preset=SHORT,
    )  # fmt: skip
    assert [run.status for run in found.values()] == ["done"] * 8
    assert [found[step].id for step in list(found)[:5]] == begun
    out = demo.write_evidence(workspace, found["report"], tmp_path / "out")
    assert out["settings"]["identify"]["n_perturbations"] == 10
    assert out["failure_regions"] == found["correct"].summary["failures"]

    with pytest.raises(KeyboardInterrupt):  # a demo that is done is run anew
        demo.run_demo(workspace, project, seed=0, resources=resources, watch=_stop, preset=SHORT)
    newest = workspace.runs.of_project(project.id)[-1]
    assert newest.step == "classifier"
    assert newest.id > found["report"].id
    follow(workspace, newest)


@pytest.mark.timeout(600)
def test_a_demo_is_made_again_from_its_manifest_with_equal_numbers(tmp_path: Path) -> None:
    workspace, resources = Workspace(tmp_path / "home"), Resources(device="cpu")
    project = demo.demo_project(workspace)
    found = demo.run_demo(
        workspace, project, seed=0, resources=resources,
        watch=lambda run: follow(workspace, run), preset=SHORT,
    )  # fmt: skip
    demo.write_evidence(workspace, found["report"], tmp_path / "out")
    workspace.close()
    env = {"DEFUSE_HOME": str(tmp_path / "another"), "COLUMNS": "120"}
    again = run_defuse("replay", "out/manifest.json", "--name", "again", "--json", cwd=tmp_path, env=env)
    assert again.returncode == 0, again.stdout + again.stderr
    made = Workspace(tmp_path / "another")
    (copy,) = made.projects()
    assert copy.name == "again"
    for step in ("identify", "distill", "correct", "evaluate"):
        (run,) = made.runs.of_project(copy.id, step)
        assert run.summary == found[step].summary


def _stop(_run: Run) -> Run:
    raise KeyboardInterrupt


def test_every_config_of_the_demo_is_valid() -> None:
    steps = [step for step, _ in demo.demo_configs()]
    assert set(steps) == set(STEPS) - {
        "inspect", "control", "probe", "map", "draw", "stability", "annotators",
    }  # fmt: skip
    for step, config in demo.demo_configs():
        check_config(step, config)


def test_the_cards_say_what_reading_the_digits_says(tmp_path: Path) -> None:
    read = new_project(Workspace(tmp_path / "home"), "read", "digits")
    assert demo.digits_dataset() == read.dataset


def test_a_project_of_the_same_name_on_other_data_is_left_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    workspace.create_project("demo", dataset={"source": "/mine.npz", "class_names": ["a"]})
    with pytest.raises(WorkspaceError, match=r"is on /mine.npz, the demo on digits; give another --project"):
        demo.demo_project(workspace)


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("demo", "--device", "quantum"), "device must be auto, cpu, mps, cuda", 2),
        (("demo", "--device", "cuda:99"), "use --device cpu", 1),
        (("demo", "--out", "taken"), "taken is a file; give another name", 1),
    ],
)
def test_errors_are_one_line_with_the_remedy(
    words: tuple[str, ...], told: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    done = run_defuse(*words, cwd=tmp_path, env={"DEFUSE_HOME": str(tmp_path / "home")})
    assert done.returncode == code
    assert told in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_wrong_calls_exit_with_2(tmp_path: Path) -> None:
    assert run_defuse("demo", "--seed", "-1", cwd=tmp_path).returncode == 2
    assert run_defuse("dmeo", cwd=tmp_path).returncode == 2
