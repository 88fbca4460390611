"""Step `correct`: the sweep over λ, of the regions that are failures and of the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

from defuse_core.classifier import accuracy
from defuse_core.correction import (
    apply_point,
    choose_point,
    hold_out_regions,
    mistake_instances,
    tuning_epochs,
)
from defuse_core.evaluation import score_failures, score_split
from defuse_core.labeling import failure_instances
from defuse_core.records import FailureInstances, SweepPoint, Verdict
from defuse_core.step_configs import SweepConfig
from defuse_core.steps.base import (
    File,
    Item,
    Merged,
    Point,
    Read,
    Step,
    interval_json,
    progress,
    tensors_file,
)
from defuse_core.steps.labels import answers_by_region, judge, mistake_images, single_labels
from defuse_core.steps.source import Source

BASELINE = "baseline/"
_PURPOSES: tuple[Literal["tune", "test"], ...] = ("tune", "test")
SETS = ("tune", "test", "single", "held_out")
"""D_f to tune on, to test on; the baseline's; test draws of regions that are held out whole."""


class Correct(Step):
    """Fine-tune for every λ, a task a λ; `baseline/lam=…` tunes on single mistakes instead."""

    name = "correct"

    def __init__(self, source: Source, config: SweepConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        self.classifier = source.classifier()
        up_to = source.run.last_annotation  # fixed when the run first started
        stored = source.own("failures")
        if stored is None:
            self.sets, self.verdicts = _prepare(source, config, seed, up_to)
        else:  # of an earlier attempt, on whatever device that was
            self.sets = {
                name: FailureInstances(*(stored[0][f"{name}.{part}"] for part in ("images", "labels", "ids")))
                for name in SETS
            }
            self.verdicts = stored[1]["verdicts"]

    @property
    def files(self) -> Sequence[File]:
        """The images tuned and tested on, and the verdicts that chose them."""
        tensors = {
            f"{name}.{part}": value
            for name, failures in self.sets.items()
            for part, value in zip(("images", "labels", "ids"), vars(failures).values(), strict=True)
        }
        return [tensors_file("failures", tensors, verdicts=self.verdicts)]

    def tasks(self) -> list[str]:
        """`lam=0.1` and so on in the order of the config, then `baseline/lam=…`."""
        of_baseline = self.config.baseline_lambdas if len(self.sets["single"]) else ()
        return [
            *(task_of(lam) for lam in self.config.correction.lambdas),
            *(BASELINE + task_of(lam) for lam in of_baseline),
        ]

    def run(self, task: str) -> Iterator[Item]:
        """Tune for one λ; the point has the accuracies that figure 5 shows."""
        lam = float(task.removeprefix(BASELINE).removeprefix("lam="))
        failures = self.sets["single" if task.startswith(BASELINE) else "tune"]
        epochs = tuning_epochs(
            self.classifier, self.dataset.train, failures, lam=lam, config=self.config.correction,
            seed=self.seed, selection=self.dataset.selection,
        )  # fmt: skip
        point = yield from progress(epochs)
        tuned = apply_point(self.classifier, point)
        measured: dict[str, Any] = {
            "lam": lam,
            "epoch": point.epoch,
            "selection": point.selection_accuracy,
            "tuned": point.tuned_accuracy,
            "test": interval_json(score_split(tuned, self.dataset.test)),
            "region": interval_json(score_failures(tuned, self.sets["test"])),
        }
        if self.dataset.validation is not None:
            measured["validation"] = interval_json(score_split(tuned, self.dataset.validation))
        if len(self.sets["held_out"]):
            measured["held_out"] = interval_json(score_failures(tuned, self.sets["held_out"]))
        yield Point(task, measured)
        yield tensors_file(task, point.state, point=measured)

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Choose a λ for Defuse and one for the baseline, and copy their weights."""
        precision = self.config.correction.precision
        before = accuracy(self.classifier, self.dataset.selection, precision=precision)
        summary: dict[str, Any] = {
            "failures": sum(v["is_failure"] for v in self.verdicts),
            "labelled_mistakes": len(self.sets["single"]),
            "before_selection": before,
        }
        files = []
        for name, prefix in (("corrected", ""), ("baseline", BASELINE)):
            tasks = [t for t in done if t.startswith(BASELINE) == bool(prefix)]
            measured = {task: read(task)[1]["point"] for task in tasks}
            points = [
                SweepPoint(m["lam"], m["epoch"], m["selection"], m["tuned"], {}) for m in measured.values()
            ]
            if not points:
                continue
            best = choose_point(points, rule=self.config.rule, before=before, max_loss=self.config.max_loss)
            task = next(t for t, m in measured.items() if m["lam"] == best.lam)
            files.append(tensors_file(name, read(task)[0], point=measured[task]))
            summary[name] = {"chosen": measured[task], "points": list(measured.values())}
        if "corrected" not in summary:
            raise ValueError("every λ was cancelled; resume the run to have one computed")
        return Merged(summary, files)


def task_of(lam: float) -> str:
    """Name the task of a λ, exactly.

    Examples
    --------
    >>> task_of(0.1), task_of(1.0), task_of(1e-10)
    ('lam=0.1', 'lam=1', 'lam=1e-10')
    """
    return f"lam={float(lam)!r}".removesuffix(".0")


def _prepare(
    source: Source, config: SweepConfig, seed: int, up_to: int | None
) -> tuple[dict[str, FailureInstances], list[dict[str, Any]]]:
    """Draw all sets of images, each region at the τ at which it was labelled."""
    events = source.labels(up_to=up_to)
    if not events:
        raise ValueError(
            "no region is labelled; label some in the dashboard, or with: defuse label import FILE.csv, "
            "or defuse label simulate"
        )
    vae, regions, answers = source.vae(), source.regions(), answers_by_region(events)
    threshold = config.disagreement_threshold
    verdicts = judge(source.classifier(), vae, regions, answers, disagreement_threshold=threshold)
    failures = {v.region_id: v.label for v in verdicts if v.is_failure and v.label is not None}
    if not failures:
        raise ValueError(
            f"none of the {len(verdicts)} labelled regions is a failure; label more, or identify with "
            "another seed or more perturbations"
        )
    n = config.correction.instances_per_region
    taus = {region_id: shown.tau for region_id, shown in answers.items()}
    tune_on, test_on = (
        failure_instances(vae, regions, failures, n, tau=taus, seed=seed, purpose=purpose)
        for purpose in _PURPOSES
    )
    tuned, held_out = hold_out_regions(list(failures), share=config.correction.held_out_share, seed=seed)
    index, labels = single_labels(events)
    sets = {
        "tune": tune_on.regions(tuned),
        "test": test_on.regions(tuned),
        "single": mistake_instances(mistake_images(vae, source.mistakes(), index), labels),
        "held_out": test_on.regions(held_out),
    }
    return sets, [_verdict(v) for v in verdicts]


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "image_labels": list(verdict.image_labels)}
