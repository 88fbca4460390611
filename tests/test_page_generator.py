"""The generator's page, empty and filled, without a browser."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from defuse_core.base.config import PRESETS, VaeTraining
from defuse_core.data.splits import as_bytes
from defuse_core.method.evaluation import reconstruction_control
from defuse_core.method.vae import BetaVAE, decode_images, encode_means, vae_config_for
from defuse_core.method.vae_training import train_vae
from defuse_core.reproduction.demo import demo_project
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.config_fields import walk_fields
from defuse_core.workspace.configs import GeneratorConfig, preset_values
from defuse_core.workspace.workspace import Workspace
from tests.apps import click, errors, figure, latest, metrics, open_page, opener, settle, tiles, told, words
from tests.conftest import bars
from tests.in_process import add_run, begin, done_here, end_all, fresh_place, store_run
from tests.workspaces import ALONE, Place

opened = opener("generator")


def as_images(pixels: torch.Tensor) -> np.ndarray[Any, Any]:
    return as_bytes(pixels).permute(0, 2, 3, 1).numpy()


def test_without_runs_the_page_offers_to_train(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(fresh_place(tmp_path / "home", template.parent / "shapes.npz"), monkeypatch)
    assert [info.value for info in app.info] == ["No generator yet."]
    assert [button.label for button in app.button] == ["Train"]
    assert not app.selectbox(key="vae-weights").options  # no shipped model is of such images
    assert not app.get("plotly_chart")


def test_shipped_generators_of_such_images_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "home")
    digits = Place(workspace, demo_project(workspace))
    app = opened(digits, monkeypatch)
    app.selectbox(key="vae-weights").set_value("demo-vae").run()
    assert not app.number_input  # its shape is its own
    try:
        click(app, "Use this generator")
        expected = check_config("vae", {"weights": "shipped:demo-vae"}).model_dump(mode="json")
        assert latest(digits, "vae").config == expected
        assert not workspace.runs.of_project(digits.project.id, "control")  # there is no classifier yet
    finally:
        end_all(digits)


def test_losses_are_those_of_the_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = latest(place, "vae")
    points = [event.data for event in place.workspace.runs.events(run.id, kind="point")]
    assert len(points) == 20
    app = opened(place, monkeypatch)
    (line,) = figure(app, "g-reconstruction")["data"]
    assert list(line["y"]) == [point["reconstruction"] for point in points]
    assert list(line["x"]) == list(range(1, 21))
    kl, weighted = figure(app, "g-kl")["data"]
    assert (kl["name"], weighted["name"]) == ("KL", "βw·KL")
    assert list(kl["y"]) == [point["kl"] for point in points]
    beta = run.config["training"]["beta"]
    np.testing.assert_allclose(weighted["y"], [beta * p["kl_weight"] * p["kl"] for p in points])
    assert 0 < weighted["y"][0] < weighted["y"][-1]


def test_the_control_is_told_as_measured_and_warns(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Measure it" in [button.label for button in opened(place, monkeypatch).button]
    run = done_here(place, "control", ALONE)
    source = Source(place.workspace, run.id)
    app = opened(place, monkeypatch)
    shown, poor = metrics(app), []
    for part, split in source.dataset.splits().items():
        found = reconstruction_control(source.classifier(), source.vae(), split)
        assert shown[f"Still correct, {part}"] == f"{found.estimate:.1%}"
        poor += [part] if found.estimate < 0.95 else []
    assert poor, "the template's generator is blurry"
    (warning,) = app.warning
    assert f"Under 95% on {' and '.join(poor)} images" in warning.value
    rows = sorted(row[0] for row in run.summary["by_class"]["train"])
    assert list(figure(app, "control-by-class")["data"][0]["x"]) == pytest.approx(rows)


def store_control(place: Place, share: float) -> None:
    """A control run that measured this share on each split."""
    found = [share, share - 0.01, share + 0.01, 100]
    parts = ("train", "test")
    store_run(
        place,
        "control",
        {"control": dict.fromkeys(parts, found), "by_class": dict.fromkeys(parts, [found] * 3)},
    )


@pytest.mark.parametrize(("share", "warned"), [(0.949, True), (0.95, False), (0.99, False)])
def test_the_warning_begins_under_95_percent(
    place: Place, monkeypatch: pytest.MonkeyPatch, share: float, warned: bool
) -> None:
    store_control(place, share)
    app = opened(place, monkeypatch)
    assert metrics(app)["Still correct, test"] == f"{share:.1%}"
    assert bool(app.warning) is warned
    assert bool(app.success) is not warned


def test_a_control_of_an_older_generator_is_measured_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_control(place, 0.99)
    content = place.workspace.artifact_path(latest(place, "vae").id, "vae.safetensors").read_bytes()
    vae = store_run(place, "vae", {"latent_dim": 4})
    place.workspace.runs.name_artifact(
        vae.id, place.workspace.store_artifact(vae.id, "vae.safetensors", content)
    )
    app = opened(place, monkeypatch)
    assert "Still correct, test" not in metrics(app)
    click(app, "Measure it")
    run = latest(place, "control")
    assert (run.live, run.config) == (True, {"train_reader": True})
    assert vae.id in run.upstream
    assert "It is waiting for another run …" in told(app)  # what the sidebar says, too
    begin(place, run)
    assert "Every image is reconstructed and classified …" in told(opened(place, monkeypatch))


def test_what_the_generator_makes_is_what_it_computes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = latest(place, "vae")
    source = Source(place.workspace, done_here(place, "control", ALONE).id)
    vae, test = source.vae(), source.dataset.test
    app = opened(place, monkeypatch, **{"images-of": "test", "draw": "3"})
    assert app.selectbox(key="images-of").value == "test"
    assert app.number_input(key="draw").value == 3
    originals = test.images.permute(0, 2, 3, 1).numpy()
    decoded = as_images(decode_images(vae, encode_means(vae, test.images)))
    pairs = tiles(app, "pairs")
    assert len(pairs) == 10
    chosen = []
    for tile in pairs:
        index = next(i for i, image in enumerate(originals) if np.array_equal(image, tile["images"][0]))
        assert np.abs(decoded[index].astype(int) - tile["images"][1]).max() <= 1
        assert tile["caption"] == place.project.class_names[test.labels[index]]
        chosen.append(index)
    assert len(set(chosen)) == 10
    samples = tiles(app, "prior")
    assert len(samples) == 20
    assert {tile["images"][0].shape for tile in samples} == {(8, 8, 1)}
    rows = tiles(app, "traversal")
    assert [row["caption"] for row in rows] == [f"z{i + 1}" for i in range(run.summary["latent_dim"])]
    codes = encode_means(vae, test.images[chosen[:1]])
    for dimension, row in enumerate(rows):
        moved = codes.repeat(9, 1)
        moved[:, dimension] = torch.linspace(-3, 3, 9)
        expected = as_images(decode_images(vae, moved))
        assert np.abs(expected.astype(int) - np.stack(row["images"])).max() <= 1
    app.number_input(key="draw").set_value(4).run()
    others = tiles(settle(app), "pairs")
    assert not all(np.array_equal(a["images"][0], b["images"][0]) for a, b in zip(pairs, others, strict=True))


def fields(app: AppTest, key: str) -> dict[str, Any]:
    """Values of the form's widgets by field."""
    kinds = (app.number_input, app.selectbox, app.text_input, app.toggle)
    found = {w.key: w.value for kind in kinds for w in kind if w.key and w.key.startswith(key)}
    return {name.removeprefix(key): value for name, value in found.items() if not name.endswith("-preset")}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_every_field(place: Place, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    app = opened(place, monkeypatch)
    app.selectbox(key="vae-1-preset").set_value(preset).run()
    shown = fields(app, "vae-1-")
    expected = PRESETS[preset].vae_training.model_dump()
    for name, value in expected.items():
        assert shown.pop(f"training.{name}") == value, name
    for name in ("latent_dim", "hidden_channels", "hidden_units", "depth", "decoder", "blocks"):
        assert shown.pop(name) == getattr(PRESETS[preset].vae, name), name
    assert not shown  # no field is left as it was


def test_train_submits_what_is_shown_and_the_control_after_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(place, monkeypatch)
    app.selectbox(key="vae-1-preset").set_value("svhn").run()
    app.number_input(key="vae-1-latent_dim").set_value(6)
    app.number_input(key="vae-1-training.beta").set_value(0.25)
    app.number_input(key="vae-1-training.patience").set_value(7)
    app.number_input(key="vae-seed").set_value(5)
    app.run()
    click(app, "Train")
    run, control = latest(place, "vae"), latest(place, "control")
    assert run.live
    values = preset_values(PRESETS["svhn"], "vae")
    values = {**values, "latent_dim": 6, "training": {**values["training"], "beta": 0.25, "patience": 7}}
    assert run.config == check_config("vae", values).model_dump(mode="json")
    assert (run.seed, run.resources.device) == (5, "auto")
    assert control.live
    assert run.id in control.upstream
    assert {**fields(app, "vae-1-")}["latent_dim"] == 6  # it stays as it was set


def test_untouched_the_form_submits_the_defaults(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    click(opened(place, monkeypatch), "Train")
    assert latest(place, "vae").config == GeneratorConfig().model_dump(mode="json")
    assert {".".join(path) for path, _, _ in walk_fields(GeneratorConfig())} == {
        "weights", "pretrained", *fields(opened(place, monkeypatch), "vae-1-"),
    }  # fmt: skip


def test_a_field_left_empty_is_told_in_one_message(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(place.workspace.runs.of_project(place.project.id))
    app = opened(place, monkeypatch)
    app.number_input(key="vae-1-training.beta").set_value(None)
    app.run()
    click(app, "Train")
    assert len(errors(app)) == 1
    assert errors(app)[0].startswith("vae: training.beta")
    assert len(place.workspace.runs.of_project(place.project.id)) == before


def test_a_training_under_way_is_drawn(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(place, "vae", {"training": {"epochs": 50, "beta": 2.0}})
    assert "It is waiting for another run …" in told(opened(place, monkeypatch))
    begin(place, run)
    assert "Training begins …" in told(opened(place, monkeypatch))
    place.workspace.runs.plan_tasks(run.id, ["vae"])
    place.workspace.runs.report_progress(run.id, "vae", 2, 50, {})
    for epoch, (loss, kl) in enumerate(((90.0, 3.0), (70.0, 5.0)), 1):
        point = {"loss": loss, "reconstruction": loss, "kl": kl, "kl_weight": 0.5}
        place.workspace.runs.add_point(run.id, "vae", str(epoch), point)
    app = opened(place, monkeypatch)
    assert list(figure(app, "g-reconstruction")["data"][0]["y"]) == [90.0, 70.0]
    assert figure(app, "g-reconstruction")["layout"]["xaxis"]["range"] == [0.5, 50.5]
    assert list(figure(app, "g-kl")["data"][1]["y"]) == [3.0, 5.0]
    assert "**Generator** · running 4%" in told(app)
    assert "What it makes" not in told(app)


@pytest.mark.parametrize(
    ("status", "error", "kind", "message"),
    [
        (
            "failed",
            "the loss is not finite; lower the rate",
            "error",
            "the loss is not finite; lower the rate",
        ),
        ("failed", None, "error", "The run failed; its log says more."),
        ("cancelled", None, "warning", "Generator was cancelled. What it had done is kept"),
    ],
)
def test_a_training_that_did_not_end_well_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, status: Any, error: str | None, kind: str, message: str
) -> None:
    run = add_run(place, "vae")
    place.workspace.runs.finish(run.id, status, error=error)
    app = opened(place, monkeypatch)
    (shown,) = getattr(app, kind)
    assert message in words(shown.value)
    assert f"**Generator** · {status}" in told(app)
    assert "Resume" in [button.label for button in app.sidebar.button]


def test_a_split_of_few_images_is_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, few = bars(90, 0), bars(6, 1)
    arrays = {"x_train": split.images[:, 0].numpy(), "y_train": split.labels.numpy()}
    arrays |= {"x_test": few.images[:, 0].numpy(), "y_test": few.labels.numpy()}
    np.savez(tmp_path / "few.npz", **arrays)
    small = fresh_place(tmp_path / "home", tmp_path / "few.npz")
    shape = {"hidden_channels": 4, "depth": 2, "hidden_units": 8, "latent_dim": 2}
    done_here(small, "vae", {**shape, "training": {"epochs": 1}})
    app = open_page(
        small.workspace.home, monkeypatch, "generator",
        project=small.project.name, **{"images-of": "test"},
    )  # fmt: skip
    assert len(tiles(app, "pairs")) == 6


@pytest.mark.parametrize(("theirs", "warned"), [(0.92, False), (0.8, True)])
def test_what_other_networks_keep_stands_beside_it_and_a_difference_is_warned_of(
    place: Place, monkeypatch: pytest.MonkeyPatch, theirs: float, warned: bool
) -> None:
    mine, read = [0.96, 0.95, 0.97, 100], [theirs, 0.7, 0.95, 80]
    summary = {
        "control": dict.fromkeys(("train", "test"), mine), "by_class": {"train": [mine] * 3},
        "by_readers": dict.fromkeys(("train", "test"), read), "readers": ["resnet_small"],
    }  # fmt: skip
    store_run(place, "control", {**summary, "by_readers": {"train": read, "test": [0.96, 0.9, 0.99, 80]}})
    app = opened(place, monkeypatch)
    assert metrics(app)["By other networks, train"] == f"{theirs:.1%}"
    assert metrics(app)["By other networks, test"] == "96.0%"
    assert any("resnet_small" in caption.value for caption in app.caption)
    deceptions = [w.value for w in app.warning if "pleases this classifier alone" in w.value]
    assert bool(deceptions) is warned
    assert all("On train images" in text for text in deceptions)


def test_who_watches_a_training_sees_what_it_keeps_and_its_pictures(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run in the middle of its training: ε = 0 as measured now and then, reconstructions as of now."""
    shape = {"latent_dim": 3, "hidden_channels": 4, "hidden_units": 16, "depth": 2}
    run = add_run(place, "vae", {**shape, "training": {"epochs": 6}})
    begin(place, run)
    for epoch in range(1, 4):
        losses = {"loss": 9.0 - epoch, "reconstruction": 8.0, "kl": 1.0, "kl_weight": 1.0, "monitored": 9.0}
        kept = {"kept": 0.2 * epoch} if epoch != 2 else {}
        place.workspace.runs.add_point(run.id, "vae", str(epoch), {**losses, **kept})
    dataset = Source(place.workspace, run.id).dataset
    vae = BetaVAE(vae_config_for(dataset.image_shape, **shape))
    path = place.workspace.run_folder(run.id) / "work" / "training.safetensors"
    train_vae(
        vae,
        dataset.train.images[:64],
        config=VaeTraining(epochs=2, precision="fp32"),
        seed=0,
        checkpoint=path,
    )
    try:
        app = opened(place, monkeypatch)
        (line,) = figure(app, "g-kept")["data"]
        assert list(line["x"]) == [1, 3]
        assert list(line["y"]) == pytest.approx([0.2, 0.6])
        assert "By now 60%: around 40% of the images" in " ".join(caption.value for caption in app.caption)
        assert "Originals and their reconstructions after 2 epochs" in told(app)
        assert len(tiles(app, "unfinished")) == 10
    finally:
        end_all(place)


def test_a_generator_that_is_done_can_be_trained_further(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = latest(place, "vae")
    app = opened(place, monkeypatch)
    app.number_input(key=f"further-{run.id}").set_value(7).run()
    try:
        click(app, "Train on")
        further = latest(place, "vae")
        stored = place.workspace.artifact_path(run.id, "vae.safetensors").read_bytes()
        assert further.config["pretrained"] == f"blob:{hashlib.sha256(stored).hexdigest()}"
        assert further.config["training"]["epochs"] == 7
        assert further.config["training"]["kl_anneal_steps"] == 0
        assert further.config["latent_dim"] == run.config["latent_dim"]
        assert further.id in latest(place, "control").upstream
        page = opener("classifier")(place, monkeypatch)  # which does not offer it as a classifier
        assert not any("generator of run" in str(box.options) for box in page.selectbox)
    finally:
        end_all(place)
