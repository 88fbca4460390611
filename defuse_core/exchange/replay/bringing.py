"""What a manifest names and does not hold: the data set, uploads, and leave to run code.

A manifest may come from a stranger. No path in it is opened: the data are read from where the user
says, from the place of a project here that has the same data, or where the source is no path; uploads
are taken by their checksum; what would run code needs the same consent as elsewhere, and the folder of
the code comes from the user. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from defuse_core.base.files import file_sha256
from defuse_core.base.machine import ALLOW_LOCAL_CODE, local_code_allowed
from defuse_core.data.naming import absolute_source, without_path
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.manifest.models import Manifest, Upload, uploads_of
from defuse_core.workspace.workspace import Workspace


@dataclass(frozen=True)
class Bring:
    """What the user brings to a manifest.

    Attributes
    ----------
    data : str or None
        Where the data set is, as `data.sources.load_dataset` takes it.
    more_data : str or None
        Where the data are that annotators were trained on besides, in the same way.
    checkpoints : tuple of Path
        Files that were uploads there.
    code_path : Path or None
        Folder of the user's own networks.
    trust_program : bool
        Whether uploads that are programs may run.
    device, threads : str, int or None
        Where to compute; by default on as many threads as there, on a device of the same name.
    """

    data: str | None = None
    checkpoints: tuple[Path, ...] = ()
    code_path: Path | None = None
    trust_program: bool = False
    device: str | None = None
    threads: int | None = None
    more_data: str | None = None


def check_consent(manifest: Manifest, bring: Bring) -> None:
    """Check that what would run code was allowed.

    Raises
    ------
    WorkspaceError
        If it was not; the message names the option.
    """
    configs = [run.config for run in manifest.runs]
    if any(config.get("trust_program") for config in configs) and not bring.trust_program:
        raise WorkspaceError(
            "the manifest runs an upload that is a program; if you trust who made it, give --trust-program"
        )
    if not any(config.get("code_path") for config in configs):
        return
    if bring.code_path is None:
        raise WorkspaceError(
            "the manifest imports a network from a folder of its author; give a folder that you trust by "
            "--code-path"
        )
    if not local_code_allowed():
        raise WorkspaceError(
            f"code from {bring.code_path} would run on this machine, which was not allowed; set "
            f"{ALLOW_LOCAL_CODE}=1"
        )


class DataSource(NamedTuple):
    """Where a data set is read, and how: as `projects.new_project` takes it."""

    source: str
    image_size: int | None
    validation_share: float | None


def find_source(workspace: Workspace, manifest: Manifest, data: str | None = None) -> DataSource:
    """Return where the data set will be read, the size its images are brought to, and how it is divided.

    Raises
    ------
    WorkspaceError
        If it lies at a path of the machine where the manifest was made, or is an upload not stored here.
    """
    dataset = manifest.dataset
    size, share = dataset.image_size, dataset.validation_share
    if data is not None:  # an .npz holds images of one size, which cannot be changed
        return DataSource(data, None if data.endswith(".npz") else size, share)
    for project in workspace.projects():
        there = project.dataset
        if there.get("fingerprint") == dataset.fingerprint:
            return DataSource(there["source"], there.get("image_size"), there.get("validation_share"))
    if (source := without_path(dataset.source)) is not None:
        return DataSource(source, None if source == "digits" else size, share)
    named = next((u.name for u in manifest.uploads if f"blob:{u.sha256}" == dataset.source), dataset.source)
    raise WorkspaceError(
        f"the data set was {named} where the manifest was made; say where it is here by --data"
    )


def find_more_data(manifest: Manifest, more_data: str | None = None) -> dict[str, str]:
    """Return where the data will be read that annotators were trained on besides, by where they were.

    Raises
    ------
    WorkspaceError
        If they lie at a path of the machine where the manifest was made, and none was given.
    """
    named = {str(run.config["more_data"]) for run in manifest.runs if run.config.get("more_data")}
    found = {was: more_data or without_path(was) for was in named}
    if lost := [was for was, now in found.items() if now is None]:
        raise WorkspaceError(
            f"the annotators were trained on {min(lost)}, too, where the manifest was made; say where that "
            "is here by --more-data"
        )
    return {was: absolute_source(now) for was, now in found.items() if now is not None}


def find_uploads(workspace: Workspace, manifest: Manifest, files: Sequence[Path]) -> dict[Upload, Path]:
    """Return where the uploads lie that runs of the manifest take: among the files, or in this workspace.

    Raises
    ------
    WorkspaceError
        If one is missing, or a file is none of them.
    """
    given = {_sha256(path): path for path in files}
    stored = {
        blob.sha256: workspace.home / "blobs" / blob.sha256
        for project in workspace.projects()
        for blob in workspace.blobs(project.id)
    }
    named = set().union(*(uploads_of(run.config) for run in manifest.runs))
    wanted = [upload for upload in manifest.uploads if upload.sha256 in named]
    if strange := set(given) - {upload.sha256 for upload in wanted}:
        known = ", ".join(_told(upload) for upload in wanted) or "none"
        raise WorkspaceError(
            f"{given[strange.pop()]} is none of the uploads that the manifest names ({known}); leave it out, "
            "or give the file that was uploaded"
        )
    found = {upload: given.get(upload.sha256) or stored.get(upload.sha256) for upload in wanted}
    if missing := [upload for upload, path in found.items() if path is None or not path.is_file()]:
        raise WorkspaceError(
            f"{_told(missing[0])} was uploaded where the manifest was made; give the file by --checkpoint"
        )
    return {upload: path for upload, path in found.items() if path is not None}


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _told(upload: Upload) -> str:
    return f"{upload.name} ({upload.size:,} bytes, SHA-256 {upload.sha256[:12]}…)"
