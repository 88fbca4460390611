"""The corrected checkpoint: names and types of the upload, and a card whose program gives its numbers."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from defuse_core.base.intervals import Interval
from defuse_core.cli import main as cli
from defuse_core.exchange.checkpoint.export import corrected_checkpoint, tasks_with_weights
from defuse_core.exchange.checkpoint.loading_code import loading_code
from defuse_core.exchange.checkpoint.model_card import escape
from defuse_core.method.classifier import Classifier, Preprocessing, predict
from defuse_core.networks.architectures import build_network
from defuse_core.steps.source import Source
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.runs import Run
from tests.in_process import done_here, run_here, store_run
from tests.templates import label
from tests.workspaces import Place, copy_place

FEW: dict[str, Any] = {
    "n_perturbations": 4, "centred": True, "noise_scale": 6.0, "max_images": 320, "precision": "fp32",
}  # fmt: skip
SWEEP: dict[str, Any] = {
    "correction": {
        "lambdas": [0.0, 1.0], "epochs": 1, "instances_per_region": 8, "precision": "fp32",
        "optimizer": "sgd", "learning_rate": 0.01,
    },
    "baseline_lambdas": [1.0], "disagreement_threshold": 0.0,
}  # fmt: skip
OWN_CODE = """
from torch import nn

class Wrapped(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))

    def forward(self, x):
        return self.model(x)
"""


@pytest.fixture(scope="module")
def there(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace with a correct run that is done; for tests that read it."""
    place = copy_place(template, tmp_path_factory.mktemp("exporting") / "home")
    done_here(place, "correct", SWEEP)
    return place


def newest(place: Place, step: str) -> Run:
    run = place.workspace.runs.latest(place.project.id, step, done=True)
    assert run is not None
    return run


def bring(place: Place, name: str, content: object) -> str:
    written = io.BytesIO()
    torch.save(content, written)
    return f"blob:{place.workspace.add_blob(place.project.id, name, [written.getvalue()]).sha256}"


def own_weights(place: Place) -> dict[str, Tensor]:
    return place.tensors(newest(place, "classifier"))["classifier.safetensors"]


def correct(place: Place, classifier: Mapping[str, Any], **tuning: Any) -> Run:
    """Bring a classifier and go with it as far as a correction."""
    done_here(place, "classifier", classifier)
    done_here(place, "identify", FEW)
    regions = done_here(place, "distill", {"n_components": 4, "max_codes": 400})
    label(place, regions)
    sweep = {**SWEEP, "correction": {**SWEEP["correction"], "lambdas": [1.0], **tuning}}
    return done_here(place, "correct", {**sweep, "baseline_lambdas": []})


def program_of(card: str) -> str:
    """The first block of code of a card."""
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found
    return found[1]


def classify(code: str, images: Tensor, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the program of a card says, run where the file lies."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    said: Tensor = names["classify"](images.float() / 255)
    return said


def check_numbers(
    place: Place, run: Run, content: bytes, card: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program of the card has, on test images and regions, exactly the accuracies that are stated."""
    (folder / "corrected.safetensors").write_bytes(content)
    said = place.tensors(run)["failures.safetensors"]
    test = Source(place.workspace, run.id).dataset.test
    with safetensors.safe_open(folder / "corrected.safetensors", framework="pt") as file:
        stated = json.loads(file.metadata()["accuracy"])
    for name, images, labels in (
        ("test", test.images, test.labels),
        ("region", said["test.images"], said["test.labels"]),
    ):
        right = int((classify(program_of(card), images, folder, monkeypatch) == labels).sum())
        assert stated[name][0] == right / len(labels), name
        assert f"{Interval.wilson(right, len(labels))} |" in card
        assert f"| {len(labels):,} |" in card


def test_a_network_trained_here_goes_out_as_it_is(
    there: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = newest(there, "correct")
    content, card = corrected_checkpoint(there.workspace, run.id)
    tensors = safetensors.torch.load(content)
    stored = there.tensors(run)["corrected.safetensors"]
    assert tensors.keys() == own_weights(there).keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == stored[name].dtype
        assert torch.equal(tensor, stored[name])
    check_numbers(there, run, content, card, tmp_path, monkeypatch)
    chosen = run.summary["corrected"]["chosen"]
    assert f"λ = {chosen['lam']:g}, chosen of 2 by the best accuracy on the draws tuned on" in card
    assert "sgd, learning rate 0.01" in card
    assert "of people" in card
    before = run.summary["before"]
    assert f"| test split | 120 | {Interval(*before['test'])} | {Interval(*chosen['test'])} |" in card
    assert f"{chosen['fixed']} were fixed and {chosen['broken']} broken" in card
    failures = there.tensors(run)["failures.safetensors"]
    rows = re.findall(r"^\| \d+ \| (?:row|column|diagonal) \| 8 \|", card, re.MULTILINE)
    assert len(rows) == len(failures["test.ids"].unique()) == run.summary["failures"]
    said = [
        there.tensors(run)[f"{task}.said.safetensors"]["region"]
        for task in ("before", f"lam={chosen['lam']:g}")
    ]
    for region_id in failures["test.ids"].unique().tolist():
        mine = failures["test.ids"] == region_id
        was, now = (
            Interval.wilson(int((given[mine] == failures["test.labels"][mine]).sum()), int(mine.sum()))
            for given in said
        )
        assert re.search(
            rf"^\| {region_id} \| \w+ \| 8 \| {re.escape(f'{was} | {now}')} \|", card, re.MULTILINE
        )


def test_metadata_tells_what_it_takes_to_use_it(there: Place, tmp_path: Path) -> None:
    run = newest(there, "correct")
    path = tmp_path / "corrected.safetensors"
    path.write_bytes(corrected_checkpoint(there.workspace, run.id)[0])
    with safetensors.safe_open(path, framework="pt") as file:
        about = {name: json.loads(text) for name, text in file.metadata().items()}
    assert about["architecture"] == "resnet_small"
    assert about["class_names"] == ["row", "column", "diagonal"]
    assert (
        Preprocessing.of_json(about["preprocessing"])
        == Source(there.workspace, run.id).classifier().preprocessing
    )
    assert (about["project"], about["run"]) == ("shapes", run.id)
    assert about["lam"] == run.summary["corrected"]["chosen"]["lam"]
    assert about["accuracy"]["validation"] == run.summary["corrected"]["chosen"]["validation"]


def test_any_other_lambda_goes_out_too(there: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = newest(there, "correct")
    tasks = tasks_with_weights(there.workspace, run.id)
    assert sorted(tasks) == ["baseline/lam=1", "lam=0", "lam=1"]
    for task in tasks:
        content, card = corrected_checkpoint(there.workspace, run.id, task=task)
        stored = there.tensors(run)[f"{task}.safetensors"]
        assert all(torch.equal(t, stored[name]) for name, t in safetensors.torch.load(content).items())
        check_numbers(there, run, content, card, tmp_path, monkeypatch)
        is_chosen = task == f"lam={run.summary['corrected']['chosen']['lam']:g}"
        assert ("chosen of 2" in card) == is_chosen
        assert ("picked by hand" in card) != is_chosen


@pytest.mark.parametrize("task", ["lam=7", "before", "corrected", "../../1/classifier", "failures", ""])
def test_what_is_no_lambda_is_refused(task: str, there: Place) -> None:
    with pytest.raises(WorkspaceError, match="task must be one of"):
        corrected_checkpoint(there.workspace, newest(there, "correct").id, task=task)


def test_other_runs_are_refused(there: Place) -> None:
    with pytest.raises(WorkspaceError, match="is distill, done"):
        corrected_checkpoint(there.workspace, newest(there, "distill").id)
    failed = run_here(there, "correct", {**SWEEP, "regions": [999]})
    with pytest.raises(WorkspaceError, match="is correct, failed"):
        corrected_checkpoint(there.workspace, failed.id)


def test_resnet18_from_data_parallel_keeps_its_names(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded by plain torch and torchvision, it has exactly the stated accuracies."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    uploaded = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    weights = bring(place, "signs.pth", {"epoch": 3, "state_dict": uploaded})
    run = correct(place, {"weights": weights}, batch_size=128, max_images=256)
    content, card = corrected_checkpoint(place.workspace, run.id)
    tensors = safetensors.torch.load(content)
    assert tensors.keys() == uploaded.keys()
    assert all(tensors[name].dtype == tensor.dtype for name, tensor in uploaded.items())
    assert not torch.equal(tensors["module.conv1.weight"], uploaded["module.conv1.weight"])
    assert "defuse" not in program_of(card)
    check_numbers(place, run, content, card, tmp_path, monkeypatch)
    assert "torch.save({'state_dict': weights}, " in card


def test_half_precision_without_counters_and_a_second_round(place: Place) -> None:
    uploaded = {
        f"module.model.{name}": tensor.half()
        for name, tensor in own_weights(place).items()
        if not name.endswith("num_batches_tracked")
    }
    weights = bring(place, "signs.pt", {"model": uploaded})
    first = correct(place, {"weights": weights, "architecture": "resnet_small"})
    second = correct(place, {"weights": f"corrected:{first.id}"}, max_images=600)
    assert second.id > first.id
    for run, data in (
        (first, "all 1,280 training images"),
        (second, "a stratified sample of 600 of the 1,280 training images"),
    ):  # fmt: skip
        content, card = corrected_checkpoint(place.workspace, run.id)
        tensors = safetensors.torch.load(content)
        assert tensors.keys() == uploaded.keys()
        stored = place.tensors(run)["corrected.safetensors"]
        for name, tensor in tensors.items():
            assert torch.equal(tensor, stored[name.removeprefix("module.model.")].half())
        assert "rounded to float16" in card
        assert f"cross-entropy on {data}, and on" in card


def test_an_own_class_whose_names_begin_like_a_prefix(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrapped_of_mine.py").write_text(OWN_CODE)
    monkeypatch.setenv("DEFUSE_ALLOW_LOCAL_CODE", "1")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    names: dict[str, Any] = {}
    exec(OWN_CODE, names)
    uploaded = {f"module.{name}": tensor for name, tensor in names["Wrapped"]().state_dict().items()}
    assert all(name.startswith("module.model.") for name in uploaded)
    config = {
        "weights": bring(place, "own.pt", uploaded), "architecture": "wrapped_of_mine:Wrapped",
        "code_path": str(tmp_path),
    }  # fmt: skip
    run = correct(place, config)
    content, card = corrected_checkpoint(place.workspace, run.id)
    assert safetensors.torch.load(content).keys() == uploaded.keys()
    assert str(tmp_path) not in card
    assert str(tmp_path).encode() not in content
    check_numbers(place, run, content, card, tmp_path, monkeypatch)
    sys.modules.pop("wrapped_of_mine", None)


def test_the_weights_of_a_program_go_back_into_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network("resnet_small", n_classes=3, channels=1)
    network.load_state_dict(own_weights(place))
    torch.jit.save(torch.jit.script(network.eval()), tmp_path / "your-program.pt")
    blob = place.workspace.add_blob(place.project.id, "p.pt", [(tmp_path / "your-program.pt").read_bytes()])
    run = correct(place, {"weights": f"blob:{blob.sha256}", "trust_program": True})
    content, card = corrected_checkpoint(place.workspace, run.id)
    assert safetensors.torch.load(content).keys() == network.state_dict().keys()
    check_numbers(place, run, content, card, tmp_path, monkeypatch)


# The program of a card


@pytest.mark.parametrize(
    ("name", "channels", "preprocessing"),
    [
        ("resnet18", 3, Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 24, "bgr")),
        ("mobilenet_v3_small", 1, Preprocessing((0.4,), (0.2,), 32)),
        ("googlenet", 3, Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 32)),
        ("mnist_cnn", 1, Preprocessing((0.1,), (0.3,), 12)),
        ("vgg_small", 3, Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))),
        ("all_convolutional", 1, Preprocessing((0.1,), (0.3,))),
    ],
)
def test_the_program_answers_as_the_classifier_does(
    name: str, channels: int, preprocessing: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    like = {"fc1.weight": torch.empty(128, 1024)} if name == "mnist_cnn" else None
    network = build_network(name, n_classes=10, channels=channels, like=like)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)  # else answers of a fresh network may all tie
    check_program(name, network, preprocessing, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["lenet5", "mlp_tanh"])
def test_the_program_of_networks_told_by_their_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)] if name == "lenet5" else []
    linears = [nn.Linear(256 if name == "lenet5" else 28 * 28, 20), nn.Linear(20, 10)]
    like = nn.Sequential(*convolutions, *linears).state_dict()
    network = build_network(name, n_classes=10, channels=1, like=like)
    check_program(name, network, Preprocessing((0.1,), (0.3,), 28), tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", ["torchscript", "exported"])
def test_the_program_of_programs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    old, new = (build_network("vgg_small", n_classes=10, channels=1).eval() for _ in range(2))
    if kind == "torchscript":
        torch.jit.save(torch.jit.script(old), tmp_path / "your-program.pt")
    else:
        batch = {0: torch.export.Dim("batch")}
        exported = torch.export.export(old, (torch.rand(2, 1, 8, 8),), dynamic_shapes=(batch,))
        torch.export.save(exported, tmp_path / "your-program.pt2")
    check_program(kind, new, Preprocessing((0.1,), (0.3,)), tmp_path, monkeypatch)


def check_program(
    name: str, network: nn.Module, preprocessing: Preprocessing, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program of the card says what the classifier says, of random images."""
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    safetensors.torch.save_file(
        {f"module.{key}": tensor for key, tensor in state.items()}, folder / "it's.safetensors"
    )
    images = torch.randint(0, 256, (40, len(preprocessing.mean), 8, 8), dtype=torch.uint8)
    expected = predict(Classifier(network, preprocessing), images)
    code = loading_code(
        "it's.safetensors", name, state, n_classes=10, preprocessing=preprocessing, key_prefix="module."
    )
    assert torch.equal(classify(code, images, folder, monkeypatch), expected)


def test_names_of_users_stay_text_in_the_card() -> None:
    shown = escape("a|b\n# <img src=x> [x](y) `c`")
    assert "\n" not in shown
    assert re.sub(r"\\(.)", r"\1", shown) == "a|b # <img src=x> [x](y) `c`"
    assert not re.search(r"(?<!\\)[<>|`\[\]#]", shown)


# The command


def command(*words: str, monkeypatch: pytest.MonkeyPatch, place: Place | None = None) -> int:
    """Run `defuse` in this process; its exit code."""
    if place is not None:
        monkeypatch.setenv("DEFUSE_HOME", str(place.workspace.home))
    monkeypatch.setattr(sys, "argv", ["defuse", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_writes_checkpoint_and_card(
    there: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "signs.safetensors"
    words = ("checkpoint", "--out", str(out), "--task", "lam=0")
    assert command(*words, "--json", monkeypatch=monkeypatch, place=there) == 0
    run = newest(there, "correct")
    assert json.loads(capsys.readouterr().out)["run"] == run.id
    written, card = corrected_checkpoint(there.workspace, run.id, task="lam=0", name="signs")
    content = safetensors.torch.load(written)
    assert all(torch.equal(t, content[name]) for name, t in safetensors.torch.load_file(out).items())
    assert out.with_suffix(".md").read_text() == card
    assert command(*words, monkeypatch=monkeypatch, place=there) == 0  # its own card is replaced
    assert command("checkpoint", "--out", "signs.pt", monkeypatch=monkeypatch, place=there) == 2
    out.with_suffix(".md").write_text("# My notes\n")
    assert command(*words, monkeypatch=monkeypatch, place=there) == 1
    assert "is no card of a checkpoint" in capsys.readouterr().err
    assert out.with_suffix(".md").read_text() == "# My notes\n"


def test_without_a_correction_the_command_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store_run(place, "control", {})  # a done run of another step is none
    assert command("checkpoint", monkeypatch=monkeypatch, place=place) == 1
    assert "there is no correction that is done yet; run: defuse correct" in capsys.readouterr().err
