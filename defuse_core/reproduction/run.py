"""Reproduce the paper on one of its three data sets: the whole method, once a seed, as runs in a project.

The generator and the annotators are trained once. Every seed trains a classifier of its own, then searches,
groups, labels and corrects its mistakes. A reproduction that was stopped resumes where it was; more seeds
add to those that exist.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from defuse_core.jobs.ensure import ensure, find_run, upstream_among
from defuse_core.reproduction.paper import PAPER, DatasetName
from defuse_core.reproduction.plans import VALIDATION, Length, Plan
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Project, Workspace

_FILES: dict[DatasetName, str] = {"mnist": "mnist.npz", "svhn": "svhn.npz", "gtsrb": "gtsrb32.npz"}
_TORCHVISION: dict[DatasetName, str] = {"mnist": "MNIST", "svhn": "SVHN", "gtsrb": "GTSRB"}
_CHUNK = 2**20
_WEIGHTS = (".safetensors", ".pt", ".pth")
_QUICK = {"train": (300, 10), "test": (200, 4)}  # images, and least of a class

_OF_FAILURES: tuple[StepName, ...] = ("correct", "evaluate", "report")
_OF_MISTAKES: tuple[StepName, ...] = ("distill", "annotate", *_OF_FAILURES)
_LEAST_MISTAKES = 2  # that `distillation.fit_mixture` takes

Watch = Callable[[Run], Run]
"""Follows a live run to its end and returns it as it is then."""


def project_name(dataset: DatasetName, length: Length) -> str:
    """Name the project of a reproduction.

    Parameters
    ----------
    dataset : {"mnist", "svhn", "gtsrb"}
    length : {"paper", "cpu", "quick"}

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
        Folder with mnist.npz, svhn.npz or gtsrb32.npz; where folder or file is missing, torchvision
        downloads the data set.

    Raises
    ------
    DataError
        If the data can neither be read nor downloaded.
    WorkspaceError
        If the project exists on other data than the folder's.
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
            workspace, name, f"blob:{upload.sha256}", validation=VALIDATION[dataset],
            upload_name=upload.name,
        )  # fmt: skip
    return new_project(workspace, name, source, image_size=size, validation=VALIDATION[dataset])


def find_data(dataset: DatasetName, length: Length, data: Path | None) -> tuple[str, int | None]:
    """Return the source of a data set, as `load_dataset` takes it, and the size its images are resized to.

    Parameters
    ----------
    dataset : {"mnist", "svhn", "gtsrb"}
    length : {"paper", "cpu", "quick"}
    data : Path, optional
        As in `open_project`; torchvision keeps its files there, too, by default in ./data.
    """
    if data is not None and (file := data / _FILES[dataset]).is_file():
        return str(file.resolve()), None
    root = Path("data") if data is None else data
    size = None
    if dataset == "gtsrb":
        size = PAPER[dataset].image_size if length == "paper" else 32
    return f"torchvision:{_TORCHVISION[dataset]}:{root.resolve()}", size


def few_images(source: str, size: int | None = None) -> bytes:
    """Return a few hundred images of a data set as an .npz, as many of every class.

    Parameters
    ----------
    source : str
        As `load_dataset` takes it.
    size : int, optional
        Pixels that images are resized to, square.
    """
    from defuse_core.data.sources import load_dataset

    data = load_dataset(source, image_size=size)
    arrays: dict[str, Any] = {"class_names": np.array(data.class_names)}
    for part, split in (("train", data.train), ("test", data.test)):
        images_in_all, least = _QUICK[part]
        each = max(images_in_all // data.n_classes, least)
        labels = split.labels.numpy()
        index = np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(data.n_classes)]))
        images = split.images.numpy()[index].transpose(0, 2, 3, 1)
        arrays[f"x_{part}"] = images[..., 0] if images.shape[-1] == 1 else images
        arrays[f"y_{part}"] = labels[index]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def find_pretrained(workspace: Workspace, project: Project, plan: Plan, data: Path | None) -> str | None:
    """Return the classifier's initial weights, as `ClassifierConfig.pretrained` takes them; None for random.

    Those of an earlier seed; else a file of the architecture's weights in the folder of the data, stored as
    an upload of the project; else torchvision's ImageNet weights.

    Parameters
    ----------
    workspace : Workspace
    project : Project
    plan : Plan
    data : Path, optional
        Folder of the data, and of weights in torchvision's layout: resnet18-f37072fd.pth as torchvision
        downloads it, or any other name that begins with the architecture's and ends in .safetensors, .pt or
        .pth. Layers that the file lacks begin afresh.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or fits no layer of the architecture.
    WorkspaceError
        If the folder has several such files.
    """
    if not plan.pretrained:
        return None
    for run in workspace.runs.of_project(project.id, "classifier"):
        if run.config["architecture"] == plan.architecture and run.config.get("pretrained"):
            return str(run.config["pretrained"])  # whatever is in the folder now
    beside = [] if data is None else sorted(data.glob(f"{plan.architecture}*"))
    files = [path for path in beside if path.suffix in _WEIGHTS]
    if not files:
        return "imagenet"
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise WorkspaceError(f"{data} has several files of {plan.architecture}'s weights ({names}); keep one")
    from defuse_core.steps.networks import check_initial_weights

    check_initial_weights(files[0], plan.architecture, n_classes=len(project.class_names))  # not after hours
    with files[0].open("rb") as file:
        blob = workspace.add_blob(project.id, files[0].name, iter(lambda: file.read(_CHUNK), b""))
    return f"blob:{blob.sha256}"


def more_annotator_data(project: Project, length: Length) -> str | None:
    """Return the source of images for the annotators alone: SVHN's extra split, from torchvision.

    In the paper's length only: there are 531,131 of them.

    Parameters
    ----------
    project : Project
    length : {"paper", "cpu", "quick"}
    """
    if length != "paper":
        return None
    kind, name, root = (*str(project.dataset["source"]).split(":", 2), "", "")[:3]
    return f"torchvision:SVHN-extra:{root}" if (kind, name) == ("torchvision", "SVHN") else None


def run_reproduction(
    workspace: Workspace, project: Project, plan: Plan, *, pretrained: str | None, more_data: str | None,
    n_seeds: int, resources: Resources, watch: Watch,
) -> Iterator[tuple[int | None, dict[StepName, Run]]]:  # fmt: skip
    """Run what is missing; yield the runs by step: first those that all seeds share, then those of each seed.

    A seed whose labels name no failure region has nothing to correct, and no run of `correct`, `evaluate` and
    `report`; one whose search finds fewer than two mistakes has no run of `distill` and `annotate`, either.
    Ends after the first run that does not end as done, which is then the last of those yielded.

    Parameters
    ----------
    workspace : Workspace
    project : Project
    plan : Plan
    pretrained : str, optional
        As `find_pretrained` returns it.
    more_data : str, optional
        As `more_annotator_data` returns it.
    n_seeds : int
    resources : Resources
    watch : Watch

    Yields
    ------
    seed : int or None
        None while the shared steps run, after each of them.
    runs : dict of str to Run
        By step, the shared ones included.
    """

    def make(step: StepName, config: Mapping[str, Any], seed: int, runs: Mapping[StepName, Run]) -> Run:
        upstream = upstream_among(runs, step, config)
        run = ensure(workspace, project.id, step, config, seed=seed, upstream=upstream, resources=resources)
        return watch(run) if run.live else run

    shared: dict[StepName, Run] = {}
    for step, config in plan.shared():
        if step == "annotators":
            config = {**config, "more_data": more_data}
        shared[step] = make(step, config, 0, shared)
        yield None, dict(shared)
        if shared[step].status != "done":
            return
    for seed in range(n_seeds):
        runs = dict(shared)
        failures = True
        for step, config in plan.seeded(pretrained):
            if step in _OF_MISTAKES and _count_mistakes(runs["identify"]) < _LEAST_MISTAKES:
                continue
            if step == "correct":  # one that was started had some, whatever labels came since
                upstream = upstream_among(runs, step, config)
                started = find_run(workspace, project.id, step, config, seed=seed, upstream=upstream)
                failures = started is not None or _is_any_failure(workspace, runs["annotate"], plan)
            if step in _OF_FAILURES and not failures:
                continue
            runs[step] = make(step, config, seed, runs)
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
