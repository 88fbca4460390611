"""The doors: what reads the files of strangers, called as the commands and pages call it.

Each opens one file, looks at the result as the next step would, and returns nothing. `UnusableError` means
that a door took a file that it should have refused.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from defuse_core.base.checkpoints import load_weights
from defuse_core.base.errors import CheckpointError
from defuse_core.base.limits import MAX_SAMPLES, MAX_TAU
from defuse_core.cli.labels import label_import
from defuse_core.data.sources import load_dataset
from defuse_core.data.splits import ImageDataset
from defuse_core.exchange.archive import import_project
from defuse_core.exchange.replay.bringing import Bring, check_consent
from defuse_core.exchange.suite.model import open_model
from defuse_core.exchange.suite.suite import check_suite, read_suite
from defuse_core.method.classifier import predict_logits
from defuse_core.networks.architectures import build_network
from defuse_core.networks.detection import detect
from defuse_core.networks.formats import Weights, read_weights, sniff_format
from defuse_core.networks.sniffing import PROGRAMS
from defuse_core.steps.networks import choose_fit
from defuse_core.workspace.configs import InspectConfig
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import ids_ever
from defuse_core.workspace.label_studio import from_label_studio
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.manifest.models import Answer
from defuse_core.workspace.manifest.reading import read_manifest
from defuse_core.workspace.workspace import DATABASE, Project, Workspace
from tests.campaign.kinds import Stock

MB = 2**20
N_CLASSES = 10
SHAPES = {"fc1.weight": (8, 784), "fc1.bias": (8,), "fc2.weight": (N_CLASSES, 8), "fc2.bias": (N_CLASSES,)}
"""The network of the good checkpoints, one of `tutorials.MLPS`."""


class UnusableError(Exception):
    """A door took a file whose content no later step can use."""


@dataclass(frozen=True)
class Door:
    """A door, and the bytes of resident memory that it may add for a file of the campaign."""

    open: Callable[[Path, Path, Stock], None]
    peak: int = 512 * MB


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise UnusableError(what)


def open_weights(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    """Read weights, find their architecture and load them, as the step `inspect` does."""
    if sniff_format(path) in PROGRAMS:
        raise CheckpointError("the file is a program; bring its weights, or give --trust-program")
    weights = read_weights(path)
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.tensors.values())
    _require(n_bytes <= 4 * path.stat().st_size, f"{n_bytes} bytes of tensors")
    _require(all(type(t) is torch.Tensor for t in weights.tensors.values()), "tensors of another class")
    if not _is_compared(weights, stock):
        return
    fits = detect(weights, n_classes=N_CLASSES, image_shape=(1, 28, 28))
    for fit in [fit for fit in fits if fit.exact] or [choose_fit(fits, None)]:
        tensors = {fit.prefix + key: tensor for key, tensor in weights.tensors.items()}
        network = build_network(fit.architecture, n_classes=N_CLASSES, channels=fit.channels, like=tensors)
        load_weights(network, tensors, source=path)
        finite = all(tensor.isfinite().all() for tensor in network.state_dict().values())
        _require(finite, "weights that are not finite")


def _is_compared(weights: Weights, stock: Stock) -> bool:
    """Whether weights are compared with networks: in a short campaign, the good network's alone."""
    return stock.all_networks or {n: tuple(t.shape) for n, t in weights.tensors.items()} == SHAPES


def open_model_for_suite(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    """Check a checkpoint with the good suite, as `defuse suite check` does."""
    if not stock.all_networks and not _is_compared(read_weights(path), stock):
        return
    suite = read_suite(stock.root / "suite")
    model = open_model(path, suite, InspectConfig())
    logits = predict_logits(model.classifier, suite.instances.images[:2])
    _require(logits.shape == (2, len(suite.manifest.class_names)), f"logits of {tuple(logits.shape)}")


def open_data(path: Path, root: Path, stock: Stock, *, image_size: int | None = None) -> None:  # noqa: ARG001
    """Load a data set by its path, as `defuse new` does."""
    dataset: ImageDataset = load_dataset(str(path), image_size=image_size)
    for name, split in dataset.splits().items():
        shape, labels = tuple(split.images.shape), split.labels
        _require(split.images.dtype == torch.uint8, f"{name} images of {split.images.dtype}")
        _require(len(shape) == 4 and shape[1] in (1, 3) and min(shape) > 0, f"{name} images of {shape}")
        _require(len(labels) == shape[0] and labels.dtype == torch.int64, f"{name} labels")
        in_range = bool(((labels >= 0) & (labels < dataset.n_classes)).all())
        _require(in_range, f"{name} labels out of range")
    _require(len(dataset.fingerprint) == 64, "no fingerprint")
    _check_names(dataset.class_names)


def _check_names(names: tuple[str, ...]) -> None:
    """Names are stored in SQLite as JSON, and shown."""
    _require(len(set(names)) == len(names), "two classes of one name")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UnusableError(f"class name {name!r}") from None


def open_csv(path: Path, root: Path, stock: Stock) -> None:
    """Import labels as `defuse label import` does."""
    home = _home(root, stock)
    os.environ["DEFUSE_HOME"] = str(home)
    _with_labels(home, lambda _: label_import(path, project="", as_json=True))


def open_label_studio(path: Path, root: Path, stock: Stock) -> None:
    """Import Label Studio's JSON as the page Label does."""

    def take(workspace: Workspace) -> None:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise WorkspaceError(f"{path} is not text in UTF-8 ({error.reason}); save it as UTF-8") from None
        run = workspace.runs.latest(1, "distill", done=True)
        assert run is not None
        region_ids = [region["region_id"] for region in run.summary["regions"]]
        ids = ids_ever(region_ids, workspace.annotations.edits(run.id))
        names = workspace.project(1).class_names
        workspace.annotations.append(run.id, from_label_studio(text, names, ids, annotator="Ada"))

    _with_labels(_home(root, stock), take)


def _with_labels(home: Path, take: Callable[[Workspace], None]) -> None:
    """Let labels be stored, and look at every new one."""
    with closing(Workspace(home, durable=False)) as workspace:
        run = workspace.runs.latest(1, "distill", done=True)
        assert run is not None
        before = workspace.annotations.last_id(run.id)
        take(workspace)
        for event in workspace.annotations.events(run.id):
            if event.id > before:
                _check_event(event, n_classes=len(workspace.project(1).class_names))


def _check_event(event: LabelEvent, *, n_classes: int) -> None:
    _require(event.label is None or 0 <= event.label < n_classes, f"label {event.label} of {n_classes}")
    _require(event.sample_id is None or event.sample_id >= 0, f"sample {event.sample_id}")
    _require(event.sample_id is None or event.region_id < 0 or event.sample_id < event.n_samples, "sample")
    _require(event.undoes is not None or 0 < event.tau <= MAX_TAU, f"tau {event.tau}")
    _require(event.n_samples <= MAX_SAMPLES, f"n_samples {event.n_samples}")
    _require(event.seconds is None or 0 <= event.seconds < math.inf, f"seconds {event.seconds}")
    _require(math.isfinite(event.at), f"at {event.at}")


def _home(root: Path, stock: Stock) -> Path:
    """A workspace of this child with regions and labels."""
    home = root / "home"
    if not home.exists():
        shutil.copytree(stock.root / "home", home)
    return home


def open_archive(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    """Import a project into a workspace of this child, and read all of it."""
    with closing(Workspace(root / "imports", durable=False)) as workspace:
        try:
            project = import_project(workspace, path)
        except Exception:
            _require(not workspace.projects(), "a project is left of an import that was refused")
            raise
        try:
            _check_project(workspace, project)
        finally:
            workspace.delete_project(project.id)
        with closing(sqlite3.connect(workspace.home / DATABASE)) as connection:
            _require(not connection.execute("PRAGMA foreign_key_check").fetchall(), "rows without a parent")


def _check_project(workspace: Workspace, project: Project) -> None:
    """Read all that an import stored."""
    for run in workspace.runs.of_project(project.id):
        _require(not run.config.get("code_path"), f"code_path of run {run.id}")
        workspace.runs.tasks(run.id), workspace.runs.events(run.id), workspace.annotations.edits(run.id)
        folder = workspace.run_folder(run.id).resolve()
        for name in workspace.runs.artifacts(run.id):
            _require(workspace.artifact_path(run.id, name).resolve().is_relative_to(folder), name)
        for event in workspace.annotations.events(run.id):
            _check_event(event, n_classes=len(project.class_names))


def open_manifest(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    """Read a manifest and ask for consent, as `defuse replay` does."""
    manifest = read_manifest(path)
    check_consent(manifest, Bring())
    _require(not any(run.config.get("code_path") for run in manifest.runs), "code_path without consent")
    n_classes = len(manifest.dataset.class_names)
    for log in manifest.logs:
        for entry in (entry for entry in log.entries if isinstance(entry, Answer)):
            _require(entry.label is None or entry.label < n_classes, f"label {entry.label} of {n_classes}")
            _require(entry.undoes is not None or 0 < entry.tau <= MAX_TAU, f"tau {entry.tau}")
            _require(entry.n_samples <= MAX_SAMPLES, f"n_samples {entry.n_samples}")
            _require(math.isfinite(entry.at), f"at {entry.at}")
            _require(entry.seconds is None or 0 <= entry.seconds < math.inf, f"seconds {entry.seconds}")


def open_suite(path: Path, root: Path, stock: Stock) -> None:
    """Read a suite and check the good model with it."""
    suite = read_suite(path)
    for region in suite.manifest.regions:
        _require(region.label < len(suite.manifest.class_names), f"label {region.label}")
        _require(0 < region.tau <= MAX_TAU, f"tau {region.tau}")
        _require(region.n == int((suite.instances.region_ids == region.region_id).sum()), "images")
        _require(0 <= region.before.estimate <= 1, f"error {region.error}")
    model = root / "model.safetensors"
    model.write_bytes(stock.weights["safetensors"])
    checked = check_suite(open_model(model, suite, InspectConfig()).classifier, suite, max_error=0.1)
    _require(len(checked) == len(suite.manifest.regions), "regions")


DOORS = {
    "weights": Door(open_weights),
    "model": Door(open_model_for_suite),
    "data": Door(open_data),
    "resized data": Door(functools.partial(open_data, image_size=16)),
    "csv": Door(open_csv),
    "label studio": Door(open_label_studio),
    "archive": Door(open_archive),
    "manifest": Door(open_manifest, peak=256 * MB),
    "suite": Door(open_suite),
}
"""By name; `dashboard/docs/limits.md` has a row for each."""
