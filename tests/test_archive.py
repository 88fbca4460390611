"""A project goes out as one file and comes in again, the same; whatever was done to the file, or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defuse_core.base.checkpoints import dump_tensors
from defuse_core.base.errors import CheckpointError
from defuse_core.base.limits import MAX_ERROR, MAX_REGION_NAME, MAX_ROW_BYTES
from defuse_core.data.class_names import NONE_OF_THE_ABOVE
from defuse_core.data.splits import DataError, ImageDataset
from defuse_core.exchange.archive import (
    data_note,
    export_project,
    import_project,
    missing_data,
    reading,
    restoring,
    writing,
)
from defuse_core.jobs import launcher
from defuse_core.jobs.engine import Ended
from defuse_core.jobs.runner import Recorder
from defuse_core.steps import load_step
from defuse_core.steps.source import Source, open_dataset
from defuse_core.workspace import labels
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import Gaussian, RegionEdit
from defuse_core.workspace.label_files import label_subjects
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.manifest.models import Log
from defuse_core.workspace.manifest.writing import make_manifest, read_log
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Workspace
from tests.commands import Completed, checked, defuse_here
from tests.conftest import bars
from tests.in_process import add_run, begin, done_here, runs_in_this_process, store_run
from tests.workspaces import SEARCH, Place, copy_place, save_npz, verify
from tests.zips import moved_member

FEW = {**SEARCH, "n_perturbations": 4}
TABLES = ("blobs", "runs", "tasks", "events", "artifacts", "annotations")
Members = dict[str, bytes]


# What there is to take along


def small(home: Path) -> Place:
    """A project that nothing was computed for, with a row of every kind; made within milliseconds."""
    workspace = Workspace(home)
    other = Place(workspace, workspace.create_project("other", dataset=dataset("digits")))
    label(other, store_run(other, "inspect", {}))  # numbers of the archive are not those of the workspace
    upload = workspace.store_upload("shapes.npz", [b"not a data set, but nobody looks"])
    source = f"blob:{upload.sha256}"
    place = Place(workspace, workspace.create_project("small", dataset=dataset(source), upload=upload))
    for step in ("classifier", "vae", "identify"):
        keep(
            place,
            store_run(place, step, {"accuracy": float("nan"), "mistakes": {"flip": 3, "boundary": 2}}),
            "weights.safetensors",
        )
    regions = store_run(place, "distill", {"regions": [{"region_id": 0}, {"region_id": 1}]})
    label(place, regions)
    label(other, regions)
    correct = add_run(place, "correct", {"last_annotation": workspace.annotations.last_id(regions.id)})
    begin(place, correct)
    workspace.runs.fix_labels(correct.id, workspace.annotations.last_id(regions.id))
    for name in ("corrected.safetensors", "baseline/lam=1e-05/repeat=2.said.safetensors"):
        keep(place, correct, name)
    settings = {"correct": {"last_annotation": workspace.annotations.last_id(regions.id)}}
    workspace.runs.finish(correct.id, "done", summary={"settings": settings})
    second = {"weights": f"corrected:{correct.id}"}
    store_run(place, "classifier", {"settings": {"classifier": second}}, second)
    failed = add_run(place, "evaluate")
    begin(place, failed)
    told = (
        f"correct (run {correct.id}) is failed; resume it, then resume this run: defuse resume {correct.id}"
    )
    workspace.runs.finish(failed.id, "failed", error=told)
    edit(place, regions)
    return place


def dataset(source: str) -> dict[str, Any]:
    return {
        "source": source, "image_size": None, "fingerprint": "ab" * 32, "class_names": ["row", "column"],
        "image_shape": [1, 8, 8], "sizes": {"train": 10, "test": 2},
    }  # fmt: skip


def keep(place: Place, run: Run, name: str) -> None:
    content = f"{name} of run {run.step}".encode() * 100
    place.workspace.runs.name_artifact(run.id, place.workspace.store_artifact(run.id, name, content))
    place.workspace.runs.plan_tasks(run.id, [name.removesuffix(".safetensors")])
    place.workspace.runs.add_point(run.id, "task", name, {"loss": 0.25, "bad": float("inf")})
    (place.workspace.run_folder(run.id) / "log.txt").write_text("epoch 1\n")


def label(place: Place, regions: Run) -> None:
    store = place.workspace.annotations
    answer = LabelEvent(0, "Ada", 1, 0, 0.5, 3, 10, seconds=1.5)
    store.append(regions.id, [answer, replace(answer, sample_id=1, key="b"), replace(answer, label=None)])
    store.undo(regions.id, "Ada")


def edit(place: Place, regions: Run) -> None:
    store = place.workspace.annotations
    made = Gaussian(7, 0.1, (0.0, 0.1), ((1.0, 0.0), (0.0, 1e-9)))
    store.edit(regions.id, RegionEdit("merge", (0, 1), (made,), by="Ada"))
    store.edit(regions.id, RegionEdit("rename", (7,), name="Ø \u2028 blurry", by="Ada"))
    store.undo_edit(regions.id)
    store.edit(regions.id, RegionEdit("tau", (7,), tau=0.7, by="Bob"))


def exported(place: Place, path: Path) -> Path:
    export_project(place.workspace, place.project.id, path)
    return path


def imported(home: Path, path: Path, **options: Any) -> Place:
    workspace = Workspace(home)
    return Place(workspace, import_project(workspace, path, **options))


def runs_of(place: Place) -> list[Run]:
    return place.workspace.runs.of_project(place.project.id)


def numbered(place: Place) -> dict[str, Any]:
    """All that can be read of a project, with its numbers as positions."""
    store, runs = place.workspace, runs_of(place)
    position = {run.id: n for n, run in enumerate(runs)}
    events = [event for run in runs for event in store.annotations.events(run.id)]
    events_at = {event.id: n for n, event in enumerate(sorted(events, key=lambda event: event.id))}
    edits = [
        replace(made, id=0, undone_by=bool(made.undone_by))
        for r in runs
        for made in store.annotations.edits(r.id)
    ]
    return {
        "dataset": place.project.dataset,
        "blobs": store.blobs(place.project.id),
        "runs": [(r.step, r.seed, r.resources, r.status, repr(r.record.get("versions"))) for r in runs],
        "times": [(r.created_at, r.started_at, r.finished_at, r.seconds) for r in runs],
        "upstream": [[position[i] for i in r.upstream] for r in runs],
        "stale": [r.stale for r in runs],
        "tasks": [store.runs.tasks(r.id) for r in runs],
        "points": [repr([replace(e, id=0) for e in store.runs.events(r.id)]) for r in runs],
        "artifacts": [store.runs.artifacts(r.id) for r in runs],
        "bytes": [
            [store.artifact_path(r.id, name).read_bytes() for name in store.runs.artifacts(r.id)]
            for r in runs
        ],
        "logs": [log.read_text() for r in runs if (log := store.run_folder(r.id) / "log.txt").is_file()],
        "labels": [
            replace(e, id=events_at[e.id], undoes=None if e.undoes is None else events_at[e.undoes])
            for e in events
        ],
        "edits": edits,
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def everything(workspace: Workspace) -> tuple[dict[str, list[tuple[Any, ...]]], set[str]]:
    """All rows, and all files that a row names."""
    with closing(sqlite3.connect(workspace.home / "defuse.sqlite")) as connection:
        tables = ("projects", "run_inputs", *TABLES)
        rows = {t: sorted(map(repr, connection.execute(f"SELECT * FROM {t}"))) for t in tables}
    return rows, {str(path) for path in (workspace.home / "runs").rglob("*") if path.is_file()}  # type: ignore[return-value]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The small project; read only."""
    return small(tmp_path_factory.mktemp("archive") / "home")


@pytest.fixture(scope="module")
def archive(source: Place) -> Path:
    """It as a file."""
    return exported(source, source.workspace.home.parent / "small.defuse.zip")


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace that bad archives are imported into."""
    return small(tmp_path_factory.mktemp("victim") / "home").workspace


# Out and in


def test_a_project_is_the_same_again(source: Place, archive: Path, tmp_path: Path) -> None:
    here = imported(source.workspace.home, archive, name="again")
    there = imported(tmp_path / "home", archive)
    assert here.project.name == "again"
    assert there.project.name == "small"
    assert numbered(here) == numbered(there) == numbered(source)
    assert [run.id for run in runs_of(there)] == list(range(1, 8))
    assert {run.status for run in runs_of(there)} == {"done", "failed"}
    stale = ["correct", "classifier", "evaluate"]  # labels since; both others stand on that correction
    assert [run.step for run in runs_of(there) if run.stale] == stale
    for place in (here, there):
        place.workspace.collect_garbage(min_age=0)
        assert numbered(place) == numbered(source)
    source.workspace.delete_project(here.project.id)


def test_numbers_in_configs_records_and_errors_are_the_new_ones(archive: Path, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "home")
    place = Place(other, other.create_project("more", dataset=dataset("digits")))
    label(place, store_run(place, "inspect", {}))
    there = imported(tmp_path / "home", archive)
    of_step = {run.step: run for run in runs_of(there)}
    correct, second, failed = of_step["correct"], of_step["classifier"], of_step["evaluate"]
    seen = [
        e
        for e in there.workspace.annotations.events(of_step["distill"].id)
        if e.id <= correct.last_annotation
    ]
    assert len(seen) == 8 - 1  # the edits and what was answered since are later
    assert correct.config["last_annotation"] == correct.last_annotation
    assert correct.summary["settings"]["correct"]["last_annotation"] == correct.last_annotation
    assert second.config["weights"] == f"corrected:{correct.id}"
    assert second.summary["settings"]["classifier"]["weights"] == f"corrected:{correct.id}"
    assert failed.error is not None
    assert failed.error.count(f" {correct.id}") == 2
    for run in runs_of(there):
        told = json.loads((there.workspace.run_folder(run.id) / "config.json").read_text())
        assert told == {
            "step": run.step,
            "seed": run.seed,
            "config": run.config,
            "upstream": list(run.upstream),
        }


def test_a_config_of_before_a_field_was_added_stays_so(archive: Path, tmp_path: Path) -> None:
    members = unpacked(archive)
    change_row(members, "runs", 1, {"config": {"depth": 2}})
    there = imported(tmp_path / "home", packed(members, tmp_path / "old.zip"))
    assert runs_of(there)[1].config == {"depth": 2}


def test_labels_go_on_where_they_were(archive: Path, tmp_path: Path) -> None:
    there = imported(tmp_path / "home", archive)
    (regions,) = there.workspace.runs.of_project(there.project.id, "distill")
    store = there.workspace.annotations
    before = store.counting(regions.id)
    taken_back = store.undo(regions.id, "Ada")
    assert taken_back is not None
    assert [e.id for e in before if e != taken_back] == [e.id for e in store.counting(regions.id)]
    again = store.append(regions.id, [replace(before[0], key="b")])
    assert again == [e.id for e in store.events(regions.id) if e.key == "b"]
    edits = [made for made in store.edits(regions.id) if not made.undone]
    assert [made.kind for made in edits] == ["merge", "tau"]
    undone = store.undo_edit(regions.id)
    assert undone is not None
    assert undone.kind == "merge"


def test_equal_projects_give_equal_files(source: Place, archive: Path, tmp_path: Path) -> None:
    assert exported(source, tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    there = imported(tmp_path / "home", archive)
    assert exported(there, tmp_path / "third.zip").read_bytes() == archive.read_bytes()


def test_real_runs_go_on_after_the_import(place: Place, tmp_path: Path) -> None:
    done_here(place, "identify", FEW)
    stopped = interrupt(place)
    path = exported(place, tmp_path / "shapes.zip")
    there = imported(tmp_path / "there", path, data=place.project.dataset["source"])
    assert numbered(there) | {"times": 0} == numbered(place) | {"times": 0}
    assert runs_of(there)[-1].finished_at == 1  # its last heartbeat, as the next look here would settle it
    assert [run.status for run in runs_of(there)] == ["done"] * 5 + ["interrupted"]
    there.check_integrity()
    for which in (place, there):
        done_here(which, "map", {"method": "pca"})
    ours, theirs = ({**which.tensors(runs_of(which)[-1])} for which in (place, there))
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["pca.safetensors"]["points"], theirs["pca.safetensors"]["points"])
    run = next(run for run in runs_of(there) if run.status == "interrupted")
    n_done = sum(task.status == "done" for task in there.workspace.runs.tasks(run.id))
    assert n_done == 2
    with runs_in_this_process():
        resumed = launcher.resume(there.workspace, run.id)
    assert resumed.status == "done", resumed.error
    first = [r for r in runs_of(there) if r.step == "identify"][-2]
    found, wanted = (there.tensors(r)["mistakes.safetensors"] for r in (resumed, first))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert place.get(stopped).status == "interrupted"


def interrupt(place: Place) -> Run:
    """A search of which two shards are done and whose process is gone, though its row says running."""
    run = add_run(place, "identify", FEW)
    begin(place, run)
    step, recorder = load_step(place.workspace, run.id), Recorder(place.workspace, run.id)
    for task in place.workspace.runs.plan_tasks(run.id, step.tasks())[:2]:
        for item in step.run(task.name):
            recorder.store(task.name, item)
        recorder.store(task.name, Ended("done"))
    (place.workspace.run_folder(run.id) / "work").mkdir()
    (place.workspace.run_folder(run.id) / "work" / "training.safetensors").write_bytes(b"half a training")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as connection, connection:
        connection.execute("UPDATE runs SET pid = ?, heartbeat_at = 1 WHERE id = ?", (gone.pid, run.id))
    assert place.get(run).status == "interrupted"
    return run


def test_a_cluster_of_another_machine_is_not_called(tmp_path: Path) -> None:
    place = small(tmp_path / "home")
    far = Resources(engine="ray", address="203.0.113.5:6379", cpus=2.0)
    run = place.workspace.runs.add(place.project.id, "vae", {}, seed=0, resources=far)
    begin(place, run)
    place.workspace.runs.finish(run.id, "interrupted")
    there = imported(tmp_path / "there", exported(place, tmp_path / "a.zip"))
    assert runs_of(there)[-1].resources == Resources(cpus=2.0)


def test_nothing_is_exported_while_a_run_is_live(tmp_path: Path) -> None:
    place = small(tmp_path / "home")
    run = add_run(place, "vae")
    path = tmp_path / "a.zip"
    path.write_text("what was there")
    with pytest.raises(WorkspaceError, match=rf"run {run.id} \(vae\) is live; .*defuse cancel {run.id}"):
        exported(place, path)
    assert path.read_text() == "what was there"
    assert names_in(tmp_path) == ["a.zip", "home"]
    place.workspace.runs.finish(run.id, "cancelled")
    exported(place, path)
    assert zipfile.is_zipfile(path)


@pytest.mark.parametrize("gone", [True, False])
def test_nothing_is_exported_that_is_not_whole(tmp_path: Path, gone: bool) -> None:
    place = small(tmp_path / "home")
    path = place.workspace.run_folder(runs_of(place)[0].id) / "weights.safetensors"
    if gone:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"run", b"ruin"))
    with pytest.raises(
        WorkspaceError, match=r"weights\.safetensors " + ("is gone" if gone else "was changed")
    ):
        exported(place, tmp_path / "a.zip")
    assert names_in(tmp_path) == ["home"]


def test_a_place_that_cannot_be_written_is_told(source: Place, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="is a folder"):
        exported(source, tmp_path)
    with pytest.raises(WorkspaceError, match="there is no folder"):
        exported(source, tmp_path / "none" / "a.zip")


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    place = small(tmp_path / "home")
    size = 24 * 2**20
    place.workspace.add_blob(place.project.id, "big.pt", (os.urandom(2**20) for _ in range(size // 2**20)))
    run = runs_of(place)[0]
    keep(place, run, "zeros.safetensors")
    zeros = place.workspace.store_artifact(run.id, "zeros.safetensors", bytes(size))
    place.workspace.runs.name_artifact(run.id, zeros)
    tracemalloc.start()
    try:
        path = exported(place, tmp_path / "a.zip")
        assert path.stat().st_size < 1.1 * size  # zeros are packed
        there = imported(tmp_path / "there", path)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    verify(there.workspace, runs_of(there)[0].id)


# Data sets that stay behind


def test_a_data_set_by_path_is_found_again(template: Path, shapes: ImageDataset, tmp_path: Path) -> None:
    place = copy_place(template, tmp_path / "home")
    note = data_note(place.project.dataset)
    assert note is not None
    assert str(template.parent / "shapes.npz") in note
    path = exported(place, tmp_path / "a.zip")
    save_npz(shapes, tmp_path / "wrong.npz")
    with pytest.raises(DataError, match="is not the data set of the project"):
        imported(tmp_path / "there", path, data=str(tmp_path / "wrong.npz"))
    shutil.copy(template.parent / "shapes.npz", tmp_path / "moved.npz")
    there = imported(tmp_path / "there", path, data=str(tmp_path / "moved.npz"))
    moved = {"source": str(tmp_path / "moved.npz")}
    assert there.project.dataset == place.project.dataset | moved
    assert missing_data(there.project.dataset) is None
    (tmp_path / "moved.npz").unlink()
    told = missing_data(there.project.dataset)
    assert told is not None
    assert "--data" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"class_names": ["diagonal", "column", "row"]}, "other class names, or in another order"),
        ({"image_shape": [1, 9, 8]}, "images of another shape"),
        ({"sizes": {"train": 1, "test": 1}}, "another number of images"),
    ],
)
def test_an_archive_that_says_what_its_data_are_not_is_refused(
    template: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    place = copy_place(template, tmp_path / "home")
    members, data = unpacked(exported(place, tmp_path / "a.zip")), str(template.parent / "shapes.npz")
    project(dataset=changes)(members)
    packed(members, tmp_path / "bad.zip")
    with pytest.raises(DataError, match=f"it has {told}; give that one"):
        imported(tmp_path / "there", tmp_path / "bad.zip", data=data)
    stored = replace(place.project, dataset=place.project.dataset | changes)
    with pytest.raises(DataError, match=f"it has {told}; put the old data back"):
        open_dataset(place.workspace, stored)


FAR = "/home/stranger/shapes.npz"


@pytest.mark.parametrize(
    ("source", "here"),
    [
        (FAR, f"elsewhere:{FAR}"),
        (f"elsewhere:{FAR}", f"elsewhere:{FAR}"),
        ("torchvision:MNIST:/etc", f"torchvision:MNIST:{Path('data').resolve()}"),
        ("digits", "digits"),
    ],
)
def test_no_path_of_another_machine_is_opened(tmp_path: Path, source: str, here: str) -> None:
    workspace = Workspace(tmp_path / "home")
    place = Place(workspace, workspace.create_project("far", dataset=dataset(source)))
    store_run(place, "inspect", {}, {"architecture": "nets:Net", "code_path": "/home/stranger"})
    store_run(place, "annotators", {}, {"more_data": source})
    path = exported(place, tmp_path / "a.zip")
    there = imported(tmp_path / "there", path)
    inspected, annotators = runs_of(there)
    assert there.project.dataset["source"] == annotators.config["more_data"] == here
    assert inspected.config["code_path"] is None
    again = json.loads((there.workspace.run_folder(inspected.id) / "config.json").read_text())
    assert again["config"]["code_path"] is None
    if here.startswith("elsewhere:"):
        assert "import again with --data PATH" in str(missing_data(there.project.dataset))
        with pytest.raises(DataError, match=rf"^{FAR} is a path of the machine that the project came from"):
            open_dataset(there.workspace, there.project)
    named = imported(tmp_path / "named", path, code_path=str(tmp_path), more_data=str(tmp_path))
    inspected, annotators = runs_of(named)
    assert (inspected.config["code_path"], annotators.config["more_data"]) == (str(tmp_path),) * 2


def test_data_that_a_project_here_has_are_found(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    place = Place(workspace, workspace.create_project("far", dataset=dataset(FAR)))
    path = exported(place, tmp_path / "a.zip")
    there = Workspace(tmp_path / "there")
    there.create_project("blob", dataset=dataset(f"blob:{'0' * 64}"))
    there.create_project("of another size", dataset=dataset("/other") | {"image_size": 9})
    there.create_project("same", dataset=dataset("/here/shapes.npz"))
    assert import_project(there, path).dataset["source"] == "/here/shapes.npz"


def test_the_folder_that_a_file_names_is_not_imported_from(tmp_path: Path) -> None:
    """The metadata of a classifier say where its author's code was; the config says where it is here."""
    workspace = Workspace(tmp_path / "home")
    place = Place(workspace, workspace.create_project("far", dataset=dataset("digits")))
    run = store_run(place, "classifier", {}, {"architecture": "nets_of_e:Net", "code_path": None})
    (tmp_path / "nets_of_e.py").write_text("raise SystemExit('it ran')")
    preprocessing = {"mean": [0.5], "std": [0.5], "image_size": None, "channel_order": "rgb"}
    about = {"architecture": "nets_of_e:Net", "n_classes": 2, "preprocessing": preprocessing}
    with pytest.raises(CheckpointError, match="name a folder that you trust: --code-path FOLDER"):
        Source(workspace, run.id).build({}, about | {"code_path": str(tmp_path)})


def test_control_characters_in_errors_are_taken_out(tmp_path: Path) -> None:
    place = small(tmp_path / "home")
    run = add_run(place, "stability")
    begin(place, run)
    place.workspace.runs.finish(run.id, "failed", error="\x1b[31mred" + "d" * 200_000)
    there = imported(tmp_path / "there", exported(place, tmp_path / "a.zip"))
    assert str(runs_of(there)[-1].error) == ("\ufffd[31mred" + "d" * 200_000)[:MAX_ERROR]


def test_notes_on_the_data_set_are_there_after_the_import(tmp_path: Path) -> None:
    split = bars(60, 0)
    images, labels = (split.images[:, 0] // 255).numpy(), split.labels.numpy()
    np.savez(tmp_path / "dark.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    workspace = Workspace(tmp_path / "home")
    place = Place(workspace, new_project(workspace, "dark", str(tmp_path / "dark.npz")))
    assert place.project.notes
    archive = exported(place, tmp_path / "dark.zip")
    there = imported(tmp_path / "there", archive, data=str(tmp_path / "dark.npz"))
    assert there.project.dataset == place.project.dataset


def test_a_share_set_apart_for_validation_is_so_after_the_import(tmp_path: Path) -> None:
    train, test = bars(60, 0), bars(9, 1)
    np.savez(
        tmp_path / "whole.npz", x_train=train.images[:, 0].numpy(), y_train=train.labels.numpy(),
        x_test=test.images[:, 0].numpy(), y_test=test.labels.numpy(),
    )  # fmt: skip
    workspace = Workspace(tmp_path / "home")
    blob = workspace.store_upload("mine.npz", [(tmp_path / "whole.npz").read_bytes()])
    for name, source in (("by path", str(tmp_path / "whole.npz")), ("uploaded", f"blob:{blob.sha256}")):
        place = Place(workspace, new_project(workspace, name, source, validation=0.25))
        path = exported(place, tmp_path / f"{name}.zip")
        data = {"data": str(tmp_path / "whole.npz")} if name == "by path" else {}
        there = imported(tmp_path / f"there {name}", path, **data)
        assert there.project.dataset == place.project.dataset
        assert there.project.dataset["validation"] == 0.25
        opened = open_dataset(there.workspace, there.project)
        assert opened.validation is not None
        assert [len(split) for split in (opened.train, opened.validation, opened.test)] == [45, 15, 9]
        assert torch.equal(opened.validation.images[opened.validation.labels == 0], train.images[45::3])


def test_a_data_set_within_needs_none(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="leave --data out"):
        imported(tmp_path / "home", archive, data="x.npz")
    assert data_note(dataset("digits")) is missing_data(dataset("digits")) is None
    assert missing_data(dataset(f"torchvision:MNIST:{tmp_path}")) is None
    assert "download" in str(missing_data(dataset(f"torchvision:MNIST:{tmp_path}/none")))


# All or nothing


def test_a_name_that_is_taken_is_told(source: Place, archive: Path, tmp_path: Path) -> None:
    before = everything(source.workspace)
    with pytest.raises(WorkspaceError, match=r"'small' already; give another name: --name"):
        import_project(source.workspace, archive)
    with pytest.raises(WorkspaceError, match="1 to 80 printable"):
        import_project(source.workspace, archive, name="a\nb")
    members = unpacked(archive)
    project(name="a\u202eb")(members)
    with pytest.raises(WorkspaceError, match="1 to 80 printable"):
        import_project(source.workspace, packed(members, tmp_path / "odd.zip"))
    assert everything(source.workspace) == before


@pytest.mark.parametrize("table", ["blobs", "runs", "annotations"])
def test_an_import_that_fails_leaves_all_as_it_was(
    victim: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    before = everything(victim)
    store = restoring._store

    def fails(connection: sqlite3.Connection, into: str, names: str, *, project_id: int) -> None:
        store(connection, into, names, project_id=project_id)
        if into == table:
            raise KeyboardInterrupt

    monkeypatch.setattr(restoring, "_store", fails)
    with pytest.raises(KeyboardInterrupt):
        import_project(victim, archive, name="killed")
    assert everything(victim) == before


def test_what_a_killed_import_leaves_is_garbage(
    source: Place, archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = small(tmp_path / "home")
    before = everything(place.workspace)
    with monkeypatch.context() as patch:
        patch.setattr(restoring._Restore, "take_back", lambda _: None)
        patch.setattr(restoring._Restore, "store_rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_project(place.workspace, archive, name="killed")
    assert everything(place.workspace)[0] == before[0]
    assert len(everything(place.workspace)[1]) > len(before[1])
    new = add_run(place, "vae")  # its number is not one of those
    assert not place.workspace.run_folder(new.id).exists()
    begin(place, new)
    place.workspace.runs.finish(new.id, "cancelled")
    place.workspace.collect_garbage(min_age=0)
    assert everything(place.workspace)[1] == before[1]
    there = Place(place.workspace, import_project(place.workspace, archive, name="again"))
    assert numbered(there) == numbered(source)


def test_an_import_notices_that_its_files_were_collected(
    victim: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(victim)
    store = restoring._Restore.store_rows

    def collected(self: Any, *given: Any) -> None:
        victim.collect_garbage(min_age=0)
        store(self, *given)

    monkeypatch.setattr(restoring._Restore, "store_rows", collected)
    with pytest.raises(WorkspaceError, match="was removed during the import"):
        import_project(victim, archive, name="collected")
    assert everything(victim) == before


# Archives that somebody has changed


def unpacked(path: Path) -> Members:
    with zipfile.ZipFile(path) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def packed(members: Members, path: Path, *, sign: bool = True) -> Path:
    """Write an archive; the manifest states the members as they are, as who tampers would."""
    if sign:
        manifest = json.loads(members["manifest.json"])
        manifest["members"] = {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in members.items()
            if name != "manifest.json"
        }
        members = members | {"manifest.json": json.dumps(manifest).encode()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


def change_row(members: Members, table: str, line: int, changes: dict[str, Any]) -> None:
    name = f"rows/{table}.jsonl"
    rows = [json.loads(row) for row in members[name].splitlines()]
    rows[line] = rows[line] | changes
    members[name] = "".join(json.dumps(row) + "\n" for row in rows).encode()


def change_manifest(members: Members, **changes: Any) -> None:
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | changes).encode()


def row(table: str, line: int, **changes: Any) -> Callable[[Members], None]:
    return lambda members: change_row(members, table, line, changes)


def renamed_artifact(name: str) -> Callable[[Members], None]:
    """The first artifact goes by this name, in its row and in the archive."""

    def change(members: Members) -> None:
        members[f"runs/1/{name}"] = members.pop("runs/1/weights.safetensors")
        change_row(members, "artifacts", 0, {"name": name})

    return change


def add(name: str) -> Callable[[Members], None]:
    return lambda members: members.update({name: b"x"})


def project(**changes: Any) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        about = json.loads(members["manifest.json"])["project"]
        about["dataset"] |= changes.pop("dataset", {})
        change_manifest(members, project=about | changes)

    return change


def double(members: Members, name: str) -> None:
    members[name] *= 2


def edit_after_a_mixture(
    *, n_components: int = 7, latent_dim: int = 2, content: bytes = b""
) -> Callable[[Members], None]:
    """The regions that were edited are of a mixture of this shape, which the archive holds."""

    def change(members: Members) -> None:
        file = content or dump_tensors({"means": torch.zeros(n_components, latent_dim)})
        members["runs/4/mixture.safetensors"] = file
        about = {"run": 4, "name": "mixture.safetensors", "size": len(file)}
        about["sha256"] = hashlib.sha256(file).hexdigest()
        members["rows/artifacts.jsonl"] += json.dumps(about).encode() + b"\n"

    return change


def edit_and_its_undo(members: Members) -> bytes:
    """An edit, and an answer that undoes it."""
    lines = members["rows/annotations.jsonl"].splitlines(keepends=True)
    rename = next(line for line in lines if b'"rename"' in line)
    answer = json.loads(lines[0]) | {"undoes": 1, "region_id": 0}
    return rename + json.dumps(answer).encode() + b"\n"


REGION = {"region_id": 7, "weight": 0.5, "mean": [0.0], "covariance": [[1.0]]}
EDIT = {"kind": "merge", "regions": [0], "into": [], "mistakes": [], "name": "", "tau": None}

TAMPERED: dict[str, tuple[Callable[[Members], Any], str]] = {
    "a path upwards": (renamed_artifact("../../../evil.json"), "name: String should match pattern"),
    "an absolute path": (renamed_artifact("/etc/evil.json"), "name: String should match pattern"),
    "upwards within": (renamed_artifact("a/../../2/weights.safetensors"), "name: String should match"),
    "a hidden file": (renamed_artifact(".evil.json"), "name: String should match pattern"),
    "a backslash": (renamed_artifact("a\\b.json"), "is not what the manifest says"),
    "a module": (renamed_artifact("evil.py"), "name: String should match pattern"),
    "a config": (renamed_artifact("config.json"), "is no name for an artifact"),
    "a training that goes on": (renamed_artifact("work/training.safetensors"), "is no name for an artifact"),
    "a file that no row names": (add("runs/1/more.json"), "no row names runs/1/more.json"),
    "a file beside": (add("evil.json"), "'evil.json' is not what the manifest says"),
    "a log of no run": (add("runs/99/log.txt"), "no row names runs/99/log.txt"),
    "a path upwards in the zip": (add("runs/../../evil"), "is not what the manifest says"),
    "an artifact that is missing": (lambda m: m.pop("runs/1/weights.safetensors"), "is missing, named twice"),
    "an upload that is missing": (row("blobs", 0, sha256="0" * 64), "is missing, named twice"),
    "a table that is missing": (lambda m: m.pop("rows/events.jsonl"), "'rows/events.jsonl' is missing"),
    "an artifact twice": (lambda m: double(m, "rows/artifacts.jsonl"), "is missing, named twice"),
    "another size": (row("artifacts", 0, size=1), "not what its row says"),
    "another content": (lambda m: m.update({"runs/1/weights.safetensors": b"x"}), "not what its row says"),
    "an unknown field": (row("runs", 0, pid=1), "pid: Extra inputs are not permitted"),
    "a live run": (row("runs", 0, status="running"), "status: Input should be 'done'"),
    "an unknown step": (row("runs", 0, step="evil"), "run 1: step must be one of"),
    "a config that is refused": (row("runs", 1, config={"latent_dim": 0}), "run 2: vae: latent_dim"),
    "a run that stands on itself": (row("runs", 2, inputs=[3]), r"run 3 \(identify\) cannot stand on \[3\]"),
    "a run that stands on one twice": (row("runs", 2, inputs=[1, 1]), r"run 3 \(identify\) cannot stand on"),
    "a run that stands on nothing": (row("runs", 3, inputs=[]), r"run 4 \(distill\) stands on nothing, and"),
    "a run on two of the same": (row("runs", 6, inputs=[5, 6]), "stands on correct, classifier, and should"),
    "a run on what it does not need": (row("runs", 2, inputs=[1]), "should stand on classifier, vae"),
    "a round that a later run begins": (
        row("runs", 0, config={"weights": "corrected:5"}), "begins with the classifier of run 5, which is no",
    ),
    "a round that no correction begins": (
        row("runs", 5, config={"weights": "corrected:4"}), "begins with the classifier of run 4, which is no",
    ),
    "labels of the future": (row("runs", 4, last_annotation=99), "run 5 took in labels that are not there"),
    "a summary that is a list": (row("runs", 0, record={"summary": []}), "the summary in the record must"),
    "a record of nothing": (row("runs", 0, record={}), "summary in the record is damaged: there is none"),
    "a device that is none": (row("runs", 0, record={"device": 3}), "the device in the record must be"),
    "mistakes that are none": (row("runs", 2, record={"summary": {"mistakes": 3}}), "damaged: mistakes"),
    "regions that are none": (row("runs", 3, record={"summary": {}}), "damaged: it lacks regions"),
    "an accuracy that is none": (
        row("runs", 0, record={"summary": {"accuracy": {"test": "high"}}}), "damaged: accuracy",
    ),
    "a choice of nothing": (
        row("runs", 4, record={"summary": {"corrected": {"chosen": {}}}}), "damaged: corrected.chosen.lam",
    ),
    "mistakes of a run that failed": (
        row("runs", 2, status="failed", record={"summary": {"mistakes": [1]}}), "damaged: mistakes",
    ),
    "regions of a run that failed": (
        row("runs", 3, status="failed", record={"summary": {"regions": "x"}}), "damaged: regions",
    ),
    "a task of no run": (row("tasks", 0, run=99), "there is no run 99"),
    "a label of no run": (row("annotations", 0, run=99), "there is no run 99"),
    "an undo of what comes": (row("annotations", 0, undoes=1), "undoes what comes after it"),
    "an undo of another run": (row("annotations", 2, run=3, undoes=1), "no answer or edit of its kind and"),
    "an undo of an undo": (
        lambda m: (change_row(m, "annotations", 4, {"undoes": 4}), {}), "no answer or edit of its kind and",
    ),
    "an answer that undoes an edit": (
        lambda m: m.update({"rows/annotations.jsonl": edit_and_its_undo(m)}), "no answer or edit of its",
    ),
    "a region that is not there": (row("annotations", 0, region_id=99), "line 1: there is no region 99 in"),
    "an undo twice": (row("annotations", 4, undoes=3), "contradict each other"),
    "a key twice": (row("annotations", 0, key="b"), "contradict each other"),
    "too many draws": (row("annotations", 0, n_samples=10**9), "n_samples: Input should be less"),
    "a label of no class": (row("annotations", 0, label=99), r"line 1: label must be in 0 … \d+, got 99"),
    "a sample below all": (row("annotations", 0, sample_id=-5), "sample must be in 0 … "),
    "a mistake that is not there": (
        row("annotations", 0, region_id=-1, sample_id=5), r"line 1: sample must be in 0 … 4, got 5",
    ),
    "mistakes as a whole": (
        row("annotations", 0, region_id=-1, sample_id=None), "must be the number of a mistake",
    ),
    "a pass without end": (row("annotations", 0, round=2**62), "round must be at least 1 and at most 1,000"),
    "time without end": (row("annotations", 0, seconds=1e308), "seconds: Input should be less than"),
    "a key that one obeys": (row("annotations", 0, key="a\x1b[2J"), "has control characters"),
    "a tau below 0": (row("annotations", 0, tau=-1.0), "tau must be above 0 and at most 100, got -1"),
    "a tau beyond": (row("annotations", 0, tau=1e308), "tau must be above 0 and at most 100, got 1e"),
    "a tau beyond of an edit": (
        row("annotations", 0, edit=EDIT | {"kind": "tau", "tau": 1e308}), "edit.tau: Input should be less",
    ),
    "an annotator without a name": (row("annotations", 0, annotator=" "), "annotator must be named"),
    "an edit that makes nothing": (row("annotations", 0, edit=EDIT), "merge names 1 regions and makes 0"),
    "an edit without a number": (
        row("annotations", 0, edit=EDIT | {"kind": "tau", "tau": float("nan")}), "edit.tau: Input should be",
    ),
    "a region of another mixture": (
        edit_after_a_mixture(n_components=6), "line 8: the edit of regions: it does not fit a mixture of 6",
    ),
    "a region of another latent_dim": (
        edit_after_a_mixture(latent_dim=3), "its mean has 2 values, the mixture has 3 dimensions",
    ),
    "a mixture that is none": (edit_after_a_mixture(content=b"{}" * 9), "mixture.safetensors is no mixture"),
    "a region that cannot be": (
        row("annotations", 0, edit=EDIT | {"into": [REGION | {"weight": -5.0}]}), "weight must be above 0",
    ),
    "a region of no extent": (
        row("annotations", 0, edit=EDIT | {"into": [REGION | {"covariance": [[0.0]]}]}), "positive definite",
    ),
    "a time without end": (row("runs", 0, seconds=1e308), "seconds: Input should be less than or equal to 3"),
    "an answer without end": (row("annotations", 0, seconds=1e308), "seconds: Input should be less than or"),
    "a date without end": (row("events", 0, at=1e308), "at: Input should be less than or equal to 325036800"),
    "a number that is none": (row("events", 0, at=float("inf")), "at: Input should be a finite number"),
    "a number too large": (row("runs", 0, seed=2**63), "seed: Input should be less"),
    "a line cut off": (lambda m: m.update({"rows/tasks.jsonl": m["rows/tasks.jsonl"][:-1]}), "within a line"),
    "no JSON": (lambda m: m.update({"rows/tasks.jsonl": b"[" * 10**5 + b"\n"}), "Invalid JSON"),
    "a data set elsewhere": (project(dataset={"source": "blob:" + "1" * 64}), "not among the uploads"),
    "a class that labels need": (project(dataset={"class_names": [NONE_OF_THE_ABOVE]}), "may not be called"),
    "two classes of a name": (project(dataset={"class_names": ["a", "a"]}), "0 and 1 are both called 'a'"),
    "a class without a name": (project(dataset={"class_names": ["a", ""]}), "the name of class 1 is empty"),
    "a share of nothing": (project(dataset={"validation": 0.0}), "validation.*: Input should be greater"),
    "a share of all": (project(dataset={"validation": 1.0}), "validation.*: Input should be less than 1"),
    "a class that a terminal obeys": (project(dataset={"class_names": ["a\x1b[2J"]}), "control characters"),
    "an annotator that one obeys": (row("annotations", 0, annotator="a\x9b2J"), "has control characters"),
    "a point that one obeys": (row("events", 0, key="\r"), "has control characters"),
    "a long annotator": (row("annotations", 0, annotator="a" * 100_000), "annotator: String should have at"),
    "a long class": (project(dataset={"class_names": ["a" * 100_000]}), "class_names.0: String should have"),
    "a long source": (project(dataset={"source": "a" * 100_000}), "source: String should have at most 4096"),
    "a long network": (row("runs", 0, config={"architecture": "a" * 100_000}), "config has a text of over"),
    "a long error": (row("runs", 0, error="a" * 100_001), "error: String should have at most 100000"),
    "images resized beyond": (project(dataset={"image_size": 4097}), "image_size: Input should be less than"),
    "a large image": (project(dataset={"image_shape": [1, 2**40, 8]}), "image_shape.1: Input should be less"),
    "threads without end": (
        row("runs", 0, resources={"device": "cpu", "threads": 10**9, "cpus": 1.0, "gpus": 0.0}),
        "resources.threads: Input should be less than or equal to 4096",
    ),
    "runs without end": (
        lambda m: m.update({"rows/runs.jsonl": m["rows/runs.jsonl"].splitlines(keepends=True)[0] * 10_001}),
        "it has over 10,000 runs",
    ),
    "a row without end": (
        lambda m: m.update({"rows/tasks.jsonl": b"[" * (MAX_ROW_BYTES + 1) + b"\n"}), "line 1 has over",
    ),
    "a newer format": (lambda m: change_manifest(m, version=2, new=1), "newer Defuse .format 2.*upgrade"),
    "another format": (lambda m: change_manifest(m, format="zip"), "no project that Defuse exported"),
    "more in the manifest": (lambda m: change_manifest(m, more=1), "more: Extra inputs"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_refused(
    victim: Workspace, archive: Path, tmp_path: Path, what: str
) -> None:
    tamper, told = TAMPERED[what]
    members, before = unpacked(archive), everything(victim)
    tamper(members)
    path = packed(members, tmp_path / "bad.zip")
    with pytest.raises(WorkspaceError, match=told):
        import_project(victim, path, name="bad")
    assert everything(victim) == before
    assert names_in(tmp_path) == ["bad.zip"]
    assert not (victim.home.parent / "evil.json").exists()


def test_names_that_an_older_version_stored_are_mended_on_the_way_out(tmp_path: Path) -> None:
    place = small(tmp_path / "home")
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as database, database:
        database.execute("UPDATE annotations SET annotator = ?", ("A\u200bd\x1ba",))
    there = imported(tmp_path / "there", exported(place, tmp_path / "a.zip"))
    (now,) = there.workspace.runs.of_project(there.project.id, "distill")
    assert {e.annotator for e in there.workspace.annotations.events(now.id)} == {"Ada"}
    (then,) = place.workspace.runs.of_project(place.project.id, "distill")
    assert {e.annotator for e in place.workspace.annotations.events(then.id)} == {"Ada"}


def test_what_an_older_version_stored_can_be_taken_along(tmp_path: Path) -> None:
    place = small(tmp_path / "home")
    (then,) = place.workspace.runs.of_project(place.project.id, "distill")
    store = place.workspace.annotations
    store.edit(then.id, RegionEdit("rename", (0,), name="n" * MAX_REGION_NAME))
    with pytest.raises(WorkspaceError, match="has at most 200 characters, got 201; shorten it"):
        store.edit(then.id, RegionEdit("rename", (0,), name="n" * (MAX_REGION_NAME + 1)))
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as database, database:
        database.execute("UPDATE annotations SET key = ? WHERE key = 'b'", ("b" * 300,))
        database.execute(
            "UPDATE annotations SET edit = json_set(edit, '$.name', ?)"
            " WHERE id = (SELECT MAX(id) FROM annotations)", ("n" * 2000,),
        )  # fmt: skip
        database.execute("UPDATE annotations SET annotator = ? WHERE annotator = 'Ada'", (" A\u200bda",))
    entries, _ = read_log(place.workspace, then.id)
    assert len(Log(regions=0, entries=tuple(entries)).entries) == len(entries)
    there = imported(tmp_path / "there", exported(place, tmp_path / "a.zip"))
    (now,) = there.workspace.runs.of_project(there.project.id, "distill")
    edit = there.workspace.annotations.edits(now.id)[-1]
    assert (edit.name, edit.by) == ("n" * MAX_REGION_NAME, "")
    keys = {e.key for e in there.workspace.annotations.events(now.id)} - {None}
    assert {len(key or "") for key in keys} == {39}
    undone = store.undo(then.id, "Ada")
    assert undone is not None
    assert undone.annotator == "Ada"


def test_edits_of_the_mixture_in_the_archive_are_taken(archive: Path, tmp_path: Path) -> None:
    members = unpacked(archive)
    edit_after_a_mixture()(members)
    there = imported(tmp_path / "there", packed(members, tmp_path / "good.zip"))
    (regions,) = there.workspace.runs.of_project(there.project.id, "distill")
    assert [e.kind for e in there.workspace.annotations.edits(regions.id)] == ["merge", "rename", "tau"]


@pytest.mark.parametrize(
    "poison",
    [
        "n_samples = 1 << 62", "region_id = -1, sample_id = 5", "round = 1 << 62", "seconds = 1e308",
        "region_id = 99",
    ],
)  # fmt: skip
def test_answers_that_nobody_could_judge_stay_behind(tmp_path: Path, poison: str) -> None:
    place = small(tmp_path / "home")
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as database, database:
        run = place.workspace.runs.of_project(place.project.id, "distill")[0].id
        (poisoned,) = database.execute("SELECT MIN(id) FROM annotations WHERE run_id = ?", (run,)).fetchone()
        database.execute(f"UPDATE annotations SET {poison} WHERE ? IN (id, undoes)", (poisoned,))
    before = [e for e in place.workspace.annotations.events(run) if poisoned not in (e.id, e.undoes)]
    there = imported(tmp_path / "there", exported(place, tmp_path / "a.zip"))
    (now,) = there.workspace.runs.of_project(there.project.id, "distill")
    after = there.workspace.annotations.events(now.id)
    assert [(e.annotator, e.label, e.at) for e in after] == [(e.annotator, e.label, e.at) for e in before]


def test_others_write_while_rows_are_read_on_the_way_out_and_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, free = small(tmp_path / "home"), []

    def probed(module: Any, name: str, home: Path) -> None:
        was = getattr(module, name)

        def probing(*given: Any, **options: Any) -> Any:
            with closing(sqlite3.connect(home / "defuse.sqlite", timeout=0)) as other:
                other.execute("BEGIN IMMEDIATE")  # at once, or it raises
                other.rollback()
            free.append(name)
            return was(*given, **options)

        monkeypatch.setattr(module, name, probing)

    probed(writing, "parse", place.workspace.home)
    path = exported(place, tmp_path / "a.zip")
    monkeypatch.undo()
    there = Workspace(tmp_path / "there")
    probed(reading, "parse", there.home)
    import_project(there, path)
    n_rows = sum(len(unpacked(path)[f"rows/{table}.jsonl"].splitlines()) for table in TABLES)
    assert free.count("parse") > 3 * n_rows  # written once, read to be checked and to be stored


def test_rows_without_end_are_refused_on_the_way_out_and_in(
    archive: Path, source: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = unpacked(archive)
    lines = {table: len(members[f"rows/{table}.jsonl"].splitlines()) for table in TABLES}
    table, n = max(lines.items(), key=lambda pair: pair[1])
    monkeypatch.setattr(reading, "MAX_ROWS", n)
    imported(tmp_path / "home", archive)
    monkeypatch.setattr(reading, "MAX_ROWS", n - 1)
    with pytest.raises(WorkspaceError, match=f"{table}.jsonl has over {n - 1} rows, which no export has"):
        imported(tmp_path / "other", archive)
    monkeypatch.setattr(writing, "MAX_ROWS", n - 1)
    with pytest.raises(WorkspaceError, match=f"{table}; divide it into several projects"):
        exported(source, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_a_project_holds_no_more_labels_than_it_can_take_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = small(tmp_path / "home")
    (regions,) = place.workspace.runs.of_project(place.project.id, "distill")
    store = place.workspace.annotations
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as database:
        (n,) = database.execute("SELECT COUNT(*) FROM annotations WHERE run_id = ?", (regions.id,)).fetchone()
    monkeypatch.setattr(labels, "MAX_LABELS", n + 1)
    store.append(regions.id, [LabelEvent(0, "Ada", 1)])
    with pytest.raises(WorkspaceError, match=f"at most {n + 1} labels, this one has {n + 1} and would get 1"):
        store.append(regions.id, [LabelEvent(0, "Ada", 0)])


@pytest.mark.parametrize("offset", [2**64 - 1, 2**63 - 1])
def test_a_member_beyond_the_file_is_damage(
    victim: Workspace, archive: Path, tmp_path: Path, offset: int
) -> None:
    path = packed(unpacked(archive), tmp_path / "beyond.zip")
    path.write_bytes(moved_member(path.read_bytes(), "rows/runs.jsonl", offset))
    with pytest.raises(
        WorkspaceError, match=r"is damaged .*begins beyond the end of the file.*copy it again"
    ):
        import_project(victim, path, name="beyond")


def test_an_export_follows_links_and_leaves_pipes(source: Place, tmp_path: Path) -> None:
    (tmp_path / "link.zip").symlink_to(tmp_path / "target.zip")
    exported(source, tmp_path / "link.zip")
    assert (tmp_path / "link.zip").is_symlink()
    assert zipfile.is_zipfile(tmp_path / "target.zip")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WorkspaceError, match="pipe is a pipe or a device; give the name of a file"):
        exported(source, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_runs_that_stand_on_each_other_in_a_circle_end_in_an_error(tmp_path: Path) -> None:
    place = small(tmp_path / "home")
    (correct,) = place.workspace.runs.of_project(place.project.id, "correct")
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as database, database:
        database.execute(
            "UPDATE runs SET config = json_set(config, '$.weights', ?) WHERE step = 'classifier'",
            (f"corrected:{correct.id}",),
        )
    with pytest.raises(
        WorkspaceError, match=r"stands on run \d+, which is not before it; run the step again"
    ):
        make_manifest(place.workspace, correct.id)


def test_regions_without_a_search_take_no_file_of_labels(tmp_path: Path) -> None:
    place = small(tmp_path / "home")
    (regions,) = place.workspace.runs.of_project(place.project.id, "distill")
    assert label_subjects(place.workspace, regions) == ([0, 1, 7], 5)
    with closing(sqlite3.connect(place.workspace.home / "defuse.sqlite")) as database, database:
        database.execute("DELETE FROM run_inputs WHERE run_id = ?", (regions.id,))
    with pytest.raises(WorkspaceError, match="stands on no search for mistakes; run distill again"):
        label_subjects(place.workspace, place.get(regions))


def test_content_that_does_not_match_its_checksum_is_refused(
    victim: Workspace, archive: Path, tmp_path: Path
) -> None:
    changes = {
        "rows/annotations.jsonl": (b'"Ada"', b'"Eve"'),
        "runs/1/weights.safetensors": (b"run", b"ruN"),
        "runs/1/log.txt": (b"epoch 1", b"epoch 2"),
    }
    for name, change in changes.items():
        members, before = unpacked(archive), everything(victim)
        members[name] = members[name].replace(*change, 1)
        with pytest.raises(WorkspaceError, match=f"{name} is not as its checksum says"):
            import_project(victim, packed(members, tmp_path / "bad.zip", sign=False), name="bad")
        assert everything(victim) == before


def test_programs_need_trust(tmp_path: Path) -> None:
    place = small(tmp_path / "home")
    program = io.BytesIO()
    with zipfile.ZipFile(program, "w") as zipped:
        zipped.writestr("net/data.pkl", b"")
        zipped.writestr("net/constants.pkl", b"")
    place.workspace.add_blob(place.project.id, "net.pt", [program.getvalue()])
    path = exported(place, tmp_path / "a.zip")
    with pytest.raises(WorkspaceError, match=r"'net\.pt' is a TorchScript .* --trust-programs"):
        imported(tmp_path / "there", path)
    assert Workspace(tmp_path / "there").projects() == []
    assert len(imported(tmp_path / "there", path, trust_programs=True).workspace.blobs(1)) == 2


def test_bombs_are_refused_before_they_go_off(victim: Workspace, archive: Path, tmp_path: Path) -> None:
    members, before = unpacked(archive), everything(victim)
    members["runs/1/log.txt"] = bytes(80 * 2**20)
    with pytest.raises(WorkspaceError, match="would unpack to"):
        import_project(victim, packed(members, tmp_path / "bomb.zip"), name="bomb")
    lying = unpacked(archive) | {"runs/1/log.txt": bytes(2**20)}
    path = packed(lying, tmp_path / "liar.zip")
    manifest = json.loads(unpacked(path)["manifest.json"])
    manifest["members"]["runs/1/log.txt"]["size"] = 5
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in (lying | {"manifest.json": json.dumps(manifest).encode()}).items():
            zipped.writestr(name, content)
        zipped.getinfo("runs/1/log.txt").file_size = 5
    with pytest.raises(WorkspaceError, match=r"is damaged|is not as its checksum says"):
        import_project(victim, path, name="liar")
    wide = tmp_path / "wide.zip"
    with zipfile.ZipFile(wide, "w") as zipped:
        for number in range(60_000):
            info = zipfile.ZipInfo(f"{number:0250d}")
            info.header_offset = info.CRC = 0
            zipped.filelist.append(info)
        zipped._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(WorkspaceError, match="its directory has"):
        import_project(victim, wide, name="wide")
    assert everything(victim) == before


def test_a_full_disk_is_told_before(
    victim: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(victim.home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(WorkspaceError, match="1 MB are free"):
        import_project(victim, archive, name="full")


@pytest.mark.parametrize(
    "mode", [0o120777, 0o040755, 0o010644], ids=["symbolic link", "folder", "named pipe"]
)
def test_only_plain_files_are_taken(victim: Workspace, archive: Path, tmp_path: Path, mode: int) -> None:
    path = packed(unpacked(archive), tmp_path / "bad.zip")
    with zipfile.ZipFile(path, "a") as zipped:
        zipped.getinfo("runs/1/weights.safetensors").external_attr = mode << 16
        zipped._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(WorkspaceError, match="is no plain file"):
        import_project(victim, path, name="bad")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x05\x06" + bytes(18), b"\x89PNG" * 100], ids=["empty", "zip", "png"]
)
def test_other_files_are_refused(victim: Workspace, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(WorkspaceError, match="no project that Defuse exported"):
        import_project(victim, tmp_path / "a.zip")
    with pytest.raises(WorkspaceError, match="is no file"):
        import_project(victim, tmp_path / "none.zip")


def test_names_that_are_no_text_are_refused(victim: Workspace, archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    assert content.count(b"runs/1/log.txt") == 2  # where it lies, and in the directory
    strange = content.replace(b"runs/1/log.txt", b"runs/1/log.t\xff\xfe")
    flags = strange.index(b"PK\x01\x02") + 8
    utf8 = bytearray(strange)
    while (flags := utf8.find(b"PK\x01\x02", flags)) >= 0:
        utf8[flags + 9] |= 0x08  # the bit that says that the name is UTF-8
        flags += 4
    for number, each in enumerate((strange, bytes(utf8))):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(each)
        with pytest.raises(WorkspaceError, match="copy it again"):
            import_project(victim, path, name="bad")


def imports_or_refuses(workspace: Workspace, path: Path) -> None:
    """The file is refused in words and nothing is changed, or it makes a project that can be read."""
    before = everything(workspace)
    try:
        made = import_project(workspace, path, name="fuzzed")
    except WorkspaceError:
        assert everything(workspace) == before
        return
    place = Place(workspace, made)
    for run in runs_of(place):
        verify(workspace, run.id)
        workspace.annotations.counting(run.id)
        workspace.annotations.edits(run.id)
        assert not run.live
    export_project(workspace, made.id, path)
    workspace.delete_project(made.id)


quickly = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@quickly
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(
    victim: Workspace, archive: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    (tmp_path / "bad.zip").write_bytes(content[:end])
    imports_or_refuses(victim, tmp_path / "bad.zip")


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["done", "corrected:1", "digits", "classifier", "work/a.json", "a/b.json"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@quickly
@given(data=st.data())
def test_any_value_in_any_row_is_refused_or_harmless(
    victim: Workspace, archive: Path, tmp_path: Path, data: st.DataObject
) -> None:
    members = unpacked(archive)
    table = data.draw(st.sampled_from(TABLES))
    rows = [json.loads(line) for line in members[f"rows/{table}.jsonl"].splitlines()]
    line = data.draw(st.integers(0, len(rows) - 1))
    change_row(members, table, line, {data.draw(st.sampled_from(sorted(rows[line]))): data.draw(VALUES)})
    imports_or_refuses(victim, packed(members, tmp_path / "bad.zip"))


# From the command line


def test_from_the_command_line(tmp_path: Path) -> None:
    small(tmp_path / "home").workspace.delete_project(1)

    def defuse(*words: str, code: int = 0) -> Completed:
        env = {"DEFUSE_HOME": str(tmp_path / "home")}
        return checked(defuse_here("project", *words, cwd=tmp_path, env=env), code)

    told = json.loads(defuse("export", "out.zip", "--json").stdout)
    assert told["bytes"] == (tmp_path / "out.zip").stat().st_size
    assert (told["runs"], told["name"], told["data_included"]) == (7, "small", True)
    assert "'small' already" in defuse("import", "out.zip", code=1).stderr
    told = json.loads(defuse("import", "out.zip", "--name", "two", "--json").stdout)
    assert (told["runs"], told["name"], told["data_found"]) == (7, "two", True)
    assert "no project 'none'" in defuse("export", "out.zip", "-p", "none", code=1).stderr
    assert (
        "project two is in out.zip: 7 runs, 11 labels, 6 files"
        in defuse("export", "out.zip", "-p", "two").stdout
    )


def test_an_upload_that_is_the_data_set_travels_along(archive: Path, tmp_path: Path) -> None:
    there = imported(tmp_path / "home", archive)
    assert there.workspace.blob_path(there.project.id, there.project.dataset["source"][5:]).is_file()
