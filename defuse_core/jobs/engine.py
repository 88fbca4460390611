"""Where tasks run: in the runner's own process one after another, or on a Ray cluster.

An engine yields what tasks yield, with the task's name, and how each ended. It writes nothing: that
is the runner's part.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from defuse_core.steps.base import Item, Step


@dataclass(frozen=True)
class Started:
    """A task begins."""


@dataclass(frozen=True)
class Ended:
    """A task is over; `error` says why it failed."""

    status: Literal["done", "failed", "cancelled"]
    error: str | None = None


TaskEvent = tuple[str, Item | Started | Ended]
Cancelled = Callable[[], frozenset[str]]
"""Names of the tasks that are to be cancelled, asked at every step."""


class Engine(Protocol):
    """Runs the tasks of a step."""

    def run(self, step: Step, tasks: Sequence[str], cancelled: Cancelled) -> Iterator[TaskEvent]:
        """Yield what the tasks yield; each begins with `Started` and finishes with `Ended`."""


class LocalEngine:
    """One task after another, in this process, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def run(self, step: Step, tasks: Sequence[str], cancelled: Cancelled) -> Iterator[TaskEvent]:
        """Run the tasks in order; one that fails does not keep the others from running."""
        step.to(self._device)
        for task in tasks:
            if task in cancelled():
                yield task, Ended("cancelled")
                continue
            yield task, Started()
            for item in run_task(step, task):
                if task in cancelled():
                    item = Ended("cancelled")
                yield task, item
                if isinstance(item, Ended):
                    break


def run_task(step: Step, task: str) -> Iterator[Item | Ended]:
    """Do a task and say how it ended; an error of the method is the task's, others are the run's."""
    try:
        yield from step.run(task)
    except (ValueError, RuntimeError) as error:
        traceback.print_exc()  # into the log
        yield Ended("failed", f"{error}")
    else:
        yield Ended("done")
