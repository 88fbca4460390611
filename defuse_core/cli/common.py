"""What commands share: finding their project, and watching a run to its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from defuse_core.cli import console as output
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project, Workspace

EXIT_CODES = {"done": 0, "failed": 1, "cancelled": 3, "interrupted": 3}


def find_project(workspace: Workspace, name: str) -> Project:
    """Return a project by its name.

    Parameters
    ----------
    workspace : Workspace
    name : str
        "" for the only project of the workspace.

    Raises
    ------
    WorkspaceError
        If there is no such project; without a name, if there is none or several.
    """
    if name:
        return workspace.project(name)
    projects = workspace.projects()
    if len(projects) != 1:
        known = ", ".join(p.name for p in projects)
        remedy = f"choose one with --project: {known}" if known else "create one with: defuse new NAME"
        raise WorkspaceError(f"there are {len(projects)} projects; {remedy}")
    return projects[0]


@contextmanager
def tell_on_interrupt(workspace: Workspace, project_id: int) -> Iterator[None]:
    """On Ctrl-C inside the block, name the runs that the block started and that go on; exit with 130.

    Parameters
    ----------
    workspace : Workspace
    project_id : int
    """
    before = {run.id for run in workspace.runs.of_project(project_id) if run.live}
    try:
        yield
    except KeyboardInterrupt:
        for run in workspace.runs.of_project(project_id):
            if run.live and run.has_runner and run.id not in before:
                typer.echo(f"run {run.id} goes on; stop it with: defuse cancel {run.id}", err=True)
        sys.exit(130)


def finish_run(workspace: Workspace, run: Run, *, detach: bool, as_json: bool) -> Run:
    """Watch a run unless detached, print it, and exit with its code unless it is done.

    Parameters
    ----------
    workspace : Workspace
    run : Run
    detach : bool
        Print without waiting for the run's end.
    as_json : bool
        Print JSON, and no bars.
    """
    console = output.make_console()
    if not detach:
        if as_json:
            run = output.watch(workspace, run, None)
        else:
            with output.progress_bars(console) as bars:
                run = output.watch(workspace, run, bars)
    if as_json:
        typer.echo(json.dumps(output.run_json(run)))
    elif detach:
        console.print(f"run {run.id} ({run.step}) goes on by itself; see: defuse runs")
    else:
        output.print_run(console, run)
        if run.status == "failed":
            console.print(f"log: {workspace.run_folder(run.id) / 'log.txt'}; then: defuse resume {run.id}")
    if not run.live and (code := EXIT_CODES[run.status]):
        sys.exit(code)
    return run
