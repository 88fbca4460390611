"""Runs tasks on a Ray cluster, one per worker: the side of the runner.

Ray takes over the signals of its process, and ends that process when its head is lost. So a child of
the runner talks to Ray (`ray_driver`), and this module talks to the child. If the cluster is lost, the
child ends and the run fails; what it had stored is kept.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from defuse_core.base.user_modules import known_folders
from defuse_core.jobs.engine import Cancelled, Ended, TaskEvent
from defuse_core.jobs.launcher import probe
from defuse_core.jobs.ray_driver import Asking, Ready, drive
from defuse_core.steps.base import Step
from defuse_core.workspace.runs import Resources

CONNECT_SECONDS = 5.0
"""How long a running cluster may take to answer."""
START_SECONDS = 60.0
"""How long the child, or a cluster of its own (address "local"), may take to start."""
_POLL_SECONDS = 0.1


class ClusterError(RuntimeError):
    """The cluster does not answer, or was lost; the message names the remedy."""


class RayEngine:
    """Runs all tasks at once, as far as the cluster has room for their CPU and GPU shares."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._where = "of this run" if resources.address == "local" else f"at {resources.address}"

    def run(self, step: Step, tasks: Sequence[str], cancelled: Cancelled) -> Iterator[TaskEvent]:
        """Yield what the workers yield, in the order of each task.

        Parameters
        ----------
        step : Step
        tasks : sequence of str
        cancelled : Cancelled

        Raises
        ------
        ClusterError
            If the cluster does not answer in time, or is lost.
        """
        if not tasks:
            return
        probe(self._resources)
        spawn = multiprocessing.get_context("spawn")  # a fork after torch's threads would hang
        ours, theirs = spawn.Pipe()
        child = spawn.Process(target=drive, args=(theirs, self._resources))
        child.start()
        theirs.close()  # only the child holds it now: the pipe closes when the child ends
        try:
            self._await_ready(ours)
            # Not send(): torch would put tensors into shared memory, one file handle each.
            ours.send_bytes(pickle.dumps((known_folders(), pickle.dumps((step, list(tasks))))))
            yield from self._receive(ours, tasks, cancelled)
            child.join(10)
        finally:
            ours.close()
            if child.is_alive():
                child.terminate()
                child.join(3)
            if child.is_alive():
                child.kill()
                child.join()

    def _await_ready(self, pipe: Connection) -> None:
        message = _hear(pipe, START_SECONDS)
        if isinstance(message, Asking):
            patience = START_SECONDS if self._resources.address == "local" else CONNECT_SECONDS
            message = _hear(pipe, patience)
            if message is None:
                raise ClusterError(
                    f"no Ray cluster answers {self._where} within {patience:.0f} s, though something "
                    "listens; check the address and, where the cluster uses tokens, RAY_AUTH_MODE=token"
                )
        if not isinstance(message, Ready):
            why = message or f"its driver did not start within {START_SECONDS:.0f} s"
            raise ClusterError(f"the Ray cluster {self._where} could not be used: {why}")

    def _receive(self, pipe: Connection, tasks: Sequence[str], cancelled: Cancelled) -> Iterator[TaskEvent]:
        running, sent = set(tasks), set[str]()
        while running:
            for task in (cancelled() & running) - sent:
                sent.add(task)
                pipe.send(task)
            if not pipe.poll(_POLL_SECONDS):
                continue
            try:
                task, item = pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                raise ClusterError(
                    f"the Ray cluster {self._where} was lost; start it again, then resume. "
                    "What its workers had finished is kept"
                ) from error
            if isinstance(item, Ended):
                running.discard(task)
            yield task, item


def _hear(pipe: Connection, seconds: float) -> Asking | Ready | str | None:
    """Return the next message of the driver; None if there is none in time."""
    if not pipe.poll(seconds):
        return None
    try:
        message: Asking | Ready | str = pipe.recv()
    except EOFError:
        return "its driver ended; see the log"
    return message
