"""Labelling: frozen draws against their distribution, verdicts against hand-worked tables."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from torch import nn

from defuse_core.base.intervals import Interval
from defuse_core.base.records import Annotation, Region
from defuse_core.data.splits import ImageDataset
from defuse_core.method.classifier import Classifier, Preprocessing, predict
from defuse_core.method.labeling import (
    Purpose,
    collect_votes,
    draw_images,
    draw_latents,
    draw_strip,
    failure_instances,
    majority,
    more_to_decide,
    reach_verdict,
    simulate_annotators,
    standard_normals,
    suggest_tau,
)
from defuse_core.method.vae import BetaVAE

COVARIANCE = np.array(
    [[1.0, 0.5, 0.0, 0.2], [0.5, 2.0, 0.3, 0.0], [0.0, 0.3, 0.5, 0.1], [0.2, 0.0, 0.1, 1.5]]
)
REGION = Region(3, 0.2, np.array([1.0, -2.0, 0.5, 0.0]), COVARIANCE)
OTHER = Region(8, 0.1, np.array([-1.0, 0.0, 0.0, 2.0]), 0.1 * np.eye(4))


def image_answers(table: dict[str, list[int | None]], region_id: int = 0) -> list[Annotation]:
    """One answer an annotator and image."""
    return [
        Annotation(region_id, name, label, sample)
        for name, row in table.items()
        for sample, label in enumerate(row)
    ]


@pytest.mark.parametrize("tau", [0.01, 0.5, 1.0, 4.0])
def test_draws_have_the_mean_and_tau_times_the_covariance(tau: float) -> None:
    n = 40_000
    draws = draw_latents(REGION, n, tau=tau, seed=0)
    assert draws.shape == (n, 4)
    assert draws.dtype == torch.float32
    variances = tau * np.diag(COVARIANCE)
    error = 5 * np.sqrt(variances / n)  # five standard errors
    assert (np.abs(draws.double().mean(0).numpy() - REGION.mean) < error).all()
    expected = tau * COVARIANCE
    error = 5 * np.sqrt((np.outer(variances, variances) + expected**2) / n)
    assert (np.abs(np.cov(draws.double().numpy().T) - expected) < error).all()


@given(tau=st.floats(0, 100), seed=st.integers(0, 1000))
def test_tau_moves_the_same_draws(tau: float, seed: int) -> None:
    unit = draw_latents(REGION, 20, tau=1.0, seed=seed).double().numpy() - REGION.mean
    moved = draw_latents(REGION, 20, tau=tau, seed=seed).double().numpy() - REGION.mean
    np.testing.assert_allclose(moved, math.sqrt(tau) * unit, rtol=1e-4, atol=1e-5)


def test_tau_zero_is_the_mean() -> None:
    draws = draw_latents(REGION, 3, tau=0.0, seed=0)
    assert torch.equal(draws, torch.from_numpy(REGION.mean).float().expand(3, 4))


@pytest.mark.parametrize("tau", [-0.1, -math.inf, math.nan])
def test_tau_must_not_be_negative(tau: float) -> None:
    with pytest.raises(ValueError, match=f"tau must be 0 or more, got {tau}"):
        draw_latents(REGION, 3, tau=tau, seed=0)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_fewer_draws_are_the_first_of_more(n: int) -> None:
    longer = draw_latents(REGION, 30, tau=0.5, seed=2)
    torch.testing.assert_close(draw_latents(REGION, n, tau=0.5, seed=2), longer[:n])


@pytest.mark.parametrize(
    ("region", "seed", "purpose"),
    [(REGION, 0, "tune"), (REGION, 0, "test"), (REGION, 1, "label"), (OTHER, 0, "label")],
)
def test_purposes_regions_and_seeds_draw_independently(region: Region, seed: int, purpose: Purpose) -> None:
    first = standard_normals(REGION, 4000, seed=0)
    second = standard_normals(region, 4000, seed=seed, purpose=purpose)
    assert not np.isin(first, second).any()
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(first.size)


def test_draws_depend_on_the_region_id_alone_not_on_its_shape() -> None:
    twin = Region(REGION.region_id, 0.9, OTHER.mean, OTHER.covariance)
    np.testing.assert_array_equal(standard_normals(twin, 5, seed=0), standard_normals(REGION, 5, seed=0))


def test_draw_images_are_the_decoded_draws_as_bytes(trained_vae: BetaVAE) -> None:
    images = draw_images(trained_vae, REGION, 6, tau=0.5, seed=1, purpose="test")
    latents = draw_latents(REGION, 6, tau=0.5, seed=1, purpose="test")
    with torch.no_grad():
        pixels = trained_vae.decode(latents)
    assert images.dtype == torch.uint8
    assert images.shape == (6, 1, 8, 8)
    assert float((images.float() - 255 * pixels).abs().max()) < 0.51
    assert len(draw_images(trained_vae, REGION, 0, tau=0.5, seed=1)) == 0


@pytest.mark.parametrize("taus", [(0.5,), (0.0, 0.01, 0.5, 2.0), (1.0, 0.1, 1.0)])
def test_a_strip_is_the_frozen_draws_at_every_tau(
    trained_classifier: Classifier, trained_vae: BetaVAE, taus: tuple[float, ...]
) -> None:
    images, predictions = draw_strip(trained_classifier, trained_vae, REGION, taus=taus, n=5, seed=3)
    assert images.shape == (len(taus), 5, 1, 8, 8)
    for tau, shown, said in zip(taus, images, predictions, strict=True):
        assert torch.equal(shown, draw_images(trained_vae, REGION, 5, tau=tau, seed=3))
        assert torch.equal(said, predict(trained_classifier, shown))
    assert len({tuple(said.tolist()) for said in predictions}) > 1 or len(taus) == 1


@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=25, max_size=25), min_size=1, max_size=6),
    percent=st.integers(1, 100),
    data=st.data(),
)
def test_the_suggested_tau_is_the_largest_that_is_pure(
    rows: list[list[int]], percent: int, data: st.DataObject
) -> None:
    taus = data.draw(st.permutations([0.1 * step for step in range(len(rows))]))
    best = None
    for tau, row in zip(taus, rows, strict=True):
        pure = any(100 * row.count(c) >= percent * len(row) for c in row)
        best = tau if pure and (best is None or tau > best) else best
    assert suggest_tau(taus, torch.tensor(rows), purity=percent / 100) == best


@pytest.mark.parametrize(("share", "n"), [(7, 25), (14, 25), (7, 50), (28, 50)])
def test_a_tau_that_is_exactly_pure_enough_is_pure(share: int, n: int) -> None:
    """Here share / n · n rounds to more than the share."""
    said = torch.tensor([[0] * share + list(range(1, n - share + 1))])
    assert suggest_tau([0.5], said, purity=share / n) == 0.5
    assert suggest_tau([0.5], said, purity=share / n + 1e-9) is None


@pytest.mark.parametrize("purity", [0.0, -0.1, 1.01, math.nan])
def test_purity_is_a_share(purity: float) -> None:
    with pytest.raises(ValueError, match=rf"purity must be in \(0, 1\], got {purity}"):
        suggest_tau([0.5], torch.zeros(1, 3, dtype=torch.int64), purity=purity)


@pytest.mark.parametrize("taus", [[0.5], [0.1, 0.5, 1.0]])
def test_predictions_are_of_each_tau(taus: list[float]) -> None:
    with pytest.raises(ValueError, match="zip"):
        suggest_tau(taus, torch.zeros(2, 3, dtype=torch.int64), purity=0.9)


def test_failure_instances_follow_the_regions_with_their_labels(trained_vae: BetaVAE) -> None:
    unlabelled = Region(5, 0.1, OTHER.mean, OTHER.covariance)
    found = failure_instances(
        trained_vae, [OTHER, unlabelled, REGION], {3: 1, 8: 2, 99: 0}, 4,
        tau=0.5, seed=0, purpose="tune",
    )  # fmt: skip
    assert found.region_ids.tolist() == [8] * 4 + [3] * 4
    assert found.labels.tolist() == [2] * 4 + [1] * 4
    for region, part in ((OTHER, found.images[:4]), (REGION, found.images[4:])):
        expected = draw_images(trained_vae, region, 4, tau=0.5, seed=0, purpose="tune")
        assert torch.equal(part, expected)


def test_tuning_and_testing_images_differ(trained_vae: BetaVAE) -> None:
    tuned = draw_images(trained_vae, REGION, 20, tau=1.0, seed=0, purpose="tune")
    tested = draw_images(trained_vae, REGION, 20, tau=1.0, seed=0, purpose="test")
    assert not (tuned[:, None] == tested[None]).flatten(2).all(2).any()


@pytest.mark.parametrize("labels", [{}, {99: 0}])
def test_failure_instances_need_a_label(trained_vae: BetaVAE, labels: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="label at least one failure region"):
        failure_instances(trained_vae, [REGION], labels, 4, tau=0.5, seed=0, purpose="tune")


def test_failure_instances_are_drawn_at_the_tau_of_their_region(trained_vae: BetaVAE) -> None:
    found = failure_instances(
        trained_vae, [OTHER, REGION], {3: 1, 8: 2}, 4, tau={3: 0.1, 8: 2.0}, seed=0, purpose="test"
    )
    for region, tau in ((OTHER, 2.0), (REGION, 0.1)):
        expected = draw_images(trained_vae, region, 4, tau=tau, seed=0, purpose="test")
        assert torch.equal(found.regions([region.region_id]).images, expected)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([], None),
        ([3], 3),
        ([3, 3, 8], 3),
        ([8, 3, 3], 3),
        ([3, 8], None),
        ([3, 8, 3, 8, 5], None),
        ([0, 0, 1], 0),
        ([3, None, None], None),
        ([3, 3, None], 3),
        ([3, None], None),
        ([None], None),
    ],
)
def test_majority(votes: list[int | None], expected: int | None) -> None:
    assert majority(votes) == expected


def test_an_image_label_counts_before_the_regions() -> None:
    said = [
        Annotation(0, "ann", 4, sample_id=1),
        Annotation(0, "ann", 2),
        Annotation(0, "bob", None, sample_id=0),
        Annotation(0, "bob", 7),
    ]
    assert collect_votes(said, 3) == [[2, None], [4, 7], [2, 7]]
    assert collect_votes(reversed(said), 3) == [[2, None], [4, 7], [2, 7]]


def test_the_later_answer_counts() -> None:
    said = [
        Annotation(0, "ann", 1, sample_id=0),
        Annotation(0, "ann", 5),
        Annotation(0, "ann", 2, sample_id=0),
        Annotation(0, "ann", 6),
    ]
    assert collect_votes(said, 2) == [[2], [6]]


def test_unanswered_images_have_no_votes() -> None:
    said = [Annotation(0, "bob", 1, sample_id=2), Annotation(0, "ann", 0, sample_id=2)]
    assert collect_votes(said, 4) == [[], [], [0, 1], []]  # by the annotators' names
    assert collect_votes([], 2) == [[], []]


@pytest.mark.parametrize("sample", [-1, 3, 100])
def test_an_answer_about_an_image_that_does_not_exist_is_refused(sample: int) -> None:
    with pytest.raises(ValueError, match=f"sample_id must be in 0 … 2, got {sample}"):
        collect_votes([Annotation(0, "ann", 1, sample_id=sample)], 3)


def test_answers_about_several_regions_are_refused() -> None:
    said = [Annotation(4, "ann", 1), Annotation(2, "bob", 1)]
    with pytest.raises(ValueError, match=r"annotations must be of one region, got \[2, 4\]"):
        collect_votes(said, 3)


@pytest.mark.parametrize(
    ("predictions", "answers", "rho", "is_failure", "label", "wrong", "kept"),
    [
        ([3, 3, 3, 3], {"a": [8, 8, 8, 3]}, 0.5, True, 8, 3, 4),
        ([3, 3, 3, 3], {"a": [8, 8, 3, 3]}, 0.5, False, None, 2, 4),  # half is not more than half
        ([3, 3, 3, 3], {"a": [8, 8, 3, 3]}, 0.49, True, None, 2, 4),  # and a tie is no label
        ([3, 3, 3, 3], {"a": [8, 8, None, 3]}, 0.5, True, 8, 2, 3),  # of the kept ones
        ([3, 3, 3, 3], {"a": [None, None, 3, 3]}, 0.0, False, 3, 0, 2),
        ([3, 3], {"a": [None, None]}, 0.0, False, None, 0, 0),
        ([3, 3], {}, 0.5, False, None, 0, 0),
        ([3, 3, 5], {"a": [9, 2, None]}, 0.5, True, None, 2, 2),  # labels tie
        ([1, 2, 0], {"a": [1, 2, 0]}, 0.5, False, None, 0, 3),
        # Three annotators: image 0 by two of three, image 1 a tie of all, image 2 mostly none.
        ([3, 3, 3], {"a": [8, 8, None], "b": [8, 3, None], "c": [3, 1, 8]}, 0.5, True, 8, 1, 1),
    ],
)
def test_verdict_hand_worked(
    predictions: list[int],
    answers: dict[str, list[int | None]],
    rho: float,
    is_failure: bool,
    label: int | None,
    wrong: int,
    kept: int,
) -> None:
    verdict = reach_verdict(0, torch.tensor(predictions), image_answers(answers), disagreement_threshold=rho)
    assert verdict.is_failure is is_failure
    assert verdict.label == label
    assert verdict.n_kept == kept
    if kept:
        assert verdict.error == Interval.wilson(wrong, kept)
        z = 1.959964
        centre = (wrong / kept + z * z / (2 * kept)) / (1 + z * z / kept)
        assert (verdict.error.low + verdict.error.high) / 2 == pytest.approx(centre, abs=1e-6)
    else:
        assert verdict.error.n == 0
        assert math.isnan(verdict.error.estimate)


def wilson(share: float, n: int, z: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share that need not be of whole answers."""
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


SHARES = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
RHOS = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9])


@given(counts=SHARES, rho=RHOS, confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_as_many_more_answers_as_are_told_decide_and_one_fewer_does_not(
    counts: tuple[int, int], rho: float, confidence: float
) -> None:
    wrong, n = counts
    error = Interval.wilson(wrong, n, confidence=confidence)
    more = more_to_decide(error, threshold=rho, confidence=confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def decided(total: int) -> bool:
        low, high = wilson(wrong / n, total, z)
        return not low <= rho <= high if rho else low > 1e-12

    if Fraction(wrong, n) == Fraction(str(rho)):
        assert more is None
        return
    assert more is not None
    assert decided(n + more)
    assert more == 0 or not decided(n + more - 1)
    assert (more == 0) == decided(n)


@given(counts=SHARES, rho=RHOS)
def test_answers_in_the_same_share_decide_once_there_are_enough(counts: tuple[int, int], rho: float) -> None:
    """Of whole answers, by SciPy: n must be a multiple of the share's denominator."""
    wrong, n = counts
    more = more_to_decide(Interval.wilson(wrong, n), threshold=rho)
    share = Fraction(wrong, n)
    if more is None or n + more > 5000:
        return
    for times in range(1, (n + more) // share.denominator + 2):
        total = times * share.denominator
        found = Interval.wilson(times * share.numerator, total)
        left_out = not found.low <= rho <= found.high if rho else found.low > 0
        assert left_out == (total >= n + more) or (more == 0 and total < n)


@pytest.mark.parametrize(
    ("wrong", "n", "rho", "expected"),
    [
        (8, 10, 0.5, 1),
        (9, 10, 0.5, 0),
        (2, 10, 0.5, 1),
        (5, 10, 0.5, None),  # no number of halves decides between more and less than half
        (0, 0, 0.5, None),
        (0, 0, 0.0, None),
        (0, 10, 0.0, None),
        (1, 1, 0.0, 0),
        (6, 10, 0.5, 87),  # z² / 4 / 0.1² = 96.04
    ],
)
def test_more_to_decide_hand_worked(wrong: int, n: int, rho: float, expected: int | None) -> None:
    assert more_to_decide(Interval.wilson(wrong, n), threshold=rho) == expected


def test_a_label_of_the_region_labels_every_image() -> None:
    said = [Annotation(5, "ann", 1), Annotation(5, "ann", None, sample_id=0)]
    verdict = reach_verdict(5, torch.tensor([1, 1, 0, 2]), said)
    assert verdict.region_id == 5
    assert verdict.image_labels == (None, 1, 1, 1)
    assert verdict.is_failure  # two of three
    assert (verdict.label, verdict.error.estimate) == (1, 2 / 3)


@st.composite
def answer_tables(draw: st.DrawFn) -> dict[str, list[int | None]]:
    n_images = draw(st.integers(1, 6))
    label = st.one_of(st.none(), st.integers(0, 3))
    row = st.lists(label, min_size=n_images, max_size=n_images)
    return draw(st.dictionaries(st.sampled_from("abcdef"), row, min_size=1, max_size=5))


@given(table=answer_tables(), data=st.data())
def test_the_order_and_the_names_of_annotators_change_nothing(
    table: dict[str, list[int | None]], data: st.DataObject
) -> None:
    n_images = len(next(iter(table.values())))
    predictions = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n_images,
                                                  max_size=n_images)))  # fmt: skip
    names = data.draw(st.permutations(sorted(table)))
    renamed = dict(zip(names, table.values(), strict=True))
    expected = reach_verdict(0, predictions, image_answers(table))
    shuffled = data.draw(st.permutations(image_answers(renamed)))
    found = reach_verdict(0, predictions, shuffled)
    assert repr(found) == repr(expected)  # by repr, since NaN is not equal to itself


@given(table=answer_tables(), rho=st.floats(0, 0.99))
def test_verdict_is_a_naive_count(table: dict[str, list[int | None]], rho: float) -> None:
    rows = list(table.values())
    predictions = [image % 4 for image in range(len(rows[0]))]
    wrong, labels = 0, []
    for image, said in enumerate(predictions):
        votes = [row[image] for row in rows]
        winners = [c for c in {*votes} if votes.count(c) == max(map(votes.count, votes))]
        if len(winners) == 1 and winners[0] is not None:
            labels.append(winners[0])
            wrong += winners[0] != said
    verdict = reach_verdict(0, torch.tensor(predictions), image_answers(table), disagreement_threshold=rho)
    assert verdict.n_kept == len(labels)
    assert verdict.is_failure == (bool(labels) and wrong / max(len(labels), 1) > rho)
    most = max(map(labels.count, labels), default=0)
    leading = {c for c in labels if labels.count(c) == most}
    assert verdict.label == (leading.pop() if len(leading) == 1 else None)
    low, high = verdict.error.low, verdict.error.high
    assert verdict.is_sure == (rho < low or rho > high)


def test_simulated_annotators_say_none_where_they_are_unsure(
    trained_classifier: Classifier, shapes: ImageDataset
) -> None:
    torch.manual_seed(5)
    novice = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), Preprocessing())
    images, threshold = shapes.test.images[:30], 0.6
    answers = simulate_annotators(
        {"expert": trained_classifier, "novice": novice}, images, region_id=4, threshold=threshold
    )
    said: list[int | None] = []
    for annotator in (trained_classifier, novice):
        with torch.no_grad():
            probabilities = softmax(annotator(images).double().numpy(), axis=1)
        said += [int(row.argmax()) if row.max() >= threshold else None for row in probabilities]
    assert [answer.label for answer in answers] == said
    assert None in said
    assert {label for label in said if label is not None} == {0, 1, 2}
    assert [answer.annotator for answer in answers] == ["expert"] * 30 + ["novice"] * 30
    assert [answer.sample_id for answer in answers] == 2 * list(range(30))
    assert {answer.region_id for answer in answers} == {4}


@pytest.mark.parametrize(("threshold", "silent"), [(0.0, False), (1.01, True)])
def test_the_threshold_rules_who_answers(
    trained_classifier: Classifier, shapes: ImageDataset, threshold: float, silent: bool
) -> None:
    answers = simulate_annotators(
        {"a": trained_classifier}, shapes.test.images[:9], region_id=0, threshold=threshold
    )
    assert all((answer.label is None) == silent for answer in answers)


def test_a_verdict_tells_ties_from_none_of_the_above_and_from_silence() -> None:
    said = {0: (1, 2), 1: (None, None), 2: (None, 1), 3: (1, 1)}  # of two annotators; nobody answered 4
    answers = [
        Annotation(0, name, labels[i], sample)
        for sample, labels in said.items()
        for i, name in enumerate(("ann", "bob"))
    ]
    verdict = reach_verdict(0, torch.ones(5, dtype=torch.int64), answers)
    assert verdict.image_labels == (None, None, None, 1, None)
    assert (verdict.n_kept, verdict.n_disagreed, verdict.n_unanswered) == (1, 2, 1)
