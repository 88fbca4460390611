"""How a trial ended, and the rule for messages of refusal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Ending = Literal["taken", "refused", "code run", "crash", "hang", "memory", "no remedy", "unusable"]

GOOD: tuple[Ending, ...] = ("taken", "refused")
COLUMNS: tuple[Ending, ...] = (
    "taken", "refused", "code run", "crash", "hang", "memory", "no remedy", "unusable",
)  # fmt: skip

LONGEST = 600
"""Characters of a message, without the path of the file."""
MOST_SENTENCES = 3
VERBS = (
    "add", "ask", "bring", "check", "choose", "close", "convert", "copy", "create", "crop", "delete",
    "download", "draw", "export", "fill", "free", "give", "import", "install", "keep", "leave", "load",
    "make", "merge", "move", "name", "open", "put", "raise", "reduce", "remove", "rename", "renumber",
    "replace", "resize", "run", "save", "scale", "see", "set", "shorten", "split", "start", "state",
    "train", "try", "unpack", "update", "upgrade", "upload", "use", "wait", "write",
)  # fmt: skip
"""What to do: one of them begins a message or a part of one."""
PHRASES = (
    "must be",
    "must hold",
    "must name",
    "should be",
    "there are:",
    "they fit",
    "torch.save(",
    "defuse ",
    "--",
)
"""What the value has to be, what there is instead, or the command itself."""

_REMEDY = re.compile(
    rf"(?:^|[;:,.(]\s+|\b(?:and|or|then|else|to|first)\s+)(?:{'|'.join(VERBS)})\b"
    rf"|{'|'.join(map(re.escape, PHRASES))}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z])")
_OUT_OF_MEMORY = re.compile(
    r"alloc\w* memory|bad_alloc|not enough memory|out of memory|MemoryError", re.IGNORECASE
)


@dataclass(frozen=True)
class Outcome:
    """The end of one trial.

    Attributes
    ----------
    kind : str
    seed : int
    ending : str
    message : str
        Of the refusal, or what went wrong.
    seconds : float
    peak : int
        Bytes of resident memory over what the child had before.
    """

    kind: str
    seed: int
    ending: Ending
    message: str = ""
    seconds: float = 0.0
    peak: int = 0


def fault_of_message(text: str) -> str | None:
    """What is wrong with a message of refusal; None if it is as it should be.

    Parameters
    ----------
    text : str
        Without the path of the file.

    Examples
    --------
    >>> fault_of_message("weights.pt is empty; copy or download it again")
    >>> fault_of_message("weights.pt is empty")
    'names no remedy'
    """
    if not text.strip():
        return "is empty"
    if len(text) > LONGEST:
        return f"has {len(text)} characters"
    if any(not letter.isprintable() for letter in text):
        return "has characters that a terminal obeys, or line ends"
    if len(_SENTENCE_END.split(text)) > MOST_SENTENCES:
        return f"has over {MOST_SENTENCES} sentences"
    return None if _REMEDY.search(text) else "names no remedy"


def is_refusal(error: BaseException) -> bool:
    """Whether an error is one that Defuse defines: only those are meant for people."""
    return type(error).__module__.startswith("defuse_core.")


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is about memory that was not there."""
    while error is not None:
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
