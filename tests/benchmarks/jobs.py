"""What runs cost beside the work they do: the start, the events, and what a resume saves."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from defuse_core.jobs import launcher
from defuse_core.jobs.runner import Recorder
from defuse_core.jobs.spare import SPARE_RUNNER
from defuse_core.steps.base import Point, Progress
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Project, Workspace

ROUNDS = 5
EVENTS_A_SECOND = 100
SEARCH: dict[str, Any] = {"n_perturbations": 40, "max_mistakes_per_image": 5}
_POLL_SECONDS = 0.002


def bench_jobs() -> dict[str, float]:
    """All ratios of this file, on a workspace of digits with the shipped models."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "home")
        project = new_project(workspace, "bench", "digits")
        _run(workspace, project, "classifier", {"weights": "shipped:demo-classifier"})
        _run(workspace, project, "vae", {"weights": "shipped:demo-vae"})
        return {
            **_start(workspace, project),
            "the demo without a spare runner / with one": _demo(Path(folder)),
            f"work with {EVENTS_A_SECOND} events a second / without": _events(workspace, project),
            "starting again / resume at the half": _resume(workspace, project),
        }


def _start(workspace: Workspace, project: Project) -> dict[str, float]:
    """Seconds from the call to the first progress of a task, over those of `import torch` alone."""

    def submit() -> float:
        started = time.perf_counter()
        run = launcher.submit(workspace, project.id, "vae", {"weights": "shipped:demo-vae"})
        _until(lambda: any(t.status != "queued" for t in workspace.runs.tasks(run.id)))
        seconds = time.perf_counter() - started
        _until(lambda: not workspace.runs.get(run.id).live)
        return seconds

    def submit_to_spare() -> float:
        with launcher.spare_runner():
            spare = psutil.Process(launcher.await_spare() or 0)
            memory.append(spare.memory_full_info().uss)
            return submit()

    def import_torch() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        return time.perf_counter() - started

    memory: list[int] = []
    spare, new, torch_alone = "with a spare runner", "submit to first event", "import torch"
    seconds = _in_turn({new: submit, f"{new} {spare}": submit_to_spare, torch_alone: import_torch})
    print(f"  memory of an idle spare runner that is its own: {median(memory) / 2**20:.0f} MB")
    return {
        f"{name} / a bare import of torch": seconds[name] / seconds[torch_alone]
        for name in (new, f"{new} {spare}")
    }


def _demo(folder: Path) -> float:
    """Time of the whole demo, eight runs, without a spare runner over that with one."""
    seconds = {}
    for told, switch in (("without", "0"), ("with", "1")):
        environment = {**os.environ, "DEFUSE_HOME": str(folder / told), SPARE_RUNNER: switch}
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "defuse_core.cli", "demo", "--out", str(folder / f"{told}-evidence")],
            check=True, env=environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seconds[told] = time.perf_counter() - started
    saved = seconds["without"] - seconds["with"]
    print(f"  the demo: {seconds['without']:.0f} s without a spare runner, {saved:.1f} s less with one")
    return seconds["without"] / seconds["with"]


def _events(workspace: Workspace, project: Project) -> float:
    """Time of a fixed piece of work, bare, over its time with a progress and a point every 10 ms."""
    run = workspace.runs.add(project.id, "report", {}, seed=0, resources=Resources())
    workspace.runs.plan_tasks(run.id, ["work"])
    writer = Workspace(workspace.home, durable=False)  # as a runner's
    recorder = Recorder(writer, run.id)
    batch = torch.randn(256, 256)

    def work(*, events: bool) -> float:
        due = started = time.perf_counter()
        for step in range(30_000):
            batch @ batch
            if events and time.perf_counter() >= due:
                due += 1 / EVENTS_A_SECOND
                recorder.store("work", Progress(step, 30_000, {"loss": 0.5}))
                recorder.store("work", Point(str(step), {"loss": 0.5, "accuracy": 0.9}))
        return time.perf_counter() - started

    seconds = _in_turn({"with events": lambda: work(events=True), "without": lambda: work(events=False)})
    workspace.runs.finish(run.id, "done")
    return seconds["with events"] / seconds["without"]


def _resume(workspace: Workspace, project: Project) -> float:
    """Time of a whole search over that of the rest of one that was cancelled at the half."""
    whole, rest = [], []
    for _ in range(2):
        started = time.perf_counter()
        _run(workspace, project, "identify", SEARCH)
        whole.append(time.perf_counter() - started)
        run = launcher.submit(workspace, project.id, "identify", SEARCH)
        _until(lambda run=run: _share(workspace, run) >= 0.5)
        launcher.cancel(workspace, run.id)
        started = time.perf_counter()
        launcher.resume(workspace, run.id)
        _until(lambda run=run: not workspace.runs.get(run.id).live)
        rest.append(time.perf_counter() - started)
    print(f"  whole search: {median(whole):.1f} s, resumed at the half: {median(rest):.1f} s")
    return median(whole) / median(rest)


def _in_turn(contestants: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Median of the seconds that each returns; the rounds take turns after one to warm up."""
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(ROUNDS + 1):
        for name, run in contestants.items():
            seconds = run()
            if number:
                measured[name].append(seconds)
    for name, values in measured.items():
        print(f"  {name}: {median(values):.3f} s ({min(values):.3f} … {max(values):.3f})")
    return {name: median(values) for name, values in measured.items()}


def _run(workspace: Workspace, project: Project, step: StepName, config: dict[str, Any]) -> Run:
    run = launcher.submit(workspace, project.id, step, config)
    _until(lambda: not workspace.runs.get(run.id).live)
    found = workspace.runs.get(run.id)
    log = (workspace.run_folder(run.id) / "log.txt").read_text()
    assert found.status == "done", f"{found}\n{workspace.runs.events(run.id, kind='status')}\n{log}"
    return found


def _share(workspace: Workspace, run: Run) -> float:
    tasks = workspace.runs.tasks(run.id)
    return sum(task.status == "done" for task in tasks) / max(len(tasks), 1)


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(_POLL_SECONDS)
