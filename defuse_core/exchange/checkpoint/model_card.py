"""Write the card of an exported checkpoint: what it is, how it was made, how good it is, how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defuse_core.base.intervals import Interval
from defuse_core.method.classifier import Preprocessing
from defuse_core.workspace.configs import SweepConfig

TITLE = "# Corrected classifier"
"""How every card begins."""

_SHOWN_CLASSES = 100
_SETS = {
    "test": "test split",
    "validation": "validation split",
    "region": "failure regions tuned on, draws kept for testing",
    "held_out": "failure regions held out whole",
}
_RULES = {
    "paper": "the best accuracy on the {split} images",
    "regions": "the best accuracy on the draws tuned on, giving up at most {max_loss:g} on the {split} "
    "images",
}


@dataclass(frozen=True)
class RegionRow:
    """Accuracy on one region's test draws, before and after; `name` is "" where nobody gave one."""

    region_id: int
    name: str
    label: str
    before: Interval
    after: Interval


@dataclass(frozen=True)
class Card:
    """What the card of a corrected classifier says.

    Attributes
    ----------
    file_name : str
        Of the safetensors file.
    project, run, task : str, int, str
        Where it comes from; `task` names the λ.
    chosen : bool
        Whether the rule chose this λ.
    architecture, preprocessing, class_names
        Of the classifier.
    config, seed : SweepConfig, int
        Of the correct run.
    n_training : int
        Training images of the project.
    point, before : mapping
        Measured after and before the correction, as the run stores it; `before` may be empty.
    n_regions, n_labelled, n_answers : int
        Regions tuned on, regions labelled, answers given.
    simulated : bool
        Whether only simulated annotators gave them.
    regions : sequence of RegionRow
        Empty if nothing was measured by region.
    nested_under : str, optional
        The entry of the upload that held the weights.
    rounded_to : str, optional
        Type of the upload's weights if it is narrower than that of the tuned ones.
    code : str
        Python that loads it.
    version : str
        Of Defuse.
    """

    file_name: str
    project: str
    run: int
    task: str
    chosen: bool
    architecture: str
    preprocessing: Preprocessing
    class_names: Sequence[str]
    config: SweepConfig
    seed: int
    n_training: int
    point: Mapping[str, Any]
    before: Mapping[str, Any]
    n_regions: int
    n_labelled: int
    n_answers: int
    simulated: bool
    regions: Sequence[RegionRow]
    nested_under: str | None
    rounded_to: str | None
    code: str
    version: str


def write_card(card: Card) -> str:
    """Return the card as Markdown."""
    parts = [
        f"{TITLE}: {escape(card.project)}",
        f"{escape(card.file_name)} holds the weights of an image classifier that Defuse {card.version} "
        "fine-tuned on misclassification regions: mistakes that its test set does not contain. They are of "
        f"run {card.run}, {card.task}.",
        *_about(card),
        *_how_made(card),
        *_accuracy(card),
        *_loading(card),
        *_limits(card),
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Write text of a user on one line so that Markdown shows it as it is.

    Examples
    --------
    >>> escape("a|b <i>")
    'a\\\\|b \\\\<i\\\\>'
    """
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"([\\`*_{}\[\]()<>#+.!|~&$-])", r"\\\1", plain)


def _about(card: Card) -> list[str]:
    feeding = card.preprocessing
    steps = ["pixels in [0, 1]"]
    if feeding.image_size is not None:
        steps.append(f"resized to {feeding.image_size}×{feeding.image_size}, bilinear with antialiasing")
    if len(feeding.mean) == 3:
        steps.append(f"colours in {feeding.channel_order.upper()} order")
    steps.append(f"(x − mean) / std with mean {_numbers(feeding.mean)} and std {_numbers(feeding.std)}")
    names = ", ".join(f"{i} {escape(name)}" for i, name in enumerate(card.class_names[:_SHOWN_CLASSES]))
    more = len(card.class_names) - _SHOWN_CLASSES
    rest = f", and {more} more, which the file's metadata names" if more > 0 else ""
    return [
        "## Architecture, preprocessing, classes",
        f"- Architecture: `{card.architecture}`\n"
        f"- Preprocessing: {'; '.join(steps)}\n"
        f"- {len(card.class_names)} classes, by index: {names}{rest}",
    ]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _how_made(card: Card) -> list[str]:
    tuning = card.config.correction
    split = "validation" if "validation" in card.point else "training"
    rule = _RULES[card.config.rule].format(split=split, max_loss=card.config.max_loss)
    choice = f"chosen of {len(tuning.lambdas)} by {rule}"
    if not card.chosen:
        choice = f"not the one that rule `{card.config.rule}` chose"
    who = "simulated annotators, no person" if card.simulated else "people"
    source = f"{card.n_regions} failure regions of {card.n_labelled} labelled"
    source += f", {tuning.instances_per_region} draws each"
    if card.task.startswith("baseline/"):
        source = "single labelled mistakes: the baseline"
    data = f"all {card.n_training:,} training images"
    if tuning.max_images is not None and tuning.max_images < card.n_training:
        data = f"a stratified sample of {tuning.max_images:,} of the {card.n_training:,} training images"
    return [
        "## How it was made",
        f"Fine-tuned on L(D) + λ·L(D_f): cross-entropy on {data}, and on labelled images that a "
        "β-VAE decoded (Slack, Rauschmayr, Kenthapadi, *Defuse*, NeurIPS 2021 workshop).\n\n"
        f"- λ = {card.point['lam']:g}, {choice}\n"
        f"- Epoch {card.point['epoch']} of {tuning.epochs}, the best on the {split} images\n"
        f"- {tuning.optimizer}, learning rate {tuning.learning_rate:g}, batches of {tuning.batch_size}, "
        f"precision {tuning.precision}\n"
        f"- Tuned on {source}\n"
        f"- {card.n_answers:,} answers of {who}; a region is a failure if more than "
        f"{card.config.disagreement_threshold:.0%} of its labelled draws disagree with the classifier\n"
        f"- Seed {card.seed}, repeat {card.point.get('repeat', 0)}",
    ]


def _accuracy(card: Card) -> list[str]:
    rows = ["| images | n | before | after |", "|---|---|---|---|"]
    for name, caption in _SETS.items():
        if name in card.point:
            before = f"{Interval(*card.before[name])}" if name in card.before else "–"
            after = Interval(*card.point[name])
            rows.append(f"| {caption} | {after.n:,} | {before} | {after} |")
    parts = ["## Accuracy, with 95 % intervals (Wilson)", "\n".join(rows)]
    if "fixed" in card.point:
        parts.append(
            f"Of the test images {card.point['fixed']} were fixed and {card.point['broken']} broken."
        )
    if card.regions:
        rows = ["| region | label | n | before | after |", "|---|---|---|---|---|"]
        for row in card.regions:
            name = f"{row.region_id} {escape(row.name)}".strip()
            rows.append(f"| {name} | {escape(row.label)} | {row.after.n} | {row.before} | {row.after} |")
        parts.append("\n".join(rows))
    return parts


def _loading(card: Card) -> list[str]:
    parts = [
        "## How to load it",
        "Names and types of the weights are those they came with. The metadata of the file holds "
        "architecture, preprocessing, classes and accuracies as JSON, which `defuse suite check` reads.",
        _fenced(card.code),
    ]
    if card.nested_under:
        entries = card.nested_under.split(".")
        nested = "".join(f"{{{name!r}: " for name in entries) + "weights" + "}" * len(entries)
        parts += [
            f"The upload held the weights under the entry {escape(card.nested_under)}; a safetensors file "
            "has no entries. Where your program expects that one:",
            _fenced(
                "import torch\nfrom safetensors.torch import load_file\n\n"
                f"weights = load_file({card.file_name!r})\ntorch.save({nested}, 'corrected.pt')\n"
            ),
        ]
    return parts


def _fenced(code: str) -> str:
    """A block of code; its fence is longer than any in the code, since names in it come from an upload."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}python\n{code}{fence}"


def _limits(card: Card) -> list[str]:
    limits = [
        "Draws of regions are images decoded by a β-VAE, not photographs: accuracy on them says how "
        "well these bugs are repaired, not how many others there are.",
        "All draws of a region have one label, which does not fit every draw.",
        "The numbers hold for the preprocessing above, and for data like the test split.",
    ]
    if card.simulated:
        limits.append("Simulated annotators gave the labels: nobody has looked at the regions.")
    if not card.chosen:
        limits.append(
            "This λ was picked by hand; if that was for its test accuracy, the latter is optimistic."
        )
    if card.rounded_to:
        limits.append(
            f"The weights were tuned and measured in float32 and rounded to {card.rounded_to}, the type of "
            "the upload: single answers may differ."
        )
    if not card.before:
        limits.append("The classifier before the correction was not measured in this run.")
    return ["## Limits", "\n".join(f"- {limit}" for limit in limits)]
