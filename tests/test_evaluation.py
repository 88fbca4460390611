from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.stats import binom
from torch import Tensor, nn

from defuse_core.base.intervals import Interval
from defuse_core.base.records import FailureInstances, Region
from defuse_core.data.splits import ImageDataset, Split, as_bytes
from defuse_core.method import novelty as novelty_module
from defuse_core.method.classifier import Classifier, Preprocessing, predict
from defuse_core.method.evaluation import (
    agreement,
    found_again,
    misclassified,
    nearest_to_region,
    p_value_of_change,
    reconstruction_control,
    score_failures,
    score_regions,
    score_split,
    share,
)
from defuse_core.method.labeling import draw_latents
from defuse_core.method.novelty import latent_novelty, novelty
from defuse_core.method.vae import BetaVAE


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
    split = Split(painted([1, 2, 3, 4]), torch.tensor([0, 2, 3, 9]))
    assert score_split(reader, split) == Interval.wilson(2, 4)


def test_score_regions_by_region(reader: Classifier) -> None:
    labels, ids = torch.tensor([1, 1, 1, 5, 5]), torch.tensor([7, 7, 7, 2, 2])
    failures = FailureInstances(painted([1, 0, 1, 5, 5]), labels, ids)
    assert score_regions(reader, failures) == {2: Interval.wilson(2, 2), 7: Interval.wilson(2, 3)}
    assert score_failures(reader, failures) == Interval.wilson(4, 5)


def test_a_share_is_a_count_and_of_nothing_it_is_undefined() -> None:
    assert share(torch.tensor([True, False, True])) == Interval.wilson(2, 3)
    nothing = share(torch.zeros(0, dtype=torch.bool))
    assert np.isnan(nothing.estimate)
    assert nothing.n == 0


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


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_novelty_in_chunks_is_that_of_all_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(
        0, 256, (11, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    whole, codes = novelty(images[:6], images[4:]), images.flatten(1).float()
    monkeypatch.setattr(novelty_module, "_CHUNK_BYTES", rows * 75 * 8)
    np.testing.assert_allclose(novelty(images[:6], images[4:]), whole, rtol=1e-12)
    np.testing.assert_array_equal(whole[4:], [0, 0])
    np.testing.assert_allclose(latent_novelty(codes[:6], codes[4:]), whole * 255, rtol=1e-6)
    assert novelty(images[:0], images).shape == (0,)


def test_novelty_of_the_reference_is_zero_and_bytes_are_pixels() -> None:
    images = painted([0, 10])
    np.testing.assert_array_equal(novelty(images, images), [0, 0])
    assert novelty(images[1:], images[:1]) == pytest.approx([1.0])


def test_novelty_without_reference_names_the_remedy() -> None:
    with pytest.raises(ValueError, match="whole training split"):
        novelty(painted([1]), painted([]))


def test_novelty_in_latent_space_against_a_tree() -> None:
    rng = torch.Generator().manual_seed(0)
    codes, reference = (torch.randn(n, 6, generator=rng) * 5 for n in (40, 9))
    expected, _ = cKDTree(reference.double().numpy()).query(codes.double().numpy())
    np.testing.assert_allclose(latent_novelty(codes, reference), expected, rtol=1e-9)
    with pytest.raises(ValueError, match="whole training split"):
        latent_novelty(codes, reference[:0])


def narrow_region(latent_dim: int, seed: int) -> Region:
    """A region whose Gaussian is far longer in some directions than in others."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((latent_dim, latent_dim)) * np.logspace(0, -1.5, latent_dim)
    return Region(3, 0.2, rng.standard_normal(latent_dim), root @ root.T + 1e-3 * np.eye(latent_dim))


@pytest.mark.parametrize("tau", [0.01, 0.5, 1.0, 3.0])
def test_nearest_to_a_region_is_by_mahalanobis_distance(tau: float) -> None:
    region = narrow_region(5, 0)
    codes = torch.from_numpy(np.random.default_rng(1).standard_normal((60, 5))).float()
    index, distance = nearest_to_region(region, codes, 7, tau=tau)
    inverse = np.linalg.inv(tau * region.covariance)
    expected = cdist(codes.double().numpy(), region.mean[None], metric="mahalanobis", VI=inverse)[:, 0]
    assert index.tolist() == np.argsort(expected)[:7].tolist()
    np.testing.assert_allclose(distance, np.sort(expected)[:7], rtol=1e-8)
    assert index.tolist() != np.argsort(np.linalg.norm(codes.numpy() - region.mean, axis=1))[:7].tolist()


def test_draws_of_a_region_lie_at_the_root_of_the_dimensions() -> None:
    region = narrow_region(8, 2)
    codes = draw_latents(region, 4000, tau=0.3, seed=0)
    _, distance = nearest_to_region(region, codes, 4000, tau=0.3)
    assert float((distance**2).mean()) == pytest.approx(8, rel=0.03)


def test_nearest_of_few_codes_is_all_of_them_ties_by_row() -> None:
    region = Region(0, 1.0, np.zeros(2), np.eye(2) * 4)
    codes = torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 0.0]])
    index, distance = nearest_to_region(region, codes, 10, tau=1.0)
    assert index.tolist() == [2, 0, 1]
    np.testing.assert_allclose(distance, [0, 1, 1])
    at_the_point = nearest_to_region(region, codes, 10, tau=0.0)
    np.testing.assert_allclose(at_the_point[1], distance)


@pytest.mark.parametrize(
    ("codes", "k", "tau", "told"),
    [
        (torch.zeros(3, 2), 0, 1.0, "k must be 1 or more and tau 0 or more, got 0 and 1.0"),
        (torch.zeros(3, 2), 1, float("nan"), "got 1 and nan"),
        (torch.zeros(3, 2), 1, -0.1, "got 1 and -0.1"),
        (torch.zeros(3, 4), 1, 1.0, r"codes must be \(n, 2\) like the region's mean, got \(3, 4\)"),
        (torch.zeros(3, 1), 1, 1.0, r"got \(3, 1\)"),
        (torch.zeros(2), 1, 1.0, r"got \(2,\); encode images by the generator"),
    ],
)
def test_nearest_refuses_what_it_cannot_measure(codes: Tensor, k: int, tau: float, told: str) -> None:
    region = Region(0, 1.0, np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=told):
        nearest_to_region(region, codes, k, tau=tau)


def test_agreement_by_hand() -> None:
    found = agreement([[3, 3, 3], [3, 3, None], [1, 2, 3], [], [4], [5, 5]])
    np.testing.assert_allclose(found.share, [1, 2 / 3, 1 / 3, np.nan, np.nan, 1])
    assert found.unanimous == Interval.wilson(2, 4)
    assert found.pairwise == pytest.approx((3 + 1 + 0 + 1) / 10)


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


@pytest.mark.parametrize("votes", [[[], []], [[1], [2], []], []])
def test_agreement_of_one_with_nobody_is_undefined(votes: list[list[int | None]]) -> None:
    found = agreement(votes)
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


@pytest.mark.parametrize("ids", [torch.tensor(0), torch.zeros(2, 2).long()])
def test_a_fit_has_one_id_a_mistake(ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \(n,\) of the same mistakes"):
        found_again(ids, ids)


class Reversed(nn.Module):
    """The same network with its three classes in the other order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).flip(1)


@pytest.mark.parametrize("in_reverse", [False, True])
def test_misclassified_and_reconstruction_control_agree_with_a_count(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset, in_reverse: bool
) -> None:
    train, classifier = shapes.train, trained_classifier
    flipped = Split(train.images, torch.where(torch.arange(240) < 10, (train.labels + 1) % 3, train.labels))
    if in_reverse:  # what was misclassified as a smaller class is misclassified as a larger one
        classifier = Classifier(Reversed(classifier.network), Preprocessing.of(train.images)).eval()
        flipped = Split(flipped.images, 2 - flipped.labels)
    right = predict(classifier, train.images) == flipped.labels
    assert len(misclassified(classifier, flipped)) == int((~right).sum()) >= 10
    with torch.inference_mode():
        decoded = trained_vae.decode(trained_vae.encode(train.images)[0])
        still = (classifier(decoded).argmax(1) == flipped.labels) & right
    assert still.sum() < right.sum()
    control = reconstruction_control(classifier, trained_vae, flipped)
    assert control == Interval.wilson(int(still.sum()), int(right.sum()))
