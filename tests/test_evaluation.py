from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor, nn

from defuse_core.classifier import Classifier, Preprocessing, predict
from defuse_core.data import ImageDataset, Split, as_bytes
from defuse_core.evaluation import (
    agreement,
    found_again,
    misclassified,
    novelty,
    p_value_of_change,
    reconstruction_control,
    score_failures,
    score_model,
    score_regions,
    score_split,
)
from defuse_core.records import FailureInstances, Interval
from defuse_core.vae import BetaVAE


class FirstPixel(nn.Module):
    """Reads the class off the first pixel: 0 … 9 in steps of a tenth."""

    def forward(self, x: Tensor) -> Tensor:
        wanted = (x[:, 0, 0, 0] * 10).round().long().clamp(0, 9)
        return nn.functional.one_hot(wanted, 10).float()


def painted(classes: list[int]) -> Tensor:
    """Images that FirstPixel reads as these classes."""
    images = torch.zeros(len(classes), 1, 4, 4)
    images[:, 0, 0, 0] = torch.tensor(classes) / 10
    return as_bytes(images)


@pytest.fixture
def reader() -> Classifier:
    return Classifier(FirstPixel(), Preprocessing())


def test_score_split_counts(reader: Classifier) -> None:
    split = Split(painted([1, 2, 3, 4]), torch.tensor([1, 2, 3, 9]))
    assert score_split(reader, split) == Interval.wilson(3, 4)


def test_score_regions_by_region(reader: Classifier) -> None:
    labels, ids = torch.tensor([1, 1, 1, 5, 5]), torch.tensor([7, 7, 7, 2, 2])
    failures = FailureInstances(painted([1, 0, 1, 5, 5]), labels, ids)
    assert score_regions(reader, failures) == {2: Interval.wilson(2, 2), 7: Interval.wilson(2, 3)}
    assert score_failures(reader, failures) == Interval.wilson(4, 5)


def test_score_model_has_validation_only_where_the_data_has(
    trained_classifier: Classifier, shapes: ImageDataset
) -> None:
    failures = FailureInstances(shapes.test.images, shapes.test.labels, torch.zeros(90).long())
    scores = score_model("before", trained_classifier, shapes, failures)
    assert shapes.validation is not None
    assert scores.validation == score_split(trained_classifier, shapes.validation)
    assert scores.test == scores.region
    without = ImageDataset("shapes", shapes.train, shapes.test, shapes.class_names)
    assert score_model("before", trained_classifier, without, failures).validation is None


@given(st.integers(0, 40), st.integers(0, 40))
def test_p_value_of_change_is_the_two_sided_binomial(fixed: int, broken: int) -> None:
    n, less = fixed + broken, min(fixed, broken)
    expected = min(1.0, 2 * float(binom.cdf(less, n, 0.5)))
    assert p_value_of_change(fixed, broken) == pytest.approx(expected)
    assert p_value_of_change(fixed, broken) == p_value_of_change(broken, fixed)


def test_p_value_of_change_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="0 or more, got -1 and 2"):
        p_value_of_change(-1, 2)


def test_novelty_against_all_distances() -> None:
    rng = torch.Generator().manual_seed(0)
    images, reference = (torch.rand(n, 3, 5, 5, generator=rng) for n in (11, 7))
    expected = torch.cdist(images.flatten(1).double(), reference.flatten(1).double()).amin(1)
    np.testing.assert_allclose(novelty(images, reference), expected.numpy(), rtol=1e-10)


def test_novelty_of_the_reference_is_zero_and_bytes_are_pixels() -> None:
    images = painted([0, 10])
    np.testing.assert_array_equal(novelty(images, images), [0, 0])
    assert novelty(images[1:], images[:1]) == pytest.approx([1.0])


def test_novelty_without_reference_names_the_remedy() -> None:
    with pytest.raises(ValueError, match="whole training split"):
        novelty(painted([1]), painted([]))


def test_agreement_by_hand() -> None:
    found = agreement([[3, 3, 3], [3, 3, None], [1, 2, 3], [], [4]])
    np.testing.assert_allclose(found.share, [1, 2 / 3, 1 / 3, np.nan, 1])
    assert found.unanimous == Interval.wilson(2, 4)
    assert found.pairwise == pytest.approx((3 + 1 + 0) / 9)


@given(st.lists(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=2, max_size=6), min_size=1), st.randoms())
def test_agreement_does_not_depend_on_the_order_of_annotators(
    votes: list[list[int | None]], random: object
) -> None:
    shuffled = [list(v) for v in votes]
    for v in shuffled:
        random.shuffle(v)  # type: ignore[attr-defined]
    first, second = agreement(votes), agreement(shuffled)
    np.testing.assert_array_equal(first.share, second.share)
    assert (first.unanimous, first.pairwise) == (second.unanimous, second.pairwise)


def test_agreement_of_nobody_is_undefined() -> None:
    found = agreement([[], []])
    assert np.isnan(found.share).all()
    assert np.isnan(found.pairwise)
    assert found.unanimous.n == 0


def best_overlaps(base: list[int], other: list[int]) -> dict[int, float]:
    """The reference: sets of mistakes, every pair of them."""
    sets = [
        {region: {i for i, r in enumerate(fit) if r == region} for region in set(fit) - {-1}}
        for fit in (base, other)
    ]
    return {
        region: max((len(mine & theirs) / len(mine | theirs) for theirs in sets[1].values()), default=0.0)
        for region, mine in sets[0].items()
    }


FITS = st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), max_size=40)


@given(FITS)
def test_found_again_against_all_pairs_of_sets(fits: list[tuple[int, int]]) -> None:
    base, other = [b for b, _ in fits], [o for _, o in fits]
    found = found_again(torch.tensor(base, dtype=torch.int64), torch.tensor(other, dtype=torch.int64))
    expected = best_overlaps(base, other)
    assert list(found) == sorted(expected)
    assert found == pytest.approx(expected)


@given(FITS, st.permutations(range(6)))
def test_found_again_does_not_depend_on_the_ids_of_the_other_fit(
    fits: list[tuple[int, int]], ids: list[int]
) -> None:
    base = torch.tensor([b for b, _ in fits], dtype=torch.int64)
    other = [o for _, o in fits]
    renamed = torch.tensor([100 + ids[o] if o >= 0 else -1 for o in other], dtype=torch.int64)
    assert found_again(base, renamed) == found_again(base, torch.tensor(other, dtype=torch.int64))
    assert all(share == 1.0 for share in found_again(base, base).values())


def test_mistakes_in_no_region_are_no_region() -> None:
    base, none = torch.tensor([2, 2, -1, -1]), torch.full((4,), -1)
    assert found_again(base, none) == {2: 0.0}
    assert found_again(none, base) == {}


@pytest.mark.parametrize("other", [torch.zeros(3).long(), torch.zeros(4, 1).long()])
def test_fits_to_other_mistakes_are_not_compared(other: Tensor) -> None:
    with pytest.raises(ValueError, match=r"same mistakes, got \(4,\) and .*; assign all mistakes under both"):
        found_again(torch.zeros(4).long(), other)


def test_misclassified_and_reconstruction_control_agree_with_a_count(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset
) -> None:
    train = shapes.train
    flipped = Split(train.images, torch.where(torch.arange(240) < 10, (train.labels + 1) % 3, train.labels))
    right = predict(trained_classifier, train.images) == flipped.labels
    assert len(misclassified(trained_classifier, flipped)) == int((~right).sum()) >= 10
    with torch.inference_mode():
        decoded = trained_vae.decode(trained_vae.encode(train.images)[0])
        still = (trained_classifier(decoded).argmax(1) == flipped.labels) & right
    control = reconstruction_control(trained_classifier, trained_vae, flipped)
    assert control == Interval.wilson(int(still.sum()), int(right.sum()))
