"""What a presentation shows of failure regions and their correction, computed on a thread.

A prediction on a labelled draw is right if it is what people said of that draw; on fresh draws, of which
nobody said anything, if it is the label of their region, as in the correction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dashboard.components.image_grid import png_url
from dashboard.shared import kept
from dashboard.shell.store import checksum, later, workspace
from defuse_core.report.verdicts import count_failures, sureness_of
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.results import load_results
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project, Workspace

if TYPE_CHECKING:
    from dashboard.shared.region_data import Painter
    from defuse_core.base.records import Verdict
    from defuse_core.extensions.answers import Answers
    from defuse_core.method.classifier import Classifier

Share = tuple[float, float, float, int]
"""Estimate, low and high end of its 95 % interval, and n."""

_MOST = 10
_FEWER = 6  # draws of images that are larger than 64 pixels


@dataclass(frozen=True)
class Exhibit:
    """A failure region.

    Attributes
    ----------
    label : int or None
        The label that people gave it; None where the most frequent ones tie.
    answers : tuple of (int or None)
        What people said of each draw; None where no answer counts.
    sureness : str
        Whether the answers decide that it is a failure.
    images : tuple of str
        Some of the draws that people labelled, as data URLs.
    before, after : tuple of int
        Predictions on all draws that people labelled; `after` is None where nothing was corrected.
    was, now : Share
        Accuracy before and after, on fresh draws, if there is a correction of the region. Else `now` is
        None, and `was` is on the draws that people labelled, each by its own label.
    held_out : bool
        The correction was not tuned on this region.
    """

    region_id: int
    label: int | None
    answers: tuple[int | None, ...]
    sureness: str
    images: tuple[str, ...]
    before: tuple[int, ...]
    after: tuple[int, ...] | None
    was: Share
    now: Share | None
    held_out: bool = False

    @property
    def agreed(self) -> int:
        """How many labelled draws the label fits."""
        return 0 if self.label is None else self.answers.count(self.label)

    @property
    def kept(self) -> int:
        """How many draws have a label."""
        return len(self.answers) - self.answers.count(None)


@dataclass(frozen=True)
class Correction:
    """What a correction changed: accuracies before and after, and the test images it fixed and broke.

    Attributes
    ----------
    test, region : pair of Share
        `region` is over all regions tuned on, also those that no longer exist.
    fixed, broken : int or None
        None where the run did not count them.
    p : float or None
        Of McNemar's exact test that both are equally likely.
    reconstruction : float or None
        Share of the correctly classified training images that still are once they are reconstructed.
    own_label : float or None
        Share of the test draws whose own majority label is that of their region.
    real : pair of Share, or None
        Accuracy on the real test images nearest to the regions.
    """

    lam: float
    test: tuple[Share, Share]
    region: tuple[Share, Share]
    fixed: int | None
    broken: int | None
    p: float | None
    reconstruction: float | None
    own_label: float | None
    real: tuple[Share, Share] | None = None


@dataclass(frozen=True)
class Exhibition:
    """All failure regions, worst first, and what became of them."""

    exhibits: tuple[Exhibit, ...]
    correction: Correction | None

    failures: tuple[int, int]
    """How many there are, and how many of them are sure."""


@dataclass(frozen=True)
class Curator:
    """Puts an exhibition together; it waits until what it needs is loaded, so call it on a thread.

    Attributes
    ----------
    corrected : future of Classifier, or None
        Where there is a correct run.
    """

    store: Workspace
    painter: Painter
    verdicts: Future[dict[int, Verdict]]
    corrected: Future[Classifier] | None

    def curate(self, events: Sequence[LabelEvent], correct: Run | None, evaluate: Run | None) -> Exhibition:
        """Return all failure regions, with these answers and the correction by these runs."""
        from defuse_core.extensions.answers import answers_by_region

        results: dict[str, Any] = {}
        if evaluate is not None:
            results = load_results(self.store.artifact_path(evaluate.id, "results.json"), evaluate.id)
        scores = {} if correct is None else self._scores(correct, results)
        answers, verdicts = answers_by_region(events), self.verdicts.result()
        exhibits = [
            self._exhibit(verdicts[i], answers[i], scores.get(i))
            for i in self.painter.regions.result().ids
            if i in verdicts and verdicts[i].is_failure
        ]
        exhibits.sort(key=lambda exhibit: exhibit.was[0])
        correction = None if correct is None else self._correction(correct, results, scores)
        live = [verdicts[i] for i in self.painter.regions.result().ids if i in verdicts]
        return Exhibition(tuple(exhibits), correction, count_failures(live))

    def _exhibit(self, verdict: Verdict, answers: Answers, score: Mapping[str, Any] | None) -> Exhibit:
        from defuse_core.method.classifier import predict
        from defuse_core.method.labeling import draw_images

        vae, region = self.painter.vae.result(), self.painter.regions.result()[verdict.region_id]
        images = draw_images(vae, region, answers.n_samples, tau=answers.tau, seed=answers.seed)
        before = tuple(predict(self.painter.classifier.result(), images).tolist())
        after = None if self.corrected is None else tuple(predict(self.corrected.result(), images).tolist())
        few = images[: _MOST if max(images.shape[-2:]) <= 64 else _FEWER].permute(0, 2, 3, 1).numpy()
        error = verdict.error
        by_people = (1 - error.estimate, 1 - error.high, 1 - error.low, error.n)
        return Exhibit(
            verdict.region_id, verdict.label, verdict.image_labels, sureness_of(verdict),
            tuple(png_url(image) for image in few), before, after,
            was=by_people if score is None else _share(score["before"]),
            now=None if score is None else _share(score["after"]),
            held_out=bool(score and score["held_out"]),
        )  # fmt: skip

    def _scores(self, correct: Run, results: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """Accuracy before and after on the test draws, by region: as evaluated, else measured here."""
        if "by_region" in results:
            return {row["region_id"]: row for row in results["by_region"]}
        from defuse_core.base.checkpoints import load_artifact
        from defuse_core.base.records import FailureInstances
        from defuse_core.method.evaluation import score_regions

        assert self.corrected is not None
        path = self.store.artifact_path(correct.id, "failures.safetensors")
        tensors, _ = load_artifact(path)
        scores: dict[int, dict[str, Any]] = {}
        for name in ("test", "held_out"):
            failures = FailureInstances.of_file(tensors, name)
            if not len(failures):
                continue
            classifiers = self.painter.classifier.result(), self.corrected.result()
            was, now = (score_regions(classifier, failures) for classifier in classifiers)
            for i in was:
                ends = {"before": list(vars(was[i]).values()), "after": list(vars(now[i]).values())}
                scores[i] = {**ends, "held_out": name == "held_out"}
        return scores

    def _correction(
        self, correct: Run, results: Mapping[str, Any], scores: Mapping[int, Mapping[str, Any]]
    ) -> Correction:
        from defuse_core.method.evaluation import p_value_of_change

        chosen = correct.summary["corrected"]["chosen"]
        flips = results.get("flips", {})
        fixed, broken = (chosen.get(name, flips.get(name)) for name in ("fixed", "broken"))
        classifier = self.store.runs.ancestry(correct.id)["classifier"]
        nearest = results.get("nearest", {}).get("pooled")
        tuned = [_share(score["before"]) for score in scores.values() if not score["held_out"]]
        return Correction(
            chosen["lam"],
            test=(_share(classifier.summary["intervals"]["test"]), _share(chosen["test"])),
            region=(_pool(tuned), _share(chosen["region"])),
            fixed=fixed,
            broken=broken,
            p=None if fixed is None else p_value_of_change(fixed, broken),
            reconstruction=results.get("still_correct_after_reconstruction"),
            own_label=results.get("label_agreement"),
            real=(_share(nearest["before"]), _share(nearest["after"])) if nearest else None,
        )


def presented(store: Workspace, project: Project) -> Run | None:
    """Return the newest distill run whose regions people have labelled, of any round; else the newest."""
    done = [run for run in store.runs.of_project(project.id, "distill") if run.status == "done"]
    labelled = [r for r in done if any(e.region_id >= 0 for e in store.annotations.counting(r.id))]
    return next(reversed(labelled or done), None)


def find_correction(store: Workspace, run: Run) -> tuple[Run | None, Run | None]:
    """Return the newest finished correct run of a distill run, and the newest evaluate run of that.

    An evaluation that started before another λ was chosen is of another classifier, so it is left out.
    """
    correct = _newest_on(store, "correct", run)
    evaluate = None if correct is None else _newest_on(store, "evaluate", correct)
    if correct is not None and evaluate is not None:
        overtaken = (correct.finished_at or 0.0) > (evaluate.started_at or 0.0)
        return correct, None if overtaken else evaluate
    return correct, evaluate


def _newest_on(store: Workspace, step: StepName, ground: Run) -> Run | None:
    for run in reversed(store.runs.of_project(ground.project_id, step)):
        if run.status == "done" and store.runs.ancestry(run.id)[ground.step].id == ground.id:
            return run
    return None


def _share(values: Sequence[Any]) -> Share:
    estimate, low, high, n = values
    return float(estimate), float(low), float(high), int(n)


def _pool(shares: Sequence[Share]) -> Share:
    """Pool shares into the share over all their draws."""
    from defuse_core.base.intervals import Interval

    n = sum(share[3] for share in shares)
    return _share(list(vars(Interval.wilson(round(sum(s[0] * s[3] for s in shares)), n)).values()))


def _version(run_id: int, correct_id: int | None, evaluate_id: int | None) -> object:
    """Edits, answers, and the weights of the correction, which change with the chosen λ."""
    del evaluate_id
    return kept.edits(run_id), workspace().annotations.last_id(run_id), _weights(correct_id)


def _weights(correct_id: int | None) -> str | None:
    return None if correct_id is None else checksum(correct_id, "corrected.safetensors")


@later("the slides", max_entries=2, version=_version)
def exhibition(run_id: int, correct_id: int | None, evaluate_id: int | None) -> Callable[[], Exhibition]:
    """The failure regions of a distill run and what a correction made of them; None while they load."""
    store, painter = workspace(), kept.painter(run_id)
    tuned = None if correct_id is None else corrected.future(correct_id)
    curator = Curator(store, painter, kept.verdicts.future(run_id), tuned)
    runs = [None if i is None else store.runs.get(i) for i in (correct_id, evaluate_id)]
    return partial(curator.curate, store.annotations.counting(run_id), *runs)


@later("the corrected classifier", max_entries=4, version=_weights)
def corrected(run_id: int) -> Callable[[], Classifier]:
    """The classifier that a correct run made."""
    return partial(_open_corrected, workspace(), run_id)


def _open_corrected(store: Workspace, run_id: int) -> Classifier:
    from defuse_core.steps.source import Source

    source = Source(store, run_id)
    return source.build(source.read("correct", "corrected")[0], source.read("classifier", "classifier")[1])
