"""What a step is: config and upstream runs in, tasks that yield progress, points and files, a summary out.

A step reads all it needs when it is made, on the CPU, and holds no connection, so that it can be
sent to another machine. A task depends on the step, its own name and nothing else: the same task
gives the same files wherever and whenever it runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from defuse_core.base.checkpoints import dump_tensors
from defuse_core.base.intervals import Interval
from defuse_core.base.runtime import Loop, Result
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.labels import LabelEvent


@dataclass(frozen=True)
class Progress:
    """Where a task stands: `step` of `of`, with numbers worth showing."""

    step: int
    of: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A point of a live chart; a later one of the same key takes its place."""

    key: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class File:
    """A file that a task leaves behind, by its name within the run."""

    name: str
    content: bytes


Item = Progress | Point | File

Read = Callable[[str], tuple[dict[str, Tensor], dict[str, Any]]]
"""Reads tensors and metadata of a file of the run by name."""


@dataclass(frozen=True)
class Merged:
    """What a step makes of its tasks.

    Attributes
    ----------
    summary : mapping
        Numbers for tables; JSON-able.
    files : sequence of File
    labels : sequence of LabelEvent
        Labels to store with the distill run.
    replaces_tasks : bool
        Whether the files of the tasks can go once all of them are done.
    """

    summary: Mapping[str, Any]
    files: Sequence[File] = ()
    labels: Sequence[LabelEvent] = ()
    replaces_tasks: bool = False


class Step(ABC):
    """One step of the method for one run; subclasses load in `__init__(source, config, seed)`."""

    name: ClassVar[StepName]
    work: Path | None = None
    """Folder for what a task needs to go on after a crash; None where there is no such folder."""

    @property
    def files(self) -> Sequence[File]:
        """Files to store before the tasks begin."""
        return ()

    @abstractmethod
    def tasks(self) -> list[str]:
        """Names of the tasks, in order."""

    @abstractmethod
    def run(self, task: str) -> Iterator[Item]:
        """Do one task, on the device of `to`."""

    @abstractmethod
    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Make the result of the tasks that are done: all, unless some were cancelled."""

    def to(self, device: torch.device) -> None:
        """Move all networks that the step holds to a device."""
        for value in vars(self).values():
            for module in value.values() if isinstance(value, dict) else (value,):
                if isinstance(module, nn.Module):
                    module.to(device)


def interval_json(interval: Interval) -> list[float]:
    """Write an interval as a list; `Interval(*…)` reads it."""
    return [interval.estimate, interval.low, interval.high, interval.n]


def tensors_file(name: str, tensors: Mapping[str, Tensor], **metadata: object) -> File:
    """Make a safetensors file of a run."""
    return File(f"{name}.safetensors", dump_tensors(tensors, metadata=metadata))


def progress(loop: Loop[Result], *, points: bool = False) -> Generator[Item, None, Result]:
    """Pass a loop's steps on as progress, and as points where asked; returns the loop's result."""
    while True:
        try:
            step, of, metrics = next(loop)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        yield Progress(step, of, dict(metrics))
        if points:
            yield Point(str(step), dict(metrics))
