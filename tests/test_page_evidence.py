"""The page Evidence, empty and filled, without a browser."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from streamlit.testing.v1 import AppTest

from dashboard.evidence.form import why_stale
from defuse_core.report.evidence import read_evidence
from defuse_core.report.numbers import p_value
from defuse_core.steps.source import Source
from defuse_core.workspace.labels import LabelEvent
from tests.apps import (
    NASTY,
    click,
    errors,
    figure,
    has_markup,
    keep_downloads,
    latest,
    metrics,
    opener,
    settle,
    tiles,
    told,
    words,
)
from tests.in_process import add_run, begin, done_here, end_all, store_run
from tests.workspaces import Place, copy_place

pytestmark = pytest.mark.usefixtures("runs_wait")
opened = opener("evidence")

SWEEP: dict[str, Any] = {
    "correction": {
        "lambdas": [1.0], "epochs": 1, "instances_per_region": 16, "held_out_share": 0.4, "precision": "fp32",
    },
    "baseline_lambdas": [1.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a correction, its evaluation and its report; to be copied."""
    place = copy_place(template, tmp_path_factory.mktemp("measured") / "home")
    done_here(place, "correct", SWEEP)
    done_here(place, "evaluate", {"n_nearest": 5, "noise_images": 32})
    done_here(place, "report")
    place.workspace.close()
    return place.workspace.home


@pytest.fixture
def bare(place: Place) -> Iterator[Place]:
    """A workspace without a correction, whose runs end with the test."""
    yield place
    end_all(place)


@pytest.fixture
def full(measured: Path, tmp_path: Path) -> Iterator[Place]:
    """A workspace of one's own with a correction, its evaluation and its report."""
    place = copy_place(measured, tmp_path / "full")
    yield place
    end_all(place)


def results_of(place: Place) -> dict[str, Any]:
    path = place.workspace.artifact_path(latest(place, "evaluate").id, "results.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def store_results(place: Place, change: Callable[[dict[str, Any]], object]) -> None:
    """Let the evaluation have found something else."""
    results = results_of(place)
    change(results)
    place.workspace.store_artifact(latest(place, "evaluate").id, "results.json", json.dumps(results).encode())


def chart(app: AppTest, place: Place, name: str) -> dict[str, Any]:
    return figure(app, f"{name}-{latest(place, 'evaluate').id}")


def headings(app: AppTest) -> list[str]:
    return [heading.value for heading in app.subheader]


CARDS = [
    "Accuracy before and after", "What would have changed without the regions", "Where it changed",
    "Nearest real test images", "How new the draws are", "Agreement", "Raw against centred noise",
    "Limits of these numbers", "The report",
]  # fmt: skip


# Before there is anything


def test_without_a_correction_the_page_leads_to_it(bare: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(bare, monkeypatch)
    assert "Needs a correction first." in told(app)
    assert not app.button or "Measure" not in [button.label for button in app.button]
    assert [link.proto.page for link in app.get("page_link")] == ["correct"]


def test_while_the_correction_is_under_way_measuring_can_be_queued(
    bare: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(bare, "correct", SWEEP)
    begin(bare, run)
    app = opened(bare, monkeypatch)
    assert f"Correction {run.id} is running; an evaluation started here waits for it." in told(app)
    click(app, "Measure")
    assert latest(bare, "evaluate").upstream == (run.id,)


def test_measure_starts_an_evaluation_with_the_config_and_seed_of_the_form(
    bare: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct = store_run(bare, "correct", {})
    app = opened(bare, monkeypatch)
    assert not headings(app)
    nearest = f"evaluate-{bare.project.id}-n_nearest"
    app.number_input(key=nearest).set_value(7).run()
    app.number_input(key="evaluate-seed").set_value(3).run()
    click(app, "Measure")
    run = latest(bare, "evaluate")
    assert (run.seed, run.upstream, run.config["n_nearest"]) == (3, (correct.id,), 7)
    assert "is waiting for another run" in told(app)
    (button,) = [button for button in app.button if button.label == "Measure"]
    assert button.disabled


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_an_evaluation_that_did_not_end_well_says_so(
    bare: Place, monkeypatch: pytest.MonkeyPatch, status: Any
) -> None:
    store_run(bare, "correct", {})
    run = add_run(bare, "evaluate")
    begin(bare, run)
    bare.workspace.runs.finish(run.id, status, error="no *memory*" if status == "failed" else None)
    app = opened(bare, monkeypatch)
    if status == "failed":
        assert errors(app) == ["no *memory*"]
    else:
        assert "Evidence was cancelled" in told(app)
    (button,) = [button for button in app.button if button.label == "Measure"]
    assert not button.disabled


def test_a_live_evaluation_shows_its_parts(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(full, "evaluate")
    begin(full, run)
    full.workspace.runs.plan_tasks(run.id, ["evidence", "control/lam=0", "noise"])
    app = opened(full, monkeypatch)
    assert "λ = 0: queued" in told(app)
    assert app.get("progress")
    assert headings(app) == CARDS  # those measured before stay


# What is shown


def test_every_card_is_there_in_order_with_the_stored_numbers(
    full: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(full, monkeypatch)
    assert headings(app) == CARDS
    assert not has_markup(app)
    results = results_of(full)
    bars = {trace["name"]: trace for trace in chart(app, full, "figure4")["data"] if trace["type"] == "bar"}
    parts = ("validation", "test", "region")
    for name, key in (("before", "before"), ("identified mistakes", "baseline"), ("Defuse", "defuse")):
        np.testing.assert_allclose(bars[name]["y"], [results[key][part] for part in parts])
        low, high = zip(*(results[key][f"{part}_interval"] for part in parts), strict=True)
        np.testing.assert_allclose(np.array(bars[name]["y"]) + bars[name]["error_y"]["array"], high)
        np.testing.assert_allclose(np.array(bars[name]["y"]) - bars[name]["error_y"]["arrayminus"], low)
    fixed, broken = results["flips"]["fixed"], results["flips"]["broken"]
    p = binomtest(fixed, fixed + broken).pvalue
    assert f"{fixed} test images were fixed and {broken} broken" in told(app)
    assert p_value(p) in told(app)
    assert f"{results['held_out']['after'] * 100:.1f}\xa0% (" in told(app)
    noise = {trace["name"]: list(trace["y"]) for trace in chart(app, full, "noise")["data"]}
    kinds = ("perturbation", "reconstruction", "dataset")
    assert noise == {f"{name} noise": [row[kind] for kind in kinds] for name, row in results["noise"].items()}
    still = results["still_correct_after_reconstruction"]
    assert metrics(app)["Still classified correctly after reconstruction"] == f"{still * 100:.1f}\xa0%"
    assert ("too blurry" in told(app)) == (still < 0.95)
    n_train = round(latest(full, "classifier").summary["accuracy"]["train"] * 1280)
    assert f"Of n = {n_train:,} training images" in words(told(app))


def test_every_caption_says_n_seed_and_runs(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(full, monkeypatch)
    run, correct = latest(full, "evaluate"), latest(full, "correct")
    captions = [words(c.value) for c in app.caption if f"evaluation {run.id} of correction" in c.value]
    charts = len(app.get("plotly_chart"))
    assert charts == 8  # one annotator: no agreement
    assert len(captions) == charts + 2  # the real images, and the reconstruction
    for caption in captions:
        assert "n = " in caption
        assert caption.endswith(f"seed 0; evaluation {run.id} of correction {correct.id}.")


def test_the_page_says_what_it_stands_on(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(full, monkeypatch)
    runs = {step: latest(full, step).id for step in ("classifier", "vae", "identify", "distill", "correct")}
    assert (
        f"stands on the runs Classifier {runs['classifier']} · Generator {runs['vae']} · Mistakes "
        f"{runs['identify']} · Regions {runs['distill']} · Correction {runs['correct']}"
    ) in told(app)
    assert "out of date" not in told(app)


def test_nearest_real_images_are_those_of_the_step_with_both_predictions(
    full: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, source = results_of(full), Source(full.workspace, latest(full, "evaluate").id)
    worst = results["by_region"][0]["region_id"]
    rows = {row["region_id"]: row for row in results["nearest"]["regions"]}
    test, names = source.dataset.test, full.project.class_names
    said = full.tensors(latest(full, "correct"))
    app = opened(full, monkeypatch)
    for region_id in (worst, next(i for i in rows if i != worst)):
        if region_id != worst:
            app.selectbox(key="nearest").set_value(str(region_id)).run()
            settle(app)
        shown, index = tiles(app, "nearest-images"), rows[region_id]["index"]
        assert len(shown) == len(index) == 5
        for tile, i in zip(shown, index, strict=True):
            np.testing.assert_array_equal(tile["images"][0][..., 0], test.images[i, 0].numpy())
            label = names[int(test.labels[i])]
            before, after = (
                names[int(said[f"{task}.said.safetensors"]["test"][i])] for task in ("before", "lam=1")
            )
            assert tile["caption"].startswith(f"{label}: {before} → {after}\ntest {i}\n")
            assert tile["wrong"] == (after != label)
        right, low, high = (share * 100 for share in rows[region_id]["after"][:3])
        assert f"{right:.1f}\xa0% ({low:.1f} to {high:.1f}\xa0%) after." in told(app)


def test_files_are_what_they_say(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keep_downloads(monkeypatch)
    opened(full, monkeypatch)
    run, results = latest(full, "evaluate").id, results_of(full)
    figures = {name.rpartition(".")[0] for name in kept if name.endswith(".png")}
    names = (
        "figure4",
        "controls",
        "by-region",
        "by-class",
        "nearest",
        "novelty-pixels",
        "novelty-latent",
        "noise",
    )
    assert {f"evidence-run{run}-{name}" for name in names} < figures
    assert len(figures) == len(names) + 1  # the real images of a region
    for name in figures:
        assert kept[f"{name}.png"]().startswith(b"\x89PNG")
        assert b"<svg" in kept[f"{name}.svg"]()
        assert "n = " in pd.read_csv(io.BytesIO(kept[f"{name}.csv"]()))["settings"][0]
    table = pd.read_csv(io.BytesIO(kept[f"evidence-run{run}-controls.csv"]()))
    rows = table[table["model"] == "λ = 0"].set_index("measured_on")
    for name, shown in (("test", "test"), ("region", "regions")):
        got = rows.loc[shown, ["accuracy", "low", "high", "n"]].to_numpy(float)
        np.testing.assert_allclose(got, results["controls"]["lam=0"][name])
    distances = full.tensors(latest(full, "evaluate"))["evidence.safetensors"]
    bars = pd.read_csv(io.BytesIO(kept[f"evidence-run{run}-novelty-latent.csv"]()))
    for name, part in bars.groupby("set"):
        far = distances[f"latent_novelty.{name}"].numpy()
        assert part["images"].sum() == len(far)
        assert part["median"].iloc[0] == pytest.approx(np.median(far))


def test_the_report_is_made_and_taken(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keep_downloads(monkeypatch)
    app = opened(full, monkeypatch)
    report = latest(full, "report")
    html = kept[f"report-run{report.id}.html"]()
    assert html == full.workspace.artifact_path(report.id, "report.html").read_bytes()
    assert json.loads(kept[f"manifest-run{report.id}.json"]())
    click(app, "Make the report again")
    again = latest(full, "report")
    assert again.id > report.id
    assert again.upstream == (latest(full, "evaluate").id,)
    assert "It is waiting for another run" in next(bar.proto.text for bar in app.get("progress"))
    assert "present" in [link.proto.page for link in app.get("page_link")]


# What may be missing


def test_controls_and_noise_that_were_left_out_say_how_to_have_them(
    full: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_results(full, lambda results: [results.pop(name) for name in ("controls", "noise")])
    app = opened(full, monkeypatch)
    assert {info.value for info in app.info if "Not measured" in info.value} == {
        "Not measured: measure with controls to see this.",
        "Not measured: measure with noise images to see this.",
    }


def test_one_annotator_has_nobody_to_agree_with(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_evidence(full.workspace, latest(full, "evaluate").id).pairwise is None
    assert "No two annotators have answered the same draw" in told(opened(full, monkeypatch))


def test_without_baseline_validation_and_misread_test_images(
    bare: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    done_here(bare, "correct", {**SWEEP, "baseline_lambdas": []})
    done_here(bare, "evaluate", {"controls": False, "noise_images": 0})
    app = opened(bare, monkeypatch)
    names = [trace["name"] for trace in chart(app, bare, "figure4")["data"] if trace["type"] == "bar"]
    assert names == ["before", "Defuse"]
    assert "There is no baseline" in told(app)
    assert [b.label for b in app.button if b.label.startswith("Make the report")] == ["Make the report"]


def test_a_control_that_was_cancelled_is_told(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store_results(full, lambda results: results["controls"].pop("random"))
    app = opened(full, monkeypatch)
    assert "**Random regions**: not measured." in told(app)
    models = chart(app, full, "controls")["layout"]["yaxis"]["ticktext"]
    assert list(models) == ["before", "λ = 0", "identified mistakes", "Defuse"]


def test_predictions_that_an_earlier_correction_did_not_keep_are_left_out(
    full: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = results_of(full)
    store_results(full, lambda results: results["defuse"].update(lam=0.5))  # of which there is no task
    app = opened(full, monkeypatch)
    shown = tiles(app, "nearest-images")
    assert len(shown) == len(results["nearest"]["regions"][0]["index"])
    assert not any(tile["corner"] or "→" in tile["caption"] for tile in shown)
    assert "did not keep the prediction for each image" in told(app)


def test_a_blurry_generator_is_warned_of(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store_results(full, lambda results: results.update(still_correct_after_reconstruction=0.9))
    assert "too blurry to blame the classifier" in told(opened(full, monkeypatch))


def test_names_are_text(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(results: dict[str, Any]) -> None:
        for row in results["by_region"]:
            row["name"] = NASTY
        for row in results["by_class"]:
            row["class"] = NASTY

    store_results(full, rename)
    app = opened(full, monkeypatch)
    assert not has_markup(app)
    for name in ("by-region", "by-class", "nearest"):
        spec = json.dumps(chart(app, full, name), default=lambda array: array.tolist())
        assert "<img" not in spec
        assert "&lt;img" in spec


# Which evaluation, and whether it still holds


def test_an_older_evaluation_can_be_chosen_and_is_not_reported(
    full: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = latest(full, "evaluate")
    done_here(full, "evaluate", {"controls": False, "noise_images": 0, "n_nearest": 3})
    app = opened(full, monkeypatch)
    second = latest(full, "evaluate")
    assert f"Evaluation {second.id} stands on" in told(app)
    app.selectbox(key="evaluation").set_value(str(first.id)).run()
    settle(app)
    assert f"Evaluation {first.id} stands on" in told(app)
    (button,) = [button for button in app.button if button.label.startswith("Make the report")]
    assert button.disabled


def test_a_newer_correction_is_told_of(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = latest(full, "correct"), store_run(full, "correct", {})
    app = opened(full, monkeypatch)
    warnings = [words(warning.value) for warning in app.warning]
    assert (
        f"This is the evaluation of correction {old.id}; the newest is {new.id}. Measure that, too."
        in warnings
    )
    assert not any(warning.startswith("This is out of date") for warning in warnings)


def test_why_an_evaluation_is_stale(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    regions, run = latest(full, "distill"), latest(full, "evaluate")
    full.workspace.annotations.append(regions.id, [LabelEvent(0, "Bob", None, 0)])
    assert full.get(run).stale
    app = opened(full, monkeypatch)
    assert "labels were given since the correction began" in words(told(app))
    again = store_run(full, "distill", {})
    assert why_stale(full.project, run) == (
        f"regions {regions.id} was followed by run {again.id}; go on from there"
    )  # fmt: skip
