"""What can be known before minutes are spent: uploads inspected, the control, the probe, predictions."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from sklearn.metrics import recall_score
from torch import Tensor, nn
from torchvision import models

from defuse_core.base.checkpoints import dump_tensors, load_tensors
from defuse_core.base.errors import CheckpointError
from defuse_core.base.intervals import Interval
from defuse_core.base.runtime import supports_bf16
from defuse_core.data.splits import Split
from defuse_core.extensions.shipped import load_shipped_classifier
from defuse_core.method.classifier import Classifier, Preprocessing, accuracy, predict, predict_logits
from defuse_core.method.evaluation import reconstruction_control
from defuse_core.networks.architectures import build_network
from defuse_core.steps import load_step
from defuse_core.steps.base import Progress
from defuse_core.steps.networks import begin_with, make_network
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import ConfigError, check_config
from defuse_core.workspace.configs import ClassifierConfig
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.runs import Run
from tests.conftest import TinyNetwork, bars
from tests.in_process import add_run, done_here, fresh_place, run_here
from tests.workspaces import ALONE, Place, copy_place

FEW: dict[str, Any] = {"n_perturbations": 4, "centred": True, "noise_scale": 6.0, "precision": "fp32"}


@pytest.fixture(scope="module")
def there(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace for tests that only add to it: uploads, and runs of `inspect`."""
    return copy_place(template, tmp_path_factory.mktemp("there") / "home")


def latest(place: Place, step: str) -> Run:
    run = place.workspace.runs.latest(place.project.id, step)
    assert run is not None
    return run


def bring(place: Place, name: str, content: bytes) -> str:
    """Upload a file; what `weights` calls it."""
    return f"blob:{place.workspace.add_blob(place.project.id, name, [content]).sha256}"


def saved(content: object) -> bytes:
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()


def own_weights(place: Place) -> dict[str, Tensor]:
    path = place.workspace.artifact_path(latest(place, "classifier").id, "classifier.safetensors")
    return safetensors.torch.load_file(path)


def classifier_of(place: Place, run: Run) -> Classifier:
    """The classifier that a run left."""
    source = Source(place.workspace, run.id)
    return source.build(*source.own("classifier"))


def scripted(network: nn.Module) -> bytes:
    written = io.BytesIO()
    torch.jit.save(torch.jit.script(network), written)
    return written.getvalue()


# Inspect


@pytest.mark.usefixtures("small_sizes")
def test_a_checkpoint_of_a_known_network_is_found_and_taken_in(place: Place) -> None:
    """Nested, saved from DataParallel: the same classifier comes out, and the same mistakes."""
    trained, mistakes = latest(place, "classifier"), done_here(place, "identify", FEW)
    nested = {"epoch": 3, "state_dict": {f"module.{k}": t for k, t in own_weights(place).items()}}
    weights = bring(place, "signs.pth", saved(nested))
    run = done_here(place, "inspect", {"weights": weights})
    found = run.summary
    assert found["format"] == "state_dict"
    assert [fit["architecture"] for fit in found["fits"] if fit["exact"]] == ["resnet_small"]
    assert found["parameters"] == sum(
        p.numel() for p in build_network("resnet_small", n_classes=3, channels=1).parameters()
    )
    split = Source(place.workspace, run.id).dataset.validation
    assert split is not None
    assert found["split"] == "validation"
    reference = classifier_of(place, trained)
    for row in found["contract"]:
        values = {name: row[name] for name in ("mean", "std", "image_size", "channel_order")}
        fed = Classifier(reference.network, Preprocessing.of_json(values))
        assert row["accuracy"][0] == accuracy(fed, split), row["name"]
        assert row["accuracy"][3] == len(split)
    shares = [row["accuracy"][0] for row in found["contract"]]
    assert shares == sorted(shares, reverse=True)
    stated = next(row for row in found["contract"] if row["name"] == "as stated")
    assert Preprocessing.of_json(
        {name: stated[name] for name in ("mean", "std", "image_size", "channel_order")}
    ) == Preprocessing.of_json(trained.summary["preprocessing"])

    chosen = {name: stated[name] for name in ("mean", "std", "image_size", "channel_order", "architecture")}
    brought = done_here(place, "classifier", {**chosen, "weights": weights})
    assert brought.summary == trained.summary
    _, about = load_tensors(place.workspace.artifact_path(brought.id, "classifier.safetensors"))
    assert (about["key_prefix"], about["nested_under"]) == ("module.", "state_dict")
    again = done_here(place, "identify", FEW)
    assert brought.id in again.upstream
    assert again.summary == mistakes.summary
    for name, tensor in place.tensors(mistakes)["mistakes.safetensors"].items():
        assert torch.equal(place.tensors(again)["mistakes.safetensors"][name], tensor), name


@pytest.mark.usefixtures("small_sizes")
def test_another_of_the_ways_to_feed_it_is_taken_in_as_chosen(place: Place) -> None:
    weights = bring(place, "signs.safetensors", safetensors.torch.save(own_weights(place)))
    run = done_here(place, "inspect", {"weights": weights, "mean": [0.4], "std": [0.3]})
    rows = run.summary["contract"]
    assert next(row for row in rows if row["name"] == "as stated")["mean"] == [0.4]
    row = next(row for row in rows if row["name"] == "±1")
    chosen = {name: row[name] for name in ("mean", "std", "image_size", "channel_order", "architecture")}
    brought = done_here(place, "classifier", {**chosen, "weights": weights})
    validation = brought.summary["intervals"]["validation"]
    assert validation == pytest.approx(row["accuracy"])
    assert classifier_of(place, brought).preprocessing == Preprocessing((0.5,), (0.5,))


@pytest.mark.usefixtures("small_sizes")
def test_the_progress_of_an_inspection_ascends_and_ends(there: Place) -> None:
    weights = bring(there, "signs.safetensors", safetensors.torch.save(own_weights(there)))
    run = add_run(there, "inspect", {"weights": weights, "n_images": 40})
    try:
        step = load_step(there.workspace, run.id)
        told = [item for item in step.run("inspection") if isinstance(item, Progress)]
    finally:
        there.workspace.runs.finish(run.id, "cancelled")
    steps = [item.step for item in told]
    assert steps == sorted(steps)
    assert {item.of for item in told} == {told[0].of}
    assert told[-1].step == told[-1].of
    assert all(0 <= item.metrics["accuracy"] <= 1 for item in told if item.metrics)


def test_a_sample_is_stratified_and_as_large_as_asked(there: Place) -> None:
    weights = bring(there, "signs.safetensors", safetensors.torch.save(own_weights(there)))
    sizes = set()
    for seed in (0, 0, 1):
        run = add_run(there, "inspect", {"weights": weights, "n_images": 30}, seed=seed)
        step: Any = load_step(there.workspace, run.id)
        there.workspace.runs.finish(run.id, "cancelled")
        assert step.sample.labels.bincount().tolist() == [10, 10, 10]
        sizes.add(tuple(step.sample.labels.tolist()))
    assert len(sizes) == 2  # equal seeds agree, others do not


@pytest.mark.usefixtures("small_sizes")
def test_a_network_that_nobody_knows_is_told_with_the_nearest(there: Place) -> None:
    other = {**own_weights(there), **{f"extra.{i}": torch.zeros(2) for i in range(40)}}
    del other["0.weight"]
    run = done_here(there, "inspect", {"weights": bring(there, "other.pt", saved(other))})
    found = run.summary
    assert found["contract"] == []
    assert found["parameters"] is None
    assert not any(fit["exact"] or fit["wrong_classes"] for fit in found["fits"])
    nearest = found["fits"][0]
    assert (nearest["architecture"], nearest["missing"]) == ("resnet_small", ["0.weight"])
    assert nearest["counts"] == {"missing": 1, "unexpected": 40, "reshaped": 0}
    assert len(nearest["unexpected"]) == 30  # no more are shown
    assert nearest["unexpected"] == sorted(f"extra.{i}" for i in range(40))[:30]
    shares = [fit["shared"] for fit in found["fits"]]
    assert shares == sorted(shares, reverse=True)
    assert 0.9 < shares[0] < 1
    taken = run_here(there, "classifier", {"weights": run.config["weights"]})
    assert taken.status == "failed"
    assert "the nearest, resnet_small, shares" in str(taken.error)


def test_a_network_with_nothing_in_common_with_any_is_told(there: Place) -> None:
    weights = bring(there, "tiny.pt", saved(TinyNetwork().state_dict()))
    found = done_here(there, "inspect", {"weights": weights}).summary
    assert (found["fits"], found["contract"], found["parameters"]) == ([], [], None)
    taken = run_here(there, "classifier", {"weights": weights})
    assert "the weights are of no architecture that is known; save the network as TorchScript" in str(
        taken.error
    )


def test_weights_for_other_classes_are_told_for_how_many(there: Place) -> None:
    network = build_network("resnet_small", n_classes=7, channels=1)
    weights = bring(there, "seven.pt", saved(network.state_dict()))
    found = done_here(there, "inspect", {"weights": weights}).summary
    assert found["contract"] == []
    first = found["fits"][0]
    assert (first["architecture"], first["wrong_classes"], first["n_classes"]) == ("resnet_small", True, 7)
    taken = run_here(there, "classifier", {"weights": weights})
    assert "the weights are of resnet_small for 7 classes" in str(taken.error)


def test_a_shipped_network_is_fed_as_its_card_says(tmp_path: Path) -> None:
    digits = fresh_place(tmp_path / "home", "digits")
    run = done_here(digits, "inspect", {"weights": "shipped:demo-classifier", "n_images": 20})
    found, classifier = run.summary, load_shipped_classifier("demo-classifier")
    assert (found["fits"], found["format"], found["split"]) == ([], "safetensors", "training")
    stated = next(row for row in found["contract"] if row["name"] == "as stated")
    assert tuple(stated["mean"]) == classifier.preprocessing.mean
    best = found["contract"][0]
    assert best["accuracy"][0] == stated["accuracy"][0] >= 0.95
    dataset = Source(digits.workspace, run.id).dataset
    assert stated["accuracy"][0] == pytest.approx(accuracy(classifier, dataset.train[:300]), abs=0.05)
    refused = [row for row in found["contract"] if row["accuracy"] is None]
    assert {row["image_size"] for row in refused} == {32, 64, 96, 128, 224, 299}
    assert all(row["problem"] for row in refused)


class Touches:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def unfit(there: Place, tmp_path: Path) -> dict[str, bytes]:
    own = own_weights(there)
    nan = {**own, "0.weight": own["0.weight"] * float("nan")}
    whole = saved(own)
    return {
        "nan.pt": saved(nan),
        "empty.pt": b"",
        "cut.pt": whole[: len(whole) // 2],
        "cut.safetensors": safetensors.torch.save(own)[:100],
        "text.pt": b"these are no weights at all, just text that goes on for a while",
        "model.pt": saved({"state_dict": own, "hook": Touches(tmp_path / "ran")}),
        "raw.pkl": pickle.dumps(Touches(tmp_path / "ran")),
        "whole.pt": saved(TinyNetwork()),
    }


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nan.pt", "weights that are not finite: 0.weight; training diverged"),
        ("empty.pt", "empty.pt is empty; copy or download it again"),
        ("cut.pt", "cut.pt is a zip archive (as torch.save writes) that is cut off"),
        ("cut.safetensors", "cut.safetensors looks like safetensors, but its header"),
        ("text.pt", "text.pt is no checkpoint of a kind that is known"),
        ("model.pt", "model.pt is a pickled model or holds other Python objects"),
        ("raw.pkl", "raw.pkl is a pickle that torch.save did not write"),
        ("whole.pt", "whole.pt is a pickled model or holds other Python objects (tests.conftest.TinyNetwork"),
    ],
)
@pytest.mark.parametrize("step", ["inspect", "classifier"])
def test_files_that_cannot_be_used_say_so_by_the_users_name(
    there: Place, tmp_path: Path, name: str, told: str, step: Any
) -> None:
    weights = bring(there, name, unfit(there, tmp_path)[name])
    run = run_here(there, step, {"weights": weights})
    assert run.status == "failed"
    assert told in str(run.error)
    assert str(there.workspace.home) not in str(run.error)
    assert weights.removeprefix("blob:") not in str(run.error)
    assert not (tmp_path / "ran").exists()


def test_a_generator_that_cannot_be_used_says_so_by_the_users_name(there: Place) -> None:
    weights = bring(there, "mine.safetensors", safetensors.torch.save({"a": torch.zeros(2)})[:40])
    run = run_here(there, "vae", {"weights": weights})
    assert run.status == "failed"
    assert "mine.safetensors" in str(run.error)
    assert str(there.workspace.home) not in str(run.error)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"latent_dim": 10**12}, "big.safetensors does not fit BetaVAE"),
        ({"hidden_units": 10**18}, "big.safetensors states the shape of no generator"),
        ({"latent_dim": "many"}, "big.safetensors states the shape of no generator"),
    ],
)
def test_a_generator_that_states_a_shape_without_end_is_refused(
    there: Place, config: dict[str, Any], told: str
) -> None:
    content = dump_tensors({"a": torch.zeros(2)}, metadata={"config": config})
    run = run_here(there, "vae", {"weights": bring(there, "big.safetensors", content)})
    assert run.status == "failed"
    assert told in str(run.error)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"mean": [0.1, 0.2, 0.3]}, "mean and std have 3 values, the network takes 1 channels"),
        ({"architecture": "vgg_small"}, "the weights are not of vgg_small; they fit resnet_small"),
    ],
)
def test_what_is_stated_wrongly_is_told(there: Place, config: Mapping[str, Any], told: str) -> None:
    weights = bring(there, "signs.safetensors", safetensors.torch.save(own_weights(there)))
    run = run_here(there, "classifier", {"weights": weights, **config})
    assert run.status == "failed"
    assert told in str(run.error)


@pytest.mark.parametrize(
    "precision",
    [
        "fp32",
        pytest.param(
            "bf16",
            marks=pytest.mark.skipif(
                not supports_bf16(torch.device("cpu")), reason="the processor has no bfloat16"
            ),
        ),
    ],
)
def test_a_classifier_that_resizes_its_images_can_be_searched(place: Place, precision: str) -> None:
    weights = bring(place, "signs.safetensors", safetensors.torch.save(own_weights(place)))
    done_here(place, "classifier", {"weights": weights, "image_size": 16})
    found = done_here(place, "identify", {**FEW, "precision": precision}).summary
    assert found["searched"] == 1280
    assert sum(found["mistakes"].values()) > 0


def test_nothing_to_inspect_is_told(there: Place) -> None:
    assert "inspect needs weights: an upload, or shipped:<name>" in str(run_here(there, "inspect").error)


# Programs


@pytest.mark.usefixtures("small_sizes")
def test_a_program_is_run_only_once_it_is_trusted(place: Place) -> None:
    torch.manual_seed(0)
    network = classifier_of(place, latest(place, "classifier")).network
    weights = bring(place, "signs.torchscript", scripted(network))
    for step in ("inspect", "classifier"):
        run = run_here(place, step, {"weights": weights})
        assert run.status == "failed"
        assert "the file is a TorchScript program, which runs on this machine" in str(run.error)
        assert "set trust_program" in str(run.error)
    trusted = {"weights": weights, "trust_program": True}
    found = done_here(place, "inspect", trusted).summary
    assert (found["format"], found["fits"]) == ("torchscript", [])
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    assert found["contract"][0]["architecture"] == "torchscript"
    before = latest(place, "classifier")
    brought = done_here(place, "classifier", trusted)
    assert brought.summary["accuracy"] == before.summary["accuracy"]
    assert brought.summary["by_class"] == before.summary["by_class"]
    control = done_here(place, "control", ALONE)
    expected = reconstruction_control(
        Classifier(network, Preprocessing.of_json(before.summary["preprocessing"])),
        Source(place.workspace, control.id).vae(),
        Source(place.workspace, control.id).dataset.test,
    )
    assert Interval(*control.summary["control"]["test"]) == expected


def test_a_program_for_other_classes_is_refused(there: Place) -> None:
    weights = bring(there, "four.pt", scripted(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))))
    for step in ("inspect", "classifier"):
        run = run_here(there, step, {"weights": weights, "trust_program": True})
        assert "the classifier tells 4 classes apart, the data set has 3" in str(run.error)


CODE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, channels, n_classes):
        super().__init__(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, n_classes))
"""


def test_code_of_ones_own_is_imported_only_where_that_is_allowed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_classifier: Classifier
) -> None:
    (tmp_path / "nets_to_inspect.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{CODE}")
    prefixed = {f"module.{k}": t for k, t in trained_classifier.network.state_dict().items()}
    own = trained_classifier.preprocessing
    config = {
        "weights": bring(place, "mine.pt", saved({"model": prefixed})),
        "architecture": "nets_to_inspect:Net", "code_path": str(tmp_path), "mean": own.mean, "std": own.std,
    }  # fmt: skip
    monkeypatch.delenv("DEFUSE_ALLOW_LOCAL_CODE", raising=False)
    refused = run_here(place, "inspect", config)
    assert "nets_to_inspect:Net is code that would run on this machine, which was not allowed" in str(
        refused.error
    )
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("DEFUSE_ALLOW_LOCAL_CODE", "1")
    found = done_here(place, "inspect", config).summary
    assert (tmp_path / "ran").exists()
    assert found["contract"][0]["architecture"] == "nets_to_inspect:Net"
    assert found["parameters"] == sum(p.numel() for p in TinyNetwork().parameters())
    brought = done_here(place, "classifier", config)
    dataset = Source(place.workspace, brought.id).dataset
    assert brought.summary["accuracy"]["test"] == accuracy(trained_classifier, dataset.test)
    control = done_here(place, "control", ALONE)  # builds it again from what was stored
    assert control.summary["control"]["test"][3] == round(
        brought.summary["accuracy"]["test"] * len(dataset.test)
    )


# Classifier


def test_predictions_of_a_classifier_are_kept_with_accuracy_by_class(there: Place) -> None:
    run = latest(there, "classifier")
    stored, dataset = there.tensors(run)["predictions.safetensors"], Source(there.workspace, run.id).dataset
    assert {name.partition(".")[0] for name in stored} == {"train", "validation", "test"}
    classifier = classifier_of(there, run)
    for part, split in dataset.splits().items():
        shares = predict_logits(classifier, split.images).softmax(1)
        assert torch.equal(stored[f"{part}.predictions"], predict(classifier, split.images))
        assert torch.equal(stored[f"{part}.labels"], split.labels)
        torch.testing.assert_close(stored[f"{part}.confidence"], shares.max(1).values)
        told = run.summary["by_class"][part]
        recalls = recall_score(split.labels, stored[f"{part}.predictions"], average=None)
        assert [row[0] for row in told] == pytest.approx(recalls)
        assert [row[3] for row in told] == split.labels.bincount().tolist()
        for row in told:
            assert Interval(*row) == Interval.wilson(round(row[0] * row[3]), row[3])


def test_a_class_without_images_has_no_accuracy(tmp_path: Path) -> None:
    train, test = bars(90, 0), bars(60, 1)
    kept = test[test.labels != 1]
    np.savez(
        tmp_path / "some.npz", x_train=train.images[:, 0].numpy(), y_train=train.labels.numpy(),
        x_test=kept.images[:, 0].numpy(), y_test=kept.labels.numpy(),
    )  # fmt: skip
    some = fresh_place(tmp_path / "home", tmp_path / "some.npz")
    run = done_here(some, "classifier", {"architecture": "resnet_small", "training": {"epochs": 1}})
    told = run.summary["by_class"]["test"]
    assert told[1] is None
    assert [told[0][3], told[2][3]] == kept.labels.bincount().tolist()[::2]


# Weights that training begins with


@pytest.mark.parametrize(
    ("changes", "afresh"),
    [
        ({}, []),
        ({"3.weight": torch.ones(10, 216), "3.bias": torch.ones(10)}, ["3"]),
        ({"3.bias": None}, ["3"]),
        ({"0.weight": torch.ones(6, 3, 3, 3), "more.weight": torch.ones(6)}, ["0"]),
    ],
)
def test_weights_to_begin_with_fill_what_fits(
    changes: Mapping[str, Tensor | None], afresh: list[str]
) -> None:
    torch.manual_seed(0)
    network = TinyNetwork()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given = {name: torch.full_like(tensor, 7) for name, tensor in before.items()} | {**changes}
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    assert begin_with(network, tensors, source="mine.pt") == afresh
    for name, tensor in network.state_dict().items():
        fits = name in tensors and tensors[name].shape == tensor.shape
        assert torch.equal(tensor, tensors[name] if fits else before[name]), name


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"fc.weight": torch.ones(3, 216)},
        {"0.weight": torch.ones(6, 1, 5, 5), "3.bias": torch.ones(4)},
        {"1.running_mean": torch.ones(6), "1.num_batches_tracked": torch.tensor(3)},  # no parameter
    ],
)
def test_weights_that_fit_no_layer_are_refused(tensors: dict[str, Tensor]) -> None:
    network = TinyNetwork()
    network[1] = nn.BatchNorm2d(6, affine=False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"mine\.pt fits no layer of .* 0\.weight, .*same architecture"):
        begin_with(network, tensors, source="mine.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_weights_that_are_not_finite_are_refused() -> None:
    network = nn.Linear(2, 2)
    was = network.weight.clone()
    with pytest.raises(CheckpointError, match=r"mine.pt has weights that are not finite: weight"):
        begin_with(network, {"weight": torch.full((2, 2), torch.nan)}, source="mine.pt")
    assert torch.equal(network.weight, was)


def test_training_begins_with_the_layers_that_fit(there: Place) -> None:
    own = own_weights(there)
    (last,) = {name.rpartition(".")[0] for name in own if name.endswith("bias") and own[name].shape == (3,)}
    other = {name: t for name, t in own.items() if not name.startswith(last)}
    other |= {
        f"{last}.weight": torch.ones(10, own[f"{last}.weight"].shape[1]),
        f"{last}.bias": torch.ones(10),
    }
    nested = {"state_dict": {f"module.{name}": tensor for name, tensor in other.items()}}
    still = {"epochs": 1, "batch_size": 256, "optimizer": "adam", "learning_rate": 1e-9}
    config = {"architecture": "resnet_small", "training": still}
    plain = done_here(there, "classifier", config, seed=4)
    begun = done_here(
        there, "classifier", {**config, "pretrained": bring(there, "mine.pt", saved(nested))}, seed=4
    )
    assert begun.summary["began_afresh"] == [last]
    assert "began_afresh" not in plain.summary
    path = there.workspace.artifact_path(begun.id, "classifier.safetensors")
    assert load_tensors(path)[1]["began_afresh"] == [last]
    found, from_seed = (there.tensors(run)["classifier.safetensors"] for run in (begun, plain))
    for name, tensor in found.items():
        if "running_" in name or "num_batches" in name:
            continue  # statistics of the batches
        expected = from_seed if name.startswith(last) else own
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    assert not torch.allclose(found[f"{last}.weight"], own[f"{last}.weight"])
    built = classifier_of(there, begun)
    test = Source(there.workspace, begun.id).dataset.test
    assert begun.summary["accuracy"]["test"] == accuracy(built, test)


def test_grey_images_begin_with_all_of_imagenet_but_the_ends(
    there: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    weights = models.resnet18(weights=None).state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    source = Source(there.workspace, latest(there, "classifier").id)
    made = make_network(source, ClassifierConfig(architecture="resnet18", pretrained="imagenet"), 0)
    assert made.facts["began_afresh"] == ["conv1", "fc"]
    found = made.network.state_dict()
    for name, tensor in weights.items():
        if not name.startswith(("conv1.", "fc.")):
            assert torch.equal(found[name], tensor), name
    assert (found["conv1.weight"].shape[1], len(found["fc.bias"])) == (1, 3)


@pytest.mark.parametrize(
    ("name", "content", "config", "told"),
    [
        ("mine.pt", lambda: saved(models.squeezenet1_1().state_dict()), {}, "mine.pt fits no layer of"),
        ("mine.pt", lambda: b"no weights", {}, "mine.pt"),
        ("mine.pt", lambda: scripted(TinyNetwork()), {}, "mine.pt"),
        (
            "imagenet", None, {"architecture": "resnet_small"},
            "ImageNet weights for torchvision's models only, got 'resnet_small'",
        ),
        ("imagenet", None, {}, "ImageNet weights for torchvision's models only, got 'resnet_small'"),
        ("nothing", None, {}, "the project has no upload 000000000000"),
    ],
    ids=["other layers", "no weights", "a program", "ours", "by default", "no upload"],
)  # fmt: skip
def test_what_training_cannot_begin_with_is_told(
    there: Place, name: str, content: Callable[[], bytes] | None, config: Mapping[str, Any], told: str
) -> None:
    given = {"imagenet": "imagenet", "nothing": "blob:" + "0" * 64}.get(name)
    pretrained = given or bring(there, name, content())
    run = run_here(there, "classifier", {**config, "pretrained": pretrained})
    assert run.status == "failed"
    assert told in str(run.error)
    assert str(there.workspace.home) not in str(run.error)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"weights": "shipped:demo-classifier", "pretrained": "imagenet"},
            "classifier: weights are taken as they are, pretrained is trained further; leave one of them out",
        ),
        ({"pretrained": "ImageNet"}, "pretrained must be imagenet or blob:<sha256>, got 'ImageNet'"),
        ({"pretrained": "shipped:demo-classifier"}, "pretrained must be imagenet or blob:<sha256>, got 'sh"),
        ({"pretrained": "../mine.pt"}, "pretrained must be imagenet or blob:<sha256>, got '../mine.pt'"),
        ({"weights": "imagenet"}, "weights must be shipped:<name> or blob:<sha256>, or corrected:<run>, got"),
    ],
)
def test_weights_and_pretrained_are_not_taken_for_each_other(config: Mapping[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_config("classifier", config)
    assert told in str(refused.value)


# Control and probe


def test_the_control_is_that_of_the_evaluation_whole_and_by_class(place: Place) -> None:
    run = done_here(
        place, "control", ALONE
    )  # not `there`, whose newest classifier is what a test before took in
    source = Source(place.workspace, run.id)
    classifier, vae = source.classifier(), source.vae()
    parts = source.dataset.splits()
    assert run.summary["control"].keys() == run.summary["by_class"].keys() == parts.keys()
    for part, split in parts.items():
        told = Interval(*run.summary["control"][part])
        assert told == reconstruction_control(classifier, vae, split)
        assert 0 < told.estimate < 1
        rows = run.summary["by_class"][part]
        assert sum(row[3] for row in rows if row) == told.n
        for label, row in enumerate(rows):
            one = Split(split.images[split.labels == label], split.labels[split.labels == label])
            assert Interval(*row) == reconstruction_control(classifier, vae, one)


def test_the_probe_measures_a_speed_and_stops_in_time(there: Place) -> None:
    run = done_here(there, "probe", {"seconds": 0.3})
    for name in ("codes_per_second", "tuned_per_second", "classified_per_second"):
        assert np.isfinite(run.summary[name])
        assert 100 < run.summary[name] < 1e8
    assert run.summary["tuned_per_second"] < run.summary["classified_per_second"]  # no gradients there
    assert run.seconds < 5
    assert set(there.workspace.runs.artifacts(run.id)) == {"speed.safetensors", "tuning.safetensors"}


# Data that was uploaded


def test_a_project_on_uploaded_data_runs_a_step(tmp_path: Path, template: Path) -> None:
    path = template.parent / "shapes.npz"
    on_path = fresh_place(tmp_path / "home", path)
    workspace = on_path.workspace
    blob = workspace.store_upload("../my shapes.npz", [path.read_bytes()])
    assert blob.name == "my shapes.npz"
    project = new_project(workspace, "uploaded", f"blob:{blob.sha256}", upload_name=blob.name)
    uploaded = Place(workspace, project)
    assert project.dataset["fingerprint"] == on_path.project.dataset["fingerprint"]
    assert workspace.blobs(project.id) == [blob]
    config = {"architecture": "resnet_small", "training": {"epochs": 1, "batch_size": 256}}
    run = uploaded.run("classifier", config)
    assert run.summary["accuracy"] == done_here(on_path, "classifier", config).summary["accuracy"]
    workspace.delete_project(on_path.project.id)
    workspace.collect_garbage(min_age=0)
    assert workspace.blob_path(project.id, blob.sha256).read_bytes() == path.read_bytes()
    workspace.delete_project(project.id)
    assert not list((workspace.home / "blobs").iterdir())


def npz(**arrays: Any) -> bytes:
    written = io.BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: b"no archive", "is not a readable .npz of plain arrays"),
        (lambda: npz(x_train=np.zeros(3)), "lacks y_train; it holds x_train"),
        (lambda: npz(x_train=np.array([{}]), y_train=0, x_test=0, y_test=0), "is not a readable .npz"),
    ],
)
def test_uploaded_data_that_cannot_be_used_is_told_by_the_users_name(
    tmp_path: Path, template: Path, content: Callable[[], bytes], told: str
) -> None:
    place = fresh_place(tmp_path / "home", template.parent / "shapes.npz")
    blob = place.workspace.store_upload("mine.npz", [content()])
    with pytest.raises(ValueError, match=r"mine\.npz") as caught:
        new_project(place.workspace, "other", f"blob:{blob.sha256}", upload_name=blob.name)
    assert told in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert blob.sha256 not in str(caught.value)
    assert [project.name for project in place.workspace.projects()] == ["fresh"]


def test_a_blob_cannot_be_named_by_a_path(tmp_path: Path, template: Path) -> None:
    place = fresh_place(tmp_path / "home", template.parent / "shapes.npz")
    (tmp_path / "secret.npz").write_bytes((template.parent / "shapes.npz").read_bytes())
    with pytest.raises(WorkspaceError, match=r"is no longer stored; upload it again"):
        new_project(place.workspace, "other", "blob:../../secret.npz")


def test_uploaded_data_that_was_changed_is_found_out(tmp_path: Path, template: Path) -> None:
    content = (template.parent / "shapes.npz").read_bytes()
    place = fresh_place(tmp_path / "home", template.parent / "shapes.npz")
    blob = place.workspace.store_upload("mine.npz", [content])
    project = new_project(place.workspace, "mine", f"blob:{blob.sha256}", upload_name=blob.name)
    arrays = dict(np.load(io.BytesIO(content)))
    arrays["x_train"][0, 0, 0] ^= 1
    (place.workspace.home / "blobs" / blob.sha256).write_bytes(npz(**arrays))
    run = run_here(Place(place.workspace, project), "classifier", {"training": {"epochs": 1}})
    assert run.status == "failed"
    assert "mine.npz has changed since project 'mine' was created" in str(run.error)
    assert json.dumps(run.summary) == "{}"
