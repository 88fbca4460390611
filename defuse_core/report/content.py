"""Records of what the HTML report says: numbers as measured, pictures as pixels, no words yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defuse_core.base.intervals import Interval
from defuse_core.method.evaluation import Scores


@dataclass(frozen=True)
class Tile:
    """One picture with its class and its predictions.

    Attributes
    ----------
    image : (height, width, 1 or 3) uint8
    wanted : str or None
        Name of its class; of a draw, what the annotators said of this one. None where they said nothing.
    before, after : str
        Prediction before and after the correction.
    """

    image: NDArray[np.uint8]
    wanted: str | None
    before: str
    after: str


@dataclass(frozen=True)
class Nearest:
    """The real test images nearest to a region; `same_label` of them have the region's label."""

    tiles: Sequence[Tile]
    same_label: int
    before: Interval
    after: Interval


@dataclass(frozen=True)
class RegionEntry:
    """A failure region.

    Attributes
    ----------
    name : str or None
        What people called it.
    label : str
    tau : float
        τ at which it was labelled, tuned on and tested.
    before, after, baseline : Interval
        Accuracy on its test draws; `baseline` is None if there is no baseline.
    held_out : bool
        Whether the correction never saw it.
    tiles : sequence of Tile
        The first of the draws that the annotators saw.
    votes : sequence of (str or None)
        The annotators' majority label of each of these draws; None for a tie, none of the above or no answer.
    n_shown, n_labelled, n_fit : int
        All draws that the annotators saw; those with a label of their own; those with the region's label.
    status : str
        That it is a failure, and whether that is sure.
    annotators : sequence of str
    simulated : bool
        Whether all annotators are programs.
    nearest : Nearest or None
        None if it was not measured.
    """

    region_id: int
    name: str | None
    label: str
    tau: float
    before: Interval
    after: Interval
    baseline: Interval | None
    held_out: bool
    tiles: Sequence[Tile]
    votes: Sequence[str | None]
    n_shown: int
    n_labelled: int
    n_fit: int
    status: str
    annotators: Sequence[str]
    simulated: bool
    nearest: Nearest | None = None


@dataclass(frozen=True)
class ReportContent:
    """The content of the HTML report.

    Attributes
    ----------
    project : str
    dataset : mapping
        The project's record of its data: source, sizes by split, image_shape, class_names.
    measured_on : str
        The day of the evaluation, as 2026-01-31.
    results : mapping
        results.json; a section whose keys it lacks is left out, and the page says so.
    scores : sequence of Scores
        Figure 4: before, the baseline where there is one, Defuse.
    sweep : sequence of mapping
        Every point of the sweep, in order of λ.
    baseline_sweep : sequence of mapping
        The same of the baseline; may be empty.
    regions : sequence of RegionEntry
        The worst failure regions, worst first.
    n_tuned, n_held_out : int
        Failure regions tuned on, and those held out.
    n_draws : int
        Test draws of each region.
    n_judged, n_labelled : int
        Regions with a verdict, and their draws with a label.
    fixed, broken : sequence of Tile
        The first test images whose verdict changed.
    figures : mapping of str to bytes
        PNG or SVG by name.
    annotators : sequence of str
    simulated : bool
        Whether all annotators are programs.
    manifest : mapping or None
    """

    project: str
    dataset: Mapping[str, Any]
    measured_on: str
    results: Mapping[str, Any]
    scores: Sequence[Scores]
    sweep: Sequence[Mapping[str, Any]]
    baseline_sweep: Sequence[Mapping[str, Any]]
    regions: Sequence[RegionEntry]
    n_tuned: int
    n_held_out: int
    n_draws: int
    n_judged: int
    n_labelled: int
    fixed: Sequence[Tile]
    broken: Sequence[Tile]
    figures: Mapping[str, bytes]
    annotators: Sequence[str]
    simulated: bool
    manifest: Mapping[str, Any] | None = None
