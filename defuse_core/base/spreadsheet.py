"""Keep spreadsheets from running a cell of a CSV as a formula; nothing of the text is lost."""

from __future__ import annotations

import re

_ESCAPE = "'"
_RUNS = re.compile(r"\s*[=+\-@'＝＋－＠\t\r]")
"""Beginnings that a spreadsheet takes for a formula, and the escape itself."""


def escape_formula(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would run.

    Examples
    --------
    >>> escape_formula("=1+1"), escape_formula("cat"), escape_formula("'cat")
    ("'=1+1", 'cat', "''cat")
    """
    return _ESCAPE + text if _RUNS.match(text) else text


def unescape_formula(text: str) -> str:
    """Return the text that `escape_formula` was given; other texts pass unchanged.

    Examples
    --------
    >>> unescape_formula("'=1+1"), unescape_formula("'cat")
    ('=1+1', "'cat")
    """
    rest = text.removeprefix(_ESCAPE)
    return rest if rest != text and _RUNS.match(rest) else text
