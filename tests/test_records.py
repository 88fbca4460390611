"""Records: the Wilson interval against hand-worked numbers and its formula; order and selection."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defuse_core.base.intervals import Interval
from defuse_core.base.records import FailureInstances, MistakeKind, Mistakes, Mixture, Verdict


def make_mistakes(n: int, first: int = 0) -> Mistakes:
    index = torch.arange(first, first + n)
    return Mistakes(
        latents=torch.stack([index.float(), -index.float()], 1),
        labels=index % 3,
        predictions=(index + 1) % 3,
        source_index=index,
        noise_norm=index / 10,
        kind=index % 3,
    )


def make_mixture(weights: list[float]) -> Mixture:
    n = len(weights)
    return Mixture(
        weights=np.array(weights),
        means=np.arange(2.0 * n).reshape(n, 2),
        covariances=np.stack([np.eye(2) * (k + 1) for k in range(n)]),
        converged=True,
        n_iter=1,
        lower_bound=0.0,
        n_codes=10,
    )


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),  # z² / (n + z²)
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),  # 1 / (1 + z²)
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_hand_worked(successes: int, n: int, low: float, high: float) -> None:
    interval = Interval.wilson(successes, n)
    assert interval.estimate == successes / n
    assert interval.n == n
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(
    n=st.integers(1, 5000),
    share=st.floats(0, 1),
    confidence=st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_wilson_is_the_closed_formula(n: int, share: float, confidence: float) -> None:
    successes = round(share * n)
    p, z = successes / n, NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = Interval.wilson(successes, n, confidence=confidence)
    assert interval.low == pytest.approx(centre - half, abs=1e-9)
    assert interval.high == pytest.approx(centre + half, abs=1e-9)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_wilson_of_nothing_is_unknown() -> None:
    interval = Interval.wilson(0, 0)
    assert math.isnan(interval.estimate)
    assert (interval.low, interval.high, interval.n) == (0.0, 1.0, 0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (1, 0), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"successes must be in \[0, n = {n}\], got {successes}"):
        Interval.wilson(successes, n)


@pytest.mark.parametrize("confidence", [-0.1, 0.0, 1.0, 1.5])
def test_wilson_refuses_an_impossible_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        Interval.wilson(1, 2, confidence=confidence)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("", "0.500 [0.237, 0.763]"), (".1%", "50.0% [23.7%, 76.3%]"), (".1f", "0.5 [0.2, 0.8]")],
)
def test_interval_format(spec: str, expected: str) -> None:
    assert format(Interval.wilson(5, 10), spec) == expected


def test_interval_repr() -> None:
    expected = "Interval(estimate=0.5, low=0.2366, high=0.7634, n=10)"
    assert repr(Interval.wilson(5, 10)) == expected


def test_mistakes_concatenate_undoes_slicing() -> None:
    whole = make_mistakes(7)
    joined = Mistakes.concatenate([whole[:2], whole[2:2], whole[2:]])
    for name, value in vars(whole).items():
        assert torch.equal(getattr(joined, name), value), name
        assert getattr(joined, name).dtype == value.dtype


def test_mistakes_concatenate_nothing() -> None:
    empty = Mistakes.concatenate([], latent_dim=5)
    assert len(empty) == 0
    assert empty.latents.shape == (0, 5)
    reference = make_mistakes(1)
    for name, value in vars(reference).items():
        assert getattr(empty, name).dtype == value.dtype, name
    assert empty.counts() == {"dataset": 0, "reconstruction": 0, "perturbation": 0}


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(1, 4), [1, 2, 3]),
        (torch.tensor([4, 0]), [4, 0]),
        (torch.tensor([True, False, False, True, False]), [0, 3]),
        (slice(9, 12), []),
    ],
)
def test_mistakes_indexing(index: slice | torch.Tensor, expected: list[int]) -> None:
    part = make_mistakes(5)[index]
    assert len(part) == len(expected)
    assert part.source_index.tolist() == expected
    assert part.latents[:, 1].tolist() == [-i for i in expected]
    assert part.labels.tolist() == [i % 3 for i in expected]
    assert part.noise_norm.tolist() == pytest.approx([i / 10 for i in expected])


def test_mistakes_counts() -> None:
    assert make_mistakes(7).counts() == {"dataset": 3, "reconstruction": 2, "perturbation": 2}
    assert make_mistakes(1, first=MistakeKind.PERTURBATION).counts()["perturbation"] == 1


def test_regions_are_heaviest_first_and_ties_keep_their_order() -> None:
    regions = make_mixture([0.1, 0.4, 0.1, 0.3, 0.1]).regions(0.05)
    assert [r.region_id for r in regions] == [1, 3, 0, 2, 4]
    assert [r.weight for r in regions] == [0.4, 0.3, 0.1, 0.1, 0.1]
    for region in regions:
        assert region.mean.tolist() == [2 * region.region_id, 2 * region.region_id + 1]
        assert np.array_equal(region.covariance, np.eye(2) * (region.region_id + 1))


@pytest.mark.parametrize(
    ("min_weight", "expected"),
    [(0.0, [0, 1, 2]), (0.25, [0]), (np.nextafter(0.25, 0), [0, 1, 2]), (0.5, []), (0.9, [])],
)
def test_regions_weigh_strictly_more(min_weight: float, expected: list[int]) -> None:
    mixture = make_mixture([0.5, 0.25, 0.25, 0.0])
    assert [r.region_id for r in mixture.regions(min_weight)] == expected


def test_regions_default_cut_is_one_percent() -> None:
    assert [r.region_id for r in make_mixture([0.01, 0.979, 0.011]).regions()] == [1, 2]


@pytest.mark.parametrize(("chosen", "expected"), [([2], [1, 4]), ([7, 2], [0, 1, 4]), ([], []), ([5], [])])
def test_failure_instances_of_regions(chosen: list[int], expected: list[int]) -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1)
    instances = FailureInstances(images, torch.arange(5) + 10, torch.tensor([7, 2, 3, 3, 2]))
    kept = instances.regions(chosen)
    assert len(kept) == len(expected)
    assert kept.images.flatten().tolist() == expected
    assert kept.images.shape[1:] == (1, 1, 1)
    assert kept.labels.tolist() == [i + 10 for i in expected]
    assert set(kept.region_ids.tolist()) <= set(chosen)


def test_verdict_n_kept_is_the_number_of_labels() -> None:
    verdict = Verdict(0, True, 1, (1, None, 1), Interval.wilson(2, 2))
    assert verdict.n_kept == 2


@pytest.mark.parametrize(
    ("wrong", "kept", "rho", "sure"),
    [(8, 10, 0.5, False), (9, 10, 0.5, True), (8, 10, 0.4, True), (0, 0, 0.5, False), (1, 10, 0.5, True)],
)
def test_a_verdict_is_sure_once_the_interval_leaves_out_rho(
    wrong: int, kept: int, rho: float, sure: bool
) -> None:
    verdict = Verdict(3, True, 1, (1,) * kept, Interval.wilson(wrong, kept), 2, 1, rho)
    assert verdict.is_sure is sure
    stored = json.loads(json.dumps(verdict.row()))
    assert "threshold" not in stored  # the run's config has it
    assert repr(Verdict.of_row(stored, threshold=rho)) == repr(verdict)  # by repr: of no answer it is NaN
