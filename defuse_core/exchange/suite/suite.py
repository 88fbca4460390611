"""Read a regression suite, labelled regions as fixed images, and test any later model against it.

It is a folder with manifest.json, instances.safetensors (images uint8, labels, region_ids) and one picture
a region, regions/<id>.png. A stranger may have made it: no name of a file is taken from it, sizes and shapes
are checked before memory is taken, and checksums before any image is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from defuse_core.base.config import Config
from defuse_core.base.errors import DefuseError
from defuse_core.base.files import file_sha256
from defuse_core.base.intervals import Interval
from defuse_core.base.limits import MAX_IMAGE_SIZE, MAX_SUITE_HEADER, MAX_SUITE_MANIFEST, MAX_TAU
from defuse_core.base.records import FailureInstances
from defuse_core.base.texts import quote
from defuse_core.data.class_names import check_class_names
from defuse_core.method.classifier import Classifier, Preprocessing, predict

FORMAT = "defuse-suite"
VERSION = 1
MANIFEST = "manifest.json"
INSTANCES = "instances.safetensors"

_BATCH = 64  # images at once: networks of strangers may be large
_Share = Annotated[float, Field(ge=0, le=1)]
_Side = Annotated[int, Field(ge=1, le=1024)]
_Text = Annotated[str, Field(max_length=200)]


class SuiteError(DefuseError, ValueError):
    """A suite that cannot be used; the message names the file and the remedy."""


class Feeding(Config):
    """A `Preprocessing` in the JSON of a suite, within bounds."""

    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    std: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    image_size: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)] | None = None
    channel_order: Literal["rgb", "bgr"] = "rgb"

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.preprocessing()
        return self

    def preprocessing(self) -> Preprocessing:
        """The record that a classifier takes."""
        return Preprocessing(**self.model_dump())


class SuiteRegion(Config):
    """One region: `n` draws at `tau` under `seed`, all of class `label`.

    `name` is what people call it, or "". `error` is that of the classifier that the suite was made from:
    [estimate, low, high, n]. `is_failure` says whether its labels make it a failure.
    """

    region_id: int = Field(ge=0, le=2**53)
    name: _Text
    label: int = Field(ge=0)
    tau: float = Field(gt=0, le=MAX_TAU)
    seed: int = Field(ge=0, le=2**63 - 1)
    n: int = Field(ge=1, le=10**6)
    is_failure: bool
    error: tuple[_Share, _Share, _Share, int]

    @property
    def before(self) -> Interval:
        """Share of the draws that the classifier misclassified when the suite was made."""
        return Interval(*self.error)

    @property
    def picture(self) -> str:
        """Its contact sheet, within the folder."""
        return f"regions/{self.region_id}.png"


class Manifest(Config):
    """What manifest.json holds."""

    format: Literal["defuse-suite"] = "defuse-suite"
    version: Literal[1] = 1
    defuse_version: _Text
    project: _Text
    fingerprint: _Text = Field(description="Of the data set")
    class_names: tuple[str, ...]
    image_shape: tuple[Literal[1, 3], _Side, _Side]
    architecture: _Text
    preprocessing: Feeding
    regions: Annotated[tuple[SuiteRegion, ...], Field(min_length=1, max_length=10_000)]
    files: dict[str, str] = Field({}, description="SHA-256 by name; empty until they are written")

    @property
    def file_names(self) -> list[str]:
        """The other files of the suite, within its folder."""
        return [INSTANCES, *(region.picture for region in self.regions)]

    @property
    def n_images(self) -> int:
        """Images of all regions."""
        return sum(region.n for region in self.regions)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        check_class_names(self.class_names)
        ids = [region.region_id for region in self.regions]
        if len(set(ids)) < len(ids):
            raise ValueError("regions must have ids of their own")
        if wrong := [r.label for r in self.regions if r.label >= len(self.class_names)]:
            raise ValueError(f"labels must be in 0 … {len(self.class_names) - 1}, got {wrong[0]}")
        return self


class _Head(BaseModel):
    """What every version of the manifest begins with."""

    format: str
    version: int


@dataclass(frozen=True)
class Suite:
    """A suite in memory; instances are in the order of the manifest's regions."""

    manifest: Manifest
    instances: FailureInstances


@dataclass(frozen=True)
class Checked:
    """The result of a model on a region; `error` is the share of draws that it misclassifies."""

    region: SuiteRegion
    error: Interval
    passed: bool


def read_suite(folder: Path) -> Suite:
    """Read and check a suite, which anybody may have made.

    Raises
    ------
    SuiteError
        If it is no suite, is of a newer version, is incomplete or was changed.
    """
    manifest = read_manifest(folder)
    _check_size(manifest, folder / INSTANCES)
    for path in (folder / name for name in manifest.file_names):  # other names in `files` are ignored
        if not path.is_file():
            raise SuiteError(f"{path} is missing; copy the suite again, or export it anew")
        if file_sha256(path) != manifest.files.get(path.relative_to(folder).as_posix()):
            raise SuiteError(f"{path} is not the file that the suite was made with; copy it again")
    return Suite(manifest, _read_instances(manifest, folder / INSTANCES))


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json alone.

    Raises
    ------
    SuiteError
        As `read_suite` does.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise SuiteError(f"{folder} is no suite: it has no {MANIFEST}; make one with: defuse suite export")
    if path.stat().st_size > MAX_SUITE_MANIFEST:
        raise SuiteError(f"{path} is over {MAX_SUITE_MANIFEST >> 20} MB, which no suite's is; export it anew")
    content = path.read_bytes()
    try:
        head = _Head.model_validate_json(content)
    except ValidationError:
        raise SuiteError(f"{path} is no suite's; make one with: defuse suite export") from None
    if head.format != FORMAT:
        raise SuiteError(f"{path} is of format {head.format[:60]!r}, not {FORMAT!r}; give a suite's folder")
    if head.version > VERSION:
        raise SuiteError(
            f"{folder} is a suite of version {head.version}, this Defuse reads {VERSION}; install a newer "
            "Defuse, or export the suite with this one"
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part)[:60] for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise SuiteError(f"{path} is damaged ({reason[:300]}); copy the suite again") from None


def _check_size(manifest: Manifest, path: Path) -> None:
    """Refuse a file whose size does not fit the manifest, before any of it is read."""
    if not path.is_file():
        raise SuiteError(f"{path} is missing; copy the suite again, or export it anew")
    rows, size = manifest.n_images, path.stat().st_size
    n_bytes = rows * (math.prod(manifest.image_shape) + 2 * 8)
    if not n_bytes < size <= n_bytes + MAX_SUITE_HEADER:
        raise SuiteError(
            f"{path} has {size} bytes, {rows} images of {manifest.image_shape} have about {n_bytes}; copy "
            "the suite again"
        )


def _read_instances(manifest: Manifest, path: Path) -> FailureInstances:
    rows = manifest.n_images
    layout = {
        "images": ([rows, *manifest.image_shape], "U8"),
        "labels": ([rows], "I64"),
        "region_ids": ([rows], "I64"),
    }
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            actual = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
            if actual != layout:
                raise SuiteError(f"{path} does not hold what its manifest says; copy the suite again")
            instances = FailureInstances(*(file.get_tensor(name) for name in layout))
    except SafetensorError as error:
        raise SuiteError(f"{path} is not a whole safetensors file ({quote(error)}); copy it again") from error
    stored = instances.labels, instances.region_ids
    if not all(map(torch.equal, of_regions(manifest.regions), stored)):
        raise SuiteError(f"{path} has other labels or regions than its manifest; export the suite anew")
    return instances


def of_regions(regions: Sequence[SuiteRegion]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and region_ids, (n,) int64 each, that the instances of these regions have."""
    n = torch.tensor([region.n for region in regions])
    labels, ids = (
        torch.tensor([getattr(region, name) for region in regions], dtype=torch.int64).repeat_interleave(n)
        for name in ("label", "region_id")
    )
    return labels, ids


def check_suite(classifier: Classifier, suite: Suite, *, max_error: float) -> list[Checked]:
    """Test a model against every region of a suite.

    Parameters
    ----------
    classifier : Classifier
        Its classes are those of the suite, in the same order.
    suite : Suite
    max_error : float
        In [0, 1]; a region passes if at most this share of its draws is misclassified.
    """
    if not 0 <= max_error <= 1:
        raise ValueError(f"max_error must be in [0, 1], got {max_error}")
    wrong = predict(classifier, suite.instances.images, batch_size=_BATCH) != suite.instances.labels
    parts = wrong.split([region.n for region in suite.manifest.regions])
    errors = [Interval.wilson(int(part.sum()), len(part)) for part in parts]
    return [
        Checked(region, error, error.estimate <= max_error)
        for region, error in zip(suite.manifest.regions, errors, strict=True)
    ]
