"""A classifier is preprocessing plus a network, so that any image in [0, 1] reaches it the same way.

The authors' published notebook, not the paper, feeds un-normalised decodes to a network trained on normalised
images. Here a decoded image and a real one take the same path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defuse_core.base.checkpoints import copy_state, resume_training, save_training, tensor_sha256
from defuse_core.base.config import NetworkTraining, Precision
from defuse_core.base.limits import MAX_IMAGE_SIZE
from defuse_core.base.rates import cosine_rate
from defuse_core.base.runtime import (
    AdaptiveBatch,
    Callback,
    Loop,
    autocast,
    check_finite,
    derive_seed,
    follow,
    make_optimizer,
    torch_rng,
)
from defuse_core.data.splits import Split, as_pixels, shuffled_batches
from defuse_core.method.augmentation import augment

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of pixels in [0, 1]: (x - mean) / std, per channel, at its own size.

    Attributes
    ----------
    mean, std : tuple of float
        One value a channel of the network's input.
    image_size : int, optional
        Resize to this many pixels, square, before normalising.
    channel_order : {"rgb", "bgr"}
        In which the network takes colours; images are RGB.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    image_size: int | None = None
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if self.channel_order == "bgr" and len(self.mean) != 3:
            raise ValueError(f"channel_order bgr needs three channels, got mean {self.mean}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError(f"mean and std need 1 or 3 values each, got {self.mean}, {self.std}")
        if not all(0 < value < math.inf for value in _as_float32(self.std)):
            raise ValueError(f"std must be positive, got {self.std}; for no scaling give 1")
        if not all(math.isfinite(value) for value in _as_float32(self.mean)):
            raise ValueError(f"mean must be finite, got {self.mean}; for no shift give 0")
        if self.image_size is not None and not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"image_size must be 1 to {MAX_IMAGE_SIZE} pixels, got {self.image_size}; give another"
            )

    @staticmethod
    def of_json(values: Mapping[str, Any]) -> Preprocessing:
        """Build from what `vars` gave, read back from JSON."""
        return Preprocessing(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @staticmethod
    def of(images: Tensor) -> Preprocessing:
        """Take mean and standard deviation from uint8 training images (n, channels, h, w)."""
        counts = torch.stack([plane.bincount(minlength=256) for plane in images.transpose(0, 1).flatten(1)])
        share = counts.double() / counts.sum(1, keepdim=True)  # (channels, 256)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ levels
        std = (share @ levels.square() - mean.square()).clamp(min=1e-12).sqrt()
        return Preprocessing(tuple(mean.tolist()), tuple(std.tolist()))


def _as_float32(values: Sequence[float]) -> list[float]:
    """Round as networks compute: 1e-50 is 0 for them, and 1e50 infinite."""
    return [float(value) for value in torch.tensor(values, dtype=torch.float32)]


class Classifier(nn.Module):
    """Preprocessing and a network, from images in [0, 1] or uint8 to logits.

    Parameters
    ----------
    network : nn.Module
        Takes normalised images (n, channels, height, width), returns logits (n, n_classes).
    preprocessing : Preprocessing
        Grey images are repeated to three channels where the network wants three.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.mean: Tensor
        self.std: Tensor
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(shape), persistent=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Turn uint8 or [0, 1] images into what the network takes."""
        x = as_pixels(images)
        size = self.preprocessing.image_size
        if size is not None and x.shape[-2:] != (size, size):
            x = F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True)  # not in bf16
        if x.shape[1] not in (1, self.mean.shape[1]):
            raise ValueError(
                f"images have {x.shape[1]} channels, the classifier takes {self.mean.shape[1]}; "
                "give mean and std for as many channels as the images have"
            )
        if self.preprocessing.channel_order == "bgr":
            x = x.flip(1)
        return (x - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) in [0, 1] or uint8 → logits (n, n_classes)."""
        answer = self.network(self.preprocess(images))
        logits: Tensor = getattr(answer, "logits", answer)  # of several, in training: googlenet, inception_v3
        return logits


def _in_batches(
    classifier: Classifier, images: Tensor, batch_size: int, precision: Precision,
    read: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Concatenate what `read` makes of the logits of each batch; smaller batches where memory runs out."""
    device, was_training = classifier.mean.device, classifier.training

    def answer(start: int, stop: int) -> Tensor:
        with torch.inference_mode(), autocast(device, precision):
            return read(classifier(images[start:stop].to(device)).float())

    classifier.eval()
    try:
        return AdaptiveBatch(batch_size, device=device, grows=False).run(answer, len(images))
    finally:
        classifier.train(was_training)


def predict_logits(
    classifier: Classifier, images: Tensor, *, batch_size: int = EVALUATION_BATCH,
    precision: Precision = "fp32",
) -> Tensor:  # fmt: skip
    """Return logits (n, n_classes) float32 on the CPU, dropout and batch-norm in evaluation mode.

    Parameters
    ----------
    classifier : Classifier
    images : (n, channels, height, width)
        uint8, or float in [0, 1].
    batch_size : int
        Images in a forward pass, fewer where memory runs out; does not change the result.
    precision : {"fp32", "bf16", "auto"}
    """
    return _in_batches(classifier, images, batch_size, precision, Tensor.cpu)


def predict(
    classifier: Classifier, images: Tensor, *, batch_size: int = EVALUATION_BATCH,
    precision: Precision = "fp32",
) -> Tensor:  # fmt: skip
    """Return the most likely class of each image, (n,) int64 on the CPU.

    Parameters
    ----------
    images : (n, channels, height, width) uint8, or float in [0, 1]
    """
    return _in_batches(classifier, images, batch_size, precision, lambda logits: logits.argmax(1)).cpu()


def accuracy(classifier: Classifier, split: Split, *, precision: Precision = "fp32") -> float:
    """Return the share of `split` that is classified as labelled, in [0, 1].

    Parameters
    ----------
    classifier : Classifier
    split : Split
    precision : {"fp32", "bf16", "auto"}

    Raises
    ------
    ValueError
        If the split is empty.
    """
    if not len(split):
        raise ValueError("accuracy of an empty split is undefined; give at least one image")
    predictions = predict(classifier, split.images, precision=precision)
    return float((predictions == split.labels).double().mean())


def train_classifier(
    classifier: Classifier, split: Split, *, config: NetworkTraining, seed: int,
    selection: Split | None = None, callback: Callback | None = None, checkpoint: Path | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Train in place on cross-entropy; on the same device, equal seeds give equal weights.

    Parameters
    ----------
    classifier : Classifier
        Initialised by the caller; left in evaluation mode.
    split : Split
    config : NetworkTraining
    seed : int
        Of shuffling, dropout and augmentation.
    selection : Split, optional
        Images whose accuracy is measured after every epoch: the classifier ends with the weights of the best,
        the first of equals; by default with those of the last epoch.
    callback : Callback, optional
        Gets (epoch, epochs, {"loss", "accuracy"}), and "selection" where there are such images; True stops
        after that epoch.
    checkpoint : Path, optional
        Written after every epoch; where it exists, training goes on from it and ends with the
        weights of an undisturbed training.

    Returns
    -------
    list of dict
        Loss and training accuracy (while training, so with dropout) of every epoch.

    Raises
    ------
    DivergenceError
        If the loss or a weight is not finite; the checkpoint keeps the epoch before.
    """
    epochs = classifier_epochs(
        classifier, split, config=config, seed=seed, selection=selection, checkpoint=checkpoint
    )
    return follow(epochs, callback)


def classifier_epochs(
    classifier: Classifier, split: Split, *, config: NetworkTraining, seed: int,
    selection: Split | None = None, checkpoint: Path | None = None,
) -> Loop[list[dict[str, float]]]:  # fmt: skip
    """`train_classifier` as a `Loop` over epochs.

    Parameters
    ----------
    classifier : Classifier
        Trained in place.
    split : Split
    config : NetworkTraining
    seed : int
    selection : Split, optional
        As in `train_classifier`.
    checkpoint : path, optional
        Where the training is stored after every epoch, and resumed from.
    """
    device = classifier.mean.device
    data = Split(split.images.to(device), split.labels.to(device))
    optimizer = make_optimizer(classifier, config.optimizer, config.learning_rate)
    identity = {
        "config": config.model_dump(),
        "seed": seed,
        "preprocessing": asdict(classifier.preprocessing),
        "images": tensor_sha256(split.images),
        "labels": tensor_sha256(split.labels),
    }
    if selection is not None:
        identity["selection"] = tensor_sha256(selection.images)
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    if checkpoint is not None and checkpoint.exists():
        history, best = resume_training(checkpoint, classifier, optimizer, identity=identity)
    for epoch in range(len(history) + 1, config.epochs + 1):
        metrics = _train_epoch(classifier, optimizer, data, config, seed, epoch)
        check_finite((metrics["loss"],), classifier, when=f"epoch {epoch}")
        history.append(metrics)
        if selection is not None:
            reached = accuracy(classifier, selection)
            if reached > max((each["selection"] for each in history[:-1]), default=-1.0):
                best = copy_state(classifier)
            history[-1]["selection"] = reached
        try:  # the callback first: a crash after it repeats an epoch, and its metrics, but loses none
            stop = yield epoch, config.epochs, history[-1]
        finally:
            if checkpoint is not None:
                save_training(
                    checkpoint, classifier, optimizer, identity=identity, history=history, best=best
                )
        if stop:
            break
    if best:
        classifier.load_state_dict(best)
    classifier.eval()
    return history


def _train_epoch(
    classifier: Classifier, optimizer: torch.optim.Optimizer, data: Split, config: NetworkTraining,
    seed: int, epoch: int,
) -> dict[str, float]:  # fmt: skip
    """One pass over the data; returns mean loss and accuracy in training mode."""
    device = data.labels.device
    generator = torch_rng(seed, "classifier", epoch)
    steps_per_epoch = math.ceil(len(data) / config.batch_size)
    loss_sum, hits = torch.zeros((), device=device), torch.zeros((), device=device)
    seen = 0
    classifier.train()
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "dropout", epoch))
        batches = shuffled_batches(len(data), config.batch_size, generator)
        for step, index in enumerate(batches, (epoch - 1) * steps_per_epoch):
            if len(index) == 1 < min(config.batch_size, len(data)):
                continue  # the last: batch-norm could learn nothing from it
            progress = step / (config.epochs * steps_per_epoch)
            rate = cosine_rate(config.learning_rate, config.final_learning_rate, progress)
            optimizer.param_groups[0]["lr"] = rate
            x, y = as_pixels(data.images[index.to(device)]), data.labels[index.to(device)]
            x = augment(x, config.augmentation, generator)
            with autocast(device, config.precision):
                logits = classifier(x).float()
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(y)
            hits += (logits.argmax(1) == y).sum()
            seen += len(y)
    classifier.eval()
    return {"loss": float(loss_sum) / seen, "accuracy": float(hits) / seen}
