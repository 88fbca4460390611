"""The rule for class names, wherever they come from: data sets, projects, archives, manifests, suites.

A name that breaks it could not be told from another one, or from no answer, in a file of labels. Imports
no torch.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from defuse_core.base.limits import MAX_CLASS_NAME, MAX_CLASSES

NONE_OF_THE_ABOVE = "none of the above"
"""The answer that discards an image; no class is called so."""

_UNSHOWN = {
    "Cc": "control characters",
    "Cf": "characters that are not shown",
    "Cs": "bytes that are not UTF-8",
    "Zl": "line breaks",
    "Zp": "line breaks",
}
"""What one line does not show, by Unicode category."""

_NONCHARACTERS = "\ufffe\uffff"  # XML cannot hold them


_JOINERS = "\u200c\u200d"
"""Between letters of the scripts that need them, and within an emoji, they change what is shown."""


def class_key(name: str) -> str:
    """Return the form in which names are compared: NFC, without spaces at the ends.

    Examples
    --------
    >>> class_key(" cafe\u0301") == class_key("caf\u00e9")
    True
    """
    return unicodedata.normalize("NFC", name).strip()


def name_fault(name: str) -> str | None:
    """Say why a text cannot be the name of a class or of an annotator; None where it can.

    Examples
    --------
    >>> name_fault("cat"), name_fault(" "), name_fault("a\\tb")
    (None, 'is empty', 'has control characters')
    """
    if not class_key(name):
        return "is empty"
    if len(name) > MAX_CLASS_NAME:
        return f"has {len(name):,} characters, at most {MAX_CLASS_NAME} are allowed"
    if found := next(filter(None, map(_UNSHOWN.get, _categories(name))), None):
        return f"has {found}"
    return "has characters that XML cannot hold" if set(name) & set(_NONCHARACTERS) else None


@lru_cache(maxsize=1024)
def mend_name(name: str) -> str:
    """Return a name that an older version stored as it may be stored now: `name_fault` finds nothing.

    Examples
    --------
    >>> mend_name(" Ada"), mend_name("A\u200bda\x1b"), mend_name("\u200b")
    ('Ada', 'Ada', 'unnamed')
    """
    if name_fault(name) is None:
        return name.strip()
    kept = (
        character
        for character, category in zip(name, _categories(name), strict=True)
        if category not in _UNSHOWN and character not in _NONCHARACTERS
    )
    return "".join(kept)[:MAX_CLASS_NAME].strip().rstrip(_JOINERS) or "unnamed"


def mend_key(key: str | None) -> str | None:
    """Return the key of an event that an older version stored as it may be stored now; distinct ones stay so.

    Examples
    --------
    >>> mend_key("a"), mend_key(None), len(mend_key("a" * 300) or "")
    ('a', None, 39)
    """
    if key is None or name_fault(key) is None:
        return key
    return f"mended:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _categories(name: str) -> Iterator[str]:
    """Yield the Unicode category of every character; that of a joiner in its place is "" here."""
    for at, character in enumerate(name):
        joins = character in _JOINERS and _is_joined(name[at - 1 : at]) and _is_joined(name[at + 1 : at + 2])
        yield "" if joins else unicodedata.category(character)


def _is_joined(neighbour: str) -> bool:
    """Whether a joiner may stand beside a character, "" for none: a letter, mark or symbol, not Latin."""
    return (
        not neighbour.isascii()  # nor ""
        and unicodedata.category(neighbour)[0] in "LMS"
        and not unicodedata.name(neighbour, "").startswith("LATIN")
    )


def check_class_names(names: Sequence[str]) -> None:
    """Refuse class names that could not be told apart.

    Parameters
    ----------
    names : sequence of str
        Of all classes, by index.

    Raises
    ------
    ValueError
        If there are none or over `MAX_CLASSES`; if a name is empty, over `MAX_CLASS_NAME` characters, or has
        control characters or others that are not shown; if two are equal by `class_key`; or if one is
        `NONE_OF_THE_ABOVE`.

    Examples
    --------
    >>> check_class_names(["cat", "dog", " cat"])
    Traceback (most recent call last):
    ValueError: classes 0 and 2 are both called 'cat'; rename one of them
    """
    if not 1 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"class_names must be 1 to {MAX_CLASSES:,} names, got {len(names):,}; check it")
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if fault := name_fault(name):
            raise ValueError(f"the name of class {index} {fault}: {name[:40]!r}; rename the class")
        if (key := class_key(name)) == NONE_OF_THE_ABOVE:
            raise ValueError(
                f"a class may not be called {NONE_OF_THE_ABOVE!r}, the answer that discards an image; "
                "rename the class"
            )
        if (earlier := first.setdefault(key, index)) != index:
            raise ValueError(f"classes {earlier} and {index} are both called {key!r}; rename one of them")
