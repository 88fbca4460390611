"""Shows a form for the config of a step: one widget per field, with the help text of the config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st
from pydantic.fields import FieldInfo

from dashboard.shell import store
from dashboard.shell.state import recall, remember
from defuse_core.base.config import PRESETS
from defuse_core.workspace.config_fields import choices, walk_fields
from defuse_core.workspace.configs import STEPS, StepName, preset_values

PRESET_NAMES = {
    "demo": "the demo: digits on two cores",
    "mnist": "the paper's, MNIST",
    "svhn": "the paper's, SVHN",
    "gtsrb": "the paper's, German signs",
    "photographs": "photographs of your own, 32 to 128 pixels",
}

Path = tuple[str, ...]

_UNSET = object()


def config_form(
    step: StepName, *, key: str, main: Sequence[str], leave_out: Sequence[str] = (),
    start: dict[str, Any] | None = None, presets: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Show a widget for every field of a step's config and return the values.

    Parameters
    ----------
    step : str
    key : str
        Prefix of the widgets' keys; another prefix has values of its own.
    main : sequence of str
        Fields shown first, by the last part of their path; the others are folded away.
    leave_out : sequence of str
        Fields not shown.
    start : dict, optional
        Values to begin with; by default the config's own.
    presets : bool
        Whether to offer settings that are known to work.
    """
    config = STEPS[step].config.model_validate(start or {})
    fields = [entry for entry in walk_fields(config) if not {*entry[0]} & {*leave_out}]
    if presets:
        _preset_choice(step, key, fields)
    values: dict[str, Any] = {}
    first = sorted((f for f in fields if f[0][-1] in main), key=lambda f: main.index(f[0][-1]))
    _rows(first, key, values)
    if rest := [f for f in fields if f[0][-1] not in main]:
        with st.expander("More settings"):
            _rows(rest, key, values)
    return values


def device_field() -> str:
    """Ask where to compute; the same choice on every page."""
    devices = {entry.device: str(entry) for entry in store.devices()}
    return st.selectbox(
        "device", ["auto", *devices], key="device", help="Where to compute",
        format_func=lambda name: devices.get(name, "the best there is"),
    )  # fmt: skip


def _preset_choice(step: StepName, key: str, fields: Sequence[tuple[Path, FieldInfo, Any]]) -> None:
    def take() -> None:
        name = recall(f"{key}-preset")
        if name is None:
            return
        preset = STEPS[step].config.model_validate(preset_values(PRESETS[name], step))
        values = {path: value for path, _, value in walk_fields(preset)}
        for path, field, _ in fields:
            remember(_key(key, path), _shown(field, values[path]))

    st.selectbox(
        "Start from", list(PRESET_NAMES), key=f"{key}-preset", format_func=lambda name: PRESET_NAMES[name],
        index=None, placeholder="the settings below", on_change=take, persist_state="session",
        help="Fills the fields below with settings that are known to work; each can be changed.",
    )  # fmt: skip


def _rows(fields: Sequence[tuple[Path, FieldInfo, Any]], key: str, values: dict[str, Any]) -> None:
    columns = st.columns(3)
    for index, (path, field, value) in enumerate(fields):
        with columns[index % 3]:
            answer = _widget(path, field, value, _key(key, path))
        place = values
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = answer


def _key(key: str, path: Path) -> str:
    return f"{key}-{'.'.join(path)}"


def _shown(field: FieldInfo, value: Any) -> Any:
    """Turn a value into what its widget holds."""
    if isinstance(value, tuple):
        return ", ".join(repr(part).removesuffix(".0") for part in value)
    return float(value) if "float" in str(field.annotation) and value is not None else value


def _widget(path: Path, field: FieldInfo, value: Any, key: str) -> Any:
    label = path[-1].replace("_", " ")
    kind, description = str(field.annotation), field.description
    common: dict[str, Any] = {"key": key, "help": description, "persist_state": "session"}
    if recall(key, _UNSET) is _UNSET:
        remember(key, _shown(field, value))
    if field.annotation is bool:
        return st.toggle(label, **common)
    if choices(field):
        return st.selectbox(label, choices(field), **common)
    if "tuple" in kind:
        typed = st.text_input(label, **common)
        return [part.strip() for part in typed.split(",") if part.strip()] if typed else None
    if "int" in kind or "float" in kind:
        return _number(label, field, "float" in kind, common)
    return st.text_input(label, **common) or None


def _number(label: str, field: FieldInfo, is_float: bool, common: dict[str, Any]) -> float | int | None:
    to: Callable[[Any], Any] = float if is_float else int
    low = next((to(m.ge) for m in field.metadata if hasattr(m, "ge")), None)
    high = next((to(m.le) for m in field.metadata if hasattr(m, "le")), None)
    if is_float:
        return st.number_input(label, low, high, value=None, format="%g", placeholder="none", **common)
    return st.number_input(label, low, high, value=None, step=1, placeholder="none", **common)
