"""Compare the runs of a manifest with their replay.

Files are compared by checksum, safetensors by their content; numbers of summaries and of results.json
one by one, exactly. Seconds, paths, and numbers of runs and answers are not compared, since they belong to
one workspace. Nor are the checksums of files that hold such values, or a date. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defuse_core.workspace.manifest.models import MadeFile, MadeRun, Manifest
from defuse_core.workspace.manifest.writing import (
    RESULTS,
    compared,
    library_versions,
    machine,
    read_results,
    tensors_digest,
)
from defuse_core.workspace.runs import Artifact, Run
from defuse_core.workspace.workspace import Workspace

_DATED = (RESULTS, "manifest.json", "report.html", ".svg")
"""Endings of files that hold times or paths; results.json is compared by its numbers."""


@dataclass(frozen=True)
class Difference:
    """A value that has changed; `path` says where it stands, such as results.before.test."""

    path: str
    was: Any
    now: Any

    @property
    def size(self) -> float:
        """|now - was|; infinite where one of them is no number."""
        numbers = [v for v in (self.was, self.now) if isinstance(v, int | float) and not isinstance(v, bool)]
        return abs(numbers[1] - numbers[0]) if len(numbers) == 2 else math.inf


@dataclass(frozen=True)
class RunComparison:
    """One run, in the manifest and replayed.

    Attributes
    ----------
    step : str
    run : int
        Number of the new run.
    recorded : bool
        False if the manifest was written before this run was done: nothing is compared.
    equal, differ, missing, new, uncompared : tuple of str
        Names of files: with equal content, with other content, only in the manifest, only in the new
        run, and those that hold times or paths.
    values : tuple of Difference
    """

    step: str
    run: int
    recorded: bool = True
    equal: tuple[str, ...] = ()
    differ: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()
    values: tuple[Difference, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.differ or self.missing or self.new or self.values)


@dataclass(frozen=True)
class Comparison:
    """All runs, and what may explain differences: versions, devices, threads."""

    runs: tuple[RunComparison, ...]
    reasons: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs; reasons alone are no difference."""
        return all(run.same for run in self.runs)

    @property
    def largest(self) -> Difference | None:
        """The largest difference between two numbers; None where there is none."""
        numeric = [value for run in self.runs for value in run.values if math.isfinite(value.size)]
        return max(numeric, key=lambda value: value.size, default=None)


def compare(workspace: Workspace, manifest: Manifest, runs: Sequence[Run]) -> Comparison:
    """Compare the runs of a manifest with their replay, in the same order.

    Parameters
    ----------
    workspace : Workspace
        Of the new runs.
    manifest : Manifest
    runs : sequence of Run
        Done; as many as the manifest has, or the first of these.
    """
    pairs = list(zip(manifest.runs, runs, strict=False))
    reasons = [
        *_changes(manifest.versions, library_versions()),
        *_changes(manifest.machine, machine()),
        *(reason for original, run in pairs for reason in _reasons(original, run)),
    ]
    return Comparison(
        tuple(_compare_run(workspace, original, run) for original, run in pairs),
        tuple(dict.fromkeys(reasons)),
    )


def differences(was: Any, now: Any) -> Iterator[Difference]:
    """Yield the differences between two JSON values, leaf by leaf, of what `compared` keeps.

    Parameters
    ----------
    was, now : JSON value

    Examples
    --------
    >>> [d] = differences({"a": [1, 0.5], "seconds": 1}, {"a": [1.0, 0.25], "seconds": 2})
    >>> d.path, d.was, d.now, d.size
    ('a.1', 0.5, 0.25, 0.25)
    """
    yield from _walk(compared(was), compared(now), "")


def _walk(was: Any, now: Any, path: str) -> Iterator[Difference]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            yield from _walk(was.get(key), now.get(key), f"{path}.{key}".removeprefix("."))
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for place, pair in enumerate(zip(was, now, strict=True)):
            yield from _walk(*pair, f"{path}.{place}".removeprefix("."))
    elif was != now:
        yield Difference(path, was, now)


def _compare_run(workspace: Workspace, original: MadeRun, run: Run) -> RunComparison:
    if not original.done:
        return RunComparison(run.step, run.id, recorded=False)
    before, now = {file.name: file for file in original.files}, workspace.runs.artifacts(run.id)
    dated = [name for name in before if name in now and name.endswith(_DATED)]
    shared = [name for name in before if name in now and name not in dated]
    equal = [name for name in shared if _same_file(workspace, run, before[name], now[name])]
    values = differences(
        {**original.summary, "results": original.results or original.summary.get("results")},
        {**run.summary, "results": read_results(workspace, run) or run.summary.get("results")},
    )
    return RunComparison(
        run.step,
        run.id,
        equal=tuple(equal),
        differ=tuple(name for name in shared if name not in equal),
        missing=tuple(name for name in before if name not in now),
        new=tuple(name for name in now if name not in before),
        uncompared=tuple(dated),
        values=tuple(values),
    )


def _same_file(workspace: Workspace, run: Run, before: MadeFile, now: Artifact) -> bool:
    if before.sha256 == now.sha256:
        return True
    if before.content is None:
        return False
    return tensors_digest(workspace.artifact_path(run.id, now.name)) == before.content


def _reasons(original: MadeRun, run: Run) -> list[str]:
    """What was different when a run was replayed."""
    device, was = run.record.get("device", {}), original.found
    reasons = [
        *_changes(was.versions, run.record.get("versions", {})),
        *_changes({"device": was.device.get("name")}, {"device": device.get("name")}),
        *_changes({"threads": was.threads}, {"threads": run.record.get("threads")}),
    ]
    if original.stale:
        reasons.append(f"{run.step}: what it stood on had been redone after it")
    left_out = original.summary.get("missing")
    if isinstance(left_out, list):
        reasons.append(f"{run.step}: {', '.join(map(str, left_out))} had been cancelled or had diverged")
    return reasons


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} {was[key]} then, {now.get(key)} now"
        for key in was
        if was[key] is not None and was[key] != now.get(key)
    ]
