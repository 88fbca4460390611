"""Regression suites: what goes in comes out, what was changed is refused, and the exit code tells CI."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor, nn

from defuse_core.base.checkpoints import dump_tensors
from defuse_core.base.errors import CheckpointError
from defuse_core.cli import main as cli
from defuse_core.exchange.checkpoint.export import corrected_checkpoint
from defuse_core.exchange.suite import export as suite_export
from defuse_core.exchange.suite.export import contact_sheet, make_suite, newest_state, write_suite
from defuse_core.exchange.suite.model import open_model
from defuse_core.exchange.suite.suite import (
    INSTANCES,
    MANIFEST,
    Manifest,
    Suite,
    SuiteError,
    SuiteRegion,
    check_suite,
    read_manifest,
    read_suite,
)
from defuse_core.method.classifier import Classifier, Preprocessing
from defuse_core.networks.architectures import build_network
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import NetworkConfig
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import RegionEdit
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Run
from tests.commands import checked, defuse_here, defuse_process
from tests.in_process import done_here
from tests.workspaces import Place, copy_place

SEED = 3
SWEEP: dict[str, Any] = {
    "correction": {"lambdas": [1.0], "epochs": 3, "instances_per_region": 24, "precision": "fp32"},
    "baseline_lambdas": [],
}
each_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def there(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace with a correct run that is done; for tests that read it."""
    place = copy_place(template, tmp_path_factory.mktemp("suites") / "home")
    regions = newest(place, "distill")
    for found in regions.summary["regions"][1:]:
        named = RegionEdit("rename", (found["region_id"],), name=f"bars of {found['region_id']}")
        place.workspace.annotations.edit(regions.id, named)
    done_here(place, "correct", SWEEP, seed=SEED)
    return place


@pytest.fixture(scope="module")
def made(there: Place) -> Suite:
    return make_suite(there.workspace, newest(there, "correct").id, n=24)


@pytest.fixture(scope="module")
def kept(made: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite on disk; read it only."""
    folder = tmp_path_factory.mktemp("kept") / "suite"
    write_suite(made, folder)
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    """The suite, to be tampered with."""
    return Path(shutil.copytree(kept, tmp_path / "suite"))


@pytest.fixture(scope="module")
def models(there: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The classifier before, as the plain weights that a user has, and the corrected one as it goes out."""
    place, folder = there, tmp_path_factory.mktemp("models")
    torch.save(weights_of(place), folder / "before.pt")
    content, _ = corrected_checkpoint(place.workspace, newest(place, "correct").id)
    (folder / "after.safetensors").write_bytes(content)
    return {"before": folder / "before.pt", "after": folder / "after.safetensors"}


def newest(place: Place, step: str) -> Run:
    run = place.workspace.runs.latest(place.project.id, step, done=True)
    assert run is not None
    return run


def weights_of(place: Place) -> dict[str, Tensor]:
    return place.tensors(newest(place, "classifier"))["classifier.safetensors"]


def errors_of(network: nn.Module, preprocessing: Preprocessing, suite: Suite) -> list[float]:
    """Share of each region's images that a network gets wrong, in plain torch."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    found, drawn = [], suite.instances
    for region in suite.manifest.regions:
        images = drawn.images[drawn.region_ids == region.region_id].float() / 255
        with torch.inference_mode():
            said = network.eval()((images - mean) / std).argmax(1)
        found.append(float((said != region.label).double().mean()))
    return found


def change(folder: Path, **changes: Any) -> None:
    """Write other values into the manifest."""
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, **changes}))


def store_instances(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Put other instances in, with the checksum that they have."""
    content = dump_tensors(tensors)
    (folder / INSTANCES).write_bytes(content)
    values = json.loads((folder / MANIFEST).read_text())
    change(folder, files={**values["files"], INSTANCES: hashlib.sha256(content).hexdigest()})


# What goes in


def test_draws_are_those_that_the_correction_was_tested_on(there: Place, made: Suite) -> None:
    run = newest(there, "correct")
    failures = there.tensors(run)["failures.safetensors"]
    assert torch.equal(made.instances.images, failures["test.images"])
    assert torch.equal(made.instances.labels, failures["test.labels"])
    assert torch.equal(made.instances.region_ids, failures["test.ids"])
    assert not any(
        torch.equal(image, other)
        for image in made.instances.images[:24]
        for other in failures["tune.images"][:24]
    )
    assert {region.seed for region in made.manifest.regions} == {SEED}
    assert all(region.is_failure for region in made.manifest.regions)


def test_the_manifest_says_what_is_true(there: Place, made: Suite) -> None:
    manifest, source = made.manifest, Source(there.workspace, newest(there, "correct").id)
    assert manifest.fingerprint == source.dataset.fingerprint
    assert manifest.class_names == ("row", "column", "diagonal")
    assert manifest.architecture == "resnet_small"
    before = source.classifier()
    assert manifest.preprocessing.preprocessing() == before.preprocessing
    errors = errors_of(before.network, before.preprocessing, made)
    for region, error in zip(manifest.regions, errors, strict=True):
        assert region.before.estimate == error
        wilson = binomtest(round(error * 24), 24).proportion_ci(method="wilson")
        assert (region.before.low, region.before.high) == pytest.approx((wilson.low, wilson.high))
        assert region.tau == 0.5
        unnamed = region.region_id == newest(there, "distill").summary["regions"][0]["region_id"]
        assert region.name == ("" if unnamed else f"bars of {region.region_id}")
    assert not {r.region_id for r in manifest.regions} ^ {
        v["region_id"] for v in source.own("failures")[1]["verdicts"] if v["is_failure"]
    }


def test_all_takes_in_regions_that_are_no_failures(there: Place, made: Suite) -> None:
    run = newest(there, "correct")
    everything = make_suite(there.workspace, run.id, n=4, everything=True).manifest.regions
    failures = {region.region_id for region in made.manifest.regions}
    assert {region.region_id for region in everything if region.is_failure} == failures
    assert len(everything) > len(failures)


def test_seed_and_n_are_those_asked_for(there: Place, made: Suite) -> None:
    run = newest(there, "correct")
    few = make_suite(there.workspace, run.id, n=5)
    first = few.instances.images[:5]
    assert torch.equal(first, made.instances.images[:5])  # the first of any longer set
    other = make_suite(there.workspace, run.id, n=5, seed=4)
    assert not torch.equal(other.instances.images[:5], first)


def test_the_newest_state_is_the_corrections_until_labels_change(
    template: Path, there: Place, tmp_path: Path
) -> None:
    before_it = copy_place(template, tmp_path / "before")
    regions = newest(before_it, "distill")
    assert newest_state(before_it.workspace, before_it.project.id).id == regions.id
    place = copy_place(there.workspace.home, tmp_path / "home")
    run = newest(place, "correct")
    assert newest_state(place.workspace, place.project.id).id == run.id
    before = make_suite(place.workspace, run.id, n=2).manifest
    gone = before.regions[0].region_id
    everybody = [LabelEvent(gone, f"Bob {i}", None, s) for i in range(5) for s in range(10)]
    place.workspace.annotations.append(regions.id, everybody)
    assert newest_state(place.workspace, place.project.id).id == regions.id
    now = make_suite(place.workspace, regions.id, n=2).manifest
    assert gone not in {region.region_id for region in now.regions}
    assert make_suite(place.workspace, run.id, n=2).manifest == before


def test_a_further_round_without_labels_leaves_the_corrections_suite(there: Place, tmp_path: Path) -> None:
    place = copy_place(there.workspace.home, tmp_path / "home")
    run = newest(place, "correct")
    done_here(place, "distill", {"n_components": 12}, seed=1)
    assert newest_state(place.workspace, place.project.id).id == run.id


def test_what_has_no_failures_or_no_regions_is_refused(there: Place) -> None:
    with pytest.raises(WorkspaceError, match="is classifier, done"):
        make_suite(there.workspace, newest(there, "classifier").id)
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        make_suite(there.workspace, newest(there, "correct").id, n=0)


# Round trip


def test_what_was_written_is_read(made: Suite, kept: Path) -> None:
    found = read_suite(kept)
    assert found.manifest.model_copy(update={"files": {}}) == made.manifest
    for name, tensor in vars(made.instances).items():
        assert torch.equal(getattr(found.instances, name), tensor), name
    assert oct(kept.stat().st_mode & 0o777) == "0o755"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]  # nothing temporary is left


def test_the_picture_shows_every_image(made: Suite, kept: Path) -> None:
    region = made.manifest.regions[0]
    picture = np.asarray(Image.open(kept / region.picture))
    scale = picture.shape[1] // 44  # five images of 8 pixels, and the lines between
    assert picture.shape == (44 * scale, 44 * scale)
    small = picture[::scale, ::scale]
    for index, image in enumerate(made.instances.images[:24]):
        row, column = 9 * (index // 5), 9 * (index % 5)
        assert np.array_equal(small[row : row + 8, column : column + 8], image[0].numpy()), index


def test_pictures_of_large_images_stay_small() -> None:
    images = torch.randint(0, 256, (300, 3, 200, 200), dtype=torch.uint8)
    picture = Image.open(io.BytesIO(contact_sheet(images)))
    assert picture.mode == "RGB"
    assert picture.width == 1280


def test_a_suite_replaces_a_suite_and_nothing_else(made: Suite, folder: Path) -> None:
    write_suite(made, folder)
    assert read_suite(folder).manifest.regions == made.manifest.regions
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SuiteError, match=r"holds notes\.txt, which is of no suite"):
        write_suite(made, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    (folder / MANIFEST).write_text('{"name": "of another program"}')
    with pytest.raises(SuiteError, match="is no suite's"):
        write_suite(made, folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(SuiteError, match="it has no manifest"):
        write_suite(made, folder)
    assert (folder / INSTANCES).is_file()


def test_an_empty_folder_is_taken_and_a_file_is_not(made: Suite, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_suite(made, tmp_path / "empty")
    assert read_suite(tmp_path / "empty").manifest.regions == made.manifest.regions
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SuiteError, match="is a file"):
        write_suite(made, tmp_path / "file")


def test_a_disk_that_fills_leaves_the_old_suite(
    made: Suite, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == MANIFEST:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(suite_export, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_suite(made, folder)
    assert read_suite(folder).manifest.regions == made.manifest.regions
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


# What was changed, or is of a stranger


def tamper_bytes(folder: Path) -> None:
    content = bytearray((folder / INSTANCES).read_bytes())
    content[-1] ^= 1
    (folder / INSTANCES).write_bytes(content)


def tamper_picture(folder: Path) -> None:
    next((folder / "regions").iterdir()).write_bytes(b"\x89PNG")


def drop_picture(folder: Path) -> None:
    next((folder / "regions").iterdir()).unlink()


def drop_instances(folder: Path) -> None:
    (folder / INSTANCES).unlink()


def drop_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def newer(folder: Path) -> None:
    change(folder, version=2, instances=[{"other": "layout"}])


def foreign(folder: Path) -> None:
    change(folder, format="coco")


def no_checksums(folder: Path) -> None:
    change(folder, files={})


def more_images(folder: Path) -> None:
    regions = json.loads((folder / MANIFEST).read_text())["regions"]
    change(folder, regions=[{**region, "n": 10**6} for region in regions], image_shape=[3, 1024, 1024])


def other_shape(folder: Path) -> None:
    change(folder, image_shape=[1, 4, 16])


def too_many_pixels(folder: Path) -> None:
    change(folder, image_shape=[1, 8, 10**9])


def label_out_of_range(folder: Path) -> None:
    regions = json.loads((folder / MANIFEST).read_text())["regions"]
    change(folder, regions=[{**regions[0], "label": 3}, *regions[1:]])


def two_classes_of_a_name(folder: Path) -> None:
    change(folder, class_names=["row", "column", "row "])


def two_of_an_id(folder: Path) -> None:
    regions = json.loads((folder / MANIFEST).read_text())["regions"]
    change(folder, regions=[*regions, regions[0]])


def other_label(folder: Path) -> None:
    regions = json.loads((folder / MANIFEST).read_text())["regions"]
    change(folder, regions=[{**regions[0], "label": (regions[0]["label"] + 1) % 3}, *regions[1:]])


def labels_within(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / INSTANCES)
    store_instances(folder, {**tensors, "labels": tensors["labels"] - 100})


def other_types(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / INSTANCES)
    store_instances(folder, {**tensors, "images": tensors["images"].view(torch.int8)})


def another_tensor(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / INSTANCES)
    store_instances(folder, {**tensors, "more": torch.zeros(1)})


def no_safetensors(folder: Path) -> None:
    size = (folder / INSTANCES).stat().st_size
    (folder / INSTANCES).write_bytes(b"\xff" * size)
    values = json.loads((folder / MANIFEST).read_text())
    digest = hashlib.sha256(b"\xff" * size).hexdigest()
    change(folder, files={**values["files"], INSTANCES: digest})


def huge_size(folder: Path) -> None:
    change(folder, preprocessing={"mean": [0.5], "std": [0.5], "image_size": 10**6})


def bad_std(folder: Path) -> None:
    change(folder, preprocessing={"mean": [0.5], "std": [0.0]})


def unknown_field(folder: Path) -> None:
    change(folder, command="rm -rf /")


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (tamper_bytes, "is not the file that the suite was made with"),
        (tamper_picture, "is not the file that the suite was made with"),
        (drop_picture, r"\.png is missing"),
        (drop_instances, "safetensors is missing"),
        (drop_manifest, "is no suite: it has no manifest.json; make one with: defuse suite export"),
        (newer, "of version 2, this Defuse reads 1; install a newer Defuse"),
        (foreign, "format 'coco', not 'defuse-suite'"),
        (no_checksums, "is not the file that the suite was made with"),
        (more_images, "bytes, [0-9]+ images of"),
        (other_shape, "does not hold what its manifest says"),
        (too_many_pixels, "damaged .*image_shape"),
        (label_out_of_range, "labels must be in 0 … 2, got 3"),
        (two_classes_of_a_name, "classes 0 and 2 are both called 'row'; rename one of them"),
        (two_of_an_id, "ids of their own"),
        (other_label, "other labels or regions than its manifest"),
        (labels_within, "other labels or regions than its manifest"),
        (other_types, "does not hold what its manifest says"),
        (another_tensor, "does not hold what its manifest says"),
        (no_safetensors, "not a whole safetensors file"),
        (huge_size, "damaged .*image_size"),
        (bad_std, "damaged .*std must be positive"),
        (unknown_field, "damaged .*command"),
    ],
)
def test_what_was_changed_is_refused(tamper: Callable[[Path], None], told: str, folder: Path) -> None:
    tamper(folder)
    with pytest.raises(SuiteError, match=told):
        read_suite(folder)


def test_names_of_files_in_a_manifest_are_never_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    values = json.loads((folder / MANIFEST).read_text())
    digest = hashlib.sha256(b"other").hexdigest()
    change(folder, files={**values["files"], "../secret": digest, "/etc/passwd": digest})
    assert read_suite(folder).manifest.regions  # those names are no file of a suite


def refusal(folder: Path) -> str:
    """Why a suite is refused, in one message for people; "" where it is taken."""
    try:
        read_suite(folder)
    except SuiteError as error:
        return str(error)
    return ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@each_file
@given(name=st.sampled_from(sorted(Manifest.model_fields)), value=JSON)
def test_any_value_in_the_manifest_is_taken_or_refused(name: str, value: Any, folder: Path) -> None:
    before = (folder / MANIFEST).read_text()
    change(folder, **{name: value})
    assert len(refusal(folder)) < 1000
    (folder / MANIFEST).write_text(before)


@each_file
@given(name=st.sampled_from(sorted(SuiteRegion.model_fields)), value=JSON)
def test_any_value_of_a_region_is_taken_or_refused(name: str, value: Any, folder: Path) -> None:
    before = (folder / MANIFEST).read_text()
    regions = json.loads(before)["regions"]
    change(folder, regions=[{**regions[0], name: value}, *regions[1:]])
    assert len(refusal(folder)) < 1000
    (folder / MANIFEST).write_text(before)


@each_file
@given(content=st.binary(max_size=200) | st.text(max_size=50).map(str.encode) | st.just(b"[" * 100_000))
def test_garbage_is_no_manifest(content: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(SuiteError):
        read_manifest(folder)


# The model under check


def test_errors_are_those_of_plain_torch(there: Place, made: Suite, models: dict[str, Path]) -> None:
    for name, tensors in (
        ("before", weights_of(there)),
        ("after", there.tensors(newest(there, "correct"))["corrected.safetensors"]),
    ):
        network = build_network("resnet_small", n_classes=3, channels=1)
        network.load_state_dict(tensors)
        expected = errors_of(network, made.manifest.preprocessing.preprocessing(), made)
        found = open_model(models[name], made, NetworkConfig())
        assert found.architecture == "resnet_small"
        checked = check_suite(found.classifier, made, max_error=0.2)
        assert [each.error.estimate for each in checked] == expected
        assert [each.passed for each in checked] == [error <= 0.2 for error in expected]


def test_options_come_before_the_file_and_that_before_the_suite(
    made: Suite, models: dict[str, Path], tmp_path: Path
) -> None:
    own = made.manifest.preprocessing.preprocessing()
    plain = open_model(models["before"], made, NetworkConfig())
    assert (plain.preprocessing_from, plain.classifier.preprocessing) == ("the suite", own)
    tensors = safetensors.torch.load_file(models["after"])
    fed = {"mean": [0.25], "std": [0.5], "image_size": 16, "channel_order": "rgb"}
    path = tmp_path / "other.safetensors"
    path.write_bytes(dump_tensors(tensors, metadata={"preprocessing": fed}))
    told = open_model(path, made, NetworkConfig())
    assert told.preprocessing_from == "the checkpoint"
    assert told.classifier.preprocessing == Preprocessing((0.25,), (0.5,), 16)
    stated = open_model(path, made, NetworkConfig(mean=(0.1,), image_size=8))
    assert stated.preprocessing_from == "the options"
    assert stated.classifier.preprocessing == Preprocessing((0.1,), (0.5,), 8)
    path.write_bytes(dump_tensors(tensors, metadata={"preprocessing": {**fed, "image_size": 10**7}}))
    with pytest.raises(CheckpointError, match="states a preprocessing that is none"):
        open_model(path, made, NetworkConfig())


@pytest.mark.parametrize("stated", [{"mean": (0.1, 0.2, 0.3)}, {"std": (1.0, 2.0, 3.0)}])
def test_values_for_channels_that_the_network_has_not_are_refused(
    made: Suite, models: dict[str, Path], stated: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match="have 3 values, the network takes 1 channels; give 1"):
        open_model(models["after"], made, NetworkConfig(**stated))


def test_models_of_other_classes_are_refused_in_words(made: Suite, tmp_path: Path) -> None:
    five = build_network("resnet_small", n_classes=5, channels=1)
    torch.save(five.state_dict(), tmp_path / "five.pt")
    with pytest.raises(CheckpointError, match="tells 5 classes apart, the suite has 3"):
        open_model(tmp_path / "five.pt", made, NetworkConfig())
    torch.jit.save(torch.jit.script(five.eval()), tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match="tells 5 classes apart, the suite has 3"):
        open_model(tmp_path / "program.pt", made, NetworkConfig(trust_program=True))
    three = build_network("resnet_small", n_classes=3, channels=1).state_dict()
    names = {"class_names": ["column", "row", "diagonal"]}
    (tmp_path / "order.safetensors").write_bytes(dump_tensors(three, metadata=names))
    with pytest.raises(CheckpointError, match=r"\(column, row, diagonal\), the suite has 3 \(row, column"):
        open_model(tmp_path / "order.safetensors", made, NetworkConfig())


def test_a_program_needs_trust(made: Suite, there: Place, tmp_path: Path) -> None:
    network = build_network("resnet_small", n_classes=3, channels=1)
    network.load_state_dict(weights_of(there))
    torch.jit.save(torch.jit.script(network.eval()), tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match=r"is a program .* add --trust-program"):
        open_model(tmp_path / "program.pt", made, NetworkConfig())
    found = open_model(tmp_path / "program.pt", made, NetworkConfig(trust_program=True))
    checked = check_suite(found.classifier, made, max_error=0.1)
    assert [each.error for each in checked] == [region.before for region in made.manifest.regions]
    weights = dump_tensors(network.state_dict(), metadata={"architecture": "torchscript"})
    (tmp_path / "weights.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="weights of a program alone; load them into it"):
        open_model(tmp_path / "weights.safetensors", made, NetworkConfig())


def test_an_own_class_needs_its_folder_and_leave(
    made: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
    code += "        super().__init__(nn.Flatten(), nn.Linear(64, 3))\n"
    (tmp_path / "suite_net_of_mine.py").write_text(code)
    linear = nn.Linear(64, 3)
    tensors = {f"module.1.{name}": tensor for name, tensor in linear.state_dict().items()}
    about = {"architecture": "suite_net_of_mine:Net"}
    path = tmp_path / "own.safetensors"
    path.write_bytes(dump_tensors(tensors, metadata=about))
    with pytest.raises(CheckpointError, match="name its folder: --code-path"):
        open_model(path, made, NetworkConfig())
    config = NetworkConfig(code_path=str(tmp_path))
    monkeypatch.delenv("DEFUSE_ALLOW_LOCAL_CODE", raising=False)
    with pytest.raises(CheckpointError, match="was not allowed"):
        open_model(path, made, config)
    monkeypatch.setenv("DEFUSE_ALLOW_LOCAL_CODE", "1")
    found = open_model(path, made, config)
    images = made.instances.images.float() / 255
    fed = made.manifest.preprocessing
    with torch.inference_mode():
        expected = linear((images.flatten(1) - fed.mean[0]) / fed.std[0])
    assert torch.allclose(found.classifier(made.instances.images), expected, atol=1e-5)


def test_of_variants_with_equal_weights_the_suites_is_taken(made: Suite, tmp_path: Path) -> None:
    linears = nn.Sequential(nn.Linear(64, 9), nn.Linear(9, 3))
    torch.save(linears.state_dict(), tmp_path / "mlp.pt")
    with pytest.raises(CheckpointError, match="fit several architectures: mlp, mlp_tanh, mlp_sigmoid"):
        open_model(tmp_path / "mlp.pt", made, NetworkConfig())
    theirs = Suite(made.manifest.model_copy(update={"architecture": "mlp_tanh"}), made.instances)
    assert open_model(tmp_path / "mlp.pt", theirs, NetworkConfig()).architecture == "mlp_tanh"
    assert open_model(tmp_path / "mlp.pt", theirs, NetworkConfig(architecture="mlp")).architecture == "mlp"


@pytest.mark.parametrize("max_error", [-0.1, 1.1, float("nan")])
def test_max_error_is_a_share(max_error: float, made: Suite, there: Place) -> None:
    classifier: Classifier = Source(there.workspace, newest(there, "correct").id).classifier()
    with pytest.raises(ValueError, match="max_error must be in"):
        check_suite(classifier, made, max_error=max_error)


# The command


def check_here(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `defuse suite …` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["defuse", "suite", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_line_in_ci(kept: Path, models: dict[str, Path], tmp_path: Path) -> None:
    """There is no workspace: 1 for the classifier before, of a process, 0 for the corrected one."""
    env = {"DEFUSE_HOME": str(tmp_path / "none"), "COLUMNS": "100"}
    told = {}
    for name, call, code in (("before", defuse_process, 1), ("after", defuse_here, 0)):
        words = ("suite", "check", "--model", str(models[name]), "--suite", str(kept), "--max-error", "0.3")
        told[name] = checked(call(*words, cwd=tmp_path, env=env), code).stdout
    regions = read_manifest(kept).regions
    assert "preprocessing of the suite" in told["before"]
    assert "preprocessing of the checkpoint" in told["after"]
    assert told["before"].count("FAIL │") + told["before"].count("pass │") == len(regions)
    assert f"FAIL: {told['before'].count('FAIL │')} of {len(regions)} regions" in told["before"]
    assert f"pass: 0 of {len(regions)} regions have more than 0.3 of their images" in told["after"]
    for line, region in zip(re.findall(r"│ *\d.*", told["after"]), regions, strict=True):
        cells = [cell.strip() for cell in line.split("│")]
        assert (
            cells[-3] == f"{region.before.estimate:.3f}"
        )  # of the classifier it was made of, not of this one
    assert f"{regions[0].before}" in told["before"]
    assert not (tmp_path / "none").exists()


def test_the_check_as_json(
    kept: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("check", "--model", str(models["before"]), "--suite", str(kept), "--json")
    assert check_here(monkeypatch, *words, "--max-error", "1") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert [r["error"] for r in found["regions"]] == [list(r.error) for r in read_manifest(kept).regions]
    assert check_here(monkeypatch, *words, "--max-error", "0") == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_wrong_calls_exit_with_2_and_damage_with_1(
    folder: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, suite = ("--model", str(models["before"])), ("--suite", str(folder))
    for words in (
        model, suite, (*model, *suite, "--max-error", "2"), (*model, *suite, "--mean", "a,b"),
        (*model, *suite, "--std", "0"), (*model, *suite, "--channel-order", "grb"),
        ("--model", "nowhere.pt", *suite), (*model, "--suite", "nowhere"),
    ):  # fmt: skip
        assert check_here(monkeypatch, "check", *words) == 2, words
    assert "std" in capsys.readouterr().err
    newer(folder)
    assert check_here(monkeypatch, "check", *model, *suite) == 1
    assert "install a newer Defuse" in capsys.readouterr().err


def test_the_suite_is_written_by_the_command(
    there: Place, made: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("DEFUSE_HOME", str(there.workspace.home))
    out = tmp_path / "new" / "suite"
    assert check_here(monkeypatch, "export", "--out", str(out), "--n", "24", "--json") == 0
    assert json.loads(capsys.readouterr().out)["regions"] == len(made.manifest.regions)
    assert torch.equal(read_suite(out).instances.images, made.instances.images)
    regions = newest(there, "distill")
    words = ("export", "--out", str(out), "--n", "2", "--run", str(regions.id), "--all", "--seed", "9")
    assert check_here(monkeypatch, *words) == 0
    expected = make_suite(there.workspace, regions.id, n=2, seed=9, everything=True)
    assert torch.equal(read_suite(out).instances.images, expected.instances.images)


def test_names_of_strangers_do_not_reach_the_terminal_as_they_are(
    folder: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    regions = json.loads((folder / MANIFEST).read_text())["regions"]
    change(folder, regions=[{**regions[0], "name": "\x1b[2J[red]x"}, *regions[1:]])
    check_here(monkeypatch, "check", "--model", str(models["before"]), "--suite", str(folder))
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "·[2J[red]x" in told
