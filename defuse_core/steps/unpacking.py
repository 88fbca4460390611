"""Build records and models from the files of runs, which may be damaged or of an archive that anybody made.

What a file states is believed once its tensors fit: a network is first built without memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from defuse_core.base.checkpoints import check_shapes, load_weights
from defuse_core.base.config import VaeConfig
from defuse_core.base.errors import CheckpointError, DefuseError
from defuse_core.base.limits import MAX_CLASSES
from defuse_core.base.records import Mistakes, Mixture
from defuse_core.base.texts import quote
from defuse_core.method.classifier import Preprocessing
from defuse_core.method.vae import BetaVAE
from defuse_core.networks.architectures import build_network
from defuse_core.networks.detection import on_meta

_MIXTURE_DIMENSIONS = {"weights": 1, "means": 2, "covariances": 3}
_MISTAKE_DIMENSIONS = {
    "latents": 2, "labels": 1, "predictions": 1, "source_index": 1, "noise_norm": 1, "kind": 1,
}  # fmt: skip


@contextmanager
def unpacking(name: str) -> Iterator[None]:
    """Turn what the content of a file of a run may raise into an error that says what to do.

    Parameters
    ----------
    name : str
        Of the file.
    """
    try:
        yield
    except DefuseError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else quote(error)
        raise CheckpointError(f"{name} is damaged ({told}); run the step again") from error


def unpack_mixture(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Mixture:
    """Build a mixture from the file of a run.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Weights, means and covariances.
    metadata : mapping
        "fit": the other fields of `Mixture`.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    with unpacking("mixture.safetensors"):
        _check_dimensions(tensors, _MIXTURE_DIMENSIONS)
        n, dim = tensors["means"].shape
        if tensors["covariances"].shape != (n, dim, dim):
            raise ValueError("means and covariances are of different shapes")
        fields: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        return Mixture(**fields, **metadata["fit"])


def unpack_mistakes(tensors: Mapping[str, Tensor]) -> Mistakes:
    """Build the mistakes from the file of a run.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        The fields of `Mistakes`.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    with unpacking("mistakes.safetensors"):
        _check_dimensions(tensors, _MISTAKE_DIMENSIONS)
        return Mistakes(**tensors)


def _check_dimensions(tensors: Mapping[str, Tensor], dimensions: Mapping[str, int]) -> None:
    """Compare names, dimensions and lengths."""
    if odd := sorted(tensors.keys() ^ dimensions.keys()):
        raise ValueError(f"{quote(odd[0], 60)} is missing, or should not be there")
    if bad := next((name for name, n in dimensions.items() if tensors[name].ndim != n), None):
        raise ValueError(f"{bad} has {tensors[bad].ndim} dimensions")
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        raise ValueError("its tensors are of different lengths")


def unpack_vae(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> BetaVAE:
    """Build a generator from the file of a run.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    metadata : mapping
        "config": the fields of `VaeConfig`.

    Raises
    ------
    CheckpointError
        If the file is damaged, or states a shape that its weights do not have.
    """
    with unpacking("vae.safetensors"):
        return build_vae(VaeConfig(**metadata["config"]), tensors, source="vae.safetensors").eval()


def build_vae(config: VaeConfig, tensors: Mapping[str, Tensor], *, source: str) -> BetaVAE:
    """Build a generator with these weights; none is allocated before they are compared with its shape.

    Parameters
    ----------
    config : VaeConfig
    tensors : mapping of str to Tensor
    source : str
        Name of the weights in messages.

    Raises
    ------
    CheckpointError
        If the weights do not fit.
    """
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the file states
            blank = BetaVAE(config)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{source} states the shape of no generator; export the generator again, or train one"
        ) from error
    check_shapes(blank, tensors, source=source)
    vae = BetaVAE(config)
    load_weights(vae, tensors, source=source)
    return vae


def build_checked(name: str, tensors: Mapping[str, Tensor], *, n_classes: int, channels: int) -> nn.Module:
    """Build a network of ours for these weights; none is allocated before they are compared with its shape.

    Parameters
    ----------
    name : str
        Of the architecture.
    tensors : mapping of str to Tensor
    n_classes, channels : int

    Raises
    ------
    CheckpointError
        If the weights do not fit.
    """
    check_shapes(on_meta(name, n_classes, channels, tensors), tensors, source="classifier.safetensors")
    return build_network(name, n_classes=n_classes, channels=channels, like=tensors)


def read_stated(metadata: Mapping[str, Any]) -> tuple[str, int, Preprocessing]:
    """Return architecture, number of classes and preprocessing, as the file of a classifier states them.

    Parameters
    ----------
    metadata : mapping

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    with unpacking("classifier.safetensors"):
        name, n_classes = metadata["architecture"], metadata["n_classes"]
        if not isinstance(name, str):
            raise ValueError("architecture is no name")
        if type(n_classes) is not int or not 1 <= n_classes <= MAX_CLASSES:
            raise ValueError(f"n_classes must be 1 to {MAX_CLASSES:,}, got {quote(n_classes, 40)}")
        return name, n_classes, Preprocessing.of_json(metadata["preprocessing"])
