"""The demo as a stranger runs it, whole and quick, and a demo that is stopped in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from defuse_core.base.config import PRESETS
from defuse_core.base.machine import MODELS
from defuse_core.jobs import launcher
from defuse_core.jobs.spare import SPARE_RUNNER
from defuse_core.reproduction import demo
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import STEPS
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import DATABASE, Workspace
from tests.commands import checked, command, defuse_here, defuse_process, heed_ctrl_c
from tests.spares import is_spare
from tests.templates import make_once
from tests.workspaces import copy_place, eventually, verify

ORDER = ["classifier", "vae", "identify", "distill", "annotate", "correct", "evaluate", "report"]
HERE = Resources(device="cpu", threads=1)
WHOLE = (pytest.mark.verify, pytest.mark.timeout(900))


@dataclass(frozen=True)
class Folder:
    """Where a demo was run: its evidence, and its workspace in home/."""

    path: Path
    project: str

    @property
    def env(self) -> dict[str, str]:
        return {"DEFUSE_HOME": str(self.path / "home")}

    @property
    def results(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.path / "evidence" / "results.json").read_text())
        return read

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.path / "home")

    def runs(self, workspace: Workspace | None = None) -> list[Run]:
        """Of the only project there is."""
        workspace = workspace or self.workspace
        (project,) = workspace.projects()
        assert project.name == self.project
        return workspace.runs.of_project(project.id)


def run_to_end(folder: Path, *words: str) -> None:
    """Run a demo in a process, whose runs are processes, too."""
    env = Folder(folder, "").env | {SPARE_RUNNER: "1"}
    done = checked(defuse_process("demo", *words, "--out", "evidence", cwd=folder, env=env))
    assert "Figure 4" in done.stdout


def run_with_a_stop(folder: Path) -> None:
    """Run the quick demo in a process, stop it by Ctrl-C in the middle, and go on with it here."""
    quick = Folder(folder, "demo-quick")
    with (folder / "stopped.txt").open("wb") as log:
        first = subprocess.Popen(
            command("demo", "--quick", "--out", "evidence"), cwd=folder, stdout=log, stderr=log,
            preexec_fn=heed_ctrl_c, env={**os.environ, **quick.env, SPARE_RUNNER: "1"},
        )  # fmt: skip
        try:
            eventually(lambda: (folder / "home" / DATABASE).is_file(), seconds=60)
            workspace = quick.workspace
            eventually(lambda: _searches(workspace), seconds=120)
            begun = _runs(workspace)
            taken = is_spare(begun[-1])
            first.send_signal(signal.SIGINT)
            code = first.wait(60)
        finally:
            first.kill()
            first.wait()
    workspace.close()
    stopped = {"code": code, "begun": len(begun), "spare": taken}
    (folder / "stopped.json").write_text(json.dumps(stopped))
    done = checked(defuse_here("demo", "--quick", "--out", "evidence", cwd=folder, env=quick.env))
    assert "Figure 4" in done.stdout


def _searches(workspace: Workspace) -> bool:
    return any(run.step == "identify" and run.has_runner for run in _runs(workspace))


def _runs(workspace: Workspace) -> list[Run]:
    return [run for project in workspace.projects() for run in workspace.runs.of_project(project.id)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The whole demo; read it only."""
    return Folder(make_once(tmp_path_factory, "demo", run_to_end), "demo")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The quick one, stopped and gone on with; read it only."""
    return Folder(make_once(tmp_path_factory, "demo-quick", run_with_a_stop), "demo-quick")


@pytest.fixture(params=[pytest.param("whole", marks=WHOLE), "quick"])
def either(request: pytest.FixtureRequest) -> Folder:
    """The whole demo where there are minutes, and the quick one everywhere."""
    found: Folder = request.getfixturevalue(request.param)
    return found


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_the_demo_finds_and_repairs_bugs(whole: Folder) -> None:
    results = whole.results
    assert results["failure_regions"] >= 5
    assert results["before"]["region"] < 0.40
    assert results["defuse"]["region"] >= 0.90
    assert results["defuse"]["test"] >= results["before"]["test"] - 0.01
    assert results["defuse"]["region"] > results["baseline"]["region"]
    assert len(results["sweep"]) == 9


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_the_demo_tells_kinds_of_mistakes_apart(whole: Folder) -> None:
    results = whole.results
    counts = results["mistakes"]
    assert counts == {"dataset": 620, "reconstruction": 460, "perturbation": 15_517}, "as the README tells"
    assert counts["perturbation"] > 0.8 * sum(counts.values())
    assert results["still_correct_after_reconstruction"] > 0.95
    assert 0 < results["label_agreement"] < 1


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_the_demo_is_more_than_its_controls(whole: Folder) -> None:
    results = whole.results
    for name in ("lam=0", "random"):
        assert results["controls"][name]["region"][0] < 0.6 < results["defuse"]["region"]
    raw, centred = (results["noise"][name]["misclassified"] for name in ("raw", "centred"))
    assert raw > centred
    assert {row["region_id"] for row in results["nearest"]["regions"]} == {
        row["region_id"] for row in results["by_region"]
    }


def test_the_quick_demo_finds_and_repairs_bugs_in_a_few_digits(quick: Folder) -> None:
    results = quick.results
    assert results["failure_regions"] >= 1
    assert results["before"]["region"] < 0.7 < 0.9 < results["defuse"]["region"]
    assert [row["lam"] for row in results["sweep"]] == [1.0]
    assert results["mistakes"]["perturbation"] > 100
    assert 0 < results["label_agreement"] < 1
    assert {"lam=0", "random"} <= set(results["controls"])
    assert quick.workspace.project("demo-quick").dataset["sizes"] == {"train": 300, "test": 200}


def test_its_figures_and_its_page_are_in_the_folder(either: Folder) -> None:
    evidence = either.path / "evidence"
    names = [f"figure{n}" for n in ("1-regions", "4-accuracy", "5-trade-off", "6-novelty", "7-agreement")]
    for name in names:
        assert (evidence / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (evidence / f"{name}.svg").read_text()
    assert "</html>" in (evidence / "report.html").read_text()


def test_the_suite_fails_on_the_original_and_passes_on_the_corrected_model(
    either: Folder, tmp_path: Path
) -> None:
    def defuse(*words: str, code: int = 0) -> str:
        return checked(defuse_here(*words, cwd=tmp_path, env=either.env), code).stdout

    def check(model: str, *more: str, code: int) -> str:
        return defuse("suite", "check", "--model", model, "--suite", "bugs", *more, code=code)

    defuse("suite", "export", "--out", "bugs", *(("--n", "64") if either.project == "demo-quick" else ()))
    defuse("checkpoint", "--out", "corrected.safetensors")
    failed = check(str(MODELS / "demo-classifier.safetensors"), code=1)
    assert failed.count("FAIL") >= either.results["failure_regions"]
    assert "FAIL" not in check("corrected.safetensors", code=0)
    check("corrected.safetensors", "--max-error", "0", code=1)


def test_the_demo_is_runs_of_a_workspace(either: Folder) -> None:
    workspace, results = either.workspace, either.results
    runs = either.runs(workspace)
    assert [run.step for run in runs] == ORDER
    assert {run.status for run in runs} == {"done"}
    assert not any(run.stale for run in runs)
    by_step = {run.step: run for run in runs}
    assert by_step["identify"].summary["mistakes"] == results["mistakes"]
    assert by_step["correct"].summary["failures"] == results["failure_regions"]
    assert len(by_step["distill"].summary["regions"]) == results["scenarios"]
    for run in runs:
        verify(workspace, run.id)
    labels = workspace.annotations.counting(by_step["distill"].id)
    assert len({event.annotator for event in labels}) == 5
    draws, mistakes = 10 * results["scenarios"], sum(results["mistakes"].values())
    assert len(labels) == 5 * (draws + min(draws, mistakes))  # draws, and as many single mistakes


def test_a_demo_that_was_stopped_goes_on_where_it_was(quick: Folder) -> None:
    stopped = json.loads((quick.path / "stopped.json").read_text())
    said = (quick.path / "stopped.txt").read_text()
    assert stopped["code"] == 130
    assert "the step goes on; see: defuse runs. To go on with the demo: defuse demo --quick" in said
    assert "Traceback" not in said
    runs = quick.runs()
    assert 3 <= stopped["begun"] < len(runs) == 8, "no step was begun a second time"
    assert stopped["spare"], "the search did not take the spare runner of the command"


def test_a_demo_that_is_done_is_run_anew(
    quick: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copy_place(quick.path / "home", tmp_path / "home")
    monkeypatch.setattr(launcher, "_start", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(
            place.workspace, place.project, seed=0, resources=HERE, watch=_stop, preset=demo.QUICK
        )  # fmt: skip
    *before, newest = place.workspace.runs.of_project(place.project.id)
    assert (newest.step, newest.status) == ("classifier", "queued")
    assert [run.id for run in before] == [run.id for run in quick.runs()]


def _stop(_run: Run) -> Run:
    raise KeyboardInterrupt


@pytest.mark.verify
@pytest.mark.timeout(1800)
def test_a_demo_is_made_again_from_its_manifest_with_equal_numbers(whole: Folder, tmp_path: Path) -> None:
    again = Folder(tmp_path, "again")
    checked(defuse_here("manifest", "--out", "manifest.json", cwd=tmp_path, env=whole.env))
    words = ("replay", "manifest.json", "--name", "again", "--json")
    checked(defuse_process(*words, cwd=tmp_path, env=again.env))
    found = {run.step: run for run in again.runs()}
    before = {run.step: run for run in whole.runs()}
    assert before.keys() - found.keys() == {"annotate"}, "labels come with the manifest"
    for step in ("identify", "distill", "correct", "evaluate"):
        assert found[step].summary == before[step].summary


def test_every_config_of_the_demo_is_valid() -> None:
    steps = [step for step, _ in demo.demo_configs()]
    assert set(steps) == set(STEPS) - {
        "inspect", "annotators", "control", "probe", "map", "stability",
    }  # fmt: skip
    for preset in (PRESETS["demo"], demo.QUICK):
        for step, config in demo.demo_configs(preset):
            check_config(step, config)


def test_the_cards_say_what_reading_the_digits_says(tmp_path: Path) -> None:
    read = new_project(Workspace(tmp_path / "home"), "read", "digits")
    assert demo.digits_dataset() == read.dataset


def test_a_project_of_the_same_name_on_other_data_is_left_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    workspace.create_project("demo", dataset={"source": "/mine.npz", "class_names": ["a"]})
    with pytest.raises(WorkspaceError, match=r"is on /mine.npz, the demo on digits; give another --project"):
        demo.demo_project(workspace)


def test_the_whole_demo_and_the_quick_one_do_not_mix(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    whole, quick = demo.demo_project(workspace), demo.quick_project(workspace)
    assert (whole.name, quick.name) == ("demo", "demo-quick")
    assert demo.quick_project(workspace) == quick
    with pytest.raises(WorkspaceError, match=r"'demo' is on other data than the quick demo, .* --project"):
        demo.quick_project(workspace, "demo")
    with pytest.raises(WorkspaceError, match=r"'demo-quick' is on blob:.*, the demo on digits; give another"):
        demo.demo_project(workspace, "demo-quick")


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("demo", "--device", "quantum"), "device must be auto, cpu, mps, cuda", 2),
        (("demo", "--device", "cuda:99"), "use --device cpu", 1),
        (("demo", "--quick", "--out", "taken"), "taken is a file; give another name", 1),
    ],
)
def test_errors_are_one_line_with_the_remedy(
    words: tuple[str, ...], told: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    done = checked(defuse_here(*words, cwd=tmp_path, env={"DEFUSE_HOME": str(tmp_path / "home")}), code)
    assert told in " ".join((done.stdout + done.stderr).split())


def test_wrong_calls_exit_with_2(tmp_path: Path) -> None:
    checked(defuse_here("demo", "--seed", "-1", cwd=tmp_path), 2)
    checked(defuse_here("dmeo", cwd=tmp_path), 2)
