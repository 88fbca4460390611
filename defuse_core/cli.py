"""The command `defuse`: every step of the method as a run in the workspace.

Exit codes: 0 done; 1 an error that the message explains, or a run that failed; 2 a wrong call; 3 a
run that was cancelled or interrupted; 130 watching was ended by Ctrl-C, while the run goes on.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from defuse_core import console as shown
from defuse_core.bringing import absolute_source
from defuse_core.cli_options import (
    LARGEST,
    RUN_OPTIONS,
    AsJson,
    Detach,
    Device,
    ProjectName,
    RunNumber,
    Seed,
    config_options,
    given_config,
    given_resources,
    more_lambdas,
)
from defuse_core.cli_projects import project_app
from defuse_core.cli_replay import manifest, replay
from defuse_core.cli_reproduce import reproduce
from defuse_core.cli_runs import find_project, finish_run, tell_on_interrupt
from defuse_core.cli_suite import checkpoint, suite_app
from defuse_core.database import WorkspaceError
from defuse_core.files import write_bytes
from defuse_core.jobs import launcher
from defuse_core.label_files import from_csv, to_csv
from defuse_core.region_edits import ids_ever
from defuse_core.runs import Resources, Run
from defuse_core.step_configs import ConfigError, StepName
from defuse_core.workspace import Project, Workspace

_CHUNK = 2**20

app = typer.Typer(
    help="Find the mistakes of an image classifier that its test set does not contain, and repair them.",
    epilog=(
        "Exit codes: 0 done, 1 error or failed run, 2 wrong call, 3 run cancelled or interrupted, "
        "130 watching ended while the run goes on. Everything is kept in the folder that DEFUSE_HOME names, "
        "~/.defuse by default."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
label_app = typer.Typer(
    help="Label regions: export and import CSV, simulated annotators.", no_args_is_help=True
)
app.add_typer(label_app, name="label")
app.add_typer(project_app, name="project")
app.add_typer(suite_app, name="suite")


def _add_step(to: typer.Typer, name: str, step: StepName, told: str) -> None:
    """Add a command that submits a step, with an option for every field of its config."""
    options = config_options(step)

    def command(**given: Any) -> None:
        rest = {key: given.pop(key) for key in RUN_OPTIONS}
        values = given_config(step, options, given, preset=rest["preset"])
        workspace = Workspace()
        project = find_project(workspace, rest["project"])
        for name in {"weights", "pretrained"} & values.keys():
            values[name] = _bring(workspace, project, values[name])
        if values.get("more_data") is not None:
            values["more_data"] = absolute_source(values["more_data"])
        with tell_on_interrupt(workspace, project.id):
            run = launcher.submit(
                workspace, project.id, step, values, seed=rest["seed"],
                resources=given_resources(rest),
            )  # fmt: skip
            if run.stale:
                typer.echo(f"note: run {run.id} stands on a run that is stale; see: defuse runs", err=True)
            finish_run(workspace, run, detach=rest["detach"], as_json=rest["as_json"])

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(key, kind, default=None, annotation=option.annotation)
        for key, option in options.items()
    ] + [
        inspect.Parameter(key, kind, default=default, annotation=annotation)
        for key, (annotation, default) in RUN_OPTIONS.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    to.command(name, help=told)(command)


def _bring(workspace: Workspace, project: Project, weights: str | None) -> str | None:
    """Store a file of weights as an upload of the project; what is no path of a file passes unchanged."""
    if weights is None or not Path(weights).is_file():
        return weights
    with Path(weights).open("rb") as file:
        blob = workspace.add_blob(project.id, weights, iter(lambda: file.read(_CHUNK), b""))
    return f"blob:{blob.sha256}"


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What the project is to be called")],
    data: Annotated[
        str,
        typer.Option(help="digits, torchvision:MNIST|SVHN|GTSRB[:root], an .npz, or a folder of images"),
    ] = "digits",
    upload_name: Annotated[str, typer.Option(hidden=True, help="Of data blob:<sha256>")] = "",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Resize folder and GTSRB images, pixels")
    ] = None,
    validation_share: Annotated[
        float | None, typer.Option(help="Set this share of the training images apart for validation, say 0.1")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a project on a data set."""
    from defuse_core.projects import new_project  # torch: slow to import

    project = new_project(
        Workspace(), name, data,
        image_size=image_size, validation_share=validation_share, upload_name=upload_name,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"project": project.id, "name": project.name, **project.dataset}))
        return
    sizes = ", ".join(f"{count:,} {part}" for part, count in project.dataset["sizes"].items())
    shape = "×".join(map(str, project.dataset["image_shape"]))
    typer.echo(f"project {project.name}: {sizes} images of {shape}, {len(project.class_names)} classes")


_add_step(app, "inspect", "inspect", "Find the architecture and preprocessing of a checkpoint.")
_add_step(app, "train-classifier", "classifier", "Train the classifier under test, or bring its weights.")
_add_step(app, "train-vae", "vae", "Train the β-VAE that models the training images.")
_add_step(app, "control", "control", "Measure whether reconstruction alone misleads the classifier.")
_add_step(app, "probe", "probe", "Measure how many codes a second are searched here.")
_add_step(app, "identify", "identify", "Find codes whose images the classifier gets wrong (algorithm 1).")
_add_step(app, "distill", "distill", "Group the mistakes into regions.")
_add_step(app, "map", "map", "Lay training codes and mistakes out in the plane.")
_add_step(app, "draw", "draw", "Draw every region at many τ.")
_add_step(app, "stability", "stability", "Fit the regions under other seeds: which are found again?")
_add_step(app, "train-annotators", "annotators", "Train five simulated annotators on the project's classes.")
_add_step(label_app, "simulate", "annotate", "Let five simulated annotators label the regions.")
_add_step(app, "correct", "correct", "Fine-tune the classifier on the failures for every λ.")
_add_step(app, "evaluate", "evaluate", "Measure what the correction changed.")


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
    """Add the labels of a CSV, all or none."""
    workspace = Workspace()
    chosen = find_project(workspace, project)
    run = _regions(workspace, chosen)
    found = [region["region_id"] for region in run.summary["regions"]]
    ids = ids_ever(found, workspace.annotations.edits(run.id))
    n_mistakes = sum(workspace.runs.ancestry(run.id)["identify"].summary["mistakes"].values())
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkspaceError(f"{file} is not a readable CSV in UTF-8 ({error}); save it as one") from error
    events = from_csv(text, chosen.class_names, ids, n_mistakes=n_mistakes)
    workspace.annotations.append(run.id, events)
    told = f"{len(events)} labels added to the regions of run {run.id}"
    typer.echo(json.dumps({"run": run.id, "added": len(events)}) if as_json else told)


def _regions(workspace: Workspace, project: Project) -> Run:
    run = workspace.runs.latest(project.id, "distill", done=True)
    if run is None:
        raise WorkspaceError("there are no regions to label yet; run: defuse distill")
    return run


@app.command()
def report(
    project: ProjectName = "",
    out: Annotated[Path, typer.Option(help="Folder for report.html, figures and results.json")] = Path(
        "defuse-report"
    ),
    n_regions: Annotated[int, typer.Option(min=1, help="Regions shown before and after in figure 1")] = 3,
    n_worst: Annotated[int, typer.Option(min=1, help="Worst regions shown in report.html")] = 10,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write the newest evaluation into a folder: report.html, the paper's figures, the manifest."""
    from defuse_core.demo import write_evidence

    workspace = Workspace()
    _make_folder(out)
    chosen = find_project(workspace, project)
    with tell_on_interrupt(workspace, chosen.id):
        run = launcher.submit(
            workspace, chosen.id, "report", {"n_regions": n_regions, "n_worst": n_worst}, seed=seed
        )
        run = finish_run(workspace, run, detach=False, as_json=as_json)
    results = write_evidence(workspace, run, out)
    if not as_json:
        shown.print_results(shown.make_console(), results)
        typer.echo(f"report.html, figures and results.json are in {out}/")


@app.command()
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
    shown.make_console().print(table)


def _n_runs(workspace: Workspace, project: Project) -> int:
    return len(workspace.runs.of_project(project.id))


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="The project")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Delete a project with its runs, labels and files."""
    workspace = Workspace()
    project = workspace.project(name)
    if not yes:
        n_runs = len(workspace.runs.of_project(project.id))
        typer.confirm(f"Delete project {project.name} with {n_runs} runs and its labels?", abort=True)
    workspace.delete_project(project.id)
    typer.echo(f"project {project.name} is deleted")


@app.command()
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
    found = [r for p in chosen for r in workspace.runs.of_project(p.id)]
    if as_json:
        typer.echo(json.dumps([shown.run_json(r) for r in found]))
    else:
        shown.make_console().print(shown.runs_table(workspace, found))


def _show(workspace: Workspace, run: Run, *, as_json: bool) -> None:
    tasks = workspace.runs.tasks(run.id)
    log = workspace.run_folder(run.id) / "log.txt"
    if as_json:
        about = {"record": run.record, "tasks": [vars(task) for task in tasks], "log": str(log)}
        typer.echo(json.dumps({**shown.run_json(run), **about}))
        return
    console = shown.make_console()
    console.print(shown.runs_table(workspace, [run]))
    console.print_json(json.dumps(run.config))
    table = Table("task", "status", "progress", "")
    for task in tasks[:200]:
        progress = f"{task.step} of {task.steps}" if task.steps else ""
        table.add_row(task.name, task.status, progress, task.error or "")
    console.print(table)
    console.print(f"log: {log}")


@app.command()
def cancel(
    run: RunNumber,
    task: Annotated[str | None, typer.Option(help="Only this task, such as lam=0.1")] = None,
    as_json: AsJson = False,
) -> None:
    """Stop a run, or one of its tasks; what is done is kept."""
    workspace = Workspace()
    found = launcher.cancel(workspace, run, task)
    state = next((t.status for t in workspace.runs.tasks(run) if t.name == task), None)
    if as_json:
        typer.echo(json.dumps(shown.run_json(found)))
    elif state == "done":
        typer.echo(f"{task} of run {run} is done already")
    elif task is not None and found.live:
        typer.echo(f"{task} of run {run} is asked to stop; the other tasks go on")
    else:
        typer.echo(f"run {run} is {found.status}")


@app.command()
def resume(
    run: RunNumber,
    device: Annotated[str | None, typer.Option(help="Another device than before")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Another number of threads")] = None,
    engine: Annotated[str | None, typer.Option(help="local, or ray")] = None,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, where it has changed")] = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that failed, was cancelled or interrupted; only what is missing is computed."""
    workspace = Workspace()
    before = workspace.runs.get(run)
    asked = {"device": device, "threads": threads, "engine": engine, "address": address}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if engine == "local":
        given["address"] = None
    resources = given_resources({**vars(before.resources), **given})
    with tell_on_interrupt(workspace, before.project_id):
        again = launcher.resume(workspace, run, resources=resources)
        finish_run(workspace, again, detach=detach, as_json=as_json)


@app.command()
def extend(
    run: RunNumber,
    lambdas: Annotated[str, typer.Option(help="λ to add, such as 0.5,3")] = "",
    baseline_lambdas: Annotated[str, typer.Option(help="λ of the baseline to add")] = "",
    n_seeds: Annotated[int | None, typer.Option(min=1, help="Times that every λ is tuned")] = None,
    rule: Annotated[str | None, typer.Option(help="How λ is chosen: paper, or regions")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Accuracy that rule regions may give up")] = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a correction under more λ, more seeds or another rule; what it has stays."""
    workspace = Workspace()
    before = workspace.runs.get(run)
    config = before.config
    given = {"n_seeds": n_seeds, "rule": rule, "max_loss": max_loss}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if baseline_lambdas:
        changes["baseline_lambdas"] = more_lambdas(config.get("baseline_lambdas", ()), baseline_lambdas)
    if lambdas:
        inner = config.get("correction", {})
        changes["correction"] = {"lambdas": more_lambdas(inner.get("lambdas", ()), lambdas)}
    with tell_on_interrupt(workspace, before.project_id):
        finish_run(workspace, launcher.extend(workspace, run, changes), detach=detach, as_json=as_json)


app.command()(checkpoint)


@app.command()
def gc(as_json: AsJson = False) -> None:
    """Remove files that nothing names any more: of killed runs and deleted projects."""
    files, size = Workspace().collect_garbage()
    if as_json:
        typer.echo(json.dumps({"files": files, "bytes": size}))
    else:
        typer.echo(f"{files} files removed, {size / 2**20:.1f} MB")


@app.command()
def demo(
    device: Device = "auto",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for report.html, figures and results.json")] = Path(
        "defuse-demo"
    ),
    project: Annotated[str, typer.Option("--project", "-p", help="Project to run in")] = "demo",
    as_json: AsJson = False,
) -> None:
    """Run the whole method on 5,000 embedded digits: a few minutes on two cores.

    A demo that was stopped goes on where it was.
    """
    from defuse_core.demo import demo_project, run_demo, write_evidence

    console = shown.make_console(quiet=as_json)
    _make_folder(out)
    console.print(
        "Defuse on 5,000 handwritten digits: what does its classifier get wrong that no test shows?\n"
    )
    resources = Resources(device=device)
    launcher.probe(resources)
    workspace = Workspace()
    chosen = demo_project(workspace, project)
    bars = shown.progress_bars(console)
    try:
        with bars:
            found = run_demo(
                workspace, chosen, seed=seed, resources=resources,
                watch=lambda run: shown.watch(workspace, run, bars),
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("the step goes on; see: defuse runs. To go on with the demo: defuse demo", err=True)
        sys.exit(130)
    last = list(found.values())[-1]
    if last.status != "done":
        console.print(f"The demo stopped at {last.step}; to go on with it: defuse demo")
        finish_run(workspace, last, detach=False, as_json=as_json)
    results = write_evidence(workspace, found["report"], out)
    if as_json:
        typer.echo(json.dumps(results))
        return
    shown.print_results(console, results)
    console.print(f"report.html, figures and results.json are in {out}/, the runs in project {chosen.name}.")


app.command()(manifest)
app.command()(replay)
app.command()(reproduce)


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    address: Annotated[str, typer.Option(help="Others than this machine's need a login")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open it in a browser")] = True,
    allow_local_code: Annotated[
        bool, typer.Option("--allow-local-code", help="Let pages and runs import networks from your folders")
    ] = False,
) -> None:
    """Open the dashboard."""
    from importlib import import_module  # the core stands below the dashboard, and does not import it

    Workspace().close()  # an error now rather than in the page
    server = import_module("dashboard.server")
    server.serve(address, port, browser=browser, allow_local_code=allow_local_code)


def _make_folder(out: Path) -> None:
    """An error now rather than after minutes."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, {out} is a file; give another name")
    out.mkdir(parents=True, exist_ok=True)


def main() -> None:
    """Run the command; errors that a person can mend are one line, not a stack trace."""
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        if as_json:
            typer.echo(json.dumps({"error": str(error)}))
        typer.echo(f"defuse: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
