"""Find the run that a command would submit, resume it, or submit it. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from defuse_core.jobs import launcher
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import STEPS, StepName
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Workspace


def find_run(
    workspace: Workspace, project_id: int, step: StepName, config: Mapping[str, Any], *, seed: int,
    upstream: Collection[Run], after: int = 0,
) -> Run | None:  # fmt: skip
    """Return the newest run of the same step, config and seed on the same runs; None if there is none.

    Parameters
    ----------
    workspace : Workspace
    project_id : int
    step : str
    config : mapping
        Fields of the step's config; the rest has its defaults.
    seed : int
    upstream : collection of Run
        The runs that it stands on directly.
    after : int
        Only runs with a greater id count.

    Raises
    ------
    ConfigError
        If the config is refused.
    """
    checked, ids = check_config(step, config), {run.id for run in upstream}
    same = [
        run
        for run in workspace.runs.of_project(project_id, step)
        if run.id > after
        and run.seed == seed
        and set(run.upstream) == ids
        and check_config(step, run.config) == checked  # JSON has lists where a config has tuples
    ]
    return same[-1] if same else None


def ensure(
    workspace: Workspace, project_id: int, step: StepName, config: Mapping[str, Any], *, seed: int,
    resources: Resources, upstream: Sequence[Run], after: int = 0,
) -> Run:  # fmt: skip
    """Return the run that `find_run` finds, resumed if it ended without being done; else submit it.

    Parameters
    ----------
    workspace : Workspace
    project_id : int
    step, config, seed, upstream, after
        As of `find_run`.
    resources : Resources
        Of a run that is submitted or resumed.

    Raises
    ------
    ConfigError, LiveRunError, WorkspaceError
        As `launcher.submit` and `launcher.resume` do.
    """
    run = find_run(workspace, project_id, step, config, seed=seed, upstream=upstream, after=after)
    if run is None:
        return launcher.submit(
            workspace, project_id, step, config, seed=seed, resources=resources, upstream=upstream
        )
    if run.live or run.status == "done":
        return run
    return launcher.resume(workspace, run.id, resources=resources)


def upstream_among(runs: Mapping[StepName, Run], step: StepName, config: Mapping[str, Any]) -> list[Run]:
    """Return the runs that a step would stand on directly.

    Parameters
    ----------
    runs : mapping of str to Run
        By step.
    step : str
    config : mapping
        Fields of the step's config.
    """
    needed = STEPS[step].needed(check_config(step, config))
    return [runs[name] for name in (*needed, *STEPS[step].optional) if name in runs]
