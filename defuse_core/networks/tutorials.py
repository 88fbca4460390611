"""Build networks that users bring: torchvision's, and small ones of tutorials, in the sizes of weights.

The small ones are recognised by shapes alone, whatever their layers are called: LeNet-5 and its like (LeCun
et al. 1998) are two or three convolutions with pooling, then linear layers; an MLP is linear layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
Pooling = Callable[..., Tensor]

LENETS: dict[str, tuple[Activation, Pooling]] = {
    "lenet5": (F.relu, F.max_pool2d),
    "lenet5_tanh_avg": (torch.tanh, F.avg_pool2d),
    "lenet5_relu_avg": (F.relu, F.avg_pool2d),
    "lenet5_tanh_max": (torch.tanh, F.max_pool2d),
    "lenet5_sigmoid_avg": (torch.sigmoid, F.avg_pool2d),
}
MLPS: dict[str, Activation] = {"mlp": F.relu, "mlp_tanh": torch.tanh, "mlp_sigmoid": torch.sigmoid}
"""Variants of one family have weights of the same shapes: only their accuracy tells them apart."""


@dataclass(frozen=True)
class _Layer:
    """A convolution or a linear layer, as read from its weights."""

    name: str
    width_in: int
    width: int
    bias: bool
    kernel: int = 0  # 0 for a linear layer

    def build(self) -> nn.Module:
        if self.kernel:
            return nn.Conv2d(self.width_in, self.width, self.kernel, bias=self.bias)
        return nn.Linear(self.width_in, self.width, bias=self.bias)


class PlainNetwork(nn.Module):
    """Convolutions with pooling, if any, and linear layers, under the dotted names of the weights.

    Parameters
    ----------
    name : str
        Of `LENETS` or `MLPS`. Each convolution is followed by activation and pooling, each linear layer
        but the last by the activation.
    convolutions, linears : list of _Layer
        In the order in which they are applied.
    """

    def __init__(self, name: str, convolutions: list[_Layer], linears: list[_Layer]) -> None:
        super().__init__()
        self._name, self._convolutions, self._linears = name, convolutions, linears
        for layer in [*convolutions, *linears]:
            _put(self, layer)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) → logits (n, n_classes)."""
        activation, pooling = LENETS.get(self._name) or (MLPS[self._name], F.max_pool2d)
        for layer, (padding, pooled) in zip(self._convolutions, self._plan(*x.shape[-2:]), strict=True):
            x = activation(self.get_submodule(layer.name)(F.pad(x, [padding] * 4)))
            x = pooling(x, 2) if pooled else x
        x = x.flatten(1)
        for layer in self._linears[:-1]:
            x = activation(self.get_submodule(layer.name)(x))
        return self.get_submodule(self._linears[-1].name)(x)  # type: ignore[no-any-return]

    def _plan(self, height: int, width: int) -> list[tuple[int, bool]]:
        """Padding of every convolution and whether it is pooled: the usual plan that fits the image.

        LeNet-5 takes images of 32; those of 28 are padded by 2 or give it a narrower linear layer.
        """
        if not self._convolutions:
            return []
        kernels = [layer.kernel for layer in self._convolutions]
        pixels = self._linears[0].width_in // self._convolutions[-1].width  # left for the linear layers
        same = [kernel // 2 for kernel in kernels]
        none = [0] * len(kernels)
        for paddings in (none, [same[0], *none[1:]], same):
            for last_pooled in (True, False) if len(kernels) > 2 else (True,):
                plan = [*zip(paddings, [True] * (len(kernels) - 1) + [last_pooled], strict=True)]
                if _shrunk(height, kernels, plan) * _shrunk(width, kernels, plan) == pixels:
                    return plan
        raise RuntimeError(
            f"images of {height}×{width} do not leave {pixels} pixels for {self._linears[0].name}; set "
            "image_size to the size that the network was trained with"
        )


class _BareLinear(nn.Linear):
    """Logistic regression saved as the one nn.Linear that it is."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1))


def _shrunk(size: int, kernels: list[int], plan: list[tuple[int, bool]]) -> int:
    """Pixels that convolutions and pooling leave of a side; 0 where it is too small."""
    for kernel, (padding, pooled) in zip(kernels, plan, strict=True):
        size = max(size + 2 * padding - kernel + 1, 0)
        size = size // 2 if pooled else size
    return size


def _put(root: nn.Module, layer: _Layer) -> None:
    """Add a layer at its dotted name, inside plain modules named by the parts before the last."""
    *path, last = layer.name.split(".")
    try:
        for part in path:
            if part not in root._modules:
                root.add_module(part, nn.Module())
            root = root.get_submodule(part)
        root.add_module(last, layer.build())
    except KeyError as error:
        raise ValueError(f"{layer.name!r} is no name that a layer can have ({error}); rename it") from error


def build_lenet(name: str, like: Mapping[str, Tensor], *, n_classes: int, channels: int) -> nn.Module:
    """Build one of `LENETS` in the sizes of weights, under their names.

    Parameters
    ----------
    name : str
        Of `LENETS`.
    like : mapping of str to Tensor
        Weights; only their names and shapes are used.
    n_classes, channels : int
        These replace the numbers that the weights have.

    Raises
    ------
    ValueError
        If the weights are not those of two or three convolutions and one to three linear layers.
    """
    layers = _read_layers(like)
    convolutions = _in_order([layer for layer in layers if layer.kernel])
    linears = _in_order([layer for layer in layers if not layer.kernel])
    if not (2 <= len(convolutions) <= 3 and 1 <= len(linears) <= 3):
        raise ValueError(
            f"{name} has 2 or 3 convolutions and 1 to 3 linear layers, the weights have {len(convolutions)} "
            f"and {len(linears)}; choose another architecture"
        )
    if linears[0].width_in % convolutions[-1].width:
        raise ValueError(
            f"{linears[0].name} takes {linears[0].width_in} values, no multiple of the "
            f"{convolutions[-1].width} that {convolutions[-1].name} gives; choose another architecture"
        )
    convolutions[0] = replace(convolutions[0], width_in=channels)
    linears[-1] = replace(linears[-1], width=n_classes)
    return PlainNetwork(name, convolutions, linears)


def build_mlp(name: str, like: Mapping[str, Tensor], *, n_classes: int) -> nn.Module:
    """Build one of `MLPS` in the sizes of weights, under their names.

    Parameters
    ----------
    name : str
        Of `MLPS`.
    like : mapping of str to Tensor
        Weights; only their names and shapes are used.
    n_classes : int
        Replaces the number that the weights have.

    Raises
    ------
    ValueError
        If the weights are not those of a chain of linear layers.
    """
    layers = _in_order(_read_layers(like))
    if not layers or any(layer.kernel for layer in layers):
        raise ValueError(f"{name} has linear layers only, the weights are of others; choose another")
    layers[-1] = replace(layers[-1], width=n_classes)
    if layers[0].name:
        return PlainNetwork(name, [], layers)
    return _BareLinear(layers[0].width_in, n_classes, bias=layers[0].bias)


def _read_layers(like: Mapping[str, Tensor]) -> list[_Layer]:
    """Read the layers from weights, in the natural order of their names: fc2 before fc10.

    Raises
    ------
    ValueError
        If a weight is of neither a linear layer nor a square convolution of odd size.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in like.items()}
    layers = []
    for key in sorted(shapes, key=_natural):
        name, _, last = f".{key}".rpartition(".")
        name, shape = name.removeprefix("."), shapes[key]
        weight = shape if last == "weight" else shapes.get(f"{name}.weight".removeprefix("."), ())
        square = len(weight) == 4 and weight[2] == weight[3] and weight[2] % 2 == 1
        fits = (len(weight) == 2 or square) and 0 not in weight and (last == "weight" or shape == weight[:1])
        if not fits or last not in ("weight", "bias"):
            raise ValueError(f"{key} of shape {shape} is of no linear layer or square convolution")
        if last == "weight":
            bias = f"{name}.bias".removeprefix(".") in shapes
            layers.append(_Layer(name, weight[1], weight[0], bias, weight[2] if square else 0))
    return layers


def _natural(name: str) -> list[str | int]:
    parts = re.split(r"(\d+)", name)  # text and digits by turns
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _in_order(layers: list[_Layer]) -> list[_Layer]:
    """Order layers so that each takes what the one before returns; ties keep their order in the list.

    Widths are the nodes of a graph and layers its edges: the order is an Eulerian path (Hierholzer 1873).
    """
    if not layers:
        return []
    leaving: dict[int, list[_Layer]] = {}
    surplus: dict[int, int] = {}
    for layer in reversed(layers):
        leaving.setdefault(layer.width_in, []).append(layer)
        surplus[layer.width_in] = surplus.get(layer.width_in, 0) + 1
        surplus[layer.width] = surplus.get(layer.width, 0) - 1
    start = next((width for width, more in surplus.items() if more > 0), layers[0].width_in)
    path: list[_Layer] = []
    open_at: list[tuple[int, _Layer | None]] = [(start, None)]
    while open_at:
        width, came_by = open_at[-1]
        if leaving.get(width):
            layer = leaving[width].pop()
            open_at.append((layer.width, layer))
        else:
            open_at.pop()
            path += [came_by] if came_by is not None else []
    path.reverse()
    chained = all(first.width == second.width_in for first, second in pairwise(path))
    if len(path) != len(layers) or not chained:
        widths = ", ".join(f"{layer.name} {layer.width_in}→{layer.width}" for layer in layers[:6])
        raise ValueError(f"the layers do not follow one another ({widths}); choose another architecture")
    return path


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models."""
    from torchvision import models

    return models.list_models(module=models)  # type: ignore[no-any-return]


def torchvision_families() -> dict[str, list[str]]:
    """Names of torchvision's classification models by the module that defines them."""
    from torchvision import models

    families: dict[str, list[str]] = {}
    for name in torchvision_names():
        families.setdefault(models.get_model_builder(name).__module__, []).append(name)
    return families


def build_torchvision(
    name: str, *, n_classes: int, channels: int, like: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build a classification model of torchvision without weights.

    Parameters
    ----------
    name : str
        Of `torchvision_names`.
    n_classes : int
    channels : int
        Of the images; the first convolution is replaced where it is not 3.
    like : mapping of str to Tensor, optional
        Weights. googlenet and inception_v3 get their auxiliary classifiers where `like` has them; in training
        mode they then return a tuple, whose first element is the logits.
    """
    from torchvision import models

    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        auxiliary = any(key.lower().startswith("aux") for key in like or ())
        options = {"aux_logits": auxiliary, "init_weights": False}
    network: nn.Module = models.get_model(name, weights=None, num_classes=n_classes, **options)
    if channels != 3:
        _replace_first_convolution(network, channels)
    return network


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    path, first = next((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d))
    convolution = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )  # fmt: skip
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    parent, _, last = path.rpartition(".")
    setattr(network.get_submodule(parent), last, convolution)
