"""Step `evaluate`: what the correction changed, in numbers, and what would have changed without it.

The task `evidence` measures the models on all splits and regions. `control/lam=0`, `control/random` and
`noise` measure what the models are compared with; `extensions.controls` explains each. All models are
scored on the same test split and the same new draws of the failure regions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from defuse_core.base.config import CorrectionConfig, IdentificationConfig
from defuse_core.base.intervals import Interval
from defuse_core.base.records import FailureInstances
from defuse_core.base.runtime import numpy_rng
from defuse_core.data.splits import Split
from defuse_core.extensions.consistency import control_by_readers
from defuse_core.extensions.controls import compare_noise, random_regions, sample_split
from defuse_core.extensions.shipped import ANNOTATORS
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.correction import apply_point, tuning_epochs
from defuse_core.method.evaluation import (
    agreement,
    majority_share,
    misclassified,
    nearest_to_region,
    reconstruction_control,
)
from defuse_core.method.labeling import (
    draw_latents,
    failure_instances,
    majority,
)
from defuse_core.method.novelty import latent_novelty, nearest_known, novelty
from defuse_core.method.vae import encode_means
from defuse_core.report.verdicts import count_failures
from defuse_core.steps import results
from defuse_core.steps.annotators import Labelled, who_labelled
from defuse_core.steps.base import (
    File,
    Item,
    Merged,
    Progress,
    Read,
    Step,
    interval_json,
    progress,
    tensors_file,
)
from defuse_core.steps.corrected import Corrected
from defuse_core.steps.results import AFTER, BASELINE, BEFORE, Right, interval_row, number
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import EvaluationConfig
from defuse_core.workspace.edits import names

_SHOWN = 10  # draws in figure 6
EVIDENCE, CONTROL, NOISE = "evidence", "control/", "noise"
WITHOUT, RANDOM = f"{CONTROL}lam=0", f"{CONTROL}random"


class Evaluate(Step):
    """Figure 4, flips, controls, agreement, novelty and nearest real images of a corrected classifier."""

    name = "evaluate"

    def __init__(self, source: Source, config: EvaluationConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        done = Corrected(source)
        self.sets, self.sweep, self.sweep_config = done.sets, done.run.summary, done.run.config
        self.sweep_seed = done.run.seed
        self.before, self.vae = source.classifier(), source.vae()
        corrected = done.classifier("corrected")
        assert corrected is not None  # every run that is done has it
        self.corrected, self.baseline = corrected, done.classifier("baseline")
        failures = (self.sets["test"], self.sets["held_out"])
        self.labels = {i: c for f in failures for i, c in _labels(f).items()}
        self.regions = [region for region in source.regions() if region.region_id in self.labels]
        self.taus = {i: answers.tau for i, answers in done.answers.items()}
        distill = source.upstream("distill")
        edits = source.workspace.annotations.edits(distill.id, up_to=done.run.last_annotation)
        self.names, mixture = names(edits), distill.summary
        self.votes = {i: answers.votes for i, answers in done.answers.items()}
        annotators = {a.annotator for answers in done.answers.values() for a in answers.annotations}
        self.simulated = bool(annotators) and annotators <= ANNOTATORS.keys()
        self.labelled = who_labelled(source, at=_last_simulated(done)) if self.simulated else None
        self.search = IdentificationConfig(**source.upstream("identify").config)
        before = {step: run for step, run in source.ancestry.items() if step != self.name}
        self.seconds = sum(run.seconds for run in before.values())
        n_failures, n_sure = count_failures(done.verdicts)
        self.verdicts = {verdict.region_id: verdict for verdict in done.verdicts}
        self.known: dict[str, Any] = {
            "scenarios": len(source.regions()),
            "failure_regions": n_failures,
            "sure_failures": n_sure,
            "mistakes": source.mistakes().counts(),
            "mixture": {"converged": mixture["converged"], "iterations": mixture["iterations"]},
            "settings": {
                **{step: run.config for step, run in before.items()}, self.name: config.model_dump(),
            },
            "seeds": {**{step: run.seed for step, run in before.items()}, self.name: seed},
        }  # fmt: skip

    def tasks(self) -> list[str]:
        """The evidence, and the controls that the config switches on."""
        controls = [WITHOUT, RANDOM] if self.config.controls else []
        return [EVIDENCE, *controls, *([NOISE] if self.config.noise_images else [])]

    def run(self, task: str) -> Iterator[Item]:
        """Measure the models, or what they are compared with."""
        started = time.monotonic()
        measure = {EVIDENCE: self._evidence, WITHOUT: self._without, RANDOM: self._random, NOISE: self._noise}
        tensors, metadata = yield from measure[task]()
        yield tensors_file(task, tensors, **metadata, seconds=time.monotonic() - started)

    def _evidence(self) -> _Measuring:
        models = {BEFORE: self.before, BASELINE: self.baseline, AFTER: self.corrected}
        right = {name: self._right(model) for name, model in models.items() if model is not None}
        yield Progress(1, 4)
        measured = {**self._compare(right), **self._settings()}
        yield Progress(2, 4)
        codes = encode_means(self.vae, self.dataset.test.images)
        measured["nearest"] = self._nearest(codes, right)
        yield Progress(3, 4)
        curves, measured["novelty"] = self._novelty(codes, ~right[BEFORE]["test"])
        agreed = agreement(list(chain.from_iterable(self.votes.values())))
        measured["agreement"] = {
            "unanimous": number(agreed.unanimous.estimate), "pairwise": number(agreed.pairwise),
            "images": agreed.unanimous.n, "majority": self._majority_shares(),
        }  # fmt: skip
        metadata = {
            "scores": [results.scores_json(row) for row in results.score_rows(right)],
            "agreement": [interval_json(agreed.unanimous), agreed.pairwise],
            "results": measured,
        }
        yield Progress(4, 4)
        return {**curves, "agreement.share": torch.from_numpy(agreed.share)}, metadata

    def _majority_shares(self) -> dict[str, list[float | int | None]]:
        """Figure 7: mean, standard error and count of the draws of failure regions, of others, of all."""
        parts = {
            "failure": [i for i in self.votes if i in self.labels],
            "other": [i for i in self.votes if i not in self.labels],
            "all": list(self.votes),
        }
        shares = {
            name: majority_share(agreement([votes for i in ids for votes in self.votes[i]]).share)
            for name, ids in parts.items()
        }
        return {name: [number(mean), number(error), n] for name, (mean, error, n) in shares.items()}

    def _right(self, classifier: Classifier) -> dict[str, Tensor]:
        """Which images are correctly classified, by set, (n,) bool each."""
        measured_on = {
            "test": self.dataset.test, "validation": self.dataset.validation,
            "region": _split(self.sets["test"]), "held_out": _split(self.sets["held_out"]),
        }  # fmt: skip
        return {
            name: predict(classifier, split.images) == split.labels
            for name, split in measured_on.items()
            if split is not None
        }

    def _compare(self, right: Right) -> dict[str, Any]:
        """Compare the models: figure 4, figure 5, the flips, by region and by class."""
        flips = results.change(right[BEFORE]["test"], right[AFTER]["test"])
        return {
            **results.figure4(right, self.sweep, self.sweep_config),
            **results.held_out(right, self.sets["held_out"]),
            "sweep": [results.sweep_row(point) for point in self.sweep["corrected"]["points"]],
            "flips": flips,
            "change": {**flips, "test": "McNemar, exact, two-sided"},
            "by_region": results.region_rows(right, self.sets, self.taus, self.names, self.verdicts),
            "by_class": results.class_rows(right, self.dataset.test.labels, self.dataset.class_names),
        }

    def _settings(self) -> dict[str, Any]:
        """What limits the numbers, and how λ was chosen."""
        still = reconstruction_control(self.before, self.vae, self.dataset.train).estimate
        return {
            "still_correct_after_reconstruction": number(still),
            "still_correct_by_annotators": self._read_by(self.labelled) if self.labelled else None,
            "label_agreement": self._label_agreement(self.labelled) if self.labelled else None,
            "seed": self.seed,
            "rule": results.RULES[self.sweep_config["rule"]].format(**self.sweep_config),
        }

    def _read_by(self, labelled: Labelled) -> float | None:
        """The same share as the simulated annotators measure it, whom the generator never saw."""
        readers = list(labelled.annotators.values())
        return number(control_by_readers(readers, self.vae, self.dataset.train, seed=self.seed).estimate)

    def _label_agreement(self, labelled: Labelled) -> float:
        """Of the draws tested on, the share whose own majority label is the label of their region.

        A region gets one label, and not every draw of it is of that class. This limits what region
        accuracy means. Only simulated annotators can give so many labels.
        """
        tested = self.sets["test"]
        own = [majority(votes) for votes in labelled.votes(tested.images)]
        same = sum(label == expected for label, expected in zip(own, tested.labels.tolist(), strict=True))
        return Interval.wilson(same, len(tested)).estimate

    def _nearest(self, codes: Tensor, right: Right) -> dict[str, Any]:
        """The real test images nearest to every failure region, by its own Gaussian."""
        nearest = {
            region.region_id: nearest_to_region(
                region, codes, self.config.n_nearest, tau=self.taus[region.region_id]
            )
            for region in self.regions
        }
        rows = results.nearest_rows(right, self.dataset.test.labels, nearest, self.labels)
        return {**rows, "draws_at": self.vae.latent_dim**0.5}  # distance at which most draws of a region lie

    def _novelty(self, test_codes: Tensor, wrong: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Figure 6, and beyond it the distances in pixels and in latent space, as curves and medians.

        In latent space a real image is at μ(x), where the encoder puts it. A draw is at the code that it
        was decoded from, which is where the region lies: encoding its image again would add the error of
        the generator to the distance.
        """
        train, draws, real = self.dataset.train, "draws of failure regions", "misclassified test images"
        reference = misclassified(self.before, train)
        any_misclassified = len(reference) > 0
        reference = reference if any_misclassified else train
        known = encode_means(self.vae, reference.images)
        images = {draws: self.sets["test"].images, real: self.dataset.test.images[wrong]}
        codes = {draws: self._drawn(), real: test_codes[wrong]}
        pixels = {name: novelty(of, reference.images) for name, of in images.items() if len(of)}
        latent = {name: latent_novelty(of, known) for name, of in codes.items() if len(of)}
        tensors = self._side_by_side(reference)
        tensors |= {f"novelty.{name}": torch.from_numpy(far) for name, far in pixels.items()}
        tensors |= {f"latent_novelty.{name}": torch.from_numpy(far) for name, far in latent.items()}
        return tensors, {
            "reference": {"images": len(reference), "misclassified": any_misclassified},
            "pixels": results.novelty_rows(pixels), "latent": results.novelty_rows(latent),
        }  # fmt: skip

    def _side_by_side(self, reference: Split) -> dict[str, Tensor]:
        """Ten draws of failure regions, and the known image nearest to each, with what was predicted."""
        draws = self.sets["test"]
        chosen = numpy_rng(self.seed, "figure6").choice(len(draws), min(_SHOWN, len(draws)), replace=False)
        images = draws.images[torch.from_numpy(chosen)]
        known = reference.images[nearest_known(images, reference.images)]
        return {
            "figure6.draws": images,
            "figure6.known": known,
            "figure6.draws.predictions": predict(self.before, images),
            "figure6.known.predictions": predict(self.before, known),
        }

    def _drawn(self) -> Tensor:
        """The codes of the draws tested on, in their order."""
        ids = self.sets["test"].region_ids
        return torch.cat(
            [
                draw_latents(region, n, tau=self.taus[region.region_id], seed=self.sweep_seed, purpose="test")
                for region in self.regions
                if (n := int((ids == region.region_id).sum()))
            ]
        )

    def _without(self) -> _Measuring:
        measured, _ = yield from self._tune(self.sets["tune"], 0.0)
        return {}, {"measured": measured}

    def _random(self) -> _Measuring:
        """Tune on draws of random regions; `drawn` is the accuracy on them before and after."""
        tuned_labels = _labels(self.sets["tune"])
        regions, labels = random_regions(
            [region for region in self.regions if region.region_id in tuned_labels], tuned_labels,
            classifier=self.before, vae=self.vae, train=self.dataset.train, seed=self.seed,
        )  # fmt: skip
        failures = failure_instances(
            self.vae, regions, labels, self.sweep_config["correction"]["instances_per_region"],
            tau=self.taus, seed=self.sweep_seed, purpose="tune",
        )  # fmt: skip
        measured, tuned = yield from self._tune(failures, self.sweep["corrected"]["chosen"]["lam"])
        models, drawn = {"before": self.before, "after": tuned}, _split(failures)
        measured["drawn"] = {
            when: interval_row(predict(model, drawn.images) == drawn.labels) for when, model in models.items()
        }
        return {}, {"measured": {**measured, "regions": len(regions)}}

    def _tune(
        self, failures: FailureInstances, lam: float
    ) -> Generator[Item, None, tuple[dict[str, Any], Classifier]]:
        """Tune as the correction did, from the same weights, and score on the same images."""
        config = CorrectionConfig(**self.sweep_config["correction"])
        epochs = tuning_epochs(
            self.before, self.dataset.train, failures, lam=lam,
            config=config, seed=self.sweep_seed, selection=self.dataset.selection,
        )  # fmt: skip
        point = yield from progress(epochs)
        tuned = apply_point(self.before, point)
        was, now = self._right(self.before), self._right(tuned)
        scores = {name: interval_row(right) for name, right in now.items() if len(right)}
        change = results.change(was["test"], now["test"])
        return {"lam": lam, "epoch": point.epoch, "instances": len(failures), **scores, **change}, tuned

    def _noise(self) -> _Measuring:
        sample = sample_split(self.dataset.train, self.config.noise_images, seed=self.seed)
        loop = compare_noise(self.before, self.vae, sample, config=self.search, seed=self.seed)
        return {}, {"measured": (yield from progress(loop))}

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Write results.json, without the controls that were cancelled.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        if EVIDENCE not in done:
            raise ValueError("the evidence was cancelled; resume the run to have it measured")
        files = {task: read(task)[1] for task in done}
        document = {**files[EVIDENCE]["results"], **self.known}
        if controls := {t.removeprefix(CONTROL): files[t]["measured"] for t in done if t.startswith(CONTROL)}:
            document["controls"] = controls
        if NOISE in files:
            document["noise"] = files[NOISE]["measured"]
        document["seconds"] = round(self.seconds + sum(task["seconds"] for task in files.values()), 1)
        content = json.dumps(document, indent=2, allow_nan=False) + "\n"
        rows = files[EVIDENCE]["scores"]
        scores = {row["model"]: {k: row[k][0] for k in ("test", "region")} for row in rows}
        return Merged({"scores": scores}, [File("results.json", content.encode())])


_Measuring = Generator[Item, None, tuple[dict[str, Tensor], dict[str, Any]]]
"""Yields progress; returns the tensors and the metadata of a task's file."""


def _last_simulated(done: Corrected) -> float:
    """When the last label of a simulated annotator that the correction used was stored."""
    events = done.source.labels(up_to=done.run.last_annotation)
    return max(event.at for event in events if event.annotator in ANNOTATORS)


def _split(failures: FailureInstances) -> Split:
    return Split(failures.images, failures.labels)


def _labels(failures: FailureInstances) -> dict[int, int]:
    """The label of every region, by region_id."""
    return dict(zip(failures.region_ids.tolist(), failures.labels.tolist(), strict=True))
