"""Load and train the models under models/: the demo's classifier and β-VAE, and five simulated annotators.

Each is a safetensors file beside a JSON card that says what the model is, how it was trained and how
accurate it is. An annotator stands in for a person: a small network with another architecture and
augmentation than the demo's classifier and with its own random stream. It is trained on all 60,000
digits, of which the classifier saw 4,000. `python -m defuse_core.extensions.shipped --mnist mnist.npz`
trains all models again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from defuse_core.base.checkpoints import load_tensors, load_weights, save_tensors
from defuse_core.base.config import PRESETS, NetworkTraining, VaeConfig
from defuse_core.base.errors import CheckpointError
from defuse_core.base.files import write_bytes
from defuse_core.base.machine import MODELS
from defuse_core.base.runtime import Callback, derive_seed, keep_memory, set_threads
from defuse_core.data.sources import load_dataset, load_digits
from defuse_core.data.splits import ImageDataset, as_bytes
from defuse_core.method.classifier import Classifier, Preprocessing, accuracy, predict, train_classifier
from defuse_core.method.vae import BetaVAE, decode_images, encode_means
from defuse_core.method.vae_training import train_vae
from defuse_core.networks.architectures import build_network

CLASSIFIER, VAE = "demo-classifier", "demo-vae"
ANNOTATORS: dict[str, tuple[str, NetworkTraining]] = {
    f"annotator-{architecture}": (
        architecture,
        NetworkTraining(
            optimizer="sgd", learning_rate=0.1, final_learning_rate=1e-4, epochs=6, batch_size=128,
            precision="auto", augmentation=augmentation,
        ),
    )
    for architecture, augmentation in (
        ("vgg_small", "affine"),
        ("wide_kernel", "elastic"),
        ("resnet_small", "affine"),
        ("mobile_small", "elastic"),
        ("all_convolutional", "affine"),
    )
}  # fmt: skip
"""Architecture and training of each simulated annotator, by name."""


def read_card(name: str, models: Path = MODELS) -> dict[str, Any]:
    """Read a model's card and check that its weights are those the card was written for.

    Parameters
    ----------
    name : str
    models : Path
        Folder of the cards and weights.

    Raises
    ------
    CheckpointError
        If the card or weights are missing, or the weights' SHA-256 is not the card's.
    """
    card_path, weights = models / f"{name}.json", models / f"{name}.safetensors"
    if not card_path.is_file() or not weights.is_file():
        raise CheckpointError(
            f"{models} lacks {name}.json or {name}.safetensors; check the repository out again, "
            "or make the models with: python -m defuse_core.extensions.shipped"
        )
    card: dict[str, Any] = json.loads(card_path.read_text())
    if hashlib.sha256(weights.read_bytes()).hexdigest() != card["sha256"]:
        raise CheckpointError(f"{weights} is not the file its card describes; check it out again")
    return card


def load_shipped_classifier(
    name: str = CLASSIFIER, *, device: torch.device | None = None, models: Path = MODELS
) -> Classifier:
    """Load a shipped classifier or annotator, in evaluation mode.

    Parameters
    ----------
    name : str
    device : torch.device, optional
        By default the CPU.
    models : Path
        Folder of the cards and weights.
    """
    card = read_card(name, models)
    network = build_network(card["architecture"], n_classes=card["n_classes"], channels=card["channels"])
    classifier = Classifier(network, Preprocessing.of_json(card["preprocessing"]))
    _fill(classifier.network, name, models)
    return classifier.to(device or torch.device("cpu")).eval()


def load_shipped_vae(
    name: str = VAE, *, device: torch.device | None = None, models: Path = MODELS
) -> BetaVAE:
    """Load a shipped β-VAE, in evaluation mode.

    Parameters
    ----------
    name : str
    device : torch.device, optional
        By default the CPU.
    models : Path
        Folder of the cards and weights.
    """
    vae = BetaVAE(VaeConfig(**read_card(name, models)["vae"]))
    _fill(vae, name, models)
    return vae.to(device or torch.device("cpu")).eval()


def load_annotators(*, device: torch.device | None = None, models: Path = MODELS) -> dict[str, Classifier]:
    """Load the five simulated annotators by name.

    Parameters
    ----------
    device : torch.device, optional
        By default the CPU.
    models : Path
        Folder of the cards and weights.
    """
    return {name: load_shipped_classifier(name, device=device, models=models) for name in ANNOTATORS}


def _fill(module: nn.Module, name: str, models: Path) -> None:
    path = models / f"{name}.safetensors"
    load_weights(module, load_tensors(path)[0], source=path)


def make_classifier(
    name: str, dataset: ImageDataset, architecture: str, config: NetworkTraining, *,
    seed: int, models: Path = MODELS, callback: Callback | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a classifier, write it with its card, and return the card.

    Parameters
    ----------
    name : str
        Of the files, without their endings.
    dataset : ImageDataset
    architecture : str
    config : NetworkTraining
    seed : int
        Of the initial weights, together with the name, and of the training.
    models : Path
        Folder to write to.
    callback : Callback, optional
        Gets (epoch, epochs, metrics); True stops.
    """
    started = time.monotonic()
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, name))
        network = build_network(architecture, n_classes=dataset.n_classes, channels=dataset.image_shape[0])
    classifier = Classifier(network, Preprocessing.of(dataset.train.images))
    train_classifier(classifier, dataset.train, config=config, seed=seed, callback=callback)
    facts = {
        "kind": "classifier",
        "architecture": architecture,
        "n_classes": dataset.n_classes,
        "channels": dataset.image_shape[0],
        "preprocessing": asdict(classifier.preprocessing),
        "accuracy": {part: accuracy(classifier, s) for part, s in dataset.splits().items()},
        "training": config.model_dump(),
    }
    return _write(name, classifier.network, dataset, facts, seed, started, models)


def make_vae(
    name: str,
    dataset: ImageDataset,
    *,
    seed: int,
    models: Path = MODELS,
    callback: Callback | None = None,
) -> dict[str, Any]:
    """Train the demo's β-VAE, write it with its card, and return the card.

    Parameters
    ----------
    name : str
        Of the files, without their endings.
    dataset : ImageDataset
    seed : int
        Of the initial weights, together with the name, and of the training.
    models : Path
        Folder to write to; holds the demo's classifier, which measures the reconstructions.
    callback : Callback, optional
        Gets (epoch, epochs, metrics); True stops.
    """
    started = time.monotonic()
    preset = PRESETS["demo"]
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, name))
        vae = BetaVAE(preset.vae)
    history = train_vae(vae, dataset.train.images, config=preset.vae_training, seed=seed, callback=callback)
    classifier = load_shipped_classifier(models=models)
    still_correct = {}
    for part, split in dataset.splits().items():
        right = split[predict(classifier, split.images) == split.labels]
        decoded = as_bytes(decode_images(vae, encode_means(vae, right.images)))
        still_correct[part] = float((predict(classifier, decoded) == right.labels).double().mean())
    facts = {
        "kind": "vae",
        "vae": preset.vae.model_dump(),
        "still_correct_after_reconstruction": still_correct,
        "final": history[-1],
        "training": preset.vae_training.model_dump(),
    }
    return _write(name, vae, dataset, facts, seed, started, models)


def _write(
    name: str, module: nn.Module, dataset: ImageDataset, facts: dict[str, Any], seed: int,
    started: float, models: Path,
) -> dict[str, Any]:  # fmt: skip
    digest = save_tensors(models / f"{name}.safetensors", module.state_dict())
    needs = "" if dataset.name == "digits" else " --mnist mnist.npz"
    card = {
        "name": name,
        **facts,
        "seed": seed,
        "data": {
            "name": dataset.name,
            "train": len(dataset.train),
            "test": len(dataset.test),
            "fingerprint": dataset.fingerprint,
        },
        "command": f"python -m defuse_core.extensions.shipped --only {name} --seed {seed}{needs}",
        "made_with": {"torch": torch.__version__, "machine": platform.machine()},
        "seconds": round(time.monotonic() - started),
        "sha256": digest,
    }
    write_bytes(models / f"{name}.json", (json.dumps(card, indent=2) + "\n").encode())
    return card


def make_models(
    mnist: Annotated[
        str, typer.Option(help="All of MNIST: an .npz, or torchvision:MNIST[:root]")
    ] = "torchvision:MNIST",
    models: Annotated[Path, typer.Option(help="Folder to write")] = MODELS,
    only: Annotated[str, typer.Option(help="Make this model alone")] = "",
    seed: int = 0,
) -> None:
    """Make the shipped models again; equal seeds on the same machine give equal files."""
    set_threads()
    keep_memory()
    names = [only] if only else [CLASSIFIER, VAE, *ANNOTATORS]
    if unknown := set(names) - {CLASSIFIER, VAE, *ANNOTATORS}:
        raise typer.BadParameter(
            f"{unknown.pop()} is not one of {CLASSIFIER}, {VAE}, {', '.join(ANNOTATORS)}"
        )
    digits = load_digits()
    everything = load_dataset(mnist) if set(names) & set(ANNOTATORS) else digits
    for index, name in enumerate(names):

        def show(epoch: int, of: int, metrics: Any, name: str = name) -> None:
            values = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
            typer.echo(f"{name} {epoch}/{of}: {values}")

        if name == VAE:
            card = make_vae(name, digits, seed=seed, models=models, callback=show)
        elif name == CLASSIFIER:
            card = make_classifier(
                name, digits, "mnist_cnn", PRESETS["demo"].classifier_training, seed=seed, models=models,
                callback=show,
            )  # fmt: skip
        else:
            architecture, training = ANNOTATORS[name]
            card = make_classifier(
                name, everything, architecture, training, seed=seed, models=models, callback=show
            )
        scores = card.get("accuracy") or card["still_correct_after_reconstruction"]
        typer.echo(f"[{index + 1}/{len(names)}] {name}: {scores}, {card['seconds']} s")


if __name__ == "__main__":
    typer.run(make_models)
