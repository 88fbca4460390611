"""The paper's data sets in miniature: digits, digits in colour, signs of 43 kinds, a partial ResNet-18.

Made of the embedded digits and of drawn shapes. Where DEFUSE_DATA names a folder with the real ones, tests
take those.
"""

from __future__ import annotations

import colorsys
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models import ResNet, resnet18

from defuse_core.data_sources import load_digits


def paper_data(folder: Path) -> Path:
    """The folder of real data, or one of data made here."""
    real = os.environ.get("DEFUSE_DATA")
    if real:
        return Path(real)
    digits = load_digits()
    grey = {"train": digits.train, "test": digits.test}
    arrays = {f"x_{name}": split.images[:, 0].numpy() for name, split in grey.items()}
    labels = {f"y_{name}": split.labels.numpy() for name, split in grey.items()}
    np.savez(folder / "mnist.npz", **arrays, **labels, class_names=np.array(list("0123456789")))
    rng = np.random.default_rng(0)
    coloured = {name: _coloured(images, rng) for name, images in arrays.items()}
    np.savez(folder / "svhn.npz", **coloured, **labels, class_names=np.array(list("0123456789")))
    names = np.array([f"sign {number}" for number in range(43)])
    signs = {**_signs("train", 10, rng), **_signs("test", 4, rng)}
    np.savez(folder / "gtsrb32.npz", **signs, class_names=names)
    torch.manual_seed(0)
    write_partial_resnet18(folder / "resnet18_imagenet_partial.npz", resnet18(weights=None))
    return folder


def _coloured(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Digits (n, 28, 28) in one colour on another, (n, 32, 32, 3)."""
    share = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None] / 255
    ink, paper = rng.uniform(150, 255, (len(images), 1, 1, 3)), rng.uniform(0, 110, (len(images), 1, 1, 3))
    return np.round(share * ink + (1 - share) * paper).astype(np.uint8)


def _signs(part: str, each: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Discs of 43 hues and sizes, (43 · each, 32, 32, 3)."""
    labels = np.repeat(np.arange(43), each)
    y, x = np.mgrid[:32, :32] - 15.5
    images = np.empty((len(labels), 32, 32, 3))
    for index, label in enumerate(labels):
        colour = np.array(colorsys.hsv_to_rgb(label / 43, 0.9, 0.9)) * 255
        inside = np.hypot(x - rng.uniform(-2, 2), y - rng.uniform(-2, 2)) < 6 + 8 * (label % 3) / 2
        images[index] = np.where(inside[..., None], colour, 60) + rng.normal(0, 8, (32, 32, 3))
    return {f"x_{part}": images.clip(0, 255).astype(np.uint8), f"y_{part}": labels}


def write_partial_resnet18(path: Path, network: ResNet) -> None:
    """Store conv1 to layer3 and fc of a ResNet-18, each batch-norm folded into its convolution."""
    modules = dict(network.named_modules())
    arrays = {"fc.weight": network.fc.weight, "fc.bias": network.fc.bias}
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d) or name.startswith("layer4"):
            continue
        norm = modules[name.replace("conv", "bn") if "conv" in name else name[:-1] + "1"]
        assert isinstance(norm, nn.BatchNorm2d)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        arrays[f"{name}.weight"] = module.weight * scale.view(-1, 1, 1, 1)
        arrays[f"{name}.bias"] = norm.bias - norm.running_mean * scale
    np.savez(path, **{name: tensor.detach().numpy() for name, tensor in arrays.items()})
