"""Where a project's steps stand, against rows written by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.pipeline import PIPELINE, done_share, next_step, stages
from defuse_core.workspace.runs import Resources, Run, Task
from defuse_core.workspace.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "home")
    made.create_project("a", dataset={})
    return made


def begin(workspace: Workspace, step: str, *upstream: Run) -> Run:
    run = workspace.runs.add(
        1, step, {}, seed=0, resources=Resources(), upstream=[other.id for other in upstream]
    )
    workspace.runs.hand_over(run.id, os.getpid())
    workspace.runs.start(run.id, {})
    return workspace.runs.get(run.id)


def finish(workspace: Workspace, run: Run) -> Run:
    workspace.runs.finish(run.id, "done")
    return workspace.runs.get(run.id)


def states(workspace: Workspace) -> dict[str, str]:
    return {stage.step: stage.state for stage in stages(workspace, 1)}


def test_a_new_project_has_everything_before_it(workspace: Workspace) -> None:
    assert states(workspace) == dict.fromkeys(PIPELINE, "missing")
    assert next_step(stages(workspace, 1)) == "classifier"


def test_a_run_under_way_shows_its_share_and_leaves_nothing_to_do(workspace: Workspace) -> None:
    run = begin(workspace, "classifier")
    workspace.runs.plan_tasks(run.id, ["a", "b", "c", "d"])
    workspace.runs.finish_task(run.id, "a", "done")
    workspace.runs.report_progress(run.id, "b", 1, 2, {})
    stage = stages(workspace, 1)[0]
    assert (stage.state, stage.share) == ("running", (1 + 0.5) / 4)
    assert next_step(stages(workspace, 1)) is None
    workspace.runs.finish(run.id, "failed", error="no")
    assert next_step(stages(workspace, 1)) == "classifier"


def test_the_newest_run_of_a_step_counts_and_what_stood_on_the_old_one_is_stale(workspace: Workspace) -> None:
    classifier = finish(workspace, begin(workspace, "classifier"))
    vae = finish(workspace, begin(workspace, "vae"))
    search = finish(workspace, begin(workspace, "identify", classifier, vae))
    finish(workspace, begin(workspace, "distill", search))
    assert next_step(stages(workspace, 1)) == "annotate"
    finish(workspace, begin(workspace, "classifier"))
    found = states(workspace)
    assert (found["classifier"], found["identify"], found["distill"]) == ("done", "stale", "stale")
    assert next_step(stages(workspace, 1)) == "identify"


def test_labels_of_people_count_as_the_step(workspace: Workspace) -> None:
    regions = finish(workspace, begin(workspace, "distill"))
    assert states(workspace)["annotate"] == "missing"
    workspace.annotations.append(regions.id, [LabelEvent(0, "Ada", 1, 0)])
    assert states(workspace)["annotate"] == "done"
    workspace.annotations.undo(regions.id, "Ada")
    assert states(workspace)["annotate"] == "missing"


def test_shares_of_tasks() -> None:
    assert done_share([]) == 0
    assert done_share([Task("a", "running", 3, 4), Task("b", "queued", 0, 0)]) == 0.375
    assert done_share([Task("a", "done", 0, 0), Task("b", "done", 5, 5)]) == 1
