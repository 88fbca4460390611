"""Import a network from the user's own code: a program, which the user has to allow."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from defuse_core.base.errors import CheckpointError
from defuse_core.base.machine import ALLOW_LOCAL_CODE, local_code_allowed
from defuse_core.base.user_modules import user_folder

_ALIASES = {"n_classes": ("n_classes", "num_classes"), "channels": ("channels", "in_channels")}


def import_network(spec: str, code_path: str, *, n_classes: int, channels: int) -> nn.Module:
    """Import a class or function from a folder and call it for a network. THIS RUNS THE CODE.

    Parameters
    ----------
    spec : str
        "module:Class", such as "models.lenet:LeNet"; or a function that returns a network.
    code_path : str
        The folder that the module is in.
    n_classes, channels : int
        Passed where the signature has such a parameter, also as num_classes and in_channels.

    Raises
    ------
    CheckpointError
        If local code is not allowed, or fails in any way.
    """
    if not local_code_allowed():
        raise CheckpointError(
            f"{spec} is code that would run on this machine, which was not allowed; start with `defuse "
            f"dashboard --allow-local-code`, or set {ALLOW_LOCAL_CODE}=1"
        )
    make = _import(spec, code_path)
    try:
        network = make(**_arguments(make, n_classes=n_classes, channels=channels))
    except (Exception, SystemExit) as error:
        raise CheckpointError(
            f"{spec} could not be built ({_reason(error)}); it is called with {_argument_names(make)}, give "
            "its other parameters defaults"
        ) from error
    if not isinstance(network, nn.Module):
        raise CheckpointError(
            f"{spec} gave a {type(network).__name__}, not an nn.Module; name a class of networks, or a "
            "function that returns one"
        )
    return network


def _import(spec: str, code_path: str) -> Callable[..., Any]:
    module_name, _, name = spec.partition(":")
    if not name or not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise CheckpointError(f"{spec!r} is no module:Class; give one such as models.lenet:LeNet")
    folder = Path(code_path).expanduser().resolve()
    if not folder.is_dir():
        raise CheckpointError(f"{code_path} is no folder; give the one that the module {module_name} is in")
    modules = user_folder(folder)
    try:
        module = modules.load(module_name)
    except (Exception, SystemExit) as error:
        reason = _reason(error).replace(f"{modules.package}.", "")
        raise CheckpointError(
            f"{module_name} could not be imported from {folder} ({reason}); mend it, or install what "
            "it needs beside defuse"
        ) from error
    make = getattr(module, name, None)
    if not callable(make):
        names = [
            n for n, value in vars(module).items() if inspect.isclass(value) or inspect.isfunction(value)
        ]
        raise CheckpointError(
            f"{module_name} in {folder} has no class or function {name}; it has {', '.join(names) or 'none'}"
        )
    return make  # type: ignore[no-any-return]


def _arguments(make: Callable[..., Any], **values: int) -> dict[str, int]:
    parameters = inspect.signature(make).parameters
    return {alias: value for name, value in values.items() for alias in _ALIASES[name] if alias in parameters}


def _argument_names(make: Callable[..., Any]) -> str:
    try:
        return ", ".join(_arguments(make, n_classes=0, channels=0)) or "no arguments"
    except (TypeError, ValueError):
        return "no arguments"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
