"""The page "Add your own" of the documentation: what it says to write is enough."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from sklearn.random_projection import GaussianRandomProjection

from defuse_core.base.config import FITTERS
from defuse_core.data import arrays, naming, sources
from defuse_core.extensions import projection
from defuse_core.method import distillation
from defuse_core.networks.architectures import ARCHITECTURES
from defuse_core.steps.report import FIGURES
from defuse_core.workspace.config_checks import ConfigError
from defuse_core.workspace.config_fields import choices
from defuse_core.workspace.configs import PROJECTIONS, MapConfig
from tests.in_process import done_here, fresh_place
from tests.workspaces import Place

PAGE = Path(__file__).resolve().parent.parent / "dashboard" / "docs" / "add-your-own.md"
BLOCKS = dict(re.findall(r"```python\n# (defuse_core/\S+)\.py\n(.*?)```", PAGE.read_text(), re.DOTALL))
NEW_FILES = {  # each beside the module whose imports it takes
    "defuse_core/data/stripes": arrays,
    "defuse_core/method/plain_mixture": distillation,
    "defuse_core/extensions/random_projection": projection,
}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the page says is written, until the test ends."""
    monkeypatch.setattr(naming, "SOURCES", [*naming.SOURCES])
    registries: tuple[dict[str, Any], ...] = (ARCHITECTURES, FITTERS, PROJECTIONS, FIGURES)
    for registry, name in zip(registries, ("one_conv", "plain", "random", "weights"), strict=True):
        monkeypatch.setitem(registry, name, None)  # taken out again after the test
    for path, block in BLOCKS.items():
        name = path.replace("/", ".")
        if path not in NEW_FILES:
            module = import_module(name)
            exec(block, vars(module) if module is naming else {**vars(module)})
            continue
        module = ModuleType(name)
        vars(module).update({k: v for k, v in vars(NEW_FILES[path]).items() if not k.startswith("__")})
        vars(module).update(
            GaussianMixture=GaussianMixture, GaussianRandomProjection=GaussianRandomProjection
        )
        monkeypatch.setitem(sys.modules, name, module)
        exec(block, vars(module))


def test_each_takes_fifteen_lines_at_most() -> None:
    assert len(BLOCKS) == 8
    assert all(len(block.splitlines()) <= 15 for block in BLOCKS.values())


@pytest.mark.usefixtures("written")
def test_a_network_and_images_of_ones_own_are_trained_with_by_their_names(tmp_path: Path) -> None:
    place = fresh_place(tmp_path / "home", "stripes:60")
    assert place.project.dataset["source"] == "stripes:60"
    assert place.project.dataset["class_names"] == ["rows", "columns"]
    assert sources.load_dataset("stripes:60", image_size=6).train.images.shape == (120, 1, 6, 6)
    assert naming.without_path("stripes:60") == "stripes:60"
    training = {"optimizer": "adam", "learning_rate": 0.01, "epochs": 10, "batch_size": 16}
    run = done_here(place, "classifier", {"architecture": "one_conv", "training": training})
    assert run.summary["accuracy"]["test"] == 1.0
    uploaded = place.workspace.add_blob(
        place.project.id, "mine.safetensors",
        [place.workspace.artifact_path(run.id, "classifier.safetensors").read_bytes()],
    )  # fmt: skip
    detected = done_here(place, "inspect", {"weights": f"blob:{uploaded.sha256}"})
    assert [fit["architecture"] for fit in detected.summary["fits"] if fit["exact"]] == ["one_conv"]


@pytest.mark.usefixtures("written")
def test_a_clustering_a_projection_and_a_figure_are_there_by_their_names(corrected_place: Place) -> None:
    place = corrected_place
    assert choices(MapConfig.model_fields["method"]) == ("tsne", "umap", "pca", "random")
    mapped = done_here(place, "map", {"method": "random"})
    points = place.tensors(mapped)["random.safetensors"]["points"].numpy()
    assert np.linalg.matrix_rank(points - points.mean(0)) == 2
    drawn = place.workspace.runs.artifacts(done_here(place, "report").id)
    assert {"weights.png", "weights.svg", "figure5-trade-off.svg"} <= drawn.keys()
    config = {"method": "plain", "n_components": 3, "min_weight": 0}
    distilled = done_here(place, "distill", config)
    assert sorted(region["region_id"] for region in distilled.summary["regions"]) == [0, 1, 2]
    stable = done_here(place, "stability", {"n_seeds": 2})
    assert {point.data["regions"] for point in place.workspace.runs.events(stable.id, kind="point")} == {3}


def test_a_name_that_no_registry_has_is_refused_with_those_it_has(place: Place) -> None:
    with pytest.raises(ConfigError, match="map: method: should be 'tsne' or 'umap' or 'pca', got 'mds'"):
        done_here(place, "map", {"method": "mds"})
    with pytest.raises(ConfigError, match="distill: method: should be 'dirichlet_process', got 'k-means'"):
        done_here(place, "distill", {"method": "k-means"})


def test_digits_are_not_resized_in_silence() -> None:
    dataset = sources.load_dataset("digits", image_size=32)
    assert dataset.image_shape == (1, 32, 32)
    assert dataset.conversions == ("5,000 images resized to 32×32",)
