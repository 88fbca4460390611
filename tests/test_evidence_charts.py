"""Figures, tables and words of the page Evidence, against numbers worked out here."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from dashboard.evidence.charts import BINS, accuracies, bin_edges, controls, noises, novelty
from dashboard.evidence.tables import (
    accuracies_table,
    agreement_table,
    changes_table,
    noise_table,
    novelty_table,
    regions_table,
    scores_table,
)
from dashboard.shared.charts import KINDS
from dashboard.shared.figure_export import Export
from defuse_core.base.intervals import Interval
from defuse_core.report.evidence import (
    Evidence,
    Model,
    class_changes,
    control_rows,
    nearest_changes,
    region_changes,
    score,
    scores_of,
    tell_change,
    tell_control,
    tell_runs,
    tell_sizes,
    tell_tuning,
)
from tests.apps import NASTY
from tests.in_process import store_run
from tests.workspaces import Place

NAMES = ("row", "column", NASTY)


def wilson(right: int, n: int) -> list[float]:
    """An interval as results.json has it."""
    low, high = binomtest(right, n).proportion_ci(method="wilson")
    return [right / n, low, high, n]


def model(name: str, test: int, region: int) -> Model:
    row = {"test": wilson(test, 100), "region": wilson(region, 64), "validation": wilson(test // 2, 50)}
    return Model(name, scores_of(row))


CONTROLS = {
    "lam=0": {"test": wilson(93, 100), "region": wilson(20, 64)},
    "random": {
        "test": wilson(92, 100), "region": wilson(60, 64),
        "drawn": {"before": wilson(30, 64), "after": wilson(63, 64)},
    },
}  # fmt: skip
RESULTS: dict[str, Any] = {
    "defuse": {"lam": 0.1, "epoch": 2},
    "rule": "best selection accuracy",
    "baseline": {"lam": 1.0},
    "flips": {"fixed": 5, "broken": 2, "p": binomtest(5, 7).pvalue},
    "settings": {
        "correct": {
            "correction": {
                "epochs": 3, "optimizer": "adam", "learning_rate": 1e-3, "instances_per_region": 32,
            }
        }
    },
    "agreement": {"pairwise": 0.75},
    "held_out": {
        "regions": 1, "before": 0.25, "after": 0.5, "before_interval": wilson(8, 32)[1:3],
        "after_interval": wilson(16, 32)[1:3],
    },
    "by_region": [
        {"region_id": 4, "name": None, "label": 2, "tau": 0.5, "held_out": True, "before": wilson(8, 32),
         "after": wilson(16, 32), "baseline": wilson(9, 32)},
        {"region_id": 1, "name": "open", "label": 0, "tau": 0.25, "held_out": False, "before": wilson(10, 32),
         "after": wilson(32, 32), "baseline": None},
    ],
    "by_class": [
        {"class": "row", "before": wilson(30, 40), "after": wilson(31, 40)},
        {"class": "column", "before": wilson(20, 40), "after": wilson(25, 40)},
        {"class": NASTY, "before": [None, 0.0, 1.0, 0], "after": [None, 0.0, 1.0, 0]},
    ],
    "nearest": {
        "regions": [
            {"region_id": 1, "label": 0, "before": wilson(3, 5), "after": wilson(4, 5)},
            {"region_id": 4, "label": 2, "before": wilson(5, 5), "after": wilson(5, 5)},
        ],
        "pooled": {"before": wilson(8, 10), "after": wilson(9, 10)},
        "test": {"before": wilson(90, 100), "after": wilson(93, 100)},
    },
    "controls": CONTROLS,
}  # fmt: skip
FOUND = Evidence(
    RESULTS, [model("before", 90, 16), model("identified mistakes", 91, 30), model("Defuse", 93, 63)],
    {"pixels": {}, "latent": {}}, np.array([1.0, 1.0, 2 / 3, math.nan]), score(wilson(2, 3)),
)  # fmt: skip
DISTANCES = {
    "draws": np.random.default_rng(0).gamma(9.0, 0.5, 400),
    "real": np.random.default_rng(1).gamma(12.0, 0.5, 30),
}
NOISE = {
    "raw": {
        "images": 4,
        "codes": 400,
        "misclassified": 50,
        "dataset": 1,
        "reconstruction": 2,
        "perturbation": 30,
    },
    "centred": {
        "images": 4,
        "codes": 400,
        "misclassified": 5,
        "dataset": 1,
        "reconstruction": 4,
        "perturbation": 0,
    },
}


def test_figure_4_has_a_bar_with_its_interval_for_every_model_and_set() -> None:
    figure = accuracies(FOUND.models)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [bar.name for bar in bars] == ["before", "identified mistakes", "Defuse"]
    assert list(figure.layout.xaxis.ticktext) == ["validation", "test", "regions"]
    for bar, (right_test, right_region) in zip(bars, ((90, 16), (91, 30), (93, 63)), strict=True):
        expected = [wilson(right_test // 2, 50), wilson(right_test, 100), wilson(right_region, 64)]
        np.testing.assert_allclose(bar.y, [e[0] for e in expected])
        np.testing.assert_allclose(np.add(bar.y, bar.error_y.array), [e[2] for e in expected])
        np.testing.assert_allclose(np.subtract(bar.y, bar.error_y.arrayminus), [e[1] for e in expected])
        assert "n = 64" in bar.hovertext[2]
    starts = np.sort(np.concatenate([np.subtract(bar.x, bar.width / 2) for bar in bars]))
    assert (np.diff(starts) >= bars[0].width).all()  # no bar hides another


def test_figure_4_leaves_out_what_not_all_were_measured_on() -> None:
    some = [Model(m.name, {k: v for k, v in m.scores.items() if k != "validation"}) for m in FOUND.models]
    assert list(accuracies(some).layout.xaxis.ticktext) == ["test", "regions"]
    assert list(accuracies([some[0], FOUND.models[2]]).layout.xaxis.ticktext) == ["test", "regions"]


def test_controls_lie_between_before_and_what_they_are_compared_with() -> None:
    rows = control_rows(FOUND)
    assert [row.name for row in rows] == [
        "before", "λ = 0", "random regions", "identified mistakes", "Defuse",
    ]  # fmt: skip
    figure = controls(rows)
    right = {(trace.name, trace.xaxis): trace.x[0] for trace in figure.data}
    assert right["λ = 0", "x"] == 20 / 64
    assert right["λ = 0", "x2"] == 0.93
    assert right["random regions", "x"] == 60 / 64
    assert list(figure.layout.yaxis.ticktext) == [row.name for row in rows]


def test_a_control_says_what_it_rules_out_and_what_it_does_not() -> None:
    assert binomtest(20, 64).proportion_ci(method="wilson").high < wilson(63, 64)[1]
    assert "That rules out that **more training alone**" in tell_control("lam=0", FOUND)
    random = tell_control("random", FOUND)  # 60 of 64 against 63: the intervals overlap
    assert "may do as well" in random
    assert "46.9\xa0% → 98.4\xa0%" in random
    without = Evidence(
        {**RESULTS, "controls": {"random": CONTROLS["random"]}}, FOUND.models, {}, FOUND.share, None
    )
    assert "not measured" in tell_control("lam=0", without)
    assert len(control_rows(without)) == 4


@pytest.mark.parametrize(("fixed", "broken"), [(12, 5), (30, 5), (5, 30), (4, 4), (0, 0)])
def test_the_change_is_told_as_mcnemar_has_it(fixed: int, broken: int) -> None:
    p = binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    told = tell_change(fixed, broken, p)
    assert ("could be chance" in told) == (p >= 0.05 and fixed != broken)
    assert ("got better" in told) == (p < 0.05 and fixed > broken)
    assert ("got worse" in told) == (p < 0.05 and fixed < broken)
    if fixed + broken:
        assert f"{fixed} test images were fixed and {broken} broken" in told


def test_regions_and_classes_come_worst_first_and_without_what_has_no_image() -> None:
    regions = region_changes(FOUND, NAMES)
    assert [(c.name, c.held_out) for c in regions] == [(f"Region 4 → {NASTY}", True), ("open → row", False)]
    assert regions[1].after == Interval(*wilson(32, 32)[:3], 32)  # type: ignore[call-arg]
    assert [c.name for c in class_changes(FOUND)] == ["column", "row"]
    assert [c.name for c in nearest_changes(FOUND, NAMES)] == [
        f"Region 4 → {NASTY}", "open → row", "all of these", "whole test split",
    ]  # fmt: skip


def test_novelty_shares_sum_to_one_and_medians_are_drawn() -> None:
    figure = novelty(DISTANCES, x="ℓ2")
    for trace, far in zip(figure.data, DISTANCES.values(), strict=True):
        assert sum(trace.y) == pytest.approx(1)
        assert np.average(trace.x, weights=trace.y) == pytest.approx(far.mean(), abs=trace.width)
        assert f"n = {len(far)}" in trace.name
    lines = [shape.x0 for shape in figure.layout.shapes]
    np.testing.assert_allclose(lines, [np.median(far) for far in DISTANCES.values()])
    edges = bin_edges(DISTANCES)
    assert len(edges) == BINS + 1
    assert edges[-1] > max(far.max() for far in DISTANCES.values())
    assert (np.diff(bin_edges({"copies": np.zeros(3)})) > 0).all()  # all 0: nothing is new


def test_noise_is_drawn_by_kind() -> None:
    raw, centred = noises(NOISE).data
    assert list(raw.x) == list(KINDS)
    assert list(raw.y) == [30, 2, 1]
    assert list(centred.y) == [0, 4, 1]
    nothing = {name: dict.fromkeys(row, 0) for name, row in NOISE.items()}
    assert noises(nothing).layout.yaxis.range[1] > 0


def test_equal_input_gives_equal_figures() -> None:
    for draw in (
        lambda: accuracies(FOUND.models), lambda: controls(control_rows(FOUND)),
        lambda: novelty(DISTANCES, x="ℓ2"), lambda: noises(NOISE),
    ):  # fmt: skip
        assert draw().to_json() == draw().to_json()  # else Streamlit makes another, and a zoom is lost


def test_tables_hold_every_number_that_is_shown() -> None:
    table = accuracies_table(FOUND)
    row = table[(table["model"] == "Defuse") & (table["measured_on"] == "regions")].iloc[0]
    np.testing.assert_allclose(row[["accuracy", "low", "high", "n"]].to_numpy(float), wilson(63, 64))
    held = table[table["measured_on"] == "regions held out"]
    np.testing.assert_allclose(
        held[["accuracy", "low", "high", "n"]].to_numpy(float), [wilson(8, 32), wilson(16, 32)]
    )
    assert set(table["mcnemar_p"]) == {binomtest(5, 7).pvalue}
    assert len(scores_table(control_rows(FOUND))) == 3 * 3 + 2 * 2
    regions = regions_table(FOUND, NAMES).set_index("region")
    assert regions.loc[4, "baseline_accuracy"] == 9 / 32
    assert np.isnan(regions.loc[1, "baseline_accuracy"])
    assert regions.loc[1, "after_n"] == 32
    classes = changes_table(class_changes(FOUND), "class")
    assert list(classes["before_accuracy"]) == [0.5, 0.75]
    bars = novelty_table(DISTANCES)
    assert bars.groupby("set")["images"].sum().to_dict() == {"draws": 400, "real": 30}
    assert novelty_table({}).empty
    shown = agreement_table(FOUND)
    assert dict(zip(shown["share_of_annotators"], shown["draws"], strict=True)) == {0.667: 1, 1.0: 2}
    noise = noise_table(NOISE).set_index("noise")
    assert noise.loc["raw", "share_misclassified"] == 50 / 400
    assert noise.loc["centred", "reconstruction"] == 4


def test_an_interval_of_no_image_is_none() -> None:
    assert score([None, 0.0, 1.0, 0]) is None
    assert score(None) is None
    expected = Interval.wilson(3, 7)
    assert score([3 / 7, expected.low, expected.high, 7]) == Interval(3 / 7, expected.low, expected.high, 7)


def test_captions_say_n_seed_and_settings(place: Place) -> None:
    correct = store_run(place, "correct", {})
    run = store_run(place, "evaluate", {})
    of = f"evaluation {run.id} of correction {correct.id}"
    assert tell_runs(run, correct, {"correct": 0, "evaluate": 0}) == f"seed 0; {of}"
    assert tell_runs(run, correct, {"correct": 1, "evaluate": 0}) == f"seeds: correct 1, evaluate 0; {of}"
    assert tell_sizes(FOUND) == (
        "n = 50 validation images, n = 100 test images, n = 64 fresh draws, 32 a region"
    )  # fmt: skip
    assert "λ = 0.1, epoch 2 of 3, adam, learning rate 0.001" in tell_tuning(RESULTS)


def test_an_export_is_what_its_ending_says_with_the_caption_in_it() -> None:
    from defuse_core.report.evidence_figures import draw_noises

    export = Export(
        "x", "n = 3; <b>seed</b> $0_$", lambda: draw_noises(NOISE, list(KINDS)), lambda: noise_table(NOISE)
    )
    assert export.picture("png").startswith(b"\x89PNG\r\n")
    assert b"<svg" in export.picture("svg")
    read = pd.read_csv(io.BytesIO(export.csv()))
    assert list(read["settings"]) == ["n = 3; <b>seed</b> $0_$"] * 2
    assert list(read["misclassified"]) == [50, 5]
