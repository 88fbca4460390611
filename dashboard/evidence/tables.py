"""The figures of the page Evidence as tables: every number shown, with its interval and n. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dashboard.evidence.charts import NOISES, bin_edges
from dashboard.shared.charts import KINDS
from defuse_core.base.intervals import Interval
from defuse_core.report.evidence import SETS, Distances, Evidence, Model
from defuse_core.report.sweep import Change
from defuse_core.report.verdicts import with_sureness


def scores_table(models: Sequence[Model]) -> pd.DataFrame:
    """One row per model and set of images."""
    rows = [
        {"model": model.name, "measured_on": SETS[name], **_interval(score)}
        for model in models
        for name, score in model.scores.items()
    ]
    return pd.DataFrame(rows)


def accuracies_table(evidence: Evidence) -> pd.DataFrame:
    """Figure 4 as a table, with rows for the held-out regions, and columns for the flips and their p."""
    flips, held = evidence.results["flips"], held_out_scores(evidence)
    table = scores_table(evidence.models)
    if held:
        names = evidence.models[0].name, evidence.models[-1].name
        rows = [
            {"model": name, "measured_on": "regions held out", **_interval(score)}
            for name, score in zip(names, held, strict=True)
        ]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    return table.assign(test_fixed=flips["fixed"], test_broken=flips["broken"], mcnemar_p=flips["p"])


def held_out_scores(evidence: Evidence) -> tuple[Interval, Interval] | None:
    """Accuracy on the held-out regions, before and after; None if no region was held out."""
    row = evidence.results.get("held_out")
    rows = [r for r in evidence.results["by_region"] if r["held_out"]]
    if row is None or not rows:
        return None
    n = sum(r["before"][3] for r in rows)
    was, now = (
        Interval(row[when], row[f"{when}_interval"][0], row[f"{when}_interval"][1], n)
        for when in ("before", "after")
    )
    return was, now


def changes_table(changes: Sequence[Change], what: str) -> pd.DataFrame:
    """Accuracy before and after, one row per `what`: class, or images."""
    rows = [
        {
            what: change.name,
            **_interval(change.before, "before_"), **_interval(change.after, "after_"),
            "held_out": change.held_out,
        }
        for change in changes
    ]  # fmt: skip
    return pd.DataFrame(rows)


def regions_table(evidence: Evidence, class_names: Sequence[str]) -> pd.DataFrame:
    """Accuracy of every measured model on every failure region, and how many draws its label fits."""
    rows = [
        {
            "region": row["region_id"], "name": row["name"], "label": class_names[row["label"]],
            "tau": row["tau"], "held_out": row["held_out"],
            "status": with_sureness("failure", row.get("sure")),
            **dict(zip(("label_fits", "labelled_draws"), row.get("fits") or (None, None), strict=True)),
            **{
                f"{model}_{part}": value
                for model in ("before", "baseline", "after")
                if row.get(model)
                for part, value in zip(_PARTS, row[model], strict=True)
            },
        }
        for row in evidence.results["by_region"]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def novelty_table(distances: Distances) -> pd.DataFrame:
    """The bars of the distances, with n and median of each set."""
    edges = bin_edges(distances)
    tables = []
    for name, far in distances.items():
        counts = np.histogram(far, edges)[0]
        bars = {"from": edges[:-1], "to": edges[1:], "images": counts, "share": counts / len(far)}
        tables.append(pd.DataFrame({"set": name, **bars, "n": len(far), "median": float(np.median(far))}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def agreement_table(evidence: Evidence) -> pd.DataFrame:
    """The bars of the agreement, and how often all annotators, and any two, agree."""
    assert evidence.unanimous is not None  # without answers, the page shows no figure
    values, counts = np.unique(np.round(evidence.share[~np.isnan(evidence.share)], 3), return_counts=True)
    return pd.DataFrame(
        {
            "share_of_annotators": values, "draws": counts, "n": counts.sum(),
            **_interval(evidence.unanimous, "unanimous_"), "pairs_alike": evidence.pairwise,
        }
    )  # fmt: skip


def noise_table(counts: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """What raw and centred noise find, one row each."""
    columns = ("images", "codes", "misclassified", *KINDS)
    rows = [
        {"noise": name, **{column: counts[name][column] for column in columns if column in counts[name]}}
        for name in NOISES
    ]
    table = pd.DataFrame(rows)
    return table.assign(share_misclassified=table["misclassified"] / table["codes"])


_PARTS = ("accuracy", "low", "high", "n")


def _interval(score: Interval, prefix: str = "") -> dict[str, Any]:
    values = (score.estimate, score.low, score.high, score.n)
    return {f"{prefix}{part}": value for part, value in zip(_PARTS, values, strict=True)}
