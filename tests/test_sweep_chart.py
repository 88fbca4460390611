"""A sweep as figures: every stored point is drawn where it was measured, and a click finds it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from dashboard.correct.form import Speeds, read_lambdas, sweep_seconds
from dashboard.correct.sweep_chart import Drawn, over_lambda, tradeoff
from dashboard.shared.change_chart import before_after
from dashboard.shared.charts import GREY, ORANGE, RED
from defuse_core.base.intervals import Interval
from defuse_core.report.sweep import (
    Answers,
    Change,
    Measured,
    Sweep,
    by_lambda,
    changes,
    make_sweep,
    tell_choice,
)
from defuse_core.workspace.runs import Event, Resources, Run, Task
from tests.apps import NASTY
from tests.test_charts import all_text

Json = dict[str, Any]
LAMBDAS = (0.0, 1e-10, 0.01, 1.0, 1000.0)


def score(estimate: float, n: int = 100) -> Interval:
    return Interval(estimate, estimate - 0.05, min(1.0, estimate + 0.04), n)


def measured(task: str, lam: float | None, repeat: int = 0, *, base: float = 0.5, **without: Any) -> Measured:
    """A point whose numbers are all different, and its own."""
    at = 0.0 if lam is None else np.log10(lam + 1e-11) / 100
    scores = {
        name: score(base + at + shift + 0.01 * repeat)
        for name, shift in (("test", 0.4), ("validation", 0.41), ("region", 0.2), ("held_out", 0.1))
        if without.get(name, True)
    }
    epoch = 0 if lam is None else 2
    return Measured(task, lam, repeat, epoch, 0.9 + at, 0.8 + at, scores, 3 if epoch else None, epoch or None)


def a_sweep(*, repeats: int = 1, chosen: str | None = "lam=1", **without: Any) -> Sweep:
    points = [
        measured(f"lam={lam:g}" + (f"/repeat={r}" if r else ""), lam, r, **without)
        for lam in LAMBDAS
        for r in range(repeats)
    ]
    baseline = [measured(f"baseline/lam={lam:g}", lam, base=0.3, **without) for lam in (0.1, 10.0)]
    return Sweep(measured("before", None, base=0.25, **without), points, baseline, chosen)


def as_dict(drawn: Drawn) -> Json:
    read: Json = json.loads(drawn.figure.to_json())
    return read


def traces(drawn: Drawn) -> dict[str, Json]:
    return {trace["name"]: trace for trace in as_dict(drawn)["data"]}


def estimates(points: Sequence[Measured], name: str) -> list[float]:
    return [point.scores[name].estimate for point in points]


# Figure 5


def test_the_points_of_figure_5_are_those_stored() -> None:
    sweep = a_sweep()
    shown = traces(tradeoff(sweep))
    for name, x, y, points in (
        ("test", "region", "test", sweep.points),
        ("validation", "region", "validation", sweep.points),
        ("test, over regions held out", "held_out", "test", sweep.points),
        ("baseline, test", "region", "test", sweep.baseline),
    ):
        assert shown[name]["x"] == estimates(points, x)
        assert shown[name]["y"] == estimates(points, y)
    assert sweep.before is not None
    before = sweep.before.scores
    assert shown["before"]["x"] == [before["region"].estimate] * 2
    assert shown["before"]["y"] == [before["test"].estimate, before["validation"].estimate]
    assert shown["before"]["marker"]["color"] == GREY
    assert shown["baseline, test"]["marker"]["color"] == ORANGE
    chosen = sweep.by_task["lam=1"].scores
    assert (shown["chosen"]["x"], shown["chosen"]["y"]) == (
        [chosen["region"].estimate],
        [chosen["test"].estimate],
    )
    assert shown["chosen"]["marker"]["color"] == RED
    symbols = [json.dumps(trace["marker"]["symbol"]) for name, trace in shown.items() if name != "chosen"]
    assert len({*symbols}) == len(symbols)  # told by more than colour


def test_what_was_not_measured_is_not_drawn() -> None:
    whole = a_sweep(chosen=None, validation=False, held_out=False)
    shown = traces(tradeoff(Sweep(None, whole.points, [], None)))
    assert list(shown) == ["test"]
    assert [t["name"] for t in as_dict(over_lambda(Sweep(None, whole.points, [], None)))["data"]] == [
        "regions tuned on",
        "test",
    ]
    assert not as_dict(over_lambda(Sweep(None, whole.points, [], None)))["layout"].get("shapes")
    before = Sweep(measured("before", None), [], [], None)  # the first second of a run
    assert list(traces(tradeoff(before))) == ["before"]
    assert not over_lambda(before).figure.data


def test_repeats_are_a_mean_and_a_range() -> None:
    sweep = a_sweep(repeats=3)
    shown = traces(tradeoff(sweep))["test"]
    groups = np.array([estimates(group, "region") for group in by_lambda(sweep.points)])
    assert groups.shape == (len(LAMBDAS), 3)
    np.testing.assert_allclose(shown["x"], groups.mean(1))
    bars = shown["error_x"]
    np.testing.assert_allclose(np.array(shown["x"]) - bars["arrayminus"], groups.min(1))
    np.testing.assert_allclose(np.array(shown["x"]) + bars["array"], groups.max(1))
    assert "error_x" not in traces(tradeoff(a_sweep()))["test"]
    assert "3 seeds" in shown["hovertext"][0]


def test_the_pointer_is_told_intervals_and_n() -> None:
    sweep = a_sweep()
    (told,) = [text for text in traces(tradeoff(sweep))["test"]["hovertext"] if "λ = 0.01," in text]
    point = sweep.by_task["lam=0.01"]
    for name, label in (("test", "test"), ("held_out", "regions held out")):
        s = point.scores[name]
        assert f"{label} {s.estimate:.3f} [{s.low:.3f}, {s.high:.3f}], n = 100" in told
    assert "3 fixed, 2 broken" in told


# Over λ


def test_over_lambda_both_accuracies_lie_at_their_lambda() -> None:
    sweep = a_sweep()
    drawn = over_lambda(sweep)
    shown = traces(drawn)
    at = [1e-11, *LAMBDAS[1:]]  # 0 has no logarithm: a decade left of the smallest
    for name, part in (
        ("regions tuned on", "region"),
        ("regions held out", "held_out"),
        ("test", "test"),
        ("validation", "validation"),
    ):
        assert shown[name]["x"] == pytest.approx(at)
        assert shown[name]["y"] == estimates(sweep.points, part)
    axes = {shown[name]["yaxis"] for name in ("regions tuned on", "regions held out")}
    assert axes == {"y"}
    assert {shown[name]["yaxis"] for name in ("test", "validation")} == {"y2"}
    layout = as_dict(drawn)["layout"]
    ticks = dict(zip(layout["xaxis2"]["tickvals"], layout["xaxis2"]["ticktext"], strict=True))
    assert layout["xaxis2"]["type"] == "log"
    assert ticks[min(ticks)] == "0"
    assert min(ticks) == pytest.approx(at[0])
    assert list(ticks.values()).count("0") == 1
    low, high = layout["xaxis2"]["range"]
    assert low < np.log10(at[0])
    assert np.log10(at[-1]) < high
    baseline = [trace for trace in as_dict(drawn)["data"] if trace["name"] == "baseline"]
    assert [trace["y"] for trace in baseline] == [
        estimates(sweep.baseline, "region"),
        estimates(sweep.baseline, "test"),
    ]
    assert [trace["x"] for trace in baseline] == [[0.1, 10.0]] * 2


def test_before_and_the_chosen_lambda_are_lines() -> None:
    sweep = a_sweep()
    assert sweep.before is not None
    shapes = as_dict(over_lambda(sweep))["layout"]["shapes"]
    levels = {shape["y0"] for shape in shapes if shape["y0"] == shape["y1"]}
    assert levels == {found.estimate for found in sweep.before.scores.values()}
    assert {shape["x0"] for shape in shapes if shape["line"].get("color") == RED} == {1.0}


def test_seeds_make_a_band_around_the_mean() -> None:
    sweep = a_sweep(repeats=3)
    shown = traces(over_lambda(sweep))
    values = np.array([estimates(group, "test") for group in by_lambda(sweep.points)])
    band, n = shown["test band"]["y"], len(LAMBDAS)
    np.testing.assert_allclose(band[:n], values.max(1))
    np.testing.assert_allclose(band[n:], values.min(1)[::-1])
    np.testing.assert_allclose(shown["test"]["y"], values.mean(1))
    assert not any(name.endswith("band") for name in traces(over_lambda(a_sweep())))


@pytest.mark.parametrize("lambdas", [(0.0,), (1.0,), (0.0, 5.0), (1e-10, 1000.0)])
def test_any_lambdas_have_an_axis(lambdas: tuple[float, ...]) -> None:
    sweep = Sweep(None, [measured(f"lam={lam:g}", lam) for lam in lambdas], [], None)
    axis = as_dict(over_lambda(sweep))["layout"]["xaxis2"]
    shown = traces(over_lambda(sweep))["test"]["x"]
    assert all(np.isfinite(axis["range"]))
    assert axis["range"][0] < np.log10(min(shown)) <= np.log10(max(shown)) < axis["range"][1]
    assert len(axis["tickvals"]) <= 9
    assert ("0" in axis["ticktext"]) == (0.0 in lambdas)


# Clicks


@pytest.mark.parametrize("draw", [tradeoff, over_lambda])
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_click_opens_the_lambda_it_hits(draw: Any, repeats: int) -> None:
    sweep = a_sweep(repeats=repeats)
    drawn: Drawn = draw(sweep)
    data = as_dict(drawn)["data"]
    assert len(drawn.tasks) == len(data)
    opened = set()
    for curve, trace in enumerate(data):
        assert "customdata" not in trace
        for place, told in enumerate(trace.get("hovertext", [])):
            task = drawn.opened([{"curve_number": curve, "point_index": place}])
            if trace["name"] == "before":
                assert task is None
                continue
            assert task is not None
            assert f"λ = {sweep.by_task[task].lam:g}, " in told
            assert task.startswith("baseline/") == trace["name"].startswith("baseline")
            opened.add(task)
    assert opened == {task for task in sweep.by_task if "repeat" not in task}


@pytest.mark.parametrize(
    "points",
    [
        [],
        [{}],
        [{"curve_number": 99, "point_index": 0}],
        [{"curve_number": 0, "point_index": 99}],
        [{"curve_number": -1, "point_index": -1}],
        [{"curve_number": "0", "point_index": None}],
    ],
)
def test_what_no_point_lies_at_opens_nothing(points: list[Mapping[str, Any]]) -> None:
    assert tradeoff(a_sweep()).opened(points) is None


@pytest.mark.parametrize("draw", [tradeoff, over_lambda])
def test_equal_sweeps_give_equal_bytes(draw: Any) -> None:
    assert draw(a_sweep()).figure.to_json() == draw(a_sweep()).figure.to_json()


# Before and after


def test_before_and_after_stand_in_one_row_with_their_intervals() -> None:
    rows = [Change("a", score(0.2), score(0.6)), Change(NASTY, score(0.3), score(0.7), held_out=True)]
    figure = json.loads(before_after(rows, title="By region").to_json())
    by_name = {trace.get("name"): trace for trace in figure["data"]}
    assert (by_name["before"]["x"], by_name["before"]["y"]) == ([0.2, 0.3], [0, 1])
    assert (by_name["after"]["x"], by_name["after"]["y"]) == ([0.6], [0])
    assert (by_name["after, region held out"]["x"], by_name["after, region held out"]["y"]) == ([0.7], [1])
    np.testing.assert_allclose(by_name["before"]["error_x"]["array"], [0.04, 0.04])
    np.testing.assert_allclose(by_name["before"]["error_x"]["arrayminus"], [0.05, 0.05])
    assert "n = 100" in by_name["after"]["hovertext"][0]
    assert not any("<img" in text for text in all_text(before_after(rows, title="By region")))


def test_changes_are_counted_by_group() -> None:
    labels, before, after = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 0, 0]), np.array([0, 0, 0, 1, 0])
    answers = Answers(labels, before, after, np.full(5, -1))
    assert answers.fixed.tolist() == [1, 3]
    assert answers.broken.tolist() == [2]
    worst, best = changes(answers, labels, {0: "zero", 1: "one"}, held_out=False)
    assert (worst.name, worst.before.estimate, worst.after.estimate, worst.after.n) == (
        "one",
        1 / 3,
        1 / 3,
        3,
    )
    assert (best.name, best.before.estimate, best.after.estimate) == ("zero", 0.5, 1.0)


# Reading


def a_run(config: Json, summary: Json, status: Any = "done") -> Run:
    return Run(
        1, 1, "correct", config, 0, Resources(), status, None, {"summary": summary}, 0, 0, 0, 0, 0, None,
        True, 0, 0, 0,
    )  # fmt: skip


def an_event(task: str, lam: float | None, **more: Any) -> Event:
    data = {"lam": lam, "epoch": 1, "selection": 0.9, "tuned": 0.8, "test": [0.9, 0.8, 1.0, 10], **more}
    return Event(1, "point", task, task, data, 0.0)


def test_a_sweep_is_ordered_and_leaves_out_what_was_cancelled() -> None:
    events = [
        an_event("lam=1", 1.0, repeat=0),
        an_event("lam=1/repeat=1", 1.0, repeat=1),
        an_event("lam=0.1", 0.1, repeat=0),
        an_event("lam=5", 5.0, repeat=0),
        an_event("baseline/lam=1", 1.0, repeat=0),
        an_event("before", None, repeat=0),
    ]
    tasks = [Task(event.task, "done", 1, 1) for event in events[:3]] + [Task("lam=5", "cancelled", 1, 1)]
    run = a_run({}, {"corrected": {"chosen": {"lam": 1.0, "repeat": 0}}})
    sweep = make_sweep(run, events, tasks)
    assert [point.task for point in sweep.points] == ["lam=0.1", "lam=1", "lam=1/repeat=1"]
    assert [point.task for point in sweep.baseline] == ["baseline/lam=1"]
    assert sweep.before is not None
    assert sweep.chosen == "lam=1"
    live = a_run({}, run.summary, "running")  # goes on with more λ: nothing is chosen yet
    assert make_sweep(live, events, tasks).chosen is None


CONFIG: Json = {"rule": "regions", "max_loss": 0.01}


@pytest.mark.parametrize(
    ("config", "before", "told"),
    [
        (CONFIG, 0.905, "2 of 5 λ keep a validation accuracy of 0.8950 or more (0.9050 before"),
        ({**CONFIG, "rule": "paper"}, 0.85, "is chosen by the paper's rule: the best validation accuracy"),
        (CONFIG, 0.99, "by the paper's rule, since no λ keeps a validation accuracy of 0.9800"),
    ],
)
def test_the_rule_is_told_with_its_numbers(config: Json, before: float, told: str) -> None:
    text = tell_choice(a_run(config, {"before_selection": before}), a_sweep())
    assert text.startswith("**λ = 1** is chosen")
    assert told in text
    assert ("0.8000" in text) == ("keep a" in text)  # on the draws tuned on, only where that decides


def test_without_a_validation_split_the_training_images_choose() -> None:
    sweep = a_sweep(validation=False)
    assert "a training accuracy" in tell_choice(a_run(CONFIG, {"before_selection": 0.9}), sweep)


# What it will cost


def test_the_estimate_counts_what_passes_through_the_network() -> None:
    config = {
        "correction": {
            "lambdas": ["0.1", "1"], "epochs": 3, "batch_size": 10, "instances_per_region": 20,
            "held_out_share": 0.5,
        },
        "baseline_lambdas": ["1"], "n_seeds": 2,
    }  # fmt: skip
    sizes = {"train": 100, "test": 50, "validation": 30}
    found = sweep_seconds(sizes, Speeds(10.0, 100.0), config, n_regions=4, n_single=7)
    measuring = (50 + 30 + 4 * 20) / 100
    of_regions = 3 * ((100 + 2 * 20) / 10 + 30 / 100) + measuring
    of_baseline = 3 * ((100 + 10) / 10 + 30 / 100) + measuring  # seven, but one a step
    assert found == pytest.approx(2 * (2 * of_regions + of_baseline))
    without = sweep_seconds(
        {"train": 100, "test": 50}, Speeds(10.0, 100.0), {**config, "n_seeds": 1, "baseline_lambdas": []},
        n_regions=1, n_single=0,
    )  # fmt: skip
    assert without == pytest.approx(2 * (3 * ((100 + 20) / 10 + 100 / 100) + (50 + 20) / 100))
    few = {**config, "correction": {**config["correction"], "max_images": 40}, "baseline_lambdas": []}
    sampled = sweep_seconds(sizes, Speeds(10.0, 100.0), few, n_regions=4, n_single=0)
    assert sampled == pytest.approx(2 * 2 * (3 * ((40 + 2 * 20) / 10 + 30 / 100) + measuring))


@pytest.mark.parametrize(
    ("typed", "read"),
    [("", []), (" ,, ", []), ("1", ["1"]), ("0.1,1 ; 10", ["0.1", "1", "10"]), ("x", ["x"])],
)
def test_typed_lambdas_are_taken_apart(typed: str, read: list[str]) -> None:
    assert read_lambdas(typed) == read
