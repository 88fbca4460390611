"""The step `correct` as a run: what is measured, repeated, chosen, grown, and corrected a second time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from defuse_core.base.intervals import Interval
from defuse_core.base.records import FailureInstances, SweepPoint
from defuse_core.base.runtime import derive_seed
from defuse_core.data.splits import stratified_sample
from defuse_core.jobs import launcher
from defuse_core.method.correction import apply_point, choose_point, find_flips, tune
from defuse_core.method.evaluation import score_failures, score_split
from defuse_core.steps import load_step
from defuse_core.steps.correct import BEFORE, SAID, Correct, task_of
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import ConfigError, check_config, check_growth
from defuse_core.workspace.configs import SweepConfig
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.runs import Run
from tests.in_process import add_run, done_here, run_here, runs_in_this_process
from tests.workspaces import SWEEP, Place, copy_place, verify

LAMBDAS = [0.1, 1.0]
QUICK = {
    "correction": {**SWEEP["correction"], "max_images": None, "lambdas": LAMBDAS, "epochs": 1},
    "baseline_lambdas": [1.0],
    "n_seeds": 2,
}


@pytest.fixture(scope="module")
def there(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return copy_place(template, tmp_path_factory.mktemp("corrected") / "home")


@pytest.fixture(scope="module")
def run(there: Place) -> Run:
    return done_here(there, "correct", QUICK)


def sets_of(place: Place, run: Run) -> dict[str, FailureInstances]:
    stored = place.tensors(run)["failures.safetensors"]
    return {
        name: FailureInstances(*(stored[f"{name}.{part}"] for part in ("images", "labels", "ids")))
        for name in ("tune", "test", "single")
    }


def test_the_classifier_is_measured_before_it_is_tuned(there: Place, run: Run) -> None:
    source, before = Source(there.workspace, run.id), run.summary["before"]
    classifier, sets = source.classifier(), sets_of(there, run)
    assert before["test"] == list(vars(score_split(classifier, source.dataset.test)).values())
    assert before["region"] == list(vars(score_failures(classifier, sets["test"])).values())
    assert before["tuned"] == score_failures(classifier, sets["tune"]).estimate
    assert source.dataset.validation is not None
    assert before["validation"] == list(vars(score_split(classifier, source.dataset.validation)).values())
    assert before["selection"] == run.summary["before_selection"] == before["validation"][0]
    assert (before["lam"], before["epoch"]) == (None, 0)
    events = there.workspace.runs.events(run.id, kind="point")
    assert [e.data for e in events if e.task == BEFORE] == [before]


def test_repeats_differ_in_their_seed_alone(there: Place, run: Run) -> None:
    source, sets = Source(there.workspace, run.id), sets_of(there, run)
    config = SweepConfig.model_validate(QUICK).correction
    points = run.summary["corrected"]["points"]
    assert [(p["lam"], p["repeat"]) for p in points] == [(lam, r) for lam in LAMBDAS for r in (0, 1)]
    for p in points:
        expected = tune(
            source.classifier(), source.dataset.train, sets["tune"], lam=p["lam"], config=config,
            seed=derive_seed(0, "repeat", 1) if p["repeat"] else 0, selection=source.dataset.selection,
        )  # fmt: skip
        assert (p["selection"], p["tuned"]) == (expected.selection_accuracy, expected.tuned_accuracy)
        tuned = apply_point(source.classifier(), expected)
        flips = find_flips(source.classifier(), tuned, source.dataset.test)
        assert (p["fixed"], p["broken"]) == (len(flips.fixed), len(flips.broken))
    files = there.tensors(run)
    first, second = (files[f"{task_of(0.1)}{end}.safetensors"] for end in ("", "/repeat=1"))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert [p["repeat"] for p in run.summary["baseline"]["points"]] == [0, 1]


def test_what_is_said_of_every_image_is_kept(there: Place, run: Run) -> None:
    source, sets, files = Source(there.workspace, run.id), sets_of(there, run), there.tensors(run)
    labels = {"test": source.dataset.test.labels, "region": sets["test"].labels}
    told = {task_of(p["lam"]): p for p in run.summary["corrected"]["points"] if p["repeat"] == 0}
    for task, p in {**told, BEFORE: run.summary["before"]}.items():
        said = files[f"{task}{SAID}.safetensors"]
        assert said.keys() == {"test", "region", "validation"}
        for name, right in labels.items():
            hits = int((said[name] == right).sum())
            assert p[name] == list(vars(Interval.wilson(hits, len(right))).values())
    was, now = (files[f"{task}{SAID}.safetensors"]["test"] for task in (BEFORE, task_of(1.0)))
    assert int(((was != labels["test"]) & (now == labels["test"])).sum()) == told["lam=1"]["fixed"]


def test_lambda_is_chosen_by_its_mean_over_repeats_and_the_first_is_kept(there: Place, run: Run) -> None:
    points = run.summary["corrected"]["points"]
    means = [
        SweepPoint(
            lam, 0,
            float(np.mean([p["selection"] for p in points if p["lam"] == lam])),
            float(np.mean([p["tuned"] for p in points if p["lam"] == lam])), {},
        )
        for lam in LAMBDAS
    ]  # fmt: skip
    best = choose_point(means, rule="regions", before=run.summary["before_selection"], max_loss=0.01)
    chosen = run.summary["corrected"]["chosen"]
    assert (chosen["lam"], chosen["repeat"]) == (best.lam, 0)
    files = there.tensors(run)
    kept = files[f"{task_of(best.lam)}.safetensors"]
    assert all(torch.equal(files["corrected.safetensors"][name], t) for name, t in kept.items())


def test_a_mean_outweighs_a_lucky_first(there: Place, run: Run) -> None:
    step = load_step(there.workspace, run.id)
    assert isinstance(step, Correct)
    step.config = step.config.model_copy(update={"rule": "paper"})
    measured = {
        f"lam={lam}/repeat={r}" if r else f"lam={lam}": {
            "lam": lam, "repeat": r, "selection": s, "tuned": 0.5,
        }
        for lam, r, s in ((1, 0, 0.9), (1, 1, 0.5), (2, 0, 0.8), (2, 1, 0.8))
    }  # fmt: skip
    assert step._choose(measured, 0.9) == "lam=2"
    del measured["lam=2"]  # cancelled: its weights would be another repeat's
    assert step._choose(measured, 0.9) == "lam=1"
    assert step._choose({"lam=2/repeat=1": measured["lam=2/repeat=1"]}, 0.9) is None


def test_without_regions_is_a_control_and_never_chosen(there: Place, run: Run) -> None:
    step = load_step(there.workspace, run.id)
    assert isinstance(step, Correct)
    zero, one = ({"lam": lam, "repeat": 0, "selection": s, "tuned": s} for lam, s in ((0.0, 0.9), (1.0, 0.5)))
    assert step._choose({"lam=0": zero, "lam=1": one}, 0.9) == "lam=1"
    assert step._choose({"lam=0": zero}, 0.9) == "lam=0"  # nothing else was asked for


def test_only_the_regions_chosen_are_tuned_on(there: Place, run: Run) -> None:
    ids = sorted(set(sets_of(there, run)["tune"].region_ids.tolist()))
    assert len(ids) > 1
    one = done_here(there, "correct", {**QUICK, "regions": ids[:1], "n_seeds": 1})
    assert set(sets_of(there, one)["tune"].region_ids.tolist()) == {ids[0]}
    assert set(sets_of(there, one)["test"].region_ids.tolist()) == {ids[0]}
    wrong = run_here(there, "correct", {**QUICK, "regions": [ids[0], 999]})
    assert wrong.status == "failed"
    assert wrong.error == (
        f"regions must be failure regions, got [999]; there are: {', '.join(map(str, ids))}"
    )


def test_another_optimiser_tunes_otherwise(there: Place, run: Run) -> None:
    correction = {**QUICK["correction"], "lambdas": [1.0], "optimizer": "sgd", "learning_rate": 0.01}
    other = done_here(there, "correct", {**QUICK, "correction": correction, "n_seeds": 1})
    mine, theirs = (there.tensors(r)["lam=1.safetensors"] for r in (other, run))
    assert any(not torch.equal(mine[name], theirs[name]) for name in mine)


# Growing


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"correction": {"lambdas": [1.0]}}, "correction.lambdas may only grow from"),
        (
            {"correction": {"epochs": 9}},
            "correction.epochs may not change from 1, got 9; submit the step anew",
        ),
        ({"correction": {"max_images": 9}}, "correction.max_images may not change from None, got 9"),
        ({"n_seeds": 1}, "n_seeds may only grow from 2, got 1"),
        ({"regions": [0]}, "regions may not change from None"),
        ({"rule": "best"}, "rule should be 'paper' or 'regions', got 'best'"),
    ],
)
def test_what_was_computed_is_not_changed(
    there: Place, run: Run, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=r"^correct: ") as refused:
        launcher.extend(there.workspace, run.id, changes)
    assert told in str(refused.value)
    assert there.get(run).config == run.config
    assert there.get(run).status == "done"


def test_a_config_that_grows_in_order_is_taken() -> None:
    old = SweepConfig.model_validate(QUICK).model_dump()
    new = {**old, "correction": {**old["correction"], "lambdas": [10.0, 1.0, 0.1]}, "rule": "paper"}
    assert check_growth("correct", old, new) == SweepConfig.model_validate(new)


@pytest.mark.parametrize("changes", [{}, {"correction": {"lambdas": LAMBDAS}, "rule": "regions"}])
def test_an_extension_that_changes_nothing_is_refused(
    there: Place, run: Run, changes: dict[str, object]
) -> None:
    with pytest.raises(WorkspaceError, match=f"run {run.id} has all of that already; add a λ"):
        launcher.extend(there.workspace, run.id, changes)
    assert there.get(run).status == "done"


def test_only_corrections_go_on(there: Place) -> None:
    search = there.workspace.runs.latest(there.project.id, "identify")
    assert search is not None
    with pytest.raises(WorkspaceError, match=r"is identify, and only correct runs go on; submit it anew"):
        launcher.extend(there.workspace, search.id, {"n_perturbations": 7})


def test_a_run_that_is_done_goes_on_with_more_lambdas_and_seeds(place: Place) -> None:
    first = done_here(place, "correct", {**QUICK, "n_seeds": 1})
    evidence = done_here(place, "evaluate", {"controls": False, "noise_images": 0})
    before = place.workspace.runs.artifacts(first.id)
    changes = {"correction": {"lambdas": [10.0, 0.1, 1.0]}, "n_seeds": 2, "baseline_lambdas": [1.0, 5.0]}
    with runs_in_this_process():
        run = launcher.extend(place.workspace, first.id, changes)
    assert run.status == "done", run.error
    assert [p["lam"] for p in run.summary["corrected"]["points"]] == [0.1, 0.1, 1.0, 1.0, 10.0, 10.0]
    assert {p["lam"] for p in run.summary["baseline"]["points"]} == {1.0, 5.0}
    after = place.workspace.runs.artifacts(run.id)
    kept = [
        name for name in before if name.startswith((task_of(0.1), task_of(1.0), "baseline/lam=1.", BEFORE))
    ]
    assert len(kept) == 7  # weights and answers of three, and the answers before
    assert all(after[name] == before[name] for name in kept)
    verify(place.workspace, run.id)
    assert place.get(evidence).stale
    at_once = done_here(place, "correct", {**QUICK, **run.config})
    assert at_once.summary == run.summary


@pytest.mark.parametrize(
    ("own", "after"), [({}, [1.0, 10.0]), ({"baseline_lambdas": [1.0, 2.0]}, [1.0, 2.0])]
)
def test_a_baseline_is_searched_as_the_regions_are_and_grows_with_them(
    place: Place, own: dict[str, object], after: list[float]
) -> None:
    correction = {**QUICK["correction"], "lambdas": [1.0], "max_images": 60}
    config = check_config("correct", {"correction": correction, **own}).model_dump(mode="json")
    run = add_run(place, "correct", config)
    assert run.config["baseline_lambdas"] == (own.get("baseline_lambdas") or [1.0])
    place.workspace.runs.finish(run.id, "cancelled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "_start", lambda *_: None)
        grown = launcher.extend(place.workspace, run.id, {"correction": {"lambdas": [1.0, 10.0]}})
    assert grown.config["correction"]["lambdas"] == [1.0, 10.0]
    assert grown.config["baseline_lambdas"] == after


def test_a_sample_of_the_training_images_is_tuned_on(place: Place) -> None:
    correction = {**QUICK["correction"], "lambdas": [0.1], "max_images": 90}
    config = {**QUICK, "correction": correction}
    first = done_here(place, "correct", config, seed=3)
    source, sets = Source(place.workspace, first.id), sets_of(place, first)
    train = source.dataset.train
    sample = train[stratified_sample(train.labels, 90, seed=3)]
    assert sample.labels.bincount().tolist() == [30, 30, 30]
    files = place.tensors(first)
    for task, lam, failures, repeat in (
        ("lam=0.1", 0.1, sets["tune"], 0), ("lam=0.1/repeat=1", 0.1, sets["tune"], 1),
        ("baseline/lam=1", 1.0, sets["single"], 0),
    ):  # fmt: skip
        expected = tune(
            source.classifier(), sample if repeat else train, failures, lam=lam,
            config=SweepConfig.model_validate(config).correction,
            seed=derive_seed(3, "repeat", 1) if repeat else 3, selection=source.dataset.selection,
        )  # fmt: skip
        stored = files[f"{task}.safetensors"]
        tuned = apply_point(source.classifier(), expected).network.state_dict()
        assert all(torch.equal(stored[name], tensor) for name, tensor in tuned.items()), task

    with pytest.raises(ConfigError, match=r"correction\.max_images may not change from 90, got 91"):
        launcher.extend(place.workspace, first.id, {"correction": {"max_images": 91}})
    before = place.workspace.runs.artifacts(first.id)
    with runs_in_this_process():
        extended = launcher.extend(place.workspace, first.id, {"correction": {"lambdas": [0.1, 1.0]}})
    assert (extended.id, extended.status) == (first.id, "done")
    assert extended.config["correction"]["max_images"] == 90
    after = place.workspace.runs.artifacts(first.id)
    kept = [f"{name}.safetensors" for name in ("lam=0.1", f"lam=0.1{SAID}", f"{BEFORE}{SAID}")]
    assert [after[name] for name in kept] == [before[name] for name in kept]
    at_once = done_here(place, "correct", extended.config, seed=3)
    assert at_once.summary == extended.summary
    whole = done_here(place, "correct", {**QUICK, "n_seeds": 1}, seed=3)
    points = [run.summary["corrected"]["points"] for run in (whole, at_once)]
    assert points[0][0] != points[1][0]


def test_another_rule_computes_nothing_anew(place: Place) -> None:
    first = done_here(place, "correct", {**QUICK, "n_seeds": 1, "rule": "regions", "max_loss": 1.0})
    points = {p["lam"]: p for p in first.summary["corrected"]["points"]}
    events = place.workspace.runs.events(first.id, kind="point")
    with runs_in_this_process():
        run = launcher.extend(place.workspace, first.id, {"rule": "paper"})
    assert run.status == "done", run.error
    assert place.workspace.runs.events(run.id, kind="point") == events
    best = max(points.values(), key=lambda p: (p["selection"], -p["lam"]))
    assert run.summary["corrected"]["chosen"] == best


def test_a_lambda_that_diverges_is_left_out_and_not_chosen(place: Place) -> None:
    correction = {**QUICK["correction"], "max_images": 60}
    sweep = {**QUICK, "correction": {**correction, "lambdas": [1e39, 1.0]}, "n_seeds": 1, "rule": "paper"}
    run = done_here(place, "correct", {**sweep, "baseline_lambdas": [1e39]})
    assert run.summary["missing"] == ["lam=1e+39", "baseline/lam=1e+39"]
    assert run.summary["corrected"]["chosen"]["lam"] == 1.0
    assert "baseline" not in run.summary
    errors = {t.name: str(t.error) for t in place.workspace.runs.tasks(run.id) if t.status == "failed"}
    assert "diverged at lam = 1e+39, epoch 1" in errors["lam=1e+39"]

    alone = {**sweep, "correction": {**correction, "lambdas": [1e39]}, "baseline_lambdas": [1.0]}
    ended = run_here(place, "correct", alone)
    assert ended.status == "failed"
    assert "lam=1e+39: training diverged" in str(ended.error)
    assert "lower learning_rate" in str(ended.error)


# A second round


def test_a_second_round_begins_with_the_corrected_classifier(there: Place, run: Run) -> None:
    second = done_here(there, "classifier", {"weights": f"corrected:{run.id}"})
    files = there.tensors(second)["classifier.safetensors"]
    corrected = there.tensors(run)["corrected.safetensors"]
    assert files.keys() == corrected.keys()
    assert all(torch.equal(files[name], tensor) for name, tensor in corrected.items())
    assert second.summary["accuracy"]["test"] == run.summary["corrected"]["chosen"]["test"][0]
    metadata = Source(there.workspace, second.id).read("classifier", "classifier")[1]
    original = Source(there.workspace, run.id).read("classifier", "classifier")[1]
    for name in ("architecture", "preprocessing", "n_classes"):
        assert metadata[name] == original[name]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"weights": "corrected:1"}, "weights must name a correct run of the project, run 1 is none"),
        ({"weights": "corrected:999"}, "there is no run 999"),
    ],
)
def test_a_second_round_needs_a_correction(there: Place, config: dict[str, str], told: str) -> None:
    ended = run_here(there, "classifier", config)
    assert ended.status == "failed"
    assert told in str(ended.error)


def test_a_corrected_classifier_is_not_fed_otherwise(there: Place, run: Run) -> None:
    ended = run_here(there, "classifier", {"weights": f"corrected:{run.id}", "mean": [0.5], "std": [0.5]})
    assert "is fed as the one it was made of" in str(ended.error)
