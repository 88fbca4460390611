"""Runs trials in forked children: bounded in memory and time, a batch a child, alone where a batch dies."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from tests.campaign.doors import DOORS, Door, UnusableError
from tests.campaign.kinds import MARKER, Kind, Stock
from tests.campaign.verdicts import GOOD, Outcome, fault_of_message, is_refusal, ran_out_of_memory

MEMORY = 2 * 2**30
"""Bytes of address space that a child may add to what its parent has."""
SECONDS = 10.0
BATCH = 25
_DISK = 2**30  # bytes of the largest file that a child may write

Trial = tuple[Kind, int]
"""A kind and a seed."""


@dataclass
class _Child:
    """A running child."""

    pid: int
    reading: int
    folder: Path
    trials: Sequence[Trial]
    done: list[Outcome] = field(default_factory=list)
    rest: bytes = b""
    since: float = field(default_factory=time.monotonic)


def run_trials(
    trials: Iterable[Trial], stock: Stock, *, jobs: int = 2, seconds: float = SECONDS,
    doors: Mapping[str, Door] = DOORS,
) -> Iterator[Outcome]:  # fmt: skip
    """Run trials, and yield how each ended.

    Parameters
    ----------
    trials : iterable of Trial
    stock : Stock
    jobs : int
        Children at a time.
    seconds : float
        After so long in one trial a child is killed; later on a busy machine.
    doors : mapping of str to Door
    """
    waiting = _batches(trials)
    gc.collect()
    gc.freeze()  # a child that collects would copy all of the parent's pages
    with selectors.DefaultSelector() as selector, tempfile.TemporaryDirectory(prefix="campaign-") as root:
        children: dict[int, _Child] = {}
        while waiting or children:
            while waiting and len(children) < jobs:
                child = _fork(waiting.popleft(), stock, Path(tempfile.mkdtemp(dir=root)), doors)
                children[child.reading] = child
                selector.register(child.reading, selectors.EVENT_READ)
            for key, _ in selector.select(timeout=0.1):
                child = children[key.fd]
                before = len(child.done)
                if not _read(child):
                    selector.unregister(child.reading)
                    del children[child.reading]
                    yield from child.done[before:]
                    yield from _end(child, waiting, "")
                else:
                    yield from child.done[before:]
            busy = os.getloadavg()[0] / (os.cpu_count() or 1)
            limit = seconds * min(max(1.0, busy), 3.0)  # others may compute, too
            for child in [c for c in children.values() if time.monotonic() - c.since > limit]:
                os.kill(child.pid, signal.SIGKILL)
                selector.unregister(child.reading)
                del children[child.reading]
                yield from _end(child, waiting, f"over {seconds:g} s")


def _batches(trials: Iterable[Trial]) -> deque[Sequence[Trial]]:
    """Trials of one kind together, at most `BATCH`."""
    by_kind: dict[str, list[Trial]] = {}
    for trial in trials:
        by_kind.setdefault(trial[0].name, []).append(trial)
    return deque(
        group[first : first + BATCH] for group in by_kind.values() for first in range(0, len(group), BATCH)
    )


def _fork(trials: Sequence[Trial], stock: Stock, folder: Path, doors: Mapping[str, Door]) -> _Child:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            _bound()
            for kind, seed in trials:
                outcome = run_one(kind, seed, stock, folder, doors)
                os.write(writing, json.dumps(asdict(outcome)).encode() + b"\n")
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    os.set_blocking(reading, False)
    return _Child(pid, reading, folder, trials)


def _bound() -> None:
    """Bound what this child takes, and keep it quiet."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_DISK, _DISK))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    faulthandler.disable()
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  (pytest has put others there)


def _read(child: _Child) -> bool:
    """Take what a child has written; False at its end."""
    content = os.read(child.reading, 2**16)
    *lines, child.rest = (child.rest + content).split(b"\n")
    for line in lines:
        child.done.append(Outcome(**json.loads(line)))
        child.since = time.monotonic()
    return bool(content)


def _end(child: _Child, waiting: deque[Sequence[Trial]], hang: str) -> Iterator[Outcome]:
    """Reap a child; if it died in a trial, run that one alone, and the rest after it."""
    os.close(child.reading)
    _, status = os.waitpid(child.pid, 0)
    shutil.rmtree(child.folder, ignore_errors=True)
    left = child.trials[len(child.done) :]
    if not left:
        return
    if len(child.trials) > 1:
        waiting.extend(part for part in (left[:1], left[1:]) if part)
        return
    kind, seed = left[0]
    died = (
        f"killed by {signal.Signals(-code).name}" if (code := os.waitstatus_to_exitcode(status)) < 0 else ""
    )
    yield Outcome(kind.name, seed, "hang" if hang else "crash", hang or died or f"ended with {code}")


def run_one(kind: Kind, seed: int, stock: Stock, root: Path, doors: Mapping[str, Door]) -> Outcome:
    """Run one trial in this process.

    Parameters
    ----------
    kind : Kind
    seed : int
    stock : Stock
    root : Path
        For the folder of the trial, which is removed, and for what a door keeps.
    doors : mapping of str to Door
    """
    folder, door = root / f"{kind.name}-{seed}", doors[kind.door]
    folder.mkdir()
    path = kind.make(Random(f"{kind.name}:{seed}"), folder, stock)
    before, started = _reset_peak(), time.monotonic()
    outcome = Outcome(kind.name, seed, *_open(door.open, path, root, stock))
    seconds, peak = time.monotonic() - started, _status("VmHWM") - before
    if (folder / MARKER).exists():
        outcome = Outcome(kind.name, seed, "code run", "code of the file was run")
    elif outcome.ending in GOOD and peak > door.peak:
        outcome = Outcome(kind.name, seed, "memory", f"{peak / 2**20:.0f} MB, {outcome.message[:200]}")
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
    return Outcome(outcome.kind, outcome.seed, outcome.ending, outcome.message, seconds, peak)


def _open(open_: Callable[[Path, Path, Stock], None], path: Path, root: Path, stock: Stock) -> tuple:
    """Let the door open the file; return the ending and a message."""
    try:
        open_(path, root, stock)
    except UnusableError as error:
        return "unusable", _plain(error)
    except BaseException as error:
        if ran_out_of_memory(error):
            return "memory", _plain(error)
        if not is_refusal(error):
            return "crash", _plain(error)
        text = str(error).replace(str(path), "FILE").replace(str(root), "…")
        fault = fault_of_message(text)
        return ("no remedy", f"{fault}: {_plain(error)}") if fault else ("refused", text)
    return "taken", ""


def _plain(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"[:500]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" [{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}]" if trace else ""
    return text.encode("utf-8", "backslashreplace").decode() + where


def _reset_peak() -> int:
    """Forget the peak of resident memory so far; return what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
