"""A workspace of small shapes with every step up to the labels done, made by real runs."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from defuse_core.annotations import LabelEvent
from defuse_core.classifier import Classifier, Preprocessing, predict, train_classifier
from defuse_core.config import ClassifierTraining
from defuse_core.data import ImageDataset
from defuse_core.jobs import launcher
from defuse_core.labeling import draw_images
from defuse_core.projects import new_project
from defuse_core.runs import Resources, Run
from defuse_core.step_configs import StepName
from defuse_core.steps.source import Source
from defuse_core.workspace import Project, Workspace
from tests.conftest import TinyNetwork, bars

ONE_THREAD = Resources(device="cpu", threads=1)
"""A run gives the same bits as the process that compares with it."""

SEARCH: dict[str, Any] = {
    "n_perturbations": 60, "centred": True, "noise_scale": 6.0, "max_mistakes_per_image": 4,
    "precision": "fp32",
}  # fmt: skip
SWEEP: dict[str, Any] = {
    "correction": {
        "lambdas": [0.0, 0.01, 0.1, 1.0, 10.0], "epochs": 2, "instances_per_region": 16, "precision": "fp32",
    },
    "baseline_lambdas": [1.0],
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A workspace with one project."""

    workspace: Workspace
    project: Project

    def submit(
        self, step: StepName, config: Mapping[str, Any] | None = None, *, seed: int = 0,
        resources: Resources = ONE_THREAD,
    ) -> Run:  # fmt: skip
        """Start a run."""
        return launcher.submit(self.workspace, self.project.id, step, config, seed=seed, resources=resources)

    def run(self, step: StepName, config: Mapping[str, Any] | None = None, **options: Any) -> Run:
        """Start a run and wait for its end, which is to be a good one."""
        found = self.wait(self.submit(step, config, **options))
        assert found.status == "done", f"{found.error}\n{self.log(found)}"
        return found

    def wait(self, run: Run, *, seconds: float = 120.0) -> Run:
        """Wait for the end of a run."""
        eventually(lambda: not self.get(run).live, seconds=seconds)
        return self.get(run)

    def get(self, run: Run) -> Run:
        """Read a run again."""
        return self.workspace.runs.get(run.id)

    def log(self, run: Run) -> str:
        """What its process printed."""
        return (self.workspace.run_folder(run.id) / "log.txt").read_text()

    def tensors(self, run: Run) -> dict[str, dict[str, Tensor]]:
        """Every safetensors artifact of a run, by name."""
        return {
            name: safetensors.torch.load_file(self.workspace.artifact_path(run.id, name))
            for name in self.workspace.runs.artifacts(run.id)
            if name.endswith(".safetensors")
        }

    def check_integrity(self) -> None:
        """The database is sound, and every file that a row names is whole and loads."""
        with closing(sqlite3.connect(self.workspace.home / "defuse.sqlite")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert not connection.execute("PRAGMA foreign_key_check").fetchall()
        for run in self.workspace.runs.of_project(self.project.id):
            self.workspace.verify(run.id)
            self.tensors(run)


def eventually(condition: Callable[[], bool], *, seconds: float = 10.0) -> float:
    """Wait until a condition holds; return the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - started


def copy_place(template: Path, home: Path) -> Place:
    """A workspace of its own with all that the template holds."""
    shutil.copytree(template, home)
    workspace = Workspace(home)
    return Place(workspace, workspace.projects()[0])


def save_npz(dataset: ImageDataset, path: Path) -> None:
    """Write a data set as a user would bring it."""
    arrays = {}
    for part, name in (("train", "train"), ("test", "test"), ("validation", "val")):
        split = dataset.splits()[part]
        arrays |= {f"x_{name}": split.images[:, 0].numpy(), f"y_{name}": split.labels.numpy()}
    np.savez(path, class_names=np.array(dataset.class_names), **arrays)


def make_template(home: Path) -> None:
    """Classifier, generator, mistakes, regions and labels, by one real run after another."""
    dataset = ImageDataset("shapes", bars(1280, 0), bars(120, 1), ("row", "column", "diagonal"), bars(60, 2))
    save_npz(dataset, home.parent / "shapes.npz")
    workspace = Workspace(home)
    place = Place(workspace, new_project(workspace, "shapes", str(home.parent / "shapes.npz")))
    training = {"optimizer": "adam", "learning_rate": 1e-4, "epochs": 1, "batch_size": 64}
    place.run("classifier", {"architecture": "resnet_small", "training": training})
    shape = {"hidden_channels": 16, "depth": 2, "hidden_units": 64, "latent_dim": 4}
    place.run(
        "vae",
        {
            **shape,
            "training": {
                "epochs": 20, "beta": 0.2, "kl_anneal_steps": 50, "batch_size": 32, "learning_rate": 3e-3,
                "precision": "fp32",
            },
        },
    )  # fmt: skip
    place.run("identify", SEARCH)
    label(place, place.run("distill", {"n_components": 12}))
    workspace.close()


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
