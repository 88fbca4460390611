"""The command `defuse reproduce`: the paper's figures on its data sets. Imports no torch until it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from defuse_core.cli import console as output
from defuse_core.cli.common import finish_run
from defuse_core.cli.options import AsJson, Device, Threads
from defuse_core.jobs import launcher
from defuse_core.reproduction.goals import goals
from defuse_core.reproduction.paper import PAPER, DatasetName, section_title
from defuse_core.reproduction.plans import NETWORKS, Length, Plan, make_plan, results_name
from defuse_core.reproduction.results import Runs, all_seeds, collect, count_scenarios, read_results
from defuse_core.reproduction.run import (
    find_pretrained,
    more_annotator_data,
    open_project,
    run_reproduction,
)
from defuse_core.reproduction.tables import write_comparison, write_differences
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Project, Workspace

Data = Annotated[
    Path | None,
    typer.Option(
        exists=True, file_okay=False,
        help="Folder with mnist.npz, svhn.npz or gtsrb32.npz; else torchvision keeps its files there",
    ),
]  # fmt: skip
Networks = Annotated[
    list[str] | None,
    typer.Option(
        "--network", help="For mnist: mnist_cnn (section 4.1) or paper_cnn (figure 8); by default both"
    ),
]
Unnormalised = Annotated[
    bool,
    typer.Option(
        "--unnormalised",
        help="Also count what is found where decoded images lack the classifier's normalisation: the "
        "contract broken on purpose",
    ),
]


def reproduce(
    dataset: Annotated[DatasetName, typer.Argument(help="mnist, svhn or gtsrb (German traffic signs)")],
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Repetitions, under seeds 0, 1, 2, …")] = 1,
    data: Data = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Shortened for two cores; see RESULTS.md")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few hundred images, in minutes: whether all works, no more")
    ] = False,
    network: Networks = None,
    unnormalised: Unnormalised = False,
    device: Device = "auto",
    threads: Threads = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for tables and figures (default: defuse-reproduction…)")
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run the whole method with the paper's settings and set its figures beside ours.

    A reproduction that was stopped resumes where it was; more --seeds add to those that exist.
    """
    if cpu and quick:
        raise typer.BadParameter("leave one of --cpu and --quick out", param_hint="--quick")
    length: Length = "quick" if quick else "cpu" if cpu else "paper"
    folder = _folder(out, length)
    plans = [make_plan(dataset, length, each) for each in network or NETWORKS[dataset]]
    for plan in plans:
        _check_earlier(folder / f"results-{results_name(dataset, plan.architecture)}.json", length, seeds)
    console = output.make_console(quiet=as_json)
    resources = Resources(device=device, threads=threads)
    launcher.probe(resources)
    workspace = Workspace()
    project = open_project(workspace, dataset, length, data)
    sizes = ", ".join(f"{n:,} {part}" for part, n in project.dataset["sizes"].items())
    console.print(f"{PAPER[dataset].title}: {sizes} images, in project {project.name}\n")
    _warn_of_time(plans[0], length, device, console)
    all_results = []
    for plan in plans:
        console.print(section_title(dataset, plan.architecture))
        done, last = _run_all(workspace, project, plan, dataset, length, data, seeds, resources, console)
        if done:
            all_results.append(
                _write(workspace, project, plan, dataset, length, done, folder, unnormalised, console)
            )
        if last.status != "done":
            progress = f" {len(done)} of {seeds} seeds are done and written." if done else ""
            console.print(f"It stopped at {last.step}; the same command goes on with it.{progress}")
            finish_run(workspace, last, detach=False, as_json=as_json)
    if as_json:
        typer.echo(json.dumps(all_results[0] if len(all_results) == 1 else all_results))
        return
    for results in all_results:
        _print_results(console, results)
    console.print(f"tables, figures and results are in {folder}/, the runs in project {project.name}.")


def _warn_of_time(plan: Plan, length: Length, device: str, console: Console) -> None:
    if length == "paper" and not _has_gpu(device):
        console.print(
            f"{plan.preset.vae_training.epochs} epochs of the generator take days without a GPU; "
            "--cpu does what a core can in one to three hours.\n"
        )


def _write(
    workspace: Workspace, project: Project, plan: Plan, dataset: DatasetName, length: Length,
    done: list[Runs], folder: Path, unnormalised: bool, console: Console,
) -> dict[str, Any]:  # fmt: skip
    """Write files and figures of the seeds that are done; return their results."""
    from defuse_core.reproduction.files import write_reproduction  # matplotlib: slow to import
    from defuse_core.reproduction.unnormalised import search_unnormalised

    results = collect(workspace, project, dataset, length, done)
    draws: list[Any] = []
    if unnormalised:
        results["unnormalised"] = []
        for runs in done:
            if "annotate" not in runs:
                continue
            measured, of_worst = search_unnormalised(workspace, runs, plan)
            results["unnormalised"].append(measured)
            draws = draws or of_worst
            console.print(
                f"seed {measured['seed']}, decoded images not normalised: {measured['scenarios']} scenarios, "
                f"{measured['failure_regions']} failures"
            )
    write_reproduction(workspace, results, max(done, key=len), folder, draws)
    return results


def _folder(out: Path | None, length: Length) -> Path:
    folder = out or Path("defuse-reproduction" + ("" if length == "paper" else f"-{length}"))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out must be a folder, {folder} is a file; give another name")
    return folder


def _print_results(console: Console, results: dict[str, Any]) -> None:
    console.print(write_differences(results), soft_wrap=True, markup=False)
    console.print(write_comparison(results), soft_wrap=True, markup=False)
    for goal in goals(results):
        console.print(f"{goal.answer:7}  {goal.told}: {goal.measured}")


def _run_all(
    workspace: Workspace, project: Project, plan: Plan, dataset: DatasetName, length: Length,
    data: Path | None, seeds: int, resources: Resources, console: Console,
) -> tuple[list[Runs], Run]:  # fmt: skip
    """Run what is missing, with bars; return the runs of each seed that is done, and the last run."""
    done: list[Runs] = []
    bars = output.progress_bars(console)
    try:
        with bars, launcher.spare_runner(resources):
            for seed, runs in run_reproduction(
                workspace, project, plan, n_seeds=seeds, resources=resources,
                pretrained=find_pretrained(workspace, project, plan, data),
                more_data=more_annotator_data(project, length),
                watch=lambda run: output.watch(workspace, run, bars),
            ):  # fmt: skip
                last = list(runs.values())[-1]
                if last.status != "done":
                    break
                if seed is not None:
                    done.append(runs)
                    console.print(f"seed {seed}: {_seed_summary(workspace, runs)}")
                elif len(runs) == 1:
                    console.print(_annotators(runs))
    except KeyboardInterrupt:
        typer.echo(f"the step goes on; to go on with all: defuse reproduce {dataset} …", err=True)
        sys.exit(130)
    return done, last


def _check_earlier(path: Path, length: Length, seeds: int) -> None:
    """Refuse now, not after hours, to overwrite results of another length or of more seeds."""
    if not path.is_file():
        return
    earlier = read_results(path.read_bytes(), source=str(path))
    there = len(all_seeds(earlier))
    if earlier["length"] != length or there > seeds:
        raise ValueError(
            f"{path} holds {there} seeds of length {earlier['length']}; give another --out, or as many "
            "--seeds of the same length"
        )


def _has_gpu(device: str) -> bool:
    from defuse_core.base.runtime import resolve_device

    return resolve_device(device).type != "cpu"


def _annotators(runs: Runs) -> str:
    summary = runs["annotators"].summary
    each = ", ".join(f"{name} {value:.3f}" for name, value in summary["accuracy"].items())
    return f"annotators on the test images: their vote {summary['majority'][0]:.3f} ({each})"


def _seed_summary(workspace: Workspace, runs: Runs) -> str:
    if "report" not in runs:
        n = count_scenarios(runs)
        return f"{n} scenarios, no failure, test {runs['classifier'].summary['accuracy']['test']:.3f}"
    path = workspace.artifact_path(runs["report"].id, "results.json")
    results = json.loads(path.read_bytes())
    was, now = results["before"], results["defuse"]
    return (
        f"{results['scenarios']} scenarios, {results['failure_regions']} failures, test {was['test']:.3f} → "
        f"{now['test']:.3f}, regions {was['region']:.3f} → {now['region']:.3f} at λ = {now['lam']:g}"
    )
