"""Step `correct`: the sweep over λ, for the failure regions and for the baseline.

The draws and the held-out regions depend on the seed of the run. Repeats of a λ differ only in the order
of the batches and in dropout, so their spread is that of the tuning, not of the method.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.base.records import FailureInstances, SweepPoint, Verdict
from defuse_core.base.runtime import derive_seed
from defuse_core.extensions.answers import answers_by_region, failing, judge, single_labels
from defuse_core.method.classifier import Classifier, accuracy, predict
from defuse_core.method.correction import (
    apply_point,
    choose_point,
    hold_out_regions,
    mistake_instances,
    tuning_epochs,
)
from defuse_core.method.labeling import failure_instances, mistake_images
from defuse_core.report.numbers import count
from defuse_core.report.verdicts import count_failures
from defuse_core.steps.base import (
    File,
    Item,
    Merged,
    Point,
    Progress,
    Read,
    Step,
    interval_json,
    progress,
    tensors_file,
)
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import SweepConfig

BEFORE = "before"
BASELINE = "baseline/"
SAID = ".said"
"""Suffix of the file with a classifier's predictions for all images that it is measured on."""

_REPEAT = "/repeat="
_PURPOSES: tuple[Literal["tune", "test"], ...] = ("tune", "test")
SETS = ("tune", "test", "single", "held_out")
"""D_f to tune on, D_f to test on, the single mistakes of the baseline, test draws of held-out regions."""


class Correct(Step):
    """Measure the classifier as it is, then fine-tune for every λ, one task each.

    `baseline/lam=…` tunes on single mistakes instead of regions.
    """

    name = "correct"

    def __init__(self, source: Source, config: SweepConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        self.classifier = source.classifier()
        up_to = source.run.last_annotation  # fixed when the run first started
        stored = source.own("failures")
        if stored is None:
            self.sets, verdicts = _prepare(source, config, seed, up_to)
        else:  # an earlier attempt drew them, perhaps on another device
            self.sets = {name: FailureInstances.of_file(stored[0], name) for name in SETS}
            verdicts = read_verdicts(stored[1], config.disagreement_threshold)
        self.verdicts = verdicts

    @property
    def files(self) -> Sequence[File]:
        """The images to tune and to test on, and the verdicts that chose them."""
        tensors = {
            f"{name}.{part}": value
            for name, failures in self.sets.items()
            for part, value in zip(("images", "labels", "ids"), vars(failures).values(), strict=True)
        }
        return [tensors_file("failures", tensors, verdicts=[v.row() for v in self.verdicts])]

    def tasks(self) -> list[str]:
        """`before`; `lam=0.1` and so on in the order of the config, then `baseline/lam=…`; then repeats."""
        of_baseline = self.config.baseline_lambdas if len(self.sets["single"]) else ()
        lambdas = [
            *(task_of(lam) for lam in self.config.correction.lambdas),
            *(BASELINE + task_of(lam) for lam in of_baseline),
        ]
        repeats = [f"{task}{_REPEAT}{n}" for n in range(1, self.config.n_seeds) for task in lambdas]
        return [BEFORE, *lambdas, *repeats]

    def run(self, task: str) -> Iterator[Item]:
        """Measure the classifier, or tune it for one λ and measure that; the point is one of figure 5."""
        if task == BEFORE:
            said, measured = self._before()
            yield Progress(1, 1)
        else:
            point = yield from self._tune(task)
            said = self._predict(apply_point(self.classifier, point))
            measured = self._measure(task, point, said)
            yield tensors_file(task, point.state, point=measured)
        yield Point(task, measured)
        yield tensors_file(task + SAID, said, point=measured)

    def _tune(self, task: str) -> Generator[Item, None, SweepPoint]:
        failures = self.sets["single" if task.startswith(BASELINE) else "tune"]
        repeat = repeat_of(task)
        epochs = tuning_epochs(
            self.classifier, self.dataset.train, failures, lam=lam_of(task), config=self.config.correction,
            seed=derive_seed(self.seed, "repeat", repeat) if repeat else self.seed,
            selection=self.dataset.selection, sample_seed=self.seed,
        )  # fmt: skip
        return (yield from progress(epochs))

    def _before(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        config, data = self.config.correction, self.sets["tune"]
        selection = accuracy(self.classifier, self.dataset.selection, precision=config.precision)
        right = predict(self.classifier, data.images, precision=config.precision) == data.labels
        said = self._predict(self.classifier)
        point = SweepPoint(0.0, 0, selection, float(right.double().mean()), {})
        return said, {**self._measure(BEFORE, point, said), "lam": None}

    def _predict(self, classifier: Classifier) -> dict[str, Tensor]:
        """Predictions for all images that are measured on, by set, (n,) int64 each."""
        images = {"test": self.dataset.test.images, "region": self.sets["test"].images}
        if self.dataset.validation is not None:
            images["validation"] = self.dataset.validation.images
        if len(self.sets["held_out"]):
            images["held_out"] = self.sets["held_out"].images
        return {name: predict(classifier, of) for name, of in images.items()}

    def _measure(self, task: str, point: SweepPoint, said: Mapping[str, Tensor]) -> dict[str, Any]:
        """Accuracies with Wilson's intervals, and how many test images were fixed and broken."""
        labels = {
            "test": self.dataset.test.labels, "region": self.sets["test"].labels,
            "held_out": self.sets["held_out"].labels,
        }  # fmt: skip
        if self.dataset.validation is not None:
            labels["validation"] = self.dataset.validation.labels
        right = {name: predictions == labels[name] for name, predictions in said.items()}
        scores = {
            name: interval_json(Interval.wilson(int(hits.sum()), len(hits))) for name, hits in right.items()
        }
        measured = {
            "lam": point.lam, "repeat": repeat_of(task), "epoch": point.epoch,
            "selection": point.selection_accuracy, "tuned": point.tuned_accuracy, **scores,
        }  # fmt: skip
        if task != BEFORE:
            measured["fixed"] = int((right["test"] & ~self._was_right).sum())
            measured["broken"] = int((~right["test"] & self._was_right).sum())
        return measured

    @cached_property
    def _was_right(self) -> Tensor:
        """Which test images are correctly classified before tuning, (n_test,) bool."""
        return predict(self.classifier, self.dataset.test.images) == self.dataset.test.labels

    def suffices(self, done: Sequence[str]) -> bool:
        """Whether one λ of the regions is measured: λ that diverge are left out of the choice.

        Parameters
        ----------
        done : sequence of str
        """
        return any(task != BEFORE and not task.startswith(BASELINE) for task in done)

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Choose a λ for Defuse and one for the baseline, and copy their weights.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        before = read(BEFORE + SAID)[1]["point"] if BEFORE in done else self._before()[1]
        n_failures, n_sure = count_failures(self.verdicts)
        summary: dict[str, Any] = {
            "failures": n_failures,
            "sure_failures": n_sure,
            "labelled_mistakes": len(self.sets["single"]),
            "before": before,
            "before_selection": before["selection"],
        }
        files = []
        for name, prefix in (("corrected", ""), ("baseline", BASELINE)):
            tasks = [t for t in done if t != BEFORE and t.startswith(BASELINE) == bool(prefix)]
            measured = {task: read(task + SAID)[1]["point"] for task in sorted(tasks, key=_order)}
            chosen = self._choose(measured, before["selection"])
            if chosen is not None:
                files.append(tensors_file(name, read(chosen)[0], point=measured[chosen]))
                summary[name] = {"chosen": measured[chosen], "points": list(measured.values())}
        if "corrected" not in summary:
            raise ValueError("every λ was cancelled; resume the run to have one computed")
        return Merged(summary, files)

    def _choose(self, measured: Mapping[str, dict[str, Any]], before: float) -> str | None:
        """The first task of the λ that is best by its mean over repeats; None if no task is done."""
        firsts = {m["lam"]: task for task, m in measured.items() if m["repeat"] == 0}
        if len(firsts) > 1:
            firsts.pop(0.0, None)  # without the regions: a control, not a correction
        if not firsts:
            return None

        def mean(lam: float, name: str) -> float:
            values = [float(m[name]) for m in measured.values() if m["lam"] == lam]
            return sum(values) / len(values)

        points = [SweepPoint(lam, 0, mean(lam, "selection"), mean(lam, "tuned"), {}) for lam in firsts]
        best = choose_point(points, rule=self.config.rule, before=before, max_loss=self.config.max_loss)
        return firsts[best.lam]


def task_of(lam: float) -> str:
    """Name the task of a λ, exactly.

    Examples
    --------
    >>> task_of(0.1), task_of(1.0), task_of(1e-10)
    ('lam=0.1', 'lam=1', 'lam=1e-10')
    """
    return f"lam={float(lam)!r}".removesuffix(".0")


def lam_of(task: str) -> float:
    """Return the λ that a task tunes for.

    Examples
    --------
    >>> lam_of("lam=0.1"), lam_of("baseline/lam=1/repeat=2")
    (0.1, 1.0)
    """
    return float(task.removeprefix(BASELINE).partition(_REPEAT)[0].removeprefix("lam="))


def repeat_of(task: str) -> int:
    """Return the number of a repeat, 0 for the first time that a λ is tuned.

    Examples
    --------
    >>> repeat_of("lam=0.1"), repeat_of("lam=0.1/repeat=2")
    (0, 2)
    """
    return int(task.partition(_REPEAT)[2] or 0)


def _order(task: str) -> tuple[float, int]:
    return lam_of(task), repeat_of(task)


def _prepare(
    source: Source, config: SweepConfig, seed: int, up_to: int | None
) -> tuple[dict[str, FailureInstances], list[Verdict]]:
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
    failures = _select(failing(verdicts), config.regions)
    if not failures:
        raise ValueError(_nothing_to_correct(verdicts))
    n = config.correction.instances_per_region
    taus = {region_id: of_region.tau for region_id, of_region in answers.items()}
    tune_on, test_on = (
        failure_instances(vae, regions, failures, n, tau=taus, seed=seed, purpose=purpose)
        for purpose in _PURPOSES
    )
    tuned, held_out = hold_out_regions(list(failures), share=config.correction.held_out_share, seed=seed)
    mistakes = source.mistakes()
    index, labels = single_labels(events, n_mistakes=len(mistakes))
    sets = {
        "tune": tune_on.regions(tuned),
        "test": test_on.regions(tuned),
        "single": mistake_instances(mistake_images(vae, mistakes, index), labels),
        "held_out": test_on.regions(held_out),
    }
    return sets, verdicts


def read_verdicts(metadata: Mapping[str, Any], threshold: float) -> list[Verdict]:
    """Read the verdicts that a correct run reached, of the metadata of its failures.

    Parameters
    ----------
    metadata : mapping
    threshold : float
        ρ of the run.
    """
    return [Verdict.of_row(row, threshold=threshold) for row in metadata["verdicts"]]


def _nothing_to_correct(verdicts: Sequence[Verdict]) -> str:
    if n := sum(verdict.is_failure for verdict in verdicts):
        return (
            f"none of the {count(n, 'failure')} has a label, since the most frequent ones tie; label more of "
            "their draws, or split them"
        )
    return (
        f"none of the {len(verdicts)} labelled regions is a failure; label more, or identify with "
        "another seed or more perturbations"
    )


def _select(failures: dict[int, int], chosen: Sequence[int] | None) -> dict[int, int]:
    """Return the failure regions that were chosen, or all."""
    if chosen is None:
        return failures
    if wrong := sorted(set(chosen) - set(failures)):
        ids = ", ".join(map(str, sorted(failures))) or "none"
        raise ValueError(f"regions must be failure regions, got {wrong}; there are: {ids}")
    return {region_id: label for region_id, label in failures.items() if region_id in chosen}
