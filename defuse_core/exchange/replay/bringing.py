"""Find what a manifest names but does not hold: the data set, uploads, and consent to run code.

A manifest may come from a stranger, so no path in it is opened. The data are read from where the user
says, else from where a project here has the same data, else from the manifest's source if that is no path.
Uploads are found by their checksum. Running code needs the same consent as elsewhere, and the folder of
the code comes from the user. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from defuse_core.base.errors import CheckpointError
from defuse_core.base.files import file_sha256, open_file
from defuse_core.base.machine import ALLOW_LOCAL_CODE, local_code_allowed
from defuse_core.data.naming import ELSEWHERE, absolute_source, without_path
from defuse_core.data.reading import Reading
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.manifest.models import Manifest, Upload, uploads_of
from defuse_core.workspace.workspace import Workspace


@dataclass(frozen=True)
class Bring:
    """What the user supplies for a manifest.

    Attributes
    ----------
    data : str or None
        Where the data set is, as `data.sources.load_dataset` takes it.
    more_data : str or None
        Where the additional training data of the annotators are, in the same form.
    checkpoints : tuple of Path
        Files that were uploaded where the manifest was made.
    code_path : Path or None
        Folder of the user's own networks.
    trust_program : bool
        Whether uploads that are programs may run.
    device, threads : str, int or None
        Where to compute; by default on the device and as many threads as the original run.
    """

    data: str | None = None
    checkpoints: tuple[Path, ...] = ()
    code_path: Path | None = None
    trust_program: bool = False
    device: str | None = None
    threads: int | None = None
    more_data: str | None = None


def check_consent(manifest: Manifest, bring: Bring) -> None:
    """Check that the user allowed all code that the manifest would run.

    Parameters
    ----------
    manifest : Manifest
    bring : Bring

    Raises
    ------
    WorkspaceError
        If not; the message names the option.
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


class ReplayData(NamedTuple):
    """Where a data set is read, and how: as `projects.new_project` takes it."""

    source: str
    reading: Reading


def find_source(workspace: Workspace, manifest: Manifest, data: str | None = None) -> ReplayData:
    """Return where the data set will be read, and how.

    Parameters
    ----------
    workspace : Workspace
    manifest : Manifest
    data : str, optional
        As in `Bring`; by default where a project here has the same data.

    Raises
    ------
    WorkspaceError
        If the manifest names only a path of another machine, or an upload that no project here has.
    """
    dataset = manifest.dataset
    reading = Reading.of(dataset.model_dump())
    if data is not None:
        return ReplayData(data, reading)
    for project in workspace.projects():
        stored = project.dataset
        there = str(stored["source"]).startswith(ELSEWHERE)  # on the machine that the project came from
        if stored.get("fingerprint") == dataset.fingerprint and not there:
            return ReplayData(stored["source"], Reading.of(stored))
    if (source := without_path(dataset.source)) is not None:
        return ReplayData(source, reading)
    named = next((u.name for u in manifest.uploads if f"blob:{u.sha256}" == dataset.source), dataset.source)
    raise WorkspaceError(
        f"the data set was {named} where the manifest was made; say where it is here by --data"
    )


def find_more_data(manifest: Manifest, more_data: str | None = None) -> dict[str, str]:
    """Return where the annotators' additional training data are here, by their source in the manifest.

    Parameters
    ----------
    manifest : Manifest
    more_data : str, optional
        As in `Bring`.

    Raises
    ------
    WorkspaceError
        If the manifest names only a path of another machine, and `more_data` is None.
    """
    named = {str(run.config["more_data"]) for run in manifest.runs if run.config.get("more_data")}
    sources = {was: more_data or without_path(was) for was in named}
    if lost := [was for was, now in sources.items() if now is None]:
        raise WorkspaceError(
            f"the annotators were trained on {min(lost)}, too, where the manifest was made; say where that "
            "is here by --more-data"
        )
    return {was: absolute_source(now) for was, now in sources.items() if now is not None}


def find_uploads(workspace: Workspace, manifest: Manifest, files: Sequence[Path]) -> dict[Upload, Path]:
    """Return the file of every upload that the manifest's runs use: one of `files`, or of this workspace.

    Parameters
    ----------
    workspace : Workspace
    manifest : Manifest
    files : sequence of Path
        Those that the user supplies, in any order.

    Raises
    ------
    WorkspaceError
        If an upload is missing, or one of `files` is none of them.
    """
    supplied = {_sha256(path): path for path in files}
    stored = {
        blob.sha256: workspace.home / "blobs" / blob.sha256
        for project in workspace.projects()
        for blob in workspace.blobs(project.id)
    }
    named = set().union(*(uploads_of(run.config) for run in manifest.runs))
    uploads = [upload for upload in manifest.uploads if upload.sha256 in named]
    if strange := set(supplied) - {upload.sha256 for upload in uploads}:
        known = ", ".join(_told(upload) for upload in uploads) or "none"
        raise WorkspaceError(
            f"{supplied[strange.pop()]} is none of the uploads that the manifest names ({known}); leave it "
            "out, or give the file that was uploaded"
        )
    paths = {upload: supplied.get(upload.sha256) or stored.get(upload.sha256) for upload in uploads}
    if missing := [upload for upload, path in paths.items() if path is None or not path.is_file()]:
        raise WorkspaceError(
            f"{_told(missing[0])} was uploaded where the manifest was made; give the file by --checkpoint"
        )
    return {upload: path for upload, path in paths.items() if path is not None}


def _sha256(path: Path) -> str:
    try:
        open_file(path).close()  # raises for a pipe or a device, which may never end
        return file_sha256(path)
    except CheckpointError as error:
        raise WorkspaceError(str(error)) from error


def _told(upload: Upload) -> str:
    return f"{upload.name} ({upload.size:,} bytes, SHA-256 {upload.sha256[:12]}…)"
