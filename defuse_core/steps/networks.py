"""Builds the network of a classifier: a new one, a shipped one, or an upload of any format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defuse_core.base.checkpoints import load_artifact, load_weights
from defuse_core.base.errors import CheckpointError
from defuse_core.base.runtime import derive_seed
from defuse_core.data.splits import ImageDataset
from defuse_core.extensions.shipped import load_shipped_classifier, read_card
from defuse_core.method.classifier import Preprocessing
from defuse_core.networks.architectures import build_network, imagenet_weights
from defuse_core.networks.detection import Fit, describe_misfit, detect
from defuse_core.networks.formats import CheckpointFormat, Weights, load_program, read_weights, sniff_format
from defuse_core.networks.local_code import import_network
from defuse_core.networks.sniffing import PROGRAMS
from defuse_core.steps.feeding import check_class_names_of, preprocessing_of, stated_preprocessing
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import ClassifierConfig, NetworkConfig

_FACTS = ("code_path", "program", "key_prefix", "nested_under")
"""Keys of `Network.facts` that the metadata of a classifier holds."""


@dataclass(frozen=True)
class Network:
    """A network with its weights.

    Attributes
    ----------
    architecture : str
    network : nn.Module
    preprocessing : Preprocessing
        As stated by the user, else with the data set's mean and standard deviation.
    facts : mapping
        What else is needed to build it again, and to write weights under their original names.
    """

    architecture: str
    network: nn.Module
    preprocessing: Preprocessing
    facts: Mapping[str, Any] = field(default_factory=dict)


def make_network(source: Source, config: ClassifierConfig, seed: int) -> Network:
    """Build a network to train, with random weights or with pretrained ones.

    With pretrained weights, "began_afresh" in `facts` lists the layers that stay random.

    Parameters
    ----------
    source : Source
    config : ClassifierConfig
    seed : int
        Of the random weights.
    """
    dataset = source.dataset
    preprocessing = stated_preprocessing(config, dataset)
    size = preprocessing.image_size or dataset.image_shape[1]
    name = _named(config) or ("mnist_cnn" if size == 28 else "resnet_small")
    channels, n_classes = len(preprocessing.mean), dataset.n_classes
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "classifier"))
        if config.code_path is None:
            network = build_network(name, n_classes=n_classes, channels=channels)
        else:
            network = import_network(name, config.code_path, n_classes=n_classes, channels=channels)
    facts: dict[str, Any] = {"code_path": config.code_path}
    if config.pretrained == "imagenet":
        facts["began_afresh"] = begin_with(network, imagenet_weights(name), source="ImageNet's weights")
    elif config.pretrained is not None:
        with upload_of(source, config.pretrained) as path:
            facts["began_afresh"] = begin_with(network, read_weights(path).tensors, source=str(path))
    return Network(name, network, preprocessing, facts)


def _named(config: NetworkConfig) -> str | None:
    """The architecture of a config, which needs a folder if it is a class of the user's own."""
    if config.code_path is None and ":" in (config.architecture or ""):
        raise CheckpointError(f"{config.architecture} is a class of your own; name its folder: code_path")
    return config.architecture


def begin_with(network: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> list[str]:
    """Load the pretrained weights that fit by name and shape; return the layers left as they were.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    tensors : mapping of str to Tensor
    source : str
        Name of the weights, for error messages.

    Raises
    ------
    CheckpointError
        If no parameter fits.
    """
    own = network.state_dict()
    fits = {
        name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape
    }
    if not fits.keys() & dict(network.named_parameters()).keys():
        raise CheckpointError(
            f"{source} fits no layer of the network, which has {', '.join(list(own)[:3])} …; give weights of "
            "the same architecture"
        )
    if bad := [name for name, t in fits.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise CheckpointError(
            f"{source} has weights that are not finite: {', '.join(bad[:4])}; training diverged, give another"
        )
    network.load_state_dict(fits, strict=False)
    parameters = dict(network.named_parameters())
    return sorted({name.rpartition(".")[0] for name in parameters.keys() - fits.keys()})


def check_initial_weights(path: Path, architecture: str, *, n_classes: int) -> None:
    """Read a file of weights that a network for images in colour is to begin with.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or fits no layer of the architecture.
    """
    network = build_network(architecture, n_classes=n_classes, channels=3)
    begin_with(network, read_weights(path).tensors, source=str(path))


def bring_network(source: Source, config: NetworkConfig) -> Network:
    """Load the network whose weights the config names.

    Parameters
    ----------
    source : Source
    config : NetworkConfig

    Raises
    ------
    CheckpointError
        If it cannot be read, no architecture fits, or several do and none was chosen.
    """
    kind, _, name = str(config.weights).partition(":")
    if kind == "shipped":
        return _shipped(name, config)
    if kind == "corrected":
        return _corrected(source, int(name), config)
    with upload_of(source, str(config.weights)) as path:
        file_format = sniff_format(path)
        if file_format in PROGRAMS:
            return _program(path, file_format, name, source.dataset, config)
        return _plain(path, source.dataset, config)


@contextmanager
def upload_of(source: Source, weights: str) -> Iterator[Path]:
    """Give the path of an upload; errors inside the context name the file as the user does.

    Parameters
    ----------
    source : Source
    weights : str
        blob:<sha256>.
    """
    sha256 = weights.removeprefix("blob:")
    path = source.workspace.blob_path(source.run.project_id, sha256)
    name = next(b.name for b in source.workspace.blobs(source.run.project_id) if b.sha256 == sha256)
    try:
        yield path
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(path), name)) from error


def _shipped(name: str, config: NetworkConfig) -> Network:
    classifier, card = load_shipped_classifier(name), read_card(name)
    own = classifier.preprocessing
    stated = Preprocessing(
        config.mean or own.mean, config.std or own.std, config.image_size or own.image_size,
        config.channel_order,
    )  # fmt: skip
    return Network(card["architecture"], classifier.network, stated)


def _corrected(source: Source, run_id: int, config: NetworkConfig) -> Network:
    """The classifier that a correct run tuned, with the preprocessing of the one before it."""
    run = source.workspace.runs.get(run_id)
    if run.project_id != source.run.project_id or run.step != "correct":
        raise CheckpointError(
            f"weights must name a correct run of the project, run {run_id} is none; see: defuse runs"
        )
    if any((config.architecture, config.code_path, config.mean, config.std, config.image_size)):
        raise CheckpointError(
            "a corrected classifier is fed as the one it was made of; leave architecture, code_path, mean, "
            "std and image_size out"
        )
    ground = Source(source.workspace, run_id)
    tensors, tuned = load_artifact(source.workspace.artifact_path(run_id, "corrected.safetensors"))
    metadata = ground.read("classifier", "classifier")[1]
    facts = {**{name: metadata[name] for name in _FACTS if name in metadata}, "corrected": tuned["point"]}
    corrected = ground.build(tensors, metadata)
    return Network(metadata["architecture"], corrected.network, corrected.preprocessing, facts)


def _program(
    path: Path, kind: CheckpointFormat, sha256: str, dataset: ImageDataset, config: NetworkConfig
) -> Network:
    if not config.trust_program:
        raise CheckpointError(
            f"the file is a {'TorchScript' if kind == 'torchscript' else 'torch.export'} program, which runs "
            "on this machine when it is used; if you trust who made it, set trust_program, or upload the "
            'weights alone: torch.save(model.state_dict(), "weights.pt")'
        )
    network = load_program(path)
    stated = stated_preprocessing(config, dataset, channels=_first_channels(network.state_dict()))
    return Network(kind, network, stated, {"program": sha256})


def _first_channels(tensors: Mapping[str, Tensor]) -> int | None:
    """Channels that the first convolution takes, if 1 or 3."""
    widths = [tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 4]
    return widths[0] if widths and widths[0] in (1, 3) else None


def _plain(path: Path, dataset: ImageDataset, config: NetworkConfig) -> Network:
    weights = read_weights(path)
    if config.code_path is not None:
        return _own_class(weights, path, dataset, config.code_path, config)
    fits = detect(weights, n_classes=dataset.n_classes, image_shape=dataset.image_shape)
    return build_fit(weights, choose_fit(fits, _named(config)), path, dataset, config)


def build_fit(
    weights: Weights, fit: Fit, path: Path, dataset: ImageDataset, config: NetworkConfig
) -> Network:
    """Build the network that the weights fit, and load them; errors name the path.

    Parameters
    ----------
    weights : Weights
    fit : Fit
        The architecture, from `detect`.
    path : Path
        Of the weights, for error messages.
    dataset : ImageDataset
    config : NetworkConfig
        States the preprocessing.

    Raises
    ------
    CheckpointError
        If a weight is not finite.
    """
    tensors = {fit.prefix + key: tensor for key, tensor in weights.tensors.items()}
    network = build_network(
        fit.architecture, n_classes=dataset.n_classes, channels=fit.channels, like=tensors
    )
    load_weights(network, tensors, source=path)
    check_class_names_of(weights.metadata, dataset.class_names, path=path, owner="the data set")
    own = preprocessing_of(weights.metadata, path)
    stated = stated_preprocessing(config, dataset, channels=fit.channels, own=own)
    stated = replace(stated, image_size=stated.image_size or fit.image_size)
    facts = {"key_prefix": weights.prefix.removesuffix(fit.prefix), "nested_under": weights.nested_under}
    return Network(fit.architecture, network, stated, facts)


def _own_class(
    weights: Weights, path: Path, dataset: ImageDataset, code_path: str, config: NetworkConfig
) -> Network:
    channels = _first_channels(weights.tensors) or dataset.image_shape[0]
    name = config.architecture or ""
    network = import_network(name, code_path, n_classes=dataset.n_classes, channels=channels)
    load_weights(network, weights.under_names(network.state_dict().keys()), source=path)
    check_class_names_of(weights.metadata, dataset.class_names, path=path, owner="the data set")
    own = preprocessing_of(weights.metadata, path)
    facts = {"code_path": code_path, "nested_under": weights.nested_under}
    return Network(name, network, stated_preprocessing(config, dataset, channels=channels, own=own), facts)


def choose_fit(fits: list[Fit], architecture: str | None) -> Fit:
    """Return the one architecture that fits, or the one that was chosen.

    Parameters
    ----------
    fits : list of Fit
    architecture : str or None
        The one that the user chose.

    Raises
    ------
    CheckpointError
        If none fits, or several do and none was chosen.
    """
    if architecture is not None:
        chosen = [fit for fit in fits if fit.architecture == architecture]
        better = ", ".join(fit.architecture for fit in fits if fit.exact)
        if better and not any(fit.exact for fit in chosen):
            raise CheckpointError(f"the weights are not of {architecture}; they fit {better}")
        fits = chosen or fits
    exact = [fit for fit in fits if fit.exact]
    if not exact:
        raise CheckpointError(describe_misfit(fits))
    if len(exact) > 1:
        names = ", ".join(fit.architecture for fit in exact)
        raise CheckpointError(f"the weights fit several architectures: {names}; choose one by architecture")
    return exact[0]
