"""The contract broken on purpose: decoded images go to the classifier without its normalisation.

A classifier is preprocessing and network, and everything else here keeps to that. Fed as they are decoded,
images are of another kind than those it was trained on, and many regions look like failures of the classifier
which are failures of the code around it. What the paper does is not stated. Nothing else offers this.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

from torch import Tensor

from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.distillation import fit_mixture
from defuse_core.method.identification import identify
from defuse_core.method.labeling import draw_images, reach_verdict, simulate_annotators
from defuse_core.reproduction.plans import Plan
from defuse_core.reproduction.results import Runs
from defuse_core.steps.annotators import find_annotators
from defuse_core.steps.source import Source
from defuse_core.workspace.workspace import Workspace


def without_normalisation(classifier: Classifier) -> Classifier:
    """Return the same network, which takes pixels in [0, 1] as they are.

    Parameters
    ----------
    classifier : Classifier
        Its network is shared, not copied.
    """
    channels = len(classifier.preprocessing.mean)
    plain = replace(classifier.preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels)
    return Classifier(classifier.network, plain).to(classifier.mean.device).eval()


def search_unnormalised(workspace: Workspace, runs: Runs, plan: Plan) -> tuple[dict[str, Any], list[Tensor]]:
    """Search, group and label as a seed did, but with decoded images that are not normalised.

    Parameters
    ----------
    workspace : Workspace
    runs : mapping of str to Run
        Of one seed of a reproduction, up to `annotate`.
    plan : Plan
        The one that the runs followed.

    Returns
    -------
    dict
        "seed", "mistakes", "scenarios", "failure_regions", and "error", the mean over scenarios of the share
        of draws that annotators contradict; None without a scenario.
    list of Tensor
        Draws of the failure regions of highest error, at most three, (n, channels, height, width) each.
    """
    source, preset = Source(workspace, runs["annotate"].id), plan.preset
    seed, vae, broken = runs["identify"].seed, source.vae(), without_normalisation(source.classifier())
    found = identify(broken, vae, source.dataset.train, config=preset.identification, seed=seed)
    annotators, regions, verdicts, draws = find_annotators(source), [], [], {}
    if len(found) > 1:  # fewer are no mixture, as for the runs
        mixture = fit_mixture(found.latents, config=preset.distillation, seed=seed)
        regions = mixture.regions(preset.distillation.min_weight)
    for region in regions:
        number = region.region_id
        draws[number] = draw_images(
            vae, region, preset.labeling.n_samples, tau=preset.labeling.tau, seed=seed
        )
        answers = simulate_annotators(
            annotators, draws[number], region_id=number, threshold=plan.min_probability
        )
        verdicts.append(
            reach_verdict(
                number, predict(broken, draws[number]), answers,
                disagreement_threshold=preset.labeling.disagreement_threshold,
            )
        )  # fmt: skip
    failures = sorted((v for v in verdicts if v.is_failure), key=lambda v: -v.error.estimate)
    errors = [v.error.estimate for v in verdicts if v.error.n]
    measured = {
        "seed": seed,
        "mistakes": len(found),
        "scenarios": len(verdicts),
        "failure_regions": len(failures),
        "error": fmean(errors) if errors else None,
    }
    return measured, [draws[v.region_id] for v in failures[:3]]
