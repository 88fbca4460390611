"""Options of the command line: those of every run, and those made from the fields of a step's config.

A field of a config within the config keeps its own name where that is free, else it takes the outer
field's name before it. Values are text; the config parses and checks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand, TyperOption

from defuse_core.base.config import PRESETS
from defuse_core.base.limits import MAX_THREADS
from defuse_core.workspace.config_checks import ConfigError
from defuse_core.workspace.config_fields import choices, walk_fields
from defuse_core.workspace.configs import STEPS, StepName, preset_values
from defuse_core.workspace.runs import Resources

LARGEST = 2**63 - 1
"""The largest whole number that the database holds."""

ProjectName = Annotated[
    str, typer.Option("--project", "-p", envvar="DEFUSE_PROJECT", help="By default the only project there is")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, no bars")]
Detach = Annotated[bool, typer.Option("--detach", help="Return at once; the run goes on by itself")]
PresetName = Annotated[
    str,
    typer.Option(
        "--preset", help=f"Start from the paper's settings for a data set or the demo's: {', '.join(PRESETS)}"
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST, help="Of every random stream")]
RunNumber = Annotated[int, typer.Argument(min=1, max=LARGEST, help="Number of the run")]
Device = Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:<n>")]
Threads = Annotated[
    int,
    typer.Option(min=0, max=MAX_THREADS, help="Of the CPU; 0 takes DEFUSE_THREADS, else all cores"),
]
OtherThreads = Annotated[int | None, typer.Option(min=0, max=MAX_THREADS, help="Another number of threads")]
EngineName = Annotated[str, typer.Option(help="local, or ray")]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster: HOST:PORT, or local to start one")]
Cpus = Annotated[float, typer.Option(min=0, help="Ray: CPUs a task")]
Gpus = Annotated[float, typer.Option(min=0, help="Ray: GPUs a task, or a share of one")]

RUN_OPTIONS: dict[str, tuple[Any, Any]] = {
    "preset": (PresetName, ""),
    "project": (ProjectName, ""),
    "seed": (Seed, 0),
    "device": (Device, "auto"),
    "threads": (Threads, 0),
    "engine": (EngineName, "local"),
    "address": (Address, None),
    "cpus": (Cpus, 1.0),
    "gpus": (Gpus, 0.0),
    "detach": (Detach, False),
    "as_json": (AsJson, False),
}
"""Options of every command that starts a run: annotation and default by parameter name."""


@dataclass(frozen=True)
class ConfigOption:
    """An option: where its value goes in the config, its annotation for Typer, and the type of the field."""

    path: tuple[str, ...]
    annotation: Any
    takes: Any

    def parse(self, value: Any) -> Any:
        """Turn what was typed into what the field takes: "0.1,1" into a list, "none" into None.

        An option of a list may be given again: its values are joined.

        "none" is None where the field may be None, an empty list where it is a list, and a plain word
        elsewhere.
        """
        value = ",".join(value) if isinstance(value, list) else value
        options = get_args(self.takes)
        is_list = "tuple" in str(self.takes)
        if isinstance(value, str) and value.lower() == "none" and type(None) in options:
            return None
        if isinstance(value, str) and is_list:
            return [part for part in value.split(",") if part and part.lower() != "none"]
        return value


def config_options(step: StepName) -> dict[str, ConfigOption]:
    """Return the options of a step by parameter name."""
    options: dict[str, ConfigOption] = {}
    for path, field, default in walk_fields(STEPS[step].config()):
        name = path[-1]
        if name in options or name in RUN_OPTIONS:
            name = f"{path[-2] if len(path) > 1 else step}_{path[-1]}"
        default_text = "" if default is None else f"(default: {_show(default)})"
        text = f"{field.description or ''} {default_text}".strip()
        flag = f"--{name.replace('_', '-')}"
        option: Any
        if field.annotation is bool:
            option = Annotated[bool | None, typer.Option(f"{flag}/--no{flag[1:]}", help=text)]
        else:
            kind = _kind(field)
            typed = list[str] if "tuple" in str(field.annotation) else str
            option = Annotated[typed | None, typer.Option(flag, help=text, metavar=kind)]
        options[name] = ConfigOption(path, option, field.annotation)
    return options


def given_config(
    step: StepName, options: Mapping[str, ConfigOption], given: Mapping[str, Any], *, preset: str = ""
) -> dict[str, Any]:
    """Return the config that was typed: a preset's fields, overridden by the options that were given.

    Parameters
    ----------
    step : str
    options : mapping of str to ConfigOption
        As `config_options` returns them.
    given : mapping
        What was typed, by parameter name; None, of a list also [], is an option that was left out.
    preset : str
        Of `PRESETS`; "" starts from the defaults.

    Raises
    ------
    ConfigError
        If there is no preset of this name.
    """
    if preset and preset not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    config = preset_values(PRESETS[preset], step) if preset else {}
    for name, value in given.items():
        if value is not None and value != []:
            *outer, last = options[name].path
            place = config
            for part in outer:
                place = place.setdefault(part, {})
            place[last] = options[name].parse(value)
    return config


def _kind(field: FieldInfo) -> str:
    """What a field takes, in the words of a command line."""
    text = str(field.annotation)
    if choices(field):
        return "|".join(map(str, choices(field)))
    if "tuple" in text:
        return "N,N,…"
    if "float" in text:
        return "NUMBER"
    return "N" if "int" in text else "TEXT"


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(f"{value:g}" for value in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


class OnceCommand(TyperCommand):
    """A command that refuses an option of one value that is given twice; click takes the last in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what was typed.

        Parameters
        ----------
        ctx : typer.Context
        args : list of str

        Raises
        ------
        typer.BadParameter
            If an option of one value is given more than once.
        """
        given = self.make_parser(ctx).parse_args(list(args))[2]
        for parameter in set(given):
            is_single = isinstance(parameter, TyperOption) and not parameter.multiple
            if is_single and given.count(parameter) > 1:
                hint = parameter.opts[0]
                raise typer.BadParameter("is given more than once; give it once", ctx, param_hint=hint)
        return super().parse_args(ctx, args)


def refuse_repeats(app: typer.Typer) -> None:
    """Make every command of an app, and of the apps in it, an `OnceCommand`.

    Parameters
    ----------
    app : typer.Typer
    """
    for command in app.registered_commands:
        command.cls = OnceCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            refuse_repeats(group.typer_instance)


def more_lambdas(known: Sequence[float], typed: Sequence[str]) -> list[float]:
    """Return λ in ascending order: those known and those typed, each once.

    Parameters
    ----------
    known : sequence of float
    typed : sequence of str
        Each of numbers with commas between them.

    Raises
    ------
    ConfigError
        If what was typed is no list of numbers.

    Examples
    --------
    >>> more_lambdas([1.0, 10.0], ["3, 1"])
    [1.0, 3.0, 10.0]
    """
    try:
        return sorted({*known, *(float(part) for part in ",".join(typed).split(",") if part.strip())})
    except ValueError:
        raise ConfigError(f"lambdas must be numbers like 0.5, 3, got {','.join(typed)!r}") from None


def given_resources(given: Mapping[str, Any]) -> Resources:
    """Return where a run computes, from the options that were typed; others in `given` are ignored.

    Raises
    ------
    typer.BadParameter
        If engine and address do not go together.
    """
    engine, address = given["engine"], given["address"]
    if engine not in ("local", "ray"):
        raise typer.BadParameter(f"must be local or ray, got {engine!r}", param_hint="--engine")
    if engine == "local" and address is not None:
        raise typer.BadParameter("goes with --engine ray", param_hint="--address")
    if engine == "ray" and address is None:
        raise typer.BadParameter("needs --address HOST:PORT, or --address local", param_hint="--engine")
    return Resources(**{field.name: given[field.name] for field in fields(Resources)})
