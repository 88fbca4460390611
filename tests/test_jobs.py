"""Runs as real processes: killed, cancelled, out of disk, orphaned, and what is left of them.

What a process is not needed for is computed here. Rules that a runner keeps are tested both ways: of one
that is started for its run, and of one that a spare runner forks; the others take the latter, which is there
at once.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from defuse_core.jobs import launcher
from defuse_core.jobs.spare import SPARE_RUNNER
from defuse_core.steps.base import Item
from defuse_core.steps.correct import Correct
from defuse_core.workspace.config_checks import ConfigError
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.run_store import LiveRunError
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Workspace
from tests.in_process import add_run, compute_here, done_here, run_here, runs_in_this_process
from tests.spares import is_spare, is_zombie, keeping_spare, without_spare
from tests.templates import label
from tests.workspaces import ONE_THREAD, SEARCH, SWEEP, Place, computing_elsewhere, copy_place, eventually

SHORT_SEARCH = {**SEARCH, "n_perturbations": 3}
LONG_SEARCH = {**SEARCH, "n_perturbations": 300}
LONG_SWEEP: dict[str, Any] = {
    "correction": {
        **SWEEP["correction"],
        "lambdas": [0.0, 0.01, 0.1, 1.0, 3.0, 10.0],
        "epochs": 2,
    },
    "baseline_lambdas": [0.1, 1.0],
}
ENDLESS = {**SEARCH, "n_perturbations": 30_000}
"""A shard of this takes most of a minute."""

N_KILLS = 20
"""Of each of two steps in the campaign, at four seconds each."""

Way = Literal["new runner", "spare runner"]
both_ways = pytest.mark.parametrize("way", get_args(Way))


@pytest.fixture(scope="module", autouse=True)
def kept_spare() -> Iterator[int]:
    """A spare runner, for all runs of this file that are not started without; its process id."""
    with keeping_spare(ONE_THREAD) as kept:
        yield kept


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path, kept_spare: int) -> Iterator[None]:
    """Whatever a test does, its runners are gone after it, and reaped."""
    yield

    def runners() -> list[psutil.Process]:
        return [
            *psutil.Process(kept_spare).children(),
            *(
                p
                for p in psutil.process_iter(["cmdline", "status"])
                if p.info["status"] != psutil.STATUS_ZOMBIE
                and any(word.startswith(str(tmp_path)) for word in p.info["cmdline"] or [])
            ),
        ]

    def zombies() -> list[psutil.Process]:
        return [p for p in psutil.Process().children() if is_zombie(p)]

    try:
        eventually(lambda: not runners(), seconds=30)
        eventually(lambda: not zombies(), seconds=2)
    finally:
        for left in runners():  # lest it slow what is tested next
            left.kill()


def submit(place: Place, way: Way, step: StepName, config: dict[str, Any]) -> Run:
    """Start a run in this way."""
    with starting(way):
        run = place.submit(step, config)
    assert is_spare(run) == (way == "spare runner")
    return run


def resume(place: Place, way: Way, run: Run) -> Run:
    """Go on with a run in this way."""
    with starting(way):
        run = launcher.resume(place.workspace, run.id)
    assert is_spare(run) == (way == "spare runner")
    return run


def starting(way: Way) -> AbstractContextManager[None]:
    """Let runs be started in this way."""
    return nullcontext() if way == "spare runner" else without_spare()


def same(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> bool:
    """Whether two runs left the same tensors, bit for bit."""
    return found.keys() == expected.keys() and all(
        tensors.keys() == expected[name].keys()
        and all(torch.equal(value, expected[name][key]) for key, value in tensors.items())
        for name, tensors in found.items()
    )


def is_running(place: Place, run: Run) -> bool:
    return place.get(run).status == "running"


def works(place: Place, run: Run) -> bool:
    """Whether a task of the run is under way."""
    return any(task.status == "running" for task in place.workspace.runs.tasks(run.id))


def done_tasks(place: Place, run: Run) -> list[str]:
    return [task.name for task in place.workspace.runs.tasks(run.id) if task.status == "done"]


@pytest.mark.parametrize(
    ("step", "config", "way"),
    [
        ("identify", SEARCH, "new runner"),
        ("correct", SWEEP, "spare runner"),
    ],
)
def test_a_run_killed_in_the_middle_is_resumed_to_the_same_result(
    step: StepName, config: dict[str, Any], way: Way, corrected_template: Path, place: Place
) -> None:
    undisturbed = Workspace(corrected_template)
    expected = undisturbed.runs.latest(1, step)
    assert expected is not None
    run = submit(place, way, step, config)
    moments = (lambda _: True, lambda run: works(place, run), lambda run: bool(done_tasks(place, run)))
    for moment in moments:
        eventually(partial(moment, run), seconds=30)
        os.kill(place.get(run).pid, signal.SIGKILL)
        assert _state_after_death(place, run) == "interrupted"
        place.check_integrity()
        kept = done_tasks(place, run)
        artifacts = place.workspace.runs.artifacts(run.id)
        assert all(any(a.startswith(f"{name}.") for a in artifacts) for name in kept)
        run = resume(place, way, run)
    assert kept
    ended = place.wait(run)
    assert ended.status == "done", ended.error
    assert same(place.tensors(ended), Place(undisturbed, undisturbed.project(1)).tensors(expected))
    assert ended.summary == expected.summary
    place.check_integrity()


@pytest.mark.verify
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("step", "config"), [("identify", LONG_SEARCH), ("correct", LONG_SWEEP)])
def test_a_run_killed_at_any_moment_is_resumed_to_the_same_result(
    step: StepName, config: dict[str, Any], template: Path, tmp_path: Path
) -> None:
    undisturbed = copy_place(template, tmp_path / "undisturbed")
    started = time.monotonic()
    expected = undisturbed.run(step, config)
    lasted = time.monotonic() - started
    wanted = undisturbed.tensors(expected)
    moments = random.Random(0)
    kills, attempt, kept, in_the_work = 0, 0, 0, 0
    while kills < N_KILLS:
        attempt += 1
        place = copy_place(template, tmp_path / f"attempt-{attempt}")
        run = place.submit(step, config)
        while kills < N_KILLS:
            time.sleep(moments.uniform(0.0, lasted * 0.7))
            pid = place.get(run).pid
            if not place.get(run).live:
                break
            in_the_work += works(place, run)
            os.kill(pid, signal.SIGKILL)
            kills += 1
            if _state_after_death(place, run) == "done":  # written just before the signal came
                break
            assert place.get(run).status == "interrupted"
            place.check_integrity()
            done = done_tasks(place, run)
            artifacts = place.workspace.runs.artifacts(run.id)
            assert all(any(a.startswith(f"{name}.") for a in artifacts) for name in done)
            kept = max(kept, len(done))
            run = launcher.resume(place.workspace, run.id)
        ended = place.wait(run)
        assert ended.status == "done", ended.error
        assert same(place.tensors(ended), wanted)
        assert ended.summary == expected.summary
        place.check_integrity()
    assert kept > 0
    assert in_the_work >= N_KILLS // 4, "too few kills fell into the work: the moments are badly chosen"


def test_a_resumed_run_computes_only_what_is_missing(place: Place) -> None:
    run = place.submit("correct", LONG_SWEEP)
    eventually(lambda: len(done_tasks(place, run)) >= 3, seconds=30)
    place_before = launcher.cancel(place.workspace, run.id)
    assert place_before.status == "cancelled"
    kept = {name: place.workspace.artifact_path(run.id, name).stat().st_mtime_ns
            for name in place.workspace.runs.artifacts(run.id)}  # fmt: skip
    assert len(kept) >= 4
    points = {e.key: e.id for e in place.workspace.runs.events(run.id, kind="point")}
    with runs_in_this_process():
        assert launcher.resume(place.workspace, run.id).status == "done"
    for name, written in kept.items():
        assert place.workspace.artifact_path(run.id, name).stat().st_mtime_ns == written
    after = {e.key: e.id for e in place.workspace.runs.events(run.id, kind="point")}
    assert points.items() <= after.items()
    assert len(after) == len(LONG_SWEEP["correction"]["lambdas"]) + 3  # before, and two of the baseline


def test_a_training_goes_on_from_its_last_epoch(place: Place) -> None:
    config = {
        **{"hidden_channels": 16, "depth": 2, "latent_dim": 4},
        "training": {"epochs": 8, "batch_size": 32, "precision": "fp32"},
    }
    expected = done_here(place, "vae", config, seed=1)
    run = place.submit("vae", config, seed=1)
    eventually(lambda: len(place.workspace.runs.events(run.id, kind="point")) >= 3, seconds=30)
    os.kill(place.get(run).pid, signal.SIGKILL)
    eventually(lambda: place.get(run).status == "interrupted", seconds=2)
    points = place.workspace.runs.events(run.id, kind="point")
    resumed = place.wait(launcher.resume(place.workspace, run.id))
    assert same(place.tensors(resumed), place.tensors(expected))
    after = place.workspace.runs.events(run.id, kind="point")
    assert [int(e.key) for e in after] == list(range(1, 9))
    rewritten = {e.key for e in points} - {e.key for e in after if e.id in {p.id for p in points}}
    assert len(rewritten) <= 1  # the epoch under way, whose point came before its checkpoint or after


@both_ways
def test_a_run_outlives_the_process_that_asked_for_it(place: Place, way: Way) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from defuse_core.workspace.workspace import Workspace; from defuse_core.jobs import launcher\n"
        "from defuse_core.workspace.runs import Resources\n"
        f"place = Workspace(Path({str(place.workspace.home)!r}))\n"
        "resources = Resources(device='cpu', threads=1); launcher.keep_spare(resources)\n"
        "launcher.await_spare()\n"
        f"run = launcher.submit(place, 1, 'identify', {SHORT_SEARCH!r}, resources=resources)\n"
        "print(run.id, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
        env={**os.environ, SPARE_RUNNER: "1" if way == "spare runner" else "0"},
    )  # fmt: skip
    assert parent.stdout is not None
    run = place.workspace.runs.get(int(parent.stdout.readline()))
    assert is_spare(run) == (way == "spare runner")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert place.wait(run).status == "done"


def await_beats(place: Place, run: Run) -> None:
    """Wait until its runner is there and beats."""
    seen: set[float] = set()
    eventually(lambda: bool(seen.add(place.get(run).heartbeat_at) or len(seen) > 2), seconds=30)


def test_a_queued_run_is_cancelled_and_never_starts(place: Place) -> None:
    with computing_elsewhere(place.workspace):
        run = place.submit("identify", SEARCH)
        await_beats(place, run)
        assert place.get(run).status == "queued"
        took = _cancel(place, run)
        assert took < 1.0
    assert place.get(run).status == "cancelled"
    assert place.get(run).started_at is None
    assert not place.workspace.runs.tasks(run.id)


def test_two_runs_do_not_compute_at_once(place: Place) -> None:
    first, second = place.submit("identify", SHORT_SEARCH), place.submit("map", {"method": "pca"})
    for run in (first, second):
        assert place.wait(run).status == "done"
    spans = sorted((r.started_at or 0.0, r.finished_at or 0.0) for r in map(place.get, (first, second)))
    assert spans[0][1] <= spans[1][0] + 0.01


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # this process has yet to wait for it
    except psutil.NoSuchProcess:
        return True


@both_ways
def test_a_running_run_is_cancelled_within_a_second(place: Place, way: Way) -> None:
    run = submit(place, way, "correct", LONG_SWEEP)
    eventually(lambda: works(place, run), seconds=30)
    pid = place.get(run).pid
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert _cancel(place, run) < 1.0
    assert place.get(run).status == "cancelled"
    eventually(lambda: has_ended(pid), seconds=10)  # it says so before it ends
    place.check_integrity()


@both_ways
def test_a_run_in_one_long_native_call_is_cancelled_within_a_second(place: Place, way: Way) -> None:
    """A shard's noise is drawn in a single call of NumPy's: 77 million numbers, about three seconds."""
    run = submit(place, way, "identify", {**SEARCH, "n_perturbations": 300_000})
    eventually(lambda: works(place, run), seconds=30)
    process = psutil.Process(place.get(run).pid)
    busy = process.cpu_times().user
    eventually(lambda: process.cpu_times().user > busy + 0.3, seconds=30)  # it draws
    assert _cancel(place, run) < 1.0
    assert place.get(run).status == "cancelled"


@both_ways
def test_a_run_that_does_not_answer_is_killed_within_a_second(place: Place, way: Way) -> None:
    run = submit(place, way, "identify", ENDLESS)
    eventually(lambda: works(place, run), seconds=30)
    os.kill(place.get(run).pid, signal.SIGSTOP)  # as deaf as a call that never lets go
    assert _cancel(place, run) < 1.0
    assert place.get(run).status == "cancelled"


@both_ways
def test_a_terminated_run_keeps_what_is_done_and_says_interrupted(place: Place, way: Way) -> None:
    run = submit(place, way, "correct", LONG_SWEEP)
    eventually(lambda: "lam=0.safetensors" in place.workspace.runs.artifacts(run.id), seconds=30)
    os.kill(place.get(run).pid, signal.SIGTERM)  # as at the machine's shutdown
    assert eventually(lambda: not place.get(run).live, seconds=2) < 1.0
    assert place.get(run).status == "interrupted"
    assert "lam=0.safetensors" in place.workspace.runs.artifacts(run.id)


def test_one_task_is_cancelled_and_the_others_go_on(place: Place) -> None:
    run = place.submit("correct", LONG_SWEEP)
    eventually(lambda: bool(place.workspace.runs.tasks(run.id)), seconds=30)
    launcher.cancel(place.workspace, run.id, "lam=10")
    ended = place.wait(run)
    assert ended.status == "done"
    assert ended.summary["missing"] == ["lam=10"]
    assert "lam=10.safetensors" not in place.workspace.runs.artifacts(run.id)
    assert len(ended.summary["corrected"]["points"]) == len(LONG_SWEEP["correction"]["lambdas"]) - 1
    with runs_in_this_process():
        whole = launcher.resume(place.workspace, run.id)
        assert whole.status == "done"
    undisturbed = done_here(place, "correct", LONG_SWEEP)
    assert whole.summary == undisturbed.summary
    assert same(place.tensors(whole), place.tensors(undisturbed))


def test_what_others_stand_on_is_not_completed_under_them(place: Place) -> None:
    """Labels name mistakes by number: a search that grows would give them other images."""
    search = add_run(place, "identify", SEARCH)
    compute_here(place.workspace, search, cancelled=["shard=0019"])
    assert place.get(search).summary["missing"] == ["shard=0019"]
    regions = done_here(place, "distill", {"n_components": 12})
    with pytest.raises(WorkspaceError, match=f"run {regions.id} stands on what it left out"):
        launcher.resume(place.workspace, search.id)
    assert place.get(search).status == "done"
    assert place.get(search).summary["missing"] == ["shard=0019"]


def test_a_correction_that_lacked_labels_takes_those_that_came_since(place: Place) -> None:
    regions = done_here(place, "distill", {"n_components": 12}, seed=1)
    run = run_here(place, "correct", SWEEP)
    assert run.status == "failed"
    label(place, regions)
    with runs_in_this_process():
        resumed = launcher.resume(place.workspace, run.id)
    assert resumed.status == "done"
    assert resumed.last_annotation == place.workspace.annotations.last_id(regions.id)
    assert len(resumed.record["attempts"]) == 2


def test_a_correction_waits_for_annotators_at_work(place: Place) -> None:
    regions = place.workspace.runs.latest(place.project.id, "distill")
    assert regions is not None
    annotating = place.workspace.runs.add(
        place.project.id, "annotate", {}, seed=0, resources=Resources(), upstream=[regions.id]
    )
    run = place.submit("correct", SWEEP)
    await_beats(place, run)
    assert place.get(run).status == "queued"
    place.workspace.annotations.append(regions.id, [LabelEvent(0, "late", 0, 0)])
    newest = place.workspace.annotations.last_id(regions.id)
    place.workspace.runs.finish(annotating.id, "done")
    assert place.wait(run).last_annotation == newest


def test_a_run_that_cannot_be_handed_over_does_not_stay_queued(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise WorkspaceError("database is locked")

    monkeypatch.setattr(place.workspace.runs, "hand_over", locked)
    with pytest.raises(WorkspaceError, match="database is locked"):
        place.submit("identify", SEARCH)
    monkeypatch.undo()
    assert place.workspace.runs.of_project(place.project.id, "identify")[-1].status == "failed"
    assert done_here(place, "identify", SEARCH).status == "done"


def test_an_unknown_task_is_named(place: Place) -> None:
    run = place.workspace.runs.latest(place.project.id, "identify")
    assert run is not None
    with pytest.raises(WorkspaceError, match=r"no task 'lam=7'; it has: shard=0000"):
        launcher.cancel(place.workspace, run.id, "lam=7")


def test_a_full_disk_fails_the_run_and_loses_nothing(corrected_place: Place) -> None:
    place = corrected_place
    expected = place.workspace.runs.latest(place.project.id, "correct")
    assert expected is not None
    stored = place.workspace.runs.artifacts(expected.id)
    size = stored["lam=0.safetensors"].size  # of the first; the database's log is to stay smaller
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    code = (
        "import resource; from pathlib import Path\n"
        "from defuse_core.workspace.workspace import Workspace; from defuse_core.jobs import launcher\n"
        "from defuse_core.workspace.runs import Resources\n"
        f"place = Workspace(Path({str(place.workspace.home)!r}))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size - 1000}, {size - 1000}))\n"
        f"run = launcher.submit(place, 1, 'correct', {SWEEP!r}, resources=Resources('cpu', 1)); print(run.id)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    run = place.wait(place.workspace.runs.get(int(told)))
    assert run.status == "failed"
    assert run.error is not None
    assert "File too large" in run.error
    assert "free disk space" in run.error
    assert "then resume" in run.error
    place.check_integrity()
    assert not list(place.workspace.run_folder(run.id).glob(".*")), "a temporary file was left"
    with runs_in_this_process():
        resumed = launcher.resume(place.workspace, run.id)
    assert resumed.status == "done"
    assert same(place.tensors(resumed), place.tensors(expected))


def test_two_processes_submit_one_run(place: Place) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from defuse_core.workspace.workspace import Workspace; from defuse_core.jobs import launcher\n"
        "from defuse_core.workspace.runs import Resources\n"
        f"place = Workspace(Path({str(place.workspace.home)!r}))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"launcher.submit(place, 1, 'identify', {SHORT_SEARCH!r}, resources=Resources('cpu', 1))"
    )
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    both = [subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert "LiveRunError: identify is already" in "".join(errors)
    runs = place.workspace.runs.of_project(place.project.id, "identify")
    assert len(runs) == 2  # the template's, and one more
    assert place.wait(runs[-1]).status == "done"


def test_a_live_run_is_neither_submitted_again_nor_resumed(place: Place) -> None:
    run = place.submit("identify", ENDLESS)
    with pytest.raises(LiveRunError, match=f"as run {run.id}; wait for it, or stop it"):
        place.submit("identify", SEARCH)
    with pytest.raises(LiveRunError, match="cancel it first"):
        launcher.resume(place.workspace, run.id)
    with pytest.raises(WorkspaceError, match=f"run {run.id} is live; cancel it first"):
        place.workspace.delete_project(place.project.id)
    launcher.cancel(place.workspace, run.id)


def test_a_run_waits_for_those_it_stands_on(place: Place) -> None:
    search = place.submit("identify", SEARCH)
    regions = place.submit("distill", {"n_components": 12})
    assert place.get(regions).upstream == (search.id,)
    ended = place.wait(regions)
    assert ended.status == "done"
    finished = place.get(search).finished_at
    assert finished is not None
    assert (ended.started_at or 0) >= finished


def test_a_run_whose_ground_is_cancelled_fails_with_the_remedy(place: Place) -> None:
    search = place.submit("identify", ENDLESS)
    regions = place.submit("distill")
    launcher.cancel(place.workspace, search.id)
    ended = place.wait(regions)
    assert ended.status == "failed"
    assert ended.error == (
        f"identify (run {search.id}) is cancelled; resume it, then resume this run: defuse resume {search.id}"
    )


def test_a_task_that_fails_leaves_the_others_done(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_once(step: Correct, task: str) -> Iterator[Item]:
        if task == "lam=1":
            raise RuntimeError("out of memory")
        yield from run_task(step, task)

    run_task = Correct.run
    monkeypatch.setattr(Correct, "run", fail_once)
    sweep = {**SWEEP, "correction": {**SWEEP["correction"], "lambdas": [0.1, 1.0, 10.0]}}
    run = run_here(place, "correct", sweep)
    assert run.status == "failed"
    assert run.error == "lam=1: out of memory"
    states = {task.name: task.status for task in place.workspace.runs.tasks(run.id)}
    assert states["lam=1"] == "failed"
    assert {states["lam=0.1"], states["lam=10"], states["baseline/lam=1"]} == {"done"}


def test_a_step_without_its_ground_names_what_to_run(place: Place) -> None:
    with pytest.raises(WorkspaceError, match="evaluate stands on correct, of which no run is done"):
        place.submit("evaluate")
    with pytest.raises(ConfigError, match="identify: noise_a should be greater than 0, got -1"):
        place.submit("identify", {"noise_a": -1})
    assert not place.workspace.runs.of_project(place.project.id, "evaluate")


def test_a_run_that_is_done_is_not_resumed(place: Place) -> None:
    run = place.workspace.runs.latest(place.project.id, "identify")
    assert run is not None
    with pytest.raises(WorkspaceError, match="is done; submit the step again"):
        launcher.resume(place.workspace, run.id)


def test_changed_data_are_noticed(place: Place, template: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data.npz"
    copy.write_bytes((template.parent / "shapes.npz").read_bytes())
    mine = Place(place.workspace, new_project(place.workspace, "mine", str(copy)))
    with np.load(copy) as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["x_train"] = changed["x_train"][::-1]
    np.savez(copy, **changed)
    run = run_here(mine, "vae", {"training": {"epochs": 1}})
    assert run.status == "failed"
    assert run.error is not None
    assert (
        "has changed since project 'mine' was created: it has other pixels or labels; put the old data back"
        in run.error
    )


def test_a_run_records_what_made_it(place: Place) -> None:
    run = done_here(place, "identify", SEARCH, seed=7)
    record = run.record
    assert record["versions"]["torch"] == version("torch")
    assert torch.__version__.startswith(version("torch"))
    assert set(record["versions"]) == {"defuse", "torch", "numpy", "scikit-learn", "python"}
    assert record["device"]["device"] == "cpu"
    assert record["threads"] == 1
    assert run.seed == 7
    assert {**run.config, **SEARCH} == run.config
    assert 0 < run.seconds < 60
    assert run.finished_at is not None
    assert run.started_at is not None
    assert run.seconds == pytest.approx(run.finished_at - run.started_at, abs=0.2)


def test_a_runner_takes_only_the_run_it_was_given(place: Place) -> None:
    run = place.workspace.runs.latest(place.project.id, "identify")
    assert run is not None
    command = [sys.executable, "-m", "defuse_core.jobs.runner", str(place.workspace.home), str(run.id)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert f"defuse resume {run.id}" in done.stderr
    assert place.get(run).status == "done"


def test_a_dead_ray_address_is_refused_at_once(place: Place) -> None:
    started = time.monotonic()
    with pytest.raises(WorkspaceError, match=r"no Ray cluster answers at 127\.0\.0\.1:9 .*ray start --head"):
        place.submit("identify", SEARCH, resources=Resources(engine="ray", address="127.0.0.1:9"))
    assert time.monotonic() - started < 5
    with pytest.raises(ConfigError, match="address must be HOST:PORT or local"):
        place.submit("identify", SEARCH, resources=Resources(engine="ray", address="nowhere"))


def _state_after_death(place: Place, run: Run) -> str:
    """The state that a killed run reads as, within two seconds."""
    eventually(lambda: not place.get(run).live, seconds=2.0)
    return place.get(run).status


def _cancel(place: Place, run: Run) -> float:
    """Cancel a run; the seconds until it reads as ended."""
    started = time.monotonic()
    launcher.cancel(place.workspace, run.id)
    eventually(lambda: not place.get(run).live, seconds=3)
    return time.monotonic() - started
