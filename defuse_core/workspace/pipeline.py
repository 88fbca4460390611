"""Tell where each step of a project stands, and which step comes next.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from defuse_core.workspace.configs import StepName
from defuse_core.workspace.runs import Run, Task, rounds
from defuse_core.workspace.workspace import Workspace

PIPELINE: tuple[StepName, ...] = (
    "classifier", "vae", "identify", "distill", "annotate", "correct", "evaluate", "report",
)  # fmt: skip
"""The steps in the order in which a project goes through them."""

StepState = Literal["missing", "queued", "running", "done", "stale", "failed", "cancelled", "interrupted"]


@dataclass(frozen=True)
class Stage:
    """Where one step of a project stands.

    Attributes
    ----------
    step : str
    state : StepState
        Of its newest run; "stale" where that is done, but a run it stands on was redone.
    run : Run or None
        Its newest run.
    share : float
        The part of its work that is done, in [0, 1].
    units : tuple of int
        Numbers of parts that are done, and of all: tasks, or steps if there is only one task.
    """

    step: StepName
    state: StepState
    run: Run | None = None
    share: float = 0.0
    units: tuple[int, int] = (0, 0)


def done_share(tasks: Sequence[Task]) -> float:
    """Return the share of a run's work that is done, in [0, 1]."""
    shares = [1.0 if t.status == "done" else t.step / t.steps if t.steps else 0.0 for t in tasks]
    return sum(shares) / len(shares) if shares else 0.0


def stages(workspace: Workspace, project_id: int) -> list[Stage]:
    """Return where every step of a project stands, in order, in the round of its newest classifier.

    Labels by people count as the step `annotate`.

    Parameters
    ----------
    workspace : Workspace
    project_id : int
    """
    runs = workspace.runs.of_project(project_id)
    of = rounds(runs)
    current = next((of[run.id] for run in reversed(runs) if run.step == "classifier"), 0)
    newest: dict[str, Run] = {run.step: run for run in runs if run.step == "vae" or of[run.id] == current}
    pipeline = [
        stage_of(workspace, newest[step]) if step in newest else Stage(step, "missing") for step in PIPELINE
    ]
    return [_labelled_by_people(workspace, stage, newest) for stage in pipeline]


def stage_of(workspace: Workspace, run: Run) -> Stage:
    """Return where a step stands whose newest run this is.

    Parameters
    ----------
    workspace : Workspace
    run : Run
    """
    state: StepState = "stale" if run.stale and run.status == "done" else run.status
    tasks = workspace.runs.tasks(run.id) if run.live else []
    share = done_share(tasks) if run.live else float(run.status == "done")
    units = sum(task.status == "done" for task in tasks), len(tasks)
    if len(tasks) == 1:
        units = tasks[0].step, tasks[0].steps
    return Stage(run.step, state, run, share, units)  # type: ignore[arg-type]  # runs are of known steps


def _labelled_by_people(workspace: Workspace, stage: Stage, newest: dict[str, Run]) -> Stage:
    regions = newest.get("distill")
    if stage.step != "annotate" or stage.run is not None or regions is None:
        return stage
    labelled = bool(workspace.annotations.counting(regions.id))
    return Stage("annotate", "done", None, 1.0) if labelled else stage


def next_step(found: Sequence[Stage]) -> StepName | None:
    """Return the first step that is not done, or None where all are, or one is under way."""
    if any(stage.state in ("queued", "running") for stage in found):
        return None
    return next((stage.step for stage in found if stage.state != "done"), None)


SECOND_ROUND: tuple[StepName, ...] = ("classifier", "identify", "distill")
"""Steps that are run again on a corrected classifier."""


def next_round(workspace: Workspace, run: Run) -> dict[str, Run]:
    """Return the newest runs of the second round after a correction, by step; empty where there is none.

    A search with another generator than the first round's is left out.

    Parameters
    ----------
    workspace : Workspace
    run : Run
        Of the step correct.
    """
    runs = workspace.runs.of_project(run.project_id)
    mine = [r for r in runs if r.step == "classifier" and r.config["weights"] == f"corrected:{run.id}"]
    if not mine:
        return {}
    last, generator = {"classifier": mine[-1]}, workspace.runs.ancestry(run.id)["vae"].id
    for step, ground in zip(SECOND_ROUND[1:], SECOND_ROUND, strict=False):
        standing = [r for r in runs if r.step == step and ground in last and last[ground].id in r.upstream]
        standing = [r for r in standing if step != "identify" or generator in r.upstream]
        if standing:
            last[step] = standing[-1]
    return last


def searched_lam(classifier: Run, run: Run) -> float:
    """Return the λ whose classifier a second round searched; another one may be chosen now.

    Parameters
    ----------
    classifier, run : Run
        The classifier of the second round, and the correct run before it.
    """
    point = classifier.summary.get("corrected") or run.summary["corrected"]["chosen"]
    return float(point["lam"])
