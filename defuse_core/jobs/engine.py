"""Where tasks run: in the runner's own process one after another, or on a Ray cluster.

An engine yields what the tasks yield, with the name of the task, and how each ended. It stores nothing:
the runner does that.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from defuse_core.base.errors import DivergenceError
from defuse_core.steps.base import Item, Step


@dataclass(frozen=True)
class Started:
    """A task begins."""


@dataclass(frozen=True)
class Ended:
    """A task is over; `error` says why it failed, `diverged` that its training did.

    A diverged task fails again however often it is tried, so a step may do without it.
    """

    status: Literal["done", "failed", "cancelled"]
    error: str | None = None
    diverged: bool = False


TaskEvent = tuple[str, Item | Started | Ended]
Cancelled = Callable[[], frozenset[str]]
"""Returns the names of the tasks to cancel; it is called at every step."""


class Engine(Protocol):
    """Runs the tasks of a step."""

    def run(self, step: Step, tasks: Sequence[str], cancelled: Cancelled) -> Iterator[TaskEvent]:
        """Yield what the tasks yield; each begins with `Started` and finishes with `Ended`.

        Parameters
        ----------
        step : Step
        tasks : sequence of str
        cancelled : Cancelled
        """


class LocalEngine:
    """Runs one task after another, in this process, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def run(self, step: Step, tasks: Sequence[str], cancelled: Cancelled) -> Iterator[TaskEvent]:
        """Run the tasks in order; the others run even if one fails.

        Parameters
        ----------
        step : Step
        tasks : sequence of str
        cancelled : Cancelled
        """
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
    """Run a task and say how it ended; ValueError and RuntimeError fail the task, others are raised.

    Parameters
    ----------
    step : Step
    task : str
    """
    try:
        yield from step.run(task)
    except (ValueError, RuntimeError) as error:
        traceback.print_exc()  # into the log
        yield Ended("failed", f"{error}", diverged=isinstance(error, DivergenceError))
    else:
        yield Ended("done")
