"""Make a suite from a project's labelled regions, and write its folder.

By default a suite has the newest regions with the labels that count *now*. A correction may be older than
these labels, and a suite is useful before the first correction, too, since it then fails. If a done correct
run stands on the same regions and no label is newer, its seed and ρ are used, so that the draws equal those
it was tested on. `--run` names any other run, to get the labels that it used. If nobody has labelled the
regions of a further round yet, the suite is that of the newest correction.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from defuse_core.base.checkpoints import dump_tensors
from defuse_core.base.files import write_bytes
from defuse_core.base.intervals import Interval
from defuse_core.base.records import FailureInstances
from defuse_core.data.class_names import check_class_names
from defuse_core.exchange.suite.suite import (
    INSTANCES,
    MANIFEST,
    Feeding,
    Manifest,
    Suite,
    SuiteError,
    SuiteRegion,
    read_manifest,
)
from defuse_core.extensions.answers import answers_by_region, judge
from defuse_core.method.classifier import Classifier
from defuse_core.method.evaluation import score_regions
from defuse_core.method.labeling import failure_instances
from defuse_core.steps.source import Source
from defuse_core.workspace import edits as region_edits
from defuse_core.workspace.configs import SweepConfig
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.runs import Run
from defuse_core.workspace.settings import labeling_of
from defuse_core.workspace.workspace import Workspace

_OURS = re.compile(rf"{re.escape(MANIFEST)}|{re.escape(INSTANCES)}|regions|regions/\d+\.png")
_SHEET_WIDTH = 1280  # pixels, about
_SHEET_IMAGES = 256


def newest_state(workspace: Workspace, project_id: int) -> Run:
    """Return the run whose labelled regions make a suite by default, as described above.

    Parameters
    ----------
    workspace : Workspace
    project_id : int

    Raises
    ------
    WorkspaceError
        If there are no regions.
    """
    regions = workspace.runs.latest(project_id, "distill", done=True)
    if regions is None:
        raise WorkspaceError("there are no regions yet; run: defuse distill, and label them")
    newest = workspace.annotations.last_id(regions.id)
    corrections = [r for r in workspace.runs.of_project(project_id, "correct") if r.status == "done"]
    if corrections and not workspace.annotations.counting(regions.id):  # a further round, not labelled yet
        return corrections[-1]
    for run in reversed(corrections):
        if regions.id in run.upstream and run.last_annotation == newest:
            return run
    return regions


def make_suite(
    workspace: Workspace, run_id: int, *, n: int = 256, seed: int | None = None, everything: bool = False
) -> Suite:
    """Draw the labelled regions of a distill or correct run, each at the τ at which it was labelled.

    Draws have the purpose "test": no correction is tuned on them. Nothing is written.

    Parameters
    ----------
    workspace : Workspace
    run_id : int
        A distill run, with its labels of today, or a correct run, with the labels that it used.
    n : int
        Draws of each region.
    seed : int, optional
        By default that of the correct run, else 0.
    everything : bool
        Include labelled regions that are no failures.

    Raises
    ------
    WorkspaceError
        If the run is of another step or not done, or has no region to draw.
    """
    run = workspace.runs.get(run_id)
    if run.step not in ("distill", "correct") or run.status != "done":
        raise WorkspaceError(
            f"run must be a distill or correct run that is done, run {run_id} is {run.step}, {run.status}"
        )
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    corrected, source = run.step == "correct", Source(workspace, run_id)
    up_to = run.last_annotation if corrected else None
    seed = seed if seed is not None else run.seed if corrected else 0
    answers, regions = answers_by_region(source.labels(up_to=up_to)), source.regions()
    classifier, vae = source.classifier(), source.vae()
    rho = labeling_of(workspace, workspace.project(run.project_id)).disagreement_threshold
    if corrected:
        rho = SweepConfig.model_validate(run.config).disagreement_threshold
    verdicts = judge(classifier, vae, regions, answers, disagreement_threshold=rho)
    chosen = [(v, v.label) for v in verdicts if v.label is not None and (v.is_failure or everything)]
    if not chosen:
        ties = " that has a label" if any(verdict.is_failure for verdict in verdicts) else ""
        raise WorkspaceError(
            f"none of the {len(verdicts)} labelled regions is a failure{ties}; label more, or take all: --all"
        )
    labels = {verdict.region_id: label for verdict, label in chosen}
    taus = {region_id: answers[region_id].tau for region_id in labels}
    drawn = failure_instances(vae, regions, labels, n, tau=taus, seed=seed, purpose="test")
    names = region_edits.names(workspace.annotations.edits(source.upstream("distill").id, up_to=up_to))
    errors = _errors(classifier, drawn)
    suite_regions = tuple(
        SuiteRegion(
            region_id=v.region_id, name=names.get(v.region_id, "")[:200], label=label, tau=taus[v.region_id],
            seed=seed, n=n, is_failure=v.is_failure, error=errors[v.region_id],
        )
        for v, label in chosen
    )  # fmt: skip
    return Suite(_manifest(source, drawn, suite_regions), drawn)


def _errors(classifier: Classifier, drawn: FailureInstances) -> dict[int, tuple[float, float, float, int]]:
    """Share of each region's draws that the classifier misclassifies, by region_id."""
    errors = {}
    for region_id, right in score_regions(classifier, drawn).items():
        error = Interval.wilson(right.n - round(right.estimate * right.n), right.n)
        errors[region_id] = (error.estimate, error.low, error.high, error.n)
    return errors


def _manifest(source: Source, drawn: FailureInstances, regions: tuple[SuiteRegion, ...]) -> Manifest:
    project = source.workspace.project(source.run.project_id)
    try:
        check_class_names(project.class_names)
    except ValueError as error:  # projects of older versions
        raise WorkspaceError(f"a suite cannot name the classes: {error}") from None
    about = source.read("classifier", "classifier")[1]
    channels, height, width = drawn.images.shape[1:]
    return Manifest(
        defuse_version=version("defuse"), project=project.name, fingerprint=project.dataset["fingerprint"],
        class_names=tuple(project.class_names),
        image_shape=(channels, height, width), architecture=about["architecture"],
        preprocessing=Feeding(**about["preprocessing"]), regions=regions,
    )  # fmt: skip


def _files(suite: Suite) -> dict[str, bytes]:
    """Every file of a suite but its manifest, by its name within the folder."""
    drawn, regions = suite.instances, suite.manifest.regions
    tensors = {"images": drawn.images, "labels": drawn.labels, "region_ids": drawn.region_ids}
    sheets = {r.picture: contact_sheet(drawn.images[drawn.region_ids == r.region_id]) for r in regions}
    return {INSTANCES: dump_tensors(tensors), **sheets}


def contact_sheet(images: Tensor) -> bytes:
    """Return a PNG of the first 256 of uint8 images (n, channels, height, width) side by side."""
    images = images[:_SHEET_IMAGES]
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    tiles = np.full((rows * columns, height + 1, width + 1, channels), 255, np.uint8)  # a white line between
    tiles[:n, :-1, :-1] = images.permute(0, 2, 3, 1).numpy()
    grid = tiles.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    pixels = grid.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else np.ascontiguousarray(pixels))
    scale = _SHEET_WIDTH / picture.width
    if scale >= 2:
        whole = int(scale)
        picture = picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST)
    elif scale < 1:
        picture = picture.resize((_SHEET_WIDTH, max(1, round(picture.height * scale))))
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def write_suite(suite: Suite, folder: Path) -> None:
    """Write a suite whole or not at all; a suite that the folder holds is replaced.

    Parameters
    ----------
    suite : Suite
    folder : Path

    Raises
    ------
    SuiteError
        If the folder holds anything but a suite.
    """
    folder = folder.resolve()
    _refuse_other(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        new, old = work / "new", work / "old"
        hashes = {}
        for name, content in _files(suite).items():
            write_bytes(new / name, content)
            hashes[name] = hashlib.sha256(content).hexdigest()
        manifest = {**suite.manifest.model_dump(mode="json"), "files": hashes}
        write_bytes(new / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _refuse_other(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SuiteError(f"{folder} is a file; give another name to --out")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    if not names:
        return
    if foreign := [name for name in names if not _OURS.fullmatch(name)]:
        raise SuiteError(f"{folder} holds {foreign[0]}, which is of no suite; give another folder to --out")
    read_manifest(folder)
