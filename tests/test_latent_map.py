"""The map as data: which point is which code, what a selection says, and the lines around regions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dashboard.map import latent_map
from dashboard.map.latent_map import (
    MOST_POINTS,
    LatentMap,
    fit_manifold,
    make_preview,
    outlines,
    read_map,
    read_selection,
)
from defuse_core.data.splits import stratified_sample
from defuse_core.extensions import manifold
from defuse_core.extensions.manifold import Manifold
from defuse_core.extensions.projection import project
from defuse_core.method.distillation import membership
from defuse_core.method.vae import encode_means
from defuse_core.steps.source import Source
from tests.in_process import done_here
from tests.properties import tried
from tests.workspaces import Place

Points = NDArray[np.floating[Any]]


def numbered(n_codes: int, n_mistakes: int) -> LatentMap:
    """A map whose points tell which they are: x is the index of the code; indices count by threes."""

    def part(n: int, side: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        index = 3 * np.arange(n)
        return np.stack([index, np.full(n, side)], axis=1).astype(np.float32), index

    return LatentMap("pca", *part(n_codes, 0.0), *part(n_mistakes, 1.0))


def scattered(mistakes: Points) -> LatentMap:
    """A map of these mistakes, and no training code."""
    return LatentMap(
        "pca", np.zeros((0, 2), np.float32), np.zeros(0, np.int64),
        mistakes.astype(np.float32), np.arange(len(mistakes)),
    )  # fmt: skip


# What a run stored


def test_a_stored_map_comes_apart_into_codes_and_mistakes(place: Place) -> None:
    run = done_here(place, "map", {"method": "pca", "n_codes": 300, "n_mistakes": 100}, seed=2)
    stored = {n: t.numpy() for n, t in place.tensors(run)["pca.safetensors"].items()}
    found = read_map("pca", stored)
    assert found.method == "pca"
    assert (found.codes.shape, found.mistakes.shape) == ((300, 2), (100, 2))
    np.testing.assert_array_equal(np.concatenate([found.codes, found.mistakes]), stored["points"])
    np.testing.assert_array_equal(found.code_index, stored["train_index"])
    np.testing.assert_array_equal(found.mistake_index, stored["mistake_index"])
    source = Source(place.workspace, run.id)
    latents = torch.cat(
        [
            encode_means(source.vae(), source.dataset.train.images[found.code_index]),
            source.mistakes().latents[found.mistake_index],
        ]
    ).numpy()
    # PCA keeps the centre: what is told of a point is about the code that was placed there
    places = np.concatenate([found.codes, found.mistakes]).astype(np.float64)
    axes = np.linalg.lstsq(latents - latents.mean(0), places, rcond=None)[0]
    np.testing.assert_allclose((latents - latents.mean(0)) @ axes, places, atol=1e-4)


def test_figure_2_leaves_out_mistakes_that_lie_in_no_region(place: Place) -> None:
    before = place.workspace.runs.latest(place.project.id, "distill")
    assert before is not None
    weights = sorted(Source(place.workspace, before.id).mixture().weights, reverse=True)
    least = float(weights[2] + weights[3]) / 2  # three regions
    distilled = done_here(place, "distill", {**before.config, "min_weight": least}, seed=before.seed)
    run = done_here(place, "map", {"method": "pca", "n_codes": 50, "n_mistakes": 40, "in_regions": True})
    stored = place.tensors(run)["pca.safetensors"]
    source = Source(place.workspace, run.id)
    assert place.workspace.runs.ancestry(run.id)["distill"].id == distilled.id
    of = membership(source.mixture(), source.mistakes().latents, min_weight=least)
    assert (of < 0).any()
    assert len(stored["mistake_index"]) == 40
    assert (stored["mistake_region"] >= 0).all()
    assert torch.equal(stored["mistake_region"], of[stored["mistake_index"]])


def test_a_map_may_hold_no_mistake(place: Place) -> None:
    run = done_here(place, "map", {"method": "pca", "n_codes": 50, "n_mistakes": 0})
    found = read_map("pca", {n: t.numpy() for n, t in place.tensors(run)["pca.safetensors"].items()})
    assert (found.codes.shape, found.mistakes.shape, found.mistake_index.shape) == ((50, 2), (0, 2), (0,))
    assert outlines(found, np.zeros(0, dtype=np.int64)) == {}


# Thinned


@pytest.mark.parametrize("sizes", [(0, 0), (3, 0), (15_000, 5_000), (0, 20_000)])
def test_few_points_are_all_shown(sizes: tuple[int, int]) -> None:
    whole = numbered(*sizes)
    assert whole.thinned() is whole


@pytest.mark.parametrize(
    "sizes", [(20_000, 1), (10_001, 10_000), (60_000, 10_000), (500, 40_000), (0, 30_000), (20_001, 0)]
)
def test_of_many_points_a_sample_is_shown_that_keeps_the_shares(sizes: tuple[int, int]) -> None:
    whole = numbered(*sizes)
    thin = whole.thinned()
    parts = (thin.codes, thin.code_index), (thin.mistakes, thin.mistake_index)
    total = sum(len(points) for points, _ in parts)
    assert MOST_POINTS - 2 < total <= MOST_POINTS
    for (points, index), n in zip(parts, sizes, strict=True):
        assert abs(len(points) - MOST_POINTS * n / sum(sizes)) < 1
        np.testing.assert_array_equal(points[:, 0], index)  # a point stays with its code
        assert (np.diff(index) > 0).all()
        assert (index % 3 == 0).all()
        if n > 1000:  # from all over, and not the first ones: every tenth of it is in it as it should
            tenths = np.histogram(index, bins=10, range=(0, 3 * n))[0]
            assert np.abs(tenths / len(index) - 0.1).max() < 0.03
    again = numbered(*sizes).thinned()
    np.testing.assert_array_equal(thin.code_index, again.code_index)
    np.testing.assert_array_equal(thin.mistake_index, again.mistake_index)


# Selections

_JUNK = st.one_of(st.none(), st.booleans(), st.text(max_size=2), st.sampled_from([0.0, 1.0, 2.5, -1, 7]))
_TRACE = st.integers(0, 1) | st.integers(-1, 3) | _JUNK
_PLACE = st.integers(-2, 13) | st.integers(0, 4) | _JUNK


@st.composite
def selections(draw: st.DrawFn) -> tuple[list[dict[str, Any]], LatentMap, NDArray[np.int64]]:
    """Points as a browser may name them, the map, and the mistakes that a filter left."""
    shown = numbered(draw(st.integers(0, 12)), draw(st.integers(0, 12)))
    rows = range(len(shown.mistakes))
    left = sorted(draw(st.sets(st.sampled_from(rows)))) if len(rows) else []
    point = st.fixed_dictionaries(
        {"curve_number": _TRACE, "point_index": _PLACE},
        optional={"x": st.floats(0, 1), "legendgroup": st.none()},
    )
    nameless = st.fixed_dictionaries({}, optional={"curve_number": _TRACE, "point_number": _PLACE})
    found = draw(st.lists(st.one_of(point, nameless), max_size=20))
    return found, shown, np.array(left, dtype=np.int64)


@given(selections())
@tried(10)
def test_a_selection_says_what_the_points_are(
    asked: tuple[list[dict[str, Any]], LatentMap, NDArray[np.int64]],
) -> None:
    points, shown, kept = asked
    codes, mistakes = set(), set()
    for point in points:
        trace, place = point.get("curve_number"), point.get("point_index")
        if isinstance(trace, bool) or isinstance(place, bool):
            continue
        if not isinstance(trace, int) or not isinstance(place, int) or place < 0:
            continue
        if trace == 0 and place < len(shown.codes):
            codes.add(int(shown.codes[place, 0]))
        if trace == 1 and place < len(kept):
            mistakes.add(int(shown.mistakes[kept[place], 0]))
    found = read_selection(points, shown, kept)
    assert found.codes.tolist() == sorted(codes)
    assert found.mistakes.tolist() == sorted(mistakes)
    assert len(found) == len(codes) + len(mistakes)
    assert found.codes.dtype == found.mistakes.dtype == np.int64


def test_a_filter_does_not_shift_what_is_selected() -> None:
    shown, kept = numbered(4, 6), np.array([1, 3, 4])
    points = [{"curve_number": 1, "point_index": i} for i in (2, 0, 2)]
    assert read_selection(points, shown, kept).mistakes.tolist() == [3, 12]  # rows 1 and 4, thrice that


@pytest.mark.parametrize("place", [-1, 3, 5, 99, True, 0.0, "0", None])
def test_what_is_not_drawn_is_not_selected(place: object) -> None:
    shown, kept = numbered(3, 6), np.array([1, 3, 4])
    points = [{"curve_number": trace, "point_index": place} for trace in (0, 1)]
    points += [{"curve_number": trace, "point_index": 0} for trace in (-1, 2, 1.0, True, None)]
    assert len(read_selection(points, shown, kept)) == 0


# Outlines


def inside(point: Points, polygon: Points) -> bool:
    """Even-odd rule: whether a ray to the right crosses the closed polygon an odd number of times."""
    x, y = point
    crossings = 0
    for (x1, y1), (x2, y2) in pairwise(polygon):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            crossings += 1
    return crossings % 2 == 1


def hull(points: Points) -> set[tuple[float, float]]:
    """Corners of the convex hull by Andrew's monotone chain."""
    ordered = sorted(map(tuple, points.tolist()))

    def chain(way: list[tuple[float, float]]) -> list[tuple[float, float]]:
        found: list[tuple[float, float]] = []
        for x, y in way:
            while len(found) > 1:
                (ax, ay), (bx, by) = found[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                found.pop()
            found.append((x, y))
        return found

    return {*chain(ordered), *chain(ordered[::-1])}


def nearest_half(points: Points) -> Points:
    """The half of the points, rounded up, nearest the median of each coordinate."""
    middle = [sorted(points[:, axis].tolist()) for axis in (0, 1)]
    n = len(points)
    centre = [(values[(n - 1) // 2] + values[n // 2]) / 2 for values in middle]
    order = np.argsort(np.hypot(points[:, 0] - centre[0], points[:, 1] - centre[1]), kind="stable")
    return points[order[: (n + 1) // 2]]


@pytest.mark.parametrize("n", [8, 9, 31, 200])
@pytest.mark.parametrize("seed", range(3))
def test_an_outline_goes_around_the_half_nearest_the_median(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 2)).astype(np.float32).astype(np.float64)
    points[: n // 4] += 30  # torn away, as t-SNE does
    (polygon,) = outlines(scattered(points), np.zeros(n, dtype=np.int64)).values()
    np.testing.assert_array_equal(polygon[0], polygon[-1])
    middle = nearest_half(points)
    corners = {*map(tuple, polygon.tolist())}
    assert corners == hull(middle)
    assert len(corners) == len(polygon) - 1
    within = [p for p in middle if tuple(p) not in corners]
    assert all(inside(p, polygon) for p in within)
    assert inside(middle.mean(0), polygon)
    assert not any(inside(p, polygon) for p in points[: n // 4])


def test_every_region_has_an_outline_of_its_own() -> None:
    rng = np.random.default_rng(0)
    membership = np.array([7, -1, 2] * 40)
    points = rng.normal(size=(120, 2)) + membership[:, None] * 10
    found = outlines(scattered(points), membership)
    assert list(found) == [2, 7]
    assert all(type(region_id) is int for region_id in found)  # keys of what is drawn, and of names
    for region_id, polygon in found.items():
        mine = points[membership == region_id].astype(np.float32).astype(np.float64)
        assert {*map(tuple, polygon.tolist())} == hull(nearest_half(mine))


@pytest.mark.parametrize(("n", "drawn"), [(0, 0), (1, 0), (7, 0), (8, 1)])
def test_few_mistakes_have_no_outline(n: int, drawn: int) -> None:
    points = np.random.default_rng(0).normal(size=(n, 2))
    assert len(outlines(scattered(points), np.full(n, 3))) == drawn


@pytest.mark.parametrize("slope", [(1, 0), (0, 1), (1, 2), (0, 0)])
def test_mistakes_on_a_line_have_no_outline(slope: tuple[float, float]) -> None:
    line = np.outer(np.arange(20.0), slope)
    blob = np.random.default_rng(0).normal(size=(20, 2)) + 50
    found = outlines(scattered(np.concatenate([line, blob])), np.repeat([0, 1], 20))
    assert list(found) == [1]  # the others have theirs


# What computes


@pytest.fixture
def source(place: Place) -> Source:
    """What the newest search of the template stands on."""
    run = place.workspace.runs.latest(place.project.id, "identify")
    assert run is not None
    return Source(place.workspace, run.id)


def principal(latents: Points) -> Points:
    """Coordinates along the two widest directions, each up to its sign."""
    centred = latents - latents.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ axes[:, [-1, -2]])


@pytest.mark.parametrize("most", [2000, 300])
def test_a_first_picture_is_the_pca_of_a_sample(
    place: Place, source: Source, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(latent_map, "_PREVIEW", most)
    found, train, mistakes = (
        make_preview(place.workspace, source.run.id),
        source.dataset.train,
        source.mistakes(),
    )
    n, m = min(most, len(train)), min(most, len(mistakes))
    assert found.method == "pca"
    np.testing.assert_array_equal(found.code_index, stratified_sample(train.labels, n, seed=0))
    shares = train.labels[found.code_index].bincount() - train.labels.bincount() * n / len(train)
    assert shares.abs().max() <= 1
    assert len(found.mistake_index) == len({*found.mistake_index.tolist()}) == m
    assert (np.diff(found.mistake_index) > 0).all()
    assert found.mistake_index[-1] < len(mistakes)
    assert abs(found.mistake_index.mean() / len(mistakes) - 0.5) < 0.1  # and not the first ones
    latents = torch.cat(
        [
            encode_means(source.vae(), train.images[torch.from_numpy(found.code_index)]),
            mistakes.latents[torch.from_numpy(found.mistake_index)],
        ]
    )
    points = np.concatenate([found.codes, found.mistakes])
    np.testing.assert_array_equal(points, project(latents, method="pca", seed=0).points)
    expected = principal(latents.double().numpy())
    signs = np.sign((points * expected).sum(0))
    np.testing.assert_allclose(points * signs, expected, atol=1e-3)
    again = make_preview(place.workspace, source.run.id)
    np.testing.assert_array_equal(again.codes, found.codes)
    np.testing.assert_array_equal(again.mistake_index, found.mistake_index)


def test_the_manifold_is_of_the_codes_of_all_training_images(
    place: Place, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifold, "_MAX_SAMPLE", 60)  # so that its seed matters
    run = done_here(place, "map", {"method": "pca", "n_codes": 100, "n_mistakes": 50}, seed=4)
    found = fit_manifold(place.workspace, run.id)
    codes = encode_means(source.vae(), source.dataset.train.images)
    expected = Manifold.of(codes, seed=4)
    assert (found.n_codes, found.latent_dim, found.share) == (1280, 4, expected.share)
    assert found.radius == pytest.approx(expected.radius, rel=1e-5)
    assert found.radius != pytest.approx(Manifold.of(codes, seed=0).radius, rel=1e-5)
    asked = source.mistakes().latents[:200]
    every = torch.cdist(asked.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distances, index = found.nearest(asked, 8)
    np.testing.assert_allclose(distances, every.sort(dim=1).values[:, :8], atol=1e-4)
    np.testing.assert_allclose(every.gather(1, torch.from_numpy(index)), distances, atol=1e-4)
    np.testing.assert_array_equal(found.is_off(asked), expected.is_off(asked))
