"""Commands for what leaves the workspace: the corrected checkpoint, and the regression suite and its check.

Imports no torch until a command runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from defuse_core.base.files import write_bytes
from defuse_core.cli import console as output
from defuse_core.cli.common import find_project
from defuse_core.cli.options import LARGEST, AsJson, ProjectName
from defuse_core.workspace.config_checks import ConfigError, check_config
from defuse_core.workspace.configs import InspectConfig
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.workspace import Workspace

if TYPE_CHECKING:
    from defuse_core.exchange.suite.model import Model
    from defuse_core.exchange.suite.suite import Checked, Manifest

SUFFIX = ".safetensors"

suite_app = typer.Typer(
    help="A regression suite of the labelled regions: write it, and check any model with it.",
    no_args_is_help=True,
)


def checkpoint(
    project: ProjectName = "",
    run: Annotated[
        int | None,
        typer.Option(
            min=1, max=LARGEST, help="A correct run; by default the newest of the project that is done"
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Another λ than the chosen one, such as lam=0.1 or baseline/lam=1")
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write; the card goes beside it, as .md")] = Path(
        "corrected.safetensors"
    ),
    as_json: AsJson = False,
) -> None:
    """Write the corrected classifier as safetensors under the names of the upload, with a card."""
    if out.suffix != SUFFIX:
        raise typer.BadParameter(f"must end in {SUFFIX}, got {out}", param_hint="--out")
    from defuse_core.exchange.checkpoint.export import corrected_checkpoint  # torch: slow to import
    from defuse_core.exchange.checkpoint.model_card import TITLE

    workspace, card_path = Workspace(), out.with_suffix(".md")
    if run is None:
        latest = workspace.runs.latest(find_project(workspace, project).id, "correct", done=True)
        if latest is None:
            raise WorkspaceError("there is no correction that is done yet; run: defuse correct")
        run = latest.id
    if card_path.exists() and not card_path.read_bytes().startswith(TITLE.encode()):
        raise ValueError(f"{card_path} is no card of a checkpoint; give another name to --out")
    content, card = corrected_checkpoint(workspace, run, task=task, name=out.stem)
    write_bytes(out, content)
    write_bytes(card_path, card.encode())
    if as_json:
        typer.echo(json.dumps({"run": run, "checkpoint": str(out), "card": str(card_path)}))
    else:
        typer.echo(f"the classifier that run {run} corrected is in {out}, its card in {card_path}")


@suite_app.command("export")
def export(
    out: Annotated[Path, typer.Option(help="Folder to write; an older suite in it is replaced")],
    project: ProjectName = "",
    run: Annotated[
        int | None,
        typer.Option(
            min=1, max=LARGEST,
            help="A distill run, with its labels of today, or a correct run, with those it took; by default "
            "the newest regions of the project",
        ),
    ] = None,
    n: Annotated[int, typer.Option(min=1, max=10**6, help="Images a region")] = 256,
    seed: Annotated[
        int | None, typer.Option(min=0, max=LARGEST, help="Of the draws; by default the correction's, else 0")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Labelled regions that are no failures, too")
    ] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write the labelled regions as a suite that any later model can be checked with."""
    from defuse_core.exchange.suite.export import (  # torch: slow to import
        make_suite,
        newest_state,
        write_suite,
    )

    workspace = Workspace()
    if run is None:
        run = newest_state(workspace, find_project(workspace, project).id).id
    suite = make_suite(workspace, run, n=n, seed=seed, everything=everything)
    write_suite(suite, out)
    regions = suite.manifest.regions
    if as_json:
        typer.echo(json.dumps({"run": run, "suite": str(out), "regions": len(regions), "n": n}))
    else:
        typer.echo(f"{len(regions)} regions of run {run} with {n} images each are in {out}/")


@suite_app.command("check")
def check(
    model: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Checkpoint in any format")],
    suite: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of the suite")],
    max_error: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a region's images that may be wrong")
    ] = 0.1,
    architecture: Annotated[str | None, typer.Option(help="By default what file or weights tell")] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="By default what the file says, else as the suite's classifier"),
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="N,N,…", help="Likewise")] = None,
    image_size: Annotated[int | None, typer.Option(help="Likewise")] = None,
    channel_order: Annotated[str | None, typer.Option(metavar="rgb|bgr", help="Likewise")] = None,
    code_path: Annotated[str | None, typer.Option(help="Folder that module:Class is imported from")] = None,
    trust_program: Annotated[
        bool, typer.Option("--trust-program", help="Run a TorchScript or torch.export file: it is a program")
    ] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Check a model with a suite, without a workspace; exits with 1 where an error is over --max-error."""
    config = _stated(
        architecture=architecture, mean=mean and mean.split(","), std=std and std.split(","),
        image_size=image_size, channel_order=channel_order, code_path=code_path,
        trust_program=trust_program or None,
    )  # fmt: skip
    from defuse_core.exchange.suite.model import open_model
    from defuse_core.exchange.suite.suite import check_suite, read_suite  # torch: slow to import

    opened = read_suite(suite)
    loaded = open_model(model, opened, config)
    checked = check_suite(loaded.classifier, opened, max_error=max_error)
    passed = all(each.passed for each in checked)
    if as_json:
        about = {"passed": passed, "max_error": max_error, "model": str(model), "suite": str(suite)}
        typer.echo(json.dumps({**about, **_model_json(loaded), "regions": list(map(_json, checked))}))
    else:
        _print(checked, opened.manifest, loaded, model, max_error)
    if not passed:
        sys.exit(1)


def _stated(**typed: Any) -> InspectConfig:
    """Return the options that describe the model as a config; None is one that was left out.

    Raises
    ------
    ConfigError
        If a value is refused.
    """
    try:
        config = check_config("inspect", {name: value for name, value in typed.items() if value is not None})
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("inspect: ")) from None
    assert isinstance(config, InspectConfig)
    return config


def _model_json(loaded: Model) -> dict[str, Any]:
    return {
        "architecture": loaded.architecture,
        "preprocessing": vars(loaded.classifier.preprocessing),
        "preprocessing_from": loaded.preprocessing_from,
    }


def _json(each: Checked) -> dict[str, Any]:
    error = each.error
    return {
        "region_id": each.region.region_id, "name": each.region.name, "label": each.region.label,
        "error": [error.estimate, error.low, error.high, error.n], "before": each.region.error,
        "passed": each.passed,
    }  # fmt: skip


def _print(checked: list[Checked], manifest: Manifest, loaded: Model, model: Path, max_error: float) -> None:
    fed = loaded.classifier.preprocessing
    order = f", {fed.channel_order}" if len(fed.mean) == 3 else ""
    size = f", {fed.image_size}×{fed.image_size}" if fed.image_size else ""
    numbers = " ".join(f"{name} {', '.join(f'{v:.4g}' for v in vars(fed)[name])}" for name in ("mean", "std"))
    typer.echo(
        f"{_plain(loaded.architecture)} fed with {numbers}{order}{size}: preprocessing of "
        f"{loaded.preprocessing_from}"
    )
    table = Table("region", "label", "n", "error, 95 % interval", "before", "")
    for each in checked:
        region = each.region
        name, label = f"{region.region_id} {region.name}".strip(), manifest.class_names[region.label]
        before, outcome = f"{region.before.estimate:.3f}", "pass" if each.passed else "FAIL"
        table.add_row(_plain(name), _plain(label), str(region.n), f"{each.error}", before, outcome)
    output.make_console().print(table)
    failed = sum(not each.passed for each in checked)
    typer.echo(
        f"{'FAIL' if failed else 'pass'}: {failed} of {len(checked)} regions have more than {max_error:.4g} "
        f"of their images wrong with {_plain(model.name)}"
    )


def _plain(text: str) -> str:
    """Text of a file without characters that move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)
