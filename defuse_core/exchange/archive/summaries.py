"""What pages and later steps read of the summary of a run, one model a step; an archive may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defuse_core.base.texts import quote

_Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    """A part of a summary, which may hold more than is checked."""

    model_config = ConfigDict(strict=True)


class _Region(_Part):
    region_id: _Count


class _Point(_Part):
    """A λ; accuracy with its interval and the number of images, on each set."""

    lam: float
    test: Annotated[list[float | None], Field(min_length=1)]
    region: Annotated[list[float | None], Field(min_length=1)]


class _Chosen(_Part):
    chosen: _Point


class _Classifier(_Part):
    accuracy: dict[str, float | None] | float | None = None


class _Identify(_Part):
    mistakes: dict[str, _Count] | None = None


class _Distill(_Part):
    regions: list[_Region] | None = None


class _Correct(_Part):
    corrected: _Chosen | None = None


_MODELS: Mapping[str, type[_Part]] = {
    "classifier": _Classifier, "identify": _Identify, "distill": _Distill, "correct": _Correct,
}  # fmt: skip
_NEEDED = {"identify": "mistakes", "distill": "regions"}
"""What the summary of a run that is done must hold, by step."""


def summary_fault(step: str, summary: Any, *, done: bool) -> str | None:
    """Say what is damaged in the summary of a run, in words; None where nothing is.

    Parameters
    ----------
    step : str
    summary : JSON value
        None where the run has none.
    done : bool
        Whether the run is done; of one that is not, the summary may lack anything.

    Examples
    --------
    >>> summary_fault("distill", {"regions": [{"region_id": 1}]}, done=True)
    >>> summary_fault("distill", {}, done=True)
    'it lacks regions'
    """
    if summary is None:
        return "there is none" if done else None
    if not isinstance(summary, dict):
        return "it is no object"
    needed = _NEEDED.get(step)
    if done and needed is not None and summary.get(needed) is None:
        return f"it lacks {needed}"
    try:
        _MODELS.get(step, _Part).model_validate(summary)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return f"{quote('.'.join(map(str, first['loc'])), 60)}: {quote(first['msg'])}"
    return None
