"""Open the model that a suite is checked with: any checkpoint that Defuse reads, without a workspace.

What the file does not say is taken from the suite: the preprocessing, and the architecture where several
fit the weights. `Model.preprocessing_from` names the origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from defuse_core.base.checkpoints import load_metadata, load_weights
from defuse_core.base.errors import CheckpointError
from defuse_core.exchange.suite.suite import Feeding, Suite
from defuse_core.method.classifier import Classifier, Preprocessing, predict_logits
from defuse_core.networks.architectures import build_network
from defuse_core.networks.detection import Fit, detect
from defuse_core.networks.formats import load_program, read_weights, sniff_format
from defuse_core.networks.local_code import import_network
from defuse_core.networks.sniffing import PROGRAMS
from defuse_core.steps.feeding import check_class_names_of, check_stated_channels
from defuse_core.steps.networks import choose_fit
from defuse_core.workspace.configs import NetworkConfig

_STATED = ("mean", "std", "image_size", "channel_order")


@dataclass(frozen=True)
class Model:
    """A model to check.

    Attributes
    ----------
    classifier : Classifier
        In evaluation mode.
    architecture : str
    preprocessing_from : str
        "the options", "the checkpoint" or "the suite".
    """

    classifier: Classifier
    architecture: str
    preprocessing_from: str


def open_model(path: Path, suite: Suite, config: NetworkConfig) -> Model:
    """Open a checkpoint to check it with a suite.

    Parameters
    ----------
    path : Path
        Weights in any format, or a program where `config.trust_program` is set.
    suite : Suite
    config : NetworkConfig
        What the user states; the rest comes from the checkpoint or the suite.

    Raises
    ------
    CheckpointError
        If it cannot be read, fits no architecture or several, or has other classes than the suite.
    """
    kind = sniff_format(path)
    metadata = load_metadata(path) if kind == "safetensors" else {}
    check_class_names_of(metadata, suite.manifest.class_names, path=path, owner="the suite")
    base, origin = _feeding(path, metadata, suite, config)
    if kind in PROGRAMS:
        if not config.trust_program:
            raise CheckpointError(
                f"{path} is a program ({kind}), which runs on this machine when it is used; if you trust who "
                "made it, add --trust-program"
            )
        architecture, classifier = str(kind), Classifier(load_program(path), base).eval()
    else:
        architecture, network, fed = _of_weights(path, metadata, base, suite, config)
        classifier = Classifier(network, fed).eval()
    _check_answers(classifier, path, suite)
    return Model(classifier, architecture, origin)


def _feeding(
    path: Path, metadata: Mapping[str, Any], suite: Suite, config: NetworkConfig
) -> tuple[Preprocessing, str]:
    """The preprocessing and its origin: options come before the checkpoint, and that before the suite."""
    base, origin = suite.manifest.preprocessing, "the suite"
    if "preprocessing" in metadata:
        try:
            base, origin = Feeding.model_validate(metadata["preprocessing"]), "the checkpoint"
        except ValidationError:
            raise CheckpointError(
                f"{path} states a preprocessing that is none; state it: --mean, --std, --image-size"
            ) from None
    stated = {name: getattr(config, name) for name in _STATED if name in config.model_fields_set}
    fed = base.preprocessing()
    if not stated:
        return fed, origin
    channels = len(stated.get("mean") or stated.get("std") or fed.mean)
    return replace(_of_channels(fed, channels), **stated), "the options"


def _of_channels(fed: Preprocessing, channels: int) -> Preprocessing:
    """The same for this many channels; if it has another number, each channel gets the average."""
    if len(fed.mean) == channels:
        return fed
    mean, std = ((sum(values) / len(values),) * channels for values in (fed.mean, fed.std))
    return replace(fed, mean=mean, std=std, channel_order=fed.channel_order if channels == 3 else "rgb")


def _of_weights(
    path: Path, metadata: Mapping[str, Any], fed: Preprocessing, suite: Suite, config: NetworkConfig
) -> tuple[str, nn.Module, Preprocessing]:
    weights, n_classes = read_weights(path), len(suite.manifest.class_names)
    name = config.architecture or (str(metadata["architecture"]) if "architecture" in metadata else None)
    if name in PROGRAMS:
        raise CheckpointError(
            f"{path} holds the weights of a program alone; load them into it as their card says, save it, "
            "and check that file with --trust-program"
        )
    if config.code_path is not None or (name and ":" in name):
        if config.code_path is None:
            raise CheckpointError(f"{path} is of {name}, a class of your own; name its folder: --code-path")
        network = import_network(name or "", config.code_path, n_classes=n_classes, channels=len(fed.mean))
        load_weights(network, weights.under_names(network.state_dict().keys()), source=path)
        return name or "", network, fed
    fits = detect(weights, n_classes=n_classes, image_shape=suite.manifest.image_shape)
    fit = _choose(fits, name, path, suite)
    tensors = {fit.prefix + key: tensor for key, tensor in weights.tensors.items()}
    network = build_network(fit.architecture, n_classes=n_classes, channels=fit.channels, like=tensors)
    load_weights(network, tensors, source=path)
    check_stated_channels(config, fit.channels)
    fed = _of_channels(fed, fit.channels)
    return fit.architecture, network, replace(fed, image_size=fed.image_size or fit.image_size)


def _choose(fits: list[Fit], name: str | None, path: Path, suite: Suite) -> Fit:
    """The named architecture, else the one that fits; of several, the one that the suite was made from."""
    n_classes = len(suite.manifest.class_names)
    if fits and fits[0].wrong_classes:
        raise CheckpointError(
            f"{path} tells {fits[0].n_classes} classes apart, the suite has {n_classes}; check the model "
            "that was made for the suite's data"
        )
    exact = [fit.architecture for fit in fits if fit.exact]
    if name is None and len(exact) > 1 and suite.manifest.architecture in exact:
        name = suite.manifest.architecture
    try:
        return choose_fit(fits, name)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_answers(classifier: Classifier, path: Path, suite: Suite) -> None:
    """Classify one image: does the model accept it, and return as many classes?"""
    n_classes = len(suite.manifest.class_names)
    try:
        logits = predict_logits(classifier, suite.instances.images[:1])
    except CheckpointError:
        raise
    except Exception as error:  # a program of a stranger may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[-1][:200]
        raise CheckpointError(
            f"{path} does not take the suite's images of {suite.manifest.image_shape} ({reason}); state how "
            "it is fed: --mean, --std, --image-size"
        ) from error
    if logits.shape != (1, n_classes):
        raise CheckpointError(
            f"{path} tells {logits.shape[-1]} classes apart, the suite has {n_classes}; check the model that "
            "was made for the suite's data"
        )
