"""Steps `evaluate` and `report`: what the correction changed, in numbers, figures and tables."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from defuse_core.classifier import Classifier, predict
from defuse_core.correction import find_flips
from defuse_core.evaluation import (
    Agreement,
    Scores,
    agreement,
    misclassified,
    novelty,
    p_value_of_change,
    reconstruction_control,
    score_failures,
    score_model,
    score_regions,
)
from defuse_core.figures import (
    RegionPicture,
    TradeOff,
    draw_agreement,
    draw_novelty,
    draw_regions,
    draw_scores,
    draw_trade_off,
    save_figure,
)
from defuse_core.labeling import collect_votes, draw_images, majority, simulate_annotators
from defuse_core.records import FailureInstances, Interval
from defuse_core.shipped import ANNOTATORS, load_annotators
from defuse_core.step_configs import AnnotationConfig, EvaluationConfig, ReportConfig
from defuse_core.steps.base import File, Item, Merged, Progress, Read, Step, interval_json, tensors_file
from defuse_core.steps.labels import answers_by_region
from defuse_core.steps.repair import SETS
from defuse_core.steps.source import Source

RULES = {
    "paper": "best selection accuracy",
    "regions": "best accuracy on the tuning draws within {max_loss} of the selection accuracy before",
}


class _Corrected:
    """What both steps read of a correct run."""

    def __init__(self, source: Source) -> None:
        self.source, self.run = source, source.upstream("correct")
        tensors, metadata = source.read("correct", "failures")
        self.verdicts: list[dict[str, Any]] = metadata["verdicts"]
        self.sets = {
            name: FailureInstances(*(tensors[f"{name}.{part}"] for part in ("images", "labels", "ids")))
            for name in SETS
        }
        answers = answers_by_region(source.labels(up_to=self.run.last_annotation))
        live = {region.region_id for region in source.regions()}  # others were merged or split
        self.answers = {region_id: shown for region_id, shown in answers.items() if region_id in live}

    def classifier(self, name: str) -> Classifier | None:
        """`corrected` or `baseline`; None where it was not computed."""
        if name not in self.run.summary:
            return None
        metadata = self.source.read("classifier", "classifier")[1]
        return self.source.build(self.source.read("correct", name)[0], metadata)


class Evaluate(Step):
    """Figure 4, flips, controls, agreement and novelty of a corrected classifier."""

    name = "evaluate"

    def __init__(self, source: Source, config: EvaluationConfig, seed: int) -> None:
        self.config, self.seed, self.dataset = config, seed, source.dataset
        done = _Corrected(source)
        self.sets, self.sweep, self.sweep_config = done.sets, done.run.summary, done.run.config
        self.before, self.vae = source.classifier(), source.vae()
        corrected = done.classifier("corrected")
        assert corrected is not None  # no run is done without it
        self.corrected, self.baseline = corrected, done.classifier("baseline")
        self.votes = list(chain.from_iterable(shown.votes for shown in done.answers.values()))
        names = {a.annotator for shown in done.answers.values() for a in shown.annotations}
        self.simulated = bool(names) and names <= ANNOTATORS.keys()
        self.annotators = load_annotators() if self.simulated else {}
        self.known: dict[str, Any] = {
            "scenarios": len(source.regions()),
            "failure_regions": self.sweep["failures"],
            "mistakes": source.mistakes().counts(),
            "mixture": {
                "converged": source.upstream("distill").summary["converged"],
                "iterations": source.upstream("distill").summary["iterations"],
            },
            "settings": {step: run.config for step, run in source.ancestry.items() if step != "evaluate"},
        }
        self.seconds = sum(run.seconds for step, run in source.ancestry.items() if step != "evaluate")

    def tasks(self) -> list[str]:
        """One."""
        return ["evidence"]

    def run(self, task: str) -> Iterator[Item]:
        """Measure all models on all splits and regions."""
        started = time.monotonic()
        tested = self.sets["test"]
        models = {"before": self.before, "identified mistakes": self.baseline, "Defuse": self.corrected}
        scores = {
            name: score_model(name, model, self.dataset, tested)
            for name, model in models.items()
            if model is not None
        }
        yield Progress(1, 4)
        found = agreement(self.votes)
        results = self._results(scores, found)
        yield Progress(2, 4)
        distances = self._novelty()
        yield Progress(3, 4)
        results["seconds"] = round(self.seconds + time.monotonic() - started, 1)
        tensors = {f"novelty.{name}": torch.from_numpy(values) for name, values in distances.items()}
        tensors["agreement.share"] = torch.from_numpy(found.share)
        yield tensors_file(
            task,
            tensors,
            scores=[_scores_json(s) for s in scores.values()],
            agreement=[interval_json(found.unanimous), found.pairwise],
        )
        yield File("results.json", (json.dumps(results, indent=2) + "\n").encode())
        yield Progress(4, 4)

    def _results(self, scores: Mapping[str, Scores], found: Agreement) -> dict[str, Any]:
        """results.json but for the time: the numbers, and the settings that made them."""
        chosen = self.sweep["corrected"]["chosen"]
        flips = find_flips(self.before, self.corrected, self.dataset.test)
        results: dict[str, Any] = {
            "before": _shares(scores["before"]),
            "baseline": None,
            "defuse": {**_shares(scores["Defuse"]), "lam": chosen["lam"], "epoch": chosen["epoch"]},
            **self.known,
            "sweep": [
                {
                    "lam": p["lam"], "test": p["test"][0], "region": p["region"][0],
                    "selection": p["selection"], "tuned": p["tuned"],
                }
                for p in self.sweep["corrected"]["points"]
            ],
            "flips": {
                "fixed": len(flips.fixed), "broken": len(flips.broken),
                "p": p_value_of_change(len(flips.fixed), len(flips.broken)),
            },
            "still_correct_after_reconstruction": reconstruction_control(
                self.before, self.vae, self.dataset.train
            ).estimate,
            "label_agreement": self._label_agreement().estimate if self.simulated else None,
            "agreement": {"unanimous": found.unanimous.estimate, "pairwise": found.pairwise},
            "seed": self.seed,
            "rule": RULES[self.sweep_config["rule"]].format(**self.sweep_config),
        }  # fmt: skip
        if "identified mistakes" in scores:
            results["baseline"] = {
                **_shares(scores["identified mistakes"]),
                "lam": self.sweep["baseline"]["chosen"]["lam"],
                "lambdas": self.sweep_config["baseline_lambdas"],
                "labelled_images": self.sweep["labelled_mistakes"],
            }
        if len(held_out := self.sets["held_out"]):
            results["held_out"] = {
                "regions": len(held_out.region_ids.unique()),
                "before": score_failures(self.before, held_out).estimate,
                "after": score_failures(self.corrected, held_out).estimate,
            }
        return results

    def _label_agreement(self) -> Interval:
        """Of the draws tested on, the share whose own majority label is the label of their region.

        A region gets one label, and not every draw of it is that class: this bounds what region
        accuracy means. Only the simulated annotators can be asked for so many labels.
        """
        tested, threshold = self.sets["test"], AnnotationConfig().min_probability
        answers = simulate_annotators(self.annotators, tested.images, region_id=-1, threshold=threshold)
        own = [majority(votes) for votes in collect_votes(answers, len(tested))]
        same = sum(label == wanted for label, wanted in zip(own, tested.labels.tolist(), strict=True))
        return Interval.wilson(same, len(tested))

    def _novelty(self) -> dict[str, Any]:
        """Figure 6, in pixels."""
        train, test = self.dataset.train, self.dataset.test
        wrong = misclassified(self.before, train).images
        reference = wrong if len(wrong) else train.images
        missed = misclassified(self.before, test).images
        images = {"draws of failure regions": self.sets["test"].images, "misclassified test images": missed}
        return {name: novelty(of, reference) for name, of in images.items() if len(of)}

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """The accuracies before and after."""
        rows = read(done[0])[1]["scores"]
        return Merged({"scores": {row["model"]: {k: row[k][0] for k in ("test", "region")} for row in rows}})


class Report(Step):
    """The paper's figures 1/3, 4, 5, 6 and 7 as PNG and SVG, and figure 4 as a table."""

    name = "report"

    def __init__(self, source: Source, config: ReportConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        done = _Corrected(source)
        corrected = done.classifier("corrected")
        assert corrected is not None
        self.before, self.corrected, self.vae = source.classifier(), corrected, source.vae()
        self.sets, self.verdicts, self.answers = done.sets, done.verdicts, done.answers
        self.sweep = done.run.summary
        self.regions = {region.region_id: region for region in source.regions()}
        self.class_names = source.workspace.project(source.run.project_id).class_names
        self.tensors, self.metadata = source.read("evaluate", "evidence")
        self.results = source.workspace.artifact_path(
            source.upstream("evaluate").id, "results.json"
        ).read_bytes()

    def tasks(self) -> list[str]:
        """One."""
        return ["figures"]

    def run(self, task: str) -> Iterator[Item]:
        """Draw every figure."""
        del task
        scores = [_scores(row) for row in self.metadata["scores"]]
        yield File("results.json", self.results)
        yield File("figure4.md", scores_table(scores).encode())
        found = Agreement(
            self.tensors["agreement.share"].numpy(),
            Interval(*self.metadata["agreement"][0]),
            self.metadata["agreement"][1],
        )
        trade_off = [
            TradeOff(p["lam"], Interval(*p["test"]), Interval(*p["region"]))
            for p in self.sweep["corrected"]["points"]
        ]
        names = {a.annotator for shown in self.answers.values() for a in shown.annotations}
        figures: dict[str, Callable[[], Figure]] = {
            "figure1-regions": lambda: draw_regions(self.pictures()),
            "figure4-accuracy": lambda: draw_scores(scores),
            "figure5-trade-off": lambda: draw_trade_off(
                trade_off, before=scores[0], baseline=scores[1] if len(scores) == 3 else None,
                chosen=self.sweep["corrected"]["chosen"]["lam"],
            ),
            "figure6-novelty": lambda: draw_novelty(
                {
                    name.removeprefix("novelty."): values.numpy()
                    for name, values in self.tensors.items()
                    if name.startswith("novelty.")
                }
            ),
            "figure7-agreement": lambda: draw_agreement(found, n_annotators=len(names)),
        }  # fmt: skip
        for number, (name, draw) in enumerate(figures.items(), 1):
            with tempfile.TemporaryDirectory() as folder:
                png = save_figure(draw(), Path(folder) / f"{name}.png")
                for path in (png, png.with_suffix(".svg")):
                    yield File(path.name, path.read_bytes())
            yield Progress(number, len(figures))

    def pictures(self) -> list[RegionPicture]:
        """The failure regions of different labels on which annotators agree the most."""
        labels = {v["region_id"]: v["label"] for v in self.verdicts if v["is_failure"]}
        agreeing = {v["region_id"]: v["image_labels"].count(v["label"]) for v in self.verdicts}
        tested = self.sets["test"]
        was, now = (score_regions(c, tested) for c in (self.before, self.corrected))
        best = sorted(was, key=lambda i: (-agreeing[i], was[i].estimate))
        unseen = {labels[i]: i for i in reversed(best)}.values()  # the best of every label
        order = [i for i in best if i in unseen] + [i for i in best if i not in unseen]
        return [
            self._picture(i, labels[i], was[i].estimate, now[i].estimate)
            for i in order[: self.config.n_regions]
        ]

    def _picture(self, region_id: int, label: int, was: float, now: float) -> RegionPicture:
        shown = self.answers[region_id]
        images: Tensor = draw_images(
            self.vae, self.regions[region_id], shown.n_samples, tau=shown.tau, seed=shown.seed
        )
        names = self.class_names
        said = [[names[p] for p in predict(c, images)] for c in (self.before, self.corrected)]
        title = f"region {region_id}: annotators say {names[label]}; accuracy {was:.0%} → {now:.0%}"
        return RegionPicture(title, images, names[label], *said)

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Which files there are."""
        del done, read
        return Merged({"results": json.loads(self.results)})


def scores_table(scores: Sequence[Scores]) -> str:
    """Figure 4 as a Markdown table with 95 % Wilson intervals."""
    rows = ["| model | test accuracy | region accuracy |", "|---|---|---|"]
    rows += [f"| {s.model} | {s.test:.3f} | {s.region:.3f} |" for s in scores]
    return "\n".join(rows) + "\n"


def _shares(scores: Scores) -> dict[str, Any]:
    return {
        "test": scores.test.estimate,
        "region": scores.region.estimate,
        "test_interval": [scores.test.low, scores.test.high],
        "region_interval": [scores.region.low, scores.region.high],
    }


def _scores_json(scores: Scores) -> dict[str, Any]:
    parts = {"test": scores.test, "region": scores.region, "validation": scores.validation}
    intervals = {name: None if i is None else interval_json(i) for name, i in parts.items()}
    return {"model": scores.model, **intervals}


def _scores(row: Mapping[str, Any]) -> Scores:
    validation = None if row["validation"] is None else Interval(*row["validation"])
    return Scores(row["model"], Interval(*row["test"]), Interval(*row["region"]), validation)
