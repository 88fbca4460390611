"""Read what a sweep over λ measured: points, tasks, and predictions that changed.

Everything comes from the workspace; no classifier runs here. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defuse_core.base.intervals import Interval
from defuse_core.workspace.runs import Event, Run, Task
from defuse_core.workspace.workspace import Workspace

BEFORE, BASELINE, SAID = "before", "baseline/", ".said"
"""The step's names of tasks and files, repeated here because its module imports torch."""

SETS = {
    "test": "test",
    "validation": "validation",
    "region": "regions",
    "held_out": "regions held out",
}
"""What is measured on, and its name on the page."""

DRAWS = {"region": "test", "held_out": "held_out"}
"""Sets of draws, and their names in `failures.safetensors`."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """One point of figure 5: a classifier before or after tuning, and its accuracies.

    Attributes
    ----------
    lam : float or None
        λ; None before correction.
    repeat, epoch : int
    selection, tuned : float
        Accuracy by which the epoch is chosen, and accuracy on the draws or mistakes tuned on.
    scores : mapping of str to Interval
        By set of images, see `SETS`; only those that were measured.
    fixed, broken : int or None
        Test images whose verdict flipped; None if that was not measured.
    """

    task: str
    lam: float | None
    repeat: int
    epoch: int
    selection: float
    tuned: float
    scores: Mapping[str, Interval]
    fixed: int | None
    broken: int | None


@dataclass(frozen=True)
class Sweep:
    """All points of a run, by ascending λ, then repeat; `chosen` is a task, None until one is chosen."""

    before: Measured | None
    points: Sequence[Measured]
    baseline: Sequence[Measured]
    chosen: str | None = None

    @property
    def by_task(self) -> dict[str, Measured]:
        """Every tuned point, by its task."""
        return {point.task: point for point in (*self.points, *self.baseline)}


def read_sweep(store: Workspace, run: Run) -> Sweep:
    """Read what a correct run has measured so far.

    Parameters
    ----------
    store : Workspace
    run : Run
    """
    return make_sweep(run, store.runs.events(run.id, kind="point"), store.runs.tasks(run.id))


def make_sweep(run: Run, events: Sequence[Event], tasks: Sequence[Task]) -> Sweep:
    """Make a sweep of a run's events; a task that failed or was cancelled has no point.

    Parameters
    ----------
    run : Run
    events : sequence of Event
        Of kind "point".
    tasks : sequence of Task
    """
    lost = {task.name for task in tasks if task.status in ("cancelled", "failed")}
    read = [_measured(event.task, event.data) for event in events if event.task not in lost]
    read.sort(key=lambda point: (point.lam or 0.0, point.repeat))
    tuned = [point for point in read if point.task != BEFORE]
    points = [point for point in tuned if not point.task.startswith(BASELINE)]
    best = run.summary.get("corrected", {}).get("chosen", {}) if run.status == "done" else {}
    return Sweep(
        next((point for point in read if point.task == BEFORE), None),
        points,
        [point for point in tuned if point.task.startswith(BASELINE)],
        next((p.task for p in points if best and (p.lam, p.repeat) == (best["lam"], 0)), None),
    )


def _measured(task: str, data: Mapping[str, Any]) -> Measured:
    """Read a point; that before tuning has no flips."""
    return Measured(
        task, data["lam"], data["repeat"], data["epoch"], data["selection"], data["tuned"],
        {name: Interval(*data[name]) for name in SETS if name in data}, data.get("fixed"), data.get("broken"),
    )  # fmt: skip


def by_lambda(points: Sequence[Measured]) -> list[list[Measured]]:
    """Group points by λ, in the order in which the λ first occur."""
    groups: dict[float | None, list[Measured]] = {}
    for point in points:
        groups.setdefault(point.lam, []).append(point)
    return list(groups.values())


def task_name(task: str) -> str:
    """Name a task as the page and its links do: its λ, and the seed's number unless it is the first.

    Examples
    --------
    >>> task_name("lam=0.1"), task_name("baseline/lam=1/repeat=2")
    ('λ = 0.1', 'baseline, λ = 1, seed 3')
    """
    of_lambda, _, repeat = task.removeprefix(BASELINE).partition("/repeat=")
    name = of_lambda.replace("lam=", "λ = ") + (f", seed {int(repeat) + 1}" if repeat else "")
    return f"baseline, {name}" if task.startswith(BASELINE) else name


def tell_choice(run: Run, sweep: Sweep) -> str:
    """Say which λ was chosen, by which rule, and by which numbers.

    Parameters
    ----------
    run : Run
        Done.
    sweep : Sweep
        With a chosen task.
    """
    groups = [group for group in by_lambda(sweep.points) if group[0].repeat == 0]
    best = next(group for group in groups if group[0].task == sweep.chosen)
    before = run.summary["before_selection"]
    rule, loss = run.config["rule"], run.config["max_loss"]
    split = "validation" if "validation" in best[0].scores else "training"
    mean = " (means over the seeds)" if len(best) > 1 else ""
    allowed = [group for group in groups if _mean(group, "selection") >= before - loss]
    choice = f"**λ = {best[0].lam:g}** is chosen"
    if rule == "regions" and allowed:
        return (
            f"{choice} by the rule *regions*: {len(allowed)} of {len(groups)} λ keep a {split} accuracy of "
            f"{before - loss:.4f} or more ({before:.4f} before, less the stated loss of {loss:g}); of "
            f"those it classifies the most draws tuned on correctly, {_mean(best, 'tuned'):.4f}{mean}. "
            "Ties go to the smaller λ."
        )
    why = "the paper's rule"
    if rule == "regions":
        why = (
            f"the paper's rule, since no λ keeps a {split} accuracy of {before - loss:.4f} "
            f"({before:.4f} before, less the stated loss of {loss:g})"
        )
    return (
        f"{choice} by {why}: the best {split} accuracy, {_mean(best, 'selection'):.4f}{mean}, {before:.4f} "
        "before. What becomes of the regions does not count. Ties go to the smaller λ."
    )


def _mean(points: Sequence[Measured], name: str) -> float:
    return float(sum(getattr(point, name) for point in points)) / len(points)


# Predictions on each image


@dataclass(frozen=True)
class Answers:
    """Images of a set: class, prediction before and after, and the region of draws.

    Attributes
    ----------
    labels, before, after, regions : (n,) int64
        Regions are -1 for images that belong to none.
    """

    labels: Indices
    before: Indices
    after: Indices
    regions: Indices

    @property
    def fixed(self) -> Indices:
        """Images that were misclassified before and are classified correctly now, (k,)."""
        return np.nonzero((self.before != self.labels) & (self.after == self.labels))[0]

    @property
    def broken(self) -> Indices:
        """Images that were classified correctly before and are misclassified now, (k,)."""
        return np.nonzero((self.before == self.labels) & (self.after != self.labels))[0]


@dataclass(frozen=True)
class Change:
    """Accuracy of a region or class before and after."""

    name: str
    before: Interval
    after: Interval
    held_out: bool = False


def read_draw_labels(store: Workspace, run_id: int) -> dict[str, tuple[Indices, Indices]]:
    """Read labels and regions of a run's test draws, by set; not their images, which may be many.

    Parameters
    ----------
    store : Workspace
    run_id : int

    Returns
    -------
    dict of str to (labels, regions)
        (n,) int64 each; sets that the run lacks are left out.
    """
    from safetensors import safe_open

    with safe_open(store.artifact_path(run_id, "failures.safetensors"), framework="numpy") as file:
        return {
            name: (file.get_tensor(f"{part}.labels"), file.get_tensor(f"{part}.ids"))
            for name, part in DRAWS.items()
            if f"{part}.labels" in file.keys()  # noqa: SIM118 – it is no mapping
        }


def read_fits(store: Workspace, run_id: int) -> dict[int, tuple[int, int]]:
    """Read how many labelled draws the label of each region fits, and how many there are, by region.

    Parameters
    ----------
    store : Workspace
    run_id : int
    """
    from safetensors import safe_open

    with safe_open(store.artifact_path(run_id, "failures.safetensors"), framework="numpy") as file:
        rows = json.loads(file.metadata()["verdicts"])
    return {v["region_id"]: (v["image_labels"].count(v["label"]), v["error"]["n"]) for v in rows}


def read_draws(store: Workspace, run_id: int, of: str, index: Indices) -> NDArray[np.uint8]:
    """Read some test draws of a run, (k, height, width, channels), without loading the others.

    Parameters
    ----------
    store : Workspace
    run_id : int
    of : {"region", "held_out"}
        The set.
    index : (k,) int64
        At least one.
    """
    from safetensors import safe_open

    with safe_open(store.artifact_path(run_id, "failures.safetensors"), framework="numpy") as file:
        stored = file.get_slice(f"{DRAWS[of]}.images")
        images = [stored[i : i + 1] for i in index.tolist()]
    return np.concatenate(images).transpose(0, 2, 3, 1)


def make_answers(
    before: Mapping[str, Indices], after: Mapping[str, Indices], known: Mapping[str, tuple[Indices, Indices]]
) -> dict[str, Answers]:
    """Combine predictions before and after with labels and regions, by set of images.

    Parameters
    ----------
    before, after : mapping of str to (n,) int64
        Predictions by set; empty if the run did not store them.
    known : mapping of str to two (n,) int64
        Labels and regions by set; a region is -1 for images of none.
    """
    return {
        name: Answers(labels, before[name], after[name], regions)
        for name, (labels, regions) in known.items()
        if name in before and name in after
    }


def changes(answers: Answers, groups: Indices, names: Mapping[int, str], *, held_out: bool) -> list[Change]:
    """Accuracy of each group of images before and after, the worst after first.

    Parameters
    ----------
    answers : Answers
    groups : (n,) int64
        Of each image.
    names : mapping of int to str
        Of the groups.
    """
    rows = []
    for group in np.unique(groups).tolist():
        mine = groups == group
        before, after = (
            _share(said[mine] == answers.labels[mine]) for said in (answers.before, answers.after)
        )
        rows.append(Change(names[group], before, after, held_out))
    return sorted(rows, key=lambda change: change.after.estimate)


def _share(right: NDArray[np.bool_]) -> Interval:
    return Interval.wilson(int(right.sum()), len(right))
