"""Count what a project examined, and what it found before any correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.present.exhibits import Share
from defuse_core.workspace.labels import SIMULATED_PREFIX, SINGLE_MISTAKES, LabelEvent


@dataclass(frozen=True)
class Survey:
    """What was examined, and what was found before anything was corrected.

    Attributes
    ----------
    test : Share
        Accuracy of the classifier on the test split.
    searched : int
        Training images around which was searched.
    mistakes : mapping of str to int
        How many of each kind.
    regions, labelled : int
        How many regions there are, and how many of them have answers.
    answers : int
        Answers given on draws of regions.
    seconds : float
        Time that was spent on them, as far as it was recorded.
    simulated : bool
        All answers are those of simulated annotators.
    mark : str
        What is to be said of the generator that was searched with; empty where it is usable.
    """

    test: Share
    searched: int
    mistakes: Mapping[str, int]
    regions: int
    labelled: int
    answers: int
    seconds: float
    simulated: bool
    mark: str = ""


def survey_of(
    classifier: Mapping[str, Any], identify: Mapping[str, Any], *, ids: Sequence[int],
    events: Sequence[LabelEvent],
) -> Survey:  # fmt: skip
    """Sum up runs and answers.

    Parameters
    ----------
    classifier, identify : mapping
        Summaries of these runs.
    ids : sequence of int
        Ids of all regions.
    events : sequence of LabelEvent
        The answers that count.
    """
    mine = [e for e in events if e.region_id != SINGLE_MISTAKES and e.round == 1 and e.region_id in ids]
    return Survey(
        classifier["intervals"]["test"],
        identify["searched"],
        identify["mistakes"],
        len(ids),
        len({e.region_id for e in mine}),
        len(mine),
        sum(e.seconds or 0.0 for e in mine),
        bool(mine) and all(e.annotator.startswith(SIMULATED_PREFIX) for e in mine),
    )
