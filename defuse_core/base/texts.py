"""Control characters in texts from outside, which a terminal would obey. Imports nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # tab and line feed do no harm


_BREAK = re.compile(r"\s*[\t\n\v\f\r]\s*")


def texts(document: Any) -> Iterator[str]:
    """Return every text of a value of JSON, keys included."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


def one_line(text: object) -> str:
    """Return a text as one line; the sign for an unknown character stands for what cannot be printed.

    Examples
    --------
    >>> one_line("two\\n  lines, red:\\x1b[31m")
    'two lines, red:�[31m'
    """
    line = _BREAK.sub(" ", str(text).strip())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def quote(error: object, most: int = 200) -> str:
    """Return what another library says as a part of one line: without control characters, and not long.

    Examples
    --------
    >>> quote(ValueError("bad\\nheader"))
    'bad header'
    >>> quote("x" * 300, most=4)
    'xxx…'
    """
    text = one_line(error)
    return text if len(text) <= most else text[: most - 1] + "…"


def first_names(names: Sequence[str], most: int = 5) -> str:
    """Return the first of some names, each as `quote` does, with a sign for more.

    Examples
    --------
    >>> first_names(["a", "b", "c"], most=2)
    'a, b …'
    """
    return ", ".join(quote(name, 60) for name in names[:most]) + (" …" if len(names) > most else "")


def find_control(document: Any) -> str | None:
    """Return a text of a value of JSON that has control characters; None where none has."""
    return next((text for text in texts(document) if _CONTROL.search(text)), None)


def without_control(value: Any) -> Any:
    """Replace the control characters in all texts of a value of JSON by the sign for an unknown one.

    Examples
    --------
    >>> without_control({"error": "red:\\x1b[31m", "n": 3})
    {'error': 'red:�[31m', 'n': 3}
    """
    if isinstance(value, str):
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {without_control(key): without_control(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_control(inner) for inner in value]
    return value
