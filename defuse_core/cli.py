"""The command `defuse`.

Exit codes: 0 done, 1 an error that the message explains, 2 a wrong call, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

app = typer.Typer(
    help="Find the mistakes of an image classifier that its test set does not contain, and repair them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def defuse() -> None:
    """Find the mistakes of an image classifier that its test set does not contain, and repair them."""


@app.command()
def demo(
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:<n>")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of every random stream")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for table, figures and results.json")] = Path(
        "defuse-demo"
    ),
) -> None:
    """Run the whole method on 5,000 embedded digits: a few minutes on two cores."""
    console = Console()
    console.print(
        "Defuse on 5,000 handwritten digits: what does its classifier get wrong that no test shows?\n"
    )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, {out} is a file; give another name")
    out.mkdir(parents=True, exist_ok=True)  # an error now rather than after minutes

    from defuse_core import runtime  # torch takes seconds to import: not for --help

    runtime.keep_memory()
    runtime.set_threads()
    chosen = runtime.resolve_device(device)
    console.print(f"device: {runtime.describe_device(chosen).name}, seed {seed}")
    from defuse_core.demo import run_demo

    with _progress(console) as bars:

        @contextmanager
        def stage(name: str) -> Iterator[runtime.Callback]:
            task = bars.add_task(name, total=None, told="")

            def report(step: int, of: int, metrics: Mapping[str, float]) -> None:
                told = "  ".join(f"{key} {_short(value)}" for key, value in metrics.items())
                bars.update(task, completed=step, total=of, told=told)

            yield report
            bars.update(
                task,
                total=bars.tasks[task].completed or 1,
                completed=bars.tasks[task].completed or 1,
            )

        results = run_demo(device=chosen, seed=seed, out=out, stage=stage)
    _print_results(console, results, out)


def _progress(console: Console) -> Progress:
    whole, rest = Column(no_wrap=True, min_width=9), Column(no_wrap=True, ratio=1, overflow="ellipsis")
    return Progress(
        TextColumn("{task.description}", table_column=whole),
        BarColumn(12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[told]}", table_column=rest),
        console=console,
        expand=True,
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _print_results(console: Console, results: dict[str, Any], out: Path) -> None:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in results["mistakes"].items())
    console.print(
        f"\n{sum(results['mistakes'].values()):,} mistakes ({kinds}) → {results['scenarios']} regions → "
        f"{results['failure_regions']} failures, in {results['seconds']:.0f} s\n"
    )
    table = Table("model", "λ", "test accuracy", "region accuracy", title="Figure 4, with 95 % intervals")
    for name, key in (
        ("before", "before"),
        ("identified mistakes", "baseline"),
        ("Defuse", "defuse"),
    ):
        row = results[key]
        shares = [
            f"{row[of]:.3f} [{row[f'{of}_interval'][0]:.3f}, {row[f'{of}_interval'][1]:.3f}]"
            for of in ("test", "region")
        ]
        table.add_row(name, f"{row['lam']:g}" if "lam" in row else "–", *shares)
    console.print(table)
    flips = results["flips"]
    console.print(
        f"On the test split {flips['fixed']} digits were fixed and {flips['broken']} broken "
        f"(McNemar p = {flips['p']:.2f}). One label a region fits {results['label_agreement']:.0%} of its "
        f"draws, by the annotators' own votes.\nTable, figures and results.json are in {out}/"
    )


def main() -> None:
    """Run the command; errors that a person can mend are one line, not a stack trace."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        typer.echo(f"defuse: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
