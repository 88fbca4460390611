"""The SQLite file: created once, migrated, and left alone where it cannot be trusted."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from defuse_core.workspace import database as database_module
from defuse_core.workspace.database import MIGRATIONS, Database, WorkspaceError
from defuse_core.workspace.workspace import Workspace

PAGE = 4096
INSERT = "INSERT INTO projects (name, dataset, created_at) VALUES (?, ?, 0)"

CREATOR = f"""
import sys, time
from pathlib import Path
from defuse_core.workspace.database import Database
folder, me, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
start = float(sys.stdin.readline())
for number in range(rounds):
    time.sleep(max(0.0, start + 0.04 * number - time.time()))
    with Database(folder / str(number) / "defuse.sqlite").write() as connection:
        connection.execute({INSERT!r}, (me, "{{}}"))
"""

AS_NOBODY = """
import os, sys
from pathlib import Path
from defuse_core.workspace.workspace import Workspace, WorkspaceError
Workspace(Path(sys.argv[1]))  # imports all there is to import
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Workspace(Path(sys.argv[2]))
except WorkspaceError as error:
    print(error)
except Exception as error:
    print("UNEXPLAINED", type(error).__name__, error)
"""

FILL = f"""
import sys
from contextlib import contextmanager
from pathlib import Path
from defuse_core.workspace.database import Database, WorkspaceError
path = Path(sys.argv[1])
rows, size = int(sys.argv[2]), int(sys.argv[3])
database = Database(path)

def names():
    return [name for (name,) in database.read("SELECT name FROM projects ORDER BY id")]

def add(name, size=0):
    with database.write() as connection:
        for number in range(rows if size else 1):
            connection.execute({INSERT!r}, (f"{{name}}-{{number}}", "x" * (size // rows)))

add("before")
with small_disk(path):
    try:
        add("big", size)
    except WorkspaceError as error:
        print(error)
    print(names())
    print(database.read("PRAGMA integrity_check")[0][0])
add("after")
print(names())
"""

LIMITED = """
import resource
from contextlib import contextmanager
@contextmanager
def small_disk(path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
"""

FILLED = """
from contextlib import contextmanager
@contextmanager
def small_disk(path):
    with (path.parent / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            pass
    yield
    (path.parent / "filler").unlink()
"""


def add(database: Database, name: str, dataset: str = "{}") -> None:
    with database.write() as connection:
        connection.execute(INSERT, (name, dataset))


def names(database: Database) -> list[str]:
    return [row["name"] for row in database.read("SELECT name FROM projects ORDER BY id")]


def schema(path: Path | str) -> list[tuple[str, str]]:
    """Every table and index with its SQL, read without the code under test."""
    with closing(sqlite3.connect(path)) as connection:
        return sorted(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


def whole_schema() -> list[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for script in MIGRATIONS:
            connection.executescript(script)
        return sorted(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "defuse.sqlite"


@pytest.fixture
def filled(path: Path) -> Path:
    """A database of some 40 pages, closed: all of it is in the one file."""
    database = Database(path)
    with database.write() as connection:
        connection.executemany(INSERT, [(f"project {n}", "x" * 900) for n in range(120)])
    database.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["defuse.sqlite"]
    return path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        for entry in (folder, *folder.iterdir()):
            if entry.is_dir():
                entry.chmod(0o755)  # else it could not be removed


def test_a_new_database_logs_ahead_keeps_foreign_keys_and_knows_its_schema(path: Path) -> None:
    database = Database(path)
    for pragma, expected in (
        ("journal_mode", "wal"),
        ("foreign_keys", 1),
        ("user_version", len(MIGRATIONS)),
        ("synchronous", 2),
    ):
        assert database.read(f"PRAGMA {pragma}")[0][0] == expected, pragma
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"), database.write() as connection:
        connection.execute("INSERT INTO blobs VALUES (99, 'sha', 'name', 1, 0)")
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert other.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_a_database_that_need_not_be_durable_syncs_less(path: Path) -> None:
    assert Database(path, durable=False).read("PRAGMA synchronous")[0][0] == 1


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_a_database_of_every_earlier_schema_is_brought_up(path: Path, version: int) -> None:
    path.parent.mkdir()
    path.touch()
    with closing(sqlite3.connect(path)) as connection:
        for script in MIGRATIONS[:version]:
            connection.executescript(script)
        connection.execute(f"PRAGMA user_version = {version}")
    database = Database(path)
    assert database.read("PRAGMA user_version")[0][0] == len(MIGRATIONS)
    assert schema(path) == whole_schema()
    add(database, "works")
    assert names(Database(path)) == ["works"]


def test_a_migration_that_fails_changes_nothing(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "CREATE TABLE extra (x); INSERT INTO projects (name) VALUES ('half'); CREATE TABL oh"
    with monkeypatch.context() as patched:
        patched.setattr(database_module, "MIGRATIONS", (*MIGRATIONS, broken.replace("(name)", "")))
        with pytest.raises(WorkspaceError, match=r"defuse\.sqlite"):
            Database(filled)
    assert schema(filled) == whole_schema()
    assert len(names(Database(filled))) == 120


@pytest.mark.parametrize("lock", ["BEGIN", "BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"])
def test_a_database_that_another_process_is_creating_is_waited_for(path: Path, lock: str) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE found (x)")
        other.execute(lock)
        other.execute("SELECT * FROM found").fetchall()
        timer = threading.Timer(0.3, other.commit)
        timer.start()
        try:
            add(Database(path), "created")
        finally:
            timer.join()
    assert names(Database(path)) == ["created"]


def test_processes_that_create_a_database_at_the_same_instant_share_it(tmp_path: Path) -> None:
    rounds, people = 25, ["a", "b", "c", "d"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CREATOR, str(tmp_path), name, str(rounds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in people
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    instant = str(time.time() + 0.05)
    ended = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write(instant + "\n")
        process.stdin.flush()
    for process in started:
        ended.append(process.communicate()[1])
    assert ended == [""] * len(people)
    for number in range(rounds):
        path = tmp_path / str(number) / "defuse.sqlite"
        assert sorted(names(Database(path))) == people
        assert schema(path) == whole_schema()


def test_a_newer_schema_is_refused_and_left_as_it_is(filled: Path) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = filled.read_bytes()
    told = rf"newer Defuse \(schema {len(MIGRATIONS) + 1}, .*knows {len(MIGRATIONS)}\); upgrade Defuse"
    with pytest.raises(WorkspaceError, match=told):
        Database(filled)
    assert filled.read_bytes() == before


@pytest.mark.parametrize("what", ["newer", "damaged"])
def test_a_log_that_a_crash_left_is_not_written_into_a_database_that_is_refused(
    filled: Path, tmp_path: Path, what: str
) -> None:
    with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
        connection.execute("DELETE FROM projects WHERE id = 3")
        if what == "newer":
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        log = Path(f"{filled}-wal").read_bytes()  # as long as it is open
        content = filled.read_bytes()
    assert log
    path = tmp_path / "crashed" / "defuse.sqlite"
    path.parent.mkdir()
    if what == "damaged":
        content = content[: -3 * PAGE] + random.Random(0).randbytes(3 * PAGE)
    path.write_bytes(content)
    Path(f"{path}-wal").write_bytes(log)
    with pytest.raises(WorkspaceError, match="is damaged" if what == "damaged" else "newer Defuse"):
        Database(path)
    assert path.read_bytes() == content
    assert Path(f"{path}-wal").read_bytes() == log


def random_pages(content: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    page = rng.randrange(1, len(content) // PAGE)
    return content[: page * PAGE] + rng.randbytes(PAGE) + content[(page + 1) * PAGE :]


@pytest.mark.parametrize(
    "damaged",
    [
        *[pytest.param(lambda c, s=seed: random_pages(c, s), id=f"page {seed}") for seed in range(6)],
        pytest.param(lambda c: c[: len(c) // PAGE // 2 * PAGE], id="half"),
        pytest.param(lambda c: c[:-PAGE], id="last page"),
        pytest.param(lambda c: c[:1000], id="1000 bytes"),
        pytest.param(lambda c: c[:100], id="header"),
        pytest.param(lambda c: c[:2], id="2 bytes"),
        pytest.param(lambda c: bytes(len(c)), id="zeros"),
        pytest.param(lambda c: b"\x89PNG\r\n" + c, id="picture"),
        pytest.param(lambda _: b"name,dataset\na,b\n" * 100, id="text"),
        pytest.param(lambda c: c[:1], id="1 byte"),
        pytest.param(lambda _: b"\n", id="1 byte of another"),
    ],
)
def test_a_damaged_database_is_refused_and_left_as_it_is(filled: Path, damaged: object) -> None:
    assert callable(damaged)
    content = damaged(filled.read_bytes())
    filled.write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"is damaged \((.|\n)*left as it is; restore it from a copy"):
        Database(filled)
    assert filled.read_bytes() == content


@pytest.mark.parametrize("content", [None, b""])
def test_a_database_that_is_gone_beside_runs_is_not_begun_anew(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "runs" / "7").mkdir(parents=True)
    path = tmp_path / "defuse.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"missing or empty, though .*runs holds runs; restore it from"):
        Workspace(tmp_path)
    assert (path.read_bytes() if path.exists() else None) == content
    (tmp_path / "runs" / "7").rmdir()
    assert Workspace(tmp_path).projects() == []


def told_to_nobody(home: Path, folder: Path) -> str:
    """What a person is told who may read the workspace's folder at most."""
    (folder / "warm").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(folder / "warm"), str(home)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ended.stdout.strip()


WRITABLE = "make the folder writable, or set DEFUSE_HOME to one that is"


@pytest.mark.parametrize("there", ["folder", "database", "nothing"])
def test_a_folder_that_cannot_be_written_is_an_error_with_its_remedy(open_folder: Path, there: str) -> None:
    closed = open_folder / "closed"
    closed.mkdir()
    home = closed / "home" if there == "nothing" else closed
    if there == "database":
        workspace = Workspace(home)
        workspace.create_project("kept", dataset={})
        workspace.close()
    before = {entry.name: entry.read_bytes() for entry in closed.iterdir()}
    assert len(before) == (there == "database")
    closed.chmod(0o555)
    told = told_to_nobody(home, open_folder)
    assert told.startswith(f"{home / 'defuse.sqlite'}: ")
    assert told.endswith(WRITABLE)
    assert {entry.name: entry.read_bytes() for entry in closed.iterdir()} == before


@pytest.mark.parametrize("name", ["locked", "fulltime"])
def test_the_name_of_a_folder_does_not_change_the_remedy(open_folder: Path, name: str) -> None:
    (open_folder / name).mkdir()
    (open_folder / name).chmod(0o555)
    assert told_to_nobody(open_folder / name / "home", open_folder).endswith(WRITABLE)


def test_a_folder_that_cannot_be_entered_is_an_error_with_its_remedy(open_folder: Path) -> None:
    (open_folder / "home").mkdir(0o000)
    told = told_to_nobody(open_folder / "home", open_folder)
    assert told == f"{open_folder / 'home'}: Permission denied; {WRITABLE}"


def test_a_home_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("mine")
    with pytest.raises(WorkspaceError, match=r"home.*check the folder that DEFUSE_HOME names"):
        Workspace(tmp_path / "home")
    assert (tmp_path / "home").read_text() == "mine"


def fill(path: Path, rows: int, size: int, disk: str) -> None:
    """Run the whole story of a full disk in a process of its own, and look at what is left."""
    ended = subprocess.run(
        [sys.executable, "-c", disk + FILL, str(path), str(rows), str(size)],
        capture_output=True,
        text=True,
        check=True,
    )
    *told, during, sound, after = ended.stdout.splitlines()
    assert len(told) == 1, ended.stdout
    assert "free disk space, then resume; what was stored before is kept" in told[0]
    assert during == "['before-0']"
    assert sound == "ok"
    assert after == "['before-0', 'after-0']"
    database = Database(path)
    assert names(database) == ["before-0", "after-0"]
    database.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


WRITES = pytest.mark.parametrize(
    ("rows", "size"),
    [
        pytest.param(1, 8_000_000, id="one large row"),
        pytest.param(2000, 8_000_000, id="many rows"),
        pytest.param(100, 1_000_000, id="at the commit"),  # what fits the cache is written at its end
    ],
)


@WRITES
def test_a_full_disk_is_an_error_with_its_remedy_and_loses_nothing(path: Path, rows: int, size: int) -> None:
    fill(path, rows, size, LIMITED)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 2 MB in memory, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "defuse-test", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs of 2 MB is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@WRITES
def test_a_disk_without_space_is_an_error_with_its_remedy_and_loses_nothing(
    small_disk: Path, rows: int, size: int
) -> None:
    fill(small_disk / "defuse.sqlite", rows, size, FILLED)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OverflowError])
def test_an_exception_takes_the_whole_transaction_back(path: Path, error: type[BaseException]) -> None:
    database, other = Database(path), Database(path)
    add(database, "kept")

    def break_off() -> None:
        with database.write() as connection:
            connection.execute(INSERT, ("half", "{}"))
            raise error("halfway")

    with pytest.raises(error, match=r"^halfway$"):
        break_off()
    assert names(database) == names(other) == ["kept"]
    add(other, "the lock is free")
    add(database, "here, too")
    assert names(database) == ["kept", "the lock is free", "here, too"]


def test_a_commit_that_fails_leaves_no_transaction_open(path: Path) -> None:
    """A key that is checked only at the commit makes it fail."""
    database = Database(path)

    def commit_in_vain() -> None:
        with database.write() as connection:
            connection.execute("PRAGMA defer_foreign_keys = ON")
            connection.execute("INSERT INTO blobs VALUES (99, 'sha', 'name', 1, 0)")

    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        commit_in_vain()
    assert database.read("SELECT * FROM blobs") == []
    add(database, "a")
    assert names(Database(path)) == ["a"]


def test_a_broken_constraint_is_for_the_caller_to_explain(path: Path) -> None:
    database = Database(path)
    add(database, "a")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        add(database, "a")
    assert names(database) == ["a"]


def test_a_transaction_holds_the_lock_from_its_start_so_that_no_count_is_lost(path: Path) -> None:
    """Four threads read a number and write it back, one higher."""
    database = Database(path, durable=False)
    add(database, "counter", "0")

    def count() -> None:
        for _ in range(50):
            with database.write() as connection:
                (value,) = connection.execute("SELECT dataset FROM projects").fetchone()
                connection.execute("UPDATE projects SET dataset = ?", (str(int(value) + 1),))
        database.close()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.read("SELECT dataset FROM projects")[0][0] == "200"


def test_a_thread_has_a_connection_of_its_own_and_sees_only_what_is_committed(path: Path) -> None:
    database = Database(path)
    seen: list[list[str]] = []

    def look() -> None:
        seen.append(names(database))

    def in_a_thread() -> None:
        thread = threading.Thread(target=look)
        began = time.monotonic()
        thread.start()
        thread.join()
        assert time.monotonic() - began < 5, "a reader waited for a writer"

    with database.write() as connection:
        connection.execute(INSERT, ("a", "{}"))
        in_a_thread()
    in_a_thread()
    assert seen == [[], ["a"]]


def test_a_closed_database_opens_again_when_it_is_used(path: Path) -> None:
    database = Database(path)
    database.close()
    database.close()
    add(database, "a")
    assert names(database) == ["a"]


def test_a_lock_that_is_never_let_go_is_an_error_with_its_remedy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.1)
    database = Database(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(WorkspaceError, match=r"locked; another process is writing; try again, or end it"):
            add(database, "a")
        assert names(database) == []
    add(database, "b")
    assert names(database) == ["b"]


def test_a_path_with_marks_of_a_query_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "what? 100% #1 ü" / "defuse.sqlite"
    add(Database(path), "a")
    assert names(Database(path)) == ["a"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["what? 100% #1 ü"]


WRITER = """
import sys
from pathlib import Path
from defuse_core.workspace.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]))
workspace.create_project(sys.argv[2], dataset={})
print(",".join(project.name for project in workspace.projects()))
"""


def test_opening_a_workspace_twice_in_a_process_loses_nothing_that_another_writes(tmp_path: Path) -> None:
    """A handle that is closed drops the locks of its process; the next process would clear the log."""
    home = tmp_path / "home"
    ours = Workspace(home)
    names = []
    for number in range(4):
        Workspace(home)  # looks whether the file is damaged, beside a connection that is open
        ours.create_project(f"ours {number}", dataset={})
        told = subprocess.run(
            [sys.executable, "-c", WRITER, str(home), f"theirs {number}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        names += [f"ours {number}", f"theirs {number}"]
        assert told.strip() == ",".join(names)
        assert [project.name for project in ours.projects()] == names


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("name", "CAST(x'ff41' AS TEXT)", "a text is not UTF-8"),
        ("dataset", "CAST(x'7b22ff' AS TEXT)", "a text is not UTF-8"),
        ("dataset", "'{\"sizes\": '", "a text is not JSON"),
    ],
)
def test_a_row_that_was_damaged_is_told_with_its_remedy(
    tmp_path: Path, column: str, value: str, reason: str
) -> None:
    workspace = Workspace(tmp_path)
    workspace.create_project("a", dataset={})
    workspace.close()
    with closing(sqlite3.connect(tmp_path / "defuse.sqlite")) as connection:
        connection.execute(f"UPDATE projects SET {column} = {value}")
        connection.commit()
    told = rf"is damaged \({reason}\) and was left as it is; restore it from a copy, or recover it with"
    with pytest.raises(WorkspaceError, match=told):
        Workspace(tmp_path).projects()


def test_names_of_the_schema_that_are_no_text_are_damage(filled: Path) -> None:
    """SQLite quotes them in its errors, which Python then cannot decode."""
    with closing(sqlite3.connect(filled)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = CAST(x'ff' AS TEXT) || sql WHERE name = 'projects'"
        )
        connection.commit()
    content = filled.read_bytes()
    with pytest.raises(WorkspaceError, match=r"is damaged .* restore it from a copy"):
        Database(filled)
    assert filled.read_bytes() == content
