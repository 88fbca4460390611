"""The time that a run still takes: it counts down, and is not told while nothing moves."""

from __future__ import annotations

import pytest

from dashboard.shell import jobs_panel
from dashboard.shell.pace import Pace, seconds_left
from defuse_core.workspace.pipeline import Stage
from tests.in_process import add_run, begin
from tests.workspaces import Place


def test_time_left_counts_down_and_never_up() -> None:
    pace = Pace(0.4, at=1000.0)
    left = [seconds_left(pace, spent=40.0, interval=10.0, now=1000.0 + t) for t in range(0, 30, 5)]
    assert left[:5] == [60.0, 55.0, 50.0, 45.0, 40.0]  # up to two parts' time
    assert left[5] is None
    assert pace.then(0.4, 1010.0) is pace  # seen again where it was
    assert pace.then(0.5, 1010.0) == Pace(0.5, 1010.0)


@pytest.mark.parametrize(
    ("share", "spent", "still"), [(0.0, 5.0, 0.0), (0.5, 0.0, 0.0), (0.9, 90.0, 11.0), (0.5, 10.0, 6.0)]
)
def test_no_figure_while_nothing_moves(share: float, spent: float, still: float) -> None:
    assert seconds_left(Pace(share, at=0.0), spent=spent, interval=2.0, now=still) is None


def test_the_sidebar_tells_units_and_a_standstill(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(place, "correct")
    begin(place, run)
    run, clock, kept = place.get(run), [0.0], {}
    assert run.attempt_at is not None
    monkeypatch.setattr("dashboard.shell.jobs_panel.time.time", lambda: run.attempt_at + clock[0])
    monkeypatch.setattr(jobs_panel, "recall", kept.get)
    monkeypatch.setattr(jobs_panel, "remember", kept.__setitem__)

    def rate(share: float, done: int, at: float) -> str:
        clock[0] = at
        return jobs_panel._rate(Stage("correct", "running", run, share, (done, 10)))

    assert rate(0.0, 0, 1.0) == "starts"
    assert rate(0.2, 2, 20.0) == "2 of 10 trainings · about 80 s left"
    assert rate(0.2, 2, 30.0) == "2 of 10 trainings · about 70 s left"
    assert rate(0.2, 2, 60.0) == "2 of 10 trainings · no progress for 40 s"
    assert rate(0.5, 5, 100.0) == "5 of 10 trainings · about 2 min left".replace("2 min", "1.7 min")
