"""What the pages are shown of regions, against the core's own results on the same workspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from dashboard.shared.region_data import (
    SEED,
    TAUS,
    Draws,
    Painter,
    Regions,
    ask_annotators,
    find_regions,
)
from defuse_core.base.config import PRESETS, LabelingConfig, VaeConfig
from defuse_core.base.records import Mixture, Region
from defuse_core.extensions.answers import answers_by_region, judge
from defuse_core.extensions.regions import merge, select, split
from defuse_core.extensions.shipped import load_annotators
from defuse_core.method.classifier import Classifier, Preprocessing, predict
from defuse_core.method.distillation import membership
from defuse_core.method.labeling import (
    collect_votes,
    draw_images,
    draw_strip,
    simulate_annotators,
)
from defuse_core.method.vae import BetaVAE
from defuse_core.steps.annotators import find_annotators
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import AnnotationConfig
from defuse_core.workspace.edits import Gaussian, RegionEdit, live_ids
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Workspace
from tests.apps import decode
from tests.in_process import done_here
from tests.workspaces import Place

Value = TypeVar("Value")


def now(value: Value) -> Future[Value]:
    """What is there already."""
    future: Future[Value] = Future()
    future.set_result(value)
    return future


@pytest.fixture(scope="module")
def source(template: Path) -> Source:
    """The template's regions, classifier and generator; its labels are read only."""
    workspace = Workspace(template)
    run = workspace.runs.latest(1, "distill")
    assert run is not None
    return Source(workspace, run.id)


@pytest.fixture(scope="module")
def painter(source: Source) -> Painter:
    regions = find_regions(source.workspace, source.run.id)
    return Painter(now(source.classifier()), now(source.vae()), now(regions))


def test_the_paper_values_of_tau_can_be_chosen() -> None:
    assert {preset.labeling.tau for preset in PRESETS.values()} | {LabelingConfig().tau} <= set(TAUS)
    assert list(TAUS) == sorted(set(TAUS))


def test_a_strip_is_that_of_the_core(source: Source, painter: Painter) -> None:
    classifier, vae = source.classifier(), source.vae()
    for region in source.regions()[::4]:
        sprite = painter.make_strip(region.region_id)
        images, predictions = draw_strip(classifier, vae, region, taus=TAUS, n=64, seed=SEED)
        assert tuple(sprite.taus) == TAUS
        np.testing.assert_array_equal(sprite.predictions, predictions)
        sheet = decode(sprite.url)[..., 0]
        assert sheet.shape == (len(TAUS) * 8, 64 * 8)
        cells = sheet.reshape(len(TAUS), 8, 64, 8).transpose(0, 2, 1, 3)  # (n_taus, n, height, width)
        np.testing.assert_array_equal(cells, images[:, :, 0])


def test_what_is_labelled_is_what_the_strip_shows(source: Source, painter: Painter) -> None:
    for region in source.regions()[:3]:
        sprite = painter.make_strip(region.region_id)
        sheet = decode(sprite.url)[..., 0].reshape(len(TAUS), 8, 64, 8).transpose(0, 2, 1, 3)
        for tau, n in ((0.5, 10), (0.01, 1), (2.0, 64)):
            draws, row = painter.draw(region.region_id, tau, n), TAUS.index(tau)
            assert draws.images.shape == (n, 8, 8, 1)
            shown = sheet[row, :n].astype(int)
            assert np.abs(draws.images[..., 0] - shown).max() <= 1  # batches of other sizes round otherwise
            assert (draws.predictions == sprite.predictions[row, :n]).mean() >= 0.9


def test_draws_are_those_of_the_core(source: Source, painter: Painter) -> None:
    region = source.regions()[1]
    draws = painter.draw(region.region_id, 0.7, 12)
    images = draw_images(source.vae(), region, 12, tau=0.7, seed=SEED)
    np.testing.assert_array_equal(draws.images, images.permute(0, 2, 3, 1))
    np.testing.assert_array_equal(draws.predictions, predict(source.classifier(), images))


def test_large_images_come_in_fewer_draws() -> None:
    config = VaeConfig(image_size=68, padding=0, hidden_channels=1, depth=2, hidden_units=4, latent_dim=2)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(68 * 68, 3))
    classifier = Classifier(network, Preprocessing(mean=(0.0,), std=(1.0,))).eval()
    region = Region(4, 1.0, np.zeros(2), np.eye(2))
    mixture = Mixture(np.ones(5), np.zeros((5, 2)), np.stack([np.eye(2)] * 5), True, 1, 0.0, 9)
    regions = Regions(mixture, [region], np.zeros(9, dtype=np.int64))
    sprite = Painter(now(classifier), now(BetaVAE(config).eval()), now(regions)).make_strip(4)
    assert sprite.predictions.shape == (len(TAUS), 16)
    assert decode(sprite.url).shape == (len(TAUS) * 68, 16 * 68, 1)


# Verdicts


def test_verdicts_are_those_of_the_core(source: Source, painter: Painter) -> None:
    events = source.labels(up_to=None)
    found = painter.reach_verdicts(events, rho=0.5)
    judged = judge(
        source.classifier(), source.vae(), source.regions(), answers_by_region(events),
        disagreement_threshold=0.5,
    )  # fmt: skip
    assert found == {verdict.region_id: verdict for verdict in judged}
    assert list(found) == [region.region_id for region in source.regions()]
    for region in source.regions():  # and as one would count by hand
        images = draw_images(source.vae(), region, 10, tau=0.5, seed=0)
        said = predict(source.classifier(), images).tolist()
        labels = {e.sample_id: e.label for e in events if e.region_id == region.region_id}
        wrong = sum(labels[i] != said[i] for i in range(10))
        verdict = found[region.region_id]
        assert (verdict.error.estimate, verdict.error.n) == (wrong / 10, 10)
        assert verdict.is_failure == (wrong > 5)


def test_a_verdict_is_on_the_draws_that_were_labelled_last(source: Source, painter: Painter) -> None:
    region = source.regions()[-1]
    first = [LabelEvent(region.region_id, "Ada", 0, None, 0.5, 0, 10)]
    later = [LabelEvent(region.region_id, "Ada", 1, None, 2.0, 0, 7)]
    images = draw_images(source.vae(), region, 7, tau=2.0, seed=0)
    wrong = int((predict(source.classifier(), images) != 1).sum())
    (verdict,) = painter.reach_verdicts([*first, *later], rho=0.5).values()
    assert (verdict.error.n, round(verdict.error.estimate * 7)) == (7, wrong)
    assert painter.reach_verdicts([], rho=0.5) == {}


def of_the_core(
    annotators: dict[str, Classifier], draws: Draws, region_id: int, *, threshold: float | None = None
) -> list[list[int | None]]:
    """What annotators answer on draws, through the core alone."""
    pixels = torch.from_numpy(draws.images).permute(0, 3, 1, 2)
    threshold = AnnotationConfig().min_probability if threshold is None else threshold
    answers = simulate_annotators(annotators, pixels, region_id=region_id, threshold=threshold)
    return collect_votes(answers, len(pixels))


def test_shipped_annotators_answer_as_the_step_lets_them(source: Source) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1)).astype(np.uint8)
    draws = Draws(images, np.zeros(4, dtype=np.int64))
    votes = ask_annotators(source.workspace, source.run.id, None, now(draws))
    assert votes == of_the_core(load_annotators(), draws, 7)
    assert [len(of_image) for of_image in votes] == [5] * 4
    assert {label for of_image in votes for label in of_image} <= {None, *range(10)}


def test_annotators_trained_on_the_project_answer_as_the_step_lets_them(place: Place) -> None:
    run = done_here(place, "annotators", {"training": {"epochs": 1, "batch_size": 64}}, seed=2)
    source = Source(place.workspace, run.id)
    images = source.dataset.train.images[:6].permute(0, 2, 3, 1).numpy()
    draws = Draws(images, np.zeros(6, dtype=np.int64))
    regions = regions_of(place)[1]
    votes = ask_annotators(place.workspace, regions.id, run.id, now(draws))
    assert votes == of_the_core(find_annotators(source), draws, 3)
    assert [len(of_image) for of_image in votes] == [5] * 6
    done_here(place, "annotate", {"min_probability": 0.999, "n_single": 0})
    again = ask_annotators(place.workspace, regions.id, run.id, now(draws))
    assert again == of_the_core(find_annotators(source), draws, 3, threshold=0.999) != votes


# Regions, as found and as edited


def regions_of(place: Place) -> tuple[Regions, Run]:
    run = place.workspace.runs.latest(place.project.id, "distill")
    assert run is not None
    return find_regions(place.workspace, run.id), run


def facts(regions: Regions) -> list[tuple[int, float, bytes]]:
    return [(r.region_id, r.weight, r.mean.tobytes() + r.covariance.tobytes()) for r in regions.found]


def test_regions_are_those_of_the_core(source: Source) -> None:
    regions = find_regions(source.workspace, source.run.id)
    expected = source.mixture().regions(source.run.config["min_weight"])
    assert regions.ids == [region.region_id for region in expected]
    assert [r.weight for r in regions.found] == sorted((r.weight for r in expected), reverse=True)
    np.testing.assert_array_equal(regions.membership, membership(source.mixture(), source.mistakes().latents))
    by_region = {row["region_id"]: row["mistakes"] for row in source.run.summary["regions"]}
    assert {i: int((regions.membership == i).sum()) for i in regions.ids} == by_region
    assert regions[regions.ids[2]] is regions.found[2]


def test_regions_are_of_the_cut_off_that_they_were_distilled_with(place: Place) -> None:
    run = done_here(place, "distill", {"n_components": 6, "min_weight": 0.15, "max_codes": 300})
    regions, source = find_regions(place.workspace, run.id), Source(place.workspace, run.id)
    fitted = source.mixture()
    assert sorted(regions.ids) == np.nonzero(fitted.weights > 0.15)[0].tolist()
    every = membership(fitted, source.mistakes().latents, min_weight=0.0).numpy()
    np.testing.assert_array_equal(regions.membership, np.where(np.isin(every, regions.ids), every, -1))
    assert 0 < int((regions.membership < 0).sum()) < len(every)


Make = Callable[[Regions, torch.Tensor], tuple[Sequence[int], Sequence[Gaussian]]]


def merged(regions: Regions, _latents: torch.Tensor) -> tuple[Sequence[int], Sequence[Gaussian]]:
    gone = regions.ids[1:3]
    return gone, [merge(regions.mixture, [regions[i] for i in gone])]


def halved(regions: Regions, latents: torch.Tensor) -> tuple[Sequence[int], Sequence[Gaussian]]:
    gone = regions.ids[3]
    inside = latents[torch.from_numpy(regions.membership == gone)]
    return [gone], split(regions.mixture, regions[gone], inside, seed=0)


@pytest.mark.parametrize(("kind", "make"), [("merge", merged), ("split", halved)])
def test_regions_follow_an_edit_and_its_undo(place: Place, kind: str, make: Make) -> None:
    before, run = regions_of(place)
    latents = Source(place.workspace, run.id).mistakes().latents
    gone, into = make(before, latents)
    edit = RegionEdit(kind, tuple(gone), tuple(into))
    place.workspace.annotations.edit(run.id, edit)
    after, _ = regions_of(place)
    new = [made.region_id for made in into]
    assert sorted(after.ids) == sorted({*before.ids, *new} - set(gone))
    assert sorted(after.ids) == sorted(live_ids(before.ids, place.workspace.annotations.edits(run.id)))
    assert [r.weight for r in after.found] == sorted((r.weight for r in after.found), reverse=True)
    np.testing.assert_array_equal(
        after.membership, membership(Source(place.workspace, run.id).mixture(), latents)
    )
    assert set(after.membership.tolist()) <= {-1, *after.ids}
    assert not np.isin(after.membership, gone).any()
    moved = np.isin(before.membership, gone)
    assert np.isin(after.membership[moved], new).mean() > 0.9  # a merged ellipse is wider than its parts
    for made in into:
        np.testing.assert_array_equal(after[made.region_id].mean, made.mean)
    place.workspace.annotations.undo_edit(run.id)
    again, _ = regions_of(place)
    assert facts(again) == facts(before)
    np.testing.assert_array_equal(again.membership, before.membership)


def test_a_rename_or_another_tau_changes_no_region(place: Place) -> None:
    before, run = regions_of(place)
    for edit in (
        RegionEdit("rename", (before.ids[0],), name="loops"),
        RegionEdit("tau", (before.ids[0],), tau=0.1),
    ):
        place.workspace.annotations.edit(run.id, edit)
    after, _ = regions_of(place)
    assert facts(after) == facts(before)
    np.testing.assert_array_equal(after.membership, before.membership)


def test_chosen_mistakes_are_in_the_region_that_was_made_of_them(place: Place) -> None:
    before, run = regions_of(place)
    latents = Source(place.workspace, run.id).mistakes().latents
    chosen = np.nonzero(before.membership == before.ids[0])[0][:2].tolist()
    chosen += np.nonzero(before.membership == before.ids[-1])[0][:1].tolist()
    made = select(before.mixture, latents[chosen], of=len(latents))
    place.workspace.annotations.edit(run.id, RegionEdit("select", (), (made,), tuple(chosen)))
    after, _ = regions_of(place)
    assert sorted(after.ids) == sorted([*before.ids, made.region_id])
    assert (after.membership[chosen] == made.region_id).all()
    others = np.setdiff1d(np.arange(len(latents)), chosen)
    core = membership(Source(place.workspace, run.id).mixture(), latents).numpy()
    np.testing.assert_array_equal(after.membership[others], core[others])
    place.workspace.annotations.undo_edit(run.id)
    assert facts(regions_of(place)[0]) == facts(before)
