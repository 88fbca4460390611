"""Which answers count: the person's before the machine's, the first pass, about the draws shown last."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from defuse_core.base.config import VaeConfig
from defuse_core.base.intervals import Interval
from defuse_core.base.records import Annotation, Region
from defuse_core.extensions import answers
from defuse_core.extensions.answers import all_votes, answers_by_region, self_agreement, single_labels
from defuse_core.extensions.shipped import ANNOTATORS
from defuse_core.method.classifier import Classifier, Preprocessing, predict
from defuse_core.method.labeling import draw_images
from defuse_core.method.vae import EVALUATION_BATCH, BetaVAE, decode_bytes
from defuse_core.workspace.label_events import SIMULATED_NAMES
from defuse_core.workspace.labels import SINGLE_MISTAKES, LabelEvent

MACHINE, OTHER = sorted(ANNOTATORS)[:2]
ANSWERS = st.builds(
    LabelEvent, st.integers(-1, 2), st.sampled_from(["ann", "bob", MACHINE, OTHER]),
    st.none() | st.integers(0, 2), st.none() | st.integers(0, 3), st.sampled_from([0.1, 0.5]),
    st.sampled_from([0, 1]), st.just(4), round=st.integers(1, 3),
)  # fmt: skip


def test_names_that_no_person_may_have_are_those_of_the_simulated_annotators() -> None:
    assert set(SIMULATED_NAMES) == set(ANNOTATORS)


def test_people_count_before_simulated_annotators_region_by_region() -> None:
    events = [
        LabelEvent(0, "ann", 1, 0, tau=0.1),
        LabelEvent(0, MACHINE, 2, 0, tau=0.5),  # later, and of other draws
        LabelEvent(1, MACHINE, 2, 0, tau=0.5),
        LabelEvent(1, OTHER, 0, 0, tau=0.5),
    ]
    found = answers_by_region(events)
    assert found[0].annotations == [Annotation(0, "ann", 1, 0)]
    assert found[0].tau == 0.1
    assert found[1].annotations == [Annotation(1, MACHINE, 2, 0), Annotation(1, OTHER, 0, 0)]


def test_the_time_grows_with_the_answers_and_not_with_the_regions_times_the_answers() -> None:
    reads = 0

    class Counted(LabelEvent):
        def __getattribute__(self, name: str) -> object:
            nonlocal reads
            reads += name == "region_id"
            return super().__getattribute__(name)

    events = [Counted(region, "ann", 1) for region in range(300)]
    assert len(answers_by_region(events)) == 300
    assert reads <= 10 * len(events)


def test_a_verdict_keeps_no_more_images_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = VaeConfig(image_size=8, padding=0, hidden_channels=2, hidden_units=4, latent_dim=2)
    generator = BetaVAE(shape).eval()
    dim, n, decoded = generator.latent_dim, 2 * EVALUATION_BATCH + 7, []
    region = Region(0, 1.0, np.zeros(dim), np.eye(dim))
    images = draw_images(generator, region, n, tau=0.5, seed=3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 3))
    classifier = Classifier(network, Preprocessing((0.0,) * images.shape[1], (1.0,) * images.shape[1]))
    was = decode_bytes

    def spied(vae: BetaVAE, latents: torch.Tensor) -> torch.Tensor:
        decoded.append(len(latents))
        return was(vae, latents)

    monkeypatch.setattr(answers, "decode_bytes", spied)
    said = answers_by_region([LabelEvent(0, "ann", 1, tau=0.5, seed=3, n_samples=n)])
    (verdict,) = answers.judge(classifier, generator, [region], said, disagreement_threshold=0.5)
    assert decoded == [EVALUATION_BATCH, EVALUATION_BATCH, 7]
    wrong = (predict(classifier, images) != 1).double().mean()
    assert verdict.error.estimate == pytest.approx(float(wrong))


def test_whoever_is_shown_more_draws_sees_the_same_first_and_displaces_nobody() -> None:
    ten = [LabelEvent(0, "ann", 1, sample, n_samples=10) for sample in range(10)]
    found = answers_by_region([*ten, LabelEvent(0, "bob", 2, 11, n_samples=12)])[0]
    assert found.n_samples == 12
    assert [len(votes) for votes in found.votes] == [1] * 10 + [0, 1]
    fewer = answers_by_region([*ten, LabelEvent(0, "bob", 2, 0, n_samples=3)])[0]
    assert (fewer.n_samples, fewer.votes[0], fewer.votes[9]) == (10, [1, 2], [1])
    again = replace(ten[0], n_samples=3, round=2)
    assert self_agreement([*ten, again], "ann") == Interval.wilson(1, 1)


def test_a_second_pass_does_not_vote_and_does_not_say_what_is_shown() -> None:
    first = LabelEvent(0, "ann", 1, 0, tau=0.1)
    found = answers_by_region([first, LabelEvent(0, "ann", 2, 0, tau=0.1, round=2),
                               LabelEvent(0, "bob", 2, 0, tau=0.7, round=2),
                               LabelEvent(3, "ann", 2, 0, round=2)])  # fmt: skip
    assert found == answers_by_region([first])
    assert list(found) == [0]


@given(events=st.lists(ANSWERS, max_size=12))
def test_answers_that_count_are_those_of_the_rules(events: Sequence[LabelEvent]) -> None:
    found = answers_by_region(events)
    for region_id in range(3):
        voting = [e for e in events if e.region_id == region_id and e.round == 1]
        people = [e for e in voting if e.annotator in ("ann", "bob")]
        counting = people if people else voting
        if not counting:
            assert region_id not in found
            continue
        last = counting[-1]
        answers = found[region_id]
        same = [e for e in counting if (e.tau, e.seed) == (last.tau, last.seed)]
        most = max(e.n_samples for e in same)
        assert (answers.tau, answers.seed, answers.n_samples) == (last.tau, last.seed, most)
        assert answers.annotations == [
            Annotation(region_id, e.annotator, e.label, e.sample_id) for e in same
        ]  # fmt: skip
    assert set(found) <= {0, 1, 2}


@given(events=st.lists(ANSWERS, max_size=12))
def test_single_mistakes_are_labelled_by_the_same_rules(events: Sequence[LabelEvent]) -> None:
    index, labels = single_labels(events)
    expected = {}
    for mistake in range(4):
        mine = [e for e in events if (e.region_id, e.sample_id, e.round) == (SINGLE_MISTAKES, mistake, 1)]
        people = [e for e in mine if e.annotator in ("ann", "bob")]
        last = {e.annotator: e.label for e in people or mine}
        most = max(map([*last.values()].count, last.values()), default=0)
        winners = {label for label in last.values() if [*last.values()].count(label) == most}
        if last:
            expected[mistake] = winners.pop() if len(winners) == 1 else None
    assert dict(zip(index.tolist(), labels, strict=True)) == expected
    assert index.tolist() == sorted(expected)


def test_one_person_outvotes_the_machines_on_a_single_mistake() -> None:
    said = [("ann", 1, 1), (MACHINE, 2, 1), (OTHER, 2, 1), ("ann", 0, 2)]
    events = [LabelEvent(SINGLE_MISTAKES, name, label, 5, round=n) for name, label, n in said]
    index, labels = single_labels(events)
    assert (index.tolist(), labels) == ([5], [1])


def test_answers_about_mistakes_that_are_not_there_do_not_count() -> None:
    events = [LabelEvent(SINGLE_MISTAKES, "ann", 1, index) for index in (0, 4, 5, 2**62)]
    assert single_labels(events, n_mistakes=5)[0].tolist() == [0, 4]


# Annotators against each other, and a person against themselves


def test_compared_are_the_draws_that_two_or_more_answered() -> None:
    said = [("ann", 1, None), ("ann", 2, 1), ("bob", 1, 1), ("bob", 1, 3), (MACHINE, 0, 3)]
    events = [LabelEvent(0, name, label, sample, n_samples=4) for name, label, sample in said]
    assert all_votes(events) == [[2, 1], [1, 0, 1]]
    everywhere = LabelEvent(0, "bob", 5, n_samples=6)
    assert all_votes([*events, everywhere]) == [[2, 1], [1, 0, 1], *[[1, 5]] * 4]
    assert all_votes([*events, everywhere], most=3) == [[2, 1], [1, 0, 1], [1, 5]]
    alone = [LabelEvent(0, "ann", 1), LabelEvent(0, "bob", 1, seed=1), LabelEvent(0, "bob", 1, round=2)]
    assert all_votes(alone) == []


def test_memory_grows_with_the_answers_and_not_with_the_draws_shown() -> None:
    once = [LabelEvent(0, name, 1, seed=seed, n_samples=10_000) for name in "ab" for seed in range(200)]
    twice = [replace(e, round=n) for e in once for n in (1, 2)]
    tracemalloc.start()
    try:
        assert len(all_votes(once, most=1000)) == 1000
        assert self_agreement(twice, "a") == Interval.wilson(2_000_000, 2_000_000)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def passes(*answers: tuple[int, int | None, int | None, int]) -> list[LabelEvent]:
    """Ann's answers: region, sample, label, pass."""
    return [
        LabelEvent(region, "ann", label, sample, n_samples=4, round=n) for region, sample, label, n in answers
    ]


def test_self_agreement_hand_worked() -> None:
    """Both passes have region 0's draws 0, 1, 2, and region 1 whole: seven draws, five of them alike."""
    events = passes(
        (0, 0, 7, 1), (0, 1, 7, 1), (0, 2, None, 1), (0, 3, 1, 1),
        (0, 0, 7, 2), (0, 1, 2, 2), (0, 2, None, 2),
        (1, None, 5, 1), (1, None, 5, 2), (1, 3, 6, 2),
    )  # fmt: skip
    assert self_agreement(events, "ann") == Interval.wilson(5, 7)


@pytest.mark.parametrize(
    "changed",
    [
        {"tau": 0.1}, {"seed": 1}, {"region_id": 2}, {"region_id": SINGLE_MISTAKES},
        {"annotator": "bob"}, {"round": 1}, {"round": 3}, {"sample_id": 1},
    ],
)  # fmt: skip
def test_agreement_is_about_the_same_draws_in_passes_one_and_two(changed: dict[str, object]) -> None:
    first, second = passes((0, 0, 7, 1), (0, 0, 7, 2))
    assert self_agreement([first, second], "ann") == Interval.wilson(1, 1)
    assert math.isnan(self_agreement([first, replace(second, **changed)], "ann").estimate)


@given(events=st.lists(ANSWERS, max_size=16))
def test_self_agreement_is_a_naive_count(events: Sequence[LabelEvent]) -> None:
    alike = of = 0
    for region_id, tau, seed, sample in (
        (r, t, s, i) for r in range(3) for t in (0.1, 0.5) for s in (0, 1) for i in range(4)
    ):
        said = []
        for number in (1, 2):
            mine = [
                e for e in events
                if (e.annotator, e.round, e.region_id, e.tau, e.seed) == ("ann", number, region_id, tau, seed)
            ]  # fmt: skip
            own = [e.label for e in mine if e.sample_id == sample]
            whole = [e.label for e in mine if e.sample_id is None]
            said.append((own or whole)[-1:])
        if all(said):
            of += 1
            alike += said[0] == said[1]
    found = self_agreement(events, "ann")
    assert repr(found) == repr(Interval.wilson(alike, of))


@given(events=st.lists(ANSWERS, max_size=16))
def test_who_answers_everything_twice_agrees_with_themselves(events: Sequence[LabelEvent]) -> None:
    first = [e for e in events if e.round == 1]
    second = [replace(e, round=2) for e in first]
    found = self_agreement([*first, *second], "ann")
    assert found.n == 0 or found.estimate == 1
    swapped = [replace(e, round=3 - e.round) for e in events if e.round < 3]
    assert repr(self_agreement(swapped, "ann")) == repr(self_agreement(events, "ann"))
