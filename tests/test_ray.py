"""The same tasks on a real Ray cluster: same points, cancelled, orphaned, and the cluster lost midway.

One run on Ray, and an address that is none, are tested by `make test`; all the rest by `make verify`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from defuse_core.jobs import launcher
from defuse_core.workspace.runs import Resources, Run
from tests.commands import checked, defuse_process
from tests.in_process import done_here
from tests.test_jobs import same
from tests.workspaces import ONE_THREAD, SEARCH, SWEEP, Place, eventually

pytest.importorskip("ray", reason="Ray is not installed: pip install 'defuse[cluster]'")

LOCAL = Resources(device="cpu", engine="ray", address="local", cpus=1.0)
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
LONG_SWEEP: dict[str, Any] = {
    "correction": {**SWEEP["correction"], "lambdas": [0.0, 0.1, 1.0], "epochs": 25},
    "baseline_lambdas": [],
}


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray writes a token into the home folder."""
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A cluster of one machine, started as the README says, and its process, which leads their group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path("/tmp") / f"defuse-test-{os.getpid()}-{port}"  # a socket's path has to be short
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}",
    ]  # fmt: skip
    with (tmp_path / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            command, env={**os.environ, **LOOPBACK}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        eventually(lambda: b"Ray runtime started" in (tmp_path / "ray.log").read_bytes(), seconds=60)
        yield f"127.0.0.1:{port}", head
    finally:
        _kill_group(head)
        eventually(lambda: not _mentions(str(folder)), seconds=30)
        subprocess.run(["rm", "-r", str(folder)], check=False)


def _kill_group(head: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(head.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    head.wait()


def _mentions(text: str) -> list[int]:
    """Processes with this text in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if text in " ".join(process.info["cmdline"] or []) and process.info["status"] != "zombie":
            found.append(process.pid)
    return found


def _in_session(session: int) -> list[psutil.Process]:
    """Processes of a session that live."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def _in_the_middle(place: Place, run: Run) -> list[str]:
    """Tasks that have steps behind and before them."""
    tasks = place.workspace.runs.tasks(run.id)
    return [t.name for t in tasks if t.status == "running" and 0 < t.step < t.steps]


def check_same(place: Place, found: Run, expected: Run) -> None:
    """What a run on a cluster of its own found is what was found locally."""
    assert same(place.tensors(found), place.tensors(expected))
    assert found.summary == expected.summary

    def points(run: Run) -> dict[str, dict[str, Any]]:
        return {e.task: e.data for e in place.workspace.runs.events(run.id, kind="point")}

    assert points(found) == points(expected)
    assert found.record["device"] == {"engine": "ray", "address": "local"}


def test_a_command_with_ray_gives_the_same_points_as_locally(place: Place, tmp_path: Path) -> None:
    sweep = {**SWEEP, "correction": {**SWEEP["correction"], "lambdas": [0.1, 1.0], "epochs": 1}}
    expected = done_here(place, "correct", sweep)
    words = [
        "--lambdas", "0.1,1", "--baseline-lambdas", "1", "--epochs", "1", "--max-images", "480",
        "--instances-per-region", "16",
        "--precision", "fp32", "--engine", "ray", "--address", "local", "--cpus", "1", "--device", "cpu",
    ]  # fmt: skip
    env = {"DEFUSE_HOME": str(place.workspace.home)}
    checked(defuse_process("correct", *words, cwd=tmp_path, env=env))
    found = place.workspace.runs.of_project(place.project.id, "correct")[-1]
    assert found.id != expected.id
    assert found.config == expected.config
    check_same(place, found, expected)


@pytest.mark.verify
@pytest.mark.parametrize(("step", "config"), [("identify", SEARCH), ("correct", SWEEP)])
def test_same_seeds_give_the_same_points_as_locally(step: Any, config: dict[str, Any], place: Place) -> None:
    check_same(place, place.run(step, config, resources=LOCAL), place.run(step, config, resources=ONE_THREAD))


@pytest.mark.verify
def test_a_run_on_a_cluster_by_address_is_the_same(
    place: Place, cluster: tuple[str, subprocess.Popen[bytes]]
) -> None:
    expected = place.run("correct", SWEEP, resources=ONE_THREAD)
    found = place.run("correct", SWEEP, resources=replace(LOCAL, address=cluster[0]))
    assert same(place.tensors(found), place.tensors(expected))


@pytest.mark.verify
def test_a_cluster_lost_midway_fails_the_run_which_resumes(
    place: Place, cluster: tuple[str, subprocess.Popen[bytes]]
) -> None:
    address, head = cluster
    run = place.submit("correct", LONG_SWEEP, resources=replace(LOCAL, address=address))
    eventually(lambda: bool(_in_the_middle(place, run)), seconds=60)
    _kill_group(head)
    ended = place.wait(run, seconds=40)
    assert ended.status == "failed"
    assert ended.error is not None
    assert "was lost" in ended.error
    assert "resume" in ended.error
    place.check_integrity()
    resumed = place.wait(launcher.resume(place.workspace, run.id, resources=ONE_THREAD), seconds=200)
    assert resumed.status == "done"
    assert same(place.tensors(resumed), place.tensors(place.run("correct", LONG_SWEEP)))


@pytest.mark.verify
def test_one_task_is_cancelled_and_the_others_go_on(place: Place) -> None:
    run = place.submit("correct", LONG_SWEEP, resources=LOCAL)
    seen: list[str] = []
    eventually(lambda: bool(seen.extend(_in_the_middle(place, run)) or seen), seconds=60)
    running = seen[0]
    launcher.cancel(place.workspace, run.id, running)

    def state() -> str:
        return next(t.status for t in place.workspace.runs.tasks(run.id) if t.name == running)

    assert eventually(lambda: state() == "cancelled", seconds=10) < 3.0
    ended = place.wait(run)
    assert ended.status == "done"
    assert ended.summary["missing"] == [running]


@pytest.mark.verify
def test_a_cancelled_run_leaves_no_process(place: Place) -> None:
    run = place.submit("correct", LONG_SWEEP, resources=LOCAL)
    eventually(lambda: bool(_in_the_middle(place, run)), seconds=60)
    session = place.get(run).pid
    assert len(_in_session(session)) > 4  # the runner, its child, Ray's head and workers
    started = time.monotonic()
    launcher.cancel(place.workspace, run.id)
    eventually(lambda: not place.get(run).live, seconds=3)
    assert time.monotonic() - started < 1.0
    assert place.get(run).status == "cancelled"
    eventually(lambda: not _in_session(session), seconds=10)


@pytest.mark.verify
def test_a_killed_runner_leaves_no_process(place: Place) -> None:
    run = place.submit("correct", LONG_SWEEP, resources=LOCAL)
    eventually(lambda: bool(_in_the_middle(place, run)), seconds=60)
    session = place.get(run).pid
    os.kill(session, signal.SIGKILL)
    eventually(lambda: place.get(run).status == "interrupted", seconds=2)
    eventually(lambda: not _in_session(session), seconds=10)
    place.check_integrity()


@pytest.mark.verify
def test_a_task_that_fails_on_a_worker_says_why(place: Place) -> None:
    sweep = {**SWEEP, "correction": {**SWEEP["correction"], "lambdas": [1e39, 1.0]}, "baseline_lambdas": []}
    run = place.wait(place.submit("correct", sweep, resources=LOCAL))
    assert run.status == "done", run.error
    assert run.summary["missing"] == ["lam=1e+39"]
    tasks = {t.name: t for t in place.workspace.runs.tasks(run.id)}
    assert {name: task.status for name, task in tasks.items()} == {
        "before": "done", "lam=1e+39": "failed", "lam=1": "done",
    }  # fmt: skip
    assert "diverged at lam = 1e+39, epoch 1" in str(tasks["lam=1e+39"].error)
    assert "lower learning_rate" in str(tasks["lam=1e+39"].error)


def test_an_address_that_is_not_ray_is_refused(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        run = place.submit("identify", SEARCH, resources=replace(LOCAL, address=address))
        eventually(lambda: place.get(run).status == "running" or not place.get(run).live, seconds=20)
        ended = place.wait(run, seconds=30)  # Ray alone would wait for minutes
    assert ended.status == "failed"
    assert ended.error is not None
    assert f"no Ray cluster answers at {address} within 5 s" in ended.error


def _accept(server: socket.socket) -> None:
    """Take connections and say nothing."""
    held = []
    while True:
        try:
            held.append(server.accept())
        except OSError:
            return
