"""Tasks on a Ray cluster, one a worker: the runner's side.

Ray takes the signals of the process that it is initialised in, and ends that process when its head
is lost. So a child of the runner talks to Ray (`ray_driver`), and this talks to the child: if the
cluster goes, the child goes, and the run has failed with all it had stored.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from defuse_core.jobs.engine import Cancelled, Ended, TaskEvent
from defuse_core.jobs.launcher import probe
from defuse_core.jobs.ray_driver import Asking, Ready, drive
from defuse_core.steps.base import Step
from defuse_core.workspace.runs import Resources

CONNECT_SECONDS = 5.0
"""How long a cluster may take to answer; one of our own, with address "local", `START_SECONDS`,
as may Python with Ray."""
START_SECONDS = 60.0
_POLL_SECONDS = 0.1


class ClusterError(RuntimeError):
    """The cluster does not answer, or was lost; the message names the remedy."""


class RayEngine:
    """All tasks at once, as far as the cluster has room for their CPU and GPU shares."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._where = "of this run" if resources.address == "local" else f"at {resources.address}"

    def run(self, step: Step, tasks: Sequence[str], cancelled: Cancelled) -> Iterator[TaskEvent]:
        """Yield what the workers yield, in the order of each task.

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
        theirs.close()  # the child's end alone is left: its death reads as the end of the pipe
        try:
            self._await_ready(ours)
            # Not send(): torch would put tensors into shared memory, one file handle each.
            ours.send_bytes(pickle.dumps((step, list(tasks))))
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
        told = _hear(pipe, START_SECONDS)
        if isinstance(told, Asking):
            patience = START_SECONDS if self._resources.address == "local" else CONNECT_SECONDS
            told = _hear(pipe, patience)
            if told is None:
                raise ClusterError(
                    f"no Ray cluster answers {self._where} within {patience:.0f} s, though something "
                    "listens; check the address and, where the cluster uses tokens, RAY_AUTH_MODE=token"
                )
        if not isinstance(told, Ready):
            why = told or f"its driver did not start within {START_SECONDS:.0f} s"
            raise ClusterError(f"the Ray cluster {self._where} could not be used: {why}")

    def _receive(self, pipe: Connection, tasks: Sequence[str], cancelled: Cancelled) -> Iterator[TaskEvent]:
        running, asked = set(tasks), set[str]()
        while running:
            for task in (cancelled() & running) - asked:
                asked.add(task)
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
    """What the driver says next; None where it says nothing in time."""
    if not pipe.poll(seconds):
        return None
    try:
        told: Asking | Ready | str = pipe.recv()
    except EOFError:
        return "its driver ended; see the log"
    return told
