"""The classifier's page, empty and filled, without a browser: bring, inspect, train, see what is wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.metrics import confusion_matrix
from streamlit.testing.v1 import AppTest
from torch import nn

from dashboard.classifier import bring as bring_page
from defuse_core.base.config import PRESETS
from defuse_core.data.splits import Split
from defuse_core.method.classifier import predict_logits
from defuse_core.networks.architectures import build_network
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import check_config
from tests.apps import (
    NASTY,
    click,
    errors,
    figure,
    has_markup,
    latest,
    metrics,
    open_page,
    opener,
    settle,
    tiles,
    toasts,
    told,
    words,
)
from tests.conftest import TinyNetwork, bars
from tests.in_process import add_run, begin, done_here, end_all, fresh_place, run_here, store_run
from tests.workspaces import Place, computing_elsewhere

opened = opener("classifier")


@pytest.fixture
def empty(tmp_path: Path, template: Path) -> Iterator[Place]:
    """A project on the shapes without a run."""
    found = fresh_place(tmp_path / "home", template.parent / "shapes.npz", name="shapes")
    yield found
    end_all(found)


def answers(place: Place, part: str) -> tuple[Split, torch.Tensor, torch.Tensor]:
    """A split with what the stored classifier says of it, and how sure it is, computed anew."""
    source = Source(place.workspace, latest(place, "identify").id)
    split = source.dataset.splits()[part]
    confidence, predictions = predict_logits(source.classifier(), split.images).softmax(1).max(1)
    return split, predictions, confidence


def shown_of(app: AppTest) -> tuple[int, int]:
    """How many images are shown, of how many."""
    (line,) = [c.value for c in app.caption if "most confident first" in c.value]
    few, _, many = line.partition(",")[0].partition(" of ")
    return int(few), int(many)


# Empty


@pytest.mark.parametrize("project", ["no such project", NASTY])
def test_a_link_to_a_project_that_is_gone_is_as_without(
    empty: Place, monkeypatch: pytest.MonkeyPatch, project: str
) -> None:
    app = open_page(empty.workspace.home, monkeypatch, "classifier", project=project)
    assert "No project is open." in app.info[0].value
    assert NASTY not in told(app)
    assert app.sidebar.selectbox[0].options == ["shapes"]


def look(app: AppTest) -> AppTest:
    """Open the images of the data set."""
    app.session_state["look"] = True
    return settle(app.run())


def test_without_runs_the_page_offers_to_bring_or_train(
    empty: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(empty, monkeypatch)
    assert "No classifier yet" in app.info[0].value
    assert "1,280 train + 60 validation + 120 test images · 8×8, grey · 3 classes" in told(app)
    (bring,) = [e for e in app.expander if e.label == "Upload or train a classifier"]
    assert bring.proto.expanded
    assert not app.metric
    assert not app.get("plotly_chart")
    assert not app.get("bidi_component")  # images are loaded once they are asked for
    samples = tiles(look(app), "samples")
    assert [tile["caption"].partition(" · ")[0] for tile in samples] == ["row", "column", "diagonal"]
    assert sum(int(tile["caption"].rpartition(" ")[2]) for tile in samples) == 1280


# Filled


def test_numbers_are_those_that_were_stored(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(place, monkeypatch)
    shown = metrics(app)
    for part in ("test", "validation", "train"):
        split, predictions, _ = answers(place, part)
        share = float((predictions == split.labels).double().mean())
        assert shown[f"{part.capitalize()} accuracy"] == f"{share:.3f}"
    assert shown["Architecture"] == "resnet_small"
    split, predictions, _ = answers(place, "test")
    (drawn,) = figure(app, "confusion")["data"]
    expected = confusion_matrix(split.labels, predictions, labels=range(3))
    np.testing.assert_array_equal(drawn["customdata"], expected)
    assert np.isnan(np.diag(np.array(drawn["z"], dtype=float))).all()
    n_wrong = int((predictions != split.labels).sum())
    assert [s.value for s in app.subheader] == [f"Misclassified: {n_wrong} of 120"]
    assert shown_of(app) == (min(24, n_wrong), n_wrong)
    shares = sorted(np.diag(expected) / expected.sum(1))
    assert list(figure(app, "by-class")["data"][0]["x"]) == pytest.approx(shares)


def test_the_misclassified_are_shown_those_it_is_surest_of_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, predictions, confidence = answers(place, "test")
    names = place.project.class_names
    wrong = torch.nonzero(predictions != split.labels)[:, 0]
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)].tolist()
    shown = tiles(opened(place, monkeypatch), "wrong")
    assert len(shown) == 24
    for index, tile in zip(order, shown, strict=False):
        np.testing.assert_array_equal(tile["images"][0], split.images[index].permute(1, 2, 0).numpy())
        assert (tile["corner"], tile["wrong"]) == (names[predictions[index]], True)
        assert tile["caption"] == f"{names[split.labels[index]]}, {confidence[index]:.0%} sure\ntest {index}"
        assert tile["alt"] == [f"{names[split.labels[index]]}, predicted as {names[predictions[index]]}"]


def test_filters_narrow_the_misclassified(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    split, predictions, _ = answers(place, "test")
    wrong = predictions != split.labels
    app = opened(place, monkeypatch)
    app.number_input(key="page").set_value(2).run()
    assert shown_of(app) == (int(wrong.sum()) - 24, int(wrong.sum()))
    for label in range(3):
        app.selectbox(key="label").set_value(str(label)).run()
        of_label = int((wrong & (split.labels == label)).sum())
        assert shown_of(settle(app))[1] == of_label
        for said in range(3):
            app.selectbox(key="said").set_value(str(said)).run()
            both = int((wrong & (split.labels == label) & (predictions == said)).sum())
            assert shown_of(settle(app))[1] == both
        app.selectbox(key="said").set_value(None).run()
    assert app.number_input(key="page").value <= app.number_input(key="page").max


def test_a_link_opens_what_was_filtered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    split, predictions, _ = answers(place, "train")
    names = place.project.class_names
    flow = confusion_matrix(split.labels, predictions)
    others = flow - np.diag(np.diag(flow))
    label, said = np.unravel_index(others.argmax(), others.shape)
    n = int(others.max())
    assert n > 24
    app = opened(place, monkeypatch, split="train", label=names[label], said=names[said], page="2")
    assert shown_of(app) == (min(24, n - 24), n)
    assert app.subheader[0].value == f"Misclassified: {others.sum()} of 1,280"
    assert {tile["corner"] for tile in tiles(app, "wrong")} == {names[said]}
    np.testing.assert_array_equal(figure(app, "confusion")["data"][0]["customdata"], flow)


@pytest.mark.parametrize(
    "query",
    [{"split": "none such"}, {"label": NASTY}, {"said": "7"}, {"page": "99"}, {"how": "x"}, {"from": "x"}],
)
def test_a_link_to_what_is_not_there_opens_all(
    place: Place, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    split, predictions, _ = answers(place, "test")
    app = opened(place, monkeypatch, **query)
    assert shown_of(app)[1] == int((predictions != split.labels).sum())
    assert app.number_input(key="page").value == 1


def test_a_perfect_classifier_is_told_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(9) % 3
    content = safetensors.torch.save(
        {"test.labels": labels, "test.predictions": labels.clone(), "test.confidence": torch.ones(9)}
    )
    full = [1.0, 0.7, 1.0, 9]
    summary = {
        "architecture": "x", "accuracy": {"test": 1.0}, "intervals": {"test": full},
        "by_class": {"test": [full, full, None]},
    }  # fmt: skip
    run = store_run(place, "classifier", summary)
    store = place.workspace
    store.runs.name_artifact(run.id, store.store_artifact(run.id, "predictions.safetensors", content))
    app = opened(place, monkeypatch)
    assert app.subheader[0].value == "Misclassified: 0 of 9"
    assert "None: a test accuracy that looks too good" in told(app)
    assert metrics(app)["Test accuracy"] == "1.000"


# Train one here


def fields(app: AppTest, key: str) -> dict[str, Any]:
    """Values of the form's widgets by field."""
    kinds = (app.number_input, app.selectbox, app.text_input, app.toggle)
    found = {w.key: w.value for kind in kinds for w in kind if w.key and w.key.startswith(key)}
    return {name.removeprefix(key): value for name, value in found.items() if not name.endswith("-preset")}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_every_field(empty: Place, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    app = opened(empty, monkeypatch, how="Train one here")
    app.selectbox(key="train-1-preset").set_value(preset).run()
    shown = fields(app, "train-1-")
    expected = PRESETS[preset].classifier_training.model_dump()
    assert {name: shown[f"training.{name}"] for name in expected} == expected


def test_train_submits_what_is_shown(empty: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(empty, monkeypatch, how="Train one here")
    app.text_input(key="train-1-architecture").set_value("resnet_small")
    app.selectbox(key="train-1-training.optimizer").set_value("adam")
    app.number_input(key="train-1-training.learning_rate").set_value(0.0025)
    app.number_input(key="train-1-training.epochs").set_value(3)
    app.selectbox(key="train-1-training.augmentation").set_value("affine")
    app.text_input(key="train-1-mean").set_value("0.25")
    app.text_input(key="train-1-std").set_value(" 0.125 ")
    app.number_input(key="train-1-image_size").set_value(16)
    app.number_input(key="train-seed").set_value(4)
    app.run()
    app = click(app, "Train")
    run = latest(empty, "classifier")
    values = {
        "architecture": "resnet_small", "mean": [0.25], "std": [0.125], "image_size": 16,
        "training": {"optimizer": "adam", "learning_rate": 0.0025, "epochs": 3, "augmentation": "affine"},
    }  # fmt: skip
    assert run.config == check_config("classifier", values).model_dump(mode="json")
    assert (run.live, run.seed) == (True, 4)
    assert "It is waiting for another run …" in told(app)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mean", "a, b", "classifier: mean.0"),
        ("mean", "0.1, 0.2", "classifier: mean and std need 1 or 3 values each"),
        ("std", "-1", "classifier: std.0"),
        ("std", "nan", "classifier: std.0"),
        ("training.learning_rate", None, "classifier: training.learning_rate"),
        ("training.learning_rate", -0.5, "classifier: training.learning_rate"),
    ],
)
def test_bad_input_is_told_in_one_message(
    empty: Place, monkeypatch: pytest.MonkeyPatch, field: str, value: Any, message: str
) -> None:
    app = opened(empty, monkeypatch, how="Train one here")
    kind = app.number_input if field.startswith("training") else app.text_input
    kind(key=f"train-1-{field}").set_value(value).run()
    app = click(app, "Train")
    assert len(errors(app)) == 1
    assert errors(app)[0].startswith(message)
    assert not empty.workspace.runs.of_project(empty.project.id)


@pytest.mark.timeout(120)
def test_training_begins_with_the_weights_of_a_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(build_network("resnet_small", n_classes=7, channels=1).state_dict())
    app = upload(opened(place, monkeypatch, how="Train one here"), f"{NASTY}.pt", content)
    (blob,) = place.workspace.blobs(place.project.id)
    begin_with = app.selectbox(key="begin-1")
    assert begin_with.value == f"blob:{blob.sha256}"
    assert begin_with.options[0] == "random weights"
    app.segmented_control(key="how").set_value("Bring one").run()
    app.segmented_control(key="how").set_value("Train one here").run()
    assert app.selectbox(key="begin-1").value == f"blob:{blob.sha256}", "kept, as all fields are"
    app.text_input(key="train-1-architecture").set_value("resnet_small")
    app.number_input(key="train-1-training.epochs").set_value(1)
    app = click(app.run(), "Train")
    run = latest(place, "classifier")
    assert run.config["pretrained"] == f"blob:{blob.sha256}"
    assert place.wait(run).status == "done"
    app = opened(place, monkeypatch)
    told = f"Training began with {NASTY}.pt. Trained from scratch: "
    assert any(words(caption.value).startswith(told) for caption in app.caption)
    assert not has_markup(app)


def test_what_training_cannot_begin_with_is_told(empty: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(empty, monkeypatch, how="Train one here")
    app = upload(app, "notes.pt", b"no weights")
    assert "notes.pt" in errors(app)[0]
    app = upload(app, "signs.pt", scripted(TinyNetwork()))
    assert [error.partition(";")[0] for error in errors(app)] == ["signs.pt is a program"]
    assert app.selectbox(key="begin-1").value == ""
    assert app.selectbox(key="begin-1").options == ["random weights", "ImageNet's weights, by torchvision"]
    app.selectbox(key="begin-1").set_value("imagenet").run()
    assert not errors(app), "what was refused is of no concern any more"
    app.selectbox(key="begin-1").set_value("").run()
    app = click(app, "Train")
    assert latest(empty, "classifier").config["pretrained"] is None


def test_a_training_under_way_is_drawn(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(place, "classifier", {"training": {"epochs": 8}})
    begin(place, run)
    for epoch, loss in enumerate((2.0, 1.5, 1.25), 1):
        place.workspace.runs.add_point(
            run.id, "classifier", str(epoch), {"loss": loss, "accuracy": 1 - loss / 4}
        )
    app = opened(place, monkeypatch)
    assert list(figure(app, "c-loss")["data"][0]["y"]) == [2.0, 1.5, 1.25]
    assert list(figure(app, "c-accuracy")["data"][0]["y"]) == [0.5, 0.625, 0.6875]
    assert figure(app, "c-loss")["layout"]["xaxis"]["range"] == [0.5, 8.5]
    assert "Misclassified" not in told(app)


@pytest.mark.parametrize(
    ("status", "error", "kind", "message"),
    [
        ("failed", f"{NASTY} does not fit", "error", "does not fit"),
        ("cancelled", None, "warning", "Classifier was cancelled. What it had done is kept"),
        ("interrupted", None, "warning", "Classifier was interrupted. What it had done is kept"),
    ],
)
def test_a_run_that_did_not_end_well_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, status: Any, error: str | None, kind: str, message: str
) -> None:
    run = add_run(place, "classifier")
    place.workspace.runs.finish(run.id, status, error=error)
    app = opened(place, monkeypatch)
    (shown,) = getattr(app, kind)
    assert message in words(shown.value)
    assert f"**Classifier** · {status}" in told(app)
    assert not has_markup(app)


# Bring one


def saved(content: object) -> bytes:
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()


def scripted(network: nn.Module) -> bytes:
    written = io.BytesIO()
    torch.jit.save(torch.jit.script(network), written)
    return written.getvalue()


def upload(app: AppTest, name: str, content: bytes) -> AppTest:
    app.file_uploader[0].upload(name, content).run()
    return settle(app)


def no_path(app: AppTest, place: Place) -> bool:
    """Neither the workspace's folder nor a checksum stands on the page."""
    return str(place.workspace.home) not in told(app) and not re.search(r"[0-9a-f]{64}", told(app))


@pytest.mark.timeout(120)
def test_a_checkpoint_is_uploaded_inspected_and_taken_in(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = latest(place, "classifier")
    content = place.workspace.artifact_path(before.id, "classifier.safetensors").read_bytes()
    app = opened(place, monkeypatch)
    app.text_input(key="stated-1-mean").set_value("0.4")
    app.text_input(key="stated-1-std").set_value("0.3")
    app.run()
    app = upload(app, "my signs.safetensors", content)
    (blob,) = place.workspace.blobs(place.project.id)
    assert (blob.name, blob.size) == ("my signs.safetensors", len(content))
    run = latest(place, "inspect")
    stated = {"weights": f"blob:{blob.sha256}", "mean": [0.4], "std": [0.3]}
    assert run.config == check_config("inspect", stated).model_dump(mode="json")
    assert "**Checkpoint** · queued" in told(app) or "**Checkpoint** · running" in told(app)
    assert place.wait(run).status == "done"
    rows = place.get(run).summary["contract"]
    app = settle(app.run())
    n_parameters = sum(p.numel() for p in build_network("resnet_small", n_classes=3, channels=1).parameters())
    assert app.success[0].value.endswith(f"resnet_small · {n_parameters:,} parameters · safetensors")
    (table,) = app.dataframe
    assert list(table.value["preprocessing"]) == [row["name"] for row in rows]
    assert list(table.value["accuracy"]) == [f"{row['accuracy'][0]:.1%}" for row in rows]
    assert list(table.value["n"]) == [str(row["accuracy"][3]) for row in rows]
    feed = app.selectbox(key=f"feed-{run.id}")
    assert feed.options[0].startswith(rows[0]["name"])
    worst = min(range(len(rows)), key=lambda i: rows[i]["accuracy"][0])
    feed.set_value(worst).run()
    assert "The one chosen is not the best" in app.warning[0].value
    assert f"{rows[0]['accuracy'][0]:.1%}" in app.warning[0].value
    chosen = next(i for i, row in enumerate(rows) if row["name"] == "data set's mean and std")
    app.selectbox(key=f"feed-{run.id}").set_value(chosen).run()
    with computing_elsewhere(place.workspace):
        app = click(app, "Use this classifier")
        taken = latest(place, "classifier")
        assert taken.live
    given = {name: rows[chosen][name] for name in ("mean", "std", "image_size", "channel_order")}
    values = {**given, "architecture": "resnet_small", "weights": f"blob:{blob.sha256}"}
    assert taken.config == check_config("classifier", values).model_dump(mode="json")
    assert toasts(app) == ["The classifier is in the project"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pt", b"", "empty.pt is empty; copy or download it again"),
        ("cut.pt", b"PK\3\4 cut off", "cut.pt is a zip archive (as torch.save writes) that is cut off"),
        ("x.safetensors", b"\xff\0\0\0\0\0\0\0{}", "x.safetensors looks like safetensors, but its header"),
        (f"{NASTY}.pt", b"text, no weights", "is no checkpoint of a kind that is known"),
        ("../../up.pt", b"<html>not found</html>", "up.pt is a web page or XML; the download went wrong"),
        ("p.pkl", b"\x80\x04K\x01.", "p.pkl is a pickle that torch.save did not write"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_told_in_one_message(
    empty: Place, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    good = {"name": "as stated", "architecture": "mlp", "accuracy": [1.0, 0.9, 1.0, 9], "problem": ""}
    fed = {"mean": [0.0], "std": [1.0], "image_size": None, "channel_order": "rgb"}
    found = {"fits": [], "contract": [{**good, **fed}], "format": "x", "parameters": 7, "split": "training"}
    store_run(empty, "inspect", found, {"weights": "shipped:demo-classifier"})
    assert "mlp · 7 parameters · x" in opened(empty, monkeypatch).success[0].value
    app = upload(opened(empty, monkeypatch), name, content)
    (error,) = errors(app)
    assert message in error
    assert no_path(app, empty)
    assert not has_markup(app)
    assert len(empty.workspace.runs.of_project(empty.project.id, "inspect")) == 1


def bring(place: Place, name: str, content: bytes | None = None) -> str:
    """Store an upload, by default of the project's own classifier; its checksum."""
    if content is None:
        path = place.workspace.artifact_path(latest(place, "classifier").id, "classifier.safetensors")
        content = path.read_bytes()
    return place.workspace.add_blob(place.project.id, name, [content]).sha256


def test_an_error_of_an_upload_is_shown_where_nothing_was_inspected_yet(
    empty: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = upload(opened(empty, monkeypatch), "empty.pt", b"")
    assert errors(app) == ["empty.pt is empty; copy or download it again"]


@pytest.mark.parametrize("kind", ["error", "warning"])
def test_the_name_of_a_file_is_shown_as_it_is(
    empty: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = "*a* _b_ `c` ![d](e) $f$.pt"
    program = scripted(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    app = upload(opened(empty, monkeypatch), name, b"" if kind == "error" else program)
    (shown,) = getattr(app, kind)
    assert name in words(shown.value)
    written = shown.value.removeprefix("**").partition("pt")[0]
    assert not re.search(r"(?<!\\)[*_`\[$]", written), "it is read as Markdown"


def test_a_program_is_inspected_only_with_consent(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    content = scripted(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    app = upload(opened(place, monkeypatch), f"{NASTY}.pt", content)
    (warning,) = app.warning
    assert "is a program" in warning.value
    assert NASTY not in warning.value  # escaped, so that it is shown as it is
    assert not place.workspace.runs.of_project(place.project.id, "inspect")
    app = click(app, "Leave it")
    assert not app.warning
    assert not place.workspace.runs.of_project(place.project.id, "inspect")
    app = click(upload(app, "again.pt", content), "I trust it: run it")
    run = latest(place, "inspect")
    (blob,) = place.workspace.blobs(place.project.id)
    values = {"weights": f"blob:{blob.sha256}", "trust_program": True}
    assert run.config == check_config("inspect", values).model_dump(mode="json")
    assert not app.warning


def test_a_shipped_classifier_is_inspected(empty: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(empty, monkeypatch, **{"from": "From models/"})
    app.selectbox(key="bring-shipped").set_value("demo-classifier").run()
    assert "demo-classifier · mnist_cnn · 0.960 on digits" in app.selectbox(key="bring-shipped").options
    click(app, "Inspect")
    values = {"weights": "shipped:demo-classifier"}
    assert latest(empty, "inspect").config == check_config("inspect", values).model_dump(mode="json")


def test_a_path_on_this_machine_is_inspected(
    empty: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pt"
    path.write_bytes(saved(build_network("resnet_small", n_classes=3, channels=1).state_dict()))
    app = opened(empty, monkeypatch, **{"from": "Path on this machine"})
    app.text_input(key="bring-path").set_value(str(path)).run()
    click(app, "Inspect")
    (blob,) = empty.workspace.blobs(empty.project.id)
    assert blob.name == "mine.pt"
    assert latest(empty, "inspect").config["weights"] == f"blob:{blob.sha256}"


@pytest.mark.parametrize(
    "path", ["/nowhere/at/all.pt", "/", "/dev/zero", "relative.pt", "~nobody-of-this-name/x", "a\0b"]
)
def test_a_path_that_cannot_be_read_is_told_in_one_message(
    empty: Place, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    app = opened(empty, monkeypatch, **{"from": "Path on this machine"})
    app.text_input(key="bring-path").set_value(path).run()
    app = click(settle(app), "Inspect")
    (error,) = errors(app)
    assert "check the path" in error
    assert not empty.workspace.runs.of_project(empty.project.id)
    assert not empty.workspace.blobs(empty.project.id)


def test_a_path_to_no_checkpoint_is_told_before_it_is_copied(
    empty: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    app = opened(empty, monkeypatch, **{"from": "Path on this machine"})
    app.text_input(key="bring-path").set_value(str(tmp_path / "notes.txt")).run()
    (error,) = errors(click(settle(app), "Inspect"))
    assert "is no checkpoint of a kind that is known" in error
    assert not empty.workspace.blobs(empty.project.id)
    app.run()
    assert errors(app) == [error]  # until another way is chosen
    app.segmented_control(key="from").set_value("Upload").run()
    assert not errors(app)
    app.segmented_control(key="from").set_value("Path on this machine").run()
    assert not errors(app)


def test_who_logs_in_names_no_path_of_the_server(empty: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bring_page, "is_shared", lambda: True)
    app = opened(empty, monkeypatch, **{"from": "Path on this machine"})
    (ways,) = [control for control in app.segmented_control if control.key == "from"]
    assert ways.options == ["Upload", "From models/", "Earlier upload"]
    assert not any(box.key == "bring-path" for box in app.text_input)


def test_an_earlier_upload_is_inspected_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = bring(place, "a.pt"), bring(place, "b.pt", b"other")
    app = opened(place, monkeypatch, **{"from": "Earlier upload"})
    options = app.selectbox(key="bring-earlier").options
    assert [option.partition(" · ")[0] for option in options] == ["b.pt", "a.pt"]
    app.selectbox(key="bring-earlier").set_value(options[1]).run()
    click(app, "Inspect")
    assert latest(place, "inspect").config["weights"] == f"blob:{first}"
    assert second != first


def test_weights_of_no_known_network_name_the_keys_that_disagree(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network("resnet_small", n_classes=3, channels=1).state_dict()
    other = {**network, "head.extra": torch.zeros(2)}
    del other["0.weight"]
    done_here(place, "inspect", {"weights": f"blob:{bring(place, 'x.pt', saved(other))}"})
    app = opened(place, monkeypatch)
    (error,) = errors(app)
    assert "No known architecture fits" in error
    first = app.dataframe[0].value.iloc[0]
    assert (first["architecture"], first["missing"], first["unexpected"]) == ("resnet_small", 1, 1)
    assert {"0.weight", "head.extra"} <= {code.value for code in app.code}
    assert "defuse dashboard --allow-local-code" in told(app)
    assert "Use this classifier" not in [button.label for button in app.button]


def test_code_of_ones_own_is_offered_where_it_is_allowed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFUSE_ALLOW_LOCAL_CODE", "1")
    weights = f"blob:{bring(place, 'x.pt', saved(TinyNetwork().state_dict()))}"
    done_here(place, "inspect", {"weights": weights, "mean": [0.25], "std": [0.5]})
    app = opened(place, monkeypatch)
    (button,) = [b for b in app.button if b.label == "Import it and inspect"]
    assert button.disabled
    app.text_input(key=f"class-{latest(place, 'inspect').id}").set_value(" nets:Net ")
    app.text_input(key=f"folder-{latest(place, 'inspect').id}").set_value("/home/me/signs")
    app.run()
    click(app, "Import it and inspect")
    values = {
        "weights": weights, "architecture": "nets:Net", "code_path": "/home/me/signs",
        "mean": [0.25], "std": [0.5],
    }  # fmt: skip
    assert latest(place, "inspect").config == check_config("inspect", values).model_dump(mode="json")


def test_weights_for_other_classes_are_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("resnet_small", n_classes=7, channels=1)
    done_here(place, "inspect", {"weights": f"blob:{bring(place, 'x.pt', saved(network.state_dict()))}"})
    app = opened(place, monkeypatch)
    (error,) = errors(app)
    assert "is a resnet_small that tells 7 classes apart; the data set has 3" in error


def test_an_inspection_that_failed_says_why(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = build_network("resnet_small", n_classes=3, channels=1).state_dict()
    weights["0.weight"][0] = float("nan")
    run_here(place, "inspect", {"weights": f"blob:{bring(place, 'nan.pt', saved(weights))}"})
    app = opened(place, monkeypatch)
    assert "weights that are not finite: 0.weight" in errors(app)[0]
    assert no_path(app, place)


# Names of a stranger's


def test_names_that_are_markup_are_shown_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = bars(90, 0)
    arrays = {"x_train": split.images[:, 0].numpy(), "y_train": split.labels.numpy()}
    arrays |= {"x_test": arrays["x_train"], "y_test": arrays["y_train"]}
    path = tmp_path / f"{NASTY}.npz"
    np.savez(path, class_names=np.array([NASTY, "**b**", "a < b & c"]), **arrays)
    nasty = fresh_place(tmp_path / "home", path, name=NASTY)
    done_here(nasty, "classifier", {"architecture": "resnet_small", "training": {"epochs": 1}})
    done_here(nasty, "inspect", {"weights": f"blob:{bring(nasty, NASTY)}", "n_images": 9})
    app = opened(nasty, monkeypatch)
    assert app.sidebar.selectbox[0].value == NASTY
    assert not has_markup(app)
    assert NASTY not in told(app)
    assert tiles(look(app), "samples")[0]["caption"].startswith(NASTY)
    assert app.selectbox(key="label").options == [NASTY, "**b**", "a < b & c"]
    for key, axis in (("confusion", "xaxis"), ("confusion", "yaxis"), ("by-class", "yaxis")):
        ticks = figure(app, key)["layout"][axis]["ticktext"]
        assert len(ticks) == 3
        assert not any("<" in tick for tick in ticks)
    assert all("<" not in name for name, _ in figure(app, "by-class")["data"][0]["customdata"])
