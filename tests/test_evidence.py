"""What the step `evaluate` writes, against counts, formulas and other libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from defuse_core.base.config import CorrectionConfig, IdentificationConfig
from defuse_core.base.intervals import Interval
from defuse_core.base.records import FailureInstances
from defuse_core.data.splits import ImageDataset, Split, as_bytes, stratified_sample
from defuse_core.extensions.answers import answers_by_region, judge
from defuse_core.extensions.controls import random_regions, sample_split
from defuse_core.method.classifier import Classifier
from defuse_core.method.correction import apply_point, tune
from defuse_core.method.identification import identify
from defuse_core.method.labeling import draw_latents, failure_instances
from defuse_core.steps import load_step
from defuse_core.steps.base import File
from defuse_core.steps.evaluate import Evaluate
from defuse_core.steps.results import number
from defuse_core.steps.source import Source
from defuse_core.workspace.edits import RegionEdit
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Run
from tests.in_process import done_here
from tests.workspaces import SEARCH, SWEEP, Place, copy_place

SWEPT: dict[str, Any] = {
    **SWEEP,
    "correction": {**SWEEP["correction"], "lambdas": [0.0, 1.0], "held_out_share": 0.3},
    "n_seeds": 2,
}
EVALUATED: dict[str, Any] = {"n_nearest": 7, "noise_images": 100}
SWEEP_SEED, SEED = 2, 4


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with what it stands on."""

    place: Place
    corrected: Run
    run: Run

    @property
    def source(self) -> Source:
        """What the step reads."""
        return Source(self.place.workspace, self.run.id)

    @property
    def results(self) -> dict[str, Any]:
        """results.json, of what JSON allows."""
        path = self.place.workspace.artifact_path(self.run.id, "results.json")
        told: dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
        return told

    def step(self) -> Evaluate:
        """The step as a runner makes it."""
        made = load_step(self.place.workspace, self.run.id)
        assert isinstance(made, Evaluate)
        return made

    def failures(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and region ids of a set that the correction drew."""
        stored = self.place.tensors(self.corrected)["failures.safetensors"]
        return stored[f"{name}.images"], stored[f"{name}.labels"], stored[f"{name}.ids"]

    def models(self) -> dict[str, Classifier]:
        """The classifier as it was, the baseline and the corrected one, from the stored weights."""
        weights = self.place.tensors(self.corrected)
        made = {"before": self.source.classifier()}
        for key, name in (("baseline", "baseline"), ("defuse", "corrected")):
            made[key] = self.source.classifier()
            made[key].network.load_state_dict(weights[f"{name}.safetensors"])
        return made


@pytest.fixture(scope="module")
def done(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """All there can be: held-out regions, a baseline, repeats, names, a region at a τ of its own."""
    place = copy_place(template, tmp_path_factory.mktemp("evidence") / "home")
    distilled = place.workspace.runs.latest(place.project.id, "distill")
    assert distilled is not None
    labels, source = place.workspace.annotations, Source(place.workspace, distilled.id)
    verdicts = judge(
        source.classifier(), source.vae(), source.regions(), answers_by_region(labels.counting(distilled.id)),
        disagreement_threshold=0.5,
    )  # fmt: skip
    narrowed = next(v for v in verdicts if v.is_failure)
    labels.append(
        distilled.id, [LabelEvent(narrowed.region_id, "Ada", narrowed.label, None, tau=0.1, n_samples=4)]
    )
    for v in verdicts[:-1]:
        labels.edit(distilled.id, RegionEdit("rename", (v.region_id,), name=f"spot {v.region_id}", by="Ada"))
    corrected = done_here(place, "correct", SWEPT, seed=SWEEP_SEED)
    later = RegionEdit("rename", (verdicts[0].region_id,), name="named too late", by="Ada")
    labels.edit(distilled.id, later)
    return Evaluated(place, corrected, done_here(place, "evaluate", EVALUATED, seed=SEED))


def right(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Which images are classified correctly, one plain forward pass."""
    with torch.inference_mode():
        return classifier.eval()(images).argmax(1) == labels


def wilson(hits: Tensor) -> list[Any]:
    """Wilson's interval at 95 % by its formula."""
    k, n, z = int(hits.sum()), len(hits), 1.959963984540054
    if not n:
        return [None, 0.0, 1.0, 0]
    centre, spread = k / n + z**2 / (2 * n), z * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    low, high = ((centre + sign * spread) / (1 + z**2 / n) for sign in (-1, 1))
    return [k / n, pytest.approx(max(low, 0), abs=1e-12), pytest.approx(min(high, 1), abs=1e-12), n]


def test_figure_4_has_intervals_on_every_split(done: Evaluated) -> None:
    dataset = done.source.dataset
    assert dataset.validation is not None
    images, labels, _ = done.failures("test")
    told = done.results
    for key, model in done.models().items():
        sets = {
            "test": right(model, dataset.test.images, dataset.test.labels),
            "validation": right(model, dataset.validation.images, dataset.validation.labels),
            "region": right(model, images, labels),
        }
        for name, hits in sets.items():
            assert [told[key][name], *told[key][f"{name}_interval"], len(hits)] == wilson(hits), (key, name)
    chosen = done.corrected.summary["corrected"]["chosen"]
    assert (told["defuse"]["lam"], told["defuse"]["epoch"]) == (chosen["lam"], chosen["epoch"])
    assert told["baseline"]["labelled_images"] == done.corrected.summary["labelled_mistakes"]
    assert set(done.run.summary["scores"]) == {"before", "identified mistakes", "Defuse"}
    assert done.run.summary["scores"]["Defuse"]["region"] == told["defuse"]["region"]


def test_the_change_is_tested_on_pairs(done: Evaluated) -> None:
    test, models = done.source.dataset.test, done.models()
    was, now = (right(models[key], test.images, test.labels) for key in ("before", "defuse"))
    fixed, broken = int((now & ~was).sum()), int((was & ~now).sum())
    told = done.results
    assert fixed + broken > 0
    p = binomtest(fixed, fixed + broken).pvalue
    assert told["flips"] == {"fixed": fixed, "broken": broken, "p": pytest.approx(p)}
    assert told["change"] == {**told["flips"], "test": "McNemar, exact, two-sided"}


def test_every_region_and_every_class_is_told(done: Evaluated) -> None:
    told, models, tested = done.results, done.models(), done.source.dataset.test
    expected = []
    for name in ("test", "held_out"):
        images, labels, ids = done.failures(name)
        hits = {key: right(model, images, labels) for key, model in models.items()}
        for region_id in set(ids.tolist()):
            mine = ids == region_id
            expected.append(
                (
                    region_id, int(labels[mine][0]), name == "held_out", wilson(hits["before"][mine]),
                    wilson(hits["defuse"][mine]), wilson(hits["baseline"][mine]),
                )
            )  # fmt: skip
    keys = ("region_id", "label", "held_out", "before", "after", "baseline")
    found = [tuple(row[key] for key in keys) for row in told["by_region"]]
    assert sorted(found, key=lambda row: row[0]) == sorted(expected, key=lambda row: row[0])
    shares = [row["before"][0] for row in told["by_region"]]
    assert shares == sorted(shares)
    assert {row["held_out"] for row in told["by_region"]} == {True, False}
    last = done.source.regions()[-1].region_id
    assert all(
        row["name"] == (f"spot {row['region_id']}" if row["region_id"] != last else None)
        for row in told["by_region"]
    )
    assert sorted(row["tau"] for row in told["by_region"])[:2] == [0.1, 0.5]

    was, now = (right(models[key], tested.images, tested.labels) for key in ("before", "defuse"))
    assert told["by_class"] == [
        {"class": name, "label": c, "before": wilson(was[tested.labels == c]),
         "after": wilson(now[tested.labels == c])}
        for c, name in enumerate(("row", "column", "diagonal"))
    ]  # fmt: skip


def test_the_sweep_keeps_all_repeats(done: Evaluated) -> None:
    points = done.corrected.summary["corrected"]["points"]
    rows = done.results["sweep"]
    assert [(row["lam"], row["repeat"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(row["test"], row["region"]) for row in rows] == [(p["test"][0], p["region"][0]) for p in points]


def test_without_lambda_the_control_is_the_sweep_at_zero(done: Evaluated) -> None:
    (swept,) = (
        p
        for p in done.corrected.summary["corrected"]["points"]
        if p["lam"] == 0 and p["repeat"] == 0
    )  # fmt: skip
    found = done.results["controls"]["lam=0"]
    same = ("lam", "epoch", "test", "validation", "region", "held_out", "fixed", "broken")
    assert {key: found[key] for key in same} == {key: swept[key] for key in same}
    assert found["instances"] == len(done.failures("tune")[1])


def test_controls_are_tuned_on_the_sample_of_the_correction(place: Place) -> None:
    correction = {**SWEEP["correction"], "lambdas": [0.0, 1.0], "epochs": 1, "max_images": 90}
    config = {"correction": correction, "baseline_lambdas": []}
    corrected = done_here(place, "correct", config, seed=SWEEP_SEED)
    found = Evaluated(place, corrected, done_here(place, "evaluate", {"noise_images": 0}, seed=SEED))
    control, (zero, _) = found.results["controls"]["lam=0"], corrected.summary["corrected"]["points"]
    same = ("lam", "epoch", "test", "validation", "region", "fixed", "broken")
    assert {key: control[key] for key in same} == {key: zero[key] for key in same}
    data, before = found.source.dataset, found.source.classifier()
    sample = data.train[stratified_sample(data.train.labels, 90, seed=SWEEP_SEED)]
    images, labels, ids = found.failures("tune")
    told = {}
    plain = CorrectionConfig(**{**correction, "max_images": None})
    for name, train in (("sample", sample), ("whole", data.train)):
        point = tune(
            before, train, FailureInstances(images, labels, ids), lam=0.0, config=plain, seed=SWEEP_SEED,
            selection=data.selection,
        )  # fmt: skip
        tuned = apply_point(before, point)
        told[name] = (
            wilson(right(tuned, data.test.images, data.test.labels)),
            wilson(right(tuned, *found.failures("test")[:2])),
        )
    assert told["sample"] == (control["test"], control["region"])
    assert told["sample"] != told["whole"]


def test_the_random_control_is_a_tuning_on_draws_elsewhere(done: Evaluated) -> None:
    source, found = done.source, done.results["controls"]["random"]
    data, vae, before = source.dataset, source.vae(), source.classifier()
    tuned_images, tuned_labels, tuned_ids = done.failures("tune")
    labels = dict(zip(tuned_ids.tolist(), tuned_labels.tolist(), strict=True))
    regions = [region for region in source.regions() if region.region_id in labels]
    moved, middle = random_regions(
        regions, labels, classifier=before, vae=vae, train=data.train, seed=SEED
    )  # fmt: skip
    taus = {row["region_id"]: row["tau"] for row in done.results["by_region"]}
    drawn = failure_instances(vae, moved, middle, 16, tau=taus, seed=SWEEP_SEED, purpose="tune")
    chosen = done.results["defuse"]["lam"]
    point = tune(
        before, data.train, drawn, lam=chosen, config=CorrectionConfig(**SWEPT["correction"]),
        seed=SWEEP_SEED, selection=data.selection,
    )  # fmt: skip
    tuned = apply_point(before, point)
    images, wanted, _ = done.failures("test")
    assert found["test"] == wilson(right(tuned, data.test.images, data.test.labels))
    assert found["region"] == wilson(right(tuned, images, wanted))
    assert found["drawn"] == {
        "before": wilson(right(before, drawn.images, drawn.labels)),
        "after": wilson(right(tuned, drawn.images, drawn.labels)),
    }
    assert (found["lam"], found["epoch"], found["regions"]) == (chosen, point.epoch, len(labels))
    assert found["instances"] == len(tuned_ids) == 16 * len(labels)
    assert drawn.images.shape == tuned_images.shape
    assert not torch.equal(drawn.images, tuned_images)


def test_a_control_depends_on_nothing_but_the_run(done: Evaluated) -> None:
    for task in ("control/random", "noise"):
        (file,) = (item for item in done.step().run(task) if isinstance(item, File))
        stored = done.place.workspace.artifact_path(done.run.id, file.name).read_bytes()
        assert _told(file.content) == _told(stored)


def _told(content: bytes) -> dict[str, Any]:
    """The metadata of a safetensors file but for the time it took."""
    length = int.from_bytes(content[:8], "little")
    told: dict[str, Any] = json.loads(content[8 : 8 + length])["__metadata__"]
    return {key: value for key, value in told.items() if key != "seconds"}


def test_nearest_real_images_as_another_library_finds_them(done: Evaluated) -> None:
    source, found, models = done.source, done.results["nearest"], done.models()
    test = source.dataset.test
    with torch.inference_mode():
        codes = source.vae().encode(test.images)[0].double().numpy()
    was, now = (right(models[key], test.images, test.labels) for key in ("before", "defuse"))
    regions = {region.region_id: region for region in source.regions()}
    taus = {row["region_id"]: row["tau"] for row in done.results["by_region"]}
    assert [row["region_id"] for row in found["regions"]] == sorted(taus)
    for row in found["regions"]:
        region = regions[row["region_id"]]
        inverse = np.linalg.inv(taus[region.region_id] * region.covariance)
        search = NearestNeighbors(
            n_neighbors=7, algorithm="brute", metric="mahalanobis", metric_params={"VI": inverse}
        ).fit(codes)
        distances, index = search.kneighbors(region.mean[None])
        np.testing.assert_allclose(row["distance"], distances[0], rtol=1e-5)
        assert row["index"] == index[0].tolist()
        images = torch.from_numpy(index[0])
        assert (row["before"], row["after"]) == (wilson(was[images]), wilson(now[images]))
        assert row["same_label"] == sum(int(test.labels[i]) == row["label"] for i in row["index"])
    distinct = sorted(set().union(*(row["index"] for row in found["regions"])))
    assert len(distinct) > 7
    assert found["pooled"] == {"before": wilson(was[distinct]), "after": wilson(now[distinct])}
    assert found["test"] == {"before": wilson(was), "after": wilson(now)}
    assert found["draws_at"] == 2.0  # latent_dim is 4


def test_novelty_in_pixels_and_in_latent_space(done: Evaluated) -> None:
    source, told = done.source, done.results["novelty"]
    train, test, vae, before = source.dataset.train, source.dataset.test, source.vae(), source.classifier()
    known = train.images[~right(before, train.images, train.labels)]
    missed = test.images[~right(before, test.images, test.labels)]
    images, _, ids = done.failures("test")
    taus = {row["region_id"]: row["tau"] for row in done.results["by_region"]}
    latents = torch.cat(
        [
            draw_latents(region, 16, tau=taus[region.region_id], seed=SWEEP_SEED, purpose="test")
            for region in source.regions()
            if region.region_id in ids
        ]
    )
    with torch.inference_mode():
        assert torch.equal(as_bytes(vae.decode(latents)), images)  # these codes are those of the draws
        known_codes, missed_codes = (vae.encode(of)[0] for of in (known, missed))
    pixels = [of.flatten(1).double() / 255 for of in (images, missed, known)]
    codes = [of.double() for of in (latents, missed_codes, known_codes)]
    stored = done.place.tensors(done.run)["evidence.safetensors"]
    names = ("draws of failure regions", "misclassified test images")
    for space, prefix, (drawn, real, reference) in (
        ("pixels", "novelty", pixels), ("latent", "latent_novelty", codes)
    ):  # fmt: skip
        for name, points in zip(names, (drawn, real), strict=True):
            expected = torch.cdist(points, reference, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
            torch.testing.assert_close(stored[f"{prefix}.{name}"], expected, rtol=1e-4, atol=1e-5)
            assert told[space][name]["n"] == len(points)
            assert told[space][name]["median"] == pytest.approx(float(np.median(expected)), rel=1e-4)
    assert told["reference"] == {"images": len(known), "misclassified": True}


def test_figure_6_sets_draws_beside_the_misclassified_image_nearest_to_each(done: Evaluated) -> None:
    source, stored = done.source, done.place.tensors(done.run)["evidence.safetensors"]
    train, before = source.dataset.train, source.classifier()
    known = train.images[~right(before, train.images, train.labels)]
    draws, nearest = stored["figure6.draws"], stored["figure6.known"]
    images, _, _ = done.failures("test")
    assert draws.dtype == nearest.dtype == torch.uint8
    assert len(draws) == len(nearest) == 10
    assert all(any(torch.equal(draw, image) for image in images) for draw in draws)
    flat = known.flatten(1).double()
    for draw, image in zip(draws, nearest, strict=True):
        far = (flat - draw.flatten().double()).norm(dim=1)
        assert float((image.double() - draw.double()).norm()) == pytest.approx(float(far.min()))
    for row in ("draws", "known"):
        said = before(stored[f"figure6.{row}"]).argmax(1)
        assert torch.equal(stored[f"figure6.{row}.predictions"], said)


def test_noise_is_compared_around_the_same_images(done: Evaluated) -> None:
    source, found = done.source, done.results["noise"]
    sample = sample_split(source.dataset.train, 100, seed=SEED)
    for name in ("raw", "centred"):
        config = IdentificationConfig(**{**SEARCH, "centred": name == "centred"})
        mistakes = identify(source.classifier(), source.vae(), sample, config=config, seed=SEED)
        assert {kind: found[name][kind] for kind in mistakes.counts()} == mistakes.counts()
        assert (found[name]["images"], found[name]["codes"]) == (100, 6000)
        assert found[name]["misclassified"] >= len(mistakes) > 0


def test_one_annotator_has_nobody_to_agree_with(done: Evaluated) -> None:
    told = done.results
    assert told["agreement"]["pairwise"] is None
    assert told["agreement"]["unanimous"] is None
    assert told["agreement"]["images"] == 0
    assert number(float("nan")) is None
    assert number(0.25) == 0.25


def test_settings_and_seeds_are_those_of_the_runs(done: Evaluated) -> None:
    told = done.results
    assert told["settings"]["evaluate"] == {"controls": True, **EVALUATED}
    assert told["settings"]["correct"] == done.corrected.config
    assert told["seeds"] == {
        "classifier": 0, "vae": 0, "identify": 0, "distill": 0, "correct": SWEEP_SEED, "evaluate": SEED,
    }  # fmt: skip
    assert told["seed"] == SEED
    upstream = [run for step, run in done.source.ancestry.items() if step != "evaluate"]
    assert told["seconds"] > sum(run.seconds for run in upstream)


def read_of(done: Evaluated) -> Any:
    stored = {name: _told_whole(done, name) for name in done.place.workspace.runs.artifacts(done.run.id)}
    return lambda task: ({}, stored[f"{task}.safetensors"])


def _told_whole(done: Evaluated, name: str) -> dict[str, Any]:
    if not name.endswith(".safetensors"):
        return {}
    content = done.place.workspace.artifact_path(done.run.id, name).read_bytes()
    length = int.from_bytes(content[:8], "little")
    told = json.loads(content[8 : 8 + length])["__metadata__"]
    return {key: json.loads(value) for key, value in told.items()}


def test_a_control_that_was_cancelled_is_left_out(done: Evaluated) -> None:
    step, read = done.step(), read_of(done)
    assert step.tasks() == ["evidence", "control/lam=0", "control/random", "noise"]
    whole = json.loads(step.merge(step.tasks(), read).files[0].content)
    assert {**whole, "seconds": 0} == {**done.results, "seconds": 0}
    part = json.loads(step.merge(["evidence", "control/random"], read).files[0].content)
    assert set(part["controls"]) == {"random"}
    assert "noise" not in part
    assert "controls" not in json.loads(step.merge(["evidence", "noise"], read).files[0].content)
    with pytest.raises(ValueError, match="the evidence was cancelled; resume the run"):
        step.merge(["control/random", "noise"], read)


def evidence_of(step: Evaluate) -> tuple[dict[str, Any], dict[str, Any]]:
    """results.json of the task `evidence` alone, and its scores and curves."""
    (file,) = (item for item in step.run("evidence") if isinstance(item, File))
    length = int.from_bytes(file.content[:8], "little")
    header: Mapping[str, Any] = json.loads(file.content[8 : 8 + length])
    told = {key: json.loads(value) for key, value in header["__metadata__"].items()}
    merged = step.merge(["evidence"], lambda _: ({}, told))
    results = json.loads(merged.files[0].content, parse_constant=pytest.fail)
    return results, {"scores": told["scores"], "curves": sorted(set(header) - {"__metadata__"})}


def test_a_classifier_without_mistakes_on_real_images_and_no_validation(done: Evaluated) -> None:
    step = done.step()
    data, before = step.dataset, step.before
    train, test = (
        Split(split.images, before(split.images).detach().argmax(1)) for split in (data.train, data.test)
    )
    test = test[test.labels != 2]  # nor is there a test image of every class
    step.dataset = ImageDataset("right", train, test, data.class_names)
    told, stored = evidence_of(step)
    assert told["before"]["test"] == 1.0
    assert "validation" not in told["before"]
    assert [row["validation"] for row in stored["scores"]] == [None] * 3
    assert told["novelty"]["reference"] == {"images": 1280, "misclassified": False}
    assert list(told["novelty"]["latent"]) == list(told["novelty"]["pixels"]) == ["draws of failure regions"]
    assert stored["curves"] == [
        "agreement.share", "figure6.draws", "figure6.draws.predictions", "figure6.known",
        "figure6.known.predictions", "latent_novelty.draws of failure regions",
        "novelty.draws of failure regions",
    ]  # fmt: skip
    assert told["by_class"][2]["before"] == [None, 0.0, 1.0, 0]
    (control,) = (i for i in step.run("control/lam=0") if isinstance(i, File))
    assert "validation" not in json.loads(_told(control.content)["measured"])


def test_a_classifier_that_reads_no_image_right(done: Evaluated) -> None:
    step = done.step()
    data, before = step.dataset, step.before
    train = Split(data.train.images, (before(data.train.images).detach().argmax(1) + 1) % 3)
    step.dataset = ImageDataset("wrong", train, data.test, data.class_names, data.validation)
    told, _ = evidence_of(step)
    assert told["still_correct_after_reconstruction"] is None
    assert told["novelty"]["reference"] == {"images": 1280, "misclassified": True}
    (control,) = (i for i in step.run("control/random") if isinstance(i, File))
    assert json.loads(_told(control.content)["measured"])["regions"] > 0


def test_one_region_no_baseline_no_controls(done: Evaluated, place: Place) -> None:
    region_id = done.results["by_region"][0]["region_id"]
    sweep = {
        **SWEEP, "correction": {**SWEEP["correction"], "lambdas": [1.0], "epochs": 1},
        "baseline_lambdas": [], "regions": [region_id],
    }  # fmt: skip
    corrected = done_here(place, "correct", sweep)
    config = {"controls": False, "noise_images": 0, "n_nearest": 1000}
    alone = Evaluated(place, corrected, done_here(place, "evaluate", config))
    assert alone.step().tasks() == ["evidence"]
    told = alone.results
    assert not {"controls", "noise", "held_out"} & set(told)
    assert told["baseline"] is None
    (row,) = told["by_region"]
    images, labels, ids = alone.failures("test")
    assert (row["region_id"], row["name"], row["baseline"]) == (region_id, None, None)
    assert row["before"] == wilson(right(alone.source.classifier(), images, labels))
    assert ids.tolist() == [region_id] * 16
    (nearest,) = told["nearest"]["regions"]
    assert sorted(nearest["index"]) == list(range(120))  # there are no more
    assert told["nearest"]["pooled"] == told["nearest"]["test"]
    assert Interval(*row["after"]).n == 16
