"""The interface of a step, and what its tasks yield: progress, points and files.

The constructor of a step reads all that the step needs, to the CPU. A step holds no connection, so that it
can be sent to another machine. A task depends on the step and its own name alone: the same task gives the
same files wherever and whenever it runs.
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
        Whether the files of the tasks can be deleted once all tasks are done.
    """

    summary: Mapping[str, Any]
    files: Sequence[File] = ()
    labels: Sequence[LabelEvent] = ()
    replaces_tasks: bool = False


class Step(ABC):
    """One step of the method for one run; subclasses load in `__init__(source, config, seed)`."""

    name: ClassVar[StepName]
    work: Path | None = None
    """Folder in which a task keeps what it needs to go on after a crash; None where there is none."""

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
        """Make the result from the tasks that are done: all of them, unless some were cancelled.

        Parameters
        ----------
        done : sequence of str
            Names of the tasks, one or more, in the order of `tasks`.
        read : Read
        """

    def suffices(self, done: Sequence[str]) -> bool:
        """Tell whether tasks make a result where the trainings of the others diverged; by default not.

        Parameters
        ----------
        done : sequence of str
            Names of the tasks that are done.
        """
        del done
        return False

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
    """Make a safetensors file of a run.

    Parameters
    ----------
    name : str
        Without the suffix `.safetensors`.
    tensors : mapping of str to Tensor
    **metadata : object
        Anything that JSON can hold.
    """
    return File(f"{name}.safetensors", dump_tensors(tensors, metadata=metadata))


def progress(loop: Loop[Result], *, points: bool = False) -> Generator[Item, None, Result]:
    """Yield the steps of a loop as progress, and also as points if wanted; return the loop's result.

    Parameters
    ----------
    loop : Loop
    points : bool
        Whether every step is also a point, with the number of the step as its key.
    """
    while True:
        try:
            step, of, metrics = next(loop)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        yield Progress(step, of, dict(metrics))
        if points:
            yield Point(str(step), dict(metrics))
