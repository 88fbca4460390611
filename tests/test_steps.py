"""What runs leave behind equals what the core computes in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from defuse_core.base.checkpoints import load_tensors, save_tensors
from defuse_core.base.config import DistillationConfig, IdentificationConfig
from defuse_core.base.errors import CheckpointError
from defuse_core.base.records import FailureInstances, Mistakes
from defuse_core.base.runtime import derive_seed
from defuse_core.data.splits import stratified_sample
from defuse_core.extensions.answers import answers_by_region, judge
from defuse_core.extensions.projection import project
from defuse_core.jobs.engine import Ended, LocalEngine, run_task
from defuse_core.method import identification
from defuse_core.method.classifier import Preprocessing, predict
from defuse_core.method.correction import find_flips
from defuse_core.method.distillation import fit_mixture, membership
from defuse_core.method.evaluation import score_failures, score_split
from defuse_core.method.identification import identify
from defuse_core.method.labeling import draw_images
from defuse_core.method.vae import decode_images, encode_means
from defuse_core.steps import STEP_CLASSES, load_step
from defuse_core.steps import identify as identify_step
from defuse_core.steps import map as map_step
from defuse_core.steps.base import File, Progress
from defuse_core.steps.correct import Correct, task_of
from defuse_core.steps.networks import bring_network
from defuse_core.steps.source import Source
from defuse_core.steps.stability import Stability
from defuse_core.workspace.configs import STEPS, ClassifierConfig
from defuse_core.workspace.edits import Gaussian, RegionEdit
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Run
from tests.in_process import compute_here, done_here, run_here
from tests.workspaces import SEARCH, SWEEP, Place, copy_place

QUICK: dict[str, Any] = {"controls": False, "noise_images": 0}
"""The evidence alone."""


@pytest.fixture(scope="module")
def whole(corrected_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace in which every step was run, but the annotators' who know digits only."""
    return copy_place(corrected_template, tmp_path_factory.mktemp("whole") / "home")


def latest(place: Place, step: str) -> Run:
    run = place.workspace.runs.latest(place.project.id, step)
    assert run is not None
    return run


def source_of(place: Place, step: str) -> Source:
    return Source(place.workspace, latest(place, step).id)


def test_every_step_of_the_config_has_a_class() -> None:
    assert STEP_CLASSES.keys() == STEPS.keys()


def test_mistakes_are_those_of_algorithm_1(whole: Place) -> None:
    source = source_of(whole, "identify")
    expected = identify(
        source.classifier(), source.vae(), source.dataset.train, config=IdentificationConfig(**SEARCH), seed=0
    )
    found = source_of(whole, "distill").mistakes()
    assert len(found) > 500
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name
    summary = latest(whole, "identify").summary
    assert summary == {"mistakes": expected.counts(), "searched": 1280, "images": 1280}


def test_shards_are_gone_once_they_are_merged(whole: Place) -> None:
    run = latest(whole, "identify")
    assert set(whole.workspace.runs.artifacts(run.id)) == {"mistakes.safetensors"}
    folder = whole.workspace.run_folder(run.id)
    assert {p.name for p in folder.iterdir()} == {"mistakes.safetensors", "config.json", "log.txt"}
    points = whole.workspace.runs.events(run.id, kind="point")
    assert sum(point.data["images"] for point in points) == 1280
    assert sum(point.data["perturbation"] for point in points) == run.summary["mistakes"]["perturbation"]


def test_regions_are_those_of_the_mixture(whole: Place) -> None:
    source = source_of(whole, "distill")
    config = DistillationConfig(n_components=12)
    mistakes = source.mistakes()
    expected = fit_mixture(mistakes.latents, config=config, seed=0)
    mixture = source.mixture()
    np.testing.assert_array_equal(mixture.means, expected.means)
    assert (mixture.n_iter, mixture.converged) == (expected.n_iter, expected.converged)
    of_region = membership(expected, mistakes.latents)
    told = {r["region_id"]: r for r in latest(whole, "distill").summary["regions"]}
    assert list(told) == [r.region_id for r in expected.regions(config.min_weight)]
    for region_id, row in told.items():
        assert row["mistakes"] == int((of_region == region_id).sum())
        assert row["kinds"] == mistakes[of_region == region_id].counts()


def test_the_map_holds_codes_and_mistakes_together(whole: Place) -> None:
    source, run = source_of(whole, "map"), latest(whole, "map")
    stored = whole.tensors(run)["tsne.safetensors"]
    mistakes = source.mistakes()
    codes = stored["train_index"]
    assert torch.equal(codes, stratified_sample(source.dataset.train.labels, 100, seed=0))
    every = whole.tensors(run)["codes.safetensors"]["latents"]
    latents = torch.cat([every[codes], mistakes.latents[stored["mistake_index"]]])
    expected = project(latents, method="tsne", seed=0).points
    np.testing.assert_allclose(stored["points"].numpy(), expected, atol=1e-4)
    assert stored["points"].shape == (150, 2)
    assert torch.equal(
        stored["mistake_region"], membership(source.mixture(), mistakes.latents[stored["mistake_index"]])
    )
    assert run.summary == {
        "method": "tsne", "codes": 100, "codes_of": 1280, "mistakes": 50, "mistakes_of": len(mistakes),
    }  # fmt: skip


def test_the_map_keeps_the_codes_of_all_training_images(whole: Place) -> None:
    source, run = source_of(whole, "map"), latest(whole, "map")
    (stored,) = whole.tensors(run)["codes.safetensors"].values()
    images = source.dataset.train.images
    assert stored.dtype == torch.float32
    assert torch.equal(stored, encode_means(source.vae(), images))
    with torch.inference_mode():
        one_by_one = torch.cat([source.vae().encode(image[None])[0] for image in images[::100]])
    torch.testing.assert_close(stored[::100], one_by_one, atol=1e-4, rtol=1e-4)


def test_the_map_says_how_far_it_is_while_it_encodes_and_while_it_projects(
    whole: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_step, "_ENCODED_AT_ONCE", 512)
    run = latest(whole, "map")
    items = list(load_step(whole.workspace, run.id).run("tsne"))
    told = [item for item in items if isinstance(item, Progress)]
    assert [(item.step, item.of) for item in told[:3]] == [(8, 100), (16, 100), (20, 100)]  # of 1,280 images
    assert all(item.of == 100 for item in told)
    assert [item.step for item in told] == sorted({item.step for item in told})
    assert told[-1].step == 100
    assert "kl" in told[-1].metrics
    files = {item.name: item.content for item in items if isinstance(item, File)}
    expected = whole.tensors(run)
    assert files.keys() == expected.keys() == {"codes.safetensors", "tsne.safetensors"}
    for name, content in files.items():  # equal seeds agree, however many images are encoded at once
        again = safetensors.torch.load(content)
        assert all(torch.equal(again[key], tensor) for key, tensor in expected[name].items()), name


def test_a_map_that_is_cancelled_ends_while_it_encodes(whole: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_step, "_ENCODED_AT_ONCE", 512)
    step = load_step(whole.workspace, latest(whole, "map").id)
    asked = iter([frozenset[str](), frozenset[str](), frozenset({"tsne"})])
    events = list(LocalEngine(torch.device("cpu")).run(step, ["tsne"], lambda: next(asked)))
    assert [type(event).__name__ for _, event in events] == ["Started", "Progress", "Ended"]
    assert events[-1] == ("tsne", Ended("cancelled"))


def adjusted_rand(base: np.ndarray, other: np.ndarray) -> float:
    """The reference: Hubert and Arabie (1985), counting pairs of mistakes."""
    pairs = np.triu_indices(len(base), 1)
    together, too = (np.equal(*(fit[index] for index in pairs)) for fit in (base, other))
    expected = together.mean() * too.sum()
    return float(((together & too).sum() - expected) / ((together.sum() + too.sum()) / 2 - expected))


def test_stability_compares_fits_under_other_seeds_with_the_regions(place: Place) -> None:
    run = done_here(place, "stability", {"n_seeds": 3})
    source = source_of(place, "distill")
    mistakes, mixture = source.mistakes(), source.mixture()
    base = membership(mixture, mistakes.latents)
    files, points = place.tensors(run), place.workspace.runs.events(run.id, kind="point")
    assert [point.task for point in points] == ["seed=1", "seed=2", "seed=3"]
    fits = []
    for point, told, n_regions in zip(
        points, run.summary["adjusted_rand"], run.summary["n_regions"], strict=True
    ):
        seed = derive_seed(0, "stability", point.task)
        expected = fit_mixture(mistakes.latents, config=DistillationConfig(n_components=12), seed=seed)
        assert not np.array_equal(expected.means, mixture.means)  # no seed is that of the distill run
        fits.append(membership(expected, mistakes.latents))
        assert torch.equal(files[f"{point.task}.safetensors"]["membership"], fits[-1])
        assert told == pytest.approx(adjusted_rand(base.numpy(), fits[-1].numpy()))
        assert n_regions == len(expected.regions(0.01))
        assert point.data == {
            "regions": n_regions, "adjusted_rand": told, "converged": expected.converged,
        }  # fmt: skip
    assert [row["region_id"] for row in run.summary["regions"]] == [r.region_id for r in source.regions()]
    for row in run.summary["regions"]:
        mine = base == row["region_id"]
        best = [
            max(float((mine & (fit == i)).sum() / (mine | (fit == i)).sum()) for i in fit[fit >= 0].unique())
            for fit in fits
        ]
        assert row["found_again"] == pytest.approx(np.mean(best))
    assert {round(row["found_again"], 3) for row in run.summary["regions"]} > {1.0}  # and some that are not


def test_stability_depends_on_the_seed_and_on_nothing_else(place: Place) -> None:
    first, again, other = (done_here(place, "stability", {"n_seeds": 2}, seed=seed) for seed in (0, 0, 1))
    assert first.summary == again.summary
    assert first.summary["adjusted_rand"] != other.summary["adjusted_rand"]
    assert first.summary["adjusted_rand"][0] != first.summary["adjusted_rand"][1]
    more = load_step(place.workspace, done_here(place, "stability", {"n_seeds": 4}).id)
    assert more.tasks()[:2] == ["seed=1", "seed=2"]


def test_stability_is_of_the_fit_not_of_what_people_made_of_it(place: Place) -> None:
    before = done_here(place, "stability", {"n_seeds": 2})
    source = source_of(place, "distill")
    one, two = source.regions()[:2]
    new = len(source.mixture().weights)
    merged = Gaussian(new, one.weight + two.weight, tuple(one.mean), tuple(map(tuple, one.covariance)))
    place.workspace.annotations.edit(
        source.run.id, RegionEdit("merge", (one.region_id, two.region_id), (merged,))
    )
    assert new in {region.region_id for region in source.regions()}
    assert done_here(place, "stability", {"n_seeds": 2}).summary == before.summary


def test_stability_of_what_was_not_cancelled_and_of_regions_without_mistakes(place: Place) -> None:
    run = done_here(place, "stability", {"n_seeds": 2})
    step = load_step(place.workspace, run.id)
    assert isinstance(step, Stability)
    step.region_ids.append(999)  # a component may weigh enough, and be the likeliest of no mistake
    stored = place.tensors(run)["seed=2.safetensors"]
    merged = step.merge(["seed=2"], lambda name: {"seed=2": (stored, {"n_regions": 7})}[name]).summary
    assert merged["adjusted_rand"] == run.summary["adjusted_rand"][1:]
    assert merged["n_regions"] == [7]
    assert merged["regions"][-1] == {"region_id": 999, "found_again": None}
    json.dumps(merged, allow_nan=False)


REFERENCE = """
import json, sys
from pathlib import Path
import safetensors.torch, torch
from defuse_core.base.checkpoints import save_tensors
from defuse_core.method.classifier import accuracy
from defuse_core.base.config import CorrectionConfig
from defuse_core.data.splits import sample_training
from defuse_core.method.correction import apply_point, sweep_lambdas
from defuse_core.method.evaluation import score_failures
from defuse_core.base.records import FailureInstances
from defuse_core.steps.networks import bring_network
from defuse_core.steps.source import Source
from defuse_core.workspace.workspace import Workspace

torch.set_num_threads(1)
home, run_id, failures, config, out = sys.argv[1:]
source = Source(Workspace(Path(home)), int(run_id))
stored = safetensors.torch.load_file(failures)
tune, test = (
    FailureInstances(*(stored[f"{name}.{part}"] for part in ("images", "labels", "ids")))
    for name in ("tune", "test")
)
classifier, dataset = source.classifier(), source.dataset
config, rows = CorrectionConfig(**json.loads(config)), []
train = dataset.train[sample_training(dataset.train.labels, config.max_images, seed=0)]
for point in sweep_lambdas(classifier, train, tune, config=config, seed=0, selection=dataset.selection):
    tuned = apply_point(classifier, point)
    save_tensors(f"{out}/{point.lam}.safetensors", point.state)
    rows.append([
        point.lam, point.epoch, point.selection_accuracy, point.tuned_accuracy,
        accuracy(tuned, dataset.test), score_failures(tuned, test).estimate,
    ])
print(json.dumps(rows))
"""
"""The sweep by the core alone, in a process that no other test has left its mark on."""


def test_points_of_the_sweep_are_those_of_the_core(whole: Place, tmp_path: Path) -> None:
    run = latest(whole, "correct")
    failures = whole.workspace.artifact_path(run.id, "failures.safetensors")
    words = (whole.workspace.home, run.id, failures, json.dumps(SWEEP["correction"]), tmp_path)
    told = subprocess.run(
        [sys.executable, "-c", REFERENCE, *map(str, words)], capture_output=True, text=True, check=True
    ).stdout
    stored = [e.data for e in whole.workspace.runs.events(run.id, kind="point") if e.task.startswith("lam=")]
    found = [[d["lam"], d["epoch"], d["selection"], d["tuned"], d["test"][0], d["region"][0]] for d in stored]
    assert found == json.loads(told)
    assert [row[0] for row in found] == SWEEP["correction"]["lambdas"]
    files = whole.tensors(run)
    for d in stored:
        expected = safetensors.torch.load_file(tmp_path / f"{float(d['lam'])}.safetensors")
        weights = files[f"{task_of(d['lam'])}.safetensors"]
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    chosen = files[f"{task_of(run.summary['corrected']['chosen']['lam'])}.safetensors"]
    assert all(torch.equal(files["corrected.safetensors"][n], w) for n, w in chosen.items())
    assert run.summary["baseline"]["chosen"]["lam"] == 1.0
    assert not len(files["failures.safetensors"]["held_out.labels"])


def test_failures_are_drawn_at_the_tau_of_their_labels(place: Place) -> None:
    regions = latest(place, "distill")
    source = Source(place.workspace, regions.id)
    before = judge(
        source.classifier(), source.vae(), source.regions(),
        answers_by_region(place.workspace.annotations.counting(regions.id)), disagreement_threshold=0.5,
    )  # fmt: skip
    chosen = next(v for v in before if v.is_failure)
    place.workspace.annotations.append(
        regions.id, [LabelEvent(chosen.region_id, "Ada", chosen.label, None, tau=0.01, seed=5, n_samples=4)]
    )
    run = done_here(place, "correct", SWEEP)
    stored = place.tensors(run)["failures.safetensors"]
    region = next(r for r in source.regions() if r.region_id == chosen.region_id)
    mine = stored["tune.images"][stored["tune.ids"] == chosen.region_id]
    assert torch.equal(mine, draw_images(source.vae(), region, 16, tau=0.01, seed=0, purpose="tune"))
    answers = answers_by_region(place.workspace.annotations.counting(regions.id))[chosen.region_id]
    assert (answers.tau, answers.seed, answers.n_samples) == (0.01, 5, 4)
    assert [a.sample_id for a in answers.annotations] == [None]  # those at the old τ are of other images


def test_labels_that_come_later_make_the_correction_stale_and_do_not_change_it(place: Place) -> None:
    run = done_here(place, "correct", SWEEP)
    regions = latest(place, "distill")
    assert not place.get(run).stale
    place.workspace.annotations.append(regions.id, [LabelEvent(0, "Bob", None, 0)])
    assert place.get(run).stale
    evaluation = done_here(place, "evaluate", QUICK)
    assert evaluation.stale
    again = done_here(place, "correct", {**SWEEP, "last_annotation": run.last_annotation})
    assert again.summary == run.summary


def test_regions_held_out_are_drawn_but_never_tuned_on(place: Place) -> None:
    sweep = {**SWEEP, "correction": {**SWEEP["correction"], "held_out_share": 0.5}}
    run = done_here(place, "correct", sweep)
    stored = place.tensors(run)["failures.safetensors"]
    tuned, held_out = (set(stored[f"{name}.ids"].tolist()) for name in ("tune", "held_out"))
    assert tuned
    assert held_out
    assert not tuned & held_out
    assert tuned == set(stored["test.ids"].tolist())
    point = run.summary["corrected"]["chosen"]
    corrected = Source(place.workspace, run.id).classifier()
    corrected.network.load_state_dict(place.tensors(run)["corrected.safetensors"])
    expected = score_failures(
        corrected,
        FailureInstances(*(stored[f"held_out.{part}"] for part in ("images", "labels", "ids"))),
    )
    assert point["held_out"] == [expected.estimate, expected.low, expected.high, expected.n]
    results = done_here(place, "evaluate", QUICK)
    told = json.loads(place.workspace.artifact_path(results.id, "results.json").read_text())
    assert told["held_out"]["regions"] == len(held_out)
    assert told["held_out"]["after"] == expected.estimate


def test_evidence_is_measured_on_the_stored_weights(whole: Place) -> None:
    source = source_of(whole, "evaluate")
    results = json.loads(
        whole.workspace.artifact_path(latest(whole, "evaluate").id, "results.json").read_text()
    )
    before = source.classifier()
    corrected = source.classifier()
    corrected.network.load_state_dict(whole.tensors(latest(whole, "correct"))["corrected.safetensors"])
    test = source.dataset.test
    assert results["before"]["test"] == score_split(before, test).estimate
    assert results["defuse"]["test"] == score_split(corrected, test).estimate
    flips = find_flips(before, corrected, test)
    assert results["flips"]["fixed"] == len(flips.fixed)
    assert results["flips"]["broken"] == len(flips.broken)
    change = (results["defuse"]["test"] - results["before"]["test"]) * len(test)
    assert round(change) == len(flips.fixed) - len(flips.broken)
    assert [row["lam"] for row in results["sweep"]] == SWEEP["correction"]["lambdas"]
    chosen = next(row for row in results["sweep"] if row["lam"] == results["defuse"]["lam"])
    assert (chosen["test"], chosen["region"]) == (results["defuse"]["test"], results["defuse"]["region"])
    assert results["label_agreement"] is None  # a person's labels: nobody to ask for more
    assert results["settings"]["identify"]["n_perturbations"] == SEARCH["n_perturbations"]
    assert results["defuse"]["region"] > results["before"]["region"] + 0.2


def test_the_report_holds_the_figures_and_the_table(whole: Place) -> None:
    report = latest(whole, "report")
    names = set(whole.workspace.runs.artifacts(report.id))
    figures = ("1-regions", "4-accuracy", "5-trade-off", "6-nearest", "6-novelty", "7-agreement")
    assert names == {f"figure{f}.{kind}" for f in figures for kind in ("png", "svg")} | {
        "results.json", "figure4.md", "report.html", "manifest.json",
    }  # fmt: skip
    for name in names - {"report.html"}:
        content = whole.workspace.artifact_path(report.id, name).read_bytes()
        assert content.startswith(b"\x89PNG") == name.endswith(".png")
        assert (b"<svg" in content) == name.endswith(".svg")
    results = report.summary["results"]
    table = whole.workspace.artifact_path(report.id, "figure4.md").read_text()
    assert f"| Defuse | {results['defuse']['test']:.3f} [" in table


def test_a_correction_without_a_baseline_is_reported(place: Place) -> None:
    done_here(place, "correct", {**SWEEP, "baseline_lambdas": []})
    done_here(place, "evaluate", QUICK)
    report = done_here(place, "report")
    assert report.summary["results"]["baseline"] is None
    table = place.workspace.artifact_path(report.id, "figure4.md").read_text()
    assert "identified mistakes" not in table
    assert "| before |" in table


@pytest.mark.parametrize(
    "method",
    [pytest.param("umap", marks=pytest.mark.verify, id="umap"), "pca"],  # which compiles for seconds
)
def test_a_map_by_another_method(place: Place, method: str) -> None:
    run = done_here(place, "map", {"method": method, "n_codes": 60, "n_mistakes": 20})
    points = place.tensors(run)[f"{method}.safetensors"]["points"]
    assert points.shape == (80, 2)
    assert bool(points.isfinite().all())


def test_weights_can_be_brought(place: Place) -> None:
    trained = latest(place, "classifier")
    content = place.workspace.artifact_path(trained.id, "classifier.safetensors").read_bytes()
    blob = place.workspace.add_blob(place.project.id, "mine.safetensors", [content])
    brought = done_here(
        place, "classifier", {"architecture": "resnet_small", "weights": f"blob:{blob.sha256}"}
    )
    assert brought.summary == trained.summary
    vae = place.workspace.artifact_path(latest(place, "vae").id, "vae.safetensors").read_bytes()
    blob = place.workspace.add_blob(place.project.id, "vae.safetensors", [vae])
    again = done_here(place, "vae", {"weights": f"blob:{blob.sha256}"})  # the file says how it is built
    stored = place.tensors(again)["vae.safetensors"]
    assert all(torch.equal(stored[name], tensor) for name, tensor in safetensors.torch.load(vae).items())


@pytest.mark.parametrize(
    ("changes", "config", "told"),
    [
        ({"class_names": ["diagonal", "column", "row"]}, {}, r"apart \(diagonal, column, row\), the data"),
        (
            {"preprocessing": {"mean": ["x"]}},
            {},
            "states a preprocessing that is none; save the weights alone",
        ),
        ({"preprocessing": {"mean": [0.3], "std": [0.7], "image_size": 16}}, {}, None),
        ({"preprocessing": {"mean": [0.3], "std": [0.7], "image_size": 16}}, {"mean": (0.1,)}, None),
    ],
)
def test_what_the_file_of_weights_says_counts(
    place: Place, tmp_path: Path, changes: dict[str, Any], config: dict[str, Any], told: str | None
) -> None:
    source = source_of(place, "classifier")
    tensors, metadata = load_tensors(place.workspace.artifact_path(source.run.id, "classifier.safetensors"))
    path = tmp_path / "mine.safetensors"
    save_tensors(path, tensors, metadata={**metadata, **changes})
    blob = place.workspace.add_blob(place.project.id, path.name, [path.read_bytes()])
    stated = ClassifierConfig(architecture="resnet_small", weights=f"blob:{blob.sha256}", **config)
    if told is not None:
        with pytest.raises(CheckpointError, match=told):
            bring_network(source, stated)
        return
    expected = Preprocessing(config.get("mean", (0.3,)), (0.7,), 16)
    assert bring_network(source, stated).preprocessing == expected


@pytest.mark.parametrize(
    ("step", "config", "told"),
    [
        (
            "classifier",
            {"architecture": "vgg_small", "weights": "blob:WRONG"},
            "not of vgg_small; they fit resnet_small",
        ),
        (
            "classifier",
            {"weights": f"blob:{'0' * 64}"},
            "the project has no upload 000000000000…; upload the",
        ),
        ("classifier", {"weights": "shipped:demo-classifier"}, "does not take images of (1, 8, 8)"),
        ("classifier", {"weights": "shipped:nothing"}, "lacks nothing.json"),
        ("classifier", {"architecture": "mnist_cnn"}, "or set image_size to the size"),
        ("vae", {"weights": "shipped:demo-vae"}, "images must be (n, 1, 28, 28), got (1, 1, 8, 8)"),
        ("annotate", {}, "the shipped simulated annotators know 28×28 digits only"),
    ],
)
def test_what_cannot_be_run_says_why(place: Place, step: Any, config: dict[str, Any], told: str) -> None:
    if config.get("weights") == "blob:WRONG":
        content = place.workspace.artifact_path(latest(place, "classifier").id, "classifier.safetensors")
        blob = place.workspace.add_blob(place.project.id, "x", [content.read_bytes()])
        config = {**config, "weights": f"blob:{blob.sha256}"}
    run = run_here(place, step, config)
    assert run.status == "failed"
    assert run.error is not None
    assert told in run.error


def test_a_correction_without_labels_names_the_remedy(place: Place) -> None:
    done_here(place, "distill", {"n_components": 12}, seed=1)
    run = run_here(place, "correct", SWEEP)
    assert run.status == "failed"
    assert run.error is not None
    assert "no region is labelled; label some" in run.error


def test_a_correction_without_failures_names_the_remedy(place: Place) -> None:
    run = done_here(place, "distill", {"n_components": 12}, seed=1)
    source = Source(place.workspace, run.id)
    right = [
        LabelEvent(region.region_id, "Ada", label, sample)
        for region in source.regions()
        for sample, label in enumerate(
            predict(source.classifier(), draw_images(source.vae(), region, 10, tau=0.5, seed=0)).tolist()
        )
    ]
    place.workspace.annotations.append(run.id, right)
    ended = run_here(place, "correct", SWEEP)
    assert ended.status == "failed"
    assert ended.error is not None
    assert "labelled regions is a failure; label more" in ended.error


def test_an_incomplete_search_says_how_much_was_searched(whole: Place) -> None:
    step = load_step(whole.workspace, latest(whole, "identify").id)
    shards: dict[str, Any] = {}
    for task in ("shard=0000", "shard=0019"):
        (content,) = [item.content for item in step.run(task) if hasattr(item, "content")]
        shards[task] = (safetensors.torch.load(content), {})
    merged = step.merge(list(shards), lambda name: shards[name])
    assert merged.summary["searched"] == 128
    found = Mistakes(**safetensors.torch.load(merged.files[0].content))
    assert set((found.source_index // 64).tolist()) == {0, 19}


def test_an_error_of_the_method_ends_the_task_and_a_bug_ends_the_run(whole: Place) -> None:
    step = load_step(whole.workspace, latest(whole, "correct").id)
    assert isinstance(step, Correct)
    n = len(step.sets["tune"].labels)
    assert list(run_task(step, "lam=-1"))[-1] == Ended(
        "failed", f"tuning needs failure instances and lam of 0 or more, got {n} and -1.0; "
        "label at least one failure region, or one mistake",
    )  # fmt: skip
    del step.sets
    with pytest.raises(AttributeError):
        list(LocalEngine(torch.device("cpu")).run(step, ["lam=1"], lambda: frozenset()))


SAMPLED: dict[str, Any] = {**SEARCH, "max_images": 150}


def test_mistakes_of_a_sampled_search_name_the_images_of_the_training_split(place: Place) -> None:
    run = done_here(place, "identify", SAMPLED, seed=5)
    assert run.summary["searched"] == run.summary["images"] == 150
    assert [task.name for task in place.workspace.runs.tasks(run.id)] == [f"shard=000{i}" for i in range(3)]
    source, found = Source(place.workspace, run.id), Mistakes(**place.tensors(run)["mistakes.safetensors"])
    train, classifier, vae = source.dataset.train, source.classifier(), source.vae()
    sample = stratified_sample(train.labels, 150, seed=5)
    assert train.labels[sample].bincount().tolist() == [50, 50, 50]
    assert set(found.source_index.tolist()) <= set(sample.tolist())
    assert int(found.source_index.max()) > 1000

    assert len(found) > 100
    assert torch.equal(found.labels, train.labels[found.source_index])
    assert torch.equal(predict(classifier, decode_images(vae, found.latents)), found.predictions)
    assert not bool((found.predictions == found.labels).any())
    noise = found.latents - encode_means(vae, train.images[found.source_index])
    assert float(noise.abs().max()) < 6 * 6.0 * 0.05  # six standard deviations of Beta(50, 50), scaled
    by_library = identify(classifier, vae, train, config=IdentificationConfig(**SAMPLED), seed=5)
    for name, value in vars(by_library).items():
        assert torch.equal(getattr(found, name), value), name
    by_position = identify(
        classifier, vae, train[sample], config=IdentificationConfig(**SEARCH), seed=5
    )  # fmt: skip
    for name, value in vars(by_position).items():
        assert torch.equal(getattr(found, name), sample[value] if name == "source_index" else value), name


def test_a_sample_depends_on_the_seed_and_one_of_all_is_all(place: Place) -> None:
    first, other = (done_here(place, "identify", {**SAMPLED, "max_images": 20}, seed=s) for s in (0, 1))
    chosen = [set(place.tensors(r)["mistakes.safetensors"]["source_index"].tolist()) for r in (first, other)]
    assert chosen[0] != chosen[1]
    whole = done_here(place, "identify", {**SEARCH, "max_images": 5000})
    searched = place.workspace.runs.of_project(place.project.id, "identify")[0]
    assert whole.summary == searched.summary
    was, now = (place.tensors(run)["mistakes.safetensors"] for run in (searched, whole))
    assert all(torch.equal(now[name], tensor) for name, tensor in was.items())


def test_a_sampled_search_that_was_stopped_goes_on_with_the_same_images(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = done_here(place, "identify", SAMPLED, seed=5)
    searched: list[int] = []

    def until(last: int) -> Any:
        def search_shard(*args: Any, shard: int, **options: Any) -> Mistakes:
            if shard > last:
                raise OSError("no space left")
            searched.append(shard)
            return identification.search_shard(*args, shard=shard, **options)

        return search_shard

    monkeypatch.setattr(identify_step, "search_shard", until(0))
    run = run_here(place, "identify", SAMPLED, seed=5)
    assert (run.status, searched) == ("failed", [0])
    monkeypatch.setattr(identify_step, "search_shard", until(2))
    compute_here(place.workspace, place.workspace.runs.requeue(run.id))
    assert (place.get(run).status, searched) == ("done", [0, 1, 2])
    assert place.get(run).summary == undisturbed.summary
    stored = [place.tensors(each)["mistakes.safetensors"] for each in (undisturbed, run)]
    assert all(torch.equal(stored[1][name], tensor) for name, tensor in stored[0].items())


def test_stratified_samples_keep_the_shares() -> None:
    labels = torch.cat([torch.zeros(700), torch.ones(200), torch.full((100,), 2)]).long()
    labels = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    chosen = stratified_sample(labels, 100, seed=0)
    assert labels[chosen].bincount().tolist() == [70, 20, 10]
    assert len(chosen.unique()) == 100
    assert torch.equal(chosen, stratified_sample(labels, 100, seed=0))
    assert not torch.equal(chosen, stratified_sample(labels, 100, seed=1))
    assert torch.equal(stratified_sample(labels, 5000, seed=0), torch.arange(1000))
