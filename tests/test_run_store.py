"""Runs as rows: one live a step, gone when their process is, stale when what they stand on changed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defuse_core.workspace import runs as runs_module
from defuse_core.workspace.database import Database, WorkspaceError
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.run_store import LiveRunError
from defuse_core.workspace.runs import (
    Artifact,
    Resources,
    Run,
    RunStatus,
    is_alive,
    mark_stale,
    process_started,
)
from defuse_core.workspace.workspace import Workspace
from tests.properties import tried

ENDED: tuple[RunStatus, ...] = ("done", "failed", "cancelled", "interrupted")

ADDER = """
import sys, time
from pathlib import Path
from defuse_core.workspace.run_store import LiveRunError
from defuse_core.workspace.runs import Resources
from defuse_core.workspace.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]), durable=False)
print("ready", flush=True)
start = float(sys.stdin.readline())
for number in range(int(sys.argv[2])):
    time.sleep(max(0.0, start + 0.02 * number - time.time()))
    try:
        run = workspace.runs.add(1, f"step {number}", {}, seed=0, resources=Resources())
        print("won", run.id, flush=True)
    except LiveRunError as error:
        print("lost", error, flush=True)
sys.stdin.read()  # stays until the other one is done, too: a run lives as long as its process
"""

RUNNER = """
import os, sys, time
from pathlib import Path
from defuse_core.workspace.workspace import Workspace
workspace, run_id = Workspace(Path(sys.argv[1])), int(sys.argv[2])
workspace.runs.hand_over(run_id, os.getpid())
if sys.argv[3] == "running":
    workspace.runs.start(run_id, {})
    workspace.runs.plan_tasks(run_id, ["first", "second"])
    workspace.runs.report_progress(run_id, "first", 3, 9, {"loss": 0.5})
print("up", flush=True)
while True:
    workspace.runs.beat(run_id)
    time.sleep(0.1)
"""

SHORT_LIVES = """
import os, sys
from pathlib import Path
from defuse_core.workspace.workspace import Workspace
print("ready", flush=True)
for line in sys.stdin:
    run_id = int(line)
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    runs = Workspace(Path(sys.argv[1]), durable=False).runs
    runs.hand_over(run_id, os.getpid())
    runs.start(run_id, {})
    runs.finish(run_id, "done")
    os._exit(0)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with one project, number 1."""
    made = Workspace(tmp_path / "home", durable=False)
    made.create_project("project", dataset={})
    return made


@pytest.fixture
def spawn(workspace: Workspace) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that takes a run over; it is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(run: Run, *, until: str = "running") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(workspace.home), str(run.id), until],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def add(workspace: Workspace, step: str = "vae", **given: Any) -> Run:
    return workspace.runs.add(1, step, {}, seed=0, resources=Resources(), **given)


def start(workspace: Workspace, run: Run) -> Run:
    """Let the process of the tests be the runner."""
    workspace.runs.hand_over(run.id, os.getpid())
    workspace.runs.start(run.id, {})
    return workspace.runs.get(run.id)


def end(workspace: Workspace, run: Run, status: RunStatus = "done") -> Run:
    workspace.runs.finish(run.id, status)
    return workspace.runs.get(run.id)


def done(workspace: Workspace, step: str, **given: Any) -> Run:
    return end(workspace, start(workspace, add(workspace, step, **given)))


def statuses(workspace: Workspace, run: Run) -> list[str]:
    return [event.key for event in workspace.runs.events(run.id, kind="status")]


def write(workspace: Workspace, sql: str, *values: object) -> None:
    """Write to the database as nothing in the product does."""
    database = Database(workspace.home / "defuse.sqlite")
    with database.write() as connection:
        connection.execute(sql, values)
    database.close()


# The life of a run


def test_a_run_is_queued_runs_and_ends_with_all_that_it_was_given(workspace: Workspace) -> None:
    config = {"lambdas": [1e-10, 0.1], "name": "β", "none": None, "nested": {"true": True}}
    resources = Resources("cuda:1", 3, "ray", "host:6379", 0.5, 0.25)
    upstream = done(workspace, "classifier")
    before = time.time()
    run = workspace.runs.add(
        1, "vae", config, seed=7, resources=resources, upstream=[upstream.id], last_annotation=5
    )
    assert (run.status, run.live, run.has_runner) == ("queued", True, False)
    assert (run.started_at, run.attempt_at, run.finished_at) == (None, None, None)
    assert (run.config, run.seed, run.resources) == (config, 7, resources)
    assert (run.upstream, run.last_annotation, run.project_id) == ((upstream.id,), 5, 1)
    workspace.runs.hand_over(run.id, os.getpid())
    workspace.runs.start(run.id, {"threads": 2})
    run = workspace.runs.get(run.id)
    assert (run.status, run.live, run.has_runner, run.pid) == ("running", True, True, os.getpid())
    time.sleep(0.05)
    workspace.runs.finish(run.id, "done", summary={"mistakes": 3})
    run = workspace.runs.get(run.id)
    assert (run.status, run.live, run.error) == ("done", False, None)
    assert run.record == {"threads": 2, "attempts": [{"threads": 2}], "summary": {"mistakes": 3}}
    assert run.summary == {"mistakes": 3}
    assert run.started_at is not None
    assert run.finished_at is not None
    assert before <= run.created_at <= run.started_at <= run.finished_at <= time.time()
    assert run.attempt_at == run.started_at
    assert 0.05 <= run.seconds <= run.finished_at - run.started_at + 0.01
    assert statuses(workspace, run) == ["queued", "running", "done"]


@pytest.mark.parametrize("first", ENDED)
@pytest.mark.parametrize("second", ENDED)
def test_a_run_that_has_ended_stays_as_it_is(
    workspace: Workspace, first: RunStatus, second: RunStatus
) -> None:
    run = start(workspace, add(workspace))
    workspace.runs.finish(run.id, first, error="first", summary={"n": 1})
    before = workspace.runs.get(run.id)
    workspace.runs.finish(run.id, second, error="second", summary={"n": 2})
    assert workspace.runs.get(run.id) == before
    assert (before.status, before.error, before.summary) == (first, "first", {"n": 1})
    assert statuses(workspace, run) == ["queued", "running", first]


@pytest.mark.parametrize("state", ["not handed over", "another process", "running", "done"])
def test_a_run_starts_only_once_and_only_for_its_runner(workspace: Workspace, state: str) -> None:
    run = add(workspace)
    if state == "another process":
        workspace.runs.hand_over(run.id, os.getppid())
    elif state != "not handed over":
        start(workspace, run)
    if state == "done":
        end(workspace, run)
    before = workspace.runs.get(run.id)
    with pytest.raises(
        WorkspaceError, match=rf"run {run.id} is not queued for .*use: defuse resume {run.id}"
    ):
        workspace.runs.start(run.id, {"second": True})
    assert workspace.runs.get(run.id) == before


def test_a_run_that_is_no_longer_queued_is_not_handed_over(workspace: Workspace) -> None:
    run = start(workspace, add(workspace))
    workspace.runs.hand_over(run.id, os.getppid())
    assert workspace.runs.get(run.id).pid == os.getpid()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"project_id": 9}, "project 9 no longer exists; see: defuse projects"),
        ({"upstream": [99]}, "project 1 has no run 99; see: defuse runs"),
        ({"seed": -1}, "the run was refused.*seed"),
    ],
)
def test_a_run_that_cannot_be_added_leaves_nothing(
    workspace: Workspace, values: dict[str, Any], told: str
) -> None:
    given = {"project_id": 1, "step": "vae", "config": {}, "seed": 0, "resources": Resources(), **values}
    with pytest.raises(WorkspaceError, match=told):
        workspace.runs.add(given.pop("project_id"), given.pop("step"), given.pop("config"), **given)
    assert workspace.runs.of_project(1) == []
    assert add(workspace).status == "queued"


def test_a_run_cannot_stand_on_a_run_of_another_project(workspace: Workspace) -> None:
    other = workspace.create_project("other", dataset={})
    upstream = done(workspace, "vae")
    own = workspace.runs.add(other.id, "vae", {}, seed=0, resources=Resources())
    told = f"^project {other.id} has no run {upstream.id}; see: defuse runs$"
    with pytest.raises(WorkspaceError, match=told):
        workspace.runs.add(
            other.id, "identify", {}, seed=0, resources=Resources(), upstream=[own.id, upstream.id]
        )
    assert workspace.runs.of_project(other.id) == [own]


def test_a_run_that_stands_on_another_twice_stands_on_it_once(workspace: Workspace) -> None:
    first, second = (done(workspace, step) for step in ("classifier", "vae"))
    run = add(workspace, "identify", upstream=[second.id, first.id, second.id])
    assert run.upstream == (first.id, second.id)
    assert workspace.runs.get(run.id) == run


def test_runs_that_do_not_exist_are_named_with_the_remedy(workspace: Workspace) -> None:
    for call in (workspace.runs.get, workspace.runs.requeue, workspace.runs.ancestry):
        with pytest.raises(WorkspaceError, match="there is no run 99; see: defuse runs"):
            call(99)
    for task in (None, "a"):
        with pytest.raises(WorkspaceError, match="there is no run 99; see: defuse runs"):
            workspace.runs.ask_to_cancel(99, task)
    assert workspace.runs.beat(99) == (True, frozenset()), "a runner whose run was deleted is to stop"


# One live run a project and step


def test_a_second_live_run_of_a_step_is_refused_and_told_of_the_first(workspace: Workspace) -> None:
    run = add(workspace)
    for status in ("queued", "running"):
        told = rf"vae is already {status} as run {run.id}; wait .*stop it with: defuse cancel {run.id}"
        with pytest.raises(LiveRunError, match=told):
            add(workspace)
        if status == "queued":
            start(workspace, run)
    assert [r.id for r in workspace.runs.of_project(1)] == [run.id]
    other = workspace.create_project("other", dataset={})
    assert add(workspace, "identify").live, "another step may live beside it"
    assert workspace.runs.add(other.id, "vae", {}, seed=0, resources=Resources()).live
    end(workspace, run)
    assert add(workspace).id > run.id


def test_two_processes_that_add_at_the_same_instant_make_one_run(workspace: Workspace) -> None:
    rounds = 40
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, str(workspace.home), str(rounds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    lines: list[list[str]] = []
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    instant = time.time() + 0.05
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{instant}\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        lines.append([process.stdout.readline().strip() for _ in range(rounds)])
    for process in processes:
        process.communicate()
    runs = {run.step: run.id for run in workspace.runs.of_project(1)}
    assert len(workspace.runs.of_project(1)) == len(runs) == rounds
    for number, told in enumerate(zip(*lines, strict=True)):
        lost, won = sorted(told)
        run_id = runs[f"step {number}"]
        assert won == f"won {run_id}"
        assert lost == (
            f"lost step {number} is already queued as run {run_id}; wait for it, or stop it with: "
            f"defuse cancel {run_id}"
        )
    assert {line.split()[0] for line in lines[0]} == {"won", "lost"}, "the processes never raced"


# Processes that are gone


def wait_for(workspace: Workspace, run: Run, status: str) -> float:
    """Seconds until a run reads as it should; 2 s at most."""
    began = time.monotonic()
    while workspace.runs.get(run.id).status != status:
        assert time.monotonic() - began < 2, f"still {workspace.runs.get(run.id).status}"
        time.sleep(0.01)
    return time.monotonic() - began


@pytest.mark.parametrize("until", ["queued", "running"])
@pytest.mark.parametrize(("asked", "status"), [(False, "interrupted"), (True, "cancelled")])
@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_a_run_whose_process_was_killed_reads_as_ended_within_two_seconds(
    workspace: Workspace,
    spawn: Callable[..., subprocess.Popen[str]],
    until: str,
    asked: bool,
    status: str,
    reaped: bool,
) -> None:
    run = add(workspace)
    process = spawn(run, until=until)
    assert workspace.runs.get(run.id).status == until
    if asked:
        assert workspace.runs.ask_to_cancel(run.id)
    process.kill()
    if reaped:
        process.wait()
    wait_for(workspace, run, status)
    if not reaped:
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert [task.status for task in workspace.runs.tasks(run.id)] == ["queued"] * 2 * (until == "running")
    assert workspace.runs.latest(1, "vae") is None
    assert add(workspace).live, "it does not stand in the way of the next"
    assert statuses(workspace, run)[-1] == status, "written down by then"


def test_it_is_too_late_to_cancel_a_run_whose_process_is_gone(
    workspace: Workspace, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    run = add(workspace)
    process = spawn(run)
    process.kill()
    process.wait()
    assert workspace.runs.get(run.id).status == "interrupted"
    assert not workspace.runs.ask_to_cancel(run.id, "second")
    assert not workspace.runs.ask_to_cancel(run.id)
    assert workspace.runs.get(run.id).status == "interrupted"
    assert statuses(workspace, run) == ["queued", "running", "interrupted"]


@pytest.mark.parametrize("status", ["queued", "running"])
@pytest.mark.parametrize(
    ("started_off", "beat_ago", "alive"),
    [
        (0.0, 3600.0, True),  # a process that is suspended does not beat
        (-0.9, 3600.0, True),  # the kernel's times are rounded
        (3600.0, 3600.0, False),  # another process has the number now
        (-3600.0, 3600.0, False),
        (3600.0, 0.0, True),  # the clock was set by an hour, and it beats
        (-3600.0, 0.0, True),
        (3600.0, -3600.0, False),  # a heartbeat in the future is no heartbeat
    ],
)
def test_a_process_is_known_by_its_number_and_the_time_it_started(
    workspace: Workspace, status: str, started_off: float, beat_ago: float, alive: bool
) -> None:
    run = add(workspace)
    if status == "running":
        start(workspace, run)
    write(
        workspace,
        "UPDATE runs SET pid_started = pid_started + ?, heartbeat_at = ? WHERE id = ?",
        started_off,
        time.time() - beat_ago,
        run.id,
    )
    taken_over = status == "running" or beat_ago < 30
    assert workspace.runs.get(run.id).status == (status if alive and taken_over else "interrupted")


def test_a_beat_keeps_a_run_alive_whose_clock_was_set(workspace: Workspace) -> None:
    run = start(workspace, add(workspace))
    write(workspace, "UPDATE runs SET pid_started = 0, heartbeat_at = heartbeat_at - 60")
    assert workspace.runs.get(run.id).status == "interrupted"
    assert workspace.runs.beat(run.id) == (False, frozenset())
    assert workspace.runs.get(run.id).status == "running"


def test_a_process_that_is_gone_never_started_and_does_not_live() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = process_started(process.pid)
    assert began is not None
    assert abs(began + psutil.boot_time() - psutil.Process(process.pid).create_time()) < 0.01
    assert is_alive(process.pid, began, 0.0)
    process.communicate(b"\n")
    assert process_started(process.pid) is None
    assert not is_alive(process.pid, began, time.time()), "not even with a fresh heartbeat"


@pytest.mark.parametrize("look", [1, 2])
def test_a_run_that_ends_well_just_before_a_look_at_its_process_is_not_interrupted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    run = start(workspace, add(workspace))
    looks = 0

    def lives(*_: object) -> bool:
        nonlocal looks
        looks += 1
        if looks == look:
            workspace.runs.finish(run.id, "done")
        return looks < look

    monkeypatch.setattr(runs_module, "is_alive", lives)
    assert workspace.runs.get(run.id).status in ("running", "done")
    assert workspace.runs.get(run.id).status == "done"
    assert looks >= look


def test_a_task_that_ends_well_just_before_a_look_at_its_process_is_not_queued(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(workspace, add(workspace))
    workspace.runs.plan_tasks(run.id, ["a"])
    workspace.runs.report_progress(run.id, "a", 1, 2, {})

    def lives(*_: object) -> bool:
        workspace.runs.finish_task(run.id, "a", "done")
        workspace.runs.finish(run.id, "done")
        return False

    monkeypatch.setattr(runs_module, "is_alive", lives)
    assert workspace.runs.tasks(run.id)[0].status in ("running", "done")
    assert workspace.runs.tasks(run.id)[0].status == "done"


def test_a_run_whose_process_ends_with_it_is_never_read_as_interrupted(workspace: Workspace) -> None:
    """Its runner takes it over, does it and exits at once, while this process reads it all the time."""
    for number in range(4):  # more to look at between a run's row and its process
        add(workspace, f"waiting {number}")
    before_done: set[str] = set()
    with subprocess.Popen(
        [sys.executable, "-c", SHORT_LIVES, str(workspace.home)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as runner:  # fmt: skip
        assert runner.stdin is not None
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
        for number in range(150):
            run = add(workspace, f"step {number}")
            runner.stdin.write(f"{run.id}\n")
            runner.stdin.flush()
            last, until = "queued", time.monotonic() + 10
            while (status := workspace.runs.get(run.id).status) != "done" and time.monotonic() < until:
                last = status
            assert status == "done"
            before_done.add(last)
        runner.stdin.close()
    assert before_done <= {"queued", "running"}


# Again


def test_a_run_that_did_not_end_well_is_queued_again_with_what_it_has(workspace: Workspace) -> None:
    run = start(workspace, add(workspace))
    workspace.runs.plan_tasks(run.id, ["a", "b", "c", "d"])
    workspace.runs.finish_task(run.id, "a", "done", artifacts=[Artifact("a.bin", "0" * 64, 3)])
    workspace.runs.finish_task(run.id, "b", "failed", error="out of memory")
    workspace.runs.ask_to_cancel(run.id, "c")
    workspace.runs.finish_task(run.id, "c", "cancelled")
    workspace.runs.report_progress(run.id, "d", 1, 2, {})
    workspace.runs.ask_to_cancel(run.id)
    workspace.runs.finish(run.id, "failed", error="b: out of memory")
    time.sleep(0.05)
    again = workspace.runs.requeue(run.id, resources=Resources(threads=1))
    assert (again.status, again.error, again.finished_at, again.has_runner) == ("queued", None, None, False)
    assert (again.resources, again.pid) == (Resources(threads=1), os.getpid())
    tasks = workspace.runs.tasks(run.id)
    assert [(task.name, task.status, task.error) for task in tasks] == [
        ("a", "done", None),
        *[(name, "queued", None) for name in "bcd"],
    ]
    assert list(workspace.runs.artifacts(run.id)) == ["a.bin"]
    assert workspace.runs.beat(run.id) == (False, frozenset()), "what was asked for then is forgotten"
    first, began = again.seconds, again.started_at
    assert began is not None
    assert again.attempt_at is None
    before = time.time()
    started = start(workspace, again)
    assert started.started_at == began, "the first start"
    assert started.attempt_at is not None
    assert began + 0.05 <= before <= started.attempt_at <= time.time()
    time.sleep(0.05)
    ended = end(workspace, again)
    assert (ended.started_at, ended.attempt_at) == (began, started.attempt_at)
    assert first + 0.05 <= ended.seconds < first + 1, "computing time adds up, waiting does not"
    assert statuses(workspace, run) == ["queued", "running", "failed", "queued", "running", "done"]


@pytest.mark.parametrize("status", ["failed", "cancelled", "interrupted"])
def test_resources_and_config_stay_unless_others_are_given(workspace: Workspace, status: RunStatus) -> None:
    given = Resources(device="cpu", threads=3)
    run = workspace.runs.add(1, "vae", {"epochs": 3}, seed=0, resources=given)
    end(workspace, start(workspace, run), status)
    again = workspace.runs.requeue(run.id)
    assert (again.resources, again.config) == (given, {"epochs": 3})
    end(workspace, start(workspace, again), status)
    assert workspace.runs.requeue(run.id, config={"epochs": 4}).config == {"epochs": 4}


def test_a_run_whose_process_is_gone_can_be_queued_again(
    workspace: Workspace, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    run = add(workspace)
    process = spawn(run)
    process.kill()
    process.wait()
    assert workspace.runs.requeue(run.id).status == "queued"
    assert statuses(workspace, run) == ["queued", "running", "interrupted", "queued"]
    assert 0 <= workspace.runs.get(run.id).seconds < 2


def test_a_run_that_is_done_or_live_is_not_queued_again(workspace: Workspace) -> None:
    run = add(workspace)
    with pytest.raises(LiveRunError, match=f"run {run.id} is queued; cancel it first, or wait"):
        workspace.runs.requeue(run.id)
    start(workspace, run)
    with pytest.raises(LiveRunError, match=f"run {run.id} is running; cancel it first, or wait"):
        workspace.runs.requeue(run.id)
    workspace.runs.plan_tasks(run.id, ["a"])
    workspace.runs.finish_task(run.id, "a", "done")
    end(workspace, run)
    with pytest.raises(WorkspaceError, match=f"run {run.id} is done; submit the step again"):
        workspace.runs.requeue(run.id)
    assert workspace.runs.get(run.id).status == "done"


def test_a_run_that_is_done_but_for_a_cancelled_task_can_be_completed(workspace: Workspace) -> None:
    run = start(workspace, add(workspace))
    workspace.runs.plan_tasks(run.id, ["a", "b"])
    workspace.runs.finish_task(run.id, "a", "done")
    workspace.runs.finish_task(run.id, "b", "cancelled")
    end(workspace, run)
    assert workspace.runs.requeue(run.id).status == "queued"
    assert [task.status for task in workspace.runs.tasks(run.id)] == ["done", "queued"]


def test_a_run_is_not_queued_again_beside_a_live_one_of_its_step(workspace: Workspace) -> None:
    run = end(workspace, start(workspace, add(workspace)), "failed")
    workspace.runs.finish(run.id, "failed", error="kept")
    other = add(workspace)
    with pytest.raises(LiveRunError, match=f"vae is already queued as run {other.id}"):
        workspace.runs.requeue(run.id)
    assert workspace.runs.get(run.id) == run


@pytest.mark.parametrize("ends", ["is told to", "is gone"])
def test_waiting_in_the_queue_is_not_computing(
    workspace: Workspace, spawn: Callable[..., subprocess.Popen[str]], ends: str
) -> None:
    run = end(workspace, start(workspace, add(workspace)), "failed")
    time.sleep(0.4)
    workspace.runs.requeue(run.id)
    if ends == "is told to":
        workspace.runs.finish(run.id, "cancelled")
    else:
        process = spawn(run, until="queued")
        process.kill()
        process.wait()
        workspace.runs.requeue(run.id)
    assert workspace.runs.get(run.id).seconds == pytest.approx(run.seconds, abs=0.2)


# Tasks, progress, points


def test_tasks_keep_their_order_and_what_earlier_attempts_have(workspace: Workspace) -> None:
    run = start(workspace, add(workspace))
    planned = workspace.runs.plan_tasks(run.id, ["z", "a", "m"])
    assert [(task.name, task.status, task.step, task.steps) for task in planned] == [
        (name, "queued", 0, 0) for name in "zam"
    ]
    workspace.runs.report_progress(run.id, "a", 1, 5, {"loss": 3.0, "kl": 1.0})
    workspace.runs.report_progress(run.id, "a", 2, 5, {"loss": 2.0})
    task = workspace.runs.tasks(run.id)[1]
    assert (task.status, task.step, task.steps, task.metrics) == ("running", 2, 5, {"loss": 2.0})
    workspace.runs.finish_task(run.id, "a", "done")
    again = workspace.runs.plan_tasks(run.id, ["a", "m", "z"])
    assert [(task.name, task.status) for task in again] == [("a", "done"), ("m", "queued"), ("z", "queued")]
    assert again[0].metrics == {"loss": 2.0}
    end(workspace, run, "interrupted")
    assert workspace.runs.tasks(99) == []


def test_twenty_tasks_are_named_at_most(workspace: Workspace) -> None:
    run = start(workspace, add(workspace))
    workspace.runs.plan_tasks(run.id, [f"shard={n:04}" for n in range(30)])
    with pytest.raises(WorkspaceError, match=r"it has: shard=0000, .*, shard=0019$"):
        workspace.runs.ask_to_cancel(run.id, "x")


def test_one_task_is_cancelled_without_the_others(workspace: Workspace) -> None:
    run = start(workspace, add(workspace))
    with pytest.raises(WorkspaceError, match=rf"run {run.id} has no task 'x'; it has: none yet"):
        workspace.runs.ask_to_cancel(run.id, "x")
    workspace.runs.plan_tasks(run.id, ["lam=0.1", "lam=1", "lam=10"])
    workspace.runs.finish_task(run.id, "lam=0.1", "done")
    assert workspace.runs.ask_to_cancel(run.id, "lam=1")
    assert not workspace.runs.ask_to_cancel(run.id, "lam=0.1"), "it is done"
    assert workspace.runs.beat(run.id) == (False, frozenset({"lam=1"}))
    with pytest.raises(WorkspaceError, match=r"no task 'lam=2'; it has: lam=0\.1, lam=1, lam=10"):
        workspace.runs.ask_to_cancel(run.id, "lam=2")
    end(workspace, run)
    assert not workspace.runs.ask_to_cancel(run.id, "lam=10"), "the run has ended"


@pytest.mark.parametrize("status", ["queued", "running", *ENDED])
def test_a_run_is_cancelled_while_it_lives(workspace: Workspace, status: RunStatus) -> None:
    run = add(workspace)
    if status != "queued":
        start(workspace, run)
    if status in ENDED:
        end(workspace, run, status)
    assert workspace.runs.ask_to_cancel(run.id) == (status not in ENDED)
    assert workspace.runs.beat(run.id)[0] == (status not in ENDED)
    assert workspace.runs.get(run.id).status == status, "it is for the runner to end"


def test_a_task_that_cannot_be_ended_names_no_files(workspace: Workspace) -> None:
    run = start(workspace, add(workspace))
    workspace.runs.plan_tasks(run.id, ["a"])
    with pytest.raises(sqlite3.IntegrityError):
        workspace.runs.finish_task(
            run.id, "a", "finished", artifacts=[Artifact("a", "0", 1)]
        )  # fmt: skip
    with pytest.raises(sqlite3.IntegrityError):
        workspace.runs.finish_task(
            run.id, "a", "done",
            artifacts=[Artifact("a", "0", 1), Artifact(None, "0", 1)],
        )  # fmt: skip
    assert workspace.runs.artifacts(run.id) == {}
    assert workspace.runs.tasks(run.id)[0].status == "queued"


def test_a_task_is_done_when_and_only_when_its_files_are_named(workspace: Workspace) -> None:
    """A reader that looks all the time never sees the one without the other."""
    run = start(workspace, add(workspace))
    wrong: list[str] = []
    looks, stop = [0], threading.Event()

    def look() -> None:
        database = Database(workspace.home / "defuse.sqlite")
        while not stop.is_set():
            looks[0] += 1
            for name, status, artifact in database.read(
                "SELECT t.name, t.status, a.name FROM tasks t LEFT JOIN artifacts a"
                " ON a.run_id = t.run_id AND a.name = t.name || '.bin'"
            ):
                if (status == "done") != (artifact is not None):
                    wrong.append(name)
        database.close()

    reader = threading.Thread(target=look)
    reader.start()
    until, number = time.monotonic() + 10, 0
    while (looks[0] < 50 or number < 20) and time.monotonic() < until:
        number += 1
        workspace.runs.plan_tasks(run.id, [str(number)])
        workspace.runs.finish_task(
            run.id, str(number), "done", artifacts=[Artifact(f"{number}.bin", "0", 1)]
        )  # fmt: skip
    stop.set()
    reader.join()
    assert wrong == []
    assert looks[0] >= 50
    assert len(workspace.runs.artifacts(run.id)) == number >= 20


def test_artifacts_are_named_replaced_and_forgotten(workspace: Workspace) -> None:
    run, other = add(workspace), add(workspace, "identify")
    first, second = Artifact("b", "1" * 64, 1), Artifact("a", "2" * 64, 2)
    for artifact in (first, second, Artifact("b", "3" * 64, 3)):
        workspace.runs.name_artifact(run.id, artifact)
    workspace.runs.name_artifact(other.id, first)
    assert workspace.runs.artifacts(run.id) == {"a": second, "b": Artifact("b", "3" * 64, 3)}
    workspace.runs.finish(run.id, "done", forget=["b", "never there"])
    assert workspace.runs.artifacts(run.id) == {"a": second}
    assert workspace.runs.artifacts(other.id) == {"b": first}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("shared"), durable=False)
    made.create_project("project", dataset={})
    return made


@given(
    written=st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("012"), st.floats(allow_nan=False), st.booleans()),
        max_size=25,
    )
)
def test_a_reader_who_asks_for_what_is_new_ends_up_with_every_last_point(
    shared: Workspace, written: list[tuple[str, str, float, bool]]
) -> None:
    """Against a dictionary: points in the order in which their last value was written."""
    run = add(shared)
    expected: dict[tuple[str, str], dict[str, float]] = {}
    polled: dict[tuple[str, str], dict[str, Any]] = {}
    last = 0

    def poll() -> None:
        nonlocal last
        for event in shared.runs.events(run.id, after=last, kind="point"):
            assert event.id > last
            last = event.id
            polled[event.task, event.key] = event.data

    for task, key, value, look in written:
        shared.runs.add_point(run.id, task, key, {"value": value})
        expected.pop((task, key), None)
        expected[task, key] = {"value": value}
        if look:
            poll()
    poll()
    assert polled == expected
    points = shared.runs.events(run.id, kind="point")
    assert [((event.task, event.key), event.data) for event in points] == list(expected.items())
    assert [event.key for event in shared.runs.events(run.id) if event.kind == "status"] == ["queued"]
    assert shared.runs.events(run.id, after=shared.runs.events(run.id)[-1].id) == []
    end(shared, run)


def test_events_belong_to_their_run(workspace: Workspace) -> None:
    run, other = add(workspace), add(workspace, "identify")
    workspace.runs.add_point(run.id, "t", "k", {"x": 1})
    workspace.runs.add_point(other.id, "t", "k", {"x": 2})
    assert [event.data for event in workspace.runs.events(run.id, kind="point")] == [{"x": 1}]
    assert [event.data for event in workspace.runs.events(other.id, kind="point")] == [{"x": 2}]


# What stands on what


def chain(workspace: Workspace) -> dict[str, Run]:
    """One run a step that is done, up to the correction."""
    runs: dict[str, Run] = {}
    for step, needs in {
        "classifier": [], "vae": [], "identify": ["classifier", "vae"], "distill": ["identify"],
        "map": ["identify", "distill"], "correct": ["distill"],
    }.items():  # fmt: skip
        runs[step] = done(
            workspace, step, upstream=[runs[name].id for name in needs],
            last_annotation=0 if step == "correct" else None,
        )  # fmt: skip
    return runs


def stale(workspace: Workspace) -> set[str]:
    """Steps of the first six runs that are stale."""
    return {run.step for run in workspace.runs.of_project(1)[:6] if run.stale}


def test_nothing_is_stale_that_was_made_in_order(workspace: Workspace) -> None:
    chain(workspace)
    assert stale(workspace) == set()


@pytest.mark.parametrize(
    ("step", "marked"),
    [
        ("classifier", {"identify", "distill", "map", "correct"}),
        ("vae", {"identify", "distill", "map", "correct"}),
        ("identify", {"distill", "map", "correct"}),
        ("distill", {"map", "correct"}),
        ("map", set()),
        ("correct", set()),
    ],
)
def test_what_stands_on_a_run_that_was_redone_is_stale_once_the_new_one_is_done(
    workspace: Workspace, step: str, marked: set[str]
) -> None:
    runs = chain(workspace)
    again = add(workspace, step, upstream=runs[step].upstream)
    assert stale(workspace) == set()
    start(workspace, again)
    assert stale(workspace) == set()
    end(workspace, again, "failed")
    assert stale(workspace) == set()
    done(workspace, step, upstream=runs[step].upstream)
    assert stale(workspace) == marked


def test_what_stands_on_a_run_that_ended_after_it_began_is_stale(workspace: Workspace) -> None:
    upstream = done(workspace, "identify")
    run = done(workspace, "distill", upstream=[upstream.id])
    assert not workspace.runs.get(run.id).stale
    write(workspace, "UPDATE runs SET finished_at = ? WHERE id = ?", time.time() + 1, upstream.id)
    assert workspace.runs.get(run.id).stale


def test_a_run_that_others_stand_on_is_not_completed_under_them(workspace: Workspace) -> None:
    upstream = start(workspace, add(workspace, "identify"))
    workspace.runs.plan_tasks(upstream.id, ["shard"])
    workspace.runs.finish_task(upstream.id, "shard", "cancelled")
    end(workspace, upstream)
    assert workspace.runs.requeue(upstream.id).live
    end(workspace, start(workspace, workspace.runs.get(upstream.id)))
    run = add(workspace, "distill", upstream=[upstream.id])
    with pytest.raises(
        WorkspaceError, match=f"run {run.id} stands on what it left out, too; submit the step"
    ):
        workspace.runs.requeue(upstream.id)
    assert workspace.runs.get(upstream.id).status == "done"


def test_a_run_that_failed_is_queued_again_though_others_wait_for_it(workspace: Workspace) -> None:
    upstream = end(workspace, start(workspace, add(workspace, "identify")), "failed")
    add(workspace, "distill", upstream=[upstream.id])
    assert workspace.runs.requeue(upstream.id).status == "queued"


def test_a_run_that_took_labels_is_stale_when_there_are_newer_ones(workspace: Workspace) -> None:
    runs = chain(workspace)
    told = [LabelEvent(0, "ann", 1)]
    assert stale(workspace) == set()
    workspace.annotations.append(runs["distill"].id, told)
    assert stale(workspace) == {"correct"}
    newest = workspace.annotations.last_id(runs["distill"].id)
    run = done(workspace, "correct", upstream=[runs["distill"].id], last_annotation=newest)
    assert not workspace.runs.get(run.id).stale
    workspace.annotations.undo(runs["distill"].id, "ann")
    assert workspace.runs.get(run.id).stale, "taking a label back is a change, too"


def make_run(
    number: int, step: str, status: RunStatus, started: float | None, attempt: float | None, **given: Any
) -> Run:
    return Run(
        id=number, project_id=1, step=step, config={}, seed=0, resources=Resources(), status=status,
        error=None, record={}, created_at=0.0, started_at=started, attempt_at=attempt, seconds=0.0,
        has_runner=True, pid=1, pid_started=0.0, heartbeat_at=0.0, **given,
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Run], dict[int, int]]:
    """Up to nine runs of four steps, each on some earlier ones, and the newest label of each."""
    runs = []
    times = st.none() | st.integers(0, 5).map(float)
    for number in range(1, draw(st.integers(1, 9)) + 1):
        earlier = st.integers(1, number - 1) if number > 1 else st.nothing()
        upstream = draw(st.sets(earlier, max_size=3)) if number > 1 else set()
        runs.append(
            make_run(
                number,
                draw(st.sampled_from("abcd")),
                draw(st.sampled_from(["queued", "running", *ENDED])),
                draw(times),
                draw(times),
                finished_at=draw(times),
                upstream=tuple(sorted(upstream)),
                last_annotation=draw(st.none() | st.integers(0, 4)),
            )
        )
    return runs, draw(st.dictionaries(st.integers(1, 9), st.integers(1, 5)))


def is_stale(number: int, runs: dict[int, Run], labels: dict[int, int]) -> bool:
    """The rule as it is said, asked of one run at a time."""
    run = runs[number]
    for upstream in map(runs.__getitem__, run.upstream):
        redone = any(
            r.step == upstream.step and r.status == "done" and r.id > upstream.id for r in runs.values()
        )
        finished = upstream.finished_at
        later = finished is not None and run.started_at is not None and finished > run.started_at
        relabelled = run.last_annotation is not None and labels.get(upstream.id, 0) > run.last_annotation
        if redone or later or relabelled or is_stale(upstream.id, runs, labels):
            return True
    return False


@given(history=histories())
@tried(10)
def test_stale_marks_are_those_of_the_rule(history: tuple[list[Run], dict[int, int]]) -> None:
    runs, labels = history
    by_id = {run.id: run for run in runs}
    marked = mark_stale(runs, labels)
    assert [run.id for run in marked] == list(by_id)
    assert [run.stale for run in marked] == [is_stale(number, by_id, labels) for number in by_id]
    assert [Run(**{**vars(run), "stale": False}) for run in marked] == runs, "nothing else changes"


def test_ancestry_is_all_that_a_run_stands_on_and_nothing_else(workspace: Workspace) -> None:
    first = chain(workspace)
    second = chain(workspace)
    for runs in (first, second):
        found = workspace.runs.ancestry(runs["correct"].id)
        expected = ("classifier", "vae", "identify", "distill", "correct")
        assert {step: run.id for step, run in found.items()} == {step: runs[step].id for step in expected}
    assert set(workspace.runs.ancestry(first["vae"].id)) == {"vae"}


def test_the_latest_run_is_the_newest_that_is_done_or_live(workspace: Workspace) -> None:
    assert workspace.runs.latest(1, "vae") is None
    for status in ("failed", "cancelled", "interrupted"):
        end(workspace, start(workspace, add(workspace)), status)
        assert workspace.runs.latest(1, "vae") is None
    first = done(workspace, "vae")
    end(workspace, start(workspace, add(workspace)), "failed")
    done(workspace, "identify")
    assert workspace.runs.latest(1, "vae") == workspace.runs.get(first.id)
    second = add(workspace)
    assert workspace.runs.latest(1, "vae") == workspace.runs.get(second.id)


def test_runs_are_listed_by_number_for_one_step_or_all(workspace: Workspace) -> None:
    runs = [done(workspace, step) for step in ("vae", "identify", "vae")]
    assert [run.id for run in workspace.runs.of_project(1)] == [run.id for run in runs]
    assert [run.id for run in workspace.runs.of_project(1, "vae")] == [runs[0].id, runs[2].id]
    assert workspace.runs.of_project(2) == []


def test_what_is_stored_of_a_run_is_plain_json(workspace: Workspace) -> None:
    run = add(workspace)
    database = Database(workspace.home / "defuse.sqlite")
    (row,) = database.read("SELECT config, resources, record FROM runs WHERE id = ?", (run.id,))
    assert [json.loads(text) for text in row] == [{}, vars(Resources()), {}]


def test_labels_of_a_run_are_stored_once_with_its_end(workspace: Workspace) -> None:
    """An annotator whose labels were stored by an earlier attempt is left out of the next one."""
    regions = done(workspace, "distill")
    run = start(workspace, add(workspace, "annotate", upstream=[regions.id]))
    first = [LabelEvent(0, "Ada", 1, 0), LabelEvent(0, "Ada", 2, 1)]
    workspace.runs.plan_tasks(run.id, ["Ada", "Bob"])
    workspace.runs.finish(run.id, "done", summary={"n": 1}, labels=first, labels_of=regions.id)
    again = start(workspace, workspace.runs.requeue(run.id))
    assert again.summary == {"n": 1}, "kept until there is another one"
    both = [*first, LabelEvent(0, "Bob", 1, 0)]
    workspace.runs.finish(run.id, "done", summary={"n": 2}, labels=both, labels_of=regions.id)
    stored = [(e.annotator, e.label) for e in workspace.annotations.events(regions.id)]
    assert stored == [("Ada", 1), ("Ada", 2), ("Bob", 1)]


def test_a_run_that_does_not_end_stores_no_label(workspace: Workspace) -> None:
    run = start(workspace, add(workspace, "annotate"))
    with pytest.raises(WorkspaceError):
        workspace.runs.finish(run.id, "done", labels=[LabelEvent(0, "Ada", 1, 0)], labels_of=999)
    assert workspace.runs.get(run.id).status == "running"


def test_replaced_artifacts_are_forgotten_with_the_end(workspace: Workspace) -> None:
    run = start(workspace, add(workspace))
    for name in ("shard", "whole"):
        workspace.runs.name_artifact(run.id, Artifact(name, "0", 1))
    workspace.runs.finish(run.id, "done", forget=["shard"])
    assert set(workspace.runs.artifacts(run.id)) == {"whole"}


def test_a_queued_run_that_nobody_took_over_is_interrupted_after_half_a_minute(workspace: Workspace) -> None:
    run = add(workspace)
    write(workspace, "UPDATE runs SET heartbeat_at = heartbeat_at - 29")
    assert workspace.runs.status(run.id) == "queued"
    write(workspace, "UPDATE runs SET heartbeat_at = heartbeat_at - 2")
    assert workspace.runs.status(run.id) == "interrupted"
    assert add(workspace).live, "the next one is not kept out by it"


def test_a_run_that_fails_says_why_though_its_log_is_on_a_full_disk(workspace: Workspace) -> None:
    failed = end(workspace, start(workspace, add(workspace, "classifier")), "failed")
    run = add(workspace, "identify", upstream=[failed.id])
    with Path("/dev/full").open("wb") as log:
        runner = subprocess.Popen(
            [sys.executable, "-m", "defuse_core.jobs.runner", str(workspace.home), str(run.id)],
            stdout=log, stderr=log,
        )  # fmt: skip
        workspace.runs.hand_over(run.id, runner.pid)
        assert runner.wait(60) == 1
    ended = workspace.runs.get(run.id)
    assert (ended.status, ended.error) == (
        "failed",
        f"classifier (run {failed.id}) is failed; resume it, then resume this run: defuse resume {failed.id}",
    )
