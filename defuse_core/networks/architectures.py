"""The classifier networks that Defuse ships: each takes normalised images and returns logits.

The paper names two networks for MNIST: figure 8 prints `PaperCnn`, section 4.1 names that of PyTorch's MNIST
example, `MnistCnn`. The others are small networks of deliberately different design: the demo's simulated
annotators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defuse_core.networks.tutorials import (
    LENETS,
    MLPS,
    build_lenet,
    build_mlp,
    build_torchvision,
    torchvision_names,
)


class ByteDropout(nn.Dropout):
    """Dropout whose mask takes one random byte a unit: p is rounded to 1/256.

    On a CPU torch draws the mask unit by unit, which is a fifth of the training time of `MnistCnn`;
    here each draw of 64 bits serves eight units. On other devices it is torch's own dropout.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zero units with probability p and scale the rest by 1 / (1 - p), in training mode."""
        if not self.training or self.p in (0, 1) or input.device.type != "cpu":
            return super().forward(input)
        words = torch.empty(-(-input.numel() // 8), dtype=torch.int64)
        words.random_(torch.iinfo(torch.int64).min, None)
        dropped = words.view(torch.uint8)[: input.numel()].view(input.shape) < round(self.p * 256)
        return input.masked_fill(dropped, 0.0) * (1 / (1 - round(self.p * 256) / 256))


class MnistCnn(nn.Module):
    """PyTorch's MNIST example, which section 4.1 names: two convolutions, one max-pool, dropout.

    Shape and names are those of the example, so that its checkpoints load as they are.
    """

    def __init__(self, n_classes: int = 10, channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = ByteDropout(0.25)
        self.dropout2 = ByteDropout(0.5)
        self.fc1 = nn.Linear(64 * ((image_size - 4) // 2) ** 2, 128)
        self.fc2 = nn.Linear(128, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, image_size, image_size) → logits (n, n_classes)."""
        x = F.relu(self.conv1(x), inplace=True)
        x = F.relu(F.max_pool2d(self.conv2(x), 2), inplace=True)  # relu and max commute
        x = self.dropout1(x.flatten(1))
        return self.fc2(self.dropout2(F.relu(self.fc1(x), inplace=True)))  # type: ignore[no-any-return]


class PaperCnn(nn.Sequential):
    """Figure 8: one 4×4 convolution of stride 2 and 64 channels, two hidden layers of 256.

    The last layer, which the figure prints as 10 × 2, has one output for each class.
    """

    def __init__(self, n_classes: int = 10, channels: int = 1, image_size: int = 28) -> None:
        side = (image_size - 4) // 2 + 1
        super().__init__(
            nn.Conv2d(channels, 64, 4, 2), nn.ReLU(inplace=True), nn.Flatten(),
            nn.Linear(64 * side * side, 256), nn.ReLU(inplace=True),
            nn.Linear(256, 256), nn.ReLU(inplace=True), nn.Linear(256, n_classes),
        )  # fmt: skip


def _conv(width_in: int, width: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    convolution = nn.Conv2d(width_in, width, kernel, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


class VggSmall(nn.Sequential):
    """3×3 convolutions in pairs with max-pooling, in the manner of VGG."""

    def __init__(self, n_classes: int = 10, channels: int = 1) -> None:
        super().__init__(
            *_conv(channels, 24), *_conv(24, 24), nn.MaxPool2d(2),
            *_conv(24, 48), *_conv(48, 48), nn.MaxPool2d(2),
            *_conv(48, 96), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, n_classes),
        )  # fmt: skip


class WideKernel(nn.Sequential):
    """Few layers of 5×5 convolutions and a hidden layer, in the manner of LeNet-5."""

    def __init__(self, n_classes: int = 10, channels: int = 1) -> None:
        super().__init__(
            *_conv(channels, 24, 5), nn.MaxPool2d(2), *_conv(24, 48, 5), nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48 * 16, 128), nn.ReLU(inplace=True),
            nn.Dropout(0.4), nn.Linear(128, n_classes),
        )  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(width_in, width, 3, stride), *_conv(width, width)[:2])
        self.skip = nn.Sequential(*_conv(width_in, width, 1, stride)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class ResNetSmall(nn.Sequential):
    """Three residual blocks with global average pooling."""

    def __init__(self, n_classes: int = 10, channels: int = 1) -> None:
        super().__init__(
            *_conv(channels, 24, 5, 2), _Residual(24, 32, 1), _Residual(32, 64, 2), _Residual(64, 96, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, n_classes),
        )  # fmt: skip


class _Separable(nn.Sequential):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        depthwise = nn.Conv2d(width_in, width_in, 3, stride, 1, groups=width_in, bias=False)
        super().__init__(depthwise, nn.BatchNorm2d(width_in), *_conv(width_in, width, 1))


class MobileSmall(nn.Sequential):
    """Depthwise separable convolutions, in the manner of MobileNet."""

    def __init__(self, n_classes: int = 10, channels: int = 1) -> None:
        super().__init__(
            *_conv(channels, 24), _Separable(24, 48, 2), _Separable(48, 64, 1),
            _Separable(64, 128, 2), _Separable(128, 128, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, n_classes),
        )  # fmt: skip


class AllConvolutional(nn.Sequential):
    """Strided convolutions in place of pooling and hidden layers (Springenberg et al. 2015)."""

    def __init__(self, n_classes: int = 10, channels: int = 1) -> None:
        super().__init__(
            *_conv(channels, 32, 5, 2), *_conv(32, 48), *_conv(48, 64, 3, 2), *_conv(64, 96),
            nn.Dropout(0.2), nn.Conv2d(96, n_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mnist_cnn": MnistCnn,
    "paper_cnn": PaperCnn,
    "vgg_small": VggSmall,
    "wide_kernel": WideKernel,
    "resnet_small": ResNetSmall,
    "mobile_small": MobileSmall,
    "all_convolutional": AllConvolutional,
}
"""Networks by the name a card gives them; each takes n_classes and channels."""

SIZED = {"mnist_cnn": "fc1.weight", "paper_cnn": "3.weight"}
"""Networks of one image size, and the weights that tell it: of the first layer after 64 feature maps."""


def image_size_of(name: str, like: Mapping[str, Tensor]) -> int:
    """Return the height and width of the images that a network of `SIZED` takes, by its weights, pixels.

    Parameters
    ----------
    name : str
    like : mapping of str to Tensor
        Weights; only the shape of `SIZED[name]` is used.
    """
    shape = like[SIZED[name]].shape
    side = math.isqrt(max((shape[-1] if shape else 0) // 64, 1))  # of the last feature maps
    return 2 * side + (4 if name == "mnist_cnn" else 2)


def build_network(
    name: str, *, n_classes: int, channels: int, like: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build a network by its name, with random weights.

    Parameters
    ----------
    name : str
        One of `ARCHITECTURES`; a classification model of torchvision by its name there, whose first
        convolution is replaced where `channels` is not 3; or one of `LENETS` and `MLPS`.
    n_classes : int
    channels : int
        Of the images that the network takes.
    like : mapping of str to Tensor, optional
        Weights; only their names and shapes are used. `LENETS` and `MLPS` need them, "mnist_cnn" and
        "paper_cnn" take their image size from them, "googlenet" and "inception_v3" whether they have
        auxiliary classifiers.

    Raises
    ------
    ValueError
        If the name is unknown, or `like` is missing or of another family.
    """
    network = _build(name, n_classes, channels, like)
    return network.to(memory_format=torch.channels_last)  # faster convolutions, and the same results


def _build(name: str, n_classes: int, channels: int, like: Mapping[str, Tensor] | None) -> nn.Module:
    if name in SIZED and like is not None and SIZED[name] in like:
        return ARCHITECTURES[name](n_classes, channels, image_size_of(name, like))
    if name in ARCHITECTURES:
        return ARCHITECTURES[name](n_classes=n_classes, channels=channels)
    if name in LENETS or name in MLPS:
        if like is None:
            raise ValueError(f"{name} takes its sizes from weights; give like, or bring a checkpoint")
        if name in MLPS:
            return build_mlp(name, like, n_classes=n_classes)
        return build_lenet(name, like, n_classes=n_classes, channels=channels)
    if name in torchvision_names():
        return build_torchvision(name, n_classes=n_classes, channels=channels, like=like)
    known = ", ".join([*ARCHITECTURES, *LENETS, *MLPS])
    raise ValueError(
        f"architecture must be one of {known}, or a classification model of torchvision such as resnet18, "
        f"got {name!r}"
    )


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights of an architecture, downloaded once (ResNet-18: 45 MB).

    Parameters
    ----------
    name : str
        Of a classification model of torchvision, such as "resnet18".

    Raises
    ------
    RuntimeError
        If the weights can be neither downloaded nor read; the message says where to put them.
    ValueError
        If torchvision has no such model.
    """
    from torch import hub
    from torchvision import models

    if name not in torchvision_names():
        raise ValueError(f"there are ImageNet weights for torchvision's models only, got {name!r}")
    known = models.get_model_weights(name)
    if "IMAGENET1K_V1" not in known.__members__:
        raise ValueError(
            f"torchvision has no weights of {name} trained on ImageNet alone; choose another architecture, "
            "or bring a file"
        )
    weights = known["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(check_hash=True))
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise RuntimeError(
            f"ImageNet weights of {name} could not be downloaded or read ({error}); connect to the "
            f"network, put {weights.url.rsplit('/', 1)[-1]} into {hub.get_dir()}/checkpoints, "
            "or begin with random weights"
        ) from error
