"""What a project remembers of its data set, and whether a data set that was read is still that one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defuse_core.data.splits import ImageDataset

_WORDS = {
    "fingerprint": "other pixels or labels",
    "class_names": "other class names, or in another order",
    "image_shape": "images of another shape",
    "sizes": "another number of images",
}


def dataset_facts(dataset: ImageDataset) -> dict[str, Any]:
    """Return fingerprint, class names, image shape and sizes of the splits, JSON-able."""
    return {
        "fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "sizes": {part: len(split) for part, split in dataset.splits().items()},
    }


def find_change(remembered: Mapping[str, Any], dataset: ImageDataset) -> str | None:
    """Say in words what a data set has that the one remembered has not; None where they agree.

    Parameters
    ----------
    remembered : mapping
        With the keys of `dataset_facts`; one that is missing is not compared.
    dataset : ImageDataset
        As it was read.
    """
    facts = dataset_facts(dataset)
    changed = [key for key in _WORDS if key in remembered and remembered[key] != facts[key]]
    return _WORDS[changed[-1]] if changed else None
