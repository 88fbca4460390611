"""Commands `defuse new`, `projects` and `delete`; `project export` and `import`: a project as one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from defuse_core.base.limits import MAX_IMAGE_SIZE
from defuse_core.cli import console as output
from defuse_core.cli.common import find_project
from defuse_core.cli.options import AsJson, ProjectName
from defuse_core.data.naming import FROM_TEST, Validation
from defuse_core.data.reading import Fit, Reading
from defuse_core.exchange.archive import data_note, export_project, import_project, missing_data
from defuse_core.workspace.workspace import Project, Workspace

if TYPE_CHECKING:
    from defuse_core.data.splits import ImageDataset  # torch: slow to import

_SHOWN_CLASSES = 40

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


def _validation(given: str | None) -> Validation | None:
    if given is None:
        return None
    if given == FROM_TEST:
        return FROM_TEST
    try:
        return float(given)
    except ValueError:
        raise typer.BadParameter(
            f"must be a share such as 0.1, or {FROM_TEST}, got {given!r}", param_hint="--validation"
        ) from None


def new(
    name: Annotated[str, typer.Argument(help="What the project is to be called")],
    data: Annotated[
        str,
        typer.Option(
            help="digits, torchvision:NAME[:root], an .npz, .mat, IDX, Parquet or CSV file, or a folder"
        ),
    ] = "digits",
    upload_name: Annotated[str, typer.Option(hidden=True, help="Of data blob:<sha256>")] = "",
    image_size: Annotated[
        int | None, typer.Option(min=1, max=MAX_IMAGE_SIZE, help="Resize the images to this square, pixels")
    ] = None,
    fit: Annotated[
        Fit,
        typer.Option(help="What is not square: stretch it, crop it to its middle, or pad it with black"),
    ] = "stretch",
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out files that cannot be read, instead of an error")
    ] = False,
    split_seed: Annotated[
        int, typer.Option(min=0, help="Seed of the division where the data have no test split")
    ] = 0,
    validation: Annotated[
        str | None,
        typer.Option(
            help="Validation images: a share of the training images, say 0.1, or from-test, a random half of "
            "the test images"
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            help="Create no project: print counts and notes, and write twelve images with their labels to "
            "this PNG, or to none for -"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a project on a data set."""
    from defuse_core.workspace.projects import new_project, open_source  # torch: slow to import

    reading = Reading(image_size, fit, leave_out, split_seed, _validation(validation))
    workspace = Workspace()
    if preview is not None:
        _, _, dataset = open_source(workspace, data, reading, upload_name=upload_name)
        _show_preview(dataset, preview, as_json=as_json)
        return
    project = new_project(workspace, name, data, reading=reading, upload_name=upload_name)
    if as_json:
        typer.echo(json.dumps({"project": project.id, "name": project.name, **project.dataset}))
        return
    sizes = ", ".join(f"{count:,} {part}" for part, count in project.dataset["sizes"].items())
    shape = "×".join(map(str, project.dataset["image_shape"]))
    typer.echo(f"project {project.name}: {sizes} images of {shape}, {len(project.class_names)} classes")
    for note in project.notes:
        typer.echo(f"note: {note}", err=True)


def _show_preview(dataset: ImageDataset, file: Path, *, as_json: bool) -> None:
    """Print counts by class and split, and notes; write the images to the file."""
    from defuse_core.data.preview import Preview

    preview = Preview.of(dataset)
    if str(file) != "-":
        file.write_bytes(preview.sheet())
    if as_json:
        typer.echo(json.dumps({"preview": preview.as_json()}))
        return
    counts = preview.counts()
    table = Table("class", *counts)
    for index, name in enumerate(dataset.class_names[:_SHOWN_CLASSES]):
        table.add_row(name, *(f"{own[index]:,}" for own in counts.values()))
    if (more := dataset.n_classes - _SHOWN_CLASSES) > 0:
        rest = [own[_SHOWN_CLASSES:] for own in counts.values()]
        table.add_row(f"{more:,} more", *(f"{min(own):,} to {max(own):,} each" for own in rest))
    table.add_row("all", *(f"{sum(own):,}" for own in counts.values()))
    output.make_console().print(table)
    for note in preview.notes:
        typer.echo(f"note: {note}", err=True)
    if str(file) != "-":
        typer.echo(f"{len(preview.shown)} images with their labels are in {file}; no project was created")


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
