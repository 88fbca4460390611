"""Commands `defuse manifest` and `defuse replay`: record what made a result, and run it again."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from defuse_core.base.files import write_bytes
from defuse_core.cli import console as output
from defuse_core.cli.common import find_project, finish_run
from defuse_core.cli.options import LARGEST, AsJson, OtherThreads, ProjectName
from defuse_core.exchange.replay.bringing import Bring, find_source
from defuse_core.exchange.replay.comparison import Comparison, RunComparison, compare
from defuse_core.exchange.replay.replay import replay as replay_manifest
from defuse_core.exchange.replay.replay import resources_of
from defuse_core.jobs import launcher
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.manifest.models import MadeStep
from defuse_core.workspace.manifest.reading import read_manifest
from defuse_core.workspace.manifest.writing import make_manifest
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project, Workspace

_LISTED = 20
"""Differing values printed for each run, at most; --json has all."""


def manifest(
    project: ProjectName = "",
    run: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST, help="By default the furthest that is done, such as the report"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; by default the terminal")] = None,
) -> None:
    """Write down everything that made a result: data, configs, seeds, labels, versions, checksums."""
    workspace = Workspace()
    chosen = furthest_run(workspace, find_project(workspace, project)).id if run is None else run
    text = json.dumps(make_manifest(workspace, chosen), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_bytes(out, text.encode())


def furthest_run(workspace: Workspace, project: Project) -> Run:
    """Return the done run of the furthest step, the newest of several; a stale one only where all are stale.

    Parameters
    ----------
    workspace : Workspace
    project : Project

    Raises
    ------
    WorkspaceError
        If no run is done.
    """
    runs = [run for run in workspace.runs.of_project(project.id) if run.status == "done"]
    order = get_args(MadeStep)
    usable = [run for run in runs if run.step in order]
    if not usable:
        raise WorkspaceError(f"project {project.name!r} has no run that is done; see: defuse runs")
    return max(usable, key=lambda run: (not run.stale, order.index(run.step), run.id))


def replay(
    file: Annotated[Path, typer.Argument(metavar="MANIFEST", help="What `defuse manifest` wrote")],
    name: Annotated[
        str, typer.Option(help="Of the project to make; by default the old one's with “replayed” after it")
    ] = "",
    data: Annotated[
        str | None, typer.Option(help="Where the data set is here, as `defuse new` takes it")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A file of weights that was uploaded; may be given again")
    ] = None,
    code_path: Annotated[
        Path | None, typer.Option(help="Folder that the network's own class is imported from")
    ] = None,
    more_data: Annotated[
        str | None, typer.Option(help="Where the additional training data of the annotators is here")
    ] = None,
    trust_program: Annotated[
        bool, typer.Option("--trust-program", help="Run uploads that are programs, not only weights")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Another device than in the original")] = None,
    threads: OtherThreads = None,
    as_json: AsJson = False,
) -> None:
    """Run a result again from its manifest, in a project of its own, and say what differs.

    Exits with 0 where nothing does, and with 1 where something does. A replay that was stopped resumes where
    it was.
    """
    console = output.make_console(quiet=as_json)
    recorded = read_manifest(file)
    name = name or f"{recorded.project[:71]} replayed"
    workspace = Workspace()
    if name not in {project.name for project in workspace.projects()}:
        console.print(f"data: {find_source(workspace, recorded, data)[0]}")
    bring = Bring(data, tuple(checkpoint or ()), code_path, trust_program, device, threads, more_data)
    bars = output.progress_bars(console)
    try:
        with bars, launcher.spare_runner(resources_of(recorded.runs[0], bring)):
            replayed = replay_manifest(
                workspace, recorded, name=name, bring=bring,
                watch=lambda run: output.watch(workspace, run, bars),
            )  # fmt: skip
    except KeyboardInterrupt:
        hint = "what is under way goes on, see: defuse runs. To go on with the replay, give the command again"
        typer.echo(hint, err=True)
        sys.exit(130)
    if not replayed.done:
        finish_run(workspace, replayed.runs[-1], detach=False, as_json=as_json)
    compared = compare(workspace, recorded, replayed.runs)
    if as_json:
        typer.echo(json.dumps(_json(replayed.project, compared)))
    else:
        _print(console, replayed.project, compared)
    sys.exit(0 if compared.same else 1)


def _json(project: Project, compared: Comparison) -> dict[str, Any]:
    return {
        "project": project.id,
        "name": project.name,
        "same": compared.same,
        "runs": [{**asdict(run), "same": run.same} for run in compared.runs],
        "reasons": compared.reasons,
        "largest": compared.largest and asdict(compared.largest),
    }


def _print(console: Console, project: Project, compared: Comparison) -> None:
    table = Table("run", "step", "files", "values")
    for run in compared.runs:
        table.add_row(str(run.run), run.step, *_cells(run))
    console.print(table)
    for run in compared.runs:
        for value in run.values[:_LISTED]:
            console.print(f"  {run.step}  {value.path}: {_short(value.was)} → {_short(value.now)}")
        if len(run.values) > _LISTED:
            console.print(f"  {run.step}  and {len(run.values) - _LISTED} more; see: --json")
    if compared.same:
        console.print(f"Equal: project {project.name} is what the manifest says.")
        return
    if compared.largest is not None:
        console.print(f"The largest difference is {compared.largest.size:.3g}, in {compared.largest.path}.")
    if compared.reasons:
        console.print("What may explain it: " + "; ".join(compared.reasons) + ".")


def _cells(run: RunComparison) -> tuple[str, str]:
    """Files and values of a run in words."""
    if not run.recorded:
        return "made again", "not recorded"
    named = {"differ": run.differ, "missing": run.missing, "new": run.new}
    differences = [f"{len(names)} {words}: {_list(names)}" for words, names in named.items() if names]
    files = "; ".join([*([f"{len(run.equal)} equal"] if run.equal else []), *differences])
    return files or "–", f"{len(run.values)} differ" if run.values else "equal"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "…"
