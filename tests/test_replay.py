"""A run made again from its manifest: equal, and every way in which it may not be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defuse_core.data.reading import Reading
from defuse_core.exchange.replay.bringing import Bring, find_more_data, find_source, find_uploads
from defuse_core.exchange.replay.comparison import compare, differences
from defuse_core.exchange.replay.replay import Replay, replay
from defuse_core.jobs import launcher
from defuse_core.workspace.config_checks import ConfigError
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.manifest.reading import parse_manifest
from defuse_core.workspace.manifest.writing import make_manifest
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Workspace
from tests.commands import checked, defuse_here
from tests.conftest import bars
from tests.in_process import compute_here, done_here, run_here, runs_in_this_process, store_run
from tests.test_manifest import SMALL, newest, put
from tests.workspaces import ONE_THREAD, SEARCH, Place, copy_place


@pytest.fixture
def in_this_process() -> Iterator[None]:
    with runs_in_this_process():
        yield


@pytest.fixture(scope="module")
def made(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace with a correction and its evidence; read it only."""
    place = copy_place(template, tmp_path_factory.mktemp("made") / "home")
    regions = newest(place, "distill")
    place.workspace.annotations.append(
        regions.id, [LabelEvent(regions.summary["regions"][0]["region_id"], "Eve", 0)]
    )
    place.workspace.annotations.undo(regions.id, "Eve")
    done_here(place, "correct", SMALL, seed=3)
    done_here(place, "evaluate", {"noise_images": 0})
    return place


@pytest.fixture(scope="module")
def whole(made: Place) -> dict[str, Any]:
    """The manifest of the evidence."""
    return make_manifest(made.workspace, newest(made, "evaluate").id)


def stay(run: Run) -> Run:
    """Every run is done when it is submitted, in this process."""
    raise AssertionError(f"{run.step} is {run.status}")


@pytest.fixture(scope="module")
def again(
    made: Place, whole: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, Replay]:
    """The evidence made again, in a copy of the workspace, after the place of the data was lost and found."""
    place = copy_place(made.workspace.home, tmp_path_factory.mktemp("again") / "home")
    with runs_in_this_process():
        return place.workspace, replay(place.workspace, parse_manifest(whole), name="again", watch=stay)


def test_a_replay_is_equal(whole: dict[str, Any], again: tuple[Workspace, Replay]) -> None:
    workspace, found = again
    manifest = parse_manifest(whole)
    assert found.done
    assert [run.step for run in found.runs] == [run.step for run in manifest.runs]
    assert not any(run.stale for run in found.runs)
    compared = compare(workspace, manifest, found.runs)
    assert compared.same, [run for run in compared.runs if not run.same]
    assert (compared.reasons, compared.largest) == ((), None)
    for run, was in zip(compared.runs, manifest.runs, strict=True):
        assert {*run.equal, *run.uncompared} == {file.name for file in was.files}
    assert compared.runs[-1].uncompared == ("results.json",)
    by_step = {run.step: run for run in found.runs}
    labels = workspace.annotations.events(by_step["distill"].id)
    assert [e.undoes is None for e in labels[-2:]] == [True, False]
    assert by_step["correct"].last_annotation == labels[-1].id
    assert by_step["correct"].seed == 3
    assert by_step["identify"].resources == ONE_THREAD  # as many threads as then


@pytest.mark.usefixtures("in_this_process")
def test_a_replay_that_is_done_is_found_done(whole: dict[str, Any], again: tuple[Workspace, Replay]) -> None:
    workspace, found = again
    before = len(workspace.runs.of_project(found.project.id))
    second = replay(workspace, parse_manifest(whole), name="again", watch=stay)
    assert [run.id for run in second.runs] == [run.id for run in found.runs]
    assert len(workspace.runs.of_project(found.project.id)) == before


@pytest.mark.parametrize(
    ("path", "value", "seen"),
    [
        ("runs.2.summary.searched", 7, ("identify", "searched", 7)),
        ("runs.5.results.before.test", 0.125, ("evaluate", "results.before.test", 0.125)),
        ("runs.4.summary.corrected.points.0.test.0", 2.0, ("correct", "corrected.points.0.test.0", 2.0)),
        ("runs.3.summary.regions.0.region_id", None, ("distill", "regions.0.region_id", None)),
    ],
)
def test_a_number_that_was_changed_is_found(
    whole: dict[str, Any], again: tuple[Workspace, Replay], path: str, value: Any, seen: tuple[str, str, Any]
) -> None:
    workspace, found = again
    compared = compare(workspace, parse_manifest(put(whole, path, value)), found.runs)
    ((step, difference),) = [(run.step, value) for run in compared.runs for value in run.values]
    assert not compared.same
    assert (step, difference.path, difference.was) == seen
    if value is not None:
        assert compared.largest == difference
        assert difference.size == abs(difference.now - value) > 0


def test_files_that_were_changed_are_found(whole: dict[str, Any], again: tuple[Workspace, Replay]) -> None:
    workspace, found = again
    changed = put(whole, "runs.2.files.0.sha256", "0" * 64)
    assert compare(workspace, parse_manifest(changed), found.runs).same  # only the order of its metadata
    changed = put(changed, "runs.2.files.0.content", "0" * 64)
    changed = put(changed, "runs.1.files.0.name", "other.safetensors")
    by_step = {run.step: run for run in compare(workspace, parse_manifest(changed), found.runs).runs}
    assert by_step["identify"].differ == ("mistakes.safetensors",)
    assert (by_step["vae"].missing, by_step["vae"].new) == (("other.safetensors",), ("vae.safetensors",))
    assert [run.step for run in by_step.values() if not run.same] == ["vae", "identify"]


def test_what_may_explain_a_difference_is_said(
    whole: dict[str, Any], again: tuple[Workspace, Replay]
) -> None:
    workspace, found = again
    changed = put(whole, "versions.torch", "1.0")
    changed = put(changed, "runs.2.found.threads", 64)
    changed = put(changed, "runs.2.found.device.name", "A100")
    changed = put(changed, "runs.3.stale", True)
    changed = put(changed, "runs.4.summary.missing", ["lam=1"])
    compared = compare(workspace, parse_manifest(changed), found.runs)
    said = " ".join(compared.reasons)
    for told in (
        "torch 1.0 then, 2.",
        "threads 64 then, 1 now",
        "device A100 then, CPU",
        "distill: what it stood",
    ):
        assert told in said
    assert "correct: lam=1 had been cancelled or had diverged" in compared.reasons
    unrecorded = put(whole, "runs.5.done", False)
    last = compare(workspace, parse_manifest(unrecorded), found.runs).runs[-1]
    assert (last.recorded, last.same, last.equal) == (False, True, ())


def test_a_replay_that_was_stopped_goes_on(
    whole: dict[str, Any], made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops at the generator, of which an epoch will do."""
    place = copy_place(made.workspace.home, tmp_path / "home")
    workspace, generator = place.workspace, whole["runs"][1]["config"]
    done_here(place, "vae", {**generator, "training": {**generator["training"], "epochs": 1}})
    found_here = done_here(place, "identify", {**SEARCH, "n_perturbations": 2})
    manifest = parse_manifest(make_manifest(workspace, found_here.id))

    def until_the_generator(place: Workspace, run: Run) -> None:
        if run.step == "vae":
            place.runs.finish(run.id, "interrupted")
            return
        compute_here(place, run)

    monkeypatch.setattr(launcher, "_start", until_the_generator)
    stopped = replay(workspace, manifest, name="again", watch=stay)
    assert [run.status for run in stopped.runs] == ["done", "interrupted"]
    assert not stopped.done
    monkeypatch.setattr(launcher, "_start", compute_here)
    found = replay(workspace, manifest, name="again", watch=stay)
    assert [run.id for run in found.runs[:2]] == [run.id for run in stopped.runs]
    assert found.done
    assert compare(workspace, manifest, found.runs).same


@pytest.mark.usefixtures("in_this_process")
def test_other_runs_in_the_project_are_not_stood_on(
    whole: dict[str, Any], made: Place, tmp_path: Path
) -> None:
    workspace = copy_place(made.workspace.home, tmp_path / "home").workspace
    shorter = put({**whole, "runs": whole["runs"][:3], "logs": []}, "runs.1.config.training.epochs", 1)
    manifest = parse_manifest(shorter)
    one = manifest.model_copy(update={"runs": manifest.runs[:2]})
    project = replay(workspace, one, name="again", watch=stay).project
    store_run(Place(workspace, project), "vae", {})
    with pytest.raises(
        WorkspaceError, match="'again' has runs of its own, on which identify would stand; give"
    ):
        replay(workspace, manifest, name="again", watch=stay)


def test_the_project_itself_is_no_replay(whole: dict[str, Any], made: Place) -> None:
    with pytest.raises(
        WorkspaceError, match="project 'shapes' is older than the manifest; give another --name"
    ):
        replay(made.workspace, parse_manifest(whole), name="shapes", watch=stay)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Workspace:
    """A workspace of another machine."""
    return Workspace(tmp_path / "elsewhere")


def test_a_path_of_the_manifest_is_not_opened(whole: dict[str, Any], elsewhere: Workspace) -> None:
    assert Path(whole["dataset"]["source"]).is_file()
    with pytest.raises(
        WorkspaceError, match=r"was /.*shapes\.npz where the manifest was made; say .* by --data"
    ):
        replay(elsewhere, parse_manifest(whole), name="again", watch=stay)
    assert elsewhere.projects() == []


def test_data_of_another_machine_are_not_taken_where_a_project_here_has_them(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    for name, source in (("far", "elsewhere:/home/ada/signs.npz"), ("here", "/data/signs.npz")):
        workspace.create_project(name, dataset={**whole["dataset"], "source": source})
    changed = parse_manifest(put(whole, "dataset.source", "/home/ada/signs.npz"))
    assert find_source(workspace, changed)[0] == "/data/signs.npz"


@pytest.mark.parametrize(
    ("source", "opened"),
    [
        ("digits", "digits"),
        ("torchvision:SVHN:/etc", "torchvision:SVHN"),
        ("torchvision:GTSRB", "torchvision:GTSRB"),
    ],
)
def test_sources_that_are_no_paths_are_read(
    whole: dict[str, Any], elsewhere: Workspace, source: str, opened: str
) -> None:
    changed = put(put(whole, "dataset.source", source), "dataset.image_size", 32)
    changed = put(changed, "dataset.split_seed", 3)
    reading = Reading(32, seed=3)
    assert find_source(elsewhere, parse_manifest(changed)) == (opened, reading)
    shared = parse_manifest(put(put(changed, "dataset.validation", 0.125), "dataset.fit", "crop"))
    divided = Reading(32, "crop", seed=3, validation=0.125)
    assert find_source(elsewhere, shared) == (opened, divided)
    assert find_source(elsewhere, shared, "mine") == ("mine", divided)


def test_the_data_of_a_project_here_are_read_from_its_own_place(whole: dict[str, Any], made: Place) -> None:
    changed = parse_manifest(put(put(whole, "dataset.source", "/else"), "dataset.image_size", 8))
    own = Reading.of(made.project.dataset)
    assert find_source(made.workspace, changed) == (made.project.dataset["source"], own)
    assert find_source(made.workspace, changed, "mine.npz") == (
        "mine.npz",
        Reading.of({**own.remembered(), "image_size": 8}),
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x_test": (slice(0, 100),), "y_test": (slice(0, 100),)}, r"images \{.*120\} there, \{.*100\} here"),
        ({"x_train": (slice(None), slice(0, 7))}, "shape"),
        (
            {"y_train": (slice(None, None, -1),)},
            "same numbers, shapes and classes, but other pixels or labels",
        ),
    ],
)
def test_other_data_are_refused(
    whole: dict[str, Any], elsewhere: Workspace, tmp_path: Path, change: Mapping[str, Any], told: str
) -> None:
    with np.load(whole["dataset"]["source"]) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays |= {name: arrays[name][index] for name, index in change.items()}
    if "x_train" in change:
        arrays |= {name: values[:, :7] for name, values in arrays.items() if name in ("x_test", "x_val")}
    np.savez(tmp_path / "other.npz", **arrays)
    bring = Bring(data=str(tmp_path / "other.npz"))
    with pytest.raises(
        WorkspaceError, match=rf"other\.npz is not the manifest's data set \(.*{told}.*--data"
    ):
        replay(elsewhere, parse_manifest(whole), name="again", watch=stay, bring=bring)
    assert elsewhere.projects() == []


@pytest.mark.parametrize(
    ("bring", "told"),
    [({"device": "foo"}, "device must be auto"), ({"threads": 10**8}, "threads must be 0 to")],
)
def test_resources_that_are_refused_leave_nothing_behind(
    whole: dict[str, Any], elsewhere: Workspace, bring: dict[str, Any], told: str
) -> None:
    data = whole["dataset"]["source"]
    with pytest.raises(ConfigError, match=told):
        replay(elsewhere, parse_manifest(whole), name="again", watch=stay, bring=Bring(data=data, **bring))
    assert elsewhere.projects() == []


def uploaded(made: Place, home: Path) -> tuple[Place, bytes, dict[str, Any]]:
    """A workspace whose classifier was uploaded, its weights, and its manifest."""
    weights = made.workspace.artifact_path(
        newest(made, "classifier").id, "classifier.safetensors"
    ).read_bytes()
    workspace = Workspace(home)
    place = Place(workspace, new_project(workspace, "uploaded", made.project.dataset["source"]))
    blob = workspace.add_blob(place.project.id, "mine.safetensors", [weights])
    run = run_here(place, "classifier", {"weights": f"blob:{blob.sha256}", "architecture": "resnet_small"})
    assert run.status == "done", run.error
    return place, weights, make_manifest(workspace, run.id)


@pytest.mark.usefixtures("in_this_process")
def test_uploads_are_taken_by_their_checksum(made: Place, elsewhere: Workspace, tmp_path: Path) -> None:
    place, weights, told = uploaded(made, tmp_path / "uploaded")
    manifest, source = parse_manifest(told), made.project.dataset["source"]
    with pytest.raises(
        WorkspaceError, match=r"mine\.safetensors \(.* was uploaded .*; give the file by --check"
    ):
        replay(elsewhere, manifest, name="again", watch=stay, bring=Bring(data=source))
    (tmp_path / "wrong.pt").write_bytes(weights + b"0")
    with pytest.raises(
        WorkspaceError, match=r"wrong\.pt is none of the uploads that the manifest names \(mine"
    ):
        find_uploads(elsewhere, manifest, [tmp_path / "wrong.pt"])
    with pytest.raises(WorkspaceError, match=r"none\.pt does not exist; check the path"):
        find_uploads(elsewhere, manifest, [tmp_path / "none.pt"])
    with pytest.raises(WorkspaceError, match="is a pipe or a device, not a file; check the path"):
        find_uploads(elsewhere, manifest, [Path("/dev/zero")])
    assert elsewhere.projects() == []
    assert [path.read_bytes() for path in find_uploads(place.workspace, manifest, []).values()] == [weights]

    (tmp_path / "renamed.bin").write_bytes(weights)
    bring = Bring(data=source, checkpoints=(tmp_path / "renamed.bin",))
    found = replay(elsewhere, manifest, name="again", watch=stay, bring=bring)
    assert compare(elsewhere, manifest, found.runs).same
    (tmp_path / "renamed.bin").unlink()
    assert replay(elsewhere, manifest, name="again", watch=stay).runs == found.runs  # it is stored now


def test_the_share_set_apart_for_validation_is_so_again(elsewhere: Workspace, tmp_path: Path) -> None:
    train, test = bars(90, 0), bars(30, 1)
    path = tmp_path / "whole.npz"
    np.savez(
        path, x_train=train.images[:, 0].numpy(), y_train=train.labels.numpy(),
        x_test=test.images[:, 0].numpy(), y_test=test.labels.numpy(),
    )  # fmt: skip
    workspace = Workspace(tmp_path / "home")
    place = Place(workspace, new_project(workspace, "divided", str(path), validation=0.2))
    run = done_here(place, "classifier", {"architecture": "resnet_small", "training": {"epochs": 1}})
    assert run.summary["intervals"]["validation"][3] == 18
    told = make_manifest(workspace, run.id)
    with runs_in_this_process():
        bring = Bring(data=str(path))
        found = replay(elsewhere, parse_manifest(told), name="again", watch=stay, bring=bring)
        assert compare(elsewhere, parse_manifest(told), found.runs).same
        assert found.project.dataset == place.project.dataset
        here = replay(workspace, parse_manifest(told), name="again", watch=stay)  # where the project has them
        assert here.project.dataset == place.project.dataset
        other = parse_manifest(put(told, "dataset.validation", None))
        with pytest.raises(WorkspaceError, match=r"is not the manifest's data set \(images .*18.* there, "):
            replay(elsewhere, other, name="other", watch=stay, bring=bring)


@pytest.mark.usefixtures("in_this_process")
def test_weights_that_training_began_with_are_brought_again(
    made: Place, elsewhere: Workspace, tmp_path: Path
) -> None:
    source = made.project.dataset["source"]
    workspace = Workspace(tmp_path / "home")
    place = Place(workspace, new_project(workspace, "begun", source))
    path = made.workspace.artifact_path(newest(made, "classifier").id, "classifier.safetensors")
    blob = workspace.add_blob(place.project.id, "mine.safetensors", [path.read_bytes()])
    training = {"epochs": 1, "batch_size": 256}
    run = done_here(
        place, "classifier",
        {"architecture": "resnet_small", "pretrained": f"blob:{blob.sha256}", "training": training},
    )  # fmt: skip
    manifest = parse_manifest(make_manifest(workspace, run.id))
    assert [upload.name for upload in manifest.uploads] == ["mine.safetensors"]
    with pytest.raises(
        WorkspaceError, match=r"mine\.safetensors \(.* was uploaded .*; give the file by --check"
    ):
        replay(elsewhere, manifest, name="again", watch=stay, bring=Bring(data=source))
    assert elsewhere.projects() == []
    bring = Bring(data=source, checkpoints=(path,))
    found = replay(elsewhere, manifest, name="again", watch=stay, bring=bring)
    assert compare(elsewhere, manifest, found.runs).same
    assert found.runs[0].summary["began_afresh"] == []


def test_more_data_of_annotators_are_read_from_where_the_user_says(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained_on(more_data: str | None) -> Any:
        run = {**whole["runs"][0], "step": "annotators", "config": {"more_data": more_data}}
        return parse_manifest({**whole, "runs": [run], "logs": []})

    monkeypatch.chdir(tmp_path)
    assert find_more_data(trained_on(None)) == {}
    assert find_more_data(trained_on("digits")) == {"digits": "digits"}
    told = "torchvision:SVHN-extra:/etc"
    assert find_more_data(trained_on(told)) == {told: f"torchvision:SVHN-extra:{tmp_path / 'data'}"}
    for path in ("/theirs/more.npz", "more.npz"):
        (tmp_path / "more.npz").write_bytes(b"of another machine, by chance called the same")
        with pytest.raises(
            WorkspaceError, match=f"the annotators were trained on {path}, too, .* by --more-data"
        ):
            find_more_data(trained_on(path))
        assert find_more_data(trained_on(path), "mine.npz") == {path: str(tmp_path / "mine.npz")}


def test_code_runs_only_with_consent(
    whole: dict[str, Any], made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = parse_manifest(put(whole, "runs.0.config.trust_program", True))
    with pytest.raises(WorkspaceError, match="if you trust who made it, give --trust-program"):
        replay(made.workspace, program, name="again", watch=stay)
    own = parse_manifest(put(whole, "runs.0.config.code_path", "/theirs"))
    with pytest.raises(WorkspaceError, match="give a folder that you trust by --code-path"):
        replay(made.workspace, own, name="again", watch=stay)
    bring = Bring(code_path=tmp_path)
    monkeypatch.delenv("DEFUSE_ALLOW_LOCAL_CODE", raising=False)
    with pytest.raises(WorkspaceError, match="which was not allowed; set DEFUSE_ALLOW_LOCAL_CODE=1"):
        replay(made.workspace, own, name="again", watch=stay, bring=bring)
    assert [project.name for project in made.workspace.projects()] == ["shapes"]


def test_code_comes_from_the_folder_of_the_user(
    whole: dict[str, Any], made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = copy_place(made.workspace.home, tmp_path / "home").workspace
    changed = put({**whole, "runs": whole["runs"][:1], "logs": []}, "runs.0.config.code_path", "/theirs")
    monkeypatch.setenv("DEFUSE_ALLOW_LOCAL_CODE", "1")
    monkeypatch.setattr(
        launcher, "_start", lambda workspace, run: workspace.runs.finish(run.id, "done", summary={})
    )
    bring = Bring(code_path=tmp_path)
    (run,) = replay(workspace, parse_manifest(changed), name="again", watch=stay, bring=bring).runs
    assert run.config["code_path"] == str(tmp_path)


@pytest.mark.usefixtures("in_this_process")
def test_a_cluster_of_the_manifest_is_not_called(whole: dict[str, Any], made: Place, tmp_path: Path) -> None:
    place = copy_place(made.workspace.home, tmp_path / "home")
    changed = put({**whole, "runs": whole["runs"][1:2], "logs": []}, "runs.0.resources.engine", "ray")
    changed = put(changed, "runs.0.resources.cpus", 2.0)
    changed = put(changed, "runs.0.config.training.epochs", 1)
    changed = put(changed, "runs.0.config.training.batch_size", 1280)  # one step
    (run,) = replay(place.workspace, parse_manifest(changed), name="again", watch=stay).runs
    assert run.resources == Resources(device="cpu", threads=2)
    bring = Bring(device="cpu", threads=1)
    (other,) = replay(place.workspace, parse_manifest(changed), name="other", watch=stay, bring=bring).runs
    assert other.resources == ONE_THREAD


@pytest.mark.usefixtures("in_this_process")
def test_a_second_round_begins_with_the_correction_made_again(
    made: Place, whole: dict[str, Any], again: tuple[Workspace, Replay], tmp_path: Path
) -> None:
    """The first round was made again already, from a manifest that ended with it."""
    place = Place(copy_place(again[0].home, tmp_path / "home").workspace, made.project)
    first = newest(place, "correct")
    second = done_here(place, "classifier", {"weights": f"corrected:{first.id}"})
    told = make_manifest(place.workspace, second.id)
    manifest = parse_manifest(put(told, "made_at", whole["made_at"]))
    found = replay(place.workspace, manifest, name="again", watch=stay)
    assert [run.step for run in found.runs] == [
        "classifier",
        "vae",
        "identify",
        "distill",
        "correct",
        "classifier",
    ]
    assert found.runs[:-1] == again[1].runs[:5]
    assert found.runs[-1].config["weights"] == f"corrected:{found.runs[-2].id}" != second.config["weights"]
    compared = compare(place.workspace, manifest, found.runs)
    assert compared.same, compared


def test_values_of_one_workspace_are_not_compared() -> None:
    was = {
        "seconds": 1.0,
        "settings": {"classifier": {"weights": "corrected:6", "code_path": "/a"}},
        "n": None,
    }
    now = {
        "seconds": 2.0,
        "settings": {"classifier": {"weights": "corrected:9", "code_path": "/b"}},
        "n": float("nan"),
    }
    assert list(differences(was, now)) == []
    assert [d.path for d in differences({"a": [1], "b": 1}, {"a": [1, 2], "c": 1})] == ["a", "b", "c"]


def defuse(*words: str, home: Path, code: int = 0) -> str:
    done = defuse_here(*words, cwd=home.parent, env={"DEFUSE_HOME": str(home), "COLUMNS": "160"})
    checked(done, code)
    return done.stdout + done.stderr


def test_from_the_command_line(made: Place, tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "manifest.json"
    place = copy_place(made.workspace.home, home)
    assert json.loads(defuse("manifest", home=home))["runs"][-1]["step"] == "evaluate"
    run = newest(place, "classifier")
    defuse("manifest", "--run", str(run.id), "--out", str(path), home=home)
    said = defuse("replay", str(path), home=home)
    assert "2 equal" in said
    assert "Equal: project shapes replayed is what the manifest says." in said
    path.write_text(json.dumps(put(json.loads(path.read_text()), "runs.0.summary.accuracy.test", 0.5)))
    said = defuse("replay", str(path), "--name", "shapes replayed", home=home, code=1)
    assert "classifier  accuracy.test: 0.5 → 0." in said
    assert "The largest difference is" in said
    told = json.loads(defuse("replay", str(path), "--name", "shapes replayed", "--json", home=home, code=1))
    assert (told["same"], told["runs"][0]["values"][0]["path"]) == (False, "accuracy.test")
    assert "is older than the manifest" in defuse("replay", str(path), "--name", "shapes", home=home, code=1)
