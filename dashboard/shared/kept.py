"""Caches what pages compute with: data sets, models, regions and draws. Each is None while it loads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dashboard.shared.region_data import Draws, Painter, Regions, ask_annotators, find_regions
from dashboard.shell.store import later, workspace
from defuse_core.base.config import LabelingConfig
from defuse_core.workspace.edits import newest_change
from defuse_core.workspace.settings import labeling_of
from defuse_core.workspace.workspace import Project, Workspace

if TYPE_CHECKING:
    from dashboard.components.tau_scrubber import Sprite
    from defuse_core.base.records import Verdict
    from defuse_core.data.splits import ImageDataset
    from defuse_core.method.classifier import Classifier
    from defuse_core.method.vae import BetaVAE

_DRAWN = 3.0  # seconds that a page waits for draws


@later("the images", max_entries=2)
def dataset(project_id: int) -> Callable[[], ImageDataset]:
    """The data set of a project."""
    return partial(_open_dataset, workspace(), workspace().project(project_id))


def _open_dataset(store: Workspace, project: Project) -> ImageDataset:
    from defuse_core.steps.source import open_dataset

    return open_dataset(store, project)


@later("the generator", max_entries=4)
def generator(run_id: int) -> Callable[[], BetaVAE]:
    """The generator of a vae run."""
    return partial(_open_generator, workspace(), run_id)


def _open_generator(store: Workspace, run_id: int) -> BetaVAE:
    from defuse_core.base.checkpoints import load_artifact
    from defuse_core.steps.unpacking import unpack_vae

    return unpack_vae(*load_artifact(store.artifact_path(run_id, "vae.safetensors")))


@later("the classifier", max_entries=4)
def classifier(run_id: int) -> Callable[[], Classifier]:
    """The classifier that a run uses."""
    return partial(_open_classifier, workspace(), run_id)


def _open_classifier(store: Workspace, run_id: int) -> Classifier:
    from defuse_core.steps.source import Source

    return Source(store, run_id).classifier()


def edits(run_id: int, *_: object) -> int:
    """The number of the newest edit of a run's regions; a newer edit makes cached results invalid."""
    return newest_change(workspace().annotations.edits(run_id))


@later("the regions", max_entries=4, version=edits)
def regions(run_id: int) -> Callable[[], Regions]:
    """The regions of a distill run as edited, with what lies in them."""
    return partial(find_regions, workspace(), run_id)


def painter(run_id: int) -> Painter:
    """What draws a run's regions. Its models load first: what waits for them uses the same threads."""
    vae = workspace().runs.ancestry(run_id)["vae"].id
    return Painter(classifier.future(run_id), generator.future(vae), regions.future(run_id))


@later("the draws", max_entries=12, version=edits)
def strip(run_id: int, region_id: int) -> Callable[[], Sprite]:
    """A region at many τ, for the scrubber."""
    return partial(painter(run_id).make_strip, region_id)


@later("the draws", max_entries=64, version=edits, glance=_DRAWN)
def draws(run_id: int, region_id: int, tau: float, n: int) -> Callable[[], Draws]:
    """Draws of a region, and the classifier's predictions of them.

    This takes milliseconds once the models are loaded. The page waits for it: otherwise the label board
    would disappear for a moment while a person is typing.
    """
    return partial(painter(run_id).draw, region_id, tau, n)


@later("the annotators", max_entries=16, version=edits)
def opinions(
    run_id: int, region_id: int, tau: float, n: int, trained: int | None
) -> Callable[[], list[list[int | None]]]:
    """The answers on each draw by the annotators of run `trained`, or by the shipped ones if None."""
    return partial(ask_annotators, workspace(), run_id, trained, draws.future(run_id, region_id, tau, n))


def labeling(run_id: int) -> LabelingConfig:
    """How the regions of a run's project are labelled and judged: its ρ, and the τ to start from."""
    return labeling_of(workspace(), workspace().project(workspace().runs.get(run_id).project_id))


def _judged_by(run_id: int) -> object:
    """The newest answer and ρ."""
    return workspace().annotations.last_id(run_id), labeling(run_id).disagreement_threshold


@later("the verdicts", max_entries=4, version=_judged_by)
def verdicts(run_id: int) -> Callable[[], dict[int, Verdict]]:
    """The verdicts on the labelled regions of a distill run."""
    rho = labeling(run_id).disagreement_threshold
    return partial(painter(run_id).reach_verdicts, workspace().annotations.counting(run_id), rho=rho)
