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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

SPARE_RUNNER = "DEFUSE_SPARE_RUNNER"
"""Set to 0 in the environment, no spare is kept."""

FREE_MEMORY = 2 * 2**30
"""Bytes that have to be available for a spare to be started; idle, it holds about a sixth of that."""

_PACKAGE = Path(__file__).resolve().parent.parent
_COMPUTE = ("torch", "torchvision", "numpy", "scipy", "sklearn")
"""Packages whose upgrade makes a spare that has them loaded another than a runner started now."""

_OPENMP = "KMP_"
"""Variables of OpenMP begin so; scikit-learn sets some where it is imported, in any process."""

_READY = b"ready\n"


@dataclass(frozen=True)
class _Spare:
    """A process that waits for a run, and what a runner has to have in common with it."""

    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    code: int

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether a runner started now would be the same."""
        return _compared(self.environment) == _compared(environment) and self.code == _code()


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
                spare.process.kill()
                return None
            finally:
                _close(spare)
            return spare.process

    def renew(self, environment: Mapping[str, str]) -> None:
        """Start the next spare where one is kept, for runs of this environment."""
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
                self._spare = _start(environment)

    def _end(self) -> None:
        if self._spare is not None:
            self._spare.process.kill()  # it has no run, and may still import
            _close(self._spare)
            self._spare = None


def _start(environment: Mapping[str, str]) -> _Spare:
    code = _code()
    process = start_process(
        [__name__], environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return _Spare(process, dict(environment), code)


def start_process(
    words: Sequence[str], environment: Mapping[str, str], **options: Any
) -> subprocess.Popen[bytes]:
    """Start a module of ours, with its arguments, in a session of its own; it is waited for at its end."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *words], start_new_session=True, env=dict(environment), **options
    )
    threading.Thread(target=process.wait, daemon=True).start()  # else it would stay as a zombie
    return process


def _close(spare: _Spare) -> None:
    """Let go of the pipes; a spare that was given nothing ends with them."""
    for pipe in (spare.process.stdin, spare.process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _compared(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_OPENMP)}


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
    with suppress(OSError):  # without its folder a run fails, and says so
        _stand_in(Path(home) / "runs" / str(run_id))
    return runner.main(Path(home), run_id)


def _stand_in(folder: Path) -> None:
    """Be in the folder of a run, and write to its log, as a runner started for it."""
    os.chdir(folder)
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open("log.txt", os.O_WRONLY | os.O_APPEND)
    for source, target in ((nothing, sys.stdin), (log, sys.stdout), (log, sys.stderr)):
        os.dup2(source, target.fileno())
    os.close(nothing)
    os.close(log)


def _step_modules() -> list[str]:
    from defuse_core.steps import STEP_CLASSES

    return [f"defuse_core.steps.{module}" for module, _ in STEP_CLASSES.values()]


if __name__ == "__main__":
    sys.exit(wait_for_run())
