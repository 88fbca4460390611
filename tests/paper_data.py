"""The paper's data sets in miniature: digits, digits in colour, signs of 20 kinds, weights of a ResNet-18.

Made of the embedded digits and of drawn shapes. Where DEFUSE_DATA names a folder with the real ones, tests
take those.
"""

from __future__ import annotations

import colorsys
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.models import resnet18

from defuse_core.data.sources import load_digits
from defuse_core.data.splits import Split
from tests.partial_resnet import convert
from tests.templates import make_once

_N_SIGNS = 20


def paper_data(factory: pytest.TempPathFactory) -> Path:
    """The folder of real data, or one of data made here, once for all workers."""
    real = os.environ.get("DEFUSE_DATA")
    write = partial(link_paper_data, Path(real)) if real else write_paper_data
    return make_once(factory, "paper-data", write)


def link_paper_data(real: Path, folder: Path) -> None:
    """Link the real files, and convert the weights that are among them."""
    for path in real.glob("*.npz"):
        (folder / path.name).symlink_to(path.resolve())
    if (source := real / "resnet18_imagenet_partial.npz").is_file():
        convert(source, folder / "resnet18.safetensors", real / "svhn.npz")


def write_paper_data(folder: Path) -> None:
    """Write all four files, some hundred images each."""
    digits = load_digits()
    rng, names = np.random.default_rng(0), np.array(list("0123456789"))
    grey = {**_first("train", digits.train, 30), **_first("test", digits.test, 10)}
    np.savez(folder / "mnist.npz", **grey, class_names=names)
    few = {**_first("train", digits.train, 20), **_first("test", digits.test, 10)}
    coloured = {name: _coloured(value, rng) if name[0] == "x" else value for name, value in few.items()}
    np.savez(folder / "svhn.npz", **coloured, class_names=names)
    signs = {**_signs("train", 10, rng), **_signs("test", 5, rng)}
    np.savez(folder / "gtsrb32.npz", **signs, class_names=np.array([f"sign {i}" for i in range(_N_SIGNS)]))
    torch.manual_seed(0)
    weights = resnet18(weights=None).state_dict()
    few_weights = {name: tensor for name, tensor in weights.items() if not name.startswith("layer4")}
    torch.save(few_weights, folder / "resnet18-f37072fd.pth")  # as torchvision names its download


def _first(part: str, split: Split, each: int) -> dict[str, NDArray[np.generic]]:
    """The first images of every class, (10 · each, 28, 28), and their labels."""
    labels = split.labels.numpy()
    index = np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(10)])
    return {f"x_{part}": split.images[:, 0].numpy()[index], f"y_{part}": labels[index]}


def _coloured(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Digits (n, 28, 28) in one colour on another, (n, 32, 32, 3)."""
    share = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None] / 255
    ink, paper = rng.uniform(150, 255, (len(images), 1, 1, 3)), rng.uniform(0, 110, (len(images), 1, 1, 3))
    return np.round(share * ink + (1 - share) * paper).astype(np.uint8)


def _signs(part: str, each: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Discs of 20 hues and sizes, (20 · each, 32, 32, 3)."""
    labels = np.repeat(np.arange(_N_SIGNS), each)
    y, x = np.mgrid[:32, :32] - 15.5
    images = np.empty((len(labels), 32, 32, 3))
    for index, label in enumerate(labels):
        colour = np.array(colorsys.hsv_to_rgb(label / _N_SIGNS, 0.9, 0.9)) * 255
        inside = np.hypot(x - rng.uniform(-2, 2), y - rng.uniform(-2, 2)) < 6 + 8 * (label % 3) / 2
        images[index] = np.where(inside[..., None], colour, 60) + rng.normal(0, 8, (32, 32, 3))
    return {f"x_{part}": images.clip(0, 255).astype(np.uint8), f"y_{part}": labels}
