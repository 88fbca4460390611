"""Workspaces that are made once in a test run, whichever worker needs one first; each test gets a copy."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from defuse_core.base.config import ClassifierTraining
from defuse_core.data.splits import ImageDataset
from defuse_core.method.classifier import Classifier, Preprocessing, predict, train_classifier
from defuse_core.method.labeling import draw_images
from defuse_core.steps.source import Source
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Run
from tests.conftest import TinyNetwork, bars
from tests.in_process import done_here, fresh_place
from tests.workspaces import SEARCH, SWEEP, Place, copy_place, save_npz


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` fills, once for all workers of a test run; read it only.

    A worker that needs it while another makes it waits; one that failed leaves it to the next.
    """
    root = factory.getbasetemp()
    if root.name.startswith("popen-"):  # a worker's, beside those of the others
        root = root.parent
    folder, made = root / name, root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def make_labelled(folder: Path) -> None:
    """Fill `folder/home` with a workspace of shapes: classifier, generator, mistakes, regions, labels."""
    dataset = ImageDataset("shapes", bars(1280, 0), bars(120, 1), ("row", "column", "diagonal"), bars(60, 2))
    save_npz(dataset, folder / "shapes.npz")
    place = fresh_place(folder / "home", folder / "shapes.npz", "shapes")
    training = {"optimizer": "adam", "learning_rate": 1e-4, "epochs": 1, "batch_size": 64}
    done_here(place, "classifier", {"architecture": "resnet_small", "training": training})
    shape = {"hidden_channels": 16, "depth": 2, "hidden_units": 64, "latent_dim": 4}
    training = {
        "epochs": 20, "beta": 0.2, "kl_anneal_steps": 50, "batch_size": 32, "learning_rate": 3e-3,
        "precision": "fp32",
    }  # fmt: skip
    done_here(place, "vae", {**shape, "training": training})
    done_here(place, "identify", SEARCH)
    label(place, done_here(place, "distill", {"n_components": 12}))
    place.workspace.close()


def make_corrected(labelled: Path, folder: Path) -> None:
    """Fill `folder/home` with the labelled workspace, in which every further step was run.

    But for the annotators', who know digits only.
    """
    place = copy_place(labelled, folder / "home")
    done_here(place, "map", {"method": "tsne", "n_codes": 100, "n_mistakes": 50})
    done_here(place, "correct", SWEEP)
    done_here(place, "evaluate")
    done_here(place, "report")
    place.workspace.close()


def label(place: Place, regions: Run) -> None:
    """Let a better network, trained on shapes of its own, label ten draws of every region."""
    torch.manual_seed(10)
    split = bars(960, 100)
    annotator = Classifier(TinyNetwork(), Preprocessing.of(split.images))
    config = ClassifierTraining(optimizer="adam", learning_rate=3e-3, epochs=12, batch_size=32)
    train_classifier(annotator, split, config=config, seed=0)
    source = Source(place.workspace, regions.id)
    vae = source.vae()
    events = [
        LabelEvent(region.region_id, "Ada", said, sample)
        for region in source.regions()
        for sample, said in enumerate(
            predict(annotator, draw_images(vae, region, 10, tau=0.5, seed=0)).tolist()
        )
    ]
    mistakes = source.mistakes()
    events += [LabelEvent(-1, "Ada", int(mistakes.labels[i]), i) for i in range(0, len(mistakes), 40)]
    place.workspace.annotations.append(regions.id, events)
