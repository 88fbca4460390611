"""Tasks on a Ray cluster: the process that talks to Ray, and what a worker does.

The pipe brings the step and its tasks, then names of tasks to cancel; what the tasks yield goes back.
When the pipe closes, the runner has ended. This process then ends its whole process group, and with it a
cluster that it started.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from defuse_core.base.user_modules import adopt_folders, known_folders
from defuse_core.workspace.runs import Resources

if TYPE_CHECKING:
    from defuse_core.jobs.engine import Ended, Started
    from defuse_core.steps.base import Item, Step

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # Ray's minute is long to wait for a dead head
    "RAY_py_gcs_connect_timeout_s": "2",
    "RAY_gcs_rpc_server_connect_timeout_s": "2",
}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray takes 127.0.0.1 for every interface
_WAIT_SECONDS = 0.2

_held: dict[str, Any] = {}  # in a worker: the step, by the name of its reference


@dataclass(frozen=True)
class Asking:
    """Ray is imported, which may take long; next, this process connects to the cluster."""


@dataclass(frozen=True)
class Ready:
    """The cluster answers."""


def drive(pipe: Connection, resources: Resources) -> None:
    """Run tasks on Ray until all have ended; the main function of this process.

    Parameters
    ----------
    pipe : Connection
        To the runner.
    resources : Resources
    """
    local = resources.address == "local"
    here = local or str(resources.address).startswith(("127.", "localhost"))
    os.environ.update({**_ENVIRONMENT, **(_LOOPBACK if here else {})})
    if not local and (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # a head that was started here requires it
    try:
        import ray
    except ImportError:
        pipe.send("Ray is not installed; install it with: pip install 'defuse[cluster]'")
        return
    pipe.send(Asking())
    with TemporaryDirectory(prefix="defuse-ray-", ignore_cleanup_errors=True) as folder:
        where: dict[str, Any] = {"include_dashboard": False, "_temp_dir": folder} if local else {}
        try:
            ray.init(address=resources.address, log_to_driver=False, **where)
        except (ConnectionError, RuntimeError, ValueError) as error:
            pipe.send(str(error))
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray has installed its own handler
        pipe.send(Ready())
        folders, pickled = pickle.loads(pipe.recv_bytes())  # safe: from the runner, our parent
        adopt_folders(folders)
        step, tasks = pickle.loads(pickled)
        _run(pipe, step, tasks, resources)
        ray.shutdown()


def _run(pipe: Connection, step: Step, tasks: list[str], resources: Resources) -> None:
    import ray

    from defuse_core.jobs.engine import Ended

    stream_of = ray.remote(
        num_returns="streaming", max_retries=0, num_cpus=resources.cpus, num_gpus=resources.gpus
    )
    work: Any = stream_of(work_on)
    reference = ray.put(step)
    folders = known_folders()
    streams = {task: work.remote([reference], task, resources, folders) for task in tasks}
    names = {stream: task for task, stream in streams.items()}
    lock = threading.Lock()  # of the pipe, which two threads write to

    def send(task: str, item: Item | Started | Ended) -> None:
        with lock:
            pipe.send((task, item))

    threading.Thread(target=_obey, args=(pipe, streams), daemon=True).start()
    ended: set[str] = set()
    while names:
        ready: list[Any] = ray.wait(list(names), num_returns=1, timeout=_WAIT_SECONDS)[0]
        for stream in ready:
            task = names[stream]
            item: Any
            try:
                item = ray.get(next(stream))
            except StopIteration:
                if task not in ended:
                    send(task, Ended("failed", "its worker ended without a word; resume the run"))
                del names[stream]
                continue
            except ray.exceptions.RayError as error:
                item = _explain(error)
            if task not in ended:
                send(task, item)
            if isinstance(item, Ended):
                ended.add(task)


def _obey(pipe: Connection, streams: dict[str, Any]) -> None:
    """Cancel the tasks that the runner names; end all processes when the runner ends."""
    import ray

    try:
        while True:
            ray.cancel(streams[pipe.recv()], force=True)  # also from inside a native call
    except (EOFError, OSError):
        os.killpg(os.getpgrp(), signal.SIGKILL)  # the runner leads this group, and is gone


def _explain(error: Exception) -> Ended:
    import ray

    from defuse_core.jobs.engine import Ended

    cause = getattr(error, "cause", None)
    cancelled = ray.exceptions.TaskCancelledError
    if isinstance(error, cancelled) or isinstance(cause, cancelled):
        return Ended("cancelled")
    if isinstance(error, ray.exceptions.RayTaskError):
        return Ended("failed", f"{type(cause).__name__}: {cause}")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return Ended("failed", f"its worker or node was lost ({reason}); resume the run")


def work_on(
    references: list[Any], task: str, resources: Resources, folders: Mapping[str, str]
) -> Iterator[Item | Started | Ended]:
    """Run one task in a worker, which keeps the step for its next task.

    Parameters
    ----------
    references : list of one ray.ObjectRef
        Of the step; in a list, since Ray would load a bare one for every task.
    task : str
    resources : Resources
    folders : mapping of str to str
        Of the user's own code, as `known_folders` returns them.
    """
    import ray

    from defuse_core.base.runtime import resolve_device, set_threads
    from defuse_core.jobs.engine import Started, run_task

    yield Started()
    set_threads(max(1, round(resources.cpus)))
    (reference,) = references
    if reference.hex() not in _held:
        _held.clear()
        adopt_folders(folders)
        step: Step = ray.get(reference)
        step.to(resolve_device(resources.device))
        _held[reference.hex()] = step
    yield from run_task(_held[reference.hex()], task)
