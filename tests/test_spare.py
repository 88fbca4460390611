"""The spare runner: when it is there, when a run takes it, and when a run is better started anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from defuse_core.jobs import launcher, spare
from defuse_core.jobs.spare import SPARE_RUNNER
from defuse_core.workspace.runs import Resources, Run
from tests.spares import spares_of_this_process as spares
from tests.workspaces import ONE_THREAD, SEARCH, Place, computing_elsewhere, eventually


@pytest.fixture(autouse=True)
def _none_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(SPARE_RUNNER, "1")
    monkeypatch.setattr(spare, "FREE_MEMORY", 0)  # however small the machine
    yield
    launcher.drop_spare()
    eventually(lambda: not spares(), seconds=10)


def start_and_cancel(place: Place, resources: Resources = ONE_THREAD) -> Run:
    """Submit a run while another computes, and cancel it: who would have run it?"""
    with computing_elsewhere(place.workspace):
        run = place.submit("identify", SEARCH, resources=resources)
        launcher.cancel(place.workspace, run.id)
    assert place.get(run).status == "cancelled"
    return run


def test_a_ready_spare_forks_for_every_run_and_where_it_does_not_answer_runs_start_as_without(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher.keep_spare(ONE_THREAD)
    kept = launcher.await_spare()
    assert kept is not None
    with computing_elsewhere(place.workspace):
        runs = [place.submit("identify", SEARCH), place.submit("map", {"method": "pca"})]
        pids = [run.pid for run in runs]
        assert {process.pid for process in psutil.Process(kept).children()} == set(pids)
        assert all(os.getsid(pid) == os.getpgid(pid) == pid for pid in pids)
        assert all(place.log(run) == "" for run in runs)
        for run in runs:
            launcher.cancel(place.workspace, run.id)
    eventually(lambda: not psutil.Process(kept).children())  # no zombie, too
    assert spares() == [kept]
    os.kill(kept, signal.SIGSTOP)
    monkeypatch.setattr(spare, "_ANSWER_SECONDS", 0.1)
    assert start_and_cancel(place).pid not in (kept, *pids)
    eventually(lambda: kept not in spares())


THREADED = """
import threading
from defuse_core.jobs import spare
before = spare._count_threads()
assert spare._may_fork(before)
over = threading.Event()
threading.Thread(target=over.wait).start()
try:
    assert not spare._may_fork(before)
finally:
    over.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the threads of a process")
def test_a_process_with_threads_of_its_own_does_not_fork() -> None:
    """OpenMP's, for one: whoever was forked would wait for them for ever."""
    done = subprocess.run([sys.executable, "-c", THREADED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_forked_run_computes_on_cuda(place: Place) -> None:
    on_cuda = Resources(device="cuda", threads=1)
    launcher.keep_spare(on_cuda)
    kept = launcher.await_spare()
    run = place.submit("identify", SEARCH, resources=on_cuda)
    assert run.pid != kept
    ended = place.wait(run)
    assert ended.status == "done", place.log(run)
    assert ended.record["device"]["device"].startswith("cuda")


def test_a_run_takes_the_spare_and_the_next_one_is_started(place: Place) -> None:
    launcher.keep_spare(ONE_THREAD)
    (kept,) = spares()
    assert os.getsid(kept) == os.getpgid(kept) == kept
    run = start_and_cancel(place)
    assert run.pid == kept
    eventually(lambda: kept not in spares())
    (following,) = spares()
    assert following != kept
    assert start_and_cancel(place).pid == following


def test_a_run_that_is_given_before_the_spare_is_ready_is_done(place: Place) -> None:
    launcher.keep_spare(ONE_THREAD)
    (kept,) = spares()
    run = place.submit("map", {"method": "pca"})
    assert run.pid == kept
    run = place.wait(run)
    assert run.status == "done", place.log(run)


def test_what_a_spare_prints_is_in_the_log_of_its_run(place: Place) -> None:
    launcher.keep_spare(ONE_THREAD)
    (path,) = place.workspace.run_folder(place.workspace.runs.latest(1, "vae").id).glob("vae.safetensors")
    path.write_bytes(b"no weights")
    run = place.wait(place.submit("identify", SEARCH))
    assert run.status == "failed"
    assert "Traceback (most recent call last)" in place.log(run)


def test_a_ready_spare_sleeps_and_holds_no_file() -> None:
    launcher.keep_spare(ONE_THREAD)
    kept = launcher.await_spare()
    assert kept is not None
    process = psutil.Process(kept)
    eventually(lambda: process.status() == psutil.STATUS_SLEEPING)
    assert process.open_files() == []
    seconds, woken = process.cpu_times().user, process.num_ctx_switches()
    time.sleep(0.3)  # nothing is to happen
    assert process.cpu_times().user == seconds
    assert process.num_ctx_switches() == woken


def test_it_ends_with_the_process_that_keeps_it() -> None:
    code = (
        "import sys; from defuse_core.jobs import launcher\n"
        "launcher.keep_spare(); print(launcher._SPARES._spare.process.pid, flush=True); sys.stdin.read()"
    )
    keeper = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert keeper.stdout is not None
    process = psutil.Process(int(keeper.stdout.readline()))
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait()
    eventually(lambda: not process.is_running(), seconds=30)  # it may have to import what it was about to


def test_a_run_of_another_environment_is_started_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher.keep_spare(ONE_THREAD)
    (kept,) = spares()
    run = start_and_cancel(place, Resources(device="cpu", threads=2))
    assert run.pid != kept
    (for_two,) = spares()  # what was started last is the likelier to be started again
    monkeypatch.setenv("DEFUSE_SOMETHING", "1")
    assert start_and_cancel(place, Resources(device="cpu", threads=2)).pid != for_two
    (renewed,) = spares()
    assert start_and_cancel(place, Resources(device="cpu", threads=2)).pid == renewed


def test_a_run_of_other_code_is_started_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    module = tmp_path / "code" / "module.py"
    module.write_text("x = 1\n")
    monkeypatch.setattr(spare, "_PACKAGE", tmp_path / "code")
    launcher.keep_spare(ONE_THREAD)
    (kept,) = spares()
    launcher.keep_spare(ONE_THREAD)
    assert spares() == [kept], "it is still the right one"
    module.write_text("x = 22\n")
    assert start_and_cancel(place).pid != kept
    (renewed,) = spares()
    module.unlink()
    launcher.keep_spare(ONE_THREAD)
    eventually(lambda: renewed not in spares())
    assert len(spares()) == 1


def test_an_upgrade_of_what_it_computes_with_is_other_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = tmp_path / "computes.py"
    module.write_text("version = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(spare, "_COMPUTE", ("computes", "not_installed"))
    launcher.keep_spare(ONE_THREAD)
    (kept,) = spares()
    module.write_text("version = 22\n")
    launcher.keep_spare(ONE_THREAD)
    eventually(lambda: kept not in spares())
    assert len(spares()) == 1


def test_a_link_to_nothing_among_the_code_is_code_too(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As an editor leaves one beside a file that is open."""
    (tmp_path / ".#open.py").symlink_to("nobody@nowhere")
    monkeypatch.setattr(spare, "_PACKAGE", tmp_path)
    launcher.keep_spare(ONE_THREAD)
    (kept,) = spares()
    assert start_and_cancel(place).pid == kept


def test_variables_that_scikit_learn_sets_make_no_other_environment(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the dashboard it is imported by the page that needs it, after the spare was started."""
    launcher.keep_spare(ONE_THREAD)
    (kept,) = spares()
    monkeypatch.setenv("KMP_INIT_AT_FORK", "TRUE")
    assert start_and_cancel(place).pid == kept


def test_where_it_was_killed_a_run_starts_as_without(place: Place) -> None:
    launcher.keep_spare(ONE_THREAD)
    (kept,) = spares()
    os.kill(kept, signal.SIGKILL)
    eventually(lambda: not spares())
    assert start_and_cancel(place).pid != kept


def test_where_it_cannot_be_started_a_run_starts_as_without(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        launcher.keep_spare(ONE_THREAD)
    assert not spares()
    assert launcher.await_spare() is None
    assert place.run("map", {"method": "pca"}).status == "done"


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("why", ["switched off", "short of memory"])
def test_none_is_kept_where_it_is_not_wanted(
    place: Place, monkeypatch: pytest.MonkeyPatch, why: str, before: bool
) -> None:
    if before:
        launcher.keep_spare(ONE_THREAD)
        assert len(spares()) == 1
    if why == "switched off":
        monkeypatch.setenv(SPARE_RUNNER, "0")
    else:
        monkeypatch.setattr(spare, "FREE_MEMORY", 1000)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=999))
    launcher.keep_spare(ONE_THREAD)
    eventually(lambda: not spares())
    start_and_cancel(place)
    assert not spares()


def test_none_is_kept_once_it_is_dropped(place: Place) -> None:
    with launcher.spare_runner(ONE_THREAD):
        assert len(spares()) == 1
    eventually(lambda: not spares())
    start_and_cancel(place)
    assert not spares()
