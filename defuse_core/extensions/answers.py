"""Stored answers made into verdicts.

A region is judged at the τ and seed of its latest answer; answers that were given at others are about
other images and do not count. Draws are frozen, so whoever was shown fewer saw the first of the same.
Nor do those of simulated annotators count where a person has answered, nor those of a second pass,
which measures the annotator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.base.records import Annotation, Region, Verdict
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.labeling import (
    Votes,
    collect_votes,
    draw_images,
    majority,
    reach_verdict,
)
from defuse_core.method.vae import BetaVAE
from defuse_core.workspace.labels import SIMULATED_PREFIX, SINGLE_MISTAKES, LabelEvent


@dataclass(frozen=True)
class Answers:
    """What was said of one region, and of which draws."""

    tau: float
    seed: int
    n_samples: int
    annotations: list[Annotation]

    @property
    def votes(self) -> Votes:
        """The answers on each draw."""
        return collect_votes(self.annotations, self.n_samples)


def answers_by_region(events: Sequence[LabelEvent]) -> dict[int, Answers]:
    """Group the answers that count by region; single mistakes are left out."""
    found: dict[int, Answers] = {}
    voting = [e for e in events if e.round == 1]
    for region_id in sorted({e.region_id for e in voting} - {SINGLE_MISTAKES}):
        mine = _of_people([e for e in voting if e.region_id == region_id])
        tau, seed = mine[-1].tau, mine[-1].seed
        here = [e for e in mine if (e.tau, e.seed) == (tau, seed)]
        answers = [Annotation(region_id, e.annotator, e.label, e.sample_id) for e in here]
        found[region_id] = Answers(tau, seed, _most_shown(here), answers)
    return found


def _of_people(events: Sequence[LabelEvent]) -> Sequence[LabelEvent]:
    """Those of people, or all where no person has answered."""
    return [e for e in events if not e.annotator.startswith(SIMULATED_PREFIX)] or events


def all_votes(events: Sequence[LabelEvent]) -> Votes:
    """The answers of everybody on each draw of the first pass, simulated annotators included."""
    shown: dict[tuple[int, float, int], list[LabelEvent]] = {}
    for e in events:
        if e.round == 1 and e.region_id != SINGLE_MISTAKES:
            shown.setdefault((e.region_id, e.tau, e.seed), []).append(e)
    return [votes for given in shown.values() for votes in _votes(given, _most_shown(given))]


def _votes(events: Sequence[LabelEvent], n_samples: int) -> Votes:
    answers = [Annotation(e.region_id, e.annotator, e.label, e.sample_id) for e in events]
    return collect_votes(answers, n_samples)


def _most_shown(events: Sequence[LabelEvent]) -> int:
    return max(event.n_samples for event in events)


def self_agreement(events: Sequence[LabelEvent], annotator: str) -> Interval:
    """Share of the draws that an annotator answered in a first and a second pass and answered alike."""
    shown: dict[tuple[int, float, int], list[LabelEvent]] = {}
    for e in events:
        if e.annotator == annotator and e.region_id != SINGLE_MISTAKES:
            shown.setdefault((e.region_id, e.tau, e.seed), []).append(e)
    pairs = [
        (first, second)
        for given in shown.values()
        for first, second in zip(
            *(_votes([e for e in given if e.round == i], _most_shown(given)) for i in (1, 2)), strict=True
        )
        if first and second
    ]
    return Interval.wilson(sum(first == second for first, second in pairs), len(pairs))


def judge(
    classifier: Classifier, vae: BetaVAE, regions: Sequence[Region], answers: Mapping[int, Answers],
    *, disagreement_threshold: float,
) -> list[Verdict]:  # fmt: skip
    """Reach the verdict on every region that has answers, in the order of `regions`."""
    return [
        reach_verdict(
            region.region_id,
            predict(classifier, draw_images(vae, region, shown.n_samples, tau=shown.tau, seed=shown.seed)),
            shown.annotations,
            disagreement_threshold=disagreement_threshold,
        )
        for region in regions
        if (shown := answers.get(region.region_id)) is not None
    ]


def failing(verdicts: Sequence[Verdict]) -> dict[int, int]:
    """The label that each failure region should have; one without a majority label cannot be corrected."""
    return {v.region_id: v.label for v in verdicts if v.is_failure and v.label is not None}


def single_labels(events: Sequence[LabelEvent]) -> tuple[Tensor, list[int | None]]:
    """Indices of the mistakes that were labelled one by one, ascending, and their majority labels."""
    of_mistake: dict[int, list[LabelEvent]] = {}
    for event in events:
        if event.region_id == SINGLE_MISTAKES and event.sample_id is not None and event.round == 1:
            of_mistake.setdefault(event.sample_id, []).append(event)
    index = sorted(of_mistake)
    votes = [{e.annotator: e.label for e in _of_people(of_mistake[i])} for i in index]
    return torch.tensor(index, dtype=torch.int64), [majority(list(given.values())) for given in votes]
