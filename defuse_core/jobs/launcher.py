"""Submit, cancel and resume runs: each is a process of its own that outlives the one that started it.

The runner leads its own session and process group. Its environment sets the number of threads and how
much freed memory to keep, since both must be set before torch is imported. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from defuse_core.base.files import write_bytes
from defuse_core.base.limits import MAX_THREADS
from defuse_core.base.machine import available_cores
from defuse_core.jobs.spare import SpareKeeper, start_process
from defuse_core.workspace.config_checks import ConfigError, check_config, check_growth
from defuse_core.workspace.configs import STEPS, StepName
from defuse_core.workspace.database import WorkspaceError, explain_os_error
from defuse_core.workspace.runs import Resources, Run, corrected_by, is_alive, process_started
from defuse_core.workspace.workspace import Workspace

CANCEL_SECONDS = 0.7
"""How long a runner may take to stop by itself before it is killed."""

_PROBE_SECONDS = 3.0
_SPARES = SpareKeeper()


def submit(
    workspace: Workspace, project_id: int, step: StepName, config: Mapping[str, Any] | None = None, *,
    seed: int = 0, resources: Resources | None = None, upstream: Sequence[Run] | None = None,
) -> Run:  # fmt: skip
    """Queue a run and start its runner.

    Parameters
    ----------
    workspace : Workspace
    project_id : int
    step : str
    config : mapping, optional
        Fields of the step's config; the rest has its defaults.
    seed : int
        Of every random stream of the step, 0 or more.
    resources : Resources, optional
    upstream : sequence of Run, optional
        What it stands on directly; by default the newest runs that it can stand on.

    Returns
    -------
    Run
        Queued; it runs once the runs it stands on are done and the machine is free.

    Raises
    ------
    ConfigError
        If the config, the device or the address is refused.
    LiveRunError
        If the step has a live run.
    WorkspaceError
        If a run it needs is missing, or the Ray cluster does not answer.
    """
    checked = check_config(step, config or {})
    if seed < 0:
        raise WorkspaceError(f"seed must be 0 or more, got {seed}")
    resources = resources or Resources()
    probe(resources)
    if upstream is None:
        upstream = list(find_upstream(workspace, project_id, step, config).values())
    run = workspace.runs.add(
        project_id, step, checked.model_dump(mode="json"), seed=seed, resources=resources,
        upstream=[each.id for each in upstream],
    )  # fmt: skip
    _start(workspace, run)
    return workspace.runs.get(run.id)


def find_upstream(
    workspace: Workspace, project_id: int, step: StepName, config: Mapping[str, Any] | None = None, *,
    fixed: Sequence[Run] = (),
) -> dict[str, Run]:  # fmt: skip
    """Return the newest usable runs that a step would stand on directly, by step.

    A corrected classifier is searched with the generator of the round before, whatever was trained since:
    the regions of both rounds lie in one latent space.

    Parameters
    ----------
    workspace : Workspace
    project_id : int
    step : str
    config : mapping, optional
        Fields of the step's config, as in `submit`: some decide what it stands on.
    fixed : sequence of Run
        Runs that are taken instead of the newest of their steps.

    Raises
    ------
    ConfigError
        If the config is refused.
    WorkspaceError
        If there is none of a step that it needs.
    """
    upstream: dict[str, Run] = {}
    chosen = {run.step: run for run in fixed}
    for name in STEPS[step].needed(check_config(step, config or {})):
        latest = chosen.get(name) or workspace.runs.latest(project_id, name)
        if latest is None:
            raise WorkspaceError(f"{step} stands on {name}, of which no run is done; run that step first")
        upstream[name] = latest
    correction = corrected_by(upstream["classifier"]) if "classifier" in upstream else None
    if correction is not None and "vae" in upstream and "vae" not in chosen:
        upstream["vae"] = workspace.runs.ancestry(correction)["vae"]
    ground = {run.id for needed in upstream.values() for run in workspace.runs.ancestry(needed.id).values()}
    for name in STEPS[step].optional:
        latest = chosen.get(name) or workspace.runs.latest(project_id, name, done=True)
        if latest is not None and set(latest.upstream) <= ground:
            upstream[name] = latest
    return upstream


def cancel(workspace: Workspace, run_id: int, task: str | None = None) -> Run:
    """Stop a run within a second, or one of its tasks at its next step; finished tasks are kept.

    Parameters
    ----------
    workspace : Workspace
    run_id : int
    task : str, optional
        Cancels this task alone; by default the run.

    Returns
    -------
    Run
        Its state afterwards; a run that had already ended is unchanged.
    """
    if not workspace.runs.ask_to_cancel(run_id, task) or task is not None:
        return workspace.runs.get(run_id)
    run = workspace.runs.get(run_id)
    if not run.has_runner:  # a runner that starts later sees this and stops
        workspace.runs.finish(run_id, "cancelled")
    elif is_alive(run.pid, run.pid_started, run.heartbeat_at):
        _stop(run.pid)
        workspace.runs.finish(run_id, "cancelled")  # if it was killed, and did not write this itself
    return workspace.runs.get(run_id)


def resume(workspace: Workspace, run_id: int, *, resources: Resources | None = None) -> Run:
    """Resume a run that failed, was cancelled or interrupted: only what is missing is computed.

    Parameters
    ----------
    workspace : Workspace
    run_id : int
    resources : Resources, optional
        By default those that it had.

    Raises
    ------
    LiveRunError
        If it, or another run of its step, is live.
    WorkspaceError
        If it is done with nothing missing, or the Ray cluster does not answer.
    """
    probe(resources or workspace.runs.get(run_id).resources)
    run = workspace.runs.requeue(run_id, resources=resources)
    _start(workspace, run)
    return workspace.runs.get(run_id)


def extend(workspace: Workspace, run_id: int, changes: Mapping[str, Any]) -> Run:
    """Resume a run under a config with more values, such as more λ; what is computed stays.

    A baseline that has the λ of the regions gets the new ones, too, unless its own are among the changes.

    Parameters
    ----------
    workspace : Workspace
    run_id : int
    changes : mapping
        Fields of the config, as in `submit`; the fields of a nested config are merged into it.

    Raises
    ------
    ConfigError
        If a change would touch what was computed; see `StepSpec.may_grow`.
    LiveRunError
        If it, or another run of its step, is live.
    WorkspaceError
        If nothing would change, or the step has nothing that may grow.
    """
    run = workspace.runs.get(run_id)
    if not STEPS[run.step].may_grow:  # type: ignore[index]
        raise WorkspaceError(f"run {run_id} is {run.step}, and only correct runs go on; submit it anew")
    config = {**run.config}
    if run.config.get("baseline_lambdas") == run.config.get("correction", {}).get("lambdas"):
        config.pop("baseline_lambdas", None)  # searched as the regions are, and so from now on
    for name, value in changes.items():
        inner = config.get(name)
        config[name] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    checked = check_growth(run.step, run.config, config)  # type: ignore[arg-type]  # runs are of known steps
    missing = any(task.status != "done" for task in workspace.runs.tasks(run_id))
    if run.status == "done" and not missing and checked == check_config(run.step, run.config):
        raise WorkspaceError(f"run {run_id} has all of that already; add a λ, a seed, or another rule")
    probe(run.resources)
    _start(workspace, workspace.runs.requeue(run_id, config=checked.model_dump(mode="json")))
    return workspace.runs.get(run_id)


def probe(resources: Resources) -> None:
    """Check the device, the threads and the Ray address of a run within seconds.

    Ray itself would wait for minutes at an address where nothing listens.

    Raises
    ------
    ConfigError
        If device, threads or address are malformed.
    WorkspaceError
        If nothing listens.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", resources.device):
        raise ConfigError(f"device must be auto, cpu, mps, cuda or cuda:<n>, got {resources.device!r}")
    if not 0 <= resources.threads <= MAX_THREADS:
        raise ConfigError(f"threads must be 0 to {MAX_THREADS:,}, got {resources.threads:,}; give fewer")
    if resources.engine != "ray" or resources.address in (None, "local"):
        return
    host, _, port = str(resources.address).rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"address must be HOST:PORT or local, got {resources.address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise WorkspaceError(
            f"no Ray cluster answers at {resources.address} ({error}); start one with: "
            "ray start --head --port=6379, or use --address local"
        ) from error


def keep_spare(resources: Resources | None = None) -> None:
    """Keep a runner ready from now on, so that runs of these resources start at once; see `spare`."""
    _SPARES.keep(_environment(resources or Resources()))


def await_spare() -> int | None:
    """Wait until the spare runner could start a run at once; return its process id, None without one."""
    return _SPARES.await_ready()


def drop_spare() -> None:
    """End the spare runner and keep none any more."""
    _SPARES.stop()


@contextmanager
def spare_runner(resources: Resources | None = None) -> Iterator[None]:
    """Keep a runner ready inside the context, for commands that start several runs."""
    keep_spare(resources)
    try:
        yield
    finally:
        drop_spare()


def _start(workspace: Workspace, run: Run) -> None:
    """Start the runner of a queued run, or take the spare one, and hand the run over to it."""
    environment = _environment(run.resources)
    workspace.keep_reserve()  # the run may fill the disk
    try:
        prepare_folder(workspace, run)
        pid = _SPARES.give(environment, workspace.home, run.id) or _start_runner(workspace, run, environment)
    except OSError as error:
        explained = explain_os_error(workspace.run_folder(run.id), error)
        workspace.runs.finish(run.id, "failed", error=str(explained))
        raise explained from error
    try:
        workspace.runs.hand_over(run.id, pid)
    except BaseException as error:  # else the run would stay queued without a runner
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        workspace.runs.finish(run.id, "failed", error=str(error))
        raise
    _SPARES.renew(environment)


def prepare_folder(workspace: Workspace, run: Run) -> None:
    """Write config.json into the folder of a run, and create its log.

    Parameters
    ----------
    workspace : Workspace
    run : Run

    Raises
    ------
    OSError
        If the disk is full, or the folder cannot be written to.
    """
    folder = workspace.run_folder(run.id)
    about = {"step": run.step, "seed": run.seed, "config": run.config, "upstream": run.upstream}
    write_bytes(folder / "config.json", (json.dumps(about, indent=2) + "\n").encode())
    (folder / "log.txt").touch()


def _start_runner(workspace: Workspace, run: Run, environment: Mapping[str, str]) -> int:
    folder = workspace.run_folder(run.id)
    words = ["defuse_core.jobs.runner", str(workspace.home), str(run.id)]
    with (folder / "log.txt").open("ab") as log:
        return start_process(
            words, environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
        ).pid


def _environment(resources: Resources) -> dict[str, str]:
    threads = str(resources.threads or available_cores())
    return {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "MALLOC_MMAP_MAX_": "0",  # glibc: large buffers stay mapped, which halves a batch's time
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "PYTHONUNBUFFERED": "1",
    }


def _stop(pid: int) -> None:
    """End a runner and its children: SIGTERM first, SIGKILL after `CANCEL_SECONDS`."""
    started = process_started(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + CANCEL_SECONDS
        while time.monotonic() < deadline and process_started(pid) == started:
            time.sleep(0.01)  # it may not be our child, and then wait() does not work
        os.killpg(pid, signal.SIGKILL)  # the group, if the runner or a child is left
    except ProcessLookupError:
        return
