"""A spare runner: a process that has imported torch and the steps before there is a run for it.

Whoever starts runs, and is to answer at once, keeps one: the dashboard, and commands of several runs.
The spare waits at the end of a pipe that only its keeper writes to, so it ends when its keeper does. A
line on that pipe gives it a run. On Linux it forks a process for the run, in a few milliseconds, and
waits for the next; elsewhere, and while it still imports, it becomes that run's runner itself, and its
keeper starts another. It is used only where a runner started now would be the same: same code, same
environment. Imports no torch but in the spare's own process.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

SPARE_RUNNER = "DEFUSE_SPARE_RUNNER"
"""Set to 0 in the environment, no spare is kept."""

FREE_MEMORY = 2 * 2**30
"""Bytes that have to be available for a spare to be started; idle, it holds about a quarter of that."""

_PACKAGE = Path(__file__).resolve().parent.parent
_COMPUTE = ("torch", "torchvision", "numpy", "scipy", "sklearn")
"""Packages whose upgrade makes a spare that has them loaded another than a runner started now."""

_NOT_COMPARED = ("KMP_", "MPLBACKEND", "TORCHINDUCTOR_")
"""So begin variables that make no other runner; packages set them where they are imported, in any process."""

_WITH_THREADS = ("numpy", "scipy.linalg")
"""Packages that bring OpenBLAS, whose threads end before a fork and begin anew in both processes.

A process that has any other thread does not fork: what OpenMP waits for in the new one would never come.
"""

_IMPORTED_LATE = ("torch._dynamo",)
"""What steps import only as they compute: every first optimiser imports it, for seconds."""

_FORKS = b"forks\n"
_READY = b"ready\n"
"""What a spare that has imported all says: that it forks for every run, or that it is one run's."""

_ANSWER_SECONDS = 5.0
"""How long a spare may take to fork before the run is started without it."""


class _Spare:
    """A process that waits for runs, and what a runner has to have in common with it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment, self._code = dict(environment), _code()
        self._reading = threading.Lock()
        self._said = b""
        self.process = start_process(
            [__name__], environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether a runner started now would be the same."""
        return _compared(self._environment) == _compared(environment) and self._code == _code()

    def says(self, seconds: float | None = 0.0) -> bytes:
        """What it has said by now, or within some seconds: `_FORKS`, `_READY`, or nothing."""
        with self._reading:
            if not self._said and select.select([self._stdout], [], [], seconds)[0]:
                self._said = self._stdout.readline()
            return self._said

    def give(self, home: Path, run_id: int) -> int:
        """Give it a run; return the process id of its runner.

        Raises
        ------
        OSError, ValueError
            If the spare has ended, cannot fork, or does not answer.
        """
        forks = self.says() == _FORKS
        self._stdin.write(json.dumps([str(home), run_id, forks]).encode() + b"\n")
        self._stdin.flush()
        if not forks:
            return self.process.pid
        if not select.select([self._stdout], [], [], _ANSWER_SECONDS)[0]:
            raise TimeoutError(f"no process within {_ANSWER_SECONDS} s")
        return int(self._stdout.readline())

    def close(self) -> None:
        """Let go of the pipes; a spare that was given nothing ends with them."""
        for pipe in (self._stdin, self._stdout):
            with suppress(OSError):
                pipe.close()

    def kill(self) -> None:
        """End it; runs that it forked for go on."""
        self.process.kill()  # it has no run, and may still import
        self.close()


class SpareKeeper:
    """Keeps at most one spare, of this process; safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keeping = False
        self._spare: _Spare | None = None

    def keep(self, environment: Mapping[str, str]) -> None:
        """Start a spare for runs of this environment; every run that takes it is followed by another."""
        with self._lock:
            self._keeping = os.environ.get(SPARE_RUNNER) != "0"
            self._renew(environment)

    def stop(self) -> None:
        """End the spare, and start none any more."""
        with self._lock:
            self._keeping = False
            self._end()

    def await_ready(self) -> int | None:
        """Wait until the spare has imported what it needs; return its process id, None without one."""
        with self._lock:
            spare = self._spare
        return spare.process.pid if spare is not None and spare.says(None) else None

    def give(self, environment: Mapping[str, str], home: Path, run_id: int) -> int | None:
        """Give a run to the spare; return the process id of its runner.

        None where there is no spare that would do it as a new runner would.
        """
        with self._lock:
            spare = self._spare
            if spare is None:
                return None
            try:
                pid = spare.give(home, run_id) if spare.fits(environment) else None
            except (
                OSError,
                ValueError,
            ):  # it was ended from outside, or cannot fork
                pid = None
            if pid is None:
                self._end()
            elif pid == spare.process.pid:
                spare.close()
                self._spare = None
            return pid

    def renew(self, environment: Mapping[str, str]) -> None:
        """Start the next spare where one is kept and the last was used up, for runs of this environment."""
        with self._lock:
            self._renew(environment)

    def _renew(self, environment: Mapping[str, str]) -> None:
        wanted = self._keeping and psutil.virtual_memory().available >= FREE_MEMORY
        spare = self._spare
        if wanted and spare is not None and spare.process.poll() is None and spare.fits(environment):
            return
        self._end()
        if wanted:
            with suppress(OSError, RuntimeError):  # no process or no thread more: the next run starts without
                self._spare = _Spare(environment)

    def _end(self) -> None:
        if self._spare is not None:
            self._spare.kill()
            self._spare = None


def start_process(
    words: Sequence[str], environment: Mapping[str, str], **options: Any
) -> subprocess.Popen[bytes]:
    """Start a module of ours, with its arguments, in a session of its own; it is waited for at its end."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *words], start_new_session=True, env=dict(environment), **options
    )
    threading.Thread(target=process.wait, daemon=True).start()  # else it would stay as a zombie
    return process


def _compared(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_NOT_COMPARED)}


def _code() -> int:
    """A number that changes with the code, ours and what it computes with: of names, sizes and times."""
    found = (find_spec(name) for name in _COMPUTE)
    files = [spec.origin for spec in found if spec is not None and spec.origin is not None]
    return hash(tuple(_state(path) for path in (*sorted(_PACKAGE.rglob("*.py")), *map(Path, files))))


def _state(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError:  # it was removed just now, or is a link to nothing
        return str(path), 0, 0
    return str(path), stat.st_size, stat.st_mtime_ns


def wait_for_run() -> int:
    """Import, and wait for runs; return the exit code of the run that this process does, 0 without one."""
    for name in _WITH_THREADS:
        import_module(name)
    threads = _count_threads()
    import torch

    from defuse_core.jobs import runner

    for name in ("defuse_core.jobs.engine", *_step_modules(), *_IMPORTED_LATE):
        if select.select([sys.stdin], [], [], 0)[0]:  # the run is there: it needs one step, not all
            break
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked ones: none stays as a zombie
    gc.freeze()  # else a search for garbage would copy every page that is shared with the forked ones
    with suppress(BrokenPipeError):  # the keeper has given it a run, and does not listen any more
        os.write(sys.stdout.fileno(), _FORKS if _may_fork(threads) else _READY)
    while line := sys.stdin.readline():
        home, run_id, forks = json.loads(line)
        if not forks or _is_forked():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _stand_in(Path(home) / "runs" / str(run_id))
            if forks and torch.cuda._is_in_bad_fork():  # an import has asked CUDA something: begin anew
                os.execv(sys.executable, [sys.executable, "-P", "-m", runner.__name__, home, str(run_id)])
            return runner.main(Path(home), run_id)
    return 0


def _count_threads() -> int:
    """Threads of this process; 0 where that is not told, which is everywhere but on Linux."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def _may_fork(threads: int) -> bool:
    """Whether a process that had so many threads, all of which survive a fork, has no other by now."""
    return 0 < _count_threads() <= threads


def _is_forked() -> bool:
    """Fork and tell the keeper the process id; whether this is the new process, in a session of its own."""
    try:
        child = os.fork()
    except OSError:  # too many processes: the keeper starts the run itself, if it can
        os.write(sys.stdout.fileno(), b"none\n")
        return False
    if child:
        return False
    os.setsid()
    with suppress(BrokenPipeError):  # the keeper has ended: the run was given to nobody
        os.write(sys.stdout.fileno(), b"%d\n" % os.getpid())
    return True


def _stand_in(folder: Path) -> None:
    """Be in the folder of a run, and write to its log, as a runner started for it.

    Without its folder a run fails, and says so. Nothing goes to the keeper, who reads process ids there.
    """
    nothing = log = os.open(os.devnull, os.O_RDWR)
    with suppress(OSError):
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_APPEND)
    for source, target in ((nothing, sys.stdin), (log, sys.stdout), (log, sys.stderr)):
        os.dup2(source, target.fileno())
    for file in {nothing, log}:
        os.close(file)


def _step_modules() -> list[str]:
    from defuse_core.steps import STEP_CLASSES

    return [f"defuse_core.steps.{module}" for module, _ in STEP_CLASSES.values()]


if __name__ == "__main__":
    sys.exit(wait_for_run())
