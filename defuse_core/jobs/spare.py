"""A spare runner: a process that has imported torch and the steps before there is a run for it.

Whoever starts runs, and is to answer at once, keeps one: the dashboard, and commands of several runs.
The spare waits at the end of a pipe that only its keeper writes to, so it ends when its keeper does. A
line on that pipe gives it a run; from then on it is that run's runner like any other. It is used only
where a runner started now would be the same: same code, same environment. Imports no torch but in
the spare's own process.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import psutil

SPARE_RUNNER = "DEFUSE_SPARE_RUNNER"
"""Set to 0 in the environment, no spare is kept."""

FREE_MEMORY = 2 * 2**30
"""Bytes that have to be available for a spare to be started; idle, it holds about a quarter of that."""

_PACKAGE = Path(__file__).resolve().parent.parent
_READY = b"ready\n"


@dataclass(frozen=True)
class _Spare:
    """A process that waits for a run, and what a runner has to have in common with it."""

    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    code: int

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether a runner started now would be the same."""
        return self.environment == environment and self.code == _code()


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
        """Wait, once, until the spare has imported what it needs; return its process id, None without one."""
        with self._lock:
            spare = self._spare
        if spare is None or spare.process.stdout is None or spare.process.stdout.readline() != _READY:
            return None
        return spare.process.pid

    def give(self, environment: Mapping[str, str], home: Path, run_id: int) -> subprocess.Popen[bytes] | None:
        """Give a run to the spare; None where there is none that would do it as a new runner would."""
        with self._lock:
            spare, self._spare = self._spare, None
            if spare is None:
                return None
            if not spare.fits(environment):
                spare.process.kill()
                _close(spare)
                return None
            assert spare.process.stdin is not None
            try:
                spare.process.stdin.write(json.dumps([str(home), run_id]).encode() + b"\n")
                spare.process.stdin.flush()
            except OSError:  # it was ended from outside
                return None
            finally:
                _close(spare)
            return spare.process

    def renew(self, environment: Mapping[str, str]) -> None:
        """Start the next spare where one is kept, for runs of this environment."""
        with self._lock:
            self._renew(environment)

    def _renew(self, environment: Mapping[str, str]) -> None:
        if not self._keeping or psutil.virtual_memory().available < FREE_MEMORY:
            return
        spare = self._spare
        if spare is not None and spare.process.poll() is None and spare.fits(environment):
            return
        self._end()
        with suppress(OSError):  # then the next run starts without
            self._spare = _start(environment)

    def _end(self) -> None:
        if self._spare is not None:
            self._spare.process.kill()  # it has no run, and may still import
            _close(self._spare)
            self._spare = None


def _start(environment: Mapping[str, str]) -> _Spare:
    code = _code()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, start_new_session=True, env=dict(environment),
    )  # fmt: skip
    threading.Thread(target=process.wait, daemon=True).start()  # else it would stay as a zombie
    return _Spare(process, dict(environment), code)


def _close(spare: _Spare) -> None:
    """Let go of the pipes; a spare that was given nothing ends with them."""
    for pipe in (spare.process.stdin, spare.process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _code() -> int:
    """A number that changes with the code: of names, sizes and times of change of all modules."""
    found = ((str(path), path.stat()) for path in sorted(_PACKAGE.rglob("*.py")))
    return hash(tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found))


def wait_for_run() -> int:
    """Import, wait for a run, and do it; return its exit code, 0 where there is none."""
    from defuse_core.jobs import runner

    for name in ("defuse_core.jobs.engine", *_step_modules()):
        if select.select([sys.stdin], [], [], 0)[0]:  # the run is there: it needs one step, not all
            break
        import_module(name)
    with suppress(BrokenPipeError):  # the keeper has given it a run, and does not listen any more
        os.write(sys.stdout.fileno(), _READY)
    line = sys.stdin.readline()
    if not line:
        return 0
    home, run_id = json.loads(line)
    os.chdir(Path(home) / "runs" / str(run_id))
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open("log.txt", os.O_WRONLY | os.O_APPEND)
    for source, target in ((nothing, sys.stdin), (log, sys.stdout), (log, sys.stderr)):
        os.dup2(source, target.fileno())
    os.close(nothing)
    os.close(log)
    return runner.main(Path(home), run_id)


def _step_modules() -> list[str]:
    from defuse_core.steps import STEP_CLASSES

    return [f"defuse_core.steps.{module}" for module, _ in STEP_CLASSES.values()]


if __name__ == "__main__":
    sys.exit(wait_for_run())
