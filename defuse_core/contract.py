"""The contract test: is a network fed the way it was trained?

A network that gets pixels of another scale, order or size than in its training is wrong more often,
and everything found with it would be about that. So the stated preprocessing is compared with the
usual others on labelled images. All are screened on a few images; the most accurate, and the stated
one, are then measured on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from defuse_core.classifier import Classifier, Preprocessing, predict
from defuse_core.data import Split
from defuse_core.records import Interval
from defuse_core.runtime import Loop

STATED = "as stated"
SCREENED_IMAGES = 128
FINALISTS = 4
_USUAL_SIZES = (28, 32, 64, 96, 224)
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
        That the network takes.
    """
    grey = sum(_IMAGENET[0]) / 3, sum(_IMAGENET[1]) / 3
    named = {
        "none, [0, 1]": ((0.0,) * channels, (1.0,) * channels),
        "data set's mean and std": (_spread(of_dataset.mean, channels), _spread(of_dataset.std, channels)),
        "ImageNet's mean and std": _IMAGENET if channels == 3 else ((grey[0],), (grey[1],)),
        "±1": ((0.5,) * channels, (0.5,) * channels),
        "0 … 255": ((0.0,) * channels, (1 / 255,) * channels),
    }
    found = [Variant(STATED, stated)]
    for name, (mean, std) in named.items():
        for order in ("rgb", "bgr") if channels == 3 else ("rgb",):
            usual = Preprocessing(mean, std, stated.image_size, order)
            if usual != stated:
                found.append(Variant(f"{name}, BGR" if order == "bgr" else name, usual))
    return found


def _spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value for every channel of the network."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def check_contract(network: nn.Module, variants: Sequence[Variant], split: Split) -> Loop[list[Variant]]:
    """Measure variants, and the best of them at the usual image sizes, as a `Loop`.

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
        The most accurate first; those that the network does not take last.
    """
    own = split.images.shape[-1]
    stated = variants[0].preprocessing
    sizes = [size for size in dict.fromkeys((own, *_USUAL_SIZES)) if size != (stated.image_size or own)]
    steps = len(variants) + len(sizes) + FINALISTS + 1
    few, screened = split[:SCREENED_IMAGES], []
    for measured in _measure_all(network, variants, few):
        screened.append(measured)
        yield len(screened), steps, _told(measured)
    best = by_accuracy(screened)[0]
    resized = [
        Variant(f"{best.name}, {size}×{size}", replace(best.preprocessing, image_size=size)) for size in sizes
    ]
    for measured in _measure_all(network, resized if best.accuracy else [], few):
        screened.append(measured)
        yield len(screened), steps, _told(measured)
    ranked = by_accuracy([v for v in screened if v.accuracy])
    final = {v.name: v for v in [*ranked[:FINALISTS], *(v for v in ranked if v.name == STATED)]}
    for done, measured in enumerate(_measure_all(network, list(final.values()), split), len(screened) + 1):
        final[measured.name] = measured
        yield min(done, steps), steps, _told(measured)
    return by_accuracy([final.get(variant.name, variant) for variant in screened])


def _told(variant: Variant) -> dict[str, float]:
    return {} if variant.accuracy is None else {"accuracy": variant.accuracy.estimate}


def by_accuracy(variants: Iterable[Variant]) -> list[Variant]:
    """Sort, the most accurate first; of equal ones the stated, then those measured on more images."""

    def rank(variant: Variant) -> tuple[float, bool, int]:
        if variant.accuracy is None:
            return 1.0, False, 0
        return -variant.accuracy.estimate, variant.name != STATED, -variant.accuracy.n

    return sorted(variants, key=rank)


def is_worse(stated: Variant, best: Variant) -> bool:
    """Tell whether another preprocessing is clearly better than the stated one.

    Clearly: its interval lies above the stated one's estimate, so that chance alone gives no alarm.
    """
    if best.accuracy is None:
        return False
    return stated.accuracy is None or best.accuracy.low > stated.accuracy.estimate


def _measure_all(network: nn.Module, variants: Iterable[Variant], split: Split) -> Iterator[Variant]:
    for variant in variants:
        try:
            classifier = Classifier(network, variant.preprocessing)
            device = next(network.parameters()).device
            predictions = predict(classifier.to(device), split.images, batch_size=64)
        except Exception as error:  # sizes it was not made for; a program of a user's may raise anything
            yield replace(variant, problem=str(error).splitlines()[0][:200])
            continue
        right = int((predictions == split.labels).sum())
        yield replace(variant, accuracy=Interval.wilson(right, len(split)))
