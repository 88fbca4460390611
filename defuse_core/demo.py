"""The demo: the whole method on the 5,000 embedded digits with the shipped models, in minutes.

The loop of the paper from identification to evidence; every step is the core's own. Labels come
from five simulated annotators (see `shipped`), ten images a region, who vote.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defuse_core.classifier import Classifier, accuracy, predict
from defuse_core.config import PRESETS, CorrectionConfig, Preset
from defuse_core.correction import (
    apply_point,
    choose_point,
    find_flips,
    hold_out_regions,
    mistake_instances,
    sweep_lambdas,
)
from defuse_core.data import ImageDataset, as_bytes, load_digits
from defuse_core.distillation import fit_mixture
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
    score_split,
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
from defuse_core.files import write_bytes
from defuse_core.identification import identify
from defuse_core.labeling import (
    collect_votes,
    draw_images,
    failure_instances,
    majority,
    reach_verdict,
    simulate_annotators,
)
from defuse_core.records import (
    FailureInstances,
    Interval,
    Mistakes,
    Mixture,
    Region,
    SweepPoint,
    Verdict,
)
from defuse_core.runtime import Callback, DeviceInfo, describe_device, numpy_rng
from defuse_core.shipped import load_annotators, load_shipped_classifier, load_shipped_vae
from defuse_core.vae import BetaVAE, decode_images

NONE_OF_THE_ABOVE_BELOW = 0.5
"""A simulated annotator whose highest probability is under this says "none of the above"."""

BASELINE_LAMBDAS = (0.1, 1.0, 10.0)
"""λ of the baseline: a shorter sweep, since the demo is to take minutes."""

Stage = Callable[[str], AbstractContextManager[Callback]]
"""Opens a named stage of the work, and gives the callback that reports its progress."""


@dataclass(frozen=True)
class Parts:
    """What the demo starts from, all on one device."""

    dataset: ImageDataset
    classifier: Classifier
    vae: BetaVAE
    annotators: Mapping[str, Classifier]
    preset: Preset
    seed: int
    device: DeviceInfo


@dataclass(frozen=True)
class Labelled:
    """Regions with what the annotators made of them."""

    mistakes: Mistakes
    mixture: Mixture
    regions: list[Region]
    verdicts: list[Verdict]
    agreement: Agreement

    @property
    def failures(self) -> dict[int, int]:
        """Label of each failure region, by region_id."""
        return {v.region_id: v.label for v in self.verdicts if v.is_failure and v.label is not None}


@dataclass(frozen=True)
class Corrected:
    """The sweeps of Defuse and of the baseline, and what they chose."""

    tested: FailureInstances
    held_out: FailureInstances | None
    points: list[SweepPoint]
    trade_off: list[TradeOff]
    chosen: SweepPoint
    classifier: Classifier
    scores: tuple[Scores, Scores, Scores]
    n_labelled_mistakes: int
    baseline_lam: float


def load_parts(*, device: torch.device, seed: int, preset: Preset = PRESETS["demo"]) -> Parts:
    """Load the embedded digits and the shipped models."""
    return Parts(
        dataset=load_digits(),
        classifier=load_shipped_classifier(device=device),
        vae=load_shipped_vae(device=device),
        annotators=load_annotators(device=device),
        preset=preset,
        seed=seed,
        device=describe_device(device),
    )


def find_and_label(parts: Parts, stage: Stage) -> Labelled:
    """Identify, distill and label."""
    preset, seed = parts.preset, parts.seed
    with stage("identify") as callback:
        mistakes = identify(
            parts.classifier, parts.vae, parts.dataset.train,
            config=preset.identification, seed=seed, callback=callback,
        )  # fmt: skip
    with stage("distill") as callback:
        mixture = fit_mixture(mistakes.latents, config=preset.distillation, seed=seed, callback=callback)
    regions = mixture.regions(preset.distillation.min_weight)
    verdicts, votes = [], []
    with stage("label") as callback:
        for number, region in enumerate(regions, 1):
            images = _shown(parts, region)
            answers = simulate_annotators(
                parts.annotators,
                images,
                region_id=region.region_id,
                threshold=NONE_OF_THE_ABOVE_BELOW,
            )
            votes += collect_votes(answers, len(images))
            verdicts.append(
                reach_verdict(
                    region.region_id, predict(parts.classifier, images), answers,
                    disagreement_threshold=preset.labeling.disagreement_threshold,
                )
            )  # fmt: skip
            callback(number, len(regions), {"failures": sum(v.is_failure for v in verdicts)})
    return Labelled(mistakes, mixture, regions, verdicts, agreement(votes))


def _shown(parts: Parts, region: Region) -> Tensor:
    """The images that annotators see of a region."""
    labeling = parts.preset.labeling
    return draw_images(parts.vae, region, labeling.n_samples, tau=labeling.tau, seed=parts.seed)


def label_single_mistakes(parts: Parts, found: Labelled) -> FailureInstances:
    """Label as many single mistakes as images were shown of regions: the baseline's D_f."""
    n = min(len(found.regions) * parts.preset.labeling.n_samples, len(found.mistakes))
    chosen = numpy_rng(parts.seed, "baseline").choice(len(found.mistakes), n, replace=False)
    latents = found.mistakes.latents[torch.from_numpy(chosen)]
    images = as_bytes(decode_images(parts.vae, latents))
    answers = simulate_annotators(parts.annotators, images, region_id=-1, threshold=NONE_OF_THE_ABOVE_BELOW)
    return mistake_instances(images, [majority(votes) for votes in collect_votes(answers, n)])


def correct(parts: Parts, found: Labelled, stage: Stage) -> Corrected:
    """Sweep λ for Defuse and for the baseline, and score both on draws that neither has seen."""
    config, tau, seed = parts.preset.correction, parts.preset.labeling.tau, parts.seed
    if not found.failures:
        raise ValueError("no region is a failure; identify with another seed or more perturbations")
    tune_on, test_on = (
        failure_instances(
            parts.vae, found.regions, found.failures, config.instances_per_region,
            tau=tau, seed=seed, purpose=purpose,
        )
        for purpose in ("tune", "test")
    )  # fmt: skip
    tuned_ids, held_out_ids = hold_out_regions(list(found.failures), share=config.held_out_share, seed=seed)
    tested = test_on.regions(tuned_ids)
    single = label_single_mistakes(parts, found)

    def sweep(
        failures: FailureInstances, name: str, config: CorrectionConfig
    ) -> tuple[list[SweepPoint], SweepPoint]:
        with stage(name) as callback:
            points = list(
                sweep_lambdas(
                    parts.classifier, parts.dataset.train, failures, config=config, seed=seed,
                    selection=parts.dataset.selection, callback=callback,
                )
            )  # fmt: skip
        before = accuracy(parts.classifier, parts.dataset.selection, precision=config.precision)
        return points, choose_point(points, rule="regions", before=before)

    points, chosen = sweep(tune_on.regions(tuned_ids), "correct", config)
    short = config.model_copy(update={"lambdas": BASELINE_LAMBDAS})
    _, of_baseline = sweep(single, "baseline", short)
    corrected = apply_point(parts.classifier, chosen)
    rivals = {
        "before": parts.classifier,
        "identified mistakes": apply_point(parts.classifier, of_baseline),
        "Defuse": corrected,
    }
    before, baseline, defuse = (score_model(n, c, parts.dataset, tested) for n, c in rivals.items())
    trade_off = [
        TradeOff(p.lam, score_split(tuned, parts.dataset.test), score_failures(tuned, tested))
        for p in points
        for tuned in (apply_point(parts.classifier, p),)
    ]
    return Corrected(
        tested, test_on.regions(held_out_ids) if held_out_ids else None, points, trade_off, chosen,
        corrected, (before, baseline, defuse), len(single), of_baseline.lam,
    )  # fmt: skip


def summarise(parts: Parts, found: Labelled, done: Corrected, *, seconds: float) -> dict[str, Any]:
    """Return results.json: the numbers of the demo, and the settings that made them."""
    before, baseline, defuse = done.scores
    flips = find_flips(parts.classifier, done.classifier, parts.dataset.test)
    control = reconstruction_control(parts.classifier, parts.vae, parts.dataset.train)
    agreed = label_agreement(parts, done.tested)
    results: dict[str, Any] = {
        "before": _shares(before),
        "baseline": {
            **_shares(baseline), "lam": done.baseline_lam, "lambdas": BASELINE_LAMBDAS,
            "labelled_images": done.n_labelled_mistakes,
        },
        "defuse": {**_shares(defuse), "lam": done.chosen.lam, "epoch": done.chosen.epoch},
        "scenarios": len(found.regions),
        "failure_regions": len(found.failures),
        "mistakes": found.mistakes.counts(),
        "seconds": round(seconds, 1),
        "sweep": [
            {
                "lam": t.lam, "test": t.test.estimate, "region": t.region.estimate,
                "selection": p.selection_accuracy, "tuned": p.tuned_accuracy,
            }
            for t, p in zip(done.trade_off, done.points, strict=True)
        ],
        "flips": {
            "fixed": len(flips.fixed), "broken": len(flips.broken),
            "p": p_value_of_change(len(flips.fixed), len(flips.broken)),
        },
        "still_correct_after_reconstruction": control.estimate,
        "label_agreement": agreed.estimate,
        "agreement": {
            "unanimous": found.agreement.unanimous.estimate, "pairwise": found.agreement.pairwise,
        },
        "mixture": {"converged": found.mixture.converged, "iterations": found.mixture.n_iter},
        "seed": parts.seed,
        "device": {"device": parts.device.device, "name": parts.device.name},
        "rule": "best accuracy on the tuning draws within .01 of the selection accuracy before",
        "settings": parts.preset.model_dump(),
    }  # fmt: skip
    if done.held_out is not None:
        results["held_out"] = {
            "regions": len(done.held_out.region_ids.unique()),
            "before": score_failures(parts.classifier, done.held_out).estimate,
            "after": score_failures(done.classifier, done.held_out).estimate,
        }
    return results


def label_agreement(parts: Parts, tested: FailureInstances) -> Interval:
    """Of the draws tested on, the share whose own majority label is the label of their region.

    A region gets one label, and not every draw of it is that class: this bounds what region
    accuracy means.
    """
    answers = simulate_annotators(
        parts.annotators, tested.images, region_id=-1, threshold=NONE_OF_THE_ABOVE_BELOW
    )
    own = [majority(votes) for votes in collect_votes(answers, len(tested))]
    same = sum(label == wanted for label, wanted in zip(own, tested.labels.tolist(), strict=True))
    return Interval.wilson(same, len(tested))


def _shares(scores: Scores) -> dict[str, Any]:
    return {
        "test": scores.test.estimate,
        "region": scores.region.estimate,
        "test_interval": [scores.test.low, scores.test.high],
        "region_interval": [scores.region.low, scores.region.high],
    }


def scores_table(scores: Sequence[Scores]) -> str:
    """Figure 4 as a Markdown table with 95 % Wilson intervals."""
    rows = ["| model | test accuracy | region accuracy |", "|---|---|---|"]
    rows += [f"| {s.model} | {s.test:.3f} | {s.region:.3f} |" for s in scores]
    return "\n".join(rows) + "\n"


def region_pictures(parts: Parts, found: Labelled, done: Corrected, n: int = 3) -> list[RegionPicture]:
    """The n failure regions of different labels on which annotators agree the most."""
    names = parts.dataset.class_names
    was, now = (score_regions(c, done.tested) for c in (parts.classifier, done.classifier))
    agreeing = {v.region_id: v.image_labels.count(v.label) for v in found.verdicts}
    best = sorted(was, key=lambda i: (-agreeing[i], was[i].estimate))
    unseen = {found.failures[i]: i for i in reversed(best)}.values()  # the best of every label
    order = [i for i in best if i in unseen] + [i for i in best if i not in unseen]
    regions = {region.region_id: region for region in found.regions}
    pictures = []
    for region_id in order[:n]:
        images = _shown(parts, regions[region_id])
        label = names[found.failures[region_id]]
        said = [[names[p] for p in predict(c, images)] for c in (parts.classifier, done.classifier)]
        title = (
            f"region {region_id}: annotators say {label}; "
            f"accuracy {_percent(was[region_id])} → {_percent(now[region_id])}"
        )
        pictures.append(RegionPicture(title, images, label, *said))
    return pictures


def _percent(interval: Interval) -> str:
    return f"{interval.estimate:.0%}"


def write_evidence(parts: Parts, found: Labelled, done: Corrected, out: Path) -> list[Path]:
    """Write figures 1/3, 4, 5, 6 and 7 and the table; return their paths."""
    before, baseline, _ = done.scores
    wrong = misclassified(parts.classifier, parts.dataset.train).images
    reference = wrong if len(wrong) else parts.dataset.train.images
    missed = misclassified(parts.classifier, parts.dataset.test).images
    distances = {"draws of failure regions": novelty(done.tested.images, reference)}
    if len(missed):
        distances["misclassified test images"] = novelty(missed, reference)
    figures = {
        "figure1-regions": draw_regions(region_pictures(parts, found, done)),
        "figure4-accuracy": draw_scores(done.scores),
        "figure5-trade-off": draw_trade_off(
            done.trade_off, before=before, baseline=baseline, chosen=done.chosen.lam
        ),
        "figure6-novelty": draw_novelty(distances),
        "figure7-agreement": draw_agreement(found.agreement, n_annotators=len(parts.annotators)),
    }
    paths = [save_figure(figure, out / f"{name}.png") for name, figure in figures.items()]
    write_bytes(out / "figure4.md", scores_table(done.scores).encode())
    return [*paths, out / "figure4.md"]


def run_demo(*, device: torch.device, seed: int, out: Path, stage: Stage) -> dict[str, Any]:
    """Run the demo and write table, figures and results.json into `out`; return the results."""
    started = time.monotonic()
    with stage("load") as callback:
        parts = load_parts(device=device, seed=seed)
        callback(1, 1, {})
    found = find_and_label(parts, stage)
    done = correct(parts, found, stage)
    with stage("evidence") as callback:
        results = summarise(parts, found, done, seconds=0.0)
        write_bytes(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
        write_evidence(parts, found, done, out)  # after the numbers: a figure that fails loses none
        results["seconds"] = round(time.monotonic() - started, 1)
        write_bytes(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
        callback(1, 1, {})
    return results
