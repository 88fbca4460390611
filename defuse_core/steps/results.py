"""Makes the rows of results.json: shares of correctly classified images, JSON-able, without NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.base.records import FailureInstances, Verdict
from defuse_core.method.evaluation import Scores, p_value_of_change, share
from defuse_core.steps.base import interval_json

BEFORE, BASELINE, AFTER = "before", "identified mistakes", "Defuse"
"""Rows of figure 4."""

RULES = {
    "paper": "best selection accuracy",
    "regions": "best accuracy on the tuning draws within {max_loss} of the selection accuracy before",
}
"""How λ was chosen, by the rule in the config of the sweep."""

Right = Mapping[str, Mapping[str, Tensor]]
"""By model, then by set ("test", "region", …): which images are classified correctly, (n,) bool."""


def interval_row(right: Tensor) -> list[float | None]:
    """Return share, both ends of its interval and n; the share is None where n = 0.

    Examples
    --------
    >>> interval_row(torch.zeros(0, dtype=torch.bool))
    [None, 0.0, 1.0, 0]
    """
    estimate, *rest = interval_json(share(right))
    return [number(estimate), *rest]


def number(value: float) -> float | None:
    """Return a number as JSON has it: None for NaN."""
    return None if math.isnan(value) else float(value)


def score_rows(right: Right) -> list[Scores]:
    """Make figure 4, one row per model."""
    return [
        Scores(
            model, share(sets["test"]), share(sets["region"]),
            share(sets["validation"]) if "validation" in sets else None,
        )
        for model, sets in right.items()
    ]  # fmt: skip


def scores_json(scores: Scores) -> dict[str, Any]:
    """Write a row of figure 4 as lists, from which the report draws it."""
    parts = {"test": scores.test, "region": scores.region, "validation": scores.validation}
    intervals = {name: None if i is None else interval_json(i) for name, i in parts.items()}
    return {"model": scores.model, **intervals}


def accuracies(scores: Scores) -> dict[str, Any]:
    """Write a row of figure 4 as in results.json; `validation` only if there is that split."""
    intervals: dict[str, Interval] = {"test": scores.test, "region": scores.region}
    if scores.validation is not None:
        intervals["validation"] = scores.validation
    estimates = {name: interval.estimate for name, interval in intervals.items()}
    return {**estimates, **{f"{name}_interval": [i.low, i.high] for name, i in intervals.items()}}


def figure4(right: Right, sweep: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Make the rows of figure 4, with the λ of each.

    Parameters
    ----------
    right : Right
    sweep, config : mapping
        Summary and config of the correct run.
    """
    of = {row.model: accuracies(row) for row in score_rows(right)}
    chosen, baseline = sweep["corrected"]["chosen"], None
    if BASELINE in of:
        baseline = {
            **of[BASELINE],
            "lam": sweep["baseline"]["chosen"]["lam"],
            "lambdas": config["baseline_lambdas"],
            "labelled_images": sweep["labelled_mistakes"],
        }
    after = {**of[AFTER], "lam": chosen["lam"], "epoch": chosen["epoch"]}
    return {"before": of[BEFORE], "baseline": baseline, "defuse": after}


def held_out(right: Right, failures: FailureInstances) -> dict[str, dict[str, Any]]:
    """Write `held_out`, the accuracy on the held-out regions; empty if there are none.

    Parameters
    ----------
    right : Right
    failures : FailureInstances
        Test draws of the held-out regions.
    """
    if not len(failures):
        return {}
    was, now = (interval_row(right[model]["held_out"]) for model in (BEFORE, AFTER))
    shares = {"before": was[0], "after": now[0], "before_interval": was[1:3], "after_interval": now[1:3]}
    return {"held_out": {"regions": len(failures.region_ids.unique()), **shares}}


def sweep_row(point: Mapping[str, Any]) -> dict[str, Any]:
    """Write a point of figure 5; a λ that is tuned n times has n points."""
    return {
        "lam": point["lam"], "repeat": point["repeat"],
        "test": point["test"][0], "region": point["region"][0],
        "selection": point["selection"], "tuned": point["tuned"],
    }  # fmt: skip


def change(was: Tensor, now: Tensor) -> dict[str, Any]:
    """Compare two models on the same images: flips, and McNemar's exact test of them.

    Parameters
    ----------
    was, now : (n,) bool
        Which images are correctly classified before and after.
    """
    fixed, broken = int((now & ~was).sum()), int((was & ~now).sum())
    return {"fixed": fixed, "broken": broken, "p": p_value_of_change(fixed, broken)}


def class_rows(right: Right, labels: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy on the test images of every class, before and after.

    Parameters
    ----------
    right : Right
    labels : (n_test,) int64
        Of the test images.
    class_names : sequence of str
    """
    before, after = right[BEFORE]["test"], right[AFTER]["test"]
    return [
        {
            "class": name, "label": label,
            "before": interval_row(before[labels == label]), "after": interval_row(after[labels == label]),
        }
        for label, name in enumerate(class_names)
    ]  # fmt: skip


def region_rows(
    right: Right, sets: Mapping[str, FailureInstances], taus: Mapping[int, float], names: Mapping[int, str],
    verdicts: Mapping[int, Verdict],
) -> list[dict[str, Any]]:  # fmt: skip
    """Accuracy on the test draws of every failure region, tuned on or held out, the worst before first.

    Parameters
    ----------
    right : Right
        "region" are the images of `sets["test"]`, "held_out" those of `sets["held_out"]`.
    sets : mapping of str to FailureInstances
    taus : mapping of int to float
        τ of the draws, by region_id.
    names : mapping of int to str
        Names that people gave, by region_id.
    verdicts : mapping of int to Verdict
        By region_id. `fits` says how many of the labelled draws have the label themselves, and of how many.
    """
    rows = []
    for part, failures in (("region", sets["test"]), ("held_out", sets["held_out"])):
        for region_id in failures.region_ids.unique().tolist():
            mine = failures.region_ids == region_id
            said = {model: interval_row(by_set[part][mine]) for model, by_set in right.items()}
            rows.append(
                {
                    "region_id": region_id, "name": names.get(region_id),
                    "label": int(failures.labels[mine][0]), "tau": taus[region_id],
                    "held_out": part == "held_out", "sure": verdicts[region_id].is_sure,
                    "fits": [verdicts[region_id].n_fit, verdicts[region_id].n_kept],
                    "before": said[BEFORE], "after": said[AFTER], "baseline": said.get(BASELINE),
                }
            )  # fmt: skip
    return sorted(rows, key=lambda row: (row["before"][0], row["region_id"]))


def nearest_rows(
    right: Right,
    labels: Tensor,
    found: Mapping[int, tuple[NDArray[np.int64], NDArray[np.float64]]],
    region_labels: Mapping[int, int],
) -> dict[str, Any]:
    """Accuracy on the real test images nearest to the regions: each, all of them, the whole split.

    Parameters
    ----------
    right : Right
    labels : (n_test,) int64
        Of the test images.
    found : mapping of int to (index, distance)
        Test images nearest to each region, by region_id, and their distances.
    region_labels : mapping of int to int
        Labels that people gave. A real image is correct if predicted as *its own* label.
    """

    def both(index: Tensor) -> dict[str, Any]:
        return {"before": interval_row(right[BEFORE]["test"][index]),
                "after": interval_row(right[AFTER]["test"][index])}  # fmt: skip

    rows = []
    for region_id, (index, distance) in sorted(found.items()):
        images = torch.from_numpy(index)
        same = int((labels[images] == region_labels[region_id]).sum())
        rows.append(
            {
                "region_id": region_id, "label": region_labels[region_id], "index": index.tolist(),
                "distance": distance.tolist(), "same_label": same, **both(images),
            }
        )  # fmt: skip
    distinct = torch.tensor(sorted({i for row in rows for i in row["index"]}), dtype=torch.int64)
    return {
        "metric": "Mahalanobis, from the region's mean under tau · covariance, of the encoder's mean",
        "regions": rows,
        "pooled": both(distinct),
        "test": both(torch.arange(len(labels))),
    }


def novelty_rows(curves: Mapping[str, NDArray[np.float64]]) -> dict[str, dict[str, float]]:
    """Number of images and median distance of every curve of novelty."""
    return {name: {"n": len(far), "median": float(np.median(far))} for name, far in curves.items()}
