"""Read a manifest from a file, which a stranger may have written. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from defuse_core.base.errors import CheckpointError, DefuseError
from defuse_core.base.files import open_file
from defuse_core.base.limits import MAX_MANIFEST_BYTES
from defuse_core.base.texts import find_control
from defuse_core.workspace.manifest.models import FORMAT, VERSION, Manifest


class ManifestError(DefuseError, ValueError):
    """A file that is no manifest, or none that this Defuse can read."""


def read_manifest(path: Path) -> Manifest:
    """Read a manifest that may come from a stranger.

    Raises
    ------
    ManifestError
        If the file is missing, too large, of a newer Defuse, or no manifest.
    """
    try:
        with open_file(path) as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except CheckpointError as error:
        raise ManifestError(error) from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{path} is over {MAX_MANIFEST_BYTES // 2**20} MB, too large for a manifest; write it again"
        )
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is no JSON ({error}); write it again with: defuse manifest") from error
    return parse_manifest(document, source=str(path))


def parse_manifest(told: Any, *, source: str = "the manifest") -> Manifest:
    """Check a manifest that `make_manifest` or a stranger wrote.

    Parameters
    ----------
    told : object
        The manifest, as `json.loads` or `make_manifest` returns it.
    source : str
        Its name in messages.

    Raises
    ------
    ManifestError
        If it is of a newer Defuse, or no manifest; the message names the first field that is wrong.

    Examples
    --------
    >>> parse_manifest({"format": "defuse-manifest", "version": 2})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    defuse_core...ManifestError: the manifest has version 2, this Defuse reads 1; upgrade
    """
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ManifestError(f"{source} is no manifest of Defuse; write one with: defuse manifest")
    if isinstance(version := told.get("version"), int) and version > VERSION:
        raise ManifestError(f"{source} has version {version}, this Defuse reads {VERSION}; upgrade")
    if bad := find_control(told):
        raise ManifestError(
            f"{source} has control characters in {bad[:60]!r}, which a terminal would obey; write it again"
        )
    try:
        return Manifest.model_validate(told)
    except (ValidationError, RecursionError) as error:
        raise ManifestError(
            f"{source} is malformed: {_first(error)}; write it again with: defuse manifest"
        ) from error


def _first(error: ValidationError | RecursionError) -> str:
    """The first problem, in one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    text = f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}"
    return text if len(text) <= 300 else text[:300] + "…"
