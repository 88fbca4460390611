"""Classifiers as people write them, after tutorials and textbooks: what users bring."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[..., Tensor]


class PytorchMnist(nn.Module):
    """PyTorch's MNIST example, for images of any size."""

    def __init__(self, size: int = 28) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.fc1 = nn.Linear(64 * ((size - 4) // 2) ** 2, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class OldPytorchMnist(nn.Module):
    """The same example as it was until 2019."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        return self.fc2(F.dropout(F.relu(self.fc1(x.view(-1, 320))), training=self.training))


class CifarTutorial(nn.Module):
    """PyTorch's tutorial "Training a classifier", whose first names come last in the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(F.relu(self.fc2(x)))


class LeNet(nn.Module):
    """LeNet-5 in its versions; `c5` makes its third layer the convolution that it is in the paper."""

    def __init__(
        self, activation: type[nn.Module], pool: type[nn.Module], *, padding: int = 0, c5: bool = False,
        left: int = 5,
    ) -> None:  # fmt: skip
        super().__init__()
        third = [nn.Conv2d(16, 120, 5), activation()] if c5 else []
        self.feature_extractor = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=padding), activation(), pool(2),
            nn.Conv2d(6, 16, 5), activation(), pool(2), *third,
        )  # fmt: skip
        rest = [] if c5 else [nn.Linear(16 * left * left, 120), activation()]
        self.classifier = nn.Sequential(*rest, nn.Linear(120, 84), activation(), nn.Linear(84, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.feature_extractor(x).flatten(1))


def tutorial_3x3() -> nn.Module:
    """Convolutions of 3×3 that keep the size, as in many first CNNs."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip


class Quickstart(nn.Module):
    """The network of PyTorch's quickstart."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(28 * 28, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_relu_stack(self.flatten(x))


class NamedMlp(nn.Module):
    """Linear layers under given names, in their order."""

    def __init__(
        self, names: list[str], widths: list[int], activation: Function = F.relu, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.names, self.activation = names, activation
        for name, width_in, width in zip(names, widths, widths[1:], strict=False):
            self.add_module(name, nn.Linear(width_in, width, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for name in self.names[:-1]:
            x = self.activation(self.get_submodule(name)(x))
        return self.get_submodule(self.names[-1])(x)


class SmallCnn(nn.Module):
    """One convolution with batch-norm; a token and a scale beside the layers, as vision transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1))
        self.register_buffer("scale", torch.full((1,), 2.0))
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 6 * 6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.conv(x))))
        return self.fc(x.view(x.shape[0], -1)) * self.token * self.scale  # view: memory has to be in order
