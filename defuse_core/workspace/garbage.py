"""Remove files that no row names: left by killed writers, deleted projects, replaced artifacts.

Files are looked for without a lock. Under the lock of the database it is decided what goes, and that is
only renamed; it is deleted once the lock is free, since deleting takes long. A file that was renamed and
not deleted is garbage, too. Other processes delete and rename meanwhile; what vanishes is skipped.
Imports no torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from defuse_core.base.limits import GARBAGE_BATCH
from defuse_core.workspace.database import Database
from defuse_core.workspace.runs import Run

_ASIDE = ".gone."
_KEPT_FILES = frozenset({"config.json", "log.txt"})


@dataclass(frozen=True)
class Kept:
    """What stays of a run's folder: these names, all of `work/`, or everything."""

    names: frozenset[str] = frozenset()
    work: bool = False
    everything: bool = False


@dataclass(frozen=True)
class Named:
    """What rows name: the files under blobs/, and by run what stays of its folder."""

    blobs: Collection[str] = ()
    runs: Mapping[int, Kept] = field(default_factory=dict)

    def keeps(self, place: Path) -> bool:
        """Tell whether a file or a folder stays.

        Parameters
        ----------
        place : Path
            Relative to the workspace: blobs/<name>, or runs/<run>/….
        """
        top, name, *inner = place.parts
        if top == "blobs":
            return name in self.blobs
        kept = self.runs.get(int(name), Kept()) if name.isdecimal() else Kept()
        return kept.everything or "/".join(inner) in kept.names or (kept.work and inner[:1] == ["work"])


def find_named(database: Database, runs: Iterable[Run]) -> Named:
    """Read what rows name.

    Parameters
    ----------
    database : Database
    runs : iterable of Run
        All there are.
    """
    artifacts: defaultdict[int, set[str]] = defaultdict(set)
    for row in database.read("SELECT run_id, name FROM artifacts"):
        artifacts[row["run_id"]].add(row["name"])
    kept = {
        run.id: Kept(
            frozenset(artifacts[run.id] | _KEPT_FILES),
            work=run.status != "done" or "missing" in run.summary,
            everything=run.live,
        )
        for run in runs
    }
    return Named({row["sha256"] for row in database.read("SELECT sha256 FROM blobs")}, kept)


def remove_garbage(
    home: Path, database: Database, named: Callable[[], Named], *, min_age: float
) -> tuple[int, int]:
    """Remove what no row names; return how many files, and their bytes.

    Parameters
    ----------
    home : Path
    database : Database
    named : callable
        Reads what rows name at that moment.
    min_age : float
        Seconds since a file was last written to; younger ones may be about to be named.
    """
    before = named()
    found = [path for path in _old_files(home, min_age=min_age) if not before.keeps(path)]
    sizes = remove_unnamed(home, database, named, found, min_age=min_age)
    empty = [path for path in _folders(home) if not before.keeps(path)]
    for batch in _batches(empty):
        with database.write(on_reserve=True):
            now = named()
            for path in batch:
                if not now.keeps(path):
                    with contextlib.suppress(OSError):  # not empty, or gone
                        (home / path).rmdir()
    return len(sizes), sum(sizes)


def remove_unnamed(
    home: Path, database: Database, named: Callable[[], Named], paths: Sequence[Path],
    *, min_age: float = -math.inf,
) -> list[int]:  # fmt: skip
    """Remove those of `paths` that no row names; return their sizes in bytes.

    Parameters
    ----------
    home, database, named, min_age
        As in `remove_garbage`; by default of any age.
    paths : sequence of Path
        Relative to `home`.
    """
    sizes: list[int] = []
    for batch in _batches(paths):
        with database.write(on_reserve=True):  # no run is queued and no upload named meanwhile
            now = named()
            going = [home / path for path in batch if not now.keeps(path)]
            aside = [_set_aside(path, min_age=min_age) for path in going]
        sizes += _delete(path for path in aside if path is not None)
    return sizes


def _batches(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    return (paths[i : i + GARBAGE_BATCH] for i in range(0, len(paths), GARBAGE_BATCH))


def _old_files(home: Path, *, min_age: float) -> Iterator[Path]:
    """Uploads and files of runs that are old enough, relative to the workspace."""
    latest = time.time() - min_age
    uploads = (Path(entry.path) for entry in _scan(home / "blobs") if entry.is_file())
    for path in (*uploads, *_walk(home)):
        if _older(path, latest):
            yield path.relative_to(home)


def _folders(home: Path) -> Iterator[Path]:
    """Folders of runs and those within, relative to the workspace, the innermost first."""
    for run in _scan(home / "runs"):
        if run.is_dir(follow_symlinks=False):
            for inner, _, _ in os.walk(run.path, topdown=False):
                yield Path(inner).relative_to(home)


def _set_aside(path: Path, *, min_age: float) -> Path | None:
    """Rename a file that goes; return its new path, or None where it is gone or was written to meanwhile."""
    if not _older(path, time.time() - min_age):
        return None
    if path.name.startswith(_ASIDE):  # by a process that was killed then
        return path
    aside = path.with_name(f"{_ASIDE}{path.name}")
    try:
        return path.rename(aside)
    except FileNotFoundError:
        return None
    except OSError:  # a name too long, or a folder that cannot grow on a full disk
        path.unlink(missing_ok=True)
        return None


def _delete(paths: Iterable[Path]) -> list[int]:
    """Delete files; return the size in bytes of each that was there."""
    sizes = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            sizes.append(size)
    return sizes


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _walk(home: Path) -> Iterator[Path]:
    for run in _scan(home / "runs"):
        if run.is_dir(follow_symlinks=False):
            for inner, _, names in os.walk(run.path):
                yield from (Path(inner) / name for name in names)


def _older(path: Path, latest: float) -> bool:
    try:
        return path.stat().st_mtime <= latest
    except FileNotFoundError:
        return False
