"""Commands `defuse projects` and `delete`; `project export` and `import`: a project as one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from defuse_core.cli import console as output
from defuse_core.cli.common import find_project
from defuse_core.cli.options import AsJson, ProjectName
from defuse_core.exchange.archive import data_note, export_project, import_project, missing_data
from defuse_core.workspace.workspace import Project, Workspace

project_app = typer.Typer(
    help="A project as one file: export it, import it elsewhere or under another name.", no_args_is_help=True
)


@project_app.command("export")
def project_export(
    file: Annotated[Path, typer.Argument(help="File to write, such as demo.defuse.zip")],
    project: ProjectName = "",
    as_json: AsJson = False,
) -> None:
    """Write a project with its uploads, runs, labels and files to one file; no run of it may be live."""
    workspace = Workspace()
    chosen = find_project(workspace, project)
    done = export_project(workspace, chosen.id, file)
    note = data_note(chosen.dataset)
    if as_json:
        about = {"file": str(file), "bytes": done.size, "data_included": note is None}
        typer.echo(json.dumps({"project": chosen.id, "name": chosen.name, **about, "runs": done.runs}))
    else:
        typer.echo(
            f"project {chosen.name} is in {file}: {done.runs} runs, {done.labels:,} labels, "
            f"{done.files} files, {done.size / 2**20:.1f} MB"
        )
    if note is not None:
        typer.echo(f"note: {note}", err=True)


@project_app.command("import")
def project_import(
    file: Annotated[Path, typer.Argument(help="File that defuse project export wrote")],
    name: Annotated[
        str | None, typer.Option(help="What to call the project; by default as it was called")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Where its data set is here; by default where a project here has the same"),
    ] = None,
    code_path: Annotated[
        str | None, typer.Option(help="Folder here that networks of your own code are imported from")
    ] = None,
    more_data: Annotated[
        str | None, typer.Option(help="Where the additional data of the annotators are here")
    ] = None,
    trust_programs: Annotated[
        bool,
        typer.Option(
            "--trust-programs", help="Take TorchScript and torch.export files in: they are programs"
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import a project from its file: all of it, or nothing."""
    workspace = Workspace()
    project = import_project(
        workspace, file, name=name, data=data, trust_programs=trust_programs, code_path=code_path,
        more_data=more_data,
    )  # fmt: skip
    runs = workspace.runs.of_project(project.id)
    missing = missing_data(project.dataset)
    if as_json:
        about = {"project": project.id, "name": project.name, "runs": len(runs)}
        typer.echo(json.dumps({**about, "data_found": missing is None}))
    else:
        numbers = f", numbers {runs[0].id} to {runs[-1].id}" if runs else ""
        typer.echo(f"project {project.name}: {len(runs)} runs{numbers}")
    if missing is not None:
        typer.echo(f"note: {missing}", err=True)


def projects(as_json: AsJson = False) -> None:
    """List the projects."""
    workspace = Workspace()
    if as_json:
        typer.echo(json.dumps([{**vars(p), "runs": _n_runs(workspace, p)} for p in workspace.projects()]))
        return
    table = Table("project", "data", "images", "runs")
    for p in workspace.projects():
        sizes = " + ".join(f"{n:,}" for n in p.dataset["sizes"].values())
        table.add_row(p.name, p.dataset["source"], sizes, str(_n_runs(workspace, p)))
    output.make_console().print(table)


def _n_runs(workspace: Workspace, project: Project) -> int:
    return len(workspace.runs.of_project(project.id))


def delete(
    name: Annotated[str, typer.Argument(help="The project")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Delete a project with its runs, labels and files."""
    workspace = Workspace()
    project = workspace.project(name)
    if not yes:
        n_runs = _n_runs(workspace, project)
        typer.confirm(f"Delete project {project.name} with {n_runs} runs and its labels?", abort=True)
    workspace.delete_project(project.id)
    typer.echo(f"project {project.name} is deleted")
