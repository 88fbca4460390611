"""The numbers that a run stored, which may be damaged: by hand, by a disk, or by who made an archive.

A number that is missing is an error for people, with its remedy. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defuse_core.workspace.database import WorkspaceError


class Results(dict[str, Any]):
    """Results of a run as JSON has them, and a key that is missing tells what to do.

    Parameters
    ----------
    values : mapping
    where : str
        What they are, such as "the summary of run 4", for the error.

    Raises
    ------
    WorkspaceError
        From `[]`, here and in a mapping within, for a key that is missing. `get` and `in` are a dict's.

    Examples
    --------
    >>> Results({"mistakes": {}}, where="the summary of run 4")["regions"]  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    defuse_core...WorkspaceError: the summary of run 4 is damaged: it lacks regions; run the step again
    """

    def __init__(
        self, values: Mapping[str, Any] | Any = (), *, where: str = "the summary of a run", within: str = ""
    ) -> None:
        super().__init__(values)
        self._where, self._within = where, within

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, dict):
            return Results(value, where=self._where, within=f"{self._within}{key}.")
        return value

    def __missing__(self, key: str) -> Any:
        raise _damaged(self._where, f"it lacks {self._within}{key}")


def load_results(path: Path, run_id: int) -> Results:
    """Read results.json of a run.

    Parameters
    ----------
    path : Path
    run_id : int
        For the error.

    Raises
    ------
    WorkspaceError
        If it is no JSON object.
    """
    where = f"{path.name} of run {run_id}"
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise _damaged(where, "it is no JSON") from None
    if not isinstance(values, dict):
        raise _damaged(where, "it is no object of JSON")
    return Results(values, where=where)


def region_ids(summary: Mapping[str, Any]) -> list[int]:
    """Return the ids of the regions that a distill run found, in the order of its summary.

    Parameters
    ----------
    summary : mapping
        Of the run.

    Raises
    ------
    WorkspaceError
        If the summary is damaged.
    """
    try:
        return [int(region["region_id"]) for region in summary["regions"]]
    except (KeyError, TypeError, ValueError):
        raise _damaged("the summary of the regions", "they have no ids") from None


def _damaged(where: str, fault: str) -> WorkspaceError:
    return WorkspaceError(f"{where} is damaged: {fault}; run the step again")
