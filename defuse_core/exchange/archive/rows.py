"""Define the rows of an archive, one model a table, and renumber its runs and label events.

The same models check what is written and what is read: every row that they accept can be stored as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from defuse_core.base.limits import (
    MAX_ERROR,
    MAX_IMAGE_SIZE,
    MAX_NAME,
    MAX_SAMPLES,
    MAX_SECONDS,
    MAX_SIDE,
    MAX_SOURCE,
    MAX_TAU,
    MAX_THREADS,
    MAX_TIME,
)
from defuse_core.data.class_names import check_class_names
from defuse_core.data.reading import Fit
from defuse_core.exchange.archive.summaries import summary_fault
from defuse_core.workspace.edits import EditKind, gaussian_fault
from defuse_core.workspace.label_rules import answer_fault

FORMAT = "defuse project"
VERSION = 1
"""Of the archive; increased when an older Defuse could not read a new archive."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[int, Field(ge=1, lt=2**63)]
Signed = Annotated[int, Field(ge=-(2**63), lt=2**63)]

Name = Annotated[str, Field(max_length=MAX_NAME)]
Told = Annotated[str, Field(max_length=MAX_ERROR)]
Time = Annotated[float, Field(ge=0, le=MAX_TIME)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]

NO_RUN = 10**18 - 1
"""Stands for a run of another project: no run will have this number."""

_CORRECTED = re.compile(r"corrected:([1-9][0-9]{0,17})")
_RUN_IN_TEXT = re.compile(r"\b(run|resume) ([1-9][0-9]{0,17})\b")
_FOLDER = r"[A-Za-z0-9][A-Za-z0-9=_+.-]{0,99}"
ARTIFACT = rf"^({_FOLDER}/){{0,3}}{_FOLDER}\.(safetensors|json|png|svg|md|csv|html|pdf)$"
"""Names of artifacts: only paths downwards, and no file that Python would import."""


_RECORD: dict[str, type] = {
    "summary": dict, "versions": dict, "device": dict, "attempts": list, "machine": str, "threads": int,
}  # fmt: skip
"""What the record of a run may hold."""
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


class Row(BaseModel):
    """One line of an archive."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DatasetRow(Row):
    """What a project remembers of its data set."""

    source: str = Field(min_length=1, max_length=MAX_SOURCE)
    image_size: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)] | None
    validation: Annotated[float, Field(gt=0, lt=1)] | Literal["from-test"] | None = None
    fit: Fit | None = None
    leave_out: bool | None = None
    split_seed: Whole | None = None
    fingerprint: Sha256
    class_names: list[Name] = Field(min_length=1)
    image_shape: list[Side] = Field(min_length=3, max_length=3)
    sizes: dict[Name, Whole]
    notes: list[Name] | None = None

    @model_validator(mode="after")
    def _classes(self) -> Self:
        check_class_names(self.class_names)
        return self


class ProjectRow(Row):
    """The project."""

    name: Name
    dataset: DatasetRow
    created_at: Time


class Member(Row):
    """What the manifest says of another member of the archive."""

    size: Whole
    sha256: Sha256


class Manifest(Row):
    """The member that names all others; `defuse` is the version that wrote it."""

    format: Literal["defuse project"]
    version: Literal[1]
    defuse: Name
    project: ProjectRow
    members: dict[str, Member]


class BlobRow(Row):
    """An upload."""

    sha256: Sha256
    name: str = Field(max_length=200, pattern=r"^[^/\x00]*$")
    size: Whole
    created_at: Time


class ResourcesRow(Row):
    """Where a run computed, without engine and address: they name another machine's cluster."""

    device: str = Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    threads: Annotated[int, Field(ge=0, le=MAX_THREADS)]
    cpus: float = Field(ge=0)
    gpus: float = Field(ge=0)


class RunRow(Row):
    """A run; its number is that of its line. `inputs` are the numbers of those it stands on."""

    step: str
    config: dict[str, JsonValue]
    seed: Whole
    resources: ResourcesRow
    status: Literal["done", "failed", "cancelled", "interrupted"]
    error: Told | None
    record: dict[str, JsonValue]
    created_at: Time
    started_at: Time | None
    attempt_at: Time | None
    finished_at: Time | None
    seconds: Annotated[float, Field(ge=-MAX_SECONDS, le=MAX_SECONDS)]  # below 0 if a clock was set back
    last_annotation: Whole | None
    inputs: list[Number]

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for name, kind in _RECORD.items():
            if not isinstance(self.record.get(name, kind()), kind):
                raise ValueError(f"the {name} in the record must be {_KINDS[kind]}")
        summary = self.record.get("summary")
        if fault := summary_fault(self.step, summary, done=self.status == "done"):
            raise ValueError(f"the summary in the record is damaged: {fault}")
        return self


class TaskRow(Row):
    """A task of a run."""

    run: Number
    name: Name
    position: Whole
    status: Literal["queued", "done", "failed", "cancelled"]
    step: Whole
    steps: Whole
    metrics: dict[str, JsonValue]
    error: Told | None


class EventRow(Row):
    """A change of status, or a point."""

    run: Number
    kind: Literal["status", "point"]
    task: Name
    key: Name
    data: dict[str, JsonValue]
    at: Time


class ArtifactRow(Row):
    """A file of a run."""

    run: Number
    name: str = Field(pattern=ARTIFACT)
    sha256: Sha256
    size: Whole

    @model_validator(mode="after")
    def _free(self) -> Self:
        if self.name == "config.json" or self.name.startswith("work/"):
            raise ValueError(f"{self.name} is no name for an artifact")
        return self


class GaussianRow(Row):
    """A region that an edit adds."""

    region_id: Whole
    weight: float
    mean: list[float] = Field(min_length=1)
    covariance: list[list[float]]

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        if fault := gaussian_fault(self):
            raise ValueError(fault)
        return self


class EditRow(Row):
    """An edit of regions, its fields in the order of `RegionEdit.to_json`."""

    kind: EditKind
    regions: list[Whole]
    into: list[GaussianRow]
    mistakes: list[Whole]
    name: Name
    tau: Annotated[float, Field(gt=0, le=MAX_TAU)] | None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        about_one = self.kind in ("rename", "tau")
        if (len(self.regions), len(self.into)) != (1, 0) if about_one else not self.into:
            raise ValueError(f"{self.kind} names {len(self.regions)} regions and makes {len(self.into)}")
        return self


class AnnotationRow(Row):
    """A label event or an edit; its number is that of its line."""

    run: Number
    region_id: Signed
    sample_id: Signed | None
    annotator: Name
    label: Signed | None
    tau: float
    seed: Whole
    n_samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)]  # 0 of an edit
    undoes: Number | None
    at: Time
    round: Number
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None
    key: Name | None
    edit: EditRow | None

    @model_validator(mode="after")
    def _storable(self) -> Self:
        if self.edit is None and (fault := answer_fault(self)):
            raise ValueError(fault)
        return self


TABLES: dict[str, type[Row]] = {
    "blobs": BlobRow, "runs": RunRow, "tasks": TaskRow, "events": EventRow, "artifacts": ArtifactRow,
    "annotations": AnnotationRow,
}  # fmt: skip
"""Model of every member rows/<table>.jsonl."""


@dataclass(frozen=True)
class Renumbering:
    """Gives runs and label events their new numbers.

    Attributes
    ----------
    run : callable
        The new number of a run; None for one that is not of the project.
    annotation : callable
        The new number of a label event, or of the last one before it.
    unknown : int or None
        Number for a run that is not of the project; None keeps the old one.
    """

    run: Callable[[int], int | None]
    annotation: Callable[[int], int]
    unknown: int | None = None

    def value(self, value: Any, *, key: str = "") -> Any:
        """Renumber a JSON value: "corrected:<run>", and the number under "last_annotation".

        Parameters
        ----------
        value : JSON value
        key : str
            Under which the value stands; "" at the top and in a list.

        Examples
        --------
        >>> shifted = Renumbering(lambda run: run + 10, lambda event: event + 100)
        >>> shifted.value({"weights": "corrected:4", "settings": [{"last_annotation": 7}]})
        {'weights': 'corrected:14', 'settings': [{'last_annotation': 107}]}
        """
        if isinstance(value, dict):
            return {name: self.value(inner, key=name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.value(inner) for inner in value]
        if key == "last_annotation" and type(value) is int:
            return self.annotation(value)
        if isinstance(value, str) and (match := _CORRECTED.fullmatch(value)):
            new = self.run(int(match[1])) or self.unknown
            return value if new is None else f"corrected:{new}"
        return value

    def text(self, text: str | None) -> str | None:
        """Renumber the runs that an error names, such as in "resume it: defuse resume 4"."""

        def renumbered(match: re.Match[str]) -> str:
            new = self.run(int(match[2]))
            return match[0] if new is None else f"{match[1]} {new}"

        return None if text is None else _RUN_IN_TEXT.sub(renumbered, text)[:MAX_ERROR]
