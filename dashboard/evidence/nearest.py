"""Show the real test images nearest to every region, and what the classifier predicts for them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.components.image_grid import Tile, image_grid
from dashboard.evidence.cards import Card, beside, bordered
from dashboard.evidence.pictures import changes_picture, real_images_picture
from dashboard.evidence.tables import changes_table
from dashboard.shared import kept
from dashboard.shared.change_chart import before_after
from dashboard.shell import store
from dashboard.shell.state import linked_choice, plain
from defuse_core.report.evidence import Near, nearest_changes, nearest_rows, region_called, tell_lambda
from defuse_core.report.numbers import within
from defuse_core.report.sweep import BEFORE, SAID, read_sweep

if TYPE_CHECKING:
    from defuse_core.data.splits import ImageDataset

NEAREST = "nearest"
"""The URL parameter that names the region whose images are shown."""


def show_nearest(card: Card) -> None:
    """Show accuracy on the real images nearest to the regions, and those of one region."""
    question = "Does it show on real images, too? Those of the test split that lie nearest to each region"
    with bordered("Nearest real test images", question):
        nearest = card.found.results["nearest"]
        changes = nearest_changes(card.found, card.project.class_names)
        metric = "nearest by Mahalanobis distance from the region's mean under τ·Σ"
        size, pooled = card.found.results["settings"]["evaluate"]["n_nearest"], nearest["pooled"]["before"][3]
        n = f"n = up to {size} real test images of every region, {pooled} in all"
        caption = card.told(n, metric, tell_lambda(card.found.results))
        left, right = beside()
        with left:
            card.show(
                "nearest", before_after(changes, title="On real images, each by its own class"), caption,
                partial(changes_picture, changes), partial(changes_table, changes, "images"),
                alt="Accuracy before and after on the real test images nearest to each region",
            )  # fmt: skip
        with right:
            st.markdown(_tell(nearest))
        st.fragment(_show_region)(card)


def _tell(nearest: dict[str, Any]) -> str:
    pooled, test = nearest["pooled"], nearest["test"]
    text = (
        f"Of the **{pooled['before'][3]:,} real images** nearest to the regions "
        f"**{within(pooled['before'])} are classified correctly before, {within(pooled['after'])} after**; "
        f"of the whole test split, {test['before'][3]:,} images, {within(test['before'])} and "
        f"{within(test['after'])}."
    )
    closest = min((row["distance"][0] for row in nearest["regions"] if row["distance"]), default=None)
    typical = nearest["draws_at"]
    if closest is None:
        return text
    text += (
        f"\n\nMost draws of a region lie {typical:.1f} from its middle; the nearest real image of all lies "
        f"{closest:.1f} from one. "
    )
    if closest > typical:
        return text + (
            "So no real test image lies where the draws do: what the classifier gets wrong there, the test "
            "split does not contain, and cannot confirm."
        )
    return text + "So the test split does reach into the regions."


def _show_region(card: Card) -> None:
    rows = {str(row["region_id"]): row for row in nearest_rows(card.found)}
    if not rows:
        return
    region_names = {i: region_called(row, card.project.class_names) for i, row in rows.items()}
    worst = next(iter(rows))
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        choice = linked_choice(
            "Images nearest to", list(rows), key=NEAREST, show=region_names.__getitem__,
            unset=f"{region_names[worst]}, the worst",
        )  # fmt: skip
    row = rows[choice or worst]
    label = card.project.class_names[row["label"]]
    right.markdown(
        f"{row['same_label']} of these {len(row['index'])} are of class {plain(label)}, the region's label; "
        f"classified correctly: {within(row['before'])} before, {within(row['after'])} after."
    )
    dataset = kept.dataset(card.project.id)
    if dataset is None:
        return
    near = _read(card, dataset, row)
    image_grid([_tile(near, i) for i in range(len(near.index))], key="nearest-images", min_pixels=64)
    title = f"Real test images nearest to {region_names[choice or worst]}"
    caption = card.told(
        f"n = {len(near.index)} real test images, the nearest first; its class, read before → after"
    )
    if near.before is None:
        st.caption("This correction did not keep the prediction for each image: correct again to see it.")
    card.show_files(
        f"nearest-region{row['region_id']}", caption, partial(real_images_picture, near, title),
        partial(images_table, near, row["region_id"]),
    )  # fmt: skip


def _read(card: Card, dataset: ImageDataset, row: dict[str, Any]) -> Near:
    index = np.array(row["index"], dtype=np.int64)
    names = card.project.class_names
    lam = card.found.results["defuse"]["lam"]
    points = read_sweep(store.workspace(), card.correct).points
    task = next((p.task for p in points if p.lam == lam and p.repeat == 0), "")
    predictions = [store.arrays(card.correct.id, f"{name}{SAID}").get("test") for name in (BEFORE, task)]
    before, after = (None if s is None else [names[int(i)] for i in s[index]] for s in predictions)
    known = before is not None and after is not None
    return Near(
        dataset.test.images[index].permute(0, 2, 3, 1).numpy(), row["index"], row["distance"],
        [names[int(i)] for i in dataset.test.labels[index]],
        before if known else None, after if known else None,
    )  # fmt: skip


def _tile(near: Near, i: int) -> Tile:
    label, far = near.labels[i], f"test {near.index[i]}\n{near.distance[i]:.1f} away"
    if near.before is None or near.after is None:
        return Tile([near.images[i]], caption=f"{label}\n{far}", alt=[f"a real {label}"])
    before, after = near.before[i], near.after[i]
    return Tile(
        [near.images[i]], after, after != label, f"{label}: {before} → {after}\n{far}",
        [f"a real {label}, predicted as {before} before and as {after} after"],
    )  # fmt: skip


def images_table(near: Near, region_id: int) -> pd.DataFrame:
    """Real images near a region, with their class and their predictions."""
    table = pd.DataFrame(
        {"region": region_id, "test_image": near.index, "distance": near.distance, "label": near.labels}
    )
    return table if near.before is None else table.assign(before=near.before, after=near.after)
