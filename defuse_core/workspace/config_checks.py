"""Checks the values of a config that a page or a command is given; errors name the field and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from defuse_core.base.errors import DefuseError
from defuse_core.workspace.config_fields import config_within, walk_fields
from defuse_core.workspace.configs import CORRECTED, PRETRAINED, STEPS, StepName


class ConfigError(DefuseError, ValueError):
    """A config that a step refuses; the message names the fields and what they take."""


def check_config(step: str, values: Mapping[str, Any]) -> BaseModel:
    """Validate the config of a step.

    Parameters
    ----------
    step : str
    values : mapping
        By name of field; for the others the defaults are taken.

    Raises
    ------
    ConfigError
        If the step is unknown or a value is refused; the message names the field, what it takes, and
        what it got.

    Examples
    --------
    >>> check_config("identify", {"noise_a": -1})
    Traceback (most recent call last):
    defuse_core.workspace.config_checks.ConfigError: identify: noise_a should be greater than 0, got -1
    """
    if step not in STEPS:
        raise ConfigError(f"step must be one of {', '.join(STEPS)}, got {step!r}")
    model = STEPS[step].config
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        found = [each for each in error.errors() if each["type"] != "default_factory_not_called"]
        problems = "; ".join(_tell(model, dict(problem)) for problem in found)
        raise ConfigError(f"{step}: {problems}") from None


def check_growth(step: StepName, old: Mapping[str, Any], new: Mapping[str, Any]) -> BaseModel:
    """Validate the config under which a run of a step continues.

    Parameters
    ----------
    step : StepName
    old, new : mapping

    Raises
    ------
    ConfigError
        If it changes what was computed already: a field that is not among `may_grow`, a list that
        lacks a value it had, or fewer seeds.

    Examples
    --------
    >>> check_growth("correct", {"n_seeds": 2}, {"n_seeds": 1})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    defuse_core...ConfigError: correct: n_seeds may only grow from 2, got 1; submit the step anew
    """
    before, after = (dict(_flat(check_config(step, values))) for values in (old, new))
    for name, value in before.items():
        new_value = after[name]
        shrinks = (
            not set(value) <= set(new_value)
            if isinstance(value, tuple) and isinstance(new_value, tuple)
            else name == "n_seeds" and new_value < value
        )
        if new_value != value and (name not in STEPS[step].may_grow or shrinks):
            verb = "may only grow" if name in STEPS[step].may_grow else "may not change"
            raise ConfigError(f"{step}: {name} {verb} from {value}, got {new_value}; submit the step anew")
    return check_config(step, new)


def _flat(config: BaseModel) -> list[tuple[str, Any]]:
    return [(".".join(path), value) for path, _, value in walk_fields(config)]


def _tell(model: type[BaseModel], problem: dict[str, Any]) -> str:
    """Describe a problem that pydantic reports."""
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        for part in problem["loc"][:-1]:
            model = config_within(model.model_fields[part].annotation) or model
        near = difflib.get_close_matches(str(problem["loc"][-1]), model.model_fields, n=1)
        known = ", ".join(model.model_fields) or "none"
        return f"{field} is not a field; " + (f"did you mean {near[0]}?" if near else f"there are: {known}")
    if problem["type"] == "value_error":
        return f"{field + ': ' if field else ''}{problem['ctx']['error']}"
    if problem["type"] == "string_pattern_mismatch":
        if problem["ctx"]["pattern"] == PRETRAINED:
            return f"{field} must be imagenet or blob:<sha256>, got {problem['input']!r}"
        more = ", or corrected:<run>" if problem["ctx"]["pattern"] == CORRECTED else ""
        return f"{field} must be shipped:<name> or blob:<sha256>{more}, got {problem['input']!r}"
    message = problem["msg"].removeprefix("Input ")
    return f"{field} {message[:1].lower()}{message[1:]}, got {problem['input']!r}"
