"""Remove files that no row names: left by killed writers, deleted projects, replaced artifacts.

Other processes delete and rename files meanwhile; a file that vanishes is skipped. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kept:
    """What stays of a run's folder: these names, all of `work/`, or everything."""

    names: frozenset[str] = frozenset()
    work: bool = False
    everything: bool = False


def remove_unnamed(
    home: Path, *, blobs: Collection[str], runs: Mapping[int, Kept], min_age: float
) -> tuple[int, int]:
    """Remove what neither `blobs` nor `runs` keep; return how many files, and their bytes.

    Parameters
    ----------
    home : Path
    blobs : collection of str
        Names of files under blobs/ that stay.
    runs : mapping of int to Kept
        By run; the folder of any other run is removed.
    min_age : float
        Seconds since a file was last written to; younger ones may be about to be named.
    """
    latest = time.time() - min_age
    folders = [Path(entry.path) for entry in _scan(home / "runs") if entry.is_dir(follow_symlinks=False)]
    unnamed = [Path(e.path) for e in _scan(home / "blobs") if e.is_file() and e.name not in blobs]
    removable: list[Path] = []
    for folder in folders:
        keep = runs.get(int(folder.name), Kept()) if folder.name.isdecimal() else Kept()
        if not keep.everything:
            unnamed += [path for path in _walk(folder) if not _stays(path.relative_to(folder), keep)]
            removable.append(folder)
    sizes = [size for path in unnamed if (size := _remove(path, latest)) is not None]
    for folder in removable:
        for inner, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # not empty, or gone
                Path(inner).rmdir()
    return len(sizes), sum(sizes)


def _stays(name: Path, keep: Kept) -> bool:
    return name.as_posix() in keep.names or (keep.work and name.parts[0] == "work")


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _walk(folder: Path) -> Iterator[Path]:
    for inner, _, names in os.walk(folder):
        yield from (Path(inner) / name for name in names)


def _remove(path: Path, latest: float) -> int | None:
    """Remove a file last written to before `latest`; return its size, or None where it stays or is gone."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    if stat.st_mtime > latest:
        return None
    path.unlink(missing_ok=True)
    return stat.st_size
