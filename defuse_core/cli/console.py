"""Print on the command line: bars while a run goes on, tables of runs and results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from defuse_core.report.numbers import p_value, percent
from defuse_core.report.verdicts import failures_told
from defuse_core.workspace.pipeline import done_share
from defuse_core.workspace.runs import Run, RunStatus, Task
from defuse_core.workspace.workspace import Workspace

_POLL_SECONDS = 0.1


def make_console(*, quiet: bool = False) -> Console:
    """Return a console that shows text as it is: names and errors of users are no markup."""
    return Console(markup=False, emoji=False, highlight=False, quiet=quiet)


def watch(workspace: Workspace, run: Run, bars: Progress | None) -> Run:
    """Follow a run to its end and return it; Ctrl-C ends the watching, not the run.

    Parameters
    ----------
    workspace : Workspace
    run : Run
    bars : Progress, optional
        Gets a bar of the run; None shows nothing.
    """
    bar = None if bars is None else bars.add_task(run.step, total=None, told="starts")
    seen = 0
    counts: dict[str, int] = {}
    while (status := workspace.runs.status(run.id)) in ("queued", "running"):
        tasks = workspace.runs.tasks(run.id)
        if bars is not None and bar is not None:
            for event in workspace.runs.events(run.id, after=seen, kind="point"):
                seen = event.id
                for name, value in event.data.items() if len(tasks) > 1 else ():
                    if isinstance(value, int):
                        counts[name] = counts.get(name, 0) + value
            bars.update(bar, completed=done_share(tasks), total=1.0, told=_note(status, tasks, counts))
        time.sleep(_POLL_SECONDS)  # another process writes, and SQLite sends no notice
    run = workspace.runs.get(run.id)
    if bars is not None and bar is not None:
        share = 1.0 if run.status == "done" else done_share(workspace.runs.tasks(run.id))
        bars.update(bar, completed=share, total=1.0)
        if run.status != "done":
            bars.update(bar, told=run.status)
        bars.stop_task(bar)
    return run


def _note(status: RunStatus, tasks: list[Task], counts: Mapping[str, int]) -> str:
    if status == "queued":
        return "waits for its turn"
    running = [task for task in tasks if task.status == "running"]
    if counts.get("decoded"):
        return _numbers({k: v for k, v in counts.items() if k not in ("images", "decoded")})
    if not running:
        return ""
    name = f"{running[0].name}  " if len(tasks) > 1 else ""
    return name + _numbers(running[0].metrics)


def _numbers(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def progress_bars(console: Console) -> Progress:
    """Return bars for runs: share, time, time left, numbers."""
    whole, rest = Column(no_wrap=True, min_width=10), Column(no_wrap=True, ratio=1, overflow="ellipsis")
    return Progress(
        TextColumn("{task.description}", table_column=whole),
        BarColumn(12),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}", style="dim", markup=False, table_column=rest),
        console=console,
        expand=True,
    )


def run_json(run: Run) -> dict[str, Any]:
    """Return a run as scripts read it."""
    return {
        "run": run.id, "project": run.project_id, "step": run.step, "status": run.status,
        "stale": run.stale, "seed": run.seed, "seconds": round(run.seconds, 3), "error": run.error,
        "config": run.config, "upstream": list(run.upstream), "summary": run.summary,
    }  # fmt: skip


def runs_table(workspace: Workspace, runs: list[Run]) -> Table:
    """Return runs as a table, running ones with the share that is done.

    Parameters
    ----------
    workspace : Workspace
    runs : list of Run
    """
    names = {project.id: project.name for project in workspace.projects()}
    table = Table("run", "project", "step", "status", "seconds", "")
    for run in runs:
        status = run.status + (", stale" if run.stale else "")
        if run.status == "running":
            status = f"running {done_share(workspace.runs.tasks(run.id)):.0%}"
        table.add_row(
            str(run.id), names[run.project_id], run.step, status, f"{run.seconds:.1f}", run.error or ""
        )
    return table


def print_run(console: Console, run: Run) -> None:
    """Print how a run ended, and the numbers of its summary that fit on a line.

    Parameters
    ----------
    console : Console
    run : Run
    """
    if run.status != "done":
        console.print(f"run {run.id} ({run.step}) {run.status}" + (f": {run.error}" if run.error else ""))
        return
    console.print(f"run {run.id} ({run.step}) done in {run.seconds:.1f} s")
    if run.stale:
        console.print("  stale: what it stands on, or a label, has been redone since")
    for name, value in run.summary.items():
        if isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values()):
            console.print(f"  {name}: " + _numbers(value))
        elif name == "missing":
            console.print(f"  cancelled or diverged: {', '.join(value)}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            console.print(f"  {name}: {len(value)}")
        elif isinstance(value, int | float | str):
            console.print(f"  {name}: {value}")


def print_results(console: Console, results: dict[str, Any]) -> None:
    """Print the main numbers of a report: mistakes, regions, figure 4 as a table, changes on the test split.

    Parameters
    ----------
    console : Console
    results : dict
        Content of results.json.
    """
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in results["mistakes"].items())
    console.print(
        f"\n{sum(results['mistakes'].values()):,} mistakes ({kinds}) → {results['scenarios']} regions → "
        f"{failures_told(results)}, in "
        f"{results['seconds']:.0f} s of computing\n"
    )
    table = Table("model", "λ", "test accuracy", "region accuracy", title="Figure 4, with 95 % intervals")
    rows = {"before": "before", "identified mistakes": "baseline", "Defuse": "defuse"}
    for name, key in rows.items():
        if results[key] is not None:
            row = results[key]
            shares = [
                f"{row[of]:.3f} [{row[f'{of}_interval'][0]:.3f}, {row[f'{of}_interval'][1]:.3f}]"
                for of in ("test", "region")
            ]
            table.add_row(name, f"{row['lam']:g}" if "lam" in row else "–", *shares)
    console.print(table)
    flips = results["flips"]
    text = (
        f"On the test split {flips['fixed']} images were fixed and {flips['broken']} broken "
        f"(McNemar, {p_value(flips['p'])})."
    )
    if results["label_agreement"] is not None:
        text += (
            f" One label a region fits {percent(results['label_agreement'])} of its draws, by the "
            "annotators' own votes."
        )
    console.print(text)
