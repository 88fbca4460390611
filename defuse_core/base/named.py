"""Registries of functions by name, each imported when it is first used. Imports no torch.

A registry maps a name to "module:function". A config field that takes such a name offers what the registry
holds, so that an entry in it is all that a new function needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from pydantic import Field


def load_function(path: str) -> Callable[..., Any]:
    """Import a function by "module:function"."""
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def named_field(registry: Mapping[str, str], default: str, description: str) -> Any:
    """Return a field of a config that takes a name in a registry; check it by `check_name`.

    Parameters
    ----------
    registry : mapping of str to str
    default : str
    description : str
    """
    return Field(default, description=description, json_schema_extra={"choices": registry})  # type: ignore[dict-item]


def check_name(name: str, registry: Mapping[str, str]) -> str:
    """Return the name if the registry has it.

    Parameters
    ----------
    name : str
    registry : mapping of str to str

    Raises
    ------
    ValueError
        If it has not.
    """
    if name not in registry:
        raise ValueError(f"should be {' or '.join(map(repr, registry))}, got {name!r}")
    return name
