"""Small real parts that many tests share: a data set of shapes, networks of a few thousand weights."""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings
from streamlit.components.v2.component_manager import BidiComponentManager
from xdist.scheduler import LoadFileScheduling

from defuse_core.base.config import ClassifierTraining, VaeConfig, VaeTraining
from defuse_core.data.splits import ImageDataset, Split
from defuse_core.extensions import contract
from defuse_core.jobs.spare import SPARE_RUNNER
from defuse_core.method.classifier import Classifier, Preprocessing, train_classifier
from defuse_core.method.vae import BetaVAE
from defuse_core.method.vae_training import train_vae

if TYPE_CHECKING:
    from tests.workspaces import Place

SIZE = 8
BROWSER_TESTS = "tests/e2e/"
LONGEST = (
    BROWSER_TESTS, "tests/test_jobs.py", "tests/test_reproduction.py", "tests/test_demo.py",
    "tests/test_inspection.py",
)  # fmt: skip
"""Begun first, lest one worker end minutes after the others."""

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["DEFUSE_THREADS"] = "1"  # runs are processes of their own, and there is one a core already
os.environ.setdefault(SPARE_RUNNER, "0")  # tests of the spare runner keep one themselves

settings.register_profile("test", deadline=None, max_examples=30)  # CI may be slow at any example
settings.register_profile("verify", deadline=None, max_examples=300)
settings.register_profile("mutation", deadline=None, max_examples=30, derandomize=True, database=None)
settings.load_profile("test")  # another one by --hypothesis-profile


class BrowserTogether(LoadFileScheduling):
    """Tests of a file on one worker, and those of all files that share a dashboard, too.

    Files of a component's script, `…_js.py`, need a browser alone.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        shares = file.startswith(BROWSER_TESTS) and not file.endswith("_js.py")
        return BROWSER_TESTS if shares else file


def pytest_configure() -> None:
    """Collect no garbage while the modules are imported: all of it stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later search for garbage, a tenth of the time of the tests."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first; the order is otherwise as it was."""

    def place(item: pytest.Item) -> int:
        return next((n for n, prefix in enumerate(LONGEST) if item.nodeid.startswith(prefix)), len(LONGEST))

    if not config.pluginmanager.has_plugin("randomly"):  # which has shuffled them
        items.sort(key=place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> BrowserTogether:
    """Distribute the tests over the workers, in their order."""
    config.option.loadscopereorder = False
    return BrowserTogether(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell the ten slowest tests, the ten slowest files and the total."""
    tests: dict[str, float] = defaultdict(float)
    files: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                tests[report.nodeid] += report.duration
                files[report.nodeid.partition("::")[0]] += report.duration
    if len(files) < 2:
        return
    for what, seconds in (("tests, what they share with the first that needs it", tests), ("files", files)):
        terminalreporter.section(f"slowest 10 {what}")
        for name, each in sorted(seconds.items(), key=lambda item: -item[1])[:10]:
            terminalreporter.line(f"{each:.2f}s {name}")
    terminalreporter.line(f"{sum(files.values()):.0f}s in all, on all workers")


@pytest.fixture(autouse=True, scope="session")
def _no_components_of_others() -> Iterator[None]:
    """AppTest reads what every installed package says of itself, half a second a page, for none of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BidiComponentManager, "discover_and_register_components", lambda *_, **__: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks this small are fastest on one thread, and do not suffer from a busy machine."""
    torch.set_num_threads(1)


def bars(n: int, seed: int) -> Split:
    """Noisy 8×8 images of a horizontal bar, a vertical bar, or a diagonal: classes 0, 1, 2."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.rand(n, 1, SIZE, SIZE, generator=rng) * 60
    for index, label in enumerate(labels.tolist()):
        place = int(torch.randint(1, SIZE - 2, (), generator=rng))
        if label == 0:
            images[index, 0, place : place + 2, :] += 180
        elif label == 1:
            images[index, 0, :, place : place + 2] += 180
        else:
            images[index, 0] += 180 * torch.eye(SIZE).roll(place - 3, 1)
    return Split(images.to(torch.uint8), labels)


@pytest.fixture(scope="session")
def shapes() -> ImageDataset:
    """240 training, 60 validation and 90 test images of three classes, (1, 8, 8)."""
    return ImageDataset("shapes", bars(240, 0), bars(90, 1), ("row", "column", "diagonal"), bars(60, 2))


class TinyNetwork(torch.nn.Sequential):
    """One convolution and a linear layer for (1, 8, 8) images of three classes."""

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 3)
        )


@pytest.fixture(scope="session")
def trained_classifier(shapes: ImageDataset) -> Classifier:
    """A classifier of the shapes, good but not perfect. Shared: copy before training it."""
    torch.manual_seed(0)
    classifier = Classifier(TinyNetwork(), Preprocessing.of(shapes.train.images))
    config = ClassifierTraining(optimizer="adam", learning_rate=3e-3, epochs=2, batch_size=32)
    train_classifier(classifier, shapes.train, config=config, seed=0)
    return classifier


@pytest.fixture(scope="session")
def trained_vae(shapes: ImageDataset) -> BetaVAE:
    """A small VAE of the shapes, latent_dim 4. Shared: copy before training it."""
    torch.manual_seed(0)
    vae = BetaVAE(
        VaeConfig(image_size=SIZE, padding=0, hidden_channels=16, depth=2, hidden_units=64, latent_dim=4)
    )
    config = VaeTraining(
        epochs=100,
        beta=0.2,
        kl_anneal_steps=50,
        batch_size=32,
        learning_rate=3e-3,
        precision="fp32",
    )
    train_vae(vae, shapes.train.images, config=config, seed=0)
    return vae


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract test tries three sizes only: images of 299 pixels a side take nine tenths of its time."""
    monkeypatch.setattr(contract, "USUAL_SIZES", (28, 32, 64))


@pytest.fixture(scope="session")
def development_data() -> Path:
    """The folder of mnist.npz and the like; skips where DEFUSE_DATA is unset."""
    folder = os.environ.get("DEFUSE_DATA")
    if not folder:
        pytest.skip("DEFUSE_DATA is unset: it names a folder with mnist.npz, gtsrb32.npz, svhn.npz")
    return Path(folder)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of a workspace of shapes, labelled; read it only, or take a copy by `place`."""
    from tests.templates import make_labelled, make_once

    return make_once(tmp_path_factory, "labelled", make_labelled) / "home"


@pytest.fixture(scope="session")
def corrected_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of the same workspace with every step run, to the report; read it only, or take a copy."""
    from tests.templates import make_corrected, make_once

    return make_once(tmp_path_factory, "corrected", partial(make_corrected, template)) / "home"


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Iterator[Place]:
    """A workspace of one's own with all that the labelled one holds, whose runs end with the test."""
    from tests.in_process import end_all
    from tests.workspaces import copy_place

    copied = copy_place(template, tmp_path / "home")
    yield copied
    end_all(copied)


@pytest.fixture
def runs_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs that a page submits wait in the queue: nothing computes beside the tests."""
    from defuse_core.jobs import launcher

    monkeypatch.setattr(launcher, "_start", lambda *_: None)


@pytest.fixture
def corrected_place(corrected_template: Path, tmp_path: Path) -> Place:
    """A workspace of one's own with all that the corrected one holds."""
    from tests.workspaces import copy_place

    return copy_place(corrected_template, tmp_path / "home")
