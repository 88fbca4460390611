"""Edited mixtures: nothing is lost, nothing is reused, and an undo gives back what there was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.records import Mixture, Region, Verdict
from defuse_core.extensions.answers import answers_by_region, judge
from defuse_core.extensions.regions import RegionError, apply_edits, merge, region_of_mistakes, select, split
from defuse_core.method.classifier import Classifier
from defuse_core.method.distillation import membership
from defuse_core.method.vae import BetaVAE
from defuse_core.steps.base import tensors_file
from defuse_core.steps.source import Source
from defuse_core.workspace.edits import STRUCTURAL, Gaussian, RegionEdit, live_ids
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Workspace

MIN_WEIGHT = 0.01


def make_mixture(weights: Sequence[float], *, dim: int = 2, seed: int = 0) -> Mixture:
    """Components far apart, of random covariance."""
    rng = np.random.default_rng(seed)
    n = len(weights)
    factors = rng.normal(size=(n, dim, dim))
    covariances = factors @ factors.transpose(0, 2, 1) + 0.2 * np.eye(dim)
    return Mixture(np.array(weights), 6 * rng.normal(size=(n, dim)), covariances, True, 1, 0.0, 100)


FITTED = make_mixture([0.4, 0.3, 0.2, 0.0105, 0.005, 0.0845])


def codes_of(region: Region, n: int, *, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.multivariate_normal(region.mean, region.covariance, n))


def made_into(kind: str, gone: Sequence[Region], into: Sequence[Gaussian]) -> RegionEdit:
    return RegionEdit(kind, tuple(r.region_id for r in gone), tuple(into))


def facts(regions: Sequence[Region]) -> list[tuple[int, float, bytes, bytes]]:
    """All of regions, to compare them bit by bit."""
    return [(r.region_id, r.weight, r.mean.tobytes(), r.covariance.tobytes()) for r in regions]


def edit_at_random(mixture: Mixture, kind: str, draw: st.DataObject) -> RegionEdit | None:
    """An edit of this kind of some of the regions there are; None where there are too few."""
    regions = mixture.regions(MIN_WEIGHT)
    seed = draw.draw(st.integers(0, 9))
    if kind == "merge":
        if len(regions) < 2:
            return None
        gone = draw.draw(st.permutations(regions))[: draw.draw(st.integers(2, 3))]
        return made_into("merge", gone, [merge(mixture, gone)])
    region = draw.draw(st.sampled_from(regions))
    codes = codes_of(region, 12, seed=seed)
    if kind == "split":
        return made_into("split", [region], split(mixture, region, codes, seed=seed))
    return made_into("select", [], [select(mixture, codes, of=draw.draw(st.sampled_from([13, 40, 200])))])


@given(kinds=st.lists(st.sampled_from([*STRUCTURAL, "undo", "rename"]), max_size=6), draw=st.data())
def test_any_sequence_of_edits_and_undos_keeps_a_mixture(kinds: list[str], draw: st.DataObject) -> None:
    edits: list[RegionEdit] = []
    before: list[list[tuple[int, float, bytes, bytes]]] = []  # one an edit that counts, to go back to
    mixture = FITTED
    for kind in kinds:
        counting = [i for i, edit in enumerate(edits) if edit.kind in STRUCTURAL and not edit.undone]
        if kind == "rename":
            edits.append(RegionEdit("rename", (0,), name="loops"))
        elif kind != "undo":
            if edit := edit_at_random(mixture, kind, draw):
                before.append(facts(mixture.regions(MIN_WEIGHT)))
                edits.append(edit)
        elif counting:
            edits[counting[-1]] = replace(edits[counting[-1]], undone_by=99)
        mixture = apply_edits(FITTED, edits, min_weight=MIN_WEIGHT)
        if kind == "undo" and counting:
            assert facts(mixture.regions(MIN_WEIGHT)) == before.pop()
        check(mixture, edits)


def check(mixture: Mixture, edits: Sequence[RegionEdit]) -> None:
    """What holds of every edited mixture."""
    n = len(FITTED.weights)
    made = [gaussian.region_id for edit in edits for gaussian in edit.into]
    assert made == list(range(n, n + len(made))), "ids are used once, undone or not"
    assert len(mixture.weights) == len(mixture.means) == len(mixture.covariances) == n + len(made)
    assert mixture.weights.sum() == pytest.approx(1)
    assert mixture.weights.min() >= 0
    regions = mixture.regions(MIN_WEIGHT)
    found = [region.region_id for region in FITTED.regions(MIN_WEIGHT)]
    assert sorted(region.region_id for region in regions) == sorted(live_ids(found, edits))
    for region in regions:
        np.testing.assert_array_equal(region.mean, mixture.means[region.region_id])
        np.linalg.cholesky(region.covariance)
    assert (mixture.weights[list(mixture.kept)] > 0).all()
    codes = torch.from_numpy(np.concatenate([mixture.means, 9 * mixture.means]))
    assert set(membership(mixture, codes, min_weight=MIN_WEIGHT).tolist()) <= {
        -1, *(region.region_id for region in regions)
    }  # fmt: skip


def test_no_edits_change_nothing() -> None:
    assert facts(apply_edits(FITTED, []).regions(0.0)) == facts(FITTED.regions(0.0))


def test_what_a_person_makes_is_a_region_however_little_it_weighs() -> None:
    region = FITTED.regions()[0]
    light = select(FITTED, codes_of(region, 5) + 30, of=5000)
    assert light.weight == 0.001
    selection = made_into("select", [], [light])
    edited = apply_edits(FITTED, [selection])
    (*_, last) = edited.regions()
    assert (edited.kept, last.region_id) == ({6}, 6)
    assert membership(edited, torch.tensor([light.mean])).tolist() == [6]
    halves = split(edited, last, codes_of(region, 9), seed=0)
    assert apply_edits(FITTED, [selection, made_into("split", [last], halves)]).kept == {7, 8}


def test_a_mistake_stays_in_the_region_that_a_person_chose_for_it() -> None:
    regions = FITTED.regions()
    latents = torch.cat([codes_of(region, 20, seed=region.region_id) for region in regions])
    chosen = [0, 1, 2, 20, 21, 22, 23, 10**6]  # of two regions; the last is of no mistake
    edits = [
        RegionEdit("select", (), (select(FITTED, latents[chosen[:-1]], of=len(latents)),), tuple(chosen))
    ]

    def lying() -> list[int]:
        mixture = apply_edits(FITTED, edits, min_weight=MIN_WEIGHT)
        return region_of_mistakes(mixture, edits, latents, min_weight=MIN_WEIGHT).tolist()

    mixture = apply_edits(FITTED, edits, min_weight=MIN_WEIGHT)
    expected = membership(mixture, latents, min_weight=MIN_WEIGHT)
    expected[chosen[:-1]] = 6
    assert lying() == expected.tolist()
    merged = merge(mixture, [region for region in mixture.regions() if region.region_id in (0, 6)])
    edits.append(RegionEdit("merge", (0, 6), (merged,)))
    assert [lying()[i] for i in chosen[:-1]] == [7] * 7
    edits[1] = replace(edits[1], undone_by=99)
    assert lying() == expected.tolist()
    edits[0] = replace(edits[0], undone_by=99)
    assert lying() == membership(FITTED, latents, min_weight=MIN_WEIGHT).tolist()


@pytest.mark.parametrize("both", [True, False], ids=["both halves", "one half"])
def test_selected_mistakes_follow_a_split_whose_halves_are_merged_later(both: bool) -> None:
    latents = torch.cat([codes_of(region, 20) for region in FITTED.regions()[:2]])
    edits = [replace(made_into("select", [], [select(FITTED, latents, of=80)]), mistakes=tuple(range(40)))]

    def lying() -> tuple[Mixture, list[int]]:
        mixture = apply_edits(FITTED, edits, min_weight=MIN_WEIGHT)
        return mixture, region_of_mistakes(mixture, edits, latents, min_weight=MIN_WEIGHT).tolist()

    mixture, _ = lying()
    edits.append(RegionEdit("split", (6,), split(mixture, mixture.regions()[-1], latents, seed=0)))
    mixture, halves = lying()
    assert halves in ([7] * 20 + [8] * 20, [8] * 20 + [7] * 20)
    gone = (7, 8) if both else (0, 7)
    chosen = [region for region in mixture.regions() if region.region_id in gone]
    edits.append(RegionEdit("merge", gone, (merge(mixture, chosen),)))
    assert lying()[1] == [9 if half in gone else half for half in halves]


def test_a_selection_takes_its_weight_from_all_and_no_region_with_it() -> None:
    """Region 3 weighs 0.0105, just over the cut; after the selection a quarter less."""
    edit = made_into("select", [], [select(FITTED, codes_of(FITTED.regions()[0], 10), of=40)])
    edited = apply_edits(FITTED, [edit], min_weight=MIN_WEIGHT)
    np.testing.assert_allclose(edited.weights, [*0.75 * FITTED.weights, 0.25])
    assert {r.region_id for r in edited.regions()} == {0, 1, 2, 3, 5, 6}
    assert {r.region_id for r in apply_edits(FITTED, [edit]).regions()} == {0, 1, 2, 5, 6}


@pytest.mark.parametrize(
    "edit",
    [
        RegionEdit("merge", (0, 1), (Gaussian(5, 0.5, (0.0,) * 2, ((1.0, 0.0), (0.0, 1.0))),)),
        RegionEdit("merge", (0, 1), (Gaussian(7, 0.5, (0.0,) * 2, ((1.0, 0.0), (0.0, 1.0))),)),
        RegionEdit("merge", (0, 6), (Gaussian(6, 0.5, (0.0,) * 2, ((1.0, 0.0), (0.0, 1.0))),)),
        RegionEdit("merge", (0, 1), (Gaussian(6, 0.5, (0.0,), ((1.0,),)),)),
    ],
    ids=["an id that was used", "an id left out", "a region that does not exist", "another latent_dim"],
)
def test_an_edit_of_another_mixture_is_refused(edit: RegionEdit) -> None:
    told = r"(does not fit a mixture of 6 components|its mean has 1 values, the mixture has 2 dim).*distill$"
    with pytest.raises(RegionError, match=told):
        apply_edits(FITTED, [edit])


# Merge


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_merge_has_the_mean_and_covariance_of_the_mixture_of_its_parts(seed: int) -> None:
    mixture = make_mixture([0.5, 0.3, 0.2], dim=3, seed=seed)
    parts = mixture.regions()[1:]
    merged = merge(mixture, parts)
    shares = np.array([0.6, 0.4])  # of 0.3 and 0.2
    second = sum(
        s * (p.covariance + np.outer(p.mean, p.mean)) for s, p in zip(shares, parts, strict=True)
    )  # E[zzᵀ]
    mean = sum(s * p.mean for s, p in zip(shares, parts, strict=True))
    np.testing.assert_allclose(merged.mean, mean)
    np.testing.assert_allclose(merged.covariance, second - np.outer(mean, mean))
    assert (merged.region_id, merged.weight) == (3, pytest.approx(0.5))


def test_a_merge_is_what_a_sample_of_its_parts_shows() -> None:
    parts = FITTED.regions()[:3]
    merged = merge(FITTED, parts)
    codes = torch.cat([codes_of(part, round(100_000 * part.weight)) for part in parts]).numpy()
    scale = np.sqrt(np.diag(merged.covariance))
    np.testing.assert_allclose(codes.mean(0), merged.mean, atol=0.02 * scale.max())
    np.testing.assert_allclose(np.cov(codes.T), merged.covariance, atol=0.02 * scale.max() ** 2)


def test_a_merge_does_not_depend_on_the_order_and_takes_a_region_once() -> None:
    first, second, third = FITTED.regions()[:3]
    expected = merge(FITTED, [first, second, third])
    for order in ([third, first, second], [first, second, first, third]):
        found = merge(FITTED, order)
        assert found.weight == pytest.approx(expected.weight)
        np.testing.assert_allclose(found.mean, expected.mean)
        np.testing.assert_allclose(found.covariance, expected.covariance)


@pytest.mark.parametrize("n", [0, 1])
def test_a_merge_takes_two_regions(n: int) -> None:
    region = FITTED.regions()[0]
    for regions in ([region][:n], [region, region] * n):
        with pytest.raises(ValueError, match=f"takes two regions or more, got {n}; choose another one, too"):
            merge(FITTED, regions)


# Split


def two_clusters(n: int) -> Tensor:
    """Three in four codes around (0, 0), the others around (20, 0)."""
    codes = np.random.default_rng(0).normal(size=(n, 2))
    codes[::4, 0] += 20
    return torch.from_numpy(codes).float()


def test_a_split_finds_two_clear_clusters_the_heavier_one_first() -> None:
    region = Region(2, 0.2, np.array([5.0, 0.0]), np.diag([76.0, 1.0]))
    heavy, light = split(FITTED, region, two_clusters(800), seed=0)
    assert (heavy.region_id, light.region_id) == (6, 7)
    assert (heavy.weight, light.weight) == (pytest.approx(0.15), pytest.approx(0.05))
    for found, centre in ((heavy, (0, 0)), (light, (20, 0))):
        np.testing.assert_allclose(found.mean, centre, atol=0.3)
        np.testing.assert_allclose(found.covariance, np.eye(2), atol=0.3)


def test_equal_seeds_split_alike() -> None:
    region = Region(2, 0.2, np.zeros(2), np.eye(2))
    codes = torch.from_numpy(np.random.default_rng(1).uniform(size=(60, 2)))
    assert split(FITTED, region, codes, seed=0) == split(FITTED, region, codes, seed=0)
    assert any(
        split(FITTED, region, codes, seed=0) != split(FITTED, region, codes, seed=s) for s in range(1, 9)
    )


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_mistakes_are_not_split(n: int) -> None:
    region = FITTED.regions()[0]
    with pytest.raises(ValueError, match=f"at least 6 mistakes .* this one has {n}; leave it whole"):
        split(FITTED, region, codes_of(region, 9)[:n], seed=0)
    assert len(split(FITTED, region, codes_of(region, 6), seed=0)) == 2


# Select


@pytest.mark.parametrize("n", [2, 3, 7, 9, 300])
@pytest.mark.parametrize("alike", [False, True])
def test_a_selection_is_positive_definite_with_fewer_codes_than_dimensions(n: int, alike: bool) -> None:
    codes = torch.from_numpy(np.random.default_rng(0).normal(size=(n, 8))).float()
    codes = codes[:1].expand(n, 8) if alike else codes
    made = select(make_mixture([1.0], dim=8), codes, of=1000)
    covariance = np.array(made.covariance)
    assert np.linalg.eigvalsh(covariance).min() > 1e-7
    np.linalg.cholesky(covariance)
    np.testing.assert_array_equal(covariance, covariance.T)
    np.testing.assert_allclose(made.mean, codes.double().mean(0), atol=1e-12)
    assert made.weight == n / 1000


def test_a_selection_of_many_codes_has_their_covariance() -> None:
    region = FITTED.regions()[0]
    made = select(FITTED, codes_of(region, 50_000), of=100_000)
    np.testing.assert_allclose(made.covariance, region.covariance, rtol=0.05, atol=0.02)


def test_a_selection_of_all_leaves_something_for_the_others() -> None:
    assert select(FITTED, codes_of(FITTED.regions()[0], 30), of=30).weight == 0.99


@pytest.mark.parametrize("n", [0, 1])
def test_a_selection_is_of_two_mistakes(n: int) -> None:
    with pytest.raises(ValueError, match=f"two mistakes or more, got {n}; select more"):
        select(FITTED, torch.zeros(n, 2), of=10)


# What runs see of edits

PLACES: NDArray[np.float64] = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with a distill run, number 1, of three regions, all ten draws of which are labelled."""
    made = Workspace(tmp_path / "home", durable=False)
    made.create_project("project", dataset={})
    run = made.runs.add(1, "distill", {"min_weight": 0.01}, seed=0, resources=Resources())
    mixture = Mixture(np.array([0.5, 0.3, 0.2]), PLACES, np.stack(3 * [0.1 * np.eye(4)]), True, 1, 0.0, 9)
    arrays = {name: torch.from_numpy(getattr(mixture, name)) for name in ("weights", "means", "covariances")}
    fit = {"converged": True, "n_iter": 1, "lower_bound": 0.0, "n_codes": 9}
    file = tensors_file("mixture", arrays, fit=fit)
    assert set(safetensors.torch.load(file.content)) == set(arrays)
    made.runs.name_artifact(run.id, made.store_artifact(run.id, file.name, file.content))
    made.annotations.append(1, [LabelEvent(k, "Ada", k, s) for k in range(3) for s in range(10)])
    return made


def verdicts(source: Source, classifier: Classifier, vae: BetaVAE, *, up_to: int | None) -> list[Verdict]:
    """What is made of the labels, as a correction does it."""
    answers = answers_by_region(source.labels(up_to=up_to))
    return judge(classifier, vae, source.regions(), answers, disagreement_threshold=0.5)


def corrected(workspace: Workspace) -> Run:
    """A correction that takes the labels and edits that there are now."""
    run = workspace.runs.add(1, "correct", {}, seed=0, resources=Resources(), upstream=[1])
    workspace.runs.fix_labels(run.id, workspace.annotations.last_id(1))
    workspace.runs.finish(run.id, "done")
    return run


def test_labels_of_merged_regions_do_not_count_until_the_merge_is_undone(
    workspace: Workspace, trained_classifier: Classifier, trained_vae: BetaVAE
) -> None:
    def told() -> list[Verdict]:
        return verdicts(Source(workspace, 1), trained_classifier, trained_vae, up_to=None)

    before = told()
    assert [(v.region_id, v.label, v.n_kept) for v in before] == [(0, 0, 10), (1, 1, 10), (2, 2, 10)]
    source = Source(workspace, 1)
    parts = [region for region in source.regions() if region.region_id != 1]
    workspace.annotations.edit(1, made_into("merge", parts, [merge(source.mixture(), parts)]), after=0)
    assert [(r.region_id, round(r.weight, 9)) for r in Source(workspace, 1).regions()] == [(3, 0.7), (1, 0.3)]
    assert told() == before[1:2], "the new region has no label"
    workspace.annotations.append(1, [LabelEvent(3, "Ada", 2)])
    assert [(v.region_id, v.label, v.n_kept) for v in told()] == [(3, 2, 10), (1, 1, 10)]
    workspace.annotations.undo_edit(1)
    assert told() == before


def test_a_correction_sees_the_regions_that_there_were_when_it_began(
    workspace: Workspace, trained_classifier: Classifier, trained_vae: BetaVAE
) -> None:
    first = corrected(workspace)
    source = Source(workspace, 1)
    parts = source.regions()[:2]
    workspace.annotations.edit(1, made_into("merge", parts, [merge(source.mixture(), parts)]))
    second = corrected(workspace)
    workspace.annotations.undo_edit(1)
    seen = {
        run.id: [v.region_id for v in verdicts(
            Source(workspace, run.id), trained_classifier, trained_vae,
            up_to=workspace.runs.get(run.id).last_annotation,
        )]
        for run in (first, second, corrected(workspace))
    }  # fmt: skip
    assert list(seen.values()) == [[0, 1, 2], [2], [0, 1, 2]]
    assert [r.region_id for r in Source(workspace, second.id).regions()] == [3, 2]
