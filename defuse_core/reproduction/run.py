"""Reproduce the paper on one of its three data sets: the whole method, once a seed, as runs in a project.

The generator and the annotators are made once; every seed trains a classifier of its own and searches,
groups, labels and corrects that one's mistakes. A reproduction that was stopped goes on where it was, and
more seeds add to those that there are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from defuse_core.jobs import launcher
from defuse_core.reproduction.paper import PAPER, DatasetName
from defuse_core.reproduction.plans import VALIDATION_SHARE, Length, Plan
from defuse_core.workspace.configs import STEPS, StepName, check_config
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Project, Workspace

_FILES: dict[DatasetName, str] = {"mnist": "mnist.npz", "svhn": "svhn.npz", "gtsrb": "gtsrb32.npz"}
_TORCHVISION: dict[DatasetName, str] = {"mnist": "MNIST", "svhn": "SVHN", "gtsrb": "GTSRB"}
_PARTIAL = "resnet18_imagenet_partial.npz"
_QUICK = {"train": (300, math.ceil(1 / VALIDATION_SHARE)), "test": (100, 2)}  # images, and least of a class

_OF_FAILURES: tuple[StepName, ...] = ("correct", "evaluate", "report")
_OF_MISTAKES: tuple[StepName, ...] = ("distill", "annotate", *_OF_FAILURES)
_LEAST_MISTAKES = 2  # that `distillation.fit_mixture` takes

Watch = Callable[[Run], Run]
"""Follows a live run to its end and returns it as it is then."""


def project_name(dataset: DatasetName, length: Length) -> str:
    """Name the project of a reproduction.

    Examples
    --------
    >>> project_name("mnist", "paper"), project_name("svhn", "cpu")
    ('reproduce-mnist', 'reproduce-svhn-cpu')
    """
    return f"reproduce-{dataset}" + ("" if length == "paper" else f"-{length}")


def open_project(workspace: Workspace, dataset: DatasetName, length: Length, data: Path | None) -> Project:
    """Return the project of a reproduction, created where it does not exist.

    Parameters
    ----------
    data : Path, optional
        Folder with mnist.npz, svhn.npz or gtsrb32.npz; a file that is not there, or no folder, leaves
        torchvision to download the data set.

    Raises
    ------
    DataError
        If the data can neither be read nor downloaded.
    WorkspaceError
        If the project is there, on other data than the folder's.
    """
    from defuse_core.workspace.projects import new_project  # torch: slow to import

    name = project_name(dataset, length)
    source, size = find_data(dataset, length, data)
    known = {project.name: project for project in workspace.projects()}
    if name in known:
        there = known[name]
        if length != "quick" and data is not None and there.dataset["source"] != source:
            raise WorkspaceError(
                f"project {name!r} is on {there.dataset['source']}, not on {source}; leave --data out, or "
                f"delete it with: defuse delete {name}"
            )
        return there
    if length == "quick":
        upload = workspace.store_upload(f"{dataset}-quick.npz", [few_images(source, size)])
        return new_project(
            workspace, name, f"blob:{upload.sha256}", validation_share=VALIDATION_SHARE,
            upload_name=upload.name,
        )  # fmt: skip
    return new_project(workspace, name, source, image_size=size, validation_share=VALIDATION_SHARE)


def find_data(dataset: DatasetName, length: Length, data: Path | None) -> tuple[str, int | None]:
    """Return where a data set is read, and the size its images are brought to."""
    if data is not None and (file := data / _FILES[dataset]).is_file():
        return str(file.resolve()), None
    root = Path("data") if data is None else data
    size = None
    if dataset == "gtsrb":
        size = PAPER[dataset].image_size if length == "paper" else 32
    return f"torchvision:{_TORCHVISION[dataset]}:{root.resolve()}", size


def few_images(source: str, size: int | None = None) -> bytes:
    """Return a few hundred images of a data set as an .npz, as many of every class."""
    from defuse_core.data.sources import load_dataset

    found = load_dataset(source, image_size=size)
    arrays: dict[str, Any] = {"class_names": np.array(found.class_names)}
    for part, split in (("train", found.train), ("test", found.test)):
        images_in_all, least = _QUICK[part]
        each = max(images_in_all // found.n_classes, least)
        labels = split.labels.numpy()
        index = np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(found.n_classes)]))
        images = split.images.numpy()[index].transpose(0, 2, 3, 1)
        arrays[f"x_{part}"] = images[..., 0] if images.shape[-1] == 1 else images
        arrays[f"y_{part}"] = labels[index]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def find_pretrained(workspace: Workspace, project: Project, plan: Plan, data: Path | None) -> str | None:
    """What the classifier begins with, as `ClassifierConfig.pretrained` takes it.

    What an earlier seed began with; else the partial ResNet-18 that lies beside the data, fitted to the
    training images and stored as an upload of the project; else torchvision's weights.
    """
    if not plan.pretrained:
        return None
    for run in workspace.runs.of_project(project.id, "classifier"):
        if run.config["architecture"] == plan.architecture and run.config.get("pretrained"):
            return str(run.config["pretrained"])  # whatever lies in the folder now
    name = "resnet18-imagenet-partial.safetensors"
    file = None if data is None else data / _PARTIAL
    if file is None or not file.is_file():
        return "imagenet"
    from defuse_core.base.checkpoints import dump_tensors
    from defuse_core.reproduction.partial_resnet import read_partial_resnet18
    from defuse_core.steps.source import open_dataset

    weights = read_partial_resnet18(file, open_dataset(workspace, project).train.images)
    return f"blob:{workspace.add_blob(project.id, name, [dump_tensors(weights)]).sha256}"


def more_annotator_data(project: Project, length: Length) -> str | None:
    """Images that annotators learn from and the classifier does not: SVHN's extra split, by torchvision.

    In the paper's length only: there are 531,131 of them.
    """
    if length != "paper":
        return None
    kind, name, root = (*str(project.dataset["source"]).split(":", 2), "", "")[:3]
    return f"torchvision:SVHN-extra:{root}" if (kind, name) == ("torchvision", "SVHN") else None


def run_reproduction(
    workspace: Workspace, project: Project, plan: Plan, *, pretrained: str | None, more_data: str | None,
    n_seeds: int, resources: Resources, watch: Watch,
) -> Iterator[tuple[int | None, dict[StepName, Run]]]:  # fmt: skip
    """Run what is missing; yield the runs by step, of what all share (seed None), then of each seed.

    A seed whose labels name no failure region has nothing to correct, and no run of the steps that do; one
    whose search finds fewer than two mistakes has no regions, either.
    Ends after the first run that does not end as done, which is then the last of those yielded.
    """
    shared: dict[StepName, Run] = {}
    for step, config in plan.shared():
        if step == "annotators":
            config = {**config, "more_data": more_data}
        shared[step] = _make(workspace, project, step, config, 0, shared, resources, watch)
        yield None, dict(shared)
        if shared[step].status != "done":
            return
    for seed in range(n_seeds):
        runs = dict(shared)
        failures = True
        for step, config in plan.seeded(pretrained):
            if step in _OF_MISTAKES and _count_mistakes(runs["identify"]) < _LEAST_MISTAKES:
                continue
            if step == "correct":  # a correction that was begun had some, whoever labels meanwhile
                begun = _find(workspace, project, step, check_config(step, config), seed, _ground(step, runs))
                failures = begun is not None or _is_any_failure(workspace, runs["annotate"], plan)
            if step in _OF_FAILURES and not failures:
                continue
            runs[step] = _make(workspace, project, step, config, seed, runs, resources, watch)
            if runs[step].status != "done":
                break
        yield seed, runs
        if any(run.status != "done" for run in runs.values()):
            return


def _count_mistakes(identify: Run) -> int:
    return sum(identify.summary["mistakes"].values())


def _is_any_failure(workspace: Workspace, annotate: Run, plan: Plan) -> bool:
    """Whether the labels name a region that can be corrected."""
    from defuse_core.extensions.answers import answers_by_region, failing, judge
    from defuse_core.steps.source import Source

    source = Source(workspace, annotate.id)
    threshold = plan.preset.labeling.disagreement_threshold
    verdicts = judge(
        source.classifier(), source.vae(), source.regions(), answers_by_region(source.labels(up_to=None)),
        disagreement_threshold=threshold,
    )  # fmt: skip
    return bool(failing(verdicts))


def _make(
    workspace: Workspace, project: Project, step: StepName, config: Mapping[str, Any], seed: int,
    runs: Mapping[StepName, Run], resources: Resources, watch: Watch,
) -> Run:  # fmt: skip
    """Find a run that was made or begun, else submit it; watch it to its end."""
    upstream = _ground(step, runs)
    run = _find(workspace, project, step, check_config(step, config), seed, upstream)
    if run is None:
        run = launcher.submit(
            workspace, project.id, step, config, seed=seed, resources=resources, upstream=upstream
        )
    elif not run.live and run.status != "done":
        run = launcher.resume(workspace, run.id, resources=resources)
    return watch(run) if run.live else run


def _ground(step: StepName, runs: Mapping[StepName, Run]) -> list[Run]:
    """The runs that a step stands on."""
    spec = STEPS[step]
    return [runs[name] for name in (*spec.needs, *spec.optional) if name in runs]


def _find(
    workspace: Workspace, project: Project, step: StepName, wanted: Any, seed: int, upstream: Sequence[Run]
) -> Run | None:
    """The newest run of the same step, config and seed on the same runs."""
    same = [
        run
        for run in workspace.runs.of_project(project.id, step)
        if run.seed == seed
        and set(run.upstream) == {each.id for each in upstream}
        and check_config(step, run.config) == wanted  # older ones lack fields that came later
    ]
    return same[-1] if same else None
