"""Define and check the manifest: everything that made a run, and all that it stands on.

Ids are valid in one workspace only, so a manifest names runs and answers by their position. It may
come from a stranger, so a manifest that is read is checked as a whole. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from defuse_core.base.config import Config
from defuse_core.base.limits import MAX_IMAGE_SIZE, MAX_SECONDS, MAX_TAU, MAX_THREADS, MAX_TIME
from defuse_core.data.class_names import check_class_names
from defuse_core.data.reading import Fit
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import STEPS
from defuse_core.workspace.edits import EditKind, gaussian_fault
from defuse_core.workspace.label_rules import answer_fault, bounds_fault

FORMAT = "defuse-manifest"
VERSION = 1

MadeStep = Literal[
    "annotators", "classifier", "vae", "identify", "distill", "correct", "evaluate", "report"
]  # fmt: skip
"""Steps in a manifest, the later ones last; no result stands on the other steps."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Threads = Annotated[int, Field(ge=0, le=MAX_THREADS)]
Share = Annotated[float, Field(ge=0)]
Time = Annotated[float, Field(ge=0, le=MAX_TIME)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]


def uploads_of(config: Mapping[str, Any]) -> set[str]:
    """Return the SHA-256 of the uploads that hold the weights of a run, or those that training began with.

    Examples
    --------
    >>> uploads_of({"weights": None, "pretrained": "blob:0a1b"}), uploads_of({"pretrained": "imagenet"})
    ({'0a1b'}, set())
    """
    named = (str(config.get(name)) for name in ("weights", "pretrained"))
    return {text.removeprefix("blob:") for text in named if text.startswith("blob:")}


class Upload(Config):
    """An uploaded file: `name` is the user's name for it, `size` in bytes."""

    sha256: Sha256
    name: str
    size: Whole


class DataSet(Config):
    """The data set, as in `Project.dataset`."""

    source: str
    image_size: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)] | None = None
    validation: Annotated[float, Field(gt=0, lt=1)] | Literal["from-test"] | None = None
    fit: Fit | None = None
    leave_out: bool | None = None
    split_seed: Whole | None = None
    fingerprint: Sha256
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    sizes: dict[str, Whole]

    @model_validator(mode="after")
    def _classes(self) -> Self:
        check_class_names(self.class_names)
        return self


class Asked(Config):
    """The resources of a run, without the address of a cluster."""

    device: str
    threads: Threads
    engine: Literal["local", "ray"]
    cpus: Share
    gpus: Share


class Found(Config):
    """Where a run computed: versions, processor, device and threads."""

    versions: dict[str, str] = Field(default_factory=dict)
    machine: str = ""
    device: dict[str, JsonValue] = Field(default_factory=dict)
    threads: Threads = 0


class MadeFile(Config):
    """An artifact.

    Attributes
    ----------
    content : str or None
        The `writing.tensors_digest` of a safetensors file; its `sha256` changes with times in the
        metadata, and with the order of the metadata.
    """

    name: str
    sha256: Sha256
    size: Whole
    content: Sha256 | None = None


class MadeRun(Config):
    """A run.

    Attributes
    ----------
    number : int
        Its number in the workspace that wrote the manifest, for people.
    config : dict
        Without numbers of runs and answers; see `starts_from` and `Log`.
    stands_on : tuple of int
        Positions of the runs it stands on.
    starts_from : int or None
        Position of the correction whose classifier a second round begins with.
    done : bool
        False for a report that was still running when it wrote the manifest.
    stale : bool
        Whether what it stands on was redone after it.
    seconds : float
        Computing time.
    results : dict or None
        Content of results.json, where there is one that `summary` does not hold.
    """

    number: Whole
    step: MadeStep
    config: dict[str, Any]
    seed: Whole
    resources: Asked
    stands_on: tuple[Whole, ...]
    starts_from: Whole | None = None
    done: bool
    stale: bool
    found: Found
    seconds: Seconds
    summary: dict[str, JsonValue]
    results: dict[str, JsonValue] | None = None
    files: tuple[MadeFile, ...]


class Answer(Config):
    """A `LabelEvent`; `undoes` is the position of the answer that it takes back."""

    kind: Literal["answer"]
    region_id: int
    annotator: str
    label: int | None
    sample_id: int | None = None
    tau: float = 0.5
    seed: int = 0
    n_samples: int = 10
    undoes: Whole | None = None
    at: Time = 0.0
    round: int = 1
    seconds: float | None = None
    key: str | None = None

    @model_validator(mode="after")
    def _storable(self) -> Self:
        if fault := answer_fault(self):
            raise ValueError(fault)
        return self


class Placed(Config):
    """A `Gaussian` that an edit adds."""

    region_id: Whole
    weight: float
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        if fault := gaussian_fault(self):
            raise ValueError(fault)
        return self


class Edit(Config):
    """A `RegionEdit`."""

    kind: Literal["edit"]
    edit: EditKind
    regions: tuple[Whole, ...] = ()
    into: tuple[Placed, ...] = ()
    mistakes: tuple[Whole, ...] = ()
    name: str = ""
    tau: Annotated[float, Field(gt=0, le=MAX_TAU)] | None = None
    by: str = ""
    at: Time = 0.0

    @model_validator(mode="after")
    def _about_something(self) -> Self:
        if not self.regions and not self.into:
            raise ValueError("an edit takes regions away or puts some in, this one does neither")
        if self.edit in ("rename", "tau") and (len(self.regions), len(self.into)) != (1, 0):
            raise ValueError(f"{self.edit} is about one region, got {len(self.regions)}")
        return self


class UndoneEdit(Config):
    """The undo of the edit at the position `undoes`."""

    kind: Literal["edit undone"]
    undoes: Whole


Entry = Answer | Edit | UndoneEdit


class Simulated(Config):
    """A run of simulated annotators; replay does not repeat it, for their answers are in the log."""

    config: dict[str, Any]
    seed: Whole


class Log(Config):
    """Answers about regions and edits of them, by people and simulated annotators, in order.

    Attributes
    ----------
    regions : int
        Position of the distill run.
    entries : tuple of Entry
        All up to the last that the correction used, undone ones and undos included.
    """

    regions: Whole
    simulated: tuple[Simulated, ...] = ()
    entries: tuple[Annotated[Entry, Field(discriminator="kind")], ...]

    @model_validator(mode="after")
    def _undos(self) -> Self:
        for position, entry in enumerate(self.entries):
            undone = getattr(entry, "undoes", None)
            if undone is None:
                continue
            expected = Answer if isinstance(entry, Answer) else Edit
            if undone >= position or not isinstance(self.entries[undone], expected):
                raise ValueError(f"entry {position} undoes {undone}, which is no such entry before it")
        return self


class Manifest(Config):
    """Everything that made the last of `runs`; each run stands on runs before it only.

    Attributes
    ----------
    made_at : float
        Seconds since 1970.
    versions : dict
        Of Defuse, Python and libraries, where the manifest was written.
    machine : dict
    project : str
        Its name in that workspace.
    uploads : tuple of Upload
        Those that hold the data set, weights, or weights that training began with.
    """

    format: Literal["defuse-manifest"]
    version: Literal[1]
    made_at: Time
    versions: dict[str, str]
    machine: dict[str, JsonValue]
    project: str
    dataset: DataSet
    uploads: tuple[Upload, ...]
    runs: Annotated[tuple[MadeRun, ...], Field(min_length=1, max_length=10_000)]
    logs: tuple[Log, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for position, run in enumerate(self.runs):
            self._check_run(position, run)
        corrected = [run.stands_on[0] for run in self.runs if run.step == "correct"]
        if sorted(corrected) != sorted({log.regions for log in self.logs}) or len(corrected) != len(
            self.logs
        ):
            raise ValueError("every correction needs the log of its regions, and every log its correction")
        n_classes = len(self.dataset.class_names)
        answers = (entry for log in self.logs for entry in log.entries if isinstance(entry, Answer))
        if fault := next(filter(None, (bounds_fault(a, n_classes=n_classes) for a in answers)), None):
            raise ValueError(f"an answer of {n_classes} classes: {fault}")
        return self

    def _check_run(self, position: int, run: MadeRun) -> None:
        named = [*run.stands_on, *(() if run.starts_from is None else (run.starts_from,))]
        if any(other >= position for other in named):
            raise ValueError(f"run {position} stands on {max(named)}, which does not come before it")
        steps = [self.runs[other].step for other in run.stands_on]
        if run.starts_from is not None and (
            run.step != "classifier" or self.runs[run.starts_from].step != "correct"
        ):
            raise ValueError(f"run {position} starts from {run.starts_from}, which is no correction")
        checked = check_config(run.step, run.config)
        if not STEPS[run.step].may_stand_on(checked, steps):
            raise ValueError(f"run {position} ({run.step}) stands on {', '.join(steps) or 'nothing'}")
        weights = str(run.config.get("weights"))
        if weights.startswith("corrected:") or run.config.get("last_annotation") is not None:
            raise ValueError(f"run {position} names a run or an answer by a number of another workspace")
        if unlisted := uploads_of(run.config) - {upload.sha256 for upload in self.uploads}:
            raise ValueError(f"run {position} takes the upload {min(unlisted)[:12]}…, which is not listed")
