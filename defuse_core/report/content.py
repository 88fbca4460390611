"""What the HTML report says, as records: numbers as they were measured, pictures as pixels, no words yet."""

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
    """One picture, and what was said of it.

    Attributes
    ----------
    image : (height, width, 1 or 3) uint8
    wanted : str
        The name of its class, or of the label that its region was given.
    before, after : str
        What the classifier says, before and after the correction.
    """

    image: NDArray[np.uint8]
    wanted: str
    before: str
    after: str


@dataclass(frozen=True)
class Nearest:
    """The real test images nearest to a region; `same_label` of them are of the region's label."""

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
        At which it was labelled, tuned on and tested.
    before, after, baseline : Interval
        Accuracy on its test draws; the baseline's is None where there is none.
    held_out : bool
        Whether the correction never saw it.
    tiles : sequence of Tile
        The first of the draws that the annotators were shown.
    votes : sequence of (str or None)
        What the annotators made of each of these draws: the majority, or None for none of the above.
    n_shown : int
        Draws that the annotators were shown, all of them.
    n_fit : int
        How many of these they gave the region's label.
    annotators : sequence of str
    simulated : bool
        Whether all of these are programs.
    nearest : Nearest or None
        None where it was not measured.
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
    n_fit: int
    annotators: Sequence[str]
    simulated: bool
    nearest: Nearest | None = None


@dataclass(frozen=True)
class ReportContent:
    """All that the HTML report is made of.

    Attributes
    ----------
    project : str
    dataset : mapping
        What the project remembers of its data: source, sizes by split, image_shape, class_names.
    measured_on : str
        The day of the evaluation, as 2026-01-31.
    results : mapping
        results.json; sections whose keys it lacks are left out, and say so.
    scores : sequence of Scores
        Figure 4: before, the baseline where there is one, Defuse.
    sweep : sequence of mapping
        Every point of the sweep, in order of λ.
    baseline_sweep : sequence of mapping
        That of the baseline; may be empty.
    regions : sequence of RegionEntry
        The worst failure regions, worst first.
    n_tuned, n_held_out : int
        Failure regions tuned on, and those kept back.
    n_draws : int
        Test draws of each region.
    n_judged, n_labelled : int
        Regions with a verdict, and draws that annotators answered.
    fixed, broken : sequence of Tile
        The first test images whose verdict changed.
    figures : mapping of str to bytes
        PNG or SVG by name.
    annotators : sequence of str
    simulated : bool
        Whether none of them is a person.
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
