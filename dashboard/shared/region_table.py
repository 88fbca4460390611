"""Makes the table of regions: what each contains, and how people labelled it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from dashboard.shared.gallery import KINDS, Found
from dashboard.shared.region_data import Regions
from defuse_core.report.verdicts import status_of, sureness_of

if TYPE_CHECKING:
    from defuse_core.base.records import Verdict

_TOP = 3  # classes named in a cell


def top_classes(classes: NDArray[np.int64], names: Sequence[str]) -> str:
    """Name the most frequent classes with their shares.

    Examples
    --------
    >>> top_classes(np.array([7, 7, 7, 1]), list("0123456789"))
    '7 75 % · 1 25 %'
    """
    ranked = Counter(classes.tolist()).most_common()
    parts = [f"{names[c]} {100 * n / len(classes):.0f} %" for c, n in ranked[:_TOP]]
    rest = [f"{len(ranked) - _TOP} more"] if len(ranked) > _TOP else []
    return " · ".join(parts + rest)


def region_table(
    regions: Regions, found: Found, class_names: Sequence[str], *, names: Mapping[int, str],
    verdicts: Mapping[int, Verdict], found_again: Mapping[int, float],
) -> pd.DataFrame:  # fmt: skip
    """Return the table, one row per region, heaviest first, without empty columns.

    Parameters
    ----------
    regions : Regions
    found : Found
        The mistakes.
    class_names : sequence of str
    names : mapping of int to str
        Names that people gave, by region.
    verdicts : mapping of int to Verdict
        By region.
    found_again : mapping of int to float
        By region, its mean overlap with the most similar region under other seeds, in [0, 1].
    """
    rows = []
    for region in regions.found:
        inside = regions.membership == region.region_id
        kinds = np.bincount(found.kind[inside], minlength=len(KINDS))
        verdict = verdicts.get(region.region_id)
        known = verdict is not None and verdict.n_kept > 0
        rows.append(
            {
                "region": region.region_id,
                "name": names.get(region.region_id, ""),
                "status": status_of(verdict),
                "sure": sureness_of(verdict),
                "label": label_of(verdict, class_names) if verdict is not None and known else "",
                "label fits": fit_of(verdict) if verdict is not None and known else "",
                "error": verdict.error.estimate if verdict is not None and known else None,
                "interval": _interval(verdict) if verdict is not None and known else "",
                "weight": region.weight,
                "mistakes": int(inside.sum()),
                "predictions": top_classes(found.predictions[inside], class_names) if inside.any() else "",
                "true classes": top_classes(found.labels[inside], class_names) if inside.any() else "",
                **{kind: int(kinds[KINDS.index(kind)]) for kind in reversed(KINDS)},
                "spread": float(np.sqrt(np.trace(region.covariance) / len(region.mean))),
                "found again": found_again.get(region.region_id),
            }
        )
    table = pd.DataFrame(rows)
    optional = ("name", "sure", "label", "label fits", "error", "interval", "found again")
    empty = [name for name in optional if not (table[name].notna() & (table[name] != "")).any()]
    return table.drop(columns=empty)


def label_of(verdict: Verdict, class_names: Sequence[str]) -> str:
    """Return the label of a labelled region; a tie is none, and says so."""
    return "none: a tie" if verdict.label is None else class_names[verdict.label]


def fit_of(verdict: Verdict) -> str:
    """Return how many of the labelled draws have the label of their region themselves."""
    return "" if verdict.label is None else f"{verdict.n_fit} of {verdict.n_kept}"


def _interval(verdict: Verdict) -> str:
    error = verdict.error
    return f"{error.low:.2f} … {error.high:.2f} (n = {error.n})"


COLUMNS = {
    "region": st.column_config.NumberColumn("region", format="%d", pinned=True),
    "weight": st.column_config.NumberColumn("weight", format="%.3f", help="π of the mixture"),
    "mistakes": st.column_config.NumberColumn(
        "mistakes", format="localized", help="Mistakes for which this region is the most probable"
    ),
    "perturbation": st.column_config.NumberColumn(
        "perturbation", help="New: image and reconstruction were classified correctly"
    ),
    "reconstruction": st.column_config.NumberColumn("reconstruction", help="The generator's fault"),
    "dataset": st.column_config.NumberColumn("dataset", help="The real image is misclassified already"),
    "predictions": st.column_config.TextColumn("predictions", help="Of the classifier, on the mistakes"),
    "true classes": st.column_config.TextColumn("true classes", help="True classes of their source images"),
    "spread": st.column_config.NumberColumn(
        "spread", format="%.2f", help="Standard deviation of a code, mean over dimensions: √(tr Σ / d)"
    ),
    "sure": st.column_config.TextColumn(
        "sure", help="Whether the 95 % interval of the error leaves out ρ: else more answers could turn it"
    ),
    "label": st.column_config.TextColumn(
        "label", help="The most frequent answer; where two tie there is none: label more draws, or split"
    ),
    "label fits": st.column_config.TextColumn(
        "label fits", help="Labelled draws that have the label of the region themselves"
    ),
    "error": st.column_config.NumberColumn(
        "error", format="percent", help="Share of the labelled draws that the classifier predicts otherwise"
    ),
    "interval": st.column_config.TextColumn("95 % interval", width="medium", help="Wilson's, of the error"),
    "found again": st.column_config.NumberColumn(
        "found again", format="percent",
        help="Overlap (Jaccard) with the most similar region under other seeds, mean",
    ),
}  # fmt: skip
"""How `st.dataframe` shows the table."""
