"""Turn stored answers into verdicts.

A region is judged at the τ and seed of its latest answer. Three kinds of answers do not count: those at
another τ or seed, which are about other images; those of simulated annotators where a person has
answered; and those of a second pass, which measures the annotator. Draws are frozen: who was shown fewer
of them saw the first of the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.base.limits import MAX_COMPARED_DRAWS
from defuse_core.base.records import Annotation, Region, Verdict
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.labeling import Votes, collect_votes, draw_latents, majority, reach_verdict
from defuse_core.method.vae import EVALUATION_BATCH, BetaVAE, decode_bytes
from defuse_core.workspace.labels import SIMULATED_PREFIX, SINGLE_MISTAKES, LabelEvent


@dataclass(frozen=True)
class Answers:
    """What was said of one region, and of which draws."""

    tau: float
    seed: int
    n_samples: int
    annotations: list[Annotation]

    @property
    def simulated(self) -> bool:
        """Whether no person has answered."""
        return all(a.annotator.startswith(SIMULATED_PREFIX) for a in self.annotations)

    @property
    def votes(self) -> Votes:
        """The answers on each draw."""
        return collect_votes(self.annotations, self.n_samples)


def answers_by_region(events: Sequence[LabelEvent]) -> dict[int, Answers]:
    """Group the answers that count by region; single mistakes are left out."""
    voting: dict[int, list[LabelEvent]] = {}
    for e in events:
        if e.round == 1 and e.region_id != SINGLE_MISTAKES:
            voting.setdefault(e.region_id, []).append(e)
    by_region: dict[int, Answers] = {}
    for region_id in sorted(voting):
        mine = _of_people(voting[region_id])
        tau, seed = mine[-1].tau, mine[-1].seed
        here = [e for e in mine if (e.tau, e.seed) == (tau, seed)]
        answers = [Annotation(region_id, e.annotator, e.label, e.sample_id) for e in here]
        by_region[region_id] = Answers(tau, seed, _most_shown(here), answers)
    return by_region


def _of_people(events: Sequence[LabelEvent]) -> Sequence[LabelEvent]:
    """Return the answers of people, or all answers where no person has answered."""
    return [e for e in events if not e.annotator.startswith(SIMULATED_PREFIX)] or events


def all_votes(events: Sequence[LabelEvent], *, most: int = MAX_COMPARED_DRAWS) -> Votes:
    """Return the answers on each draw of the first pass that two or more annotators answered.

    Parameters
    ----------
    events : sequence of LabelEvent
        Those of simulated annotators included.
    most : int
        At most so many draws, the first ones.
    """
    groups = _same_draws([e for e in events if e.round == 1])
    compared = (
        votes
        for group in groups
        for (votes,), n_draws in _votes(group)
        if len(votes) > 1
        for _ in range(n_draws)
    )
    return list(islice(compared, most))


def _same_draws(events: Sequence[LabelEvent]) -> list[list[LabelEvent]]:
    """Group answers that are about the same draws; single mistakes are left out."""
    groups: dict[tuple[int, float, int], list[LabelEvent]] = {}
    for e in events:
        if e.region_id != SINGLE_MISTAKES:
            groups.setdefault((e.region_id, e.tau, e.seed), []).append(e)
    return list(groups.values())


def _votes(group: Sequence[LabelEvent], *, passes: Sequence[int] = (1,)) -> list[tuple[Votes, int]]:
    """Return the answers of each pass on the same draws, with the number of draws of which they are.

    Draws without an answer of their own are alike and stand last, once: so memory grows with the answers
    and not with the draws.
    """
    asked = sorted({e.sample_id for e in group if e.sample_id is not None})
    place: dict[int | None, int | None] = {None: None, **{sample: i for i, sample in enumerate(asked)}}
    by_pass = [
        collect_votes(
            [
                Annotation(e.region_id, e.annotator, e.label, place[e.sample_id])
                for e in group
                if e.round == n
            ],
            len(asked) + 1,
        )
        for n in passes
    ]
    n_draws = [1] * len(asked) + [_most_shown(group) - len(asked)]
    return list(zip(map(list, zip(*by_pass, strict=True)), n_draws, strict=True))


def _most_shown(events: Sequence[LabelEvent]) -> int:
    return max(event.n_samples for event in events)


def self_agreement(events: Sequence[LabelEvent], annotator: str) -> Interval:
    """Share of the draws answered in both passes to which an annotator gave the same answer twice.

    Parameters
    ----------
    events : sequence of LabelEvent
        Of both passes; those of other annotators do not count.
    annotator : str
    """
    draws = [
        (first == second, n_draws)
        for group in _same_draws([e for e in events if e.annotator == annotator])
        for (first, second), n_draws in _votes(group, passes=(1, 2))
        if first and second
    ]
    return Interval.wilson(sum(n for same, n in draws if same), sum(n for _, n in draws))


def judge(
    classifier: Classifier, vae: BetaVAE, regions: Sequence[Region], answers: Mapping[int, Answers],
    *, disagreement_threshold: float,
) -> list[Verdict]:  # fmt: skip
    """Reach the verdict on every region that has answers, in the order of `regions`.

    Parameters
    ----------
    classifier : Classifier
    vae : BetaVAE
        Decodes the draws that the annotators saw.
    regions : sequence of Region
    answers : mapping of int to Answers
        By region_id, as `answers_by_region` returns them.
    disagreement_threshold : float
        ρ; a region is a failure if *more* than this share of its draws with a majority label disagree.
    """
    return [
        reach_verdict(
            region.region_id,
            _predict_draws(classifier, vae, region, own),
            own.annotations,
            disagreement_threshold=disagreement_threshold,
        )
        for region in regions
        if (own := answers.get(region.region_id)) is not None
    ]


def _predict_draws(classifier: Classifier, vae: BetaVAE, region: Region, own: Answers) -> Tensor:
    """The class of each draw that was answered, (n_samples,); memory does not grow with the images."""
    latents = draw_latents(region, own.n_samples, tau=own.tau, seed=own.seed)
    batches = latents.split(EVALUATION_BATCH)
    return torch.cat([predict(classifier, decode_bytes(vae, codes)) for codes in batches])


def failing(verdicts: Sequence[Verdict]) -> dict[int, int]:
    """The label of each failure region; one whose most frequent labels tie has none, and is left out."""
    return {v.region_id: v.label for v in verdicts if v.is_failure and v.label is not None}


def single_labels(
    events: Sequence[LabelEvent], *, n_mistakes: int | None = None
) -> tuple[Tensor, list[int | None]]:
    """Indices of the mistakes that were labelled one by one, ascending, and their majority labels.

    Parameters
    ----------
    events : sequence of LabelEvent
    n_mistakes : int, optional
        How many there are; answers about others are left out.
    """
    of_mistake: dict[int, list[LabelEvent]] = {}
    for event in events:
        if event.region_id == SINGLE_MISTAKES and event.sample_id is not None and event.round == 1:
            if n_mistakes is not None and event.sample_id >= n_mistakes:
                continue
            of_mistake.setdefault(event.sample_id, []).append(event)
    index = sorted(of_mistake)
    votes = [{e.annotator: e.label for e in _of_people(of_mistake[i])} for i in index]
    return torch.tensor(index, dtype=torch.int64), [majority(list(labels.values())) for labels in votes]
