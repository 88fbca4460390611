"""Compares two rounds: what became of the failure regions in the search after their correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from defuse_core.base.intervals import Interval
from defuse_core.extensions.answers import failing
from defuse_core.extensions.rounds import (
    RegionFound,
    RegionNow,
    follow_regions,
    still_misclassified,
    trace_regions,
)
from defuse_core.method.distillation import membership
from defuse_core.steps.correct import BEFORE, SAID, read_verdicts, task_of
from defuse_core.steps.source import Source
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.pipeline import searched_lam
from defuse_core.workspace.workspace import Workspace


@dataclass(frozen=True)
class Rounds:
    """What became of the regions.

    Attributes
    ----------
    regions : sequence of RegionNow
        The failure regions of the first round.
    found : sequence of RegionFound
        Regions of the second round; none before it is distilled.
    n_before, n_after : int
        All mistakes of the first and of the second search.
    """

    regions: Sequence[RegionNow]
    found: Sequence[RegionFound]
    n_before: int
    n_after: int


def compare(store: Workspace, run_id: int, second: dict[str, int]) -> Rounds:
    """Follow the failure regions of a correction into the search after it.

    Parameters
    ----------
    store : Workspace
    run_id : int
        Of the correct run.
    second : dict of str to int
        Runs of the second round by step: identify, and distill where it is done.

    Raises
    ------
    WorkspaceError
        If the second search used another generator: its codes lie in another space.
    """
    source, run = Source(store, run_id), store.runs.get(run_id)
    used, generator = Source(store, second["identify"]).upstream("vae").id, source.upstream("vae").id
    if used != generator:
        raise WorkspaceError(
            f"search {second['identify']} used generator {used}, the first round generator {generator}: "
            "their codes cannot be compared; search the corrected classifier again"
        )
    mixture, min_weight = source.mixture(), source.upstream("distill").config["min_weight"]
    mistakes = Source(store, second["identify"]).mistakes()
    verdicts = read_verdicts(source.read("correct", "failures")[1], run.config["disagreement_threshold"])
    labels = failing(verdicts)
    searches = (source.mistakes(), mistakes)
    found = membership(mixture, mistakes.latents, min_weight=min_weight).numpy()  # nobody selected these
    lying = [source.region_of_mistakes(), found]
    wrong = [
        still_misclassified(inside, s.predictions.numpy(), labels)
        for inside, s in zip(lying, searches, strict=True)
    ]
    errors = _errors(source, searched_lam(Source(store, second["identify"]).upstream("classifier"), run))
    traced: list[RegionFound] = []
    if "distill" in second:
        later = Source(store, second["distill"])
        traced = trace_regions(later.region_of_mistakes(), found, failures=errors.keys())
    return Rounds(follow_regions(errors, *wrong), traced, *(len(s) for s in searches))


def _errors(source: Source, lam: float) -> dict[int, tuple[Interval, Interval]]:
    """By failure region, the share of its test draws misclassified before and after, held out or not."""
    failures = source.read("correct", "failures")[0]
    said = [source.read("correct", task + SAID)[0] for task in (BEFORE, task_of(lam))]
    errors = {}
    for part, drawn in (("region", "test"), ("held_out", "held_out")):
        labels, ids = failures[f"{drawn}.labels"], failures[f"{drawn}.ids"]
        for region_id in ids.unique().tolist():
            mine = ids == region_id
            wrong = [int((predictions[part][mine] != labels[mine]).sum()) for predictions in said]
            before, after = (Interval.wilson(n, int(mine.sum())) for n in wrong)
            errors[region_id] = before, after
    return errors
