"""The classification data sets of torchvision, with the arguments that give each of its splits. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Arguments = dict[str, Any]


def _by_train(**more: Any) -> dict[str, Arguments]:
    return {"train": {"train": True, **more}, "test": {"train": False, **more}}


def _by_split(train: str = "train", *, test: str = "", validation: str = "") -> dict[str, Arguments]:
    named = {"train": train, "validation": validation, "test": test}
    return {split: {"split": name} for split, name in named.items() if name}


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision.

    Attributes
    ----------
    splits : dict
        By the split, the arguments of its class; {"": {}} where it has none.
    kind : str
        Name of its class, where that is not the name of the set.
    size : int or None
        To which images of mixed sizes are resized by default.
    numbered : bool
        Whether classes are called by number, whatever torchvision calls them.
    upright : bool
        Whether images have to be transposed to be upright.
    """

    splits: dict[str, Arguments] = field(default_factory=lambda: {"": {}})
    kind: str = ""
    size: int | None = None
    numbered: bool = False
    upright: bool = False


_EMNIST = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
_THREE = _by_split(validation="val", test="test")

TORCHVISION_SETS: dict[str, TorchvisionSet] = {
    "MNIST": TorchvisionSet(_by_train(), numbered=True),
    "SVHN": TorchvisionSet(_by_split(test="test"), numbered=True),
    "SVHN-extra": TorchvisionSet(_by_split("extra", test="test"), "SVHN", numbered=True),
    "GTSRB": TorchvisionSet(_by_split(test="test"), size=32, numbered=True),
    "CIFAR10": TorchvisionSet(_by_train()),
    "CIFAR100": TorchvisionSet(_by_train()),
    "FashionMNIST": TorchvisionSet(_by_train()),
    "KMNIST": TorchvisionSet(_by_train()),
    "QMNIST": TorchvisionSet(_by_train(), numbered=True),
    **{f"EMNIST-{part}": TorchvisionSet(_by_train(split=part), "EMNIST", upright=True) for part in _EMNIST},
    "USPS": TorchvisionSet(_by_train(), numbered=True),
    "SEMEION": TorchvisionSet(numbered=True),
    "STL10": TorchvisionSet(_by_split(test="test")),
    "Flowers102": TorchvisionSet(_THREE),
    "Food101": TorchvisionSet(_by_split(test="test")),
    "DTD": TorchvisionSet(_THREE),
    "FER2013": TorchvisionSet(_by_split(test="test"), numbered=True),
    "FGVCAircraft": TorchvisionSet(_THREE),
    "OxfordIIITPet": TorchvisionSet(_by_split("trainval", test="test")),
    "StanfordCars": TorchvisionSet(_by_split(test="test")),
    "PCAM": TorchvisionSet(_THREE, numbered=True),
    "Country211": TorchvisionSet(_by_split(validation="valid", test="test")),
    "RenderedSST2": TorchvisionSet(_THREE),
    "CLEVRClassification": TorchvisionSet(_by_split(validation="val"), numbered=True),
    "Imagenette": TorchvisionSet(_by_split(validation="val")),
    "ImageNet": TorchvisionSet(_by_split(validation="val")),
    "Places365": TorchvisionSet(_by_split("train-standard", validation="val")),
    "LFWPeople": TorchvisionSet(_by_split(test="test")),
    "INaturalist": TorchvisionSet(
        {"train": {"version": "2021_train"}, "validation": {"version": "2021_valid"}}
    ),
    "EuroSAT": TorchvisionSet(),
    "Caltech101": TorchvisionSet(),
    "Caltech256": TorchvisionSet(),
    "SUN397": TorchvisionSet(),
}
"""By the name that a person gives, in any case."""
