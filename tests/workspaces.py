"""A workspace as a test holds it, the runs of small shapes in it, and waiting for them."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import safetensors.torch
from torch import Tensor

from defuse_core.base.files import file_sha256
from defuse_core.data.splits import ImageDataset
from defuse_core.jobs import launcher
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import DATABASE, Project, Workspace

ONE_THREAD = Resources(device="cpu", threads=1)
"""A run gives the same bits as the process that compares with it."""

ALONE: dict[str, Any] = {"train_reader": False}
"""A control of the classifier alone."""

SEARCH: dict[str, Any] = {
    "n_perturbations": 60, "centred": True, "noise_scale": 6.0, "max_mistakes_per_image": 4,
    "precision": "fp32",
}  # fmt: skip
SWEEP: dict[str, Any] = {
    "correction": {
        "lambdas": [0.0, 0.01, 0.1, 1.0, 10.0], "epochs": 2, "max_images": 480, "instances_per_region": 16,
        "precision": "fp32",
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
            verify(self.workspace, run.id)
            self.tensors(run)


def verify(workspace: Workspace, run_id: int) -> None:
    """Every artifact of a run has the checksum that its row names."""
    for name, artifact in workspace.runs.artifacts(run_id).items():
        assert file_sha256(workspace.artifact_path(run_id, name)) == artifact.sha256, name


def eventually(condition: Callable[[], bool], *, seconds: float = 10.0) -> float:
    """Wait until a condition holds; return the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - started


def stop_between_writes(home: Path, pid: int) -> None:
    """Stop a runner by SIGSTOP, but not while it holds the database, which others are to write to."""
    process = psutil.Process(pid)

    def stopped() -> bool:
        process.suspend()
        eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        with closing(sqlite3.connect(home / DATABASE, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.resume()
                return False
            connection.execute("ROLLBACK")
        return True

    eventually(stopped, seconds=30)


@contextmanager
def computing_elsewhere(workspace: Workspace) -> Iterator[None]:
    """Let runs wait for the machine, as if another computed."""
    with (workspace.home / "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def copy_place(template: Path, home: Path) -> Place:
    """A workspace of its own with all that the template holds, which others may read meanwhile."""
    shutil.copytree(template, home, ignore=shutil.ignore_patterns(f"{DATABASE}*"))
    with (
        closing(sqlite3.connect(template / DATABASE)) as source,
        closing(sqlite3.connect(home / DATABASE)) as copy,
    ):
        source.backup(copy)
    workspace = Workspace(home)
    return Place(workspace, workspace.projects()[0])


def save_npz(dataset: ImageDataset, path: Path) -> None:
    """Write a data set as a user would bring it."""
    arrays = {}
    for part, name in (("train", "train"), ("test", "test"), ("validation", "val")):
        split = dataset.splits()[part]
        arrays |= {f"x_{name}": split.images[:, 0].numpy(), f"y_{name}": split.labels.numpy()}
    np.savez(path, class_names=np.array(dataset.class_names), **arrays)
