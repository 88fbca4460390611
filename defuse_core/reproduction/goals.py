"""What a reproduction should show, and whether it does. All numbers are in results-<dataset>.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from defuse_core.reproduction.paper import DatasetName

GOALS: dict[DatasetName, float] = {"mnist": 0.90, "svhn": 0.90, "gtsrb": 0.80}
"""Region accuracy that a correction should reach, mean over seeds."""

MAX_LOSS = 0.01
"""Test accuracy that it may cost."""


@dataclass(frozen=True)
class Goal:
    """Something a reproduction should show, and whether it does; None where nothing was corrected."""

    told: str
    measured: str
    met: bool | None

    @property
    def answer(self) -> str:
        """`met` in a word."""
        return {True: "met", False: "NOT met", None: "open"}[self.met]


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Region accuracy, test accuracy and the distance to the baseline, against what they should be."""
    seeds, least = results["seeds"], GOALS[results["dataset"]]
    texts = (
        f"region accuracy after is at least {least:.2f}",
        f"test accuracy falls by at most {MAX_LOSS}",
        "Defuse is above the baseline by more than their intervals, on every seed with failure regions",
    )
    if not seeds:
        return [Goal(each, "no failure region on any seed", None) for each in texts]
    region = fmean(seed["defuse"]["region"] for seed in seeds)
    was, now = (fmean(seed[when]["test"] for seed in seeds) for when in ("before", "defuse"))
    gaps: list[float] = [
        seed["defuse"]["region_interval"][0] - seed["baseline"]["region_interval"][1]
        for seed in seeds
        if seed["baseline"] is not None
    ]
    gap = f"{min(gaps):+.3f} between the intervals, at least" if gaps else "no baseline"
    return [
        Goal(texts[0], f"{region:.3f}", region >= least),
        Goal(texts[1], f"{was:.4f} → {now:.4f}", was - now <= MAX_LOSS + 1e-9),
        Goal(texts[2], gap, len(gaps) == len(seeds) and min(gaps) > 0),
    ]
