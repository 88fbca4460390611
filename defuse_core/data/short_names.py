"""Abbreviate class names by what distinguishes them: "Speed limit (30km/h)" is "…(30km/h)". No torch."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

_MOST_ALIKE = 16  # names of equal beginning and of equal end that are compared: thousands would take minutes
_LAST = "\U0010ffff"


@lru_cache(maxsize=64)
def short_names(names: tuple[str, ...], width: int) -> tuple[str, ...]:
    """Abbreviate names that are too long, so that they still differ.

    A name keeps its beginning, its end or both, cut between words where that tells it from all others, else
    within words. Names that cannot be told apart in that width are numbered.

    Parameters
    ----------
    names : tuple of str
        All class names.
    width : int
        Characters that fit, 4 or more.

    Returns
    -------
    tuple of str
        At most `width` characters each; different where the names are, as far as the numbers fit.

    Examples
    --------
    >>> short_names(("Speed limit (20km/h)", "Speed limit (30km/h)", "Stop"), 10)
    ('…(20km/h)', '…(30km/h)', 'Stop')
    >>> short_names(("Road narrows on the right", "Bumpy road"), 12)
    ('Road…', 'Bumpy road')
    """
    if width < 4:
        raise ValueError(f"width must be 4 or more, got {width}")
    taken = Counter(name for name in names if len(name) <= width)
    forwards, backwards = sorted({*names}), sorted({name[::-1] for name in names})
    short = []
    for index, name in enumerate(names):
        forms = (f for f in _forms(name, width) if not taken[f] and _fits_one(f, forwards, backwards))
        form = name if len(name) <= width else next(forms, None)
        if form is None:
            number = str(index + 1)
            form = f"{name[: max(0, width - len(number) - 1)]}…{number}"
        taken[form] += len(name) > width
        short.append(form)
    return tuple(short)


def _forms(name: str, width: int) -> Iterator[str]:
    """Yield abbreviations of a name: those cut between words first, the longest first."""
    cuts = [match.start() for match in re.finditer(r"(?<=\w)(?!\w)|(?<!\w)(?=\w)|\(", name)]
    for places in (cuts, range(1, len(name))):
        fitting = [place for place in places if 0 < place < width]
        ending = [place for place in places if 0 < len(name) - place < width]
        yield from (name[:place].rstrip() + "…" for place in sorted(fitting, reverse=True))
        yield from ("…" + name[place:].lstrip() for place in sorted(ending))
        room = width - 1
        for head in sorted((place for place in fitting if place <= room // 2), reverse=True):
            tails = [place for place in ending if head + len(name) - place <= room and place > head]
            yield from (f"{name[:head].rstrip()}…{name[place:].lstrip()}" for place in sorted(tails))


def _fits_one(form: str, forwards: Sequence[str], backwards: Sequence[str]) -> bool:
    """Whether only one name could be meant by an abbreviation; of names and reversed names, both sorted."""
    head, _, tail = form.partition("…")
    beginning, ending = _beginning(forwards, head), _beginning(backwards, tail[::-1])
    if min(len(beginning), len(ending)) > _MOST_ALIKE:
        return False
    if len(beginning) <= len(ending):
        return sum(forwards[i].endswith(tail) for i in beginning) == 1
    return sum(backwards[i].endswith(head[::-1]) for i in ending) == 1


def _beginning(names: Sequence[str], head: str) -> range:
    """The places of the names of a sorted list that begin so."""
    return range(bisect_left(names, head), bisect_right(names, head + _LAST))
