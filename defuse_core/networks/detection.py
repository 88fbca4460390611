"""Find the architecture of weights: compare names and shapes with every network that can be built.

Networks are built on torch's meta device, so that nothing is computed and no memory taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from defuse_core.networks.architectures import ARCHITECTURES, SIZED, build_network
from defuse_core.networks.formats import Weights
from defuse_core.networks.tutorials import LENETS, MLPS, torchvision_families

_CLASSES, _CHANNELS = 7919, 7907
"""Primes that stand for the number of classes and channels: no layer of any network is as wide."""
_NEAR_MISSES = 8
_SIDES = (28, 32, 64, 96, 128, 224, 256, 299, 384)
"""Image sizes to try where a network does not take the images as they are."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fit:
    """How an architecture compares with weights.

    Attributes
    ----------
    architecture : str
    n_classes : int, optional
        Number of classes that the weights were trained for; None where they do not tell.
    channels : int
        Channels that the network takes.
    prefix : str
        To put before every key of the weights, so that they fit.
    missing, unexpected : tuple of str
        Keys of the network that the file lacks, and of the file that the network lacks. Counters of
        batch-norm, which old files lack, do not count.
    reshaped : tuple of str
        "fc.weight: (1000, 512) in the file, (10, 512) in the network".
    shared : float
        Share of the network's keys that are there in the same shape, in [0, 1].
    head : tuple of str
        Keys of the network whose shape depends on the number of classes.
    image_size : int, optional
        Side that images must be resized to; None where they fit as they are, or where no size does.
    """

    architecture: str
    n_classes: int | None
    channels: int
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    shared: float
    head: tuple[str, ...] = ()
    image_size: int | None = None

    @property
    def exact(self) -> bool:
        """Whether every name and shape fits."""
        return not (self.missing or self.unexpected or self.reshaped)

    @property
    def wrong_classes(self) -> bool:
        """Whether all fits but for the last layer's number of classes."""
        if self.missing or self.unexpected or not self.reshaped or self.n_classes is None:
            return False
        return {text.rpartition(": ")[0] for text in self.reshaped} <= set(self.head)


def detect(weights: Weights, *, n_classes: int, image_shape: tuple[int, int, int]) -> list[Fit]:
    """Compare weights with every architecture.

    Parameters
    ----------
    weights : Weights
    n_classes : int
        Of the data set.
    image_shape : (channels, height, width)
        Of its images.

    Returns
    -------
    list of Fit
        Best first: those that fit, those for another number of classes, at most eight near misses. Where
        some fit the images as they are, those that need another size are left out.

    Notes
    -----
    A fit is built as ``build_network(fit.architecture, n_classes=n_classes, channels=fit.channels,
    like=tensors)`` with ``tensors = {fit.prefix + k: t for k, t in weights.tensors.items()}``. Variants of
    one family have the same weights and all fit: their accuracies tell which one it was.
    """
    look = _Look(weights, n_classes, image_shape)
    fits = [fit for name in [*ARCHITECTURES, *LENETS, *MLPS] for fit in look.at(name)]
    if not any(fit.exact or fit.wrong_classes for fit in fits):
        families = torchvision_families()
        shared = {
            name: max((fit.shared for fit in look.at(of[0])), default=0.0) for name, of in families.items()
        }
        for family in sorted(families, key=lambda name: -shared[name]):
            fits += [fit for name in families[family] for fit in look.at(name)]
            if any(fit.exact or fit.wrong_classes for fit in fits):
                break  # no two families of torchvision have the same names and shapes
    fits.sort(key=lambda fit: -fit.shared)  # stable: where several are equal, the usual ones come first
    exact = [look.sized(fit) or fit for fit in fits if fit.exact]
    best = min((_reach(fit) for fit in exact), default=0)
    other = [look.sized(fit) or fit for fit in fits if fit.wrong_classes]
    misses = [fit for fit in fits if not (fit.exact or fit.wrong_classes)]
    return [fit for fit in exact if _reach(fit) == best] + other + misses[:_NEAR_MISSES]


def _reach(fit: Fit) -> int:
    """How far-fetched a fit is: by shapes alone, many networks fit images of some other size."""
    if fit.image_size is None:
        return 0
    return 2 if fit.architecture in LENETS or fit.architecture in MLPS else 1


def describe_misfit(fits: list[Fit]) -> str:
    """Say in one sentence, for a person, why no architecture fits and what to do."""
    if not fits:
        return (
            "the weights are of no architecture that is known; save the network as TorchScript, which brings "
            "its architecture along, or name its code"
        )
    best = fits[0]
    if best.wrong_classes:
        return (
            f"the weights are of {best.architecture} for {best.n_classes} classes, the data set has another "
            f"number ({best.reshaped[0]}); bring the classifier that was trained on this data"
        )
    parts = {
        "missing in the file": best.missing,
        "not in the network": best.unexpected,
        "of another shape": best.reshaped,
    }
    differences = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in parts.items() if keys)
    return (
        f"the weights are of no architecture that is known; the nearest, {best.architecture}, shares "
        f"{math.floor(100 * best.shared)} % of its weights with them: {differences}; save the network as "
        "TorchScript, which contains its architecture, or name its code"
    )


def _some(keys: tuple[str, ...]) -> str:
    return ", ".join(key[:120] for key in keys[:2]) + (", …" if len(keys) > 2 else "")


class _Look:
    """Compares one file's weights with one architecture after another."""

    def __init__(self, weights: Weights, n_classes: int, image_shape: tuple[int, int, int]) -> None:
        self.n_classes, self.image_shape = n_classes, image_shape
        self.tensors = {  # by the part of the prefix that is put back, the shortest first
            prefix: {prefix + key: t.to("meta") for key, t in weights.tensors.items()}
            for prefix in weights.own_prefixes()
        }
        self.shapes = {
            prefix: {key: tuple(t.shape) for key, t in named.items()}
            for prefix, named in self.tensors.items()
        }

    def at(self, name: str) -> Iterator[Fit]:
        """The best fit of an architecture; none where it shares nothing with the weights."""
        fits: list[Fit] = []
        for prefix, tensors in self.tensors.items():
            try:
                own = _shapes_of(name, tensors)
            except ValueError:
                continue  # the weights are not of this family
            fits.append(_compare(name, own, self.shapes[prefix], prefix, self.n_classes, self.image_shape[0]))
        best = max(fits, key=lambda fit: (fit.exact, fit.wrong_classes, fit.shared), default=None)
        if best is not None and best.shared > 0 and (name not in {**LENETS, **MLPS} or self.sized(best)):
            yield best

    def sized(self, fit: Fit) -> Fit | None:
        """The fit with the size that images must have, and an MLP's channels; None where no size does."""
        tensors, own = self.tensors[fit.prefix], self.image_shape[1:]
        network = on_meta(fit.architecture, self.n_classes, fit.channels, tensors).to("meta").eval()
        channels, sides = [fit.channels], list(_SIDES)
        if fit.architecture in MLPS:
            channels = list(dict.fromkeys([self.image_shape[0], 1, 3]))
            widths = [tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 2]
            sides += [math.isqrt(width // n) for width in widths for n in channels]
        for height, width in dict.fromkeys([own, *((side, side) for side in sides)]):
            for n in channels:
                if _takes(network, (n, height, width), self.n_classes):
                    size = None if (height, width) == own else height
                    return replace(fit, channels=n, image_size=size)
        return None


def _takes(network: nn.Module, shape: tuple[int, int, int], n_classes: int) -> bool:
    try:
        with torch.no_grad():
            logits = network(torch.empty(2, *shape, device="meta"))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return isinstance(logits, Tensor) and logits.shape == (2, n_classes)


def _compare(name: str, own: Shapes, stored: Shapes, prefix: str, n_classes: int, images: int) -> Fit:
    """Compare a network's names and shapes, with primes for classes and channels, with those of a file."""
    first = next((key for key, shape in own.items() if _CHANNELS in shape), "")
    channels = stored.get(first, (0, images))[1:2]
    taken = channels[0] if channels and channels[0] in (1, 3) else images
    sizes = {_CLASSES: n_classes, _CHANNELS: taken}
    head = tuple(key for key, shape in own.items() if _CLASSES in shape)
    expected = {key: tuple(sizes.get(size, size) for size in shape) for key, shape in own.items()}
    missing = [key for key in expected.keys() - stored.keys() if not key.endswith("num_batches_tracked")]
    other = [key for key, shape in expected.items() if key in stored and stored[key] != shape]
    trained = {
        stored[key][0] if stored[key][1:] == expected[key][1:] else None for key in head if stored.get(key)
    }
    return Fit(
        architecture=name,
        n_classes=trained.pop() if len(trained) == 1 else None,
        channels=taken,
        prefix=prefix,
        missing=tuple(sorted(missing)),
        unexpected=tuple(sorted(stored.keys() - expected.keys())),
        reshaped=tuple(f"{key}: {stored[key]} in the file, {expected[key]} in the network" for key in other),
        shared=sum(stored.get(key) == shape for key, shape in expected.items()) / len(expected),
        head=head,
    )


class _Meta(TorchFunctionMode):
    """Puts weights on the meta device, but not computed tables: regnet computes its widths."""

    _MAKERS = (torch.empty, torch.zeros, torch.ones)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in self._MAKERS:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))


def on_meta(name: str, n_classes: int, channels: int, like: Mapping[str, Tensor]) -> nn.Module:
    """Build a network without memory for its weights, whatever its size.

    Parameters
    ----------
    name : str
        Of the architecture.
    n_classes, channels : int
    like : mapping of str to Tensor
        Weights that it is to fit, as `build_network` takes them.
    """
    with _Meta():
        return build_network(name, n_classes=n_classes, channels=channels, like=like)


def _shapes_of(name: str, like: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes of a network, with primes for the numbers of classes and channels."""
    if name in LENETS or name in MLPS or name in SIZED:
        return _shapes(on_meta(name, _CLASSES, _CHANNELS, like))
    return _fixed_shapes(name, any(key.lower().startswith("aux") for key in like))


@lru_cache(maxsize=256)
def _fixed_shapes(name: str, auxiliary: bool) -> Shapes:
    return _shapes(on_meta(name, _CLASSES, _CHANNELS, {"aux": torch.empty(0)} if auxiliary else {}))


def _shapes(network: nn.Module) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
