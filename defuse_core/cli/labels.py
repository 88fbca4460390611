"""Commands `defuse label export` and `label import`: the labels of regions as CSV."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from defuse_core.base.files import write_bytes
from defuse_core.base.limits import MAX_LABEL_FILE
from defuse_core.cli.common import find_project
from defuse_core.cli.options import AsJson, ProjectName
from defuse_core.report.numbers import count
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.label_files import decode_labels, from_csv, label_subjects, read_label_file, to_csv
from defuse_core.workspace.runs import Run
from defuse_core.workspace.settings import labeling_of
from defuse_core.workspace.workspace import Project, Workspace

label_app = typer.Typer(
    help="Label regions: export and import CSV, simulated annotators.", no_args_is_help=True
)


@label_app.command("export")
def label_export(
    project: ProjectName = "",
    out: Annotated[Path | None, typer.Option(help="File to write; by default the terminal")] = None,
) -> None:
    """Write the labels that count as CSV."""
    workspace = Workspace()
    chosen = find_project(workspace, project)
    run = _regions(workspace, chosen)
    text = to_csv(workspace.annotations.counting(run.id), chosen.class_names)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_bytes(out, text.encode())


@label_app.command("import")
def label_import(
    file: Annotated[Path, typer.Argument(help="CSV with the columns region, annotator, label; - is stdin")],
    project: ProjectName = "",
    as_json: AsJson = False,
) -> None:
    """Add the labels of a CSV, all or none; those that stand already are left out."""
    workspace = Workspace()
    chosen = find_project(workspace, project)
    run = _regions(workspace, chosen)
    ids, n_mistakes = label_subjects(workspace, run)
    if str(file) == "-":
        text = decode_labels([sys.stdin.buffer.read(MAX_LABEL_FILE + 1)], name="the input")
    else:
        text = read_label_file(file)
    tau = labeling_of(workspace, chosen).tau
    events = from_csv(text, chosen.class_names, ids, n_mistakes=n_mistakes, tau=tau)
    added = workspace.annotations.append_new(run.id, events)
    known = len(events) - added
    message = f"{count(added, 'label')} added to the regions of run {run.id}"
    message += f"; {known:,} {'was' if known == 1 else 'were'} known already" if known else ""
    result = {"run": run.id, "added": added, "known": known}
    typer.echo(json.dumps(result) if as_json else message)


def _regions(workspace: Workspace, project: Project) -> Run:
    run = workspace.runs.latest(project.id, "distill", done=True)
    if run is None:
        raise WorkspaceError("there are no regions to label yet; run: defuse distill")
    return run
