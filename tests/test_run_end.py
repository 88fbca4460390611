"""How a run ends where its last write fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from defuse_core.base.limits import RESERVE_PIECE_BYTES
from defuse_core.jobs import runner
from defuse_core.steps.base import Merged
from defuse_core.workspace import reserve as space
from defuse_core.workspace.database import DiskFullError, WorkspaceError
from defuse_core.workspace.reserve import Reserve
from defuse_core.workspace.run_store import RunStore
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Workspace
from tests.in_process import add_run
from tests.workspaces import Place

ABOUT = {
    "source": "digits", "image_size": None, "fingerprint": "ab" * 32, "class_names": ["a", "b"],
    "image_shape": [1, 8, 8], "sizes": {"train": 10, "test": 2},
}  # fmt: skip


def end_with(error: Exception, home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Execute a run whose last write raises this."""
    workspace = Workspace(home)
    place = Place(workspace, workspace.create_project("small", dataset=ABOUT))
    run = add_run(place, "inspect")
    workspace.run_folder(run.id).mkdir(parents=True)
    workspace.runs.hand_over(run.id, os.getpid())
    monkeypatch.setattr(runner.Guard, "start", lambda _: workspace.runs.start(run.id, {}))
    monkeypatch.setattr(runner, "_compute", lambda *_: (Merged({"found": 1}), []))
    finish = RunStore.finish

    def fails(self: RunStore, run_id: int, status: Any, **result: Any) -> None:
        if status == "done":
            raise error
        finish(self, run_id, status, **result)

    monkeypatch.setattr(RunStore, "finish", fails)
    assert runner.main(home, run.id) == 1
    return place.get(run)


@pytest.mark.parametrize(
    "error",
    [
        DiskFullError("defuse.sqlite: database or disk is full; free disk space, then resume"),
        WorkspaceError("a project holds at most 200,000 labels; create another project for them"),
    ],
)
def test_a_run_whose_results_cannot_be_stored_says_why(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = end_with(error, tmp_path, monkeypatch)
    assert (ended.status, ended.error) == ("failed", str(error))


def test_as_much_of_the_reserve_is_given_up_as_a_change_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.keep()
    pieces = (tmp_path / "reserve").stat().st_size // RESERVE_PIECE_BYTES

    def allocate(_: int, size: int) -> None:
        path = tmp_path / "reserve"
        kept = path.stat().st_size // RESERVE_PIECE_BYTES if path.exists() else 0
        if size > (pieces - kept) * RESERVE_PIECE_BYTES:  # nothing else is free
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(space, "_allocate", allocate)
    assert reserve.make_room()
    assert (tmp_path / "reserve").stat().st_size == (pieces - 1) * RESERVE_PIECE_BYTES
    assert reserve.make_room(2 * RESERVE_PIECE_BYTES + 1)
    assert (tmp_path / "reserve").stat().st_size == (pieces - 3) * RESERVE_PIECE_BYTES
