"""What the fields of a config take: for forms, command lines and checks. Imports no torch."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def config_within(annotation: Any) -> type[BaseModel] | None:
    """Return the config that a field of this type holds, if it holds one."""
    options = get_args(annotation) or (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def walk_fields(
    config: BaseModel, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], FieldInfo, Any]]:
    """Return every field of a config and of the configs within it: path, field, value.

    Parameters
    ----------
    config : BaseModel
    path : tuple of str
        Names of the fields that lead to `config`.
    """
    fields = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            fields += walk_fields(value, (*path, name))
        else:
            fields.append(((*path, name), field, value))
    return fields


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """Return the values that a field takes: a literal's, or a registry's names; none for other fields."""
    if isinstance(field.json_schema_extra, dict):
        return tuple(field.json_schema_extra["choices"])  # type: ignore[arg-type]
    kind = str(field.annotation)
    return _literals(field.annotation) if "Literal" in kind and "tuple" not in kind else ()


def _literals(annotation: Any) -> tuple[Any, ...]:
    args = get_args(annotation)
    nested = [a for a in args if get_origin(a) is not None]
    return args if not nested else tuple(v for a in nested for v in _literals(a))
