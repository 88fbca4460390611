"""Read the files of an evaluation, and say what they show in words.

No classifier runs here, and no torch is imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defuse_core.base.intervals import Interval
from defuse_core.report.numbers import judge_flips, p_value, percent
from defuse_core.report.sweep import Change
from defuse_core.workspace.results import load_results
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Workspace

SETS = {"validation": "validation", "test": "test", "region": "regions"}
"""What figure 4 measures on, and its name on the page."""

CONTROLS = {"lam=0": "λ = 0", "random": "random regions"}
SPACES = {"novelty.": "pixels", "latent_novelty.": "latent"}
"""Prefixes of the curves of novelty in the file, and their spaces."""

Distances = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Model:
    """A classifier that was measured; `scores` by what it was measured on, see `SETS`."""

    name: str
    scores: Mapping[str, Interval]


@dataclass(frozen=True)
class Evidence:
    """All of one evaluation.

    Attributes
    ----------
    results : mapping
        results.json.
    models : sequence of Model
        Figure 4: before, identified mistakes where there is that baseline, Defuse.
    novelty : mapping of str to Distances
        By space, "pixels" and "latent", then by set of images: distances to misclassified training images.
    share : (n_draws,) float64
        Share of the annotators who gave the most frequent answer; NaN where fewer than two answered.
    unanimous : Interval or None
        None where no draw has two answers.
    """

    results: Mapping[str, Any]
    models: Sequence[Model]
    novelty: Mapping[str, Distances]
    share: NDArray[np.float64]
    unanimous: Interval | None

    @property
    def pairwise(self) -> float | None:
        """Share of pairs of answers that are the same; None if no draw has two answers."""
        value: float | None = self.results["agreement"]["pairwise"]
        return None if value is None or math.isnan(value) else value


@dataclass(frozen=True)
class Near:
    """Real test images near a region, the nearest first.

    Attributes
    ----------
    images : (n, height, width, channels) uint8
    index : sequence of int
        In the test split.
    distance : sequence of float
    labels : sequence of str
    before, after : sequence of str, or None
        Predictions before and after correction; None if the correction did not store them.
    """

    images: NDArray[np.uint8]
    index: Sequence[int]
    distance: Sequence[float]
    labels: Sequence[str]
    before: Sequence[str] | None
    after: Sequence[str] | None


def read_evidence(store: Workspace, run_id: int) -> Evidence:
    """Read the results of an evaluate run.

    Parameters
    ----------
    store : Workspace
    run_id : int
    """
    from safetensors import safe_open

    results = load_results(store.artifact_path(run_id, "results.json"), run_id)
    with safe_open(store.artifact_path(run_id, "evidence.safetensors"), framework="numpy") as file:
        metadata = {name: json.loads(file.metadata()[name]) for name in ("scores", "agreement")}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 – it is no mapping
    models = [Model(row["model"], scores_of(row)) for row in metadata["scores"]]
    novelty = {
        space: {name.removeprefix(start): far for name, far in tensors.items() if name.startswith(start)}
        for start, space in SPACES.items()
    }
    share = tensors["agreement.share"]
    return Evidence(results, models, novelty, share, score(metadata["agreement"][0]))


def score(row: Sequence[float | None] | None) -> Interval | None:
    """Read an interval from JSON; None if it is of no image.

    Examples
    --------
    >>> str(score([0.5, 0.25, 0.75, 8])), score([None, 0.0, 1.0, 0])
    ('0.500 [0.250, 0.750], n = 8', None)
    """
    if row is None or not row[3]:
        return None
    estimate, low, high, n = (float(part or 0.0) for part in row)
    return Interval(estimate, low, high, int(n))


def scores_of(row: Mapping[str, Any]) -> dict[str, Interval]:
    """All accuracies of a model or a control, by set of images, see `SETS`."""
    return {name: value for name in SETS if (value := score(row.get(name))) is not None}


def control_rows(evidence: Evidence) -> list[Model]:
    """The models of figure 4, with the controls after "before"."""
    before, *baseline, defuse = evidence.models
    controls = [
        Model(CONTROLS[name], scores_of(row))
        for name, row in evidence.results.get("controls", {}).items()
        if name in CONTROLS
    ]
    return [before, *controls, *baseline, defuse]


def region_changes(evidence: Evidence, class_names: Sequence[str]) -> list[Change]:
    """Accuracy of every failure region before and after, the worst before first, beside what its label fits.

    Parameters
    ----------
    evidence : Evidence
    class_names : sequence of str
    """
    rows = evidence.results["by_region"]
    return _changes([(region_called(row, class_names) + _fit(row), row) for row in rows])


def _fit(row: Mapping[str, Any]) -> str:
    """Say how many labelled draws a region's label fits; empty where an older evaluation did not count."""
    return f", fits {row['fits'][0]} of {row['fits'][1]}" if row.get("fits") else ""


def class_changes(evidence: Evidence) -> list[Change]:
    """Accuracy of every class of the test split before and after, the worst before first."""
    changes = _changes([(row["class"], row) for row in evidence.results["by_class"]])
    return sorted(changes, key=lambda change: change.before.estimate)


def nearest_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """What was measured on the real images nearest to each region, the worst region first."""
    near = {row["region_id"]: row for row in evidence.results["nearest"]["regions"]}
    known = {row["region_id"]: row for row in evidence.results["by_region"]}
    return [{**known.get(i, {}), **near[i]} for i in dict.fromkeys([*known, *near]) if i in near]


def nearest_changes(evidence: Evidence, class_names: Sequence[str]) -> list[Change]:
    """Accuracy on the real images nearest to each region, on all of them, and on the whole test split.

    Parameters
    ----------
    evidence : Evidence
    class_names : sequence of str
    """
    near = evidence.results["nearest"]
    rows = [(region_called(row, class_names), row) for row in nearest_rows(evidence)]
    return _changes([*rows, ("all of these", near["pooled"]), ("whole test split", near["test"])])


def _changes(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Change]:
    changes = []
    for name, row in rows:
        before, after = score(row["before"]), score(row["after"])
        if before is not None and after is not None:
            changes.append(Change(name, before, after, held_out=row.get("held_out", False)))
    return changes


def region_called(row: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """A region's title on the page: its name or number, and its label.

    Parameters
    ----------
    row : mapping
        Of results.json, "by_region" or "nearest".
    class_names : sequence of str
    """
    return f"{row.get('name') or 'Region ' + str(row['region_id'])} → {class_names[row['label']]}"


def tell_change(fixed: int, broken: int, p: float) -> str:
    """Say whether flips on the test split are more than chance, by McNemar's exact test.

    Parameters
    ----------
    fixed, broken : int
        Test images, 0 or more.
    p : float
        The test's p-value, in [0, 1].

    Examples
    --------
    >>> tell_change(12, 5, 0.143)[:80]
    '**12 test images were fixed and 5 broken** (McNemar, exact, two-sided, p = 0.14)'
    >>> tell_change(0, 0, 1.0)
    'No verdict on a test image changed: **0 fixed, 0 broken**.'
    """
    verdict = judge_flips(fixed, broken, p)
    if verdict == "none":
        return "No verdict on a test image changed: **0 fixed, 0 broken**."
    text = (
        f"**{fixed:,} test images were fixed and {broken:,} broken** "
        f"(McNemar, exact, two-sided, {p_value(p)}). "
    )
    if verdict == "even":
        return text + "As many were fixed as broken, so test accuracy is what it was."
    if verdict == "chance":
        return text + (
            "**That could be chance**: were images fixed and broken equally often, flips at least this "
            f"uneven would come up in {percent(p)} of all cases. So this shows neither a gain nor a loss."
        )
    return text + f"**That is more than chance explains**: the classifier got {verdict} on the test split."


def tell_control(name: str, evidence: Evidence) -> str:
    """Say what a control does, its accuracy on the failure regions, and what that rules out.

    Parameters
    ----------
    name : {"lam=0", "random"}
    evidence : Evidence
    """
    title, does, if_less, if_not = _MEANING[name]
    row = evidence.results.get("controls", {}).get(name)
    if row is None:
        return f"**{title}**: not measured."
    control = scores_of(row)["region"]
    before, after = (evidence.models[i].scores["region"] for i in (0, -1))
    right, right_before, right_after = (percent(score.estimate, 1) for score in (control, before, after))
    text = (
        f"**{title}**: {does} It classifies {right} of the failure regions' draws correctly; before, "
        f"{right_before} were correct; with Defuse, {right_after}. "
    )
    if drawn := row.get("drawn"):
        was, now = (drawn[when][0] for when in ("before", "after"))
        text += f"It did learn its own draws: {percent(was, 1)} → {percent(now, 1)}. "
    return text + (if_less if control.high < after.low else if_not)


_MEANING = {
    "lam=0": (
        "λ = 0",
        "the same tuning, for as many epochs, on the training images alone.",
        "That rules out that **more training alone** repairs the regions.",
        "So more training alone may explain what Defuse gains.",
    ),
    "random": (
        "Random regions",
        "the same λ and as many draws of as many regions of the same shape, around training images that "
        "are classified correctly.",
        "That rules out that tuning on **generated images of these classes anywhere** would do.",
        "So tuning on generated images anywhere may do as well: where the regions lie may not matter.",
    ),
}
"""Title, what the control does, and what follows if Defuse is surely better than it, and if not."""


# Captions below the figures


def tell_runs(run: Run, correct: Run, seeds: Mapping[str, int]) -> str:
    """Say which runs a figure is of, and their seeds.

    Parameters
    ----------
    run, correct : Run
        The evaluation and its correction.
    seeds : mapping of str to int
        By step; all are listed if they differ.
    """
    differ = len({*seeds.values()}) > 1
    numbers = ", ".join(f"{step} {seed}" for step, seed in seeds.items()) if differ else str(run.seed)
    return f"{'seeds: ' if differ else 'seed '}{numbers}; evaluation {run.id} of correction {correct.id}"


def tell_tuning(results: Mapping[str, Any]) -> str:
    """Say how the correction was made: λ, epoch, optimiser, and how λ was chosen."""
    tuning = results["settings"]["correct"]["correction"]
    defuse = results["defuse"]
    how = f"{tuning['optimizer']}, learning rate {tuning['learning_rate']:g}"
    chosen = f"λ = {defuse['lam']:g}, epoch {defuse['epoch']} of {tuning['epochs']}"
    return f"{chosen}, {how}; λ chosen by {results['rule']}"


def tell_lambda(results: Mapping[str, Any]) -> str:
    """Say the λ of the correction, and the τ of the draws."""
    return f"λ = {results['defuse']['lam']:g}; {tell_taus(results)}"


def tell_taus(results: Mapping[str, Any]) -> str:
    """Say the τ of the draws."""
    taus = sorted({row["tau"] for row in results["by_region"]})
    return f"τ = {', '.join(f'{tau:g}' for tau in taus)}"


def tell_sizes(evidence: Evidence) -> str:
    """Say the number of images of every set of figure 4."""
    scores = evidence.models[0].scores
    per_region = evidence.results["settings"]["correct"]["correction"]["instances_per_region"]
    parts = [
        f"n = {scores[name].n:,} {SETS[name]} images" for name in ("validation", "test") if name in scores
    ]
    if "region" in scores:
        parts.append(f"n = {scores['region'].n:,} fresh draws, {per_region} a region")
    return ", ".join(parts)
