"""Shows how good a classifier is: confusion, accuracy by class, the misclassified images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from dashboard.components.image_grid import Tile, image_grid
from dashboard.shared import charts, kept
from dashboard.shell import store
from dashboard.shell.jobs_panel import tell_begin
from dashboard.shell.state import linked_choice, linked_page, plain
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

PER_PAGE = 24
FEW_CLASSES = 12
_SHOWN_LAYERS = 8


def show_training(run: Run) -> None:
    """Draw the loss and accuracy of a classifier in training."""
    points = [event.data for event in store.workspace().runs.events(run.id, kind="point")]
    if not points:
        begins = "Training begins …" if run.config["weights"] is None else "Reading the weights …"
        st.caption(tell_begin(run, begins))
        return
    of = run.config["training"]["epochs"]
    left, right = st.columns(2)
    left.plotly_chart(
        charts.curves(points, {"loss": "cross-entropy"}, title="Loss", y="nats", of=of), key="c-loss"
    )
    right.plotly_chart(
        charts.curves(points, {"accuracy": "while training"}, title="Training accuracy", y="share", of=of),
        key="c-accuracy",
    )


def show_classifier(project: Project, run: Run) -> None:
    """Show the accuracy and the misclassified images of a classifier on a split."""
    summary = run.summary
    parts = [part for part in ("test", "validation", "train") if part in summary["accuracy"]]
    columns = st.columns(len(parts) + 1)
    for column, part in zip(columns, parts, strict=False):
        estimate, low, high, n = summary["intervals"][part]
        column.metric(
            f"{part.capitalize()} accuracy", f"{estimate:.3f}", help=f"[{low:.3f}, {high:.3f}], n = {n:,}"
        )
    columns[-1].metric("Architecture", summary["architecture"])
    if run.config.get("pretrained") is not None:
        st.caption(_told_beginning(project, run))
    part = st.segmented_control(
        "Split", parts, default=parts[0], required=True, key="split", bind="query-params"
    )
    part = part or parts[0]
    outputs = store.arrays(run.id, "predictions")
    labels, predictions = outputs[f"{part}.labels"], outputs[f"{part}.predictions"]
    names = project.class_names
    left, right = st.columns(2)
    counts = confusion(labels, predictions, len(names))
    left.plotly_chart(charts.matrix(counts, names, title="Confusion"), key="confusion")
    with left:
        show_confused(counts, names)
    right.plotly_chart(
        charts.by_class(
            names, summary["by_class"][part], title="Accuracy by class, worst first", x=f"{part} accuracy"
        ),
        key="by-class",
    )
    _show_wrong(project, labels, predictions, outputs[f"{part}.confidence"], part)


def _told_beginning(project: Project, run: Run) -> str:
    """Say which weights training began with, and which layers they did not have."""
    blobs = {f"blob:{blob.sha256}": blob.name for blob in store.workspace().blobs(project.id)}
    pretrained = run.config["pretrained"]
    name = (
        "ImageNet's weights" if pretrained == "imagenet" else blobs.get(pretrained, "an upload that is gone")
    )
    afresh = run.summary["began_afresh"]
    more = f" and {len(afresh) - _SHOWN_LAYERS} more" if len(afresh) > _SHOWN_LAYERS else ""
    suffix = f" Trained from scratch: {', '.join(afresh[:_SHOWN_LAYERS])}{more}." if afresh else ""
    return plain(f"Training began with {name}.{suffix}")


def confusion(
    labels: NDArray[np.generic], predictions: NDArray[np.generic], n_classes: int
) -> NDArray[np.int64]:
    """Count images by true class (rows) and prediction, (n_classes, n_classes)."""
    flat = np.bincount(
        labels.astype(np.int64) * n_classes + predictions.astype(np.int64), minlength=n_classes**2
    )
    return flat.reshape(n_classes, n_classes)


def show_confused(counts: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """List the pairs of classes that are confused most often, where a matrix has too many to read."""
    pairs = charts.most_confused(counts)
    if len(class_names) <= FEW_CLASSES or not pairs:
        return
    rows = [
        {
            "true class": class_names[label],
            "predicted as": class_names[said],
            "images": n,
            "of the class": n / max(int(counts[label].sum()), 1),
        }
        for label, said, n in pairs
    ]
    st.markdown("**Confused most often**")
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, alt="Pairs of classes that are confused most often",
        column_config={"of the class": st.column_config.NumberColumn("of the class", format="percent")},
    )  # fmt: skip


def _show_wrong(
    project: Project, labels: NDArray[np.int64], predictions: NDArray[np.int64],
    confidence: NDArray[np.float32], part: str,
) -> None:  # fmt: skip
    names = project.class_names
    wrong = np.nonzero(labels != predictions)[0]
    st.subheader(f"Misclassified: {len(wrong):,} of {len(labels):,}")
    if not len(wrong):
        st.caption("None: a test accuracy that looks too good. Go on to the generator.")
        return
    numbers = [str(i) for i in range(len(names))]
    left, middle, right = st.columns([2, 2, 1])
    with left:
        label = linked_choice("True class", numbers, key="label", show=lambda i: names[int(i)])
    with middle:
        prediction = linked_choice("Prediction", numbers, key="said", show=lambda i: names[int(i)])
    keep = np.ones(len(wrong), dtype=bool)
    keep &= True if label is None else labels[wrong] == int(label)
    keep &= True if prediction is None else predictions[wrong] == int(prediction)
    chosen = wrong[keep]
    chosen = chosen[np.argsort(-confidence[chosen], kind="stable")]
    with right:
        page = chosen[linked_page(len(chosen), PER_PAGE, key="page")]
    st.caption(f"{len(page)} of {len(chosen):,}, the most confident first")
    dataset = kept.dataset(project.id)
    if dataset is None or not len(page):
        return
    images = dataset.splits()[part].images[page].permute(0, 2, 3, 1).numpy()
    tiles = [
        Tile(
            [image], names[int(predictions[i])], True,
            f"{names[int(labels[i])]}, {confidence[i]:.0%} sure\n{part} {i}",
            [f"{names[int(labels[i])]}, predicted as {names[int(predictions[i])]}"],
        )
        for i, image in zip(page.tolist(), images, strict=True)
    ]  # fmt: skip
    image_grid(tiles, key="wrong", min_pixels=80)
