"""Errors that several rooms raise, and the rule for their messages."""

from __future__ import annotations

from collections.abc import Iterable

from defuse_core.base.texts import one_line

LONGEST_MESSAGE = 600
"""Characters of a message; of a longer one the middle is left out, since its end names the remedy."""


def short_message(message: object) -> str:
    """Return a message, or an error of another library, as one line of at most `LONGEST_MESSAGE` characters.

    Examples
    --------
    >>> short_message("two\\nlines")
    'two lines'
    """
    text = one_line(message)
    if len(text) <= LONGEST_MESSAGE:
        return text
    return f"{text[: LONGEST_MESSAGE - 253]} … {text[-250:]}"


class DefuseError(Exception):
    """An error for people; its message names the remedy.

    Messages quote names and values of files that strangers made. Whatever those hold, a message is one line
    of printable characters, no longer than `LONGEST_MESSAGE`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(short_message(message))


class DataError(DefuseError, ValueError):
    """A data set that cannot be used; the message names the file and the remedy."""


class UnreadableError(DataError):
    """Files of a data set that cannot be read, and may be left out.

    Parameters
    ----------
    message : str
        It names the first of them.
    files : iterable of str
        All of them, each a line with the reason.
    """

    def __init__(self, message: object, files: Iterable[str]) -> None:
        super().__init__(message)
        self.files = [one_line(file) for file in files]


class CheckpointError(DefuseError, ValueError):
    """A checkpoint that cannot be used; the message names the file and the remedy."""


class DivergenceError(DefuseError, RuntimeError):
    """A training whose loss or weights are not finite any more; the message names the remedy."""
