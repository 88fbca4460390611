"""Checkpoints of every kind through the page: those that are taken, and those that are refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from playwright.sync_api import Page, expect
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defuse_core.workspace.projects import new_project
from tests.e2e.serving import SECONDS, Server, Site
from tests.tutorial_networks import PytorchMnist
from tests.workspaces import eventually

MODELS = Path(__file__).resolve().parent.parent.parent / "models"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """The demo's classifier, as someone else would bring it."""
    return load_file(MODELS / "demo-classifier.safetensors")


def network(weights: dict[str, Tensor]) -> nn.Module:
    """The same as a network of the user's."""
    found = PytorchMnist()
    found.load_state_dict(weights)
    return found.eval()


def export(weights: dict[str, Tensor], path: Path) -> None:
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(network(weights), (torch.rand(2, 1, 28, 28),), dynamic_shapes=(batch,))
    torch.export.save(program, path)


FORMATS: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "weights.safetensors": (save_file, "mnist_cnn · 1,199,882 parameters · safetensors"),
    "weights.pt": (torch.save, "mnist_cnn · 1,199,882 parameters · state_dict"),
    "parallel.pth": (
        lambda w, path: torch.save(
            {"epoch": 9, "state_dict": {f"module.{k}": t for k, t in w.items()}}, path
        ),
        "mnist_cnn · 1,199,882 parameters · state_dict",
    ),
    "script.pt": (
        lambda w, path: torch.jit.script(network(w)).save(str(path)),
        "torchscript · 1,199,882 parameters · torchscript",
    ),
    "exported.pt2": (export, "exported · 1,199,882 parameters · exported"),
}


@pytest.fixture
def without_classifier(server: Server, digits_file: Path) -> Site:
    """A project on a hundred digits, of which nothing is known yet."""
    return Site(server, new_project(server.workspace, "mine", str(digits_file)))


def create_project(page: Page, server: Server) -> None:
    """A project on the digits, and the page that takes a classifier in."""
    page.goto(server.url)
    page.get_by_label("Name", exact=True).fill("mine")
    page.get_by_role("button", name="Create").click(timeout=30 * SECONDS)
    expect(page.get_by_test_id("stSidebar").get_by_text("Classifier · missing")).to_be_visible(
        timeout=60 * SECONDS
    )
    page.get_by_role("link", name="Classifier").click()
    expect(page.get_by_text("No classifier yet")).to_be_visible(timeout=30 * SECONDS)


def open_classifier(page: Page, site: Site) -> None:
    page.goto(site.link("classifier"))
    expect(page.get_by_text("No classifier yet")).to_be_visible(timeout=60 * SECONDS)


def upload(page: Page, path: Path) -> None:
    box = page.get_by_test_id("stFileUploaderDropzoneInput")
    expect(box).to_have_count(1)  # the one that took the last file goes as the page has run
    box.set_input_files(path)


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["parallel.pth", "script.pt"], id="weights and a program"),
        pytest.param([*FORMATS], id="every format", marks=pytest.mark.verify),
    ],
)
def test_a_classifier_is_taken(
    page: Page, without_classifier: Site, weights: dict[str, Tensor], tmp_path: Path, names: list[str]
) -> None:
    open_classifier(page, without_classifier)
    for name in names:
        save, told = FORMATS[name]
        save(weights, tmp_path / name)
        upload(page, tmp_path / name)
        if name.startswith(("script", "exported")):
            expect(page.get_by_text("is a program, not only weights")).to_be_visible(timeout=30 * SECONDS)
            page.get_by_role("button", name="I trust it: run it").click()
        expect(page.get_by_text(f"{name}: {told}")).to_be_visible(timeout=90 * SECONDS)
    page.get_by_role("button", name="Use this classifier").click()
    expect(page.get_by_text("0.960")).to_be_visible(timeout=60 * SECONDS)
    expect(page.get_by_text("Misclassified: 4 of 100")).to_be_visible(timeout=30 * SECONDS)
    expect(page.get_by_role("img", name="predicted as").first).to_be_visible(timeout=30 * SECONDS)
    assert page.get_by_test_id("stException").count() == 0


class Payload:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "inspected",  # those that are opened, each in a run, to be refused
    [
        pytest.param(["shape.pt"], id="one network"),
        pytest.param(["thousand.pt", "shape.pt", "nan.pt"], id="every network", marks=pytest.mark.verify),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(
    page: Page, without_classifier: Site, weights: dict[str, Tensor], tmp_path: Path, inspected: list[str]
) -> None:
    open_classifier(page, without_classifier)
    owned = tmp_path / "owned"
    whole = tmp_path / "whole.safetensors"
    save_file(weights, whole)
    broken: dict[str, tuple[Callable[[Path], Any], str]] = {
        "empty.pt": (lambda p: p.write_bytes(b""), "empty.pt is empty; copy or download it again"),
        "cut.safetensors": (
            lambda p: p.write_bytes(whole.read_bytes()[:100_000]),
            "cut.safetensors is not a whole safetensors file",
        ),
        "model.pt": (lambda p: torch.save({"model": Payload(owned)}, p), "model.state_dict()"),
        "plain.pkl": (lambda p: p.write_bytes(pickle.dumps(Payload(owned))), "a pickle that torch.save"),
    }  # fmt: skip
    networks: dict[str, tuple[Callable[[Path], Any], str]] = {
        "thousand.pt": (
            lambda p: torch.save(
                weights | {"fc2.weight": torch.ones(1000, 128), "fc2.bias": torch.ones(1000)}, p
            ),
            "tells 1,000 classes apart; the data set has 10",
        ),
        "shape.pt": (
            lambda p: torch.save(weights | {"conv1.weight": torch.ones(32, 1, 5, 5)}, p),
            "No known architecture fits the weights of shape.pt",
        ),
        "nan.pt": (
            lambda p: torch.save(weights | {"fc2.bias": torch.full((10,), float("nan"))}, p),
            "weights that are not finite: fc2.bias",
        ),
    }  # fmt: skip
    main = page.get_by_test_id("stMain")
    for name, (write, told) in (broken | {name: networks[name] for name in inspected}).items():
        write(tmp_path / name)
        upload(page, tmp_path / name)
        expect(main.get_by_text(told).first).to_be_visible(timeout=120 * SECONDS)
    assert not owned.exists()
    pickle.loads((tmp_path / "plain.pkl").read_bytes())
    assert owned.exists()  # so it is a payload, and was not opened

    with (tmp_path / "large.pt").open("wb") as file:
        file.truncate(501_000_000)
    upload(page, tmp_path / "large.pt")
    expect(page.get_by_text("File must be 500.0MB or smaller")).to_be_visible(timeout=30 * SECONDS)
    assert page.get_by_test_id("stException").count() == 0


@pytest.mark.timeout(200)
def test_an_upload_is_held_once_and_let_go(page: Page, server: Server, tmp_path: Path) -> None:
    """Streamlit's own way holds it twice while the page runs, and once as long as the tab lives."""
    size = 120_000_000
    save_file({"weight": torch.zeros(size // 4)}, tmp_path / "large.safetensors")
    create_project(page, server)
    process = psutil.Process(server.process.pid)
    before = peak = process.memory_info().rss
    blobs = server.home / "blobs"

    def is_stored() -> bool:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)
        return blobs.exists() and any(not path.name.startswith(".") for path in blobs.iterdir())

    upload(page, tmp_path / "large.safetensors")
    eventually(is_stored, seconds=60)
    expect(page.get_by_test_id("stSidebar").get_by_text("Checkpoint ·")).to_be_visible(timeout=60 * SECONDS)
    peak = max(peak, process.memory_info().rss)
    assert size * 0.8 < peak - before < size * 1.5
    eventually(lambda: process.memory_info().rss - before < size * 0.5, seconds=20)
