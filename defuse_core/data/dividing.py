"""Chooses which images are set apart for another split: in order, at random by class, or by group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from defuse_core.base.errors import DataError
from defuse_core.base.runtime import numpy_rng


def set_apart(
    labels: Tensor, share: float, *, seed: int | None, groups: Sequence[str] | None = None, name: str = "test"
) -> Tensor:
    """Choose a share of the images of each class for another split; every class keeps one at least.

    Parameters
    ----------
    labels : (n,) int64
    share : float
        In (0, 1).
    seed : int or None
        Of the choice. None takes the last images of each class, which keeps frames of a video together.
    groups : sequence of n str, optional
        Images of one group stay together, whatever the seed: a patient, a track.
    name : str
        Of the other split, for error messages.

    Returns
    -------
    is_apart : (n,) bool

    Raises
    ------
    DataError
        If no image can be set apart.
    """
    if groups is not None:
        is_apart, few = _by_group(labels, groups, share, seed or 0), "too few groups"
    elif seed is None:
        is_apart, few = _last(labels, share), f"under {math.ceil(1 / share)} images, too few"
    else:
        is_apart, few = _at_random(labels, share, seed), "one image, too few"
    if not is_apart.any():
        remedy = "add test/ or more images" if name == "test" else "give a larger share"
        raise DataError(f"every class has {few} to set a {name} split apart; {remedy}")
    return is_apart


def _last(labels: Tensor, share: float) -> Tensor:
    is_apart = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        is_apart[members[len(members) - int(len(members) * share) :]] = True
    return is_apart


def _at_random(labels: Tensor, share: float, seed: int) -> Tensor:
    is_apart = torch.zeros(len(labels), dtype=torch.bool)
    _, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    several = torch.nonzero(sizes[inverse] > 1).flatten()  # a class of one image keeps it
    chosen = several[stratified_sample(labels[several], max(1, round(len(several) * share)), seed=seed)]
    is_apart[chosen] = True
    emptied = torch.bincount(inverse[~is_apart], minlength=len(sizes)) == 0
    first = torch.full((len(sizes),), len(labels)).scatter_reduce(
        0, inverse, torch.arange(len(labels)), "amin"
    )
    is_apart[first[emptied]] = False  # of a share above a half, small classes would keep none
    return is_apart


def _by_group(labels: Tensor, groups: Sequence[str], share: float, seed: int) -> Tensor:
    """Take groups in random order, each where no class then has far over its share, or none left."""
    names, of_image = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    counts: list[Counter[int]] = [Counter() for _ in names]
    for group, label in zip(of_image.tolist(), labels.tolist(), strict=True):
        counts[group][label] += 1
    total, apart, chosen = Counter(labels.tolist()), Counter[int](), []
    for group in numpy_rng(seed, "groups").permutation(len(names)).tolist():
        own = counts[group]
        near = all(apart[label] + n / 2 <= share * total[label] for label, n in own.items())
        if near and all(apart[label] + n < total[label] for label, n in own.items()):
            chosen.append(group)
            apart += own
    return torch.from_numpy(np.isin(of_image, chosen))


def stratified_sample(labels: Tensor, n: int, *, seed: int) -> Tensor:
    """Choose n of the images so that every class keeps its share; indices, ascending.

    Parameters
    ----------
    labels : (n,) int64
    n : int
        If there are fewer images, all are chosen.
    seed : int

    Examples
    --------
    >>> labels = torch.tensor([0] * 60 + [1] * 30)
    >>> labels[stratified_sample(labels, 9, seed=0)].bincount()
    tensor([6, 3])
    """
    order = torch.from_numpy(numpy_rng(seed, "stratified").permutation(len(labels)))
    rank = torch.zeros(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return rank.argsort(stable=True)[:n].sort().values
