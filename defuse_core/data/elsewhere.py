"""Data of a project that was imported from another machine, by a path there."""

from __future__ import annotations

from typing import NoReturn

from defuse_core.data.naming import ELSEWHERE
from defuse_core.data.reading import Reading
from defuse_core.data.splits import DataError


def refuse_elsewhere(source: str, reading: Reading) -> NoReturn:
    """Refuse data that are on the machine that a project was imported from.

    Parameters
    ----------
    source : str
        "elsewhere:<path there>".
    reading : Reading

    Raises
    ------
    DataError
        Always.
    """
    del reading
    raise DataError(
        f"{source.removeprefix(ELSEWHERE)} is a path of the machine that the project came from, and is not "
        "opened here; import it again and say where that is: --data PATH, --more-data for more_data"
    )
