"""Commands `defuse runs`, `cancel`, `resume` and `extend`, for runs that exist."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from defuse_core.cli import console as output
from defuse_core.cli.common import finish_run, tell_on_interrupt
from defuse_core.cli.options import (
    LARGEST,
    AsJson,
    Detach,
    OtherThreads,
    RunNumber,
    given_resources,
    more_lambdas,
)
from defuse_core.jobs import launcher
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Workspace


def runs(
    run: Annotated[int | None, typer.Argument(min=1, max=LARGEST, help="Show this run whole")] = None,
    project: Annotated[
        str, typer.Option("--project", "-p", envvar="DEFUSE_PROJECT", help="By default all projects")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List runs with their state, or show one with its tasks."""
    workspace = Workspace()
    if run is not None:
        _show(workspace, workspace.runs.get(run), as_json=as_json)
        return
    chosen = [workspace.project(project)] if project else workspace.projects()
    listed = [r for p in chosen for r in workspace.runs.of_project(p.id)]
    if as_json:
        typer.echo(json.dumps([output.run_json(r) for r in listed]))
    else:
        output.make_console().print(output.runs_table(workspace, listed))


def _show(workspace: Workspace, run: Run, *, as_json: bool) -> None:
    tasks = workspace.runs.tasks(run.id)
    log = workspace.run_folder(run.id) / "log.txt"
    if as_json:
        about = {"record": run.record, "tasks": [vars(task) for task in tasks], "log": str(log)}
        typer.echo(json.dumps({**output.run_json(run), **about}))
        return
    console = output.make_console()
    console.print(output.runs_table(workspace, [run]))
    console.print_json(json.dumps(run.config))
    table = Table("task", "status", "progress", "")
    for task in tasks[:200]:
        progress = f"{task.step} of {task.steps}" if task.steps else ""
        table.add_row(task.name, task.status, progress, task.error or "")
    console.print(table)
    console.print(f"log: {log}")


def cancel(
    run: RunNumber,
    task: Annotated[str | None, typer.Option(help="Only this task, such as lam=0.1")] = None,
    as_json: AsJson = False,
) -> None:
    """Stop a run, or one of its tasks; what is done is kept."""
    workspace = Workspace()
    updated = launcher.cancel(workspace, run, task)
    state = next((t.status for t in workspace.runs.tasks(run) if t.name == task), None)
    if as_json:
        typer.echo(json.dumps(output.run_json(updated)))
    elif state == "done":
        typer.echo(f"{task} of run {run} is done already")
    elif task is not None and updated.live:
        typer.echo(f"{task} of run {run} is asked to stop; the other tasks go on")
    else:
        typer.echo(f"run {run} is {updated.status}")


def resume(
    run: RunNumber,
    device: Annotated[str | None, typer.Option(help="Another device than before")] = None,
    threads: OtherThreads = None,
    engine: Annotated[str | None, typer.Option(help="local, or ray")] = None,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, where it has changed")] = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Resume a run that failed, was cancelled or interrupted; only what is missing is computed."""
    workspace = Workspace()
    before = workspace.runs.get(run)
    options = {"device": device, "threads": threads, "engine": engine, "address": address}
    changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if engine == "local":
        changes["address"] = None
    resources = given_resources({**vars(before.resources), **changes})
    with tell_on_interrupt(workspace, before.project_id):
        again = launcher.resume(workspace, run, resources=resources)
        finish_run(workspace, again, detach=detach, as_json=as_json)


def extend(
    run: RunNumber,
    lambdas: Annotated[
        list[str] | None, typer.Option(help="λ to add, such as 0.5,3; also to a baseline of the same")
    ] = None,
    baseline_lambdas: Annotated[list[str] | None, typer.Option(help="λ of the baseline to add")] = None,
    n_seeds: Annotated[int | None, typer.Option(min=1, help="Times that every λ is tuned")] = None,
    rule: Annotated[str | None, typer.Option(help="How λ is chosen: paper, or regions")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Accuracy that rule regions may give up")] = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Extend a correction by more λ, more seeds or another rule; what it has stays."""
    workspace = Workspace()
    before = workspace.runs.get(run)
    config = before.config
    options = {"n_seeds": n_seeds, "rule": rule, "max_loss": max_loss}
    changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if baseline_lambdas:
        changes["baseline_lambdas"] = more_lambdas(config.get("baseline_lambdas", ()), baseline_lambdas)
    if lambdas:
        inner = config.get("correction", {})
        changes["correction"] = {"lambdas": more_lambdas(inner.get("lambdas", ()), lambdas)}
    with tell_on_interrupt(workspace, before.project_id):
        finish_run(workspace, launcher.extend(workspace, run, changes), detach=detach, as_json=as_json)
