"""Projects, uploads and artifacts: what a row names is whole, what none names goes."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from defuse_core.base.limits import RESERVE_BYTES, RESERVE_LEAST_FREE_BYTES
from defuse_core.data.class_names import NONE_OF_THE_ABOVE
from defuse_core.workspace import garbage
from defuse_core.workspace.database import Database, DiskFullError, WorkspaceError
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Artifact, Resources, Run, RunStatus
from defuse_core.workspace.workspace import Blob, Workspace, default_home
from tests.workspaces import verify

CORE = Path(__file__).resolve().parent.parent / "defuse_core"

SMALL_DISK = """
import resource, sys
from pathlib import Path
from defuse_core.workspace.workspace import Workspace, WorkspaceError
workspace = Workspace(Path(sys.argv[1]))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
try:
    if sys.argv[2] == "artifact":
        workspace.store_artifact(1, "codes.safetensors", bytes(2_000_000))
    else:
        workspace.add_blob(1, "model.pt", (bytes(100_000) for _ in range(20)))
except WorkspaceError as error:
    print(error)
except Exception as error:
    print("UNEXPLAINED", type(error).__name__, error)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home", durable=False)


def add(workspace: Workspace, project_id: int, step: str, status: RunStatus = "done") -> Run:
    """A run of this process that reads as asked; one whose process is gone for interrupted."""
    run = workspace.runs.add(project_id, step, {}, seed=0, resources=Resources())
    if status == "queued":
        return run
    workspace.runs.hand_over(run.id, os.getpid())
    workspace.runs.start(run.id, {})
    if status == "interrupted":
        lose_process(workspace, run)
    elif status != "running":
        workspace.runs.finish(run.id, status)
    found = workspace.runs.get(run.id)
    assert found.status == status
    return found


def lose_process(workspace: Workspace, run: Run) -> None:
    database = Database(workspace.home / "defuse.sqlite")
    with database.write() as connection:
        connection.execute("UPDATE runs SET pid_started = 0, heartbeat_at = 0 WHERE id = ?", (run.id,))
    database.close()


def store(workspace: Workspace, run: Run, name: str, content: bytes) -> Path:
    """Store a file of a run and let a row name it."""
    workspace.runs.name_artifact(run.id, workspace.store_artifact(run.id, name, content))
    return workspace.artifact_path(run.id, name)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def kept_files(workspace: Workspace) -> set[str]:
    """Files other than the database's own."""
    return {name for name in files(workspace.home) if not name.startswith("defuse.sqlite")}


# Projects


def test_projects_are_kept_with_all_that_is_known_of_their_data(workspace: Workspace) -> None:
    dataset = {"source": "mnist", "class_names": ["a", "b,c", "Käse"], "image_shape": [1, 28, 28]}
    before = time.time()
    first = workspace.create_project("  zebra ", dataset=dataset)
    second = workspace.create_project("apple", dataset={})
    assert (first.name, first.dataset, first.class_names) == ("zebra", dataset, ["a", "b,c", "Käse"])
    assert before <= first.created_at <= second.created_at <= time.time()
    assert workspace.projects() == [first, second]
    assert workspace.project("apple") == workspace.project(second.id) == second
    workspace.close()
    assert Workspace(workspace.home).projects() == [first, second]


@pytest.mark.parametrize("name", ["x", "ä", "日本語", "a/b", "..", "🦓", "'; DROP TABLE runs; --", "x" * 80])
def test_any_printable_name_will_do(workspace: Workspace, name: str) -> None:
    assert workspace.create_project(name, dataset={}).name == name
    assert workspace.project(name).name == name
    assert kept_files(workspace) == set()


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * 81, "two\nlines", "tab\there", "bell\a", "\ud800", "\u200b"]
)
def test_a_name_that_nobody_could_read_is_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(WorkspaceError, match=r"name has 1 to 80 printable characters, got '"):
        workspace.create_project(name, dataset={})
    assert workspace.projects() == []


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ([NONE_OF_THE_ABOVE], "a class may not be called 'none of the above', .*; rename the class"),
        (["cat", f"{NONE_OF_THE_ABOVE} ", "dog"], "a class may not be called"),
        (["cat", "dog", "cat"], "classes 0 and 2 are both called 'cat'; rename one of them"),
    ],
)
def test_class_names_that_labels_could_not_tell_apart_are_refused(
    workspace: Workspace, classes: list[str], told: str
) -> None:
    with pytest.raises(WorkspaceError, match=told):
        workspace.create_project("a", dataset={"class_names": classes})
    assert workspace.projects() == []
    others = ["None of the above", "none"]
    assert workspace.create_project("a", dataset={"class_names": others}).class_names == others


def test_a_name_is_given_once(workspace: Workspace) -> None:
    workspace.create_project("a", dataset={"source": "first"})
    with pytest.raises(WorkspaceError, match="there is a project 'a' already; give another name"):
        workspace.create_project(" a ", dataset={"source": "second"})
    assert [project.dataset for project in workspace.projects()] == [{"source": "first"}]


def test_of_many_who_take_a_name_at_once_one_gets_it(workspace: Workspace) -> None:
    outcomes: list[str] = []

    def take() -> None:
        try:
            workspace.create_project("a", dataset={})
            outcomes.append("taken")
        except WorkspaceError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["taken"] + 7 * ["there is a project 'a' already; give another name"]
    assert len(workspace.projects()) == 1


def test_a_project_that_does_not_exist_is_an_error_that_lists_those_that_do(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="no project 'a'; create one with: defuse new NAME"):
        workspace.project("a")
    workspace.create_project("b", dataset={})
    workspace.create_project("c", dataset={})
    for name in ("a", 7, "1"):
        with pytest.raises(WorkspaceError, match=f"no project {name!r}; there are: b, c"):
            workspace.project(name)
    for call in (workspace.delete_project, lambda number: workspace.add_blob(number, "x", iter([b"x"]))):
        with pytest.raises(WorkspaceError, match="no project 7; there are: b, c"):
            call(7)
    assert kept_files(workspace) == set()


def test_a_project_is_deleted_with_all_that_is_its_own(workspace: Workspace) -> None:
    first, second = (workspace.create_project(name, dataset={}) for name in "ab")
    own = workspace.add_blob(first.id, "own", [b"own"])
    shared = workspace.add_blob(first.id, "shared", [b"shared"])
    assert workspace.add_blob(second.id, "the same", [b"sha", b"red"]).sha256 == shared.sha256
    runs = [add(workspace, project.id, "distill") for project in (first, second)]
    for run in runs:
        store(workspace, run, "x.bin", b"x")
        store(workspace, run, "work/y.bin", b"y")
        workspace.runs.plan_tasks(run.id, ["t"])
        workspace.runs.add_point(run.id, "t", "k", {})
        workspace.annotations.append(run.id, [LabelEvent(0, "ann", 1)])
    workspace.delete_project(first.id)
    assert workspace.projects() == [second]
    assert kept_files(workspace) == {
        f"blobs/{shared.sha256}",
        f"runs/{runs[1].id}/x.bin",
        Path("runs", str(runs[1].id), "work", "y.bin").as_posix(),
    }
    assert not workspace.run_folder(runs[0].id).exists()
    assert own.sha256 not in {path.name for path in (workspace.home / "blobs").iterdir()}
    verify(workspace, runs[1].id)
    assert workspace.blob_path(second.id, shared.sha256).read_bytes() == b"shared"
    database = Database(workspace.home / "defuse.sqlite")
    for table in ("blobs", "runs", "tasks", "artifacts", "annotations"):
        assert len(database.read(f"SELECT * FROM {table}")) == 1 + (table == "artifacts"), table
    assert {row["run_id"] for row in database.read("SELECT run_id FROM events")} == {runs[1].id}
    workspace.delete_project(second.id)
    assert kept_files(workspace) == set()


@pytest.mark.parametrize("status", ["queued", "running"])
def test_a_project_is_not_deleted_while_a_run_is_live(workspace: Workspace, status: RunStatus) -> None:
    project = workspace.create_project("a", dataset={})
    workspace.add_blob(project.id, "x", [b"x"])
    ended = add(workspace, project.id, "vae")
    store(workspace, ended, "x", b"x")
    run = add(workspace, project.id, "classifier", status)
    before = files(workspace.home)
    with pytest.raises(WorkspaceError, match=rf"run {run.id} is live; cancel .*: defuse cancel {run.id}"):
        workspace.delete_project(project.id)
    assert workspace.projects() == [project]
    assert files(workspace.home) == before
    lose_process(workspace, run)
    workspace.delete_project(project.id)
    assert workspace.projects() == []


def test_numbers_are_not_given_again(workspace: Workspace) -> None:
    """Else a new run could find the files of a deleted one."""
    project = workspace.create_project("a", dataset={})
    run = add(workspace, project.id, "vae")
    workspace.delete_project(project.id)
    again = workspace.create_project("a", dataset={})
    assert again.id > project.id
    assert add(workspace, again.id, "vae").id > run.id


# Uploads


def test_an_upload_lies_under_its_checksum_and_is_stored_once(workspace: Workspace) -> None:
    project = workspace.create_project("a", dataset={})
    sha256 = hashlib.sha256(b"content").hexdigest()
    blob = workspace.add_blob(project.id, "model.pt", iter([b"con", b"", b"tent"]))
    assert blob == Blob(sha256, "model.pt", 7)
    other = workspace.add_blob(project.id, "another", [b"x"])
    path = workspace.home / "blobs" / sha256
    assert workspace.blob_path(project.id, sha256) == path
    assert path.read_bytes() == b"content"
    assert workspace.blobs(project.id) == [blob, other]
    renamed = workspace.add_blob(project.id, "new name.pt", [b"content"])
    assert set(workspace.blobs(project.id)) == {renamed, other}
    assert len(kept_files(workspace)) == 2


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("a/b.pt", "b.pt"),
        ("x" * 300, "x" * 200),
        (os.fsdecode(b"\xff.pt"), "?.pt"),
    ],
)
def test_the_users_name_of_an_upload_is_no_path(workspace: Workspace, given: str, name: str) -> None:
    project = workspace.create_project("a", dataset={})
    blob = workspace.add_blob(project.id, given, [b"x"])
    assert blob.name == name
    assert kept_files(workspace) == {f"blobs/{blob.sha256}"}
    assert files(workspace.home.parent) == {f"home/{entry}" for entry in files(workspace.home)}


def test_an_upload_of_another_project_or_whose_file_is_gone_is_refused(workspace: Workspace) -> None:
    first, second = (workspace.create_project(name, dataset={}) for name in "ab")
    blob = workspace.add_blob(first.id, "x", [b"x"])
    for project_id, sha256 in ((second.id, blob.sha256), (first.id, "../defuse.sqlite"), (first.id, "")):
        with pytest.raises(WorkspaceError, match=r"has no upload .*; upload the file again"):
            workspace.blob_path(project_id, sha256)
    workspace.blob_path(first.id, blob.sha256).unlink()
    with pytest.raises(WorkspaceError, match=rf"has no upload {blob.sha256[:12]}…; upload the file again"):
        workspace.blob_path(first.id, blob.sha256)


@pytest.mark.parametrize(
    "error",
    [
        ValueError,
        KeyboardInterrupt,
        pytest.param(
            ConnectionResetError,
        ),
    ],
)
def test_an_upload_that_breaks_off_leaves_neither_row_nor_file(
    workspace: Workspace, error: type[BaseException]
) -> None:
    project = workspace.create_project("a", dataset={})

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise error("gone")

    with pytest.raises(error, match=r"^gone$"):
        workspace.add_blob(project.id, "x", broken())
    assert workspace.blobs(project.id) == []
    assert kept_files(workspace) == set()


# Artifacts


def test_an_artifact_is_found_once_a_row_names_it(workspace: Workspace) -> None:
    run = add(workspace, workspace.create_project("a", dataset={}).id, "vae")
    artifact = workspace.store_artifact(run.id, "lam=0.1.bin", b"content")
    assert artifact == Artifact("lam=0.1.bin", hashlib.sha256(b"content").hexdigest(), 7)
    with pytest.raises(
        WorkspaceError, match=rf"run {run.id} has no lam=0\.1\.bin; .*: defuse resume {run.id}"
    ):
        workspace.artifact_path(run.id, "lam=0.1.bin")
    workspace.runs.name_artifact(run.id, artifact)
    assert workspace.artifact_path(run.id, "lam=0.1.bin").read_bytes() == b"content"
    workspace.artifact_path(run.id, "lam=0.1.bin").unlink()
    with pytest.raises(WorkspaceError, match=r"lam=0\.1\.bin is gone; run the step again"):
        workspace.artifact_path(run.id, "lam=0.1.bin")


CONTENT = bytes(range(256)) * 40


@pytest.mark.parametrize(("what", "where"), [("artifact", "runs/1/codes.safetensors"), ("upload", "blobs")])
def test_a_full_disk_is_an_error_with_its_remedy_and_leaves_nothing(
    workspace: Workspace, what: str, where: str
) -> None:
    project = workspace.create_project("a", dataset={})
    add(workspace, project.id, "vae")
    ended = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(workspace.home), what],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert kept_files(workspace) == set()
    assert workspace.blobs(project.id) == []
    assert ended.stdout == (
        f"{workspace.home / where}: File too large; free disk space, then resume; what was stored before is "
        "kept\n"
    )


def test_what_is_in_the_way_is_an_error_with_its_path_and_remedy(workspace: Workspace) -> None:
    project = workspace.create_project("a", dataset={})
    folder = workspace.run_folder(1) / "x.bin"
    (folder / "inner").mkdir(parents=True)
    with pytest.raises(WorkspaceError) as told:
        workspace.store_artifact(1, "x.bin", b"x")
    assert str(told.value) == f"{folder}: Is a directory; move that folder away"
    assert isinstance(told.value.__cause__, IsADirectoryError)
    (workspace.home / "blobs").write_bytes(b"mine")
    with pytest.raises(WorkspaceError) as told:
        workspace.add_blob(project.id, "x", [b"x"])
    assert str(told.value) == (
        f"{workspace.home / 'blobs'}: File exists; check the folder that DEFUSE_HOME names"
    )
    assert isinstance(told.value.__cause__, FileExistsError)
    assert workspace.blobs(project.id) == []
    assert kept_files(workspace) == {"blobs"}
    assert (folder / "inner").is_dir()


# Garbage

LONG_AGO = 1_000.0
KINDS = ("named.bin", "work/named.bin", "config.json", "log.txt", "work/state.bin", "work/deep/state.bin",
         "unnamed.bin", ".unnamed.bin.x1y2", "deep/unnamed.bin", "deep/config.json")  # fmt: skip


def stays(status: str | None, kind: str, *, young: bool) -> bool:
    """What is to be kept, in the words of the design."""
    if young or status in ("queued", "running"):
        return True
    if status is None:  # no row of this run
        return False
    if kind in ("named.bin", "work/named.bin", "config.json", "log.txt"):
        return True
    return kind.startswith("work/") and status != "done"  # a run that lacks tasks may be completed


INCOMPLETE = "incomplete"  # done, and some of its tasks were cancelled


def test_garbage_is_exactly_what_no_row_names(workspace: Workspace) -> None:
    """Every status of a run with every kind of file, young and old."""
    project = workspace.create_project("a", dataset={})
    statuses: dict[int, str | None] = {}
    for each in get_args(RunStatus):
        statuses[add(workspace, project.id, f"step {each}", each).id] = each
    run = add(workspace, project.id, "step incomplete", "running")
    workspace.runs.finish(run.id, "done", summary={"missing": ["lam=1"]})
    statuses |= {run.id: INCOMPLETE, 990: None, 991: None}
    kept, gone, size = set(), set(), 0
    for run_id, status in statuses.items():
        for kind in KINDS:
            content = f"{run_id} {kind}".encode() * 10
            artifact = workspace.store_artifact(run_id, kind, content)
            if status is not None and kind in ("named.bin", "work/named.bin"):
                workspace.runs.name_artifact(run_id, artifact)
            young = run_id == 991
            age = 50.0 if young else LONG_AGO
            os.utime(workspace.run_folder(run_id) / kind, (time.time() - age,) * 2)
            if stays(status, kind, young=young):
                kept.add(f"runs/{run_id}/{kind}")
            else:
                gone.add(f"runs/{run_id}/{kind}")
                size += len(content)
    blob = workspace.add_blob(project.id, "x", [b"x"])
    for name, age in (("0" * 64, LONG_AGO), (".upload.abc", LONG_AGO), (".upload.young", 50.0)):
        (workspace.home / "blobs" / name).write_bytes(b"12345")
        os.utime(workspace.home / "blobs" / name, (time.time() - age,) * 2)
    os.utime(workspace.home / "blobs" / blob.sha256, (0, 0))
    kept |= {f"blobs/{blob.sha256}", "blobs/.upload.young"}
    assert kept & gone == set()
    live = {run_id for run_id, status in statuses.items() if status in ("queued", "running")}
    assert len(live) == 2
    for run_id in statuses:
        (workspace.run_folder(run_id) / "empty" / "deep").mkdir(parents=True)
    assert workspace.collect_garbage() == (len(gone) + 2, size + 10)
    assert kept_files(workspace) == kept
    assert not workspace.run_folder(990).exists()
    assert {i for i in statuses if (workspace.run_folder(i) / "empty" / "deep").exists()} == live
    assert workspace.collect_garbage() == (0, 0)
    for run_id, status in statuses.items():
        if status is not None:
            verify(workspace, run_id)


def test_the_age_of_garbage_can_be_chosen(workspace: Workspace) -> None:
    workspace.store_artifact(7, "x", b"xyz")
    assert workspace.collect_garbage() == (0, 0)
    assert workspace.collect_garbage(min_age=0) == (1, 3)
    assert workspace.collect_garbage(min_age=0) == (0, 0)


def test_there_is_no_garbage_in_a_new_workspace(workspace: Workspace) -> None:
    assert workspace.collect_garbage(min_age=0) == (0, 0)
    assert kept_files(workspace) == set()


def test_what_a_killed_deletion_left_behind_is_garbage(workspace: Workspace) -> None:
    """The rows go first; here the files stayed."""
    project = workspace.create_project("a", dataset={})
    run = add(workspace, project.id, "vae")
    store(workspace, run, "x", b"four")
    blob = workspace.add_blob(project.id, "x", [b"sixsix"])
    database = Database(workspace.home / "defuse.sqlite")
    with database.write() as connection:
        connection.execute("DELETE FROM projects")
    database.close()
    assert workspace.collect_garbage(min_age=0) == (2, 10)
    assert not (workspace.home / "blobs" / blob.sha256).exists()
    assert kept_files(workspace) == set()


@pytest.mark.parametrize("name", ["notes", "-1", "²"])
def test_a_folder_that_is_no_runs_is_garbage(workspace: Workspace, name: str) -> None:
    (workspace.home / "runs" / name).mkdir(parents=True)
    (workspace.home / "runs" / name / "x").write_bytes(b"xy")
    assert workspace.collect_garbage(min_age=0) == (1, 2)


def test_garbage_is_collected_while_files_are_uploaded(workspace: Workspace) -> None:
    project = workspace.create_project("a", dataset={})
    broken: list[Exception] = []
    stop = threading.Event()

    def upload() -> None:
        own, number = Workspace(workspace.home, durable=False), 0
        while not stop.is_set():
            number += 1
            own.add_blob(project.id, "x", [b"x" * (number % 50 + 1)])

    def collect() -> None:
        own = Workspace(workspace.home, durable=False)
        until = time.monotonic() + 2
        while time.monotonic() < until and not broken:
            try:
                own.collect_garbage()
            except Exception as error:
                broken.append(error)

    threads = [threading.Thread(target=upload), threading.Thread(target=collect)]
    for thread in threads:
        thread.start()
    threads[1].join()
    stop.set()
    threads[0].join()
    assert broken == []
    for blob in workspace.blobs(project.id):
        assert workspace.blob_path(project.id, blob.sha256).stat().st_size == blob.size


def test_garbage_is_collected_while_runs_are_deleted(workspace: Workspace) -> None:
    """Files and folders vanish under the search."""
    broken: list[Exception] = []
    until = time.monotonic() + 2

    def come_and_go() -> None:
        while time.monotonic() < until:
            for number in range(20):
                with contextlib.suppress(OSError):  # the folder is removed as soon as it is empty
                    (workspace.run_folder(number) / "work" / "deep").mkdir(parents=True)
                    (workspace.run_folder(number) / "work" / "deep" / "x").touch()
            for number in range(20):
                shutil.rmtree(workspace.run_folder(number), ignore_errors=True)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    while time.monotonic() < until and not broken:
        try:
            workspace.collect_garbage()
        except Exception as error:
            broken.append(error)
    thread.join()
    assert broken == []


def test_a_run_that_begins_while_garbage_is_collected_keeps_its_files(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is queued after its files were found, and before the lock; under the lock none can begin."""
    project = workspace.create_project("a", dataset={})
    again, other = (add(workspace, project.id, step, "failed") for step in ("identify", "vae"))
    for run in (again, other):
        workspace.store_artifact(run.id, "unnamed.bin", b"x")
    set_aside, waiting = garbage._set_aside, []

    def found_before(*_: object, **__: object) -> Iterator[Path]:
        yield from [Path(f"runs/{run.id}/unnamed.bin") for run in (again, other)]
        workspace.runs.requeue(again.id)

    def locked(path: Path, *, min_age: float) -> Path | None:
        waiting.append(threading.Thread(target=workspace.runs.requeue, args=(other.id,)))
        waiting[0].start()
        waiting[0].join(0.2)
        assert waiting[0].is_alive()
        return set_aside(path, min_age=min_age)

    monkeypatch.setattr(garbage, "_old_files", found_before)
    monkeypatch.setattr(garbage, "_set_aside", locked)
    assert workspace.collect_garbage(min_age=0) == (1, 1)
    waiting[0].join(10)
    assert kept_files(workspace) == {f"runs/{again.id}/unnamed.bin"}
    assert workspace.runs.get(other.id).status == "queued"


def test_files_are_deleted_while_nobody_waits_for_the_database(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection that is killed before it deletes leaves garbage, which the next one finds."""
    project = workspace.create_project("a", dataset={})
    run = add(workspace, project.id, "vae")
    for number in range(3):
        workspace.store_artifact(run.id, f"{number}.bin", b"x")
    delete = garbage._delete

    def killed(_: Iterable[Path]) -> list[int]:
        with Database(workspace.home / "defuse.sqlite").write():  # would wait for the lock, and fail
            raise KeyboardInterrupt

    monkeypatch.setattr(garbage, "_delete", killed)
    with pytest.raises(KeyboardInterrupt):
        workspace.collect_garbage(min_age=0)
    assert kept_files(workspace) == {f"runs/{run.id}/.gone.{number}.bin" for number in range(3)}
    monkeypatch.setattr(garbage, "_delete", delete)
    assert workspace.collect_garbage(min_age=0) == (3, 3)
    assert kept_files(workspace) == set()


def test_the_home_is_what_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    expected: dict[str | None, Path] = {
        None: tmp_path / "user" / ".defuse",
        "": tmp_path / "user" / ".defuse",
        "~/elsewhere": tmp_path / "user" / "elsewhere",
        "relative": tmp_path / "relative",
        str(tmp_path / "a" / ".." / "b"): tmp_path / "b",
    }
    for value, home in expected.items():
        if value is None:
            monkeypatch.delenv("DEFUSE_HOME", raising=False)
        else:
            monkeypatch.setenv("DEFUSE_HOME", value)
        assert default_home() == home.resolve(), value
    assert list(tmp_path.iterdir()) == [], "looking creates nothing"
    monkeypatch.setenv("DEFUSE_HOME", str(tmp_path / "used"))
    Workspace().create_project("a", dataset={})
    assert (tmp_path / "used" / "defuse.sqlite").is_file()


def test_two_workspaces_know_nothing_of_each_other(tmp_path: Path) -> None:
    first, second = Workspace(tmp_path / "a"), Workspace(tmp_path / "b")
    first.create_project("x", dataset={})
    assert second.projects() == []


# The package


PICKLED_BY_US = ("pickle.loads(pipe.recv_bytes())", "pickle.loads(pickled)")
"""What the two sides of Ray read: of the runner, their parent, over a pipe."""
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_is_pickled(path: Path) -> None:
    """Nothing is stored or loaded that could run code; only Ray's two sides pickle, over their own pipe."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = PICKLERS & {alias.name.split(".")[0] for alias in node.names}
            assert not found or (found == {"pickle"} and path.stem in ("ray_driver", "ray_engine"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLERS:
            assert {alias.name for alias in node.names} <= {"UnpicklingError"}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called not in ("torch.save", "np.save", "numpy.save"), called
            assert not called.endswith((".to_pickle", ".read_pickle"))
            assert given.get("allow_pickle", "False") == "False"
            if called == "torch.load":
                assert given.get("weights_only") == "True"
            if called.startswith("pickle."):
                assert called == "pickle.dumps" or ast.unparse(node) in PICKLED_BY_US


def test_what_the_dashboard_needs_imports_neither_torch_nor_streamlit() -> None:
    code = (
        "import sys, defuse_core.workspace.workspace, defuse_core.jobs.launcher, defuse_core.cli.main\n"
        "print(*sorted({'torch', 'streamlit', 'plotly', 'ray', 'sklearn'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""


def use_from_threads(call: Callable[[], Any], n: int) -> list[Any]:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(call())) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_one_workspace_serves_many_threads(workspace: Workspace) -> None:
    project = workspace.create_project("a", dataset={})
    blobs = use_from_threads(lambda: workspace.add_blob(project.id, "x", [b"same"]), 8)
    assert len(blobs) == 8
    assert len(set(blobs)) == 1
    assert workspace.blobs(project.id) == [blobs[0]]
    assert workspace.blob_path(project.id, blobs[0].sha256).read_bytes() == b"same"


# A full disk


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace on a disk in memory with not a byte left, where this user may mount one; it is closed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = RESERVE_LEAST_FREE_BYTES + 8 * 2**20
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "defuse-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    workspace = Workspace(folder / "home")
    workspace.keep_reserve()
    project = workspace.create_project("a", dataset={})
    ended = add(workspace, project.id, "identify")
    store(workspace, ended, "mistakes.safetensors", bytes(6 * 2**20))
    workspace.store_artifact(ended.id, "unnamed.bin", bytes(2**19))
    for number in range(100):  # rows of twice the reserve
        workspace.runs.add_point(ended.id, "task", str(number), {"x": "x" * (RESERVE_BYTES // 50)})
    add(workspace, project.id, "vae", "running")
    workspace.close()
    with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
    yield workspace
    workspace.close()
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_runs_are_listed_cancelled_ended_and_deleted(full: Workspace) -> None:
    workspace = Workspace(full.home)
    (project,) = workspace.projects()
    ended, live = workspace.runs.of_project(project.id)
    with pytest.raises(DiskFullError, match="No space left on device; free disk space, then resume"):
        workspace.store_artifact(live.id, "big.bin", bytes(2 * RESERVE_BYTES))
    assert workspace.runs.ask_to_cancel(live.id)
    workspace.runs.finish(live.id, "failed", error="No space left on device")
    assert workspace.runs.get(live.id).error == "No space left on device"
    workspace.delete_project(project.id)
    assert workspace.projects() == []
    assert not workspace.run_folder(ended.id).exists()
    workspace.close()


def test_on_a_full_disk_garbage_is_collected(full: Workspace) -> None:
    workspace = Workspace(full.home)
    assert workspace.collect_garbage(min_age=0) == (1, 2**19)
    verify(workspace, 1)
    workspace.close()


def test_without_the_reserve_a_full_disk_is_an_error_with_its_remedy(full: Workspace) -> None:
    reserve = full.home / "defuse.sqlite-reserve"
    assert reserve.stat().st_blocks * 512 == RESERVE_BYTES
    reserve.rename(full.home.parent / "kept from it")
    with pytest.raises(DiskFullError, match="free disk space, then resume; what was stored before is kept"):
        Workspace(full.home)
