"""The table of regions: statuses against scipy's intervals, numbers against the stored arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from scipy.stats import binomtest, multivariate_normal

from dashboard.shared.gallery import KINDS, Found
from dashboard.shared.region_data import Regions, find_regions
from dashboard.shared.region_table import COLUMNS, region_table, top_classes
from defuse_core.base.intervals import Interval
from defuse_core.base.records import Verdict
from defuse_core.report.verdicts import tell_status
from defuse_core.workspace.workspace import Workspace
from tests.apps import NASTY

CLASSES = ["row", "column", "diagonal"]
ALWAYS = [
    "region", "status", "weight", "mistakes", "predictions", "true classes", "perturbation",
    "reconstruction", "dataset", "spread",
]  # fmt: skip


def verdict(wrong: int, kept: int, *, region_id: int = 0, label: int | None = 1) -> Verdict:
    """On a region of which so many kept draws were misclassified."""
    said = label if kept else None
    error = Interval.wilson(wrong, kept)
    return Verdict(region_id, kept > 0 and wrong / kept > 0.5, said, (said,) * kept, error)


def test_a_status_is_sure_once_the_interval_leaves_out_one_half() -> None:
    seen = {tell_status(None), tell_status(verdict(0, 0))}
    assert seen == {"unlabelled", "none of the above"}
    for kept in (1, 2, 3, 4, 5, 8, 9, 10, 11, 20, 64):
        for wrong in range(kept + 1):
            low, high = binomtest(wrong, kept).proportion_ci(method="wilson")
            expected = "failure" if wrong / kept > 0.5 else "not a failure"
            expected += ", sure" if low > 0.5 or high < 0.5 else ", not sure"
            assert tell_status(verdict(wrong, kept)) == expected, (wrong, kept)
            seen.add(expected)
    assert seen >= {f"{what}, {how}" for what in ("failure", "not a failure") for how in ("sure", "not sure")}


def test_a_majority_of_errors_makes_a_failure_which_need_not_be_sure() -> None:
    assert tell_status(verdict(8, 10)) == "failure, not sure"
    assert tell_status(verdict(9, 10)) == "failure, sure"


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ([2], "c 100 %"),
        ([0, 1, 1, 1], "50% 75 % · a 25 %"),  # the name keeps its own sign
        ([3] * 5 + [2] * 4 + [1] * 3 + [0] * 2 + [4], "d 33 % · c 27 % · 50% 20 % · 2 more"),
        ([4] * 199 + [0], f"{NASTY} 100 % · a 0 %"),
    ],
)
def test_the_most_frequent_classes_are_named_with_their_shares(classes: list[int], told: str) -> None:
    assert top_classes(np.array(classes), ["a", "50%", "c", "d", NASTY]) == told


@pytest.fixture(scope="module")
def parts(template: Path) -> tuple[Regions, Found]:
    """The template's regions and mistakes."""
    workspace = Workspace(template)
    runs = {run.step: run for run in workspace.runs.of_project(1)}
    path = workspace.artifact_path(runs["identify"].id, "mistakes.safetensors")
    found = Found(**safetensors.numpy.load_file(path))
    return find_regions(workspace, runs["distill"].id), found


@pytest.fixture(scope="module")
def fit(template: Path) -> dict[str, Any]:
    """The mixture as it was stored, and the region of every mistake by scipy's densities; -1 for none."""
    workspace = Workspace(template)
    runs = {run.step: run for run in workspace.runs.of_project(1)}
    stored = [
        safetensors.numpy.load_file(workspace.artifact_path(runs[step].id, f"{name}.safetensors"))
        for step, name in (("distill", "mixture"), ("identify", "mistakes"))
    ]
    mixture, codes = stored[0], stored[1]["latents"].astype(float)
    components = zip(mixture["weights"], mixture["means"], mixture["covariances"], strict=True)
    densities = [np.log(w) + multivariate_normal.logpdf(codes, mean, cov) for w, mean, cov in components]
    best = np.argmax(densities, axis=0)
    return {**mixture, "of": np.where(mixture["weights"][best] > 0.01, best, -1)}


def table_of(parts: tuple[Regions, Found], class_names: list[str], **more: Any) -> pd.DataFrame:
    told: dict[str, Any] = {"names": {}, "verdicts": {}, "found_again": {}, **more}
    return region_table(*parts, class_names, **told)


def shares(classes: np.ndarray[Any, Any]) -> dict[str, str]:
    """Share by class, as they are told."""
    values, counts = np.unique(classes, return_counts=True)
    return {CLASSES[v]: f"{round(100 * c / len(classes))} %" for v, c in zip(values, counts, strict=True)}


def test_the_numbers_are_those_of_what_is_stored(parts: tuple[Regions, Found], fit: dict[str, Any]) -> None:
    found = parts[1]
    table = table_of(parts, CLASSES)
    by_weight = np.argsort(-fit["weights"], kind="stable")
    assert table["region"].tolist() == [k for k in by_weight if fit["weights"][k] > 0.01]
    assert table["region"].tolist() != sorted(table["region"])
    for row in table.to_dict("records"):
        k = row["region"]
        inside = fit["of"] == k
        assert row["mistakes"] == inside.sum() > 0
        assert row["weight"] == pytest.approx(fit["weights"][k])
        for number, kind in enumerate(KINDS):
            assert row[kind] == (found.kind[inside] == number).sum()
        for column, classes in (("predictions", found.predictions), ("true classes", found.labels)):
            told = [part.split(" ", 1) for part in row[column].split(" · ")]
            assert dict(told) == shares(classes[inside])
            order = [int(share.split()[0]) for _, share in told]
            assert order == sorted(order, reverse=True)
        variances = np.diag(fit["covariances"][k])
        assert row["spread"] == pytest.approx(np.sqrt(variances.mean()))
        assert row["status"] == "unlabelled"
    assert table["mistakes"].sum() == (fit["of"] >= 0).sum()


def filled(table: pd.DataFrame, column: str) -> dict[int, Any]:
    """What a column says, by region, of those that it says anything of."""
    told = table.set_index("region")[column]
    return {region: value for region, value in told.items() if pd.notna(value) and value != ""}


def test_columns_that_would_be_empty_are_left_out(parts: tuple[Regions, Found]) -> None:
    ids = parts[0].ids
    assert table_of(parts, CLASSES).columns.tolist() == ALWAYS
    named = table_of(parts, CLASSES, names={ids[1]: "loops"})
    assert sorted(named.columns) == sorted([*ALWAYS, "name"])
    assert filled(named, "name") == {ids[1]: "loops"}
    stable = table_of(parts, CLASSES, found_again={ids[0]: None, ids[1]: 0.25, 99: 1.0})
    assert sorted(stable.columns) == sorted([*ALWAYS, "found again"])
    assert filled(stable, "found again") == {ids[1]: 0.25}


def test_verdicts_are_told_of_the_regions_that_have_one(parts: tuple[Regions, Found]) -> None:
    decided, open_, discarded, *others = parts[0].ids
    verdicts = {
        decided: verdict(9, 9, region_id=decided, label=2),
        open_: verdict(1, 4, region_id=open_, label=0),
        discarded: verdict(0, 0, region_id=discarded),
    }
    table = table_of(parts, CLASSES, verdicts=verdicts)
    assert filled(table, "status") == {
        decided: "failure", open_: "not a failure", discarded: "none of the above",
        **dict.fromkeys(others, "unlabelled"),
    }  # fmt: skip
    assert filled(table, "sure") == {decided: "sure", open_: "not sure"}
    assert filled(table, "label") == {decided: "diagonal", open_: "row"}
    assert filled(table, "label fits") == {decided: "9 of 9", open_: "4 of 4"}
    assert filled(table, "error") == {decided: 1.0, open_: 0.25}
    ends = [binomtest(k, n).proportion_ci(method="wilson") for k, n in ((9, 9), (1, 4))]
    assert filled(table, "interval") == {
        region: f"{low:.2f} … {high:.2f} (n = {n})"
        for region, (low, high), n in zip((decided, open_), ends, (9, 4), strict=True)
    }
    only_discarded = table_of(parts, CLASSES, verdicts={discarded: verdicts[discarded]})
    assert only_discarded.columns.tolist() == ALWAYS  # it has no label and no error


def test_a_region_without_a_mistake_has_a_row(parts: tuple[Regions, Found]) -> None:
    regions, found = parts
    gone = regions.ids[0]
    emptied = Regions(regions.mixture, regions.found, np.where(regions.membership == gone, -1, 0))
    row = table_of((emptied, found), CLASSES).set_index("region").loc[gone]
    assert (row["mistakes"], row["predictions"], row["true classes"]) == (0, "", "")
    assert [row[kind] for kind in KINDS] == [0, 0, 0]


def test_names_that_are_markup_stay_what_they_are(parts: tuple[Regions, Found]) -> None:
    first = parts[0].ids[0]
    verdicts = {first: verdict(9, 9, region_id=first, label=0)}
    table = table_of(parts, [NASTY] * 3, names={first: NASTY}, verdicts=verdicts).set_index("region")
    assert (table["name"][first], table["label"][first]) == (NASTY, NASTY)
    assert all(text.startswith(f"{NASTY} ") for text in table["predictions"])


def test_only_columns_of_the_table_are_configured(parts: tuple[Regions, Found]) -> None:
    first = parts[0].ids[0]
    whole = table_of(
        parts, CLASSES, names={first: "loops"}, found_again={first: 1.0},
        verdicts={first: verdict(9, 9, region_id=first)},
    )  # fmt: skip
    assert set(COLUMNS) <= set(whole.columns)
