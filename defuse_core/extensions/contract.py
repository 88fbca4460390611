"""The contract test: check that a network gets its input as it did in training.

A network that gets pixels of another scale, order or size than in training is wrong more often, and its
failures would show only that. So the stated preprocessing is compared with the usual others on labelled
images. All are screened on a few images; the most accurate ones and the stated one are then measured on
all images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from defuse_core.base.intervals import Interval
from defuse_core.base.runtime import Loop
from defuse_core.data.splits import Split
from defuse_core.method.classifier import Classifier, Preprocessing, predict

STATED = "as stated"
SCREENED_IMAGES = 128
FINALISTS = 4
FALSE_ALARMS = 0.05
"""Share of checks that may call the stated preprocessing worse where none is better."""

USUAL_SIZES = (28, 32, 64, 96, 128, 224, 299)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Variant:
    """One way to feed a network.

    Attributes
    ----------
    name : str
    preprocessing : Preprocessing
    accuracy : Interval or None
        None where the network does not take such input.
    problem : str
        Why it does not.
    """

    name: str
    preprocessing: Preprocessing
    accuracy: Interval | None = None
    problem: str = ""


def usual_preprocessings(stated: Preprocessing, of_dataset: Preprocessing, *, channels: int) -> list[Variant]:
    """List the stated preprocessing and the usual normalisations, in each order of the colours.

    Parameters
    ----------
    stated, of_dataset : Preprocessing
        What the user says, and the mean and standard deviation of the training images.
    channels : {1, 3}
        Of the network's input.
    """
    grey = sum(_IMAGENET[0]) / 3, sum(_IMAGENET[1]) / 3
    named = {
        "none, [0, 1]": ((0.0,) * channels, (1.0,) * channels),
        "data set's mean and std": (_spread(of_dataset.mean, channels), _spread(of_dataset.std, channels)),
        "ImageNet's mean and std": _IMAGENET if channels == 3 else ((grey[0],), (grey[1],)),
        "±1": ((0.5,) * channels, (0.5,) * channels),
        "0 … 255": ((0.0,) * channels, (1 / 255,) * channels),
    }
    variants = [Variant(STATED, stated)]
    for name, (mean, std) in named.items():
        for order in ("rgb", "bgr") if channels == 3 else ("rgb",):
            usual = Preprocessing(mean, std, stated.image_size, order)
            if usual != stated:
                variants.append(Variant(f"{name}, BGR" if order == "bgr" else name, usual))
    return variants


def _spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value for every channel of the network."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def check_contract(network: nn.Module, variants: Sequence[Variant], split: Split) -> Loop[list[Variant]]:
    """Measure variants, and the stated and the best of them at the usual image sizes, as a `Loop`.

    Where the network takes none of them at the stated size, all are tried at the others.

    Parameters
    ----------
    network : nn.Module
    variants : sequence of Variant
        The stated one first.
    split : Split
        Labelled images, in random order.

    Returns
    -------
    list of Variant
        Those measured on all images first, the most accurate at the top; those that the network does not
        take last.
    """
    few, own = split[:SCREENED_IMAGES], split.images.shape[-1]
    sizes = {own, *USUAL_SIZES} - {variants[0].preprocessing.image_size or own}
    step, of = 0, len(variants) + 2 * len(sizes) + FINALISTS + 1
    screened: list[Variant] = []
    for screened_one in _measure_all(network, variants, few):
        screened.append(screened_one)
        step += 1
        yield step, of, _metrics(screened_one)
    best = by_accuracy(screened)[0]
    bases = {v.name: v for v in (screened[0], best)} if best.accuracy else {v.name: v for v in screened}
    resized = [_at_size(base, size) for base in bases.values() for size in sorted(sizes)]
    of = step + len(resized) + FINALISTS + 1
    for screened_one in _measure_all(network, resized, few):
        screened.append(screened_one)
        step += 1
        yield step, of, _metrics(screened_one)
    ranked = by_accuracy(v for v in screened if v.accuracy)
    names = dict.fromkeys(v.name for v in [*ranked[:FINALISTS], *(v for v in ranked if v.name == STATED)])
    finalists = [v for v in ranked if v.name in names]
    final: list[Variant] = []
    for measured in _measure_all(network, finalists, split):
        final.append(measured)
        step += 1
        yield step, step + len(finalists) - len(final), _metrics(measured)
    return [*by_accuracy(final), *by_accuracy(v for v in screened if v.name not in names)]


def _at_size(variant: Variant, size: int) -> Variant:
    """Return the same variant at another image size."""
    preprocessing = replace(variant.preprocessing, image_size=size)
    return Variant(f"{variant.name}, {size}×{size}", preprocessing)


def _metrics(variant: Variant) -> dict[str, float]:
    return {} if variant.accuracy is None else {"accuracy": variant.accuracy.estimate}


def by_accuracy(variants: Iterable[Variant]) -> list[Variant]:
    """Sort by accuracy, best first; among equals the stated one, then those measured on more images."""

    def rank(variant: Variant) -> tuple[float, bool, int]:
        if variant.accuracy is None:
            return 1.0, False, 0
        return -variant.accuracy.estimate, variant.name != STATED, -variant.accuracy.n

    return sorted(variants, key=rank)


def is_worse(stated: Variant, best: Variant, *, n_tried: int = 1) -> bool:
    """Tell whether another preprocessing is clearly better than the stated one.

    Clearly: the difference of their accuracies is above 0 by Newcombe's interval (1998, method 10). The best
    of many is high by chance, so the one-sided level of 5 % is divided by their number (Bonferroni): where
    all are equally good, at most one check in 20 gives an alarm.

    Parameters
    ----------
    stated, best : Variant
        The best may be the stated one itself.
    n_tried : int
        Variants that the best was chosen from, less the stated one; under 1 counts as 1.
    """
    if best.accuracy is None:
        return False
    if stated.accuracy is None:
        return True
    confidence = 1 - 2 * FALSE_ALARMS / max(n_tried, 1)  # two-sided: half of the rest lies on either side
    low, high = (
        Interval.wilson(round(found.estimate * found.n), found.n, confidence=confidence)
        for found in (best.accuracy, stated.accuracy)
    )
    doubt = math.hypot(low.estimate - low.low, high.high - high.estimate)
    return low.estimate - high.estimate > doubt


def _measure_all(network: nn.Module, variants: Iterable[Variant], split: Split) -> Iterator[Variant]:
    weight = next(network.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    for variant in variants:
        classifier = Classifier(network, variant.preprocessing).to(device)
        try:
            predict(classifier, split.images[:1])  # one image fails sooner than all of them
            predictions = predict(classifier, split.images, batch_size=64)
        except Exception as error:  # a size it does not take; a user's program may raise anything
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            yield replace(variant, problem=message[:200])
            continue
        right = int((predictions == split.labels).sum())
        yield replace(variant, accuracy=Interval.wilson(right, len(split)))
