"""The page "Add your own" of the documentation: what it says to write is enough."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from defuse_core.data import naming, sources, splits
from defuse_core.networks import architectures
from tests.in_process import done_here, fresh_place

PAGE = Path(__file__).resolve().parent.parent / "dashboard" / "docs" / "add-your-own.md"
BLOCKS = dict(re.findall(r"```python\n# (defuse_core/\S+)\.py\n(.*?)```", PAGE.read_text(), re.DOTALL))
NAMING, ARCHITECTURES = "defuse_core/data/naming", "defuse_core/networks/architectures"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the page says is written."""
    monkeypatch.setattr(naming, "SOURCES", [*naming.SOURCES])
    monkeypatch.delitem(architectures.ARCHITECTURES, "linear", raising=False)  # to be taken out again
    stripes = ModuleType("defuse_core.data.stripes")
    vars(stripes).update(torch=torch, Split=splits.Split, ImageDataset=splits.ImageDataset)
    monkeypatch.setitem(sys.modules, stripes.__name__, stripes)
    for path, module in ((stripes.__name__.replace(".", "/"), stripes), (NAMING, naming)):
        exec(BLOCKS[path], vars(module))
    exec(BLOCKS[ARCHITECTURES], {**vars(architectures), "__name__": architectures.__name__})


def test_each_takes_fifteen_lines_at_most() -> None:
    assert len(BLOCKS) == 3
    assert all(len(block.splitlines()) <= 15 for block in BLOCKS.values())


@pytest.mark.usefixtures("written")
def test_a_network_and_images_of_ones_own_are_trained_with_by_their_names(tmp_path: Path) -> None:
    place = fresh_place(tmp_path / "home", "stripes:60")
    assert place.project.dataset["source"] == "stripes:60"
    assert place.project.dataset["class_names"] == ["rows", "columns"]
    assert sources.load_dataset("stripes:60", image_size=6).train.images.shape == (120, 1, 6, 6)
    assert (
        naming.without_path("stripes:60")
        == naming.find_source("stripes:60").title("stripes:60")
        == "stripes:60"
    )
    training = {"optimizer": "adam", "learning_rate": 0.01, "epochs": 3, "batch_size": 16}
    run = done_here(place, "classifier", {"architecture": "linear", "training": training})
    assert run.summary["accuracy"]["test"] == 1.0
    uploaded = place.workspace.add_blob(
        place.project.id, "mine.safetensors",
        [place.workspace.artifact_path(run.id, "classifier.safetensors").read_bytes()],
    )  # fmt: skip
    detected = done_here(place, "inspect", {"weights": f"blob:{uploaded.sha256}"})
    assert [fit["architecture"] for fit in detected.summary["fits"] if fit["exact"]] == ["linear"]


def test_digits_are_not_resized_in_silence() -> None:
    with pytest.raises(splits.DataError, match="image_size does not resize them; leave it out"):
        sources.load_dataset("digits", image_size=32)
