"""What a sweep over λ measured: points, tasks, and predictions that changed.

Read from the workspace alone: no classifier runs here. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defuse_core.base.intervals import Interval
from defuse_core.workspace.runs import Event, Run, Task
from defuse_core.workspace.workspace import Workspace

BEFORE, BASELINE, SAID = "before", "baseline/", ".said"
"""As the step names its tasks and files; its module imports torch."""

SETS = {
    "test": "test",
    "validation": "validation",
    "region": "regions",
    "held_out": "regions held out",
}
"""What is measured on, and its name on the page."""

DRAWS = {"region": "test", "held_out": "held_out"}
"""Sets of draws, and what `failures.safetensors` calls them."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """One point of figure 5: a classifier, tuned or as it was, and how well it does.

    Attributes
    ----------
    lam : float or None
        λ; None before correction.
    repeat, epoch : int
    selection, tuned : float
        Accuracy that chooses the epoch, and that on what was tuned on.
    scores : mapping of str to Interval
        By what was measured on, see `SETS`; only those there are.
    fixed, broken : int or None
        Test images whose verdict flipped; None where that was not measured.
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
    """All points of a run, ascending by λ, then repeat; `chosen` is a task, None where none is yet."""

    before: Measured | None
    points: Sequence[Measured]
    baseline: Sequence[Measured]
    chosen: str | None = None

    @property
    def by_task(self) -> dict[str, Measured]:
        """Every point that was tuned for, by its task."""
        return {point.task: point for point in (*self.points, *self.baseline)}


def read_sweep(store: Workspace, run: Run) -> Sweep:
    """Read what a correct run has measured so far."""
    return make_sweep(run, store.runs.events(run.id, kind="point"), store.runs.tasks(run.id))


def make_sweep(run: Run, events: Sequence[Event], tasks: Sequence[Task]) -> Sweep:
    """Make a sweep of a run's events; a task that ended without being done has no point."""
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
    """Read a point; those of earlier versions have no repeat and no flips."""
    return Measured(
        task, data["lam"], data.get("repeat", 0), data["epoch"], data["selection"], data["tuned"],
        {name: Interval(*data[name]) for name in SETS if name in data}, data.get("fixed"), data.get("broken"),
    )  # fmt: skip


def by_lambda(points: Sequence[Measured]) -> list[list[Measured]]:
    """Put the repeats of each λ together, in order."""
    groups: dict[float | None, list[Measured]] = {}
    for point in points:
        groups.setdefault(point.lam, []).append(point)
    return list(groups.values())


def task_name(task: str) -> str:
    """Name a task of λ as the page and its links do; the number of its seed where it is not the first.

    Examples
    --------
    >>> task_name("lam=0.1"), task_name("baseline/lam=1/repeat=2")
    ('λ = 0.1', 'baseline, λ = 1, seed 3')
    """
    of_lambda, _, repeat = task.removeprefix(BASELINE).partition("/repeat=")
    told = of_lambda.replace("lam=", "λ = ") + (f", seed {int(repeat) + 1}" if repeat else "")
    return f"baseline, {told}" if task.startswith(BASELINE) else told


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
    kept = [group for group in groups if _mean(group, "selection") >= before - loss]
    told = f"**λ = {best[0].lam:g}** is chosen"
    if rule == "regions" and kept:
        return (
            f"{told} by the rule *regions*: {len(kept)} of {len(groups)} λ keep a {split} accuracy of "
            f"{before - loss:.4f} or more ({before:.4f} before, less the stated loss of {loss:g}); of "
            f"those it reads most of the draws tuned on, {_mean(best, 'tuned'):.4f}{mean}. Ties go to the "
            "smaller λ."
        )
    why = "the paper's rule"
    if rule == "regions":
        why = (
            f"the paper's rule, since no λ keeps a {split} accuracy of {before - loss:.4f} "
            f"({before:.4f} before, less the stated loss of {loss:g})"
        )
    return (
        f"{told} by {why}: the best {split} accuracy, {_mean(best, 'selection'):.4f}{mean}, {before:.4f} "
        "before. What becomes of the regions does not count. Ties go to the smaller λ."
    )


def _mean(points: Sequence[Measured], name: str) -> float:
    return float(sum(getattr(point, name) for point in points)) / len(points)


# What was said of each image


@dataclass(frozen=True)
class Answers:
    """Images that were measured on: class, prediction before and after, region where they are draws.

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
        """Images that were misclassified before, and are classified correctly now, (k,)."""
        return np.nonzero((self.before != self.labels) & (self.after == self.labels))[0]

    @property
    def broken(self) -> Indices:
        """Images that were classified correctly before, and are misclassified now, (k,)."""
        return np.nonzero((self.before == self.labels) & (self.after != self.labels))[0]


@dataclass(frozen=True)
class Change:
    """Accuracy of a region or class before and after."""

    name: str
    before: Interval
    after: Interval
    held_out: bool = False


def read_draw_labels(store: Workspace, run_id: int) -> dict[str, tuple[Indices, Indices]]:
    """Read labels and regions of a run's test draws, by set; not their images, which may be many."""
    from safetensors import safe_open

    with safe_open(store.artifact_path(run_id, "failures.safetensors"), framework="numpy") as file:
        return {
            name: (file.get_tensor(f"{part}.labels"), file.get_tensor(f"{part}.ids"))
            for name, part in DRAWS.items()
            if f"{part}.labels" in file.keys()  # noqa: SIM118 – it is no mapping
        }


def read_draws(store: Workspace, run_id: int, of: str, index: Indices) -> NDArray[np.uint8]:
    """Read some test draws of a run, (k, height, width, channels), and no others."""
    from safetensors import safe_open

    with safe_open(store.artifact_path(run_id, "failures.safetensors"), framework="numpy") as file:
        stored = file.get_slice(f"{DRAWS[of]}.images")
        images = [stored[i : i + 1] for i in index.tolist()]
    return np.concatenate(images).transpose(0, 2, 3, 1)


def make_answers(
    before: Mapping[str, Indices], after: Mapping[str, Indices], known: Mapping[str, tuple[Indices, Indices]]
) -> dict[str, Answers]:
    """Put together what was predicted before and after, by set of images.

    Parameters
    ----------
    before, after : mapping of str to (n,) int64
        Predictions by set; empty where the run did not keep them.
    known : mapping of str to two (n,) int64
        Labels and regions by set, the latter -1 for images of none.
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
    found = []
    for group in np.unique(groups).tolist():
        mine = groups == group
        before, after = (
            _share(said[mine] == answers.labels[mine]) for said in (answers.before, answers.after)
        )
        found.append(Change(names[group], before, after, held_out))
    return sorted(found, key=lambda change: change.after.estimate)


def _share(right: NDArray[np.bool_]) -> Interval:
    return Interval.wilson(int(right.sum()), len(right))
