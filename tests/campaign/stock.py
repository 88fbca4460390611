"""Good files of every family, made within a second or two, that the kinds damage."""

from __future__ import annotations

import io
import json
import os
import time
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from defuse_core.base.checkpoints import dump_tensors
from defuse_core.base.records import FailureInstances
from defuse_core.exchange.archive import export_project
from defuse_core.exchange.suite.export import write_suite
from defuse_core.exchange.suite.suite import Feeding, Manifest, Suite, SuiteRegion, of_regions
from defuse_core.networks.detection import detect
from defuse_core.networks.formats import Weights, read_weights
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import STEPS, StepName
from defuse_core.workspace.edits import Gaussian, RegionEdit
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Resources
from defuse_core.workspace.workspace import Workspace
from tests.campaign.doors import N_CLASSES, SHAPES
from tests.campaign.kinds import Stock

CLASSES = [f"class {n}" for n in range(N_CLASSES)]
ARCHITECTURE = "mlp"
_SUITE_IMAGES = 4
_MADE: tuple[StepName, ...] = ("classifier", "vae", "identify", "distill", "correct")


def make_stock(root: Path, *, all_networks: bool = True) -> Stock:
    """Make all good files in a folder.

    Parameters
    ----------
    root : Path
        An empty folder.
    all_networks : bool
        Whether weights are compared with every network of torchvision. These are built here, which takes
        seconds; children share them.
    """
    weights = _weights()
    _write_suite(root / "suite")
    _make_workspace(root)
    manifest = _manifest()
    (root / "manifest.json").write_text(json.dumps(manifest))
    (good := root / "good.pt").write_bytes(weights["zip"])
    odd = [Weights({"odd": torch.zeros(3)}, "", None, "state_dict")] if all_networks else []
    for each in [read_weights(good), *odd]:  # the first comparison imports and builds for seconds
        detect(each, n_classes=N_CLASSES, image_shape=(1, 28, 28))
    archive = (root / "small.defuse.zip").read_bytes()
    return Stock(root, weights, archive, manifest, _npz(), all_networks)


def _weights() -> dict[str, bytes]:
    rng = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(state, zipped)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    fed = {"mean": [0.1], "std": [0.3], "image_size": None, "channel_order": "rgb"}
    about = {"architecture": ARCHITECTURE, "class_names": CLASSES, "preprocessing": fed}
    return {
        "zip": zipped.getvalue(),
        "legacy": legacy.getvalue(),
        "safetensors": dump_tensors(state, metadata=about),
    }


def _npz() -> bytes:
    rng, content = np.random.default_rng(0), io.BytesIO()
    arrays: dict[str, Any] = {}
    for part, n in (("train", 20), ("test", 10), ("val", 10)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (n, 8, 8)).astype(np.uint8)
        arrays[f"y_{part}"] = (np.arange(n) % N_CLASSES).astype(np.int64)
    np.savez(content, class_names=np.array(CLASSES), **arrays)
    return content.getvalue()


def _write_suite(folder: Path) -> None:
    regions = tuple(
        SuiteRegion(
            region_id=n, name=f"region {n}", label=n, tau=0.5, seed=0, n=_SUITE_IMAGES, is_failure=True,
            error=(0.5, 0.2, 0.8, _SUITE_IMAGES),
        )
        for n in range(2)
    )  # fmt: skip
    images = torch.arange(2 * _SUITE_IMAGES * 784, dtype=torch.int64).remainder(256).to(torch.uint8)
    instances = FailureInstances(images.view(-1, 1, 28, 28), *of_regions(regions))
    manifest = Manifest(
        defuse_version=version("defuse"), project="small", fingerprint="ab" * 32, class_names=tuple(CLASSES),
        image_shape=(1, 28, 28), architecture=ARCHITECTURE, preprocessing=Feeding(mean=(0.1,), std=(0.3,)),
        regions=regions,
    )  # fmt: skip
    write_suite(Suite(manifest, instances), folder)


def _make_workspace(root: Path) -> None:
    """A project with a row of every table, nothing of it computed; and its export."""
    with closing(Workspace(root / "home", durable=False)) as workspace:
        upload = workspace.store_upload("shapes.npz", [b"not a data set, but nobody looks"])
        dataset = {
            "source": f"blob:{upload.sha256}", "image_size": None, "fingerprint": "ab" * 32,
            "class_names": CLASSES, "image_shape": [1, 28, 28], "sizes": {"train": 10, "test": 2},
        }  # fmt: skip
        project = workspace.create_project("small", dataset=dataset, upload=upload)
        ids: dict[str, int] = {}
        summaries: dict[str, dict[str, Any]] = {
            "identify": {"mistakes": {"dataset": 5}},
            "distill": {"regions": [{"region_id": n} for n in range(4)]},
        }
        for step in _MADE:
            ids[step] = _store_run(workspace, project.id, step, ids, summaries.get(step, {}))
            if step == "distill":
                _label(workspace, ids[step])
        export_project(workspace, project.id, root / "small.defuse.zip")


def _store_run(
    workspace: Workspace, project_id: int, step: StepName, ids: dict[str, int], summary: dict[str, Any]
) -> int:
    config = check_config(step, {}).model_dump(mode="json")
    upstream = [ids[name] for name in STEPS[step].needs]
    resources = Resources(device="cpu", threads=1)
    run = workspace.runs.add(project_id, step, config, seed=0, resources=resources, upstream=upstream)
    workspace.runs.hand_over(run.id, os.getpid())
    workspace.runs.start(run.id, {})
    name = f"{step}.safetensors"
    workspace.runs.name_artifact(run.id, workspace.store_artifact(run.id, name, step.encode() * 50))
    workspace.runs.plan_tasks(run.id, [step])
    workspace.runs.add_point(run.id, step, "epoch", {"loss": 0.25})
    workspace.runs.finish(run.id, "done", summary=summary)
    return run.id


def _label(workspace: Workspace, regions: int) -> None:
    store = workspace.annotations
    answer = LabelEvent(0, "Ada", 1, 0, 0.5, 3, 10, seconds=1.5)
    store.append(regions, [answer, replace(answer, sample_id=1, key="b"), replace(answer, label=None)])
    store.undo(regions, "Ada")
    store.edit(
        regions, RegionEdit("merge", (0, 1), (Gaussian(7, 0.1, (0.0, 0.1), ((1.0, 0.0), (0.0, 1.0))),))
    )
    store.edit(regions, RegionEdit("rename", (7,), name="blurry", by="Ada"))


def _manifest() -> dict[str, Any]:
    """A manifest as `defuse manifest` writes it, of a correction that nobody computed."""
    runs = [
        {
            "number": number, "step": step, "config": check_config(step, {}).model_dump(mode="json"),
            "seed": 0,
            "resources": {"device": "cpu", "threads": 1, "engine": "local", "cpus": 1, "gpus": 0},
            "stands_on": [_MADE.index(name) for name in STEPS[step].needs], "done": True, "stale": False,
            "found": {"versions": {}, "machine": "", "device": {}, "threads": 1}, "seconds": 1.5,
            "summary": {},
            "files": [{"name": f"{step}.safetensors", "sha256": "cd" * 32, "size": 5}],
        }
        for number, step in enumerate(_MADE, 1)
    ]  # fmt: skip
    answer = {"kind": "answer", "region_id": 0, "annotator": "Ada", "label": 1, "sample_id": 0, "at": 1.0}
    edit = {"kind": "edit", "edit": "rename", "regions": [0], "name": "blurry", "by": "Ada", "at": 2.0}
    undone = {"kind": "edit undone", "undoes": 1}
    return {
        "format": "defuse-manifest", "version": 1, "made_at": time.time(), "versions": {}, "machine": {},
        "project": "small",
        "dataset": {
            "source": "digits", "fingerprint": "ab" * 32, "class_names": CLASSES, "image_shape": [1, 28, 28],
            "sizes": {"train": 10, "test": 2},
        },
        "uploads": [], "runs": runs, "logs": [{"regions": 3, "entries": [answer, edit, undone, answer]}],
    }  # fmt: skip
