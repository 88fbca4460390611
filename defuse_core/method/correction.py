"""Correction (section 3.3): fine-tune on L(D) + λ·L(D_f) and sweep λ.

Cross-entropy both, Adam at 1e-3 unless the config names another optimiser. A step takes a batch of D
and, side by side in the same forward pass, a batch of D_f; D_f is spread over the steps, so that an
epoch sees both once, and both are reshuffled every epoch. For each λ the epoch with the best validation
accuracy is kept (training accuracy where there is no validation split).

The paper chooses λ by the same accuracy; it says little about the regions, so `choose_point` also
offers the best accuracy on the instances tuned on within a stated loss. Neither rule sees test data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from defuse_core.base.checkpoints import copy_state
from defuse_core.base.config import CorrectionConfig
from defuse_core.base.records import FailureInstances, SweepPoint
from defuse_core.base.runtime import (
    Callback,
    Loop,
    autocast,
    check_finite,
    derive_seed,
    follow,
    make_optimizer,
    numpy_rng,
    torch_rng,
)
from defuse_core.data.splits import Split, sample_training, shuffled_batches
from defuse_core.method.classifier import Classifier, accuracy, predict

Rule = Literal["paper", "regions"]


@dataclass(frozen=True)
class Flips:
    """Images of one split whose verdict changed between two models; indices, ascending int64."""

    fixed: Tensor
    broken: Tensor


def correction_loss(
    logits: Tensor, labels: Tensor, failure_logits: Tensor, failure_labels: Tensor, *, lam: float
) -> Tensor:
    """L(D) + λ·L(D_f), mean cross-entropies of a batch of each.

    Parameters
    ----------
    logits, failure_logits : (n, n_classes), (m, n_classes)
    labels, failure_labels : (n,), (m,) int64
    lam : float
        λ, 0 or more.
    """
    of_data = F.cross_entropy(logits, labels)
    return of_data + lam * F.cross_entropy(failure_logits, failure_labels)


def hold_out_regions(region_ids: Sequence[int], *, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide regions into those tuned on and those held out whole, which show generalisation.

    Parameters
    ----------
    region_ids : sequence of int
    share : float
        Of regions to hold out, in [0, 1); rounded, and at least one is left to tune on.

    Returns
    -------
    tuned, held_out : list of int
        Ascending.
    """
    ids = sorted(region_ids)
    n_held_out = min(round(share * len(ids)), max(len(ids) - 1, 0))
    order = numpy_rng(seed, "held-out").permutation(len(ids))
    held_out = {ids[i] for i in order[:n_held_out]}
    return [i for i in ids if i not in held_out], sorted(held_out)


def tune(
    classifier: Classifier, train: Split, failures: FailureInstances, *, lam: float,
    config: CorrectionConfig, seed: int, selection: Split | None = None, callback: Callback | None = None,
) -> SweepPoint:  # fmt: skip
    """Fine-tune a copy of the classifier for one λ.

    Parameters
    ----------
    classifier : Classifier
        Left as it is.
    train : Split
        D, or what `max_images` of the config are sampled from.
    failures : FailureInstances
        D_f to tune on.
    lam : float
        λ, 0 or more.
    config : CorrectionConfig
    seed : int
        Of the sample, shuffling and dropout; the same for every λ, so that they differ in λ alone.
    selection : Split, optional
        Chooses the epoch; by default `train`.
    callback : Callback, optional
        Gets (epoch, epochs, {"lam", "loss", "failure_loss", "selection_accuracy"}); True stops.

    Raises
    ------
    ValueError
        If there are no failures or training images, their shapes differ, or λ is negative.
    DivergenceError
        If a loss or a weight is not finite.
    """
    epochs = tuning_epochs(
        classifier, train, failures, lam=lam, config=config, seed=seed, selection=selection
    )
    return follow(epochs, callback)


def tuning_epochs(
    classifier: Classifier, train: Split, failures: FailureInstances, *, lam: float,
    config: CorrectionConfig, seed: int, selection: Split | None = None, sample_seed: int | None = None,
) -> Loop[SweepPoint]:  # fmt: skip
    """`tune` as a `Loop` over epochs.

    Parameters
    ----------
    classifier : Classifier
        Left as it is; a copy is tuned.
    train : Split
        D, or what `max_images` of the config are sampled from.
    failures : FailureInstances
        D_f.
    lam : float
        λ, 0 or more.
    config : CorrectionConfig
    seed : int
    selection : Split, optional
        On which the best epoch is chosen; all of `train` if not given.
    sample_seed : int, optional
        Of the sample of `max_images`, by default `seed`; repeats of a λ share one sample.
    """
    if not len(failures) or not 0 <= lam < math.inf:
        raise ValueError(
            f"tuning needs failure instances and lam of 0 or more, got {len(failures)} and {lam}; "
            "label at least one failure region, or one mistake"
        )
    if not len(train) or train.images.shape[1:] != failures.images.shape[1:]:
        raise ValueError(
            "tuning needs training images of the failures' shape, got "
            f"{tuple(train.images.shape)} and {tuple(failures.images.shape)}; "
            "give the split that the VAE models"
        )
    selection = train if selection is None else selection
    sample_seed = seed if sample_seed is None else sample_seed
    train = train[sample_training(train.labels, config.max_images, seed=sample_seed)]
    device = classifier.mean.device
    tuned = copy.deepcopy(classifier)
    optimizer = _make_optimizer(tuned, config)
    data = Split(train.images.to(device), train.labels.to(device))
    extra = Split(failures.images.to(device), failures.labels.to(device))
    best: SweepPoint | None = None
    for epoch in range(1, config.epochs + 1):
        losses = _tune_epoch(tuned, optimizer, data, extra, lam, config, derive_seed(seed, "tune", epoch))
        check_finite(losses, tuned, when=f"lam = {lam:g}, epoch {epoch}")
        right = accuracy(tuned, selection, precision=config.precision)
        if best is None or right > best.selection_accuracy:
            best = SweepPoint(lam, epoch, right, 0.0, copy_state(tuned.network))
        metrics = {
            "lam": lam, "loss": losses[0], "failure_loss": losses[1], "selection_accuracy": right,
        }  # fmt: skip
        if (yield epoch, config.epochs, metrics):
            break
    assert best is not None  # there is at least one epoch
    tuned_on = Split(failures.images, failures.labels)
    reached = accuracy(apply_point(classifier, best), tuned_on, precision=config.precision)
    return replace(best, tuned_accuracy=reached)


def _make_optimizer(tuned: Classifier, config: CorrectionConfig) -> torch.optim.Optimizer:
    if config.optimizer != "adam":
        return make_optimizer(tuned, config.optimizer, config.learning_rate)
    fused = tuned.mean.device.type != "mps"
    return torch.optim.Adam(tuned.parameters(), lr=config.learning_rate, fused=fused)


def _tune_epoch(
    tuned: Classifier,
    optimizer: torch.optim.Optimizer,
    data: Split,
    extra: Split,
    lam: float,
    config: CorrectionConfig,
    seed: int,
) -> tuple[float, float]:
    """One pass over D and D_f; returns the mean losses of both."""
    device = data.labels.device
    n_steps = math.ceil(len(data) / config.batch_size)
    of_data = shuffled_batches(len(data), config.batch_size, torch_rng(seed, "data"))
    order = torch.randperm(len(extra), generator=torch_rng(seed, "failures"))
    # Fewer instances than steps: some are drawn again, so that every step has one.
    order = order if len(order) >= n_steps else order.repeat(math.ceil(n_steps / len(order)))[:n_steps]
    sums = torch.zeros(2, device=device)
    tuned.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(derive_seed(seed, "dropout"))
        for index, extra_index in zip(of_data, order.tensor_split(n_steps), strict=True):
            batch, failing = data[index.to(device)], extra[extra_index.to(device)]
            with autocast(device, config.precision):
                logits = tuned(torch.cat([batch.images, failing.images])).float()
            mine, theirs = logits.split([len(batch), len(failing)])
            loss = correction_loss(mine, batch.labels, theirs, failing.labels, lam=lam)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                failure_loss = F.cross_entropy(theirs, failing.labels)
                sums += torch.stack([loss - lam * failure_loss, failure_loss])
    tuned.eval()
    of_d, of_failures = (sums / n_steps).tolist()
    return of_d, of_failures


def sweep_lambdas(
    classifier: Classifier, train: Split, failures: FailureInstances, *, config: CorrectionConfig,
    seed: int, selection: Split | None = None, callback: Callback | None = None,
) -> Iterator[SweepPoint]:  # fmt: skip
    """Yield a `SweepPoint` for every λ of the config, as they are done.

    The callback gets (epochs done, epochs in all, metrics of `tune`); True ends the sweep, and the
    λ under way is yielded with the epochs it had.

    Parameters
    ----------
    classifier : Classifier
        Left as it is; every λ starts from it.
    train : Split
        D, or what `max_images` of the config are sampled from.
    failures : FailureInstances
        D_f.
    config : CorrectionConfig
        Its `lambdas` are swept in order.
    seed : int
    selection : Split, optional
        On which the best epoch is chosen; `train` if not given.
    callback : Callback, optional
    """
    stopped = False
    for number, lam in enumerate(config.lambdas):
        done = number * config.epochs

        def report(epoch: int, _of: int, metrics: object, done: int = done) -> bool:
            nonlocal stopped
            total = len(config.lambdas) * config.epochs
            stopped = callback is not None and bool(callback(done + epoch, total, metrics))  # type: ignore[arg-type]
            return stopped

        yield tune(
            classifier, train, failures,
            lam=lam, config=config, seed=seed, selection=selection, callback=report,
        )  # fmt: skip
        if stopped:
            return


def choose_point(
    points: Sequence[SweepPoint],
    *,
    rule: Rule = "paper",
    before: float | None = None,
    max_loss: float = 0.01,
) -> SweepPoint:
    """Choose a λ without looking at test data.

    Parameters
    ----------
    points : sequence of SweepPoint
    rule : {"paper", "regions"}
        "paper": the best selection accuracy. "regions": the best accuracy on the instances tuned
        on, among the points whose selection accuracy is at most `max_loss` under `before`; where
        there is none, as "paper". Ties go to the smaller λ.
    before : float
        Selection accuracy of the uncorrected classifier; needed by "regions".
    max_loss : float
        Share of images, 0 or more.
    """
    if not points:
        raise ValueError("there is no point to choose from; run the sweep with at least one λ")
    if rule == "paper":
        return max(points, key=lambda p: (p.selection_accuracy, -p.lam))
    if before is None:
        raise ValueError("rule 'regions' needs before, the selection accuracy before correction")
    allowed = [p for p in points if p.selection_accuracy >= before - max_loss]
    if not allowed:
        return choose_point(points)
    return max(allowed, key=lambda p: (p.tuned_accuracy, -p.lam))


def apply_point(classifier: Classifier, point: SweepPoint) -> Classifier:
    """Return a copy of the classifier with a point's weights, in evaluation mode.

    Parameters
    ----------
    classifier : Classifier
    point : SweepPoint
    """
    corrected = copy.deepcopy(classifier)
    corrected.network.load_state_dict(dict(point.state))
    return corrected.eval()


def mistake_instances(images: Tensor, labels: Sequence[int | None]) -> FailureInstances:
    """Make D_f of the baseline "identified mistakes": single mistakes, each with a label of its own.

    Parameters
    ----------
    images : (n, channels, height, width) uint8
        Decoded mistakes.
    labels : sequence of (int or None)
        What people said of each; None discards the image. `region_ids` are -1.
    """
    if len(labels) != len(images):
        raise ValueError(f"labels must be as many as images, got {len(labels)} and {len(images)}")
    kept = torch.tensor([i for i, label in enumerate(labels) if label is not None], dtype=torch.int64)
    given = torch.tensor([label for label in labels if label is not None], dtype=torch.int64)
    return FailureInstances(images[kept], given, torch.full((len(kept),), -1, dtype=torch.int64))


def find_flips(before: Classifier, after: Classifier, split: Split) -> Flips:
    """Return the images that the correction fixed and those it broke.

    Parameters
    ----------
    before, after : Classifier
    split : Split
    """
    was = predict(before, split.images) == split.labels
    now = predict(after, split.images) == split.labels
    return Flips(torch.nonzero(~was & now).flatten(), torch.nonzero(was & ~now).flatten())
