"""Projects on data of every kind, of whose training images a share is set apart for validation."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from defuse_core.data.sources import load_dataset
from defuse_core.data.splits import DataError, ImageDataset
from defuse_core.steps.source import open_dataset
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.workspace import Workspace
from tests.conftest import bars
from tests.workspaces import save_npz

NAMES = ("column", "diagonal", "row")  # as folders are sorted


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home")


def source_of(kind: str, workspace: Workspace, folder: Path) -> str:
    """45 training and 9 test images of three classes, as users bring them."""
    train, test = bars(45, 0), bars(9, 1)
    if kind == "folder":
        for part, split in (("train", train), ("test", test)):
            for number, (image, label) in enumerate(zip(split.images[:, 0], split.labels, strict=True)):
                path = folder / "data" / part / NAMES[int(label)] / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.numpy()).save(path)
        return str(folder / "data")
    arrays: dict[str, Any] = {"class_names": np.array(NAMES)}
    for part, split in (("train", train), ("test", test)):
        arrays |= {f"x_{part}": split.images[:, 0].numpy(), f"y_{part}": split.labels.numpy()}
    np.savez(folder / "data.npz", **arrays)
    if kind == "path":
        return str(folder / "data.npz")
    return f"blob:{workspace.store_upload('mine.npz', [(folder / 'data.npz').read_bytes()]).sha256}"


@pytest.mark.parametrize("kind", ["path", "upload", "folder"])
def test_a_share_is_remembered_and_set_apart_again(workspace: Workspace, tmp_path: Path, kind: str) -> None:
    source = source_of(kind, workspace, tmp_path)
    whole = new_project(workspace, "whole", source)
    project = new_project(workspace, "divided", source, validation=0.2)
    assert "validation" not in whole.dataset
    assert project.dataset["validation"] == 0.2
    assert project.dataset["sizes"] == {"train": 36, "validation": 9, "test": 9}
    assert project.dataset["fingerprint"] != whole.dataset["fingerprint"]

    again = Workspace(workspace.home)  # as a run opens it
    opened = open_dataset(again, again.project("divided"))
    undivided = open_dataset(again, again.project("whole"))
    assert opened.fingerprint == project.dataset["fingerprint"]
    assert opened.validation is not None
    for label in range(3):
        mine = undivided.train.images[undivided.train.labels == label]
        assert torch.equal(opened.validation.images[opened.validation.labels == label], mine[12:])
        assert torch.equal(opened.train.images[opened.train.labels == label], mine[:12])
    assert torch.equal(opened.test.images, undivided.test.images)


def test_folder_images_are_resized_and_divided(workspace: Workspace, tmp_path: Path) -> None:
    source = source_of("folder", workspace, tmp_path)
    project = new_project(workspace, "small", source, image_size=6, validation=0.2)
    opened = open_dataset(workspace, project)
    expected = load_dataset(source, image_size=6).train
    assert opened.image_shape == (1, 6, 6)
    assert opened.validation is not None
    of_last = expected.images[expected.labels == 2]
    assert torch.equal(opened.validation.images[opened.validation.labels == 2], of_last[12:])


def test_another_share_is_another_data_set(workspace: Workspace, tmp_path: Path) -> None:
    project = new_project(workspace, "divided", source_of("path", workspace, tmp_path), validation=0.2)
    for share in (0.4, None):
        changed = dataclasses.replace(project, dataset={**project.dataset, "validation": share})
        with pytest.raises(DataError, match="has changed since project 'divided' was created"):
            open_dataset(workspace, changed)


@pytest.mark.parametrize("kind", ["path", "upload"])
@pytest.mark.parametrize("share", [0.0, 1.0, math.nan])
def test_a_share_that_is_none_makes_no_project(
    workspace: Workspace, tmp_path: Path, kind: str, share: float
) -> None:
    source = source_of(kind, workspace, tmp_path)
    with pytest.raises(DataError, match=f"validation must be between 0 and 1, got {share}"):
        new_project(workspace, "divided", source, validation=share)
    assert workspace.projects() == []


def test_data_with_a_validation_split_are_not_divided(
    workspace: Workspace, shapes: ImageDataset, tmp_path: Path
) -> None:
    save_npz(shapes, tmp_path / "shapes.npz")
    blob = workspace.store_upload("mine.npz", [(tmp_path / "shapes.npz").read_bytes()])
    for source in (str(tmp_path / "shapes.npz"), f"blob:{blob.sha256}"):
        with pytest.raises(DataError, match=r"has a validation split of its own; leave validation out"):
            new_project(workspace, "divided", source, validation=0.1)
    assert workspace.projects() == []


def test_what_was_converted_and_what_looks_wrong_is_remembered(workspace: Workspace, tmp_path: Path) -> None:
    source = source_of("folder", workspace, tmp_path)
    assert "notes" not in new_project(workspace, "plain", source).dataset
    for path in sorted((tmp_path / "data" / "test").glob("*/*.png")):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(path)
    (tmp_path / "data" / "test" / "row" / "notes.txt").touch()
    assert new_project(workspace, "noted", source, validation=0.2).notes == [
        "9 images scaled from 12 to 8 bits",
        "1 file passed over, no image (.txt)",
    ]
    arrays = np.load(source_of("path", workspace, tmp_path))
    dark = {name: array // 255 if name.startswith("x_") else array for name, array in arrays.items()}
    np.savez(tmp_path / "dark.npz", **dark)
    (first, second) = new_project(workspace, "dark", str(tmp_path / "dark.npz")).notes
    assert first.startswith("every pixel of the train split is 0; check how")
    assert second.startswith("every pixel of the test split is 0; check how")
