"""Every cache of the dashboard, bounded, keyed by ids and never by arrays.

What takes longer than a glance is begun on a thread and waited for by the page, which goes on being
one; torch is imported by the first of these, not before.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st
from numpy.typing import NDArray
from streamlit.delta_generator import DeltaGenerator

from dashboard.rerun import rerun
from dashboard.text import plain
from defuse_core.jobs import launcher
from defuse_core.workspace.edits import newest_change
from defuse_core.workspace.workspace import Project, Workspace

if TYPE_CHECKING:
    from dashboard.components.tau_scrubber import Sprite
    from dashboard.exhibits import Exhibition
    from dashboard.latent_map import LatentMap
    from dashboard.region_data import Draws, Painter, Regions
    from dashboard.second_round import Rounds
    from defuse_core.base.records import Verdict
    from defuse_core.data.splits import ImageDataset
    from defuse_core.extensions.manifold import Manifold
    from defuse_core.method.classifier import Classifier
    from defuse_core.method.vae import BetaVAE
    from defuse_core.report.evidence import Evidence
    from defuse_core.report.sweep import Indices
    from defuse_core.workspace.configs import StepName

Result = TypeVar("Result")
Arrays = dict[str, NDArray[Any]]

_GLANCE = 0.3  # seconds that a page waits before it says what it waits for
_PATIENCE = 10.0  # seconds that it waits while modules are imported
_LOOK = 0.5  # seconds between two looks
_DRAWN = 3.0  # seconds that draws are waited for


@dataclass(frozen=True)
class DeviceText:
    """A device of this machine: how a run names it, what it is, and its memory in bytes."""

    device: str
    name: str
    memory: int

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / 2**30:.0f} GB"


@st.cache_resource(show_spinner=False)
def workspace() -> Workspace:
    """The workspace that DEFUSE_HOME names; safe for all sessions at once."""
    return Workspace()


@st.cache_resource(show_spinner=False)
def _asked_devices() -> Future[list[DeviceText]]:
    """Ask a process of its own: torch takes seconds to import, and the shell does without it."""
    return ThreadPoolExecutor(1).submit(_ask_devices)


def _ask_devices() -> list[DeviceText]:
    code = (
        "import json; from defuse_core.base.runtime import list_devices;"
        "print(json.dumps([vars(found) for found in list_devices()]))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    told = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return [DeviceText(**found) for found in json.loads(told.stdout)]


def devices() -> list[DeviceText]:
    """The devices of this machine, the default first; none while they are being asked for."""
    asked = _asked_devices()
    return asked.result() if asked.done() and asked.exception() is None else []


@st.cache_resource(show_spinner=False)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="defuse-page")


def on_thread(function: Callable[..., Result], *given: object) -> Future[Result]:
    """Call a function on a thread of the dashboard's."""
    return _threads().submit(function, *given)


@st.cache_resource(show_spinner=False)
def warm_up() -> Future[None]:
    """Import what most pages compute with, before the first of them asks for it."""
    return _threads().submit(_import_all)


def _import_all() -> None:
    """Import what pages compute with, and start the spare runner.

    Streamlit collects garbage after every run: what is imported is not looked through again.
    """
    for name in ("steps.distill", "extensions.answers", "extensions.regions"):
        importlib.import_module(f"defuse_core.{name}")
    gc.collect()
    gc.freeze()
    launcher.keep_spare()  # from now on a started step answers at once


@st.cache_resource(max_entries=2, show_spinner=False)
def _dataset(home: str, project_id: int) -> Future[ImageDataset]:
    del home  # part of the key
    store = workspace()
    return _threads().submit(_open_dataset, store, store.project(project_id))


def _open_dataset(store: Workspace, project: Project) -> ImageDataset:
    from defuse_core.steps.source import open_dataset

    return open_dataset(store, project)


def dataset(project: Project) -> ImageDataset | None:
    """The data set of a project; None while it loads, or where it cannot be, which is told."""
    key = str(workspace().home), project.id
    return _await(_dataset(*key), "the images", lambda: _dataset.clear(*key))


@st.cache_resource(max_entries=4, show_spinner=False)
def _generator(home: str, run_id: int) -> Future[BetaVAE]:
    del home
    return _threads().submit(_open_generator, workspace(), run_id)


def _open_generator(store: Workspace, run_id: int) -> BetaVAE:
    from defuse_core.base.checkpoints import load_tensors
    from defuse_core.steps.source import unpack_vae

    return unpack_vae(*load_tensors(store.artifact_path(run_id, "vae.safetensors")))


def generator(run_id: int) -> BetaVAE | None:
    """The generator that a run left; None while it loads, or where it cannot be, which is told."""
    key = str(workspace().home), run_id
    return _await(_generator(*key), "the generator", lambda: _generator.clear(*key))


@st.cache_resource(max_entries=4, show_spinner=False)
def _classifier(home: str, run_id: int) -> Future[Classifier]:
    del home
    return _threads().submit(_open_classifier, workspace(), run_id)


def _open_classifier(store: Workspace, run_id: int) -> Classifier:
    from defuse_core.steps.source import Source

    return Source(store, run_id).classifier()


def classifier(run_id: int) -> Classifier | None:
    """The classifier that a run stands on; None while it loads, or where it cannot be, which is told."""
    key = str(workspace().home), run_id
    return _await(_classifier(*key), "the classifier", lambda: _classifier.clear(*key))


@st.cache_resource(max_entries=4, show_spinner=False)
def _corrected(home: str, run_id: int, sha256: str) -> Future[Classifier]:
    del home, sha256  # another λ may be chosen of the same run
    return _threads().submit(_open_corrected, workspace(), run_id)


def _open_corrected(store: Workspace, run_id: int) -> Classifier:
    from defuse_core.steps.source import Source

    source = Source(store, run_id)
    return source.build(source.read("correct", "corrected")[0], source.read("classifier", "classifier")[1])


@st.cache_resource(max_entries=4, show_spinner=False)
def _regions(home: str, run_id: int, change: int) -> Future[Regions]:
    from dashboard import region_data

    del home, change
    return _threads().submit(region_data.find_regions, workspace(), run_id)


def _region_key(run_id: int) -> tuple[str, int, int]:
    """Names which regions there are."""
    return str(workspace().home), run_id, newest_change(workspace().annotations.edits(run_id))


def regions(run_id: int) -> Regions | None:
    """The regions of a distill run as edited, with what lies in them; None while that is worked out."""
    return _await(_regions(*_region_key(run_id)), "the regions", _forget_regions)


def _forget_regions() -> None:
    for kept in (_classifier, _generator, _regions, _strip, _draws, _verdicts):
        kept.clear()


def _painter(run_id: int) -> Painter:
    """What draws a run's regions; begun before whatever waits for it on the same threads."""
    from dashboard.region_data import Painter

    key = _region_key(run_id)
    generator_run = workspace().runs.ancestry(run_id)["vae"].id
    return Painter(_classifier(key[0], run_id), _generator(key[0], generator_run), _regions(*key))


@st.cache_resource(max_entries=12, show_spinner=False)
def _strip(home: str, run_id: int, change: int, region_id: int) -> Future[Sprite]:
    del home, change
    return _threads().submit(_painter(run_id).make_strip, region_id)


def strip(run_id: int, region_id: int, *, then: Sequence[int] = ()) -> Sprite | None:
    """A region at many τ, for the scrubber; None while it is drawn. Those of `then` are drawn after it."""
    asked = [_strip(*_region_key(run_id), each) for each in (region_id, *then)]
    return _await(asked[0], "the draws", _forget_regions)


@st.cache_resource(max_entries=64, show_spinner=False)
def _draws(home: str, run_id: int, change: int, region_id: int, tau: float, n: int) -> Future[Draws]:
    del home, change
    return _threads().submit(_painter(run_id).draw, region_id, tau, n)


def draws(run_id: int, region_id: int, *, tau: float, n: int) -> Draws | None:
    """Draws of a region and what the classifier says of them; None while they are drawn.

    That takes milliseconds once the models are loaded. It is waited for, lest the board of the page, where
    a person goes on typing, be taken away meanwhile.
    """
    asked = _draws(*_region_key(run_id), region_id, tau, n)
    return _await(asked, "the draws", _forget_regions, glance=_DRAWN)


def drawn(run_id: int, region_id: int, *, tau: float, n: int) -> Draws:
    """The same, waited for: for a download, which has no page to say that it loads."""
    return _draws(*_region_key(run_id), region_id, tau, n).result()


@st.cache_resource(max_entries=16, show_spinner=False)
def _opinions(
    home: str, run_id: int, change: int, region_id: int, tau: float, n: int, trained: int | None
) -> Future[list[list[int | None]]]:
    from dashboard import region_data

    asked = _draws(home, run_id, change, region_id, tau, n)
    return _threads().submit(region_data.ask_annotators, workspace(), trained, region_id, asked)


def opinions(
    run_id: int, region_id: int, *, tau: float, n: int, trained: int | None
) -> list[list[int | None]] | None:
    """What annotators, of run `trained` or the shipped, say of each draw; None while they are asked."""
    asked = _opinions(*_region_key(run_id), region_id, tau, n, trained)
    return _await(asked, "the annotators", _opinions.clear)


@st.cache_resource(max_entries=4, show_spinner=False)
def _verdicts(home: str, run_id: int, last: int) -> Future[dict[int, Verdict]]:
    del home, last
    answers = workspace().annotations.counting(run_id)
    return _threads().submit(_painter(run_id).reach_verdicts, answers)


def verdicts(run_id: int) -> dict[int, Verdict] | None:
    """The verdicts on the labelled regions of a distill run; None while they are reached."""
    key = str(workspace().home), run_id, workspace().annotations.last_id(run_id)
    return _await(_verdicts(*key), "the verdicts", _forget_regions)


@st.cache_resource(max_entries=2, show_spinner=False)
def _exhibition(
    home: str, run_id: int, change: int, last: int, correct: tuple[int, str] | None, evaluate_id: int | None
) -> Future[Exhibition]:
    from dashboard.exhibits import Curator

    del change
    correct_id = None if correct is None else correct[0]
    store, painter = workspace(), _painter(run_id)
    curator = Curator(
        store, painter, _verdicts(home, run_id, last),
        None if correct is None else _corrected(home, *correct),
    )  # fmt: skip
    runs = [None if i is None else store.runs.get(i) for i in (correct_id, evaluate_id)]
    return _threads().submit(curator.curate, store.annotations.counting(run_id), *runs)


def exhibition(run_id: int, *, correct_id: int | None, evaluate_id: int | None) -> Exhibition | None:
    """The failure regions of a distill run and what a correction made of them; None while they load."""
    correct = None
    if correct_id is not None:  # its weights by checksum, which changes with the λ that is chosen
        correct = correct_id, workspace().runs.artifacts(correct_id)["corrected.safetensors"].sha256
    key = *_region_key(run_id), workspace().annotations.last_id(run_id), correct, evaluate_id

    def forget() -> None:
        _forget_regions()
        _corrected.clear()
        _exhibition.clear(*key)

    return _await(_exhibition(*key), "the slides", forget)


@st.cache_resource(max_entries=2, show_spinner=False)
def _rounds(home: str, run_id: int, second: tuple[tuple[str, int], ...]) -> Future[Rounds]:
    from dashboard import second_round

    del home
    return _threads().submit(second_round.compare, workspace(), run_id, dict(second))


def rounds(run_id: int, second: Mapping[StepName, int]) -> Rounds | None:
    """What became of the regions of a correction in a second search; None while that is worked out."""
    key = str(workspace().home), run_id, tuple(second.items())
    return _await(_rounds(*key), "the second round", lambda: _rounds.clear(*key))


@st.cache_resource(max_entries=2, show_spinner=False)
def _preview(home: str, run_id: int) -> Future[LatentMap]:
    from dashboard import latent_map

    del home
    return _threads().submit(latent_map.preview, workspace(), run_id)


def preview(run_id: int) -> LatentMap | None:
    """A first map of the mistakes of a run; None while it is made."""
    key = str(workspace().home), run_id
    return _await(_preview(*key), "a first picture", lambda: _preview.clear(*key))


@st.cache_resource(max_entries=2, show_spinner=False)
def _manifold(home: str, run_id: int) -> Future[Manifold]:
    from dashboard import latent_map

    del home
    return _threads().submit(latent_map.fit_manifold, workspace(), run_id)


def manifold(run_id: int) -> Manifold | None:
    """The codes of all training images, to search for the nearest; None while they are read."""
    key = str(workspace().home), run_id
    return _await(_manifold(*key), "the training codes", lambda: _manifold.clear(*key))


def _await(
    found: Future[Result], what: str, forget: Callable[[], None], *, glance: float = _GLANCE
) -> Result | None:
    """The result; where it is not there at a glance, say so and run the page again once it is."""
    slot = st.empty()  # always: what comes after it keeps its place on the page, and what was typed into it
    try:
        return _result(found, what, glance, slot)
    except NotYet:
        st.fragment(_wait, run_every=_LOOK)(found, what)
    except Exception as error:  # whatever a data set of a user's can give
        st.error(plain(str(error)))
        forget()  # it may have been mended by the next look
    return None


def _result(found: Future[Result], what: str, glance: float, slot: DeltaGenerator) -> Result:
    """Wait a glance; longer while modules are imported, which looking again and again would slow down."""
    try:
        return found.result(timeout=glance)
    except NotYet:
        if warm_up().done():
            raise
    slot.caption(f"Loading {what} …")
    result = found.result(timeout=_PATIENCE)
    slot.empty()
    return result


def _wait(found: Future[Result], what: str) -> None:
    if found.done():
        rerun()
    st.caption(f"Loading {what} …")


@st.cache_resource(max_entries=16, show_spinner=False)
def _arrays(home: str, run_id: int, name: str, sha256: str) -> Arrays:
    from safetensors.numpy import load_file

    del home, sha256
    return load_file(workspace().artifact_path(run_id, f"{name}.safetensors"))


def arrays(run_id: int, name: str) -> Arrays:
    """Arrays of a safetensors artifact of a run; not to be changed. Empty where the run has none."""
    found = workspace().runs.artifacts(run_id).get(f"{name}.safetensors")
    return {} if found is None else _arrays(str(workspace().home), run_id, name, found.sha256)


@st.cache_resource(max_entries=4, show_spinner=False)
def _draw_labels(home: str, run_id: int, sha256: str) -> dict[str, tuple[Indices, Indices]]:
    from dashboard import sweep_data

    del home, sha256
    return sweep_data.read_draw_labels(workspace(), run_id)


def draw_labels(run_id: int) -> dict[str, tuple[Indices, Indices]]:
    """Labels and regions of a correct run's test draws, by set; empty before they are drawn."""
    found = workspace().runs.artifacts(run_id).get("failures.safetensors")
    return {} if found is None else _draw_labels(str(workspace().home), run_id, found.sha256)


@st.cache_resource(max_entries=4, show_spinner=False)
def _evidence(home: str, run_id: int, sha256: str) -> Evidence:
    from dashboard import evidence_data

    del home, sha256
    return evidence_data.read_evidence(workspace(), run_id)


def evidence(run_id: int) -> Evidence:
    """What an evaluate run left that is done; not to be changed."""
    found = workspace().runs.artifacts(run_id)["results.json"]
    return _evidence(str(workspace().home), run_id, found.sha256)
