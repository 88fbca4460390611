"""The command `defuse`: every step of the method as a run in the workspace.

Exit codes: 0 done; 1 an error that the message explains, or a run that failed; 2 a wrong call; 3 a
run that was cancelled or interrupted; 130 watching was ended by Ctrl-C, while the run goes on.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from defuse_core.base.config import PRESETS
from defuse_core.base.errors import UnreadableError, short_message
from defuse_core.base.files import open_file
from defuse_core.cli import console as output
from defuse_core.cli.common import find_project, finish_run, tell_on_interrupt
from defuse_core.cli.labels import label_app
from defuse_core.cli.options import (
    RUN_OPTIONS,
    AsJson,
    Device,
    ProjectName,
    Seed,
    config_options,
    given_config,
    given_resources,
    refuse_repeats,
)
from defuse_core.cli.projects import delete, new, project_app, projects
from defuse_core.cli.replay import manifest, replay
from defuse_core.cli.reproduce import reproduce
from defuse_core.cli.runs import cancel, extend, resume, runs
from defuse_core.cli.suite import checkpoint, suite_app
from defuse_core.data.naming import absolute_source
from defuse_core.jobs import launcher
from defuse_core.report.generator import mark_of
from defuse_core.workspace.config_checks import ConfigError
from defuse_core.workspace.configs import CORRECTED, PRETRAINED, StepName
from defuse_core.workspace.runs import Resources
from defuse_core.workspace.settings import with_settings
from defuse_core.workspace.workspace import Project, Workspace

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
app.add_typer(label_app, name="label")
app.add_typer(project_app, name="project")
app.add_typer(suite_app, name="suite")


def _add_step(to: typer.Typer, name: str, step: StepName, help_text: str) -> None:
    """Add a command that submits a step, with an option for every field of its config."""
    options = config_options(step)

    def command(**typed: Any) -> None:
        rest = {key: typed.pop(key) for key in RUN_OPTIONS}
        values = given_config(step, options, typed, preset=rest["preset"])
        workspace = Workspace()
        project = find_project(workspace, rest["project"])
        for name in {"weights", "pretrained"} & values.keys():
            values[name] = _bring(workspace, project, values[name])
        if values.get("more_data") is not None:
            values["more_data"] = absolute_source(values["more_data"])
        values = with_settings(workspace, project, step, values)
        with tell_on_interrupt(workspace, project.id):
            run = launcher.submit(
                workspace, project.id, step, values, seed=rest["seed"],
                resources=given_resources(rest),
            )  # fmt: skip
            if run.stale:
                typer.echo(f"note: run {run.id} stands on a run that is stale; see: defuse runs", err=True)
            if mark := mark_of(workspace, run):
                typer.echo(f"note: {mark}", err=True)
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
    to.command(name, help=help_text)(command)


def _bring(workspace: Workspace, project: Project, weights: str | None) -> str | None:
    """Store a file of weights as an upload of the project; a name of weights passes unchanged."""
    if weights is None or (
        not os.path.lexists(weights) and re.fullmatch(f"{CORRECTED}|{PRETRAINED}", weights)
    ):
        return weights
    with open_file(Path(weights)) as file:
        blob = workspace.add_blob(project.id, weights, iter(lambda: file.read(_CHUNK), b""))
    return f"blob:{blob.sha256}"


app.command()(new)
_add_step(app, "inspect", "inspect", "Find the architecture and preprocessing of a checkpoint.")
_add_step(app, "train-classifier", "classifier", "Train the classifier under test, or bring its weights.")
_add_step(app, "train-vae", "vae", "Train the β-VAE that models the training images.")
_add_step(app, "control", "control", "Measure whether reconstruction alone misleads the classifier.")
_add_step(app, "probe", "probe", "Measure how many codes a second are searched here.")
_add_step(app, "identify", "identify", "Find codes whose images the classifier gets wrong (algorithm 1).")
_add_step(app, "distill", "distill", "Group the mistakes into regions.")
_add_step(app, "map", "map", "Lay training codes and mistakes out in the plane.")
_add_step(app, "stability", "stability", "Fit the regions under other seeds: which are found again?")
_add_step(app, "train-annotators", "annotators", "Train five simulated annotators on the project's classes.")
_add_step(label_app, "simulate", "annotate", "Let five simulated annotators label the regions.")
_add_step(app, "correct", "correct", "Fine-tune the classifier on the failures for every λ.")
_add_step(app, "evaluate", "evaluate", "Measure what the correction changed.")


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
    from defuse_core.reproduction.demo import write_evidence

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
        output.print_results(output.make_console(), results)
        typer.echo(f"report.html, figures and results.json are in {out}/")


app.command()(projects)
app.command()(delete)
app.command()(runs)
app.command()(cancel)
app.command()(resume)
app.command()(extend)
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
    quick: Annotated[
        bool, typer.Option("--quick", help="A few hundred digits, in a minute: whether all works, no more")
    ] = False,
    device: Device = "auto",
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, figures and results.json (default: defuse-demo…)"),
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", "-p", help="Project to run in (default: demo…)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole method on 5,000 embedded digits: a few minutes on two cores.

    A demo that was stopped resumes where it was; --quick has a project and a folder of its own.
    """
    from defuse_core.reproduction.demo import QUICK, demo_project, quick_project, run_demo, write_evidence

    console = output.make_console(quiet=as_json)
    again, digits, suffix = "defuse demo", "5,000", ""
    if quick:
        again, digits, suffix = "defuse demo --quick", "a few hundred", "-quick"
    out = out or Path(f"defuse-demo{suffix}")
    _make_folder(out)
    console.print(f"Defuse on {digits} handwritten digits: which mistakes does the test split not show?\n")
    resources = Resources(device=device)
    launcher.probe(resources)
    workspace = Workspace()
    chosen = (quick_project if quick else demo_project)(workspace, project or f"demo{suffix}")
    bars = output.progress_bars(console)
    try:
        with bars, launcher.spare_runner(resources):
            by_step = run_demo(
                workspace, chosen, seed=seed, resources=resources,
                watch=lambda run: output.watch(workspace, run, bars),
                preset=QUICK if quick else PRESETS["demo"],
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"the step goes on; see: defuse runs. To go on with the demo: {again}", err=True)
        sys.exit(130)
    last = list(by_step.values())[-1]
    if last.status != "done":
        console.print(f"The demo stopped at {last.step}; to go on with it: {again}")
        finish_run(workspace, last, detach=False, as_json=as_json)
    results = write_evidence(workspace, by_step["report"], out)
    if as_json:
        typer.echo(json.dumps(results))
        return
    output.print_results(console, results)
    console.print(f"report.html, figures and results.json are in {out}/, the runs in project {chosen.name}.")


app.command()(manifest)
app.command()(replay)
app.command()(reproduce)


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    address: Annotated[str, typer.Option(help="Any but this machine's needs a login")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open it in a browser")] = True,
    allow_local_code: Annotated[
        bool, typer.Option("--allow-local-code", help="Let pages and runs import networks from your folders")
    ] = False,
) -> None:
    """Open the dashboard."""
    from importlib import import_module  # the core stands below the dashboard, and does not import it

    Workspace().close()  # an error now rather than in the page
    server = import_module("dashboard.shell.server")
    server.serve(address, port, browser=browser, allow_local_code=allow_local_code)


refuse_repeats(app)


def _make_folder(out: Path) -> None:
    """Create the folder now, so that an error does not come after minutes."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, {out} is a file; give another name")
    out.mkdir(parents=True, exist_ok=True)


def main() -> None:
    """Run the command; errors that a person can mend are one line, not a stack trace."""
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        files = error.files if isinstance(error, UnreadableError) else []
        if as_json:
            about = {"error": short_message(error), **({"unreadable": files} if files else {})}
            typer.echo(json.dumps(about))
        typer.echo(f"defuse: {short_message(error)}", err=True)
        for file in files:
            typer.echo(f"  {file}", err=True)
        if files:
            typer.echo("to read the other images without them, give --leave-out", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
