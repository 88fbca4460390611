"""The second round, as the correct page shows it: by real runs on shapes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from defuse_core.base.records import FailureInstances
from defuse_core.jobs import launcher
from defuse_core.method.classifier import predict
from defuse_core.method.distillation import membership
from defuse_core.steps.second_round import compare
from defuse_core.steps.source import Source
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.pipeline import SECOND_ROUND, next_round, next_step, stages
from defuse_core.workspace.runs import Run
from tests.in_process import done_here, store_run
from tests.workspaces import ONE_THREAD, SEARCH, SWEEP, Place, copy_place


@pytest.fixture(scope="module")
def there(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = copy_place(template, tmp_path_factory.mktemp("rounds") / "home")
    correction = {**SWEEP["correction"], "lambdas": [1.0], "held_out_share": 0.4}
    done_here(place, "correct", {**SWEEP, "correction": correction, "baseline_lambdas": []})
    return place


@pytest.fixture(scope="module")
def run(there: Place) -> Run:
    found = there.workspace.runs.latest(there.project.id, "correct")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def second(there: Place, run: Run) -> dict[str, Run]:
    """Every step of the second round, done."""
    done_here(there, "classifier", {"weights": f"corrected:{run.id}"})
    done_here(there, "identify", {**SEARCH, "n_perturbations": 12})
    done_here(there, "distill", {"n_components": 12})
    return next_round(there.workspace, run)


def test_a_second_round_is_found_by_what_it_began_with(
    there: Place, run: Run, second: dict[str, Run]
) -> None:
    assert list(second) == list(SECOND_ROUND)
    for step, ground in zip(SECOND_ROUND[1:], SECOND_ROUND, strict=False):
        assert second[ground].id in second[step].upstream
    first = there.workspace.runs.ancestry(run.id)
    assert all(second[step].id != first[step].id for step in second)
    other = Run(**{**vars(run), "id": 999})
    assert next_round(there.workspace, other) == {}


def test_regions_are_followed_by_their_draws_and_by_the_search(
    there: Place, run: Run, second: dict[str, Run]
) -> None:
    rounds = compare(there.workspace, run.id, {s: second[s].id for s in ("identify", "distill")})
    source, later = Source(there.workspace, run.id), Source(there.workspace, second["distill"].id)
    before, after = source.classifier(), later.classifier()
    stored = there.tensors(run)["failures.safetensors"]
    drawn = {
        name: FailureInstances(*(stored[f"{name}.{part}"] for part in ("images", "labels", "ids")))
        for name in ("test", "held_out")
    }
    assert len(drawn["held_out"])
    ids = torch.cat([failures.region_ids for failures in drawn.values()]).unique().tolist()
    assert sorted(now.region_id for now in rounds.regions) == ids
    first, found = source.mistakes(), later.mistakes()
    assert (rounds.n_before, rounds.n_after) == (len(first), len(found))
    where = [membership(source.mixture(), m.latents, min_weight=0.01).numpy() for m in (first, found)]
    for now in rounds.regions:
        mine = next(f.regions([now.region_id]) for f in drawn.values() if now.region_id in f.region_ids)
        for classifier, told in ((before, now.before), (after, now.after)):
            wrong = predict(classifier, mine.images) != mine.labels
            assert (told.estimate, told.n) == (float(wrong.double().mean()), len(mine))
        (label,) = mine.labels.unique().tolist()
        counts = [
            int(((inside == now.region_id) & (m.predictions.numpy() != label)).sum())
            for inside, m in zip(where, (first, found), strict=True)
        ]
        assert [now.n_before, now.n_after] == counts
    regions = membership(later.mixture(), found.latents, min_weight=0.01).numpy()
    assert {f.region_id: f.n_mistakes for f in rounds.found} == {
        int(i): int((regions == i).sum()) for i in np.unique(regions) if i >= 0
    }


def test_before_it_is_distilled_nothing_is_new(there: Place, run: Run, second: dict[str, Run]) -> None:
    rounds = compare(there.workspace, run.id, {"identify": second["identify"].id})
    assert rounds.found == []
    assert rounds.regions


def test_neither_round_makes_the_other_stale(there: Place, run: Run, second: dict[str, Run]) -> None:
    assert not any(r.stale for r in there.workspace.runs.of_project(there.project.id))
    assert second["classifier"].summary["corrected"]["lam"] == run.summary["corrected"]["chosen"]["lam"]
    found = {stage.step: stage for stage in stages(there.workspace, there.project.id)}
    assert [found[step].state for step in ("classifier", "vae", "identify", "distill")] == ["done"] * 4
    assert [found[step].state for step in ("annotate", "correct", "evaluate")] == ["missing"] * 3
    assert next_step(list(found.values())) == "annotate"


def test_a_generator_trained_in_between_is_left_out_of_the_second_round(
    there: Place, run: Run, second: dict[str, Run], tmp_path: Path
) -> None:
    place = copy_place(there.workspace.home, tmp_path / "home")
    first = place.workspace.runs.ancestry(run.id)
    classifier = place.get(second["classifier"])
    other = store_run(place, "vae", {})
    for step in ("identify", "control", "probe"):
        found = launcher.find_upstream(place.workspace, place.project.id, step)
        assert {name: each.id for name, each in found.items()} == {
            "classifier": classifier.id, "vae": first["vae"].id,
        }  # fmt: skip
    fixed = launcher.find_upstream(place.workspace, place.project.id, "identify", fixed=[other])
    assert fixed["vae"].id == other.id
    ids = [classifier.id, other.id]
    mixed = place.workspace.runs.add(
        place.project.id, "identify", {}, seed=0, resources=ONE_THREAD, upstream=ids
    )
    assert next_round(place.workspace, run)["identify"].id == second["identify"].id
    with pytest.raises(
        WorkspaceError, match=rf"search {mixed.id} used generator {other.id}, the first round "
    ):
        compare(place.workspace, run.id, {"identify": mixed.id})


def test_a_first_round_takes_the_newest_generator(template: Path, tmp_path: Path) -> None:
    place = copy_place(template, tmp_path / "home")
    newest = store_run(place, "vae", {})
    found = launcher.find_upstream(place.workspace, place.project.id, "identify")
    assert found["vae"].id == newest.id


def test_a_round_on_a_correction_that_went_on_is_stale(
    there: Place, run: Run, second: dict[str, Run], tmp_path: Path
) -> None:
    place = copy_place(there.workspace.home, tmp_path / "home")
    place.workspace.runs.requeue(run.id, config=run.config)  # as launcher.extend does
    place.workspace.runs.hand_over(run.id, os.getpid())
    place.workspace.runs.start(run.id, {})
    place.workspace.runs.finish(run.id, "done", summary=run.summary)
    assert all(place.get(found).stale for found in second.values())
    assert not place.get(run).stale
